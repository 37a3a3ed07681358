/* import_safetensors.c - reads the interchange form: router logits, or chosen ids, per layer
 *
 * Tensors: token_ids [T] i32, nll [T] f32, document [T] i32, layers.{i}.router_logits [T,E] f32,
 * layers.{i}.topk_ids [T,k] i32, layers.{i}.topk_weights [T,k] f32, layers.{i}.bias [E] f32;
 * metadata gate.{i}. With logits the gate comes from the metadata or from the user; where the file
 * also holds choices every token must agree with it, because a wrong gate would be silent garbage.
 * Metadata closed_loop (loop.h) says that the bias moved from layers.{i}.bias on while tokens
 * passed: then the choices must be those of that rule, over the tokens in order.
 * Data may lie at any address: the form does not ask writers to align them. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "traces/import_choices.h"
#include "traces/importers.h"

struct st_layer {
    int layer;
    const struct safetensors_tensor *logits, *ids, *weights;
};

struct st_state {
    struct safetensors *file;
    struct arena *arena; /* of the source */
    struct st_layer *layers;
    int layer_count;
    int64_t tokens;
    const char *options;    /* of the capture: the clause of a closed loop, or "" */
    struct trace_loop loop; /* what it says */
};

bool import_safetensors_recognise(const char *path) {
    struct err ignored;
    struct safetensors *file = safetensors_open(path, &ignored);
    bool found = false;
    for (int i = 0; file && i < safetensors_count(file); i++) {
        const char *name = safetensors_at(file, i)->name;
        found = found || (strncmp(name, "layers.", 7) == 0 &&
                          (strstr(name, ".router_logits") || strstr(name, ".topk_ids")));
    }
    safetensors_close(file);
    return found;
}

/* Layer number of "layers.N.suffix"; -1 when the name has another form. */
static int layer_number(const char *name, const char *suffix) {
    if (strncmp(name, "layers.", 7) != 0) return -1;
    char *end;
    long n = strtol(name + 7, &end, 10);
    bool digits = name[7] >= '0' && name[7] <= '9' && n <= 1000000;
    if (name[7] == '0' && name[8] != '.') return -1; /* "03": parts are looked for as "3" */
    return digits && *end == '.' && strcmp(end + 1, suffix) == 0 ? (int)n : -1;
}

