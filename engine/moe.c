/* moe.c - feed-forward of a stretch of tokens: dense, or a mixture of experts
 *
 * A mixture: f32 router logits, choices and weights through router/route.h (law 1), the tokens of
 * each expert gathered (in order of tokens), one grouped product for all experts' gate and up
 * matrices and one for their down matrices, and per token a sum in order of selection, so that a
 * token's result depends on nothing but its own row. */
#include <math.h>
#include <string.h>

#include "engine/forward.h"
#include "router/stream.h"

enum { ROUTE_BLOCK = 64, BLOCK_TOKENS = 4096 };

/* One call on at most BLOCK_TOKENS tokens. */
struct mixture {
    struct forward *f;
    const struct ffn_spec *spec;
    const struct ffn_weights *weights;
    struct route_stream *stream;
    int64_t tokens;
    int64_t piece, piece_tokens; /* those that one bias routes */
    int k;
    const float *in;        /* [tokens,H] */
    float *out;             /* [tokens,H] */
    float *logits;          /* [tokens,E] */
    int32_t *expert;        /* [tokens,k] */
    float *weight;          /* [tokens,k] */
    int32_t *slot;          /* [tokens,k]: row of the expert products; -1 = identity expert */
    int32_t *row;           /* [slots]: token of a slot */
    float *slot_weight;     /* [slots] */
    int64_t *begin;         /* [experts+1]: first slot of each expert */
    float *inner;           /* [slots,2I] */
    struct gemm *items;     /* [experts] */
    float *product;         /* [slots,H] */
    float *scaled;          /* [slots,H]: inputs times weights (llama4) */
    float *shared;          /* [tokens,H] or NULL */
    float *shared_gate;     /* [tokens] or NULL */
    int64_t *bad;           /* [blocks]: first non-finite logit of each block, -1 = none */
    unsigned char *scratch; /* per worker */
    size_t scratch_bytes;
};

static bool dense(struct forward *f, const struct glu_spec *glu, const struct glu_weights *w,
                  const float *in, int64_t m, float *out) {
    int64_t hidden = f->spec->hidden;
    float *inner = forward_floats(f, m, 2 * glu->width);
    if (!inner) return false;
    forward_linear(f, w->in, w->in_bias, in, hidden, m, inner, 2 * glu->width);
    glu_activate(f, glu, inner, m);
    struct gemm item = {.weight = w->down,
                        .a = inner,
                        .bias = w->down_bias,
                        .c = out,
                        .m = m,
                        .lda = 2 * glu->width,
                        .ldc = hidden};
    gemm_grouped(f->kernels, f->pool, &item, 1);
    return true;
}

/* ---- routing */

static void route_block(void *context, int64_t job, int worker) {
    const struct mixture *x = context;
    int64_t first = x->piece + job * ROUTE_BLOCK, experts = x->spec->experts;
    int64_t n = x->piece + x->piece_tokens - first;
    if (n > ROUTE_BLOCK) n = ROUTE_BLOCK;
    float *logits = x->logits + first * experts;
    if (x->spec->softcap > 0)
        for (int64_t i = 0; i < n * experts; i++)
            logits[i] = x->spec->softcap * tanhf(logits[i] / x->spec->softcap);
    struct routes routes = {.expert = x->expert + first * x->k, .weight = x->weight + first * x->k};
    int64_t bad = route_stream_route(x->stream, n, logits, &routes,
                                     x->scratch + (size_t)worker * x->scratch_bytes);
    x->bad[job] = bad < 0 ? -1 : bad + first * experts;
}

static bool refuse_logit(const struct mixture *x, int layer, int64_t first, int64_t bad) {
    int64_t token = bad / x->spec->experts, expert = bad % x->spec->experts;
    return err_set(x->f->err, ERR_DATA,
                   "router logit of layer %d, token %lld, expert %lld: found %g, expected a finite "
                   "number",
                   layer, (long long)(x->f->first + first + token), (long long)expert,
                   (double)x->logits[bad]);
}

/* Piece by piece: the bias moves where a balance batch ends, whatever the blocks and passes are. */
static bool route_pieces(struct mixture *x, const struct route_target *target, int64_t first) {
    int64_t room;
    for (x->piece = 0; x->piece < x->tokens; x->piece += x->piece_tokens) {
        room = route_stream_room(x->stream);
        x->piece_tokens = room < x->tokens - x->piece ? room : x->tokens - x->piece;
        int64_t blocks = (x->piece_tokens + ROUTE_BLOCK - 1) / ROUTE_BLOCK;
        pool_run(x->f->pool, blocks, route_block, x);
        for (int64_t b = 0; b < blocks; b++)
            if (x->bad[b] >= 0) return refuse_logit(x, target->router->layer, first, x->bad[b]);
        route_stream_feed(x->stream, x->piece_tokens, x->logits + x->piece * x->spec->experts,
                          x->expert + x->piece * x->k);
    }
    return true;
}

