/* serving.h - batches as serving makes them: prefill chunks and decode steps over a trace
 *
 * Layer 4 (sim): calls base. A batch is G = ranks * tokens_per_rank tokens; the i-th belongs to
 * rank i / tokens_per_rank (attention is data parallel).
 *
 *     prefill   the next G consecutive tokens of the documents: a rank gets one long chunk
 *     decode    one token each of G sequences at positions spread over the whole trace; the next
 *               step is each sequence's next token (at its document's end: its first again)
 *     train     as prefill; `capacity` drops what an expert gets beyond its share (gates with one)
 *
 * A trace with fewer than G tokens is used more than once; results say so. */
#ifndef SIM_SERVING_H
#define SIM_SERVING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define SERVING_PHASES(X)                                                                          \
    X(PHASE_PREFILL, "prefill", "consecutive tokens of documents, in chunks")                      \
    X(PHASE_DECODE, "decode", "one token of each of many sequences at different positions")        \
    X(PHASE_TRAIN, "train", "consecutive tokens; an optional capacity drops")
#define X(e, name, help) e,
enum serving_phase { SERVING_PHASES(X) };
#undef X
const char *serving_phase_name(enum serving_phase phase);
bool serving_phase_find(const char *name, enum serving_phase *phase, struct err *err);

struct serving {
    enum serving_phase phase;
    int ranks;
    int64_t tokens_per_rank;
    int64_t group;                 /* G */
    int64_t batches;               /* that the trace fills, at least 1, at most the cap */
    int64_t total;                 /* T of the trace */
    bool repeats;                  /* G > T: tokens are used more than once */
    const int64_t *document_first; /* [documents+1], borrowed */
    int64_t documents;
    int64_t *start; /* [G] decode: first token of each sequence; owned */
};

/* most_batches >= 1 caps the batches. Release with serving_free. */
bool serving_make(struct serving *serving, enum serving_phase phase, int ranks,
                  int64_t tokens_per_rank, int64_t most_batches, const int64_t *document_first,
                  int64_t documents, uint64_t seed, struct err *err);
void serving_free(struct serving *serving);

/* token[G] <- the tokens of batch b. */
void serving_batch(const struct serving *serving, int64_t b, int64_t *token);

#endif
