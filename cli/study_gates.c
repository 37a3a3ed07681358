/* study_gates.c - studies of the gate: load over experts and layers, its cost, its weights, its
 * ranks */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/loads.h"
#include "cli/studies.h"
#include "cli/wide.h"
#include "router/gate.h"

enum { SERIES = 7 }; /* lines that one figure can carry and still be read */

static double cell(const struct table *table, int64_t row, const char *column) {
    return table_number(table, row, table_find(table, column));
}

/* "MaxVio a to b" of a variant with its interval, when the documents allow one. */
static bool put_maxvio(const struct subject *subject, int v, struct str *out, struct err *err) {
    struct loads loads;
    bool ok = loads_read(subject, v, &loads, err);
    str_printf(out, "%.3g", subject->variant[v].maxvio_global);
    if (ok && loads.found) {
        struct interval interval;
        ok = loads_interval(&(struct loads_contrast){&loads, NULL, -1, -1}, &interval, err);
        if (ok) str_puts(out, " ");
        if (ok) loads_put_interval(&loads, &interval, out);
    }
    loads_free(&loads);
    return ok;
}

/* "MaxVio over all tokens differs by -0.3 (interval)": of v against the reference. */
static bool put_difference(const struct subject *subject, int v, struct str *out, struct err *err) {
    struct loads a, b = {0};
    bool ok = loads_read(subject, v, &a, err) && loads_read(subject, subject->native, &b, err);
    double difference =
        subject->variant[v].maxvio_global - subject->variant[subject->native].maxvio_global;
    str_printf(out, "%+.3g", difference);
    if (ok && a.found && b.found) {
        struct interval interval;
        ok = loads_interval(&(struct loads_contrast){&a, &b, -1, -1}, &interval, err);
        if (ok) str_puts(out, " ");
        if (ok) loads_put_interval(&a, &interval, out);
    }
    loads_free(&a);
    loads_free(&b);
    return ok;
}

/* ---- load per expert and layer */

/* The matrix layer x expert of load / mean. */
static struct table *load_matrix(const struct table *loads, struct err *err) {
    struct wide wide = {0};
    int64_t experts = 0, rows = table_rows(loads);
    for (int64_t i = 0; i < rows; i++) {
        int64_t expert = (int64_t)cell(loads, i, "expert");
        if (expert >= experts) experts = expert + 1;
    }
    if (experts > GATE_MAX_EXPERTS) {
        err_set(err, ERR_FORMAT, "result: found an expert %lld, expected below %d",
                (long long)experts - 1, GATE_MAX_EXPERTS);
        return NULL;
    }
    char name[24];
    for (int64_t e = 0; e < experts; e++) {
        snprintf(name, sizeof name, "%lld", (long long)e);
        wide_series(&wide, name);
        for (int64_t i = 0; i < rows; i++)
            if ((int64_t)cell(loads, i, "expert") == e)
                wide_value(&wide, cell(loads, i, "layer"), cell(loads, i, "load"));
    }
    struct table *matrix = wide_table(&wide, "layer", err);
    wide_free(&wide);
    return matrix;
}

static void put_extremes(const struct table *loads, struct str *out) {
    int64_t busiest = -1, idle = 0;
    for (int64_t i = 0; i < table_rows(loads); i++) {
        double load = cell(loads, i, "load");
        idle += load < 0.1;
        if (busiest < 0 || load > cell(loads, busiest, "load")) busiest = i;
    }
    if (busiest < 0) return;
    str_printf(out, "The busiest expert is number %.0f of layer %.0f with %.3g times the mean; ",
               cell(loads, busiest, "expert"), cell(loads, busiest, "layer"),
               cell(loads, busiest, "load"));
    str_printf(out, "%lld of %lld experts get less than a tenth of it. ", (long long)idle,
               (long long)table_rows(loads));
}

