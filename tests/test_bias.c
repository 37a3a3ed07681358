/* test_bias.c - the bias rules against their formulas written out, and what they do to the load */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/bias.h"
#include "router/route.h"
#include "sim/auto_rate.h"
#include "sim/rate.h"
#include "tests/support_replay.h"
#include "tests/test.h"

enum { E = 12, T = 96, K = 3 };

struct world {
    struct rng rng;
    float scores[T * E];
    int64_t counts[E];
    double bias[E], state[E], expected[E];
    float scratch[2 * T];
    struct bias_batch batch;
};

static void world_init(struct world *w, uint64_t seed) {
    memset(w, 0, sizeof *w);
    rng_init(&w->rng, seed);
    for (int e = 0; e < E; e++) w->bias[e] = 0.02 * rng_normal(&w->rng);
    for (int i = 0; i < T * E; i++)
        w->scores[i] = (float)(1 / (1 + exp(-rng_normal(&w->rng) - 0.2 * (i % E))));
    for (int e = 0; e < E; e++) w->counts[e] = (int64_t)rng_below(&w->rng, 40);
    w->counts[0] = K * T;
    for (int e = 1; e < E; e++) w->counts[0] -= w->counts[e];
    w->batch = (struct bias_batch){.experts = E,
                                   .topk = K,
                                   .tokens = T,
                                   .counts = w->counts,
                                   .scores = w->scores,
                                   .rate = 0.25,
                                   .state = w->state,
                                   .scratch = w->scratch};
    memcpy(w->expected, w->bias, sizeof w->bias);
}

static const struct bias_rule *rule(const char *name) {
    struct err err;
    const struct bias_rule *found = bias_rule_find(name, &err);
    test_ok(found, &err);
    return found;
}

static double sign(double x) { return (x > 0) - (x < 0); }
static const double m = (double)K * T / E;

/* One step of each counting rule, from the formula in the table. */
static void formula(const char *name, struct world *w, double u) {
    double step[E], mean = 0;
    for (int e = 0; e < E; e++) {
        double n = (double)w->counts[e];
        step[e] = u * sign(m - n);
        if (strcmp(name, "proportional") == 0) step[e] = u * (m - n) / m;
        if (strcmp(name, "longcat") == 0) step[e] = u * (1.0 / E - n / (K * T));
        if (strcmp(name, "smebu") == 0) step[e] = u * tanh(2 * (m - n) / m);
        mean += step[e] / E;
    }
    for (int e = 0; e < E; e++) {
        if (strcmp(name, "smebu") == 0 || strcmp(name, "centred-sign") == 0) step[e] -= mean;
        if (strcmp(name, "smebu") == 0) step[e] = w->state[e] / 2 + step[e] / 2;
        w->expected[e] += step[e];
    }
}

static void counting_rules_follow_their_formulas(void **state) {
    static const char *const names[] = {"sign",           "centred-sign", "proportional",
                                        "multiplicative", "smebu",        "longcat"};
    (void)state;
    for (uint64_t seed = 1; seed < 50; seed++) {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            struct world w;
            world_init(&w, seed);
            for (int e = 0; e < E; e++) w.state[e] = 0.01 * e;
            formula(names[i], &w, w.batch.rate);
            rule(names[i])->update(&w.batch, w.bias);
            for (int e = 0; e < E; e++)
                if (fabs(w.bias[e] - w.expected[e]) > 1e-6)
                    fail_msg("%s: expert %d of load %d: found %.9g, expected %.9g", names[i], e,
                             (int)w.counts[e], w.bias[e], w.expected[e]);
        }
    }
}

static int falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static double nth(double *x, int count, int n) {
    qsort(x, (size_t)count, sizeof *x, falling);
    return x[n];
}

/* One round of prices by sorting: p[T] from b, then minus b[E] from p. */
static void prices(const struct world *w, double least, double *b) {
    double p[T], x[T];
    int q = K * T / E;
    for (int t = 0; t < T; t++) {
        for (int e = 0; e < E; e++) x[e] = (double)w->scores[t * E + e] + b[e];
        p[t] = fmax(least, nth(x, E, K));
    }
    for (int e = 0; e < E; e++) {
        for (int t = 0; t < T; t++) x[t] = (double)w->scores[t * E + e] - p[t];
        b[e] = -fmax(least, nth(x, T, q));
    }
}

