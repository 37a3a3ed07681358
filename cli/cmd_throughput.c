/* cmd_throughput.c - `steelyard throughput`: what the load of a trace costs on a cluster */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/table.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/throughput_notes.h"
#include "traces/query.h"
#include "traces/throughput_result.h"

/* From --config, else what the capture recorded; --hidden and --inter override. */
static bool read_shape(const struct throughput_request *q, const struct trace *trace,
                       bool *moe_only, struct model_shape *shape, struct err *err) {
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

/* ---- into the database */

static struct throughput_row row_of(const struct throughput_request *q, const struct routed *routed,
                                    const struct cluster *cluster,
                                    const struct throughput_cell *cell,
                                    const struct throughput_layer *l, const char *learnt) {
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
        .learnt = learnt,
        .refresh = p->learn == LEARN_PREVIOUS ? p->refresh : -1,
        .context = q->moe_only ? NAN : p->context,
        .load = p->load.name,
        .load_distance = cell->distance,
        .bias_rule = routed_bias_rule(routed, p->variant),
        .bias_rate = routed_bias_rate(routed, p->variant),
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

/* Copies from rank to rank in one batch, all layers together, where the cell keeps them. */
static bool write_traffic(struct throughput_writer *writer, const struct throughput_options *o,
                          const struct throughput_cell *cell, int layers, int64_t number,
                          struct err *err) {
    int ranks = cell->point.ranks, per_node = o->cluster->device.gpus_per_node;
    double bytes = o->shape->hidden * o->cluster->comm.dispatch_bytes;
    for (int i = 0; cell->traffic && i < ranks * ranks; i++) {
        double copies = 0;
        for (int l = 0; l < layers; l++) copies += cell->traffic[(int64_t)l * ranks * ranks + i];
        const struct throughput_traffic traffic = {.cell = number,
                                                   .from = i / ranks,
                                                   .to = i % ranks,
                                                   .from_node = i / ranks / per_node,
                                                   .to_node = i % ranks / per_node,
                                                   .copies = copies,
                                                   .mbytes = copies * bytes * 1e-6};
        if (!throughput_traffic(writer, &traffic, err)) return false;
    }
    return true;
}

static bool write_cell(struct throughput_writer *writer, const struct throughput_request *q,
                       const struct routed *routed, const struct throughput_options *o,
                       const struct throughput_cell *cell, int layers, int64_t number,
                       struct err *err) {
    struct str learnt = {0};
    throughput_learn_name(&cell->point, routed->trace, &learnt);
    struct throughput_row row = row_of(q, routed, o->cluster, cell, &cell->step, str_text(&learnt));
    row.cell = number;
    bool ok = (!learnt.failed || err_memory(err, "result")) && throughput_row(writer, &row, err) &&
              write_traffic(writer, o, cell, layers, number, err);
    for (int l = 0; ok && l < layers; l++) {
        const struct throughput_layer *at = &cell->layer[l];
        int experts = trace_layer(routed->trace, l)->experts,
            slots = experts + cell->point.replicas;
        row = row_of(q, routed, o->cluster, cell, at, str_text(&learnt));
        row.cell = number;
        ok =
            throughput_row(writer, &row, err) &&
            throughput_placement(writer, number, at->layer, cell->placed + (int64_t)l * cell->slots,
                                 slots, slots / cell->point.ranks, err);
    }
    str_free(&learnt);
    return ok;
}

static bool write_all(const struct throughput_request *q, const struct routed *routed,
                      const struct throughput_options *o, const struct throughput_run *run,
                      const char *notes, struct err *err) {
    struct str json = {0}, asked = {0};
    cluster_print(o->cluster, &json);
    throughput_request_describe(q, &asked);
    const struct throughput_record record = {str_text(&json), str_text(&asked), notes};
    struct throughput_writer *writer =
        json.failed || asked.failed
            ? NULL
            : throughput_begin(routed->trace, q->out, q->force, &record, err);
    bool ok = writer != NULL || (json.failed && err_memory(err, "result"));
    for (int i = 0; ok && i < run->count; i++)
        if (!*run->cells[i].lacks)
            ok = write_cell(writer, q, routed, o, &run->cells[i], run->layers, i + 1, err);
    if (ok)
        ok = throughput_commit(writer, err);
    else
        throughput_abandon(writer);
    str_free(&json);
    str_free(&asked);
    return ok;
}

static bool print_steps(const struct throughput_request *q, const char *path, struct err *err) {
    struct trace *trace = trace_open(path, err);
    struct table *table = trace ? trace_query(trace, "throughput_steps", NULL, 0, err) : NULL;
    bool ok = table && output_table(table, q->output, err);
    table_free(table);
    trace_free(trace);
    return ok;
}

/* ---- the run */

static bool run_cells(const struct throughput_request *q, const struct routed *routed,
                      const struct throughput_options *o, struct err *err) {
    struct throughput_points points = {0};
    struct throughput_run run = {0};
    struct progress_line line;
    struct str notes = {0};
    bool ok = throughput_request_points(q, routed->trace, routed->variants, &points, err);
    if (ok) {
        progress_begin(&line, "throughput");
        ok = throughput_run(&run, routed, points.item, points.count, o, &line.progress, err);
        progress_end(&line);
    }
    int lacking = 0;
    for (int i = 0; ok && i < run.count; i++) lacking += *run.cells[i].lacks != '\0';
    if (ok && lacking == run.count) ok = err_set(err, ERR_USAGE, "%s", run.cells[0].lacks);
    if (ok) {
        throughput_notes(q, routed, &run, o->cluster, o->moe_only, &notes);
        ok = write_all(q, routed, o, &run, str_text(&notes), err);
    }
    if (ok) print_notes(str_text(&notes));
    str_free(&notes);
    throughput_free(&run);
    free(points.item);
    return ok;
}

static bool run_trace(struct throughput_request *q, const struct trace *trace, struct err *err) {
    struct cluster cluster;
    struct model_shape shape;
    struct routed routed = {0};
    struct hash_tables *tables = NULL;
    struct throughput_options o = {.cluster = &cluster,
                                   .shape = &shape,
                                   .window = q->window,
                                   .groups = (int)q->groups,
                                   .capacity = q->capacity,
                                   .pad = q->pad,
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
                                  .batch_count = 1,
                                  .seed = (uint64_t)q->seed};
    if (q->hash_table && !(tables = hash_tables_open(q->hash_table, err))) return false;
    lists.tables = tables;
    bool ok =
        cluster_find(&cluster, q->cluster, err) && replica_choice_find(q->choice, &o.choice, err) &&
        read_shape(q, trace, &o.moe_only, &shape, err) && routed_open(&routed, trace, &lists, err);
    if (ok) {
        ok = run_cells(q, &routed, &o, err);
        routed_free(&routed);
    }
    hash_tables_close(tables);
    return ok;
}

static bool run_file(struct throughput_request *q, const char *path, struct err *err) {
    struct trace *trace = trace_open(path, err);
    if (!trace) return false;
    bool ok = run_trace(q, trace, err);
    trace_free(trace);
    return ok && print_steps(q, q->out ? q->out : path, err);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct throughput_request q = {
        .cluster = "h100", .choice = "even", .window = 4, .batches = 16, .batch_tokens = 4096};
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
        {"learn", OPTION_TEXTS, &q.list[LIST_LEARN], "LIST",
         "tokens that placements are learnt on: whole, previous, domain=NAME (whole)", 0, 0},
        {"window", OPTION_INT, &q.window, "N", "previous: batches looked back on (4)", 1, 1e9},
        {"refresh", OPTION_TEXTS, &q.list[LIST_REFRESH], "LIST",
         "previous: batches between refreshes (4)", 0, 0},
        {"groups", OPTION_INT, &q.groups, "N", "expert groups of a placement (the gate's)", 0,
         65536},
        {"phase", OPTION_TEXTS, &q.list[LIST_PHASE], "LIST", "prefill, decode, train", 0, 0},
        {"tokens", OPTION_TEXTS, &q.list[LIST_TOKENS], "LIST",
         "prefill, train: tokens a rank (2048)", 0, 0},
        {"concurrency", OPTION_TEXTS, &q.list[LIST_CONCURRENCY], "LIST",
         "decode: sequences a rank (64)", 0, 0},
        {"context", OPTION_TEXTS, &q.list[LIST_CONTEXT], "LIST",
         "tokens that attention looks at (4096)", 0, 0},
        {"load", OPTION_TEXTS, &q.list[LIST_LOAD], "LIST",
         "trace; for comparison resampled, uniform, balanced, power_law_1.2 (trace)", 0, 0},
        {"capacity", OPTION_REAL, &q.capacity, "X", "train: drops beyond X times the mean", 0, 1e6},
        {"config", OPTION_TEXT, &q.config, "CONFIG.json", "of the model (the captured one)", 0, 0},
        {"hidden", OPTION_REAL, &q.hidden, "N", "hidden size instead of the model's", 1, 1e6},
        {"inter", OPTION_REAL, &q.inter, "N", "experts' intermediate size instead", 1, 1e6},
        {"pad", OPTION_FLAG, &q.pad, NULL,
         "train: experts with a capacity (this or the gate's) compute all of it", 0, 0},
        {"overlap", OPTION_FLAG, &q.overlap, NULL, "communication behind computation", 0, 0},
        {"moe-only", OPTION_FLAG, &q.moe_only, NULL, "leave out the rest of the step", 0, 0},
        {"batches", OPTION_INT, &q.batches, "N", "at most N batches a cell (16)", 1, 1e9},
        {"seed", OPTION_INT, &q.seed, "N", "of shuffles and random choices (0)", 0, 9e18},
        {"hash-table", OPTION_TEXT, &q.hash_table, "FILE",
         "tables for fn=hash-table (safetensors with layers.N...tid2eid)", 0, 0},
        {"out", OPTION_TEXT, &q.out, "RESULT.db",
         "into this one of the same trace, or a new one; else into RUN.db", 0, 0},
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
        ok = output_is_no_input(q.out, rest.items, 1, err) && throughput_request_lists(&q, err) &&
             run_file(&q, rest.items[0], err);
    throughput_request_free(&q);
    text_list_free(&rest);
    return ok;
}

const struct command command_throughput = {
    .name = "throughput",
    .arguments = "RUN.db",
    .summary = "seconds and tokens/s of a trace on a cluster, per gate and placement",
    .example = "steelyard throughput RUN.db --cluster h100 --ranks 8,16,32,64 --replicas 0,32",
    .run = run};
