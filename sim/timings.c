/* timings.c - reading measured layer times, and the error of the model on them */
#include "sim/timings.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/describe.h"
#include "base/csv.h"
#include "base/str.h"
#include "base/threads.h"
#include "sim/cluster.h"

/* ---- reading */

struct columns {
    int gpu, quant, hidden, inter, topk, experts, ranks, distribution, tokens, latency;
    int framework, version, kernel, gated, tensor, phase, flag, slots; /* -1: absent */
};

static bool find_columns(const struct csv *csv, struct columns *c, struct err *err) {
    const struct {
        const char *name;
        int *place;
        bool required;
    } wanted[] = {{"gpu", &c->gpu, true},
                  {"quant", &c->quant, true},
                  {"hidden_size", &c->hidden, true},
                  {"inter_size", &c->inter, true},
                  {"topk", &c->topk, true},
                  {"num_experts", &c->experts, true},
                  {"moe_ep", &c->ranks, true},
                  {"distribution", &c->distribution, true},
                  {"num_tokens", &c->tokens, true},
                  {"latency_ms", &c->latency, true},
                  {"framework", &c->framework, false},
                  {"version", &c->version, false},
                  {"kernel", &c->kernel, false},
                  {"gated", &c->gated, false},
                  {"moe_tp", &c->tensor, false},
                  {"phase", &c->phase, false},
                  {"flag", &c->flag, false},
                  {"num_slots", &c->slots, false}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].place = csv_find(csv, wanted[i].name);
        if (wanted[i].required && !csv_need(csv, wanted[i].name, wanted[i].place, err))
            return false;
    }
    return true;
}

static const char *text_or(const struct csv *csv, int64_t row, int column, const char *otherwise) {
    return column < 0 ? otherwise : csv_text(csv, row, column);
}

/* The wide-EP tables name no framework; each has a layout of its own. */
static bool is_sglang_wide_ep(const struct columns *c) { return c->phase >= 0 && c->kernel < 0; }

static const char *framework_of_layout(const struct columns *c) {
    if (is_sglang_wide_ep(c)) return "sglang";
    return c->slots >= 0 ? "trtllm" : "unknown";
}

/* Index of the row's kernel, made when it is new; -1 with err set. */
static int kernel_of(struct timings *t, const struct columns *c, int64_t row, struct err *err) {
    struct timing_kernel key = {
        .gpu = csv_text(t->csv, row, c->gpu),
        .framework = text_or(t->csv, row, c->framework, framework_of_layout(c)),
        .version = text_or(t->csv, row, c->version, ""),
        .kernel = text_or(t->csv, row, c->kernel, text_or(t->csv, row, c->phase, "unknown")),
        .quant = csv_text(t->csv, row, c->quant)};
    for (int back = 1; back <= t->kernel_count; back++) {
        const struct timing_kernel *k = &t->kernels[t->kernel_count - back];
        if (strcmp(k->gpu, key.gpu) == 0 && strcmp(k->kernel, key.kernel) == 0 &&
            strcmp(k->quant, key.quant) == 0 && strcmp(k->framework, key.framework) == 0 &&
            strcmp(k->version, key.version) == 0)
            return t->kernel_count - back;
    }
    const struct device *device = device_find(key.gpu, err);
    const struct number_format *format = device ? number_format_find(key.quant, err) : NULL;
    struct timing_kernel *more =
        format ? realloc(t->kernels, (size_t)(t->kernel_count + 1) * sizeof *more) : NULL;
    if (!more) {
        if (format)
            err_memory(err, "kernels");
        else
            err_context(err, "%s: line %lld", csv_name(t->csv), (long long)row + 2);
        return -1;
    }
    key.weight_bytes = format->weight_bytes;
    key.constants = constants_find(device, key.framework, key.kernel, key.quant);
    key.origin = constant_origin_name(key.constants.origin);
    t->kernels = more;
    t->kernels[t->kernel_count] = key;
    return t->kernel_count++;
}

