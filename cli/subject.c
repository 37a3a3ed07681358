/* subject.c - the database under study: its variants, which of them to show, and what to call them
 */
#include "cli/subject.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/native.h"
#include "router/gate.h"

/* ---- reading */

static double number(const struct table *table, int64_t row, const char *name) {
    int column = table_find(table, name);
    return column < 0 ? (double)NAN : table_number(table, row, column);
}

static const char *text(const struct table *table, int64_t row, const char *name) {
    int column = table_find(table, name);
    const char *cell = column < 0 ? NULL : table_cell(table, row, column);
    return cell ? cell : "";
}

static int64_t whole(const struct table *table, int64_t row, const char *name) {
    double value = number(table, row, name);
    return value >= 0 && value < 0x1p62 ? (int64_t)value : 0;
}

static int index_of(const struct subject *subject, int64_t variant) {
    for (int v = 0; v < subject->count; v++)
        if (subject->variant[v].variant == variant) return v;
    return -1;
}

static void read_variant(const struct table *t, int64_t row, struct subject_variant *out) {
    *out = (struct subject_variant){
        .variant = (int)whole(t, row, "variant"),
        .gate = text(t, row, "gate"),
        .bias_rule = text(t, row, "bias_rule"),
        .bias_start = text(t, row, "bias_start"),
        .same_why = text(t, row, "same_why"),
        .bias_rate = number(t, row, "bias_rate"),
        .batch_tokens = whole(t, row, "batch_tokens"),
        .ranks = (int)whole(t, row, "ranks"),
        .maxvio_global = number(t, row, "maxvio_global"),
        .maxvio_batch = number(t, row, "maxvio_batch"),
        .agreement = number(t, row, "agreement"),
        .mass_retained = number(t, row, "mass_retained"),
        .rank_maxvio = number(t, row, "rank_maxvio"),
        .efficiency = number(t, row, "efficiency"),
    };
}

static bool still(const struct subject_variant *v) { return isnan(v->bias_rate); }

/* The reference: the model's own gate with its own bias; else a variant that chooses the same
 * experts on every token; else the first. */
static void find_native(struct subject *subject) {
    char own[GATE_TEXT_BYTES] = "";
    if (trace_layers(subject->trace) > 0 && trace_layer(subject->trace, 0)->has_gate)
        gate_print(&trace_layer(subject->trace, 0)->gate, own);
    int alike = -1;
    for (int v = subject->count - 1; v >= 0; v--) {
        const struct subject_variant *variant = &subject->variant[v];
        if (!still(variant) || !(variant->agreement >= 1 - 1e-12)) continue;
        if (strcmp(variant->gate, own) == 0) {
            subject->native = v;
            subject->has_native = true;
        }
        alike = v;
    }
    if (!subject->has_native && alike >= 0) subject->native = alike;
}

static bool read_variants(struct subject *subject, struct err *err) {
    const struct table *table = subject->variants;
    int64_t rows = table_rows(table);
    subject->variant = calloc((size_t)rows + 1, sizeof *subject->variant);
    if (!subject->variant) return err_memory(err, "variants");
    for (int64_t row = 0; row < rows; row++) read_variant(table, row, &subject->variant[row]);
    subject->count = (int)rows;
    for (int v = 0; v < subject->count; v++) {
        int64_t same = whole(table, v, "same_as");
        int at = same > 0 ? index_of(subject, same) : -1;
        subject->variant[v].same_as = at < v ? at : -1; /* rising: chains end */
    }
    find_native(subject);
    return true;
}

static bool open_result(struct subject *subject, const char *path, struct err *err) {
    trace_free(subject->trace);
    table_free(subject->variants);
    subject->variants = NULL;
    subject->trace = trace_open(path, err);
    if (subject->trace)
        subject->variants = trace_query(subject->trace, "study_variants", NULL, 0, err);
    return subject->variants != NULL;
}

bool subject_open(struct subject *subject, const char *path, struct err *err) {
    *subject = (struct subject){.path = strdup(path)};
    bool ok = subject->path ? open_result(subject, path, err) : err_memory(err, "path");
    if (ok && table_rows(subject->variants) == 0)
        ok = native_replay(subject->trace, &subject->temporary, err) &&
             open_result(subject, str_text(&subject->temporary), err);
    ok = ok && read_variants(subject, err);
    if (ok && (subject->count == 0 || trace_layers(subject->trace) == 0))
        ok = err_set(err, ERR_FORMAT, "%s: found no replayed variant, expected at least one", path);
    if (!ok) subject_close(subject);
    return ok;
}

