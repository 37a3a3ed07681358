/* exchange.h - other people's traces in, ours out: two tables of formats
 *
 * Layer 3 (traces). An importer describes its files as a trace_setup plus callbacks that hand out
 * pieces; import.c does the rest (passes, commits, temporary name, rename), so that every importer
 * has the same safety. An exporter reads an open trace. Both refuse what cannot work with one line.
 */
#ifndef TRACES_EXCHANGE_H
#define TRACES_EXCHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/progress.h"
#include "traces/trace.h"

/* What the user asked for. Borrows everything. */
struct import_job {
    const char *const *files;
    int file_count;
    const char *out;    /* appears only when whole */
    bool force;         /* replace an existing file */
    const char *gate;   /* specification for sources that do not say theirs; NULL = none */
    const char *domain; /* for sources without domains; NULL = the file's name */
    int64_t experts;    /* E, where the source only shows the chosen; 0 = highest id + 1 */
    int64_t layers;     /* L, where the source does not carry its shape; 0 = not given */
    const char *model;  /* name of the model where the source has none; NULL = the file's name */
    const struct progress *progress;
};

/* Files opened by an importer, ready to be read. All memory belongs to the arena or to `state`. */
struct import_source {
    struct arena arena;
    struct trace_setup setup;
    const int32_t *ids; /* [T] token ids, or NULL */
    const int32_t
        *positions;   /* [T] within their windows; NULL: counted from each document's start */
    const float *nll; /* [T], or NULL */
    void *state;
    /* Fills routes (r, first, tokens are set) for at most `tokens` tokens; pointers are valid until
     * the next call. NULL for sources of counts. */
    bool (*routes)(struct import_source *source, struct trace_routes *routes, struct err *err);
    /* Adds to counts[E], which is zeroed, those of router r over a document; NULL for sources of
     * tokens. */
    bool (*counts)(struct import_source *source, int r, int64_t document, int64_t *counts,
                   struct err *err);
    void (*close)(struct import_source *source); /* frees state; may be NULL */
};

struct trace_importer {
    const char *name;
    const char *summary; /* what it reads, what the trace then holds */
    const char *origin;  /* program that writes such files */
    /* Looks at a file's first bytes or its name: is it surely of this format? */
    bool (*recognise)(const char *path);
    bool (*open)(const struct import_job *job, struct import_source *source, struct err *err);
};
/* Ends with name == NULL. */
extern const struct trace_importer trace_importers[];

/* By name; "auto" recognises the first file. NULL with err set, listing what there is. */
const struct trace_importer *trace_importer_find(const char *name, const char *path,
                                                 struct err *err);
/* Runs an import. Nothing appears under job->out unless all went well. */
bool trace_import(const struct trace_importer *importer, const struct import_job *job,
                  struct err *err);

struct trace_exporter {
    const char *name;
    const char *summary;
    bool (*run)(struct trace *trace, const char *out, const struct progress *progress,
                struct err *err);
};
extern const struct trace_exporter trace_exporters[];
const struct trace_exporter *trace_exporter_find(const char *name, struct err *err);

#endif
