/* bias_error.c - bias rules whose step depends on how far an expert is from its mean load */
#include "router/bias_rules.h"
#include "router/mathf.h"

static double mean_of(const struct bias_batch *batch) {
    int64_t total = 0;
    for (int e = 0; e < batch->experts; e++) total += batch->counts[e];
    return (double)total / batch->experts;
}

/* (m - n_e) / m: 1 for an expert that nobody chose, 0 when nobody chose any. Raw counts, as the
 * paper's text has it, would move the bias by thousands at once. */
static double violation(const struct bias_batch *batch, int e, double mean) {
    return mean > 0 ? (mean - (double)batch->counts[e]) / mean : 0;
}

void bias_update_proportional(const struct bias_batch *batch, double *bias) {
    double mean = mean_of(batch);
    for (int e = 0; e < batch->experts; e++) bias[e] += batch->rate * violation(batch, e, mean);
}

/* 1/E - n/(kT) = (m - n) / (m E) */
void bias_update_longcat(const struct bias_batch *batch, double *bias) {
    double mean = mean_of(batch);
    for (int e = 0; e < batch->experts; e++)
        bias[e] += batch->rate * violation(batch, e, mean) / batch->experts;
}

/* tanh by our own exp, so that its bits are the same on every machine. */
static double tanh_f32(double x) {
    float e = mathf_exp((float)(2 * (x > 20 ? 20 : x < -20 ? -20 : x)));
    return ((double)e - 1) / ((double)e + 1);
}

void bias_update_smebu(const struct bias_batch *batch, double *bias) {
    const double beta = 0.5, kappa = 2;
    double mean = mean_of(batch), centre = 0;
    for (int e = 0; e < batch->experts; e++)
        centre += batch->rate * tanh_f32(kappa * violation(batch, e, mean)) / batch->experts;
    for (int e = 0; e < batch->experts; e++) {
        double step = batch->rate * tanh_f32(kappa * violation(batch, e, mean)) - centre;
        batch->state[e] = beta * batch->state[e] + (1 - beta) * step;
        bias[e] += batch->state[e];
    }
}
