/* merge.h - captures of one model, made on several machines, as one trace
 *
 * Layer 3 (traces). The traces must be of one make: model, configuration, gates, biases,
 * arithmetic, store and options; else the first difference is named. Documents keep their order,
 * trace after trace, and are numbered anew; passes and blocks are cut as a capture of all documents
 * cuts them, so that the result is row for row that capture. Every recorded hash of choices is
 * checked on the way (law 1). Kernel levels may differ: scores then agree to rounding only, which
 * the result says. */
#ifndef TRACES_MERGE_H
#define TRACES_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/progress.h"

struct merge_job {
    const char *const *files; /* traces, two or more */
    int file_count;
    const char *out; /* appears only when whole */
    bool force;      /* replace an existing file */
    /* A document of an earlier trace again (same sha256 and domain) is left out; else refused. */
    bool skip_duplicates;
    bool keep_duplicates; /* or is kept: the traces are parts of one capture */
    const struct progress *progress;
};

struct merge_report {
    int64_t documents, skipped, tokens; /* of the result; skipped: duplicates left out */
    int layers;
    bool kernels_differ;
    bool hashes_lost; /* lossy store: what was live cannot be hashed again for other blocks */
};

bool trace_merge(const struct merge_job *job, struct merge_report *report, struct err *err);

#endif
