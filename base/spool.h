/* spool.h - bytes that are appended now and read back later, in flat memory
 *
 * Layer 1. The first SPOOL_MEMORY_BYTES stay in memory; more go to an unlinked temporary file in
 * $TMPDIR, else /var/tmp. (spill.h is for arrays of a known size that are worked on in place.) */
#ifndef BASE_SPOOL_H
#define BASE_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { SPOOL_MEMORY_BYTES = 16 << 20 };

/* A zeroed struct is empty and ready. */
struct spool {
    unsigned char *memory; /* owned: all bytes, until there is a file */
    size_t cap;
    int64_t size; /* bytes so far */
    int file;     /* descriptor + 1; 0 = none */
};

/* *at gets the place of the bytes, for spool_read. */
bool spool_add(struct spool *spool, const void *bytes, size_t n, int64_t *at, struct err *err);
/* Only what was added may be read. */
bool spool_read(const struct spool *spool, int64_t at, void *bytes, size_t n, struct err *err);
void spool_close(struct spool *spool);

#endif
