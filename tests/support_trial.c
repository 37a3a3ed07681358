/* support_trial.c - random gates on random logits, and shrinking of those that break a law */
#include "tests/support_trial.h"

#include <math.h>
#include <string.h>

#include "tests/test.h"

static int pick(struct rng *rng, int n) { return (int)rng_below(rng, (uint64_t)n); }

/* Does the language allow it, among that many experts? */
static bool possible(const struct trial *t) {
    char line[GATE_TEXT_BYTES];
    struct gate gate;
    struct err err;
    if (t->experts < 1 || t->tokens < 1 || t->gate.topk < 1) return false;
    gate_print(&t->gate, line);
    return gate_parse(line, NULL, &gate, &err) && gate_equal(&gate, &t->gate) &&
           gate_check(&gate, t->experts, true, &err);
}

static void random_choice(struct rng *rng, struct gate *gate, int experts) {
    int most = experts < TRIAL_TOPK ? experts : TRIAL_TOPK;
    *gate = (struct gate){.score = (enum gate_score)pick(rng, SCORE_IDENTITY + 1),
                          .bias = pick(rng, 2),
                          .topk = 1 + pick(rng, most),
                          .order = (enum gate_order)(pick(rng, 4) == 0),
                          .norm = (enum gate_norm)pick(rng, 4),
                          .scale = pick(rng, 2) ? 1 : 2.5f};
    if (gate->norm != NORM_NONE) gate->norm_arg = gate->norm == NORM_SUM && pick(rng, 2) ? 0 : 1.5f;
    if (pick(rng, 2)) return;
    gate->groups = 2 + pick(rng, 7);
    gate->groups_kept = 1 + pick(rng, gate->groups);
    gate->group_rule = (enum gate_group_rule)pick(rng, 3);
    gate->fill = (enum gate_fill)pick(rng, 2);
}

static void random_rare(struct rng *rng, struct gate *gate) {
    static const float shares[] = {0.1f, 0.3f, 0.5f, 0.9f, 1};
    if (pick(rng, 4) == 0) {
        gate->cut = (enum gate_cut)(1 + pick(rng, 2));
        gate->cut_arg = gate->cut == CUT_TOPP ? shares[pick(rng, 5)] : 0.25f * (float)pick(rng, 5);
    }
    if (pick(rng, 4) == 0) {
        gate->dtype = (enum gate_dtype)(1 + pick(rng, 2));
        gate->dtype_logits = pick(rng, 2);
    }
    if (pick(rng, 5) == 0) gate->noise = 0.25f * (float)(1 + pick(rng, 4));
    if (pick(rng, 12) == 0) {
        gate->fn = GATE_HASH;
        gate->fn_arg = (float)pick(rng, 100);
    } else if (pick(rng, 16) == 0) {
        gate->fn = GATE_SPARSEMIXER;
        gate->fn_arg = 0.01f;
    }
}

void trial_random(struct rng *rng, struct trial *t) {
    static const int sizes[] = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 96};
    do {
        *t = (struct trial){.experts = sizes[pick(rng, sizeof sizes / sizeof *sizes)],
                            .tokens = 1 + pick(rng, TRIAL_TOKENS),
                            .seed = rng_next(rng) >> 40,
                            .coarse = pick(rng, 4) == 0};
        random_choice(rng, &t->gate, t->experts);
        if (pick(rng, 2)) random_rare(rng, &t->gate);
    } while (!possible(t));
}

/* About normal, sd 2: twelve uniforms, from one key. */
static float logit_at(uint64_t seed, uint64_t token, uint64_t expert, bool coarse) {
    double sum = -6;
    uint64_t key = rng_at(rng_at(seed, token), expert);
    for (uint64_t i = 0; i < 12; i++) sum += (double)(rng_at(key, i) >> 11) * 0x1p-53;
    return coarse ? (float)(int)(2 * sum) : (float)(2 * sum);
}

void trial_logits(const struct trial *t, float *logits, float *bias) {
    for (int i = 0; i < t->tokens; i++)
        for (int e = 0; e < t->experts; e++)
            logits[i * t->experts + e] =
                logit_at(t->seed, (uint64_t)(t->first + i), (uint64_t)e, t->coarse);
    for (int e = 0; e < t->experts; e++)
        bias[e] = 0.1f * logit_at(t->seed, UINT64_MAX, (uint64_t)e, false);
}

struct trial_rows {
    struct route_rows rows;
    int64_t token[TRIAL_TOKENS];
    int32_t id[TRIAL_TOKENS];
};

