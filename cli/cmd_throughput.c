/* cmd_throughput.c - `steelyard throughput`: what the load of a trace costs on a cluster */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/table.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "sim/throughput.h"
#include "traces/query.h"
#include "traces/throughput_result.h"

enum { MOST_CELLS = 100000 };

/* Comma lists of the command line. */
enum list {
    LIST_BIAS_RULE,
    LIST_BIAS_RATE,
    LIST_RANKS,
    LIST_PLACEMENT,
    LIST_REPLICAS,
    LIST_PHASE,
    LIST_TOKENS,
    LIST_CONCURRENCY,
    LISTS
};
static const char *const list_names[LISTS] = {"bias-rule", "bias-rate", "ranks",  "placement",
                                              "replicas",  "phase",     "tokens", "concurrency"};
static const char *const list_defaults[LISTS] = {
    NULL, NULL, "8,32", "contiguous,eplb", "0", "prefill,decode", "2048", "64"};

struct request {
    struct text_list gates, list[LISTS];
    char *storage[LISTS]; /* owned */
    const char *cluster, *choice, *learn, *config, *out;
    double hidden, inter, context, capacity;
    int64_t window, refresh, groups, batches, batch_tokens, seed, threads;
    bool overlap, moe_only, force;
    struct output_choice output;
};

/* ---- what was asked */

static bool read_lists(struct request *q, struct err *err) {
    for (int i = 0; i < LISTS; i++) {
        if (q->list[i].count == 0 && list_defaults[i]) {
            q->list[i].items = malloc(sizeof *q->list[i].items);
            if (!q->list[i].items) return err_memory(err, "options");
            q->list[i].items[0] = list_defaults[i];
            q->list[i].count = 1;
        }
        if (!text_list_split(&q->list[i], &q->storage[i], err)) return false;
    }
    return true;
}

static bool list_int(const struct request *q, enum list list, int i, int64_t min, int64_t *out,
                     struct err *err) {
    char name[32];
    snprintf(name, sizeof name, "--%s", list_names[list]);
    bool ok = parse_int(q->list[list].items[i], name, min, 1 << 20, out, err);
    if (!ok) err->code = ERR_USAGE;
    return ok;
}

struct points {
    struct throughput_point *item; /* owned */
    int count, room;
};

static bool add_point(struct points *points, struct throughput_point point, struct err *err) {
    if (points->count == MOST_CELLS)
        return err_set(err, ERR_USAGE, "found more than %d cells, expected fewer list items",
                       MOST_CELLS);
    if (points->count == points->room) {
        int room = points->room ? 2 * points->room : 64;
        struct throughput_point *more = realloc(points->item, (size_t)room * sizeof *more);
        if (!more) return err_memory(err, "cells");
        points->item = more;
        points->room = room;
    }
    points->item[points->count++] = point;
    return true;
}

/* The batch sizes of one phase, ranks, placement and replicas. */
static bool add_sizes(const struct request *q, struct throughput_point point, struct points *points,
                      struct err *err) {
    enum list sizes = point.phase == PHASE_DECODE ? LIST_CONCURRENCY : LIST_TOKENS;
    for (int i = 0; i < q->list[sizes].count; i++)
        if (!list_int(q, sizes, i, 1, &point.tokens_per_rank, err) ||
            !add_point(points, point, err))
            return false;
    return true;
}

static bool add_placements(const struct request *q, struct throughput_point point,
                           struct points *points, struct err *err) {
    const struct text_list *rules = &q->list[LIST_PLACEMENT];
    for (int p = 0; p < rules->count; p++) {
        if (!placement_find(rules->items[p], &point.placement, err)) return false;
        for (int i = 0; i < q->list[LIST_REPLICAS].count; i++) {
            int64_t replicas;
            if (!list_int(q, LIST_REPLICAS, i, 0, &replicas, err)) return false;
            point.replicas = (int)replicas;
            if (!add_sizes(q, point, points, err)) return false;
        }
    }
    return true;
}

