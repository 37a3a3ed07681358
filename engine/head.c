/* head.c - from hidden states to likelihoods: final norm, output matrix, NLL, final logits
 *
 * The output matrix is taken in blocks of VOCAB_BLOCK rows, so that neither it nor the logits of
 * all tokens are ever whole in memory. ln sum exp of a token is combined block by block in f64, in
 * one order for all machines and thread counts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

enum { VOCAB_BLOCK = 4096, TOKEN_BLOCK = 1024 };

struct head {
    struct engine *engine;
    const struct engine_pass *pass;
    const struct packed *weight; /* of the block in hand */
    unsigned char *packed;       /* where it lies; the first block is the largest */
    size_t packed_bytes;
    const float *bias;
    int64_t first, count;      /* its vocabulary rows */
    float *hidden;             /* [T,H] normed */
    const struct spill *spill; /* behind hidden */
    float *logits;             /* [TOKEN_BLOCK, VOCAB_BLOCK] */
    int64_t token;             /* first token of the rows in logits */
    const int32_t *target;     /* [T]: next token, -1 at the end of a window */
    double *sum;               /* [T]: ln sum exp so far */
    float *chosen;             /* [T]: logit of the target */
    float *last;               /* [windows,V] or NULL */
};

/* ln(e^a + e^b) */
static double log_add(double a, double b) {
    double high = a > b ? a : b, low = a > b ? b : a;
    return isinf(high) ? high : high + log1p(exp(low - high));
}

static void scale_row(const struct head *h, float *row) {
    float factor = h->engine->spec.logit_scale;
    for (int64_t i = 0; factor != 1 && i < h->count; i++) row[i] *= factor;
}

static void add_row(void *context, int64_t i) {
    const struct head *h = context;
    int64_t t = h->token + i, target = h->target[t];
    float *row = h->logits + i * h->count;
    scale_row(h, row);
    h->sum[t] = log_add(h->sum[t], (double)vector_logsumexp(h->engine->kernels, row, h->count));
    if (target >= h->first && target < h->first + h->count) h->chosen[t] = row[target - h->first];
}

/* m rows from h->token are done with for now. */
static void drop_rows(const struct head *h, int64_t m) {
    size_t row = (size_t)h->engine->spec.hidden * sizeof *h->hidden;
    spill_drop(h->spill, (size_t)h->token * row, (size_t)m * row);
}

/* All tokens' likelihoods for the block of vocabulary in hand. */
static void block_nll(struct head *h) {
    int64_t hidden = h->engine->spec.hidden;
    for (h->token = 0; h->token < h->pass->tokens; h->token += TOKEN_BLOCK) {
        int64_t m = h->pass->tokens - h->token;
        if (m > TOKEN_BLOCK) m = TOKEN_BLOCK;
        struct gemm item = {.weight = h->weight,
                            .a = h->hidden + h->token * hidden,
                            .bias = h->bias,
                            .c = h->logits,
                            .m = m,
                            .lda = hidden,
                            .ldc = h->count};
        gemm_grouped(h->engine->kernels, h->engine->pool, &item, 1);
        forward_rows(h->engine->pool, m, add_row, h);
        drop_rows(h, m);
    }
}

/* The last tokens' logits for the block of vocabulary in hand. */
static bool block_last(struct head *h, struct err *err) {
    int64_t hidden = h->engine->spec.hidden, vocab = h->engine->spec.vocab;
    int32_t *rows = malloc((size_t)h->pass->windows * sizeof *rows);
    if (!rows) return err_memory(err, "final logits");
    for (int64_t w = 0; w < h->pass->windows; w++)
        rows[w] = (int32_t)(h->pass->window_start[w + 1] - 1);
    struct gemm item = {.weight = h->weight,
                        .a = h->hidden,
                        .rows = rows,
                        .bias = h->bias,
                        .c = h->last + h->first,
                        .m = h->pass->windows,
                        .lda = hidden,
                        .ldc = vocab};
    gemm_grouped(h->engine->kernels, h->engine->pool, &item, 1);
    for (int64_t w = 0; w < h->pass->windows; w++) scale_row(h, h->last + w * vocab + h->first);
    free(rows);
    return true;
}

/* Packs rows [first, first+count) of the output matrix into the scratch memory. */
static bool pack_block(struct head *h, struct err *err) {
    struct loader loader = model_loader(h->engine, err);
    struct weight_ref ref = h->engine->spec.head;
    struct packed *packed = NULL;
    ref.stored = ref.n;
    ref.row0 = h->first;
    ref.n = h->count;
    load_matrix(&loader, &ref, false, &packed);
    if (h->first == 0) {
        h->packed = arena_room(&h->engine->scratch, loader.used_bytes, 1);
        h->packed_bytes = loader.used_bytes;
    }
    if (!h->packed) return err_memory(err, "output matrix");
    loader.memory = h->packed;
    loader.capacity_bytes = h->packed_bytes;
    loader.used_bytes = 0;
    load_matrix(&loader, &ref, false, &packed);
    loader_free(&loader);
    h->weight = packed;
    h->bias = h->engine->head_bias ? h->engine->head_bias + h->first : NULL;
    return packed != NULL;
}

