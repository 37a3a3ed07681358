/* test_balance.c - measures of balance, descriptions and bootstrap against independent computations
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"
#include "analysis/bootstrap.h"
#include "analysis/describe.h"
#include "base/rng.h"
#include "tests/test.h"

enum { MOST = 64 };

/* The definitions of DESIGN section 8, written the long way. */
static double slow_gini(const int64_t *n, int count) {
    double pairs = 0, sum = 0;
    for (int i = 0; i < count; i++) sum += (double)n[i];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < count; j++) pairs += fabs((double)n[i] - (double)n[j]);
    return pairs / (2.0 * count * count * (sum / count));
}

static double slow_cv(const int64_t *n, int count) {
    double mean = 0, square = 0;
    for (int i = 0; i < count; i++) mean += (double)n[i] / count;
    for (int i = 0; i < count; i++) square += (double)n[i] * (double)n[i] / count;
    return sqrt(fmax(0, square - mean * mean)) / mean;
}

static void balance_of_a_hand_example(void **state) {
    const int64_t n[] = {1, 2, 3, 6};
    int64_t sorted[4], load[2];
    (void)state;
    test_near(balance_mean(n, 4), 3, 1e-15);
    test_near(balance_maxvio(n, 4), 1, 1e-15);
    test_near(balance_efficiency(n, 4), 0.5, 1e-15);
    test_near(balance_cv(n, 4), sqrt(3.5) / 3, 1e-15);
    test_near(balance_gini(n, 4, sorted), 1.0 / 3, 1e-15);
    test_near(balance_entropy(n, 4), log(12) - (2 * log(2) + 3 * log(3) + 6 * log(6)) / 12, 1e-14);
    assert_int_equal(balance_min(n, 4), 1);
    assert_int_equal(balance_max(n, 4), 6);
    balance_blocks(n, 4, 2, load);
    assert_int_equal(load[0], 3);
    assert_int_equal(load[1], 9);
}

static void balance_agrees_with_the_definitions_on_random_loads(void **state) {
    struct rng rng;
    int64_t n[MOST], sorted[MOST];
    (void)state;
    rng_init(&rng, 7);
    for (int trial = 0; trial < 500; trial++) {
        int count = 1 + (int)rng_below(&rng, MOST);
        for (int i = 0; i < count; i++) n[i] = (int64_t)rng_below(&rng, trial % 2 ? 5 : 1000000000);
        n[0]++;
        int64_t before = n[count - 1];
        test_near(balance_gini(n, count, sorted), slow_gini(n, count), 1e-9);
        test_near(balance_cv(n, count), slow_cv(n, count), 1e-6);
        test_near(balance_efficiency(n, count), 1 / (1 + balance_maxvio(n, count)), 1e-12);
        assert_true(balance_entropy(n, count) <= log(count) + 1e-12);
        assert_true(balance_entropy(n, count) >= 0);
        assert_int_equal(n[count - 1], before); /* nothing is sorted in place */
    }
}

static void balance_knows_its_extremes(void **state) {
    int64_t even[8], one[8] = {0}, sorted[8], none[8] = {0};
    (void)state;
    for (int i = 0; i < 8; i++) even[i] = 5;
    one[3] = 40;
    assert_true(balance_maxvio(even, 8) == 0);
    assert_true(balance_cv(even, 8) == 0);
    assert_true(balance_gini(even, 8, sorted) == 0);
    assert_true(balance_efficiency(even, 8) == 1);
    test_near(balance_entropy(even, 8), log(8), 1e-15);
    assert_true(balance_maxvio(one, 8) == 7);
    test_near(balance_gini(one, 8, sorted), 1 - 1.0 / 8, 1e-15);
    assert_true(balance_entropy(one, 8) == 0 && !signbit(balance_entropy(one, 8)));
    assert_true(isnan(balance_maxvio(none, 8)) && isnan(balance_cv(none, 8)));
    assert_true(isnan(balance_gini(none, 8, sorted)) && isnan(balance_efficiency(none, 8)));
    assert_true(isnan(balance_entropy(none, 8)));
}

static void ranks_hold_equal_blocks_or_do_not_fit(void **state) {
    (void)state;
    assert_true(balance_ranks_fit(64, 8));
    assert_true(balance_ranks_fit(64, 64));
    assert_true(balance_ranks_fit(64, 1));
    assert_false(balance_ranks_fit(64, 6));
    assert_false(balance_ranks_fit(64, 128));
    assert_false(balance_ranks_fit(64, 0));
}

