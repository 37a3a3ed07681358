/* module.h - what the program calls in steelyard-mpi.so */
#ifndef CLI_MPI_MODULE_H
#define CLI_MPI_MODULE_H

#include "base/processes.h"

#define MPI_MODULE_START "mpi_start"

/* Starts MPI and fills in *processes. Call once, from the main thread. */
typedef void mpi_module_start(struct processes *processes);

#endif
