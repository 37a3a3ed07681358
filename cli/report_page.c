/* report_page.c - writes the report: one page, and every figure with its data and template beside
 * it */
#include "cli/report_page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/studies.h"
#include "cli/worth.h"
#include "plots/plot.h"
#include "plots/report.h"
#include "router/gate.h"

/* ---- what was captured and replayed */

static void fact(struct table *facts, const char *name, const char *value) {
    if (!value || !*value) return;
    table_text(facts, name);
    table_text(facts, value);
}

static void fact_capture(const struct trace *trace, struct table *facts) {
    const struct trace_capture *c = trace_capture(trace);
    struct str text = {0};
    fact(facts, "model", c->model);
    fact(facts, "family", c->family);
    if (c->parameters) {
        str_printf(&text, "%.3g million", (double)c->parameters / 1e6);
        fact(facts, "parameters", str_text(&text));
    }
    str_clear(&text);
    str_printf(&text, "%s%s%s%s%s; router scores stored as %s%s", c->source,
               *c->compute ? ", computed in " : "", c->compute, *c->kernels ? ", kernels " : "",
               c->kernels, trace_store_name(c->store), c->store == TRACE_F32 ? "" : " (lossy)");
    fact(facts, "capture", str_text(&text));
    fact(facts, "lacks", c->lacks);
    str_free(&text);
}

/* "layers 1-7: 64 experts, sigmoid,bias,..." per run of equal routers. */
static void fact_routers(const struct trace *trace, struct table *facts) {
    int layers = trace_layers(trace);
    for (int from = 0, to; from < layers; from = to) {
        const struct trace_layer *a = trace_layer(trace, from);
        for (to = from + 1; to < layers; to++) {
            const struct trace_layer *b = trace_layer(trace, to);
            if (b->experts != a->experts || b->has_gate != a->has_gate || b->topk != a->topk ||
                (a->has_gate && !gate_equal(&a->gate, &b->gate)))
                break;
        }
        char gate[GATE_TEXT_BYTES] = "unknown gate";
        if (a->has_gate) gate_print(&a->gate, gate);
        struct str text = {0};
        str_printf(&text, "layers %d to %d: %d experts, %d chosen; %s", a->layer,
                   trace_layer(trace, to - 1)->layer, a->experts, a->topk, gate);
        fact(facts, "native gate", str_text(&text));
        str_free(&text);
    }
}

static void fact_texts(const struct trace *trace, struct table *facts) {
    struct str text = {0};
    str_printf(&text, "%lld in %lld documents of %d domains", (long long)trace_tokens_total(trace),
               (long long)trace_documents(trace), trace_domains(trace));
    fact(facts, "tokens", str_text(&text));
    str_free(&text);
}

static bool fact_replay(const struct subject *subject, struct table *facts, struct err *err) {
    struct table *t = trace_query(subject->trace, "replay_experiment", NULL, 0, err);
    if (!t) return false;
    if (table_rows(t) > 0) {
        struct str text = {0};
        str_printf(&text, "%d variant%s; tokens in %s order", subject->count,
                   subject->count == 1 ? "" : "s", table_cell(t, 0, table_find(t, "token_order")));
        fact(facts, "replay", str_text(&text));
        fact(facts, "replay options", table_cell(t, 0, table_find(t, "options")));
        str_free(&text);
    }
    fact(facts, "trace identity", trace_identity(subject->trace));
    table_free(t);
    return true;
}

static bool put_head(const struct subject *subject, struct str *html, struct err *err) {
    const struct table_column columns[] = {{"name", "", TABLE_TEXT}, {"value", "", TABLE_TEXT}};
    struct table *facts = table_create(columns, 2, err);
    if (!facts) return false;
    fact_capture(subject->trace, facts);
    fact_routers(subject->trace, facts);
    fact_texts(subject->trace, facts);
    bool ok = fact_replay(subject, facts, err) && table_ok(facts, err);
    if (ok) report_facts(html, facts);
    table_free(facts);
    return ok;
}

static bool put_query(const struct subject *subject, const char *query, int v, const char *caption,
                      struct str *html, struct err *err) {
    struct table *t = v < 0 ? trace_query(subject->trace, query, NULL, 0, err)
                            : subject_query(subject, query, v, err);
    if (t) report_table(html, caption, t);
    table_free(t);
    return t != NULL;
}

/* ---- notes: what a reader must know before comparing */

