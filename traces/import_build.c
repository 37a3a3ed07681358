/* import_build.c - gathers chosen ids of a source that is parsed, and checks them as a whole */
#include "traces/import_build.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "traces/importers.h"

struct build_layer *build_layer(struct build *build, int layer, int topk, struct err *err) {
    for (int i = 0; i < build->layer_count; i++) {
        if (build->layers[i].layer != layer) continue;
        if (build->layers[i].topk == topk) return &build->layers[i];
        err_set(err, ERR_FORMAT, "layer %d: found %d experts a token, before %d", layer, topk,
                build->layers[i].topk);
        return NULL;
    }
    if (topk < 1 || topk > GATE_MAX_TOPK || layer < 0 || layer > 100000) {
        err_set(err, ERR_FORMAT, "layer %d: found %d experts a token, expected 1 to %d", layer,
                topk, GATE_MAX_TOPK);
        return NULL;
    }
    struct build_layer *layers =
        realloc(build->layers, ((size_t)build->layer_count + 1) * sizeof *layers);
    if (!layers) {
        err_memory(err, "layers");
        return NULL;
    }
    build->layers = layers;
    layers[build->layer_count] = (struct build_layer){.layer = layer, .topk = topk};
    return &layers[build->layer_count++];
}

static bool reserve(struct build_layer *layer, int64_t more, bool weighted, struct err *err) {
    int64_t need = layer->tokens + more;
    if (need <= layer->cap) return true;
    int64_t cap = need > 2 * layer->cap ? need : 2 * layer->cap;
    size_t bytes = (size_t)cap * (size_t)layer->topk * 4;
    int32_t *expert = realloc(layer->expert, bytes);
    if (expert) layer->expert = expert;
    float *weight = weighted ? realloc(layer->weight, bytes) : NULL;
    if (weight) layer->weight = weight;
    if (!expert || (weighted && !weight)) return err_memory(err, "tokens");
    layer->cap = cap;
    return true;
}

bool build_add(struct build_layer *layer, int64_t n, const int32_t *expert, const float *weight,
               struct err *err) {
    if (layer->tokens && layer->weighted != (weight != NULL))
        return err_set(err, ERR_FORMAT, "layer %d: found weights for some tokens only",
                       layer->layer);
    layer->weighted = weight != NULL;
    if (n == 0) return true;
    if (!reserve(layer, n, layer->weighted, err)) return false;
    size_t k = (size_t)layer->topk, at = (size_t)layer->tokens * k;
    memcpy(layer->expert + at, expert, (size_t)n * k * 4);
    if (weight) memcpy(layer->weight + at, weight, (size_t)n * k * 4);
    layer->tokens += n;
    return true;
}

bool build_add_array(struct build *build, const struct npy *array, struct err *err) {
    int64_t tokens = array->shape[0], layers = array->shape[1], k = array->shape[2];
    if (array->rank != 3 || array->kind == 'f' || layers < 1 || layers > 10000 || k < 1 ||
        k > GATE_MAX_TOPK)
        return err_set(err, ERR_FORMAT, "found %d dimensions, expected whole [tokens, layers, k]",
                       array->rank);
    for (int64_t l = 0; l < layers; l++) {
        struct build_layer *layer = build_layer(build, (int)l, (int)k, err);
        if (!layer) return false;
        for (int64_t t = 0; t < tokens; t++) {
            int32_t expert[GATE_MAX_TOPK];
            npy_choices(array, t * layers + l, 1, (int)k, expert);
            if (!build_add(layer, 1, expert, NULL, err)) return false;
        }
    }
    return true;
}

static bool add_document(struct build *build, const char *source, const char *domain,
                         struct err *err) {
    struct trace_document *documents =
        realloc(build->documents, ((size_t)build->document_count + 1) * sizeof *documents);
    if (documents) build->documents = documents;
    if (!source || !domain || !documents) return err_memory(err, "documents");
    documents[build->document_count++] = (struct trace_document){
        .source = source, .domain = domain, .sha256 = "", .first_token = build->tokens};
    return true;
}

