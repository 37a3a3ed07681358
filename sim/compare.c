/* compare.c - open loop against closed loop
 *
 * Per layer three readers of choices run side by side, token by token: the chunks of the two traces
 * need not have the same sizes. */
#include "sim/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"
#include "traces/choices.h"
#include "traces/loop.h"

enum { SCAN_TOKENS = 4096 };

/* ---- are they captures of one model and one text? */

struct both {
    struct trace *native, *closed;
    struct trace_loop loop; /* of the closed one */
};

static bool differ(const struct both *both, const char *what, const char *a, const char *b,
                   struct err *err) {
    return err_set(err, ERR_DATA, "%s: %s: found \"%.60s\", expected \"%.60s\" as in %s",
                   trace_path(both->closed), what, b, a, trace_path(both->native));
}

static bool differ_int(const struct both *both, const char *what, int64_t a, int64_t b,
                       struct err *err) {
    return err_set(err, ERR_DATA, "%s: %s: found %lld, expected %lld as in %s",
                   trace_path(both->closed), what, (long long)b, (long long)a,
                   trace_path(both->native));
}

static bool check_kinds(struct both *both, struct err *err) {
    struct trace_loop native;
    if (!trace_loop_read(trace_capture(both->native)->options, &native, err))
        return err_context(err, "%s", trace_path(both->native));
    if (!trace_loop_read(trace_capture(both->closed)->options, &both->loop, err))
        return err_context(err, "%s", trace_path(both->closed));
    if (native.closed)
        return err_set(err, ERR_DATA, "%s: found a closed-loop capture, expected a native one",
                       trace_path(both->native));
    if (!both->loop.closed)
        return err_set(err, ERR_DATA,
                       "%s: found a native capture, expected a closed-loop one (capture --gate)",
                       trace_path(both->closed));
    return true;
}

static bool same_capture(const struct both *both, struct err *err) {
    const struct trace_capture *a = trace_capture(both->native), *b = trace_capture(both->closed);
    const struct {
        const char *what, *a, *b;
    } texts[] = {{"model", a->model, b->model},
                 {"identity of the weights", a->model_id, b->model_id},
                 {"config", a->config, b->config},
                 {"compute", a->compute, b->compute}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(texts[i].a, texts[i].b) != 0)
            return differ(both, texts[i].what, texts[i].a, texts[i].b, err);
    if (a->context_tokens != b->context_tokens)
        return differ_int(both, "context tokens", a->context_tokens, b->context_tokens, err);
    if (trace_layers(both->native) != trace_layers(both->closed))
        return differ_int(both, "layers", trace_layers(both->native), trace_layers(both->closed),
                          err);
    for (int r = 0; r < trace_layers(both->native); r++) {
        const struct trace_layer *x = trace_layer(both->native, r);
        const struct trace_layer *y = trace_layer(both->closed, r);
        if (x->layer != y->layer) return differ_int(both, "layer", x->layer, y->layer, err);
        if (x->experts != y->experts)
            return differ_int(both, "experts", x->experts, y->experts, err);
    }
    return true;
}

static bool same_documents(const struct both *both, struct err *err) {
    int64_t n = trace_documents(both->native), m = trace_documents(both->closed);
    if (n != m) return differ_int(both, "documents", n, m, err);
    for (int64_t d = 0; d < n; d++) {
        const struct trace_document *x = trace_document(both->native, d);
        const struct trace_document *y = trace_document(both->closed, d);
        if (strcmp(x->sha256, y->sha256) != 0)
            return differ(both, "sha256 of a document", x->sha256, y->sha256, err);
        if (x->tokens != y->tokens)
            return differ_int(both, "tokens of a document", x->tokens, y->tokens, err);
    }
    n = trace_tokens(both->native);
    m = trace_tokens(both->closed);
    if (n != m) return differ_int(both, "captured tokens", n, m, err);
    return n > 0 || err_set(err, ERR_DATA, "%s: found no captured tokens, expected some",
                            trace_path(both->native));
}

/* ---- NLL */

struct columns {
    int32_t document[SCAN_TOKENS], position[SCAN_TOKENS], id[SCAN_TOKENS];
    float nll[SCAN_TOKENS];
};

struct likelihood {
    struct columns of[2]; /* native, closed */
    double *sum[2];       /* [documents] */
    double *predicted;    /* [documents] */
};

static bool add_tokens(const struct both *both, struct likelihood *l, int64_t first, int64_t n,
                       struct err *err) {
    struct columns *a = &l->of[0], *b = &l->of[1];
    const struct trace_columns into[2] = {{a->document, a->position, a->id, a->nll},
                                          {b->document, b->position, b->id, b->nll}};
    if (!trace_read_tokens(both->native, first, n, &into[0], err) ||
        !trace_read_tokens(both->closed, first, n, &into[1], err))
        return false;
    for (int64_t i = 0; i < n; i++) {
        if (a->id[i] != b->id[i]) return differ_int(both, "token id", a->id[i], b->id[i], err);
        if (a->position[i] != b->position[i])
            return differ_int(both, "position of a token", a->position[i], b->position[i], err);
        if (isnan(a->nll[i]) || isnan(b->nll[i])) continue;
        l->sum[0][a->document[i]] += (double)a->nll[i];
        l->sum[1][a->document[i]] += (double)b->nll[i];
        l->predicted[a->document[i]]++;
    }
    return true;
}

