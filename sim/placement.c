/* placement.c - placements by rule, among them the published EPLB algorithm, and replica choice
 *
 * EPLB (github.com/deepseek-ai/EPLB, the algorithm as its README and papers describe it): pack
 * groups onto nodes, replicate within a node the expert with most tokens per replica until the
 * slots are full, pack replicas onto the node's GPUs. "Packing" is heaviest first onto the lightest
 * pack that has a place left. The global form has one node and one group. */
#include "sim/placement.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const rule_names[] = {
#define X(e, name, help) name,
    PLACEMENTS(X)
#undef X
};
static const char *const choice_names[] = {
#define X(e, name, help) name,
    REPLICA_CHOICES(X)
#undef X
};
enum {
    RULES = sizeof rule_names / sizeof *rule_names,
    CHOICES = sizeof choice_names / sizeof *choice_names
};

const char *placement_name(enum placement_rule rule) { return rule_names[rule]; }
const char *replica_choice_name(enum replica_choice choice) { return choice_names[choice]; }

static int find_name(const char *const *names, int count, const char *what, const char *name,
                     struct err *err) {
    char known[256] = "";
    for (int i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) return i;
        strncat(known, " ", sizeof known - strlen(known) - 1);
        strncat(known, names[i], sizeof known - strlen(known) - 1);
    }
    err_set(err, ERR_USAGE, "%s: found \"%s\", expected one of%s", what, name, known);
    return -1;
}

bool placement_find(const char *name, enum placement_rule *rule, struct err *err) {
    int found = find_name(rule_names, RULES, "placement", name, err);
    if (found >= 0) *rule = (enum placement_rule)found;
    return found >= 0;
}

bool replica_choice_find(const char *name, enum replica_choice *choice, struct err *err) {
    int found = find_name(choice_names, CHOICES, "replica choice", name, err);
    if (found >= 0) *choice = (enum replica_choice)found;
    return found >= 0;
}

static bool by_groups(enum placement_rule rule) {
    return rule == PLACE_EPLB || rule == PLACE_NODE_AWARE;
}

bool placement_check(enum placement_rule rule, const struct placement_shape *s, struct err *err) {
    if (s->experts < 1 || s->ranks < 1 || s->nodes < 1 || s->slots < s->experts)
        return err_set(err, ERR_DATA,
                       "placement: found %d experts, %d slots, %d ranks, %d nodes, expected at "
                       "least one of each and a slot for every expert",
                       s->experts, s->slots, s->ranks, s->nodes);
    if (s->slots % s->ranks != 0)
        return err_set(err, ERR_DATA,
                       "placement: found %d slots (experts and replicas) on %d ranks, expected a "
                       "whole number a rank",
                       s->slots, s->ranks);
    if (s->ranks % s->nodes != 0)
        return err_set(err, ERR_DATA,
                       "placement: found %d ranks on %d nodes, expected a whole "
                       "number a node",
                       s->ranks, s->nodes);
    if (!by_groups(rule)) return true;
    int groups = s->groups > 1 ? s->groups : 1;
    if (s->experts % groups != 0 || groups % s->nodes != 0)
        return err_set(err, ERR_DATA,
                       "placement %s: found %d groups of %d experts on %d nodes, expected groups "
                       "that divide the experts and nodes that divide the groups",
                       rule_names[rule], groups, s->experts, s->nodes);
    return true;
}

/* ---- packing */

struct item {
    double weight;
    int index;
};

static int heavier_first(const void *a, const void *b) {
    const struct item *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return x->index - y->index;
}

/* Scratch of one build; everything as large as the slots. */
struct scratch {
    struct item *items;
    double *weight, *load;
    int32_t *filled, *logical, *count, *order, *packed;
};

static bool scratch_make(struct scratch *s, int slots, struct err *err) {
    size_t n = (size_t)slots;
    *s = (struct scratch){malloc(n * sizeof *s->items),   malloc(n * sizeof *s->weight),
                          malloc(n * sizeof *s->load),    malloc(n * sizeof *s->filled),
                          malloc(n * sizeof *s->logical), malloc(n * sizeof *s->count),
                          malloc(n * sizeof *s->order),   malloc(n * sizeof *s->packed)};
    return (s->items && s->weight && s->load && s->filled && s->logical && s->count && s->order &&
            s->packed) ||
           err_memory(err, "placement");
}

