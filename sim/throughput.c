/* throughput.c - cells over layers: placements, batches, the slowest rank, sums
 *
 * Layer by layer and variant by variant the choices of all tokens are loaded once; then every cell
 * of that variant is a job. What is remembered between layers is a row of means per cell. */
#include "sim/throughput.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/threads.h"
#include "sim/exchange.h"
#include "sim/synthetic.h"

static const char *const regime_names[] = {
#define X(e, name, help) name,
    SKEW_REGIMES(X)
#undef X
};

const char *skew_regime_name(enum skew_regime regime) { return regime_names[regime]; }

enum skew_regime skew_regime_of(double against_balanced) {
    if (against_balanced < 0.97) return SKEW_HELPS;
    return against_balanced > 1.03 ? SKEW_COSTS : SKEW_FREE;
}

/* One layer of one variant, shared by the jobs of its cells. */
struct loaded {
    const struct throughput_options *options;
    int layer; /* router index */
    int experts, topk, groups;
    uint16_t *expert;       /* [T,k] */
    double *whole, *domain; /* [E] tokens; domain only when asked */
};

struct running {
    struct loaded loaded;
    struct throughput_run *run;
    struct serving *serving; /* [cells] */
    double *balanced_ms;     /* [cells] of the last (E,k) */
    int balanced_experts, balanced_topk;
    int *jobs;            /* cells of the variant */
    struct arena *arenas; /* [workers] */
    atomic_bool failed;
    struct err *errs; /* [cells] */
};

static struct placement_shape shape_of(const struct throughput_point *point,
                                       const struct loaded *l) {
    int per_node = l->options->cluster->device.gpus_per_node;
    int nodes = point->ranks % per_node == 0 ? point->ranks / per_node : 1;
    return (struct placement_shape){l->experts, l->experts + point->replicas, point->ranks, nodes,
                                    l->groups};
}

static struct layer_shape layer_shape_of(const struct throughput_options *o, int topk,
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
    int64_t *slowest; /* [R] batches in which a rank was the straggler */
};

static bool work_init(struct work *w, struct arena *arena, struct err *err) {
    size_t experts = (size_t)w->l->experts;
    bool history = w->l->options->learn == LEARN_PREVIOUS;
    w->token = arena_alloc(arena, (size_t)w->serving->group, sizeof *w->token);
    w->weight = arena_alloc(arena, experts, sizeof *w->weight);
    w->slowest = arena_alloc(arena, (size_t)w->shape.ranks, sizeof *w->slowest);
    if (history)
        w->history = arena_alloc(arena, (size_t)w->serving->batches * experts, sizeof *w->history);
    if (!w->token || !w->weight || !w->slowest || (history && !w->history))
        return err_memory(err, "throughput");
    const struct throughput_options *o = w->l->options;
    double share = (double)w->serving->group * w->l->topk / w->l->experts;
    w->exchange.gpus_per_node = o->cluster->device.gpus_per_node;
    w->exchange.tokens_per_rank = w->serving->tokens_per_rank;
    w->exchange.replica.choice = o->choice;
    if (w->serving->phase == PHASE_TRAIN && o->capacity > 0)
        w->exchange.capacity = (int64_t)ceil(share * o->capacity);
    return exchange_init(&w->exchange, &w->shape, arena, err);
}

/* weight[E] <- what is known before batch b. False: nothing yet. */
static bool learn(struct work *w, int64_t b) {
    const struct loaded *l = w->l;
    size_t bytes = (size_t)l->experts * sizeof *w->weight;
    if (l->options->learn != LEARN_PREVIOUS) {
        memcpy(w->weight, l->options->learn == LEARN_DOMAIN ? l->domain : l->whole, bytes);
        return true;
    }
    memset(w->weight, 0, bytes);
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
    bool due = b == 0 || (o->learn == LEARN_PREVIOUS && b % o->refresh == 0);
    if (!due) return true;
    bool known = learn(w, b);
    enum placement_rule rule = known ? w->cell->point.placement : PLACE_CONTIGUOUS;
    w->before = w->placement;
    if (!placement_build(&w->placement, rule, &w->shape, w->weight, o->seed, err)) return false;
    if (b > 0) *move_ms += move_time(w);
    placement_free(&w->before);
    exchange_place(&w->exchange, &w->placement);
    return true;
}

