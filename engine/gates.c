/* gates.c - which gate routes at each router: the model's own, or one that was set (closed loop) */
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

bool gates_native(struct engine *engine, struct err *err) {
    arena_init(&engine->gates, "gates");
    engine->stream =
        arena_alloc(&engine->arena, (size_t)engine->info.routers, sizeof *engine->stream);
    if (!engine->stream) return err_memory(err, "gates");
    for (int r = 0; r < engine->info.routers; r++) {
        const struct engine_router *router = &engine->router[r];
        const struct route_stream_setup setup = {.gate = &router->gate,
                                                 .experts = router->experts,
                                                 .layer = router->layer,
                                                 .bias = router->bias};
        route_stream_init(&engine->stream[r], &setup, NULL);
    }
    return true;
}

/* A copy of the table, which must know every id. */
static bool take_table(struct engine *engine, const struct route_table *from, int topk,
                       struct route_table *to, struct err *err) {
    size_t cells = (size_t)engine->info.vocab * (size_t)topk;
    if (!from || !from->expert || from->ids < engine->info.vocab)
        return err_set(err, ERR_DATA,
                       "gate: fn=hash-table: found a table of %d ids, expected the %d of the "
                       "vocabulary",
                       from && from->expert ? from->ids : 0, engine->info.vocab);
    int32_t *expert = arena_room(&engine->gates, cells, sizeof *expert);
    if (!expert) return err_memory(err, "hash table");
    memcpy(expert, from->expert, cells * sizeof *expert);
    *to = (struct route_table){engine->info.vocab, expert};
    return true;
}

static bool regate(struct engine *engine, const struct engine_gates *gates, int r,
                   struct err *err) {
    struct engine_router *router = &engine->router[r];
    struct arena *arena = &engine->gates;
    size_t experts = (size_t)router->experts;
    float *bias = gates->bias[r] ? arena_alloc(arena, experts, sizeof *bias) : NULL;
    if (!gate_check_live(&gates->gate[r], router->experts, gates->bias[r] != NULL, err))
        return err_context(err, "layer %d", router->layer);
    router->table = (struct route_table){0};
    if (gates->gate[r].fn == GATE_HASH_TABLE &&
        !take_table(engine, gates->table ? &gates->table[r] : NULL, gates->gate[r].topk,
                    &router->table, err))
        return err_context(err, "layer %d", router->layer);
    if (gates->bias[r] && !bias) return err_memory(err, "bias");
    if (bias) memcpy(bias, gates->bias[r], experts * sizeof *bias);
    router->gate = gates->gate[r];
    router->bias = bias;
    const struct route_stream_setup setup = {.gate = &router->gate,
                                             .experts = router->experts,
                                             .layer = router->layer,
                                             .table = router->table,
                                             .bias = bias,
                                             .rule = bias ? gates->rule : NULL,
                                             .rate = gates->rate,
                                             .batch_tokens = gates->batch_tokens};
    size_t bytes = route_stream_bytes(&setup);
    void *memory = bytes == SIZE_MAX ? NULL : arena_alloc(arena, bytes, 1);
    if (!memory) return err_memory(err, "balance batches");
    route_stream_init(&engine->stream[r], &setup, memory);
    return true;
}

bool engine_regate(struct engine *engine, const struct engine_gates *gates, struct err *err) {
    for (int r = 0; r < engine->info.routers; r++)
        if (!regate(engine, gates, r, err)) return false;
    return true;
}

bool engine_repeat(struct engine *engine, int r, int64_t first, int64_t n, const float *logits,
                   struct err *err) {
    struct route_stream *stream = &engine->stream[r];
    size_t k = (size_t)stream->gate.topk, bytes = route_stream_scratch_bytes(stream);
    int32_t *expert = calloc((size_t)n * k + 1, sizeof *expert);
    void *scratch = aligned_alloc(64, bytes);
    bool ok = (expert && scratch) || err_memory(err, "choices");
    for (int64_t at = 0; at < n && ok;) {
        int64_t room = route_stream_room(stream), take = room < n - at ? room : n - at;
        const struct route_piece piece = {
            .n = take, .first = first + at, .logits = logits + at * stream->experts};
        struct routes routes = {.expert = expert};
        if (route_stream_route(stream, &piece, &routes, scratch) >= 0)
            ok = err_set(err, ERR_DATA, "layer %d: found a logit that is not finite",
                         engine->router[r].layer);
        else
            route_stream_feed(stream, &piece, expert);
        at += take;
    }
    free(scratch);
    free(expert);
    return ok;
}

void gates_free(struct engine *engine) { arena_free(&engine->gates); }