static bool make_points(const struct request *q, int variants, struct points *points,
                        struct err *err) {
    for (int v = 0; v < variants; v++)
        for (int p = 0; p < q->list[LIST_PHASE].count; p++)
            for (int r = 0; r < q->list[LIST_RANKS].count; r++) {
                struct throughput_point point = {.variant = v};
                int64_t ranks;
                if (!serving_phase_find(q->list[LIST_PHASE].items[p], &point.phase, err) ||
                    !list_int(q, LIST_RANKS, r, 1, &ranks, err))
                    return false;
                point.ranks = (int)ranks;
                if (!add_placements(q, point, points, err)) return false;
            }
    return true;
}

static bool read_learn(const struct request *q, const struct trace *trace,
                       struct throughput_options *o, struct err *err) {
    static const char domain[] = "domain=";
    if (strcmp(q->learn, "whole") == 0) return true;
    o->learn = LEARN_PREVIOUS;
    if (strcmp(q->learn, "previous") == 0) return true;
    o->learn = LEARN_DOMAIN;
    for (o->domain = 0; o->domain < trace_domains(trace); o->domain++)
        if (strncmp(q->learn, domain, sizeof domain - 1) == 0 &&
            strcmp(q->learn + sizeof domain - 1, trace_domain(trace, o->domain)) == 0)
            return true;
    return err_set(err, ERR_USAGE,
                   "--learn: found \"%.80s\", expected whole, previous or domain=NAME of the trace",
                   q->learn);
}

/* From --config, else what the capture recorded; --hidden and --inter override. */
static bool read_shape(const struct request *q, const struct trace *trace, bool *moe_only,
                       struct model_shape *shape, struct err *err) {
    const char *recorded = trace_capture(trace)->config;
    *shape = (struct model_shape){0};
    if (q->config) {
        size_t len;
        char *text = file_read(q->config, 1 << 24, &len, err);
        bool ok =
            text && (model_shape_parse(shape, text, err) || err_context(err, "%s", q->config));
        free(text);
        if (!ok) return false;
    } else if (recorded && *recorded) {
        if (!model_shape_parse(shape, recorded, err)) return false;
    } else {
        *moe_only = true;
    }
    if (q->hidden > 0) shape->hidden = q->hidden;
    if (q->inter > 0) shape->expert_inter = q->inter;
    if (shape->hidden > 0 && shape->expert_inter > 0) return true;
    return err_set(err, ERR_USAGE,
                   "the trace does not hold its model's configuration: give --config CONFIG.json, "
                   "or --hidden N --inter N");
}

static void describe(const struct request *q, struct str *out) {
    str_printf(out, "throughput --cluster %s", q->cluster);
    for (int i = 0; i < q->gates.count; i++) str_printf(out, " --gate %s", q->gates.items[i]);
    for (int l = 0; l < LISTS; l++)
        for (int i = 0; i < q->list[l].count; i++)
            str_printf(out, i ? ",%s" : " --%s %s", i ? q->list[l].items[i] : list_names[l],
                       q->list[l].items[i]);
    str_printf(out, " --replica-choice %s --learn %s --window %lld --refresh %lld --context %g",
               q->choice, q->learn, (long long)q->window, (long long)q->refresh, q->context);
    str_printf(out, " --batches %lld --seed %lld", (long long)q->batches, (long long)q->seed);
    if (q->capacity > 0) str_printf(out, " --capacity %g", q->capacity);
    if (q->overlap) str_puts(out, " --overlap");
    if (q->moe_only) str_puts(out, " --moe-only");
}

/* ---- what a reader must know */

