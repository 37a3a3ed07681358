/* test_gate.c - the gate language and the router against the golden vectors */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/rng.h"
#include "router/bias.h"
#include "router/gate.h"
#include "router/mathf.h"
#include "router/route.h"
#include "tests/test.h"

static struct gate parse(const char *text) {
    struct gate gate;
    struct err err = {0};
    test_ok(gate_parse(text, NULL, &gate, &err), &err);
    return gate;
}

/* One golden case as plain arrays. */
struct golden {
    const char *name, *spec;
    struct gate gate;
    int experts, tokens;
    float *logits, *bias, *weights;
    int32_t *ids;
    const struct json *ties, *escapes;
};

static float *floats(const struct json *list, int *count) {
    int n = json_count(list), at = 0;
    float *out = calloc((size_t)n, sizeof *out);
    for (const struct json *v = json_first(list); v; v = json_next(v))
        out[at++] = (float)json_number(v);
    if (count) *count = n;
    return out;
}

static float *rows(const struct json *lists, int *rows_out, int *columns) {
    int n = json_count(lists), width = json_count(json_first(lists)), at = 0;
    float *out = calloc((size_t)n * (size_t)width, sizeof *out);
    for (const struct json *l = json_first(lists); l; l = json_next(l)) {
        float *row = floats(l, NULL);
        memcpy(out + (size_t)at++ * (size_t)width, row, (size_t)width * sizeof *out);
        free(row);
    }
    if (rows_out) *rows_out = n;
    if (columns) *columns = width;
    return out;
}

static struct golden golden_read(const struct json *c) {
    struct golden g = {.name = json_text(json_member(c, "name")),
                       .spec = json_text(json_member(c, "gate"))};
    g.gate = parse(g.spec);
    g.logits = rows(json_member(c, "logits"), &g.tokens, &g.experts);
    g.weights = rows(json_member(c, "weights"), NULL, NULL);
    float *ids = rows(json_member(c, "ids"), NULL, NULL);
    g.ids = calloc((size_t)g.tokens * (size_t)g.gate.topk, sizeof *g.ids);
    for (int i = 0; i < g.tokens * g.gate.topk; i++) g.ids[i] = (int32_t)ids[i];
    free(ids);
    if (json_present(c, "bias")) g.bias = floats(json_member(c, "bias"), NULL);
    g.ties = json_member(c, "ties");
    g.escapes = json_member(c, "escapes");
    return g;
}

static void golden_free(struct golden *g) {
    free(g->logits);
    free(g->bias);
    free(g->weights);
    free(g->ids);
}

static void golden_check(const struct golden *g) {
    int k = g->gate.topk;
    size_t slots = (size_t)g->tokens * (size_t)k;
    struct routes out = {.expert = calloc(slots, sizeof *out.expert),
                         .weight = calloc(slots, sizeof *out.weight),
                         .tie = calloc((size_t)g->tokens, 1),
                         .escape = calloc((size_t)g->tokens, 1)};
    void *scratch = aligned_alloc(64, (route_scratch_bytes(g->experts) + 63) / 64 * 64);
    assert_int_equal(
        route_tokens(&g->gate, g->experts, g->tokens, g->logits, g->bias, &out, scratch), -1);
    const struct json *tie = json_first(g->ties), *escape = json_first(g->escapes);
    for (int t = 0; t < g->tokens; t++, tie = json_next(tie), escape = json_next(escape)) {
        for (int i = t * k; i < (t + 1) * k; i++) {
            if (out.expert[i] != g->ids[i])
                fail_msg("%s: token %d slot %d: found expert %d, expected %d", g->name, t,
                         i - t * k, out.expert[i], g->ids[i]);
            double scale = fabs((double)g->weights[i]);
            if (!(fabs((double)out.weight[i] - (double)g->weights[i]) <= 1e-5 * scale + 1e-37))
                fail_msg("%s: token %d slot %d: found weight %.9g, expected %.9g", g->name, t,
                         i - t * k, (double)out.weight[i], (double)g->weights[i]);
        }
        assert_int_equal(out.tie[t], json_is_true(tie));
        assert_int_equal(out.escape[t], (int)json_number(escape));
    }
    free(scratch);
    free(out.expert);
    free(out.weight);
    free(out.tie);
    free(out.escape);
}

