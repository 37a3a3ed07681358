/* route.c - from the logits of a token to its experts and their weights
 *
 * A block of tokens at a time through small steps: scores, choice scores, group mask, top-k,
 * weights. The loops over experts are in route_portable.c and route_avx512.c (same bits); the loops
 * over the k chosen are here and run in order of selection. Where a level can, a block goes through
 * all steps at once (route_choose_avx512.c, route_keys_avx512.c; MATH.md section 13). */
#include "router/route.h"

#include <math.h>
#include <string.h>

#include "router/mathf.h"
#include "router/rounding.h"
#include "router/route_kernels.h"

/* ---- levels */

static const struct route_kernels *forced;

/* The best first. */
static const struct route_kernels *const levels[] = {
#if defined(__x86_64__)
    &route_kernels_avx512vbmi2, &route_kernels_avx512, &route_kernels_avx2,
#endif
    &route_kernels_portable};
enum { LEVELS = sizeof levels / sizeof *levels };

static bool usable(const struct route_kernels *level) {
#if defined(__x86_64__)
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (level == &route_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == &route_kernels_avx512) return avx512;
    if (level == &route_kernels_avx512vbmi2) return avx512 && __builtin_cpu_supports("avx512vbmi2");
#endif
    return level == &route_kernels_portable;
}

static const struct route_kernels *kernels(void) {
    int i = 0;
    if (forced) return forced;
    while (!usable(levels[i])) i++;
    return levels[i];
}

const char *route_level_at(int i) { return i < LEVELS ? levels[i]->name : NULL; }

const char *route_level(void) { return kernels()->name; }

bool route_force_level(const char *name) {
    forced = NULL;
    for (int i = 0; name && i < LEVELS; i++)
        if (strcmp(levels[i]->name, name) == 0 && usable(levels[i])) forced = levels[i];
    return !name || forced;
}

int64_t route_first_not_finite(const float *logits, int64_t n) {
    return kernels()->first_not_finite(logits, n);
}

int64_t route_scores(enum gate_score score, int experts, int64_t tokens, const float *logits,
                     float *scores) {
    const struct route_kernels *run = kernels();
    uint32_t most = 0;
    for (int64_t t = 0; t < tokens; t += ROUTE_BLOCK) {
        int rows = tokens - t < ROUTE_BLOCK ? (int)(tokens - t) : ROUTE_BLOCK;
        uint32_t largest =
            run->score[score](logits + t * experts, scores + t * experts, experts, rows);
        most = largest > most ? largest : most;
    }
    return most < 0x7f800000u ? -1 : run->first_not_finite(logits, tokens * experts);
}

/* ---- scratch of a block of tokens */

enum { BEST_SLOTS = ROUTE_BLOCK * (GATE_MAX_TOPK + 1) };
enum { SCALE_SLOTS = (sizeof(struct route_scale) + 63) / 64 * 16 };

struct scratch {
    float *score;       /* [ROUTE_BLOCK, E] */
    float *logit;       /* [ROUTE_BLOCK, E] rounded, where the gate rounds */
    float *choice;      /* [ROUTE_BLOCK, padded E] */
    uint8_t *kept;      /* [ROUTE_BLOCK, padded E], the first N of each row used */
    int32_t *best;      /* [ROUTE_BLOCK, k+1] */
    float *group_score; /* [padded E] */
    struct route_scale *scale;
};

/* Every part is a whole number of lanes long, so all are aligned if the memory is. */
static struct scratch scratch_at(void *memory, int experts) {
    size_t row = (size_t)route_padded(experts), block = row * ROUTE_BLOCK;
    float *f = memory;
    return (struct scratch){.score = f,
                            .choice = f + block,
                            .logit = f + 2 * block,
                            .group_score = f + 3 * block,
                            .best = (int32_t *)(f + 3 * block + row),
                            .scale = (struct route_scale *)(f + 3 * block + row + BEST_SLOTS),
                            .kept = (uint8_t *)(f + 3 * block + row + BEST_SLOTS + SCALE_SLOTS)};
}

size_t route_scratch_bytes(int experts) {
    size_t row = (size_t)route_padded(experts), block = row * ROUTE_BLOCK;
    return (3 * block + row + BEST_SLOTS + SCALE_SLOTS) * sizeof(float) + block;
}

/* ---- groups */

static struct route_groups resolve_groups(const struct gate *gate, int experts) {
    return (struct route_groups){.count = gate->groups,
                                 .kept = gate->groups_kept,
                                 .size = experts / gate->groups,
                                 .best = gate_summed_experts(gate),
                                 .fill = gate->fill == FILL_ZERO ? 0.0f : -INFINITY};
}

