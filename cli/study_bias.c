/* study_bias.c - studies of bias rules: how they settle, which rate, which size of balance batch */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/chance.h"
#include "cli/settling.h"
#include "cli/studies.h"
#include "cli/wide.h"

enum { SERIES = 7 };

static bool same_rule(const struct subject_variant *a, const struct subject_variant *b) {
    return strcmp(a->gate, b->gate) == 0 && strcmp(a->bias_rule, b->bias_rule) == 0 &&
           strcmp(a->bias_start, b->bias_start) == 0;
}

/* ---- settling */

/* chosen[most] <- the variants that differ from v in their rate alone, by rising rate. */
static int rates_of(const struct subject *subject, int v, int most, int *chosen) {
    const struct subject_variant *a = &subject->variant[v];
    int n = 0;
    for (int u = 0; u < subject->count; u++) {
        const struct subject_variant *b = &subject->variant[u];
        if (subject_root(subject, u) != u || !same_rule(a, b) || isnan(b->bias_rate) ||
            b->batch_tokens != a->batch_tokens || n == most)
            continue;
        int at = n++;
        for (; at > 0 && subject->variant[chosen[at - 1]].bias_rate > b->bias_rate; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = u;
    }
    return n;
}

/* The variant whose family of rates is the largest, preferring the reference's batch size; -1 when
 * no bias moves. */
static int largest_family(const struct subject *subject) {
    int64_t batch = subject->variant[subject->native].batch_tokens;
    int best = -1, most = 0;
    for (int v = 0; v < subject->count; v++) {
        int family[SERIES];
        if (isnan(subject->variant[v].bias_rate) || subject_root(subject, v) != v) continue;
        int n =
            2 * rates_of(subject, v, SERIES, family) + (subject->variant[v].batch_tokens == batch);
        if (n > most) {
            most = n;
            best = v;
        }
    }
    return best;
}

int study_rates(const struct subject *subject, int most, int *chosen) {
    int family = largest_family(subject);
    return family < 0 ? 0 : rates_of(subject, family, most, chosen);
}

int study_native_at(const struct subject *subject, int64_t batch_tokens) {
    int root = subject_root(subject, subject->native);
    for (int v = 0; v < subject->count; v++)
        if (subject_root(subject, v) == root && subject->variant[v].batch_tokens == batch_tokens)
            return v;
    return -1;
}

/* noise = the swing of a gate that does not move, at the same batches; NaN when not known. */
static void put_settling(const struct subject *subject, int v, const struct settling *s,
                         double noise, struct str *out) {
    const struct subject_variant *variant = &subject->variant[v];
    enum { WILD = 5 }; /* times the noise */
    str_printf(out, "rate %g ", variant->bias_rate);
    if (s->swing > WILD * noise && s->first >= 0)
        str_puts(out, "does not settle but oscillates around");
    else if (s->first < 0)
        str_puts(out, "has not settled within the replay: it is at");
    else if (fabs(s->start - s->level) < 0.05 * s->level)
        str_puts(out, "barely moves from its start: it is at");
    else
        str_printf(out, "settles after %d batches (%lld tokens) at", s->first,
                   (long long)(s->first * variant->batch_tokens));
    str_printf(out, " %.3g, swinging by %.2g", s->level, s->swing);
}

bool study_bias_trajectory(const struct subject *subjects, int count, struct figure *figure,
                           struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int family = largest_family(subject);
    if (family < 0) {
        str_puts(&figure->lacks,
                 "no bias moves here: replay with --bias-rule sign --bias-rate 0.0001,0.001,0.01");
        return true;
    }
    int chosen[SERIES + 1];
    int n = rates_of(subject, family, SERIES, chosen), rates = n;
    int native = study_native_at(subject, subject->variant[family].batch_tokens);
    if (native >= 0) chosen[n++] = native;
    const struct study_series series = {"study_trajectory", "batch", "maxvio", NULL};
    if (!study_block(subject, &series, chosen, n, figure, err)) return false;
    str_printf(&figure->caption, "With the %s rule on balance batches of %lld tokens, ",
               subject->variant[family].bias_rule,
               (long long)subject->variant[family].batch_tokens);
    double noise = native < 0 ? (double)NAN : settling_of(figure->block[0], n).swing;
    for (int i = 0; i < rates; i++) {
        struct settling settling = settling_of(figure->block[0], i + 1);
        if (i) str_puts(&figure->caption, "; ");
        put_settling(subject, chosen[i], &settling, noise, &figure->caption);
    }
    str_puts(&figure->caption,
             " (level and swing: mean and standard deviation of MaxVio within batches "
             "over the second half, mean over layers).");
    if (native < 0) return true;
    str_printf(&figure->caption, " The reference, which never moves its bias, is at %.3g.",
               settling_of(figure->block[0], n).level);
    return true;
}

/* ---- rates */

/* Adds level and swing of every rate at one batch size. */
static bool add_levels(const struct subject *subject, int v, struct wide *wide, struct err *err) {
    int chosen[64];
    int n = rates_of(subject, v, 64, chosen);
    char name[48];
    snprintf(name, sizeof name, "batches of %lld tokens",
             (long long)subject->variant[v].batch_tokens);
    double level[64], swing[64];
    for (int i = 0; i < n; i++) {
        struct table *t = subject_query(subject, "study_trajectory", chosen[i], err);
        if (!t) return false;
        struct settling settling = settling_of(t, table_find(t, "maxvio"));
        level[i] = settling.level;
        swing[i] = settling.swing;
        table_free(t);
    }
    wide_series(wide, name);
    for (int i = 0; i < n; i++) wide_value(wide, subject->variant[chosen[i]].bias_rate, level[i]);
    wide_series(wide, "swing");
    for (int i = 0; i < n; i++) wide_value(wide, subject->variant[chosen[i]].bias_rate, swing[i]);
    return true;
}

/* One variant per batch size of the family's gate and rule, by rising size. */
static int sizes_of(const struct subject *subject, int v, int most, int *chosen) {
    const struct subject_variant *a = &subject->variant[v];
    int n = 0;
    for (int u = 0; u < subject->count; u++) {
        const struct subject_variant *b = &subject->variant[u];
        if (subject_root(subject, u) != u || !same_rule(a, b) || isnan(b->bias_rate)) continue;
        bool seen = n == most;
        for (int i = 0; i < n; i++)
            seen |= subject->variant[chosen[i]].batch_tokens == b->batch_tokens;
        if (seen) continue;
        int at = n++;
        for (; at > 0 && subject->variant[chosen[at - 1]].batch_tokens > b->batch_tokens; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = u;
    }
    return n;
}

static void rate_caption(const struct subject *subject, int family, const struct table *t,
                         struct str *out) {
    str_printf(out, "Under the %s rule the most even rate is ", subject->variant[family].bias_rule);
    for (int c = 1; c < table_columns(t); c += 2) {
        int64_t best = 0;
        for (int64_t row = 1; row < table_rows(t); row++)
            if (!(table_number(t, row, c) >= table_number(t, best, c))) best = row;
        str_printf(out, "%s%g for %s (MaxVio %.3g, swing %.2g)", c > 1 ? ", " : "",
                   table_number(t, best, 0), table_column(t, c)->name, table_number(t, best, c),
                   table_number(t, best, c + 1));
    }
    str_puts(out,
             ". Points are means over the second half of the batches, bars the standard deviation "
             "from batch to batch.");
}

bool study_bias_rate(const struct subject *subjects, int count, struct figure *figure,
                     struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int family = largest_family(subject), chosen[4];
    int n = family < 0 ? 0 : sizes_of(subject, family, 4, chosen);
    struct wide wide = {0};
    bool ok = true;
    for (int i = 0; ok && i < n; i++) ok = add_levels(subject, chosen[i], &wide, err);
    ok = ok && figure_add(figure, wide_table(&wide, "rate", err));
    wide_free(&wide);
    if (!ok) return false;
    if (table_rows(figure->block[0]) < 2)
        str_puts(
            &figure->lacks,
            "needs at least two rates: replay with --bias-rule sign --bias-rate 0.0001,0.001,0.01");
    else
        rate_caption(subject, family, figure->block[0], &figure->caption);
    return true;
}

/* ---- size of the balance batch */

static bool but_for_batch(const struct subject_variant *a, const struct subject_variant *b) {
    return same_rule(a, b) &&
           (a->bias_rate == b->bias_rate || (isnan(a->bias_rate) && isnan(b->bias_rate)));
}

static double chance_of(const struct subject *subject, int64_t tokens) {
    double sum = 0;
    int layers = trace_layers(subject->trace);
    for (int r = 0; r < layers; r++) {
        const struct trace_layer *layer = trace_layer(subject->trace, r);
        sum += chance_maxvio(layer->experts, layer->topk, tokens);
    }
    return sum / layers;
}

static struct table *batch_sizes(const struct subject *subject, const int *chosen, int n,
                                 struct err *err) {
    struct wide wide = {0};
    struct str labels[SERIES] = {{0}};
    subject_labels(subject, chosen, n, labels);
    for (int i = 0; i < n; i++) {
        wide_series(&wide, str_text(&labels[i]));
        for (int v = 0; v < subject->count; v++)
            if (but_for_batch(&subject->variant[v], &subject->variant[chosen[i]]))
                wide_value(&wide, (double)subject->variant[v].batch_tokens,
                           subject->variant[v].maxvio_batch);
        str_free(&labels[i]);
    }
    wide_series(&wide, "chance alone");
    for (int v = 0; v < subject->count; v++)
        wide_value(&wide, (double)subject->variant[v].batch_tokens,
                   chance_of(subject, subject->variant[v].batch_tokens));
    struct table *table = wide_table(&wide, "batch_tokens", err);
    wide_free(&wide);
    return table;
}

bool study_batch_size(const struct subject *subjects, int count, struct figure *figure,
                      struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int chosen[SERIES];
    int n = subject_pick(subject, SERIES, chosen);
    if (!figure_add(figure, batch_sizes(subject, chosen, n, err))) return false;
    const struct table *t = figure->block[0];
    int64_t last = table_rows(t) - 1;
    if (last < 1) {
        str_puts(&figure->lacks,
                 "needs at least two sizes: replay with --batch-tokens 1024,4096,16384");
        return true;
    }
    str_puts(&figure->caption, "Under ");
    subject_name(subject, chosen[0], &figure->caption);
    int chance = table_columns(t) - 1;
    str_printf(
        &figure->caption,
        " MaxVio within a batch goes from %.3g at %.0f tokens to %.3g at %.0f. A perfectly even "
        "router would show %.3g and %.3g by chance alone: what lies above is the gate's.",
        table_number(t, 0, 1), table_number(t, 0, 0), table_number(t, last, 1),
        table_number(t, last, 0), table_number(t, 0, chance), table_number(t, last, chance));
    return true;
}
