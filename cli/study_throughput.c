/* study_throughput.c - studies of time: what load, gate and placement are worth on a cluster
 *
 * Their rows are those of the last `steelyard throughput` on the database as the user named it. */
#include <math.h>
#include <stdio.h>
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

/* Every time has an error; one outside the validated range says so. */
static void put_error(const struct table *rows, struct str *out) {
    double low = INFINITY, high = 0;
    int64_t extrapolated = 0;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        low = fmin(low, cell(rows, i, "error_pct"));
        high = fmax(high, cell(rows, i, "error_pct"));
        extrapolated += cell(rows, i, "extrapolated") > 0;
    }
    if (high > low)
        str_printf(out, " (Layer times have a validated median error of %.1f to %.1f %%", low,
                   high);
    else
        str_printf(out, " (Layer times have a validated median error of %.1f %%", high);
    if (extrapolated > 0)
        str_printf(out, "; %lld of %lld points lie outside the validated shapes and sizes",
                   (long long)extrapolated, (long long)table_rows(rows));
    str_puts(out, ".) ");
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
        if (cell(rows, i, "ranks") < most || strcmp(text(rows, i, "load"), "trace") != 0) continue;
        double speed = cell(rows, i, "tokens_per_s");
        if (worst < 0 || speed < cell(rows, worst, "tokens_per_s")) worst = i;
        if (best < 0 || speed > cell(rows, best, "tokens_per_s")) best = i;
    }
    if (best < 0) return;
    double low = cell(rows, worst, "tokens_per_s"), high = cell(rows, best, "tokens_per_s");
    str_printf(out, "%s on %.0f ranks of %s: %.3g tokens/s with %s, %.3g (%+.1f %%) with %s.",
               phase, most, text(rows, best, "cluster"), low, text(rows, worst, "series"), high,
               100 * (high / low - 1), text(rows, best, "series"));
    put_error(rows, out);
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
    put_error(rows, &figure->caption);
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
    put_error(rows, &figure->caption);
    bool ok = figure_add(figure, layer_bars(rows, err));
    table_free(rows);
    return ok;
}

/* ---- redundant experts, and placements that age */

/* The best point of a phase: "prefill: +12.3 % with 32 (native, eplb)". */
static void put_best(const struct table *rows, const char *phase, const char *key,
                     const char *only_learnt, struct str *out) {
    int64_t best = -1, worst = -1;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        if (strcmp(text(rows, i, "phase"), phase) != 0) continue;
        if (only_learnt && strcmp(text(rows, i, "learnt"), only_learnt) != 0) continue;
        if (best < 0 || cell(rows, i, "gain_pct") > cell(rows, best, "gain_pct")) best = i;
        if (worst < 0 || cell(rows, i, "gain_pct") < cell(rows, worst, "gain_pct")) worst = i;
    }
    if (best < 0) return;
    str_printf(out, "%s on %.0f ranks of %s: at best %+.1f %% tokens/s with %.0f (%s), at worst ",
               phase, cell(rows, best, "ranks"), text(rows, best, "cluster"),
               cell(rows, best, "gain_pct"), cell(rows, best, key), text(rows, best, "series"));
    str_printf(out, "%+.1f %% with %.0f (%s). ", cell(rows, worst, "gain_pct"),
               cell(rows, worst, key), text(rows, worst, "series"));
}

/* What the two figures of gains have in common. */
struct gains {
    const char *query, *key, *learnt, *lack;
};

/* How many batches pay for moving the weights of one refresh. */
static void put_payback(const struct table *rows, struct str *out) {
    double least = INFINITY, most = 0;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        double batches = cell(rows, i, "pays_after");
        if (!isfinite(batches)) continue;
        least = fmin(least, batches);
        most = fmax(most, batches);
    }
    str_puts(out, "The moving of weights is left out here: ");
    if (most > 0)
        str_printf(out, "a refresh pays after %.3g to %.3g batches where the placement gains.",
                   least, most);
    else
        str_puts(out, "no refresh after the first one was needed to gain, or none gains.");
}

static bool draw_gains(const struct subject *subject, const struct gains *gains,
                       struct figure *figure, struct err *err) {
    bool found;
    struct table *rows = ask(subject, gains->query, NULL, 0, &found, err);
    if (!rows && found) return false;
    if (!rows || table_rows(rows) == 0) {
        str_puts(&figure->lacks, gains->lack);
        table_free(rows);
        return true;
    }
    put_best(rows, "prefill", gains->key, gains->learnt, &figure->caption);
    put_best(rows, "decode", gains->key, gains->learnt, &figure->caption);
    put_best(rows, "train", gains->key, gains->learnt, &figure->caption);
    if (gains->learnt) put_payback(rows, &figure->caption);
    put_error(rows, &figure->caption);
    bool ok = figure_add(figure, side_by_side(rows, gains->key, "gain_pct", err));
    table_free(rows);
    return ok;
}

bool study_throughput_replicas(const struct subject *subjects, int count, struct figure *figure,
                               struct err *err) {
    static const struct gains gains = {
        "study_throughput_replicas", "replicas", NULL,
        "needs `steelyard throughput --replicas 0,16,32` on this database"};
    (void)count;
    return draw_gains(&subjects[0], &gains, figure, err);
}

