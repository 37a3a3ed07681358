/* test_route.c - every CPU level of the router gives the bits of the portable one */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "router/route.h"
#include "tests/test.h"

enum { TOKENS = 40, MAX_E = 320, MAX_K = 40 };

struct buffers {
    int32_t expert[TOKENS * MAX_K];
    float weight[TOKENS * MAX_K];
    uint8_t tie[TOKENS], escape[TOKENS];
};

static const int sizes[] = {1, 2, 5, 8, 16, 31, 32, 33, 60, 64, 72, 96, 128, 160, 256, 320};

static int pick(struct rng *rng, int n) { return (int)rng_below(rng, (uint64_t)n); }

/* A random gate of the grammar that E experts allow; false when the draw is impossible. */
static bool random_gate(struct rng *rng, int experts, struct gate *gate) {
    struct err err;
    *gate = (struct gate){.score = (enum gate_score)pick(rng, 4),
                          .bias = pick(rng, 2),
                          .topk = 1 + pick(rng, experts < MAX_K ? experts : MAX_K),
                          .order = (enum gate_order)pick(rng, 2),
                          .norm = (enum gate_norm)pick(rng, 4),
                          .norm_arg = pick(rng, 2) ? 1e-20f : 2.0f,
                          .scale = 2.5f};
    if (pick(rng, 3)) gate->topk = 1 + pick(rng, experts < 12 ? experts : 12);
    if (gate->norm == NORM_P) gate->norm_arg = 1.0f + (float)pick(rng, 3);
    if (pick(rng, 2)) {
        gate->groups = 1 << (1 + pick(rng, 4));
        gate->groups_kept = 1 + pick(rng, gate->groups);
        gate->group_rule = (enum gate_group_rule)pick(rng, 3);
        gate->fill = (enum gate_fill)pick(rng, 2);
        if (gate->group_rule == GROUP_TOPSUM && gate->topk < gate->groups_kept) return false;
    }
    return gate_check(gate, experts, true, &err);
}

/* Normal logits, sometimes quantised (ties), sometimes far apart (saturation). */
static void random_logits(struct rng *rng, float *x, int n) {
    double scale = pick(rng, 4) ? 2 : 60;
    bool coarse = pick(rng, 3) == 0;
    for (int i = 0; i < n; i++) {
        x[i] = (float)(scale * rng_normal(rng));
        if (coarse) x[i] = (float)(int)x[i];
    }
}

static void run_level(const char *level, const struct gate *gate, int experts, const float *logits,
                      const float *bias, bool shared, struct buffers *b) {
    static _Alignas(64) unsigned char scratch[1 << 20];
    static float scores[TOKENS * MAX_E];
    struct routes out = {b->expert, b->weight, b->tie, b->escape};
    assert_true(route_scratch_bytes(experts) <= sizeof scratch);
    assert_true(route_force_level(level));
    memset(b, 0, sizeof *b);
    if (shared) {
        route_scores(gate->score, experts, TOKENS, logits, scores);
        route_scored(gate, experts, TOKENS, logits, scores, bias, &out, scratch);
    } else {
        assert_int_equal(route_tokens(gate, experts, TOKENS, logits, bias, &out, scratch), -1);
    }
}

static void levels_agree_bit_for_bit(void **state) {
    (void)state;
    static struct buffers truth, found;
    static float logits[TOKENS * MAX_E], bias[MAX_E];
    struct rng rng;
    rng_init(&rng, 20);
    print_message("best level here: %s\n", route_level());
    int gates = 0;
    for (int round = 0; round < 6000; round++) {
        int experts = sizes[pick(&rng, sizeof sizes / sizeof *sizes)];
        struct gate gate;
        if (!random_gate(&rng, experts, &gate)) continue;
        random_logits(&rng, logits, TOKENS * experts);
        for (int e = 0; e < experts; e++) bias[e] = (float)rng_normal(&rng);
        run_level("portable", &gate, experts, logits, bias, false, &truth);
        for (int i = 0; route_level_at(i); i++) {
            if (!route_force_level(route_level_at(i))) continue;
            for (int shared = 0; shared < 2; shared++) {
                run_level(route_level_at(i), &gate, experts, logits, bias, shared, &found);
                if (memcmp(&truth, &found, sizeof truth) == 0) continue;
                char line[GATE_TEXT_BYTES];
                gate_print(&gate, line);
                fail_msg("%s differs from portable: %d experts, %s", route_level_at(i), experts,
                         line);
            }
        }
        gates++;
    }
    route_force_level(NULL);
    assert_true(gates > 2000);
}

/* Logits that differ by about as much as the keys of the fastest level can tell apart, more or
 * less, in random order; some are equal. */
static void close_logits(struct rng *rng, float *x, int n) {
    float centre = (float)(4 * rng_normal(rng)), step = (float)exp(-14 + 10 * rng_uniform(rng));
    for (int i = 0; i < n; i++) x[i] = centre + step * (float)pick(rng, 2 * n);
}

static void close_calls_are_the_same_on_every_level(void **state) {
    (void)state;
    static struct buffers truth, found;
    static float logits[TOKENS * MAX_E], bias[MAX_E];
    static const struct {
        const char *gate;
        int experts;
    } cases[] = {{"deepseek-v3", 256},
                 {"deepseek-v3,groups=8:2:max,norm=none", 256},
                 {"sigmoid,topk=8,norm=sum", 128},
                 {"sigmoid,bias,groups=4:2:top2sum,topk=9,norm=clamp:1", 128},
                 {"olmoe", 64},
                 {"softmax,bias,topk=6,norm=none", 64},
                 {"softmax,topk=1,norm=sum", 32}};
    struct rng rng;
    rng_init(&rng, 21);
    for (int round = 0; round < 2000; round++) {
        size_t c = (size_t)pick(&rng, sizeof cases / sizeof *cases);
        int experts = cases[c].experts;
        struct gate gate;
        struct err err;
        assert_true(gate_parse(cases[c].gate, NULL, &gate, &err));
        for (int t = 0; t < TOKENS; t++) close_logits(&rng, logits + t * experts, experts);
        double spread = exp(-16 + 16 * rng_uniform(&rng));
        for (int e = 0; e < experts; e++) bias[e] = (float)(spread * rng_normal(&rng));
        run_level("portable", &gate, experts, logits, bias, false, &truth);
        for (int shared = 0; shared < 2; shared++) {
            run_level(NULL, &gate, experts, logits, bias, shared, &found);
            if (memcmp(&truth, &found, sizeof truth) != 0)
                fail_msg("%s differs from portable: %s", route_level(), cases[c].gate);
        }
    }
    route_force_level(NULL);
}

static void levels_find_the_same_bad_logit(void **state) {
    (void)state;
    float x[100] = {0};
    const char *const names[] = {"portable", route_level()};
    for (int at = 0; at < 100; at++) {
        x[at] = at % 2 ? (float)NAN : -(float)INFINITY;
        for (int i = 0; i < 2; i++) {
            assert_true(route_force_level(names[i]));
            assert_int_equal(route_first_not_finite(x, 100), at);
            assert_int_equal(route_first_not_finite(x, at), -1);
        }
        x[at] = 3e38f;
    }
    route_force_level(NULL);
    assert_false(route_force_level("no such level"));
}

int test_route(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(levels_agree_bit_for_bit),
                                       cmocka_unit_test(close_calls_are_the_same_on_every_level),
                                       cmocka_unit_test(levels_find_the_same_bad_logit)};
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
