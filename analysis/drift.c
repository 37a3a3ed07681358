/* drift.c - how far the load moves when the text does */
#include "analysis/drift.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "analysis/balance.h"
#include "analysis/dynamics.h"

double drift_variation(const int64_t *a, const int64_t *b, int count) {
    double all_a = (double)balance_sum(a, count), all_b = (double)balance_sum(b, count), sum = 0;
    if (all_a == 0 || all_b == 0) return NAN;
    for (int e = 0; e < count; e++) sum += fabs((double)a[e] / all_a - (double)b[e] / all_b);
    return sum / 2;
}

/* One expert's part of a Kullback-Leibler divergence, bits. */
static double part(double p, double q) { return p > 0 ? p * log2(p / q) : 0; }

double drift_divergence(const int64_t *a, const int64_t *b, int count) {
    double all_a = (double)balance_sum(a, count), all_b = (double)balance_sum(b, count), sum = 0;
    if (all_a == 0 || all_b == 0) return NAN;
    for (int e = 0; e < count; e++) {
        double p = (double)a[e] / all_a, q = (double)b[e] / all_b, middle = (p + q) / 2;
        sum += part(p, middle) + part(q, middle);
    }
    return sum / 2;
}

static struct drift_stretch stretch_of(const double *maxvio, int64_t first, int64_t count) {
    const struct dynamics_tail none = {0};
    struct dynamics d;
    dynamics_of(maxvio + first, NULL, count, &none, &d);
    bool nothing = count < 4 || d.settling_batches == 0;
    return (struct drift_stretch){.first = first,
                                  .count = count,
                                  .before = first > 0 ? maxvio[first - 1] : (double)NAN,
                                  .start = d.start,
                                  .level = d.level,
                                  .settling = nothing ? (double)NAN : d.settling_batches};
}

int drift_stretches(const int *kind, const double *maxvio, int64_t n, struct drift_stretch *stretch,
                    int most) {
    int found = 0;
    for (int64_t first = 0, next; first < n; first = next) {
        for (next = first + 1; next < n && kind[next] == kind[first];) next++;
        if (found < most) stretch[found] = stretch_of(maxvio, first, next - first);
        found++;
    }
    return found;
}
