/* parts.c - a capture by several processes: dealing the documents, joining the parts */
#include "cli/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "traces/merge.h"

/* The process of a document: of the one that holds its middle token, were tokens divided evenly. */
static int process_of(const struct corpus *corpus, int64_t document, int size) {
    const struct trace_document *d = &corpus->documents[document];
    double middle = (double)d->first_token + (double)d->tokens / 2;
    int process = (int)(middle / (double)corpus->tokens * size);
    return process < size ? process : size - 1;
}

static char *part_path(const char *out, int rank, int size) {
    struct str path = {0};
    str_printf(&path, "%s.part%d-of-%d", out, rank + 1, size);
    return path.failed ? NULL : path.data;
}

bool parts_deal(struct parts *parts, struct processes *processes, const char *out,
                struct corpus *corpus, struct err *err) {
    bool alone = processes_alone(processes);
    int size = alone ? 1 : processes->size, rank = alone ? 0 : processes->rank;
    int64_t first = corpus->document_count, last = 0;
    *parts = (struct parts){.processes = processes, .out = out};
    parts->path = alone ? strdup(out) : part_path(out, rank, size);
    parts->used = calloc((size_t)size, sizeof *parts->used);
    if (!parts->path || !parts->used) return err_memory(err, "parts");
    for (int64_t d = 0; d < corpus->document_count; d++) {
        int process = process_of(corpus, d, size);
        parts->used[process] = true;
        if (process != rank) continue;
        if (d < first) first = d;
        last = d + 1;
    }
    if (!alone) corpus_keep(corpus, first < last ? first : last, last);
    return true;
}

bool parts_mine(const struct parts *parts) {
    return parts->used[processes_alone(parts->processes) ? 0 : parts->processes->rank];
}

static bool join(const struct parts *parts, const char *const *files, int count, bool force,
                 const struct progress *progress, struct str *notes, struct err *err) {
    const struct merge_job job = {.files = files,
                                  .file_count = count,
                                  .out = parts->out,
                                  .force = force,
                                  .keep_duplicates = true,
                                  .progress = progress};
    struct merge_report report;
    if (count == 1)
        return rename(files[0], parts->out) == 0 || err_errno(err, parts->out, "cannot write");
    if (!trace_merge(&job, &report, err)) return false;
    if (report.kernels_differ)
        str_puts(notes, "captured with several kernel levels: scores agree to rounding, not bit "
                        "for bit, with a capture on one machine\n");
    if (report.hashes_lost)
        str_puts(notes, "logits are stored lossy: choices made live are not recorded in the "
                        "result\n");
    return true;
}

bool parts_join(const struct parts *parts, bool force, const struct progress *progress,
                struct str *notes, struct err *err) {
    if (processes_alone(parts->processes)) return true;
    int size = parts->processes->size, count = 0;
    char **files = calloc((size_t)size, sizeof *files);
    bool ok = files || err_memory(err, "parts");
    for (int r = 0; ok && r < size; r++) {
        if (!parts->used[r]) continue;
        files[count] = part_path(parts->out, r, size);
        ok = files[count++] || err_memory(err, "parts");
    }
    ok = ok && join(parts, (const char *const *)files, count, force, progress, notes, err);
    for (int i = 0; i < count; i++) {
        if (ok) unlink(files[i]);
        free(files[i]);
    }
    free(files);
    return ok;
}

void parts_free(struct parts *parts) {
    free(parts->path);
    free(parts->used);
    *parts = (struct parts){0};
}
