/* test_fit.c - robust fits: noise, outliers, too few rows, and the layer-time constants */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/fit.h"
#include "base/rng.h"
#include "sim/cluster.h"
#include "sim/fit_layer.h"
#include "tests/test.h"

enum { POINTS = 400 };

static void line(const void *context, const double *p, double *predicted) {
    const double *x = context;
    for (int i = 0; i < POINTS; i++) predicted[i] = p[0] + p[1] * x[i];
}

static void a_line_is_found_within_its_errors_and_despite_outliers(void **state) {
    (void)state;
    double x[POINTS], y[POINTS];
    const double start[] = {0, 0};
    for (int outliers = 0; outliers < 2; outliers++) {
        struct rng rng;
        rng_init(&rng, 11);
        for (int i = 0; i < POINTS; i++) {
            x[i] = i / 100.0;
            y[i] = 2 - 0.5 * x[i] + 0.05 * rng_normal(&rng);
            if (outliers && i % 10 == 3) y[i] += 3;
        }
        struct fit_problem problem = {POINTS, 2, line, x, y, start};
        struct fit fit;
        struct err err = {0};
        test_ok(fit_robust(&problem, &fit, &err), &err);
        assert_true(fabs(fit.value[0] - 2) < 4 * fit.sd[0] + 0.012 * outliers);
        assert_true(fabs(fit.value[1] + 0.5) < 4 * fit.sd[1] + 0.005 * outliers);
        /* least squares' own: sigma * sqrt((J'J)^-1), 0.05 * 0.0998 and 0.05 * 0.0433 */
        test_near(fit.sd[0], 0.005, 0.0015);
        test_near(fit.sd[1], 0.00216, 0.0007);
        test_near(fit.spread, 0.05, 0.012);
    }
}

static void an_undetermined_parameter_has_no_small_error(void **state) {
    (void)state;
    double x[POINTS], y[POINTS];
    const double start[] = {0, 0};
    for (int i = 0; i < POINTS; i++) x[i] = 0, y[i] = 1 + 0.01 * (i % 5);
    struct fit_problem problem = {POINTS, 2, line, x, y, start};
    struct fit fit;
    struct err err = {0};
    test_ok(fit_robust(&problem, &fit, &err), &err);
    test_near(fit.value[0], 1.02, 1e-3);
    assert_true(fit.sd[1] > 1 || fit.sd[1] == 0 || fit.value[1] == 0);
}

static void too_few_rows_are_refused(void **state) {
    (void)state;
    double x[POINTS] = {0}, y[POINTS] = {0};
    const double start[] = {0, 0};
    struct fit_problem problem = {5, 2, line, x, y, start};
    struct fit fit;
    struct err err = {0};
    assert_false(fit_robust(&problem, &fit, &err));
    assert_non_null(strstr(err.text, "found 5 rows, expected at least 6"));
    struct layer_fit layer;
    assert_false(fit_layer(NULL, 29, 989, &layer, &err));
    assert_non_null(strstr(err.text, "found 29 rows"));
}

enum { MADE = 600 };
static const struct layer_constants truth = {16, 64, 30, 3, 600, 4, 0.2, 0.3, 1, 0};

/* Rows over shapes, ranks and tokens, with times from `truth` times noise. */
static void make_rows(struct timing_row *rows, double noise, double outlier_share, uint64_t seed) {
    static const double hidden[] = {2048, 4096, 7168}, inter[] = {768, 2048};
    struct rng rng;
    rng_init(&rng, seed);
    struct load_law law = {LOAD_POWER_LAW, 1.01, false};
    for (int i = 0; i < MADE; i++) {
        struct timing_row *row = &rows[i];
        struct err err = {0};
        *row = (struct timing_row){.tokens = 1 << (i % 15)};
        row->group = (struct load_group){i % 2 ? 128 : 256, 8, 1 << (i / 15 % 5), row->tokens, 0};
        row->law = law;
        row->shape = (struct layer_shape){hidden[i / 75 % 3],
                                          inter[i / 225 % 2],
                                          3,
                                          1,
                                          8,
                                          (double)row->group.experts / row->group.ranks};
        test_ok(load_expect(&law, &row->group, 4, &row->load, &err), &err);
        double ms = layer_time_ms(&truth, &row->shape, &row->load, (double)row->tokens);
        row->latency_ms = ms * exp(noise * rng_normal(&rng));
        if (rng_uniform(&rng) < outlier_share) row->latency_ms *= 3;
    }
}

