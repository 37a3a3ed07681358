/* outcome.h - from the rows of a replay to the result tables
 *
 * Layer 4 (sim): calls traces. Joins a replay's sink with the result writer: measures, loads,
 * batches, biases, loads per document and weights per rank of selection of every variant and layer,
 * then the variants themselves, whose same_as is known only when no token parted them (replay.h).
 */
#ifndef SIM_OUTCOME_H
#define SIM_OUTCOME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "sim/replay.h"
#include "sim/variant.h"
#include "traces/result.h"

struct outcome {
    struct result *result; /* owned until commit or abandon */
    struct variant_set *variants;
    int64_t documents;
    int64_t *parted;  /* [variants] owned: tokens that break a claimed same_as, over layers */
    struct str notes; /* after commit: claims of same_as withdrawn, then those that stood */
};

/* Starts a result (result_create says where). Borrows variants, whose same_as may be withdrawn. */
bool outcome_begin(struct outcome *outcome, struct result *result, struct variant_set *variants,
                   int64_t documents, struct err *err);
/* The sink to hand to replay_run. */
struct replay_sink outcome_sink(struct outcome *outcome);
/* Writes the variants and commits. Releases everything but the notes, also on failure. */
bool outcome_commit(struct outcome *outcome, struct err *err);
/* Gives up: the file stays as it was. Releases everything. */
void outcome_abandon(struct outcome *outcome);

/* Would loads per document of this many cells be too much to keep in memory and in the result? The
 * answer is the same for any number of threads and processes. */
bool outcome_keeps_documents(const struct variant_set *variants, const struct source *source);

#endif