/* Appends "2-6, 31" for the marked variants. */
static void put_ranges(const struct subject *subject, const bool *marked, struct str *out) {
    for (int v = 0; v < subject->count; v++) {
        if (!marked[v]) continue;
        int end = v;
        while (end + 1 < subject->count && marked[end + 1]) end++;
        str_printf(out, "%s%d", out->len ? ", " : "", subject->variant[v].variant);
        if (end > v)
            str_printf(out, "%s%d", end > v + 1 ? "-" : ", ", subject->variant[end].variant);
        v = end;
    }
}

/* One row of the table of empty comparisons: all that share v's root and reason. */
static void put_twins(const struct subject *subject, int v, bool *marked, bool *done,
                      struct table *table) {
    const struct subject_variant *like = &subject->variant[v];
    int root = subject_root(subject, v);
    for (int u = 0; u < subject->count; u++) {
        const struct subject_variant *variant = &subject->variant[u];
        marked[u] = variant->same_as >= 0 && subject_root(subject, u) == root &&
                    strcmp(variant->same_why, like->same_why) == 0;
        done[u] |= marked[u];
    }
    struct str text = {0};
    put_ranges(subject, marked, &text);
    table_text(table, str_text(&text));
    table_int(table, subject->variant[root].variant);
    table_text(table, like->same_why);
    str_free(&text);
}

/* Law 5: variants that cannot differ in load are named as such, not shown as a finding. */
static bool put_empty_comparisons(const struct subject *subject, struct str *html,
                                  struct err *err) {
    const struct table_column columns[] = {
        {"variants", "", TABLE_TEXT}, {"same load as", "", TABLE_INT}, {"because", "", TABLE_TEXT}};
    struct table *table = table_create(columns, 3, err);
    bool *marked = calloc((size_t)subject->count + 1, sizeof *marked);
    bool *done = calloc((size_t)subject->count + 1, sizeof *done);
    bool ok = table && ((marked && done) || err_memory(err, "report"));
    int twins = 0;
    for (int v = 0; ok && v < subject->count; v++) {
        if (subject->variant[v].same_as < 0) continue;
        twins++;
        if (!done[v]) put_twins(subject, v, marked, done, table);
    }
    ok = ok && table_ok(table, err);
    if (ok && twins) {
        struct str text = {0};
        str_printf(
            &text,
            "%d of the %d variants provably put the same load on every expert as another one. "
            "Equal figures among them are no finding: the specifications leave no room for a "
            "difference. They are drawn once.",
            twins, subject->count);
        report_note(html, str_text(&text));
        str_free(&text);
        report_table(html, "Empty comparisons", table);
    }
    table_free(table);
    free(marked);
    free(done);
    return ok;
}

/* The replay's warnings, one a line; those about equal loads, in older results, have their own
 * table. */
static void put_warnings(const char *lines, struct str *html) {
    static const char twins[] = "same load";
    while (*lines) {
        size_t length = strcspn(lines, "\n");
        if (length > 0 && strncmp(lines, twins, sizeof twins - 1) != 0) {
            struct str text = {0};
            str_append(&text, lines, length);
            report_note(html, str_text(&text));
            str_free(&text);
        }
        lines += length + (lines[length] == '\n');
    }
}

static bool put_notes(const struct subject *subject, struct str *html, struct err *err) {
    struct table *t = trace_query(subject->trace, "replay_experiment", NULL, 0, err);
    if (!t) return false;
    if (!subject->has_native)
        report_note(html,
                    "The model's own gate, with its own bias, was not replayed: the first variant "
                    "stands in as the reference.");
    if (table_rows(t) > 0) {
        const char *warnings = table_cell(t, 0, table_find(t, "warnings"));
        put_warnings(warnings ? warnings : "", html);
    }
    table_free(t);
    return put_empty_comparisons(subject, html, err);
}

/* ---- how to read it */

static const char *const reading[][4] = {
    {"maxvio_global", "max load / mean load - 1, over all tokens of the replay",
     "experts of a layer", "imbalance ratio; + 1: load imbalance, overload factor"},
    {"maxvio_batch", "the same within a balance batch, mean over batches", "experts of a layer",
     "MaxVio of a batch"},
    {"cv", "standard deviation / mean of the load", "experts of a layer",
     "coefficient of variation; its square is the CV loss"},
    {"gini", "mean absolute difference of two loads / (2 mean)", "experts of a layer", ""},
    {"entropy", "-sum p ln p, nats; ln E when even", "experts of a layer", "load entropy"},
    {"agreement", "share of the choices that the native gate makes too", "tokens", ""},
    {"mass_retained", "chosen scores / the k highest scores, without bias and groups", "tokens",
     "gate mass kept"},
    {"rank_maxvio", "max / mean - 1 of the load of ranks, over all tokens", "ranks of a layer",
     "imbalance ratio, overload factor of ranks"},
    {"efficiency", "mean / max of the load of ranks, mean over batches", "ranks of a layer",
     "balancedness, utilization; = 1 / (1 + rank MaxVio) of a batch"},
};

