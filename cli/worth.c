/* worth.c - what gate, bias rate, placement and replicas are worth in tokens/s, in words
 *
 * Each sentence sets two cells side by side that differ in one thing. Both are predicted with the
 * same constants, so that an error common to them cancels; a difference below the validated error
 * is named as such. */
#include "cli/worth.h"

#include <math.h>
#include <string.h>

#include "base/table.h"
#include "traces/query.h"

static double number(const struct table *rows, int64_t row, const char *column) {
    return table_number(rows, row, table_find(rows, column));
}

static const char *text(const struct table *rows, int64_t row, const char *column) {
    const char *found = table_cell(rows, row, table_find(rows, column));
    return found ? found : "";
}

static bool equal(const struct table *rows, int64_t a, int64_t b, const char *column) {
    double x = number(rows, a, column), y = number(rows, b, column);
    return strcmp(text(rows, a, column), text(rows, b, column)) == 0 &&
           (x == y || (isnan(x) && isnan(y)));
}

/* What may differ between the two cells. */
enum thing { THING_GATE, THING_RULE, THING_RATE, THING_PLACEMENT, THING_REPLICAS, THING_LEARNT };

static const struct thing_name {
    const char *columns[6]; /* that must be equal */
    const char *name;
} things[] = {
    [THING_GATE] = {{"placement", "replicas", "learnt", "refresh", NULL}, "the gate is"},
    [THING_RULE] = {{"placement", "replicas", "learnt", "refresh", NULL}, "a bias rule is"},
    [THING_RATE] = {{"placement", "replicas", "learnt", "refresh", "bias_rule", NULL},
                    "the bias rate is"},
    [THING_PLACEMENT] = {{"variant", "replicas", "learnt", "refresh", NULL}, "the placement is"},
    [THING_REPLICAS] = {{"variant", "placement", "learnt", "refresh", NULL},
                        "redundant experts are"},
    [THING_LEARNT] = {{"variant", "placement", "replicas", NULL},
                      "what the placement learnt on is"},
};

static bool is_comparable(const struct table *rows, int64_t a, int64_t b, enum thing thing) {
    for (int c = 0; things[thing].columns[c]; c++)
        if (!equal(rows, a, b, things[thing].columns[c])) return false;
    /* a bias that moves is neither another gate nor, at another rate, another rule */
    bool from = isfinite(number(rows, a, "bias_rate")), to = isfinite(number(rows, b, "bias_rate"));
    if (thing == THING_GATE) return !from && !to;
    if (thing == THING_RULE) return !from && to;
    return thing != THING_RATE || (from && to);
}

static void put_cell(const struct table *rows, int64_t row, enum thing thing, struct str *out) {
    if (thing == THING_GATE || thing == THING_RULE || thing == THING_RATE)
        str_puts(out, text(rows, row, "gate"));
    else if (thing == THING_PLACEMENT)
        str_puts(out, text(rows, row, "placement"));
    else if (thing == THING_REPLICAS)
        str_printf(out, "%.0f", number(rows, row, "replicas"));
    else if (number(rows, row, "refresh") > 0)
        str_printf(out, "%s, refreshed every %.0f batches", text(rows, row, "learnt"),
                   number(rows, row, "refresh"));
    else
        str_puts(out, text(rows, row, "learnt"));
}

/* The cell that gains most over `base` (for rates: over the worst of them). -1: nothing to set
 * side by side. */
static int64_t best_of(const struct table *rows, int64_t base, enum thing thing) {
    int64_t best = -1;
    for (int64_t i = 0; i < table_rows(rows); i++)
        if (i != base && is_comparable(rows, base, i, thing) &&
            (best < 0 || number(rows, i, "tokens_per_s") > number(rows, best, "tokens_per_s")))
            best = i;
    return best;
}

/* Where the comparison starts: the first cell; for replicas and learning the placement that needs
 * them; for rates the slowest of them. */