static void dual_rules_price_as_sorting_does(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed < 30; seed++) {
        struct world w;
        double b[E], mean = 0;
        world_init(&w, seed);
        memcpy(b, w.bias, sizeof b);
        prices(&w, -INFINITY, b);
        for (int e = 0; e < E; e++) mean += b[e] / E;
        rule("quantile")->update(&w.batch, w.bias);
        for (int e = 0; e < E; e++)
            test_near(w.bias[e], 0.75 * w.expected[e] + 0.25 * (b[e] - mean), 1e-6);

        world_init(&w, seed);
        memcpy(b, w.bias, sizeof b);
        for (int round = 0; round < 4; round++) prices(&w, 0, b);
        rule("bip")->update(&w.batch, w.bias);
        for (int e = 0; e < E; e++) test_near(w.bias[e], b[e], 1e-5);
    }
}

static double maxvio_under(const struct world *w, const double *bias) {
    int64_t counts[E] = {0}, most = 0;
    for (int t = 0; t < T; t++) {
        bool taken[E] = {false};
        for (int i = 0; i < K; i++) {
            int best = -1;
            for (int e = 0; e < E; e++) {
                double x = (double)w->scores[t * E + e] + bias[e];
                if (!taken[e] && (best < 0 || x > (double)w->scores[t * E + best] + bias[best]))
                    best = e;
            }
            taken[best] = true;
            counts[best]++;
        }
    }
    for (int e = 0; e < E; e++) most = counts[e] > most ? counts[e] : most;
    return (double)most / m - 1;
}

static void dual_prices_balance_the_batch_they_saw(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct world w;
        const double none[E] = {0};
        world_init(&w, seed);
        memset(w.bias, 0, sizeof w.bias);
        w.batch.rate = 1;
        double before = maxvio_under(&w, none);
        for (int round = 0; round < 10; round++) rule("quantile")->update(&w.batch, w.bias);
        double after = maxvio_under(&w, w.bias);
        assert_true(before > 0.5);
        assert_true(after < 0.35 && after < before / 2);
    }
}

static void nothing_is_priced_where_everything_is_chosen(void **state) {
    struct world w;
    (void)state;
    world_init(&w, 1);
    w.batch.topk = E;
    rule("quantile")->update(&w.batch, w.bias);
    rule("bip")->update(&w.batch, w.bias);
    assert_memory_equal(w.bias, w.expected, sizeof w.bias);
}

/* ---- in a replay */

