/* source_trace.c - a source over the trace database
 *
 * Each reader has a cursor (and so a connection) of its own. Chunks come in token order; a reader
 * hands out the rest of the chunk that it stands in, so rows are never copied. */
#include <stdlib.h>
#include <string.h>

#include "sim/source.h"
#include "traces/trace.h"

struct source_reader {
    struct trace_cursor *cursor; /* NULL for counts, which are read through `trace` */
    struct trace *trace;
    int index;
    struct trace_chunk chunk; /* where the cursor stands; tokens = 0 before the first */
    int experts, topk;
    int layer;
    bool weights; /* the chunks of ids hold them */
    bool scores;
};

static struct source_reader *trace_reader_open(const struct source *source, int index,
                                               struct err *err) {
    struct source_reader *reader = calloc(1, sizeof *reader);
    if (!reader) {
        err_memory(err, "reader");
        return NULL;
    }
    reader->experts = source->layer[index].experts;
    reader->topk = source->layer[index].native.topk;
    reader->layer = source->layer[index].layer;
    reader->weights = trace_layer(source->context, index)->has_weights;
    reader->scores = trace_layer(source->context, index)->holds == TRACE_SCORES;
    reader->index = index;
    if (source->counted)
        reader->trace = trace_open(source->name, err);
    else
        reader->cursor = trace_cursor_open(source->context, index, err);
    if (reader->cursor || reader->trace) return reader;
    free(reader);
    return NULL;
}

/* Stands on the chunk that holds token `first`; *n <- tokens from there on, at most max. */
static bool stand_on(struct source_reader *reader, int64_t first, int64_t max, int64_t *n,
                     struct err *err) {
    struct trace_chunk *chunk = &reader->chunk;
    int64_t end = chunk->first + chunk->tokens;
    if (first < chunk->first || first > end)
        if (!trace_cursor_seek(reader->cursor, first, err)) return false;
    if (first < chunk->first || first >= end)
        if (!trace_cursor_next(reader->cursor, chunk, err)) return false;
    end = chunk->first + chunk->tokens;
    if (first < chunk->first || first >= end)
        return err_set(err, ERR_FORMAT, "layer %d: token %lld: found no chunk, expected one",
                       reader->layer, (long long)first);
    *n = max < end - first ? max : end - first;
    return true;
}

/* Rows are read in pieces: a whole chunk would push itself and the scores out of the L2 cache. */
static bool trace_reader_rows(struct source_reader *reader, int64_t first, int64_t max,
                              const float **logits, int64_t *n, struct err *err) {
    enum { PIECE_FLOATS = 1 << 14 };
    struct trace_chunk *piece = &reader->chunk;
    int64_t most = PIECE_FLOATS / reader->experts;
    if (!reader->scores)
        return err_set(err, ERR_FORMAT, "layer %d: token %lld: found no scores", reader->layer,
                       (long long)first);
    if (most < 16) most = 16;
    if (!trace_cursor_piece(reader->cursor, first, max < most ? max : most, piece, err))
        return false;
    *logits = piece->logits;
    *n = piece->tokens;
    return true;
}

static bool check_experts(const struct source_reader *reader, const int32_t *expert, int64_t n,
                          struct err *err) {
    for (int64_t i = 0; i < n * reader->topk; i++)
        if (expert[i] < 0 || expert[i] >= reader->experts)
            return err_set(err, ERR_FORMAT, "layer %d: found expert %d, expected 0..%d",
                           reader->layer, expert[i], reader->experts - 1);
    return true;
}

static bool trace_reader_choices(struct source_reader *reader, int64_t first, int64_t max,
                                 const int32_t **expert, const float **weight, int64_t *n,
                                 struct err *err) {
    if (!stand_on(reader, first, max, n, err)) return false;
    if (!reader->chunk.expert)
        return err_set(err, ERR_FORMAT, "layer %d: token %lld: found no choices", reader->layer,
                       (long long)first);
    int64_t at = (first - reader->chunk.first) * reader->topk;
    *expert = reader->chunk.expert + at;
    *weight = reader->chunk.weight ? reader->chunk.weight + at : NULL;
    return check_experts(reader, *expert, *n, err);
}

static bool trace_reader_gather_choices(struct source_reader *reader, const int64_t *token,
                                        int64_t n, int32_t *expert, float *weight,
                                        struct err *err) {
    struct trace_rows rows = {
        .n = n, .token = token, .expert = expert, .weight = reader->weights ? weight : NULL};
    return trace_cursor_rows(reader->cursor, &rows, err) && check_experts(reader, expert, n, err);
}

