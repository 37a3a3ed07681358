/* test_batch.c - gates that need a whole balance batch: vectors by hand, slow twins, replay */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/table.h"
#include "router/batch.h"
#include "sim/optimum.h"
#include "tests/support_replay.h"
#include "tests/support_trace.h"
#include "tests/test.h"
#include "traces/query.h"

static struct gate parse(const char *text) {
    struct gate gate;
    struct err err = {0};
    test_ok(gate_parse(text, NULL, &gate, &err), &err);
    return gate;
}

/* One batch routed from its logits alone, all memory exactly as large as promised. */
struct routed_batch {
    int32_t *expert; /* [T,S] */
    float *weight;
    float *scores; /* [T,E] */
};

static struct routed_batch run(const struct gate *gate, int experts, int64_t tokens,
                               const float *logits) {
    size_t slots = (size_t)(tokens * gate_slots(gate, experts)), cells = (size_t)(tokens * experts);
    struct routed_batch r = {calloc(slots + 1, sizeof *r.expert),
                             calloc(slots + 1, sizeof *r.weight),
                             calloc(cells + 1, sizeof *r.scores)};
    struct routes out = {.expert = r.expert, .weight = r.weight};
    size_t bytes = route_batch_bytes(gate, experts, tokens);
    void *memory = aligned_alloc(64, bytes ? bytes : 64);
    void *scratch = aligned_alloc(64, (route_scratch_bytes(experts) + 63) / 64 * 64);
    assert_true(r.expert && r.weight && r.scores && memory && scratch && bytes != SIZE_MAX);
    memset(memory, 0xa5, bytes);
    route_scores(gate->score, experts, tokens, logits, r.scores);
    if (gate->assign == ASSIGN_TOKEN)
        route_scored(gate, experts, tokens, logits, r.scores, NULL, &out, scratch);
    if (gate_needs_batch(gate)) route_batch(gate, experts, tokens, logits, r.scores, &out, memory);
    free(scratch);
    free(memory);
    return r;
}

static void batch_free(struct routed_batch *r) {
    free(r->expert);
    free(r->weight);
    free(r->scores);
}

/* ---- by hand */

static const float four[] = {3, 1, 2, 1, 4, 1, 1, 0.5f}; /* all want expert 0 */
static const float three[] = {3, 2, 1, 1, 3, 2, 4, 1, 2};
static const float split[] = {3, 1, 2, 4, 1, 2, 4, 3};
static const float greedy[] = {5, 4, 5, 0};
static const float apart[] = {9, 8, 0, 0, 7, 6, 0, 0, 5, 0, 4, 0};
static const float kernel[] = {1.3862944f, 0, 0.6931472f, 0}; /* exp: 4 1 / 2 1 */

