/* threads.c - a small pool of threads for data-parallel loops
 *
 * A loop is published by raising `generation`; workers see it while spinning, or are woken from the
 * condition. Spinning lasts about 20 microseconds: long enough to bridge the gap between two
 * products of a layer, short enough not to hurt other processes (pure spin barriers were measured
 * to collapse by 2-40 times when a third process runs on two cores). */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"

static const double spin_seconds = 20e-6;

struct pool {
    int size; /* workers, the caller included */
    pthread_t *threads;
    pthread_mutex_t mutex;
    pthread_cond_t start, done;
    atomic_uint generation; /* odd and even alike: raised once per loop */
    atomic_int running;     /* started threads still inside the loop */
    atomic_bool closing;
    atomic_int_fast64_t next; /* next job to hand out */
    int64_t jobs;
    pool_job job;
    void *context;
};

struct worker {
    struct pool *pool;
    int index;
};

int cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

static void take_jobs(struct pool *pool, int worker) {
    for (;;) {
        int64_t job = atomic_fetch_add(&pool->next, 1);
        if (job >= pool->jobs) return;
        pool->job(pool->context, job, worker);
    }
}

/* Waits until generation differs from `seen`; returns the new one. */
static unsigned wait_for_loop(struct pool *pool, unsigned seen) {
    double until = clock_seconds() + spin_seconds;
    do {
        for (int i = 0; i < 64; i++) {
            unsigned now = atomic_load_explicit(&pool->generation, memory_order_acquire);
            if (now != seen) return now;
        }
    } while (clock_seconds() < until);
    pthread_mutex_lock(&pool->mutex);
    unsigned now;
    while ((now = atomic_load(&pool->generation)) == seen)
        pthread_cond_wait(&pool->start, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    return now;
}

static void *worker_main(void *argument) {
    struct worker self = *(struct worker *)argument;
    struct pool *pool = self.pool;
    free(argument);
    unsigned seen = 0;
    for (;;) {
        seen = wait_for_loop(pool, seen);
        if (atomic_load(&pool->closing)) return NULL;
        take_jobs(pool, self.index);
        if (atomic_fetch_sub(&pool->running, 1) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

static void publish(struct pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->mutex);
}

static void wait_for_workers(struct pool *pool) {
    double until = clock_seconds() + spin_seconds;
    while (atomic_load(&pool->running) > 0 && clock_seconds() < until) {
    }
    if (atomic_load(&pool->running) == 0) {
        /* the last worker may still be about to signal: it holds the mutex while it does */
        pthread_mutex_lock(&pool->mutex);
        pthread_mutex_unlock(&pool->mutex);
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->running) > 0) pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static bool start_worker(struct pool *pool, int index) {
    struct worker *worker = malloc(sizeof *worker);
    if (!worker) return false;
    *worker = (struct worker){.pool = pool, .index = index};
    if (pthread_create(&pool->threads[index], NULL, worker_main, worker) == 0) return true;
    free(worker);
    return false;
}

struct pool *pool_create(int threads, struct err *err) {
    if (threads <= 0) threads = cpu_count();
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool || !(pool->threads = calloc((size_t)threads, sizeof *pool->threads))) {
        free(pool);
        err_memory(err, "threads");
        return NULL;
    }
    pool->size = 1;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (int i = 1; i < threads; i++) {
        if (!start_worker(pool, i)) {
            pool_free(pool);
            err_set(err, ERR_IO, "threads: cannot start thread %d of %d", i, threads);
            return NULL;
        }
        pool->size++;
    }
    return pool;
}

void pool_free(struct pool *pool) {
    if (!pool) return;
    atomic_store(&pool->closing, true);
    publish(pool);
    for (int i = 1; i < pool->size; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->start);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool);
}

int pool_size(const struct pool *pool) { return pool->size; }

void pool_run(struct pool *pool, int64_t jobs, pool_job job, void *context) {
    if (pool->size == 1 || jobs <= 1) {
        for (int64_t i = 0; i < jobs; i++) job(context, i, 0);
        return;
    }
    pool->jobs = jobs;
    pool->job = job;
    pool->context = context;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->running, pool->size - 1);
    publish(pool);
    take_jobs(pool, 0);
    wait_for_workers(pool);
}
