/* throughput_request.h - what `steelyard throughput` was asked, as lists and as cells
 *
 * Layer 5. */
#ifndef CLI_THROUGHPUT_REQUEST_H
#define CLI_THROUGHPUT_REQUEST_H

#include "cli/options.h"
#include "sim/throughput.h"

/* Comma lists of the command line. X(enum, name, what is taken when it is absent) */
#define THROUGHPUT_LISTS(X)                                                                        \
    X(LIST_BIAS_RULE, "bias-rule", NULL)                                                           \
    X(LIST_BIAS_RATE, "bias-rate", NULL)                                                           \
    X(LIST_LOAD, "load", "trace")                                                                  \
    X(LIST_RANKS, "ranks", "8,32")                                                                 \
    X(LIST_PLACEMENT, "placement", "contiguous,eplb")                                              \
    X(LIST_REPLICAS, "replicas", "0")                                                              \
    X(LIST_PHASE, "phase", "prefill,decode")                                                       \
    X(LIST_TOKENS, "tokens", "2048")                                                               \
    X(LIST_CONCURRENCY, "concurrency", "64")                                                       \
    X(LIST_CONTEXT, "context", "4096")                                                             \
    X(LIST_LEARN, "learn", "whole")                                                                \
    X(LIST_REFRESH, "refresh", "4")
#define X(e, name, otherwise) e,
enum throughput_list { THROUGHPUT_LISTS(X) THROUGHPUT_LIST_COUNT };
#undef X

struct throughput_request {
    struct text_list gates, list[THROUGHPUT_LIST_COUNT];
    char *storage[THROUGHPUT_LIST_COUNT]; /* owned */
    const char *cluster, *choice, *config, *out, *hash_table;
    double hidden, inter, capacity;
    int64_t window, groups, batches, batch_tokens, seed, threads;
    bool overlap, pad, moe_only, force;
    struct output_choice output;
};

/* Splits the lists and fills in the absent ones. */
bool throughput_request_lists(struct throughput_request *request, struct err *err);
void throughput_request_free(struct throughput_request *request);

/* The request as one line, in canonical form. */
void throughput_request_describe(const struct throughput_request *request, struct str *out);

/* Cells in the order asked. */
struct throughput_points {
    struct throughput_point *item; /* owned */
    int count, room;
};

/* The product of the lists: every variant under the trace's load, the first one's T, k and E under
 * the others; only stale placements (learn previous) take the list of refresh intervals. */
bool throughput_request_points(const struct throughput_request *request, const struct trace *trace,
                               int variants, struct throughput_points *points, struct err *err);

/* "whole", "previous", "domain=NAME". */
void throughput_learn_name(const struct throughput_point *point, const struct trace *trace,
                           struct str *out);

#endif
