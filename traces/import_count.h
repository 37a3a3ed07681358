/* import_count.h - gathers counts of a source that only says how many tokens chose each expert
 *
 * Private to traces/. */
#ifndef TRACES_IMPORT_COUNT_H
#define TRACES_IMPORT_COUNT_H

#include "traces/exchange.h"

struct count_entry {
    int layer, expert;
    int64_t document, count;
};

struct count_build {
    struct count_entry *entries; /* owned */
    int64_t count, cap;
    struct trace_document *documents; /* owned; tokens 0 = not known, derived from the counts */
    int64_t document_count;
    int topk;         /* 0 = that of --gate */
    int experts;      /* E, where the source says it; 0 = not */
    const char *note; /* more that the source lacks, "; ..."; NULL = nothing. Borrowed */
};

bool count_add(struct count_build *build, int layer, int64_t document, int64_t expert, double count,
               struct err *err);
bool count_document(struct count_build *build, const char *source, const char *domain,
                    int64_t tokens, struct err *err);
/* Makes the source: layers by rising number, E = --experts, the source's or the highest + 1;
 * refuses all zeros, and layers whose sum is not k times the document's tokens (with `strict`).
 * Tokens of documents that are not known are the first layer's sum / k. Frees the builder. */
bool count_finish(struct count_build *build, const struct import_job *job, bool strict,
                  struct import_source *source, const char *importer, struct err *err);
void count_free(struct count_build *build);

#endif
