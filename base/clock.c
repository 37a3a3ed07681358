/* clock.c - the only place that reads time */
#include "base/clock.h"

#include <time.h>

static double seconds(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double clock_seconds(void) { return seconds(CLOCK_MONOTONIC); }
double clock_cpu_seconds(void) { return seconds(CLOCK_PROCESS_CPUTIME_ID); }
int64_t clock_unix(void) { return (int64_t)time(NULL); }