static uint8_t count_escapes(const struct gate *gate, int experts, const int32_t *best,
                             const uint8_t *kept) {
    int escapes = 0, size = experts / gate->groups;
    for (int i = 0; i < gate->topk; i++) escapes += best[i] != ROUTE_NONE && !kept[best[i] / size];
    return (uint8_t)(escapes > 255 ? 255 : escapes);
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

/* w[k] in order of selection: normalised, then scaled. A divisor of 0 divides nothing: weights that
 * are all 0 stay 0. */
static inline void finish_weights(const struct gate *gate, float *w, int k) {
    float divisor = 1, sum = 0;
    for (int i = 0; i < k; i++) sum += w[i];
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
        divisor = p_norm(w, k, gate->norm_arg);
        break;
    }
    if (divisor == 0) divisor = 1;
    /* a divisor of 1 changes nothing */
    for (int i = 0; i < k; i++) w[i] = w[i] / divisor * gate->scale;
}

/* ---- the two ways to route a block */

/* At most ROUTE_BLOCK tokens and where their routes go. */
struct block {
    const struct gate *gate;
    int experts, tokens;
    const float *logits, *scores, *bias; /* [tokens,E]; scores NULL: not computed yet; [E] */
    const struct route_scale *scale;     /* NULL: not made */
    struct routes out;
    struct scratch scratch;
};

/* best[wanted] of each choice row, after the group mask. */
static void select_best(const struct route_kernels *run, const struct block *b, int wanted) {
    const struct scratch *s = &b->scratch;
    int stride = route_padded(b->experts);
    if (b->gate->groups > 0) {
        struct route_groups groups = resolve_groups(b->gate, b->experts);
        if (run->top_of_kept &&
            run->top_of_kept(&groups, b->tokens, stride, wanted, s->choice, s->best))
            return;
        run->mask_groups(&groups, b->tokens, stride, s->choice, s->kept, s->group_score);
    }
    run->top(s->choice, b->tokens, stride, b->experts, wanted, s->best);
}

/* The k best by score[T,E] (and bias, groups) into out.expert, and whether the next one ties with
 * the last; step by step. */
static void choose_in_steps(const struct route_kernels *run, const struct block *b,
                            const float *score) {
    int E = b->experts, stride = route_padded(E), k = b->gate->topk, wanted = k < E ? k + 1 : k;
    for (int t = 0; t < b->tokens; t++)
        run->add_bias(score + t * E, b->gate->bias ? b->bias : NULL, b->scratch.choice + t * stride,
                      E);
    select_best(run, b, wanted);
    for (int t = 0; t < b->tokens; t++) {
        const int32_t *best = b->scratch.best + t * wanted;
        const float *choice = b->scratch.choice + t * stride;
        for (int i = 0; i < k; i++) b->out.expert[t * k + i] = best[i];
        if (b->out.tie) b->out.tie[t] = wanted > k && choice[best[k]] == choice[best[k - 1]];
    }
}

/* The fewest of best[k] whose share of the sum of score[E] reaches P; f64, added in order. */
static int reach_share(const struct gate *gate, int experts, const float *score,
                       const int32_t *best) {
    double total = 0, sum = 0;
    for (int e = 0; e < experts; e++) total += (double)score[e];
    for (int n = 0; n < gate->topk; n++) {
        sum += (double)score[best[n]];
        if (sum >= (double)gate->cut_arg * total) return n + 1;
    }
    return gate->topk;
}

/* How many of a token's best[k] it keeps. */
static int count_kept(const struct gate *gate, int experts, const float *score, const float *choice,
                      const int32_t *best) {
    int n = 0;
    if (gate->cut == CUT_TOPP) return reach_share(gate, experts, score, best);
    while (n < gate->topk && choice[best[n]] > gate->cut_arg) n++;
    return n;
}

/* choose for gates whose tokens keep different numbers of experts. */
static void choose_and_cut(const struct route_kernels *run, const struct block *b,
                           const float *score) {
    int E = b->experts, stride = route_padded(E), k = b->gate->topk, wanted = k < E ? k + 1 : k;
    for (int t = 0; t < b->tokens; t++)
        run->add_bias(score + t * E, b->gate->bias ? b->bias : NULL, b->scratch.choice + t * stride,
                      E);
    select_best(run, b, wanted);
    for (int t = 0; t < b->tokens; t++) {
        const int32_t *best = b->scratch.best + t * wanted;
        const float *choice = b->scratch.choice + t * stride;
        int n = count_kept(b->gate, E, score + t * E, choice, best);
        for (int i = 0; i < k; i++) b->out.expert[t * k + i] = i < n ? best[i] : ROUTE_NONE;
        if (b->out.tie)
            b->out.tie[t] = n > 0 && n < wanted && choice[best[n]] == choice[best[n - 1]];
    }
}

