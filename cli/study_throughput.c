/* study_throughput.c - studies of time: what load, gate and placement are worth on a cluster
 *
 * Their rows are those of the last `steelyard throughput` on the database as the user named it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/studies.h"
#include "cli/wide.h"

enum { SERIES = 8 }; /* lines that one figure can carry and still be read */

static double cell(const struct table *table, int64_t row, const char *column) {
    return table_number(table, row, table_find(table, column));
}

static const char *text(const struct table *table, int64_t row, const char *column) {
    const char *found = table_cell(table, row, table_find(table, column));
    return found ? found : "";
}

/* A query of the named database; *found = false (and NULL) when it holds no throughput run. */
static struct table *ask(const struct subject *subject, const char *query,
                         const struct query_value *values, int count, bool *found,
                         struct err *err) {
    struct trace *trace = trace_open(subject->path, err);
    struct table *has = trace ? trace_query(trace, "throughput_has", NULL, 0, err) : NULL;
    *found = has && table_number(has, 0, 0) > 0;
    struct table *answer = *found ? trace_query(trace, query, values, count, err) : NULL;
    table_free(has);
    trace_free(trace);
    return answer;
}

static void put_lack(struct figure *figure) {
    str_puts(&figure->lacks, "needs a run of `steelyard throughput` on this database");
}

/* Long rows (series, key, value), series together, as one column each. */
static struct table *side_by_side(const struct table *rows, const char *key, const char *value,
                                  struct err *err) {
    struct wide wide = {0};
    const char *last = NULL;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        const char *series = text(rows, i, "series");
        if (!last || strcmp(last, series) != 0) {
            if (wide.series == SERIES) break;
            wide_series(&wide, series);
        }
        last = series;
        wide_value(&wide, cell(rows, i, key), cell(rows, i, value));
    }
    struct table *table = wide_table(&wide, key, err);
    wide_free(&wide);
    return table;
}

/* "prefill on 32 ranks of h100: from 1.2M tokens/s (native, contiguous) to 1.9M (...)". */
static void put_range(const struct table *rows, const char *phase, struct str *out) {
    int64_t worst = -1, best = -1;
    double most = 0;
    for (int64_t i = 0; i < table_rows(rows); i++) most = fmax(most, cell(rows, i, "ranks"));
    for (int64_t i = 0; i < table_rows(rows); i++) {
        if (cell(rows, i, "ranks") < most) continue;
        double speed = cell(rows, i, "tokens_per_s");
        if (worst < 0 || speed < cell(rows, worst, "tokens_per_s")) worst = i;
        if (best < 0 || speed > cell(rows, best, "tokens_per_s")) best = i;
    }
    if (best < 0) return;
    double low = cell(rows, worst, "tokens_per_s"), high = cell(rows, best, "tokens_per_s");
    str_printf(out,
               "%s on %.0f ranks of %s: %.3g tokens/s with %s, %.3g (%+.1f %%) with %s "
               "(layer times have a validated median error of %.1f %%). ",
               phase, most, text(rows, best, "cluster"), low, text(rows, worst, "series"), high,
               100 * (high / low - 1), text(rows, best, "series"), cell(rows, best, "error_pct"));
}

bool study_throughput_ranks(const struct subject *subjects, int count, struct figure *figure,
                            struct err *err) {
    static const char *const phases[] = {"prefill", "decode"};
    (void)count;
    for (size_t p = 0; p < 2; p++) {
        bool found;
        struct query_value phase = QUERY_T(phases[p]);
        struct table *rows = ask(&subjects[0], "study_throughput_ranks", &phase, 1, &found, err);
        if (!rows && found) return false;
        if (!rows) break;
        put_range(rows, p == 0 ? "Prefill" : "Decode", &figure->caption);
        bool ok = table_rows(rows) == 0 ||
                  figure_add(figure, side_by_side(rows, "ranks", "tokens_per_s", err));
        table_free(rows);
        if (!ok) return false;
    }
    if (figure->blocks == 0) put_lack(figure);
    str_puts(&figure->caption, "Communication under skew is modelled, not measured anywhere.");
    return true;
}

bool study_throughput_regimes(const struct subject *subjects, int count, struct figure *figure,
                              struct err *err) {
    (void)count;
    bool found;
    struct table *rows = ask(&subjects[0], "study_throughput_regimes", NULL, 0, &found, err);
    if (!rows && found) return false;
    if (!rows || table_rows(rows) == 0) {
        put_lack(figure);
        table_free(rows);
        return true;
    }
    int helps = 0, costs = 0;
    double worst = 0, at = 0;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        double ratio = cell(rows, i, "against_balanced");
        helps += strcmp(text(rows, i, "regime"), "skew-helps") == 0;
        costs += strcmp(text(rows, i, "regime"), "skew-costs") == 0;
        if (ratio > worst) worst = ratio, at = cell(rows, i, "tokens_per_expert");
    }
    str_printf(&figure->caption,
               "On %.0f ranks skew makes the experts faster in %d of %lld cases (fewer experts' "
               "weights are read), slower in %d; at worst %.3g times slower than a balanced load, "
               "at %.3g tokens per expert.",
               cell(rows, 0, "ranks"), helps, (long long)table_rows(rows), costs, worst, at);
    bool ok = figure_add(figure, side_by_side(rows, "tokens_per_expert", "against_balanced", err));
    table_free(rows);
    return ok;
}

static struct table *layer_bars(const struct table *rows, struct err *err) {
    static const struct table_column columns[] = {{"layer", "", TABLE_INT},
                                                  {"experts at even load", "", TABLE_REAL},
                                                  {"waiting for the straggler", "", TABLE_REAL},
                                                  {"communication", "", TABLE_REAL},
                                                  {"straggler", "", TABLE_INT}};
    struct table *bars = table_create(columns, 5, err);
    for (int64_t i = 0; bars && i < table_rows(rows); i++) {
        double even = cell(rows, i, "even_ms"), experts = cell(rows, i, "experts_ms");
        table_int(bars, (int64_t)cell(rows, i, "layer"));
        table_real(bars, fmin(even, experts));
        table_real(bars, fmax(experts - even, 0));
        table_real(bars, cell(rows, i, "comm_ms"));
        table_int(bars, (int64_t)cell(rows, i, "straggler"));
    }
    return bars;
}

bool study_throughput_layers(const struct subject *subjects, int count, struct figure *figure,
                             struct err *err) {
    (void)count;
    bool found;
    struct table *rows = ask(&subjects[0], "study_throughput_layers", NULL, 0, &found, err);
    if (!rows && found) return false;
    if (!rows || table_rows(rows) == 0) {
        put_lack(figure);
        table_free(rows);
        return true;
    }
    double waiting = 0, total = 0;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        waiting += fmax(cell(rows, i, "experts_ms") - cell(rows, i, "even_ms"), 0);
        total += cell(rows, i, "experts_ms") + cell(rows, i, "comm_ms");
    }
    str_printf(&figure->caption,
               "%s, %s, %s on %.0f ranks: %.1f %% of the time is waiting for the slowest rank of "
               "each layer; which rank it is changes from layer to layer.",
               text(rows, 0, "phase"), text(rows, 0, "gate"), text(rows, 0, "placement"),
               cell(rows, 0, "ranks"), 100 * waiting / total);
    bool ok = figure_add(figure, layer_bars(rows, err));
    table_free(rows);
    return ok;
}
