/* replay.h - runs recorded router logits through other gates and bias rules, and measures the load
 *
 * Layer 4 (sim): calls traces (types), router, analysis and base. The replay is open loop: a
 * layer's logits stay as recorded whatever an earlier layer would have chosen (law 6). Per layer
 * the tokens are streamed once for all variants; what variants share (the native choices, scores,
 * the routing of equal gates) is computed once. Memory does not grow with the tokens, but for one
 * number per balance batch and, when shuffled, one per token.
 *
 * Law 3: each (layer, variant) accumulates alone and in token order, so that every figure is the
 * same bit for bit for any number of threads and processes and any chunk size. */
#ifndef SIM_REPLAY_H
#define SIM_REPLAY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/processes.h"
#include "base/progress.h"
#include "sim/batches.h"
#include "sim/losses.h"
#include "sim/source.h"
#include "sim/variant.h"
#include "traces/result.h"

struct replay_options {
    int threads;          /* 0: one per CPU */
    int64_t chunk_tokens; /* tokens in flight; 0: chosen by the number of experts */
    const int64_t *order; /* [T] replay position -> token, or NULL: as captured */
    bool losses;          /* values of training losses too (losses.h): slower */
    bool optimum;         /* the balanced optimum of the last full batch too (optimum.h): slow */
    bool documents;       /* count per document too (memory: documents x experts x variants) */
    struct processes *processes; /* that share the work, each calling the same; NULL: this one */
};

/* The largest batch, tokens x experts, whose optimum is looked for. */
enum { REPLAY_OPTIMUM_CELLS = 1 << 24 };

/* One variant at one layer. Of a source of choices alone, ties and escapes are -1, the mass is NaN
 * and, where weights are not known, weight, rank_mean and rank_sd are NULL. Borrowed during the
 * call of the sink. E experts, k chosen, D documents. Arrays of it and of its batches travel
 * between processes as rows.c lists them.
 */
struct replay_row {
    struct result_layer measures; /* DESIGN section 8 */
    int experts, topk;
    const int64_t *tokens; /* [E] that chose the expert */
    const double *weight;  /* [E] sum of the gate weights it received, added in token order */
    const double *bias;    /* [E] after the last update; NULL when the gate has none */
    const struct batches *batches;
    const double *rank_mean; /* [k] weight at each rank of selection, mean over tokens */
    const double *rank_sd;   /* [k] its population standard deviation */
    const int64_t
        *document; /* [D,E] tokens of the document that chose the expert; NULL if not asked */
    /* of the last full batch: mass kept, and the most that equal loads allow; NaN when not asked */
    double last_mass, optimum;
    bool has_losses;
    double loss[LOSS_COUNT];
    int64_t parted; /* tokens whose experts differ from those of the claimed same_as: f32 ties */
};

/* Called for every layer in order and, within it, every variant in order; never twice at a time,
 * but perhaps from different threads; of several processes only in that of rank 0. Returning false
 * stops the replay with its err. */
struct replay_sink {
    bool (*row)(void *context, const struct replay_row *row, struct err *err);
    void *context;
};

/* Runs all variants at all layers. variants must have been built for this source. Refuses NaN and
 * infinite logits naming layer, token and expert. progress may be NULL. */
bool replay_run(const struct variant_set *variants, const struct source *source,
                const struct replay_options *options, const struct replay_sink *sink,
                const struct progress *progress, struct err *err);

/* A seeded permutation of T tokens (--order shuffled). Returns owned. */
int64_t *replay_shuffle(int64_t tokens, uint64_t seed, struct err *err);

#endif
