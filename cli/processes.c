/* processes.c - finds out whether a launcher started several processes, and joins them
 *
 * The launcher's environment tells, so that a program that runs alone never touches MPI. */
#include "cli/processes.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/mpi/module.h"

static struct processes processes;
static bool joined;
static int launched_rank;

/* Rank and number of processes: Open MPI, MPICH and its kin (Hydra, Intel), MVAPICH2, Slurm. */
static const char *const launchers[][2] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                           {"PMI_RANK", "PMI_SIZE"},
                                           {"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"},
                                           {"PMIX_RANK", "SLURM_STEP_NUM_TASKS"}};

/* How many processes were started together; 1 when no launcher is known. */
static int launched(int *rank) {
    struct err err;
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const char *own = getenv(launchers[i][0]), *all = getenv(launchers[i][1]);
        int64_t r, n;
        if (!own || !all || !parse_int(own, launchers[i][0], 0, 1 << 30, &r, &err) ||
            !parse_int(all, launchers[i][1], 1, 1 << 30, &n, &err))
            continue;
        *rank = (int)r;
        return (int)n;
    }
    *rank = 0;
    return 1;
}

/* One voice is enough: the others leave process 0 the time to speak before the launcher, seeing
 * them fail, ends it. */
static void give_way(void) {
    if (launched_rank > 0) sleep(1);
}

/* The module lies beside the program, or where `make install` puts it. */
static void *open_module(void) {
    static const char *const places[] = {"%.*ssteelyard-mpi.so",
                                         "%.*s../lib/steelyard/steelyard-mpi.so"};
    char program[3000], path[3100];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0) return NULL;
    program[length] = '\0';
    const char *slash = strrchr(program, '/');
    int folder = slash ? (int)(slash - program) + 1 : 0;
    void *module = NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places && !module; i++) {
        snprintf(path, sizeof path, places[i], folder, program);
        if (access(path, R_OK) == 0) module = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    }
    return module;
}

static bool start(int size, struct err *err) {
    void *module = open_module();
    const char *why = module ? NULL : dlerror();
    mpi_module_start *begin = NULL;
    if (module) *(void **)&begin = dlsym(module, MPI_MODULE_START);
    if (!begin)
        return err_set(err, ERR_UNSUPPORTED,
                       "found %d processes of a launcher, expected one: this program has no MPI "
                       "(steelyard-mpi.so, built where mpicc is)%s%.200s",
                       size, why ? ": " : "", why ? why : "");
    begin(&processes);
    if (processes.size != size)
        return err_set(err, ERR_UNSUPPORTED,
                       "the launcher started %d processes, but the MPI library sees %d: is mpirun "
                       "of the MPI that the program was built with?",
                       size, processes.size);
    joined = true;
    return true;
}

bool processes_join(const struct command *command, struct err *err) {
    int size = launched(&launched_rank);
    if (size <= 1) return true;
    bool ok = command->divides ||
              err_set(err, ERR_UNSUPPORTED,
                      "found %d processes of a launcher, expected one: this command cannot be "
                      "divided",
                      size);
    if (!ok || !start(size, err)) {
        give_way();
        return false;
    }
    if (processes.rank > 0 && !freopen("/dev/null", "w", stdout))
        return err_errno(err, "/dev/null", "cannot write");
    return true;
}

struct processes *processes_here(void) {
    return joined ? &processes : NULL;
}

bool processes_speaker(void) { return launched_rank == 0; }

void processes_leave(void) {
    if (joined) processes.leave(&processes);
    joined = false;
}