static struct route_job job_of(const struct block *b, const float *score,
                               struct route_groups *groups) {
    const struct gate *gate = b->gate;
    bool plain = gate->fn == GATE_TABLE && gate->order == ORDER_SCORE_TOPK &&
                 gate->dtype == DTYPE_F32 && gate->cut == CUT_NONE;
    if (gate->groups > 0) *groups = resolve_groups(gate, b->experts);
    return (struct route_job){.gate = gate,
                              .experts = b->experts,
                              .tokens = b->tokens,
                              .topk = gate->topk,
                              .signs = score == b->logits || gate_score_negative(gate->score),
                              .groups = gate->groups > 0 ? groups : NULL,
                              .score = score,
                              .logits = b->logits,
                              .bias = gate->bias ? b->bias : NULL,
                              .scale = b->scale,
                              .expert = b->out.expert,
                              .tie = b->out.tie,
                              .weight = plain ? b->out.weight : NULL,
                              .room = b->scratch.score};
}

/* Token t of a block as a block of its own. */
static struct block one_token(const struct block *b, int t) {
    struct block one = *b;
    int slot = t * b->gate->topk;
    one.tokens = 1;
    one.logits += t * b->experts;
    if (one.scores) one.scores += t * b->experts;
    one.out = (struct routes){.expert = b->out.expert + slot,
                              .weight = b->out.weight ? b->out.weight + slot : NULL,
                              .tie = b->out.tie ? b->out.tie + t : NULL,
                              .escape = b->out.escape ? b->out.escape + t : NULL};
    return one;
}

/* The bits of the block's tokens. Not left to the kernels: GCC 12 spills a mask of 16 lanes as two
 * bytes, reads four back and holds the upper half for zero. */
static unsigned tokens_of(unsigned bits, const struct block *b) {
    return bits & ((1u << b->tokens) - 1);
}

/* choose_in_steps, all at once for as many tokens as that way can. Returns the tokens, one bit
 * each, that have their weights too. */
static unsigned choose(const struct route_kernels *run, const struct block *b, const float *score) {
    struct route_groups groups;
    struct route_job job = job_of(b, score, &groups);
    unsigned all = (1u << b->tokens) - 1, left = all;
    if (b->gate->cut != CUT_NONE) {
        choose_and_cut(run, b, score);
        return 0;
    }
    if (run->choose) left = tokens_of(run->choose(&job), b);
    if (left == all) choose_in_steps(run, b, score);
    for (unsigned rest = left == all ? 0 : left; rest; rest &= rest - 1) {
        int t = __builtin_ctz(rest);
        const struct block one = one_token(b, t);
        choose_in_steps(run, &one, score + t * b->experts);
    }
    return job.weighed ? all & ~left : 0;
}

/* w[T,k] from score[T,E] (logits where the score function comes last) at expert[T,k]. Inlined for
 * the usual k, which then is a constant. */
static inline void weigh_k(const struct route_kernels *run, const struct gate *gate, int experts,
                           int64_t tokens, const float *score, const int32_t *expert, float *weight,
                           int k) {
    for (int64_t t = 0; t < tokens; t++) {
        float *w = weight + t * k;
        for (int i = 0; i < k; i++) w[i] = score[t * experts + expert[t * k + i]];
        if (gate->order == ORDER_TOPK_SCORE) run->score[gate->score](w, w, k, 1);
        finish_weights(gate, w, k);
    }
}

/* finish_weights, each step rounded. */
static void finish_rounded(const struct gate *gate, enum gate_dtype dtype, float *w, int k) {
    struct gate step = *gate;
    float sum = 0, divisor = 1;
    for (int i = 0; i < k; i++) sum += w[i];
    sum = round_to(dtype, sum);
    if (gate->norm == NORM_SUM) divisor = sum + gate->norm_arg;
    if (gate->norm == NORM_CLAMP) divisor = sum > gate->norm_arg ? sum : gate->norm_arg;
    if (gate->norm == NORM_P) divisor = p_norm(w, k, gate->norm_arg);
    divisor = round_to(dtype, divisor);
    step.norm = NORM_NONE;
    for (int i = 0; i < k && divisor != 0; i++) w[i] = round_to(dtype, w[i] / divisor);
    finish_weights(&step, w, k);
    for (int i = 0; i < k; i++) w[i] = round_to(dtype, w[i]);
}

