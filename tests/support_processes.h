/* support_processes.h - threads that take themselves for the processes of a launcher */
#ifndef TESTS_SUPPORT_PROCESSES_H
#define TESTS_SUPPORT_PROCESSES_H

#include "base/processes.h"

/* Runs body(context, its processes) as `size` processes at once, rank 0 on the calling thread (so
 * that it may assert). Fails the test when a message is left over at the end. */
typedef void process_body(void *context, struct processes *processes);
void run_processes(int size, process_body *body, void *context);

#endif
