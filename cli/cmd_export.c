/* cmd_export.c - `steelyard export`: a trace in other people's formats */
#include "base/file.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "traces/exchange.h"

static bool export_trace(const char *path, const char *to, const char *out, bool force,
                         struct err *err) {
    const struct trace_exporter *exporter = trace_exporter_find(to, err);
    if (!exporter) return false;
    if (!force && file_exists(out))
        return err_set(err, ERR_EXISTS, "%s: exists already (--force replaces it)", out);
    struct trace *trace = trace_open(path, err);
    if (!trace) return false;
    struct progress_line line;
    progress_begin(&line, "export");
    bool ok = exporter->run(trace, out, &line.progress, err);
    progress_end(&line);
    trace_free(trace);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    const char *to = NULL, *out = NULL;
    bool force = false;
    const struct option options[] = {
        {"to", OPTION_TEXT, &to, "FORMAT", "see `steelyard formats`", 0, 0},
        {"out", OPTION_TEXT, &out, "FILE", "the file to write", 0, 0},
        {"force", OPTION_FLAG, &force, NULL, "replace an existing file", 0, 0},
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) {
        if (rest.count != 1 || !to || !out)
            ok = err_set(err, ERR_USAGE, "expected one database, --to FORMAT and --out FILE");
        else
            ok = output_is_no_input(out, rest.items, 1, err) &&
                 export_trace(rest.items[0], to, out, force, err);
    }
    text_list_free(&rest);
    return ok;
}

const struct command command_export = {
    .name = "export",
    .arguments = "DB",
    .summary = "write a trace in another format",
    .example = "steelyard export run.db --to safetensors --out run.safetensors",
    .run = run};
