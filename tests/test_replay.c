/* test_replay.c - the replay against a slow one written from the formulas, and its refusals */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support_replay.h"
#include "tests/support_slow.h"
#include "tests/test.h"

/* One random world: a layer of logits with a native gate, and one variant to be run on it. */
struct world {
    struct rng rng;
    struct slow_setup slow;
    float bias[SLOW_EXPERTS];
    float *logits;
    int64_t *order;
    char gate[256], native[256];
    const char *rule, *gate_item;
    char rate_text[40];
    const char *rate;
    int64_t batch, ranks;
    struct variant_lists lists;
    struct source_layer layer;
    struct source_arrays arrays;
    struct source source;
};

static void world_gates(struct world *w, int experts) {
    static const char *const rules[] = {"none", "frozen", "sign", "sign"};
    bool biased = rng_below(&w->rng, 2);
    w->rule = rules[rng_below(&w->rng, 4)];
    if (strcmp(w->rule, "frozen") == 0) biased = true;
    w->slow.native = slow_gate_random(&w->rng, experts, biased);
    w->slow.gate = slow_gate_random(&w->rng, experts, strcmp(w->rule, "none") != 0);
    if (rng_below(&w->rng, 3) == 0) slow_gate_cut(&w->rng, &w->slow.gate);
    w->slow.captured = biased ? w->bias : NULL;
    w->slow.from_captured = strcmp(w->rule, "frozen") == 0 ||
                            (biased && strcmp(w->rule, "sign") == 0 && rng_below(&w->rng, 2));
    w->slow.rate = strcmp(w->rule, "sign") == 0 ? 0.001 * (double)(1 + rng_below(&w->rng, 40)) : 0;
    for (int e = 0; e < experts; e++) w->bias[e] = (float)(0.1 * rng_normal(&w->rng));
    slow_gate_text(&w->slow.gate, w->gate, sizeof w->gate);
    slow_gate_text(&w->slow.native, w->native, sizeof w->native);
}

static void world_init(struct world *w, uint64_t seed) {
    static const int sizes[] = {4, 8, 12, 16, 24, 64};
    struct err err;
    memset(w, 0, sizeof *w);
    rng_init(&w->rng, seed);
    int experts = sizes[rng_below(&w->rng, 6)];
    int64_t tokens = 1 + (int64_t)rng_below(&w->rng, 1500);
    world_gates(w, experts);
    w->logits = random_logits(&w->rng, tokens, experts, 0.5 + 2 * rng_uniform(&w->rng));
    if (rng_below(&w->rng, 3) == 0) {
        w->order = replay_shuffle(tokens, seed, &err);
        assert_non_null(w->order);
    }
    w->batch = 1 + (int64_t)rng_below(&w->rng, 300);
    w->ranks = experts / (1 << rng_below(&w->rng, 3));
    w->slow.experts = experts;
    w->slow.tokens = tokens;
    w->slow.batch_tokens = w->batch;
    w->slow.ranks = (int)w->ranks;
    w->slow.logits = w->logits;
    w->slow.order = w->order;
    snprintf(w->rate_text, sizeof w->rate_text, "%.17g", w->slow.rate);
    w->rate = w->rate_text;
    w->gate_item = w->gate;
    w->lists = (struct variant_lists){.gates = {&w->gate_item, 1},
                                      .bias_rules = {&w->rule, 1},
                                      .batch_tokens = &w->batch,
                                      .batch_count = 1,
                                      .ranks = &w->ranks,
                                      .ranks_count = 1};
    w->lists.start = w->slow.from_captured ? START_CAPTURED : START_ZERO;
    if (w->slow.rate > 0) w->lists.rates = (struct texts){&w->rate, 1};
    w->layer = (struct source_layer){.layer = 3, .experts = experts, .bias = w->slow.captured};
    test_ok(gate_parse(w->native, NULL, &w->layer.native, &err), &err);
    w->arrays.logits = (const float *const *)&w->logits;
    source_of_arrays(&w->source, &w->arrays, tokens, &w->layer, 1);
}

