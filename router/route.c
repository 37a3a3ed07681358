/* route.c - from the logits of a token to its experts and their weights
 *
 * One token at a time through small steps: scores, choice scores, group mask, top-k, weights. The
 * loops over experts are in route_portable.c and route_avx512.c (same bits); the loops over the k
 * chosen are here and run in order of selection. */
#include "router/route.h"

#include <math.h>
#include <string.h>

#include "router/mathf.h"
#include "router/route_kernels.h"

/* ---- levels */

static const struct route_kernels *forced;

static const struct route_kernels *const levels[] = {
#if defined(__x86_64__)
    &route_kernels_avx512,
#endif
    &route_kernels_portable};

static bool usable(const struct route_kernels *level) {
#if defined(__x86_64__)
    if (level == &route_kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
    return level == &route_kernels_portable;
}

static const struct route_kernels *kernels(void) {
    if (forced) return forced;
    return usable(levels[0]) ? levels[0] : &route_kernels_portable;
}

const char *route_level(void) { return kernels()->name; }

bool route_force_level(const char *name) {
    forced = NULL;
    for (size_t i = 0; name && i < sizeof levels / sizeof *levels; i++)
        if (strcmp(levels[i]->name, name) == 0 && usable(levels[i])) forced = levels[i];
    return !name || forced;
}

void route_scores(enum gate_score score, int experts, int64_t tokens, const float *logits,
                  float *scores) {
    const struct route_kernels *run = kernels();
    for (int64_t t = 0; t < tokens; t++)
        run->score[score](logits + t * experts, scores + t * experts, experts);
}

int64_t route_first_not_finite(const float *logits, int64_t n) {
    return kernels()->first_not_finite(logits, n);
}

/* ---- one token */

struct scratch {
    float *score, *choice, *group_score; /* [E] each, padded to whole lanes */
    uint8_t *kept;                       /* [E] */
};

static size_t padded(int experts) {
    return ((size_t)experts + ROUTE_LANES - 1) / ROUTE_LANES * ROUTE_LANES;
}

static struct scratch scratch_at(void *memory, int experts) {
    size_t row = padded(experts);
    float *f = memory;
    return (struct scratch){f, f + row, f + 2 * row, (uint8_t *)(f + 3 * row)};
}

size_t route_scratch_bytes(int experts) { return padded(experts) * (3 * sizeof(float) + 1); }

struct choice {
    int32_t best[GATE_MAX_TOPK + 1]; /* [k+1]; the last only where E > k */
    float weight[GATE_MAX_TOPK];     /* [k] */
    bool tie;
    int escapes;
};

/* ---- groups */

static int summed_experts(const struct gate *gate) {
    if (gate->group_rule == GROUP_MAX) return 1;
    return gate->group_rule == GROUP_TOP2SUM ? 2 : gate->topk / gate->groups_kept;
}

/* Marks the groups that stay and fills the choice scores of the others. Ranking is by counting the
 * groups that come before, which needs no list of kept ones. */
static void mask_groups(const struct route_kernels *run, const struct gate *gate, int experts,
                        const struct scratch *s) {
    int size = experts / gate->groups;
    float fill = gate->fill == FILL_ZERO ? 0.0f : -INFINITY;
    run->group_scores(s->choice, gate->groups, size, summed_experts(gate), s->group_score);
    for (int g = 0; g < gate->groups; g++) {
        float own = s->group_score[g];
        int before = 0;
        for (int h = 0; h < g; h++) before += s->group_score[h] >= own;
        for (int h = g + 1; h < gate->groups; h++) before += s->group_score[h] > own;
        s->kept[g] = before < gate->groups_kept;
    }
    for (int g = 0; g < gate->groups; g++)
        for (int i = 0; !s->kept[g] && i < size; i++) s->choice[g * size + i] = fill;
}

static int count_escapes(const struct gate *gate, int experts, const int32_t *best,
                         const uint8_t *kept) {
    int escapes = 0, size = experts / gate->groups;
    for (int i = 0; i < gate->topk; i++) escapes += !kept[best[i] / size];
    return escapes;
}

/* ---- weights */

static float p_norm(const float *w, int k, float p) {
    float sum = 0;
    for (int i = 0; i < k; i++) {
        float a = fabsf(w[i]);
        if (p == 1.0f)
            sum += a;
        else if (p == 2.0f)
            sum += a * a;
        else if (a > 0)
            sum += mathf_exp(p * mathf_log(a));
    }
    if (p == 1.0f) return sum;
    return p == 2.0f ? sqrtf(sum) : mathf_exp(mathf_log(sum) / p);
}

/* w[k] in order of selection: normalised, then scaled. */
static void finish_weights(const struct gate *gate, float *w) {
    float divisor = 1, sum = 0;
    for (int i = 0; i < gate->topk; i++) sum += w[i];
    switch (gate->norm) {
    case NORM_NONE:
        break;
    case NORM_SUM:
        divisor = sum + gate->norm_arg;
        break;
    case NORM_CLAMP:
        divisor = sum > gate->norm_arg ? sum : gate->norm_arg;
        break;
    case NORM_P:
        divisor = p_norm(w, gate->topk, gate->norm_arg);
        break;
    }
    for (int i = 0; i < gate->topk; i++) {
        if (gate->norm != NORM_NONE) w[i] /= divisor;
        w[i] *= gate->scale;
    }
}

/* ---- the two ways to route */

/* What a token is routed from: its logits, and its scores (NULL: not computed yet). */
struct token {
    const float *logits, *score, *bias;
};

/* Score, bias, groups, top-k, norm, scale (MATH.md sections 1 to 4). */
static void route_table(const struct route_kernels *run, const struct gate *gate, int experts,
                        const struct token *token, const struct scratch *s, struct choice *out) {
    bool late = gate->order == ORDER_TOPK_SCORE;
    const float *score = late ? token->logits : token->score;
    if (!score) {
        run->score[gate->score](token->logits, s->score, experts);
        score = s->score;
    }
    /* biased selection, unbiased weights: the bias steers the load and must not scale outputs */
    run->add_bias(score, gate->bias ? token->bias : NULL, s->choice, experts);
    if (gate->groups > 0) mask_groups(run, gate, experts, s);
    int wanted = gate->topk < experts ? gate->topk + 1 : gate->topk;
    run->top(s->choice, experts, wanted, out->best);
    out->tie = wanted > gate->topk &&
               s->choice[out->best[gate->topk]] == s->choice[out->best[gate->topk - 1]];
    out->escapes = gate->fill == FILL_ZERO ? count_escapes(gate, experts, out->best, s->kept) : 0;
    for (int i = 0; i < gate->topk; i++) out->weight[i] = score[out->best[i]];
    if (late) run->score[gate->score](out->weight, out->weight, gate->topk);
    finish_weights(gate, out->weight);
}

/* softmax at `at` over the experts that pass (m - l) / max(|l|, m) <= 2 EPS and are not `without`.
 */
static float sparsemixer_weight(const float *logits, int experts, int at, int without, float eps) {
    float m = logits[at], sum = 0;
    for (int i = 0; i < experts; i++) {
        float a = fabsf(logits[i]);
        float f = a > m ? a : m;
        bool masked = (m - logits[i]) / f > 2 * eps;
        if (!masked && i != without) sum += mathf_exp(logits[i] - m);
    }
    return 1.0f / sum;
}

/* PhiMoE (transformers phimoe, sparsemixer in evaluation): top-2, each weight a masked softmax. */
static void route_sparsemixer(const struct route_kernels *run, const struct gate *gate, int experts,
                              const struct token *token, const struct scratch *s,
                              struct choice *out) {
    const float *l = token->logits;
    int wanted = experts > 2 ? 3 : 2;
    run->add_bias(l, NULL, s->choice, experts);
    run->top(s->choice, experts, wanted, out->best);
    out->tie = wanted > 2 && l[out->best[2]] == l[out->best[1]];
    out->escapes = 0;
    out->weight[0] = sparsemixer_weight(l, experts, out->best[0], -1, gate->fn_arg);
    out->weight[1] = sparsemixer_weight(l, experts, out->best[1], out->best[0], gate->fn_arg);
    finish_weights(gate, out->weight);
}

static void (*const routers[])(const struct route_kernels *, const struct gate *, int,
                               const struct token *, const struct scratch *, struct choice *) = {
    [GATE_TABLE] = route_table, [GATE_SPARSEMIXER] = route_sparsemixer};

static void store(const struct gate *gate, const struct choice *choice, int64_t t,
                  struct routes *out) {
    size_t k = (size_t)gate->topk;
    memcpy(out->expert + t * gate->topk, choice->best, k * sizeof *out->expert);
    if (out->weight) memcpy(out->weight + t * gate->topk, choice->weight, k * sizeof *out->weight);
    if (out->tie) out->tie[t] = choice->tie;
    if (out->escape) out->escape[t] = (uint8_t)(choice->escapes > 255 ? 255 : choice->escapes);
}

void route_scored(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                  const float *scores, const float *bias, struct routes *out, void *scratch) {
    const struct route_kernels *run = kernels();
    struct scratch s = scratch_at(scratch, experts);
    struct choice choice;
    for (int64_t t = 0; t < tokens; t++) {
        struct token token = {.logits = logits + t * experts,
                              .score = scores ? scores + t * experts : NULL,
                              .bias = bias};
        routers[gate->fn](run, gate, experts, &token, &s, &choice);
        store(gate, &choice, t, out);
    }
}

int64_t route_tokens(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                     const float *bias, struct routes *out, void *scratch) {
    int64_t bad = route_first_not_finite(logits, tokens * experts);
    if (bad < 0) route_scored(gate, experts, tokens, logits, NULL, bias, out, scratch);
    return bad;
}
