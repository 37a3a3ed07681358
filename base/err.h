/* err.h - errors as values: what went wrong, where, what was found and what was expected
 *
 * Layer 1 (base): calls libc only. Every function that can fail takes a `struct err *` as its last
 * parameter (never NULL) and returns false or NULL; the caller may add its own context once, at the
 * front. A finished text reads `path: thing: found X, expected Y`. Only cli/ prints it or exits. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>

/* X(code, exit status, name) */
#define ERR_CODES(X)                                                                               \
    X(ERR_NONE, 0, "none")               /* no error */                                            \
    X(ERR_USAGE, 2, "usage")             /* the command line is wrong */                           \
    X(ERR_IO, 1, "io")                   /* the operating system refused */                        \
    X(ERR_FORMAT, 1, "format")           /* a file is damaged or not what it claims to be */       \
    X(ERR_UNSUPPORTED, 1, "unsupported") /* valid, known, but outside what we do */                \
    X(ERR_DATA, 1, "data")               /* values that cannot be worked with (NaN, ranges) */     \
    X(ERR_EXISTS, 1, "exists")           /* would overwrite, or somebody else holds it */          \
    X(ERR_MEMORY, 1, "memory")           /* an allocation failed */                                \
    X(ERR_CANCELLED, 1, "cancelled")     /* the user interrupted */

enum err_code {
#define X(code, status, name) code,
    ERR_CODES(X)
#undef X
};

struct err {
    enum err_code code;
    char text[512]; /* one line, no trailing newline */
};

#if defined(__GNUC__)
#define ERR_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define ERR_PRINTF(f, a)
#endif

/* Sets code and text; always returns false, so that `return err_set(...)` is one line. */
bool err_set(struct err *err, enum err_code code, const char *format, ...) ERR_PRINTF(3, 4);

/* Puts "context: " in front of the text that is there; always returns false. */
bool err_context(struct err *err, const char *format, ...) ERR_PRINTF(2, 3);

/* err_set(ERR_IO) with "path: action: strerror(errno)"; always returns false. */
bool err_errno(struct err *err, const char *path, const char *action);

/* err_set(ERR_MEMORY) naming what could not be allocated; always returns false. */
bool err_memory(struct err *err, const char *what);

/* The name of a code ("format"), a static string. */
const char *err_name(enum err_code code);

/* The exit status of a code: 0 done, 1 failed, 2 wrong usage. */
int err_status(enum err_code code);

#endif
