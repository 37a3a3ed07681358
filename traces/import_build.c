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

/* Room for one more token; a full chunk goes to the spool. */
static bool reserve(struct build *build, struct build_layer *layer, struct err *err) {
    int64_t waiting = layer->tokens % BUILD_CHUNK, chunks = layer->tokens / BUILD_CHUNK;
    size_t k = (size_t)layer->topk;
    if (!waiting && chunks) {
        int64_t *grown = realloc(layer->chunks, (size_t)chunks * sizeof *grown), weights;
        if (!grown) return err_memory(err, "tokens");
        layer->chunks = grown;
        return spool_add(&build->spool, layer->expert, BUILD_CHUNK * k * 2, &grown[chunks - 1],
                         err) &&
               (!layer->weighted ||
                spool_add(&build->spool, layer->weight, BUILD_CHUNK * k * 4, &weights, err));
    }
    if (waiting < layer->cap) return true;
    int64_t cap = layer->cap ? 2 * layer->cap : 16;
    uint16_t *expert = realloc(layer->expert, (size_t)cap * k * 2);
    if (expert) layer->expert = expert;
    float *weight = layer->weighted ? realloc(layer->weight, (size_t)cap * k * 4) : NULL;
    if (weight) layer->weight = weight;
    if (!expert || (layer->weighted && !weight)) return err_memory(err, "tokens");
    layer->cap = cap;
    return true;
}

/* Could a router have chosen these? */
static bool check_token(const struct build_layer *layer, const int32_t *expert, const float *weight,
                        struct err *err) {
    long long t = layer->tokens;
    for (int i = 0; i < layer->topk; i++) {
        if (expert[i] < 0 || expert[i] >= GATE_MAX_EXPERTS)
            return err_set(err, ERR_DATA,
                           "layer %d, token %lld: found expert %d (padding, or no record), "
                           "expected an expert",
                           layer->layer, t, expert[i]);
        for (int j = 0; j < i; j++)
            if (expert[j] == expert[i])
                return err_set(
                    err, ERR_DATA,
                    "layer %d, token %lld: found expert %d twice, expected distinct ones",
                    layer->layer, t, expert[i]);
        if (weight && !isfinite(weight[i]))
            return err_set(err, ERR_DATA, "layer %d, token %lld: found weight %g", layer->layer, t,
                           (double)weight[i]);
    }
    return true;
}

/* All ids zero: with k > 1 no router does that; it is how engines write dense layers. */
static bool all_zero(const int32_t *expert, int k) {
    for (int i = 0; i < k; i++)
        if (expert[i]) return false;
    return true;
}

static bool add_token(struct build *build, struct build_layer *layer, const int32_t *expert,
                      const float *weight, struct err *err) {
    int k = layer->topk;
    bool zero = all_zero(expert, k);
    if (!(zero && k > 1) && !check_token(layer, expert, weight, err)) return false;
    if (zero && !layer->zeros++) layer->first_zero = layer->tokens;
    if (!reserve(build, layer, err)) return false;
    int64_t at = layer->tokens % BUILD_CHUNK * k;
    for (int i = 0; i < k; i++) {
        if (expert[i] > layer->highest) layer->highest = expert[i];
        layer->expert[at + i] = (uint16_t)expert[i];
        if (weight) layer->weight[at + i] = weight[i];
    }
    layer->tokens++;
    return true;
}

bool build_add(struct build *build, struct build_layer *layer, int64_t n, const int32_t *expert,
               const float *weight, struct err *err) {
    if (layer->tokens && layer->weighted != (weight != NULL))
        return err_set(err, ERR_FORMAT, "layer %d: found weights for some tokens only",
                       layer->layer);
    layer->weighted = weight != NULL;
    for (int64_t t = 0; t < n; t++)
        if (!add_token(build, layer, expert + t * layer->topk,
                       weight ? weight + t * layer->topk : NULL, err))
            return false;
    return true;
}

