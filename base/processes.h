/* processes.h - several processes at one job (MPI): messages, agreement, a division of work
 *
 * Layer 1. How messages travel is the caller's (cli/ has MPI behind it); here is what is done with
 * them. Rank 0 leads: it alone writes and prints. Every function below is collective: all processes
 * call it at the same place of the same program, from the thread that started the processes. With
 * processes = NULL, or of size 1, there is nobody to talk to and nothing is sent. */
#ifndef BASE_PROCESSES_H
#define BASE_PROCESSES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct processes {
    int rank, size;
    int here; /* processes on this machine, this one included */
    /* Neither can fail: a message that cannot be sent or received ends all processes. Sending takes
     * the bytes (the message is empty after it) and returns at once. Receiving says whether a
     * message was there; those of one sender arrive in the order in which they were sent. */
    void (*send)(struct processes *processes, int to, struct str *message);
    bool (*receive)(struct processes *processes, int *from, struct str *message);
    void (*leave)(struct processes *processes); /* the last call; waits for the others */
    void *context;
};

bool processes_alone(const struct processes *processes);

/* Threads for this process when `asked` is 0: its share of the machine's CPUs. */
int processes_threads(const struct processes *processes, int asked);

/* True when every process says ok; otherwise all get the error of the lowest rank that has one. */
bool processes_agree(struct processes *processes, bool ok, struct err *err);

/* Refuses processes that were started with something else: `text` must be the same in all. */
bool processes_same(struct processes *processes, const char *text, const char *what,
                    struct err *err);

/* bytes[size] <- those of rank 0. */
void processes_share(struct processes *processes, void *bytes, size_t size);

/* Work of which every process does a part and posts what it finds to rank 0. */
struct division {
    struct processes *processes;
    /* Does this process's part, on a thread of its own (and perhaps more). False: *where is the
     * place of the failure; of several errors the one with the smallest place is reported. */
    bool (*compute)(void *context, int64_t *where, struct err *err);
    /* At rank 0, on the calling thread: what another process posted. May fail like compute. NULL
     * where nothing is posted. */
    bool (*take)(void *context, const char *bytes, size_t size, int64_t *where, struct err *err);
    /* Another part has failed: compute should end soon. Called on the calling thread. */
    void (*stop)(void *context);
    void *context;

    /* private */
    pthread_mutex_t lock;
    struct str *outbox; /* [posted] owned */
    size_t posted, room;
    bool finished; /* compute has returned */
    bool failed;   /* so far as this process knows */
    int64_t where;
    struct err err;
};

/* Runs all parts; returns when all processes are done, with the same result in each. */
bool division_run(struct division *division, struct err *err);

/* Starts a message for division_post: append to it what take shall get. */
void division_begin(struct str *message);
/* Hands a message to rank 0; takes it. Any thread of a compute of rank > 0. False: no memory. */
bool division_post(struct division *division, struct str *message, struct err *err);

#endif