static void note_model(const struct request *q, const struct cluster *c, bool moe_only,
                       struct str *out) {
    const struct layer_error *e = &c->constants.error;
    str_printf(
        out,
        "layer times of %s, %s, %s (%s constants): validated median error %.1f %% in decode, "
        "%.1f %% in prefill\n",
        c->gpu, c->kernel, c->quant, constant_origin_name(c->constants.origin),
        100 * e->decode_median, 100 * e->prefill_median);
    str_puts(out, "communication is modelled from the bytes of the busiest rank: no public "
                  "measurement has imbalanced communication\n");
    if (moe_only)
        str_puts(out, "only routed experts and their communication are counted\n");
    else
        str_puts(out, "the rest of the step is a plain roofline, not validated\n");
    if (strcmp(q->learn, "whole") == 0)
        str_puts(out, "placements are learnt on the tokens that they are used on: optimistic\n");
}

/* Was the same reason met in an earlier cell? */
static bool seen_before(const struct throughput_run *run, int i) {
    for (int j = 0; j < i; j++)
        if (strcmp(run->cells[j].lacks, run->cells[i].lacks) == 0) return true;
    return false;
}

static void note_cells(const struct throughput_run *run, struct str *out) {
    int repeats = 0, extrapolated = 0, lacks = 0;
    for (int i = 0; i < run->count; i++) {
        repeats += run->cells[i].repeats;
        extrapolated += run->cells[i].extrapolated;
        lacks += *run->cells[i].lacks != '\0';
        if (*run->cells[i].lacks && !seen_before(run, i))
            str_printf(out, "left out: %s\n", run->cells[i].lacks);
    }
    if (lacks) str_printf(out, "left out: %d of %d cells in all\n", lacks, run->count);
    if (repeats)
        str_printf(out,
                   "%d of %d cells use tokens more than once: the trace is shorter than a batch\n",
                   repeats, run->count);
    if (extrapolated)
        str_printf(out,
                   "%d of %d cells are extrapolated: outside the shapes and batches that the "
                   "layer time was validated on (hidden 1024 to 8192, at most 65536 tokens and 256 "
                   "ranks)\n",
                   extrapolated, run->count);
}

static bool same_but_placement(const struct throughput_point *a, const struct throughput_point *b) {
    return a->ranks == b->ranks && a->phase == b->phase && a->tokens_per_rank == b->tokens_per_rank;
}

/* What another placement or gate is worth against the first of the same ranks and batch. */
static void note_worth(const struct routed *routed, const struct throughput_run *run,
                       struct str *out) {
    for (int i = 0; i < run->count; i++) {
        const struct throughput_cell *base = &run->cells[i], *best = NULL;
        bool first = !*base->lacks;
        for (int j = 0; first && j < i; j++)
            first = *run->cells[j].lacks || !same_but_placement(&run->cells[j].point, &base->point);
        for (int j = i + 1; first && j < run->count; j++) {
            const struct throughput_cell *c = &run->cells[j];
            if (*c->lacks || !same_but_placement(&c->point, &base->point)) continue;
            if (!best || c->tokens_per_s > best->tokens_per_s) best = c;
        }
        if (!best) continue;
        double gain = best->tokens_per_s / base->tokens_per_s - 1;
        const struct throughput_point *p = &best->point;
        str_printf(out,
                   "%s, %d ranks, %lld tokens a rank (%s): best is %s, %s, %d replicas: %+.1f %% "
                   "tokens/s against %s, %s, %d replicas\n",
                   serving_phase_name(p->phase), p->ranks, (long long)p->tokens_per_rank,
                   skew_regime_name(skew_regime_of(base->step.experts_ms / base->step.balanced_ms)),
                   routed_label(routed, p->variant), placement_name(p->placement), p->replicas,
                   100 * gain, routed_label(routed, base->point.variant),
                   placement_name(base->point.placement), base->point.replicas);
    }
}

/* ---- into the database */