static bool put_reading(struct str *html, struct err *err) {
    report_section(html, "reading", "How to read the numbers");
    report_paragraph(
        html, "The replay is open loop: the router scores of every layer are those of the "
              "captured run, whatever an earlier layer would have chosen under another gate. "
              "A model that runs with another gate changes its hidden states too, which these "
              "figures do not see.");
    report_paragraph(
        html,
        "Intervals are 95 % basic bootstrap intervals over documents: they say how much a figure "
        "would move with other documents of the same kind, not with other domains. They also "
        "take off what a maximum gains by chance when few tokens are seen, so an interval may "
        "lie below its figure.");
    const struct table_column columns[] = {{"measure", "", TABLE_TEXT},
                                           {"definition", "", TABLE_TEXT},
                                           {"axis", "", TABLE_TEXT},
                                           {"also called", "", TABLE_TEXT}};
    struct table *t = table_create(columns, 4, err);
    if (!t) return false;
    for (size_t i = 0; i < sizeof reading / sizeof *reading; i++)
        for (int c = 0; c < 4; c++) table_text(t, reading[i][c]);
    bool ok = table_ok(t, err);
    if (ok) report_table(html, "Measures, the axis each is taken over, and its other names", t);
    table_free(t);
    report_section_end(html);
    return ok;
}

/* ---- figures */

/* What one study gave: kept until everything is drawn. */
struct drawn {
    struct figure figure;
    struct str svg, data;
};

static bool draw_all(const struct subject *subjects, int count, struct drawn *drawn,
                     struct err *err) {
    for (int i = 0; studies[i].name; i++) {
        struct drawn *d = &drawn[i];
        if (!studies[i].draw(subjects, count, &d->figure, err) ||
            (d->figure.lacks.len == 0 &&
             !study_render(&studies[i], &d->figure, PLOT_SVG, &d->svg, &d->data, err)))
            return err_context(err, "%s", subjects[0].path);
    }
    return true;
}

static void put_figures(const struct drawn *drawn, struct str *html) {
    report_section(html, "figures", "Figures");
    for (int i = 0; studies[i].name; i++) {
        if (drawn[i].figure.lacks.len > 0) continue;
        report_figure(html, &(struct report_figure){.name = studies[i].name,
                                                    .question = studies[i].question,
                                                    .title = studies[i].title,
                                                    .caption = str_text(&drawn[i].figure.caption),
                                                    .svg = str_text(&drawn[i].svg),
                                                    .files = true});
    }
    for (int i = 0; studies[i].name; i++) {
        if (drawn[i].figure.lacks.len == 0) continue;
        struct str text = {0};
        str_printf(&text, "Not drawn: %s (%s): %s.", studies[i].title, studies[i].question,
                   str_text(&drawn[i].figure.lacks));
        report_paragraph(html, str_text(&text));
        str_free(&text);
    }
    report_section_end(html);
}

/* ---- the whole */

/* What was captured and replayed; notes and text of the first, by whose numbers the figures are. */
static bool put_subject(const struct subject *subjects, int count, int i, struct str *html,
                        struct err *err) {
    struct str id = {0}, heading = {0};
    str_printf(&id, "subject-%d", i + 1);
    str_puts(&heading, i ? "Compared with: " : "What was weighed");
    if (i) subject_model(subjects, count, i, &heading);
    report_section(html, str_text(&id), str_text(&heading));
    bool ok = put_head(&subjects[i], html, err);
    if (i == 0)
        ok = ok && put_notes(&subjects[0], html, err) &&
             put_query(&subjects[0], "domain_tokens", -1, "Text", html, err);
    report_section_end(html);
    str_free(&id);
    str_free(&heading);
    return ok;
}

/* What gate, bias rate and placement are worth in tokens/s, where a run has said so. */
static bool put_worth(const struct subject *subject, struct str *html, struct err *err) {
    struct worth worth;
    if (!worth_read(subject, &worth, err)) return false;
    const char *lines[WORTH_LINES];
    for (int i = 0; i < worth.count; i++) lines[i] = str_text(&worth.line[i]);
    if (worth.count > 0) {
        report_section(html, "worth", "What it is worth in tokens per second");
        report_list(html, lines, worth.count);
        report_section_end(html);
    }
    worth_free(&worth);
    return true;
}

