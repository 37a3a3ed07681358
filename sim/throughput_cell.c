/* throughput_cell.c - one cell at one layer: every batch sent to the ranks of a placement, timed */
#include "sim/throughput_cell.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/exchange.h"
#include "sim/synthetic.h"

struct placement_shape cell_shape(const struct throughput_point *point, const struct loaded *l) {
    int per_node = l->options->cluster->device.gpus_per_node;
    int nodes = point->ranks % per_node == 0 ? point->ranks / per_node : 1;
    return (struct placement_shape){l->experts, l->experts + point->replicas, point->ranks, nodes,
                                    l->groups};
}

static struct layer_shape layer_shape_of(const struct throughput_options *o, double topk,
                                         double local_experts) {
    return (struct layer_shape){.hidden = o->shape->hidden,
                                .inter = o->shape->expert_inter,
                                .matrices = 3,
                                .weight_bytes = o->cluster->weight_bytes,
                                .topk = topk,
                                .local_experts = local_experts};
}

/* ---- one cell at one layer */

struct work {
    const struct loaded *l;
    const struct serving *serving;
    struct throughput_cell *cell;
    struct placement_shape shape;
    struct placement placement, before;
    struct exchange exchange;
    int64_t *token;   /* [G] */
    double *weight;   /* [E] what the placement is learnt from */
    int32_t *history; /* [batches,E], of LEARN_PREVIOUS */
    int64_t warm;     /* batches that only teach */
    int64_t *slowest; /* [R] batches in which a rank was the straggler */
    uint16_t *made;   /* [G,k] choices that no trace made, or NULL */
    int32_t *sorted;  /* [E] */
    int32_t *padded; /* [S] tokens that slots compute, where experts are padded to their capacity */
};

/* Everything of a batch that a load without a trace decides, the same for all batches. */
static bool make_choices(struct work *w, struct arena *arena, struct err *err) {
    const struct load_choice *load = &w->cell->point.load;
    if (load->source != LOAD_AT_RANDOM && load->source != LOAD_OF_LAW) return true;
    const struct load_group group = {w->l->experts, w->l->topk, w->shape.ranks, w->serving->group,
                                     0};
    w->made = arena_alloc(arena, (size_t)group.tokens * (size_t)group.topk, sizeof *w->made);
    if (!w->made) return err_memory(err, "choices");
    uint64_t seed = w->l->options->seed * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)w->l->layer;
    return choices_make(load, &group, seed, w->made, arena, err);
}

/* Tokens of a batch that an expert has room for: by --capacity, else by the gate's own; 0: no
 * capacity, or one that the experts of a device share. */
static int64_t places_of(const struct work *w) {
    const struct gate *gate = w->l->gate;
    if (w->serving->phase != PHASE_TRAIN) return 0;
    if (w->exchange.capacity > 0) return w->exchange.capacity;
    return gate && gate->capacity > 0 && !gate->devices
               ? gate_capacity(gate, w->l->experts, w->serving->group)
               : 0;
}

/* What each slot computes: its tokens, or all places of its expert, replicas sharing them
 * (Megatron-LM, moe_pad_expert_input_to_capacity). */
static const int32_t *computed(struct work *w) {
    const struct placement *p = &w->placement;
    if (!w->padded) return w->exchange.slot_tokens;
    for (int s = 0; s < w->shape.slots; s++) {
        int e = p->expert_of[s];
        int64_t copies = p->replica_first[e + 1] - p->replica_first[e];
        w->padded[s] = (int32_t)((places_of(w) + copies - 1) / copies);
    }
    return w->padded;
}

static bool work_init(struct work *w, struct arena *arena, struct err *err) {
    size_t experts = (size_t)w->l->experts;
    bool history = w->cell->point.learn == LEARN_PREVIOUS;
    w->token = arena_alloc(arena, (size_t)w->serving->group, sizeof *w->token);
    w->weight = arena_alloc(arena, experts, sizeof *w->weight);
    w->slowest = arena_alloc(arena, (size_t)w->shape.ranks, sizeof *w->slowest);
    w->sorted = arena_alloc(arena, experts, sizeof *w->sorted);
    if (history)
        w->history = arena_alloc(arena, (size_t)w->serving->batches * experts, sizeof *w->history);
    if (!w->token || !w->weight || !w->slowest || !w->sorted || (history && !w->history))
        return err_memory(err, "throughput");
    const struct throughput_options *o = w->l->options;
    double share = (double)w->serving->group * w->l->chosen / w->l->experts;
    w->exchange.gpus_per_node = o->cluster->device.gpus_per_node;
    w->exchange.tokens_per_rank = w->serving->tokens_per_rank;
    w->exchange.replica.choice = o->choice;
    if (w->serving->phase == PHASE_TRAIN && o->capacity > 0)
        w->exchange.capacity = (int64_t)ceil(share * o->capacity);
    if (!exchange_init(&w->exchange, &w->shape, arena, err)) return false;
    if (places_of(w) > 0 && o->pad)
        w->padded = arena_alloc(arena, (size_t)w->shape.slots, sizeof *w->padded);
    if (!w->padded && places_of(w) > 0 && o->pad) return err_memory(err, "capacity");
    size_t ranks = (size_t)w->shape.ranks;
    if (w->cell->traffic) {
        w->exchange.matrix = arena_alloc(arena, ranks * ranks, sizeof *w->exchange.matrix);
        if (!w->exchange.matrix) return err_memory(err, "traffic");
    }
    return make_choices(w, arena, err);
}

