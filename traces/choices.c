/* choices.c - chunks of a layer together with the native choices */
#include "traces/choices.h"

#include <stdlib.h>

#include "router/route.h"

bool choices_open(struct choices *choices, const struct trace *trace, int r, struct err *err) {
    const struct trace_layer *layer = trace_layer(trace, r);
    *choices = (struct choices){.layer = layer};
    if (layer->holds == TRACE_SCORES && !layer->has_gate)
        return err_set(err, ERR_DATA, "%s: layer %d: found no gate, expected one",
                       trace_path(trace), layer->layer);
    if (!(choices->cursor = trace_cursor_open(trace, r, err))) return false;
    if (layer->holds != TRACE_SCORES) return true;
    size_t cells = (size_t)trace_block_tokens(trace) * (size_t)layer->topk;
    choices->expert = calloc(cells + 1, sizeof *choices->expert);
    choices->weight = calloc(cells + 1, sizeof *choices->weight);
    choices->scratch = aligned_alloc(64, (route_scratch_bytes(layer->experts) + 63) / 64 * 64);
    if (choices->expert && choices->weight && choices->scratch) return true;
    choices_close(choices);
    return err_memory(err, "choices");
}

bool choices_next(struct choices *choices, struct err *err) {
    const struct trace_layer *layer = choices->layer;
    struct trace_chunk *chunk = &choices->chunk;
    if (!trace_cursor_next(choices->cursor, chunk, err)) return false;
    if (layer->holds != TRACE_SCORES || !chunk->tokens) return true;
    struct routes out = {.expert = choices->expert, .weight = choices->weight};
    int64_t bad = route_tokens(&layer->gate, layer->experts, chunk->tokens, chunk->logits,
                               layer->bias, &out, choices->scratch);
    if (bad >= 0)
        return err_set(err, ERR_DATA,
                       "layer %d, token %lld, expert %lld: found a logit that is not finite",
                       layer->layer, (long long)(chunk->first + bad / layer->experts),
                       (long long)(bad % layer->experts));
    chunk->expert = choices->expert;
    chunk->weight = choices->weight;
    return true;
}

void choices_close(struct choices *choices) {
    trace_cursor_free(choices->cursor);
    free(choices->expert);
    free(choices->weight);
    free(choices->scratch);
    *choices = (struct choices){0};
}