static const struct {
    const char *gate;
    int experts, tokens;
    const float *logits;
    int32_t expected[8]; /* [T,S] */
} vectors[] = {
    /* C = 4/2: the weights 4 and 3 stay; or the first two tokens */
    {"identity,topk=1,capacity=1", 2, 4, four, {0, -1, 0, -1}},
    {"identity,topk=1,capacity=1:position", 2, 4, four, {0, 0, -1, -1}},
    /* C = 2.5: up 3, down 2, to the nearest (even) 2 */
    {"identity,topk=1,capacity=1.25", 2, 4, four, {0, 0, 0, -1}},
    {"identity,topk=1,capacity=1.25,round=floor", 2, 4, four, {0, -1, 0, -1}},
    {"identity,topk=1,capacity=1.25:position,round=nearest", 2, 4, four, {0, 0, -1, -1}},
    {"identity,topk=1,capacity=2", 2, 4, four, {0, 0, 0, 0}},
    /* C = 3*2/3/2 = 1; choices (0,1) (1,2) (0,2). All first choices, then the second ones: */
    {"identity,topk=2,capacity=0.5:position", 3, 3, three, {0, -1, 1, 2, -1, -1}},
    {"identity,topk=2,capacity=0.5:position:token", 3, 3, three, {0, 1, -1, 2, -1, -1}},
    /* token 2 has the highest weight and goes first */
    {"identity,topk=2,capacity=0.5:priority", 3, 3, three, {-1, -1, 1, -1, 0, 2}},
    {"identity,topk=2,capacity=0.5:priority:token", 3, 3, three, {-1, 1, -1, -1, 0, 2}},
    /* expert 2 has weights 2 and 2: the earlier token stays */
    {"identity,topk=2,capacity=0.5", 3, 3, three, {-1, -1, 1, 2, 0, -1}},
    /* C = 6/2 = 3 choices a device of {0,1} {2,3}; choices (0,1) (0,1) (0,2): 0 takes 9 and 7, 1
     * takes 8, which is 3; apart they would take 2 each. By order: first choices 9 7 5, no second
     */
    {"identity,topk=2,capacity=1,devices=2", 4, 3, apart, {0, 1, 0, -1, -1, 2}},
    {"identity,topk=2,capacity=1:position,devices=2", 4, 3, apart, {0, -1, 0, -1, 0, 2}},
    {"identity,topk=2,capacity=1:position:token,devices=2", 4, 3, apart, {0, 1, 0, -1, -1, 2}},
    {"identity,topk=2,capacity=1:position,devices=4", 4, 3, apart, {0, 1, 0, 1, -1, 2}},
    {"identity,topk=2,capacity=1:position,devices=1", 4, 3, apart, {0, 1, 0, 1, 0, 2}},
    /* expert 0 takes tokens 3 and 0, expert 1 takes 1 and 3; token 2 has none, token 3 two */
    {"identity,assign=expert,topk=1", 2, 4, split, {0, -1, 1, -1, -1, -1, 0, 1}},
    /* half the capacity: tokens 3 and 1 */
    {"identity,assign=expert,topk=1,capacity=0.5", 2, 4, split, {-1, -1, 1, -1, -1, -1, 0, -1}},
    /* 4 + 5 against 5 + 0 */
    {"identity,assign=base,topk=1", 2, 2, greedy, {1, 0}},
    {"sigmoid,assign=base,order=topk-score,topk=1", 2, 2, greedy, {1, 0}},
    /* the balanced plan is a (1 - a) / (1 - a) a with (a / (1 - a))^2 = 4*1 / (1*2): a > 1/2 */
    {"sigmoid,assign=sinkhorn,topk=1", 2, 2, kernel, {0, 1}},
    {"sigmoid,topk=1", 2, 2, kernel, {0, 0}},
};

static void batches_match_vectors_by_hand(void **state) {
    (void)state;
    for (size_t v = 0; v < sizeof vectors / sizeof *vectors; v++) {
        struct gate gate = parse(vectors[v].gate);
        struct routed_batch r =
            run(&gate, vectors[v].experts, vectors[v].tokens, vectors[v].logits);
        int slots = gate_slots(&gate, vectors[v].experts);
        for (int i = 0; i < vectors[v].tokens * slots; i++) {
            if (r.expert[i] != vectors[v].expected[i])
                fail_msg("%s: slot %d: found %d, expected %d", vectors[v].gate, i, r.expert[i],
                         vectors[v].expected[i]);
            if (r.expert[i] == ROUTE_NONE) assert_true(r.weight[i] == 0);
        }
        batch_free(&r);
    }
}

/* Weights are those of the raw score, not of what balanced: sigmoid of the logit, or the softmax.
 */
static void weights_come_from_the_raw_score(void **state) {
    struct gate sinkhorn = parse("megatron-sinkhorn"), expert = parse("expert-choice,topk=1");
    struct gate normed = parse("identity,assign=expert,topk=1,norm=sum,scale=7");
    struct routed_batch r = run(&sinkhorn, 2, 2, kernel);
    (void)state;
    test_near((double)r.weight[0], 0.8, 1e-6); /* 4 / (1 + 4) */
    test_near((double)r.weight[1], 0.5, 1e-6);
    batch_free(&r);
    r = run(&expert, 2, 4, split);
    test_near((double)r.weight[0], 1 / (1 + exp(-2)), 1e-6);
    test_near((double)r.weight[4], 1 / (1 + exp(-1)), 1e-6); /* token 2 to expert 1 */
    assert_true(r.expert[4] == 1 && r.expert[7] == ROUTE_NONE);
    batch_free(&r);
    r = run(&normed, 2, 4, split);
    test_near((double)r.weight[0], 7, 1e-6);
    test_near((double)r.weight[6], 4, 1e-6); /* 7 times 4 / (4 + 3) */
    test_near((double)r.weight[7], 3, 1e-6);
    assert_true(r.weight[4] == 0 && r.weight[5] == 0);
    batch_free(&r);
}

/* ---- slow twins: the definitions, in double precision where they compute */

enum { MOST_T = 64, MOST_E = 12 };

