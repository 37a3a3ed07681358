/* cmd_replay.c - `steelyard replay`: recorded router scores under other gates and bias rules */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/table.h"
#include "cli/commands.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "sim/auto_rate.h"
#include "sim/outcome.h"
#include "sim/replay.h"
#include "sim/source.h"
#include "sim/variant.h"
#include "traces/loop.h"
#include "traces/query.h"
#include "traces/result.h"
#include "traces/trace.h"

enum {
    LISTS = 7
}; /* comma lists: score, groups, norm, bias-rule, bias-rate, batch-tokens, ranks */

struct replay_command {
    struct text_list gates, list[LISTS];
    char *storage[LISTS]; /* owned, of the split lists */
    const char *bias_start, *order, *out, *hash_table;
    struct hash_tables *tables; /* owned */
    int64_t seed, threads;
    bool force, dynamics, losses, optimum;
    struct output_choice choice;
    int64_t *batch, *ranks; /* owned */
    struct variant_lists lists;
};

/* ---- the lists */

static bool read_ints(const struct text_list *list, const char *name, int64_t max, int64_t **out,
                      struct err *err) {
    *out = calloc((size_t)list->count + 1, sizeof **out);
    if (!*out) return err_memory(err, "options");
    for (int i = 0; i < list->count; i++)
        if (!parse_int(list->items[i], name, 1, max, &(*out)[i], err)) return false;
    return true;
}

static bool read_words(struct replay_command *c, struct err *err) {
    bool zero = c->bias_start && strcmp(c->bias_start, "zero") == 0;
    bool captured = c->bias_start && strcmp(c->bias_start, "captured") == 0;
    if (c->bias_start && !zero && !captured)
        return err_set(err, ERR_USAGE, "--bias-start: found \"%.40s\", expected zero or captured",
                       c->bias_start);
    if (strcmp(c->order, "captured") != 0 && strcmp(c->order, "shuffled") != 0)
        return err_set(err, ERR_USAGE, "--order: found \"%.40s\", expected captured or shuffled",
                       c->order);
    c->lists.start = zero ? START_ZERO : captured ? START_CAPTURED : START_DEFAULT;
    return true;
}

static struct texts texts_of(const struct text_list *list) {
    return (struct texts){list->items, list->count};
}

static bool read_lists(struct replay_command *c, struct err *err) {
    for (int i = 0; i < LISTS; i++)
        if (!text_list_split(&c->list[i], &c->storage[i], err)) return false;
    if (!read_words(c, err) ||
        !read_ints(&c->list[5], "--batch-tokens", INT64_C(1) << 40, &c->batch, err) ||
        !read_ints(&c->list[6], "--ranks", GATE_MAX_EXPERTS, &c->ranks, err))
        return false;
    c->lists.gates = texts_of(&c->gates);
    c->lists.scores = texts_of(&c->list[0]);
    c->lists.groups = texts_of(&c->list[1]);
    c->lists.norms = texts_of(&c->list[2]);
    c->lists.bias_rules = texts_of(&c->list[3]);
    c->lists.rates = texts_of(&c->list[4]);
    c->lists.batch_tokens = c->batch;
    c->lists.batch_count = c->list[5].count;
    c->lists.ranks = c->ranks;
    c->lists.ranks_count = c->list[6].count;
    c->lists.seed = (uint64_t)c->seed;
    if (c->hash_table && !(c->tables = hash_tables_open(c->hash_table, err))) return false;
    c->lists.tables = c->tables;
    return true;
}

static void put_list(struct str *out, const char *name, const struct text_list *list) {
    for (int i = 0; i < list->count; i++) str_printf(out, "%s%s", i ? "," : name, list->items[i]);
}

