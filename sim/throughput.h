/* throughput.h - seconds and tokens/s of a trace on a cluster, per variant, placement and phase
 *
 * Layer 4 (sim): calls traces, router, analysis and base. A cell is one variant of the gate on R
 * ranks under one placement, phase and batch size. For every batch of the cell (serving.h) each
 * token's choices are sent to replicas (placement.h); a layer takes the time of its slowest rank
 * (layer_time.h) plus dispatch and combine (comm.h), and a step is the sum over layers, since the
 * straggler changes from layer to layer, plus the rest of the model (step.h).
 *
 * Law 3: a (cell, layer) is computed by one thread from the same tokens in the same order, and sums
 * over layers run in layer order: the same bits for any number of threads. */
#ifndef SIM_THROUGHPUT_H
#define SIM_THROUGHPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/progress.h"
#include "base/str.h"
#include "sim/choices_made.h"
#include "sim/cluster.h"
#include "sim/placement.h"
#include "sim/routed.h"
#include "sim/serving.h"
#include "sim/step.h"

/* On which tokens a placement was learnt. X(enum, name, help) */
#define LEARN_FROM(X)                                                                              \
    X(LEARN_WHOLE, "whole", "all tokens of the trace, also those it is used on: optimistic")       \
    X(LEARN_PREVIOUS, "previous",                                                                  \
      "the window of batches before the last refresh: stale; the first window is not measured")    \
    X(LEARN_DOMAIN, "domain", "the documents of one domain, used on all")
#define X(e, name, help) e,
enum learn_from { LEARN_FROM(X) };
#undef X

/* What a cell is asked for. */
struct throughput_point {
    int variant; /* from 0; a load that no trace made has its T, k and E only */
    int ranks;
    enum placement_rule placement;
    int replicas; /* redundant slots */
    enum serving_phase phase;
    int64_t tokens_per_rank;
    double context; /* tokens in the KV cache of a sequence */
    enum learn_from learn;
    int domain;      /* of LEARN_DOMAIN */
    int64_t refresh; /* of LEARN_PREVIOUS: batches between refreshes */
    struct load_choice load;
};

struct throughput_options {
    const struct cluster *cluster;
    const struct model_shape *shape;
    enum replica_choice choice;
    int64_t window;  /* LEARN_PREVIOUS: batches looked back on */
    int groups;      /* of experts, for hierarchical placement; 0: the native gate's */
    double capacity; /* train: an expert takes at most capacity * T*k/E tokens; 0: all */
    bool pad;        /* train: experts with a capacity (that, or the gate's) compute all of it */
    bool overlap;    /* communication behind computation: the longer of both counts */
    bool moe_only;   /* leave out the rest of the step */
    int64_t most_batches; /* per cell */
    uint64_t seed;
    int threads; /* 0: one per CPU */
};

/* Which way skew acts: time against that of the balanced law of the same tokens. */
#define SKEW_REGIMES(X)                                                                            \
    X(SKEW_HELPS, "skew-helps", "under 0.97: fewer experts' weights are read")                     \
    X(SKEW_FREE, "skew-free", "0.97 to 1.03")                                                      \
    X(SKEW_COSTS, "skew-costs", "over 1.03: the step waits for the hottest rank")
#define X(e, name, help) e,
enum skew_regime { SKEW_REGIMES(X) };
#undef X
const char *skew_regime_name(enum skew_regime regime);
enum skew_regime skew_regime_of(double against_balanced);

/* Means over the batches of a cell at one layer; or of a whole step (layer = -1: sums over layers,
 * the rest included; straggler -1). */
struct throughput_layer {
    int layer;                  /* the model's own number; -1 = the step */
    double time_ms;             /* experts of the slowest rank and communication (and the rest) */
    double experts_ms;          /* of the slowest rank */
    double comm_ms;             /* dispatch and combine */
    double move_ms;             /* weights moved at refreshes, a batch's share */
    double even_ms;             /* experts_ms at even load with as many activated experts */
    double balanced_ms;         /* experts_ms under the balanced law */
    double rank_max, rank_mean; /* assignments of the hottest and the mean rank */
    double active_max;          /* activated experts of the rank that has most */
    double dropped;             /* share of assignments beyond the capacity */
    int straggler;              /* the rank that is slowest most often */
};

struct throughput_cell {
    struct throughput_point point;
    int64_t batches, group_tokens;
    bool repeats;      /* the trace is shorter than a batch */
    bool extrapolated; /* outside the shapes and sizes that the layer time was validated on */
    double rest_ms;
    struct throughput_layer *layer; /* [layers] owned by the run */
    struct throughput_layer step;   /* sums */
    double tokens_per_s;            /* of the whole group; by the total time of all batches */
    /* Distance of this load from the trace's in the same batches: half the sum of |share - share|
     * over experts ranked by load, mean over layers; the share of choices that would have to go
     * elsewhere. 0: the trace's own; NaN: the trace was not asked for. */
    double distance;
    double *profile; /* [layers, experts] shares by rank of load, or NULL: another cell has them */
    double *traffic; /* [layers, R, R] copies from rank to rank in a batch, or NULL: not kept */
    int32_t *placed; /* [layers, slots] owned: expert of each slot, last batch */
    int slots, experts;
    char lacks[256]; /* not empty: this cell cannot be, for this reason */
};

struct throughput_run {
    struct throughput_cell *cells; /* [count] */
    int count, layers;
};

/* Copies from rank to rank are kept for the first cells, up to this many numbers in all. */
enum { THROUGHPUT_TRAFFIC = 1 << 20 };

/* Runs all points. A point that cannot be (ranks that do not divide its slots) is kept, with
 * `lacks`. Release with throughput_free. */
bool throughput_run(struct throughput_run *run, const struct routed *routed,
                    const struct throughput_point *points, int count,
                    const struct throughput_options *options, const struct progress *progress,
                    struct err *err);
void throughput_free(struct throughput_run *run);

#endif
