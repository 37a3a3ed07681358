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
#include "sim/throughput_cell.h"

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

struct running {
    struct loaded loaded;
    struct throughput_run *run;
    struct serving *serving; /* [cells] */
    double *balanced_ms;     /* [cells] of the last (E,k) */
    int balanced_experts;
    double balanced_chosen;
    int *jobs;            /* cells of the variant */
    struct arena *arenas; /* [workers] */
    atomic_bool failed;
    struct err *errs; /* [cells] */
};

static void cell_job(void *context, int64_t job, int worker) {
    struct running *r = context;
    int index = r->jobs[job];
    const struct loaded *l = &r->loaded;
    if (isnan(r->balanced_ms[index]) || r->balanced_experts != l->experts ||
        r->balanced_chosen != l->chosen)
        r->balanced_ms[index] = cell_balanced_ms(&r->run->cells[index], l, &r->serving[index]);
    arena_reset(&r->arenas[worker]);
    if (!cell_run(&r->run->cells[index], l, &r->serving[index], r->balanced_ms[index],
                  &r->arenas[worker], &r->errs[index]))
        atomic_store(&r->failed, true);
}

/* ---- all cells */

static void count_tokens(const struct trace *trace, int64_t tokens, struct loaded *l) {
    memset(l->whole, 0, (size_t)l->experts * sizeof *l->whole);
    size_t domains = (size_t)trace_domains(trace);
    if (l->domain) memset(l->domain, 0, domains * (size_t)l->experts * sizeof *l->domain);
    for (int64_t d = 0; d < trace_documents(trace); d++) {
        const struct trace_document *doc = trace_document(trace, d);
        double *domain = l->domain ? l->domain + trace_domain_of(trace, d) * l->experts : NULL;
        int64_t end = doc->first_token + doc->tokens;
        if (end > tokens) end = tokens;
        for (int64_t i = doc->first_token * l->slots; i < end * l->slots; i++) {
            if (l->expert[i] == ROUTED_NONE) continue;
            l->whole[l->expert[i]]++;
            if (domain) domain[l->expert[i]]++;
        }
    }
}

static bool check_choices(const struct loaded *l, const char *path, int64_t tokens,
                          struct err *err) {
    for (int64_t i = 0; i < tokens * l->slots; i++)
        if (l->expert[i] >= l->experts && l->expert[i] != ROUTED_NONE)
            return err_set(err, ERR_DATA, "%s: found expert %d of %d", path, l->expert[i],
                           l->experts);
    return true;
}

/* ---- what is kept beside the times */

static bool same_batches(const struct throughput_cell *a, const struct throughput_cell *b) {
    return a->point.variant == b->point.variant && a->point.phase == b->point.phase &&
           a->point.ranks == b->point.ranks && a->group_tokens == b->group_tokens;
}

/* The first cell with the given load in the same batches that can be; NULL when there is none. */
static struct throughput_cell *load_cell(struct throughput_run *run,
                                         const struct throughput_cell *like, const char *load) {
    for (int i = 0; i < run->count; i++)
        if (same_batches(&run->cells[i], like) && run->cells[i].slots % like->point.ranks == 0 &&
            strcmp(run->cells[i].point.load.name, load) == 0)
            return &run->cells[i];
    return NULL;
}

/* Room for the load's profile in the first cell of each load and batch, where there are several
 * loads to compare. */
static bool keep_loads(struct throughput_run *run, int layers, struct err *err) {
    bool several = false;
    for (int i = 1; i < run->count; i++)
        several |= strcmp(run->cells[i].point.load.name, run->cells[0].point.load.name) != 0;
    for (int i = 0; several && i < run->count; i++) {
        struct throughput_cell *cell = &run->cells[i];
        if (load_cell(run, cell, cell->point.load.name) != cell) continue;
        cell->profile = calloc((size_t)layers * (size_t)cell->experts, sizeof *cell->profile);
        if (!cell->profile) return err_memory(err, "loads");
    }
    return true;
}

static bool keep_traffic(struct throughput_run *run, int layers, struct err *err) {
    int64_t left = THROUGHPUT_TRAFFIC;
    for (int i = 0; i < run->count; i++) {
        struct throughput_cell *cell = &run->cells[i];
        int64_t size = (int64_t)cell->point.ranks * cell->point.ranks * layers;
        if (cell->point.ranks < 2 || size > left) continue;
        left -= size;
        cell->traffic = calloc((size_t)size, sizeof *cell->traffic);
        if (!cell->traffic) return err_memory(err, "traffic");
    }
    return true;
}