/* NIST StRD univariate: NumAcc1 and NumAcc2 (certified values), and Michelson's first ten. */
static void describe_meets_certified_values(void **state) {
    const double acc1[] = {10000001, 10000003, 10000002};
    double acc2[1001];
    struct description d;
    struct err err;
    (void)state;
    test_ok(describe(acc1, 3, &d, &err), &err);
    test_near(d.mean, 10000002, 1e-15);
    test_near(d.sd, 1, 1e-12);
    acc2[0] = 1.2;
    for (int i = 1; i < 1001; i++) acc2[i] = i % 2 ? 1.1 : 1.3;
    test_ok(describe(acc2, 1001, &d, &err), &err);
    test_near(d.mean, 1.2, 1e-14);
    test_near(d.sd, 0.1, 1e-13);
    test_near(d.median, 1.2, 1e-15);
    test_near(d.mad, 0.1, 1e-12);
}

static void quantiles_interpolate_between_order_statistics(void **state) {
    const double values[] = {9, 1, 5, 3};
    struct description d;
    struct err err;
    (void)state;
    test_ok(describe(values, 4, &d, &err), &err);
    test_near(d.median, 4, 1e-15); /* type 7: position (n - 1) p */
    test_near(d.q25, 2.5, 1e-15);
    test_near(d.q75, 6, 1e-15);
    test_near(d.p95, 5 + 4 * 0.85, 1e-14);
    assert_true(d.min == 1 && d.max == 9);
}

static void describe_refuses_what_has_no_answer(void **state) {
    const double bad[] = {1, NAN};
    struct description d;
    struct err err;
    (void)state;
    assert_false(describe(bad, 0, &d, &err));
    assert_false(describe(bad, 2, &d, &err));
    assert_non_null(strstr(err.text, "value 1"));
    test_ok(describe(bad, 1, &d, &err), &err);
    assert_true(isnan(d.sd));
}

static void correlation_of_ranks_sees_any_rising_curve(void **state) {
    double a[20], b[20], pearson, spearman;
    struct err err;
    (void)state;
    for (int i = 0; i < 20; i++) {
        a[i] = i;
        b[i] = exp(i);
    }
    test_ok(describe_correlation(a, b, 20, &pearson, &spearman, &err), &err);
    test_near(spearman, 1, 1e-12);
    assert_true(pearson > 0.4 && pearson < 0.7);
}

/* ---- bootstrap */

/* Efron and Tibshirani (1993), table 3.1: the law school data. */
static const double lsat[] = {576, 635, 558, 578, 666, 580, 555, 661,
                              651, 605, 653, 575, 545, 572, 594};
static const double gpa[] = {3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43,
                             3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96};

