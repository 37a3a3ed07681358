/* fuzz_ids.c - the bytes are lines of an ids file: ids below the limit, or one error line says why
 * not; what was read is written and read again */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/ids.h"
#include "base/str.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LIMIT = 151936 };

static void read_line(const char *line, size_t len) {
    struct err err = {0};
    int64_t n, again = 0;
    int32_t *ids = ids_parse(line, len, LIMIT, &n, &err);
    if (!ids) {
        if (err.code == ERR_NONE || strchr(err.text, '\n')) abort();
        return;
    }
    struct str text = {0};
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= LIMIT) abort();
        str_printf(&text, "%d ", ids[i]);
    }
    int32_t *same = ids_parse(str_text(&text), text.len, LIMIT, &again, &err);
    if (!same || again != n || memcmp(ids, same, (size_t)n * sizeof *ids) != 0) abort();
    str_free(&text);
    free(same);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *line = (const char *)data, *end = line + size;
    for (const char *newline; line < end; line = newline + 1) {
        newline = memchr(line, '\n', (size_t)(end - line));
        if (!newline) newline = end;
        read_line(line, (size_t)(newline - line));
    }
    return 0;
}
