/* check.h - is a trace what it claims to be?
 *
 * Layer 3 (traces). */
#ifndef TRACES_CHECK_H
#define TRACES_CHECK_H

#include "base/err.h"
#include "base/progress.h"
#include "base/table.h"
#include "traces/trace.h"

/* Checks, one row each (columns: check, result = "ok", "failed", "skipped"; detail): SQLite's own
 * integrity check, numbers of rows, every blob's size, token rows, document hashes (of files that
 * are still there), and the replay law: the native gate on the stored logits gives the live choices
 * and weights, by hash, in every `stride`-th chunk of each layer (1 = all). *failed counts failed
 * rows. Returns owned; NULL with err set when checking itself could not be done. */
struct table *trace_check(struct trace *trace, int64_t stride, const struct progress *progress,
                          int *failed, struct err *err);

#endif