static int compare_layers(const void *a, const void *b) {
    const struct st_layer *x = a, *y = b;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

/* Copies data that no 4-byte load may touch. */
static bool align_part(const struct st_state *state, const struct safetensors_tensor **part,
                       struct err *err) {
    struct safetensors_tensor *copy = arena_alloc(state->arena, 1, sizeof *copy);
    void *data = arena_alloc(state->arena, (*part)->size_bytes, 1);
    if (!copy || !data) return err_memory(err, (*part)->name);
    memcpy(data, (*part)->data, (*part)->size_bytes);
    *copy = **part;
    copy->data = data;
    *part = copy;
    return true;
}

/* The tensor "layers.N.suffix" when it is there, checked for dtype, rank and rows. */
static bool find_part(const struct st_state *state, int layer, const char *suffix,
                      enum safetensors_dtype dtype, int rank, const struct safetensors_tensor **out,
                      struct err *err) {
    char name[64];
    if (layer >= 0)
        snprintf(name, sizeof name, "layers.%d.%s", layer, suffix);
    else
        snprintf(name, sizeof name, "%s", suffix);
    const struct safetensors_tensor *t = *out = safetensors_find(state->file, name);
    if (!t) return true;
    if (t->dtype != dtype || t->rank != rank)
        return err_set(err, ERR_FORMAT, "%s: found %d-d %s, expected %d-d %s", name, t->rank,
                       safetensors_dtype_name(t->dtype), rank, safetensors_dtype_name(dtype));
    bool rows = strcmp(suffix, "bias") != 0;
    if (rows && t->shape[0] != state->tokens)
        return err_set(err, ERR_FORMAT, "%s: found %lld rows, expected %lld tokens", name,
                       (long long)t->shape[0], (long long)state->tokens);
    return (uintptr_t)t->data % 4 == 0 || align_part(state, out, err);
}

static bool find_layers(struct import_source *source, struct st_state *state, struct err *err) {
    int n = safetensors_count(state->file);
    state->layers = arena_alloc(&source->arena, (size_t)n, sizeof *state->layers);
    if (!state->layers) return err_memory(err, "layers");
    for (int i = 0; i < n; i++) {
        const struct safetensors_tensor *t = safetensors_at(state->file, i);
        int logits = layer_number(t->name, "router_logits");
        int ids = layer_number(t->name, "topk_ids");
        char both[64];
        snprintf(both, sizeof both, "layers.%d.router_logits", ids);
        if (logits < 0 && (ids < 0 || safetensors_find(state->file, both))) continue;
        state->layers[state->layer_count++].layer = logits >= 0 ? logits : ids;
        if (t->rank >= 1) state->tokens = t->shape[0];
    }
    if (!state->layer_count)
        return err_set(err, ERR_FORMAT,
                       "found no tensor layers.N.router_logits or layers.N.topk_ids");
    qsort(state->layers, (size_t)state->layer_count, sizeof *state->layers, compare_layers);
    return true;
}

/* Gate of a layer: the user's, else the file's. */
static bool find_gate(const struct import_job *job, const struct st_state *state,
                      struct trace_layer *layer, struct err *err) {
    char key[32];
    snprintf(key, sizeof key, "gate.%d", layer->layer);
    const char *text = job->gate ? job->gate : safetensors_metadata(state->file, key);
    layer->has_gate = text != NULL;
    if (!text) return true;
    return gate_parse(text, NULL, &layer->gate, err) || err_context(err, "%s", key);
}

/* Chosen ids alone: each expert once a token, and less than `limit`. *experts: the highest id + 1.
 */
static bool check_ids(const struct safetensors_tensor *ids, int64_t limit, int64_t *experts,
                      struct err *err) {
    int64_t k = ids->shape[1];
    for (int64_t i = 0; i < ids->count; i++) {
        const int32_t *row = (const int32_t *)ids->data + i / k * k;
        int32_t id = row[i % k];
        if (id < 0 || id >= limit)
            return err_set(err, ERR_DATA,
                           "topk_ids: token %lld: found expert %d, expected 0 to %lld",
                           (long long)(i / k), id, (long long)limit - 1);
        for (int64_t j = 0; j < i % k; j++)
            if (row[j] == id)
                return err_set(
                    err, ERR_DATA,
                    "topk_ids: token %lld: found expert %d twice, expected distinct ones",
                    (long long)(i / k), id);
        if (id >= *experts) *experts = (int64_t)id + 1;
    }
    return true;
}

static bool find_shape(const struct import_job *job, const struct st_layer *part,
                       struct trace_layer *layer, struct err *err) {
    int64_t experts = part->logits ? part->logits->shape[1] : 0;
    int64_t k = part->ids ? part->ids->shape[1] : layer->gate.topk;
    if (layer->has_gate && k != layer->gate.topk)
        return err_set(err, ERR_DATA, "topk_ids: found %lld a token, expected %d of the gate",
                       (long long)k, layer->gate.topk);
    if (k < 1 || k > GATE_MAX_TOPK)
        return err_set(err, ERR_FORMAT, "topk_ids: found %lld a token, expected 1 to %d",
                       (long long)k, GATE_MAX_TOPK);
    if (part->weights && (!part->ids || part->weights->shape[1] != k))
        return err_set(err, ERR_FORMAT, "topk_weights: found another shape than that of topk_ids");
    /* ids alone do not say how many experts there are: the highest that was chosen, at least */
    int64_t limit = job->experts ? job->experts : GATE_MAX_EXPERTS;
    if (!part->logits && !check_ids(part->ids, limit, &experts, err)) return false;
    if (!part->logits && job->experts) experts = job->experts;
    if (experts < k || experts > GATE_MAX_EXPERTS)
        return err_set(err, ERR_FORMAT, "found %lld experts, expected %lld to %d",
                       (long long)experts, (long long)k, GATE_MAX_EXPERTS);
    layer->experts = (int)experts;
    layer->topk = (int)k;
    return true;
}

static bool find_bias(const struct st_state *state, struct trace_layer *layer, struct err *err) {
    const struct safetensors_tensor *bias;
    if (!find_part(state, layer->layer, "bias", ST_F32, 1, &bias, err)) return false;
    if (!bias) return true;
    if (bias->shape[0] != layer->experts)
        return err_set(err, ERR_FORMAT, "bias: found %lld values, expected %d",
                       (long long)bias->shape[0], layer->experts);
    layer->bias = bias->data;
    for (int e = 0; e < layer->experts; e++)
        if (!isfinite(layer->bias[e]))
            return err_set(err, ERR_DATA, "bias: expert %d: found %g, expected a finite number", e,
                           (double)layer->bias[e]);
    return true;
}

static bool check_choices(const struct st_state *state, const struct st_layer *part,
                          const struct trace_layer *layer, struct err *err) {
    struct choice_check check;
    if (!part->ids || !part->logits) return true;
    if (!choice_check_begin(&check, layer, err)) return false;
    bool ok = choice_check_loop(&check, &state->loop, err) &&
              choice_check_exact(&check, state->tokens, part->logits->data, part->ids->data,
                                 part->weights ? part->weights->data : NULL, err);
    choice_check_free(&check);
    return ok;
}

static bool open_layer(const struct import_job *job, struct st_state *state, int r,
                       struct trace_layer *layer, struct err *err) {
    struct st_layer *part = &state->layers[r];
    *layer = (struct trace_layer){.layer = part->layer};
    if (!find_part(state, part->layer, "router_logits", ST_F32, 2, &part->logits, err) ||
        !find_part(state, part->layer, "topk_ids", ST_I32, 2, &part->ids, err) ||
        !find_part(state, part->layer, "topk_weights", ST_F32, 2, &part->weights, err) ||
        !find_gate(job, state, layer, err))
        return false;
    if (part->logits && !layer->has_gate)
        return err_set(err, ERR_USAGE, "found no metadata gate.%d, expected it or --gate SPEC",
                       part->layer);
    layer->holds = part->logits ? TRACE_SCORES : TRACE_IDS;
    layer->has_weights = !part->logits && part->weights;
    if (!find_shape(job, part, layer, err) || !find_bias(state, layer, err)) return false;
    if (layer->has_gate &&
        !gate_check_native(&layer->gate, layer->experts, layer->bias != NULL, err))
        return false;
    return check_choices(state, part, layer, err);
}

/* ---- documents */

/* entry: one of the "documents" list of the metadata, which our exporter writes; NULL elsewhere.
 * stem: the domain where it names none. */
static bool describe(const struct import_job *job, struct import_source *source, const char *stem,
                     const struct json *entry, struct trace_document *document, struct err *err) {
    const char *from, *domain, *sha256;
    if (!json_get_text(entry, "source", file_name(job->files[0]), &from, err) ||
        !json_get_text(entry, "domain", stem, &domain, err) ||
        !json_get_text(entry, "sha256", "", &sha256, err) ||
        !json_get_int(entry, "bytes", 0, INT64_C(1) << 52, 0, &document->bytes, err))
        return err_context(err, "documents");
    document->source = arena_text(&source->arena, from, strlen(from));
    document->domain = arena_text(&source->arena, job->domain ? job->domain : domain,
                                  strlen(job->domain ? job->domain : domain));
    document->sha256 = arena_text(&source->arena, sha256, strlen(sha256));
    return (document->source && document->domain && document->sha256) ||
           err_memory(err, "documents");
}

/* Documents must be numbered 0, 1, 2, ... in order; without the tensor all is one document. */
static bool split_documents(struct import_source *source, const int32_t *document, int64_t tokens,
                            struct trace_document **out, struct err *err) {
    int64_t n = 0;
    for (int64_t t = 0; t < tokens; t++) {
        int64_t d = document ? document[t] : 0;
        if (d == n)
            n++;
        else if (!n || d != n - 1)
            return err_set(err, ERR_DATA, "document: token %lld: found %lld, expected %lld or %lld",
                           (long long)t, (long long)d, (long long)(n ? n - 1 : 0), (long long)n);
    }
    struct trace_document *list = arena_alloc(&source->arena, (size_t)n, sizeof *list);
    if (!list) return err_memory(err, "documents");
    for (int64_t t = 0; t < tokens; t++) {
        struct trace_document *d = &list[document ? document[t] : 0];
        if (!d->tokens++) d->first_token = t;
    }
    *out = list;
    source->setup.documents = list;
    source->setup.document_count = n;
    return true;
}

static bool open_documents(const struct import_job *job, struct import_source *source,
                           struct st_state *state, struct err *err) {
    const struct safetensors_tensor *document;
    struct trace_document *list = NULL;
    if (!find_part(state, -1, "document", ST_I32, 1, &document, err) ||
        !split_documents(source, document ? document->data : NULL, state->tokens, &list, err))
        return false;
    const char *text = safetensors_metadata(state->file, "documents");
    struct json *described = text ? json_parse(text, strlen(text), err) : NULL;
    if (text && !described) return err_context(err, "metadata documents");
    const char *stem = import_stem(&source->arena, job->files[0]);
    const struct json *entry = json_first(described);
    bool ok = stem || err_memory(err, "documents");
    for (int64_t d = 0; ok && d < source->setup.document_count; d++) {
        ok = describe(job, source, stem, entry, &list[d], err);
        if (entry) entry = json_next(entry);
    }
    json_free(described);
    return ok;
}

/* A window ends at the last token of a document and where nll is NaN. */
static bool derive_positions(struct import_source *source, int64_t tokens, struct err *err) {
    int32_t *positions = arena_alloc(&source->arena, (size_t)tokens, sizeof *positions);
    if (!positions) return err_memory(err, "positions");
    bool any = false;
    for (int64_t t = 0; t < tokens && source->nll; t++) any = any || !isnan(source->nll[t]);
    for (int64_t d = 0; d < source->setup.document_count; d++) {
        const struct trace_document *document = &source->setup.documents[d];
        for (int64_t i = 0, at = 0; i < document->tokens; i++) {
            int64_t t = document->first_token + i;
            positions[t] = (int32_t)at++;
            if (any && isnan(source->nll[t])) at = 0;
        }
    }
    source->positions = positions;
    return true;
}

/* -1 is how the exporter writes an id that is not known. */
static bool check_token_ids(const int32_t *ids, int64_t tokens, struct err *err) {
    for (int64_t t = 0; ids && t < tokens; t++)
        if (ids[t] < -1)
            return err_set(err, ERR_DATA, "token_ids: token %lld: found %d, expected 0 to %d",
                           (long long)t, ids[t], INT32_MAX);
    return true;
}

/* ---- the source */

static bool routes(struct import_source *source, struct trace_routes *want, struct err *err) {
    (void)err;
    const struct st_state *state = source->state;
    const struct st_layer *part = &state->layers[want->r];
    const struct trace_layer *layer = &source->setup.layers[want->r];
    if (part->logits) {
        want->logits = (const float *)part->logits->data + want->first * layer->experts;
    } else {
        want->expert = (const int32_t *)part->ids->data + want->first * layer->topk;
        if (part->weights)
            want->weight = (const float *)part->weights->data + want->first * layer->topk;
    }
    return true;
}

static void close_source(struct import_source *source) {
    struct st_state *state = source->state;
    safetensors_close(state->file);
}

static const char *note(const struct st_state *state, const char *key) {
    const char *text = safetensors_metadata(state->file, key);
    return text ? text : "";
}

static bool open_parts(const struct import_job *job, struct import_source *source,
                       struct st_state *state, struct err *err) {
    const struct safetensors_tensor *ids, *nll;
    state->options = note(state, "closed_loop");
    if (!trace_loop_read(state->options, &state->loop, err))
        return err_context(err, "metadata closed_loop");
    if (!find_layers(source, state, err)) return false;
    if (state->tokens < 1) return err_set(err, ERR_DATA, "found 0 tokens, expected some");
    struct trace_layer *layers =
        arena_alloc(&source->arena, (size_t)state->layer_count, sizeof *layers);
    if (!layers) return err_memory(err, "layers");
    for (int r = 0; r < state->layer_count; r++)
        if (!open_layer(job, state, r, &layers[r], err))
            return err_context(err, "layer %d", state->layers[r].layer);
    source->setup.layers = layers;
    source->setup.layer_count = state->layer_count;
    if (!find_part(state, -1, "token_ids", ST_I32, 1, &ids, err) ||
        !find_part(state, -1, "nll", ST_F32, 1, &nll, err))
        return false;
    source->ids = ids ? ids->data : NULL;
    source->nll = nll ? nll->data : NULL;
    if (!check_token_ids(source->ids, state->tokens, err)) return false;
    return open_documents(job, source, state, err) && derive_positions(source, state->tokens, err);
}

bool import_safetensors_open(const struct import_job *job, struct import_source *source,
                             struct err *err) {
    if (job->file_count != 1)
        return err_set(err, ERR_USAGE, "safetensors: found %d files, expected 1", job->file_count);
    struct st_state *state = arena_alloc(&source->arena, 1, sizeof *state);
    const char *stem = import_stem(&source->arena, job->files[0]);
    if (!state || !stem) return err_memory(err, "import");
    if (!(state->file = safetensors_open(job->files[0], err))) return false;
    state->arena = &source->arena;
    source->state = state;
    source->close = close_source;
    source->routes = routes;
    if (!open_parts(job, source, state, err)) return import_context(err, job->files[0]);
    const char *model = safetensors_metadata(state->file, "model");
    struct trace_capture *capture = &source->setup.capture;
    *capture = import_capture("safetensors", job->model ? job->model : model ? model : stem);
    capture->family = note(state, "family");
    capture->model_id = note(state, "model_id");
    capture->compute = note(state, "compute");
    capture->options = state->options;
    if (!source->ids) capture->lacks = "token ids";
    return true;
}
