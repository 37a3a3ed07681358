/* test_in_place.c - rows used where they lie in the database file are those that SQLite reads; what
 * the file alone cannot tell, and every damage, is left to SQLite */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "sim/source.h"
#include "tests/support_logits.h"
#include "tests/support_trace.h"
#include "traces/in_place.h"
#include "traces/trace.h"

enum { ROWS = 40, MOST_BYTES = 300000, SCORES = 2 };
static char path[512];
static struct err err;

static void sql(struct db *db, const char *text) { test_ok(db_exec(db, text, &err), &err); }

/* Blobs from empty to many pages, after `pragma`; every fourth row has other values before its
 * blob. */
static void write_rows(const char *pragma) {
    struct db db;
    struct rng rng;
    rng_init(&rng, 5);
    unsigned char *bytes = malloc(MOST_BYTES);
    for (int i = 0; i < MOST_BYTES; i++) bytes[i] = (unsigned char)rng_next(&rng);
    snprintf(path, sizeof path, "%s/t.db", test_folder("in-place"));
    test_ok(db_open_new(&db, path, &err), &err);
    sql(&db, pragma);
    sql(&db, "CREATE TABLE first(x); CREATE TABLE chunk(chunk INTEGER PRIMARY KEY, choice_hash, "
             "scores BLOB, ids, weights); BEGIN");
    sqlite3_stmt *row = db_prepare(&db, "INSERT INTO chunk VALUES (?, ?, ?, NULL, ?)", &err);
    for (int i = 0; i < ROWS; i++) {
        int n = i < 8 ? i * 61 : (int)rng_below(&rng, MOST_BYTES >> i % 8);
        sqlite3_bind_int64(row, 1, i * 3 - 30);
        sqlite3_bind_int64(row, 2, i % 4 ? (int64_t)rng_next(&rng) : i - 4);
        sqlite3_bind_blob(row, 3, bytes + i, n - n % 4, SQLITE_STATIC);
        if (i % 5 == 0) sqlite3_bind_blob(row, 4, bytes, 700, SQLITE_STATIC);
        test_ok(db_run(&db, row, &err), &err);
    }
    sqlite3_finalize(row);
    sql(&db, "COMMIT");
    db_close(&db);
    free(bytes);
}

/* What came of comparing with SQLite: rows within pages, rows copied, blobs refused. */
struct seen {
    int64_t within, copied, refused;
};

static void compare_blob(struct in_place *place, const unsigned char *blob, size_t bytes,
                         size_t row_bytes, struct seen *seen) {
    static unsigned char buffer[MOST_BYTES];
    struct in_place_rows want = {
        .row_bytes = row_bytes, .align = 4, .unit = row_bytes % 16 ? 1 : 16, .buffer = buffer};
    size_t n = 1, rows = bytes / row_bytes;
    for (want.first = 0; want.first < rows; want.first += n) {
        want.max = rows - want.first < 64 ? rows - want.first : 64;
        const unsigned char *at = in_place_rows(place, &want, &n);
        if (!at) {
            seen->refused++;
            return;
        }
        assert_in_range(n, 1, want.max);
        assert_memory_equal(at, blob + want.first * row_bytes, n * row_bytes);
        if (at != buffer) assert_int_equal((uintptr_t)at % 4, 0);
        if (at != buffer) assert_int_equal(n % want.unit, n == want.max ? n % want.unit : 0);
        *(at == buffer ? &seen->copied : &seen->within) += (int64_t)n;
    }
}

/* Every blob that SQLite can read, against the rows in place. */
static struct seen compare_all(struct db *db, struct in_place *place) {
    struct seen seen = {0, 0, 0};
    static const size_t widths[] = {4, 60, 256, 1024, 5000};
    for (int i = 0; i < ROWS; i++) {
        sqlite3_blob *blob = NULL;
        int64_t id = i * 3 - 30;
        static unsigned char bytes[MOST_BYTES];
        assert_false(in_place_find(place, id + 1, SCORES, 244));
        bool known =
            sqlite3_blob_open(db->handle, "main", "chunk", "scores", id, 0, &blob) == SQLITE_OK;
        int n = known ? sqlite3_blob_bytes(blob) : 244;
        known = known && n <= MOST_BYTES && sqlite3_blob_read(blob, bytes, n, 0) == SQLITE_OK;
        assert_false(in_place_find(place, id, SCORES, (size_t)n + 2));
        for (int w = 0; w < 5; w++)
            if (!in_place_find(place, id, SCORES, (size_t)n))
                seen.refused++;
            else if (known)
                compare_blob(place, bytes, (size_t)n, widths[w], &seen);
        sqlite3_blob_close(blob);
    }
    return seen;
}

