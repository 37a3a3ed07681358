/* ids.c - decimal token ids as text */
#include "base/ids.h"

#include <stdbool.h>
#include <stdlib.h>

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

/* A word of digits below the limit. */
static bool parse_word(const char *at, const char *end, int32_t limit, int32_t *id) {
    int64_t value = 0;
    const char *c = at;
    for (; c < end && *c >= '0' && *c <= '9' && value <= INT32_MAX; c++)
        value = value * 10 + (*c - '0');
    *id = (int32_t)value;
    return c > at && c == end && value < limit;
}

int32_t *ids_parse(const char *line, size_t len, int32_t limit, int64_t *count, struct err *err) {
    int32_t *ids = malloc((len / 2 + 1) * sizeof *ids);
    const char *end = line + len;
    int64_t n = 0;
    bool ok = ids || err_memory(err, "tokens");
    for (const char *at = line, *stop; ok && at < end; at = stop) {
        for (stop = at; stop < end && !is_blank(*stop);) stop++;
        if (stop > at && !(ok = parse_word(at, stop, limit, &ids[n++])))
            err_set(err, ERR_DATA, "token %lld: found '%.*s', expected an id from 0 to %d",
                    (long long)n - 1, stop - at < 24 ? (int)(stop - at) : 24, at, limit - 1);
        if (stop < end) stop++;
    }
    if (ok && !n) ok = err_set(err, ERR_DATA, "found no id, expected a document");
    *count = n;
    if (ok) return ids;
    free(ids);
    return NULL;
}
