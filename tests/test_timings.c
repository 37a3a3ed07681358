/* test_timings.c - measured tables: errors against independently drawn loads, wide expert
 * parallelism with EPLB, and predictions by constants that have not seen the rows */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"
#include "sim/published.h"
#include "sim/refit.h"
#include "tests/test.h"

static const char folder[] = "../shared/data/moe-timing/";

/* Static path of a published table; skips where it is absent. */
static const char *published(const char *name) {
    char relative[128];
    snprintf(relative, sizeof relative, "%s%s", folder, name);
    const char *path = test_path(relative);
    test_need(path);
    return path;
}

/* ---- loads that others drew */

struct feature {
    char key[48];
    struct rank_load load;
};

static int compare_keys(const void *a, const void *b) {
    return strcmp(((const struct feature *)a)->key, ((const struct feature *)b)->key);
}

/* Published features sorted by "distribution/E/k/R/T". Returns owned. */
static struct feature *read_features(int64_t *count) {
    static const char *const reals[] = {"active_experts", "assignments", "padded16",
                                        "padded32",       "padded64",    "padded128"};
    struct err err = {0};
    struct csv *csv = csv_read(published("derived/routing_features.csv.gz"), 1 << 28, &err);
    test_ok(csv != NULL, &err);
    *count = csv_rows(csv);
    struct feature *features = calloc((size_t)*count, sizeof *features);
    for (int64_t i = 0; i < *count; i++) {
        struct feature *f = &features[i];
        snprintf(f->key, sizeof f->key, "%s/%s/%s/%s/%s", csv_text(csv, i, 0), csv_text(csv, i, 1),
                 csv_text(csv, i, 2), csv_text(csv, i, 3), csv_text(csv, i, 4));
        double *const places[] = {&f->load.active,    &f->load.assignments, &f->load.padded[0],
                                  &f->load.padded[1], &f->load.padded[2],   &f->load.padded[3]};
        for (int j = 0; j < 6; j++)
            test_ok(csv_real(csv, i, csv_find(csv, reals[j]), 0, 1e12, places[j], &err), &err);
    }
    csv_free(csv);
    qsort(features, (size_t)*count, sizeof *features, compare_keys);
    return features;
}

static void use_features(struct timings *t, const struct feature *features, int64_t count) {
    int distribution = csv_find(t->csv, "distribution");
    for (int64_t i = 0; i < t->count; i++) {
        struct timing_row *row = &t->rows[i];
        struct feature key;
        snprintf(key.key, sizeof key.key, "%s/%d/%d/%d/%lld", csv_text(t->csv, i, distribution),
                 row->group.experts, row->group.topk, row->group.ranks, (long long)row->tokens);
        const struct feature *found =
            bsearch(&key, features, (size_t)count, sizeof key, compare_keys);
        assert_non_null(found);
        row->predicted_ms = layer_time_ms(&t->kernels[row->kernel].constants.layer, &row->shape,
                                          &found->load, (double)row->tokens);
    }
}

/* The constants are the published ones; so are the medians of all rows, to what the draws of the
 * power laws move them, if the formula and the loads are what they were fitted with. */
static void medians_equal_those_of_independently_drawn_loads(void **state) {
    (void)state;
    int64_t count;
    struct feature *features = read_features(&count);
    struct err err = {0};
    struct timings t;
    test_ok(timings_read(&t, published("open/moe_gemm.csv.gz"), 0, &err), &err);
    struct table *ours = timings_validate(&t, &err);
    test_ok(ours != NULL, &err);
    use_features(&t, features, count);
    struct table *theirs = timings_validate(&t, &err);
    test_ok(theirs != NULL, &err);
    int compared = 0, column = table_find(ours, "median_ape");
    int64_t rows = 0;
    for (int64_t i = 0; i < table_rows(ours); i++) {
        rows += (int64_t)table_number(ours, i, table_find(ours, "rows"));
        if (table_number(ours, i, table_find(ours, "rows_ok")) == 0) continue;
        if (strcmp(table_cell(ours, i, table_find(ours, "origin")), "held-out") != 0) continue;
        if (strncmp(table_cell(ours, i, 3), "w4a8", 4) == 0) continue; /* draws move these by 1 */
        double a = table_number(ours, i, column), b = table_number(theirs, i, column);
        compared++;
        if (!(fabs(a - b) <= 0.005))
            fail_msg("%s %s %s: %g, with published loads %g", table_cell(ours, i, 0),
                     table_cell(ours, i, 2), table_cell(ours, i, 4), a, b);
    }
    assert_true(compared > 100);
    assert_int_equal(rows, 341835);
    table_free(ours);
    table_free(theirs);
    timings_free(&t);
    free(features);
}

