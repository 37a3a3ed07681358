/* support_golden.c - the engine against recorded reference outputs */
#include "tests/support_golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/safetensors.h"
#include "base/str.h"

bool golden_ids(const char *folder, int32_t **ids, int64_t **start, int64_t *windows,
                struct err *err) {
    struct str path = {0};
    size_t len;
    file_join(&path, folder, "ids.txt");
    char *text = file_read(str_text(&path), 1 << 20, &len, err);
    str_free(&path);
    if (!text) return false;
    int64_t count = 0;
    *ids = malloc(len * sizeof **ids + 1);
    *start = calloc(len + 2, sizeof **start);
    *windows = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        for (char *at = line, *end = line; *at; at = end) {
            long id = strtol(at, &end, 10);
            if (end == at) break;
            (*ids)[count++] = (int32_t)id;
        }
        (*start)[++*windows] = count;
    }
    free(text);
    return true;
}

struct hearing {
    struct heard *heard;
    int64_t token, window; /* of the pass, within all */
};

static bool hear_routes(void *context, int r, int64_t first, int64_t n, const float *logits,
                        const int32_t *expert, const float *weight, struct err *err) {
    const struct hearing *h = context;
    const struct engine_router *router = &h->heard->router[r];
    int64_t at = h->token + first, e = router->experts, k = router->gate.topk;
    (void)err;
    memcpy(h->heard->logits[r] + at * e, logits, (size_t)(n * e) * sizeof *logits);
    memcpy(h->heard->expert[r] + at * k, expert, (size_t)(n * k) * sizeof *expert);
    memcpy(h->heard->weight[r] + at * k, weight, (size_t)(n * k) * sizeof *weight);
    return true;
}

static bool hear_nll(void *context, int64_t first, int64_t n, const float *nll, struct err *err) {
    const struct hearing *h = context;
    (void)err;
    memcpy(h->heard->nll + h->token + first, nll, (size_t)n * sizeof *nll);
    return true;
}

static bool hear_last(void *context, int64_t window, const float *logits, struct err *err) {
    const struct hearing *h = context;
    (void)err;
    memcpy(h->heard->last + (h->window + window) * h->heard->vocab, logits,
           (size_t)h->heard->vocab * sizeof *logits);
    return true;
}

static void *zeros(int64_t count, size_t size) { return calloc((size_t)count + 1, size); }

static void hear_begin(struct heard *heard, const struct engine_info *info, int64_t tokens,
                       int64_t windows) {
    struct engine_router *router = zeros(info->routers, sizeof *router);
    memcpy(router, info->router, (size_t)info->routers * sizeof *router);
    *heard = (struct heard){.routers = info->routers,
                            .router = router,
                            .tokens = tokens,
                            .vocab = info->vocab,
                            .windows = windows};
    heard->logits = zeros(info->routers, sizeof *heard->logits);
    heard->expert = zeros(info->routers, sizeof *heard->expert);
    heard->weight = zeros(info->routers, sizeof *heard->weight);
    heard->nll = zeros(tokens, sizeof *heard->nll);
    heard->last = zeros(windows * info->vocab, sizeof *heard->last);
    for (int r = 0; r < info->routers; r++) {
        float *bias = NULL;
        heard->logits[r] = zeros(tokens * router[r].experts, sizeof(float));
        heard->expert[r] = zeros(tokens * router[r].gate.topk, sizeof(int32_t));
        heard->weight[r] = zeros(tokens * router[r].gate.topk, sizeof(float));
        if (router[r].bias) {
            bias = zeros(router[r].experts, sizeof *bias);
            memcpy(bias, router[r].bias, (size_t)router[r].experts * sizeof *bias);
        }
        router[r].bias = bias;
    }
}

void heard_free(struct heard *heard) {
    for (int r = 0; r < heard->routers; r++) {
        free((void *)heard->router[r].bias);
        free(heard->logits[r]);
        free(heard->expert[r]);
        free(heard->weight[r]);
    }
    free((void *)heard->router);
    free(heard->logits);
    free(heard->expert);
    free(heard->weight);
    free(heard->nll);
    free(heard->last);
    memset(heard, 0, sizeof *heard);
}

/* Bit equality; NaN of the last tokens included. */
bool heard_equal(const struct heard *a, const struct heard *b) {
    size_t t = (size_t)a->tokens;
    if (a->routers != b->routers || a->tokens != b->tokens || a->windows != b->windows)
        return false;
    if (memcmp(a->nll, b->nll, t * sizeof *a->nll) != 0) return false;
    if (memcmp(a->last, b->last, (size_t)(a->windows * a->vocab) * sizeof *a->last) != 0)
        return false;
    for (int r = 0; r < a->routers; r++) {
        size_t e = (size_t)a->router[r].experts, k = (size_t)a->router[r].gate.topk;
        if (memcmp(a->logits[r], b->logits[r], t * e * sizeof(float)) != 0 ||
            memcmp(a->expert[r], b->expert[r], t * k * sizeof(int32_t)) != 0 ||
            memcmp(a->weight[r], b->weight[r], t * k * sizeof(float)) != 0)
            return false;
    }
    return true;
}

