/* route.c - from the logits of a token to its experts and their weights
 *
 * One token at a time through small steps: scores, choice scores, group mask, top-k, weights. Sums
 * over experts run in 16 strided lanes that are then added as a tree, the order that vector code
 * has too; sums over the chosen run in order of selection. */
#include "router/route.h"

#include <math.h>
#include <string.h>

#include "router/mathf.h"

enum { LANES = 16 };

/* ---- scores */

/* Sum of x[n] in LANES strided partial sums, then pairwise: the one order for all machines. */
static float lane_sum(const float *x, int n) {
    float lane[LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % LANES] += x[i];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

static void score_softmax(const float *logits, float *score, int n) {
    float max = logits[0];
    for (int i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n; i++) score[i] = mathf_exp(logits[i] - max);
    float sum = lane_sum(score, n);
    for (int i = 0; i < n; i++) score[i] /= sum;
}

static void score_sigmoid(const float *logits, float *score, int n) {
    for (int i = 0; i < n; i++) score[i] = mathf_sigmoid(logits[i]);
}

static void score_sqrtsoftplus(const float *logits, float *score, int n) {
    for (int i = 0; i < n; i++) score[i] = mathf_sqrtsoftplus(logits[i]);
}

static void score_identity(const float *logits, float *score, int n) {
    memcpy(score, logits, (size_t)n * sizeof *score);
}

static void (*const score_functions[])(const float *, float *,
                                       int) = {[SCORE_SOFTMAX] = score_softmax,
                                               [SCORE_SIGMOID] = score_sigmoid,
                                               [SCORE_SQRTSOFTPLUS] = score_sqrtsoftplus,
                                               [SCORE_IDENTITY] = score_identity};

void route_scores(enum gate_score score, int experts, int64_t tokens, const float *logits,
                  float *scores) {
    for (int64_t t = 0; t < tokens; t++)
        score_functions[score](logits + t * experts, scores + t * experts, experts);
}

/* ---- selection */

/* best[k] <- the indices of the k highest of x[n], higher first, lower index first among equals.
 * Insertion into a short sorted list: most candidates fail the first comparison. */
static void top_indices(const float *x, int n, int k, int32_t *best) {
    int held = 0;
    for (int32_t i = 0; i < n; i++) {
        if (held == k && !(x[i] > x[best[k - 1]])) continue;
        int at = held < k ? held++ : k - 1;
        for (; at > 0 && x[i] > x[best[at - 1]]; at--) best[at] = best[at - 1];
        best[at] = i;
    }
}

/* The sum of the m highest of x[n], added from the highest down. m <= GATE_MAX_TOPK. */
static float top_sum(const float *x, int n, int m) {
    int32_t best[GATE_MAX_TOPK];
    top_indices(x, n, m, best);
    float sum = x[best[0]];
    for (int i = 1; i < m; i++) sum += x[best[i]];
    return sum;
}

static int summed_experts(const struct gate *gate) {
    if (gate->group_rule == GROUP_MAX) return 1;
    return gate->group_rule == GROUP_TOP2SUM ? 2 : gate->topk / gate->groups_kept;
}

/* Fills the choice scores of dropped groups; kept[groups] <- 1 for the groups that stay.
 * Ranking is by counting the groups that come before, which needs no list of kept ones. */
static void mask_groups(const struct gate *gate, int experts, float *choice, float *group_score,
                        uint8_t *kept) {
    int size = experts / gate->groups;
    float fill = gate->fill == FILL_ZERO ? 0.0f : -INFINITY;
    int best = summed_experts(gate);
    for (int g = 0; g < gate->groups; g++) group_score[g] = top_sum(choice + g * size, size, best);
    for (int g = 0; g < gate->groups; g++) {
        int before = 0;
        for (int h = 0; h < gate->groups; h++)
            before +=
                group_score[h] > group_score[g] || (group_score[h] == group_score[g] && h < g);
        kept[g] = before < gate->groups_kept;
    }
    for (int g = 0; g < gate->groups; g++)
        for (int i = 0; !kept[g] && i < size; i++) choice[g * size + i] = fill;
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

/* ---- one token */

struct scratch {
    float *score, *choice, *group_score; /* [E] each */
    uint8_t *kept;                       /* [E] */
};

static struct scratch scratch_at(void *memory, int experts) {
    size_t row = ((size_t)experts + LANES - 1) / LANES * LANES;
    float *f = memory;
    return (struct scratch){f, f + row, f + 2 * row, (uint8_t *)(f + 3 * row)};
}

size_t route_scratch_bytes(int experts) {
    size_t row = ((size_t)experts + LANES - 1) / LANES * LANES;
    return row * (3 * sizeof(float) + 1);
}

struct choice {
    int32_t best[GATE_MAX_TOPK + 1]; /* [k+1]; the last only where E > k */
    float weight[GATE_MAX_TOPK];     /* [k] */
    bool tie;
    int escapes;
};

static int count_escapes(const struct gate *gate, int experts, const int32_t *best,
                         const uint8_t *kept) {
    int escapes = 0, size = experts / gate->groups;
    for (int i = 0; i < gate->topk; i++) escapes += !kept[best[i] / size];
    return escapes;
}

/* Score, bias, groups, top-k, norm, scale (MATH.md sections 1 to 4). */
static void route_table(const struct gate *gate, int experts, const float *logits,
                        const float *bias, const struct scratch *s, struct choice *out) {
    bool late = gate->order == ORDER_TOPK_SCORE;
    const float *score = logits;
    if (!late) {
        score_functions[gate->score](logits, s->score, experts);
        score = s->score;
    }
    /* biased selection, unbiased weights: the bias steers the load and must not scale outputs */
    for (int i = 0; i < experts; i++) s->choice[i] = gate->bias ? score[i] + bias[i] : score[i];
    if (gate->groups > 0) mask_groups(gate, experts, s->choice, s->group_score, s->kept);
    int wanted = gate->topk < experts ? gate->topk + 1 : gate->topk;
    top_indices(s->choice, experts, wanted, out->best);
    out->tie = wanted > gate->topk &&
               s->choice[out->best[gate->topk]] == s->choice[out->best[gate->topk - 1]];
    out->escapes = gate->groups > 0 ? count_escapes(gate, experts, out->best, s->kept) : 0;
    for (int i = 0; i < gate->topk; i++) out->weight[i] = score[out->best[i]];
    if (late) score_functions[gate->score](out->weight, out->weight, gate->topk);
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
static void route_sparsemixer(const struct gate *gate, int experts, const float *logits,
                              const float *bias, const struct scratch *s, struct choice *out) {
    (void)bias, (void)s;
    int wanted = experts > 2 ? 3 : 2;
    top_indices(logits, experts, wanted, out->best);
    out->tie = wanted > 2 && logits[out->best[2]] == logits[out->best[1]];
    out->escapes = 0;
    out->weight[0] = sparsemixer_weight(logits, experts, out->best[0], -1, gate->fn_arg);
    out->weight[1] = sparsemixer_weight(logits, experts, out->best[1], out->best[0], gate->fn_arg);
    finish_weights(gate, out->weight);
}

static void (*const routers[])(const struct gate *, int, const float *, const float *,
                               const struct scratch *, struct choice *) = {
    [GATE_TABLE] = route_table, [GATE_SPARSEMIXER] = route_sparsemixer};

static void store(const struct gate *gate, const struct choice *choice, int64_t t,
                  struct routes *out) {
    size_t k = (size_t)gate->topk;
    memcpy(out->expert + t * gate->topk, choice->best, k * sizeof *out->expert);
    if (out->weight) memcpy(out->weight + t * gate->topk, choice->weight, k * sizeof *out->weight);
    if (out->tie) out->tie[t] = choice->tie;
    if (out->escape) out->escape[t] = (uint8_t)(choice->escapes > 255 ? 255 : choice->escapes);
}

/* Index of the first NaN or infinity, -1 when there is none. */
static int64_t first_not_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if ((mathf_bits(x[i]) & 0x7f800000u) == 0x7f800000u) return i;
    return -1;
}

int64_t route_tokens(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                     const float *bias, struct routes *out, void *scratch) {
    int64_t bad = first_not_finite(logits, tokens * experts);
    if (bad >= 0) return bad;
    struct scratch s = scratch_at(scratch, experts);
    struct choice choice;
    for (int64_t t = 0; t < tokens; t++) {
        routers[gate->fn](gate, experts, logits + t * experts, bias, &s, &choice);
        store(gate, &choice, t, out);
    }
    return -1;
}
