/* bootstrap.c - bootstrap intervals over clusters
 *
 * One engine (`bootstrap`) and a few statistics over it. The cost is resamples * clusters * the
 * cost of the statistic; 2000 draws of 100 documents of 256 experts take some 50 ms. */
#include "analysis/bootstrap.h"

#include <gsl/gsl_cdf.h>
#include <gsl/gsl_rng.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics_double.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"

struct draws {
    double *value; /* [resamples], sorted, the finite ones first */
    int *picked;   /* [clusters] */
    int count;     /* finite values */
};

static bool draw_all(int clusters, bootstrap_statistic statistic, void *context, int resamples,
                     uint64_t seed, struct draws *draws, struct err *err) {
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    if (!rng) return err_memory(err, "random numbers");
    gsl_rng_set(rng, (unsigned long)(seed ^ seed >> 32));
    for (int b = 0; b < resamples; b++) {
        for (int i = 0; i < clusters; i++)
            draws->picked[i] = (int)gsl_rng_uniform_int(rng, (unsigned long)clusters);
        double value = statistic(context, draws->picked, clusters);
        if (isfinite(value)) draws->value[draws->count++] = value;
    }
    gsl_rng_free(rng);
    gsl_sort(draws->value, 1, (size_t)draws->count);
    return true;
}

/* z0 = Phi^-1(share of draws below the estimate, ties counted half). */
static double bias_correction(const struct draws *draws, double estimate) {
    double below = 0;
    for (int i = 0; i < draws->count; i++)
        below += draws->value[i] < estimate ? 1 : draws->value[i] == estimate ? 0.5 : 0;
    double edge = 0.5 / draws->count; /* keeps the quantile finite when all lie on one side */
    return gsl_cdf_ugaussian_Pinv(fmin(fmax(below / draws->count, edge), 1 - edge));
}

/* a = sum (m - x_i)^3 / (6 (sum (m - x_i)^2)^1.5) over the leave-one-out values x_i, m their mean.
 */
static double acceleration(int clusters, bootstrap_statistic statistic, void *context, int *picked,
                           double *loo) {
    int used = 0;
    for (int out = 0; out < clusters; out++) {
        for (int i = 0, n = 0; i < clusters; i++)
            if (i != out) picked[n++] = i;
        double value = statistic(context, picked, clusters - 1);
        if (isfinite(value)) loo[used++] = value;
    }
    if (used < 2) return 0;
    double mean = gsl_stats_mean(loo, 1, (size_t)used);
    double square = 0, cube = 0;
    for (int i = 0; i < used; i++) {
        double d = mean - loo[i];
        square += d * d;
        cube += d * d * d;
    }
    return square > 0 ? cube / (6 * pow(square, 1.5)) : 0;
}

/* Share of the distribution at which the BCa limit of nominal share p lies. */
static double adjusted_share(double p, double z0, double a) {
    double z = z0 + gsl_cdf_ugaussian_Pinv(p);
    double below = 1 - a * z;
    return below <= 0 ? (z > 0 ? 1 : 0) : gsl_cdf_ugaussian_P(z0 + z / below);
}

static bool options_check(const struct bootstrap_options *options, int clusters, int *resamples,
                          double *level, struct err *err) {
    *resamples = options->resamples ? options->resamples : 2000;
    *level = options->level != 0 ? options->level : 0.95;
    if (clusters < 1)
        return err_set(err, ERR_DATA, "bootstrap: found %d clusters, expected at least 1",
                       clusters);
    if (*resamples < 20 || *resamples > 10000000)
        return err_set(err, ERR_DATA, "bootstrap: resamples: found %d, expected 20..10000000",
                       *resamples);
    if (!(*level > 0 && *level < 1))
        return err_set(err, ERR_DATA, "bootstrap: level: found %g, expected 0..1", *level);
    return true;
}

static void set_limits(const struct draws *draws, double tail, double z0, double a, bool adjust,
                       struct interval *out) {
    double low = adjust ? adjusted_share(tail, z0, a) : tail;
    double high = adjust ? adjusted_share(1 - tail, z0, a) : 1 - tail;
    size_t count = (size_t)draws->count;
    out->low = gsl_stats_quantile_from_sorted_data(draws->value, 1, count, low);
    out->high = gsl_stats_quantile_from_sorted_data(draws->value, 1, count, high);
    out->se = count > 1 ? gsl_stats_sd(draws->value, 1, count) : NAN;
    out->resamples = draws->count;
}

/* The distance of a draw from the estimate is taken for that of the estimate from the truth. */
static void reflect(struct interval *out) {
    double low = out->low;
    out->low = 2 * out->estimate - out->high;
    out->high = 2 * out->estimate - low;
}

