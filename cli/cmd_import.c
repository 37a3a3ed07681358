/* cmd_import.c - `steelyard import`: other people's routing records as a trace */
#include "base/str.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "traces/exchange.h"
#include "traces/trace.h"

/* Says what the file was taken for, and what the trace holds and lacks. */
static bool note_trace(const struct trace_importer *importer, const struct import_job *job,
                       struct err *err) {
    struct trace *trace = trace_open(job->out, err);
    if (!trace) return false;
    const struct trace_layer *layer = trace_layer(trace, 0);
    const char *lacks = trace_capture(trace)->lacks;
    struct str note = {0};
    str_printf(&note,
               "%s: read as %s: %s of %lld tokens in %lld document%s, %d layer%s, %d experts\n",
               job->files[0], importer->name, trace_holds_name(layer->holds),
               (long long)trace_tokens_total(trace), (long long)trace_documents(trace),
               trace_documents(trace) == 1 ? "" : "s", trace_layers(trace),
               trace_layers(trace) == 1 ? "" : "s", layer->experts);
    if (*lacks) str_printf(&note, "not in the source: %s\n", lacks);
    print_notes(str_text(&note));
    str_free(&note);
    trace_free(trace);
    return true;
}

static bool import_files(const char *from, struct import_job *job, struct err *err) {
    const struct trace_importer *importer = trace_importer_find(from, job->files[0], err);
    if (!importer) return false;
    struct progress_line line;
    progress_begin(&line, "import");
    job->progress = &line.progress;
    bool ok = trace_import(importer, job, err);
    progress_end(&line);
    return ok && note_trace(importer, job, err);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    const char *from = "auto";
    struct import_job job = {0};
    const struct option options[] = {
        {"from", OPTION_TEXT, &from, "FORMAT", "see `steelyard formats`; default auto", 0, 0},
        {"out", OPTION_TEXT, &job.out, "RUN.db", "the trace to write", 0, 0},
        {"gate", OPTION_TEXT, &job.gate, "SPEC", "the native gate, where the file does not say", 0,
         0},
        {"experts", OPTION_INT, &job.experts, "N", "experts, where only chosen ids are known", 1,
         65536},
        {"layers", OPTION_INT, &job.layers, "N", "layers, where the file does not carry its shape",
         1, 10000},
        {"domain", OPTION_TEXT, &job.domain, "NAME", "domain of its documents", 0, 0},
        {"model", OPTION_TEXT, &job.model, "NAME", "name of the model", 0, 0},
        {"force", OPTION_FLAG, &job.force, NULL, "replace an existing file", 0, 0},
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) {
        job.files = rest.items;
        job.file_count = rest.count;
        if (rest.count < 1 || !job.out)
            ok = err_set(err, ERR_USAGE, "expected at least one file and --out RUN.db");
        else
            ok = output_is_no_input(job.out, rest.items, rest.count, err) &&
                 import_files(from, &job, err);
    }
    text_list_free(&rest);
    return ok;
}

const struct command command_import = {
    .name = "import",
    .arguments = "FILE...",
    .summary = "make a trace of other programs' routing records",
    .example = "steelyard import run.safetensors --from safetensors --out run.db",
    .run = run};
