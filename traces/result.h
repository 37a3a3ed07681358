/* result.h - writing the results of a replay: into RUN.db itself or into a RESULT.db
 *
 * Layer 3 (traces). Callers give plain structs; the views replay_summary, expert_load,
 * replay_batch, replay_bias (contract: schema.sql) show them. Everything is one transaction:
 * readers see the whole new result or the old one. A RESULT.db also holds what a report needs of
 * the trace: capture, layers, documents, and where the trace was. Real values that are NaN are
 * stored as NULL ("does not apply"). */
#ifndef TRACES_RESULT_H
#define TRACES_RESULT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "traces/trace.h"

/* What was asked, for the record and for reports. */
struct result_experiment {
    const char *options; /* the replay's options, canonical, one line */
    const char *order;   /* "captured" or "shuffled" */
    uint64_t seed;
    int64_t tokens;       /* replayed */
    const char *warnings; /* lines that a reader of the result must see; "" when none */
};

/* A variant: numbered from 1 in the order asked. */
struct result_variant {
    int variant;
    const char *gate;       /* canonical specification, or "native" ones printed in full */
    const char *label;      /* as asked, short, for legends */
    const char *bias_rule;  /* "none", "frozen", "sign", ... */
    double bias_rate;       /* NaN when the rule has none */
    const char *bias_start; /* "zero", "captured"; "" when there is no bias */
    int64_t batch_tokens;
    int ranks;   /* 0 = not asked */
    int same_as; /* 0 = none; else a smaller variant that this one provably equals in load */
    const char *same_why; /* what follows from the specifications; "" when same_as is 0 */
    bool causal;          /* no token's experts depend on later tokens (at any layer) */
};

/* Measures of one variant at one layer (DESIGN section 8). NaN = does not apply. */
struct result_layer {
    int variant, layer;
    double maxvio_global, maxvio_batch, cv, gini, entropy;
    int64_t load_min, load_max;  /* tokens */
    int64_t ties, group_escapes; /* -1 = does not apply (trace of ids or counts) */
    double agreement, mass_retained, rank_maxvio, efficiency;
    double dropped, unrouted; /* shares of choices that a capacity dropped, of tokens without any */
    double experts_mean;      /* experts of a token */
    int64_t experts_max;
};

struct result; /* a result being written */

/* out = NULL: into the trace's own file, replacing earlier results. Otherwise a new RESULT.db; an
 * existing file is refused unless `force`; it appears under its name only at the end. Results for
 * the trace's own file are kept in memory until result_commit, so cursors may stay open until then,
 * but must be closed before it. Returns owned; NULL with err set. */
struct result *result_create(const struct trace *trace, const char *out, bool force,
                             const struct result_experiment *experiment, struct err *err);

/* Variants first, by rising number; then the rest in any order. Not thread-safe. */
bool result_variant(struct result *result, const struct result_variant *variant, struct err *err);
bool result_layer(struct result *result, const struct result_layer *row, struct err *err);
/* tokens[E]; weight[E] = sum of the gate weights that an expert received (NULL = not known). */
bool result_expert_load(struct result *result, int variant, int layer, int experts,
                        const int64_t *tokens, const double *weight, struct err *err);
/* Batches `first`.. (from 0): tokens[n], maxvio[n], efficiency[n] (NULL = no ranks). */
struct result_batches {
    int variant, layer;
    int64_t first, count;
    const int64_t *tokens;
    const double *maxvio, *efficiency;
};
bool result_batches(struct result *result, const struct result_batches *batches, struct err *err);
/* bias[E] after the last update. */
bool result_bias(struct result *result, int variant, int layer, int experts, const double *bias,
                 struct err *err);
/* How the load moved over batches (definitions: analysis/dynamics.h). NaN = does not apply. */
struct result_dynamics {
    int variant, layer;
    int64_t batches;
    double start, level, settling_batches, overshoot, amplitude, period;
};
bool result_dynamics(struct result *result, const struct result_dynamics *row, struct err *err);
/* The value of a named training loss (optional). */
bool result_loss(struct result *result, int variant, int layer, const char *name, double value,
                 struct err *err);
/* The last full balance batch: maxvio, share of the score mass that the variant keeps, and the most
 * that exactly equal loads allow (optional). */
struct result_optimum {
    int variant, layer;
    int64_t batch;
    double maxvio, mass, optimum;
};
bool result_optimum(struct result *result, const struct result_optimum *row, struct err *err);
/* Tokens of a document that chose each expert, counts[E]: per-domain loads and intervals over
 * documents come from these (view domain_load). Optional. */
bool result_document_load(struct result *result, int variant, int layer, int64_t document,
                          int experts, const int64_t *counts, struct err *err);
/* Gate weight at each rank of selection: mean[k] and sd[k] over tokens. Optional. */
bool result_rank_weight(struct result *result, int variant, int layer, int k, const double *mean,
                        const double *sd, struct err *err);

/* Commits and frees. A failure leaves the former state. */
bool result_commit(struct result *result, struct err *err);
/* Gives up and frees: nothing changes. NULL is allowed. */
void result_abandon(struct result *result);

#endif
