/* throughput_result.h - writing what `steelyard throughput` found: into a trace or a RESULT.db
 *
 * Layer 3 (traces). Tables and views of throughput.sql are added to the database (which stays valid
 * without them); an earlier run's rows are replaced in the same transaction. */
#ifndef TRACES_THROUGHPUT_RESULT_H
#define TRACES_THROUGHPUT_RESULT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "traces/trace.h"

/* What was asked, for the record. */
struct throughput_record {
    const char *cluster_json, *options, *notes;
};

/* One row of result_throughput; NaN is stored as NULL. layer < 0 and straggler < 0: NULL. */
struct throughput_row {
    int64_t cell;
    int variant;
    const char *gate, *cluster;
    int ranks;
    const char *placement;
    int replicas;
    const char *replica_choice, *learnt, *phase;
    int64_t refresh; /* < 0: NULL */
    double context;
    const char *load;
    double load_distance;
    const char *bias_rule;
    double bias_rate;
    int64_t tokens_per_rank;
    int layer;
    double time_ms, tokens_per_s, slowdown, against_balanced;
    const char *regime;
    double comm_share, error_pct, experts_ms, comm_ms, move_ms, rest_ms;
    double rank_max, rank_mean, active_max;
    int straggler;
    double dropped;
    int64_t batches;
    bool repeats, extrapolated;
};

/* Copies of tokens from one rank to another in a batch, all layers. */
struct throughput_traffic {
    int64_t cell;
    int from, to, from_node, to_node;
    double copies, mbytes;
};

struct throughput_writer;

/* out = NULL: into the trace's own file. Else into the RESULT.db of the same trace that a replay
 * has made, or a new one with the capture, layers and documents of the trace but no tokens, which
 * appears under its name only at the end; another existing file is refused unless `force`. Cursors
 * on the trace must be closed. Returns owned; NULL with err set. */
struct throughput_writer *throughput_begin(const struct trace *trace, const char *out, bool force,
                                           const struct throughput_record *record, struct err *err);
bool throughput_row(struct throughput_writer *writer, const struct throughput_row *row,
                    struct err *err);
/* expert[slots] of one layer; places slots a rank. */
bool throughput_placement(struct throughput_writer *writer, int64_t cell, int layer,
                          const int32_t *expert, int slots, int places, struct err *err);
bool throughput_traffic(struct throughput_writer *writer, const struct throughput_traffic *traffic,
                        struct err *err);
/* Commits and frees. */
bool throughput_commit(struct throughput_writer *writer, struct err *err);
/* Gives up and frees: nothing changes. NULL is allowed. */
void throughput_abandon(struct throughput_writer *writer);

#endif