static struct throughput_row row_of(const struct request *q, const struct routed *routed,
                                    const struct cluster *cluster,
                                    const struct throughput_cell *cell,
                                    const struct throughput_layer *l) {
    const struct throughput_point *p = &cell->point;
    bool step = l->layer < 0;
    double before_overlap = l->experts_ms + l->comm_ms + l->move_ms + (step ? cell->rest_ms : 0);
    double balanced = l->experts_ms / l->balanced_ms;
    return (struct throughput_row){
        .variant = p->variant + 1,
        .gate = routed_label(routed, p->variant),
        .cluster = *cluster->name ? cluster->name : q->cluster,
        .ranks = p->ranks,
        .placement = placement_name(p->placement),
        .replicas = p->replicas,
        .replica_choice = q->choice,
        .learnt = q->learn,
        .phase = serving_phase_name(p->phase),
        .tokens_per_rank = p->tokens_per_rank,
        .layer = l->layer,
        .time_ms = l->time_ms,
        .tokens_per_s = step ? cell->tokens_per_s : NAN,
        .slowdown = l->experts_ms / l->even_ms,
        .against_balanced = balanced,
        .regime = isfinite(balanced) ? skew_regime_name(skew_regime_of(balanced)) : "",
        .comm_share = l->comm_ms / before_overlap,
        .error_pct = 100 * cluster_error(cluster, (double)cell->group_tokens),
        .experts_ms = l->experts_ms,
        .comm_ms = l->comm_ms,
        .move_ms = l->move_ms,
        .rest_ms = step ? cell->rest_ms : NAN,
        .rank_max = l->rank_max,
        .rank_mean = l->rank_mean,
        .active_max = l->active_max,
        .straggler = l->straggler,
        .dropped = l->dropped,
        .batches = cell->batches,
        .repeats = cell->repeats,
        .extrapolated = cell->extrapolated};
}

static bool write_cell(struct throughput_writer *writer, const struct request *q,
                       const struct routed *routed, const struct cluster *cluster,
                       const struct throughput_cell *cell, int layers, int64_t number,
                       struct err *err) {
    struct throughput_row row = row_of(q, routed, cluster, cell, &cell->step);
    row.cell = number;
    bool ok = throughput_row(writer, &row, err);
    for (int l = 0; ok && l < layers; l++) {
        const struct throughput_layer *at = &cell->layer[l];
        int experts = trace_layer(routed->trace, l)->experts,
            slots = experts + cell->point.replicas;
        row = row_of(q, routed, cluster, cell, at);
        row.cell = number;
        ok =
            throughput_row(writer, &row, err) &&
            throughput_placement(writer, number, at->layer, cell->placed + (int64_t)l * cell->slots,
                                 slots, slots / cell->point.ranks, err);
    }
    return ok;
}

static bool write_all(const struct request *q, const struct routed *routed,
                      const struct cluster *cluster, const struct throughput_run *run,
                      const char *notes, struct err *err) {
    struct str json = {0}, asked = {0};
    cluster_print(cluster, &json);
    describe(q, &asked);
    const struct throughput_record record = {str_text(&json), str_text(&asked), notes};
    struct throughput_writer *writer =
        json.failed || asked.failed
            ? NULL
            : throughput_begin(routed->trace, q->out, q->force, &record, err);
    bool ok = writer != NULL || (json.failed && err_memory(err, "result"));
    for (int i = 0; ok && i < run->count; i++)
        if (!*run->cells[i].lacks)
            ok = write_cell(writer, q, routed, cluster, &run->cells[i], run->layers, i + 1, err);
    if (ok)
        ok = throughput_commit(writer, err);
    else
        throughput_abandon(writer);
    str_free(&json);
    str_free(&asked);
    return ok;
}

static bool print_steps(const struct request *q, const char *path, struct err *err) {
    struct trace *trace = trace_open(path, err);
    struct table *table = trace ? trace_query(trace, "throughput_steps", NULL, 0, err) : NULL;
    bool ok = table && output_table(table, q->output, err);
    table_free(table);
    trace_free(trace);
    return ok;
}

