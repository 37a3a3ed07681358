/* optimum.c - the balanced optimum: memory for the exact assignment */
#include "sim/optimum.h"

#include <stdlib.h>

bool optimum_assign(const struct assignment_problem *problem, double *best, int32_t *chosen,
                    struct err *err) {
    size_t bytes = assign_bytes(problem->tokens, problem->experts);
    void *memory = bytes == SIZE_MAX ? NULL : aligned_alloc(64, bytes);
    if (!memory) return err_memory(err, "assignment");
    *best = assign_exact(problem, chosen, memory);
    free(memory);
    return true;
}
