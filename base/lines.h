/* lines.h - a text file line by line, plain or gzip'ed, in the memory of its longest line
 *
 * Layer 1. Lines end in LF or CRLF; the last one may lack its end. */
#ifndef BASE_LINES_H
#define BASE_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct lines; /* opaque */

/* Opens a regular file. Returns owned; NULL with err set. */
struct lines *lines_open(const char *path, struct err *err);
/* The next line without its end, NUL-terminated; it may be written to and lives until the next
 * call. *text == NULL at the end of the file. */
bool lines_next(struct lines *lines, char **text, size_t *len, struct err *err);
/* Number of the line that was given last, from 1. */
int64_t lines_number(const struct lines *lines);
/* A zero pointer is allowed. */
void lines_close(struct lines *lines);

#endif
