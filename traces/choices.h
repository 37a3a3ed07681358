/* choices.h - chunks of a layer together with the native choices, whatever the trace holds
 *
 * Private to traces/. Traces of scores store no choices: they follow from the logits (law 1). */
#ifndef TRACES_CHOICES_H
#define TRACES_CHOICES_H

#include "traces/trace.h"

struct choices {
    const struct trace_layer *layer;
    struct trace_cursor *cursor;
    struct trace_chunk chunk; /* of the last choices_next; expert and weight are set */
    int32_t *expert;
    float *weight;
    void *scratch;
};

/* Opens on router r; refuses a layer that holds counts, or scores without a gate. */
bool choices_open(struct choices *choices, const struct trace *trace, int r, struct err *err);
/* The next chunk; chunk.tokens = 0 at the end. chunk.expert[n,k] is set; chunk.weight where known.
 */
bool choices_next(struct choices *choices, struct err *err);
void choices_close(struct choices *choices);

#endif
