/* findings.c - what matters most in a replay, in plain words, by rules on the numbers */
#include "cli/findings.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/loads.h"
#include "cli/settling.h"
#include "cli/studies.h"

/* One finding being made; nothing is said while text is empty. */
struct finding {
    struct str text;
    const char *measure;
    double estimate, low, high;
};

/* MaxVio of a minus MaxVio of b over all tokens, with its interval when documents allow one. */
static bool contrast(const struct subject *a, int va, const struct subject *b, int vb,
                     struct finding *finding, struct err *err) {
    struct loads x, y = {0};
    bool ok = loads_read(a, va, &x, err) && (!b || loads_read(b, vb, &y, err));
    finding->estimate = a->variant[va].maxvio_global - (b ? b->variant[vb].maxvio_global : 0);
    if (ok && x.found && (!b || y.found)) {
        struct interval interval;
        ok = loads_interval(&(struct loads_contrast){&x, b ? &y : NULL, -1, -1}, &interval, err);
        if (ok) {
            finding->low = interval.low;
            finding->high = interval.high;
            str_puts(&finding->text, " ");
            loads_put_interval(&x, &interval, &finding->text);
        }
    }
    loads_free(&x);
    loads_free(&y);
    return ok;
}

/* ---- the rules */

static bool say_models(const struct subject *subjects, int count, struct finding *f,
                       struct err *err) {
    int even = 0, uneven = 0;
    if (count < 2) return true;
    for (int i = 1; i < count; i++) {
        double x = subjects[i].variant[subjects[i].native].maxvio_global;
        if (x < subjects[even].variant[subjects[even].native].maxvio_global) even = i;
        if (x > subjects[uneven].variant[subjects[uneven].native].maxvio_global) uneven = i;
    }
    if (even == uneven) return true;
    const struct subject *a = &subjects[uneven], *b = &subjects[even];
    double x = a->variant[a->native].maxvio_global, y = b->variant[b->native].maxvio_global;
    str_puts(&f->text, "Of the models, ");
    subject_model(subjects, count, even, &f->text);
    str_puts(&f->text, " is the most even and ");
    subject_model(subjects, count, uneven, &f->text);
    str_printf(&f->text,
               " the least: over all tokens their busiest experts get %.2f and %.2f times the mean "
               "load (mean over layers): MaxVio %.3g",
               1 + y, 1 + x, y);
    bool ok = contrast(b, b->native, NULL, 0, f, err);
    for (int i = 0; i < count; i++) { /* no difference is claimed within the interval */
        double value = subjects[i].variant[subjects[i].native].maxvio_global;
        if (i == even || i == uneven || !(value <= f->high)) continue;
        str_puts(&f->text, ", not told apart from ");
        subject_model(subjects, count, i, &f->text);
        str_printf(&f->text, " (%.3g),", value);
    }
    str_printf(&f->text, " against %.3g", x);
    f->measure = "MaxVio of the least even model";
    ok = ok && contrast(a, a->native, NULL, 0, f, err);
    str_puts(&f->text, ".");
    return ok;
}

static bool say_balance(const struct subject *subjects, int count, struct finding *f,
                        struct err *err) {
    (void)count;
    const struct subject *s = &subjects[0];
    const struct subject_variant *native = &s->variant[s->native];
    int best = subject_best(s);
    if (best < 0) {
        if (s->count < 2) return true;
        subject_name(s, s->native, &f->text);
        str_printf(&f->text,
                   " is the most even of the %d variants replayed within batches of %lld "
                   "tokens: MaxVio %.3g.",
                   s->count, (long long)native->batch_tokens, native->maxvio_batch);
        f->measure = "MaxVio within batches";
        f->estimate = native->maxvio_batch;
        return true;
    }
    const struct subject_variant *v = &s->variant[best];
    subject_name(s, best, &f->text);
    str_printf(&f->text,
               " balances best: MaxVio within batches of %lld tokens falls from %.3g to %.3g; ",
               (long long)v->batch_tokens, native->maxvio_batch, v->maxvio_batch);
    if (!isnan(v->mass_retained))
        str_printf(&f->text,
                   "it keeps %.2f %% of the gate's mass (native %.2f %%) and %.1f %% of the native "
                   "choices; ",
                   100 * v->mass_retained, 100 * native->mass_retained, 100 * v->agreement);
    str_printf(&f->text, "MaxVio over all tokens changes by %+.3g",
               v->maxvio_global - native->maxvio_global);
    f->measure = "change of MaxVio over all tokens";
    bool ok = contrast(s, best, s, s->native, f, err);
    str_puts(&f->text, ".");
    return ok;
}

/* Level and swing of a variant that moves its bias. */
static bool settled(const struct subject *s, int v, struct settling *out, struct err *err) {
    struct table *t = subject_query(s, "study_trajectory", v, err);
    if (t) *out = settling_of(t, table_find(t, "maxvio"));
    table_free(t);
    return t != NULL;
}