/* Means per document; documents without a predicted token are left out. */
static bool summarise_nll(const struct likelihood *l, int64_t documents, struct comparison *out,
                          struct err *err) {
    double total = 0, sum[2] = {0};
    int used = 0;
    for (int64_t d = 0; d < documents; d++) {
        double n = l->predicted[d], a = l->sum[0][d], b = l->sum[1][d];
        if (n == 0) continue;
        total += n;
        sum[0] += a;
        sum[1] += b;
        l->sum[0][used] = a / n;
        l->sum[1][used] = b / n;
        l->predicted[used++] = n;
    }
    out->nll[WAY_NATIVE] = total > 0 ? sum[0] / total : NAN;
    out->nll[WAY_OPEN] = NAN;
    out->nll[WAY_CLOSED] = total > 0 ? sum[1] / total : NAN;
    out->nll_change = (struct interval){.estimate = NAN, .low = NAN, .high = NAN, .se = NAN};
    if (used == 0) return true;
    return bootstrap_mean_difference(l->sum[1], l->sum[0], l->predicted, used, NULL,
                                     &out->nll_change, err);
}

static bool compare_tokens(const struct both *both, struct comparison *out, struct err *err) {
    int64_t documents = trace_documents(both->native);
    size_t count = (size_t)documents + 1;
    struct likelihood *l = calloc(1, sizeof *l);
    double *sums = calloc(3 * count, sizeof *sums);
    bool ok = (l && sums) || err_memory(err, "likelihoods");
    if (ok) {
        l->sum[0] = sums;
        l->sum[1] = sums + count;
        l->predicted = sums + 2 * count;
    }
    for (int64_t first = 0; ok && first < out->tokens; first += SCAN_TOKENS) {
        int64_t left = out->tokens - first;
        ok = add_tokens(both, l, first, left < SCAN_TOKENS ? left : SCAN_TOKENS, err);
    }
    ok = ok && summarise_nll(l, documents, out, err);
    free(sums);
    free(l);
    return ok;
}

/* ---- one layer */

struct layer_compare {
    struct choices way[COMPARE_WAYS];
    int64_t at[COMPARE_WAYS]; /* tokens taken of the chunk in hand */
    int k[COMPARE_WAYS];
    int experts;
    int64_t *count[COMPARE_WAYS]; /* [E] */
    uint64_t *mask;               /* [E/64 + 1] zeroed */
    int64_t common[COMPARE_PAIRS];
};

static const enum compare_way pairs[COMPARE_PAIRS][2] = {
    [PAIR_OPEN_NATIVE] = {WAY_OPEN, WAY_NATIVE},
    [PAIR_CLOSED_NATIVE] = {WAY_CLOSED, WAY_NATIVE},
    [PAIR_CLOSED_OPEN] = {WAY_CLOSED, WAY_OPEN}};

/* The native scores under the gate that the closed loop ran. */
static bool open_ways(struct layer_compare *c, const struct both *both, int r, struct err *err) {
    const struct trace_layer *other = trace_layer(both->closed, r);
    const struct route_stream_setup setup = {.gate = &other->gate,
                                             .experts = other->experts,
                                             .layer = other->layer,
                                             .table = other->table,
                                             .bias = other->bias,
                                             .rule = other->bias ? both->loop.rule : NULL,
                                             .rate = both->loop.rate,
                                             .batch_tokens = both->loop.batch_tokens};
    if (!choices_open(&c->way[WAY_NATIVE], both->native, r, err) ||
        !choices_open(&c->way[WAY_CLOSED], both->closed, r, err) ||
        !choices_open_as(&c->way[WAY_OPEN], both->native, r, &setup, err))
        return false;
    c->experts = other->experts;
    c->k[WAY_NATIVE] = trace_layer(both->native, r)->topk;
    c->k[WAY_OPEN] = c->k[WAY_CLOSED] = other->topk;
    c->mask = calloc((size_t)c->experts / 64 + 1, sizeof *c->mask);
    for (int w = 0; w < COMPARE_WAYS; w++) {
        c->count[w] = calloc((size_t)c->experts, sizeof *c->count[w]);
        if (!c->count[w]) return err_memory(err, "loads");
    }
    return c->mask || err_memory(err, "loads");
}

static void close_ways(struct layer_compare *c) {
    for (int w = 0; w < COMPARE_WAYS; w++) {
        choices_close(&c->way[w]);
        free(c->count[w]);
    }
    free(c->mask);
}

