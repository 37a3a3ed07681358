/* closed_loop.c - running a model under other gates for real: `capture --gate` */
#include "cli/closed_loop.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/hash_tables.h"
#include "sim/source.h"
#include "sim/token_ids.h"
#include "sim/variant.h"

/* The one variant that was asked, resolved at every router of the engine. */
struct plan {
    struct source source;
    struct source_arrays arrays;
    struct source_layer *layer;
    struct variant_set set;
    struct gate *gate;          /* [routers] */
    const float **bias;         /* [routers] */
    float *start;               /* [sum of E] where the captured bias is not taken */
    struct hash_tables *tables; /* of the file, or NULL */
    struct route_table *table;  /* [routers] */
    struct token_ids ids;       /* where a gate balances by them */
    struct arena arena;         /* tables made here */
};

static bool read_start(const char *word, enum bias_start *start, struct err *err) {
    *start = START_DEFAULT;
    if (!word) return true;
    for (*start = START_ZERO; *start <= START_CAPTURED; (*start)++)
        if (strcmp(word, bias_start_name(*start)) == 0) return true;
    return err_set(err, ERR_USAGE, "--bias-start: found \"%.40s\", expected zero or captured",
                   word);
}

static bool describe(struct plan *plan, const struct engine_info *info, struct err *err) {
    size_t routers = (size_t)info->routers;
    int64_t experts = 0;
    plan->layer = calloc(routers, sizeof *plan->layer);
    plan->gate = calloc(routers, sizeof *plan->gate);
    plan->bias = calloc(routers, sizeof *plan->bias);
    plan->table = calloc(routers, sizeof *plan->table);
    if (!plan->layer || !plan->gate || !plan->bias || !plan->table) return err_memory(err, "gates");
    for (int r = 0; r < info->routers; r++) {
        const struct engine_router *router = &info->router[r];
        plan->layer[r] = (struct source_layer){.layer = router->layer,
                                               .experts = router->experts,
                                               .native = router->gate,
                                               .bias = router->bias,
                                               .table = router->table};
        experts += router->experts;
    }
    plan->start = calloc((size_t)experts, sizeof *plan->start);
    if (!plan->start) return err_memory(err, "gates");
    /* tokens: as many as any batch, so that its bound holds whatever the corpus is */
    source_of_arrays(&plan->source, &plan->arrays, INT64_MAX, plan->layer, info->routers);
    return true;
}

static bool build(struct plan *plan, const struct closed_loop_words *words, struct err *err) {
    struct variant_lists lists = {.gates = {&words->gate, words->gate != NULL},
                                  .bias_rules = {&words->bias_rule, words->bias_rule != NULL},
                                  .rates = {&words->bias_rate, words->bias_rate != NULL},
                                  .batch_tokens = &words->batch_tokens,
                                  .batch_count = words->batch_tokens > 0};
    if (words->hash_table && !(plan->tables = hash_tables_open(words->hash_table, err)))
        return false;
    lists.tables = plan->tables;
    if (!read_start(words->bias_start, &lists.start, err) ||
        !variant_set_build(&plan->set, &lists, &plan->source, err))
        return false;
    const struct variant *v = &plan->set.variant[0];
    if (v->schedule.automatic || v->schedule.pieces > 1)
        return err_set(err, ERR_USAGE,
                       "--bias-rate: found \"%.40s\", expected one number in a closed loop",
                       words->bias_rate);
    if (words->batch_tokens && !variant_at(&plan->set, 0, 0)->rule->update)
        return err_set(err, ERR_USAGE,
                       "--batch-tokens: found a bias rule that does not update, expected "
                       "--bias-rule sign (or another that does)");
    return true;
}

/* What a replay settles later is settled here: the seed of draws, and the table of a balanced hash
 * layer, which follows from the text. */
static bool settle(struct plan *plan, const struct closed_loop_words *words, int vocab,
                   struct err *err) {
    if (!token_ids_read(&plan->ids, &plan->set, &plan->source, err)) return false;
    for (int r = 0; r < plan->source.layers; r++) {
        struct gate *gate = &plan->gate[r];
        bool draws = gate_needs_rows(gate) && !gate_hashes(gate);
        plan->table[r] = variant_at(&plan->set, 0, r)->table;
        if (draws && !gate->seeded) {
            gate->seeded = true;
            gate->seed = (int32_t)words->seed;
        }
        if (gate->fn != GATE_BALANCED_HASH) continue;
        gate->fn = GATE_HASH_TABLE;
        plan->table[r].ids = vocab;
        plan->table[r].expert =
            token_ids_balance(&plan->ids, vocab, plan->layer[r].experts, gate->topk, &plan->arena);
        if (!plan->table[r].expert) return err_memory(err, "hash table");
    }
    return true;
}