/* Adds a batch's times to the sums of the row. */
static void measure(struct work *w, struct throughput_layer *row) {
    const struct throughput_options *o = w->l->options;
    const struct layer_constants *c = &o->cluster->constants.layer;
    int ranks = w->shape.ranks, places = w->shape.slots / ranks, straggler = 0;
    struct layer_shape shape = layer_shape_of(o, w->l->topk, places);
    double group = (double)w->serving->group, slowest = -1, active = 0, most = 0, busiest = 0;
    double sum = 0;
    for (int r = 0; r < ranks; r++) {
        struct rank_load load;
        rank_load_count(&load, w->exchange.slot_tokens + r * places, places);
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
    row->dropped += (double)w->exchange.dropped / (group * w->l->topk);
}

static void finish(const struct work *w, struct throughput_layer *row, double balanced_ms) {
    double batches = (double)w->serving->batches;
    double *const sums[] = {&row->time_ms,   &row->experts_ms, &row->comm_ms,
                            &row->move_ms,   &row->even_ms,    &row->rank_max,
                            &row->rank_mean, &row->active_max, &row->dropped};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) *sums[i] /= batches;
    row->time_ms += row->move_ms;
    row->balanced_ms = balanced_ms;
    for (int r = 1; r < w->shape.ranks; r++)
        if (w->slowest[r] > w->slowest[row->straggler]) row->straggler = r;
}

static bool run_cell(struct work *w, struct arena *arena, double balanced_ms, struct err *err) {
    struct throughput_layer *row = &w->cell->layer[w->l->layer];
    bool ok = work_init(w, arena, err);
    for (int64_t b = 0; ok && b < w->serving->batches; b++) {
        ok = refresh(w, b, &row->move_ms, err);
        if (!ok) break;
        serving_batch(w->serving, b, w->token);
        exchange_batch(&w->exchange, w->token, w->serving->group, w->l->expert, w->l->topk,
                       w->l->options->seed + (uint64_t)b);
        if (w->history)
            memcpy(w->history + b * w->l->experts, w->exchange.expert_tokens,
                   (size_t)w->l->experts * sizeof *w->history);
        measure(w, row);
    }
    if (ok) {
        finish(w, row, balanced_ms);
        memcpy(w->cell->placed + (int64_t)w->l->layer * w->cell->slots, w->placement.expert_of,
               (size_t)w->shape.slots * sizeof(int32_t));
    }
    placement_free(&w->placement);
    return ok;
}

/* Time of the experts under the balanced law of the same tokens; NaN where it has no meaning. */
static double balanced_time(const struct throughput_cell *cell, const struct serving *serving,
                            const struct loaded *l) {
    struct load_law law = {.kind = LOAD_BALANCED};
    struct load_group group = {l->experts, l->topk, cell->point.ranks, serving->group, 0};
    struct rank_load load;
    struct err unused;
    if (!load_expect(&law, &group, 1, &load, &unused)) return NAN;
    struct layer_shape shape =
        layer_shape_of(l->options, l->topk, (double)l->experts / cell->point.ranks);
    return layer_time_ms(&l->options->cluster->constants.layer, &shape, &load,
                         (double)serving->group);
}

static void cell_job(void *context, int64_t job, int worker) {
    struct running *r = context;
    int index = r->jobs[job];
    const struct loaded *l = &r->loaded;
    if (isnan(r->balanced_ms[index]) || r->balanced_experts != l->experts ||
        r->balanced_topk != l->topk)
        r->balanced_ms[index] = balanced_time(&r->run->cells[index], &r->serving[index], l);
    struct work w = {.l = l, .serving = &r->serving[index], .cell = &r->run->cells[index]};
    w.shape = shape_of(&w.cell->point, l);
    arena_reset(&r->arenas[worker]);
    if (!run_cell(&w, &r->arenas[worker], r->balanced_ms[index], &r->errs[index]))
        atomic_store(&r->failed, true);
}

/* ---- all cells */

static void count_tokens(const struct trace *trace, struct loaded *l) {
    memset(l->whole, 0, (size_t)l->experts * sizeof *l->whole);
    memset(l->domain, 0, (size_t)l->experts * sizeof *l->domain);
    bool wanted = l->options->learn == LEARN_DOMAIN;
    for (int64_t d = 0; d < trace_documents(trace); d++) {
        const struct trace_document *doc = trace_document(trace, d);
        bool inside = wanted && trace_domain_of(trace, d) == l->options->domain;
        int64_t end = doc->first_token + doc->tokens;
        if (end > trace_tokens(trace)) end = trace_tokens(trace);
        for (int64_t i = doc->first_token * l->topk; i < end * l->topk; i++) {
            l->whole[l->expert[i]]++;
            if (inside) l->domain[l->expert[i]]++;
        }
    }
}

static bool check_choices(const struct loaded *l, const char *path, int64_t tokens,
                          struct err *err) {
    for (int64_t i = 0; i < tokens * l->topk; i++)
        if (l->expert[i] >= l->experts)
            return err_set(err, ERR_DATA, "%s: found expert %d of %d", path, l->expert[i],
                           l->experts);
    return true;
}

