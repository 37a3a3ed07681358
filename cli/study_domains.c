/* study_domains.c - studies across domains, and across models */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "analysis/balance.h"
#include "analysis/drift.h"
#include "cli/loads.h"
#include "cli/studies.h"
#include "cli/wide.h"

static const char no_loads[] =
    "the result holds no load per document (only a replay of a trace with documents records it)";
static const char one_domain[] = "needs at least two domains: capture with --domain NAME=FILE";

/* Loads of the reference variant when there are domains to compare; else says why not. */
static bool domain_loads(const struct subject *subject, struct loads *loads, struct figure *figure,
                         struct err *err) {
    if (!loads_read(subject, subject->native, loads, err)) return false;
    if (!loads->found)
        str_puts(&figure->lacks, no_loads);
    else if (loads->domains < 2)
        str_puts(&figure->lacks, one_domain);
    return true;
}

/* totals[(domains + 1), width] <- each domain's load, and last that of all. Returns owned. */
static int64_t *domain_totals(const struct loads *loads, struct err *err) {
    size_t width = (size_t)loads->first[loads->layers];
    int64_t *totals = calloc(((size_t)loads->domains + 1) * width + 1, sizeof *totals);
    if (!totals) {
        err_memory(err, "domains");
        return NULL;
    }
    for (int d = 0; d <= loads->domains; d++)
        loads_sum(loads, d < loads->domains ? d : -1, totals + (size_t)d * width);
    return totals;
}

static double mean_distance(const struct loads *loads, const int64_t *totals, int r) {
    size_t width = (size_t)loads->first[loads->layers];
    int first = loads->first[r], experts = loads->first[r + 1] - first, counted = 0;
    double sum = 0;
    for (int d = 0; d < loads->domains; d++) {
        double x = drift_variation(totals + (size_t)d * width + first,
                                   totals + (size_t)loads->domains * width + first, experts);
        if (isnan(x)) continue;
        sum += x;
        counted++;
    }
    return sum / counted;
}

enum { MAP_DOMAINS = 24, NAME_CHARACTERS = 24 };

/* Appends a name, cut where it would leave no room for the figure. */
static void put_short(const char *name, struct str *out) {
    const char *end = name;
    for (int n = 0; *end && n < NAME_CHARACTERS; n++) do
            end++;
        while (((unsigned char)*end & 0xc0) == 0x80);
    str_append(out, name, (size_t)(end - name));
    if (*end) str_puts(out, "...");
}

/* The matrix domain x expert of load / mean at router r: the first domains, and all together. */
static struct table *domain_matrix(const struct subject *subject, const struct loads *loads,
                                   const int64_t *totals, int r, struct err *err) {
    size_t width = (size_t)loads->first[loads->layers];
    int first = loads->first[r], experts = loads->first[r + 1] - first;
    struct table_column *columns = calloc((size_t)experts + 1, sizeof *columns);
    char(*names)[16] = calloc((size_t)experts + 1, sizeof *names);
    struct table *table = NULL;
    if (columns && names) {
        columns[0] = (struct table_column){"domain", "", TABLE_TEXT};
        for (int e = 0; e < experts; e++) {
            snprintf(names[e], sizeof names[e], "%d", e);
            columns[e + 1] = (struct table_column){names[e], "", TABLE_REAL};
        }
        table = table_create(columns, experts + 1, err);
    } else {
        err_memory(err, "figure data");
    }
    for (int d = 0; table && d <= loads->domains; d++) {
        if (d >= MAP_DOMAINS && d < loads->domains) continue;
        const int64_t *n = totals + (size_t)d * width + first;
        struct str name = {0};
        put_short(d < loads->domains ? trace_domain(subject->trace, d) : "all together", &name);
        table_text(table, str_text(&name));
        str_free(&name);
        for (int e = 0; e < experts; e++)
            table_real(table, (double)n[e] / balance_mean(n, experts));
    }
    free(columns);
    free(names);
    return table;
}

/* The most one-sided pair of domain and expert at router r. */
static void put_peak(const struct subject *subject, const struct loads *loads,
                     const int64_t *totals, int r, struct str *out) {
    size_t width = (size_t)loads->first[loads->layers];
    int first = loads->first[r], experts = loads->first[r + 1] - first, domain = 0, expert = 0;
    double most = -1;
    for (int d = 0; d < loads->domains; d++) {
        const int64_t *n = totals + (size_t)d * width + first;
        for (int e = 0; e < experts; e++) {
            double load = (double)n[e] / balance_mean(n, experts);
            if (!(load > most)) continue;
            most = load;
            domain = d;
            expert = e;
        }
    }
    const int64_t *all = totals + (size_t)loads->domains * width + first;
    str_printf(out,
               "The sharpest case: expert %d gets %.3g times the mean in \"%s\" and %.3g times in "
               "all text.",
               expert, most, trace_domain(subject->trace, domain),
               (double)all[expert] / balance_mean(all, experts));
}

static bool draw_map(const struct subject *subject, const struct loads *loads,
                     struct figure *figure, struct err *err) {
    int64_t *totals = domain_totals(loads, err);
    if (!totals) return false;
    int most = 0;
    double sum = 0;
    for (int r = 0; r < loads->layers; r++) {
        sum += mean_distance(loads, totals, r);
        if (mean_distance(loads, totals, r) > mean_distance(loads, totals, most)) most = r;
    }
    int layer = trace_layer(subject->trace, most)->layer;
    bool ok = figure_add(figure, domain_matrix(subject, loads, totals, most, err));
    str_printf(&figure->subtitle, ", layer %d", layer);
    str_printf(
        &figure->caption,
        "Layer %d tells the domains apart most (drawn here): on average %.1f %% of a domain's "
        "choices would have to move to be those of all text; over all layers it is %.1f %%. ",
        layer, 100 * mean_distance(loads, totals, most), 100 * sum / loads->layers);
    put_peak(subject, loads, totals, most, &figure->caption);
    if (loads->domains > MAP_DOMAINS)
        str_printf(&figure->caption, " Only the first %d of %d domains are drawn.", MAP_DOMAINS,
                   loads->domains);
    if (ok) figure->rows = (int)table_rows(figure->block[0]);
    free(totals);
    return ok;
}

