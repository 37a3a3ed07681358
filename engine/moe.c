/* moe.c - feed-forward of a stretch of tokens: dense, or a mixture of experts
 *
 * A mixture: f32 router logits, choices and weights through router/route.h (law 1), the tokens of
 * each expert gathered (in order of tokens), one grouped product for the gate and up matrices of
 * the experts at hand and one for their down matrices, and per token a sum in the order of its
 * experts' indices: a token's result depends on nothing but its own row, and experts may come all
 * at once or some at a time (experts.c) without changing a bit. */
#include "engine/mixture.h"

#include <math.h>
#include <string.h>

enum { ROUTE_BLOCK = 64 };

/* A slot of a token that has fewer experts than slots: it lies behind all that have a row. */
enum { SLOT_EMPTY = INT32_MAX };

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

/* Tokens of a block on their way through the router. */
struct routing {
    const struct mixture *x;
    struct route_stream *stream;
    int64_t first;               /* of the block, within the stretch */
    int64_t piece, piece_tokens; /* those that one bias routes */
    float *logits;               /* [tokens,E] */
    int32_t *expert;             /* [tokens,k] */
    float *weight;               /* [tokens,k] */
    int64_t *bad;                /* [blocks]: first non-finite logit of each, -1 = none */
    unsigned char *scratch;      /* per worker */
    size_t scratch_bytes;
};

static bool allocate_routing(struct routing *r) {
    const struct mixture *x = r->x;
    struct arena *arena = x->f->scratch;
    size_t tokens = (size_t)x->tokens, choices = tokens * (size_t)x->k;
    r->scratch_bytes = route_stream_scratch_bytes(r->stream);
    r->logits = forward_floats(x->f, x->tokens, x->spec->experts);
    r->expert = arena_room(arena, choices, sizeof *r->expert);
    r->weight = arena_room(arena, choices, sizeof *r->weight);
    r->bad = arena_alloc(arena, tokens / ROUTE_BLOCK + 1, sizeof *r->bad);
    r->scratch = arena_alloc(arena, (size_t)pool_size(x->f->pool), r->scratch_bytes);
    if (r->logits && r->expert && r->weight && r->bad && r->scratch) return true;
    return err_memory(x->f->err, "routing");
}

/* n tokens from `at` (within the block) on. */
static struct route_piece piece_of(const struct routing *r, int64_t at, int64_t n) {
    const struct forward *f = r->x->f;
    int64_t token = r->first + at;
    return (struct route_piece){.n = n,
                                .first = f->pass_first + f->first + token,
                                .id = f->id + token,
                                .logits = r->logits + at * r->x->spec->experts};
}

static void route_block(void *context, int64_t job, int worker) {
    const struct routing *r = context;
    const struct ffn_spec *spec = r->x->spec;
    int64_t first = r->piece + job * ROUTE_BLOCK, experts = spec->experts, k = r->x->k;
    int64_t n = r->piece + r->piece_tokens - first;
    if (n > ROUTE_BLOCK) n = ROUTE_BLOCK;
    float *logits = r->logits + first * experts;
    if (spec->softcap > 0)
        for (int64_t i = 0; i < n * experts; i++)
            logits[i] = spec->softcap * tanhf(logits[i] / spec->softcap);
    struct routes routes = {.expert = r->expert + first * k, .weight = r->weight + first * k};
    const struct route_piece piece = piece_of(r, first, n);
    int64_t bad = route_stream_route(r->stream, &piece, &routes,
                                     r->scratch + (size_t)worker * r->scratch_bytes);
    r->bad[job] = bad < 0 ? -1 : bad + first * experts;
}

static bool refuse_logit(const struct routing *r, int layer, int64_t bad) {
    int64_t token = bad / r->x->spec->experts, expert = bad % r->x->spec->experts;
    return err_set(r->x->f->err, ERR_DATA,
                   "router logit of layer %d, token %lld, expert %lld: found %g, expected a finite "
                   "number",
                   layer, (long long)(r->x->f->first + r->first + token), (long long)expert,
                   (double)r->logits[bad]);
}

