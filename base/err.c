/* err.c - errors as values */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int status;
} codes[] = {
#define X(code, status, name) {name, status},
    ERR_CODES(X)
#undef X
};

bool err_set(struct err *err, enum err_code code, const char *format, ...) {
    char text[sizeof err->text]; /* an argument may be err->text itself */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?'; /* hostile names stay on one line */
    memcpy(err->text, text, sizeof text);
    err->code = code;
    return false;
}

bool err_context(struct err *err, const char *format, ...) {
    char front[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(front, sizeof front, format, args);
    va_end(args);
    return err_set(err, err->code, "%s: %s", front, err->text);
}

bool err_errno(struct err *err, const char *path, const char *action) {
    return err_set(err, ERR_IO, "%s: %s: %s", path, action, strerror(errno));
}

bool err_memory(struct err *err, const char *what) {
    return err_set(err, ERR_MEMORY, "%s: out of memory", what);
}

const char *err_name(enum err_code code) { return codes[code].name; }

int err_status(enum err_code code) { return codes[code].status; }
