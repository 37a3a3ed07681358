/* placement.h - which rank holds which expert: placements, replicas, and the choice among replicas
 *
 * Layer 4 (sim), calls base. E experts, S slots (S >= E when hot experts are replicated), R ranks
 * of S/R slots each, `nodes` nodes of R/nodes ranks. Slot s is on rank s/(S/R). Placements are
 * learnt from weights (tokens per expert of some window) and used on any load. */
#ifndef SIM_PLACEMENT_H
#define SIM_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rng.h"

/* X(enum, name, help) */
#define PLACEMENTS(X)                                                                              \
    X(PLACE_CONTIGUOUS, "contiguous",                                                              \
      "experts in order; replicas go to the first experts in turn")                                \
    X(PLACE_SHUFFLED, "shuffled", "a seeded permutation: what ignoring the load gives on average") \
    X(PLACE_LPT, "lpt",                                                                            \
      "heaviest first onto the least loaded rank; then replicas one at a time where they help")    \
    X(PLACE_EPLB_GLOBAL, "eplb",                                                                   \
      "EPLB, global: replicate where tokens per replica are most, pack")                           \
    X(PLACE_EPLB, "eplb-hierarchical",                                                             \
      "EPLB, hierarchical: groups to nodes, then replicas and packing within each")                \
    X(PLACE_NODE_AWARE, "node-aware",                                                              \
      "expert groups stay on their nodes in order (group-limited gates); packed within each node")
#define X(e, name, help) e,
enum placement_rule { PLACEMENTS(X) };
#undef X
const char *placement_name(enum placement_rule rule);
bool placement_find(const char *name, enum placement_rule *rule, struct err *err);

struct placement_shape {
    int experts, slots, ranks, nodes;
    int groups; /* of experts, for hierarchical rules; 0 or 1 = none */
};

struct placement {
    struct placement_shape shape;
    int32_t *expert_of;     /* [S] owned */
    int32_t *replica_first; /* [E+1] owned: replicas of e are slot_of[first[e]] .. first[e+1]-1 */
    int32_t *slot_of;       /* [S] owned, by expert, rising slots */
};

/* Refuses what cannot be: R does not divide S, nodes do not divide R, S < E, and for hierarchical
 * rules groups that do not divide E or nodes that do not divide the groups. */
bool placement_check(enum placement_rule rule, const struct placement_shape *shape,
                     struct err *err);

/* Builds a placement from weight[E] (>= 0, finite; ignored by contiguous and shuffled). Ties go to
 * the lower index. Release with placement_free. */
bool placement_build(struct placement *placement, enum placement_rule rule,
                     const struct placement_shape *shape, const double *weight, uint64_t seed,
                     struct err *err);
void placement_free(struct placement *placement);

/* Expected load of every rank under even split: replica slots of e get weight[e]/replicas each. */
void placement_rank_load(const struct placement *placement, const double *weight, double *rank);

/* Slots whose expert differs from `before`: weights that a refresh moves. Equal shapes. */
int placement_moves(const struct placement *before, const struct placement *after);

/* How one of several replicas is chosen for a (token, expert). X(enum, name, help) */
#define REPLICA_CHOICES(X)                                                                         \
    X(REPLICA_EVEN, "even", "replicas of an expert in turn")                                       \
    X(REPLICA_RANDOM, "random", "a replica at random")                                             \
    X(REPLICA_LEAST, "least-loaded", "the replica whose rank has fewest assignments so far")       \
    X(REPLICA_LOCAL, "local-first", "one on the token's rank, else in its node, else in turn")
#define X(e, name, help) e,
enum replica_choice { REPLICA_CHOICES(X) };
#undef X
const char *replica_choice_name(enum replica_choice choice);
bool replica_choice_find(const char *name, enum replica_choice *choice, struct err *err);

/* State of the choice within one batch. Arrays of the caller's, zeroed at each batch. */
struct replica_state {
    enum replica_choice choice;
    const struct placement *placement;
    int32_t *turn;      /* [E] */
    int64_t *rank_load; /* [R] assignments so far */
    struct rng rng;
};
/* The slot for a choice of `expert` by a token of rank `source`; updates the state. */
int replica_slot(struct replica_state *state, int expert, int source);
/* The same for REPLICA_EVEN, without the load of ranks, which it does not look at. */
static inline int replica_in_turn(struct replica_state *state, int expert) {
    const int32_t *first = state->placement->replica_first + expert;
    int turn = state->turn[expert], next = turn + 1;
    state->turn[expert] = next == first[1] - first[0] ? 0 : next;
    return state->placement->slot_of[first[0] + turn];
}

#endif