static bool put_body(const struct subject *subjects, int count, const struct table *findings,
                     const struct drawn *drawn, struct str *html, struct err *err) {
    const char *items[8];
    int n = 0, text = table_find(findings, "text");
    for (int64_t row = 0; row < table_rows(findings) && n < 8; row++)
        items[n++] = table_cell(findings, row, text);
    report_section(html, "findings", "Findings");
    report_list(html, items, n);
    report_section_end(html);
    bool ok = put_worth(&subjects[0], html, err);
    for (int i = 0; ok && i < count; i++) ok = put_subject(subjects, count, i, html, err);
    if (!ok) return false;
    put_figures(drawn, html);
    report_section(html, "tables", "Tables");
    ok = put_query(&subjects[0], "study_variant_table", -1,
                   "Variants: means over layers (ties, escapes: sums)", html, err) &&
         put_query(&subjects[0], "study_layer_table", subjects[0].native,
                   "The reference variant, layer by layer", html, err);
    report_section_end(html);
    return ok && put_reading(html, err);
}

/* Files under construction: all are written before any gets its name, so that a full disk leaves
 * neither half a report nor half of an older one. */
struct writing {
    const char *folder;
    struct file_output *file; /* owned; room for every part */
    int count;
};

static bool write_part(struct writing *w, const char *name, const char *ending, const void *bytes,
                       size_t length, struct err *err) {
    struct str file = {0}, path = {0};
    str_printf(&file, "%s%s", name, ending);
    file_join(&path, w->folder, str_text(&file));
    struct file_output *output = &w->file[w->count];
    bool ok =
        file.failed || path.failed ? err_memory(err, "report") : file_begin(output, path.data, err);
    if (ok) {
        w->count++;
        if (fwrite(bytes, 1, length, output->stream) != length || fflush(output->stream) != 0)
            ok = err_errno(err, path.data, "cannot write");
    }
    str_free(&file);
    str_free(&path);
    return ok;
}

static bool write_figure(struct writing *w, const char *name, const struct drawn *d,
                         struct err *err) {
    const char *template = plot_template(name);
    return write_part(w, name, ".svg", str_text(&d->svg), d->svg.len, err) &&
           write_part(w, name, ".tsv", str_text(&d->data), d->data.len, err) &&
           write_part(w, name, ".gp", template, strlen(template), err);
}

static bool write_parts(struct writing *w, const struct drawn *drawn, const struct str *page,
                        struct err *err) {
    bool ok = write_part(w, "style.gp", "", plot_style(), strlen(plot_style()), err);
    for (int i = 0; ok && studies[i].name; i++)
        if (drawn[i].figure.lacks.len == 0) ok = write_figure(w, studies[i].name, &drawn[i], err);
    ok = ok && write_part(w, "report.html", "", str_text(page), page->len, err);
    for (int i = 0; ok && i < w->count; i++) ok = file_commit(&w->file[i], err);
    return ok;
}

/* A folder that this run made goes again when nothing could be put into it. */
static bool write_all(const struct drawn *drawn, int studied, const struct str *page,
                      const char *folder, struct err *err) {
    struct writing w = {.folder = folder};
    bool made = !file_exists(folder);
    w.file = calloc(3 * (size_t)studied + 2, sizeof *w.file);
    bool ok = w.file || err_memory(err, "report");
    ok = ok && file_make_folder(folder, err) && write_parts(&w, drawn, page, err);
    for (int i = 0; i < w.count; i++) file_abandon(&w.file[i]);
    if (!ok && made) rmdir(folder);
    free(w.file);
    return ok;
}

bool report_write(const struct subject *subjects, int count, const struct table *findings,
                  const char *folder, struct err *err) {
    int n = 0;
    while (studies[n].name) n++;
    struct drawn *drawn = calloc((size_t)n, sizeof *drawn);
    struct str body = {0}, page = {0}, title = {0};
    str_printf(&title, "Expert load of %s", trace_capture(subjects[0].trace)->model);
    bool ok = drawn ? draw_all(subjects, count, drawn, err) : err_memory(err, "report");
    ok = ok && put_body(subjects, count, findings, drawn, &body, err) &&
         report_page(str_text(&title), &body, &page, err) &&
         write_all(drawn, n, &page, folder, err);
    for (int i = 0; drawn && i < n; i++) {
        figure_free(&drawn[i].figure);
        str_free(&drawn[i].svg);
        str_free(&drawn[i].data);
    }
    free(drawn);
    str_free(&body);
    str_free(&page);
    str_free(&title);
    return ok;
}