bool study_load_map(const struct subject *subjects, int count, struct figure *figure,
                    struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    struct table *loads = subject_query(subject, "study_load_map", subject->native, err);
    bool ok = loads && figure_add(figure, load_matrix(loads, err));
    if (ok) {
        figure->rows = (int)table_rows(figure->block[0]);
        str_puts(&figure->caption, "Load under ");
        subject_name(subject, subject->native, &figure->caption);
        str_puts(&figure->caption, ". ");
        put_extremes(loads, &figure->caption);
        str_puts(&figure->caption, "MaxVio over all tokens, mean over layers: ");
        ok = put_maxvio(subject, subject->native, &figure->caption, err);
        str_puts(&figure->caption, ".");
    }
    table_free(loads);
    return ok;
}

/* ---- sorted load curves */

/* Share of the load that the busiest tenth of the experts takes, from a column of a curves table.
 */
static double top_tenth(const struct table *curves, int column) {
    double top = 0, all = 0;
    int64_t rows = table_rows(curves);
    for (int64_t i = 0; i < rows; i++) {
        double load = table_number(curves, i, column);
        if (isnan(load)) continue;
        all += load;
        /* the expert at the border counts in part */
        double part = (double)rows / 10 - (double)i;
        top += load * (part > 1 ? 1 : part > 0 ? part : 0);
    }
    return top / all;
}

bool study_load_curves(const struct subject *subjects, int count, struct figure *figure,
                       struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int chosen[SERIES];
    int n = subject_pick(subject, SERIES, chosen);
    const struct study_series series = {"study_load_curve", "place", "load", NULL};
    if (!study_block(subject, &series, chosen, n, figure, err)) return false;
    struct str *caption = &figure->caption;
    const struct table *curves = figure->block[0];
    str_puts(caption, "The busiest tenth of the experts takes ");
    for (int i = 0; i < n && i < 2; i++) {
        str_printf(caption, "%s%.1f %% of the load under ", i ? " and " : "",
                   100 * top_tenth(curves, i + 1));
        subject_name(subject, chosen[i], caption);
    }
    str_puts(caption, " (10 % would be even). ");
    if (n < 2) return true;
    str_puts(caption, "Between the two, MaxVio over all tokens differs by ");
    bool ok = put_difference(subject, chosen[1], caption, err);
    str_puts(caption, ".");
    return ok;
}

/* ---- MaxVio of each layer */

bool study_layer_balance(const struct subject *subjects, int count, struct figure *figure,
                         struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int chosen[SERIES];
    int n = subject_pick(subject, SERIES, chosen);
    const struct study_series series = {"study_layers", "layer", "maxvio_global", NULL};
    if (!study_block(subject, &series, chosen, n, figure, err)) return false;
    const struct table *t = figure->block[0];
    int64_t worst = 0, best = 0, lower = 0, rows = table_rows(t);
    for (int64_t i = 1; i < rows; i++) {
        if (table_number(t, i, 1) > table_number(t, worst, 1)) worst = i;
        if (table_number(t, i, 1) < table_number(t, best, 1)) best = i;
    }
    struct str *caption = &figure->caption;
    if (rows == 0) return true;
    str_puts(caption, "Under ");
    subject_name(subject, chosen[0], caption);
    str_printf(caption,
               " MaxVio is largest in layer %.0f (%.3g) and smallest in layer %.0f (%.3g). ",
               table_number(t, worst, 0), table_number(t, worst, 1), table_number(t, best, 0),
               table_number(t, best, 1));
    if (n < 2) return true;
    for (int64_t i = 0; i < rows; i++) lower += table_number(t, i, 2) < table_number(t, i, 1);
    str_puts(caption, "Under ");
    subject_name(subject, chosen[1], caption);
    str_printf(caption, " it is lower in %lld of %lld layers.", (long long)lower, (long long)rows);
    return true;
}

/* ---- what balance costs */

/* A variant belongs in the figure when its load is its own and its batches are the reference's. */
static bool in_tradeoff(const struct subject *subject, int v) {
    const struct subject_variant *variant = &subject->variant[v];
    return subject_root(subject, v) == v && !isnan(variant->mass_retained) &&
           !subject_foreign(subject, v) &&
           variant->batch_tokens == subject->variant[subject->native].batch_tokens;
}