bool study_domain_map(const struct subject *subjects, int count, struct figure *figure,
                      struct err *err) {
    (void)count;
    struct loads loads;
    bool ok = domain_loads(&subjects[0], &loads, figure, err);
    if (ok && figure->lacks.len == 0) ok = draw_map(&subjects[0], &loads, figure, err);
    loads_free(&loads);
    return ok;
}

/* ---- MaxVio of each domain */

enum { DOMAIN_LINES = 8 };

static struct table *domain_maxvios(const struct subject *subject, const struct loads *loads,
                                    struct err *err) {
    int64_t *totals = domain_totals(loads, err);
    if (!totals) return NULL;
    size_t width = (size_t)loads->first[loads->layers];
    struct wide wide = {0};
    for (int d = 0; d <= loads->domains; d++) {
        if (d >= DOMAIN_LINES && d < loads->domains) continue;
        struct str name = {0};
        put_short(d < loads->domains ? trace_domain(subject->trace, d) : "all together", &name);
        wide_series(&wide, str_text(&name));
        str_free(&name);
        for (int r = 0; r < loads->layers; r++)
            wide_value(&wide, trace_layer(subject->trace, r)->layer,
                       balance_maxvio(totals + (size_t)d * width + loads->first[r],
                                      loads->first[r + 1] - loads->first[r]));
    }
    free(totals);
    struct table *table = wide_table(&wide, "layer", err);
    wide_free(&wide);
    return table;
}

bool study_domain_contrast(const struct subject *subject, const struct loads *loads,
                           struct interval *interval, struct str *out, struct err *err) {
    int most = 0;
    for (int d = 1; d < loads->domains; d++)
        if (loads_maxvio(loads, d) > loads_maxvio(loads, most)) most = d;
    struct loads_contrast contrast = {loads, loads, most, -1};
    if (!loads_interval(&contrast, interval, err)) return false;
    str_printf(out,
               "by itself, \"%s\" loads the experts least evenly: MaxVio %.3g against %.3g for all "
               "text together, a difference of %.3g ",
               trace_domain(subject->trace, most), loads_maxvio(loads, most),
               loads_maxvio(loads, -1), interval->estimate);
    loads_put_interval(loads, interval, out);
    return true;
}

bool study_domain_balance(const struct subject *subjects, int count, struct figure *figure,
                          struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    struct loads loads;
    bool ok = domain_loads(subject, &loads, figure, err);
    if (ok && figure->lacks.len == 0) {
        ok = figure_add(figure, domain_maxvios(subject, &loads, err));
        str_puts(&figure->caption, "Under ");
        subject_name(subject, subject->native, &figure->caption);
        str_puts(&figure->caption, ", taken ");
        struct interval interval;
        ok = ok && study_domain_contrast(subject, &loads, &interval, &figure->caption, err);
        str_puts(&figure->caption, ", mean over layers.");
        if (loads.domains > DOMAIN_LINES)
            str_printf(&figure->caption, " Only the first %d of %d domains are drawn.",
                       DOMAIN_LINES, loads.domains);
    }
    loads_free(&loads);
    return ok;
}

/* ---- models */

static bool add_model(const struct subject *subject, const char *name, struct wide *wide,
                      struct err *err) {
    struct table *t = subject_query(subject, "study_load_curve", subject->native, err);
    if (!t) return false;
    wide_series(wide, name);
    int64_t rows = table_rows(t);
    for (int64_t row = 0; row < rows; row++)
        wide_value(wide, ((double)row + 0.5) / (double)rows,
                   table_number(t, row, table_find(t, "load")));
    table_free(t);
    return true;
}

/* "name 0.31 (interval)" */
static bool put_model(const struct subject *subject, const char *name, struct str *out,
                      struct err *err) {
    struct loads loads;
    bool ok = loads_read(subject, subject->native, &loads, err);
    str_printf(out, "%s %.3g", name, subject->variant[subject->native].maxvio_global);
    if (ok && loads.found) {
        struct interval interval;
        ok = loads_interval(&(struct loads_contrast){&loads, NULL, -1, -1}, &interval, err);
        str_puts(out, " ");
        if (ok) loads_put_interval(&loads, &interval, out);
    }
    loads_free(&loads);
    return ok;
}

bool study_models(const struct subject *subjects, int count, struct figure *figure,
                  struct err *err) {
    if (count < 2) {
        str_puts(&figure->lacks, "compares databases: report A.db B.db");
        return true;
    }
    struct wide wide = {0};
    bool ok = true;
    str_puts(&figure->caption,
             "MaxVio over all tokens under the model's own gate, mean over layers: ");
    for (int i = 0; ok && i < count; i++) {
        struct str name = {0};
        subject_model(subjects, count, i, &name);
        if (i) str_puts(&figure->caption, "; ");
        ok = add_model(&subjects[i], str_text(&name), &wide, err) &&
             put_model(&subjects[i], str_text(&name), &figure->caption, err);
        str_free(&name);
    }
    str_puts(&figure->caption, ".");
    ok = ok && figure_add(figure, wide_table(&wide, "share", err));
    wide_free(&wide);
    return ok;
}