/* weight[n] of one token's experts. */
static void weigh_row(const struct route_kernels *run, const struct gate *gate, const float *score,
                      const int32_t *expert, int n, float *weight) {
    enum gate_dtype dtype = gate->dtype_logits ? DTYPE_F32 : gate->dtype;
    for (int i = 0; i < n; i++) weight[i] = score[expert[i]];
    if (gate->order == ORDER_TOPK_SCORE && n > 0) {
        run->score[gate->score](weight, weight, n, 1);
        for (int i = 0; i < n; i++) weight[i] = round_to(dtype, weight[i]);
    }
    if (dtype == DTYPE_F32)
        finish_weights(gate, weight, n);
    else
        finish_rounded(gate, dtype, weight, n);
}

/* weigh for gates that round or cut: n <= k experts of each token. */
static void weigh_rare(const struct route_kernels *run, const struct gate *gate, int experts,
                       int64_t tokens, const float *score, const int32_t *expert, float *weight) {
    int k = gate->topk;
    for (int64_t t = 0; t < tokens; t++, expert += k, weight += k) {
        int n = 0;
        while (n < k && expert[n] != ROUTE_NONE) n++;
        for (int i = n; i < k; i++) weight[i] = 0;
        weigh_row(run, gate, score + t * experts, expert, n, weight);
    }
}

void route_weigh_row(const struct gate *gate, const float *score, const int32_t *expert, int n,
                     float *weight) {
    weigh_row(kernels(), gate, score, expert, n, weight);
}

static void weigh(const struct route_kernels *run, const struct gate *gate, int experts,
                  int64_t tokens, const float *score, const int32_t *expert, float *weight) {
    if (gate->cut != CUT_NONE || gate->dtype != DTYPE_F32)
        weigh_rare(run, gate, experts, tokens, score, expert, weight);
    else if (gate->topk == 8)
        weigh_k(run, gate, experts, tokens, score, expert, weight, 8);
    else if (gate->topk == 6)
        weigh_k(run, gate, experts, tokens, score, expert, weight, 6);
    else
        weigh_k(run, gate, experts, tokens, score, expert, weight, gate->topk);
}

/* Score, bias, groups, top-k, norm, scale (MATH.md sections 1 to 4). */
static void route_table(const struct route_kernels *run, const struct block *b) {
    const struct scratch *s = &b->scratch;
    const float *score = b->gate->order == ORDER_TOPK_SCORE ? b->logits : b->scores;
    int E = b->experts, stride = route_padded(E);
    if (!score) {
        run->score[b->gate->score](b->logits, s->score, E, b->tokens);
        score = s->score;
    }
    /* biased selection, unbiased weights: the bias steers the load and must not scale outputs */
    unsigned weighed = choose(run, b, score);
    if (b->out.escape) memset(b->out.escape, 0, (size_t)b->tokens);
    for (int t = 0; b->gate->fill == FILL_ZERO && b->out.escape && t < b->tokens; t++)
        b->out.escape[t] =
            count_escapes(b->gate, E, b->out.expert + t * b->gate->topk, s->kept + t * stride);
    if (b->out.weight && !weighed)
        weigh(run, b->gate, E, b->tokens, score, b->out.expert, b->out.weight);
    unsigned left = weighed ? ~weighed & ((1u << b->tokens) - 1) : 0;
    for (; left; left &= left - 1) {
        int t = __builtin_ctz(left);
        const struct block one = one_token(b, t);
        weigh(run, b->gate, E, 1, score + t * E, one.out.expert, one.out.weight);
    }
}