/* ---- EPLB */

static void eplb_evens_a_power_law_and_conserves_it(void **state) {
    (void)state;
    struct err err = {0};
    struct load_law law, placed;
    test_ok(load_law_parse("power_law_1.2", &law, &err), &err);
    test_ok(load_law_parse("power_law_1.2_eplb", &placed, &err), &err);
    assert_true(placed.eplb && !law.eplb && placed.kind == LOAD_POWER_LAW);
    for (int ranks = 1; ranks <= 32; ranks *= 2) {
        const struct load_group plain = {256, 8, ranks, 4096, 0}, packed = {256, 8, ranks, 4096, 0},
                                more = {256, 8, ranks, 4096, 288};
        struct rank_load a, b, c;
        test_ok(load_expect(&law, &plain, 8, &a, &err), &err);
        test_ok(load_expect(&placed, &packed, 8, &b, &err), &err);
        test_ok(load_expect(&placed, &more, 8, &c, &err), &err);
        double mean = 4096.0 * 8 / ranks;
        assert_true(b.assignments >= mean - 1e-6 && c.assignments >= mean - 1e-6);
        if (ranks == 1) test_near(c.assignments, mean, 1e-9);
        /* 32 more replicas: within 5 % of the mean; packing alone: never above the order given */
        assert_true(b.assignments <= a.assignments + 1e-6);
        assert_true(c.assignments < 1.05 * mean);
    }
    const struct load_group odd = {256, 8, 32, 4096, 257};
    struct rank_load load;
    assert_false(load_expect(&placed, &odd, 8, &load, &err));
    assert_non_null(strstr(err.text, "found 257 slots"));
}

static void wide_ep_tables_are_modelled_row_by_row(void **state) {
    (void)state;
    static const struct {
        const char *table, *gpu, *kernel, *version, *phase;
        double most;
    } bars[] = {
        {"moe_ep_trtllm", "B200_SXM", "wideep_compute_cutlass", "1.3.0rc10", "decode", 0.06},
        {"moe_ep_trtllm", "GB200", "wideep_compute_cutlass", "1.3.0rc10", "prefill", 0.06},
        {"moe_ep_trtllm", "H100_SXM", "wideep_compute_cutlass", "1.3.0rc10", "decode", 0.07},
        {"moe_ep_sglang", "H100_SXM", "context", "0.5.10", "decode", 0.036},
        {"moe_ep_sglang", "H100_SXM", "context", "0.5.10", "prefill", 0.04},
        {"moe_ep_sglang", "H100_SXM", "generation", "0.5.10", "decode", 0.034},
        {"moe_ep_sglang", "B200_SXM", "context", "0.5.10", "prefill", 0.04}};
    static const char *const tables[] = {"moe_ep_trtllm", "moe_ep_sglang"};
    for (size_t f = 0; f < 2; f++) {
        char name[64];
        snprintf(name, sizeof name, "open/%s.csv.gz", tables[f]);
        struct err err = {0};
        struct timings t;
        test_ok(timings_read(&t, published(name), 0, &err), &err);
        struct table *v = timings_validate(&t, &err);
        test_ok(v != NULL, &err);
        int met = 0, wanted = 0;
        for (size_t b = 0; b < sizeof bars / sizeof *bars; b++)
            wanted += strcmp(bars[b].table, tables[f]) == 0;
        for (int64_t i = 0; i < table_rows(v); i++) {
            test_near(table_number(v, i, table_find(v, "unmodelled")), 0, 0);
            for (size_t b = 0; b < sizeof bars / sizeof *bars; b++) {
                if (strcmp(bars[b].table, tables[f]) || strcmp(table_cell(v, i, 0), bars[b].gpu) ||
                    strcmp(table_cell(v, i, 2), bars[b].kernel) ||
                    strcmp(table_cell(v, i, 4), bars[b].phase) ||
                    strcmp(table_cell(v, i, table_find(v, "version")), bars[b].version))
                    continue;
                double ape = table_number(v, i, table_find(v, "median_ape"));
                if (ape > bars[b].most) fail_msg("bar %zu: found %g", b, ape);
                met++;
            }
        }
        assert_int_equal(met, wanted);
        table_free(v);
        timings_free(&t);
    }
}

