/* support_processes.c - threads that take themselves for the processes of a launcher */
#include "tests/support_processes.h"

#include <stdlib.h>

#include "tests/test.h"

struct letter {
    int from, to;
    struct str message;
    struct letter *next;
};

/* All letters on their way, oldest first. */
struct post_office {
    pthread_mutex_t lock;
    struct letter *first;
};

struct process {
    struct processes processes;
    process_body *body;
    void *context;
};

static void send_letter(struct processes *processes, int to, struct str *message) {
    struct post_office *office = processes->context;
    struct letter *letter = calloc(1, sizeof *letter), **last;
    if (!letter) abort();
    *letter = (struct letter){processes->rank, to, *message, NULL};
    *message = (struct str){0};
    pthread_mutex_lock(&office->lock);
    for (last = &office->first; *last; last = &(*last)->next) {
    }
    *last = letter;
    pthread_mutex_unlock(&office->lock);
}

static bool receive_letter(struct processes *processes, int *from, struct str *message) {
    struct post_office *office = processes->context;
    pthread_mutex_lock(&office->lock);
    struct letter **at = &office->first, *letter;
    while (*at && (*at)->to != processes->rank) at = &(*at)->next;
    letter = *at;
    if (letter) *at = letter->next;
    pthread_mutex_unlock(&office->lock);
    if (!letter) return false;
    *from = letter->from;
    *message = letter->message;
    free(letter);
    return true;
}

static void *run_process(void *context) {
    struct process *process = context;
    process->body(process->context, &process->processes);
    return NULL;
}

void run_processes(int size, process_body *body, void *context) {
    struct post_office office = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct process *process = calloc((size_t)size, sizeof *process);
    pthread_t *thread = calloc((size_t)size, sizeof *thread);
    assert_true(process && thread);
    for (int i = 0; i < size; i++)
        process[i] = (struct process){.processes = {.rank = i,
                                                    .size = size,
                                                    .here = size,
                                                    .send = send_letter,
                                                    .receive = receive_letter,
                                                    .context = &office},
                                      .body = body,
                                      .context = context};
    for (int i = 1; i < size; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, run_process, &process[i]), 0);
    run_process(&process[0]);
    for (int i = 1; i < size; i++) pthread_join(thread[i], NULL);
    assert_null(office.first);
    free(thread);
    free(process);
}