/* Piece by piece: the bias moves where a balance batch ends, whatever the blocks and passes are. */
static bool route_pieces(struct routing *r, const struct route_target *target) {
    int64_t room, tokens = r->x->tokens;
    for (r->piece = 0; r->piece < tokens; r->piece += r->piece_tokens) {
        room = route_stream_room(r->stream);
        r->piece_tokens = room < tokens - r->piece ? room : tokens - r->piece;
        int64_t blocks = (r->piece_tokens + ROUTE_BLOCK - 1) / ROUTE_BLOCK;
        pool_run(r->x->f->pool, blocks, route_block, r);
        for (int64_t b = 0; b < blocks; b++)
            if (r->bad[b] >= 0) return refuse_logit(r, target->router->layer, r->bad[b]);
        const struct route_piece piece = piece_of(r, r->piece, r->piece_tokens);
        route_stream_feed(r->stream, &piece, r->expert + r->piece * r->x->k);
    }
    return true;
}

/* Sorts the choices by expert, tokens in order within each; the slots of a token rise with its
 * experts. */
static bool place(struct mixture *x, const struct routing *r) {
    int64_t choices = x->tokens * x->k, *begin = x->begin;
    int experts = x->spec->experts;
    int32_t *placed = arena_alloc(x->f->scratch, (size_t)x->tokens, sizeof *placed);
    if (!placed) return err_memory(x->f->err, "routing");
    memset(begin, 0, (size_t)(experts + 1) * sizeof *begin);
    for (int64_t i = 0; i < choices; i++)
        if (r->expert[i] != ROUTE_NONE) begin[r->expert[i] + 1]++;
    for (int e = 0; e < experts; e++) begin[e + 1] += begin[e];
    for (int64_t i = 0; i < choices; i++) {
        x->slot[i] = SLOT_EMPTY;
        if (r->expert[i] == ROUTE_NONE) continue;
        int64_t at = begin[r->expert[i]]++;
        x->row[at] = (int32_t)(i / x->k);
        x->weight[at] = r->weight[i];
    }
    for (int e = experts; e > 0; e--) begin[e] = begin[e - 1];
    begin[0] = 0;
    for (int64_t at = 0; at < begin[experts]; at++) {
        int32_t t = x->row[at];
        x->slot[t * x->k + placed[t]++] = (int32_t)at;
    }
    return true;
}

static void clear_row(void *context, int64_t t) {
    const struct mixture *x = context;
    int64_t hidden = x->f->spec->hidden;
    memset(x->out + t * hidden, 0, (size_t)hidden * sizeof *x->out);
}

bool mixture_route(struct mixture *x, const struct route_target *target, int64_t first) {
    struct forward *f = x->f;
    const struct engine_sink *sink = target->sink;
    struct routing r = {.x = x, .stream = target->stream, .first = first};
    if (!allocate_routing(&r)) return false;
    forward_linear(f, x->weights->router, x->weights->router_bias, x->in, f->spec->hidden,
                   x->tokens, r.logits, x->spec->experts);
    if (!route_pieces(&r, target) || !place(x, &r)) return false;
    forward_rows(f->pool, x->tokens, clear_row, x);
    if (!sink || !sink->routes) return true;
    return sink->routes(sink->context, target->index, f->first + first, x->tokens, r.logits,
                        r.expert, r.weight, f->err);
}

/* ---- routed experts */

/* Some experts on their slots [lo, hi). */
struct batch {
    const struct mixture *x;
    int64_t lo, hi;
    float *inner;       /* [hi-lo,2I] */
    float *product;     /* [hi-lo,H] */
    float *scaled;      /* [hi-lo,H]: inputs times weights (llama4), or NULL */
    struct gemm *items; /* [experts] */
};