static void constants_are_recovered_under_noise_and_outliers(void **state) {
    (void)state;
    struct timing_row *rows = calloc(MADE, sizeof *rows);
    const struct timing_row *list[MADE];
    static const struct {
        double noise, outliers, tolerance;
    } cases[] = {{0, 0, 0.002}, {0.05, 0, 0.05}, {0.05, 0.05, 0.08}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        make_rows(rows, cases[k].noise, cases[k].outliers, 5 + k);
        for (int i = 0; i < MADE; i++) list[i] = &rows[i];
        struct layer_fit fit;
        struct err err = {0};
        test_ok(fit_layer(list, MADE, 1000, &fit, &err), &err);
        const struct layer_constants *c = &fit.constants;
        test_near(c->weight_tbps, truth.weight_tbps, cases[k].tolerance);
        test_near(c->launch_us, truth.launch_us, 2 * cases[k].tolerance);
        test_near(c->assign_ps, truth.assign_ps, 3 * cases[k].tolerance + 0.02);
        test_near(c->compute_tflops, truth.compute_tflops, 4 * cases[k].tolerance);
        if (k == 1) { /* honest errors: the truth is within four of them */
            assert_true(fabs(c->weight_tbps - truth.weight_tbps) < 4 * fit.sd[1]);
            assert_true(fabs(c->launch_us - truth.launch_us) < 4 * fit.sd[0]);
            assert_true(fit.sd[1] < 0.1 * truth.weight_tbps);
            test_near(fit.spread, 0.05, 0.01);
        }
    }
    free(rows);
}

static void half_of_a_measured_table_predicts_the_other_half(void **state) {
    (void)state;
    const char *path = test_path("../shared/data/moe-timing/open/moe_gemm.csv.gz");
    test_need(path);
    struct err err = {0};
    struct timings t;
    test_ok(timings_read(&t, path, 0, &err), &err);
    int kernel = 0;
    while (strcmp(t.kernels[kernel].gpu, "B200_SXM") ||
           strcmp(t.kernels[kernel].kernel, "deepgemm"))
        kernel++;
    const struct timing_row **halves[2] = {malloc((size_t)t.count * sizeof(void *)),
                                           malloc((size_t)t.count * sizeof(void *))};
    int64_t n[2] = {0, 0}, seen = 0;
    for (int64_t i = 0; i < t.count; i++)
        if (t.rows[i].kernel == kernel && !t.rows[i].flagged)
            halves[seen & 1][n[seen & 1]] = &t.rows[i], n[seen & 1]++, seen++;
    struct layer_fit fit;
    test_ok(fit_layer(halves[0], n[0], 4500, &fit, &err), &err);
    /* as good as the published constants, which were fitted on all open rows */
    const struct layer_constants *published = &t.kernels[kernel].constants.layer;
    double ours = 0, theirs = 0;
    for (int64_t i = 0; i < n[1]; i++) {
        const struct timing_row *r = halves[1][i];
        double T = (double)r->tokens;
        ours += fabs(log(layer_time_ms(&fit.constants, &r->shape, &r->load, T) / r->latency_ms));
        theirs += fabs(log(layer_time_ms(published, &r->shape, &r->load, T) / r->latency_ms));
    }
    if (ours > 1.03 * theirs)
        fail_msg("mean error %g, published %g", ours / (double)n[1], theirs / (double)n[1]);
    free(halves[0]);
    free(halves[1]);
    timings_free(&t);
}

int test_fit(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_is_found_within_its_errors_and_despite_outliers),
        cmocka_unit_test(an_undetermined_parameter_has_no_small_error),
        cmocka_unit_test(too_few_rows_are_refused),
        cmocka_unit_test(constants_are_recovered_under_noise_and_outliers),
        cmocka_unit_test(half_of_a_measured_table_predicts_the_other_half)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
