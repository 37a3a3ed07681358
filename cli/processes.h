/* processes.h - the processes of `mpirun -n N steelyard ...`, for commands that can be divided
 *
 * Layer 5. MPI is in a module of its own (cli/mpi/module.c, built where mpicc is), which is loaded
 * only when a launcher has started several processes: linked in, it would cost every start about
 * 2 ms and ten libraries. */
#ifndef CLI_PROCESSES_H
#define CLI_PROCESSES_H

#include "base/processes.h"
#include "cli/options.h"

/* Joins the processes that a launcher has started, if it has. Refuses a command that cannot be
 * divided, or a program built without MPI: N processes must not race for one output. */
bool processes_join(const struct command *command, struct err *err);

/* Those joined; NULL when alone. */
struct processes *processes_here(void);

/* Is this the process that prints? */
bool processes_speaker(void);

/* Ends the messages; waits for the others. */
void processes_leave(void);

#endif