/* ---- constants that have not seen the rows */

/* One half of the wide-EP table of one GPU, every second row; times changed by `change`. */
static void write_half(const char *path, int half, double (*change)(int64_t row)) {
    struct err err = {0};
    struct csv *csv = csv_read(published("open/moe_ep_sglang.csv.gz"), 1 << 28, &err);
    test_ok(csv != NULL, &err);
    struct str text = {0};
    static const char *const names[] = {"gpu",         "version",      "phase",      "quant",
                                        "hidden_size", "inter_size",   "topk",       "num_experts",
                                        "moe_ep",      "distribution", "num_tokens", "latency_ms"};
    for (int c = 0; c < 12; c++) str_printf(&text, c ? ",%s" : "%s", names[c]);
    for (int64_t i = 0; i < csv_rows(csv); i++) {
        double ms;
        if (strcmp(csv_text(csv, i, 0), "B200_SXM") != 0 || i / 2 % 2 != half) continue;
        test_ok(csv_real(csv, i, csv_find(csv, "latency_ms"), 0, 1e9, &ms, &err), &err);
        str_puts(&text, "\n");
        for (int c = 0; c < 11; c++)
            str_printf(&text, "%s,", csv_text(csv, i, csv_find(csv, names[c])));
        str_printf(&text, "%.17g", ms * (change ? change(i) : 1));
    }
    str_puts(&text, "\n");
    test_ok(file_write(path, text.data, text.len, &err), &err);
    str_free(&text);
    csv_free(csv);
}

static double uniform_of(int64_t row) {
    struct rng rng;
    rng_init(&rng, 77 + (uint64_t)row);
    return rng_uniform(&rng);
}
static double noise(int64_t row) {
    struct rng rng;
    rng_init(&rng, 99 + (uint64_t)row);
    return exp(0.05 * rng_normal(&rng));
}
static double outliers(int64_t row) { return uniform_of(row) < 0.1 ? 3 : 1; }

static void a_fit_of_one_half_predicts_the_other_under_noise_and_outliers(void **state) {
    (void)state;
    char seen[1200], unseen[1200];
    const char *where = test_folder("halves");
    snprintf(seen, sizeof seen, "%s/seen.csv", where);
    snprintf(unseen, sizeof unseen, "%s/unseen.csv", where);
    write_half(unseen, 1, NULL);
    static double (*const changes[])(int64_t) = {NULL, noise, outliers};
    double clean[8];
    for (int change = 0; change < 3; change++) {
        write_half(seen, 0, changes[change]);
        struct err err = {0};
        struct timings a, b;
        test_ok(timings_read(&a, seen, 0, &err), &err);
        test_ok(timings_read(&b, unseen, 0, &err), &err);
        test_ok(refit_on(&b, &a, NULL, 0, &err), &err);
        struct table *v = timings_validate(&b, &err);
        test_ok(v != NULL, &err);
        assert_int_equal(table_rows(v), 4);
        for (int64_t i = 0; i < 4; i++) {
            double ape = table_number(v, i, table_find(v, "median_ape"));
            assert_string_equal(table_cell(v, i, table_find(v, "origin")), "refitted");
            if (change == 0) clean[i] = ape;
            if (!(clean[i] < 0.055) || ape > clean[i] + 0.012)
                fail_msg("change %d, row %d: %g, clean %g", change, (int)i, ape, clean[i]);
        }
        table_free(v);
        timings_free(&a);
        timings_free(&b);
    }
}