static void router_matches_the_golden_vectors(void **state) {
    (void)state;
    struct err err = {0};
    struct json *doc = json_read(test_path("tests/golden/gates.json"), 1 << 24, &err);
    test_ok(doc, &err);
    int cases = 0;
    for (const struct json *c = json_first(json_member(doc, "cases")); c; c = json_next(c)) {
        struct golden g = golden_read(c);
        char line[GATE_TEXT_BYTES];
        gate_print(&g.gate, line);
        assert_string_equal(line, g.spec);
        test_ok(gate_check(&g.gate, g.experts, g.bias != NULL, &err), &err);
        golden_check(&g);
        golden_free(&g);
        cases++;
    }
    assert_int_equal(cases, 39);
    json_free(doc);
}

static void presets_round_trip(void **state) {
    (void)state;
    for (const struct gate_preset *p = gate_presets; p->name; p++) {
        struct gate gate = parse(p->name), again;
        char line[GATE_TEXT_BYTES];
        gate_print(&gate, line);
        assert_string_equal(line, p->spec);
        again = parse(line);
        assert_true(gate_equal(&gate, &again));
    }
}

static void later_items_override_a_preset(void **state) {
    (void)state;
    struct gate gate = parse("deepseek-v3,softmax,nobias,groups=none,fill=0,norm=none"), native,
                own;
    char line[GATE_TEXT_BYTES];
    struct err err = {0};
    gate_print(&gate, line);
    assert_string_equal(line, "softmax,topk=8,norm=none,scale=2.5");
    native = parse("olmoe");
    test_ok(gate_parse("native,topk=3", &native, &own, &err), &err);
    gate_print(&own, line);
    assert_string_equal(line, "softmax,topk=3,norm=none");
}

static void what_cannot_be_read_is_refused_by_name(void **state) {
    (void)state;
    static const char *const bad[][2] = {{"", "expected a preset"},
                                         {"topk=0", "topk"},
                                         {"softmax", "found no topk"},
                                         {"topk=2,topk", "\"topk\""},
                                         {"topk=2,norm=clamp", "norm=clamp:X"},
                                         {"topk=2,norm=none:1", "expected none"},
                                         {"topk=2,norm=sum:nan", "number"},
                                         {"topk=2,scale=inf", "number"},
                                         {"topk=4,groups=8", "N:KEEP:RULE"},
                                         {"topk=4,groups=8:9:max", "1 to 8"},
                                         {"topk=4,groups=8:2:best", "top2sum"},
                                         {"topk=1,groups=8:2:topsum", "groups kept"},
                                         {"topk=3,fn=sparsemixer:0.01", "topk=2"},
                                         {"topk=2,fn=sparsemixer", "EPS"},
                                         {"topk=2,fill=1", "-inf"},
                                         {"topk=2,softmax,native", "\"native\""},
                                         {"native", "no captured gate"},
                                         {"topk=2,foo=3", "\"foo=\""},
                                         {"topk=2,dtype=fp8", "bf16"},
                                         {"topk=2,dtype=bf16:scores", "bf16:logits"},
                                         {"topk=2,noise=-1", "noise"},
                                         {"topk=2,noise=nan", "noise"},
                                         {"topk=2,jitter=0.01", "multiplies the router's input"},
                                         {"topk=2,topp=0", "topp"},
                                         {"topk=2,topp=1.5", "at most 1"},
                                         {"topk=2,threshold=x", "threshold"},
                                         {"topk=2,cut=topp", "topp=P"},
                                         {"identity,topk=2,topp=.5", "can be negative"},
                                         {"tanh,topk=2,topp=.5", "can be negative"},
                                         {"softmax,order=topk-score,topk=2,topp=.5", "score-topk"},
                                         {"phimoe,topp=.5", "is fixed"},
                                         {"phimoe,threshold=0", "is fixed"},
                                         {"phimoe,dtype=bf16", "f32"},
                                         {"topk=2,fn=hash", "no SEED"},
                                         {"topk=2,fn=hash:-1", "fn=hash"},
                                         {"topk=2,fn=hash:99999999", "fn=hash"},
                                         {"topk=2,fn=balanced-hash:1", "found an argument"},
                                         {"bias,topk=2,fn=hash:1", "found bias"},
                                         {"topk=2,groups=4:2:max,fn=hash:1", "found groups"},
                                         {"topk=2,noise=1,fn=balanced-hash", "found noise"},
                                         {"topk=2,topp=.5,fn=hash:1", "is fixed"},
                                         {"topk=4,groups=device:3", "device:N:KEEP"},
                                         {"topk=4,groups=node", "node:N:KEEP"},
                                         {"topk=4,groups=node:8:9", "1 to 8"},
                                         {"topk=2,groups=node:8:4", "groups kept"},
                                         {"topk=4,groups=rack:8:4", "found \"rack\""}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gate gate;
        struct err err = {0};
        assert_false(gate_parse(bad[i][0], NULL, &gate, &err));
        if (!strstr(err.text, bad[i][1]))
            fail_msg("\"%s\": message lacks \"%s\": %s", bad[i][0], bad[i][1], err.text);
    }
}