/* Gate and bias at the start of each router. */
static void start_biases(struct plan *plan) {
    float *next = plan->start;
    for (int r = 0; r < plan->source.layers; r++) {
        const struct variant_layer *at = variant_at(&plan->set, 0, r);
        int experts = plan->layer[r].experts;
        plan->gate[r] = at->gate;
        if (!at->gate.bias) continue;
        plan->bias[r] = at->start == START_CAPTURED ? plan->layer[r].bias : next;
        for (int e = 0; e < experts; e++) next[e] = at->rule->multiplies ? 1.0f : 0.0f;
        next += experts;
    }
}

static bool record(const struct plan *plan, const struct closed_loop_words *words,
                   struct trace_loop *loop, struct err *err) {
    const struct variant *v = &plan->set.variant[0];
    const char *gate = words->gate ? words->gate : "native";
    const struct bias_rule *rule = variant_at(&plan->set, 0, 0)->rule;
    *loop = (struct trace_loop){.closed = true,
                                .rule = rule->update ? rule : NULL,
                                .rate = isnan(v->rate) ? 0 : v->rate,
                                .batch_tokens = v->batch_tokens};
    if (strlen(gate) >= sizeof loop->gate || strpbrk(gate, "\n\r"))
        return err_set(err, ERR_USAGE, "--gate: found %zu characters, expected one line of %d",
                       strlen(gate), (int)sizeof loop->gate - 1);
    snprintf(loop->gate, sizeof loop->gate, "%s", gate);
    snprintf(loop->rule_name, sizeof loop->rule_name, "%s", v->rule);
    snprintf(loop->start, sizeof loop->start, "%s", bias_start_name(v->start));
    return true;
}

static void plan_free(struct plan *plan) {
    token_ids_free(&plan->ids);
    variant_set_free(&plan->set);
    hash_tables_close(plan->tables);
    arena_free(&plan->arena);
    free(plan->layer);
    free(plan->gate);
    free(plan->bias);
    free(plan->start);
    free(plan->table);
}

bool closed_loop_set(struct engine *engine, const struct closed_loop_words *words,
                     const int32_t *id, int64_t tokens, struct trace_loop *loop, struct str *notes,
                     struct err *err) {
    struct plan plan = {.arrays = {.token_id = id}};
    *loop = (struct trace_loop){0};
    if (!words->gate && !words->bias_rule && !words->bias_rate && !words->bias_start &&
        !words->batch_tokens)
        return !words->hash_table ||
               err_set(err, ERR_USAGE,
                       "--hash-table: found no --gate, expected one with fn=hash-table");
    arena_init(&plan.arena, "gates");
    bool ok = describe(&plan, engine_info(engine), err) && build(&plan, words, err) &&
              record(&plan, words, loop, err);
    if (ok) {
        start_biases(&plan);
        plan.source.tokens = tokens;
        ok = settle(&plan, words, engine_info(engine)->vocab, err);
    }
    if (ok) {
        const struct engine_gates gates = {.gate = plan.gate,
                                           .bias = plan.bias,
                                           .table = plan.table,
                                           .rule = loop->rule,
                                           .rate = loop->rate,
                                           .batch_tokens = loop->batch_tokens};
        str_puts(notes, str_text(&plan.set.notes));
        ok = engine_regate(engine, &gates, err);
    }
    plan_free(&plan);
    return ok;
}

bool closed_loop_draws(const struct engine *engine) {
    const struct engine_info *info = engine_info(engine);
    bool draws = false;
    for (int r = 0; r < info->routers; r++) {
        const struct gate *gate = &info->router[r].gate;
        draws = draws || (gate_needs_rows(gate) && !gate_hashes(gate));
    }
    return draws;
}

static bool repeat_layer(struct engine *engine, const struct trace *trace, int r, struct err *err) {
    struct trace_chunk chunk = {0};
    struct trace_cursor *cursor = trace_cursor_open(trace, r, err);
    bool ok = cursor != NULL;
    do {
        ok = ok && trace_cursor_next(cursor, &chunk, err) &&
             (!chunk.tokens ||
              engine_repeat(engine, r, chunk.first, chunk.tokens, chunk.logits, err));
    } while (ok && chunk.tokens);
    trace_cursor_free(cursor);
    return ok;
}

bool closed_loop_resume(struct engine *engine, const struct trace_loop *loop,
                        const struct trace *trace, struct err *err) {
    if (!loop->rule || trace_tokens(trace) == 0) return true;
    if (trace_capture(trace)->store != TRACE_F32)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: --resume with a bias that moves: found scores stored as %s, expected "
                       "f32 (--force begins again)",
                       trace_path(trace), trace_store_name(trace_capture(trace)->store));
    for (int r = 0; r < trace_layers(trace); r++)
        if (!repeat_layer(engine, trace, r, err)) return false;
    return true;
}
