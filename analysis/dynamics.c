/* dynamics.c - how a bias rule moves the load over balance batches */
#include "analysis/dynamics.h"

#include <math.h>

static double mean(const double *x, int64_t from, int64_t to) {
    double sum = 0;
    for (int64_t i = from; i < to; i++) sum += x[i];
    return sum / (double)(to - from);
}

/* First batch from which on all stay below; n when even the last does not. */
static int64_t last_above(const double *x, int64_t n, double limit) {
    while (n > 0 && x[n - 1] <= limit) n--;
    return n;
}

static double settling(const double *maxvio, int64_t n, double start, double level) {
    int64_t half = n / 2, quarter = half + (n - half) / 2;
    double fall = fabs(start - level), excess = 0;
    double trend = mean(maxvio, half, quarter) - mean(maxvio, quarter, n);
    if (fabs(trend) > 0.1 * fall && fall > 0) return NAN;
    for (int64_t i = half; i < n; i++) excess = fmax(excess, maxvio[i] - level);
    return (double)last_above(maxvio, n, level + fmax(0.1 * fall, excess));
}

void dynamics_of(const double *maxvio, const double *response, int64_t n,
                 const struct dynamics_tail *tail, struct dynamics *out) {
    *out = (struct dynamics){.batches = n, .start = NAN, .level = NAN};
    out->settling_batches = out->overshoot = out->amplitude = out->period = NAN;
    if (n == 0) return;
    out->start = maxvio[0];
    out->level = mean(maxvio, n / 2, n);
    if (n < 4) return;
    double lowest = 0;
    for (int64_t i = 0; i < n && response; i++) lowest = fmin(lowest, response[i]);
    out->settling_batches = settling(maxvio, n, out->start, out->level);
    if (response) out->overshoot = -lowest;
    out->amplitude = sqrt(2 * tail->variance);
    if (tail->sign_changes > 0) out->period = 2 * (double)tail->pairs / (double)tail->sign_changes;
}