/* What makes a cell impossible or doubtful; sizes and memory. */
static bool prepare(struct running *r, const struct routed *routed, const int64_t *first,
                    struct err *err) {
    const struct throughput_options *o = r->loaded.options;
    int layers = trace_layers(routed->trace);
    for (int i = 0; i < r->run->count; i++) {
        struct throughput_cell *cell = &r->run->cells[i];
        const struct throughput_point *p = &cell->point;
        for (int l = 0; l < layers; l++) {
            int experts = trace_layer(routed->trace, l)->experts;
            cell->experts = experts > cell->experts ? experts : cell->experts;
        }
        cell->slots = cell->experts + p->replicas;
        cell->layer = calloc((size_t)layers, sizeof *cell->layer);
        cell->placed = malloc((size_t)layers * (size_t)cell->slots * sizeof *cell->placed);
        if (!cell->layer || !cell->placed) return err_memory(err, "cells");
        memset(cell->placed, -1, (size_t)layers * (size_t)cell->slots * sizeof *cell->placed);
        struct serving *s = &r->serving[i];
        if (!serving_make(s, p->phase, p->ranks, p->tokens_per_rank, o->most_batches, first,
                          trace_documents(routed->trace), o->seed, err))
            return false;
        cell->batches = s->batches;
        cell->group_tokens = s->group;
        cell->repeats = s->repeats;
        const struct model_shape *m = o->shape;
        cell->extrapolated = m->hidden < 1024 || m->hidden > 8192 || m->expert_inter < 64 ||
                             m->expert_inter > 16384 || s->group > 65536 || p->ranks > 256 ||
                             o->cluster->constants.origin == ORIGIN_DATA_SHEET;
        if (!o->moe_only)
            cell->rest_ms = step_rest_ms(m, o->cluster, (double)p->tokens_per_rank, o->context,
                                         p->phase == PHASE_DECODE);
        r->balanced_ms[i] = NAN;
    }
    return true;
}

static bool load_layer(struct running *r, const struct routed *routed, int variant, int layer,
                       struct err *err) {
    struct loaded *l = &r->loaded;
    const struct trace_layer *at = trace_layer(routed->trace, layer);
    l->layer = layer;
    l->experts = at->experts;
    l->topk = routed_topk(routed, variant, layer);
    l->groups = l->options->groups ? l->options->groups : at->has_gate ? at->gate.groups : 1;
    if (!routed_choices(routed, variant, layer, l->expert, err)) return false;
    if (!check_choices(l, trace_path(routed->trace), trace_tokens(routed->trace), err))
        return false;
    count_tokens(routed->trace, l);
    return true;
}

static bool run_layer(struct running *r, struct pool *pool, const struct routed *routed,
                      int variant, int layer, struct err *err) {
    if (!load_layer(r, routed, variant, layer, err)) return false;
    int64_t jobs = 0;
    for (int i = 0; i < r->run->count; i++) {
        struct throughput_cell *cell = &r->run->cells[i];
        if (cell->point.variant != variant || *cell->lacks) continue;
        struct placement_shape shape = shape_of(&cell->point, &r->loaded);
        struct err why = {0};
        if (placement_check(cell->point.placement, &shape, &why))
            r->jobs[jobs++] = i;
        else
            snprintf(cell->lacks, sizeof cell->lacks, "%.255s", why.text);
        cell->layer[layer] =
            (struct throughput_layer){.layer = trace_layer(routed->trace, layer)->layer};
    }
    pool_run(pool, jobs, cell_job, r);
    r->balanced_experts = r->loaded.experts;
    r->balanced_topk = r->loaded.topk;
    for (int i = 0; i < r->run->count; i++)
        if (atomic_load(&r->failed) && r->errs[i].code != ERR_NONE) {
            *err = r->errs[i];
            return false;
        }
    return true;
}

static void sum_layers(struct throughput_run *run) {
    for (int i = 0; i < run->count; i++) {
        struct throughput_cell *cell = &run->cells[i];
        struct throughput_layer *s = &cell->step;
        *s = (struct throughput_layer){.layer = -1, .straggler = -1};
        for (int l = 0; l < run->layers; l++) {
            const struct throughput_layer *row = &cell->layer[l];
            s->time_ms += row->time_ms;
            s->experts_ms += row->experts_ms;
            s->comm_ms += row->comm_ms;
            s->move_ms += row->move_ms;
            s->even_ms += row->even_ms;
            s->balanced_ms += row->balanced_ms;
            s->rank_max += row->rank_max / run->layers;
            s->rank_mean += row->rank_mean / run->layers;
            s->active_max += row->active_max / run->layers;
            s->dropped += row->dropped / run->layers;
        }
        s->time_ms += cell->rest_ms;
        cell->tokens_per_s = (double)cell->group_tokens / s->time_ms * 1e3;
    }
}

