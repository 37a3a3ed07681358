/* cmd_compare.c - `steelyard compare`: a native capture, its replay under another gate, and that
 * gate run for real */
#include <math.h>
#include <stdio.h>

#include "base/table.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "sim/compare.h"

/* maxvio over all tokens; agreement as a share of the first one's k; variation 0 = equal loads. */
static const struct table_column columns[] = {{"layer", "", TABLE_INT},
                                              {"maxvio_native", "", TABLE_REAL},
                                              {"maxvio_open", "", TABLE_REAL},
                                              {"maxvio_closed", "", TABLE_REAL},
                                              {"agreement_open_native", "", TABLE_REAL},
                                              {"agreement_closed_native", "", TABLE_REAL},
                                              {"agreement_closed_open", "", TABLE_REAL},
                                              {"variation_open_native", "", TABLE_REAL},
                                              {"variation_closed_native", "", TABLE_REAL},
                                              {"variation_closed_open", "", TABLE_REAL},
                                              {"nll_native", "nats", TABLE_REAL},
                                              {"nll_closed", "nats", TABLE_REAL},
                                              {"nll_change", "nats", TABLE_REAL},
                                              {"nll_change_low", "nats", TABLE_REAL},
                                              {"nll_change_high", "nats", TABLE_REAL},
                                              {"documents", "", TABLE_INT},
                                              {"tokens", "", TABLE_INT}};

/* The NLL belongs to the model, so it stands in the row of means (layer NULL). */
static void add_row(struct table *table, const struct comparison *c,
                    const struct compare_layer *layer) {
    bool mean = layer == &c->mean;
    const double nll[] = {c->nll[WAY_NATIVE], c->nll[WAY_CLOSED], c->nll_change.estimate,
                          c->nll_change.low, c->nll_change.high};
    if (mean)
        table_null(table);
    else
        table_int(table, layer->layer);
    for (int w = 0; w < COMPARE_WAYS; w++) table_real(table, layer->maxvio[w]);
    for (int p = 0; p < COMPARE_PAIRS; p++) table_real(table, layer->agreement[p]);
    for (int p = 0; p < COMPARE_PAIRS; p++) table_real(table, layer->variation[p]);
    for (int i = 0; i < 5; i++) table_real(table, mean ? nll[i] : NAN);
    if (!mean) table_null(table);
    if (mean) table_int(table, c->nll_change.clusters);
    table_int(table, c->tokens);
}

static bool print(const struct comparison *c, struct output_choice choice, struct err *err) {
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    if (!table) return false;
    for (int r = 0; r < c->layers; r++) add_row(table, c, &c->layer[r]);
    add_row(table, c, &c->mean);
    bool ok = table_ok(table, err) && output_table(table, choice, err);
    table_free(table);
    if (ok && c->nll_change.few)
        fprintf(stderr, "note: the interval of nll_change is drawn from %d documents only\n",
                c->nll_change.clusters);
    return ok;
}

static bool compare(const char *native_path, const char *closed_path, struct output_choice choice,
                    struct err *err) {
    struct comparison comparison = {0};
    struct progress_line line;
    struct trace *native = trace_open(native_path, err);
    struct trace *closed = native ? trace_open(closed_path, err) : NULL;
    bool ok = closed != NULL;
    if (ok) {
        progress_begin(&line, "compare");
        ok = compare_traces(native, closed, &comparison, &line.progress, err);
        progress_end(&line);
    }
    ok = ok && print(&comparison, choice, err);
    comparison_free(&comparison);
    trace_free(closed);
    trace_free(native);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    struct text_list rest = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done && rest.count != 2)
        ok =
            err_set(err, ERR_USAGE, "found %d files, expected NATIVE.db and CLOSED.db", rest.count);
    if (ok && !done) ok = compare(rest.items[0], rest.items[1], choice, err);
    text_list_free(&rest);
    return ok;
}

const struct command command_compare = {
    .name = "compare",
    .arguments = "NATIVE.db CLOSED.db",
    .summary = "a gate replayed (open loop) against the same gate run for real (closed loop)",
    .example = "steelyard capture MODEL book.txt --gate native,nobias --out closed.db && "
               "steelyard compare run.db closed.db",
    .run = run};
