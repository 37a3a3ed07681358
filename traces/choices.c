/* choices.c - chunks of a layer together with the live choices */
#include "traces/choices.h"

#include <stdlib.h>

#include "traces/loop.h"

static size_t lines(size_t bytes) { return bytes > SIZE_MAX - 63 ? bytes : (bytes + 63) & ~63UL; }

static bool begin_stream(struct choices *choices, const struct trace *trace,
                         const struct route_stream_setup *setup, struct err *err) {
    size_t bytes = route_stream_bytes(setup);
    size_t cells = (size_t)trace_block_tokens(trace) * (size_t)setup->gate->topk;
    choices->memory = bytes < SIZE_MAX - 64 ? calloc(bytes / 64 + 2, 64) : NULL;
    if (!choices->memory) return err_memory(err, "balance batches");
    uintptr_t start = ((uintptr_t)choices->memory + 63) & ~(uintptr_t)63;
    route_stream_init(&choices->stream, setup, (void *)start);
    choices->expert = calloc(cells + 1, sizeof *choices->expert);
    choices->weight = calloc(cells + 1, sizeof *choices->weight);
    choices->scratch = aligned_alloc(64, lines(route_stream_scratch_bytes(&choices->stream)));
    if (!choices->expert || !choices->weight || !choices->scratch)
        return err_memory(err, "choices");
    if (!gate_hashes(setup->gate)) return true;
    choices->id = calloc((size_t)trace_block_tokens(trace) + 1, sizeof *choices->id);
    choices->ids = trace_open(trace_path(trace), err); /* `trace` may be in use elsewhere */
    return choices->ids && (choices->id || err_memory(err, "token ids"));
}

bool choices_open_as(struct choices *choices, const struct trace *trace, int r,
                     const struct route_stream_setup *setup, struct err *err) {
    *choices = (struct choices){.layer = trace_layer(trace, r)};
    if (choices->layer->holds != TRACE_SCORES)
        return err_set(err, ERR_DATA, "%s: layer %d: found %s, expected scores", trace_path(trace),
                       choices->layer->layer, trace_holds_name(choices->layer->holds));
    choices->cursor = trace_cursor_open(trace, r, err);
    if (choices->cursor && begin_stream(choices, trace, setup, err)) return true;
    choices_close(choices);
    return false;
}

bool choices_open(struct choices *choices, const struct trace *trace, int r, struct err *err) {
    const struct trace_layer *layer = trace_layer(trace, r);
    struct trace_loop loop;
    *choices = (struct choices){.layer = layer};
    if (layer->holds == TRACE_SCORES) {
        if (!layer->has_gate)
            return err_set(err, ERR_DATA, "%s: layer %d: found no gate, expected one",
                           trace_path(trace), layer->layer);
        if (!trace_loop_read(trace_capture(trace)->options, &loop, err))
            return err_context(err, "%s", trace_path(trace));
        const struct route_stream_setup setup = {.gate = &layer->gate,
                                                 .experts = layer->experts,
                                                 .layer = layer->layer,
                                                 .table = layer->table,
                                                 .bias = layer->bias,
                                                 .rule = layer->bias ? loop.rule : NULL,
                                                 .rate = loop.rate,
                                                 .batch_tokens = loop.batch_tokens};
        return choices_open_as(choices, trace, r, &setup, err);
    }
    choices->cursor = trace_cursor_open(trace, r, err);
    return choices->cursor != NULL;
}

bool choices_move(const struct choices *choices) { return choices->stream.rule != NULL; }

static bool refuse_logit(const struct choices *choices, int64_t bad, struct err *err) {
    const struct trace_layer *layer = choices->layer;
    return err_set(err, ERR_DATA,
                   "layer %d, token %lld, expert %lld: found a logit that is not finite",
                   layer->layer, (long long)(choices->chunk.first + bad / layer->experts),
                   (long long)(bad % layer->experts));
}

/* id[n] <- those of the chunk's tokens; each must be known to the table. */
static bool read_ids(struct choices *choices, struct err *err) {
    const struct trace_chunk *chunk = &choices->chunk;
    const struct trace_columns columns = {.id = choices->id};
    const struct route_stream *stream = &choices->stream;
    if (!choices->ids) return true;
    if (!trace_read_tokens(choices->ids, chunk->first, chunk->tokens, &columns, err)) return false;
    int32_t end = stream->gate.fn == GATE_HASH_TABLE ? stream->table.ids : INT32_MAX;
    for (int64_t i = 0; i < chunk->tokens; i++)
        if (choices->id[i] < 0 || choices->id[i] >= end)
            return err_set(err, ERR_DATA,
                           "layer %d: token %lld: found token id %d, expected 0 to %d (the hash "
                           "layer chooses by it)",
                           choices->layer->layer, (long long)(chunk->first + i), choices->id[i],
                           end - 1);
    return true;
}

bool choices_next(struct choices *choices, struct err *err) {
    const struct trace_layer *layer = choices->layer;
    struct trace_chunk *chunk = &choices->chunk;
    struct route_stream *stream = &choices->stream;
    int k = stream->gate.topk;
    if (!trace_cursor_next(choices->cursor, chunk, err)) return false;
    if (layer->holds != TRACE_SCORES || !chunk->tokens) return true;
    if (!read_ids(choices, err)) return false;
    if (choices_move(choices) && chunk->first != choices->next)
        return err_set(err, ERR_DATA, "layer %d: found token %lld, expected %lld (the bias moves)",
                       layer->layer, (long long)chunk->first, (long long)choices->next);
    for (int64_t at = 0; at < chunk->tokens;) {
        int64_t room = route_stream_room(stream), left = chunk->tokens - at;
        int64_t take = room < left ? room : left;
        const struct route_piece piece = {.n = take,
                                          .first = chunk->first + at,
                                          .id = choices->id ? choices->id + at : NULL,
                                          .logits = chunk->logits + at * layer->experts};
        struct routes out = {.expert = choices->expert + at * k,
                             .weight = choices->weight + at * k};
        int64_t bad = route_stream_route(stream, &piece, &out, choices->scratch);
        if (bad >= 0) return refuse_logit(choices, at * layer->experts + bad, err);
        route_stream_feed(stream, &piece, out.expert);
        at += take;
    }
    choices->next = chunk->first + chunk->tokens;
    chunk->expert = choices->expert;
    chunk->weight = choices->weight;
    return true;
}

void choices_close(struct choices *choices) {
    trace_cursor_free(choices->cursor);
    free(choices->expert);
    free(choices->weight);
    free(choices->scratch);
    free(choices->memory);
    free(choices->id);
    trace_free(choices->ids);
    *choices = (struct choices){0};
}