/* Room for `more` tokens in one of the token columns. */
static bool grow_column(void *column, int64_t cap) {
    void **array = column, *grown = realloc(*array, (size_t)cap * 4);
    if (grown) *array = grown;
    return grown != NULL;
}

static bool grow_tokens(struct build *build, int64_t more, struct err *err) {
    int64_t need = build->tokens + more;
    if (need <= build->token_cap) return true;
    int64_t cap = need > 2 * build->token_cap ? need : 2 * build->token_cap;
    if (!grow_column(&build->ids, cap) || !grow_column(&build->positions, cap) ||
        !grow_column(&build->nll, cap))
        return err_memory(err, "tokens");
    build->token_cap = cap;
    return true;
}

bool build_token(struct build *build, const struct build_token *token, struct err *err) {
    if (token->source && !add_document(build, token->source, token->domain, err)) return false;
    if (!grow_tokens(build, 1, err)) return false;
    int64_t t = build->tokens++;
    build->documents[build->document_count - 1].tokens++;
    build->ids[t] = token->id;
    build->positions[t] = token->position;
    build->nll[t] = token->nll;
    build->have_ids = build->have_ids || token->id >= 0;
    build->have_positions = build->have_positions || token->position >= 0;
    build->have_nll = build->have_nll || !isnan(token->nll);
    return true;
}

bool build_document(struct build *build, const char *source, const char *domain, int64_t tokens,
                    const int32_t *ids, struct err *err) {
    if (!add_document(build, source, domain, err) || !grow_tokens(build, tokens + 1, err))
        return false;
    for (int64_t t = 0; t < tokens; t++) {
        const struct build_token token = {
            .id = ids ? ids[t] : -1, .position = -1, .nll = (float)NAN};
        if (!build_token(build, &token, err)) return false;
    }
    return true;
}

void build_free(struct build *build) {
    for (int i = 0; i < build->layer_count; i++) {
        free(build->layers[i].expert);
        free(build->layers[i].weight);
    }
    free(build->layers);
    free(build->documents);
    free(build->ids);
    free(build->positions);
    free(build->nll);
    *build = (struct build){0};
}

/* ---- checks */

/* All ids zero: with k > 1 no router does that; it is how engines write dense layers. */
static bool all_zero(const struct build_layer *layer) {
    for (int64_t i = 0; i < layer->tokens * layer->topk; i++)
        if (layer->expert[i] != 0) return false;
    return true;
}

static bool drop_dense(struct build *build, struct err *err) {
    int kept = 0;
    for (int i = 0; i < build->layer_count; i++) {
        struct build_layer layer = build->layers[i];
        if (!all_zero(&layer)) {
            build->layers[kept++] = layer;
            continue;
        }
        free(layer.expert);
        free(layer.weight);
    }
    build->layer_count = kept;
    return kept || err_set(err, ERR_DATA,
                           "found only zeros as chosen experts: nothing was recorded in this file");
}

static bool check_token(const struct build_layer *layer, int64_t t, int32_t *highest,
                        struct err *err) {
    const int32_t *expert = layer->expert + t * layer->topk;
    for (int i = 0; i < layer->topk; i++) {
        if (expert[i] < 0 || expert[i] >= GATE_MAX_EXPERTS)
            return err_set(
                err, ERR_DATA,
                "layer %d, token %lld: found expert %d (padding, or no record), expected "
                "an expert",
                layer->layer, (long long)t, expert[i]);
        if (expert[i] > *highest) *highest = expert[i];
        for (int j = 0; j < i; j++)
            if (expert[j] == expert[i])
                return err_set(
                    err, ERR_DATA,
                    "layer %d, token %lld: found expert %d twice, expected distinct ones",
                    layer->layer, (long long)t, expert[i]);
        float weight = layer->weighted ? layer->weight[t * layer->topk + i] : 0;
        if (!isfinite(weight))
            return err_set(err, ERR_DATA, "layer %d, token %lld: found weight %g", layer->layer,
                           (long long)t, (double)weight);
    }
    return true;
}

