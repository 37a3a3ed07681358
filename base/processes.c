/* processes.c - several processes at one job: agreement, and a division of work
 *
 * One thread of each process talks (MPI's simplest threading level suffices) and never blocks: it
 * looks for messages, naps when there are none, and meanwhile the work goes on in other threads.
 * Messages that matter to nobody any more do not exist: each collective function receives exactly
 * what the others send in it, so that the next one starts with empty mailboxes. */
#include "base/processes.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/threads.h"

bool processes_alone(const struct processes *processes) {
    return !processes || processes->size <= 1;
}

/* Launchers differ: some bind each process to its own CPUs, others leave all to all. */
int processes_threads(const struct processes *processes, int asked) {
    int allowed = cpu_count();
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    if (asked > 0) return asked;
    if (processes_alone(processes)) return allowed;
    long share = online / (processes->here > 0 ? processes->here : 1);
    if (share < 1) share = 1;
    return share < allowed ? (int)share : allowed;
}

/* Doubles from 20 microseconds to 1 millisecond: short for answers, cheap while others compute. */
static void nap(long *nanoseconds) {
    const struct timespec time = {.tv_nsec = *nanoseconds};
    nanosleep(&time, NULL);
    if (*nanoseconds < 1000000) *nanoseconds *= 2;
}

enum { FIRST_NAP = 20000 };

static int wait_for(struct processes *p, struct str *message) {
    long nap_time = FIRST_NAP;
    int from;
    while (!p->receive(p, &from, message)) nap(&nap_time);
    return from;
}

static void send_bytes(struct processes *p, int to, const void *bytes, size_t size) {
    struct str message = {0};
    str_append(&message, bytes, size);
    p->send(p, to, &message);
}

static void send_all(struct processes *p, const void *bytes, size_t size) {
    for (int to = 1; to < p->size; to++) send_bytes(p, to, bytes, size);
}

/* bytes[size] <- the next message; a shorter one leaves the rest. Returns its sender. */
static int receive_bytes(struct processes *p, void *bytes, size_t size) {
    struct str message = {0};
    int from = wait_for(p, &message);
    if (message.len) memcpy(bytes, message.data, message.len < size ? message.len : size);
    str_free(&message);
    return from;
}

void processes_share(struct processes *processes, void *bytes, size_t size) {
    if (processes_alone(processes)) return;
    if (processes->rank == 0)
        send_all(processes, bytes, size);
    else
        receive_bytes(processes, bytes, size);
}

struct vote {
    bool ok;
    struct err err;
};

