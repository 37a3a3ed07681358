/* export_safetensors.c - writes the interchange form; memory grows with T*k of one layer */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "traces/choices.h"
#include "traces/importers.h"
#include "traces/loop.h"

enum { STEP_TOKENS = 8192 };

struct export {
    struct trace *trace;
    struct safetensors_writer *writer;
    const struct progress *progress;
    int64_t tokens;
};

static bool declare(struct export *x, const char *name, enum safetensors_dtype dtype, int64_t rows,
                    int64_t columns, struct err *err) {
    return safetensors_declare(x->writer, name, dtype, columns ? 2 : 1, (int64_t[]){rows, columns},
                               err);
}

static bool declare_layer(struct export *x, const struct trace_layer *layer, struct err *err) {
    char name[64];
    int64_t t = x->tokens;
    bool ids = layer->holds == TRACE_IDS;
#define NAMED(suffix) (snprintf(name, sizeof name, "layers.%d." suffix, layer->layer), name)
    return (ids || declare(x, NAMED("router_logits"), ST_F32, t, layer->experts, err)) &&
           declare(x, NAMED("topk_ids"), ST_I32, t, layer->topk, err) &&
           ((ids && !layer->has_weights) ||
            declare(x, NAMED("topk_weights"), ST_F32, t, layer->topk, err)) &&
           (!layer->bias || declare(x, NAMED("bias"), ST_F32, layer->experts, 0, err));
#undef NAMED
}

/* What the form itself has no tensor for, so that an import has it again. */
static bool note_documents(struct export *x, struct err *err) {
    struct str list = {0};
    str_puts(&list, "[");
    for (int64_t d = 0; d < trace_documents(x->trace); d++) {
        const struct trace_document *document = trace_document(x->trace, d);
        str_puts(&list, d ? ",{\"source\":" : "{\"source\":");
        json_quote(&list, document->source, strlen(document->source));
        str_puts(&list, ",\"domain\":");
        json_quote(&list, document->domain, strlen(document->domain));
        str_puts(&list, ",\"sha256\":");
        json_quote(&list, document->sha256, strlen(document->sha256));
        str_printf(&list, ",\"bytes\":%lld}", (long long)document->bytes);
    }
    str_puts(&list, "]");
    bool ok = list.failed ? err_memory(err, "documents")
                          : safetensors_note(x->writer, "documents", str_text(&list), err);
    str_free(&list);
    return ok;
}

static bool note_all(struct export *x, struct err *err) {
    const struct trace_capture *capture = trace_capture(x->trace);
    struct trace_loop loop;
    struct str clause = {0};
    if (!trace_loop_read(capture->options, &loop, err)) return false;
    trace_loop_print(&loop, &clause);
    bool noted = !loop.closed || (clause.failed ? err_memory(err, "closed loop")
                                                : safetensors_note(x->writer, "closed_loop",
                                                                   str_text(&clause), err));
    str_free(&clause);
    if (!noted) return false;
    const char *const notes[][2] = {{"model", capture->model},
                                    {"family", capture->family},
                                    {"model_id", capture->model_id},
                                    {"compute", capture->compute}};
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++)
        if (*notes[i][1] && !safetensors_note(x->writer, notes[i][0], notes[i][1], err))
            return false;
    for (int r = 0; r < trace_layers(x->trace); r++) {
        const struct trace_layer *layer = trace_layer(x->trace, r);
        char key[32], gate[GATE_TEXT_BYTES];
        if (!layer->has_gate) continue;
        snprintf(key, sizeof key, "gate.%d", layer->layer);
        gate_print(&layer->gate, gate);
        if (!safetensors_note(x->writer, key, gate, err)) return false;
    }
    return note_documents(x, err);
}

static bool declare_all(struct export *x, struct err *err) {
    bool ok = note_all(x, err) && declare(x, "token_ids", ST_I32, x->tokens, 0, err) &&
              declare(x, "nll", ST_F32, x->tokens, 0, err) &&
              declare(x, "document", ST_I32, x->tokens, 0, err);
    for (int r = 0; ok && r < trace_layers(x->trace); r++)
        ok = declare_layer(x, trace_layer(x->trace, r), err);
    return ok;
}

