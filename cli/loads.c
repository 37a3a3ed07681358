/* loads.c - expert loads of one variant document by document, and intervals from them */
#include "cli/loads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"
#include "traces/result_read.h"

/* cluster[documents] <- which cluster each document goes to: neighbours of one domain together, so
 * many that there are at most LOADS_CLUSTERS plus one for each domain. Returns how many. */
static int gather_documents(const struct trace *trace, int *cluster, int *domain_of) {
    int64_t documents = trace_documents(trace);
    int64_t together = documents / LOADS_CLUSTERS + 1;
    int clusters = 0;
    for (int domain = 0; domain < trace_domains(trace); domain++) {
        int64_t seen = 0;
        for (int64_t d = 0; d < documents; d++) {
            if (trace_domain_of(trace, d) != domain) continue;
            if (seen++ % together == 0) domain_of[clusters++] = domain;
            cluster[d] = clusters - 1;
        }
    }
    return clusters;
}

static bool set_up(const struct trace *trace, struct loads *loads, int *cluster, struct err *err) {
    loads->documents = trace_documents(trace);
    loads->layers = trace_layers(trace);
    loads->domains = trace_domains(trace);
    loads->first = calloc((size_t)loads->layers + 1, sizeof *loads->first);
    loads->domain = calloc((size_t)loads->documents + 1, sizeof *loads->domain);
    if (!loads->first || !loads->domain) return err_memory(err, "loads");
    for (int r = 0; r < loads->layers; r++)
        loads->first[r + 1] = loads->first[r] + trace_layer(trace, r)->experts;
    loads->clusters = gather_documents(trace, cluster, loads->domain);
    loads->counts = calloc((size_t)loads->clusters * (size_t)loads->first[loads->layers] + 1,
                           sizeof *loads->counts);
    return loads->counts ? true : err_memory(err, "loads");
}

struct adding {
    struct loads *loads;
    const int *cluster;
    int r;
};

static void add_document(void *context, int64_t document, const int64_t *counts) {
    struct adding *adding = context;
    struct loads *loads = adding->loads;
    const int *first = loads->first;
    int64_t *row = loads->counts + (size_t)adding->cluster[document] * (size_t)first[loads->layers];
    for (int e = first[adding->r]; e < first[adding->r + 1]; e++)
        row[e] += counts[e - first[adding->r]];
    loads->found = true;
}

bool loads_read(const struct subject *subject, int v, struct loads *loads, struct err *err) {
    *loads = (struct loads){0};
    struct trace *trace = subject->trace;
    int *cluster = calloc((size_t)trace_documents(trace) + 1, sizeof *cluster);
    bool ok = cluster ? set_up(trace, loads, cluster, err) : err_memory(err, "loads");
    int variant = subject->variant[subject_root(subject, v)].variant;
    for (int r = 0; ok && r < loads->layers; r++) {
        struct adding adding = {loads, cluster, r};
        ok = result_read_documents(trace, variant, r, add_document, &adding, err);
    }
    free(cluster);
    return ok;
}

void loads_free(struct loads *loads) {
    free(loads->first);
    free(loads->counts);
    free(loads->domain);
    *loads = (struct loads){0};
}

static void add_row(const struct loads *loads, int cluster, int64_t *total) {
    size_t width = (size_t)loads->first[loads->layers];
    const int64_t *row = loads->counts + (size_t)cluster * width;
    for (size_t e = 0; e < width; e++) total[e] += row[e];
}

void loads_sum(const struct loads *loads, int domain, int64_t *total) {
    memset(total, 0, (size_t)loads->first[loads->layers] * sizeof *total);
    for (int c = 0; c < loads->clusters; c++)
        if (domain < 0 || loads->domain[c] == domain) add_row(loads, c, total);
}

/* Mean over layers of MaxVio of total[first[L]]. */
static double mean_maxvio(const struct loads *loads, const int64_t *total) {
    double sum = 0;
    for (int r = 0; r < loads->layers; r++)
        sum += balance_maxvio(total + loads->first[r], loads->first[r + 1] - loads->first[r]);
    return sum / loads->layers;
}

double loads_maxvio(const struct loads *loads, int domain) {
    int64_t *total = calloc((size_t)loads->first[loads->layers] + 1, sizeof *total);
    if (!total) return (double)NAN;
    loads_sum(loads, domain, total);
    double value = mean_maxvio(loads, total);
    free(total);
    return value;
}

struct drawing {
    const struct loads_contrast *contrast;
    int64_t *total; /* scratch */
};

static double drawn_maxvio(const struct loads *loads, int domain, const int *picked, int count,
                           int64_t *total) {
    memset(total, 0, (size_t)loads->first[loads->layers] * sizeof *total);
    for (int i = 0; i < count; i++)
        if (domain < 0 || loads->domain[picked[i]] == domain) add_row(loads, picked[i], total);
    return mean_maxvio(loads, total);
}

static double contrast_of(void *context, const int *picked, int count) {
    struct drawing *drawing = context;
    const struct loads_contrast *c = drawing->contrast;
    double a = drawn_maxvio(c->a, c->domain_a, picked, count, drawing->total);
    return c->b ? a - drawn_maxvio(c->b, c->domain_b, picked, count, drawing->total) : a;
}

bool loads_interval(const struct loads_contrast *contrast, struct interval *out, struct err *err) {
    const struct loads *loads = contrast->a;
    double cost = (double)loads->clusters * loads->first[loads->layers] * (contrast->b ? 2 : 1);
    /* about two seconds at most; 200 draws still place a 95 % interval roughly */
    double affordable = 4e9 / (cost + 1);
    struct bootstrap_options options = {.resamples = affordable > 2000  ? 2000
                                                     : affordable < 200 ? 200
                                                                        : (int)affordable,
                                        .seed = 1,
                                        .kind = BOOTSTRAP_BASIC};
    struct drawing drawing = {
        contrast, calloc((size_t)loads->first[loads->layers] + 1, sizeof *drawing.total)};
    if (!drawing.total) return err_memory(err, "bootstrap");
    bool ok = bootstrap(loads->clusters, contrast_of, &drawing, &options, out, err);
    if (ok && !contrast->b) { /* MaxVio is never negative */
        if (out->low < 0) out->low = 0;
        if (out->high < 0) out->high = 0;
    }
    free(drawing.total);
    return ok;
}

void loads_put_interval(const struct loads *loads, const struct interval *interval,
                        struct str *out) {
    if (isnan(interval->low) || isnan(interval->high)) {
        str_printf(out, "(no interval: %lld document%s)", (long long)loads->documents,
                   loads->documents == 1 ? "" : "s");
        return;
    }
    str_printf(out, "(%s95 %% interval %.3g to %.3g, bootstrap over %lld documents%s)",
               interval->few ? "rough " : "", interval->low, interval->high,
               (long long)loads->documents,
               interval->high < interval->estimate
                   ? "; it lies below because few tokens make a maximum look larger"
                   : "");
}