bool processes_agree(struct processes *processes, bool ok, struct err *err) {
    struct vote vote = {.ok = ok};
    if (processes_alone(processes)) return ok;
    if (!ok) vote.err = *err;
    if (processes->rank > 0) {
        send_bytes(processes, 0, &vote, sizeof vote);
        receive_bytes(processes, &vote, sizeof vote);
    } else {
        int lowest = ok ? processes->size : 0;
        for (int i = 1; i < processes->size; i++) {
            struct vote other;
            int from = receive_bytes(processes, &other, sizeof other);
            if (other.ok || from >= lowest) continue;
            lowest = from;
            vote = other;
            err_context(&vote.err, "process %d of %d", from, processes->size);
        }
        send_all(processes, &vote, sizeof vote);
    }
    if (!vote.ok) *err = vote.err;
    return vote.ok;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_of(const char *text) {
    uint64_t hash = UINT64_C(14695981039346656037);
    for (const char *c = text; *c; c++) hash = (hash ^ (unsigned char)*c) * UINT64_C(1099511628211);
    return hash;
}

bool processes_same(struct processes *processes, const char *text, const char *what,
                    struct err *err) {
    uint64_t mine = hash_of(text), first = mine;
    processes_share(processes, &first, sizeof first);
    return processes_agree(
        processes,
        mine == first || err_set(err, ERR_USAGE, "%s: found others than process 0 has", what), err);
}

/* ---- the division of work */

enum kind { KIND_POST, KIND_END, KIND_STOP, KIND_VERDICT };

/* What everything but a post looks like. */
struct notice {
    int64_t kind, where;
    struct vote vote;
};

void division_begin(struct str *message) {
    const int64_t kind = KIND_POST;
    str_append(message, &kind, sizeof kind);
}

bool division_post(struct division *division, struct str *message, struct err *err) {
    bool ok = !message->failed;
    pthread_mutex_lock(&division->lock);
    if (ok && division->posted == division->room) {
        size_t room = division->room ? 2 * division->room : 16;
        struct str *more = realloc(division->outbox, room * sizeof *more);
        ok = more != NULL;
        if (ok) division->outbox = more;
        if (ok) division->room = room;
    }
    if (ok) division->outbox[division->posted++] = *message;
    pthread_mutex_unlock(&division->lock);
    if (!ok) str_free(message);
    *message = (struct str){0};
    return ok || err_memory(err, "message to process 0");
}

/* Of several errors the smallest place counts; to be stopped is no error of its own. */
static void remember(struct division *d, int64_t where, const struct err *err) {
    bool better = d->err.code == ERR_CANCELLED && err->code != ERR_CANCELLED;
    bool earlier = err->code != ERR_CANCELLED && where < d->where;
    if (d->failed && !better && !earlier) return;
    d->failed = true;
    d->where = where;
    d->err = *err;
}

static void *compute(void *context) {
    struct division *d = context;
    struct err err;
    int64_t where = 0;
    bool ok = d->compute(d->context, &where, &err);
    pthread_mutex_lock(&d->lock);
    if (!ok) remember(d, where, &err);
    d->finished = true;
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static struct notice notice_of(const struct division *d, enum kind kind) {
    struct notice notice = {.kind = kind, .where = d->where, .vote.ok = !d->failed};
    if (d->failed) notice.vote.err = d->err;
    return notice;
}

/* Sends what was posted. Returns whether compute had ended before: then this was all. */
static bool empty_outbox(struct division *d) {
    pthread_mutex_lock(&d->lock);
    bool last = d->finished;
    for (size_t i = 0; i < d->posted; i++) d->processes->send(d->processes, 0, &d->outbox[i]);
    d->posted = 0;
    pthread_mutex_unlock(&d->lock);
    return last;
}

static void follow(struct division *d) {
    struct processes *p = d->processes;
    struct notice notice = {.kind = KIND_STOP};
    long nap_time = FIRST_NAP;
    bool ended = false;
    while (notice.kind != KIND_VERDICT) {
        bool last = empty_outbox(d);
        if (last && !ended) {
            ended = true;
            notice = notice_of(d, KIND_END);
            send_bytes(p, 0, &notice, sizeof notice);
        }
        struct str message = {0};
        int from;
        if (!p->receive(p, &from, &message)) {
            nap(&nap_time);
            continue;
        }
        nap_time = FIRST_NAP;
        memcpy(&notice, message.data, message.len < sizeof notice ? message.len : sizeof notice);
        str_free(&message);
        if (notice.kind == KIND_STOP) d->stop(d->context);
    }
    d->failed = !notice.vote.ok;
    d->err = notice.vote.err;
}

/* Takes one message of another process; returns whether that process has ended. */
static bool take(struct division *d, const struct str *message) {
    struct notice notice = {0};
    struct err err;
    int64_t where = 0;
    memcpy(&notice, message->data, message->len < sizeof notice ? message->len : sizeof notice);
    size_t head = sizeof notice.kind;
    bool ok = notice.kind != KIND_POST ||
              d->take(d->context, message->data + head, message->len - head, &where, &err);
    pthread_mutex_lock(&d->lock);
    if (!ok) remember(d, where, &err);
    if (notice.kind == KIND_END && !notice.vote.ok) remember(d, notice.where, &notice.vote.err);
    pthread_mutex_unlock(&d->lock);
    return notice.kind == KIND_END;
}

static void lead(struct division *d) {
    struct processes *p = d->processes;
    struct notice notice;
    long nap_time = FIRST_NAP;
    bool stopped = false, finished = false;
    for (int working = p->size - 1; working > 0 || !finished;) {
        struct str message = {0};
        int from;
        if (p->receive(p, &from, &message)) {
            nap_time = FIRST_NAP;
            working -= take(d, &message);
            str_free(&message);
        } else {
            nap(&nap_time);
        }
        pthread_mutex_lock(&d->lock);
        finished = d->finished;
        bool failed = d->failed;
        pthread_mutex_unlock(&d->lock);
        if (failed && !stopped) {
            stopped = true;
            d->stop(d->context);
            notice = (struct notice){.kind = KIND_STOP};
            send_all(p, &notice, sizeof notice);
        }
    }
    notice = notice_of(d, KIND_VERDICT);
    send_all(p, &notice, sizeof notice);
}

bool division_run(struct division *division, struct err *err) {
    struct division *d = division;
    pthread_t thread;
    pthread_mutex_init(&d->lock, NULL);
    bool alone = processes_alone(d->processes);
    bool started = !alone && pthread_create(&thread, NULL, compute, d) == 0;
    if (alone) compute(d);
    if (!alone && !started) {
        struct err none;
        err_set(&none, ERR_IO, "threads: cannot start one for the work of process %d",
                d->processes->rank);
        remember(d, 0, &none);
        d->finished = true;
    }
    if (!alone && d->processes->rank > 0) follow(d);
    if (!alone && d->processes->rank == 0) lead(d);
    if (started) pthread_join(thread, NULL);
    for (size_t i = 0; i < d->posted; i++) str_free(&d->outbox[i]);
    free(d->outbox);
    pthread_mutex_destroy(&d->lock);
    if (d->failed) *err = d->err;
    return !d->failed;
}