static void every_rule_lowers_the_violation(void **state) {
    static const char *const names[] = {"none",         "sign",           "centred-sign",
                                        "proportional", "multiplicative", "smebu",
                                        "longcat",      "quantile",       "bip"};
    static const char *const rates[] = {"0.02"};
    enum { COUNT = sizeof names / sizeof *names, TOKENS = 6000, EXPERTS = 16 };
    const int64_t batch = 200;
    struct rng rng;
    struct err err;
    struct kept kept, again;
    struct variant_lists lists = {.rates = {rates, 1}, .batch_tokens = &batch, .batch_count = 1};
    struct replay_options options = {.threads = 1}, other = {.threads = 2, .chunk_tokens = 33};
    (void)state;
    rng_init(&rng, 12);
    float *logits = random_logits(&rng, TOKENS, EXPERTS, 1.5);
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = (const float *const *)&logits};
    struct source source;
    test_ok(gate_parse("sigmoid,topk=4,norm=sum", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    lists.bias_rules = (struct texts){names, COUNT};
    kept_run(&kept, &lists, &source, &options);
    kept_run(&again, &lists, &source, &other);
    for (int i = 0; i < COUNT; i++) {
        assert_true(kept.row[i].digest == again.row[i].digest);
        if (i == 0) continue;
        /* longcat's error is a share of all choices, E times smaller; quantile's rate averages */
        bool slow = strcmp(names[i], "longcat") == 0 || strcmp(names[i], "quantile") == 0;
        double enough = slow ? 0.95 : 0.8;
        if (kept.row[i].m.maxvio_batch > enough * kept.row[0].m.maxvio_batch)
            fail_msg("%s: found %g, none has %g", names[i], kept.row[i].m.maxvio_batch,
                     kept.row[0].m.maxvio_batch);
        /* weights are of the unbiased scores: normalised, they add to 1 a token */
        double weight = 0;
        for (int e = 0; e < EXPERTS; e++) weight += kept.row[i].weight[e];
        test_near(weight, TOKENS, 1e-6);
    }
    assert_int_equal(kept.set.variant[2].same_as, 2); /* centring moves no choice */
    kept_free(&again);
    kept_free(&kept);
    free(logits);
}

static void schedules_are_read_and_followed(void **state) {
    static const char *const items[] = {"0.001", "0.01@0", "0.002@50%", "0@80%", "auto", "3"};
    struct rate_schedule schedule[6];
    char text[RATE_TEXT_BYTES];
    struct err err;
    int count;
    (void)state;
    test_ok(rate_parse(items, 6, schedule, &count, &err), &err);
    assert_int_equal(count, 4);
    assert_int_equal(schedule[1].pieces, 3);
    assert_true(rate_at(&schedule[1], 0) == 0.01 && rate_at(&schedule[1], 0.49) == 0.01);
    assert_true(rate_at(&schedule[1], 0.5) == 0.002 && rate_at(&schedule[1], 0.9) == 0);
    assert_true(schedule[2].automatic && !schedule[3].automatic);
    rate_print(&schedule[1], text);
    assert_string_equal(text, "0.01@0,0.002@50%,0@80%");
    rate_print(&schedule[0], text);
    assert_string_equal(text, "0.001");
}

/* With the rate 0 for the second half, the bias stays what it was at half time. */
static void a_rate_of_zero_freezes_the_bias(void **state) {
    static const char *const names[] = {"sign"};
    static const char *const steps[] = {"0.01@0", "0@51%"}, *const constant[] = {"0.01"};
    enum { TOKENS = 1000, EXPERTS = 8 };
    const int64_t batch = 100;
    struct rng rng;
    struct err err;
    struct kept half, stepped;
    struct replay_options options = {.threads = 1};
    struct variant_lists lists = {
        .bias_rules = {names, 1}, .rates = {steps, 2}, .batch_tokens = &batch, .batch_count = 1};
    (void)state;
    rng_init(&rng, 13);
    float *logits = random_logits(&rng, TOKENS, EXPERTS, 1.5);
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = (const float *const *)&logits};
    struct source source;
    test_ok(gate_parse("sigmoid,topk=2", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    kept_run(&stepped, &lists, &source, &options);
    lists.rates = (struct texts){constant, 1};
    source_of_arrays(&source, &arrays, TOKENS / 2, &layer, 1);
    kept_run(&half, &lists, &source, &options);
    assert_int_equal(stepped.set.count, 1);
    assert_memory_equal(stepped.row[0].bias, half.row[0].bias, EXPERTS * sizeof(double));
    kept_free(&half);
    kept_free(&stepped);
    free(logits);
}

static void multiplying_needs_scores_that_are_positive(void **state) {
    static const char *const names[] = {"multiplicative"}, *const gates[] = {"gpt-oss", "native"};
    static const float captured[8];
    struct source_layer layer = {.layer = 0, .experts = 8, .bias = captured};
    struct source source = {.tokens = 100, .layers = 1, .layer = &layer};
    struct variant_lists lists = {.bias_rules = {names, 1}, .gates = {gates, 1}};
    struct variant_set set;
    struct err err;
    (void)state;
    test_ok(gate_parse("sigmoid,bias,topk=2", NULL, &layer.native, &err), &err);
    assert_false(variant_set_build(&set, &lists, &source, &err));
    assert_non_null(strstr(err.text, "scores that can be negative"));
    variant_set_free(&set);
    lists.gates = (struct texts){gates + 1, 1};
    lists.start = START_CAPTURED;
    assert_false(variant_set_build(&set, &lists, &source, &err));
    assert_non_null(strstr(err.text, "a factor of 1"));
    variant_set_free(&set);
}

/* The rate found is at least as good as any of a fine sweep, to what 2 % of a rate can matter. */
static void auto_finds_the_best_rate_of_a_sweep(void **state) {
    static const char *const names[] = {"sign"}, *const best[] = {"auto"};
    enum { TOKENS = 4000, EXPERTS = 16, SWEEP = 25 };
    static char text[SWEEP][32];
    const char *rates[SWEEP];
    const int64_t batch = 200;
    struct rng rng;
    struct err err;
    struct kept swept, found;
    struct replay_options options = {.threads = 2};
    struct variant_lists lists = {
        .bias_rules = {names, 1}, .batch_tokens = &batch, .batch_count = 1};
    (void)state;
    rng_init(&rng, 14);
    float *logits = random_logits(&rng, TOKENS, EXPERTS, 1.5);
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = (const float *const *)&logits};
    struct source source;
    test_ok(gate_parse("sigmoid,topk=4", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    for (int i = 0; i < SWEEP; i++) {
        snprintf(text[i], sizeof text[i], "%.9g", pow(10, -4 + 4.0 * i / (SWEEP - 1)));
        rates[i] = text[i];
    }
    lists.rates = (struct texts){rates, SWEEP};
    kept_run(&swept, &lists, &source, &options);
    double smallest = INFINITY;
    for (int i = 0; i < SWEEP; i++) smallest = fmin(smallest, swept.row[i].m.maxvio_batch);
    lists.rates = (struct texts){best, 1};
    found = (struct kept){0};
    test_ok(variant_set_build(&found.set, &lists, &source, &err), &err);
    test_ok(auto_rates(&found.set, &source, &options, NULL, &err), &err);
    double rate = found.set.variant[0].rate;
    assert_true(rate > 1e-3 && rate < 1);
    assert_non_null(strstr(found.set.variant[0].label, "sign auto="));
    assert_non_null(strstr(str_text(&found.set.notes), "golden section"));
    variant_set_free(&found.set);
    snprintf(text[0], sizeof text[0], "%.17g", rate);
    lists.rates = (struct texts){rates, 1};
    kept_run(&found, &lists, &source, &options);
    assert_true(found.row[0].m.maxvio_batch <= smallest * 1.02);
    assert_true(swept.row[0].m.maxvio_batch > 1.5 * smallest);
    kept_free(&found);
    kept_free(&swept);
    free(logits);
}

/* A load that swings with period 2 around balance after a first batch far off. */
static void dynamics_of_known_curves(void **state) {
    enum { N = 40 };
    double maxvio[N], response[N];
    struct dynamics d;
    (void)state;
    for (int i = 0; i < N; i++) {
        response[i] = exp(-i / 3.0) * cos(i);
        maxvio[i] = 0.2 + 2 * exp(-i / 3.0);
    }
    const struct dynamics_tail tail = {.pairs = 100, .sign_changes = 100, .variance = 0.02};
    dynamics_of(maxvio, response, N, &tail, &d);
    assert_true(d.batches == N && d.start == 2.2);
    test_near(d.level, 0.2, 1e-2);
    assert_true(d.settling_batches == 7); /* 2 exp(-7/3) < 0.2 < 2 exp(-6/3) */
    test_near(d.overshoot, -exp(-1) * cos(3), 1e-12);
    assert_true(d.period == 2 && d.amplitude == 0.2);

    for (int i = 0; i < N; i++) maxvio[i] = 2 - 0.04 * i; /* too slow: still falling */
    dynamics_of(maxvio, response, N, &tail, &d);
    assert_true(isnan(d.settling_batches));
    dynamics_of(maxvio, response, 3, &tail, &d);
    assert_true(isnan(d.period) && d.start == 2);
}

/* The hand example of a turned choice: b flips the two experts' load every batch. */
static void too_high_a_rate_turns_the_load_over_each_batch(void **state) {
    static const char *const names[] = {"sign"}, *const rates[] = {"0.75"};
    enum { TOKENS = 40, EXPERTS = 2 };
    float logits[TOKENS * EXPERTS];
    const float *rows = logits;
    const int64_t batch = 2;
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = &rows};
    struct source source;
    struct kept kept;
    struct err err;
    struct variant_lists lists = {
        .bias_rules = {names, 1}, .rates = {rates, 1}, .batch_tokens = &batch, .batch_count = 1};
    struct replay_options options = {.threads = 1};
    (void)state;
    for (int t = 0; t < TOKENS; t++) {
        logits[2 * t] = 1;
        logits[2 * t + 1] = 0;
    }
    test_ok(gate_parse("identity,topk=1", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    kept_run(&kept, &lists, &source, &options);
    const struct dynamics *d = &kept.row[0].dynamics;
    assert_true(d->period == 2);
    assert_true(d->overshoot == 1);          /* all to the other side */
    test_near(d->amplitude, sqrt(2), 1e-12); /* x = 1, -1, 1, ... */
    assert_true(d->level == 1);
    kept_free(&kept);
}

int test_bias(void);
int test_bias(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counting_rules_follow_their_formulas),
        cmocka_unit_test(dual_rules_price_as_sorting_does),
        cmocka_unit_test(dual_prices_balance_the_batch_they_saw),
        cmocka_unit_test(nothing_is_priced_where_everything_is_chosen),
        cmocka_unit_test(every_rule_lowers_the_violation),
        cmocka_unit_test(schedules_are_read_and_followed),
        cmocka_unit_test(a_rate_of_zero_freezes_the_bias),
        cmocka_unit_test(auto_finds_the_best_rate_of_a_sweep),
        cmocka_unit_test(dynamics_of_known_curves),
        cmocka_unit_test(too_high_a_rate_turns_the_load_over_each_batch),
        cmocka_unit_test(multiplying_needs_scores_that_are_positive),
    };
    return cmocka_run_group_tests_name("bias", tests, NULL, NULL);
}
