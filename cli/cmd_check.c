/* cmd_check.c - `steelyard check`: is a trace intact, and does it replay to what was captured? */
#include "base/table.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "traces/check.h"

static bool check(const char *path, int64_t stride, struct output_choice choice, struct err *err) {
    struct trace *trace = trace_open(path, err);
    if (!trace) return false;
    struct progress_line line;
    int failed = 0;
    progress_begin(&line, "check");
    struct table *table = trace_check(trace, stride, &line.progress, &failed, err);
    progress_end(&line);
    bool ok = table && output_table(table, choice, err);
    if (ok && failed)
        ok = err_set(err, ERR_DATA, "%s: found %d failed checks, expected none", path, failed);
    table_free(table);
    trace_free(trace);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    int64_t stride = 1;
    const struct option options[] = {
        {"every", OPTION_INT, &stride, "N", "replay every N-th chunk; default all", 1, 1e9},
        OPTION_OUTPUT(choice),
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) {
        if (rest.count != 1)
            ok = err_set(err, ERR_USAGE, "found %d files, expected 1 database", rest.count);
        else
            ok = check(rest.items[0], stride, choice, err);
    }
    text_list_free(&rest);
    return ok;
}

const struct command command_check = {.name = "check",
                                      .arguments = "DB",
                                      .summary = "integrity, hashes and the replay law of a trace",
                                      .example = "steelyard check run.db",
                                      .run = run};