bool bootstrap(int clusters, bootstrap_statistic statistic, void *context,
               const struct bootstrap_options *options, struct interval *out, struct err *err) {
    static const struct bootstrap_options defaults;
    struct draws draws = {0};
    double *loo = NULL;
    bool ok = false;
    int resamples;
    double level;
    if (!options) options = &defaults;
    if (!options_check(options, clusters, &resamples, &level, err)) return false;
    draws.value = calloc((size_t)resamples, sizeof *draws.value);
    draws.picked = calloc((size_t)clusters, sizeof *draws.picked);
    loo = calloc((size_t)clusters, sizeof *loo);
    if (!draws.value || !draws.picked || !loo) {
        err_memory(err, "bootstrap");
        goto done;
    }
    for (int i = 0; i < clusters; i++) draws.picked[i] = i;
    *out = (struct interval){.low = NAN, .high = NAN, .se = NAN, .clusters = clusters};
    out->few = clusters < BOOTSTRAP_FEW;
    out->estimate = statistic(context, draws.picked, clusters);
    ok = true;
    if (clusters < 2 || !isfinite(out->estimate)) goto done;
    ok = draw_all(clusters, statistic, context, resamples, options->seed, &draws, err);
    if (!ok || draws.count == 0) goto done;
    bool adjust = options->kind == BOOTSTRAP_BCA;
    double z0 = adjust ? bias_correction(&draws, out->estimate) : 0;
    double a = adjust ? acceleration(clusters, statistic, context, draws.picked, loo) : 0;
    set_limits(&draws, (1 - level) / 2, z0, a, adjust, out);
    if (options->kind == BOOTSTRAP_BASIC) reflect(out);
done:
    free(loo);
    free(draws.picked);
    free(draws.value);
    return ok;
}

/* ---- statistics */

struct mean_context {
    const double *a, *b, *weights; /* b NULL: no difference; weights NULL: all 1 */
};

static double mean_of_picked(void *context, const int *picked, int count) {
    const struct mean_context *c = context;
    double sum = 0, weight = 0;
    for (int i = 0; i < count; i++) {
        double w = c->weights ? c->weights[picked[i]] : 1;
        sum += w * (c->a[picked[i]] - (c->b ? c->b[picked[i]] : 0));
        weight += w;
    }
    return sum / weight;
}

bool bootstrap_mean(const double *values, const double *weights, int clusters,
                    const struct bootstrap_options *options, struct interval *out,
                    struct err *err) {
    struct mean_context context = {.a = values, .weights = weights};
    return bootstrap(clusters, mean_of_picked, &context, options, out, err);
}

bool bootstrap_mean_difference(const double *a, const double *b, const double *weights,
                               int clusters, const struct bootstrap_options *options,
                               struct interval *out, struct err *err) {
    struct mean_context context = {.a = a, .b = b, .weights = weights};
    return bootstrap(clusters, mean_of_picked, &context, options, out, err);
}

struct load_context {
    const int64_t *a, *b; /* [clusters,experts]; b NULL: no difference */
    int experts;
    load_measure measure;
    int64_t *sum; /* [experts] scratch */
};

static double measure_of_picked(const struct load_context *c, const int64_t *counts,
                                const int *picked, int count) {
    memset(c->sum, 0, (size_t)c->experts * sizeof *c->sum);
    for (int i = 0; i < count; i++) {
        const int64_t *row = counts + (int64_t)picked[i] * c->experts;
        for (int e = 0; e < c->experts; e++) c->sum[e] += row[e];
    }
    return c->measure(c->sum, c->experts);
}

static double load_of_picked(void *context, const int *picked, int count) {
    const struct load_context *c = context;
    double a = measure_of_picked(c, c->a, picked, count);
    return c->b ? a - measure_of_picked(c, c->b, picked, count) : a;
}

bool bootstrap_load_difference(const int64_t *a, const int64_t *b, int clusters, int experts,
                               load_measure measure, const struct bootstrap_options *options,
                               struct interval *out, struct err *err) {
    struct load_context context = {.a = a, .b = b, .experts = experts, .measure = measure};
    context.sum = calloc((size_t)(experts > 0 ? experts : 1), sizeof *context.sum);
    if (!context.sum) return err_memory(err, "bootstrap loads");
    bool ok = bootstrap(clusters, load_of_picked, &context, options, out, err);
    free(context.sum);
    return ok;
}

bool bootstrap_load(const int64_t *counts, int clusters, int experts, load_measure measure,
                    const struct bootstrap_options *options, struct interval *out,
                    struct err *err) {
    return bootstrap_load_difference(counts, NULL, clusters, experts, measure, options, out, err);
}