/* Whether choice (t, i) is served before (u, j). */
static bool earlier(const struct gate *gate, const float *weight, int k, int t, int i, int u,
                    int j) {
    double most_t = 0, most_u = 0;
    for (int s = 0; s < k; s++) {
        most_t = fmax(most_t, (double)weight[t * k + s]);
        most_u = fmax(most_u, (double)weight[u * k + s]);
    }
    bool token_first = gate->drop == DROP_PRIORITY && most_t != most_u ? most_t > most_u : t < u;
    if (t == u) return i < j;
    if (gate->turn == TURN_CHOICE && i != j) return i < j;
    return token_first;
}

/* A choice stays when fewer than C of its expert's (or device's) choices come before it: by weight
 * that is all; by order those dropped do not count, which for a queue is the same. */
static void slow_capacity(const struct gate *gate, int experts, int tokens, int32_t *expert,
                          const float *weight) {
    int k = gate->topk, kept[MOST_T * MOST_E];
    int sharers = gate->devices ? gate->devices : experts, size = experts / sharers;
    double factor = gate->capacity * k * tokens / sharers;
    double c = gate->rounding == ROUND_CEIL ? ceil(factor - 1e-9) : floor(factor + 1e-9);
    for (int a = 0; a < tokens * k; a++) {
        int before = 0;
        for (int b = 0; b < tokens * k; b++) {
            bool by_weight = weight[b] > weight[a] || (weight[b] == weight[a] && b < a);
            bool first = gate->drop == DROP_PROB
                             ? by_weight
                             : earlier(gate, weight, k, b / k, b % k, a / k, a % k);
            before += b != a && expert[b] / size == expert[a] / size && first;
        }
        kept[a] = before < c;
    }
    for (int a = 0; a < tokens * k; a++)
        if (!kept[a]) expert[a] = -1;
}

static void capacity_is_the_slow_definition(void **state) {
    static const char *const policies[] = {"", ":position", ":position:token", ":priority",
                                           ":priority:token"};
    static const char *const rounds[] = {"ceil", "floor"};
    struct rng rng;
    (void)state;
    rng_init(&rng, 61);
    for (int trial = 0; trial < 300; trial++) {
        int experts = 2 + (int)rng_below(&rng, MOST_E - 1);
        int tokens = 1 + (int)rng_below(&rng, MOST_T);
        int k = 1 + (int)rng_below(&rng, (uint64_t)(experts < 4 ? experts : 4));
        char text[GATE_TEXT_BYTES];
        snprintf(text, sizeof text, "softmax,topk=%d,norm=sum,capacity=%g%s,round=%s", k,
                 0.25 * (double)(1 + rng_below(&rng, 8)), policies[trial % 5], rounds[trial % 2]);
        struct gate gate = parse(text), free_gate = gate;
        free_gate.capacity = 0;
        int devices = 1 + (int)rng_below(&rng, (uint64_t)experts);
        if (trial % 3 && experts % devices == 0) gate.devices = devices;
        float *logits = random_logits(&rng, tokens, experts, 1.5);
        struct routed_batch found = run(&gate, experts, tokens, logits);
        struct routed_batch all = run(&free_gate, experts, tokens, logits);
        slow_capacity(&gate, experts, tokens, all.expert, all.weight);
        int load[MOST_E] = {0}, kept = 0, dropped = 0;
        for (int i = 0; i < tokens * k; i++) {
            if (found.expert[i] != all.expert[i])
                fail_msg("trial %d %s: slot %d: found %d, expected %d", trial, text, i,
                         found.expert[i], all.expert[i]);
            kept += found.expert[i] >= 0;
            dropped += found.expert[i] < 0;
            if (found.expert[i] >= 0)
                load[gate.devices ? found.expert[i] / (experts / gate.devices) : found.expert[i]]++;
            assert_true(found.weight[i] == (found.expert[i] < 0 ? 0 : all.weight[i]));
        }
        assert_int_equal(kept + dropped, k * tokens);
        for (int e = 0; e < experts; e++)
            assert_true(load[e] <= gate_capacity(&gate, experts, tokens));
        batch_free(&found);
        batch_free(&all);
        free(logits);
    }
}

