/* cmd_show.c - `steelyard show`: what is in a trace or result: model, sizes, layers, domains,
 * replay */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/str.h"
#include "base/table.h"
#include "cli/commands.h"
#include "traces/query.h"
#include "traces/trace.h"

static const struct table_column item_columns[] = {{"item", "", TABLE_TEXT},
                                                   {"value", "", TABLE_TEXT}};
static const struct table_column layer_columns[] = {{"layer", "", TABLE_INT},
                                                    {"experts", "", TABLE_INT},
                                                    {"holds", "", TABLE_TEXT},
                                                    {"bias", "", TABLE_TEXT},
                                                    {"gate", "", TABLE_TEXT}};

static void item(struct table *table, const char *name, const char *value) {
    if (!value || !*value) return;
    table_text(table, name);
    table_text(table, value);
}

static void item_int(struct table *table, const char *name, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    item(table, name, value > 0 ? text : NULL);
}

/* "complete", or how far a capture that was killed, or is running, has come. */
static void item_state(struct table *table, const struct trace *trace) {
    char text[80];
    int64_t done = trace_tokens(trace), total = trace_tokens_total(trace);
    if (trace_complete(trace))
        snprintf(text, sizeof text, "complete");
    else
        snprintf(text, sizeof text, "incomplete: %lld of %lld tokens (capture --resume goes on)",
                 (long long)done, (long long)total);
    item(table, "state", text);
}

static void item_file(struct table *table, const char *path) {
    static const char *const beside[] = {"", "-wal"};
    int64_t bytes = 0;
    for (int i = 0; i < 2; i++) {
        struct str name = {0};
        struct stat info;
        str_printf(&name, "%s%s", path, beside[i]);
        if (stat(str_text(&name), &info) == 0) bytes += info.st_size;
        str_free(&name);
    }
    item(table, "file", path);
    item_int(table, "bytes", bytes);
}

static void item_store(struct table *table, const struct trace *trace) {
    enum trace_store store = trace_capture(trace)->store;
    char text[40];
    snprintf(text, sizeof text, "%s (%s)", trace_store_name(store),
             store == TRACE_F32 ? "exact" : "lossy");
    if (trace_has_scores(trace)) item(table, "logits stored as", text);
}

/* How the last replay was made; nothing when there was none. */
static bool item_replay(struct table *table, struct trace *trace, struct err *err) {
    struct table *last = trace_query(trace, "replay_experiment", NULL, 0, err);
    if (!last) return false;
    if (table_rows(last)) {
        item(table, "replay", table_cell(last, 0, 0));
        item_int(table, "replay variants", (int64_t)table_number(last, 0, 1));
        item(table, "replay of", table_cell(last, 0, 2));
        item(table, "replay warnings", table_cell(last, 0, 3));
    }
    table_free(last);
    return true;
}

static struct table *items(struct trace *trace, const char *kind, struct err *err) {
    const struct trace_capture *capture = trace_capture(trace);
    struct table *table = table_create(item_columns, 2, err);
    if (!table) return NULL;
    item_file(table, trace_path(trace));
    item(table, "kind", kind);
    item_state(table, trace);
    item(table, "model", capture->model);
    item(table, "family", capture->family);
    item_int(table, "parameters", capture->parameters);
    item(table, "source", capture->source);
    item(table, "lacks", capture->lacks);
    item(table, "compute", capture->compute);
    item(table, "kernels", capture->kernels);
    item_store(table, trace);
    item_int(table, "tokens", trace_tokens_total(trace));
    item_int(table, "documents", trace_documents(trace));
    item_int(table, "context tokens", capture->context_tokens);
    item_int(table, "pass tokens", capture->pass_tokens);
    item(table, "options", capture->options);
    item(table, "vocabulary", capture->vocabulary);
    item(table, "identity", trace_identity(trace));
    if (item_replay(table, trace, err) && table_ok(table, err)) return table;
    table_free(table);
    return NULL;
}

static struct table *layers(const struct trace *trace, struct err *err) {
    struct table *table = table_create(layer_columns, 5, err);
    for (int r = 0; table && r < trace_layers(trace); r++) {
        const struct trace_layer *layer = trace_layer(trace, r);
        char gate[GATE_TEXT_BYTES];
        if (layer->has_gate) gate_print(&layer->gate, gate);
        table_int(table, layer->layer);
        table_int(table, layer->experts);
        table_text(table, trace_holds_name(layer->holds));
        table_text(table, layer->bias ? "yes" : "no");
        table_text(table, layer->has_gate ? gate : NULL);
    }
    if (table && table_ok(table, err)) return table;
    table_free(table);
    return NULL;
}

/* Text and CSV: one table after the other; JSON: one object with a member for each. */
static bool print(struct table *const tables[3], struct output_choice choice, struct err *err) {
    static const char *const names[] = {"trace", "layers", "domains"};
    enum table_format format = choice.json  ? TABLE_AS_JSON
                               : choice.csv ? TABLE_AS_CSV
                                            : TABLE_AS_TEXT;
    struct str out = {0};
    bool ok = true;
    for (int i = 0; ok && i < 3; i++) {
        if (choice.json)
            str_printf(&out, "%s\"%s\": ", i ? ", " : "{", names[i]);
        else if (i)
            str_puts(&out, "\n");
        ok = table_format(tables[i], format, &out, err);
    }
    if (choice.json) str_puts(&out, "}\n");
    ok = ok && (!out.failed || err_memory(err, "output"));
    if (ok && (fputs(str_text(&out), stdout) == EOF || fflush(stdout) == EOF))
        ok = err_errno(err, "stdout", "cannot write");
    str_free(&out);
    return ok;
}

static bool show(const char *path, struct output_choice choice, struct err *err) {
    struct trace *trace = trace_open(path, err);
    if (!trace) return false;
    struct table *tables[3] = {items(trace, trace_is_result(trace) ? "result" : "trace", err), NULL,
                               NULL};
    bool ok = tables[0] && (tables[1] = layers(trace, err)) &&
              (tables[2] = trace_query(trace, "domain_tokens", NULL, 0, err)) &&
              print(tables, choice, err);
    for (int i = 0; i < 3; i++) table_free(tables[i]);
    trace_free(trace);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) {
        if (rest.count != 1)
            ok = err_set(err, ERR_USAGE, "found %d files, expected 1 database", rest.count);
        else
            ok = show(rest.items[0], choice, err);
    }
    text_list_free(&rest);
    return ok;
}

const struct command command_show = {.name = "show",
                                     .arguments = "DB",
                                     .summary = "what is in a trace or result",
                                     .example = "steelyard show run.db",
                                     .run = run};