static void world_free(struct world *w) {
    free(w->logits);
    free(w->order);
}

static void same_measures(const struct kept_row *row, const struct slow_result *slow) {
    const struct result_layer *m = &row->m;
    test_near(m->maxvio_global, slow->maxvio_global, 1e-12);
    test_near(m->maxvio_batch, slow->maxvio_batch, 1e-12);
    test_near(m->cv, slow->cv, 1e-9);
    test_near(m->gini, slow->gini, 1e-12);
    test_near(m->entropy, slow->entropy, 1e-12);
    test_near((double)m->load_min, slow->load_min, 0);
    test_near((double)m->load_max, slow->load_max, 0);
    test_near((double)m->ties, slow->ties, 0);
    test_near((double)m->group_escapes, slow->escapes, 0);
    test_near(m->agreement, slow->agreement, 1e-12);
    test_near(m->mass_retained, slow->mass, 1e-6);
    test_near(m->rank_maxvio, slow->rank_maxvio, 1e-12);
    test_near(m->efficiency, slow->efficiency, 1e-12);
    test_near(m->experts_mean, slow->experts_mean, 1e-12);
    test_near(m->unrouted, slow->unrouted, 1e-9);
}

static void same_rows(const struct kept_row *row, const struct slow_result *slow, int experts) {
    same_measures(row, slow);
    for (int e = 0; e < experts; e++) {
        test_near((double)row->tokens[e], slow->tokens[e], 0);
        assert_true(fabs(row->weight[e] - slow->weight[e]) <= 2e-6 * (1 + slow->weight[e]));
        if (row->has_bias) test_near(row->bias[e], slow->bias[e], 1e-12);
    }
    assert_int_equal(row->batches, slow->batches);
    for (int b = 0; b < slow->batches; b++) {
        test_near(row->maxvio[b], slow->batch_maxvio[b], 1e-12);
        test_near(row->efficiency[b], slow->batch_efficiency[b], 1e-12);
    }
}

static void replay_agrees_with_a_slow_one_on_random_gates(void **state) {
    static struct slow_result slow;
    int compared = 0, near_ties = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct world w;
        struct kept kept;
        struct replay_options options = {.threads = 1, .chunk_tokens = 1 + (int64_t)(seed % 97)};
        world_init(&w, seed);
        options.order = w.order;
        slow_replay(&w.slow, &slow);
        if (slow.margin < 5e-7) {
            near_ties++;
        } else {
            kept_run(&kept, &w.lists, &w.source, &options);
            same_rows(&kept.row[0], &slow, w.slow.experts);
            kept_free(&kept);
            compared++;
        }
        world_free(&w);
    }
    printf("  %d worlds compared, %d left out for near ties\n", compared, near_ties);
    assert_in_range(near_ties, 0, 300);
}