static void scratch_free(struct scratch *s) {
    free(s->items);
    free(s->weight);
    free(s->load);
    free(s->filled);
    free(s->logical);
    free(s->count);
    free(s->order);
    free(s->packed);
}

/* order[count] <- the items, pack by pack (count/packs a pack), within a pack as they arrived. */
static void pack(struct scratch *s, const double *weight, int count, int packs, int32_t *order) {
    int places = count / packs;
    for (int i = 0; i < count; i++) s->items[i] = (struct item){weight[i], i};
    /* with one place a pack there is nothing to balance: items keep their order, as published */
    if (places > 1) qsort(s->items, (size_t)count, sizeof *s->items, heavier_first);
    for (int p = 0; p < packs; p++) s->load[p] = 0, s->filled[p] = 0;
    for (int i = 0; i < count; i++) {
        int best = places > 1 ? -1 : i;
        for (int p = 0; best < 0 || (places > 1 && p < packs); p++)
            if (s->filled[p] < places && (best < 0 || s->load[p] < s->load[best])) best = p;
        order[best * places + s->filled[best]++] = s->items[i].index;
        s->load[best] += s->items[i].weight;
    }
}

/* logical[slots] <- 0..count-1, then a further replica of the one with most weight per replica,
 * until all are filled; replicas[count] <- how many each has. */
static void replicate(const double *weight, int count, int slots, int32_t *logical,
                      int32_t *replicas) {
    for (int i = 0; i < count; i++) logical[i] = i, replicas[i] = 1;
    for (int slot = count; slot < slots; slot++) {
        int best = 0;
        for (int i = 1; i < count; i++)
            if (weight[i] / replicas[i] > weight[best] / replicas[best]) best = i;
        logical[slot] = best;
        replicas[best]++;
    }
}

/* ---- rules: fill expert_of[S] */

/* Experts of a node, in order[first..]: replicated into its slots and packed onto its ranks. */
static void fill_node(struct placement *p, struct scratch *s, const int32_t *experts, int count,
                      int node, const double *weight) {
    int slots = p->shape.slots / p->shape.nodes, ranks = p->shape.ranks / p->shape.nodes;
    for (int i = 0; i < count; i++) s->weight[i] = weight[experts[i]];
    replicate(s->weight, count, slots, s->logical, s->count);
    for (int i = 0; i < slots; i++)
        s->weight[i] = weight[experts[s->logical[i]]] / s->count[s->logical[i]];
    pack(s, s->weight, slots, ranks, s->packed);
    for (int i = 0; i < slots; i++)
        p->expert_of[node * slots + i] = experts[s->logical[s->packed[i]]];
}

static void build_eplb(struct placement *p, struct scratch *s, const double *weight, int nodes,
                       int groups, bool in_order) {
    struct placement_shape whole = p->shape;
    int size = p->shape.experts / groups, a_node = groups / nodes;
    for (int g = 0; g < groups; g++) {
        s->weight[g] = 0;
        for (int e = g * size; e < (g + 1) * size; e++) s->weight[g] += weight[e];
    }
    pack(s, s->weight, groups, nodes, s->packed);
    for (int g = 0; in_order && g < groups; g++) s->packed[g] = g;
    for (int g = 0; g < groups; g++)
        for (int e = 0; e < size; e++) s->order[g * size + e] = s->packed[g] * size + e;
    p->shape.nodes = nodes;
    for (int n = 0; n < nodes; n++)
        fill_node(p, s, s->order + n * a_node * size, a_node * size, n, weight);
    p->shape = whole;
}

/* ---- LPT with replicas one at a time: never worse than without them */

/* The replica that lowers the hottest rank most: an expert of that rank and a rank with a free slot
 * that stays below. `load` are even-split loads, count[E] replicas. False when none helps. */
static bool best_replica(const struct placement *p, const struct scratch *s, const double *weight,
                         int hot, int *expert, int *target) {
    int places = p->shape.slots / p->shape.ranks;
    double best = s->load[hot];
    for (int i = 0; i < s->filled[hot]; i++) {
        int e = p->expert_of[hot * places + i], copies = 0, r = -1;
        for (int j = 0; j < s->filled[hot]; j++) copies += p->expert_of[hot * places + j] == e;
        for (int q = 0; q < p->shape.ranks; q++)
            if (q != hot && s->filled[q] < places && (r < 0 || s->load[q] < s->load[r])) r = q;
        if (r < 0) return false;
        double share = weight[e] / (s->count[e] + 1);
        double drop = copies * (weight[e] / s->count[e] - share);
        double after = fmax(s->load[hot] - drop, s->load[r] + share);
        if (after < best) best = after, *expert = e, *target = r;
    }
    return best < s->load[hot];
}

