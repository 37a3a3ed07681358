/* support_trace.c - writes small traces of random scores for tests */
#include "tests/support_trace.h"

#include <stdlib.h>

#include "router/route.h"
#include "tests/test.h"

static void write_layer(struct trace *trace, const struct source *source, int r, bool ids) {
    const struct source_layer *layer = &source->layer[r];
    int64_t tokens = source->tokens, n;
    int k = layer->native.topk;
    const float *logits;
    struct err err;
    struct source_reader *reader = source->open(source, r, &err);
    assert_non_null(reader);
    test_ok(source->rows(reader, 0, tokens, &logits, &n, &err), &err);
    assert_int_equal(n, tokens);
    int32_t *expert = calloc((size_t)(tokens * k), sizeof *expert);
    float *weight = calloc((size_t)(tokens * k), sizeof *weight);
    void *scratch = aligned_alloc(64, (route_scratch_bytes(layer->experts) + 63) / 64 * 64);
    struct routes live = {expert, weight, NULL, NULL};
    route_tokens(&layer->native, layer->experts, tokens, logits, layer->bias, &live, scratch);
    const struct trace_routes routes = {.r = r,
                                        .tokens = tokens,
                                        .logits = ids ? NULL : logits,
                                        .expert = expert,
                                        .weight = weight};
    test_ok(trace_pass_routes(trace, &routes, &err), &err);
    free(scratch);
    free(weight);
    free(expert);
    source->close(reader);
}

void write_random_trace(const char *path, const struct source *source, enum trace_holds holds) {
    int64_t third = source->tokens / 3;
    const struct trace_document documents[3] = {
        {"a.txt", "prose", "aa", 10, 0, third},
        {"b.txt", "code", "bb", 20, third, third},
        {"c.txt", "prose", "cc", 30, 2 * third, source->tokens - 2 * third}};
    struct trace_layer layers[8] = {0};
    struct err err;
    assert_in_range(source->layers, 1, 8);
    for (int r = 0; r < source->layers; r++)
        layers[r] = (struct trace_layer){.layer = source->layer[r].layer,
                                         .experts = source->layer[r].experts,
                                         .topk = source->layer[r].native.topk,
                                         .holds = holds,
                                         .has_gate = true,
                                         .has_weights = true,
                                         .gate = source->layer[r].native,
                                         .bias = source->layer[r].bias};
    const struct trace_setup setup = {.capture = {.model = "random",
                                                  .family = "",
                                                  .model_id = "",
                                                  .config = "",
                                                  .source = "test",
                                                  .compute = "f32",
                                                  .kernels = "",
                                                  .store = TRACE_F32,
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = layers,
                                      .layer_count = source->layers,
                                      .documents = documents,
                                      .document_count = 3};
    struct trace *trace = trace_create(path, &setup, TRACE_NEW, &err);
    test_ok(trace, &err);
    int32_t *zero = calloc((size_t)source->tokens, sizeof *zero);
    test_ok(trace_pass_begin(trace, &(struct trace_pass){source->tokens, zero, zero}, &err), &err);
    for (int r = 0; r < source->layers; r++) write_layer(trace, source, r, holds == TRACE_IDS);
    test_ok(trace_pass_commit(trace, &err), &err);
    test_ok(trace_close(trace, true, &err), &err);
    free(zero);
}
