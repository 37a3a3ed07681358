/* import_choices.h - do a file's own choices follow from its logits under the gate?
 *
 * Private to traces/. A wrong gate would be silent garbage, so importers of files that hold both
 * compare them. Compared as sets: the order within a token means nothing in many formats. */
#ifndef TRACES_IMPORT_CHOICES_H
#define TRACES_IMPORT_CHOICES_H

#include "router/stream.h"
#include "traces/loop.h"
#include "traces/trace.h"

struct choice_check {
    const struct trace_layer *layer; /* gate, experts, bias */
    int32_t *expert;
    float *weight;
    unsigned char *chosen;
    void *scratch;
    int64_t tokens, wrong, example;
    struct route_stream stream; /* of a closed loop whose bias moved */
    bool moves;
    void *memory, *stream_scratch; /* of the stream */
};

bool choice_check_begin(struct choice_check *check, const struct trace_layer *layer,
                        struct err *err);
/* The bias moved as the loop says: choice_check_exact must then see all tokens in order. Nothing
 * where no rule updates or the layer has no bias. */
bool choice_check_loop(struct choice_check *check, const struct trace_loop *loop, struct err *err);
/* n tokens: logits[n,E], ids[n,k]. Logits that are not finite end the comparison: the writer
 * refuses them with their place. */
void choice_check_add(struct choice_check *check, int64_t n, const float *logits,
                      const int32_t *ids);
/* Frees; refuses when more than 1 % of the tokens differ; check->wrong says how many do. Files that
 * keep logits in bf16 (Megatron) differ a little: its 8 bits of mantissa make ties of logits that
 * the router saw apart in f32. Another gate or bias differs in far more. */
bool choice_check_end(struct choice_check *check, struct err *err);
/* The strict form, instead of add and end: refuses the first token of n whose ids[n,k] are not, as
 * a set, what the gate chooses from logits[n,E], or whose weights[n,k] (NULL: none recorded) are
 * off by more than 1e-3 of the gate's. Errors name token, found and expected. */
bool choice_check_exact(struct choice_check *check, int64_t n, const float *logits,
                        const int32_t *ids, const float *weights, struct err *err);
/* Frees a check that choice_check_end did not. */
void choice_check_free(struct choice_check *check);

#endif