static void experts_choose_their_best_tokens(void **state) {
    struct rng rng;
    (void)state;
    rng_init(&rng, 62);
    for (int trial = 0; trial < 200; trial++) {
        int experts = 2 + (int)rng_below(&rng, MOST_E - 1);
        int tokens = 1 + (int)rng_below(&rng, MOST_T);
        char text[GATE_TEXT_BYTES];
        snprintf(text, sizeof text, "softmax,assign=expert,topk=1,capacity=%g",
                 0.5 * (double)(1 + rng_below(&rng, 4)));
        struct gate gate = parse(text);
        float *logits = random_logits(&rng, tokens, experts, 1.5);
        struct routed_batch r = run(&gate, experts, tokens, logits);
        double c = fmin(ceil(gate.capacity * tokens / experts - 1e-9), tokens);
        for (int e = 0; e < experts; e++) {
            for (int t = 0; t < tokens; t++) {
                int better = 0;
                bool has = false;
                for (int u = 0; u < tokens; u++) {
                    float mine = r.scores[t * experts + e], other = r.scores[u * experts + e];
                    better += other > mine || (other == mine && u < t);
                }
                for (int i = 0; i < experts; i++) has |= r.expert[t * experts + i] == e;
                assert_int_equal(has, better < c);
            }
        }
        batch_free(&r);
        free(logits);
    }
}

/* Megatron-LM's loop, word for word of its formula, on exp(l) as it is. Answers the distance that
 * decided the k-th choice of each token at least. */
static double slow_sinkhorn(int experts, int tokens, const float *logits, int k, int32_t *expert) {
    static double cost[MOST_T][MOST_E], d0[MOST_T], d1[MOST_E];
    double error = 1e9, margin = INFINITY;
    for (int t = 0; t < tokens; t++)
        for (int e = 0; e < experts; e++) cost[t][e] = exp((double)logits[t * experts + e]);
    for (int e = 0; e < experts; e++) d1[e] = 1;
    while (error > 1e-4) {
        error = 0;
        for (int t = 0; t < tokens; t++) {
            double sum = 0;
            for (int e = 0; e < experts; e++) sum += d1[e] * cost[t][e];
            d0[t] = 1.0 / tokens / (sum + 1e-8);
        }
        for (int e = 0; e < experts; e++) {
            double sum = 0, old = d1[e];
            for (int t = 0; t < tokens; t++) sum += d0[t] * cost[t][e];
            d1[e] = 1.0 / experts / (sum + 1e-8);
            error += fabs(d1[e] - old) / experts;
        }
    }
    for (int t = 0; t < tokens; t++) {
        double plan[MOST_E], last = 0;
        for (int e = 0; e < experts; e++) plan[e] = d1[e] * cost[t][e] * d0[t];
        for (int i = 0; i <= k && i < experts; i++) {
            int best = 0;
            for (int e = 1; e < experts; e++) best = plan[e] > plan[best] ? e : best;
            if (i > 0) margin = fmin(margin, (last - plan[best]) / last);
            if (i < k) expert[t * k + i] = best;
            last = plan[best];
            plan[best] = -1;
        }
    }
    return margin;
}

static void sinkhorn_is_the_loop_of_its_source(void **state) {
    struct rng rng;
    int compared = 0;
    (void)state;
    rng_init(&rng, 63);
    for (int trial = 0; trial < 200; trial++) {
        int experts = 2 + (int)rng_below(&rng, MOST_E - 1);
        int tokens = 1 + (int)rng_below(&rng, MOST_T), k = 1 + (int)rng_below(&rng, 2);
        int32_t expected[MOST_T * 2];
        char text[GATE_TEXT_BYTES];
        snprintf(text, sizeof text, "softmax,assign=sinkhorn,topk=%d", k);
        struct gate gate = parse(text);
        float *logits = random_logits(&rng, tokens, experts, 1.0);
        struct routed_batch r = run(&gate, experts, tokens, logits);
        if (slow_sinkhorn(experts, tokens, logits, k, expected) > 1e-5) {
            for (int i = 0; i < tokens * k; i++) assert_int_equal(r.expert[i], expected[i]);
            compared++;
        }
        batch_free(&r);
        free(logits);
    }
    assert_true(compared > 150);
}

/* Best total of all ways to fill equal places. */
static double best_of_all(const float *score, int t, int tokens, int experts, int *places) {
    double best = -INFINITY;
    if (t == tokens) return 0;
    for (int e = 0; e < experts; e++) {
        if (!places[e]) continue;
        places[e]--;
        best = fmax(best, (double)score[t * experts + e] +
                              best_of_all(score, t + 1, tokens, experts, places));
        places[e]++;
    }
    return best;
}