static void scale_slot(void *context, int64_t i) {
    const struct batch *b = context;
    const struct mixture *x = b->x;
    int64_t hidden = x->f->spec->hidden;
    const float *from = x->in + x->row[b->lo + i] * hidden;
    float *to = b->scaled + i * hidden;
    for (int64_t j = 0; j < hidden; j++) to[j] = from[j] * x->weight[b->lo + i];
}

/* out <- out + routed_scale sum_s w_s y_s over the slots at hand, by rising expert. */
static void add_row(void *context, int64_t t) {
    const struct batch *b = context;
    const struct mixture *x = b->x;
    int64_t hidden = x->f->spec->hidden;
    for (int s = 0; s < x->k; s++) {
        int64_t slot = x->slot[t * x->k + s];
        if (slot < b->lo) continue;
        if (slot >= b->hi) break;
        float w = b->scaled ? 1 : x->weight[slot];
        vector_axpy(x->f->kernels, w * x->spec->routed_scale, b->product + (slot - b->lo) * hidden,
                    x->out + t * hidden, hidden);
    }
}

/* One product for each of the experts [first, last) that has slots: the first of the unit, or the
 * second. */
static void run_products(const struct batch *b, const struct glu_weights *expert, int first,
                         int last, bool down) {
    const struct mixture *x = b->x;
    int64_t hidden = x->f->spec->hidden, wide = 2 * x->spec->expert.width;
    int count = 0;
    for (int e = first; e < last; e++) {
        const struct glu_weights *w = &expert[e - first];
        int64_t slot = x->begin[e] - b->lo, m = x->begin[e + 1] - x->begin[e];
        float *inner = b->inner + slot * wide;
        if (m == 0) continue;
        if (down)
            b->items[count++] = (struct gemm){
                w->down, inner, NULL, w->down_bias, b->product + slot * hidden, m, wide, hidden};
        else if (b->scaled)
            b->items[count++] = (struct gemm){
                w->in, b->scaled + slot * hidden, NULL, w->in_bias, inner, m, hidden, wide};
        else
            b->items[count++] = (struct gemm){
                w->in, x->in, x->row + x->begin[e], w->in_bias, inner, m, hidden, wide};
    }
    gemm_grouped(x->f->kernels, x->f->pool, b->items, count);
}

/* Experts [first, last); expert[] begins at `first`. */
static void run_batch(struct batch *b, const struct glu_weights *expert, int first, int last) {
    const struct mixture *x = b->x;
    struct pool *pool = x->f->pool;
    b->lo = x->begin[first];
    b->hi = x->begin[last];
    if (b->scaled) forward_rows(pool, b->hi - b->lo, scale_slot, b);
    run_products(b, expert, first, last, false);
    glu_activate(x->f, &x->spec->expert, b->inner, b->hi - b->lo);
    run_products(b, expert, first, last, true);
    forward_rows(pool, x->tokens, add_row, b);
}

/* Experts from `first` on whose slots together are within the limit; at least one. */
static int batch_end(const struct mixture *x, int first, int last) {
    int64_t limit = x->f->rows_limit;
    int end = first + 1;
    if (limit == 0) return last;
    while (end < last && x->begin[end + 1] - x->begin[first] <= limit) end++;
    return end;
}

bool mixture_add(struct mixture *x, const struct glu_weights *expert, int first, int last) {
    struct forward *f = x->f;
    struct batch b = {.x = x};
    int64_t most = 0, hidden = f->spec->hidden;
    for (int e = first, end; e < last; e = end) {
        end = batch_end(x, e, last);
        if (x->begin[end] - x->begin[e] > most) most = x->begin[end] - x->begin[e];
    }
    if (most == 0) return true;
    b.inner = forward_floats(f, most, 2 * x->spec->expert.width);
    b.product = forward_floats(f, most, hidden);
    b.items = arena_alloc(f->scratch, (size_t)(last - first), sizeof *b.items);
    if (x->spec->scale_input) b.scaled = forward_floats(f, most, hidden);
    if (!b.inner || !b.product || !b.items || (x->spec->scale_input && !b.scaled))
        return err_memory(f->err, "experts");
    for (int e = first, end; e < last; e = end) {
        end = batch_end(x, e, last);
        run_batch(&b, expert + (e - first), e, end);
    }
    return true;
}

