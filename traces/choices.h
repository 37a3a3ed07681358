/* choices.h - chunks of a layer together with the live choices, whatever the trace holds
 *
 * Layer 3 (traces). Traces of scores store no choices: they follow from the logits (law 1), in a
 * closed loop whose bias moved (loop.h) by routing all tokens from the first one on. */
#ifndef TRACES_CHOICES_H
#define TRACES_CHOICES_H

#include "router/stream.h"
#include "traces/trace.h"

struct choices {
    const struct trace_layer *layer;
    struct trace_cursor *cursor;
    struct trace_chunk chunk; /* of the last choices_next; expert and weight are set */
    struct route_stream stream;
    void *memory; /* of the stream */
    int64_t next; /* first token that the stream has not seen */
    int32_t *expert;
    float *weight;
    void *scratch;
    struct trace *ids; /* where token ids are read, for hash layers; else NULL */
    int32_t *id;       /* [block] */
};

/* Opens on router r; refuses a layer that holds counts, or scores without a gate. */
bool choices_open(struct choices *choices, const struct trace *trace, int r, struct err *err);
/* The same scores under another gate; refuses a layer without scores. Borrows setup's bias. */
bool choices_open_as(struct choices *choices, const struct trace *trace, int r,
                     const struct route_stream_setup *setup, struct err *err);
/* The next chunk; chunk.tokens = 0 at the end. chunk.expert[n,k] is set (ROUTE_NONE in empty
 * slots); chunk.weight where known. */
bool choices_next(struct choices *choices, struct err *err);
/* Does the bias move? Then chunks must be read one after the other. */
bool choices_move(const struct choices *choices);
void choices_close(struct choices *choices);

#endif