/* weight[E] <- what is known before batch b. False: nothing yet. */
static bool learn(struct work *w, int64_t b) {
    const struct loaded *l = w->l;
    const struct throughput_point *p = &w->cell->point;
    size_t bytes = (size_t)l->experts * sizeof *w->weight;
    if (p->learn != LEARN_PREVIOUS && !w->made) {
        const double *of = p->learn == LEARN_DOMAIN ? l->domain + p->domain * l->experts : l->whole;
        memcpy(w->weight, of, bytes);
        return true;
    }
    memset(w->weight, 0, bytes);
    if (p->learn != LEARN_PREVIOUS) { /* a made load is known as a trace's is */
        for (int64_t i = 0; i < w->serving->group * l->topk; i++) w->weight[w->made[i]]++;
        return true;
    }
    int64_t from = b > l->options->window ? b - l->options->window : 0;
    for (int64_t i = from; i < b; i++)
        for (int e = 0; e < l->experts; e++) w->weight[e] += w->history[i * l->experts + e];
    return b > 0;
}

/* Weights that move at a refresh, over the links of the rank that receives most, ms. */
static double move_time(const struct work *w) {
    const struct cluster *c = w->l->options->cluster;
    int places = w->shape.slots / w->shape.ranks, most = 0;
    for (int r = 0; r < w->shape.ranks; r++) {
        int moves = 0;
        for (int s = r * places; s < (r + 1) * places; s++)
            moves += w->before.expert_of[s] != w->placement.expert_of[s];
        most = moves > most ? moves : most;
    }
    const struct model_shape *m = w->l->options->shape;
    double bytes = 3 * m->hidden * m->expert_inter * c->weight_bytes * most;
    double gbps = w->shape.nodes > 1 ? c->device.network_gbps : c->device.link_gbps;
    return bytes / (gbps * 1e6);
}

/* A placement for batch b where one is due. */
static bool refresh(struct work *w, int64_t b, double *move_ms, struct err *err) {
    const struct throughput_options *o = w->l->options;
    const struct throughput_point *p = &w->cell->point;
    int64_t age = b - w->warm;
    bool due = b == 0 || (p->learn == LEARN_PREVIOUS && age >= 0 && age % p->refresh == 0);
    if (!due) return true;
    bool known = learn(w, b);
    enum placement_rule rule = known ? p->placement : PLACE_CONTIGUOUS;
    w->before = w->placement;
    if (!placement_build(&w->placement, rule, &w->shape, w->weight, o->seed, err)) return false;
    if (age > 0) *move_ms += move_time(w); /* the first placement is where serving starts */
    placement_free(&w->before);
    exchange_place(&w->exchange, &w->placement);
    return true;
}

/* Adds a batch's times to the sums of the row. */
static void measure(struct work *w, struct throughput_layer *row) {
    const struct throughput_options *o = w->l->options;
    const struct layer_constants *c = &o->cluster->constants.layer;
    int ranks = w->shape.ranks, places = w->shape.slots / ranks, straggler = 0;
    double chosen = w->made ? w->l->topk : w->l->chosen;
    struct layer_shape shape = layer_shape_of(o, chosen, places);
    double group = (double)w->serving->group, slowest = -1, active = 0, most = 0, busiest = 0;
    double sum = 0;
    const int32_t *tokens = computed(w);
    for (int r = 0; r < ranks; r++) {
        struct rank_load load;
        rank_load_count(&load, tokens + r * places, places);
        double ms = layer_time_ms(c, &shape, &load, group);
        if (ms > slowest) slowest = ms, straggler = r;
        sum += load.assignments;
        active += load.active;
        most = fmax(most, load.assignments);
        busiest = fmax(busiest, load.active);
    }
    struct comm_time comm = comm_time(&o->cluster->comm, w->serving->phase == PHASE_DECODE,
                                      o->shape->hidden, w->exchange.traffic, ranks);
    double exchange_ms = comm.dispatch_ms + comm.combine_ms;
    w->slowest[straggler]++;
    row->experts_ms += slowest;
    row->comm_ms += exchange_ms;
    row->time_ms += o->overlap ? fmax(slowest, exchange_ms) : slowest + exchange_ms;
    row->even_ms += layer_even_time_ms(c, &shape, active / ranks, sum / ranks, group);
    row->rank_max += most;
    row->rank_mean += sum / ranks;
    row->active_max += busiest;
    int64_t dropped = w->exchange.dropped - (w->l->varies ? w->exchange.empty : 0);
    row->dropped += (double)dropped / (group * chosen);
}

