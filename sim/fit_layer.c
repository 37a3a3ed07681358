/* fit_layer.c - the layer-time constants from measured rows: parameters, tile rules,
 * cross-validation */
#include "sim/fit_layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/describe.h"
#include "analysis/fit.h"
#include "base/threads.h"
#include "sim/cluster.h"

static const int tile_rules[][2] = {{16, 16}, {16, 64}, {16, 128}};

struct context {
    const struct timing_row *const *rows;
    int64_t count;
    double peak_tflops;
    const int *tile;
};

/* Parameters are free numbers: logs of t0 and B, C below its peak, square roots of c, d and e. */
static struct layer_constants constants_of(const struct context *c, const double *p) {
    return (struct layer_constants){.tile_min = c->tile[0],
                                    .tile_max = c->tile[1],
                                    .launch_us = exp(p[0]),
                                    .weight_tbps = exp(p[1]),
                                    .compute_tflops = c->peak_tflops * -expm1(-exp(p[2])),
                                    .assign_ps = p[3] * p[3],
                                    .group_ps = p[4] * p[4],
                                    .expert_us = p[5] * p[5],
                                    .bandwidth_ratio = 1};
}

static void model(const void *context, const double *parameter, double *predicted) {
    const struct context *c = context;
    struct layer_constants constants = constants_of(c, parameter);
    for (int64_t i = 0; i < c->count; i++) {
        const struct timing_row *row = c->rows[i];
        predicted[i] = log(layer_time_ms(&constants, &row->shape, &row->load, (double)row->tokens));
    }
}

/* The delta method: d(constant)/d(parameter) by a small step. */
static void deviations(const struct context *c, const struct fit *fit, struct layer_fit *out) {
    for (int j = 0; j < LAYER_PARAMETERS; j++) {
        double moved[LAYER_PARAMETERS];
        memcpy(moved, fit->value, sizeof moved);
        double step = 1e-5 + 1e-5 * fabs(moved[j]);
        moved[j] += step;
        struct layer_constants a = constants_of(c, fit->value), b = constants_of(c, moved);
        const double from[] = {a.launch_us, a.weight_tbps, a.compute_tflops,
                               a.assign_ps, a.group_ps,    a.expert_us};
        const double to[] = {b.launch_us, b.weight_tbps, b.compute_tflops,
                             b.assign_ps, b.group_ps,    b.expert_us};
        /* a square root near zero: its square moves by sd^2 at least */
        double square = j >= 3 ? fit->sd[j] * fit->sd[j] : 0;
        out->sd[j] = fmax(fabs(to[j] - from[j]) / step * fit->sd[j], square);
        if (!(out->sd[j] < 10 * (fabs(from[j]) + (j >= 3)))) out->sd[j] = INFINITY;
        if (j == 2 && from[j] > 0.999 * c->peak_tflops) out->sd[j] = INFINITY; /* at its cap */
    }
}

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Where the search starts: the launch below the fastest row, B near the fastest weight reading. */
static void starting_point(const struct timing_row *const *rows, int64_t count, double *scratch,
                           double start[static LAYER_PARAMETERS]) {
    double fastest = INFINITY;
    for (int64_t i = 0; i < count; i++) {
        const struct timing_row *row = rows[i];
        double bytes = row->load.active * row->shape.matrices * row->shape.hidden *
                       row->shape.inter * row->shape.weight_bytes;
        scratch[i] = bytes / (row->latency_ms * 1e9);
        fastest = fmin(fastest, row->latency_ms);
    }
    qsort(scratch, (size_t)count, sizeof *scratch, by_number);
    double bandwidth = describe_quantile_sorted(scratch, (size_t)count, 0.95);
    const double at[LAYER_PARAMETERS] = {
        log(0.6e3 * fastest), log(fmax(bandwidth, 1e-6)), 0, 1.5, 0.4, 0.2};
    memcpy(start, at, sizeof at);
}

