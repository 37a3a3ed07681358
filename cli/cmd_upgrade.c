/* cmd_upgrade.c - `steelyard upgrade`: databases of earlier versions become present ones */
#include "base/table.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "traces/upgrade.h"

static const struct table_column columns[] = {{"file", "", TABLE_TEXT},
                                              {"from_version", "", TABLE_INT},
                                              {"to_version", "", TABLE_INT},
                                              {"was", "", TABLE_TEXT}};

/* Each file for itself: those before a refused one are done. */
static bool upgrade_all(const struct text_list *files, struct output_choice choice,
                        struct err *err) {
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    if (!table) return false;
    bool ok = true;
    for (int i = 0; ok && i < files->count; i++) {
        struct upgrade_report report;
        ok = trace_upgrade(files->items[i], &report, err);
        if (!ok) break;
        table_text(table, files->items[i]);
        table_int(table, report.from);
        table_int(table, report.to);
        table_text(table, report.form);
        if (report.lost_throughput)
            print_notes("results of `steelyard throughput` were dropped: run it again\n");
    }
    struct err later = {0};
    bool printed = (table_rows(table) == 0 && !ok) ||
                   (table_ok(table, &later) && output_table(table, choice, &later));
    if (ok && !printed) *err = later;
    table_free(table);
    return ok && printed;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done)
        ok = rest.count ? upgrade_all(&rest, choice, err)
                        : err_set(err, ERR_USAGE, "expected at least one database");
    text_list_free(&rest);
    return ok;
}

const struct command command_upgrade = {
    .name = "upgrade",
    .arguments = "DB...",
    .summary = "bring databases of an earlier version up to date, in place",
    .example = "steelyard upgrade run.db",
    .run = run};
