/* test_exchange.c - what crosses between ranks, against a count token by token as defined */
#include <stdlib.h>
#include <string.h>

#include "sim/exchange.h"
#include "sim/routed.h"
#include "tests/test.h"

enum { EXPERTS = 48, TOPK = 6, MOST_RANKS = 48, GROUP = 480 };

/* What one batch gives, counted the plain way. */
struct plain {
    int32_t slot[2 * EXPERTS], expert[EXPERTS];
    struct comm_traffic traffic[MOST_RANKS];
    int64_t matrix[MOST_RANKS * MOST_RANKS], dropped;
};

struct layout {
    int ranks, per_node;
    int64_t tokens_per_rank;
};

/* Token i goes from rank `source` to the rank of a slot; seen[R] says where it has been. */
static void send_copy(struct plain *p, const struct layout *l, int source, int target, bool *seen) {
    struct comm_traffic *from = &p->traffic[source], *to = &p->traffic[target];
    int node = target / l->per_node;
    bool far = node != source / l->per_node, node_seen = false;
    if (far)
        from->sent_far++, to->received_far++;
    else
        from->sent_near++, to->received_near++;
    if (seen[target]) return;
    for (int r = 0; r < l->ranks; r++) node_seen |= seen[r] && r / l->per_node == node;
    seen[target] = true;
    from->sent_ranks++, to->received_ranks++;
    p->matrix[source * l->ranks + target]++;
    if (!far || node_seen) return;
    int relay = node * l->per_node + source % l->per_node;
    if (relay >= l->ranks) relay = l->ranks - 1;
    from->sent_nodes++;
    p->traffic[relay].received_nodes++;
}

static void count_plainly(struct plain *p, const struct exchange *x, const struct layout *l,
                          const int64_t *token, const uint16_t *expert, uint64_t seed) {
    static int32_t turn[EXPERTS];
    static int64_t load[MOST_RANKS];
    struct replica_state state = x->replica;
    memset(turn, 0, sizeof turn);
    memset(load, 0, sizeof load);
    state.turn = turn;
    state.rank_load = load;
    rng_init(&state.rng, seed);
    *p = (struct plain){.dropped = 0};
    for (int i = 0; i < GROUP; i++) {
        bool seen[MOST_RANKS] = {false};
        int source = (int)(i / l->tokens_per_rank);
        for (int j = 0; j < TOPK; j++) {
            int e = expert[token[i] * TOPK + j];
            if (e == ROUTED_NONE) {
                p->dropped++;
                continue;
            }
            if (++p->expert[e] > x->capacity && x->capacity > 0) {
                p->dropped++;
                continue;
            }
            int slot = replica_slot(&state, e, source);
            p->slot[slot]++;
            send_copy(p, l, source, slot / (x->placement->shape.slots / l->ranks), seen);
        }
    }
}

static void random_choices(struct rng *rng, uint16_t *expert, int64_t *token) {
    for (int i = 0; i < GROUP; i++) {
        int64_t order[EXPERTS];
        for (int e = 0; e < EXPERTS; e++) order[e] = e;
        rng_shuffle(rng, order, EXPERTS);
        for (int j = 0; j < TOPK; j++) expert[i * TOPK + j] = (uint16_t)(order[j] / (1 + j % 2));
        if (i % 5 == 0) expert[i * TOPK + TOPK - 1] = ROUTED_NONE;
        token[i] = (int64_t)rng_below(rng, GROUP);
    }
}

static void compare(const struct exchange *x, const struct plain *p, const struct layout *l) {
    size_t ranks = (size_t)l->ranks;
    assert_int_equal(x->dropped, p->dropped);
    assert_memory_equal(x->slot_tokens, p->slot, (size_t)x->placement->shape.slots * 4);
    assert_memory_equal(x->expert_tokens, p->expert, sizeof p->expert);
    assert_memory_equal(x->traffic, p->traffic, ranks * sizeof *p->traffic);
    assert_memory_equal(x->matrix, p->matrix, ranks * ranks * sizeof *p->matrix);
}

static void exchange_counts_what_a_plain_count_does(void **state) {
    static const int ranks[] = {1, 2, 6, 12, 48}, per_node[] = {1, 4, 8};
    static uint16_t expert[GROUP * TOPK];
    static int64_t token[GROUP], matrix[MOST_RANKS * MOST_RANKS];
    static struct plain plain;
    struct rng rng;
    double weight[EXPERTS];
    (void)state;
    rng_init(&rng, 12);
    for (int e = 0; e < EXPERTS; e++) weight[e] = 1 + (double)rng_below(&rng, 100);
    for (int round = 0; round < 240; round++) {
        struct layout l = {ranks[round % 5], per_node[round % 3], 0};
        l.tokens_per_rank = GROUP / l.ranks;
        int replicas = round % 4 < 2 ? 48 : 0;
        const struct placement_shape shape = {EXPERTS, EXPERTS + replicas, l.ranks, 1, 1};
        struct placement p;
        struct arena arena;
        struct err err;
        arena_init(&arena, "test");
        test_ok(placement_build(&p, PLACE_EPLB_GLOBAL, &shape, weight, 0, &err), &err);
        struct exchange x = {.gpus_per_node = l.per_node,
                             .tokens_per_rank = l.tokens_per_rank,
                             .capacity = round % 7 == 3 ? 50 : 0,
                             .replica = {.choice = (enum replica_choice)(round / 4 % 4)},
                             .matrix = matrix};
        test_ok(exchange_init(&x, &shape, &arena, &err), &err);
        exchange_place(&x, &p);
        for (uint64_t batch = 0; batch < 2; batch++) { /* nothing is left of the first */
            random_choices(&rng, expert, token);
            exchange_batch(&x, token, GROUP, expert, TOPK, batch);
            count_plainly(&plain, &x, &l, token, expert, batch);
            compare(&x, &plain, &l);
        }
        placement_free(&p);
        arena_free(&arena);
    }
}

int test_exchange(void);
int test_exchange(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(exchange_counts_what_a_plain_count_does)};
    return cmocka_run_group_tests_name("exchange", tests, NULL, NULL);
}