/* ---- the run */

static bool run_cells(const struct request *q, const struct routed *routed,
                      const struct throughput_options *o, struct err *err) {
    struct points points = {0};
    struct throughput_run run = {0};
    struct progress_line line;
    struct str notes = {0};
    bool ok = make_points(q, routed->variants, &points, err);
    if (ok) {
        progress_begin(&line, "throughput");
        ok = throughput_run(&run, routed, points.item, points.count, o, &line.progress, err);
        progress_end(&line);
    }
    int lacking = 0;
    for (int i = 0; ok && i < run.count; i++) lacking += *run.cells[i].lacks != '\0';
    if (ok && lacking == run.count) ok = err_set(err, ERR_USAGE, "%s", run.cells[0].lacks);
    if (ok) {
        note_model(q, o->cluster, o->moe_only, &notes);
        if (routed->scores) str_puts(&notes, str_text(&routed->set.notes));
        note_cells(&run, &notes);
        note_worth(routed, &run, &notes);
        ok = write_all(q, routed, o->cluster, &run, str_text(&notes), err);
    }
    if (ok) print_notes(str_text(&notes));
    str_free(&notes);
    throughput_free(&run);
    free(points.item);
    return ok;
}

static bool run_trace(struct request *q, const struct trace *trace, struct err *err) {
    struct cluster cluster;
    struct model_shape shape;
    struct routed routed = {0};
    struct throughput_options o = {.cluster = &cluster,
                                   .shape = &shape,
                                   .window = q->window,
                                   .refresh = q->refresh,
                                   .groups = (int)q->groups,
                                   .context = q->context,
                                   .capacity = q->capacity,
                                   .overlap = q->overlap,
                                   .moe_only = q->moe_only,
                                   .most_batches = q->batches,
                                   .seed = (uint64_t)q->seed,
                                   .threads = (int)q->threads};
    const struct text_list *rules = &q->list[LIST_BIAS_RULE], *rates = &q->list[LIST_BIAS_RATE];
    struct variant_lists lists = {.gates = {q->gates.items, q->gates.count},
                                  .bias_rules = {rules->items, rules->count},
                                  .rates = {rates->items, rates->count},
                                  .batch_tokens = &q->batch_tokens,
                                  .batch_count = 1};
    bool ok = cluster_find(&cluster, q->cluster, err) &&
              replica_choice_find(q->choice, &o.choice, err) && read_learn(q, trace, &o, err) &&
              read_shape(q, trace, &o.moe_only, &shape, err) &&
              routed_open(&routed, trace, &lists, err);
    if (ok) {
        ok = run_cells(q, &routed, &o, err);
        routed_free(&routed);
    }
    return ok;
}

