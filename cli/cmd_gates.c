/* cmd_gates.c - `steelyard gates`: presets of gates, bias rules, and what a specification means */
#include <string.h>

#include "base/table.h"
#include "cli/commands.h"
#include "router/bias.h"
#include "router/gate.h"

static const struct table_column columns[] = {{"kind", "", TABLE_TEXT},
                                              {"name", "", TABLE_TEXT},
                                              {"meaning", "", TABLE_TEXT},
                                              {"source", "", TABLE_TEXT}};

static void row(struct table *table, const char *kind, const char *name, const char *meaning,
                const char *source) {
    table_text(table, kind);
    table_text(table, name);
    table_text(table, meaning);
    table_text(table, source);
}

static void list_all(struct table *table) {
    for (const struct gate_preset *p = gate_presets; p->name; p++)
        row(table, "preset", p->name, p->spec, p->source);
    for (const struct bias_rule *r = bias_rules; r->name; r++)
        row(table, "bias-rule", r->name, r->summary, r->source);
#define X(e, text, help) row(table, "score", text, help, NULL);
    GATE_SCORES(X)
#undef X
#define X(e, text, help) row(table, "groups", text, help, NULL);
    GATE_GROUP_RULES(X)
#undef X
#define X(e, text, help) row(table, "fill", text, help, NULL);
    GATE_FILLS(X)
#undef X
#define X(e, text, help) row(table, "order", text, help, NULL);
    GATE_ORDERS(X)
#undef X
#define X(e, text, help) row(table, "norm", text, help, NULL);
    GATE_NORMS(X)
#undef X
#define X(e, text, help) row(table, "fn", text, help, NULL);
    GATE_FNS(X)
#undef X
}

/* Each argument is a specification: its canonical line. */
static bool list_specs(struct table *table, const struct text_list *specs, struct err *err) {
    for (int i = 0; i < specs->count; i++) {
        struct gate gate;
        char line[GATE_TEXT_BYTES];
        if (!gate_parse(specs->items[i], NULL, &gate, err)) return false;
        gate_print(&gate, line);
        row(table, "gate", specs->items[i], line, NULL);
    }
    return true;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    struct text_list specs = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &specs, &done, err);
    if (ok && !done) {
        struct table *table = table_create(columns, 4, err);
        ok = table != NULL;
        if (ok && specs.count == 0) list_all(table);
        ok = ok && list_specs(table, &specs, err) && output_table(table, choice, err);
        table_free(table);
    }
    text_list_free(&specs);
    return ok;
}

const struct command command_gates = {
    .name = "gates",
    .arguments = "[SPEC...]",
    .summary = "list gate presets and bias rules, or print the canonical form of a SPEC",
    .example = "steelyard gates deepseek-v3,softmax,nobias",
    .run = run};
