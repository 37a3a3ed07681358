/* route_kernels.h - the inner loops of routing, one table of functions per CPU level
 *
 * Layer 2, private to router/. `portable` is the truth, written to be read; every other level gives
 * the same bits (scores, choices), because each step has one result: elementwise arithmetic in a
 * fixed order, sums in a fixed tree, selections by a total order. Rows are padded: a row of n
 * floats may be read up to the next multiple of ROUTE_LANES, and choice rows hold -inf there. */
#ifndef ROUTER_ROUTE_KERNELS_H
#define ROUTER_ROUTE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "router/gate.h"

enum { ROUTE_LANES = 16 };

struct route_kernels {
    const char *name;
    /* Index of the first NaN or infinity in x[n]; -1 when there is none. */
    int64_t (*first_not_finite)(const float *x, int64_t n);
    /* score[n] <- score function of logits[n]; by enum gate_score. May run in place. */
    void (*score[SCORE_IDENTITY + 1])(const float *logits, float *score, int n);
    /* choice[n] <- score[n] + bias[n] (bias NULL: score), padded with -inf. */
    void (*add_bias)(const float *score, const float *bias, float *choice, int n);
    /* group_score[groups] <- sum of the `best` highest of each group of `size` choice scores. */
    void (*group_scores)(const float *choice, int groups, int size, int best, float *group_score);
    /* best[k] <- indices of the k highest of the padded row x[n], k <= n; lower index first among
     * equals. */
    void (*top)(const float *x, int n, int k, int32_t *best);
};

extern const struct route_kernels route_kernels_portable;
#if defined(__x86_64__)
extern const struct route_kernels route_kernels_avx512;
#endif

#endif