static struct seen compare_file(const char *mmap) {
    struct db db;
    struct seen seen = {0, 0, 0};
    test_ok(db_open(&db, path, DB_READ, &err), &err);
    sql(&db, mmap);
    struct in_place *place = in_place_open(&db, "chunk");
    if (place) seen = compare_all(&db, place);
    if (!place) seen.refused = -1;
    in_place_close(place);
    assert_true(sqlite3_get_autocommit(db.handle));
    db_close(&db);
    return seen;
}

static void rows_in_place_are_what_sqlite_reads(void **state) {
    (void)state;
    static const char *const pragmas[] = {"PRAGMA page_size = 512",   "PRAGMA page_size = 1024",
                                          "PRAGMA page_size = 4096",  "PRAGMA page_size = 16384",
                                          "PRAGMA page_size = 65536", "PRAGMA encoding = 'UTF-16'"};
    for (size_t i = 0; i < sizeof pragmas / sizeof *pragmas; i++) {
        write_rows(pragmas[i]);
        struct seen mapped = compare_file("PRAGMA mmap_size = 2147418112");
        struct seen windows = compare_file("PRAGMA mmap_size = 0");
        assert_int_equal(mapped.refused, 0);
        assert_int_equal(windows.refused, 0);
        assert_true(mapped.within > 1000 && windows.within == mapped.within);
        assert_true(mapped.copied > 0 && windows.copied == mapped.copied);
    }
}

static void rows_are_found_after_deleting_and_vacuuming(void **state) {
    (void)state;
    static const char *const changes[] = {
        "DELETE FROM chunk WHERE chunk % 2; INSERT INTO chunk SELECT chunk + 3000, 7, scores, "
        "NULL, "
        "NULL FROM chunk; UPDATE chunk SET scores = zeroblob(70000) WHERE chunk = -18",
        "DELETE FROM chunk WHERE chunk % 5 = 0; VACUUM", "PRAGMA page_size = 2048; VACUUM",
        "INSERT INTO first SELECT zeroblob(3000) FROM chunk; DELETE FROM first"};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct db db;
        write_rows("PRAGMA page_size = 4096");
        test_ok(db_open(&db, path, DB_WRITE, &err), &err);
        sql(&db, changes[i]);
        db_close(&db);
        struct seen seen = compare_file("PRAGMA mmap_size = 2147418112");
        assert_true(seen.within > 1000);
        assert_int_equal(seen.refused % 5, 0); /* rows that are gone: in no width */
    }
}

static void what_the_file_alone_cannot_tell_is_left_to_sqlite(void **state) {
    (void)state;
    struct db db;
    static const char *const pragmas[] = {"PRAGMA auto_vacuum = 1", "PRAGMA auto_vacuum = 2",
                                          "PRAGMA journal_mode = WAL"};
    for (size_t i = 0; i < sizeof pragmas / sizeof *pragmas; i++) {
        write_rows(pragmas[i]);
        assert_int_equal(compare_file("PRAGMA mmap_size = 2147418112").refused, -1);
    }
    test_ok(db_open_memory(&db, &err), &err);
    sql(&db, "CREATE TABLE chunk(chunk INTEGER PRIMARY KEY, choice_hash, scores)");
    assert_null(in_place_open(&db, "chunk"));
    assert_null(in_place_open(&db, "nothing"));
    sql(&db, "BEGIN");
    assert_null(in_place_open(&db, "chunk"));
    assert_false(sqlite3_get_autocommit(db.handle)); /* the caller's transaction goes on */
    db_close(&db);
}

