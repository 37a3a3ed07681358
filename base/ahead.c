/* ahead.c - asks the system for pages of mapped files, from a thread of its own */
#include "base/ahead.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* What Linux reads of one request at least: its smallest usual read-ahead window. */
static const uintptr_t STEP_BYTES = 128 << 10;

struct range {
    struct range *next;
    uintptr_t begin, end; /* whole pages */
};

struct ahead {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t asked;
    struct range *first, **last; /* queue */
    bool closing;
};

static bool closing(struct ahead *ahead) {
    pthread_mutex_lock(&ahead->mutex);
    bool now = ahead->closing;
    pthread_mutex_unlock(&ahead->mutex);
    return now;
}

/* The next range, owned; NULL at the end. */
static struct range *take(struct ahead *ahead) {
    pthread_mutex_lock(&ahead->mutex);
    while (!ahead->first && !ahead->closing) pthread_cond_wait(&ahead->asked, &ahead->mutex);
    struct range *range = ahead->closing ? NULL : ahead->first;
    if (range && !(ahead->first = range->next)) ahead->last = &ahead->first;
    pthread_mutex_unlock(&ahead->mutex);
    return range;
}

static void *run(void *argument) {
    struct ahead *ahead = argument;
    for (struct range *range; (range = take(ahead));) {
        for (uintptr_t at = range->begin; at < range->end && !closing(ahead); at += STEP_BYTES)
            madvise((void *)at, range->end - at < STEP_BYTES ? range->end - at : STEP_BYTES,
                    MADV_WILLNEED);
        free(range);
    }
    return NULL;
}

struct ahead *ahead_create(void) {
    struct ahead *ahead = calloc(1, sizeof *ahead);
    if (!ahead) return NULL;
    ahead->last = &ahead->first;
    pthread_mutex_init(&ahead->mutex, NULL);
    pthread_cond_init(&ahead->asked, NULL);
    if (pthread_create(&ahead->thread, NULL, run, ahead) == 0) return ahead;
    pthread_cond_destroy(&ahead->asked);
    pthread_mutex_destroy(&ahead->mutex);
    free(ahead);
    return NULL;
}

void ahead_ask(struct ahead *ahead, const void *data, size_t bytes) {
    struct range *range = ahead && bytes ? malloc(sizeof *range) : NULL;
    if (!range) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    *range = (struct range){.begin = (uintptr_t)data / page * page, .end = (uintptr_t)data + bytes};
    pthread_mutex_lock(&ahead->mutex);
    *ahead->last = range;
    ahead->last = &range->next;
    pthread_cond_signal(&ahead->asked);
    pthread_mutex_unlock(&ahead->mutex);
}

void ahead_free(struct ahead *ahead) {
    if (!ahead) return;
    pthread_mutex_lock(&ahead->mutex);
    ahead->closing = true;
    pthread_cond_signal(&ahead->asked);
    pthread_mutex_unlock(&ahead->mutex);
    pthread_join(ahead->thread, NULL);
    for (struct range *range = ahead->first, *next; range; range = next) {
        next = range->next;
        free(range);
    }
    pthread_cond_destroy(&ahead->asked);
    pthread_mutex_destroy(&ahead->mutex);
    free(ahead);
}