static double correlation(void *context, const int *picked, int count) {
    double a = 0, b = 0, aa = 0, bb = 0, ab = 0;
    (void)context;
    for (int i = 0; i < count; i++) {
        a += lsat[picked[i]] / count;
        b += gpa[picked[i]] / count;
    }
    for (int i = 0; i < count; i++) {
        double x = lsat[picked[i]] - a, y = gpa[picked[i]] - b;
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    return ab / sqrt(aa * bb);
}

static void bootstrap_meets_the_law_school_figures(void **state) {
    struct bootstrap_options options = {.resamples = 20000, .level = 0.9, .seed = 3};
    struct interval bca, percentile;
    struct err err;
    (void)state;
    test_ok(bootstrap(15, correlation, NULL, &options, &bca, &err), &err);
    options.kind = BOOTSTRAP_PERCENTILE;
    test_ok(bootstrap(15, correlation, NULL, &options, &percentile, &err), &err);
    test_near(bca.estimate, 0.776, 1e-3);
    test_near(bca.se, 0.133, 5e-3); /* table 6.1: .132 at B = 3200 */
    test_near(bca.low, 0.43, 0.02); /* table 14.2: BCa (.43, .92) */
    test_near(bca.high, 0.92, 0.01);
    test_near(percentile.low, 0.52, 0.02); /* percentile (.52, .94) */
    test_near(percentile.high, 0.94, 0.01);
}

static void bootstrap_covers_as_often_as_it_says(void **state) {
    struct rng rng;
    struct err err;
    int covered = 0;
    (void)state;
    rng_init(&rng, 11);
    for (int trial = 0; trial < 300; trial++) {
        double values[40];
        struct bootstrap_options options = {.resamples = 400, .seed = (uint64_t)trial};
        struct interval out;
        for (int i = 0; i < 40; i++) values[i] = rng_normal(&rng);
        test_ok(bootstrap_mean(values, NULL, 40, &options, &out, &err), &err);
        covered += out.low <= 0 && out.high >= 0;
    }
    assert_in_range(covered, 270, 297);
}

static void paired_difference_is_sharper_than_two_intervals(void **state) {
    double a[30], b[30];
    struct rng rng;
    struct interval one, difference, same;
    struct err err;
    (void)state;
    rng_init(&rng, 5);
    for (int i = 0; i < 30; i++) {
        a[i] = 10 * rng_normal(&rng);
        b[i] = a[i] - 1 + 0.1 * rng_normal(&rng);
    }
    test_ok(bootstrap_mean(a, NULL, 30, NULL, &one, &err), &err);
    test_ok(bootstrap_mean_difference(a, b, NULL, 30, NULL, &difference, &err), &err);
    assert_true(one.high - one.low > 4);
    assert_true(difference.low > 0.9 && difference.high < 1.1);
    test_ok(bootstrap_mean_difference(a, a, NULL, 30, NULL, &same, &err), &err);
    assert_true(same.estimate == 0 && same.low == 0 && same.high == 0);
}

static void loads_are_resampled_by_document(void **state) {
    enum { DOCUMENTS = 12, EXPERTS = 4 };
    int64_t a[DOCUMENTS * EXPERTS], b[DOCUMENTS * EXPERTS], total[EXPERTS] = {0};
    struct interval load, difference, again;
    struct err err;
    (void)state;
    for (int d = 0; d < DOCUMENTS; d++) {
        for (int e = 0; e < EXPERTS; e++) {
            a[d * EXPERTS + e] = 10 + (e == d % EXPERTS ? 30 : 0) + (e == 0 ? 20 : 0);
            b[d * EXPERTS + e] = 20;
            total[e] += a[d * EXPERTS + e];
        }
    }
    test_ok(bootstrap_load(a, DOCUMENTS, EXPERTS, balance_maxvio, NULL, &load, &err), &err);
    test_near(load.estimate, balance_maxvio(total, EXPERTS), 1e-15);
    assert_true(load.low < load.estimate && load.estimate < load.high);
    assert_true(load.clusters == DOCUMENTS && !load.few);
    test_ok(bootstrap_load_difference(a, b, DOCUMENTS, EXPERTS, balance_maxvio, NULL, &difference,
                                      &err),
            &err);
    test_near(difference.estimate, load.estimate, 1e-15); /* b is even: its MaxVio is 0 */
    assert_true(difference.low > 0);
    test_ok(bootstrap_load(a, DOCUMENTS, EXPERTS, balance_maxvio, NULL, &again, &err), &err);
    assert_true(again.low == load.low && again.high == load.high);
}

static void bootstrap_says_when_there_is_too_little(void **state) {
    const double one[] = {3}, three[] = {1, 2, 3};
    struct bootstrap_options options = {.resamples = 5};
    struct interval out;
    struct err err;
    (void)state;
    test_ok(bootstrap_mean(one, NULL, 1, NULL, &out, &err), &err);
    assert_true(out.estimate == 3 && isnan(out.low) && isnan(out.high) && out.few);
    test_ok(bootstrap_mean(three, NULL, 3, NULL, &out, &err), &err);
    assert_true(out.few && out.low >= 1 && out.high <= 3);
    assert_false(bootstrap_mean(three, NULL, 0, NULL, &out, &err));
    assert_false(bootstrap_mean(three, NULL, 3, &options, &out, &err));
    assert_non_null(strstr(err.text, "resamples"));
}

int test_balance(void);
int test_balance(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(balance_of_a_hand_example),
        cmocka_unit_test(balance_agrees_with_the_definitions_on_random_loads),
        cmocka_unit_test(balance_knows_its_extremes),
        cmocka_unit_test(ranks_hold_equal_blocks_or_do_not_fit),
        cmocka_unit_test(describe_meets_certified_values),
        cmocka_unit_test(quantiles_interpolate_between_order_statistics),
        cmocka_unit_test(describe_refuses_what_has_no_answer),
        cmocka_unit_test(correlation_of_ranks_sees_any_rising_curve),
        cmocka_unit_test(bootstrap_meets_the_law_school_figures),
        cmocka_unit_test(bootstrap_covers_as_often_as_it_says),
        cmocka_unit_test(paired_difference_is_sharper_than_two_intervals),
        cmocka_unit_test(loads_are_resampled_by_document),
        cmocka_unit_test(bootstrap_says_when_there_is_too_little),
    };
    return cmocka_run_group_tests_name("balance", tests, NULL, NULL);
}