/* Experts of a[ka] that are in b[kb] too. */
static int common(const int32_t *a, int ka, const int32_t *b, int kb, uint64_t *mask) {
    int both = 0;
    for (int i = 0; i < kb; i++)
        if (b[i] != ROUTE_NONE) mask[b[i] >> 6] |= UINT64_C(1) << (b[i] & 63);
    for (int i = 0; i < ka; i++)
        if (a[i] != ROUTE_NONE) both += (int)(mask[a[i] >> 6] >> (a[i] & 63) & 1);
    for (int i = 0; i < kb; i++)
        if (b[i] != ROUTE_NONE) mask[b[i] >> 6] = 0;
    return both;
}

static void add_token(struct layer_compare *c) {
    const int32_t *chosen[COMPARE_WAYS];
    for (int w = 0; w < COMPARE_WAYS; w++) {
        chosen[w] = c->way[w].chunk.expert + c->at[w]++ * c->k[w];
        for (int i = 0; i < c->k[w]; i++)
            if (chosen[w][i] != ROUTE_NONE) c->count[w][chosen[w][i]]++;
    }
    for (int p = 0; p < COMPARE_PAIRS; p++) {
        enum compare_way a = pairs[p][0], b = pairs[p][1];
        c->common[p] += common(chosen[a], c->k[a], chosen[b], c->k[b], c->mask);
    }
}

/* The next chunk of each way that has none left. */
static bool refill(struct layer_compare *c, struct err *err) {
    for (int w = 0; w < COMPARE_WAYS; w++) {
        if (c->at[w] < c->way[w].chunk.tokens) continue;
        c->at[w] = 0;
        if (!choices_next(&c->way[w], err)) return false;
        if (!c->way[w].chunk.tokens || !c->way[w].chunk.expert)
            return err_set(err, ERR_FORMAT, "layer %d: found fewer tokens than the trace has",
                           c->way[w].layer->layer);
    }
    return true;
}

static double total_variation(const int64_t *a, const int64_t *b, int experts) {
    double m = (double)balance_sum(a, experts), n = (double)balance_sum(b, experts), sum = 0;
    for (int e = 0; e < experts; e++) sum += fabs((double)a[e] / m - (double)b[e] / n);
    return sum / 2;
}

static void measure(const struct layer_compare *c, int64_t tokens, struct compare_layer *out) {
    for (int w = 0; w < COMPARE_WAYS; w++) out->maxvio[w] = balance_maxvio(c->count[w], c->experts);
    for (int p = 0; p < COMPARE_PAIRS; p++) {
        enum compare_way a = pairs[p][0], b = pairs[p][1];
        out->agreement[p] = (double)c->common[p] / ((double)tokens * c->k[a]);
        out->variation[p] = total_variation(c->count[a], c->count[b], c->experts);
    }
}

static bool compare_layer(const struct both *both, int r, int64_t tokens, struct compare_layer *out,
                          struct err *err) {
    struct layer_compare c = {0};
    bool ok = open_ways(&c, both, r, err);
    for (int64_t t = 0; ok && t < tokens; t++) {
        ok = refill(&c, err);
        if (ok) add_token(&c);
    }
    out->layer = trace_layer(both->closed, r)->layer;
    if (ok) measure(&c, tokens, out);
    close_ways(&c);
    return ok;
}

static void average(struct comparison *out) {
    struct compare_layer *mean = &out->mean;
    mean->layer = -1;
    for (int r = 0; r < out->layers; r++) {
        for (int w = 0; w < COMPARE_WAYS; w++)
            mean->maxvio[w] += out->layer[r].maxvio[w] / out->layers;
        for (int p = 0; p < COMPARE_PAIRS; p++) {
            mean->agreement[p] += out->layer[r].agreement[p] / out->layers;
            mean->variation[p] += out->layer[r].variation[p] / out->layers;
        }
    }
}

bool compare_traces(struct trace *native, struct trace *closed, struct comparison *out,
                    const struct progress *progress, struct err *err) {
    struct both both = {.native = native, .closed = closed};
    *out = (struct comparison){.layers = trace_layers(native), .tokens = trace_tokens(native)};
    if (!check_kinds(&both, err) || !same_capture(&both, err) || !same_documents(&both, err) ||
        !compare_tokens(&both, out, err))
        return false;
    out->layer = calloc((size_t)out->layers, sizeof *out->layer);
    if (!out->layer) return err_memory(err, "comparison");
    for (int r = 0; r < out->layers; r++) {
        if (!compare_layer(&both, r, out->tokens, &out->layer[r], err)) return false;
        if (!progress_report(progress, "compare", r + 1, out->layers, "layers"))
            return err_set(err, ERR_CANCELLED, "interrupted");
    }
    average(out);
    return true;
}

void comparison_free(struct comparison *comparison) {
    free(comparison->layer);
    *comparison = (struct comparison){0};
}