/* ---- what every token gets */

struct finish {
    const struct mixture *x;
    float *shared;      /* [tokens,H] or NULL */
    float *shared_gate; /* [tokens] or NULL */
};

/* out <- combined_scale (out + routed_scale sum of w in over identity experts + shared) */
static void finish_row(void *context, int64_t t) {
    const struct finish *e = context;
    const struct mixture *x = e->x;
    const struct ffn_spec *spec = x->spec;
    int64_t hidden = x->f->spec->hidden, real = x->begin[spec->experts - spec->identity_experts];
    float *out = x->out + t * hidden;
    for (int s = 0; s < x->k; s++) {
        int64_t slot = x->slot[t * x->k + s];
        if (slot >= real && slot != SLOT_EMPTY)
            vector_axpy(x->f->kernels, x->weight[slot] * spec->routed_scale, x->in + t * hidden,
                        out, hidden);
    }
    if (e->shared) {
        float g = e->shared_gate ? 1 / (1 + expf(-e->shared_gate[t])) : 1;
        vector_axpy(x->f->kernels, g, e->shared + t * hidden, out, hidden);
    }
    if (spec->combined_scale != 1)
        for (int64_t i = 0; i < hidden; i++) out[i] *= spec->combined_scale;
}

static bool run_shared(struct finish *e) {
    const struct mixture *x = e->x;
    struct forward *f = x->f;
    if (x->spec->shared.width == 0) return true;
    e->shared = forward_floats(f, x->tokens, f->spec->hidden);
    if (!e->shared || !dense(f, &x->spec->shared, &x->weights->shared, x->in, x->tokens, e->shared))
        return false;
    if (!x->weights->shared_gate) return true;
    e->shared_gate = forward_floats(f, x->tokens, 1);
    if (!e->shared_gate) return false;
    forward_linear(f, x->weights->shared_gate, NULL, x->in, f->spec->hidden, x->tokens,
                   e->shared_gate, 1);
    return true;
}

bool mixture_finish(struct mixture *x) {
    struct finish e = {.x = x};
    if (!run_shared(&e)) return false;
    forward_rows(x->f->pool, x->tokens, finish_row, &e);
    return true;
}

/* ---- the whole */

static bool allocate(struct mixture *x) {
    struct arena *arena = x->f->scratch;
    size_t choices = (size_t)x->tokens * (size_t)x->k;
    x->slot = arena_room(arena, choices, sizeof *x->slot);
    x->row = arena_room(arena, choices, sizeof *x->row);
    x->weight = arena_room(arena, choices, sizeof *x->weight);
    x->begin = arena_alloc(arena, (size_t)x->spec->experts + 1, sizeof *x->begin);
    return (x->slot && x->row && x->weight && x->begin) || err_memory(x->f->err, "routing");
}

bool ffn_forward(struct forward *f, const struct ffn_spec *spec, const struct ffn_weights *weights,
                 const struct route_target *target, const float *in, float *out) {
    int64_t hidden = f->spec->hidden;
    bool ok = true;
    for (int64_t first = 0; first < f->tokens && ok; first += MIXTURE_TOKENS) {
        int64_t tokens = f->tokens - first;
        if (tokens > MIXTURE_TOKENS) tokens = MIXTURE_TOKENS;
        const float *from = in + first * hidden;
        float *to = out + first * hidden;
        if (spec->experts == 0) {
            ok = dense(f, &spec->dense, &weights->dense, from, tokens, to);
            continue;
        }
        struct mixture x = {.f = f,
                            .spec = spec,
                            .weights = weights,
                            .tokens = tokens,
                            .k = target->router->gate.topk,
                            .in = from,
                            .out = to};
        ok = allocate(&x) && mixture_route(&x, target, first) &&
             mixture_add(&x, weights->expert, 0, spec->experts - spec->identity_experts) &&
             mixture_finish(&x);
    }
    return ok;
}
