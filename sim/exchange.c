/* exchange.c - sends the choices of a batch to slots and counts what crosses */
#include "sim/exchange.h"

#include <string.h>

#include "sim/routed.h"

bool exchange_init(struct exchange *x, const struct placement_shape *shape, struct arena *arena,
                   struct err *err) {
    size_t ranks = (size_t)shape->ranks, slots = (size_t)shape->slots;
    size_t experts = (size_t)shape->experts;
    x->rank_of_slot = arena_alloc(arena, slots, sizeof *x->rank_of_slot);
    x->slot_tokens = arena_alloc(arena, slots, sizeof *x->slot_tokens);
    x->expert_tokens = arena_alloc(arena, experts, sizeof *x->expert_tokens);
    x->traffic = arena_alloc(arena, ranks, sizeof *x->traffic);
    x->rank_seen = arena_alloc(arena, ranks, sizeof *x->rank_seen);
    x->node_seen = arena_alloc(arena, ranks, sizeof *x->node_seen);
    x->replica.turn = arena_alloc(arena, experts, sizeof *x->replica.turn);
    x->replica.rank_load = arena_alloc(arena, ranks, sizeof *x->replica.rank_load);
    if (!x->rank_of_slot || !x->slot_tokens || !x->expert_tokens || !x->traffic || !x->rank_seen ||
        !x->node_seen || !x->replica.turn || !x->replica.rank_load)
        return err_memory(err, "exchange");
    int places = shape->slots / shape->ranks;
    for (int s = 0; s < shape->slots; s++) x->rank_of_slot[s] = s / places;
    return true;
}

void exchange_place(struct exchange *x, const struct placement *placement) {
    x->placement = placement;
    x->replica.placement = placement;
}

static void clear(struct exchange *x, uint64_t seed) {
    const struct placement_shape *shape = &x->placement->shape;
    size_t ranks = (size_t)shape->ranks;
    memset(x->slot_tokens, 0, (size_t)shape->slots * sizeof *x->slot_tokens);
    memset(x->expert_tokens, 0, (size_t)shape->experts * sizeof *x->expert_tokens);
    memset(x->traffic, 0, ranks * sizeof *x->traffic);
    memset(x->replica.turn, 0, (size_t)shape->experts * sizeof *x->replica.turn);
    memset(x->replica.rank_load, 0, ranks * sizeof *x->replica.rank_load);
    for (size_t r = 0; r < ranks; r++) x->rank_seen[r] = x->node_seen[r] = -1;
    if (x->matrix) memset(x->matrix, 0, ranks * ranks * sizeof *x->matrix);
    rng_init(&x->replica.rng, seed);
    x->dropped = 0;
}

/* One copy of token i from rank `source` to rank `target` (and its node). */
static void count_copy(struct exchange *x, int64_t i, int source, int target) {
    struct comm_traffic *from = &x->traffic[source], *to = &x->traffic[target];
    int per_node = x->gpus_per_node, node = target / per_node;
    bool far = node != source / per_node;
    if (far)
        from->sent_far++, to->received_far++;
    else
        from->sent_near++, to->received_near++;
    if (x->rank_seen[target] == i) return;
    x->rank_seen[target] = i;
    from->sent_ranks++;
    to->received_ranks++;
    if (x->matrix) x->matrix[(int64_t)source * x->placement->shape.ranks + target]++;
    if (!far || x->node_seen[node] == i) return;
    x->node_seen[node] = i;
    int last = x->placement->shape.ranks - 1, relay = node * per_node + source % per_node;
    from->sent_nodes++;
    x->traffic[relay < last ? relay : last].received_nodes++;
}

void exchange_batch(struct exchange *x, const int64_t *token, int64_t group, const uint16_t *expert,
                    int k, uint64_t seed) {
    const int32_t *first = x->placement->replica_first, *slot_of = x->placement->slot_of;
    clear(x, seed);
    for (int64_t i = 0; i < group; i++) {
        const uint16_t *row = expert + token[i] * k;
        int source = (int)(i / x->tokens_per_rank);
        for (int j = 0; j < k; j++) {
            int e = row[j];
            if (e == ROUTED_NONE) {
                x->dropped++;
                continue;
            }
            if (x->expert_tokens[e]++ >= x->capacity && x->capacity > 0) {
                x->dropped++;
                continue;
            }
            int slot;
            if (first[e + 1] - first[e] == 1) {
                slot = slot_of[first[e]];
                x->replica.rank_load[x->rank_of_slot[slot]]++;
            } else {
                slot = replica_slot(&x->replica, e, source);
            }
            x->slot_tokens[slot]++;
            count_copy(x, i, source, x->rank_of_slot[slot]);
        }
    }
}