static void base_is_the_best_of_all_equal_assignments(void **state) {
    enum { T = 9, E = 3 };
    struct gate gate = parse("base");
    struct rng rng;
    (void)state;
    rng_init(&rng, 64);
    for (int trial = 0; trial < 60; trial++) {
        int places[E] = {3, 3, 3}, load[E] = {0};
        double total = 0;
        float *logits = random_logits(&rng, T, E, 2.0);
        for (int i = 0; i < T * E && trial % 3 == 0; i++) logits[i] = (float)(int)logits[i];
        struct routed_batch r = run(&gate, E, T, logits);
        for (int t = 0; t < T; t++) {
            load[r.expert[t]]++;
            total += (double)logits[t * E + r.expert[t]];
            double sigmoid = 1 / (1 + exp(-(double)logits[t * E + r.expert[t]]));
            test_near((double)r.weight[t], sigmoid, 1e-6);
        }
        for (int e = 0; e < E; e++) assert_int_equal(load[e], 3);
        test_near(total, best_of_all(logits, 0, T, E, places), 1e-6);
        batch_free(&r);
        free(logits);
    }
}

/* ---- the language */

static void what_cannot_be_is_refused_with_the_reason(void **state) {
    static const struct {
        const char *gate, *reason;
    } bad[] = {
        {"softmax,topk=2,capacity=0", "a factor above 0"},
        {"softmax,topk=2,capacity=-1", "capacity"},
        {"softmax,topk=2,capacity=1:best", "prob position priority"},
        {"softmax,topk=2,capacity=1:prob:token", "serves in no order"},
        {"softmax,topk=2,capacity=1,round=sideways", "ceil floor nearest"},
        {"softmax,bias,topk=2,assign=expert", "expected nobias"},
        {"sigmoid,bias,topk=1,assign=base", "expected nobias"},
        {"softmax,topk=2,groups=4:2:max,assign=sinkhorn", "groups=none"},
        {"softmax,topk=1,assign=base,capacity=1", "nothing can be dropped"},
        {"softmax,topk=1,assign=expert,capacity=1:position", "nothing is dropped"},
        {"softmax,topk=1,assign=expert:3", "found an argument"},
        {"softmax,topk=1,assign=sinkhorn:0", "sinkhorn"},
        {"phimoe,assign=expert", "expected fn=table"},
        {"softmax,topk=2,assign=nobody", "token expert sinkhorn base"},
        {"softmax,topk=2,devices=4", "found no capacity"},
        {"softmax,topk=2,assign=expert,devices=4", "found assign=expert"},
        {"softmax,topk=2,capacity=1,devices=0", "devices"},
        {"softmax,topk=4,second=random", "found another topk"},
        {"softmax,topk=2,second=random,topp=0.5", "found topp or threshold"},
        {"tanh,topk=2,second=random", "can be negative"},
        {"phimoe,second=random", "found a special function"},
        {"softmax,topk=2,second=random,assign=sinkhorn", "found assign="},
        {"softmax,topk=2,second=random,capacity=1:priority", "policy priority"},
        {"softmax,topk=2,second=never", "expected one of: all random"},
        {"softmax,topk=2,second=random,seed=-1", "seed"},
        {"softmax,topk=2,second=random,seed=2147483648", "seed"},
    };
    struct gate gate;
    struct err err;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(gate_parse(bad[i].gate, NULL, &gate, &err));
        if (!strstr(err.text, bad[i].reason))
            fail_msg("%s: \"%s\" lacks \"%s\"", bad[i].gate, err.text, bad[i].reason);
    }
    gate = parse("gshard");
    assert_false(gate_check_native(&gate, 8, false, &err));
    assert_non_null(strstr(err.text, "whole balance batch"));
    assert_true(gate_check(&gate, 8, false, &err));
    gate = parse("gshard,capacity=none");
    assert_false(gate_check_native(&gate, 8, false, &err));
    assert_non_null(strstr(err.text, "found second=random"));
    assert_false(gate_check_live(&gate, 8, false, &err));
    assert_non_null(strstr(err.text, "without a seed"));
    gate = parse("deepseek-v2-train");
    assert_false(gate_check(&gate, 36, false, &err));
    assert_non_null(strstr(err.text, "devices: found 8, expected a divisor of 36"));
}