static void loads_of(const struct placement *p, struct scratch *s, const double *weight) {
    int places = p->shape.slots / p->shape.ranks;
    for (int r = 0; r < p->shape.ranks; r++) {
        s->load[r] = 0;
        for (int i = 0; i < s->filled[r]; i++) {
            int e = p->expert_of[r * places + i];
            s->load[r] += weight[e] / s->count[e];
        }
    }
}

/* A slot that helps nobody holds a second copy of an expert that only its rank has (no load moves),
 * or of the rank's lightest. */
static int harmless(const struct placement *p, const struct scratch *s, const double *weight,
                    int rank) {
    int places = p->shape.slots / p->shape.ranks, best = p->expert_of[rank * places];
    double least = INFINITY;
    for (int i = 0; i < s->filled[rank]; i++) {
        int e = p->expert_of[rank * places + i], copies = 0;
        for (int j = 0; j < s->filled[rank]; j++) copies += p->expert_of[rank * places + j] == e;
        double cost = copies == s->count[e] ? 0 : weight[e] / s->count[e];
        if (cost < least) least = cost, best = e;
    }
    return best;
}

static void build_lpt(struct placement *p, struct scratch *s, const double *weight) {
    int experts = p->shape.experts, ranks = p->shape.ranks, places = p->shape.slots / ranks;
    pack(s, weight, experts, ranks, s->order);
    for (int r = 0; r < ranks; r++) {
        s->filled[r] = experts / ranks;
        for (int i = 0; i < s->filled[r]; i++)
            p->expert_of[r * places + i] = s->order[r * s->filled[r] + i];
    }
    for (int e = 0; e < experts; e++) s->count[e] = 1;
    for (int spare = p->shape.slots - experts; spare > 0; spare--) {
        int hot = 0, expert = 0, target = 0;
        loads_of(p, s, weight);
        for (int r = 1; r < ranks; r++)
            if (s->load[r] > s->load[hot]) hot = r;
        if (!best_replica(p, s, weight, hot, &expert, &target)) {
            while (s->filled[target] == places) target++;
            expert = harmless(p, s, weight, target);
        }
        p->expert_of[target * places + s->filled[target]++] = expert;
        s->count[expert]++;
    }
}

/* Experts in order, each rank's share plus its replicas: rank r keeps experts r*E/R.. in place. */
static void build_contiguous(struct placement *p) {
    const struct placement_shape *s = &p->shape;
    int places = s->slots / s->ranks;
    int next = 0, spare = 0;
    for (int r = 0; r < s->ranks; r++) {
        int end = (int)((int64_t)s->experts * (r + 1) / s->ranks);
        for (int i = 0; i < places; i++)
            p->expert_of[r * places + i] = next < end ? next++ : spare++ % s->experts;
    }
}

static bool build_shuffled(struct placement *p, uint64_t seed, struct err *err) {
    int experts = p->shape.experts;
    int64_t *order = malloc((size_t)experts * sizeof *order);
    if (!order) return err_memory(err, "placement");
    struct rng rng;
    rng_init(&rng, seed);
    for (int e = 0; e < experts; e++) order[e] = e;
    rng_shuffle(&rng, order, experts);
    build_contiguous(p);
    for (int s = 0; s < p->shape.slots; s++) p->expert_of[s] = (int32_t)order[p->expert_of[s]];
    free(order);
    return true;
}

static bool build(struct placement *p, enum placement_rule rule, const double *weight,
                  uint64_t seed, struct err *err) {
    if (rule == PLACE_CONTIGUOUS) {
        build_contiguous(p);
        return true;
    }
    if (rule == PLACE_SHUFFLED) return build_shuffled(p, seed, err);
    for (int e = 0; e < p->shape.experts; e++)
        if (!isfinite(weight[e]) || weight[e] < 0)
            return err_set(err, ERR_DATA,
                           "placement: found weight %g of expert %d, expected a "
                           "number of tokens",
                           weight[e], e);
    struct scratch s;
    int groups = p->shape.groups > 1 ? p->shape.groups : 1;
    bool ok = scratch_make(&s, p->shape.slots, err);
    bool grouped = by_groups(rule), whole = p->shape.experts % p->shape.ranks == 0;
    if (ok && rule == PLACE_LPT && whole)
        build_lpt(p, &s, weight);
    else if (ok)
        build_eplb(p, &s, weight, grouped ? p->shape.nodes : 1, grouped ? groups : 1,
                   rule == PLACE_NODE_AWARE);
    scratch_free(&s);
    return ok;
}

