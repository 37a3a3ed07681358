/* export_routed.c - the choices of all layers token by token */
#include "traces/export_routed.h"

#include <stdlib.h>
#include <string.h>

bool routed_rows_open(struct routed_rows *rows, struct trace *trace, struct err *err) {
    int layers = trace_layers(trace);
    *rows = (struct routed_rows){.trace = trace, .item_bytes = 1};
    if (!trace_tokens(trace) || !layers)
        return err_set(err, ERR_DATA, "%s: found no tokens to export, expected scores or ids",
                       trace_path(trace));
    rows->topk = trace_layer(trace, 0)->topk;
    rows->layers = calloc((size_t)layers, sizeof *rows->layers);
    size_t cells = (size_t)trace_block_tokens(trace) * (size_t)layers * (size_t)rows->topk;
    rows->bytes = malloc(2 * cells + 1);
    if (!rows->layers || !rows->bytes) return err_memory(err, "export");
    for (int r = 0; r < layers; r++) {
        const struct trace_layer *layer = trace_layer(trace, r);
        if (layer->topk != rows->topk)
            return err_set(err, ERR_DATA,
                           "%s: layer %d: found %d experts a token, expected %d as "
                           "at every layer of this form",
                           trace_path(trace), layer->layer, layer->topk, rows->topk);
        if (layer->has_gate && gate_leaves_slots(&layer->gate))
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: layer %d: found a gate that leaves slots empty, expected k experts "
                           "for each token in this form (safetensors and csv hold the others)",
                           trace_path(trace), layer->layer);
        if (layer->experts > 256) rows->item_bytes = 2;
        if (!choices_open(&rows->layers[r], trace, r, err)) return false;
        rows->opened++;
    }
    return true;
}

/* Puts the k choices of every token of a layer where they belong. */
static void interleave(struct routed_rows *rows, int r) {
    const struct trace_chunk *chunk = &rows->layers[r].chunk;
    int layers = trace_layers(rows->trace), k = rows->topk;
    for (int64_t t = 0; t < chunk->tokens; t++)
        for (int j = 0; j < k; j++) {
            int64_t at = (t * layers + r) * k + j;
            int32_t id = chunk->expert[t * k + j];
            if (rows->item_bytes == 1) {
                rows->bytes[at] = (unsigned char)id;
            } else {
                rows->bytes[2 * at] = (unsigned char)id;
                rows->bytes[2 * at + 1] = (unsigned char)(id >> 8);
            }
        }
}

bool routed_rows_next(struct routed_rows *rows, struct err *err) {
    for (int r = 0; r < rows->opened; r++) {
        if (!choices_next(&rows->layers[r], err)) return false;
        const struct trace_chunk *chunk = &rows->layers[r].chunk;
        if (r && chunk->tokens != rows->tokens)
            return err_set(err, ERR_FORMAT, "%s: layer %d: found %lld tokens, expected %lld",
                           trace_path(rows->trace), rows->layers[r].layer->layer,
                           (long long)chunk->tokens, (long long)rows->tokens);
        rows->tokens = chunk->tokens;
        interleave(rows, r);
    }
    return true;
}

void routed_rows_close(struct routed_rows *rows) {
    for (int r = 0; r < rows->opened; r++) choices_close(&rows->layers[r]);
    free(rows->layers);
    free(rows->bytes);
    *rows = (struct routed_rows){0};
}

void npy_header(struct str *out, const char *type, int rank, const int64_t *shape) {
    struct str text = {0};
    str_printf(&text, "{'descr': '%s', 'fortran_order': False, 'shape': (", type);
    for (int i = 0; i < rank; i++)
        str_printf(&text, "%s%lld%s", i ? ", " : "", (long long)shape[i], rank == 1 ? "," : "");
    str_puts(&text, "), }");
    while ((10 + text.len + 1) % 64) str_puts(&text, " ");
    str_puts(&text, "\n");
    unsigned char length[2] = {(unsigned char)text.len, (unsigned char)(text.len >> 8)};
    str_append(out, "\x93NUMPY\x01\x00", 8);
    str_append(out, length, 2);
    str_append(out, str_text(&text), text.len);
    out->failed = out->failed || text.failed;
    str_free(&text);
}
