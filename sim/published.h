/* published.h - published serving systems, and what the model predicts for them
 *
 * Layer 4 (sim): calls base. A case study, not a validation: nothing is tuned, every assumption has
 * a name, and the published figures are of whole systems whose load, batches and overlap are only
 * partly known. The model that all of them serve is DeepSeek-V3/R1. */
#ifndef SIM_PUBLISHED_H
#define SIM_PUBLISHED_H

#include "base/err.h"
#include "base/table.h"
#include "sim/serving.h"

struct published_system {
    const char *name, *source;
    const char *cluster; /* built-in */
    enum serving_phase phase;
    int ranks, slots; /* slots: routed experts with their replicas */
    double tokens_per_rank, context;
    double tokens_per_s; /* published, per node of 8 GPUs */
    const char *load;    /* what is known of the system's load */
    const char *assumed; /* what we assume beside `study_assumptions` */
};
extern const struct published_system published_systems[]; /* ends with name == NULL */

/* Assumptions that all rows share, one line each; ends with NULL. */
extern const char *const published_assumptions[];

/* One line a system: system, phase, cluster, ranks, slots, tokens_per_rank, context, published,
 * predicted (tokens/s a node, communication after computation), predicted_overlap (behind it),
 * ratio, ratio_overlap (predicted / published), experts_ms, comm_ms, rest_ms (of the step),
 * error_pct (of the layer times), extrapolated, load, assumed, source. Returns owned. */
struct table *published_study(struct err *err);

#endif
