/* str.h - a growing byte string, and safe parsing of numbers
 *
 * Layer 1. A `struct str` starts as all zero bytes ({0}); `data` is NUL-terminated once anything
 * was appended. A failed allocation sets `failed` and later appends do nothing: check once at the
 * end. */
#ifndef BASE_STR_H
#define BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct str {
    char *data; /* owned; NULL while empty */
    size_t len; /* bytes, without the NUL */
    size_t cap;
    bool failed; /* an allocation failed */
};

void str_append(struct str *s, const void *bytes, size_t len);
void str_puts(struct str *s, const char *text);
void str_printf(struct str *s, const char *format, ...) ERR_PRINTF(2, 3);
/* The text, "" when empty. Borrowed until the next append. */
const char *str_text(const struct str *s);
/* Empties, keeps the memory. */
void str_clear(struct str *s);
void str_free(struct str *s);

/* Strict parsing of a whole NUL-terminated text: no leading or trailing space, range checked.
 * `name` is what the number is, for the message ("--threads"). */
bool parse_int(const char *text, const char *name, int64_t min, int64_t max, int64_t *out,
               struct err *err);
bool parse_real(const char *text, const char *name, double min, double max, double *out,
                struct err *err);
/* Bytes with optional suffix K, M, G, T (powers of 1024). */
bool parse_bytes(const char *text, const char *name, int64_t *out, struct err *err);

#endif
