/* test_cut.c - tokens that keep different numbers of experts; groups by the ranks of a replay */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "router/route.h"
#include "tests/support_replay.h"
#include "tests/test.h"

static _Alignas(64) unsigned char scratch[1 << 18];

static struct gate parse(const char *text) {
    struct gate gate;
    struct err err = {0};
    test_ok(gate_parse(text, NULL, &gate, &err), &err);
    return gate;
}

/* Softmax of these: .358463 (2), .217419 (5), .131871 (0), .102702 (7), .079984 (1), ...; sigmoids
 * .880797 .817574 .731059 .679179 .622459 .562177 (4) .377541 (6) .268941 (3), in all 4.939727. */
static const float vector[8] = {1, .5f, 2, -1, .25f, 1.5f, -.5f, .75f};
static const float shift[8] = {0, .3f, -.4f, .1f, .05f, -.2f, .45f, 0};

static void cuts_match_the_published_formulas(void **state) {
    static const struct {
        const char *gate;
        int n;
        int expert[4];
        double weight[4];
        int tie;
    } cases[] = {
        {"softmax,topk=4,topp=0.35,norm=none", 1, {2}, {.358463}, 0},
        {"softmax,topk=4,topp=0.36,norm=none", 2, {2, 5}, {.358463, .217419}, 0},
        {"softmax,topk=4,topp=0.7,norm=none", 3, {2, 5, 0}, {.358463, .217419, .131871}, 0},
        {"softmax,topk=4,topp=0.7,norm=sum", 3, {2, 5, 0}, {.506480, .307196, .186324}, 0},
        {"softmax,topk=2,topp=0.7,norm=none", 2, {2, 5}, {.358463, .217419}, 0},
        {"softmax,topk=4,topp=1,norm=none",
         4,
         {2, 5, 0, 7},
         {.358463, .217419, .131871, .102702},
         0},
        /* shares of the sum: .880797 / 4.939727 = .1783, with .817574 .3438 */
        {"sigmoid,topk=4,topp=0.17,norm=none", 1, {2}, {.880797}, 0},
        {"sigmoid,topk=4,topp=0.34,norm=none", 2, {2, 5}, {.880797, .817574}, 0},
        {"sigmoid,topk=4,topp=0.35,norm=none", 3, {2, 5, 0}, {.880797, .817574, .731059}, 0},
        /* the bias orders, the score counts: 1 (.126), 6 (.202), 0 (.350) */
        {"sigmoid,bias,topk=4,topp=0.2,norm=none", 2, {1, 6}, {.622459, .377541}, 0},
        {"sigmoid,bias,topk=4,topp=0.21,norm=none", 3, {1, 6, 0}, {.622459, .377541, .731059}, 0},
        /* groups 1 and 2 of four hold 2, 3, 4, 5 */
        {"softmax,groups=4:2:max,topk=3,topp=0.6,norm=none",
         3,
         {2, 5, 4},
         {.358463, .217419, .062291},
         0},
        {"relu,topk=4,threshold=0,norm=none", 4, {2, 5, 0, 7}, {2, 1.5, 1, .75}, 0},
        {"relu,topk=4,threshold=0.9,norm=sum", 3, {2, 5, 0}, {2 / 4.5, 1.5 / 4.5, 1 / 4.5}, 0},
        {"relu,topk=4,threshold=1,norm=sum", 2, {2, 5}, {2 / 3.5, 1.5 / 3.5}, 0},
        {"sigmoid,topk=4,threshold=0.9,norm=sum", 0, {0}, {0}, 0},
        {"sigmoid,bias,topk=4,threshold=0.8,norm=none", 2, {1, 6}, {.622459, .377541}, 0},
        {"softmax,order=topk-score,topk=4,threshold=1,norm=none",
         2,
         {2, 5},
         {.622459, .377541},
         0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gate gate = parse(cases[i].gate);
        int32_t expert[4];
        float weight[4];
        uint8_t tie;
        struct routes out = {.expert = expert, .weight = weight, .tie = &tie};
        assert_int_equal(route_tokens(&gate, 8, 1, vector, shift, &out, scratch), -1);
        for (int j = 0; j < gate.topk; j++) {
            int32_t e = j < cases[i].n ? cases[i].expert[j] : ROUTE_NONE;
            double w = j < cases[i].n ? cases[i].weight[j] : 0;
            if (expert[j] != e || fabs((double)weight[j] - w) > 2e-6)
                fail_msg("%s: slot %d: found %d (%g), expected %d (%g)", cases[i].gate, j,
                         expert[j], (double)weight[j], e, w);
        }
        assert_int_equal(tie, cases[i].tie);
    }
}

/* A token ties when the last that it keeps equals the first that it does not. */
static void ties_stand_at_the_cut(void **state) {
    const float logits[4] = {1, 1, 1, 0};
    static const struct {
        const char *gate;
        int tie;
    } cases[] = {{"softmax,topk=3,topp=0.2,norm=none", 1},
                 {"softmax,topk=3,topp=0.5,norm=none", 1},
                 {"softmax,topk=3,topp=0.6,norm=none", 0},
                 {"softmax,topk=3,topp=0.9,norm=none", 0},
                 {"identity,topk=2,threshold=0.5,norm=none", 1},
                 {"identity,topk=3,threshold=0.5,norm=none", 0},
                 {"identity,topk=3,threshold=5,norm=none", 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gate gate = parse(cases[i].gate);
        int32_t expert[3];
        uint8_t tie;
        struct routes out = {.expert = expert, .tie = &tie};
        assert_int_equal(route_tokens(&gate, 4, 1, logits, NULL, &out, scratch), -1);
        if (tie != cases[i].tie) fail_msg("%s: found tie %d", cases[i].gate, tie);
    }
}

/* ---- in a replay */

static void run(struct kept *kept, const float *logits, int64_t tokens, int experts,
                const struct variant_lists *lists, const struct replay_options *options) {
    struct source_layer layer = {.experts = experts, .native = parse("softmax,topk=2,norm=none")};
    struct source_arrays arrays = {.logits = &logits};
    struct source source;
    source_of_arrays(&source, &arrays, tokens, &layer, 1);
    kept_run(kept, lists, &source, options);
}

/* Three tokens over four experts: relu above 0.5 leaves 3, 1 and 0 experts; native takes two. */
static void measures_count_what_a_token_kept(void **state) {
    const float logits[3 * 4] = {3, 2, 1, 0, 0, 4, 0, 0, .1f, .2f, .3f, .4f};
    static const char *const gates[] = {"relu,topk=4,threshold=0.5,norm=none"};
    const int64_t ranks[] = {2}, batch[] = {3};
    struct variant_lists lists = {.gates = {gates, 1},
                                  .ranks = ranks,
                                  .ranks_count = 1,
                                  .batch_tokens = batch,
                                  .batch_count = 1};
    struct replay_options options = {.threads = 1, .losses = true};
    struct kept kept;
    (void)state;
    run(&kept, logits, 3, 4, &lists, &options);
    const struct kept_row *row = &kept.row[0];
    const int64_t loads[4] = {1, 2, 1, 0};
    for (int e = 0; e < 4; e++) assert_int_equal(row->tokens[e], loads[e]);
    test_near(row->m.experts_mean, 4. / 3, 1e-12);
    assert_int_equal(row->m.experts_max, 3);
    test_near(row->m.unrouted, 1. / 3, 1e-12);
    test_near(row->m.maxvio_global, 2 / 1. - 1, 1e-12); /* mean load 4 / 4 */
    test_near(row->m.agreement, (2. / 3 + 1 + 0) / 3, 1e-12);
    test_near(row->m.mass_retained, (1 + 1 + 0) / 3., 1e-7);
    test_near(row->m.efficiency, (4. / 2) / 3, 1e-12);
    test_near(row->weight[1], 2 + 4, 1e-6);
    kept_free(&kept);
}

static void a_threshold_that_nobody_passes_is_measured(void **state) {
    static const char *const gates[] = {"sigmoid,topk=2,threshold=2,norm=sum"};
    static const char *const rules[] = {"none",  "sign",    "centred-sign", "proportional",
                                        "smebu", "longcat", "quantile",     "bip"};
    const int64_t batch[] = {10};
    struct variant_lists lists = {
        .gates = {gates, 1}, .bias_rules = {rules, 8}, .batch_tokens = batch, .batch_count = 1};
    struct replay_options options = {.threads = 1, .losses = true};
    struct kept kept;
    struct rng rng;
    (void)state;
    rng_init(&rng, 1);
    float *logits = random_logits(&rng, 100, 8, 1);
    run(&kept, logits, 100, 8, &lists, &options);
    const struct kept_row *row = &kept.row[0];
    assert_true(row->m.unrouted == 1 && row->m.experts_mean == 0 && isnan(row->m.maxvio_global));
    assert_true(row->m.maxvio_batch == 0 && row->m.efficiency == 1 && row->m.agreement == 0);
    for (int v = 0; v < 8; v++)
        for (int e = 0; e < 8; e++) assert_true(isfinite(kept.row[v].bias[e]));
    kept_free(&kept);
    free(logits);
}

/* Against a fixed threshold a shift of all biases counts. */
static void centring_is_no_twin_under_a_threshold(void **state) {
    static const char *const gates[] = {"sigmoid,topk=2,norm=sum",
                                        "sigmoid,topk=2,threshold=0.5,norm=sum"};
    static const char *const rules[] = {"sign", "centred-sign"};
    const int64_t batch[] = {10};
    struct source_layer layer = {.experts = 8, .native = parse("softmax,topk=2")};
    struct source source = {.tokens = 100, .layers = 1, .layer = &layer};
    struct variant_lists lists = {
        .gates = {gates, 2}, .bias_rules = {rules, 2}, .batch_tokens = batch, .batch_count = 1};
    struct variant_set set;
    struct err err;
    (void)state;
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    assert_int_equal(set.variant[1].same_as, 1);
    assert_int_equal(set.variant[3].same_as, 0);
    variant_set_free(&set);
}

static void factors_and_cuts_are_refused_together(void **state) {
    static const char *const gates[] = {"sigmoid,topk=2,topp=0.5"}, *const rule[] = {
                                                                        "multiplicative"};
    struct source_layer layer = {.experts = 8, .native = parse("softmax,topk=2")};
    struct source source = {.tokens = 100, .layers = 1, .layer = &layer};
    struct variant_lists lists = {.gates = {gates, 1}, .bias_rules = {rule, 1}};
    struct variant_set set;
    struct err err;
    (void)state;
    assert_false(variant_set_build(&set, &lists, &source, &err));
    assert_non_null(strstr(err.text, "found topp or threshold"));
    variant_set_free(&set);
}

/* --groups device:M takes D from --ranks: the same numbers as the groups written out. */
static void devices_and_nodes_follow_the_ranks(void **state) {
    static const char *const named[] = {"device:2", "node:2", "device:4:1"};
    static const char *const written[] = {"8:2:max", "8:2:topsum", "4:1:max"};
    static const char *const gates[] = {"sigmoid,topk=4,norm=sum"};
    const int64_t ranks[] = {8};
    struct variant_lists lists = {
        .gates = {gates, 1}, .groups = {named, 3}, .ranks = ranks, .ranks_count = 1};
    struct replay_options options = {.threads = 1};
    struct kept a, b;
    struct rng rng;
    (void)state;
    rng_init(&rng, 2);
    float *logits = random_logits(&rng, 500, 32, 1);
    run(&a, logits, 500, 32, &lists, &options);
    lists.groups.item = written;
    run(&b, logits, 500, 32, &lists, &options);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(a.set.variant[i].gate, b.set.variant[i].gate);
        assert_true(a.row[i].digest == b.row[i].digest);
    }
    assert_true(a.row[0].digest != a.row[1].digest);
    kept_free(&a);
    kept_free(&b);
    free(logits);
}

int test_cut(void);
int test_cut(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_match_the_published_formulas),
        cmocka_unit_test(ties_stand_at_the_cut),
        cmocka_unit_test(measures_count_what_a_token_kept),
        cmocka_unit_test(a_threshold_that_nobody_passes_is_measured),
        cmocka_unit_test(centring_is_no_twin_under_a_threshold),
        cmocka_unit_test(factors_and_cuts_are_refused_together),
        cmocka_unit_test(devices_and_nodes_follow_the_ranks),
    };
    return cmocka_run_group_tests_name("cut", tests, NULL, NULL);
}