bool fit_layer(const struct timing_row *const *rows, int64_t count, double peak_tflops,
               struct layer_fit *fit, struct err *err) {
    *fit = (struct layer_fit){.rows = count};
    if (count < FIT_LAYER_ROWS)
        return err_set(err, ERR_DATA, "found %lld rows without a flag, expected at least %d",
                       (long long)count, FIT_LAYER_ROWS);
    double *measured = malloc((size_t)count * sizeof *measured);
    if (!measured) return err_memory(err, "fit");
    double start[LAYER_PARAMETERS], best = INFINITY;
    starting_point(rows, count, measured, start);
    for (int64_t i = 0; i < count; i++) measured[i] = log(rows[i]->latency_ms);
    bool ok = true;
    for (size_t t = 0; ok && t < sizeof tile_rules / sizeof *tile_rules; t++) {
        struct context context = {rows, count, peak_tflops, tile_rules[t]};
        struct fit_problem problem = {count, LAYER_PARAMETERS, model, &context, measured, start};
        struct fit found;
        ok = fit_robust(&problem, &found, err);
        if (!ok || found.mean_abs >= best) continue;
        best = found.mean_abs;
        fit->constants = constants_of(&context, found.value);
        fit->spread = found.spread;
        deviations(&context, &found, fit);
    }
    free(measured);
    return ok;
}

/* ---- one kernel: the fit of all rows, and errors on rows unseen by a fit of the other half */

/* Which half a row belongs to: whole (shape, ranks) groups stay together. */
static int half_of(const struct timing_row *row) {
    const double parts[] = {row->shape.hidden, row->shape.inter, (double)row->group.topk,
                            (double)row->group.experts, (double)row->group.ranks};
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        hash = (hash ^ (uint64_t)parts[i]) * UINT64_C(1099511628211);
    return (int)(hash >> 33 & 1);
}

struct kernel_fit {
    struct layer_fit fit;
    struct layer_error error; /* NaN where no row was left out */
    struct err err;
    bool ok;
};

struct fitting {
    const struct timings *timings;
    const int *kernels; /* [jobs] */
    struct kernel_fit *fits;
};

static void quantiles(double *errors, int64_t count, double *median, double *p90) {
    *median = *p90 = NAN;
    if (count == 0) return;
    qsort(errors, (size_t)count, sizeof *errors, by_number);
    *median = describe_quantile_sorted(errors, (size_t)count, 0.5);
    *p90 = describe_quantile_sorted(errors, (size_t)count, 0.9);
}

/* rows[count] split by half; errors[2][count] by phase. */
static void cross_validate(const struct timing_row **rows, int64_t count, double peak,
                           const struct timing_row **seen, double *errors, struct kernel_fit *out) {
    int64_t found[2] = {0, 0};
    for (int half = 0; half < 2; half++) {
        int64_t n = 0;
        for (int64_t i = 0; i < count; i++)
            if (half_of(rows[i]) == half) seen[n++] = rows[i];
        struct layer_fit fit;
        struct err unused;
        if (!fit_layer(seen, n, peak, &fit, &unused)) continue;
        for (int64_t i = 0; i < count; i++) {
            const struct timing_row *row = rows[i];
            if (half_of(row) == half) continue;
            double ms = layer_time_ms(&fit.constants, &row->shape, &row->load, (double)row->tokens);
            int phase = row->tokens > DECODE_TOKENS;
            errors[phase * count + found[phase]++] = fabs(ms / row->latency_ms - 1);
        }
    }
    quantiles(errors, found[0], &out->error.decode_median, &out->error.decode_p90);
    quantiles(errors + count, found[1], &out->error.prefill_median, &out->error.prefill_p90);
}

static void fit_kernel(void *context, int64_t job, int worker) {
    struct fitting *f = context;
    (void)worker;
    const struct timings *t = f->timings;
    const struct timing_kernel *kernel = &t->kernels[f->kernels[job]];
    struct kernel_fit *out = &f->fits[job];
    const struct timing_row **rows = malloc((size_t)t->count * 2 * sizeof *rows);
    double *errors = malloc((size_t)t->count * 2 * sizeof *errors);
    int64_t count = 0;
    out->ok = (rows && errors) || err_memory(&out->err, "fit");
    for (int64_t i = 0; out->ok && i < t->count; i++) {
        const struct timing_row *row = &t->rows[i];
        if (row->kernel == f->kernels[job] && !row->flagged && !row->unknown_law)
            rows[count++] = row;
    }
    struct err unused;
    const struct device *device = device_find(kernel->gpu, &unused);
    double peak = device_peak_tflops(device, kernel->quant);
    out->ok = out->ok && fit_layer(rows, count, peak, &out->fit, &out->err);
    if (out->ok)
        cross_validate(rows, count, peak, rows + t->count, errors, out);
    else
        err_context(&out->err, "%s %s %s %s", kernel->gpu, kernel->framework, kernel->kernel,
                    kernel->quant);
    free(rows);
    free(errors);
}

