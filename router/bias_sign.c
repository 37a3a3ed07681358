/* bias_sign.c - bias rules that ask only whether an expert is over or under its mean load
 *
 * sign(0) = 0. The comparison of n with kT/E is that of n E with sum n, which is exact. */
#include "router/bias_rules.h"

static int64_t total_of(const struct bias_batch *batch) {
    int64_t total = 0;
    for (int e = 0; e < batch->experts; e++) total += batch->counts[e];
    return total;
}

/* sign(m - n_e) */
static int side(const struct bias_batch *batch, int e, int64_t total) {
    int64_t load = batch->counts[e] * batch->experts;
    return (load < total) - (load > total);
}

void bias_update_sign(const struct bias_batch *batch, double *bias) {
    int64_t total = total_of(batch);
    for (int e = 0; e < batch->experts; e++) bias[e] += batch->rate * side(batch, e, total);
}

void bias_update_centred_sign(const struct bias_batch *batch, double *bias) {
    int64_t total = total_of(batch);
    int sum = 0;
    for (int e = 0; e < batch->experts; e++) sum += side(batch, e, total);
    double mean = batch->rate * sum / batch->experts;
    for (int e = 0; e < batch->experts; e++) bias[e] += batch->rate * side(batch, e, total) - mean;
}
