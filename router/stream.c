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
                                 .layer = setup->layer,
                                 .table = setup->table,
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

/* Gates that route_tokens does not know, a block of at most ROUTE_BLOCK tokens at a time. */
struct rare {
    const struct route_stream *stream;
    struct route_rows rows;
    int64_t n;
    const float *logits;            /* [n,E] as recorded, then as the gate sees them */
    float *logit, *score, *product; /* [ROUTE_BLOCK,E] each */
    float *weight;                  /* [ROUTE_BLOCK,k] where nobody wants them */
    struct routes out;
    void *scratch; /* of route_scored */
};

static bool is_rare(const struct route_stream *s) {
    return (s->rule && s->rule->multiplies) || gate_needs_rows(&s->gate);
}

static bool scores_first(const struct gate *gate) {
    return gate->fn != GATE_SPARSEMIXER && gate->order == ORDER_SCORE_TOPK;
}

/* Logits and scores as the gate sees them. */
static void see(struct rare *x) {
    const struct route_stream *s = x->stream;
    float *score = scores_first(&s->gate) ? x->score : NULL;
    if (gate_blurs(&s->gate)) {
        route_blurred(&s->gate, &x->rows, s->experts, x->n, x->logits, x->logit, score);
        x->logits = x->logit;
    } else if (score) {
        route_scores(s->gate.score, s->experts, x->n, x->logits, score);
    }
    if (!score) x->score = NULL;
}

/* A factor instead of an addend: chosen by score times bias, weighed by the score alone. */
static void choose_by_product(struct rare *x) {
    const struct route_stream *s = x->stream;
    struct gate gate = s->gate;
    struct routes choice = x->out;
    gate.bias = false;
    choice.weight = NULL;
    for (int64_t t = 0; t < x->n; t++)
        for (int e = 0; e < s->experts; e++)
            x->product[t * s->experts + e] = x->score[t * s->experts + e] * s->rounded[e];
    route_scored(&gate, s->experts, x->n, x->logits, x->product, NULL, &choice, x->scratch);
    route_weights(&s->gate, s->experts, x->n, x->logits, x->score, x->out.expert, x->out.weight);
}

/* By token id; the scores only weigh. */
static void choose_by_id(struct rare *x) {
    const struct route_stream *s = x->stream;
    route_hashed(&s->gate, &x->rows, s->experts, x->n, s->table.expert, x->out.expert);
    route_weights(&s->gate, s->experts, x->n, x->logits, x->score, x->out.expert, x->out.weight);
    if (x->out.tie) memset(x->out.tie, 0, (size_t)x->n);
    if (x->out.escape) memset(x->out.escape, 0, (size_t)x->n);
}

static void route_rare(struct rare *x) {
    const struct route_stream *s = x->stream;
    if (!x->out.weight) x->out.weight = x->weight;
    see(x);
    if (gate_hashes(&s->gate))
        choose_by_id(x);
    else if (s->rule && s->rule->multiplies)
        choose_by_product(x);
    else
        route_scored(&s->gate, s->experts, x->n, x->logits, x->score, s->rounded, &x->out,
                     x->scratch);
    route_thin(&s->gate, &x->rows, x->n, x->out.expert, x->out.weight);
}

static size_t plain_scratch_bytes(const struct route_stream *stream) {
    return (route_scratch_bytes(stream->experts) + 63) & ~(size_t)63;
}

static size_t rare_floats(const struct route_stream *stream) {
    return (size_t)ROUTE_BLOCK * (3 * (size_t)stream->experts + (size_t)stream->gate.topk);
}

size_t route_stream_scratch_bytes(const struct route_stream *stream) {
    size_t rare = is_rare(stream) ? rare_floats(stream) * sizeof(float) : 0;
    return plain_scratch_bytes(stream) + ((rare + 63) & ~(size_t)63);
}

/* The piece's tokens from `t` on, at most a block of them. */
static struct rare rare_at(const struct route_stream *s, const struct route_piece *piece, int64_t t,
                           const struct routes *out, void *scratch) {
    float *memory = (float *)((unsigned char *)scratch + plain_scratch_bytes(s));
    size_t block = (size_t)ROUTE_BLOCK * (size_t)s->experts;
    int64_t slot = t * s->gate.topk, left = piece->n - t;
    return (struct rare){.stream = s,
                         .rows = {.layer = s->layer,
                                  .first = piece->first + t,
                                  .id = piece->id ? piece->id + t : NULL},
                         .n = left < ROUTE_BLOCK ? left : ROUTE_BLOCK,
                         .logits = piece->logits + t * s->experts,
                         .logit = memory,
                         .score = memory + block,
                         .product = memory + 2 * block,
                         .weight = memory + 3 * block,
                         .out = {.expert = out->expert + slot,
                                 .weight = out->weight ? out->weight + slot : NULL,
                                 .tie = out->tie ? out->tie + t : NULL,
                                 .escape = out->escape ? out->escape + t : NULL},
                         .scratch = scratch};
}

int64_t route_stream_route(const struct route_stream *stream, const struct route_piece *piece,
                           struct routes *out, void *scratch) {
    const struct route_stream *s = stream;
    if (!is_rare(s))
        return route_tokens(&s->gate, s->experts, piece->n, piece->logits, s->rounded, out,
                            scratch);
    int64_t bad = route_first_not_finite(piece->logits, piece->n * s->experts);
    if (bad >= 0) return bad;
    for (int64_t t = 0; t < piece->n; t += ROUTE_BLOCK) {
        struct rare block = rare_at(s, piece, t, out, scratch);
        route_rare(&block);
    }
    return -1;
}

/* ---- the bias */

/* What the bias is added to: scores, or logits where those are chosen by. */
static void keep_scores(struct route_stream *s, const struct route_piece *piece) {
    float *to = s->seen + s->filled * s->experts;
    const struct route_rows rows = {.layer = s->layer, .first = piece->first};
    bool first = scores_first(&s->gate);
    if (gate_blurs(&s->gate))
        route_blurred(&s->gate, &rows, s->experts, piece->n, piece->logits, to, first ? to : NULL);
    else if (first)
        route_scores(s->gate.score, s->experts, piece->n, piece->logits, to);
    else
        memcpy(to, piece->logits, (size_t)(piece->n * s->experts) * sizeof *to);
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

void route_stream_feed(struct route_stream *stream, const struct route_piece *piece,
                       const int32_t *expert) {
    struct route_stream *s = stream;
    if (!s->rule) return;
    if (s->seen) keep_scores(s, piece);
    for (int64_t i = 0; i < piece->n * s->gate.topk; i++)
        if (expert[i] != ROUTE_NONE) s->counts[expert[i]]++;
    s->filled += piece->n;
    if (s->filled == s->batch_tokens) update(s);
}
