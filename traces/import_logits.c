/* import_logits.c - sources of router logits whose layers are arrays */
#include "traces/import_logits.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "traces/import_choices.h"
#include "traces/importers.h"

enum { PIECE_TOKENS = 256 };

struct state {
    struct logits_source from;
    float *piece;           /* [PIECE_TOKENS, E] of the widest layer */
    int64_t wrong, checked; /* choices of a token that the gate does not make, of how many */
};

static int compare_layers(const void *a, const void *b) {
    const struct logits_layer *x = a, *y = b;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

static bool routes(struct import_source *source, struct trace_routes *want, struct err *err) {
    (void)err;
    struct state *state = source->state;
    if (want->tokens > PIECE_TOKENS) want->tokens = PIECE_TOKENS;
    state->from.read(&state->from.layers[want->r], want->first, want->tokens, state->piece);
    want->logits = state->piece;
    return true;
}

static void close_source(struct import_source *source) {
    struct state *state = source->state;
    free(state->piece);
    if (state->from.close_own) state->from.close_own(state->from.own);
}

static bool describe(const struct logits_source *from, const struct import_job *job,
                     struct import_source *source, struct err *err) {
    if (!job->gate)
        return err_set(err, ERR_USAGE,
                       "holds router logits, but not how the model routes: give --gate");
    struct trace_layer *layers = arena_alloc(&source->arena, (size_t)from->count, sizeof *layers);
    if (!layers) return err_memory(err, "layers");
    for (int r = 0; r < from->count; r++) {
        const struct logits_layer *layer = &from->layers[r];
        layers[r] = (struct trace_layer){.layer = layer->layer,
                                         .experts = layer->experts,
                                         .holds = TRACE_SCORES,
                                         .has_gate = true,
                                         .bias = layer->bias};
        if (r && layer->layer == from->layers[r - 1].layer)
            return err_set(err, ERR_DATA, "layer %d: found twice", layer->layer);
        if (layer->tokens != from->layers[0].tokens)
            return err_set(err, ERR_DATA, "layer %d: found %lld tokens, expected %lld",
                           layer->layer, (long long)layer->tokens,
                           (long long)from->layers[0].tokens);
        if (layer->experts < 1 || layer->experts > GATE_MAX_EXPERTS)
            return err_set(err, ERR_FORMAT, "layer %d: found %d experts", layer->layer,
                           layer->experts);
        if (!gate_parse(job->gate, NULL, &layers[r].gate, err) ||
            !gate_check_native(&layers[r].gate, layer->experts, layer->bias != NULL, err))
            return err_context(err, "--gate, layer %d", layer->layer);
        layers[r].topk = layers[r].gate.topk;
    }
    source->setup.layers = layers;
    source->setup.layer_count = from->count;
    return true;
}

/* The gate must explain the file's own choices. */
static bool check_choices(struct state *state, const struct trace_layer *layer, int r,
                          struct err *err) {
    const struct logits_layer *from = &state->from.layers[r];
    struct choice_check check;
    if (!from->chosen) return true;
    if (from->chosen->topk != layer->topk)
        return err_set(err, ERR_DATA, "layer %d: found %d chosen, expected %d of the gate",
                       layer->layer, from->chosen->topk, layer->topk);
    if (!choice_check_begin(&check, layer, err)) return false;
    int32_t *chosen = malloc((size_t)PIECE_TOKENS * (size_t)layer->topk * sizeof *chosen);
    bool ok = chosen || err_memory(err, "choices");
    for (int64_t t = 0; ok && t < from->tokens; t += PIECE_TOKENS) {
        int64_t n = from->tokens - t < PIECE_TOKENS ? from->tokens - t : PIECE_TOKENS;
        ok = build_read(from->build, from->chosen, t, n, chosen, NULL, err);
        if (!ok) break;
        state->from.read(from, t, n, state->piece);
        choice_check_add(&check, n, state->piece, chosen);
    }
    free(chosen);
    if (!ok) {
        choice_check_free(&check);
        return false;
    }
    if (!choice_check_end(&check, err)) return false;
    state->wrong += check.wrong;
    state->checked += check.tokens;
    return true;
}

static bool one_document(const struct import_job *job, int64_t tokens, struct import_source *source,
                         struct err *err) {
    struct trace_document *document = arena_alloc(&source->arena, 1, sizeof *document);
    const char *stem = import_stem(&source->arena, job->files[0]);
    if (!document || !stem) return err_memory(err, "documents");
    if (tokens < 1) return err_set(err, ERR_DATA, "found 0 tokens");
    *document = (struct trace_document){.source = file_name(job->files[0]),
                                        .domain = job->domain ? job->domain : stem,
                                        .sha256 = "",
                                        .tokens = tokens};
    source->setup.documents = document;
    source->setup.document_count = 1;
    return true;
}

bool logits_finish(const struct logits_source *from, const struct import_job *job,
                   struct import_source *source, const char *importer, struct err *err) {
    struct state *state = arena_alloc(&source->arena, 1, sizeof *state);
    int widest = 1;
    if (!state) {
        if (from->close_own) from->close_own(from->own);
        return err_memory(err, "import");
    }
    state->from = *from;
    source->state = state;
    source->close = close_source;
    if (!from->count) return err_set(err, ERR_DATA, "found no layer");
    qsort(from->layers, (size_t)from->count, sizeof *from->layers, compare_layers);
    if (!describe(from, job, source, err) ||
        !one_document(job, from->layers[0].tokens, source, err))
        return false;
    for (int r = 0; r < from->count; r++)
        if (from->layers[r].experts > widest) widest = from->layers[r].experts;
    int64_t tokens = from->layers[0].tokens;
    size_t rows = tokens < PIECE_TOKENS ? (size_t)tokens : PIECE_TOKENS;
    state->piece = malloc(rows * (size_t)widest * sizeof(float));
    const char *model = job->model ? job->model : import_stem(&source->arena, job->files[0]);
    if (!state->piece || !model) return err_memory(err, "import");
    for (int r = 0; r < from->count; r++)
        if (!check_choices(state, &source->setup.layers[r], r, err)) return false;
    source->routes = routes;
    source->setup.capture = import_capture(importer, model);
    source->setup.capture.lacks = "token ids; documents; nll";
    if (!state->wrong) return true;
    char *lacks = arena_alloc(&source->arena, 160, 1);
    if (!lacks) return err_memory(err, "import");
    snprintf(lacks, 160,
             "token ids; documents; nll; %lld of %lld recorded choices (the gate makes others from "
             "the logits: rounded ones tie)",
             (long long)state->wrong, (long long)state->checked);
    source->setup.capture.lacks = lacks;
    return true;
}
