/* native.c - the load that a trace has under its own gate, for reports on traces never replayed */
#include "cli/native.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/progress.h"
#include "sim/outcome.h"
#include "sim/replay.h"
#include "sim/source.h"
#include "sim/variant.h"
#include "traces/result.h"

static const char name[] = "/native.db";

static bool replay(const struct trace *trace, const char *out, struct err *err) {
    static const struct variant_lists defaults = {.start = START_DEFAULT};
    struct source source = {0};
    struct variant_set set = {0};
    struct outcome outcome = {0};
    struct progress_line line;
    bool ok = (trace_has_scores(trace) ? source_open_trace(&source, trace, NULL, err)
                                       : source_open_choices(&source, trace, err)) &&
              variant_set_build(&set, &defaults, &source, err);
    struct result_experiment experiment = {.options = "replay",
                                           .order = "captured",
                                           .tokens = source.tokens,
                                           .warnings = str_text(&set.notes)};
    struct result *result = ok ? result_create(trace, out, false, &experiment, err) : NULL;
    ok = result && outcome_begin(&outcome, result, &set, source.documents, err);
    if (ok) {
        struct replay_options options = {.documents = outcome_keeps_documents(&set, &source)};
        struct replay_sink sink = outcome_sink(&outcome);
        progress_begin(&line, "native replay");
        ok = replay_run(&set, &source, &options, &sink, &line.progress, err);
        progress_end(&line);
    }
    if (ok) ok = outcome_commit(&outcome, err);
    outcome_abandon(&outcome);
    variant_set_free(&set);
    source_free(&source);
    return ok;
}

bool native_replay(const struct trace *trace, struct str *path, struct err *err) {
    const char *parent = getenv("TMPDIR");
    file_join(path, parent && *parent ? parent : "/tmp", "steelyard-native-XXXXXX");
    if (path->failed) return err_memory(err, "path");
    if (!mkdtemp(path->data)) {
        err_errno(err, path->data, "cannot make a folder");
        str_clear(path);
        return false;
    }
    str_puts(path, name);
    return path->failed ? err_memory(err, "path") : replay(trace, path->data, err);
}

void native_remove(const struct str *path) {
    if (path->len < sizeof name) return;
    unlink(path->data);
    path->data[path->len - (sizeof name - 1)] = '\0';
    rmdir(path->data);
}