void subject_close(struct subject *subject) {
    free(subject->variant);
    free(subject->path);
    table_free(subject->variants);
    trace_free(subject->trace);
    native_remove(&subject->temporary);
    str_free(&subject->temporary);
    *subject = (struct subject){0};
}

struct table *subject_query(const struct subject *subject, const char *query, int v,
                            struct err *err) {
    struct query_value values[] = {QUERY_I(subject->variant[v].variant)};
    return trace_query(subject->trace, query, values, 1, err);
}

/* ---- choosing */

int subject_root(const struct subject *subject, int v) {
    while (subject->variant[v].same_as >= 0) v = subject->variant[v].same_as;
    return v;
}

/* The score function is the first item of a specification. */
bool subject_foreign(const struct subject *subject, int v) {
    const char *gate = subject->variant[v].gate, *own = subject->variant[subject->native].gate;
    size_t length = strcspn(gate, ",");
    return strcmp(subject->variant[v].bias_rule, "frozen") == 0 &&
           (strcspn(own, ",") != length || memcmp(gate, own, length) != 0);
}

void subject_model(const struct subject *subjects, int count, int i, struct str *out) {
    const char *name = trace_capture(subjects[i].trace)->model;
    bool shared = *name == '\0';
    for (int j = 0; j < count; j++)
        shared |= j != i && strcmp(trace_capture(subjects[j].trace)->model, name) == 0;
    str_puts(out, name);
    if (shared) str_printf(out, "%s%s", *name ? ", " : "", file_name(subjects[i].path));
}

static double batch_maxvio(const struct subject *subject, int v) {
    double value = subject->variant[v].maxvio_batch;
    return isnan(value) ? (double)INFINITY : value;
}

int subject_best(const struct subject *subject) {
    const struct subject_variant *reference = &subject->variant[subject->native];
    int best = -1;
    for (int v = 0; v < subject->count; v++) {
        if (subject_root(subject, v) != v ||
            subject->variant[v].batch_tokens != reference->batch_tokens)
            continue;
        if (batch_maxvio(subject, v) >= batch_maxvio(subject, subject->native)) continue;
        if (best < 0 || batch_maxvio(subject, v) < batch_maxvio(subject, best)) best = v;
    }
    return best;
}

/* Does v stand for its gate and bias rule: no other rate or batch size does better? */
static bool stands(const struct subject *subject, int v) {
    const struct subject_variant *a = &subject->variant[v];
    if (subject_root(subject, v) != v || v == subject_root(subject, subject->native) ||
        subject_foreign(subject, v))
        return false;
    int64_t batch = subject->variant[subject->native].batch_tokens;
    for (int u = 0; u < subject->count; u++) {
        const struct subject_variant *b = &subject->variant[u];
        if (u == v || subject_root(subject, u) != u || strcmp(a->gate, b->gate) != 0 ||
            strcmp(a->bias_rule, b->bias_rule) != 0)
            continue;
        bool fits_a = a->batch_tokens == batch, fits_b = b->batch_tokens == batch;
        double x = batch_maxvio(subject, v), y = batch_maxvio(subject, u);
        if (fits_b > fits_a || (fits_b == fits_a && (y < x || (y == x && u < v)))) return false;
    }
    return true;
}