static void sd_cell(struct table *table, double sd) {
    if (isfinite(sd))
        table_real(table, sd);
    else
        table_null(table);
}

static void add_fit(const struct timing_kernel *kernel, const struct kernel_fit *k,
                    struct table *table) {
    const struct layer_constants *c = &k->fit.constants;
    const double values[] = {c->launch_us, c->weight_tbps, c->compute_tflops,
                             c->assign_ps, c->group_ps,    c->expert_us};
    table_text(table, kernel->gpu);
    table_text(table, kernel->framework);
    table_text(table, kernel->kernel);
    table_text(table, kernel->quant);
    table_text(table, kernel->version);
    table_int(table, k->fit.rows);
    table_int(table, c->tile_min);
    table_int(table, c->tile_max);
    for (int j = 0; j < LAYER_PARAMETERS; j++) {
        table_real(table, values[j]);
        sd_cell(table, k->fit.sd[j]);
    }
    table_real(table, k->error.decode_median);
    table_real(table, k->error.decode_p90);
    table_real(table, k->error.prefill_median);
    table_real(table, k->error.prefill_p90);
}

struct table *timings_fit(const struct timings *timings, const char *only, int threads,
                          struct err *err) {
    static const struct table_column columns[] = {{"gpu", "", TABLE_TEXT},
                                                  {"framework", "", TABLE_TEXT},
                                                  {"kernel", "", TABLE_TEXT},
                                                  {"quant", "", TABLE_TEXT},
                                                  {"version", "", TABLE_TEXT},
                                                  {"rows", "", TABLE_INT},
                                                  {"tile_min", "", TABLE_INT},
                                                  {"tile_max", "", TABLE_INT},
                                                  {"launch_us", "", TABLE_REAL},
                                                  {"launch_us_sd", "", TABLE_REAL},
                                                  {"weight_tbps", "", TABLE_REAL},
                                                  {"weight_tbps_sd", "", TABLE_REAL},
                                                  {"compute_tflops", "", TABLE_REAL},
                                                  {"compute_tflops_sd", "", TABLE_REAL},
                                                  {"assign_ps", "", TABLE_REAL},
                                                  {"assign_ps_sd", "", TABLE_REAL},
                                                  {"group_ps", "", TABLE_REAL},
                                                  {"group_ps_sd", "", TABLE_REAL},
                                                  {"expert_us", "", TABLE_REAL},
                                                  {"expert_us_sd", "", TABLE_REAL},
                                                  {"decode_median", "", TABLE_REAL},
                                                  {"decode_p90", "", TABLE_REAL},
                                                  {"prefill_median", "", TABLE_REAL},
                                                  {"prefill_p90", "", TABLE_REAL}};
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    if (!table) return NULL;
    int *kernels = malloc((size_t)timings->kernel_count * sizeof *kernels), jobs = 0;
    struct kernel_fit *fits = calloc((size_t)timings->kernel_count, sizeof *fits);
    struct pool *pool = pool_create(threads, err);
    bool ok = pool && ((kernels && fits) || err_memory(err, "fit"));
    for (int k = 0; ok && k < timings->kernel_count; k++)
        if (!only || strcmp(only, timings->kernels[k].kernel) == 0) kernels[jobs++] = k;
    if (ok && jobs == 0) ok = err_set(err, ERR_DATA, "found no rows of kernel \"%s\"", only);
    if (ok) {
        struct fitting fitting = {timings, kernels, fits};
        pool_run(pool, jobs, fit_kernel, &fitting);
    }
    for (int j = 0; ok && j < jobs; j++) {
        if (fits[j].ok)
            add_fit(&timings->kernels[kernels[j]], &fits[j], table);
        else {
            *err = fits[j].err;
            ok = false;
        }
    }
    pool_free(pool);
    free(kernels);
    free(fits);
    if (ok && table_ok(table, err)) return table;
    table_free(table);
    return NULL;
}