/* Writes one token column; `buffer` is where `columns` points it to. */
static bool write_column(struct export *x, const struct trace_columns *columns, const void *buffer,
                         struct err *err) {
    for (int64_t t = 0; t < x->tokens; t += STEP_TOKENS) {
        int64_t n = x->tokens - t < STEP_TOKENS ? x->tokens - t : STEP_TOKENS;
        if (!trace_read_tokens(x->trace, t, n, columns, err) ||
            !safetensors_write(x->writer, buffer, (size_t)n * 4, err))
            return false;
    }
    return true;
}

static bool write_tokens(struct export *x, struct err *err) {
    union {
        int32_t i[STEP_TOKENS];
        float f[STEP_TOKENS];
    } *buffer = malloc(sizeof *buffer);
    if (!buffer) return err_memory(err, "export");
    bool ok = write_column(x, &(struct trace_columns){.id = buffer->i}, buffer, err) &&
              write_column(x, &(struct trace_columns){.nll = buffer->f}, buffer, err) &&
              write_column(x, &(struct trace_columns){.document = buffer->i}, buffer, err);
    free(buffer);
    return ok;
}

/* Logits go out chunk by chunk; choices are gathered, because they come after all logits. */
static bool write_chunks(struct export *x, struct choices *choices, int32_t *ids, float *weights,
                         struct err *err) {
    const struct trace_layer *layer = choices->layer;
    const struct trace_chunk *chunk = &choices->chunk;
    size_t k = (size_t)layer->topk;
    do {
        if (!choices_next(choices, err)) return false;
        size_t n = (size_t)chunk->tokens;
        if (n && chunk->logits &&
            !safetensors_write(x->writer, chunk->logits, n * (size_t)layer->experts * 4, err))
            return false;
        if (n) memcpy(ids + chunk->first * layer->topk, chunk->expert, n * k * 4);
        if (n && chunk->weight)
            memcpy(weights + chunk->first * layer->topk, chunk->weight, n * k * 4);
    } while (chunk->tokens);
    bool weighted = layer->holds == TRACE_SCORES || layer->has_weights;
    size_t bytes = (size_t)x->tokens * k * 4;
    return safetensors_write(x->writer, ids, bytes, err) &&
           (!weighted || safetensors_write(x->writer, weights, bytes, err)) &&
           (!layer->bias ||
            safetensors_write(x->writer, layer->bias, (size_t)layer->experts * 4, err));
}

static bool write_layer(struct export *x, int r, struct err *err) {
    const struct trace_layer *layer = trace_layer(x->trace, r);
    size_t cells = (size_t)x->tokens * (size_t)layer->topk;
    struct choices choices = {0};
    int32_t *ids = malloc(cells * 4);
    float *weights = malloc(cells * 4);
    bool ok = (ids && weights) || err_memory(err, "export");
    ok = ok && choices_open(&choices, x->trace, r, err) &&
         write_chunks(x, &choices, ids, weights, err);
    choices_close(&choices);
    free(ids);
    free(weights);
    return ok;
}

static bool write_all(struct export *x, struct err *err) {
    if (!declare_all(x, err) || !write_tokens(x, err)) return false;
    int layers = trace_layers(x->trace);
    for (int r = 0; r < layers; r++) {
        if (!write_layer(x, r, err)) return false;
        if (!progress_report(x->progress, "layers", r + 1, layers, "layers"))
            return err_set(err, ERR_CANCELLED, "interrupted");
    }
    return true;
}

bool export_safetensors(struct trace *trace, const char *out, const struct progress *progress,
                        struct err *err) {
    struct export x = {.trace = trace, .progress = progress, .tokens = trace_tokens(trace)};
    if (!x.tokens)
        return err_set(err, ERR_DATA, "%s: found no tokens to export", trace_path(trace));
    for (int r = 0; r < trace_layers(trace); r++)
        if (trace_layer(trace, r)->holds == TRACE_COUNTS)
            return err_set(err, ERR_DATA, "%s: layer %d: found counts only, expected scores or ids",
                           trace_path(trace), trace_layer(trace, r)->layer);
    if (!(x.writer = safetensors_create(out, err))) return false;
    if (write_all(&x, err)) return safetensors_commit(x.writer, err);
    safetensors_abandon(x.writer);
    return false;
}
