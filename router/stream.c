/* stream.c - routes the tokens of one layer in order, while a rule moves the bias */
#include "router/stream.h"

#include <string.h>

#include "router/route_kernels.h"

static bool moves(const struct bias_rule *rule) { return rule && rule->update; }

/* ---- memory: parts of whole cache lines, one after the other */

/* The next part of `memory` (NULL: only counted). */
static void *part(unsigned char *memory, size_t *used, size_t count, size_t size) {
    size_t at = *used, most = SIZE_MAX - 63;
    if (at == SIZE_MAX || (count && size > most / count) || count * size > most - at) {
        *used = SIZE_MAX;
        return NULL;
    }
    *used = at + ((count * size + 63) & ~(size_t)63);
    return memory ? memory + at : NULL;
}

static size_t lay_out(struct route_stream *s, unsigned char *memory) {
    size_t used = 0, experts = (size_t)s->experts, batch = (size_t)s->batch_tokens;
    s->counts = part(memory, &used, experts, sizeof *s->counts);
    s->bias = part(memory, &used, experts, sizeof *s->bias);
    s->meets = part(memory, &used, experts, sizeof *s->meets);
    s->state = part(memory, &used, experts, (size_t)s->rule->state * sizeof *s->state);
    if (!s->rule->needs_scores) return used;
    s->seen = part(memory, &used, batch, experts * sizeof *s->seen);
    s->sorting = part(memory, &used, batch, 2 * sizeof *s->sorting);
    return used;
}

static struct route_stream stream_of(const struct route_stream_setup *setup) {
    return (struct route_stream){.gate = *setup->gate,
                                 .experts = setup->experts,
                                 .rule = moves(setup->rule) ? setup->rule : NULL,
                                 .rate = setup->rate,
                                 .batch_tokens = setup->batch_tokens,
                                 .rounded = setup->bias};
}

size_t route_stream_bytes(const struct route_stream_setup *setup) {
    struct route_stream stream = stream_of(setup);
    return stream.rule ? lay_out(&stream, NULL) : 0;
}

void route_stream_init(struct route_stream *stream, const struct route_stream_setup *setup,
                       void *memory) {
    *stream = stream_of(setup);
    if (!stream->rule) return;
    lay_out(stream, memory);
    for (int e = 0; e < stream->experts; e++) stream->bias[e] = (double)setup->bias[e];
    bias_round(stream->experts, stream->bias, stream->meets);
    stream->rounded = stream->meets;
}

int64_t route_stream_room(const struct route_stream *stream) {
    return stream->rule ? stream->batch_tokens - stream->filled : INT64_MAX;
}

/* ---- routing */

/* A factor instead of an addend: chosen by score times bias, weighed by the score alone. At most
 * ROUTE_BLOCK tokens; score and product: [ROUTE_BLOCK,E] each. */
static void route_product(const struct route_stream *s, int64_t n, const float *logits,
                          struct routes *out, float *score, void *scratch) {
    struct gate gate = s->gate;
    struct routes choice = *out;
    float *product = score + (size_t)ROUTE_BLOCK * (size_t)s->experts;
    gate.bias = false;
    choice.weight = NULL;
    if (gate.dtype == DTYPE_F32)
        route_scores(gate.score, s->experts, n, logits, score);
    else
        route_blurred(&gate, NULL, s->experts, n, logits, score, score);
    for (int64_t t = 0; t < n; t++)
        for (int e = 0; e < s->experts; e++)
            product[t * s->experts + e] = score[t * s->experts + e] * s->rounded[e];
    route_scored(&gate, s->experts, n, logits, product, NULL, &choice, scratch);
    if (out->weight) route_weights(&gate, s->experts, n, logits, score, out->expert, out->weight);
}

static size_t plain_scratch_bytes(const struct route_stream *stream) {
    return (route_scratch_bytes(stream->experts) + 63) & ~(size_t)63;
}

size_t route_stream_scratch_bytes(const struct route_stream *stream) {
    size_t products = 2 * (size_t)ROUTE_BLOCK * (size_t)stream->experts * sizeof(float);
    bool multiplies = stream->rule && stream->rule->multiplies;
    return plain_scratch_bytes(stream) + (multiplies ? (products + 63) & ~(size_t)63 : 0);
}

int64_t route_stream_route(const struct route_stream *stream, int64_t n, const float *logits,
                           struct routes *out, void *scratch) {
    const struct route_stream *s = stream;
    float *score = (float *)((unsigned char *)scratch + plain_scratch_bytes(s));
    if (!s->rule || !s->rule->multiplies)
        return route_tokens(&s->gate, s->experts, n, logits, s->rounded, out, scratch);
    int64_t bad = route_first_not_finite(logits, n * s->experts);
    if (bad >= 0) return bad;
    for (int64_t t = 0; t < n; t += ROUTE_BLOCK) {
        int64_t slot = t * s->gate.topk;
        struct routes block = {.expert = out->expert + slot,
                               .weight = out->weight ? out->weight + slot : NULL,
                               .tie = out->tie ? out->tie + t : NULL,
                               .escape = out->escape ? out->escape + t : NULL};
        route_product(s, n - t < ROUTE_BLOCK ? n - t : ROUTE_BLOCK, logits + t * s->experts, &block,
                      score, scratch);
    }
    return -1;
}

/* ---- the bias */

/* What the bias is added to: scores, or logits where those are chosen by. */
static void keep_scores(struct route_stream *s, int64_t n, const float *logits) {
    float *to = s->seen + s->filled * s->experts;
    bool late = s->gate.order == ORDER_TOPK_SCORE;
    if (s->gate.dtype != DTYPE_F32)
        route_blurred(&s->gate, NULL, s->experts, n, logits, to, late ? NULL : to);
    else if (s->gate.fn == GATE_TABLE && s->gate.order == ORDER_SCORE_TOPK)
        route_scores(s->gate.score, s->experts, n, logits, to);
    else
        memcpy(to, logits, (size_t)(n * s->experts) * sizeof *to);
}

static void update(struct route_stream *s) {
    const struct bias_batch batch = {.experts = s->experts,
                                     .topk = s->gate.topk,
                                     .tokens = s->filled,
                                     .counts = s->counts,
                                     .scores = s->seen,
                                     .rate = s->rate,
                                     .state = s->state,
                                     .scratch = s->sorting};
    s->rule->update(&batch, s->bias);
    bias_round(s->experts, s->bias, s->meets);
    memset(s->counts, 0, (size_t)s->experts * sizeof *s->counts);
    s->filled = 0;
}

void route_stream_feed(struct route_stream *stream, int64_t n, const float *logits,
                       const int32_t *expert) {
    struct route_stream *s = stream;
    if (!s->rule) return;
    if (s->seen) keep_scores(s, n, logits);
    for (int64_t i = 0; i < n * s->gate.topk; i++) s->counts[expert[i]]++;
    s->filled += n;
    if (s->filled == s->batch_tokens) update(s);
}