static bool run_windows(struct engine *engine, const int32_t *ids, const int64_t *start,
                        int64_t first, int64_t last, struct heard *heard, struct err *err) {
    struct hearing hearing = {heard, start[first], first};
    struct engine_sink sink = {&hearing, hear_routes, hear_nll, hear_last};
    int64_t *own = zeros(last - first + 1, sizeof *own);
    for (int64_t w = first; w <= last; w++) own[w - first] = start[w] - start[first];
    struct engine_pass pass = {own[last - first], ids + start[first], own, last - first, 0};
    bool ok = engine_run(engine, &pass, &sink, NULL, err);
    free(own);
    return ok;
}

bool golden_run(const char *folder, const struct golden_options *how, struct heard *heard,
                struct err *err) {
    int32_t *ids = NULL;
    int64_t *start = NULL, windows = 0;
    memset(heard, 0, sizeof *heard);
    struct pool *pool = pool_create(how->threads, err);
    struct engine_options options = {.pool = pool,
                                     .kernels = how->kernels,
                                     .bf16 = how->bf16,
                                     .memory_bytes = how->memory_bytes};
    struct engine *engine =
        pool ? engine_open(how->model ? how->model : folder, &options, err) : NULL;
    bool ok = engine && golden_ids(folder, &ids, &start, &windows, err);
    if (ok) hear_begin(heard, engine_info(engine), start[windows], windows);
    if (ok && !how->split) ok = run_windows(engine, ids, start, 0, windows, heard, err);
    for (int64_t w = 0; ok && how->split && w < windows; w++)
        ok = run_windows(engine, ids, start, w, w + 1, heard, err);
    free(ids);
    free(start);
    engine_close(engine);
    if (pool) pool_free(pool);
    return ok;
}

/* ---- comparison */

static const struct safetensors_tensor *expected(const struct safetensors *file, int layer,
                                                 const char *what) {
    char name[64];
    snprintf(name, sizeof name, "layers.%d.%s", layer, what);
    return safetensors_find(file, name);
}

static double largest(const float *x, int64_t n) {
    double max = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, fabs((double)x[i]));
    return max;
}

/* Largest difference; NaN must meet NaN. */
static double difference(const float *x, const float *y, int64_t n) {
    double max = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]) && isnan(y[i])) continue;
        double d = fabs((double)x[i] - (double)y[i]);
        max = isnan(d) ? INFINITY : fmax(max, d);
    }
    return max;
}

/* Compares one token's choices as a set with weights. */
static bool same_choice(const struct heard *h, int r, int64_t t, const int32_t *expert,
                        const float *weight, double *worst) {
    int k = h->router[r].gate.topk;
    for (int i = 0; i < k; i++) {
        int at = -1;
        for (int j = 0; j < k; j++)
            if (expert[t * k + j] == h->expert[r][t * k + i]) at = j;
        if (at < 0) return false;
        double w = (double)weight[t * k + at], d = fabs((double)h->weight[r][t * k + i] - w);
        *worst = fmax(*worst, d / fmax(fabs(w), 1e-3));
    }
    return true;
}

static bool compare_router(const struct heard *h, const struct safetensors *file, int r,
                           struct parity *parity, struct err *err) {
    int layer = h->router[r].layer, experts = h->router[r].experts;
    const struct safetensors_tensor *logits = expected(file, layer, "router_logits");
    const struct safetensors_tensor *ids = expected(file, layer, "topk_ids");
    const struct safetensors_tensor *weights = expected(file, layer, "topk_weights");
    const struct safetensors_tensor *bias = expected(file, layer, "bias");
    if (!logits || !ids || !weights || logits->count != h->tokens * experts ||
        ids->count != h->tokens * h->router[r].gate.topk)
        return err_set(err, ERR_DATA, "layer %d: the reference has no such router", layer);
    double scale = largest(logits->data, logits->count);
    parity->router_logits =
        fmax(parity->router_logits, difference(h->logits[r], logits->data, logits->count) / scale);
    for (int64_t t = 0; t < h->tokens; t++)
        parity->choices += !same_choice(h, r, t, ids->data, weights->data, &parity->weight);
    if (bias && !h->router[r].bias) return err_set(err, ERR_DATA, "layer %d: no bias", layer);
    if (bias) parity->bias = fmax(parity->bias, difference(h->router[r].bias, bias->data, experts));
    return true;
}

bool golden_parity(const char *folder, const struct golden_options *how, struct parity *parity,
                   struct err *err) {
    struct heard heard;
    struct str path = {0};
    memset(parity, 0, sizeof *parity);
    if (how->expected)
        str_puts(&path, how->expected);
    else
        file_join(&path, folder, "expected.safetensors");
    struct safetensors *file = safetensors_open(str_text(&path), err);
    str_free(&path);
    if (!file) return false;
    bool ok = golden_run(folder, how, &heard, err);
    const struct safetensors_tensor *nll = safetensors_find(file, "nll");
    const struct safetensors_tensor *last = safetensors_find(file, "final_logits");
    ok = ok && ((nll && last && nll->count == heard.tokens &&
                 last->count == heard.windows * heard.vocab) ||
                err_set(err, ERR_DATA, "%s: the reference has other sizes", folder));
    if (ok) {
        parity->nll = difference(heard.nll, nll->data, nll->count);
        parity->logits =
            difference(heard.last, last->data, last->count) / largest(last->data, last->count);
    }
    for (int r = 0; ok && r < heard.routers; r++) ok = compare_router(&heard, file, r, parity, err);
    heard_free(&heard);
    safetensors_close(file);
    return ok;
}
