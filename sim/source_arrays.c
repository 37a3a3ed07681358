/* source_arrays.c - a source over arrays in memory: tests, benchmarks, callers without a trace */
#include <stdlib.h>
#include <string.h>

#include "sim/source.h"

struct source_reader {
    const float *logits; /* [T,E] */
    int64_t tokens;
    int experts;
};

static struct source_reader *arrays_open(const struct source *source, int index, struct err *err) {
    const struct source_arrays *arrays = source->context;
    struct source_reader *reader = malloc(sizeof *reader);
    if (!reader) {
        err_memory(err, "reader");
        return NULL;
    }
    reader->logits = arrays->logits[index];
    reader->tokens = source->tokens;
    reader->experts = source->layer[index].experts;
    return reader;
}

static bool arrays_rows(struct source_reader *reader, int64_t first, int64_t max,
                        const float **logits, int64_t *n, struct err *err) {
    if (first < 0 || first >= reader->tokens)
        return err_set(err, ERR_DATA, "token %lld: found none, expected 0..%lld", (long long)first,
                       (long long)reader->tokens - 1);
    *n = max < reader->tokens - first ? max : reader->tokens - first;
    *logits = reader->logits + first * reader->experts;
    return true;
}

static bool arrays_gather(struct source_reader *reader, const int64_t *token, int64_t n,
                          float *logits, struct err *err) {
    size_t row = (size_t)reader->experts;
    (void)err;
    for (int64_t i = 0; i < n; i++)
        memcpy(logits + (size_t)i * row, reader->logits + (size_t)token[i] * row,
               row * sizeof *logits);
    return true;
}

static bool arrays_token_ids(const struct source *source, int32_t *id, struct err *err) {
    const struct source_arrays *arrays = source->context;
    (void)err;
    memcpy(id, arrays->token_id, (size_t)source->tokens * sizeof *id);
    return true;
}

static void arrays_close(struct source_reader *reader) { free(reader); }

void source_of_arrays(struct source *source, struct source_arrays *arrays, int64_t tokens,
                      const struct source_layer *layer, int layers) {
    arrays->document_first[0] = 0;
    arrays->document_first[1] = tokens;
    *source = (struct source){.name = "arrays",
                              .tokens = tokens,
                              .layers = layers,
                              .layer = layer,
                              .documents = 1,
                              .document_first = arrays->document_first,
                              .open = arrays_open,
                              .rows = arrays_rows,
                              .gather = arrays_gather,
                              .token_ids = arrays->token_id ? arrays_token_ids : NULL,
                              .close = arrays_close,
                              .context = arrays};
}
