/* optimum.h - the best total score that exactly equal loads allow: what balance costs at all
 *
 * Layer 4 (sim): calls base. The transportation problem max sum s_te x_te, x in {0,1}, sum_e x_te =
 * k, sum_t x_te <= C with C = ceil(kT/E), solved exactly by successive shortest paths: start from
 * each token's k highest; while an expert is over C, move one choice along the cheapest chain of
 * moves to an expert that is under C. A move i -> j costs min over tokens of i that lack j of s_ti
 * - s_tj; with Johnson's potentials all are >= 0 and Dijkstra's dense form finds the chain in E^2
 * steps. Each chain settles one surplus choice: a batch of 4096 tokens, 256 experts takes seconds.
 */
#ifndef SIM_OPTIMUM_H
#define SIM_OPTIMUM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct assignment_problem {
    int64_t tokens;      /* T */
    int experts, topk;   /* E, k <= E */
    const double *value; /* [T,E] */
};

/* *best <- the largest sum of values; chosen[T,k] (NULL: not wanted) <- a choice that attains it.
 * Borrows the problem; allocates T E bytes and E^2 numbers while it runs. */
bool optimum_assign(const struct assignment_problem *problem, double *best, int32_t *chosen,
                    struct err *err);

#endif
