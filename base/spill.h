/* spill.h - a large array that need not stay in memory: heap, or an unlinked temporary file
 *
 * Layer 1. In a file the array is mapped and shared with it: parts that were dropped leave the
 * resident set and come back when they are touched. The file lies in $TMPDIR, else /var/tmp; its
 * space is taken at once, so that a full disk is an error here and no signal later. */
#ifndef BASE_SPILL_H
#define BASE_SPILL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct spill {
    void *data; /* [bytes] zeroed in a file, undefined on the heap */
    size_t bytes;
    bool in_file;
};

bool spill_open(struct spill *spill, size_t bytes, bool in_file, struct err *err);
/* The whole pages of data[offset, offset+bytes) may leave memory; what they hold stays. */
void spill_drop(const struct spill *spill, size_t offset, size_t bytes);
/* A zeroed struct is allowed. */
void spill_close(struct spill *spill);

#endif