/* Logits on a coarse grid tie exactly in both arithmetics, as bf16 logits do. */
static void replay_counts_ties_at_the_last_place(void **state) {
    enum { TOKENS = 3, EXPERTS = 4 };
    const float logits[TOKENS * EXPERTS] = {1, 1, 1, 0, 3, 2, 1, 0, 2, 2, 0, 0};
    const float *rows = logits;
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = &rows};
    struct source source;
    struct kept kept;
    struct err err;
    const int64_t batch = 2;
    struct variant_lists lists = {.batch_tokens = &batch, .batch_count = 1};
    struct replay_options options = {.threads = 1};
    (void)state;
    test_ok(gate_parse("softmax,topk=2", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    kept_run(&kept, &lists, &source, &options);
    assert_int_equal(kept.row[0].m.ties, 1);
    const int64_t expected[] = {3, 3, 0, 0};
    assert_memory_equal(kept.row[0].tokens, expected, sizeof expected);
    assert_true(kept.row[0].m.maxvio_global == 1); /* 3 / 1.5 - 1 */
    assert_true(kept.row[0].m.maxvio_batch == 1);  /* the full batch only */
    assert_int_equal(kept.row[0].batches, 2);
    assert_int_equal(kept.row[0].batch_tokens[1], 1);
    assert_true(kept.row[0].m.agreement == 1 && kept.row[0].m.mass_retained == 1);
    kept_free(&kept);
}

/* Three batches by hand: expert 0 always wins until the bias has turned the choice. */
static void sign_rule_acts_from_the_next_batch(void **state) {
    enum { TOKENS = 6, EXPERTS = 2 };
    float logits[TOKENS * EXPERTS];
    const float *rows = logits;
    const char *rule = "sign";
    const char *rate = "0.75";
    const int64_t batch = 2, ranks = 2;
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = &rows};
    struct source source;
    struct kept kept;
    struct err err;
    struct variant_lists lists = {.bias_rules = {&rule, 1},
                                  .rates = {&rate, 1},
                                  .batch_tokens = &batch,
                                  .batch_count = 1,
                                  .ranks = &ranks,
                                  .ranks_count = 1};
    struct replay_options options = {.threads = 1};
    (void)state;
    for (int t = 0; t < TOKENS; t++) {
        logits[2 * t] = 1;
        logits[2 * t + 1] = 0;
    }
    test_ok(gate_parse("identity,topk=1", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    kept_run(&kept, &lists, &source, &options);
    /* batch 0: expert 0; b = (-.75, .75), 0.25 < 0.75: batch 1: expert 1; b = (0, 0): expert 0 */
    assert_int_equal(kept.row[0].tokens[0], 4);
    assert_int_equal(kept.row[0].tokens[1], 2);
    assert_true(kept.row[0].bias[0] == -0.75 && kept.row[0].bias[1] == 0.75);
    assert_true(kept.row[0].m.maxvio_batch == 1);
    assert_true(kept.row[0].m.efficiency == 0.5);
    test_near(kept.row[0].m.agreement, 4.0 / 6, 1e-15);
    kept_free(&kept);
}

/* ---- the product of lists */

static void product_numbers_variants_with_the_last_list_fastest(void **state) {
    static const char *const gates[] = {"native", "native,topk=1"};
    static const char *const scores[] = {"softmax", "sigmoid"};
    static const char *const rules[] = {"none", "sign"};
    static const char *const rates[] = {"0.001", "0.01"};
    const int64_t batches[] = {64, 128};
    struct source_layer layer = {.layer = 0, .experts = 8};
    struct source source = {.tokens = 1000, .layers = 1, .layer = &layer};
    struct variant_set set;
    struct err err;
    struct variant_lists lists = {.gates = {gates, 2},
                                  .scores = {scores, 2},
                                  .bias_rules = {rules, 2},
                                  .rates = {rates, 2},
                                  .batch_tokens = batches,
                                  .batch_count = 2};
    (void)state;
    test_ok(gate_parse("softmax,topk=2", NULL, &layer.native, &err), &err);
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    assert_int_equal(set.count, 2 * 2 * (1 + 2) * 2); /* `none` has no rates */
    assert_string_equal(set.variant[0].gate, "softmax,topk=2,norm=none");
    assert_string_equal(set.variant[0].rule, "none");
    assert_true(isnan(set.variant[0].rate) && set.variant[1].batch_tokens == 128);
    assert_string_equal(set.variant[2].rule, "sign");
    assert_string_equal(set.variant[2].gate, "softmax,bias,topk=2,norm=none");
    assert_true(set.variant[2].rate == 0.001 && set.variant[4].rate == 0.01);
    assert_string_equal(set.variant[6].gate, "sigmoid,topk=2,norm=none");
    assert_string_equal(set.variant[12].gate, "softmax,topk=1,norm=none");
    for (int i = 0; i < set.count; i++) assert_int_equal(set.variant[i].number, i + 1);
    variant_set_free(&set);
}

/* Without --bias-rule: frozen where the captured bias belongs to the score, else none. */
static void bias_rule_defaults_follow_the_score(void **state) {
    static const char *const scores[] = {"sigmoid", "softmax"};
    static const float bias[8] = {0.1f};
    struct source_layer layer = {.layer = 0, .experts = 8, .bias = bias};
    struct source source = {.tokens = 10, .layers = 1, .layer = &layer};
    struct variant_lists lists = {.scores = {scores, 2}};
    struct variant_set set;
    struct err err;
    (void)state;
    test_ok(gate_parse("sigmoid,bias,topk=2", NULL, &layer.native, &err), &err);
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    assert_string_equal(set.variant[0].rule, "frozen");
    assert_string_equal(set.variant[1].rule, "none");
    assert_string_equal(set.variant[1].gate, "softmax,topk=2,norm=none");
    assert_non_null(strstr(str_text(&set.notes), "variants 2: run without the captured bias"));
    variant_set_free(&set);

    const char *frozen = "frozen";
    lists.bias_rules = (struct texts){&frozen, 1};
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    assert_true(variant_at(&set, 1, 0)->foreign && variant_at(&set, 1, 0)->gate.bias);
    assert_non_null(strstr(str_text(&set.notes), "variants 2: carry"));
    variant_set_free(&set);

    const char *bare = "native,nobias";
    lists = (struct variant_lists){.gates = {&bare, 1}};
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    assert_string_equal(set.variant[0].rule, "none");
    variant_set_free(&set);
}

static void impossible_variants_are_refused_with_the_reason(void **state) {
    static const struct {
        const char *gate, *score, *groups, *norm, *rule;
        const char *rate;
        int64_t ranks;
        const char *says;
    } cases[] = {
        {"softmax,topk=9", NULL, NULL, NULL, NULL, NULL, 0, "found 9, expected at most the 8"},
        {"native", NULL, "3:1:max", NULL, NULL, NULL, 0, "divisor of 8"},
        {"native", NULL, "8:1:max", NULL, NULL, NULL, 0, "at least topk=2"},
        {"native", NULL, "8:4:top2sum", NULL, NULL, NULL, 0, "groups of 1 expert"},
        {"native", NULL, "4:5:max", NULL, NULL, NULL, 0, "--groups 4:5:max"},
        {"native", "softplus", NULL, NULL, NULL, NULL, 0, "--score: found \"softplus\""},
        {"native", "softmax,bias", NULL, NULL, NULL, NULL, 0, "--score: found"},
        {"native", NULL, NULL, "mean", NULL, NULL, 0, "--norm mean"},
        {"native", NULL, NULL, NULL, "nudge", NULL, 0, "bias rule: found \"nudge\""},
        {"native", NULL, NULL, NULL, "frozen", NULL, 0, "found no captured bias"},
        {"native,bias", NULL, NULL, NULL, NULL, NULL, 0, "no correction bias"},
        {"native", NULL, NULL, NULL, NULL, "0.001", 0, "--bias-rate"},
        {"native", NULL, NULL, NULL, "none", "0.001", 0, "--bias-rate"},
        {"native", NULL, NULL, NULL, NULL, NULL, 3,
         "--ranks: found 3, expected a divisor of the 8"},
        {"native", NULL, NULL, NULL, NULL, NULL, 16, "--ranks: found 16"},
        {"phimoe", NULL, NULL, NULL, "sign", NULL, 0, "without a place for a bias"},
        {"phimoe", "sigmoid", NULL, NULL, NULL, NULL, 0, "special function"},
        {"no-such-gate", NULL, NULL, NULL, NULL, NULL, 0, "--gate no-such-gate"},
    };
    struct source_layer layer = {.layer = 7, .experts = 8};
    struct source source = {.tokens = 10, .layers = 1, .layer = &layer};
    struct variant_set set;
    struct err err;
    (void)state;
    test_ok(gate_parse("softmax,topk=2", NULL, &layer.native, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct variant_lists lists = {.gates = {&cases[i].gate, 1},
                                      .scores = {&cases[i].score, cases[i].score != NULL},
                                      .groups = {&cases[i].groups, cases[i].groups != NULL},
                                      .norms = {&cases[i].norm, cases[i].norm != NULL},
                                      .bias_rules = {&cases[i].rule, cases[i].rule != NULL},
                                      .rates = {&cases[i].rate, cases[i].rate != NULL},
                                      .ranks = &cases[i].ranks,
                                      .ranks_count = cases[i].ranks > 0};
        bool built = variant_set_build(&set, &lists, &source, &err);
        variant_set_free(&set);
        assert_false(built);
        if (!strstr(err.text, cases[i].says))
            fail_msg("case %zu: \"%s\" does not say \"%s\"", i, err.text, cases[i].says);
        assert_int_equal(err_status(err.code), 2);
    }
}

static void bias_start_captured_needs_a_captured_bias(void **state) {
    const char *rule = "sign";
    struct source_layer layer = {.layer = 7, .experts = 8};
    struct source source = {.tokens = 10, .layers = 1, .layer = &layer};
    struct variant_lists lists = {.bias_rules = {&rule, 1}, .start = START_CAPTURED};
    struct variant_set set;
    struct err err;
    (void)state;
    test_ok(gate_parse("softmax,topk=2", NULL, &layer.native, &err), &err);
    assert_false(variant_set_build(&set, &lists, &source, &err));
    assert_non_null(strstr(err.text, "layer 7"));
    assert_non_null(strstr(err.text, "--bias-start zero"));
    variant_set_free(&set);
}

static void logits_that_are_not_finite_are_named(void **state) {
    float logits[6 * 4] = {0};
    const float *rows[2] = {logits, logits};
    struct source_layer layer[2] = {{.layer = 4, .experts = 4}, {.layer = 5, .experts = 4}};
    struct source_arrays arrays = {.logits = rows};
    struct source source;
    struct variant_set set;
    struct variant_lists lists = {0};
    struct kept kept = {0};
    struct replay_options options = {.threads = 2, .chunk_tokens = 2};
    struct replay_sink sink = {NULL, &kept};
    struct err err;
    (void)state;
    test_ok(gate_parse("softmax,topk=2", NULL, &layer[0].native, &err), &err);
    layer[1].native = layer[0].native;
    logits[4 * 4 + 1] = NAN;
    source_of_arrays(&source, &arrays, 6, layer, 2);
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    assert_false(replay_run(&set, &source, &options, &sink, NULL, &err));
    assert_non_null(strstr(err.text, "layer 4: token 4: expert 1: found logit"));
    variant_set_free(&set);
}

static bool stop_soon(void *context, const char *what, int64_t done, int64_t total,
                      const char *unit) {
    (void)what, (void)unit;
    int *calls = context;
    assert_true(done <= total);
    return ++*calls < 3;
}

static void replay_stops_when_progress_says_so(void **state) {
    struct world w;
    struct variant_set set;
    struct err err;
    int calls = 0;
    struct progress progress = {stop_soon, &calls};
    struct replay_sink sink = {NULL, NULL};
    struct replay_options options = {.threads = 1, .chunk_tokens = 1};
    (void)state;
    world_init(&w, 3);
    test_ok(variant_set_build(&set, &w.lists, &w.source, &err), &err);
    assert_false(replay_run(&set, &w.source, &options, &sink, &progress, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(calls, 3);
    variant_set_free(&set);
    world_free(&w);
}

int test_replay(void);
int test_replay(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replay_agrees_with_a_slow_one_on_random_gates),
        cmocka_unit_test(replay_counts_ties_at_the_last_place),
        cmocka_unit_test(sign_rule_acts_from_the_next_batch),
        cmocka_unit_test(product_numbers_variants_with_the_last_list_fastest),
        cmocka_unit_test(bias_rule_defaults_follow_the_score),
        cmocka_unit_test(impossible_variants_are_refused_with_the_reason),
        cmocka_unit_test(bias_start_captured_needs_a_captured_bias),
        cmocka_unit_test(logits_that_are_not_finite_are_named),
        cmocka_unit_test(replay_stops_when_progress_says_so),
    };
    return cmocka_run_group_tests_name("replay", tests, NULL, NULL);
}
