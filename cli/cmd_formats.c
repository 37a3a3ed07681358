/* cmd_formats.c - `steelyard formats`: what import reads and export writes */
#include "base/table.h"
#include "cli/commands.h"
#include "traces/exchange.h"

static const struct table_column columns[] = {{"direction", "", TABLE_TEXT},
                                              {"format", "", TABLE_TEXT},
                                              {"contents", "", TABLE_TEXT},
                                              {"made by", "", TABLE_TEXT}};

static void row(struct table *table, const char *direction, const char *name, const char *summary,
                const char *origin) {
    table_text(table, direction);
    table_text(table, name);
    table_text(table, summary);
    table_text(table, origin);
}

static bool list(struct output_choice choice, struct err *err) {
    struct table *table = table_create(columns, 4, err);
    if (!table) return false;
    for (const struct trace_importer *i = trace_importers; i->name; i++)
        row(table, "import", i->name, i->summary, i->origin);
    for (const struct trace_exporter *e = trace_exporters; e->name; e++)
        row(table, "export", e->name, e->summary, "steelyard");
    bool ok = table_ok(table, err) && output_table(table, choice, err);
    table_free(table);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done && rest.count)
        ok = err_set(err, ERR_USAGE, "found '%.60s', expected no argument", rest.items[0]);
    if (ok && !done) ok = list(choice, err);
    text_list_free(&rest);
    return ok;
}

const struct command command_formats = {.name = "formats",
                                        .arguments = "",
                                        .summary = "what import reads and export writes",
                                        .example = "steelyard formats",
                                        .run = run};
