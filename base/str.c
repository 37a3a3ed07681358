/* str.c - a growing byte string, and safe parsing of numbers */
#include "base/str.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(struct str *s, size_t more) {
    if (s->failed) return false;
    if (more < s->cap - s->len) return true; /* room for the NUL as well */
    size_t cap = s->cap ? s->cap : 64;
    while (cap - s->len <= more) {
        if (cap > SIZE_MAX / 2) {
            s->failed = true;
            return false;
        }
        cap *= 2;
    }
    char *data = realloc(s->data, cap);
    if (!data) {
        s->failed = true;
        return false;
    }
    s->data = data;
    s->cap = cap;
    return true;
}

void str_append(struct str *s, const void *bytes, size_t len) {
    if (!reserve(s, len)) return;
    if (len) memcpy(s->data + s->len, bytes, len);
    s->len += len;
    s->data[s->len] = '\0';
}

void str_puts(struct str *s, const char *text) { str_append(s, text, strlen(text)); }

void str_printf(struct str *s, const char *format, ...) {
    va_list args;
    va_start(args, format);
    va_list again;
    va_copy(again, args);
    int need = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (need >= 0 && reserve(s, (size_t)need)) {
        vsnprintf(s->data + s->len, s->cap - s->len, format, again);
        s->len += (size_t)need;
    }
    va_end(again);
}

const char *str_text(const struct str *s) { return s->data ? s->data : ""; }

void str_clear(struct str *s) {
    s->len = 0;
    if (s->data) s->data[0] = '\0';
}

void str_free(struct str *s) {
    free(s->data);
    *s = (struct str){0};
}

bool parse_int(const char *text, const char *name, int64_t min, int64_t max, int64_t *out,
               struct err *err) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text) || errno == ERANGE)
        return err_set(err, ERR_USAGE, "%s: found \"%.60s\", expected a whole number", name, text);
    if (value < min || value > max)
        return err_set(err, ERR_USAGE, "%s: found %lld, expected %lld to %lld", name, value,
                       (long long)min, (long long)max);
    *out = value;
    return true;
}

bool parse_real(const char *text, const char *name, double min, double max, double *out,
                struct err *err) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text) || !isfinite(value))
        return err_set(err, ERR_USAGE, "%s: found \"%.60s\", expected a number", name, text);
    if (value < min || value > max)
        return err_set(err, ERR_USAGE, "%s: found %g, expected %g to %g", name, value, min, max);
    *out = value;
    return true;
}

bool parse_bytes(const char *text, const char *name, int64_t *out, struct err *err) {
    static const char suffixes[] = "KMGT";
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    bool good = end != text && !isspace((unsigned char)*text) && errno == 0 && value >= 0;
    int shift = 0;
    const char *suffix = *end ? strchr(suffixes, toupper((unsigned char)*end)) : NULL;
    if (suffix) {
        shift = 10 * (int)(suffix - suffixes + 1);
        end++;
    }
    if (!good || *end || value > (INT64_MAX >> shift))
        return err_set(err, ERR_USAGE, "%s: found \"%.60s\", expected bytes such as 512M or 4G",
                       name, text);
    *out = (int64_t)((uint64_t)value << shift);
    return true;
}