static void batch_gates_round_trip_and_know_causality(void **state) {
    static const struct {
        const char *text, *printed;
        bool causal;
    } gates[] = {
        {"softmax,topk=2,capacity=1.10:prob,round=ceil", "softmax,topk=2,norm=none,capacity=1.1",
         false},
        {"softmax,topk=2,capacity=1:position:choice",
         "softmax,topk=2,norm=none,capacity=1:position", false},
        {"softmax,topk=2,capacity=1:position:token",
         "softmax,topk=2,norm=none,capacity=1:position:token", true},
        {"switch-train", "softmax,topk=1,norm=none,capacity=1.25:position,round=floor", true},
        {"softmax,topk=1,assign=sinkhorn:1e-3:50",
         "softmax,assign=sinkhorn:0.001:50,topk=1,norm=none", false},
        {"gshard,capacity=none", "softmax,topk=2,norm=sum:1e-9,second=random", true},
        {"deepseek-v2-train,capacity=none",
         "softmax,groups=8:3:max,fill=0,topk=6,norm=none,scale=16", true},
        {"softmax,topk=4,capacity=1:position:token,devices=4",
         "softmax,topk=4,norm=none,capacity=1:position:token,devices=4", true},
        {"softmax,topk=2,second=random,seed=7,noise=0",
         "softmax,topk=2,norm=none,second=random,seed=7", true},
        {"softmax,topk=2,second=random,seed=7,second=all", "softmax,topk=2,norm=none", true},
        {"softmax,assign=expert,topk=2", "softmax,assign=expert,topk=2,norm=none,capacity=1",
         false},
        {"base,assign=token", "sigmoid,order=topk-score,topk=1,norm=none", true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof gates / sizeof *gates; i++) {
        struct gate gate = parse(gates[i].text), again;
        char line[GATE_TEXT_BYTES];
        gate_print(&gate, line);
        assert_string_equal(line, gates[i].printed);
        again = parse(line);
        assert_true(gate_equal(&gate, &again));
        assert_int_equal(gate_is_causal(&gate), gates[i].causal);
    }
}

static void capacities_round_as_their_sources(void **state) {
    static const struct {
        const char *gate;
        int experts, tokens;
        int64_t places;
    } cases[] = {
        {"softmax,topk=8,capacity=1", 256, 4096, 128},
        {"softmax,topk=2,capacity=1.1", 10, 50, 11},
        {"switch-train", 8, 100, 15},           /* int(100 * 1.25 / 8) = int(15.6) */
        {"gshard", 6, 100, 33},                 /* int(200 / 6) */
        {"v-moe", 8, 100, 26},                  /* round(210 / 8 = 26.25) */
        {"deepseek-v2-train", 160, 4096, 3072}, /* 6 * 4096 / 8 choices of a device */
        {"softmax,topk=2,capacity=9,devices=4", 8, 100, 200},
        {"softmax,topk=1,capacity=9", 8, 100, 100}, /* never more than there are */
        {"softmax,topk=1", 8, 100, 100},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gate gate = parse(cases[i].gate);
        assert_int_equal(gate_capacity(&gate, cases[i].experts, cases[i].tokens), cases[i].places);
    }
}

static void equal_loads_are_claimed_where_they_are_proved(void **state) {
    static const struct {
        const char *a, *b;
        bool same;
    } pairs[] = {
        {"sigmoid,topk=2,assign=expert", "sqrtsoftplus,topk=2,assign=expert,norm=sum", true},
        {"sigmoid,topk=2,assign=expert", "softmax,topk=2,assign=expert", false},
        {"sigmoid,topk=2,assign=expert", "sigmoid,topk=2,assign=expert,capacity=2", false},
        {"sigmoid,topk=2,capacity=1:position", "softmax,topk=2,capacity=1:position,norm=sum", true},
        {"sigmoid,topk=2,capacity=1", "softmax,topk=2,capacity=1", false},
        {"sigmoid,topk=2,capacity=1", "sigmoid,topk=2,capacity=1,norm=sum", false},
        {"sigmoid,topk=2,capacity=1", "sigmoid,topk=2", false},
        {"softmax,topk=1,assign=sinkhorn", "sigmoid,topk=1,assign=sinkhorn", true},
        {"softmax,topk=1,assign=base", "sigmoid,topk=1,assign=base", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct gate a = parse(pairs[i].a), b = parse(pairs[i].b);
        assert_int_equal(gate_same_choice(&a, &b), pairs[i].same);
        assert_int_equal(gate_same_choice(&b, &a), pairs[i].same);
    }
}

/* ---- in a replay */

enum { TOKENS = 700, EXPERTS = WORLD_EXPERTS, LAYERS = 2 };

static const char *const some_gates[] = {
    "native",
    "native,capacity=1",
    "native,capacity=1:position",
    "native,capacity=1.25:priority:token",
    "native,assign=expert",
    "native,assign=sinkhorn",
    "native,assign=base",
    "native,assign=sinkhorn,capacity=1",
};
enum { GATES = 8 };
static const int64_t some_batches[] = {256, 100, 5000};
static const struct variant_lists sweep = {
    .gates = {some_gates, GATES}, .batch_tokens = some_batches, .batch_count = 3};

/* The rows of the sweep come by layer, gate, batch. */
static const struct kept_row *row_at(const struct kept *kept, int layer, int gate, int batch) {
    return &kept->row[(layer * GATES + gate) * 3 + batch];
}

static void replay_conserves_and_bounds_loads(void **state) {
    struct small_world w;
    struct kept kept;
    struct replay_options options = {.threads = 1, .documents = false};
    (void)state;
    plain_world_make(&w, TOKENS);
    kept_run(&kept, &sweep, &w.source, &options);
    for (int i = 0; i < LAYERS * GATES * 3; i++) {
        int gate = i / 3 % GATES;
        const struct kept_row *row = &kept.row[i];
        int64_t kept_choices = 0,
                batch = some_batches[i % 3] < TOKENS ? some_batches[i % 3] : TOKENS;
        for (int e = 0; e < EXPERTS; e++) kept_choices += row->tokens[e];
        if (gate != 4) /* kept + dropped = kT */
            test_near((double)kept_choices + row->m.dropped * 4 * TOKENS, 4 * TOKENS, 1e-12);
        test_near(row->m.experts_mean, (double)kept_choices / TOKENS, 1e-12);
        assert_true(row->m.experts_max <= (gate == 4 ? EXPERTS : 4));
        if (gate == 0) assert_true(row->m.dropped == 0 && row->m.unrouted == 0);
        if (gate == 1)
            assert_true(row->m.dropped > 0 && row->m.load_max < row_at(&kept, 0, 0, 0)->m.load_max);
        if (gate == 4 || gate == 6) assert_true(row->maxvio[0] == 0 || 4 * batch % EXPERTS != 0);
        if (gate == 4) assert_true(row->m.experts_max > 4 && row->m.ties == -1);
        if (gate == 1 && batch == 100) /* 7 batches of C = 25 */
            assert_true(row->m.load_max <= 7 * 25);
    }
    assert_true(row_at(&kept, 0, 1, 2)->m.dropped != row_at(&kept, 0, 1, 1)->m.dropped);
    kept_free(&kept);
    small_world_free(&w);
}

static void threads_chunks_and_company_change_no_bit(void **state) {
    static const struct replay_options options[] = {
        {.threads = 1, .chunk_tokens = 1}, {.threads = 4, .chunk_tokens = 37}, {.threads = 2}};
    struct small_world w;
    struct kept first, other;
    struct err err;
    (void)state;
    plain_world_make(&w, TOKENS);
    int64_t *order = replay_shuffle(TOKENS, 4, &err);
    for (int shuffled = 0; shuffled < 2; shuffled++) {
        for (int o = 0; o < 3; o++) {
            struct replay_options option = options[o];
            option.order = shuffled ? order : NULL;
            kept_run(o ? &other : &first, &sweep, &w.source, &option);
            for (int i = 0; o && i < first.count; i++)
                assert_true(first.row[i].digest == other.row[i].digest);
            if (o) kept_free(&other);
        }
        if (!shuffled) { /* alone, without the native gate */
            struct variant_lists one = {
                .gates = {&some_gates[5], 1}, .batch_tokens = &some_batches[1], .batch_count = 1};
            kept_run(&other, &one, &w.source, &options[0]);
            const struct kept_row *same = row_at(&first, 1, 5, 1);
            assert_memory_equal(other.row[1].tokens, same->tokens, sizeof same->tokens);
            assert_memory_equal(other.row[1].weight, same->weight, sizeof same->weight);
            kept_free(&other);
        }
        kept_free(&first);
    }
    free(order);
    small_world_free(&w);
}

/* C >= T drops nothing; one batch of everything is the batch router itself. */
static void a_replay_of_one_batch_is_the_router(void **state) {
    static const char *const gates[] = {"native,capacity=4", "native",
                                        "native,capacity=0.5:priority"};
    const int64_t batch = TOKENS;
    struct variant_lists lists = {.gates = {gates, 3}, .batch_tokens = &batch, .batch_count = 1};
    struct replay_options options = {.threads = 1, .chunk_tokens = 64};
    struct gate gate = parse("softmax,topk=4,capacity=0.5:priority");
    struct small_world w;
    struct kept kept;
    int64_t load[EXPERTS] = {0};
    (void)state;
    plain_world_make(&w, TOKENS);
    kept_run(&kept, &lists, &w.source, &options);
    assert_memory_equal(kept.row[0].tokens, kept.row[1].tokens, sizeof kept.row[0].tokens);
    assert_true(kept.row[0].m.dropped == 0);
    struct routed_batch r = run(&gate, EXPERTS, TOKENS, w.logits[0]);
    for (int i = 0; i < TOKENS * 4; i++)
        if (r.expert[i] >= 0) load[r.expert[i]]++;
    for (int e = 0; e < EXPERTS; e++) assert_int_equal(kept.row[2].tokens[e], load[e]);
    batch_free(&r);
    kept_free(&kept);
    small_world_free(&w);
}

static void a_bias_rule_sees_what_was_kept(void **state) {
    static const char *const gates[] = {"native,capacity=1"};
    static const char *const rules[] = {"none", "sign"};
    static const char *const rates[] = {"0.01"};
    const int64_t batch = 50;
    struct variant_lists lists = {.gates = {gates, 1},
                                  .bias_rules = {rules, 2},
                                  .rates = {rates, 1},
                                  .batch_tokens = &batch,
                                  .batch_count = 1};
    struct replay_options options = {.threads = 1};
    struct small_world w;
    struct kept kept;
    (void)state;
    plain_world_make(&w, TOKENS);
    kept_run(&kept, &lists, &w.source, &options);
    assert_true(kept.row[1].has_bias && kept.row[1].m.dropped < kept.row[0].m.dropped);
    kept_free(&kept);
    small_world_free(&w);
}

static void the_command_shows_and_refuses(void **state) {
    struct small_world w;
    struct str line = {0};
    char path[600], *out = NULL, *errors = NULL;
    (void)state;
    plain_world_make(&w, TOKENS);
    snprintf(path, sizeof path, "%s/run.db", test_folder("batch"));
    write_random_trace(path, &w.source, TRACE_SCORES);
    str_printf(&line,
               "%s replay %s --csv --gate native --gate expert-choice --gate native,capacity=1",
               test_program(), path);
    assert_int_equal(test_run(str_text(&line), &out, &errors), 0);
    assert_non_null(strstr(errors, "variants 2, 3: not causal"));
    assert_non_null(strstr(out, "dropped,unrouted,experts_mean,experts_max,causal"));
    free(out);
    free(errors);
    str_clear(&line);
    str_printf(&line, "%s replay %s --gate expert-choice --bias-rule sign", test_program(), path);
    assert_int_equal(test_run(str_text(&line), NULL, &errors), 2);
    assert_non_null(strstr(errors, "it balances each batch by itself"));
    free(errors);
    str_clear(&line);
    str_printf(
        &line,
        "%s throughput %s --gate expert-choice --hidden 1024 --inter 512 --ranks 4 --moe-only",
        test_program(), path);
    assert_int_equal(test_run(str_text(&line), NULL, &errors), 0);
    assert_non_null(strstr(errors, "left out: the gate looks ahead in its batch"));
    free(errors);
    str_free(&line);
    small_world_free(&w);
}

int test_batch(void);
int test_batch(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_match_vectors_by_hand),
        cmocka_unit_test(weights_come_from_the_raw_score),
        cmocka_unit_test(capacity_is_the_slow_definition),
        cmocka_unit_test(experts_choose_their_best_tokens),
        cmocka_unit_test(sinkhorn_is_the_loop_of_its_source),
        cmocka_unit_test(base_is_the_best_of_all_equal_assignments),
        cmocka_unit_test(what_cannot_be_is_refused_with_the_reason),
        cmocka_unit_test(batch_gates_round_trip_and_know_causality),
        cmocka_unit_test(capacities_round_as_their_sources),
        cmocka_unit_test(equal_loads_are_claimed_where_they_are_proved),
        cmocka_unit_test(replay_conserves_and_bounds_loads),
        cmocka_unit_test(threads_chunks_and_company_change_no_bit),
        cmocka_unit_test(a_replay_of_one_batch_is_the_router),
        cmocka_unit_test(a_bias_rule_sees_what_was_kept),
        cmocka_unit_test(the_command_shows_and_refuses),
    };
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
