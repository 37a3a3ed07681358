/* exchange.h - one batch at one layer: every choice to a slot, and what crosses between ranks
 *
 * Layer 4 (sim), private to throughput. Counts are exact integers; conservation (sum of slot counts
 * plus dropped = G*k) is a test. */
#ifndef SIM_EXCHANGE_H
#define SIM_EXCHANGE_H

#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "sim/comm.h"
#include "sim/placement.h"

/* What the tokens of one source rank send to one rank or node, while they are counted. */
struct exchange_tally {
    int32_t stamp;   /* token that last went there */
    int32_t node;    /* of a rank: where it is */
    uint64_t counts; /* choices * 2^32 + tokens with at least one */
};

struct exchange {
    const struct placement *placement;
    int gpus_per_node;
    int64_t tokens_per_rank;
    int64_t capacity; /* tokens that an expert takes at most; 0: all */
    struct replica_state replica;
    int32_t *rank_of_slot;        /* [S] */
    int32_t *only_slot;           /* [E] -1: it has several */
    int32_t *slot_tokens;         /* [S] result */
    int32_t *expert_tokens;       /* [E] result: before the capacity */
    struct comm_traffic *traffic; /* [R] result */
    struct exchange_tally *ranks; /* [R] of the source in hand */
    struct exchange_tally *nodes; /* [nodes] the same */
    int64_t *matrix;              /* [R,R] copies to distinct ranks, or NULL: not wanted */
    int64_t dropped;              /* result: empty slots, and beyond the capacity */
    int64_t empty;                /* result: of these, the empty slots */
};

/* Buffers for a placement's shape from the arena; call exchange_place before the first batch. */
bool exchange_init(struct exchange *x, const struct placement_shape *shape, struct arena *arena,
                   struct err *err);
/* Uses a placement of that shape from now on. Borrows it. */
void exchange_place(struct exchange *x, const struct placement *placement);
/* Sends token[G] with their expert[T,k] rows, k <= ROUTED_MOST_SLOTS. seed: of the random choice.
 */
void exchange_batch(struct exchange *x, const int64_t *token, int64_t group, const uint16_t *expert,
                    int k, uint64_t seed);

#endif