int subject_pick(const struct subject *subject, int most, int *chosen) {
    int *sorted = calloc((size_t)subject->count, sizeof *sorted);
    chosen[0] = subject->native;
    if (!sorted) return 1;
    int n = 0;
    for (int v = 0; v < subject->count; v++) {
        if (!stands(subject, v)) continue;
        int at = n++;
        for (; at > 0 && batch_maxvio(subject, sorted[at - 1]) > batch_maxvio(subject, v); at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = v;
    }
    int take = n < most - 1 ? n : most - 1;
    for (int i = 0; i < take; i++)
        chosen[i + 1] = sorted[take > 1 ? (int)((int64_t)i * (n - 1) / (take - 1)) : 0];
    free(sorted);
    return take + 1;
}

/* ---- naming */

/* The parts of a specification that a name may show, each in a slot of its own. */
enum { SLOT_SCORE, SLOT_GROUPS, SLOT_NORM, SLOT_OTHER, SLOT_BIAS, SLOT_BATCH, SLOT_RANKS, SLOTS };
struct slots {
    char text[SLOTS][80];
};

static bool starts(const char *item, size_t length, const char *with) {
    size_t n = strlen(with);
    return length >= n && memcmp(item, with, n) == 0;
}

static void put_item(struct slots *slots, const char *item, size_t length) {
    int slot = starts(item, length, "groups=") ? SLOT_GROUPS
               : starts(item, length, "norm=") ? SLOT_NORM
               : memchr(item, '=', length)     ? SLOT_OTHER
                                               : SLOT_SCORE;
    if (starts(item, length, "bias") || starts(item, length, "nobias")) return;
    char *out = slots->text[slot];
    size_t used = slot == SLOT_OTHER || slot == SLOT_SCORE ? strlen(out) : 0;
    snprintf(out + used, sizeof slots->text[0] - used, "%s%.*s", used ? " " : "", (int)length,
             item);
}

static void slots_of(const struct subject_variant *v, struct slots *slots) {
    *slots = (struct slots){.text = {[SLOT_GROUPS] = "no groups", [SLOT_NORM] = "no norm"}};
    for (const char *at = v->gate; *at;) {
        size_t length = strcspn(at, ",");
        put_item(slots, at, length);
        at += length + (at[length] == ',');
    }
    char *bias = slots->text[SLOT_BIAS];
    size_t size = sizeof slots->text[0];
    if (strcmp(v->bias_rule, "none") == 0)
        snprintf(bias, size, "no bias");
    else if (still(v))
        snprintf(bias, size, "%.40s bias", v->bias_rule);
    else
        snprintf(bias, size, "%.40s rule, rate %g%s", v->bias_rule, v->bias_rate,
                 strcmp(v->bias_start, "captured") == 0 ? " from captured" : "");
    snprintf(slots->text[SLOT_BATCH], size, "batch %lld", (long long)v->batch_tokens);
    if (v->ranks) snprintf(slots->text[SLOT_RANKS], size, "%d ranks", v->ranks);
}

/* Appends the slots of `own` that are marked. */
static void put_slots(const struct slots *own, const bool *shown, struct str *out) {
    const char *comma = "";
    for (int s = 0; s < SLOTS; s++) {
        if (!shown[s] || !own->text[s][0]) continue;
        str_printf(out, "%s%s", comma, own->text[s]);
        comma = ", ";
    }
}

void subject_labels(const struct subject *subject, const int *chosen, int n, struct str *labels) {
    bool differs[SLOTS] = {false};
    struct slots first, other;
    if (n > 0) slots_of(&subject->variant[chosen[0]], &first);
    for (int i = 1; i < n; i++) {
        slots_of(&subject->variant[chosen[i]], &other);
        for (int s = 0; s < SLOTS; s++) differs[s] |= strcmp(first.text[s], other.text[s]) != 0;
    }
    for (int i = 0; i < n; i++) {
        const struct subject_variant *v = &subject->variant[chosen[i]];
        slots_of(v, &other);
        bool native = subject->has_native && chosen[i] == subject->native;
        str_printf(&labels[i], "%d %s", v->variant, native ? "native: " : "");
        put_slots(&other, differs, &labels[i]);
    }
}

void subject_kind(const struct subject *subject, int v, int detail, struct str *out) {
    const bool shown[SLOTS] = {[SLOT_SCORE] = detail > 0, [SLOT_GROUPS] = detail > 1};
    const struct subject_variant *variant = &subject->variant[v];
    const char *rule = variant->bias_rule;
    struct slots slots;
    slots_of(variant, &slots);
    put_slots(&slots, shown, out);
    str_printf(out, "%s%s bias", detail > 0 ? ", " : "", strcmp(rule, "none") == 0 ? "no" : rule);
}

void subject_name(const struct subject *subject, int v, struct str *out) {
    const struct subject_variant *variant = &subject->variant[v];
    struct slots own, reference;
    bool differs[SLOTS];
    slots_of(variant, &own);
    if (v == subject->native) {
        if (subject->has_native)
            str_puts(out, "the native gate");
        else
            str_printf(out, "variant %d (%s, %s)", variant->variant, variant->gate,
                       own.text[SLOT_BIAS]);
        return;
    }
    slots_of(&subject->variant[subject->native], &reference);
    for (int s = 0; s < SLOTS; s++) differs[s] = strcmp(own.text[s], reference.text[s]) != 0;
    str_printf(out, "variant %d (", variant->variant);
    put_slots(&own, differs, out);
    str_puts(out, ")");
}