static void groups_by_device_and_node_are_the_published_rules(void **state) {
    static const char *const pairs[][2] = {
        {"softmax,groups=device:8:3,topk=6,norm=none", "softmax,groups=8:3:max,topk=6,norm=none"},
        {"sigmoid,bias,groups=node:8:4,topk=8,norm=none",
         "sigmoid,bias,groups=8:4:topsum,topk=8,norm=none"}};
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct gate gate = parse(pairs[i][0]);
        char line[GATE_TEXT_BYTES];
        gate_print(&gate, line);
        assert_string_equal(line, pairs[i][1]);
    }
}

static void gates_of_a_replay_alone_are_refused_elsewhere(void **state) {
    static const char *const bad[][2] = {{"topk=2,noise=1", "found noise"},
                                         {"topk=2,topp=.5", "found topp"},
                                         {"topk=2,threshold=0", "found threshold"},
                                         {"topk=2,fn=hash:1", "found hash"},
                                         {"topk=2,fn=balanced-hash", "found balanced-hash"},
                                         {"topk=9", "at most the 8"}};
    struct err err = {0};
    struct gate fine = parse("softmax,topk=2,dtype=bf16");
    (void)state;
    test_ok(gate_check_native(&fine, 8, false, &err), &err);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gate gate = parse(bad[i][0]);
        assert_false(gate_check_native(&gate, 8, false, &err));
        assert_non_null(strstr(err.text, bad[i][1]));
    }
}

static void impossible_gates_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int experts;
        const char *message;
    } bad[] = {{"topk=9", 8, "at most the 8 experts"},
               {"topk=2,groups=3:2:max", 8, "divisor"},
               {"topk=8,groups=8:1:max", 32, "kept groups"},
               {"topk=2,groups=8:4:top2sum", 8, "groups of 1"},
               {"bias,topk=2", 8, "no correction bias"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gate gate = parse(bad[i].spec);
        struct err err = {0};
        assert_false(gate_check(&gate, bad[i].experts, false, &err));
        assert_non_null(strstr(err.text, bad[i].message));
    }
}

static void non_finite_logits_are_located(void **state) {
    (void)state;
    struct gate gate = parse("olmoe,topk=2");
    float logits[3 * 8] = {0};
    int32_t ids[6];
    struct routes out = {.expert = ids};
    static _Alignas(64) unsigned char scratch[1 << 16];
    assert_true(route_scratch_bytes(8) <= sizeof scratch);
    logits[2 * 8 + 5] = NAN;
    assert_int_equal(route_tokens(&gate, 8, 3, logits, NULL, &out, scratch), 21);
    logits[2 * 8 + 5] = 0;
    logits[9] = -INFINITY;
    assert_int_equal(route_tokens(&gate, 8, 3, logits, NULL, &out, scratch), 9);
}

