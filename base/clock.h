/* clock.h - the only place that reads time
 *
 * Layer 1. Results never depend on it; it serves progress lines and benchmarks. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

/* Monotonic seconds since an arbitrary start. */
double clock_seconds(void);
/* CPU seconds used by this process, all threads. */
double clock_cpu_seconds(void);
/* Seconds since 1970 (UTC), for the `created` columns. */
int64_t clock_unix(void);

#endif
