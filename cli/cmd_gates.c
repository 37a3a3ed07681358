/* cmd_gates.c - `steelyard gates`: presets, bias rules, and what a specification means step by step
 */
#include <string.h>

#include "base/table.h"
#include "cli/commands.h"
#include "router/bias.h"
#include "router/gate.h"
#include "sim/losses.h"

static const struct table_column columns[] = {{"kind", "", TABLE_TEXT},
                                              {"name", "", TABLE_TEXT},
                                              {"meaning", "", TABLE_TEXT},
                                              {"source", "", TABLE_TEXT}};

/* One row of every table that gates are made of. */
struct part {
    const char *kind, *name, *meaning;
};

static const struct part parts[] = {
#define X(e, text, help) {"score", text, help},
    GATE_SCORES(X)
#undef X
#define X(e, text, help) {"groups", text, help},
        GATE_GROUP_RULES(X)
#undef X
#define X(e, text, help) {"fill", text, help},
            GATE_FILLS(X)
#undef X
#define X(e, text, help) {"order", text, help},
                GATE_ORDERS(X)
#undef X
#define X(e, text, help) {"norm", text, help},
                    GATE_NORMS(X)
#undef X
#define X(e, text, help) {"fn", text, help},
                        GATE_FNS(X)
#undef X
#define X(e, text, help) {"assign", text, help},
                            GATE_ASSIGNS(X)
#undef X
#define X(e, text, help) {"capacity", text, help},
                                GATE_DROPS(X)
#undef X
#define X(e, text, help) {"capacity-order", text, help},
                                    GATE_TURNS(X)
#undef X
#define X(e, text, help) {"round", text, help},
                                        GATE_ROUNDINGS(X)
#undef X
};

static const size_t part_count = sizeof parts / sizeof *parts;

static void row(struct table *table, const char *kind, const char *name, const char *meaning,
                const char *source) {
    table_text(table, kind);
    table_text(table, name);
    table_text(table, meaning);
    table_text(table, source);
}

static bool wanted(const char *name, const char *found) {
    return name == NULL || strcmp(name, found) == 0;
}

static const char *preset_source(const char *name) {
    for (const struct gate_preset *p = gate_presets; p->name; p++)
        if (strcmp(p->name, name) == 0) return p->source;
    return NULL;
}

/* All rows of that name, or all rows; returns how many. */
static int list_named(struct table *table, const char *name) {
    int64_t before = table_rows(table);
    bool preset = name && preset_source(name); /* explained step by step instead */
    for (const struct gate_preset *p = gate_presets; !name && p->name; p++)
        row(table, "preset", p->name, p->spec, p->source);
    for (const struct bias_rule *r = bias_rules; r->name; r++)
        if (wanted(name, r->name)) row(table, "bias-rule", r->name, r->summary, r->source);
    for (size_t i = 0; i < part_count; i++)
        if (wanted(name, parts[i].name))
            row(table, parts[i].kind, parts[i].name, parts[i].meaning, NULL);
#define X(loss, formula, source)                                                                   \
    if (wanted(name, #loss) && !preset) row(table, "loss", #loss, formula, source);
    LOSSES(X)
#undef X
    return (int)(table_rows(table) - before);
}

static void explain_part(struct table *table, const char *kind, int index, bool acts) {
    for (size_t i = 0; acts && i < part_count; i++)
        if (strcmp(parts[i].kind, kind) == 0 && index-- == 0)
            row(table, kind, parts[i].name, parts[i].meaning, NULL);
}

/* What looks at a whole balance batch, and what that means for use. */
static void explain_batch(struct table *table, const struct gate *gate) {
    bool expert = gate->assign == ASSIGN_EXPERT, limited = gate->capacity > 0;
    if (!gate_needs_batch(gate)) return;
    explain_part(table, "assign", (int)gate->assign, gate->assign != ASSIGN_TOKEN);
    if (limited)
        row(table, "capacity", "C", "factor * k T / E tokens of a balance batch, at most T", NULL);
    explain_part(table, "round", (int)gate->rounding, limited);
    explain_part(table, "capacity", (int)gate->drop, limited && !expert);
    explain_part(table, "capacity-order", (int)gate->turn, limited && gate->drop != DROP_PROB);
    row(table, "needs", "batch",
        gate_is_causal(gate) ? "a whole balance batch in a replay; causal: no later token matters"
                             : "a whole balance batch; not causal: later tokens matter, so that "
                               "training can run it and generation cannot",
        NULL);
}

/* The canonical line, then every step that acts, in the order in which it acts. */
static bool explain(struct table *table, const char *spec, struct err *err) {
    struct gate gate;
    char line[GATE_TEXT_BYTES];
    if (!gate_parse(spec, NULL, &gate, err)) return false;
    gate_print(&gate, line);
    row(table, "gate", spec, line, preset_source(spec));
    explain_part(table, "fn", (int)gate.fn, gate.fn != GATE_TABLE);
    explain_part(table, "order", (int)gate.order, true);
    explain_part(table, "score", (int)gate.score, gate.fn == GATE_TABLE);
    if (gate.bias)
        row(table, "bias", "bias", "choice = score + b; the weights are taken without it", NULL);
    explain_part(table, "groups", (int)gate.group_rule, gate.groups > 0);
    explain_part(table, "fill", (int)gate.fill, gate.groups > 0);
    explain_part(table, "norm", (int)gate.norm, true);
    if (gate.scale != 1) row(table, "scale", "scale", "every weight times this, last", NULL);
    explain_batch(table, &gate);
    return true;
}

static bool list(struct table *table, const struct text_list *names, struct err *err) {
    if (names->count == 0) list_named(table, NULL);
    for (int i = 0; i < names->count; i++)
        if (list_named(table, names->items[i]) == 0 && !explain(table, names->items[i], err))
            return false;
    return true;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    struct text_list names = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &names, &done, err);
    if (ok && !done) {
        struct table *table = table_create(columns, 4, err);
        ok = table && list(table, &names, err) && output_table(table, choice, err);
        table_free(table);
    }
    text_list_free(&names);
    return ok;
}

const struct command command_gates = {
    .name = "gates",
    .arguments = "[NAME|SPEC...]",
    .summary = "list gate presets and bias rules, or explain one step by step",
    .example = "steelyard gates deepseek-v3,softmax,nobias",
    .run = run};