static void sparsemixer_matches_the_published_example(void **state) {
    (void)state;
    struct gate gate = parse("phimoe");
    const float logits[4] = {2, 1.99f, 1, .5f};
    int32_t ids[2];
    float weights[2];
    struct routes out = {.expert = ids, .weight = weights};
    static _Alignas(64) unsigned char scratch[1 << 16];
    assert_int_equal(route_tokens(&gate, 4, 1, logits, NULL, &out, scratch), -1);
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 1);
    test_near(weights[0], 0.5025, 1e-5);
    test_near(weights[1], 1.0, 1e-6);
}

static void equal_choices_are_claimed_only_where_they_hold(void **state) {
    (void)state;
    static const struct {
        const char *a, *b;
        bool same;
    } pairs[] = {
        {"softmax,topk=4", "sigmoid,topk=4,norm=sum,scale=3", true},
        {"softmax,topk=4", "sqrtsoftplus,order=topk-score,topk=4", true},
        {"softmax,topk=4", "softmax,topk=5", false},
        {"softmax,groups=8:4:max,topk=4", "sigmoid,groups=8:4:max,fill=0,topk=4", true},
        {"softmax,groups=8:8:top2sum,topk=4", "softmax,topk=4", true},
        {"softmax,groups=8:4:top2sum,topk=4", "sigmoid,groups=8:4:top2sum,topk=4", false},
        {"softmax,groups=8:4:topsum,topk=4", "softmax,groups=8:4:max,topk=4", true},
        {"sigmoid,bias,topk=4", "sigmoid,bias,topk=4,norm=sum", true},
        {"sigmoid,bias,topk=4", "softmax,bias,topk=4", false},
        {"sigmoid,bias,groups=8:4:max,topk=4", "sigmoid,bias,groups=8:4:max,fill=0,topk=4", false},
        {"identity,groups=8:4:max,fill=0,topk=4", "identity,groups=8:4:max,topk=4", false},
        {"tanh,topk=4", "softmax,topk=4", true},
        {"tanh,groups=8:4:max,fill=0,topk=4", "tanh,groups=8:4:max,topk=4", false},
        {"relu,topk=4", "softmax,topk=4", false},
        {"softmax,topk=4,dtype=bf16", "softmax,topk=4", false},
        {"softmax,topk=4,dtype=bf16", "sigmoid,topk=4,dtype=bf16", false},
        {"softmax,topk=4,dtype=bf16:logits", "sigmoid,topk=4,dtype=bf16:logits", true},
        {"softmax,topk=4,dtype=bf16:logits", "identity,topk=4,dtype=f16:logits", false},
        {"softmax,topk=4,dtype=bf16:logits", "sigmoid,order=topk-score,topk=4,dtype=bf16", true},
        {"softmax,topk=4,dtype=bf16", "softmax,topk=4,dtype=bf16,norm=sum,scale=2", true},
        {"softmax,topk=4,noise=1", "sigmoid,topk=4,noise=1", true},
        {"softmax,topk=4,noise=1", "softmax,topk=4,noise=2", false},
        {"softmax,topk=4,topp=.5", "softmax,topk=4,topp=.5,norm=sum", true},
        {"softmax,topk=4,topp=.5", "sigmoid,topk=4,topp=.5", false},
        {"softmax,topk=4,topp=.5", "softmax,topk=4,topp=.6", false},
        {"softmax,topk=4,threshold=0", "softmax,topk=4", false},
        {"softmax,topk=4,fn=hash:1", "sigmoid,topk=4,fn=hash:1,norm=sum,dtype=bf16", true},
        {"softmax,topk=4,fn=hash:1", "softmax,topk=4,fn=hash:2", false},
        {"softmax,topk=4,fn=hash:1", "softmax,topk=4,fn=balanced-hash", false},
        {"softmax,groups=device:8:3,topk=6", "sigmoid,groups=8:3:max,topk=6", true},
        {"sigmoid,bias,groups=node:8:4,topk=8", "sigmoid,bias,groups=8:4:top2sum,topk=8", true},
        {"sigmoid,bias,groups=node:8:3,topk=6", "sigmoid,bias,groups=device:8:3,topk=6", false}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct gate a = parse(pairs[i].a), b = parse(pairs[i].b);
        if (gate_same_choice(&a, &b) != pairs[i].same)
            fail_msg("%s and %s: expected %s", pairs[i].a, pairs[i].b,
                     pairs[i].same ? "the same choice" : "different choices");
    }
}