static void finish(const struct work *w, struct throughput_layer *row, double balanced_ms) {
    double batches = (double)(w->serving->batches - w->warm);
    double *const sums[] = {&row->time_ms,   &row->experts_ms, &row->comm_ms,
                            &row->move_ms,   &row->even_ms,    &row->rank_max,
                            &row->rank_mean, &row->active_max, &row->dropped};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) *sums[i] /= batches;
    row->time_ms += row->move_ms;
    row->balanced_ms = balanced_ms;
    for (int r = 1; r < w->shape.ranks; r++)
        if (w->slowest[r] > w->slowest[row->straggler]) row->straggler = r;
}

int64_t cell_warm_batches(const struct throughput_point *point,
                          const struct throughput_options *options, const struct serving *serving) {
    if (point->learn != LEARN_PREVIOUS) return 0;
    int64_t half = serving->batches / 2;
    return options->window < half ? options->window : half;
}

static int more_first(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x < y) - (x > y);
}

/* Adds a batch to what the cell keeps: loads from the highest to the lowest, copies by rank. */
static void keep(struct work *w) {
    struct throughput_cell *cell = w->cell;
    size_t experts = (size_t)w->l->experts, ranks = (size_t)w->shape.ranks;
    double batches = (double)(w->serving->batches - w->warm);
    if (cell->profile) {
        double *profile = cell->profile + (int64_t)w->l->layer * cell->experts;
        memcpy(w->sorted, w->exchange.expert_tokens, experts * sizeof *w->sorted);
        qsort(w->sorted, experts, sizeof *w->sorted, more_first);
        double total = batches * (double)w->serving->group * (w->made ? w->l->topk : w->l->chosen);
        for (size_t e = 0; e < experts; e++) profile[e] += w->sorted[e] / total;
    }
    double *traffic = cell->traffic ? cell->traffic + (size_t)w->l->layer * ranks * ranks : NULL;
    for (size_t i = 0; traffic && i < ranks * ranks; i++)
        traffic[i] += (double)w->exchange.matrix[i] / batches;
}

/* The tokens of batch b and their choices. */
static const uint16_t *next_batch(struct work *w, int64_t b) {
    int64_t group = w->serving->group;
    if (w->made) {
        for (int64_t i = 0; i < group; i++) w->token[i] = i;
        return w->made;
    }
    serving_batch(w->serving, b, w->token);
    if (w->cell->point.load.source == LOAD_RESAMPLED) {
        struct rng rng; /* the same tokens at every layer */
        rng_init(&rng, w->l->options->seed ^ UINT64_C(0xd1b54a32d192ed03) * (uint64_t)(b + 1));
        for (int64_t i = 0; i < group; i++)
            w->token[i] = (int64_t)rng_below(&rng, (uint64_t)w->serving->total);
    }
    return w->l->expert;
}

static bool run_batches(struct work *w, struct throughput_layer *row, struct err *err) {
    for (int64_t b = 0; b < w->serving->batches; b++) {
        if (!refresh(w, b, &row->move_ms, err)) return false;
        const uint16_t *expert = next_batch(w, b);
        exchange_batch(&w->exchange, w->token, w->serving->group, expert,
                       w->made ? w->l->topk : w->l->slots, w->l->options->seed + (uint64_t)b);
        if (w->history)
            memcpy(w->history + b * w->l->experts, w->exchange.expert_tokens,
                   (size_t)w->l->experts * sizeof *w->history);
        if (b < w->warm) continue;
        measure(w, row);
        keep(w);
    }
    return true;
}

bool cell_run(struct throughput_cell *cell, const struct loaded *l, const struct serving *serving,
              double balanced_ms, struct arena *arena, struct err *err) {
    struct work w = {
        .l = l, .serving = serving, .cell = cell, .shape = cell_shape(&cell->point, l)};
    w.warm = cell_warm_batches(&cell->point, l->options, serving);
    struct throughput_layer *row = &cell->layer[l->layer];
    bool ok = work_init(&w, arena, err) && run_batches(&w, row, err);
    if (ok) {
        finish(&w, row, balanced_ms);
        memcpy(cell->placed + (int64_t)l->layer * cell->slots, w.placement.expert_of,
               (size_t)w.shape.slots * sizeof(int32_t));
    }
    placement_free(&w.placement);
    return ok;
}

double cell_balanced_ms(const struct throughput_cell *cell, const struct loaded *l,
                        const struct serving *serving) {
    struct load_law law = {.kind = LOAD_BALANCED};
    int held = l->experts % cell->point.ranks == 0 ? l->experts : l->experts + cell->point.replicas;
    /* as many choices as the trace's tokens make */
    int64_t tokens = llround((double)serving->group * l->chosen / l->topk);
    struct load_group group = {held, l->topk, cell->point.ranks, tokens > 0 ? tokens : 1, 0};
    struct rank_load load;
    struct err unused;
    if (!load_expect(&law, &group, 1, &load, &unused)) return NAN;
    struct layer_shape shape =
        layer_shape_of(l->options, l->chosen, (double)held / cell->point.ranks);
    return layer_time_ms(&l->options->cluster->constants.layer, &shape, &load,
                         (double)serving->group);
}