static int64_t base_of(const struct table *rows, enum thing thing) {
    int64_t base = thing == THING_RATE ? -1 : 0;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        bool first = i == 0 || (equal(rows, 0, i, "placement") && equal(rows, 0, i, "replicas") &&
                                equal(rows, 0, i, "learnt") && equal(rows, 0, i, "refresh"));
        if (thing == THING_RATE && first && isfinite(number(rows, i, "bias_rate")) &&
            (base < 0 || number(rows, i, "tokens_per_s") < number(rows, base, "tokens_per_s")))
            base = i;
        if ((thing == THING_REPLICAS || thing == THING_LEARNT) && equal(rows, 0, i, "variant") &&
            equal(rows, 0, i, "replicas") && equal(rows, 0, i, "learnt") &&
            equal(rows, 0, i, "refresh") && !equal(rows, 0, i, "placement") &&
            equal(rows, 0, base, "placement"))
            base = i;
    }
    return base;
}

static void put_thing(const struct table *rows, const char *phase, enum thing thing,
                      struct worth *worth) {
    int64_t base = base_of(rows, thing), best = base < 0 ? -1 : best_of(rows, base, thing);
    if (best < 0 || worth->count == WORTH_LINES) return;
    struct str *out = &worth->line[worth->count++];
    double gain =
        100 * (number(rows, best, "tokens_per_s") / number(rows, base, "tokens_per_s") - 1);
    double error = number(rows, best, "error_pct");
    str_printf(out, "%s on %.0f ranks of %s, %.0f tokens a rank: %s worth %+.1f %% tokens/s (",
               phase, number(rows, base, "ranks"), text(rows, base, "cluster"),
               number(rows, base, "tokens_per_rank"), things[thing].name, gain);
    put_cell(rows, best, thing, out);
    str_printf(out, " %.3g, ", number(rows, best, "tokens_per_s"));
    put_cell(rows, base, thing, out);
    str_printf(out, " %.3g", number(rows, base, "tokens_per_s"));
    if (thing != THING_PLACEMENT) str_printf(out, "; placement %s", text(rows, base, "placement"));
    str_printf(out, "). The layer times have a validated median error of %.1f %%%s%s.", error,
               fabs(gain) < error ? ", more than this difference" : "",
               number(rows, best, "extrapolated") > 0 ? "; this size is extrapolated" : "");
}

static void put_regime(const struct table *rows, const char *phase, struct worth *worth) {
    double ratio = number(rows, 0, "against_balanced");
    if (!isfinite(ratio) || worth->count == WORTH_LINES) return;
    str_printf(&worth->line[worth->count++],
               "%s on %.0f ranks of %s, %.0f tokens a rank, %s, %s: %s; the experts take %.3g "
               "times as long as under a balanced load of the same tokens.",
               phase, number(rows, 0, "ranks"), text(rows, 0, "cluster"),
               number(rows, 0, "tokens_per_rank"), text(rows, 0, "gate"),
               text(rows, 0, "placement"), text(rows, 0, "regime"), ratio);
}

bool worth_read(const struct subject *subject, struct worth *worth, struct err *err) {
    static const char *const phases[] = {"prefill", "decode", "train"};
    static const char *const names[] = {"Prefill", "Decode", "Training"};
    *worth = (struct worth){0};
    struct trace *trace = trace_open(subject->path, err);
    struct table *has = trace ? trace_query(trace, "throughput_has", NULL, 0, err) : NULL;
    bool ok = has != NULL, found = ok && table_number(has, 0, 0) > 0;
    for (int p = 0; ok && found && p < 3; p++) {
        struct query_value phase = QUERY_T(phases[p]);
        struct table *rows = trace_query(trace, "throughput_worth", &phase, 1, err);
        ok = rows != NULL;
        if (ok && table_rows(rows) > 0) {
            put_regime(rows, names[p], worth);
            for (int t = THING_GATE; t <= THING_LEARNT; t++)
                put_thing(rows, names[p], (enum thing)t, worth);
        }
        table_free(rows);
    }
    table_free(has);
    trace_free(trace);
    return ok;
}

void worth_free(struct worth *worth) {
    for (int i = 0; i < worth->count; i++) str_free(&worth->line[i]);
    worth->count = 0;
}
