/* progress.h - how a long job tells its caller how far it is
 *
 * Layer 1. Libraries call `progress_report`; only cli/ draws anything. The callback answers whether
 * to go on: false asks the job to stop at the next safe point with ERR_CANCELLED. */
#ifndef BASE_PROGRESS_H
#define BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    /* done and total in `unit` ("tokens", "token-layers"); total 0 = unknown; what = "layer 3". */
    bool (*report)(void *context, const char *what, int64_t done, int64_t total, const char *unit);
    void *context;
};

/* Calls the callback if there is one. Returns false when the job should stop. progress may be NULL.
 */
bool progress_report(const struct progress *progress, const char *what, int64_t done, int64_t total,
                     const char *unit);

#endif