static void make_rows(const struct trial *t, struct trial_rows *r) {
    r->rows = (struct route_rows){.seed = t->seed, .layer = 3, .token = r->token, .id = r->id};
    for (int i = 0; i < t->tokens; i++) {
        r->token[i] = t->first + i;
        r->id[i] = (int32_t)(rng_at(t->seed, (uint64_t)r->token[i]) % 1000);
    }
}

void trial_view(const struct trial *t, const float *logits, float *logit, float *score) {
    struct trial_rows r;
    make_rows(t, &r);
    route_blurred(&t->gate, &r.rows, t->experts, t->tokens, logits, logit, score);
}

void trial_route(const struct trial *t, const float *logits, const float *bias,
                 struct trial_routes *routes) {
    static _Alignas(64) unsigned char scratch[1 << 18];
    static float logit[TRIAL_TOKENS * TRIAL_EXPERTS], score[TRIAL_TOKENS * TRIAL_EXPERTS];
    struct routes out = {routes->expert, routes->weight, routes->tie, routes->escape};
    struct trial_rows r;
    memset(routes, 0, sizeof *routes);
    assert_true(route_scratch_bytes(t->experts) <= sizeof scratch);
    if (gate_hashes(&t->gate)) {
        make_rows(t, &r);
        trial_view(t, logits, logit, score);
        route_hashed(&t->gate, &r.rows, t->experts, t->tokens, NULL, routes->expert);
        route_weights(&t->gate, t->experts, t->tokens, logit, score, routes->expert,
                      routes->weight);
    } else if (t->gate.noise > 0) {
        trial_view(t, logits, logit, NULL);
        route_scored(&t->gate, t->experts, t->tokens, logit, NULL, bias, &out, scratch);
    } else {
        assert_int_equal(route_tokens(&t->gate, t->experts, t->tokens, logits, bias, &out, scratch),
                         -1);
    }
}

/* ---- shrinking */

/* clang-format off: a table */
/* One way to make a trial smaller; it may be impossible, or change nothing. */
static void smaller(struct trial *t, int way) {
    struct gate *g = &t->gate;
    switch (way) {
    case 0:
        t->tokens /= 2;
        break;
    case 1:
        t->first += t->tokens / 2, t->tokens -= t->tokens / 2;
        break;
    case 2:
        t->tokens--;
        break;
    case 3:
        t->experts /= 2;
        break;
    case 4:
        t->experts--;
        break;
    case 5:
        g->topk = 1;
        break;
    case 6:
        g->topk /= 2;
        break;
    case 7:
        g->topk--;
        break;
    case 8:
        g->groups = g->groups_kept = 0, g->group_rule = GROUP_MAX, g->fill = FILL_NEG_INF;
        break;
    case 9:
        g->fill = FILL_NEG_INF;
        break;
    case 10:
        g->cut = CUT_NONE, g->cut_arg = 0;
        break;
    case 11:
        g->dtype = DTYPE_F32, g->dtype_logits = false;
        break;
    case 12:
        g->noise = 0;
        break;
    case 13:
        g->bias = false;
        break;
    case 14:
        g->order = ORDER_SCORE_TOPK;
        break;
    case 15:
        g->norm = NORM_NONE, g->norm_arg = 0;
        break;
    case 16:
        g->scale = 1;
        break;
    case 17:
        g->fn = GATE_TABLE, g->fn_arg = 0;
        break;
    case 18:
        g->score = SCORE_SOFTMAX;
        break;
    case 19:
        t->coarse = false;
        break;
    default:
        t->first = 0;
        break;
    }
}
/* clang-format on */

enum { WAYS = 21 };

int trial_shrink(struct trial *trial, trial_law *law) {
    int steps = 0;
    for (int way = 0; way < WAYS;) {
        struct trial t = *trial;
        smaller(&t, way);
        bool changed = memcmp(&t, trial, sizeof t) != 0;
        if (changed && possible(&t) && !law(&t)) {
            *trial = t;
            steps++;
            way = 0;
        } else {
            way++;
        }
    }
    return steps;
}

void trial_check(const char *name, trial_law *law, uint64_t seed, int count) {
    struct rng rng;
    rng_init(&rng, seed);
    for (int i = 0; i < count; i++) {
        struct trial t;
        char line[GATE_TEXT_BYTES];
        trial_random(&rng, &t);
        if (law(&t)) continue;
        int steps = trial_shrink(&t, law);
        gate_print(&t.gate, line);
        fail_msg("%s: broken by %s with %d experts, %d tokens from %lld, %slogits of seed %llu "
                 "(trial %d, %d steps smaller)",
                 name, line, t.experts, t.tokens, (long long)t.first, t.coarse ? "whole " : "",
                 (unsigned long long)t.seed, i, steps);
    }
}