static bool on_frontier(const struct subject *subject, int v) {
    const struct subject_variant *a = &subject->variant[v];
    for (int u = 0; u < subject->count; u++) {
        const struct subject_variant *b = &subject->variant[u];
        if (!in_tradeoff(subject, u)) continue;
        if (b->maxvio_batch <= a->maxvio_batch && b->mass_retained >= a->mass_retained &&
            (b->maxvio_batch < a->maxvio_batch || b->mass_retained > a->mass_retained))
            return false;
    }
    return true;
}

/* Would the numbers of two points lie over each other in either panel? spread = the axes' ranges.
 */
static bool crowded(const struct subject_variant *a, const struct subject_variant *b,
                    const double spread[static 3]) {
    enum { PART = 16 }; /* of an axis */
    if (fabs(a->maxvio_batch - b->maxvio_batch) * PART > spread[0]) return false;
    return fabs(a->mass_retained - b->mass_retained) * PART < spread[1] ||
           fabs(a->agreement - b->agreement) * PART < spread[2];
}

static void spread_of(const struct subject *subject, double spread[static 3]) {
    double low[3] = {0, 1, 1};
    spread[0] = 0;
    for (int v = 0; v < subject->count; v++) {
        const struct subject_variant *variant = &subject->variant[v];
        if (!in_tradeoff(subject, v)) continue;
        spread[0] = fmax(spread[0], variant->maxvio_batch);
        low[1] = fmin(low[1], variant->mass_retained);
        low[2] = fmin(low[2], variant->agreement);
    }
    spread[1] = 1 - low[1];
    spread[2] = 1 - low[2];
}

/* named[count] <- which points carry their number: the reference, the most even, then as much of
 * the frontier as has room. */
static void choose_names(const struct subject *subject, bool *named) {
    double spread[3];
    spread_of(subject, spread);
    int best = subject_best(subject);
    named[subject->native] = true;
    if (best >= 0) named[best] = true;
    for (int v = 0; v < subject->count; v++) {
        bool room = in_tradeoff(subject, v) && on_frontier(subject, v) && !named[v];
        for (int u = 0; room && u < subject->count; u++)
            room = !named[u] || !crowded(&subject->variant[u], &subject->variant[v], spread);
        named[v] |= room;
    }
}

static void kind_of(const struct subject *subject, int v, int detail, struct str *out) {
    str_clear(out);
    subject_kind(subject, v, detail, out);
}

/* Distinct kinds among the variants of the figure; kinds[FIGURE_BLOCKS]. Returns FIGURE_BLOCKS + 1
 * when there are more. */
static int list_kinds(const struct subject *subject, int detail, struct str *kinds) {
    int n = 0;
    struct str kind = {0};
    for (int v = 0; v < subject->count && n <= FIGURE_BLOCKS; v++) {
        if (!in_tradeoff(subject, v)) continue;
        kind_of(subject, v, detail, &kind);
        int at = 0;
        while (at < n && strcmp(str_text(&kinds[at]), str_text(&kind)) != 0) at++;
        if (at < n) continue;
        if (n < FIGURE_BLOCKS) str_puts(&kinds[n], str_text(&kind));
        n++;
    }
    str_free(&kind);
    return n;
}

static struct table *tradeoff_block(const struct subject *subject, int detail, const char *kind,
                                    const bool *named, struct err *err) {
    const struct table_column columns[] = {{"maxvio_batch", "", TABLE_REAL},
                                           {"mass_retained", "", TABLE_REAL},
                                           {"agreement", "", TABLE_REAL},
                                           {"variant", "", TABLE_TEXT},
                                           {kind, "", TABLE_TEXT}};
    struct table *table = table_create(columns, 5, err);
    struct str own = {0};
    for (int v = 0; table && v < subject->count; v++) {
        const struct subject_variant *variant = &subject->variant[v];
        if (!in_tradeoff(subject, v)) continue;
        kind_of(subject, v, detail, &own);
        if (strcmp(str_text(&own), kind) != 0) continue;
        char name[24] = "";
        if (named[v]) snprintf(name, sizeof name, "%d", variant->variant);
        table_real(table, variant->maxvio_batch);
        table_real(table, variant->mass_retained);
        table_real(table, variant->agreement);
        table_text(table, name);
        table_text(table, variant->gate);
    }
    str_free(&own);
    return table;
}

