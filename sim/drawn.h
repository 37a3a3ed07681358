/* drawn.h - choices for tokens of which only the experts' counts are known
 *
 * Layer 4 (sim): calls traces and base. What needs a choice for every token (throughput, placement)
 * gets ones that give exactly the recorded counts, document by document: an expert's n tokens are
 * n places of one list in a row, token t of T gets the places t, t + T, t + 2T, ... (so never an
 * expert twice, as n <= T), and the tokens are shuffled, seeded. Which experts a token has together
 * is made up, and so is how batches differ: figures from them are those of independent tokens. */
#ifndef SIM_DRAWN_H
#define SIM_DRAWN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "traces/trace.h"

/* expert[T,k] <- choices of all documents at router r. Where a document's counts do not sum to k x
 * tokens (some studies), the rest goes to its least loaded experts, or the excess is left out.
 * Opens the trace again: thread-safe. */
bool drawn_choices(const struct trace *trace, int r, uint16_t *expert, struct err *err);

#endif
