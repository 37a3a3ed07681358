/* ahead.h - asks the system for pages of mapped files before they are touched
 *
 * Layer 1. One thread asks, since the call waits where the disk's queue is full: a caller that
 * computes must not. A system reads no more of a request than its read-ahead window, so it asks in
 * small steps: on the measuring machine (virtual disk) 1.3 GB came at 350 to 600 MB/s, by one
 * request for all of it at 95, by `dd` at 88. Nothing is owed: pages that were not asked for are
 * read when they are touched. */
#ifndef BASE_AHEAD_H
#define BASE_AHEAD_H

#include <stddef.h>

struct ahead;

/* Returns owned; NULL when there is no thread to be had, which the others take. */
struct ahead *ahead_create(void);
/* Asks for data[bytes) of a mapped file that stays mapped until ahead_free. In order of calls;
 * returns at once. */
void ahead_ask(struct ahead *ahead, const void *data, size_t bytes);
/* Forgets what was not yet asked for. */
void ahead_free(struct ahead *ahead);

#endif