static bool run_blocks(struct head *h, bool nll, struct err *err) {
    bool ok = true;
    for (h->first = 0; h->first < h->engine->spec.vocab && ok; h->first += VOCAB_BLOCK) {
        h->count = h->engine->spec.vocab - h->first;
        if (h->count > VOCAB_BLOCK) h->count = VOCAB_BLOCK;
        ok = pack_block(h, err);
        if (ok && nll) block_nll(h);
        if (ok && h->last) ok = block_last(h, err);
    }
    return ok;
}

static bool tell_nll(struct head *h, const struct engine_sink *sink, struct err *err) {
    int64_t tokens = h->pass->tokens;
    for (int64_t t = 0; t < tokens; t++) {
        float value = (float)(h->sum[t] - (double)h->chosen[t]);
        if (h->target[t] >= 0 && !isfinite(value))
            return err_set(err, ERR_DATA,
                           "logits of token %lld: found a likelihood of %g, "
                           "expected finite numbers",
                           (long long)t, (double)value);
        h->chosen[t] = h->target[t] < 0 ? NAN : value;
    }
    return sink->nll(sink->context, 0, tokens, h->chosen, err);
}

static bool tell_last(struct head *h, const struct engine_sink *sink, struct err *err) {
    int64_t vocab = h->engine->spec.vocab;
    for (int64_t w = 0; w < h->pass->windows; w++)
        if (!sink->final_logits(sink->context, w, h->last + w * vocab, err)) return false;
    return true;
}

static void norm_row(void *context, int64_t i) {
    const struct head *h = context;
    const struct engine *engine = h->engine;
    int64_t hidden = engine->spec.hidden;
    float *x = h->hidden + (h->token + i) * hidden;
    norm_apply(engine->kernels, &engine->spec.norm, &engine->norm, x, x, hidden);
}

static void norm_all(struct head *h) {
    for (h->token = 0; h->token < h->pass->tokens; h->token += TOKEN_BLOCK) {
        int64_t m = h->pass->tokens - h->token;
        if (m > TOKEN_BLOCK) m = TOKEN_BLOCK;
        forward_rows(h->engine->pool, m, norm_row, h);
        drop_rows(h, m);
    }
}

/* Targets: the next token of the same window. */
static int32_t *make_targets(const struct engine_pass *pass) {
    int32_t *target = malloc((size_t)pass->tokens * sizeof *target);
    for (int64_t t = 0; target && t + 1 < pass->tokens; t++) target[t] = pass->ids[t + 1];
    for (int64_t w = 1; target && w <= pass->windows; w++) target[pass->window_start[w] - 1] = -1;
    return target;
}

bool head_run(struct engine *engine, const struct engine_pass *pass, const struct engine_sink *sink,
              const struct spill *spill, struct err *err) {
    bool nll = sink && sink->nll, last = sink && sink->final_logits;
    size_t tokens = (size_t)pass->tokens;
    if (!nll && !last) return true;
    struct head h = {.engine = engine, .pass = pass, .hidden = spill->data, .spill = spill};
    int64_t rows = pass->tokens < TOKEN_BLOCK ? pass->tokens : TOKEN_BLOCK;
    int32_t *target = make_targets(pass);
    h.target = target;
    h.logits = arena_room(&engine->scratch, (size_t)rows, VOCAB_BLOCK * sizeof *h.logits);
    h.sum = malloc(tokens * sizeof *h.sum);
    h.chosen = calloc(tokens, sizeof *h.chosen);
    h.last =
        last ? malloc((size_t)pass->windows * (size_t)engine->spec.vocab * sizeof *h.last) : NULL;
    bool ok = target && h.logits && h.sum && h.chosen && (!last || h.last);
    if (!ok) err_memory(err, "likelihoods of a pass");
    for (size_t t = 0; ok && t < tokens; t++) h.sum[t] = -INFINITY;
    if (ok) norm_all(&h);
    ok = ok && run_blocks(&h, nll, err) && (!nll || tell_nll(&h, sink, err)) &&
         (!last || tell_last(&h, sink, err));
    free(target);
    arena_reset(&engine->scratch);
    if (engine->memory_bytes) arena_free(&engine->scratch);
    free(h.sum);
    free(h.chosen);
    free(h.last);
    return ok;
}