static bool say_rate(const struct subject *subjects, int count, struct finding *f,
                     struct err *err) {
    (void)count;
    const struct subject *s = &subjects[0];
    int best = -1, tried = 0;
    struct settling at_best = {0};
    for (int v = 0; v < s->count; v++) {
        struct settling settling;
        if (isnan(s->variant[v].bias_rate) || subject_root(s, v) != v ||
            s->variant[v].batch_tokens != s->variant[s->native].batch_tokens)
            continue;
        if (!settled(s, v, &settling, err)) return false;
        tried++;
        if (best >= 0 && !(settling.level < at_best.level)) continue;
        best = v;
        at_best = settling;
    }
    if (tried < 2) return true;
    const struct subject_variant *v = &s->variant[best];
    str_printf(&f->text, "The best of %d bias settings at batches of %lld tokens is ", tried,
               (long long)v->batch_tokens);
    subject_name(s, best, &f->text);
    str_puts(&f->text, ": ");
    if (at_best.first > 0)
        str_printf(&f->text,
                   "it settles after %d batches (%lld tokens) and then holds MaxVio within batches "
                   "at %.3g, swinging by %.2g from batch to batch.",
                   at_best.first, (long long)(at_best.first * v->batch_tokens), at_best.level,
                   at_best.swing);
    else
        str_printf(&f->text,
                   "in the second half of the replay MaxVio within batches is %.3g on average, "
                   "swinging by %.2g%s.",
                   at_best.level, at_best.swing,
                   at_best.first < 0 ? "; it still drifts there, so the replay is too short for it"
                                     : "");
    f->measure = "MaxVio within batches, second half";
    f->estimate = at_best.level;
    return true;
}

static bool say_domain(const struct subject *subjects, int count, struct finding *f,
                       struct err *err) {
    (void)count;
    const struct subject *s = &subjects[0];
    struct loads loads;
    bool ok = loads_read(s, s->native, &loads, err);
    if (ok && loads.found && loads.domains > 1) {
        struct interval interval = {0};
        struct str contrast_text = {0};
        ok = study_domain_contrast(s, &loads, &interval, &contrast_text, err);
        str_printf(&f->text, "%s: %s",
                   interval.low > 0 ? "A mix hides imbalance"
                                    : "No domain is less even than the mix beyond doubt",
                   str_text(&contrast_text));
        str_free(&contrast_text);
        str_puts(&f->text, ", mean over layers.");
        f->measure = "MaxVio of the domain minus that of all text";
        f->estimate = interval.estimate;
        f->low = interval.low;
        f->high = interval.high;
    }
    loads_free(&loads);
    return ok;
}

static bool say_ranks(const struct subject *subjects, int count, struct finding *f,
                      struct err *err) {
    (void)count, (void)err;
    const struct subject *s = &subjects[0];
    const struct subject_variant *native = &s->variant[s->native];
    if (native->ranks < 2 || isnan(native->efficiency)) return true;
    str_printf(&f->text,
               "On %d ranks the native load allows at most %.1f %% of the speed of an even one "
               "where layers are compute-bound (mean over batches and layers).",
               native->ranks, 100 * native->efficiency);
    f->measure = "efficiency";
    f->estimate = native->efficiency;
    return true;
}

static bool say_native(const struct subject *subjects, int count, struct finding *f,
                       struct err *err) {
    (void)count;
    const struct subject *s = &subjects[0];
    double x = s->variant[s->native].maxvio_global;
    str_printf(&f->text,
               "Over all tokens the busiest expert of a layer gets %.2f times the mean load "
               "(mean over layers): MaxVio %.3g",
               1 + x, x);
    f->measure = "MaxVio over all tokens";
    bool ok = contrast(s, s->native, NULL, 0, f, err);
    str_puts(&f->text, ".");
    return ok;
}

static bool (*const rules[])(const struct subject *, int, struct finding *, struct err *) = {
    say_models, say_balance, say_rate, say_domain, say_ranks, say_native};

struct table *findings_of(const struct subject *subjects, int count, struct err *err) {
    const struct table_column columns[] = {
        {"finding", "", TABLE_INT},   {"text", "", TABLE_TEXT}, {"measure", "", TABLE_TEXT},
        {"estimate", "", TABLE_REAL}, {"low", "", TABLE_REAL},  {"high", "", TABLE_REAL}};
    struct table *table = table_create(columns, 6, err);
    bool ok = table != NULL;
    for (size_t i = 0; ok && i < sizeof rules / sizeof *rules && table_rows(table) < FINDINGS;
         i++) {
        struct finding f = {{0}, "", (double)NAN, (double)NAN, (double)NAN};
        ok = rules[i](subjects, count, &f, err);
        if (ok && f.text.len > 0) {
            f.text.data[0] = (char)toupper((unsigned char)f.text.data[0]);
            table_int(table, table_rows(table) + 1);
            table_text(table, str_text(&f.text));
            table_text(table, f.measure);
            table_real(table, f.estimate);
            table_real(table, f.low);
            table_real(table, f.high);
        }
        str_free(&f.text);
    }
    if (ok) ok = table_ok(table, err);
    if (ok) return table;
    table_free(table);
    return NULL;
}
