/* cmd_figures.c - steelyard figures: what can be drawn, and the question each figure answers */
#include "base/table.h"
#include "cli/commands.h"
#include "cli/studies.h"

static bool list(struct output_choice choice, struct err *err) {
    const struct table_column columns[] = {
        {"figure", "", TABLE_TEXT}, {"question", "", TABLE_TEXT}, {"query", "", TABLE_TEXT}};
    struct table *table = table_create(columns, 3, err);
    if (!table) return false;
    for (const struct study *s = studies; s->name; s++) {
        table_text(table, s->name);
        table_text(table, s->question);
        table_text(table, s->query);
    }
    bool ok = table_ok(table, err) && output_table(table, choice, err);
    table_free(table);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    bool done = false;
    struct output_choice choice = {0};
    struct text_list rest;
    const struct option options[] = {
        OPTION_OUTPUT(choice),
        {NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
    };
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done)
        ok = rest.count
                 ? err_set(err, ERR_USAGE, "found \"%.40s\", expected no argument", rest.items[0])
                 : list(choice, err);
    text_list_free(&rest);
    return ok;
}

const struct command command_figures = {
    .name = "figures",
    .arguments = "",
    .summary = "list the figures and the question each answers",
    .example = "steelyard figures",
    .run = run,
};
