/* stream.h - routes the tokens of one layer in order, while a rule moves the bias after each batch
 *
 * Layer 2, pure: the caller owns all memory. The engine routes through it live, and whoever reads a
 * closed-loop capture back routes through it again: the same choices bit for bit (law 1). A stream
 * whose rule never updates is route_tokens with a constant bias. Gates that hang on which token it
 * is (gate_needs_rows) are told by the rows of each piece. Letters: n tokens of a piece, E experts,
 * k chosen, N tokens of a balance batch. */
#ifndef ROUTER_STREAM_H
#define ROUTER_STREAM_H

#include "router/bias.h"
#include "router/route.h"

struct route_stream {
    struct gate gate;
    int experts;
    int layer;                    /* the model's own number; for draws */
    struct route_table table;     /* of fn=hash-table */
    const struct bias_rule *rule; /* NULL: the bias stays */
    double rate;
    int64_t batch_tokens; /* N */
    int64_t filled;       /* tokens of the open batch */
    const float *rounded; /* [E] as the bias meets the scores now; NULL when the gate has none */
    int64_t *counts;      /* [E] of the open batch; this and the rest only with a rule */
    double *bias;         /* [E] */
    float *meets;         /* [E] behind rounded */
    double *state;        /* [rule->state, E] */
    float *seen;          /* [N,E] scores of the open batch, where the rule needs them */
    float *sorting;       /* [2,N] scratch of such a rule */
};

/* How a stream begins. rule: NULL or one that does not update = the bias stays. bias[E]: at the
 * start, NULL when the gate has none; borrowed for the life of the stream. */
struct route_stream_setup {
    const struct gate *gate;
    int experts;
    int layer;                /* the model's own number */
    struct route_table table; /* where the gate is fn=hash-table; borrowed */
    const float *bias;
    const struct bias_rule *rule;
    double rate;
    int64_t batch_tokens;
};

/* Bytes of memory that a stream needs; SIZE_MAX when they cannot be counted. */
size_t route_stream_bytes(const struct route_stream_setup *setup);
/* memory: route_stream_bytes, zeroed, 64-byte aligned; owned by the caller, who keeps it alive. */
void route_stream_init(struct route_stream *stream, const struct route_stream_setup *setup,
                       void *memory);

/* Tokens until the bias may move; >= 1. */
int64_t route_stream_room(const struct route_stream *stream);

/* A piece of tokens, whose ids (of fn=hash-table) all have a row in the table. */
struct route_piece {
    int64_t n;
    int64_t first;       /* number of the first within the trace; only for draws */
    const int32_t *id;   /* [n] vocabulary ids, >= 0; only for hash layers */
    const float *logits; /* [n,E] */
};

/* Routes n <= room tokens; does not change the stream, so pieces may run on many threads. scratch:
 * route_stream_scratch_bytes, 64-byte aligned. Answers as route_tokens. */
int64_t route_stream_route(const struct route_stream *stream, const struct route_piece *piece,
                           struct routes *out, void *scratch);
size_t route_stream_scratch_bytes(const struct route_stream *stream);

/* Counts the n <= room tokens that were routed last, in order; moves the bias when the batch is
 * full. expert[n,k]. */
void route_stream_feed(struct route_stream *stream, const struct route_piece *piece,
                       const int32_t *expert);

#endif
