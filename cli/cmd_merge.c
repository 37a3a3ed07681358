/* cmd_merge.c - `steelyard merge`: captures of one model, made on several machines, as one trace */
#include "base/table.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "traces/merge.h"

static const struct table_column columns[] = {{"file", "", TABLE_TEXT},
                                              {"traces", "", TABLE_INT},
                                              {"layers", "", TABLE_INT},
                                              {"documents", "", TABLE_INT},
                                              {"skipped_duplicates", "", TABLE_INT},
                                              {"tokens", "", TABLE_INT}};

static bool print_report(const struct merge_job *job, const struct merge_report *report,
                         struct output_choice choice, struct err *err) {
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    if (!table) return false;
    table_text(table, job->out);
    table_int(table, job->file_count);
    table_int(table, report->layers);
    table_int(table, report->documents);
    table_int(table, report->skipped);
    table_int(table, report->tokens);
    bool ok = table_ok(table, err) && output_table(table, choice, err);
    table_free(table);
    if (report->kernels_differ)
        print_notes("captured with several kernel levels: scores agree to rounding, not bit for "
                    "bit, with a capture on one machine\n");
    if (report->hashes_lost)
        print_notes("logits are stored lossy: choices made live are not recorded in the result\n");
    return ok;
}

static bool merge(struct merge_job *job, struct output_choice choice, struct err *err) {
    struct progress_line line;
    struct merge_report report;
    progress_begin(&line, "merge");
    job->progress = &line.progress;
    bool ok = trace_merge(job, &report, err);
    progress_end(&line);
    return ok && print_report(job, &report, choice, err);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct merge_job job = {0};
    struct output_choice choice = {0};
    const struct option options[] = {
        {"out", OPTION_TEXT, &job.out, "RUN.db", "the trace to write", 0, 0},
        {"skip-duplicates", OPTION_FLAG, &job.skip_duplicates, NULL,
         "leave out documents that an earlier trace has (same text and domain)", 0, 0},
        {"force", OPTION_FLAG, &job.force, NULL, "replace an existing file", 0, 0},
        OPTION_OUTPUT(choice),
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) {
        job.files = rest.items;
        job.file_count = rest.count;
        if (rest.count < 2 || !job.out)
            ok = err_set(err, ERR_USAGE, "expected two traces or more, and --out RUN.db");
        else
            ok = output_is_no_input(job.out, rest.items, rest.count, err) &&
                 merge(&job, choice, err);
    }
    text_list_free(&rest);
    return ok;
}

const struct command command_merge = {
    .name = "merge",
    .arguments = "A.db B.db...",
    .summary = "one trace of captures of one model, made on several machines",
    .example = "steelyard merge monday.db tuesday.db --out week.db",
    .run = run};
