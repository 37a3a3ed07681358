/* progress.c - how a long job tells its caller how far it is */
#include "base/progress.h"

#include <stddef.h>

bool progress_report(const struct progress *progress, const char *what, int64_t done, int64_t total,
                     const char *unit) {
    if (progress == NULL || progress->report == NULL) return true;
    return progress->report(progress->context, what, done, total, unit);
}