/* Slots by expert, rising. */
static void index_replicas(struct placement *p) {
    int32_t *first = p->replica_first;
    for (int s = 0; s < p->shape.slots; s++) first[p->expert_of[s] + 1]++;
    for (int e = 0; e < p->shape.experts; e++) first[e + 1] += first[e];
    for (int s = p->shape.slots - 1; s >= 0; s--) /* backwards, so that slots rise */
        p->slot_of[--first[p->expert_of[s] + 1]] = s;
    memmove(first, first + 1, (size_t)p->shape.experts * sizeof *first);
    first[p->shape.experts] = p->shape.slots;
}

bool placement_build(struct placement *placement, enum placement_rule rule,
                     const struct placement_shape *shape, const double *weight, uint64_t seed,
                     struct err *err) {
    *placement = (struct placement){.shape = *shape};
    if (!placement_check(rule, shape, err)) return false;
    placement->expert_of = calloc((size_t)shape->slots, sizeof *placement->expert_of);
    placement->slot_of = calloc((size_t)shape->slots, sizeof *placement->slot_of);
    placement->replica_first = calloc((size_t)shape->experts + 1, sizeof *placement->replica_first);
    bool ok = (placement->expert_of && placement->slot_of && placement->replica_first) ||
              err_memory(err, "placement");
    ok = ok && build(placement, rule, weight, seed, err);
    if (ok)
        index_replicas(placement);
    else
        placement_free(placement);
    return ok;
}

void placement_free(struct placement *placement) {
    free(placement->expert_of);
    free(placement->slot_of);
    free(placement->replica_first);
    *placement = (struct placement){0};
}

void placement_rank_load(const struct placement *placement, const double *weight, double *rank) {
    int places = placement->shape.slots / placement->shape.ranks;
    for (int r = 0; r < placement->shape.ranks; r++) rank[r] = 0;
    for (int s = 0; s < placement->shape.slots; s++) {
        int e = placement->expert_of[s];
        rank[s / places] +=
            weight[e] / (placement->replica_first[e + 1] - placement->replica_first[e]);
    }
}

int placement_moves(const struct placement *before, const struct placement *after) {
    int moves = 0;
    for (int s = 0; s < after->shape.slots; s++)
        moves += before->expert_of[s] != after->expert_of[s];
    return moves;
}

/* ---- replica choice */

static int least_loaded(const struct replica_state *state, const int32_t *slots, int count,
                        int places) {
    int best = 0;
    for (int i = 1; i < count; i++)
        if (state->rank_load[slots[i] / places] < state->rank_load[slots[best] / places]) best = i;
    return best;
}

/* The nearest replica; among equally near ones in turn. */
static int nearest(struct replica_state *state, const int32_t *slots, int count, int places,
                   int expert, int source) {
    const struct placement_shape *shape = &state->placement->shape;
    int a_node = shape->ranks / shape->nodes, near = 0, seen = 0;
    for (int i = 0; i < count; i++) {
        if (slots[i] / places == source) return i;
        near += slots[i] / places / a_node == source / a_node;
    }
    int turn = state->turn[expert]++;
    if (near == 0) return turn % count;
    for (int i = 0; i < count; i++)
        if (slots[i] / places / a_node == source / a_node && seen++ == turn % near) return i;
    return 0;
}

int replica_slot(struct replica_state *state, int expert, int source) {
    const struct placement *p = state->placement;
    int first = p->replica_first[expert], count = p->replica_first[expert + 1] - first, pick = 0;
    const int32_t *slots = p->slot_of + first;
    int places = p->shape.slots / p->shape.ranks;
    if (count > 1) {
        switch (state->choice) {
        case REPLICA_EVEN:
            pick = state->turn[expert];
            replica_in_turn(state, expert);
            break;
        case REPLICA_RANDOM:
            pick = (int)rng_below(&state->rng, (uint64_t)count);
            break;
        case REPLICA_LEAST:
            pick = least_loaded(state, slots, count, places);
            break;
        case REPLICA_LOCAL:
            pick = nearest(state, slots, count, places, expert, source);
            break;
        }
    }
    state->rank_load[slots[pick] / places]++;
    return slots[pick];
}