/* Distances of loads from the trace's, once all layers are done. */
static void compare_loads(struct throughput_run *run) {
    for (int i = 0; i < run->count; i++) {
        struct throughput_cell *cell = &run->cells[i];
        bool own = cell->point.load.source == LOAD_OF_TRACE;
        const struct throughput_cell *trace = load_cell(run, cell, "trace");
        const struct throughput_cell *load = load_cell(run, cell, cell->point.load.name);
        cell->distance = own ? 0 : NAN;
        if (own || !trace || !load || *trace->lacks || *load->lacks) continue;
        double sum = 0;
        for (int64_t e = 0; e < (int64_t)run->layers * cell->experts; e++)
            sum += fabs(trace->profile[e] - load->profile[e]);
        cell->distance = sum / 2 / run->layers;
    }
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
        if (p->phase == PHASE_DECODE && routed->scores &&
            !variant_is_causal(&routed->set, p->variant))
            snprintf(cell->lacks, sizeof cell->lacks,
                     "the gate looks ahead in its batch: generation cannot run it");
        cell->layer = calloc((size_t)layers, sizeof *cell->layer);
        cell->placed = malloc((size_t)layers * (size_t)cell->slots * sizeof *cell->placed);
        if (!cell->layer || !cell->placed) return err_memory(err, "cells");
        memset(cell->placed, -1, (size_t)layers * (size_t)cell->slots * sizeof *cell->placed);
        struct serving *s = &r->serving[i];
        if (!serving_make(s, p->phase, p->ranks, p->tokens_per_rank, o->most_batches, first,
                          trace_documents(routed->trace), o->seed, err))
            return false;
        cell->batches = s->batches - cell_warm_batches(p, o, s);
        cell->group_tokens = s->group;
        cell->repeats = s->repeats;
        const struct model_shape *m = o->shape;
        cell->extrapolated = m->hidden < 1024 || m->hidden > 8192 || m->expert_inter < 64 ||
                             m->expert_inter > 16384 || s->group > 65536 || p->ranks > 256 ||
                             o->cluster->constants.origin == ORIGIN_DATA_SHEET;
        if (!o->moe_only)
            cell->rest_ms = step_rest_ms(m, o->cluster, (double)p->tokens_per_rank, p->context,
                                         p->phase == PHASE_DECODE);
        r->balanced_ms[i] = NAN;
    }
    return keep_loads(r->run, layers, err) && keep_traffic(r->run, layers, err);
}

static bool load_layer(struct running *r, const struct routed *routed, int variant, int layer,
                       struct err *err) {
    struct loaded *l = &r->loaded;
    const struct trace_layer *at = trace_layer(routed->trace, layer);
    l->layer = layer;
    l->experts = at->experts;
    l->topk = routed_topk(routed, variant, layer);
    l->slots = routed_slots(routed, variant, layer);
    l->varies = routed_varies(routed, variant, layer);
    l->gate = routed->scores ? &variant_at(&routed->set, variant, layer)->gate : NULL;
    l->groups = l->options->groups ? l->options->groups : at->has_gate ? at->gate.groups : 1;
    if (!routed_choices(routed, variant, layer, l->expert, err)) return false;
    if (!check_choices(l, trace_path(routed->trace), routed->tokens, err)) return false;
    count_tokens(routed->trace, routed->tokens, l);
    l->chosen = l->topk;
    if (!l->varies) return true;
    double choices = 0;
    for (int e = 0; e < l->experts; e++) choices += l->whole[e];
    l->chosen = choices / (double)routed->tokens;
    l->topk = l->chosen < 1 ? 1 : (int)lround(l->chosen);
    return true;
}

static bool run_layer(struct running *r, struct pool *pool, const struct routed *routed,
                      int variant, int layer, struct err *err) {
    if (!load_layer(r, routed, variant, layer, err)) return false;
    int64_t jobs = 0;
    for (int i = 0; i < r->run->count; i++) {
        struct throughput_cell *cell = &r->run->cells[i];
        if (cell->point.variant != variant || *cell->lacks) continue;
        struct placement_shape shape = cell_shape(&cell->point, &r->loaded);
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
    r->balanced_chosen = r->loaded.chosen;
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

static bool needs_domains(const struct throughput_run *run) {
    for (int i = 0; i < run->count; i++)
        if (run->cells[i].point.learn == LEARN_DOMAIN) return true;
    return false;
}

static bool allocate(struct running *r, const struct routed *routed, int workers, struct err *err) {
    size_t count = (size_t)r->run->count, experts = 1;
    int slots = 1;
    for (int l = 0; l < trace_layers(routed->trace); l++) {
        size_t e = (size_t)trace_layer(routed->trace, l)->experts;
        experts = e > experts ? e : experts;
        for (int v = 0; v < routed->variants; v++) {
            int s = routed_slots(routed, v, l);
            slots = s > slots ? s : slots;
        }
    }
    int64_t tokens = routed->tokens;
    if (tokens > INT64_MAX / 4 / slots) return err_memory(err, "choices");
    r->loaded.expert = malloc((size_t)tokens * (size_t)slots * sizeof *r->loaded.expert);
    r->loaded.whole = malloc(experts * sizeof *r->loaded.whole);
    if (needs_domains(r->run))
        r->loaded.domain =
            malloc((size_t)trace_domains(routed->trace) * experts * sizeof *r->loaded.domain);
    r->serving = calloc(count, sizeof *r->serving);
    r->balanced_ms = calloc(count, sizeof *r->balanced_ms);
    r->jobs = calloc(count, sizeof *r->jobs);
    r->errs = calloc(count, sizeof *r->errs);
    r->arenas = calloc((size_t)workers, sizeof *r->arenas);
    if (!r->loaded.expert || !r->loaded.whole || (needs_domains(r->run) && !r->loaded.domain) ||
        !r->serving || !r->balanced_ms || !r->jobs || !r->errs || !r->arenas)
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
static int64_t *document_starts(const struct routed *routed, struct err *err) {
    const struct trace *trace = routed->trace;
    int64_t documents = trace_documents(trace), tokens = routed->tokens;
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
    int64_t *first = pool ? document_starts(routed, err) : NULL;
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
    if (ok) {
        sum_layers(run);
        compare_loads(run);
    }
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
        free(run->cells[i].profile);
        free(run->cells[i].traffic);
    }
    free(run->cells);
    *run = (struct throughput_run){0};
}