static bool tradeoff_caption(const struct subject *subject, struct str *caption, struct err *err) {
    const struct subject_variant *native = &subject->variant[subject->native];
    int best = subject_best(subject), frontier = 0, points = 0;
    for (int v = 0; v < subject->count; v++) {
        if (!in_tradeoff(subject, v)) continue;
        points++;
        frontier += on_frontier(subject, v);
    }
    str_printf(caption,
               "%d of %d variants of different load are on the frontier: none "
               "is at once more even and keeps more of the gate's mass. ",
               frontier, points);
    if (best < 0) {
        str_puts(caption, "None is more even within batches than ");
        subject_name(subject, subject->native, caption);
        str_puts(caption, ".");
        return true;
    }
    const struct subject_variant *v = &subject->variant[best];
    str_puts(caption, "The most even, ");
    subject_name(subject, best, caption);
    str_printf(caption,
               ", brings MaxVio within batches from %.3g to %.3g and keeps %.2f %% of the "
               "mass and %.1f %% of the native choices; MaxVio over all tokens changes by ",
               native->maxvio_batch, v->maxvio_batch, 100 * v->mass_retained, 100 * v->agreement);
    bool ok = put_difference(subject, best, caption, err);
    str_puts(caption, ".");
    return ok;
}

bool study_tradeoff(const struct subject *subjects, int count, struct figure *figure,
                    struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    struct str kinds[FIGURE_BLOCKS] = {{0}};
    int detail = KIND_DETAIL, n = list_kinds(subject, detail, kinds);
    while (n > FIGURE_BLOCKS && detail > 0) {
        for (int i = 0; i < FIGURE_BLOCKS; i++) str_clear(&kinds[i]);
        n = list_kinds(subject, --detail, kinds);
    }
    if (n > FIGURE_BLOCKS) n = FIGURE_BLOCKS;
    bool *named = calloc((size_t)subject->count + 1, sizeof *named);
    bool ok = named ? true : err_memory(err, "figure");
    if (ok && n > 0) choose_names(subject, named);
    int points = 0;
    for (int v = 0; v < subject->count; v++) points += in_tradeoff(subject, v);
    if (n > 0 && points < 2) {
        str_puts(&figure->lacks, "needs at least two variants of different load");
        n = 0;
    } else if (n == 0)
        str_puts(&figure->lacks,
                 "no variant has a known gate mass (a trace of router scores is needed)");
    for (int i = 0; ok && i < n; i++)
        ok = figure_add(figure, tradeoff_block(subject, detail, str_text(&kinds[i]), named, err));
    if (ok && n > 0) ok = tradeoff_caption(subject, &figure->caption, err);
    for (int i = 0; i < FIGURE_BLOCKS; i++) str_free(&kinds[i]);
    free(named);
    return ok;
}

/* ---- gate weights under each normalisation */

/* Variants of the reference's load that differ in their gate (so: in what acts after the choice).
 */
static int pick_norms(const struct subject *subject, int most, int *chosen) {
    int n = 0, root = subject_root(subject, subject->native);
    for (int v = 0; v < subject->count && n < most; v++) {
        if (subject_root(subject, v) != root) continue;
        bool seen = false;
        for (int i = 0; i < n; i++)
            seen |= strcmp(subject->variant[chosen[i]].gate, subject->variant[v].gate) == 0;
        if (!seen) chosen[n++] = v;
    }
    return n;
}