static bool check_layers(const struct build *build, int32_t *highest, struct err *err) {
    for (int r = 0; r < build->layer_count; r++) {
        const struct build_layer *layer = &build->layers[r];
        if (layer->tokens != build->tokens)
            return err_set(
                err, ERR_DATA,
                "layer %d: found %lld tokens, expected %lld (records of a rank missing?)",
                layer->layer, (long long)layer->tokens, (long long)build->tokens);
        for (int64_t t = 0; t < layer->tokens; t++)
            if (!check_token(layer, t, highest, err)) return false;
    }
    return true;
}

static int compare_layers(const void *a, const void *b) {
    const struct build_layer *x = a, *y = b;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

/* Positions are known for all tokens or are counted. */
static bool check_positions(const struct build *build, struct err *err) {
    for (int64_t t = 0; build->have_positions && t < build->tokens; t++)
        if (build->positions[t] < 0)
            return err_set(err, ERR_DATA, "token %lld: found no position, other tokens have one",
                           (long long)t);
    return true;
}

/* ---- the source */

static bool routes(struct import_source *source, struct trace_routes *want, struct err *err) {
    (void)err;
    const struct build *build = source->state;
    const struct build_layer *layer = &build->layers[want->r];
    want->expert = layer->expert + want->first * layer->topk;
    if (layer->weighted) want->weight = layer->weight + want->first * layer->topk;
    return true;
}

static void close_source(struct import_source *source) { build_free(source->state); }

static bool describe_layers(const struct build *build, const struct import_job *job, int experts,
                            struct import_source *source, struct err *err) {
    struct trace_layer *layers =
        arena_alloc(&source->arena, (size_t)build->layer_count, sizeof *layers);
    if (!layers) return err_memory(err, "layers");
    for (int r = 0; r < build->layer_count; r++) {
        const struct build_layer *from = &build->layers[r];
        layers[r] = (struct trace_layer){.layer = from->layer,
                                         .experts = experts,
                                         .topk = from->topk,
                                         .holds = TRACE_IDS,
                                         .has_weights = from->weighted,
                                         .has_gate = job->gate != NULL};
        if (!import_gate(job, &layers[r], err)) return false;
    }
    source->setup.layers = layers;
    source->setup.layer_count = build->layer_count;
    return true;
}

bool build_finish(struct build *build, const struct import_job *job, struct import_source *source,
                  const char *importer, const char *lacks, struct err *err) {
    int32_t highest = 0;
    struct str missing = {0};
    if (!build->tokens) return err_set(err, ERR_DATA, "found no token");
    if (!drop_dense(build, err) || !check_layers(build, &highest, err) ||
        !check_positions(build, err))
        return false;
    int64_t known = job->experts ? job->experts : build->experts;
    if (known && highest >= known)
        return err_set(err, ERR_DATA, "found expert %d, expected less than %lld%s", highest,
                       (long long)known, job->experts ? " of --experts" : "");
    int experts = known ? (int)known : highest + 1;
    qsort(build->layers, (size_t)build->layer_count, sizeof *build->layers, compare_layers);
    if (!describe_layers(build, job, experts, source, err)) return false;
    str_puts(&missing, lacks);
    if (!build->have_ids) str_puts(&missing, "; token ids");
    if (!known)
        str_printf(&missing, "; number of experts (taken as the highest id + 1 = %d)", experts);
    const char *name = job->model ? job->model : import_stem(&source->arena, job->files[0]);
    struct build *state = arena_alloc(&source->arena, 1, sizeof *state);
    source->setup.capture = import_capture(importer, name);
    source->setup.capture.lacks = arena_str(&source->arena, &missing);
    str_free(&missing);
    if (!name || !state || !source->setup.capture.lacks) return err_memory(err, "import");
    *state = *build;
    *build = (struct build){0};
    source->setup.documents = state->documents;
    source->setup.document_count = state->document_count;
    source->ids = state->have_ids ? state->ids : NULL;
    source->positions = state->have_positions ? state->positions : NULL;
    source->nll = state->have_nll ? state->nll : NULL;
    source->state = state;
    source->routes = routes;
    source->close = close_source;
    return true;
}
