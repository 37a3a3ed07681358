/* threads.h - a small pool of threads for data-parallel loops
 *
 * Layer 1. Workers spin briefly for the next loop, then sleep on a condition, so that the pool
 * costs little between loops and nothing when idle or when the machine is shared. Work is handed
 * out by an atomic counter; what a job computes must not depend on which worker runs it (law 3). */
#ifndef BASE_THREADS_H
#define BASE_THREADS_H

#include <stdint.h>

#include "base/err.h"

struct pool;

/* A job of a loop: `job` in [0, jobs), `worker` in [0, pool_size). */
typedef void (*pool_job)(void *context, int64_t job, int worker);

/* threads >= 1 counts the caller: threads-1 are started. threads = 0: one per online CPU allowed
 * to this process. Returns owned. */
struct pool *pool_create(int threads, struct err *err);
void pool_free(struct pool *pool);
int pool_size(const struct pool *pool);

/* Runs job(context, 0..jobs-1, worker) on all workers, the caller included; returns when all are
 * done. Not re-entrant: a job must not call pool_run on the same pool. */
void pool_run(struct pool *pool, int64_t jobs, pool_job job, void *context);

/* CPUs this process may use. */
int cpu_count(void);

#endif
