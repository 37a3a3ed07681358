/* layer_run.h - all variants of a share over the tokens of one layer: the job of one thread
 *
 * Layer 4 (sim), private to the replay. A job is one layer and one share of the variants; shares
 * are cut so that variants of equal load stay together. Nothing is shared between jobs but the
 * constant description, so what a job computes cannot depend on who runs it (law 3). */
#ifndef SIM_LAYER_RUN_H
#define SIM_LAYER_RUN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "sim/replay.h"
#include "sim/token_ids.h"
#include "sim/unit.h"

/* The same for all jobs; constant while they run, but for the two last. */
struct replay_job {
    const struct variant_set *variants;
    const struct source *source;
    const struct replay_options *options;
    const struct token_ids *ids; /* empty unless a variant needs them */
    int shares;                  /* how the variants are divided */
    const int *share;            /* [variants] */
    int64_t chunk_tokens;        /* tokens in flight at a time */
    const int64_t *batch; /* [shares] a share of gates that need whole batches: its batch; or 0 */
    /* Called after each chunk; false asks to stop. Thread-safe. */
    bool (*step)(void *context, int64_t tokens);
    void *context;
};

struct layer_run {
    struct arena arena; /* everything below */
    struct unit **unit; /* [units] */
    int units;
    struct unit **of;         /* [variants] the unit of a variant; NULL: another share's */
    struct batches **batches; /* [variants] */
    struct replay_row *row;   /* [variants] filled at the end */
};

/* Runs one share at one layer; on success row[] of its variants is filled. Borrows job. Release
 * with layer_run_free in any case. */
bool layer_run(struct layer_run *run, const struct replay_job *job, int layer, int share,
               struct err *err);
void layer_run_free(struct layer_run *run);

#endif