static bool run_file(struct request *q, const char *path, struct err *err) {
    struct trace *trace = trace_open(path, err);
    if (!trace) return false;
    bool ok = run_trace(q, trace, err);
    trace_free(trace);
    return ok && print_steps(q, q->out ? q->out : path, err);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct request q = {.cluster = "h100",
                        .choice = "even",
                        .learn = "whole",
                        .window = 4,
                        .refresh = 4,
                        .context = 4096,
                        .batches = 16,
                        .batch_tokens = 4096};
    const struct option options[] = {
        {"cluster", OPTION_TEXT, &q.cluster, "NAME|FILE.json", "where it runs (h100)", 0, 0},
        {"gate", OPTION_TEXTS, &q.gates, "SPEC", "gate or preset (native); repeatable", 0, 0},
        {"bias-rule", OPTION_TEXTS, &q.list[LIST_BIAS_RULE], "LIST", "as in replay", 0, 0},
        {"bias-rate", OPTION_TEXTS, &q.list[LIST_BIAS_RATE], "LIST", "as in replay", 0, 0},
        {"batch-tokens", OPTION_INT, &q.batch_tokens, "N", "of the bias rules (4096)", 1, 1e12},
        {"ranks", OPTION_TEXTS, &q.list[LIST_RANKS], "LIST", "expert-parallel ranks (8,32)", 0, 0},
        {"placement", OPTION_TEXTS, &q.list[LIST_PLACEMENT], "LIST",
         "contiguous, shuffled, lpt, eplb, eplb-hierarchical, node-aware (contiguous,eplb)", 0, 0},
        {"replicas", OPTION_TEXTS, &q.list[LIST_REPLICAS], "LIST", "redundant experts (0)", 0, 0},
        {"replica-choice", OPTION_TEXT, &q.choice, "NAME",
         "even, random, least-loaded, local-first (even)", 0, 0},
        {"learn", OPTION_TEXT, &q.learn, "whole|previous|domain=NAME",
         "tokens that placements are learnt on (whole)", 0, 0},
        {"window", OPTION_INT, &q.window, "N", "previous: batches looked back on (4)", 1, 1e9},
        {"refresh", OPTION_INT, &q.refresh, "N", "previous: batches between refreshes (4)", 1, 1e9},
        {"groups", OPTION_INT, &q.groups, "N", "expert groups of a placement (the gate's)", 0,
         65536},
        {"phase", OPTION_TEXTS, &q.list[LIST_PHASE], "LIST", "prefill, decode, train", 0, 0},
        {"tokens", OPTION_TEXTS, &q.list[LIST_TOKENS], "LIST",
         "prefill, train: tokens a rank (2048)", 0, 0},
        {"concurrency", OPTION_TEXTS, &q.list[LIST_CONCURRENCY], "LIST",
         "decode: sequences a rank (64)", 0, 0},
        {"context", OPTION_REAL, &q.context, "N", "tokens that attention looks at (4096)", 1, 1e8},
        {"capacity", OPTION_REAL, &q.capacity, "X", "train: drops beyond X times the mean", 0, 1e6},
        {"config", OPTION_TEXT, &q.config, "CONFIG.json", "of the model (the captured one)", 0, 0},
        {"hidden", OPTION_REAL, &q.hidden, "N", "hidden size instead of the model's", 1, 1e6},
        {"inter", OPTION_REAL, &q.inter, "N", "experts' intermediate size instead", 1, 1e6},
        {"overlap", OPTION_FLAG, &q.overlap, NULL, "communication behind computation", 0, 0},
        {"moe-only", OPTION_FLAG, &q.moe_only, NULL, "leave out the rest of the step", 0, 0},
        {"batches", OPTION_INT, &q.batches, "N", "at most N batches a cell (16)", 1, 1e9},
        {"seed", OPTION_INT, &q.seed, "N", "of shuffles and random choices (0)", 0, 9e18},
        {"out", OPTION_TEXT, &q.out, "RESULT.db", "write there, not into RUN.db", 0, 0},
        {"threads", OPTION_INT, &q.threads, "N", "0 = one per CPU (0)", 0, 4096},
        {"force", OPTION_FLAG, &q.force, NULL, "replace an existing RESULT.db", 0, 0},
        OPTION_OUTPUT(q.output),
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done && rest.count != 1)
        ok = err_set(err, ERR_USAGE, "found %d files, expected one RUN.db", rest.count);
    if (ok && !done)
        ok = output_is_no_input(q.out, rest.items, 1, err) && read_lists(&q, err) &&
             run_file(&q, rest.items[0], err);
    for (int i = 0; i < LISTS; i++) {
        text_list_free(&q.list[i]);
        free(q.storage[i]);
    }
    text_list_free(&q.gates);
    text_list_free(&rest);
    return ok;
}

const struct command command_throughput = {
    .name = "throughput",
    .arguments = "RUN.db",
    .summary = "seconds and tokens/s of a trace on a cluster, per gate and placement",
    .example = "steelyard throughput RUN.db --cluster h100 --ranks 8,16,32,64 --replicas 0,32",
    .run = run};
