/* result_read.h - reading back what a replay recorded in bulk: loads per document
 *
 * Layer 3 (traces). Everything else of a result is read by queries (query.h). */
#ifndef TRACES_RESULT_READ_H
#define TRACES_RESULT_READ_H

#include "base/err.h"
#include "traces/trace.h"

/* counts[E] of one document; borrowed for the call. */
typedef void (*result_document_fn)(void *context, int64_t document, const int64_t *counts);

/* Calls `each` for every document that has a recorded load of `variant` at router r, by rising
 * document (never when the replay recorded none). Sizes and documents are checked. */
bool result_read_documents(struct trace *trace, int variant, int r, result_document_fn each,
                           void *context, struct err *err);

#endif