static bool route(struct mixture *x, const struct route_target *target, int64_t first) {
    struct forward *f = x->f;
    forward_linear(f, x->weights->router, x->weights->router_bias, x->in, f->spec->hidden,
                   x->tokens, x->logits, x->spec->experts);
    if (!route_pieces(x, target, first)) return false;
    if (!target->sink || !target->sink->routes) return true;
    return target->sink->routes(target->sink->context, target->index, f->first + first, x->tokens,
                                x->logits, x->expert, x->weight, f->err);
}

/* ---- experts */

/* Sorts the choices by expert, tokens in order within each. */
static void place(struct mixture *x, int real) {
    int64_t choices = x->tokens * x->k;
    memset(x->begin, 0, (size_t)(real + 1) * sizeof *x->begin);
    for (int64_t i = 0; i < choices; i++)
        if (x->expert[i] < real) x->begin[x->expert[i] + 1]++;
    for (int e = 0; e < real; e++) x->begin[e + 1] += x->begin[e];
    for (int64_t i = 0; i < choices; i++) {
        if (x->expert[i] >= real) {
            x->slot[i] = -1;
            continue;
        }
        int64_t at = x->begin[x->expert[i]]++;
        x->slot[i] = (int32_t)at;
        x->row[at] = (int32_t)(i / x->k);
        x->slot_weight[at] = x->weight[i];
    }
    for (int e = real; e > 0; e--) x->begin[e] = x->begin[e - 1];
    x->begin[0] = 0;
}

static void scale_slot(void *context, int64_t slot) {
    const struct mixture *x = context;
    int64_t hidden = x->f->spec->hidden;
    const float *from = x->in + x->row[slot] * hidden;
    for (int64_t i = 0; i < hidden; i++)
        x->scaled[slot * hidden + i] = from[i] * x->slot_weight[slot];
}

/* Experts [first, last) on their slots: expert[] begins at `first`. */
static bool run_group(struct mixture *x, const struct glu_weights *expert, int first, int last) {
    struct forward *f = x->f;
    const struct glu_spec *glu = &x->spec->expert;
    int64_t hidden = f->spec->hidden, wide = 2 * glu->width;
    float *inner = x->inner + x->begin[first] * wide;
    for (int e = first; e < last; e++)
        x->items[e - first] =
            (struct gemm){.weight = expert[e - first].in,
                          .a = x->scaled ? x->scaled + x->begin[e] * hidden : x->in,
                          .rows = x->scaled ? NULL : x->row + x->begin[e],
                          .bias = expert[e - first].in_bias,
                          .c = x->inner + x->begin[e] * wide,
                          .m = x->begin[e + 1] - x->begin[e],
                          .lda = hidden,
                          .ldc = wide};
    gemm_grouped(f->kernels, f->pool, x->items, last - first);
    glu_activate(f, glu, inner, x->begin[last] - x->begin[first]);
    for (int e = first; e < last; e++)
        x->items[e - first] = (struct gemm){.weight = expert[e - first].down,
                                            .a = x->inner + x->begin[e] * wide,
                                            .bias = expert[e - first].down_bias,
                                            .c = x->product + x->begin[e] * hidden,
                                            .m = x->begin[e + 1] - x->begin[e],
                                            .lda = wide,
                                            .ldc = hidden};
    gemm_grouped(f->kernels, f->pool, x->items, last - first);
    return true;
}

/* Asks for the file pages of the next group, which are read while this one computes. */
static void expect_experts(const struct mixture *x, int first, int real) {
    struct loader ahead = *x->f->experts;
    struct glu_weights unused;
    ahead.memory = NULL;
    ahead.ahead_bytes = ahead.capacity_bytes;
    for (int e = first; e < real && ahead.used_bytes < 2 * ahead.capacity_bytes; e++)
        if (x->begin[e] < x->begin[e + 1] && !load_expert(&ahead, x->spec, e, &unused)) return;
}

/* As many experts at a time as there is memory for; those without tokens are not read. */
static bool run_groups(struct mixture *x, int real) {
    struct loader *loader = x->f->experts;
    size_t one = expert_bytes(loader, x->spec);
    struct glu_weights *expert = arena_alloc(x->f->scratch, (size_t)real, sizeof *expert);
    if (!expert) return err_memory(x->f->err, "experts");
    for (int first = 0, last; first < real; first = last) {
        loader->used_bytes = 0;
        for (last = first; last < real; last++) {
            expert[last - first] = (struct glu_weights){0};
            if (x->begin[last] == x->begin[last + 1]) break;
            if (loader->used_bytes + one > loader->capacity_bytes) break;
            if (!load_expert(loader, x->spec, last, &expert[last - first])) return false;
        }
        expect_experts(x, last, real);
        if (last > first && !run_group(x, expert, first, last)) return false;
        if (last == first) last++; /* no tokens */
    }
    return true;
}

