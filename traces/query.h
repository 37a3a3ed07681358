/* query.h - named queries on a trace or result, as tables
 *
 * Layer 3 (traces). A query is one file queries/NAME.sql, embedded at build, and one X(NAME) line
 * below; its ?1, ?2, ... are bound to the values given. Others see tables, never SQL. */
#ifndef TRACES_QUERY_H
#define TRACES_QUERY_H

#include <stdint.h>

#include "base/err.h"
#include "base/table.h"
#include "traces/trace.h"

/* X(name): queries/name.sql */
#define TRACE_QUERIES(X)                                                                           \
    X(capture_nll)                                                                                 \
    X(replay_experiment)                                                                           \
    X(replay_dynamics)                                                                             \
    X(replay_losses)                                                                               \
    X(replay_optima)                                                                               \
    X(replay_means)                                                                                \
    X(replay_summary)                                                                              \
    X(expert_load)                                                                                 \
    X(replay_batch)                                                                                \
    X(replay_bias)                                                                                 \
    X(domain_tokens)                                                                               \
    X(throughput_steps)                                                                            \
    X(throughput_has)                                                                              \
    X(study_throughput_ranks)                                                                      \
    X(study_throughput_regimes)                                                                    \
    X(study_throughput_layers)                                                                     \
    X(study_throughput_replicas)                                                                   \
    X(study_throughput_staleness)                                                                  \
    X(study_traffic)                                                                               \
    X(throughput_worth)                                                                            \
    X(study_variants)                                                                              \
    X(study_load_map)                                                                              \
    X(study_load_curve)                                                                            \
    X(study_layers)                                                                                \
    X(study_trajectory)                                                                            \
    X(study_weights)                                                                               \
    X(study_layer_table)                                                                           \
    X(study_variant_table)                                                                         \
    X(domain_drift)                                                                                \
    X(load_by_domain)                                                                              \
    X(tokens_of_expert)                                                                            \
    X(experts_of_token)                                                                            \
    X(contested_tokens)                                                                            \
    X(ties)                                                                                        \
    X(nll_by_expert)                                                                               \
    X(coactivation)                                                                                \
    X(unused_experts)                                                                              \
    X(weight_by_rank)                                                                              \
    X(expert_persistence)                                                                          \
    X(experts_for_share)

struct query_value {
    enum { QUERY_NULL, QUERY_INT, QUERY_REAL, QUERY_TEXT } kind;
    int64_t integer;
    double real;
    const char *text;
};
#define QUERY_I(x) ((struct query_value){.kind = QUERY_INT, .integer = (x)})
#define QUERY_R(x) ((struct query_value){.kind = QUERY_REAL, .real = (x)})
#define QUERY_T(x) ((struct query_value){.kind = QUERY_TEXT, .text = (x)})

/* The named queries, for lists; ends with name == NULL. The text begins with a comment that says
 * what it answers. */
struct trace_named_query {
    const char *name, *sql;
};
extern const struct trace_named_query trace_named_queries[];

/* Runs the named query. Columns are named as in the SQL; a column's kind is that of its declared
 * type, else of its first value that is not NULL. Returns owned; NULL with err set. */
struct table *trace_query(struct trace *trace, const char *name, const struct query_value *values,
                          int count, struct err *err);
/* The same for a text of the user's: one read-only statement. Both see the table router_score. */
struct table *trace_sql(struct trace *trace, const char *sql, struct err *err);

#endif