bool study_gate_weights(const struct subject *subjects, int count, struct figure *figure,
                        struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int chosen[SERIES];
    int n = pick_norms(subject, SERIES, chosen);
    const struct study_series series = {"study_weights", "place", "mean", "sd"};
    if (!study_block(subject, &series, chosen, n, figure, err)) return false;
    const struct table *t = figure->block[0];
    if (n < 2 || table_rows(t) == 0) {
        str_puts(&figure->lacks,
                 n < 2 ? "needs at least two normalisations: replay with --norm none,sum"
                       : "the replay recorded no gate weights");
        return true;
    }
    str_puts(&figure->caption, "The weights of a token's experts add up to ");
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t row = 0; row < table_rows(t); row++) sum += table_number(t, row, 1 + 2 * i);
        str_printf(&figure->caption, "%s%.3g (first chosen: %.0f %% of it) under %s",
                   i == 0       ? ""
                   : i + 1 == n ? " and "
                                : ", ",
                   sum, 100 * table_number(t, 0, 1 + 2 * i) / sum,
                   table_column(t, 1 + 2 * i)->name);
    }
    str_puts(&figure->caption,
             ", on average over tokens and layers; bars are standard deviations over "
             "tokens. The load is the same under all of them: these variants differ "
             "only in what acts after the choice.");
    return true;
}

/* ---- ranks */

/* Variants that differ from `like` in nothing but the number of ranks. */
static bool but_for_ranks(const struct subject_variant *a, const struct subject_variant *b) {
    bool rates = a->bias_rate == b->bias_rate || (isnan(a->bias_rate) && isnan(b->bias_rate));
    return rates && a->batch_tokens == b->batch_tokens && strcmp(a->gate, b->gate) == 0 &&
           strcmp(a->bias_rule, b->bias_rule) == 0 && strcmp(a->bias_start, b->bias_start) == 0;
}

static struct table *ranks_block(const struct subject *subject, const int *chosen, int n,
                                 bool efficiency, struct err *err) {
    struct wide wide = {0};
    struct str labels[SERIES] = {{0}};
    subject_labels(subject, chosen, n, labels);
    for (int i = 0; i < n; i++) {
        wide_series(&wide, str_text(&labels[i]));
        for (int v = 0; v < subject->count; v++) {
            const struct subject_variant *variant = &subject->variant[v];
            if (variant->ranks && but_for_ranks(variant, &subject->variant[chosen[i]]))
                wide_value(&wide, variant->ranks,
                           efficiency ? variant->efficiency : variant->rank_maxvio);
        }
        str_free(&labels[i]);
    }
    struct table *table = wide_table(&wide, "ranks", err);
    wide_free(&wide);
    return table;
}

bool study_ranks(const struct subject *subjects, int count, struct figure *figure,
                 struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int chosen[SERIES];
    int n = subject_pick(subject, SERIES, chosen);
    if (!figure_add(figure, ranks_block(subject, chosen, n, false, err)) ||
        !figure_add(figure, ranks_block(subject, chosen, n, true, err)))
        return false;
    const struct table *t = figure->block[1];
    int64_t last = table_rows(t) - 1;
    if (last < 1) {
        str_puts(&figure->lacks, "needs at least two numbers of ranks: replay with --ranks 2,4,8");
        return true;
    }
    double native = table_number(t, last, 1);
    str_puts(&figure->caption, "With experts in contiguous blocks, ");
    subject_name(subject, chosen[0], &figure->caption);
    str_printf(&figure->caption,
               " allows at most %.1f %% of the speed of an even load on %.0f ranks, "
               "%.1f %% on %.0f",
               100 * native, table_number(t, last, 0), 100 * table_number(t, 0, 1),
               table_number(t, 0, 0));
    if (n > 1) {
        double other = table_number(t, last, 2);
        str_puts(&figure->caption, "; ");
        subject_name(subject, chosen[1], &figure->caption);
        str_printf(&figure->caption, " %.1f %% on %.0f, which is %.1f %% %s", 100 * other,
                   table_number(t, last, 0), 100 * fabs(other / native - 1),
                   other >= native ? "faster" : "slower");
    }
    str_puts(&figure->caption, " (a bound for layers that are compute-bound, not a forecast).");
    return true;
}