/* What was asked and decides the numbers, in one order. */
static void describe_options(const struct replay_command *c, struct str *out) {
    static const char *const names[LISTS] = {" --score ",     " --groups ",    " --norm ",
                                             " --bias-rule ", " --bias-rate ", " --batch-tokens ",
                                             " --ranks "};
    str_puts(out, "replay");
    for (int i = 0; i < c->gates.count; i++) str_printf(out, " --gate %s", c->gates.items[i]);
    for (int i = 0; i < LISTS; i++) put_list(out, names[i], &c->list[i]);
    if (c->hash_table) str_printf(out, " --hash-table %s", c->hash_table);
    if (c->bias_start) str_printf(out, " --bias-start %s", c->bias_start);
    bool shuffled = strcmp(c->order, "shuffled") == 0;
    if (shuffled) str_puts(out, " --order shuffled");
    if (shuffled || c->seed) str_printf(out, " --seed %lld", (long long)c->seed);
}

/* ---- the run */

/* Variants with their rates, and how to run them; everything owned. */
struct plan {
    struct variant_set set;
    struct replay_options options;
    int64_t *order;
};

static void plan_free(struct plan *plan) {
    variant_set_free(&plan->set);
    free(plan->order);
}

/* "native" is constant in a replay: in a closed loop whose bias moved it is not what ran. */
static bool note_loop(const struct trace *trace, struct str *notes, struct err *err) {
    struct trace_loop loop;
    if (!trace_loop_read(trace_capture(trace)->options, &loop, err)) return false;
    if (!loop.rule) return true;
    str_printf(notes, "closed-loop capture: its bias moved (--bias-rule %s", loop.rule_name);
    if (loop.rule->needs_rate) str_printf(notes, " --bias-rate %.9g", loop.rate);
    str_printf(notes,
               " --batch-tokens %lld, from %s); here the native gate has the bias at the start\n",
               (long long)loop.batch_tokens, loop.start);
    return true;
}

/* What the measures of a trace without scores leave out. */
static void note_missing(const struct replay_command *c, const struct source *source,
                         struct str *notes) {
    if (!source->ids) return;
    str_puts(notes,
             source->counted
                 ? "counts only: measures of the load over all tokens and ranks; those of "
                   "batches (maxvio_batch, efficiency) and tokens (ties, group_escapes, "
                   "agreement, mass_retained) are missing, as is the weight of experts\n"
                 : "chosen experts only: ties, group_escapes and mass_retained are missing\n");
    if (source->counted && c->dynamics)
        str_puts(notes, "--dynamics needs balance batches: counts have none\n");
    if (c->losses || c->optimum)
        str_puts(notes, "--losses and --optimum need router scores: nothing is computed\n");
}

static bool make_plan(struct replay_command *c, const struct source *source, struct plan *plan,
                      struct err *err) {
    if (!variant_set_build(&plan->set, &c->lists, source, err) ||
        !note_loop(source->context, &plan->set.notes, err))
        return false;
    note_missing(c, source, &plan->set.notes);
    if (strcmp(c->order, "shuffled") == 0) {
        plan->order = replay_shuffle(source->tokens, (uint64_t)c->seed, err);
        if (!plan->order) return false;
    }
    return true;
}

/* Rates that are looked for are found here, before anything is written. */
static bool find_rates(struct replay_command *c, const struct source *source,
                       const struct progress *progress, struct plan *plan, struct err *err) {
    plan->options = (struct replay_options){
        .threads = (int)c->threads, .order = plan->order, .processes = processes_here()};
    if (!auto_rates(&plan->set, source, &plan->options, progress, err)) return false;
    plan->options.losses = c->losses;
    plan->options.optimum = c->optimum;
    plan->options.documents = outcome_keeps_documents(&plan->set, source);
    if (!plan->options.documents)
        str_puts(&plan->set.notes, "loads per document are not kept: too many documents and "
                                   "variants (use fewer variants at a time)\n");
    return true;
}

static struct result *make_result(struct replay_command *c, const struct trace *trace,
                                  const struct plan *plan, const struct source *source,
                                  struct err *err) {
    struct str asked = {0};
    describe_options(c, &asked);
    if (asked.failed || plan->set.notes.failed) {
        str_free(&asked);
        err_memory(err, "notes");
        return NULL;
    }
    const struct result_experiment experiment = {.options = str_text(&asked),
                                                 .order = c->order,
                                                 .seed = (uint64_t)c->seed,
                                                 .tokens = source->tokens,
                                                 .warnings = str_text(&plan->set.notes)};
    struct result *result = result_create(trace, c->out, c->force, &experiment, err);
    str_free(&asked);
    return result;
}

