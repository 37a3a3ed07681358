/* fuzz_import.c - the bytes are a file of every format that import reads: refused, or every piece
 * that the source hands out lies in memory */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "traces/exchange.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *path_of_input(void) {
    static char folder[64], path[128];
    if (!*path) {
        snprintf(folder, sizeof folder, "/tmp/fuzz-import-XXXXXX");
        if (!mkdtemp(folder)) exit(1);
        snprintf(path, sizeof path, "%s/expert_weights_1.txt", folder);
    }
    return path;
}

/* Reads what the import would store. */
static unsigned drain(struct import_source *source) {
    struct err err = {0};
    unsigned sum = 0;
    for (int r = 0; source->routes && r < source->setup.layer_count; r++) {
        const struct trace_layer *layer = &source->setup.layers[r];
        const struct trace_document *last =
            &source->setup.documents[source->setup.document_count - 1];
        int64_t tokens = last->first_token + last->tokens;
        for (int64_t t = 0; t < tokens;) {
            struct trace_routes routes = {.r = r, .first = t, .tokens = tokens - t};
            if (!source->routes(source, &routes, &err) || routes.tokens < 1) return sum;
            for (int64_t i = 0; routes.logits && i < routes.tokens * layer->experts; i++)
                sum += routes.logits[i] > 0;
            for (int64_t i = 0; routes.expert && i < routes.tokens * layer->topk; i++)
                sum += (unsigned)routes.expert[i];
            t += routes.tokens;
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static volatile unsigned sink;
    const char *path = path_of_input();
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) return 0;
    for (const struct trace_importer *i = trace_importers; i->name; i++) {
        struct err err = {0};
        struct import_source source = {0};
        const struct import_job job = {
            .files = &path, .file_count = 1, .out = "x", .gate = "softmax,topk=3"};
        arena_init(&source.arena, "fuzz");
        i->recognise(path);
        if (i->open(&job, &source, &err))
            sink += drain(&source);
        else if (!*err.text)
            abort();
        if (source.close) source.close(&source);
        arena_free(&source.arena);
    }
    return 0;
}