/* Damage at the places that matter and anywhere: refused, or what SQLite reads. */
static void damaged_files_give_what_sqlite_reads_or_nothing(void **state) {
    (void)state;
    struct rng rng;
    size_t len;
    rng_init(&rng, 17);
    write_rows("PRAGMA page_size = 512");
    unsigned char *bytes = (unsigned char *)file_read(path, 1 << 26, &len, &err);
    test_ok(bytes, &err);
    int64_t opened = 0;
    for (int round = 0; round < 400; round++) {
        size_t at[6];
        unsigned char was[6];
        for (int i = 0; i < 6; i++) {
            at[i] = round % 3 == 0 ? (size_t)rng_below(&rng, len)
                                   : (size_t)rng_below(&rng, len / 512) * 512 +
                                         (size_t)rng_below(&rng, round % 3 == 1 ? 4 : 24);
            was[i] = bytes[at[i]];
            bytes[at[i]] = rng_below(&rng, 2) ? (unsigned char)rng_below(&rng, 8)
                                              : (unsigned char)rng_next(&rng);
        }
        size_t kept = round % 10 == 9 ? (size_t)rng_below(&rng, len) : len;
        test_ok(file_write(path, (const char *)bytes, kept, &err), &err);
        struct db db;
        if (db_open(&db, path, DB_READ, &err)) {
            struct in_place *place = in_place_open(&db, "chunk");
            if (place) opened++, compare_all(&db, place);
            in_place_close(place);
            db_close(&db);
        }
        for (int i = 5; i >= 0; i--) bytes[at[i]] = was[i];
    }
    assert_true(opened > 100);
    free(bytes);
}

/* ---- through a cursor */

enum { E = 24, T = 3000 };

/* All rows of router 0, in pieces of at most `max`. */
static void compare_pieces(const struct trace *trace, const float *logits, int64_t tokens,
                           int64_t max, double slack) {
    struct trace_cursor *cursor = trace_cursor_open(trace, 0, &err);
    struct trace_chunk piece;
    test_ok(cursor, &err);
    for (int64_t at = 0; at < tokens; at += piece.tokens) {
        test_ok(trace_cursor_piece(cursor, at, max, &piece, &err), &err);
        assert_true(piece.first == at && piece.tokens >= 1 && piece.tokens <= max);
        for (int64_t i = 0; i < piece.tokens * E; i++)
            test_near((double)piece.logits[i], (double)logits[at * E + i], slack);
    }
    assert_false(trace_cursor_piece(cursor, tokens, max, &piece, &err));
    trace_cursor_free(cursor);
}

static struct trace_layer layer;
static struct trace_document document = {"a.txt", "prose", "", 0, 0, T};

