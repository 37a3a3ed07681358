/* test_oracle.c - a million tokens under random gates against a slow router in double precision
 *
 * The slow router (support_slow.c) is written from the formulas and shares no code with router/.
 * Where two choice scores, or a score and what it is compared with, are nearly equal, f32 may
 * decide otherwise: such tokens are left out and counted. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/route.h"
#include "tests/support_slow.h"
#include "tests/test.h"

enum { TOKENS = 250, TRIALS = 4160, MOST_E = 64 };

struct trial {
    struct slow_gate slow;
    struct gate gate;
    int experts;
    char text[GATE_TEXT_BYTES];
    float logits[TOKENS * MOST_E], bias[MOST_E];
    double slow_bias[MOST_E];
    int64_t token[TOKENS];
    int32_t id[TOKENS];
    struct route_rows rows;
};

struct found {
    int32_t expert[TOKENS * SLOW_TOPK];
    float weight[TOKENS * SLOW_TOPK];
    uint8_t tie[TOKENS], escape[TOKENS];
};

static void make(struct trial *t, uint64_t seed) {
    static const int sizes[] = {2, 3, 4, 4, 6, 8, 8, 8, 8, 12, 16, 64};
    struct rng rng;
    struct err err;
    rng_init(&rng, seed);
    t->experts = sizes[rng_below(&rng, sizeof sizes / sizeof *sizes)];
    t->slow = slow_gate_random(&rng, t->experts, rng_below(&rng, 2));
    if (rng_below(&rng, 3)) slow_gate_vary(&rng, &t->slow);
    slow_gate_text(&t->slow, t->text, sizeof t->text);
    test_ok(gate_parse(t->text, NULL, &t->gate, &err), &err);
    test_ok(gate_check(&t->gate, t->experts, true, &err), &err);
    bool coarse = rng_below(&rng, 6) == 0; /* exact ties */
    for (int i = 0; i < TOKENS * t->experts; i++) {
        t->logits[i] = (float)(2 * rng_normal(&rng));
        if (coarse) t->logits[i] = (float)(int)t->logits[i];
    }
    for (int e = 0; e < t->experts; e++) {
        t->bias[e] = (float)(0.3 * rng_normal(&rng));
        t->slow_bias[e] = (double)t->bias[e];
    }
    for (int i = 0; i < TOKENS; i++) {
        t->token[i] = (int64_t)rng_below(&rng, 1 << 30);
        t->id[i] = (int32_t)rng_below(&rng, 50000);
    }
    t->rows =
        (struct route_rows){.seed = seed, .layer = (int)(seed % 7), .token = t->token, .id = t->id};
}

/* As a replay routes: what is drawn by token first (and second choices last). */
static void choose(const struct trial *t, struct found *f) {
    static _Alignas(64) unsigned char scratch[1 << 18];
    static float logit[TOKENS * MOST_E], score[TOKENS * MOST_E];
    struct routes out = {f->expert, f->weight, f->tie, f->escape};
    bool late = t->gate.order == ORDER_TOPK_SCORE;
    assert_true(route_scratch_bytes(t->experts) <= sizeof scratch);
    memset(f, 0, sizeof *f);
    if (!gate_hashes(&t->gate) && t->gate.noise == 0) {
        assert_int_equal(
            route_tokens(&t->gate, t->experts, TOKENS, t->logits, t->bias, &out, scratch), -1);
        return;
    }
    route_blurred(&t->gate, &t->rows, t->experts, TOKENS, t->logits, logit, score);
    if (t->gate.noise > 0) {
        route_scored(&t->gate, t->experts, TOKENS, logit, late ? NULL : score, t->bias, &out,
                     scratch);
        return;
    }
    route_hashed(&t->gate, &t->rows, t->experts, TOKENS, NULL, f->expert);
    route_weights(&t->gate, t->experts, TOKENS, logit, score, f->expert, f->weight);
}

static void route(const struct trial *t, struct found *f) {
    choose(t, f);
    route_thin(&t->gate, &t->rows, TOKENS, f->expert, f->weight);
}

/* Rounded values may be one step apart where f64 and f32 stand on two sides of a boundary. */
static double weight_tolerance(const struct gate *gate) {
    if (gate->dtype == DTYPE_F32 || gate->dtype_logits) return 2e-5;
    return gate->dtype == DTYPE_BF16 ? 3 * 0x1p-7 : 3 * 0x1p-10;
}

static void compare(const struct trial *t, const struct found *f, int at,
                    const struct slow_choice *slow) {
    int k = t->gate.topk;
    const int32_t *expert = f->expert + at * k;
    const float *weight = f->weight + at * k;
    bool same = f->tie[at] == slow->tie && f->escape[at] == slow->escapes;
    for (int i = 0; i < k; i++) {
        double w = i < slow->n ? slow->weight[i] : 0, found = (double)weight[i];
        same = same && expert[i] == (i < slow->n ? slow->expert[i] : ROUTE_NONE) &&
               fabs(found - w) <= weight_tolerance(&t->gate) * fabs(w) + 1e-6;
    }
    if (same) return;
    for (int i = 0; i < k; i++)
        print_message("slot %d: found %d (%.9g), expected %d (%.9g)\n", i, expert[i],
                      (double)weight[i], i < slow->n ? slow->expert[i] : -1,
                      i < slow->n ? slow->weight[i] : 0.0);
    fail_msg("%s, %d experts, token %d: ties %d and %d, escapes %d and %d", t->text, t->experts, at,
             f->tie[at], slow->tie, f->escape[at], slow->escapes);
}

static void a_million_tokens_agree_with_a_slow_router(void **state) {
    static struct trial t;
    static struct found f;
    int64_t tokens = 0, left_out = 0, rare = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= TRIALS; seed++) {
        make(&t, seed);
        route(&t, &f);
        for (int i = 0; i < TOKENS; i++, tokens++) {
            const struct slow_token token = {t.rows.seed, (uint64_t)t.rows.layer,
                                             (uint64_t)t.token[i], (uint64_t)t.id[i]};
            struct slow_choice slow;
            double margin = INFINITY;
            slow_choose(&t.slow, t.experts, t.logits + i * t.experts, t.slow_bias, &token, &slow,
                        &margin);
            if (margin < (t.slow.noise > 0 ? 1e-5 : 3e-6))
                left_out++;
            else
                compare(&t, &f, i, &slow);
        }
        rare += t.slow.cut || t.slow.dtype || t.slow.noise > 0 || t.slow.hash || t.slow.second;
    }
    printf("  %lld tokens, %lld left out; %lld of %d gates are rare ones\n", (long long)tokens,
           (long long)left_out, (long long)rare, TRIALS);
    assert_true(tokens - left_out >= 1000000);
    assert_true(left_out < tokens / 30);
    assert_true(rare > TRIALS / 3);
}

int test_oracle(void);
int test_oracle(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_million_tokens_agree_with_a_slow_router),
    };
    return cmocka_run_group_tests_name("oracle", tests, NULL, NULL);
}