/* route_table without the scores of all experts; false where that cannot be: nothing was done. */
static bool route_straight(const struct route_kernels *run, const struct block *b) {
    struct route_groups groups;
    struct route_job job = job_of(b, NULL, &groups);
    if (!run->choose_logits) return false;
    unsigned left = tokens_of(run->choose_logits(&job), b);
    if (left == (1u << b->tokens) - 1) return false;
    if (b->out.escape) memset(b->out.escape, 0, (size_t)b->tokens);
    for (; left; left &= left - 1) {
        const struct block one = one_token(b, __builtin_ctz(left));
        route_table(run, &one);
    }
    return true;
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
static void route_sparsemixer(const struct route_kernels *run, const struct block *b) {
    int E = b->experts;
    float eps = b->gate->fn_arg;
    choose(run, b, b->logits);
    for (int t = 0; t < b->tokens; t++) {
        const float *l = b->logits + t * E;
        const int32_t *best = b->out.expert + t * 2;
        if (b->out.escape) b->out.escape[t] = 0;
        if (!b->out.weight) continue;
        float *w = b->out.weight + t * 2;
        w[0] = sparsemixer_weight(l, E, best[0], -1, eps);
        w[1] = sparsemixer_weight(l, E, best[1], best[0], eps);
        finish_weights(b->gate, w, 2);
    }
}

static void (*const routers[])(const struct route_kernels *, const struct block *) = {
    [GATE_TABLE] = route_table, [GATE_SPARSEMIXER] = route_sparsemixer};

/* What a gate that rounds sees: logits, and scores computed from those. Idempotent: what is rounded
 * already stays. */
static void round_block(struct block *b) {
    bool scores = b->gate->order == ORDER_SCORE_TOPK && !b->scores;
    route_blurred(b->gate, NULL, b->experts, b->tokens, b->logits, b->scratch.logit,
                  scores ? b->scratch.score : NULL);
    b->logits = b->scratch.logit;
    if (scores) b->scores = b->scratch.score;
}

/* ---- any number of tokens */

static struct block block_at(const struct gate *gate, int experts, int64_t tokens, int64_t first,
                             const struct routes *out) {
    int64_t left = tokens - first, slot = first * gate->topk;
    return (struct block){.gate = gate,
                          .experts = experts,
                          .tokens = left < ROUTE_BLOCK ? (int)left : ROUTE_BLOCK,
                          .out = {.expert = out->expert + slot,
                                  .weight = out->weight ? out->weight + slot : NULL,
                                  .tie = out->tie ? out->tie + first : NULL,
                                  .escape = out->escape ? out->escape + first : NULL}};
}

/* Worth its while for whole blocks. */
static const struct route_scale *make_scale(const struct gate *gate, int experts, int64_t tokens,
                                            const float *bias, void *scratch) {
    struct route_scale *scale = scratch_at(scratch, experts).scale;
    if (tokens < ROUTE_BLOCK || !kernels()->make_scale) return NULL;
    kernels()->make_scale(gate->bias ? bias : NULL, experts, scale);
    return scale;
}

void route_scored(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                  const float *scores, const float *bias, struct routes *out, void *scratch) {
    const struct route_kernels *run = kernels();
    const struct route_scale *scale = make_scale(gate, experts, tokens, bias, scratch);
    for (int64_t t = 0; t < tokens; t += ROUTE_BLOCK) {
        struct block b = block_at(gate, experts, tokens, t, out);
        b.scale = scale;
        b.logits = logits + t * experts;
        b.scores = scores ? scores + t * experts : NULL;
        b.bias = bias;
        b.scratch = scratch_at(scratch, experts);
        if (gate->dtype != DTYPE_F32) round_block(&b);
        routers[gate->fn](run, &b);
    }
}

void route_weights(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                   const float *scores, const int32_t *expert, float *weight) {
    const float *from = gate->order == ORDER_TOPK_SCORE ? logits : scores;
    weigh(kernels(), gate, experts, tokens, from, expert, weight);
}

/* A block at a time, so that what one step reads is still in the nearest cache for the next. */
int64_t route_tokens(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                     const float *bias, struct routes *out, void *scratch) {
    bool by_score =
        gate->fn == GATE_TABLE && gate->order == ORDER_SCORE_TOPK && gate->dtype == DTYPE_F32;
    float *score = scratch_at(scratch, experts).score;
    const struct route_scale *scale = make_scale(gate, experts, tokens, bias, scratch);
    for (int64_t t = 0; t < tokens; t += ROUTE_BLOCK) {
        struct block b = block_at(gate, experts, tokens, t, out);
        const float *block = logits + t * experts;
        b.logits = block;
        b.bias = bias;
        b.scale = scale;
        b.scratch = scratch_at(scratch, experts);
        if (by_score && gate->cut == CUT_NONE && route_straight(kernels(), &b)) continue;
        int64_t bad = by_score ? route_scores(gate->score, experts, b.tokens, block, score)
                               : route_first_not_finite(block, (int64_t)b.tokens * experts);
        if (bad >= 0) return t * experts + bad;
        route_scored(gate, experts, b.tokens, block, by_score ? score : NULL, bias, &b.out,
                     scratch);
    }
    return -1;
}
