/* exchange.c - sends the choices of a batch to slots and counts what crosses
 *
 * The inner loop runs once per choice, some 10^10 times in a sweep of a thousand cells: it has no
 * division and no branch that data decide, and counts per target; what crosses follows from the
 * counts, once per source rank. With one struct per copy it took 3 (prefill) to 10 (decode) times
 * as long (`make bench SCENE=cluster`). */
#include "sim/exchange.h"

#include <assert.h>
#include <string.h>

#include "sim/routed.h"

static int node_count(const struct exchange *x, int ranks) {
    return (ranks + x->gpus_per_node - 1) / x->gpus_per_node;
}

bool exchange_init(struct exchange *x, const struct placement_shape *shape, struct arena *arena,
                   struct err *err) {
    size_t ranks = (size_t)shape->ranks, slots = (size_t)shape->slots;
    size_t experts = (size_t)shape->experts;
    x->rank_of_slot = arena_alloc(arena, slots, sizeof *x->rank_of_slot);
    x->only_slot = arena_alloc(arena, experts, sizeof *x->only_slot);
    x->slot_tokens = arena_alloc(arena, slots, sizeof *x->slot_tokens);
    x->expert_tokens = arena_alloc(arena, experts, sizeof *x->expert_tokens);
    x->traffic = arena_alloc(arena, ranks, sizeof *x->traffic);
    x->ranks = arena_alloc(arena, ranks, sizeof *x->ranks);
    x->nodes = arena_alloc(arena, (size_t)node_count(x, shape->ranks), sizeof *x->nodes);
    x->replica.turn = arena_alloc(arena, experts, sizeof *x->replica.turn);
    x->replica.rank_load = arena_alloc(arena, ranks, sizeof *x->replica.rank_load);
    if (!x->rank_of_slot || !x->only_slot || !x->slot_tokens || !x->expert_tokens || !x->traffic ||
        !x->ranks || !x->nodes || !x->replica.turn || !x->replica.rank_load)
        return err_memory(err, "exchange");
    int places = shape->slots / shape->ranks;
    for (int s = 0; s < shape->slots; s++) x->rank_of_slot[s] = s / places;
    for (int r = 0; r < shape->ranks; r++) x->ranks[r].node = r / x->gpus_per_node;
    return true;
}

void exchange_place(struct exchange *x, const struct placement *placement) {
    const int32_t *first = placement->replica_first;
    x->placement = placement;
    x->replica.placement = placement;
    for (int e = 0; e < placement->shape.experts; e++)
        x->only_slot[e] = first[e + 1] - first[e] == 1 ? placement->slot_of[first[e]] : -1;
}

static void clear(struct exchange *x, uint64_t seed) {
    const struct placement_shape *shape = &x->placement->shape;
    size_t ranks = (size_t)shape->ranks;
    memset(x->slot_tokens, 0, (size_t)shape->slots * sizeof *x->slot_tokens);
    memset(x->expert_tokens, 0, (size_t)shape->experts * sizeof *x->expert_tokens);
    memset(x->traffic, 0, ranks * sizeof *x->traffic);
    memset(x->replica.turn, 0, (size_t)shape->experts * sizeof *x->replica.turn);
    memset(x->replica.rank_load, 0, ranks * sizeof *x->replica.rank_load);
    for (size_t r = 0; r < ranks; r++) x->ranks[r].stamp = -1;
    for (int n = 0; n < node_count(x, shape->ranks); n++) x->nodes[n].stamp = -1;
    if (x->matrix) memset(x->matrix, 0, ranks * ranks * sizeof *x->matrix);
    rng_init(&x->replica.rng, seed);
    x->dropped = x->empty = 0;
}

/* So that neither half of a tally's counts runs over, whatever k is. */
enum { MOST_AT_ONCE = 1 << 16, GATHERED = ROUTED_MOST_SLOTS };

/* A copy of token i to a rank or node. */
static inline void count_copy(struct exchange_tally *to, int32_t i) {
    to->counts += (UINT64_C(1) << 32) + (to->stamp != i);
    to->stamp = i;
}

static int64_t choices_of(const struct exchange_tally *to) { return (int64_t)(to->counts >> 32); }
static int64_t tokens_of(const struct exchange_tally *to) { return (int64_t)(uint32_t)to->counts; }