static bool read_row(struct timings *t, const struct columns *c, int64_t row, struct err *err) {
    struct timing_row *out = &t->rows[row];
    int64_t hidden, inter, topk, experts, ranks, gated = 1, tensor = 1, slots = 0;
    const int64_t big = 1 << 20;
    if (!csv_int(t->csv, row, c->hidden, 1, big, &hidden, err) ||
        !csv_int(t->csv, row, c->inter, 1, big, &inter, err) ||
        !csv_int(t->csv, row, c->experts, 1, 65536, &experts, err) ||
        !csv_int(t->csv, row, c->topk, 1, experts, &topk, err) ||
        !csv_int(t->csv, row, c->ranks, 1, experts, &ranks, err) ||
        !csv_int(t->csv, row, c->tokens, 1, 1 << 24, &out->tokens, err) ||
        !csv_real(t->csv, row, c->latency, 1e-9, 1e9, &out->latency_ms, err) ||
        (c->gated >= 0 && !csv_int(t->csv, row, c->gated, 0, 1, &gated, err)) ||
        (c->tensor >= 0 && !csv_int(t->csv, row, c->tensor, 1, inter, &tensor, err)) ||
        (c->slots >= 0 && !csv_int(t->csv, row, c->slots, experts, 65536, &slots, err)))
        return false;
    if (experts % ranks != 0 || slots % ranks != 0)
        return err_set(
            err, ERR_DATA, "%s: line %lld: moe_ep: found %lld, which does not divide %lld %s",
            csv_name(t->csv), (long long)row + 2, (long long)ranks,
            (long long)(experts % ranks ? experts : slots), experts % ranks ? "experts" : "slots");
    out->kernel = kernel_of(t, c, row, err);
    if (out->kernel < 0) return false;
    struct err unknown;
    out->flagged = strcmp(text_or(t->csv, row, c->flag, "ok"), "ok") != 0;
    out->unknown_law = !load_law_parse(csv_text(t->csv, row, c->distribution), &out->law, &unknown);
    if (slots > experts && !out->law.eplb) out->unknown_law = true; /* replicas of which experts? */
    out->group = (struct load_group){(int)experts, (int)topk, (int)ranks, out->tokens,
                                     out->law.eplb ? (int)slots : 0};
    if (is_sglang_wide_ep(c) && out->law.kind == LOAD_UNIFORM &&
        out->group.tokens * topk < 128 * experts &&
        strcmp(csv_text(t->csv, row, c->phase), "context") == 0)
        out->flagged = true;
    out->model_inter = (double)inter;
    out->shape =
        (struct layer_shape){.hidden = (double)hidden,
                             .inter = (double)inter / (double)tensor,
                             .matrices = gated ? 3 : 2,
                             .weight_bytes = t->kernels[out->kernel].weight_bytes,
                             .topk = (int)topk,
                             .local_experts = (double)(slots ? slots : experts) / (double)ranks};
    return true;
}

/* ---- expected loads: rows of equal law and group share one */

static int by_number(double a, double b) { return (a > b) - (a < b); }

static int compare_group(const struct timing_row *a, const struct timing_row *b) {
    int d = by_number(a->unknown_law, b->unknown_law);
    if (!d) d = by_number(a->law.kind, b->law.kind);
    if (!d) d = by_number(a->law.exponent, b->law.exponent);
    if (!d) d = by_number(a->group.experts, b->group.experts);
    if (!d) d = by_number(a->group.topk, b->group.topk);
    if (!d) d = by_number(a->group.ranks, b->group.ranks);
    if (!d) d = by_number(a->law.eplb, b->law.eplb);
    if (!d) d = by_number(a->group.slots, b->group.slots);
    return d ? d : by_number((double)a->tokens, (double)b->tokens);
}

static int compare_rows(const void *a, const void *b) {
    return compare_group(*(struct timing_row *const *)a, *(struct timing_row *const *)b);
}

struct expecting {
    struct timing_row **order; /* [count] sorted by group */
    int64_t *first;            /* [groups+1] */
    atomic_bool failed;
};

static void expect_group(void *context, int64_t job, int worker) {
    struct expecting *e = context;
    (void)worker;
    struct timing_row *head = e->order[e->first[job]];
    struct err err;
    if (head->unknown_law) return;
    if (!load_expect(&head->law, &head->group, TIMING_DRAWS, &head->load, &err))
        atomic_store(&e->failed, true);
    for (int64_t i = e->first[job] + 1; i < e->first[job + 1]; i++) e->order[i]->load = head->load;
}

static bool expect_all(struct timings *t, int threads, struct err *err) {
    struct expecting e = {.order = malloc((size_t)t->count * sizeof *e.order),
                          .first = malloc((size_t)(t->count + 1) * sizeof *e.first)};
    struct pool *pool = pool_create(threads, err);
    bool ok = pool != NULL;
    if (ok && (!e.order || !e.first)) ok = err_memory(err, "rows");
    int64_t groups = 0;
    if (ok) {
        for (int64_t i = 0; i < t->count; i++) e.order[i] = &t->rows[i];
        qsort(e.order, (size_t)t->count, sizeof *e.order, compare_rows);
        for (int64_t i = 0; i < t->count; i++)
            if (i == 0 || compare_group(e.order[i - 1], e.order[i]) != 0) e.first[groups++] = i;
        e.first[groups] = t->count;
        pool_run(pool, groups, expect_group, &e);
        if (atomic_load(&e.failed)) ok = err_memory(err, "loads");
    }
    pool_free(pool);
    free(e.order);
    free(e.first);
    return ok;
}

