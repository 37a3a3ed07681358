/* gzip.h - the bytes of a file in order, unpacked where it is gzip'ed, in flat memory
 *
 * Layer 1, zlib behind it. A plain file's bytes come as they are; members of a gzip
 * file come one after the other, and what lies behind the last one is ignored, as gzip does. */
#ifndef BASE_GZIP_H
#define BASE_GZIP_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct gzip; /* opaque */

/* Opens a regular file, plain or gzip. Returns owned; NULL with err set. */
struct gzip *gzip_open(const char *path, struct err *err);
/* The next bytes, at most n > 0; *got == 0 at the end. Damaged or truncated data are an error. */
bool gzip_read(struct gzip *file, void *out, size_t n, size_t *got, struct err *err);
/* A zero pointer is allowed. */
void gzip_close(struct gzip *file);

/* All bytes of a file, at most max_bytes: owned, a NUL behind; NULL with err set. */
char *gzip_whole(const char *path, size_t max_bytes, size_t *len, struct err *err);
/* The first max_bytes of it at most: a look inside. */
char *gzip_head(const char *path, size_t max_bytes, size_t *len, struct err *err);

#endif