static bool allocate(struct running *r, const struct routed *routed, int workers, struct err *err) {
    size_t count = (size_t)r->run->count, experts = 1;
    int topk = 1;
    for (int l = 0; l < trace_layers(routed->trace); l++) {
        size_t e = (size_t)trace_layer(routed->trace, l)->experts;
        experts = e > experts ? e : experts;
        for (int v = 0; v < routed->variants; v++) {
            int k = routed_topk(routed, v, l);
            topk = k > topk ? k : topk;
        }
    }
    int64_t tokens = trace_tokens(routed->trace);
    if (tokens > INT64_MAX / 4 / topk) return err_memory(err, "choices");
    r->loaded.expert = malloc((size_t)tokens * (size_t)topk * sizeof *r->loaded.expert);
    r->loaded.whole = malloc(experts * sizeof *r->loaded.whole);
    r->loaded.domain = malloc(experts * sizeof *r->loaded.domain);
    r->serving = calloc(count, sizeof *r->serving);
    r->balanced_ms = calloc(count, sizeof *r->balanced_ms);
    r->jobs = calloc(count, sizeof *r->jobs);
    r->errs = calloc(count, sizeof *r->errs);
    r->arenas = calloc((size_t)workers, sizeof *r->arenas);
    if (!r->loaded.expert || !r->loaded.whole || !r->loaded.domain || !r->serving ||
        !r->balanced_ms || !r->jobs || !r->errs || !r->arenas)
        return err_memory(err, "throughput");
    for (int w = 0; w < workers; w++) arena_init(&r->arenas[w], "throughput");
    return true;
}

static void release(struct running *r, int workers) {
    for (int i = 0; r->serving && i < r->run->count; i++) serving_free(&r->serving[i]);
    for (int w = 0; r->arenas && w < workers; w++) arena_free(&r->arenas[w]);
    free(r->loaded.expert);
    free(r->loaded.whole);
    free(r->loaded.domain);
    free(r->serving);
    free(r->balanced_ms);
    free(r->jobs);
    free(r->errs);
    free(r->arenas);
}

/* document_first[documents+1] of the trace. Returns owned. */
static int64_t *document_starts(const struct trace *trace, struct err *err) {
    int64_t documents = trace_documents(trace), tokens = trace_tokens(trace);
    int64_t *first = malloc((size_t)(documents + 1) * sizeof *first);
    if (!first) {
        err_memory(err, "documents");
        return NULL;
    }
    for (int64_t d = 0; d < documents; d++) {
        int64_t at = trace_document(trace, d)->first_token;
        first[d] = at < tokens ? at : tokens;
    }
    first[documents] = tokens;
    return first;
}

bool throughput_run(struct throughput_run *run, const struct routed *routed,
                    const struct throughput_point *points, int count,
                    const struct throughput_options *options, const struct progress *progress,
                    struct err *err) {
    *run = (struct throughput_run){calloc((size_t)count, sizeof *run->cells), count,
                                   trace_layers(routed->trace)};
    if (!run->cells) return err_memory(err, "cells");
    for (int i = 0; i < count; i++) run->cells[i].point = points[i];
    struct pool *pool = pool_create(options->threads, err);
    int64_t *first = pool ? document_starts(routed->trace, err) : NULL;
    int workers = pool ? pool_size(pool) : 0;
    struct running r = {.run = run, .loaded = {.options = options}};
    bool ok = first && allocate(&r, routed, workers, err) && prepare(&r, routed, first, err);
    int64_t done = 0, total = (int64_t)routed->variants * run->layers;
    for (int v = 0; ok && v < routed->variants; v++) {
        r.balanced_experts = 0;
        for (int l = 0; ok && l < run->layers; l++) {
            ok = run_layer(&r, pool, routed, v, l, err);
            if (ok && !progress_report(progress, "layers", ++done, total, "layers"))
                ok = err_set(err, ERR_CANCELLED, "interrupted");
        }
    }
    if (ok) sum_layers(run);
    release(&r, workers);
    free(first);
    pool_free(pool);
    if (!ok) throughput_free(run);
    return ok;
}

void throughput_free(struct throughput_run *run) {
    for (int i = 0; run->cells && i < run->count; i++) {
        free(run->cells[i].layer);
        free(run->cells[i].placed);
    }
    free(run->cells);
    *run = (struct throughput_run){0};
}