static void predict(const struct timings *t, struct timing_row *row) {
    row->predicted_ms = NAN;
    if (!row->unknown_law)
        row->predicted_ms = layer_time_ms(&t->kernels[row->kernel].constants.layer, &row->shape,
                                          &row->load, (double)row->tokens);
}

bool timings_read(struct timings *timings, const char *path, int threads, struct err *err) {
    *timings = (struct timings){0};
    struct columns columns = {0};
    timings->csv = csv_read(path, (size_t)4 << 30, err);
    bool ok = timings->csv && find_columns(timings->csv, &columns, err);
    if (ok) {
        timings->count = csv_rows(timings->csv);
        if (timings->count < 1)
            ok = err_set(err, ERR_DATA, "%s: found no rows, expected measured times", path);
    }
    if (ok) {
        timings->rows = calloc((size_t)timings->count, sizeof *timings->rows);
        if (!timings->rows) ok = err_memory(err, path);
    }
    for (int64_t i = 0; ok && i < timings->count; i++) ok = read_row(timings, &columns, i, err);
    ok = ok && expect_all(timings, threads, err);
    for (int64_t i = 0; ok && i < timings->count; i++) predict(timings, &timings->rows[i]);
    if (!ok) timings_free(timings);
    return ok;
}

void timings_free(struct timings *timings) {
    csv_free(timings->csv);
    free(timings->rows);
    free(timings->kernels);
    *timings = (struct timings){0};
}

/* ---- errors */

static double error_of(double predicted_ms, double measured_ms) {
    return fabs(predicted_ms / measured_ms - 1);
}

static int compare_doubles(const void *a, const void *b) {
    return by_number(*(const double *)a, *(const double *)b);
}

/* Errors collected for one kernel and phase. */
struct sample {
    double *values; /* room for every row */
    int64_t count;
};

static void add_quantile(struct table *table, struct sample *sample, double share) {
    qsort(sample->values, (size_t)sample->count, sizeof *sample->values, compare_doubles);
    if (sample->count == 0)
        table_null(table);
    else
        table_real(table, describe_quantile_sorted(sample->values, (size_t)sample->count, share));
}

enum { SAMPLE_OK, SAMPLE_PROXY, SAMPLE_ROOFLINE, SAMPLE_ALL, SAMPLES };

static bool is_modelled(const struct timing_row *row) { return !isnan(row->predicted_ms); }

static bool is_of(const struct timing_row *row, int kernel, bool decode) {
    return row->kernel == kernel && (row->tokens <= DECODE_TOKENS) == decode;
}

static void validate_one(const struct timings *t, int kernel, bool decode,
                         struct sample samples[static SAMPLES], struct table *table) {
    const struct timing_kernel *k = &t->kernels[kernel];
    int64_t rows = 0, unmodelled = 0, ok = 0;
    for (int64_t i = 0; i < t->count; i++)
        ok += is_of(&t->rows[i], kernel, decode) && !t->rows[i].flagged && is_modelled(&t->rows[i]);
    for (int s = 0; s < SAMPLES; s++) samples[s].count = 0;
    for (int64_t i = 0; i < t->count; i++) {
        const struct timing_row *row = &t->rows[i];
        if (!is_of(row, kernel, decode)) continue;
        rows++;
        unmodelled += !is_modelled(row);
        if (!is_modelled(row)) continue;
        double found[SAMPLES];
        found[SAMPLE_OK] = found[SAMPLE_ALL] = error_of(row->predicted_ms, row->latency_ms);
        found[SAMPLE_PROXY] =
            error_of(layer_proxy_ms(&k->constants.proxy, &row->shape, &row->load), row->latency_ms);
        found[SAMPLE_ROOFLINE] = error_of(
            layer_roofline_ms(&k->constants.roofline, &row->shape, &row->load), row->latency_ms);
        for (int s = 0; s < SAMPLES; s++)
            if (s == SAMPLE_ALL || ok == 0 || !row->flagged)
                samples[s].values[samples[s].count++] = found[s];
    }
    if (rows == 0) return;
    table_text(table, k->gpu);
    table_text(table, k->framework);
    table_text(table, k->kernel);
    table_text(table, k->quant);
    table_text(table, decode ? "decode" : "prefill");
    table_int(table, rows);
    table_int(table, ok);
    add_quantile(table, &samples[SAMPLE_OK], 0.5);
    add_quantile(table, &samples[SAMPLE_OK], 0.9);
    add_quantile(table, &samples[SAMPLE_PROXY], 0.5);
    add_quantile(table, &samples[SAMPLE_ROOFLINE], 0.5);
    add_quantile(table, &samples[SAMPLE_ALL], 0.5);
    add_quantile(table, &samples[SAMPLE_ALL], 0.9);
    table_int(table, unmodelled);
    table_text(table, k->origin);
    table_text(table, k->version);
}

