/* merge_plan.h - which documents of which traces make the merged one
 *
 * Private to traces/. */
#ifndef TRACES_MERGE_PLAN_H
#define TRACES_MERGE_PLAN_H

#include "base/arena.h"
#include "traces/internal.h"
#include "traces/merge.h"

/* Where a document of the result comes from. */
struct merge_document {
    int input;
    int64_t document;
};

/* Consecutive tokens of the result that are consecutive in an input. */
struct merge_part {
    int input;
    int64_t first, tokens; /* in the result */
    int64_t from;          /* first in the input */
};

struct merge_plan {
    struct arena arena;
    struct trace **inputs; /* owned */
    int input_count;
    struct trace_setup setup;    /* of the result */
    struct merge_document *from; /* [documents] */
    struct merge_part *parts;
    int64_t part_count, tokens, skipped;
    bool kernels_differ;
};

/* Opens the traces, checks that they are of one make, lays documents one after the other.
 * merge_plan_free also after a failure. */
bool merge_plan_make(struct merge_plan *plan, const struct merge_job *job, struct err *err);
void merge_plan_free(struct merge_plan *plan);
/* The part that holds a token of the result. */
const struct merge_part *merge_part_of(const struct merge_plan *plan, int64_t token);

#endif