bool build_read(const struct build *build, const struct build_layer *layer, int64_t first,
                int64_t n, int32_t *expert, float *weight, struct err *err) {
    int64_t chunk = first / BUILD_CHUNK, k = layer->topk, at = first % BUILD_CHUNK * k;
    bool waits = chunk == (layer->tokens - 1) / BUILD_CHUNK;
    uint16_t ids[BUILD_CHUNK];
    if (waits && weight) memcpy(weight, layer->weight + at, (size_t)(n * k) * 4);
    if (!waits && weight &&
        !spool_read(&build->spool, layer->chunks[chunk] + BUILD_CHUNK * k * 2 + at * 4, weight,
                    (size_t)(n * k) * 4, err))
        return false;
    for (int64_t done = 0, step; done < n * k; done += step) {
        step = n * k - done < BUILD_CHUNK ? n * k - done : BUILD_CHUNK;
        const uint16_t *from = waits ? layer->expert + at + done : ids;
        if (!waits && !spool_read(&build->spool, layer->chunks[chunk] + (at + done) * 2, ids,
                                  (size_t)step * 2, err))
            return false;
        for (int64_t i = 0; i < step; i++) expert[done + i] = from[i];
    }
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
            if (!build_add(build, layer, 1, expert, NULL, err)) return false;
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

/* The column gets room for `cap` tokens, when it has begun or begins now: `tokens` of them are
 * unknown then. */
static bool grow_column(void *column, bool begins, int64_t tokens, int64_t cap,
                        const void *unknown) {
    void **array = column;
    if (!*array && !begins) return true;
    bool fresh = !*array;
    char *grown = realloc(*array, (size_t)cap * 4);
    if (!grown) return false;
    *array = grown;
    for (int64_t t = 0; fresh && t < tokens; t++) memcpy(grown + t * 4, unknown, 4);
    return true;
}

static bool grow_tokens(struct build *build, const struct build_token *next, struct err *err) {
    const int32_t none = -1;
    const float nan = (float)NAN;
    bool full = build->tokens == build->token_cap;
    bool id = !build->ids && next->id >= 0, nll = !build->nll && !isnan(next->nll);
    bool position = !build->positions && next->position >= 0;
    if (!full && !id && !nll && !position) return true;
    int64_t cap = full ? 2 * build->token_cap + 64 : build->token_cap;
    if (!grow_column(&build->ids, id, build->tokens, cap, &none) ||
        !grow_column(&build->positions, position, build->tokens, cap, &none) ||
        !grow_column(&build->nll, nll, build->tokens, cap, &nan))
        return err_memory(err, "tokens");
    build->token_cap = cap;
    return true;
}

bool build_token(struct build *build, const struct build_token *token, struct err *err) {
    if (token->source && !add_document(build, token->source, token->domain, err)) return false;
    if (!grow_tokens(build, token, err)) return false;
    int64_t t = build->tokens++;
    build->documents[build->document_count - 1].tokens++;
    if (build->ids) build->ids[t] = token->id;
    if (build->positions) build->positions[t] = token->position;
    if (build->nll) build->nll[t] = token->nll;
    return true;
}

bool build_document(struct build *build, const char *source, const char *domain, int64_t tokens,
                    const int32_t *ids, struct err *err) {
    if (!add_document(build, source, domain, err)) return false;
    for (int64_t t = 0; t < tokens; t++) {
        const struct build_token token = {
            .id = ids ? ids[t] : -1, .position = -1, .nll = (float)NAN};
        if (!build_token(build, &token, err)) return false;
    }
    return true;
}

static void free_layer(struct build_layer *layer) {
    free(layer->expert);
    free(layer->weight);
    free(layer->chunks);
}

void build_drop_layer(struct build *build, int index) {
    free_layer(&build->layers[index]);
    build->layers[index] = build->layers[--build->layer_count];
}

void build_free(struct build *build) {
    for (int i = 0; i < build->layer_count; i++) free_layer(&build->layers[i]);
    free(build->layers);
    free(build->documents);
    free(build->ids);
    free(build->positions);
    free(build->nll);
    free(build->piece);
    free(build->piece_weight);
    spool_close(&build->spool);
    *build = (struct build){0};
}

/* ---- checks */

/* Layers that are zeros throughout are dense; a few zeros are what was not recorded. */
static bool drop_dense(struct build *build, struct err *err) {
    for (int i = build->layer_count - 1; i >= 0; i--)
        if (build->layers[i].zeros == build->layers[i].tokens) build_drop_layer(build, i);
    return build->layer_count ||
           err_set(err, ERR_DATA,
                   "found only zeros as chosen experts: nothing was recorded in this file");
}

static bool check_layers(const struct build *build, int32_t *highest, struct err *err) {
    for (int r = 0; r < build->layer_count; r++) {
        const struct build_layer *layer = &build->layers[r];
        if (layer->tokens != build->tokens)
            return err_set(
                err, ERR_DATA,
                "layer %d: found %lld tokens, expected %lld (records of a rank missing?)",
                layer->layer, (long long)layer->tokens, (long long)build->tokens);
        if (layer->zeros && layer->topk > 1)
            return err_set(err, ERR_DATA,
                           "layer %d, token %lld: found expert 0 twice, expected distinct ones "
                           "(padding, or no record)",
                           layer->layer, (long long)layer->first_zero);
        if (layer->highest > *highest) *highest = layer->highest;
    }
    return true;
}

static int compare_layers(const void *a, const void *b) {
    const struct build_layer *x = a, *y = b;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

/* Positions are known for all tokens or are counted. */
static bool check_positions(const struct build *build, struct err *err) {
    for (int64_t t = 0; build->positions && t < build->tokens; t++)
        if (build->positions[t] < 0)
            return err_set(err, ERR_DATA, "token %lld: found no position, other tokens have one",
                           (long long)t);
    return true;
}

/* ---- the source */

static bool routes(struct import_source *source, struct trace_routes *want, struct err *err) {
    const struct build *build = source->state;
    const struct build_layer *layer = &build->layers[want->r];
    int64_t most = BUILD_CHUNK - want->first % BUILD_CHUNK;
    if (want->tokens > most) want->tokens = most;
    want->expert = build->piece;
    if (layer->weighted) want->weight = build->piece_weight;
    return build_read(build, layer, want->first, want->tokens, build->piece,
                      layer->weighted ? build->piece_weight : NULL, err);
}

/* Room for a chunk of the widest layer. */
static bool make_pieces(struct build *build, struct err *err) {
    int64_t n = build->tokens < BUILD_CHUNK ? build->tokens : BUILD_CHUNK;
    int topk = 1;
    for (int r = 0; r < build->layer_count; r++)
        if (build->layers[r].topk > topk) topk = build->layers[r].topk;
    build->piece = malloc((size_t)n * (size_t)topk * 4);
    build->piece_weight = malloc((size_t)n * (size_t)topk * 4);
    return (build->piece && build->piece_weight) || err_memory(err, "tokens");
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
        !check_positions(build, err) || !make_pieces(build, err))
        return false;
    int64_t known = job->experts ? job->experts : build->experts;
    if (known && highest >= known)
        return err_set(err, ERR_DATA, "found expert %d, expected less than %lld%s", highest,
                       (long long)known, job->experts ? " of --experts" : "");
    int experts = known ? (int)known : highest + 1;
    qsort(build->layers, (size_t)build->layer_count, sizeof *build->layers, compare_layers);
    if (!describe_layers(build, job, experts, source, err)) return false;
    str_puts(&missing, lacks);
    if (!build->ids) str_puts(&missing, "; token ids");
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
    source->ids = state->ids;
    source->positions = state->positions;
    source->nll = state->nll;
    source->state = state;
    source->routes = routes;
    source->close = close_source;
    return true;
}