static bool trace_reader_gather(struct source_reader *reader, const int64_t *token, int64_t n,
                                float *logits, struct err *err) {
    struct trace_rows rows = {.n = n, .token = token, .logits = logits};
    return trace_cursor_rows(reader->cursor, &rows, err);
}

/* Through a connection of its own: the trace may be in use elsewhere. */
static bool trace_token_ids(const struct source *source, int32_t *id, struct err *err) {
    const struct trace_columns columns = {.id = id};
    struct trace *trace = trace_open(source->name, err);
    bool ok = trace && trace_read_tokens(trace, 0, source->tokens, &columns, err);
    trace_free(trace);
    return ok;
}

static bool trace_reader_counts(struct source_reader *reader, int64_t document, int64_t *counts,
                                struct err *err) {
    return trace_read_counts(reader->trace, reader->index, document, counts, err);
}

static void trace_reader_close(struct source_reader *reader) {
    if (!reader) return;
    trace_cursor_free(reader->cursor);
    trace_free(reader->trace);
    free(reader);
}

static bool describe_layer(const struct trace *trace, const struct trace_layer *from, bool ids,
                           const struct gate *gate, struct source_layer *to, struct err *err) {
    enum trace_holds expected = trace_layer(trace, 0)->holds;
    if (from->holds != expected || ids == (expected == TRACE_SCORES))
        return err_set(err, ERR_UNSUPPORTED, "%s: layer %d: a replay needs router scores: found %s",
                       trace_path(trace), from->layer, trace_holds_name(from->holds));
    if (!from->has_gate && !gate && !ids)
        return err_set(
            err, ERR_UNSUPPORTED,
            "%s: layer %d: native gate: found none in the trace, expected one (import it "
            "with --gate)",
            trace_path(trace), from->layer);
    *to = (struct source_layer){.layer = from->layer,
                                .experts = from->experts,
                                .native = {.topk = from->topk, .scale = 1},
                                .bias = from->bias,
                                .table = from->table,
                                .unweighted = ids && !from->has_weights,
                                .unknown = !from->has_gate && !gate};
    if (from->has_gate || gate) to->native = from->has_gate ? from->gate : *gate;
    return true;
}

static bool describe_layers(const struct trace *trace, bool ids, const struct gate *gate,
                            struct source_layer *layer, struct err *err) {
    for (int r = 0; r < trace_layers(trace); r++)
        if (!describe_layer(trace, trace_layer(trace, r), ids, gate, &layer[r], err)) return false;
    return true;
}

static bool describe_documents(const struct trace *trace, int64_t tokens, int64_t *first,
                               int64_t *count) {
    int64_t documents = 0;
    for (int64_t d = 0; d < trace_documents(trace); d++) {
        if (trace_document(trace, d)->first_token >= tokens) break;
        first[documents++] = trace_document(trace, d)->first_token;
    }
    first[documents] = tokens;
    *count = documents;
    return true;
}

static bool open_source(struct source *source, const struct trace *trace, bool ids,
                        const struct gate *gate, struct err *err) {
    int layers = trace_layers(trace);
    bool counted = ids && layers > 0 && trace_layer(trace, 0)->holds == TRACE_COUNTS;
    int64_t tokens = counted ? trace_tokens_total(trace) : trace_tokens(trace);
    *source = (struct source){.name = trace_path(trace), .tokens = tokens, .layers = layers};
    if (layers == 0 || tokens == 0)
        return err_set(err, ERR_DATA, "%s: found no captured tokens, expected a trace with scores",
                       trace_path(trace));
    struct source_layer *layer = calloc((size_t)layers, sizeof *layer);
    int64_t *first = calloc((size_t)trace_documents(trace) + 1, sizeof *first);
    source->layer = layer;
    source->document_first = first;
    source->open = trace_reader_open;
    source->rows = trace_reader_rows;
    source->gather = trace_reader_gather;
    source->close = trace_reader_close;
    source->token_ids = trace_token_ids;
    source->choices = trace_reader_choices;
    source->gather_choices = trace_reader_gather_choices;
    source->context = trace;
    source->ids = ids;
    source->counted = counted;
    source->counts = trace_reader_counts;
    if (layer && first && describe_layers(trace, ids, gate, layer, err))
        return describe_documents(trace, tokens, first, &source->documents);
    if (!layer || !first) err_memory(err, "layers");
    source_free(source);
    return false;
}

bool source_open_trace(struct source *source, const struct trace *trace, const struct gate *gate,
                       struct err *err) {
    return open_source(source, trace, false, gate, err);
}

bool source_open_choices(struct source *source, const struct trace *trace, struct err *err) {
    return open_source(source, trace, true, NULL, err);
}

void source_free(struct source *source) {
    free((void *)source->layer);
    free((void *)source->document_first);
    source->layer = NULL;
    source->document_first = NULL;
}