static struct trace *create(enum trace_store store) {
    const struct trace_setup setup = {.capture = {.model = "toy",
                                                  .family = "",
                                                  .model_id = "",
                                                  .config = "",
                                                  .source = "capture",
                                                  .compute = "",
                                                  .kernels = "",
                                                  .store = store,
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = &layer,
                                      .layer_count = 1,
                                      .documents = &document,
                                      .document_count = 1};
    layer = (struct trace_layer){
        .layer = 1, .experts = E, .topk = 2, .holds = TRACE_SCORES, .has_gate = true};
    test_ok(gate_parse("softmax,topk=2", NULL, &layer.gate, &err), &err);
    snprintf(path, sizeof path, "%s/run.db", test_folder("in-place"));
    struct trace *trace = trace_create(path, &setup, TRACE_NEW, &err);
    test_ok(trace, &err);
    return trace;
}

static void write_pass(struct trace *trace, const float *logits, int64_t n) {
    static const int32_t zero[T];
    const struct trace_pass pass = {n, zero, zero};
    const struct trace_routes routes = {.tokens = n, .logits = logits + trace_tokens(trace) * E};
    test_ok(trace_pass_begin(trace, &pass, &err), &err);
    test_ok(trace_pass_routes(trace, &routes, &err), &err);
    test_ok(trace_pass_commit(trace, &err), &err);
}

static void pieces_of_a_growing_and_a_closed_trace_are_its_rows(void **state) {
    (void)state;
    static const double slack[] = {[TRACE_F32] = 0, [TRACE_BF16] = 0.02, [TRACE_F16] = 0.002};
    struct rng rng;
    rng_init(&rng, 3);
    float *logits = random_logits(&rng, T, E, 1);
    for (int store = TRACE_F32; store <= TRACE_F16; store++) {
        struct trace *writer = create((enum trace_store)store), *before = NULL;
        for (int64_t n = 1000; n <= T; n += 1000) { /* the log holds some of it, the file some */
            write_pass(writer, logits, 1000);
            struct trace *now = trace_open(path, &err);
            test_ok(now, &err);
            assert_int_equal(trace_tokens(now), n);
            compare_pieces(now, logits, n, 64, slack[store]);
            if (before) compare_pieces(before, logits, n - 1000, 7, slack[store]);
            trace_free(before);
            before = now;
        }
        trace_free(before);
        test_ok(trace_close(writer, true, &err), &err);
        struct trace *trace = trace_open(path, &err);
        test_ok(trace, &err);
        for (int64_t max = 1; max <= T; max = max * 5 + 2)
            compare_pieces(trace, logits, T, max, slack[store]);
        trace_free(trace);
    }
    free(logits);
}

/* Rows of the first block of router 1 within pages, for one copied. */
static double share_within(const struct trace *trace, const float *logits) {
    enum { MOST = 64 };
    size_t row = (size_t)trace_layer(trace, 1)->experts * 4, within = 0, copied = 1, n;
    size_t rows = (size_t)trace_block_tokens(trace);
    struct db db;
    test_ok(db_open(&db, path, DB_READ, &err), &err);
    struct in_place *place = in_place_open(&db, "chunk");
    assert_non_null(place);
    test_ok(in_place_find(place, 1, SCORES, rows * row), &err);
    struct in_place_rows want = {
        .row_bytes = row, .align = 4, .unit = 1, .buffer = malloc(MOST * row)};
    for (; want.first < rows; want.first += n) {
        want.max = rows - want.first < MOST ? rows - want.first : MOST;
        const unsigned char *at = in_place_rows(place, &want, &n);
        assert_non_null(at);
        assert_memory_equal(at, (const char *)logits + want.first * row, n * row);
        *(at == want.buffer ? &copied : &within) += n;
    }
    in_place_close(place);
    db_close(&db);
    free(want.buffer);
    return (double)within / (double)copied;
}

/* Else replays would be slower. */
static void the_rows_of_small_and_large_traces_are_within_their_pages(void **state) {
    (void)state;
    enum { EXPERTS = 512 };
    static const int64_t tokens[] = {1024, 16384}; /* the larger has 64 MiB of scores */
    struct rng rng;
    rng_init(&rng, 3);
    float *logits = random_logits(&rng, tokens[1], EXPERTS, 1);
    const float *of_layer[] = {logits, logits};
    struct source_arrays arrays = {.logits = of_layer};
    struct source_layer layers[2] = {{.layer = 1, .experts = EXPERTS},
                                     {.layer = 2, .experts = EXPERTS}};
    struct source source;
    for (int r = 0; r < 2; r++)
        test_ok(gate_parse("sigmoid,topk=8,norm=sum", NULL, &layers[r].native, &err), &err);
    for (int i = 0; i < 2; i++) {
        size_t len;
        source_of_arrays(&source, &arrays, tokens[i], layers, 2);
        snprintf(path, sizeof path, "%s/run.db", test_folder("in-place"));
        write_random_trace(path, &source, TRACE_SCORES);
        unsigned char *head = (unsigned char *)file_read(path, 1 << 28, &len, &err);
        test_ok(head, &err);
        assert_int_equal(head[16] << 8 | head[17], i ? 1 : 16384); /* 1 stands for 65536 */
        free(head);
        struct trace *trace = trace_open(path, &err);
        test_ok(trace, &err);
        double share = share_within(trace, logits);
        if (share < (i ? 20 : 4)) fail_msg("%d: found %g rows within for one copied", i, share);
        trace_free(trace);
    }
    test_folder("in-place");
    free(logits);
}

int test_in_place(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_in_place_are_what_sqlite_reads),
        cmocka_unit_test(rows_are_found_after_deleting_and_vacuuming),
        cmocka_unit_test(what_the_file_alone_cannot_tell_is_left_to_sqlite),
        cmocka_unit_test(damaged_files_give_what_sqlite_reads_or_nothing),
        cmocka_unit_test(pieces_of_a_growing_and_a_closed_trace_are_its_rows),
        cmocka_unit_test(the_rows_of_small_and_large_traces_are_within_their_pages),
    };
    return cmocka_run_group_tests_name("in_place", tests, NULL, NULL);
}
