/* study_drift.c - the study of domains that follow each other: how far the load moves, who follows
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/drift.h"
#include "cli/loads.h"
#include "cli/studies.h"

enum { SERIES = 7, STRETCHES = 64 };

/* The stretches of text, in batches. */
struct text {
    int *kind; /* [batches] domain of each batch's middle token; owned */
    int64_t batches, batch_tokens;
    struct drift_stretch stretch[STRETCHES];
    int stretches;
};

/* Were the tokens replayed as captured? Else no batch is of one domain. */
static bool in_order(const struct subject *subject, bool *yes, struct err *err) {
    struct table *t = trace_query(subject->trace, "replay_experiment", NULL, 0, err);
    *yes = t && table_rows(t) > 0 &&
           strcmp(table_cell(t, 0, table_find(t, "token_order")), "captured") == 0;
    table_free(t);
    return t != NULL;
}

static bool read_text(const struct subject *subject, int64_t batch_tokens, int64_t batches,
                      struct text *text, struct err *err) {
    *text = (struct text){.batches = batches, .batch_tokens = batch_tokens};
    text->kind = calloc((size_t)batches + 1, sizeof *text->kind);
    if (!text->kind) return err_memory(err, "domains");
    int64_t d = 0, documents = trace_documents(subject->trace);
    for (int64_t b = 0; b < batches; b++) {
        int64_t middle = b * batch_tokens + batch_tokens / 2;
        while (d + 1 < documents && trace_document(subject->trace, d + 1)->first_token <= middle)
            d++;
        text->kind[b] = trace_domain_of(subject->trace, d);
    }
    return true;
}

/* MaxVio of one variant by batch, and its stretches. */
static bool follow(const struct table *block, int column, struct text *text, struct err *err) {
    double *maxvio = malloc((size_t)text->batches * sizeof *maxvio + 1);
    if (!maxvio) return err_memory(err, "trajectory");
    for (int64_t b = 0; b < text->batches; b++) maxvio[b] = table_number(block, b, column);
    text->stretches = drift_stretches(text->kind, maxvio, text->batches, text->stretch, STRETCHES);
    free(maxvio);
    return true;
}

static struct table *boundaries(const struct subject *subject, const struct text *text,
                                struct err *err) {
    static const struct table_column columns[] = {{"batch", "", TABLE_INT},
                                                  {"domain", "", TABLE_TEXT}};
    struct table *t = table_create(columns, 2, err);
    for (int i = 0; t && i < text->stretches; i++) {
        table_int(t, text->stretch[i].first);
        table_text(t, trace_domain(subject->trace, text->kind[text->stretch[i].first]));
    }
    return t;
}

/* Mean over layers and over changes of the distance between a domain's load and the next one's. */
static bool put_distance(const struct subject *subject, const struct text *text, struct str *out,
                         struct err *err) {
    struct loads loads;
    bool ok = loads_read(subject, subject->native, &loads, err);
    size_t width = ok && loads.found ? (size_t)loads.first[loads.layers] : 0;
    int64_t *a = calloc(2 * width + 1, sizeof *a), *b = a ? a + width : NULL;
    double variation = 0, divergence = 0, n = 0;
    if (ok && !a) ok = err_memory(err, "loads");
    for (int i = 1; ok && width > 0 && i < text->stretches; i++) {
        loads_sum(&loads, text->kind[text->stretch[i - 1].first], a);
        loads_sum(&loads, text->kind[text->stretch[i].first], b);
        for (int r = 0; r < loads.layers; r++, n++) {
            int from = loads.first[r], experts = loads.first[r + 1] - from;
            variation += drift_variation(a + from, b + from, experts);
            divergence += drift_divergence(a + from, b + from, experts);
        }
    }
    if (n > 0 && isfinite(variation))
        str_printf(
            out,
            "At a change of domain on average %.1f %% of the choices of the reference move to "
            "other experts (Jensen-Shannon divergence %.3f bits). ",
            100 * variation / n, divergence / n);
    free(a);
    loads_free(&loads);
    return ok;
}

/* What happens at the changes, in the mean over them. */
static void put_changes(const struct text *text, struct str *out) {
    double before = 0, start = 0, level = 0, settling = 0;
    int n = text->stretches - 1, settled = 0;
    for (int i = 1; i < text->stretches; i++) {
        const struct drift_stretch *s = &text->stretch[i];
        before += s->before / n;
        start += s->start / n;
        level += s->level / n;
        if (isnan(s->settling)) continue;
        settling += s->settling;
        settled++;
    }
    str_printf(out, "MaxVio goes from %.3g to %.3g at a change and on to %.3g", before, start,
               level);
    if (settled > 0)
        str_printf(out, ", settling after %.1f batches (%lld tokens) at %d of %d",
                   settling / settled,
                   (long long)llround(settling / settled * (double)text->batch_tokens), settled, n);
    else
        str_puts(out, ", no settling told from noise");
}

static bool tell(const struct subject *subject, const int *chosen, int rates, int n,
                 struct text *text, struct figure *figure, struct err *err) {
    struct str *out = &figure->caption;
    if (!put_distance(subject, text, out, err)) return false;
    for (int i = 0; i < n; i++) {
        if (!follow(figure->block[0], i + 1, text, err)) return false;
        if (i < rates)
            str_printf(out, "%s rate %g: ", i ? ";" : "With the rule moving the bias,",
                       subject->variant[chosen[i]].bias_rate);
        else
            str_puts(out, "; the reference, which never moves its bias: ");
        put_changes(text, out);
    }
    str_printf(out, " (means over %d changes; balance batches of %lld tokens).",
               text->stretches - 1, (long long)text->batch_tokens);
    return true;
}

static bool draw(const struct subject *subject, const int *chosen, int rates, int n,
                 struct figure *figure, struct err *err) {
    const struct study_series series = {"study_trajectory", "batch", "maxvio", NULL};
    struct text text = {0};
    if (!study_block(subject, &series, chosen, n, figure, err)) return false;
    const struct table *block = figure->block[0];
    bool ok = read_text(subject, subject->variant[chosen[0]].batch_tokens, table_rows(block), &text,
                        err) &&
              follow(block, 1, &text, err);
    if (ok && (text.stretches < 2 || text.stretches > STRETCHES)) {
        str_printf(&figure->lacks,
                   "needs text whose domain changes now and then, batch by batch: found %d "
                   "stretches of one domain in %lld batches",
                   text.stretches, (long long)text.batches);
    } else if (ok) {
        ok = figure_add(figure, boundaries(subject, &text, err)) &&
             tell(subject, chosen, rates, n, &text, figure, err);
    }
    free(text.kind);
    return ok;
}

bool study_domain_drift(const struct subject *subjects, int count, struct figure *figure,
                        struct err *err) {
    (void)count;
    const struct subject *subject = &subjects[0];
    int chosen[SERIES + 1];
    int rates = study_rates(subject, SERIES, chosen), n = rates;
    bool ordered = true;
    if (rates == 0) {
        str_puts(&figure->lacks,
                 "no bias moves here: replay with --bias-rule sign --bias-rate 0.0001,0.001,0.01");
        return true;
    }
    if (!in_order(subject, &ordered, err)) return false;
    if (!ordered) {
        str_puts(&figure->lacks, "the tokens were shuffled: replay with --order captured");
        return true;
    }
    int native = study_native_at(subject, subject->variant[chosen[0]].batch_tokens);
    if (native >= 0) chosen[n++] = native;
    return draw(subject, chosen, rates, n, figure, err);
}