/* A trace keeps the results of one replay: a reader of the former ones must be told. */
static bool note_replaced(const struct replay_command *c, struct trace *trace, struct str *notes,
                          struct err *err) {
    if (c->out) return true;
    struct table *former = trace_query(trace, "replay_experiment", NULL, 0, err);
    if (former && table_rows(former) > 0)
        str_printf(notes, "replaces the results of an earlier replay in %s\n", trace_path(trace));
    table_free(former);
    return former != NULL;
}

static bool leads(void) { return processes_alone(processes_here()) || processes_here()->rank == 0; }

/* The result is written by one process. */
static bool begin_result(struct replay_command *c, struct trace *trace, const struct source *source,
                         struct plan *plan, struct outcome *outcome, struct err *err) {
    struct result *result = make_result(c, trace, plan, source, err);
    return result && outcome_begin(outcome, result, &plan->set, source->documents, err);
}

/* Replays the variants and commits; the notes end on stderr. Collective. */
static bool replay_into(struct replay_command *c, struct trace *trace, const struct source *source,
                        struct plan *plan, struct err *err) {
    struct processes *all = processes_here();
    struct outcome outcome = {0};
    struct str replaced = {0};
    struct progress_line line;
    progress_begin(&line, leads() ? "replay" : NULL);
    bool ok = find_rates(c, source, &line.progress, plan, err);
    if (ok && leads())
        ok = note_replaced(c, trace, &replaced, err) &&
             begin_result(c, trace, source, plan, &outcome, err);
    ok = processes_agree(all, ok, err);
    if (ok) {
        const struct replay_sink sink = outcome_sink(&outcome);
        ok = replay_run(&plan->set, source, &plan->options, &sink, &line.progress, err);
    }
    progress_end(&line);
    ok = ok && (!leads() || outcome_commit(&outcome, err));
    if (ok && leads()) {
        print_notes(str_text(&replaced));
        print_notes(str_text(&plan->set.notes));
        print_notes(str_text(&outcome.notes));
    }
    str_free(&replaced);
    outcome_abandon(&outcome);
    return ok;
}

static bool print_summary(const struct replay_command *c, const char *path, struct err *err) {
    const char *view = c->dynamics  ? "replay_dynamics"
                       : c->losses  ? "replay_losses"
                       : c->optimum ? "replay_optima"
                                    : "replay_means";
    struct trace *trace = trace_open(path, err);
    if (!trace) return false;
    struct table *table = trace_query(trace, view, NULL, 0, err);
    bool ok = table && output_table(table, c->choice, err);
    table_free(table);
    trace_free(trace);
    return ok;
}

/* What is replayed, under which variants: what each process finds out by itself. */
static bool open_plan(struct replay_command *c, struct trace *trace, struct source *source,
                      struct plan *plan, struct err *err) {
    bool ids = trace_layers(trace) > 0 && trace_layer(trace, 0)->holds != TRACE_SCORES;
    return (ids ? source_open_choices(source, trace, err)
                : source_open_trace(source, trace, NULL, err)) &&
           make_plan(c, source, plan, err);
}

/* Do all processes replay the same trace under the same options? */
static bool same_work(const struct replay_command *c, const struct trace *trace, struct err *err) {
    struct str work = {0};
    describe_options(c, &work);
    str_printf(&work, " %s", trace_identity(trace));
    bool ok = processes_same(processes_here(), str_text(&work), "trace and options", err);
    str_free(&work);
    return ok;
}

static bool replay_trace(struct replay_command *c, const char *path, struct err *err) {
    struct source source = {0};
    struct plan plan = {0};
    struct trace *trace = trace_open(path, err);
    bool ok = trace && open_plan(c, trace, &source, &plan, err);
    ok = processes_agree(processes_here(), ok, err) && same_work(c, trace, err) &&
         replay_into(c, trace, &source, &plan, err);
    plan_free(&plan);
    source_free(&source);
    trace_free(trace);
    return ok && (!leads() || print_summary(c, c->out ? c->out : path, err));
}