static bool run_experts(struct mixture *x, int real) {
    struct forward *f = x->f;
    int64_t hidden = f->spec->hidden, slots = x->begin[real];
    x->inner = forward_floats(f, slots, 2 * x->spec->expert.width);
    x->items = arena_alloc(f->scratch, (size_t)real, sizeof *x->items);
    x->product = forward_floats(f, slots, hidden);
    if (!x->inner || !x->items || !x->product) return err_memory(f->err, "experts");
    if (x->spec->scale_input) {
        x->scaled = forward_floats(f, slots, hidden);
        if (!x->scaled) return false;
        forward_rows(f->pool, slots, scale_slot, x);
    }
    return x->weights->expert ? run_group(x, x->weights->expert, 0, real) : run_groups(x, real);
}

/* out <- combined_scale (routed_scale sum_s w_s y_s + shared), in order of selection. */
static void combine_row(void *context, int64_t t) {
    const struct mixture *x = context;
    const struct ffn_spec *spec = x->spec;
    int64_t hidden = x->f->spec->hidden;
    float *out = x->out + t * hidden;
    memset(out, 0, (size_t)hidden * sizeof *out);
    for (int s = 0; s < x->k; s++) {
        int32_t slot = x->slot[t * x->k + s];
        const float *from = slot < 0 ? x->in + t * hidden : x->product + slot * hidden;
        float w = x->scaled ? 1 : x->weight[t * x->k + s];
        vector_axpy(x->f->kernels, w * spec->routed_scale, from, out, hidden);
    }
    if (x->shared) {
        float g = x->shared_gate ? 1 / (1 + expf(-x->shared_gate[t])) : 1;
        vector_axpy(x->f->kernels, g, x->shared + t * hidden, out, hidden);
    }
    if (spec->combined_scale != 1)
        for (int64_t i = 0; i < hidden; i++) out[i] *= spec->combined_scale;
}

static bool run_shared(struct mixture *x) {
    struct forward *f = x->f;
    if (x->spec->shared.width == 0) return true;
    x->shared = forward_floats(f, x->tokens, f->spec->hidden);
    if (!x->shared || !dense(f, &x->spec->shared, &x->weights->shared, x->in, x->tokens, x->shared))
        return false;
    if (!x->weights->shared_gate) return true;
    x->shared_gate = forward_floats(f, x->tokens, 1);
    if (!x->shared_gate) return false;
    forward_linear(f, x->weights->shared_gate, NULL, x->in, f->spec->hidden, x->tokens,
                   x->shared_gate, 1);
    return true;
}

static bool allocate(struct mixture *x) {
    struct arena *arena = x->f->scratch;
    size_t tokens = (size_t)x->tokens, choices = tokens * (size_t)x->k;
    size_t blocks = tokens / ROUTE_BLOCK + 1;
    x->scratch_bytes = route_stream_scratch_bytes(x->stream);
    x->logits = forward_floats(x->f, x->tokens, x->spec->experts);
    x->expert = arena_room(arena, choices, sizeof *x->expert);
    x->weight = arena_room(arena, choices, sizeof *x->weight);
    x->slot = arena_room(arena, choices, sizeof *x->slot);
    x->row = arena_room(arena, choices, sizeof *x->row);
    x->slot_weight = arena_room(arena, choices, sizeof *x->slot_weight);
    x->begin = arena_alloc(arena, (size_t)x->spec->experts + 1, sizeof *x->begin);
    x->bad = arena_alloc(arena, blocks, sizeof *x->bad);
    x->scratch = arena_alloc(arena, (size_t)pool_size(x->f->pool), x->scratch_bytes);
    if (x->logits && x->expert && x->weight && x->slot && x->row && x->slot_weight && x->begin &&
        x->bad && x->scratch)
        return true;
    return err_memory(x->f->err, "routing");
}

static bool mixture_block(struct mixture *x, const struct route_target *target, int64_t first) {
    int real = x->spec->experts - x->spec->identity_experts;
    if (!allocate(x) || !route(x, target, first)) return false;
    place(x, real);
    if (!run_experts(x, real) || !run_shared(x)) return false;
    forward_rows(x->f->pool, x->tokens, combine_row, x);
    return true;
}

bool ffn_forward(struct forward *f, const struct ffn_spec *spec, const struct ffn_weights *weights,
                 const struct route_target *target, const float *in, float *out) {
    int64_t hidden = f->spec->hidden;
    bool ok = true;
    for (int64_t first = 0; first < f->tokens && ok; first += BLOCK_TOKENS) {
        int64_t tokens = f->tokens - first;
        if (tokens > BLOCK_TOKENS) tokens = BLOCK_TOKENS;
        const float *from = in + first * hidden;
        float *to = out + first * hidden;
        if (spec->experts == 0) {
            ok = dense(f, &spec->dense, &weights->dense, from, tokens, to);
            continue;
        }
        struct mixture x = {.f = f,
                            .spec = spec,
                            .weights = weights,
                            .stream = target->stream,
                            .tokens = tokens,
                            .k = target->router->gate.topk,
                            .in = from,
                            .out = to};
        ok = mixture_block(&x, target, first);
    }
    return ok;
}