/* Tokens first..first+n-1 of the batch, which are on rank `source`, with their expert[n,k]. */
static void send_rows(struct exchange *x, int64_t first, int64_t n, const uint16_t *expert, int k,
                      int source) {
    const int32_t *only_slot = x->only_slot, *rank_of_slot = x->rank_of_slot;
    struct exchange_tally *ranks = x->ranks, *nodes = x->nodes;
    int32_t *slot_tokens = x->slot_tokens, last = (int32_t)(first + n);
    int64_t capacity = x->capacity;
    bool several_nodes = node_count(x, x->placement->shape.ranks) > 1;
    bool even = x->replica.choice == REPLICA_EVEN, least = x->replica.choice == REPLICA_LEAST;
    for (int32_t i = (int32_t)first; i < last; i++) {
        for (int j = 0; j < k; j++) {
            int e = *expert++;
            if (e == ROUTED_NONE || (capacity > 0 && x->expert_tokens[e]++ >= capacity)) {
                x->dropped++;
                x->empty += e == ROUTED_NONE;
                continue;
            }
            int slot = only_slot[e];
            if (slot < 0)
                slot =
                    even ? replica_in_turn(&x->replica, e) : replica_slot(&x->replica, e, source);
            else if (least)
                x->replica.rank_load[rank_of_slot[slot]]++;
            struct exchange_tally *rank = &ranks[rank_of_slot[slot]];
            slot_tokens[slot]++;
            count_copy(rank, i);
            if (several_nodes) count_copy(&nodes[rank->node], i);
        }
    }
}

/* Tokens from..to-1. Their rows are gathered first: in decode they lie anywhere, and many loads at
 * a time wait far less than one after the other. */
static void send_tokens(struct exchange *x, const int64_t *token, int64_t from, int64_t to,
                        const uint16_t *expert, int k, int source) {
    uint16_t rows[GATHERED];
    int64_t block = GATHERED / k;
    assert(k <= GATHERED);
    for (int64_t at = from, n; at < to; at += n) {
        n = to - at < block ? to - at : block;
        for (int64_t i = 0; i < n; i++)
            memcpy(rows + i * k, expert + token[at + i] * k, (size_t)k * sizeof *rows);
        send_rows(x, at, n, rows, k, source);
    }
}

/* Adds what rank `source` sent to the traffic, and forgets it. */
static void settle(struct exchange *x, int source) {
    int ranks = x->placement->shape.ranks, per_node = x->gpus_per_node, home = source / per_node;
    struct comm_traffic *from = &x->traffic[source];
    for (int r = 0; r < ranks; r++) {
        struct exchange_tally *to = &x->ranks[r];
        bool far = to->node != home;
        *(far ? &from->sent_far : &from->sent_near) += choices_of(to);
        *(far ? &x->traffic[r].received_far : &x->traffic[r].received_near) += choices_of(to);
        from->sent_ranks += tokens_of(to);
        x->traffic[r].received_ranks += tokens_of(to);
        if (x->matrix) x->matrix[(int64_t)source * ranks + r] += tokens_of(to);
        to->counts = 0;
    }
    for (int n = 0; n < node_count(x, ranks); n++) {
        struct exchange_tally *to = &x->nodes[n];
        int relay = n * per_node + source % per_node;
        if (n != home) from->sent_nodes += tokens_of(to);
        if (n != home)
            x->traffic[relay < ranks ? relay : ranks - 1].received_nodes += tokens_of(to);
        to->counts = 0;
    }
}

void exchange_batch(struct exchange *x, const int64_t *token, int64_t group, const uint16_t *expert,
                    int k, uint64_t seed) {
    const struct placement *p = x->placement;
    clear(x, seed);
    for (int64_t from = 0, to; from < group; from = to) {
        int64_t source = from / x->tokens_per_rank, end = (source + 1) * x->tokens_per_rank;
        to = end < group ? end : group;
        if (to - from > MOST_AT_ONCE) to = from + MOST_AT_ONCE;
        send_tokens(x, token, from, to, expert, k, (int)source);
        settle(x, (int)source);
    }
    for (int s = 0; x->capacity == 0 && s < p->shape.slots; s++)
        x->expert_tokens[p->expert_of[s]] += x->slot_tokens[s];
}
