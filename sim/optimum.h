/* optimum.h - the best total score that exactly equal loads allow: what balance costs at all
 *
 * Layer 4 (sim): calls router and base. Problem, method and cost: router/assign.h. */
#ifndef SIM_OPTIMUM_H
#define SIM_OPTIMUM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "router/assign.h"

/* *best <- the largest sum of values; chosen[T,k] (NULL: not wanted) <- a choice that attains it.
 * Borrows the problem; allocates about 13 T E bytes while it runs. */
bool optimum_assign(const struct assignment_problem *problem, double *best, int32_t *chosen,
                    struct err *err);

#endif