struct table *timings_validate(const struct timings *timings, struct err *err) {
    static const struct table_column columns[] = {{"gpu", "", TABLE_TEXT},
                                                  {"framework", "", TABLE_TEXT},
                                                  {"kernel", "", TABLE_TEXT},
                                                  {"quant", "", TABLE_TEXT},
                                                  {"phase", "", TABLE_TEXT},
                                                  {"rows", "", TABLE_INT},
                                                  {"rows_ok", "", TABLE_INT},
                                                  {"median_ape", "", TABLE_REAL},
                                                  {"p90_ape", "", TABLE_REAL},
                                                  {"proxy_median_ape", "", TABLE_REAL},
                                                  {"roofline_median_ape", "", TABLE_REAL},
                                                  {"median_ape_all", "", TABLE_REAL},
                                                  {"p90_ape_all", "", TABLE_REAL},
                                                  {"unmodelled", "", TABLE_INT},
                                                  {"origin", "", TABLE_TEXT},
                                                  {"version", "", TABLE_TEXT}};
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    struct sample samples[SAMPLES] = {0};
    bool ok = table != NULL;
    for (int s = 0; s < SAMPLES; s++) {
        samples[s].values = malloc((size_t)timings->count * sizeof(double));
        if (ok && !samples[s].values) ok = err_memory(err, "errors");
    }
    for (int k = 0; ok && k < timings->kernel_count; k++)
        for (int phase = 0; phase < 2; phase++)
            validate_one(timings, k, phase == 0, samples, table);
    for (int s = 0; s < SAMPLES; s++) free(samples[s].values);
    if (ok && table_ok(table, err)) return table;
    table_free(table);
    return NULL;
}

struct ranked {
    double error;
    int64_t row;
};

static int compare_ranked(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    int d = by_number(y->error, x->error);
    return d ? d : by_number((double)x->row, (double)y->row);
}

static void worst_row(const struct timings *t, struct ranked ranked, struct table *table) {
    const struct timing_row *row = &t->rows[ranked.row];
    const struct timing_kernel *k = &t->kernels[row->kernel];
    char shape[96];
    snprintf(shape, sizeof shape, "%g/%g/%d/%d", row->shape.hidden, row->shape.inter,
             row->group.topk, row->group.experts);
    table_int(table, ranked.row + 2);
    table_text(table, k->gpu);
    table_text(table, k->kernel);
    table_text(table, k->quant);
    table_text(table, shape);
    table_text(table, csv_text(t->csv, ranked.row, csv_find(t->csv, "distribution")));
    table_int(table, row->tokens);
    table_int(table, row->group.ranks);
    table_real(table, row->latency_ms);
    table_real(table, row->predicted_ms);
    table_real(table, ranked.error);
}

struct table *timings_worst(const struct timings *timings, int64_t count, struct err *err) {
    static const struct table_column columns[] = {
        {"line", "", TABLE_INT},         {"gpu", "", TABLE_TEXT},
        {"kernel", "", TABLE_TEXT},      {"quant", "", TABLE_TEXT},
        {"shape", "", TABLE_TEXT},       {"distribution", "", TABLE_TEXT},
        {"tokens", "", TABLE_INT},       {"ranks", "", TABLE_INT},
        {"measured_ms", "", TABLE_REAL}, {"predicted_ms", "", TABLE_REAL},
        {"ape", "", TABLE_REAL}};
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    if (!table) return NULL;
    struct ranked *all = malloc((size_t)timings->count * sizeof *all);
    bool ok = all || err_memory(err, "errors");
    int64_t found = 0;
    for (int64_t i = 0; ok && i < timings->count; i++) {
        const struct timing_row *row = &timings->rows[i];
        if (row->flagged || !is_modelled(row)) continue;
        all[found++] = (struct ranked){error_of(row->predicted_ms, row->latency_ms), i};
    }
    if (ok) qsort(all, (size_t)found, sizeof *all, compare_ranked);
    for (int64_t i = 0; ok && i < found && i < count; i++) worst_row(timings, all[i], table);
    free(all);
    if (ok && table_ok(table, err)) return table;
    table_free(table);
    return NULL;
}
