/* assign.h - exact assignment of a batch of tokens to experts under equal loads
 *
 * Layer 2, pure: the caller owns all memory. The transportation problem max sum v_te x_te, x in
 * {0,1}, sum_e x_te = k, sum_t x_te <= C with C = ceil(kT/E). Slack (CE - kT < E places) is filled
 * by dummy tokens of value 0, so that every load is exactly C and prices are free.
 *
 * Method: a few rounds of dual coordinate descent find prices q_e that nearly balance; each token
 * takes its k best of v - q, which is optimal for the loads that this gives; then successive
 * shortest paths: while an expert is over C, one choice moves along the cheapest chain of moves to
 * an expert under C. A move i -> j costs min over tokens of i that lack j of v_ti - v_tj; with the
 * prices as Johnson potentials all reduced costs are >= 0 and Dijkstra's dense form finds the chain
 * in E^2 steps. The prices only save chains: without them 4096 tokens of 256 experts, k = 8, took
 * ten times as long as with them: 0.4 s (Zen 4). The result is exact up to the rounding of f64
 * sums. */
#ifndef ROUTER_ASSIGN_H
#define ROUTER_ASSIGN_H

#include <stddef.h>
#include <stdint.h>

struct assignment_problem {
    int64_t tokens;      /* T */
    int experts, topk;   /* E, k <= E */
    const double *value; /* [T,E] */
};

/* Bytes of memory that assign_exact needs; SIZE_MAX when they cannot be counted. */
size_t assign_bytes(int64_t tokens, int experts);

/* chosen[T,k] (NULL: not wanted) <- an optimal choice, by rising expert; returns its sum of values.
 * memory: assign_bytes, 64-byte aligned, contents do not matter. Borrows everything. */
double assign_exact(const struct assignment_problem *problem, int32_t *chosen, void *memory);

#endif