static void exp_is_as_accurate_as_stated(void **state) {
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42b00000u; bits += 977) {
        for (int sign = -1; sign <= 1; sign += 2) {
            float x = (float)sign * mathf_from_bits(bits);
            if (x < -87) continue;
            double exact = exp((double)x), found = (double)mathf_exp(x);
            double ulp = ldexp(1, ilogb(exact) - 23);
            worst = fmax(worst, fabs(found - exact) / ulp);
        }
    }
    print_message("exp: worst error %.3f ulp\n", worst);
    assert_true(worst < 1.6);
    assert_true(mathf_exp(100) == INFINITY);
    assert_true(mathf_exp(-110) == 0);
    assert_true(mathf_exp(0) == 1);
}

static void logarithms_and_scores_are_accurate(void **state) {
    (void)state;
    double log1p_worst = 0, score_worst = 0;
    for (float y = 1e-30f; y <= 1; y *= 1.0001f)
        log1p_worst =
            fmax(log1p_worst, fabs((double)mathf_log1p(y) - log1p((double)y)) / log1p((double)y));
    for (float x = -80; x < 80; x += 0.0037f) {
        double soft = sqrt(fmax((double)x, 0) + log1p(exp(-fabs((double)x))));
        double sigmoid = 1 / (1 + exp(-(double)x));
        score_worst = fmax(score_worst, fabs((double)mathf_sqrtsoftplus(x) - soft) / soft);
        score_worst = fmax(score_worst, fabs((double)mathf_sigmoid(x) - sigmoid) / sigmoid);
        double bend = tanh((double)x), scale = fabs(bend) > 1e-30 ? fabs(bend) : 1;
        score_worst = fmax(score_worst, fabs((double)mathf_tanh(x) - bend) / scale);
    }
    print_message("log1p: worst %.2e, scores: worst %.2e relative\n", log1p_worst, score_worst);
    assert_true(log1p_worst < 3e-7);
    assert_true(score_worst < 4e-7);
    for (float x = 1e-30f; x < 1e30f; x *= 1.003f)
        assert_true(fabs((double)mathf_log(x) - log((double)x)) <
                    4e-7 * fmax(0.4, fabs(log((double)x))));
}

static void sign_rule_moves_against_the_load(void **state) {
    (void)state;
    struct err err = {0};
    const struct bias_rule *rule = bias_rule_find("sign", &err);
    test_ok(rule, &err);
    const int64_t counts[4] = {10, 2, 6, 6};
    double bias[4] = {0, 0, 0, 0.5};
    const struct bias_batch batch = {.experts = 4, .counts = counts, .rate = 0.001};
    rule->update(&batch, bias);
    assert_true(bias[0] == -0.001 && bias[1] == 0.001 && bias[2] == 0 && bias[3] == 0.5);
    assert_null(bias_rule_find("nothing", &err));
    assert_non_null(strstr(err.text, "frozen"));
}

int test_gate(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(router_matches_the_golden_vectors),
        cmocka_unit_test(presets_round_trip),
        cmocka_unit_test(later_items_override_a_preset),
        cmocka_unit_test(what_cannot_be_read_is_refused_by_name),
        cmocka_unit_test(groups_by_device_and_node_are_the_published_rules),
        cmocka_unit_test(gates_of_a_replay_alone_are_refused_elsewhere),
        cmocka_unit_test(impossible_gates_are_refused),
        cmocka_unit_test(non_finite_logits_are_located),
        cmocka_unit_test(sparsemixer_matches_the_published_example),
        cmocka_unit_test(equal_choices_are_claimed_only_where_they_hold),
        cmocka_unit_test(exp_is_as_accurate_as_stated),
        cmocka_unit_test(logarithms_and_scores_are_accurate),
        cmocka_unit_test(sign_rule_moves_against_the_load)};
    return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
