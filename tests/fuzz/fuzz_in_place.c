/* fuzz_in_place.c - the bytes are the image of a hostile database with a table `chunk`: rows used
 * in place equal what SQLite reads, or are left to SQLite
 *
 * The last byte decides between the mapped file and windows, the width of rows and how many are
 * asked for at once. The image lies in memory of exactly its size, so that ASan sees every step
 * beyond it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "traces/in_place.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_BLOB = 1 << 16, MOST_ROWS = 16 };

struct shape {
    size_t row_bytes, most, unit;
};

/* The cursor asks SQLite for the row first, so that only rows which it finds count. */
static void compare(struct in_place *place, sqlite3_blob *blob, struct shape shape) {
    static unsigned char buffer[MOST_ROWS * 256], expected[MOST_ROWS * 256];
    struct in_place_rows want = {
        .row_bytes = shape.row_bytes, .align = 4, .unit = shape.unit, .buffer = buffer};
    size_t rows = (size_t)sqlite3_blob_bytes(blob) / shape.row_bytes, n = 1;
    if (rows > MOST_BLOB / shape.row_bytes) rows = MOST_BLOB / shape.row_bytes;
    for (; want.first < rows; want.first += n) {
        want.max = rows - want.first < shape.most ? rows - want.first : shape.most;
        const unsigned char *at = in_place_rows(place, &want, &n);
        if (!at) return;
        if (n < 1 || n > want.max ||
            sqlite3_blob_read(blob, expected, (int)(n * shape.row_bytes),
                              (int)(want.first * shape.row_bytes)) != SQLITE_OK ||
            memcmp(at, expected, n * shape.row_bytes) != 0)
            abort();
    }
}

static void compare_row(struct db *db, struct in_place *place, int64_t row, struct shape shape) {
    sqlite3_blob *blob = NULL;
    if (sqlite3_blob_open(db->handle, "main", "chunk", "scores", row, 0, &blob) == SQLITE_OK &&
        in_place_find(place, row, 2, (size_t)sqlite3_blob_bytes(blob)))
        compare(place, blob, shape);
    sqlite3_blob_close(blob);
}

static void compare_image(struct db *db, struct shape shape) {
    struct in_place *place = in_place_open(db, "chunk");
    if (!place) return;
    for (int64_t row = -2; row < 12; row++) compare_row(db, place, row, shape);
    in_place_close(place);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct db db;
    struct err err;
    unsigned last = size ? data[size - 1] : 0;
    unsigned char *image = size > 512 ? malloc(size - 1) : NULL;
    if (!image) return 0;
    memcpy(image, data, size - 1);
    if (!db_open_memory(&db, &err)) exit(1);
    /* a map is only had of an image that cannot grow */
    if (sqlite3_deserialize(
            db.handle, "main", image, (sqlite3_int64)(size - 1), (sqlite3_int64)(size - 1),
            last & 1 ? SQLITE_DESERIALIZE_RESIZEABLE : SQLITE_DESERIALIZE_READONLY) == SQLITE_OK)
        compare_image(&db, (struct shape){4 * (1 + (last >> 1 & 63)), last & 128 ? MOST_ROWS : 1,
                                          last & 2 ? 4 : 1});
    db_close(&db);
    free(image);
    return 0;
}