bool study_throughput_staleness(const struct subject *subjects, int count, struct figure *figure,
                                struct err *err) {
    static const struct gains gains = {
        "study_throughput_staleness", "refresh", "previous",
        "needs `steelyard throughput --placement contiguous,eplb --learn whole,previous --refresh "
        "1,4,16` on this database"};
    (void)count;
    return draw_gains(&subjects[0], &gains, figure, err);
}

/* ---- traffic */

/* Sums of copies by (from, to) of the named columns, relative to their mean. */
struct sums {
    double *value; /* [size, size] owned */
    int size;
};

static bool sums_of(const struct table *rows, const char *from, const char *to, struct sums *sums,
                    struct err *err) {
    double total = 0;
    for (int64_t i = 0; i < table_rows(rows); i++)
        sums->size = (int)fmax(sums->size, 1 + cell(rows, i, from));
    size_t cells = (size_t)sums->size * (size_t)sums->size;
    sums->value = calloc(cells, sizeof *sums->value);
    if (!sums->value) return err_memory(err, "traffic");
    for (int64_t i = 0; i < table_rows(rows); i++) {
        double copies = cell(rows, i, "copies");
        sums->value[(int)cell(rows, i, from) * sums->size + (int)cell(rows, i, to)] += copies;
        total += copies;
    }
    for (size_t i = 0; i < cells && total > 0; i++) sums->value[i] *= (double)cells / total;
    return true;
}

static struct table *rank_matrix(const struct table *rows, struct err *err) {
    struct sums sums = {0};
    if (!sums_of(rows, "from_rank", "to_rank", &sums, err)) return NULL;
    char(*names)[16] = calloc((size_t)sums.size, sizeof *names);
    struct table_column *columns = calloc((size_t)sums.size + 1, sizeof *columns);
    struct table *matrix = NULL;
    if (names && columns) {
        columns[0] = (struct table_column){"from", "", TABLE_INT};
        for (int c = 0; c < sums.size; c++) {
            snprintf(names[c], sizeof names[c], "%d", c);
            columns[c + 1] = (struct table_column){names[c], "", TABLE_REAL};
        }
        matrix = table_create(columns, sums.size + 1, err);
    } else {
        err_memory(err, "traffic");
    }
    for (int i = 0; matrix && i < sums.size; i++) {
        table_int(matrix, i);
        for (int c = 0; c < sums.size; c++) table_real(matrix, sums.value[i * sums.size + c]);
    }
    free(sums.value);
    free(names);
    free(columns);
    return matrix;
}

static struct table *node_list(const struct table *rows, struct err *err) {
    static const struct table_column columns[] = {
        {"from", "", TABLE_INT}, {"to", "", TABLE_INT}, {"copies", "", TABLE_REAL}};
    struct sums sums = {0};
    if (!sums_of(rows, "from_node", "to_node", &sums, err)) return NULL;
    struct table *list = table_create(columns, 3, err);
    for (int i = 0; list && i < sums.size * sums.size; i++) {
        table_int(list, i / sums.size);
        table_int(list, i % sums.size);
        table_real(list, sums.value[i]);
    }
    free(sums.value);
    return list;
}

/* Largest sum over senders (or receivers) against the mean. */
static double busiest(const struct table *rows, const char *end) {
    double most = 0, total = 0;
    int ranks = (int)cell(rows, 0, "ranks");
    for (int r = 0; r < ranks; r++) {
        double sum = 0;
        for (int64_t i = 0; i < table_rows(rows); i++)
            if ((int)cell(rows, i, end) == r) sum += cell(rows, i, "copies");
        most = fmax(most, sum);
        total += sum;
    }
    return total > 0 ? most * ranks / total : 1;
}

bool study_traffic(const struct subject *subjects, int count, struct figure *figure,
                   struct err *err) {
    (void)count;
    bool found;
    struct table *rows = ask(&subjects[0], "study_traffic", NULL, 0, &found, err);
    if (!rows && found) return false;
    if (!rows || table_rows(rows) == 0) {
        put_lack(figure);
        table_free(rows);
        return true;
    }
    double megabytes = 0, away = 0;
    for (int64_t i = 0; i < table_rows(rows); i++) {
        megabytes += cell(rows, i, "mbytes");
        if (cell(rows, i, "from_node") != cell(rows, i, "to_node")) away += cell(rows, i, "mbytes");
    }
    str_printf(
        &figure->caption,
        "%s, %s on %.0f ranks of %s, %.0f tokens a rank: %.4g MB are dispatched in a batch, "
        "%.1f %% of them to other nodes; the busiest receiver gets %.3g times the mean, the "
        "busiest sender %.3g. One copy of a token per distinct rank is counted, all layers "
        "together. What uneven traffic costs is modelled from bytes; nobody has measured it.",
        text(rows, 0, "phase"), text(rows, 0, "placement"), cell(rows, 0, "ranks"),
        text(rows, 0, "cluster"), cell(rows, 0, "tokens_per_rank"), megabytes,
        megabytes > 0 ? 100 * away / megabytes : 0, busiest(rows, "to_rank"),
        busiest(rows, "from_rank"));
    bool ok =
        figure_add(figure, rank_matrix(rows, err)) && figure_add(figure, node_list(rows, err));
    figure->rows = 12; /* a square for each of the two */
    table_free(rows);
    return ok;
}