static void release(struct replay_command *c) {
    for (int i = 0; i < LISTS; i++) {
        text_list_free(&c->list[i]);
        free(c->storage[i]);
    }
    hash_tables_close(c->tables);
    text_list_free(&c->gates);
    free(c->batch);
    free(c->ranks);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct replay_command c = {.order = "captured"};
    struct text_list rest = {0};
    const struct option options[] = {
        {"gate", OPTION_TEXTS, &c.gates, "SPEC",
         "gate or preset, \"native\" = as captured (default); \"native,softmax\" overrides", 0, 0},
        {"score", OPTION_TEXTS, &c.list[0], "LIST", "override the score of each gate", 0, 0},
        {"groups", OPTION_TEXTS, &c.list[1], "LIST",
         "override groups: none, N:KEEP:RULE, device:M or node:M (of --ranks)", 0, 0},
        {"norm", OPTION_TEXTS, &c.list[2], "LIST", "override norm: none, sum:EPS, ...", 0, 0},
        {"bias-rule", OPTION_TEXTS, &c.list[3], "LIST",
         "default: frozen for the captured score with its bias, else none", 0, 0},
        {"bias-rate", OPTION_TEXTS, &c.list[4], "LIST",
         "0.001, or 0.001@0,0@80% (steps), or auto (looks for the best)", 0, 0},
        {"bias-start", OPTION_TEXT, &c.bias_start, "zero|captured", "of rules that update (zero)",
         0, 0},
        {"batch-tokens", OPTION_TEXTS, &c.list[5], "LIST", "tokens of a balance batch (4096)", 0,
         0},
        {"order", OPTION_TEXT, &c.order, "captured|shuffled", "of the tokens (captured)", 0, 0},
        {"seed", OPTION_INT, &c.seed, "N", "of the shuffle, of noise= and second=random (0)", 0,
         9e18},
        {"hash-table", OPTION_TEXT, &c.hash_table, "FILE",
         "tables for fn=hash-table (safetensors with layers.N...tid2eid)", 0, 0},
        {"ranks", OPTION_TEXTS, &c.list[6], "LIST",
         "experts lie on R ranks in equal blocks (the largest divisor up to 8)", 0, 0},
        {"out", OPTION_TEXT, &c.out, "RESULT.db", "write there, not into RUN.db", 0, 0},
        {"threads", OPTION_INT, &c.threads, "N", "0 = one per CPU (0)", 0, 4096},
        {"force", OPTION_FLAG, &c.force, NULL, "replace an existing RESULT.db", 0, 0},
        {"dynamics", OPTION_FLAG, &c.dynamics, NULL,
         "print settling and oscillation over batches instead of the means", 0, 0},
        {"losses", OPTION_FLAG, &c.losses, NULL,
         "compute and print what training losses for balance would be worth", 0, 0},
        {"optimum", OPTION_FLAG, &c.optimum, NULL,
         "compare the last batch with the best that equal loads allow (slow)", 0, 0},
        OPTION_OUTPUT(c.choice),
        {0}};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done && rest.count != 1)
        ok = err_set(err, ERR_USAGE, "found %d files, expected one RUN.db", rest.count);
    if (ok && !done) ok = output_is_no_input(c.out, rest.items, 1, err) && read_lists(&c, err);
    ok = processes_agree(processes_here(), ok, err);
    if (ok && !done) ok = replay_trace(&c, rest.items[0], err);
    text_list_free(&rest);
    release(&c);
    return processes_agree(processes_here(), ok, err);
}

const struct command command_replay = {
    .name = "replay",
    .arguments = "RUN.db",
    .summary = "run recorded router scores under other gates and bias rules",
    .example = "steelyard replay RUN.db --score softmax,sigmoid --bias-rule none,sign "
               "--bias-rate 0.001,0.01 --out RESULT.db",
    .run = run,
    .divides = true};