static void left_out_groups_get_constants_of_the_others(void **state) {
    (void)state;
    struct err err = {0};
    struct timings t;
    char path[1200];
    snprintf(path, sizeof path, "%s/half.csv", test_folder("left_out"));
    write_half(path, 0, NULL);
    test_ok(timings_read(&t, path, 0, &err), &err);
    double *within = malloc((size_t)t.count * sizeof *within);
    test_ok(refit_on(&t, &t, NULL, 1, &err), &err);
    for (int64_t i = 0; i < t.count; i++) within[i] = t.rows[i].predicted_ms;
    test_ok(refit_left_out(&t, LEFT_OUT_RANKS, NULL, 1, &err), &err);
    int64_t differ = 0;
    for (int64_t i = 0; i < t.count; i++) {
        assert_true(isfinite(t.rows[i].predicted_ms));
        differ += t.rows[i].predicted_ms != within[i];
        within[i] = t.rows[i].predicted_ms;
    }
    assert_true(differ == t.count); /* every row was left out of its own fit */
    test_ok(refit_left_out(&t, LEFT_OUT_RANKS, NULL, 3, &err), &err);
    for (int64_t i = 0; i < t.count; i++) assert_true(t.rows[i].predicted_ms == within[i]);
    /* one shape only: nothing is left to fit, and no row is dropped */
    test_ok(refit_left_out(&t, LEFT_OUT_SHAPE, NULL, 1, &err), &err);
    struct table *v = timings_validate(&t, &err);
    test_ok(v != NULL, &err);
    for (int64_t i = 0; i < table_rows(v); i++)
        test_near(table_number(v, i, table_find(v, "unmodelled")),
                  table_number(v, i, table_find(v, "rows")), 0);
    table_free(v);
    free(within);
    timings_free(&t);
}

static void constants_carry_over_to_another_gpu(void **state) {
    (void)state;
    struct err err = {0};
    struct timings t;
    test_ok(timings_read(&t, published("open/moe_ep_sglang.csv.gz"), 0, &err), &err);
    test_ok(refit_carry(&t, "B200_SXM", &err), &err);
    struct table *v = timings_validate(&t, &err);
    test_ok(v != NULL, &err);
    for (int64_t i = 0; i < table_rows(v); i++) {
        bool source = strcmp(table_cell(v, i, 0), "B200_SXM") == 0;
        double ape = table_number(v, i, table_find(v, "median_ape"));
        assert_true(source ? isnan(ape) : isfinite(ape));
        if (strcmp(table_cell(v, i, 0), "GB200") == 0 &&
            strcmp(table_cell(v, i, 2), "generation") == 0)
            assert_true(ape < 0.09);
    }
    table_free(v);
    assert_false(refit_carry(&t, "B300", &err));
    timings_free(&t);
}

/* ---- published systems */

static void published_systems_are_bracketed_without_tuning(void **state) {
    (void)state;
    struct err err = {0};
    struct table *t = published_study(&err);
    test_ok(t != NULL, &err);
    int ratio = table_find(t, "ratio"), overlap = table_find(t, "ratio_overlap"), balanced = 0;
    for (int64_t i = 0; i < table_rows(t); i++) {
        double serial_ms = table_number(t, i, table_find(t, "experts_ms")) +
                           table_number(t, i, table_find(t, "comm_ms")) +
                           table_number(t, i, table_find(t, "rest_ms"));
        test_near(table_number(t, i, table_find(t, "predicted")),
                  8e3 * table_number(t, i, table_find(t, "tokens_per_rank")) / serial_ms, 1e-9);
        assert_true(table_number(t, i, overlap) > table_number(t, i, ratio));
        assert_true(table_number(t, i, ratio) < 1.3 && table_number(t, i, overlap) > 1);
        assert_true(*table_cell(t, i, table_find(t, "source")) != '\0');
        if (strstr(table_cell(t, i, table_find(t, "load")), "balanced") == NULL) continue;
        if (strcmp(table_cell(t, i, 1), "prefill") != 0) continue;
        test_near(table_number(t, i, overlap), 1, 0.1); /* two batches in flight, even load */
        balanced++;
    }
    assert_int_equal(balanced, 2);
    table_free(t);
}

int test_timings(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(medians_equal_those_of_independently_drawn_loads),
        cmocka_unit_test(eplb_evens_a_power_law_and_conserves_it),
        cmocka_unit_test(wide_ep_tables_are_modelled_row_by_row),
        cmocka_unit_test(a_fit_of_one_half_predicts_the_other_under_noise_and_outliers),
        cmocka_unit_test(left_out_groups_get_constants_of_the_others),
        cmocka_unit_test(constants_carry_over_to_another_gpu),
        cmocka_unit_test(published_systems_are_bracketed_without_tuning)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
