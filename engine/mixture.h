/* mixture.h - a mixture of experts on one block of tokens, in three steps (private to engine/)
 *
 * Layer 3. moe.c runs the steps one after the other, with all experts at once; experts.c runs each
 * for all tokens of a pass before the next, with some experts at a time. A token's sum takes its
 * experts by rising index, then identity experts, then shared ones, so both give the same bits. */
#ifndef ENGINE_MIXTURE_H
#define ENGINE_MIXTURE_H

#include "engine/forward.h"

enum { MIXTURE_TOKENS = 4096 }; /* of a block, at most */

struct mixture {
    struct forward *f; /* borrows all */
    const struct ffn_spec *spec;
    const struct ffn_weights *weights;
    int64_t tokens; /* M <= MIXTURE_TOKENS */
    int k;
    const float *in; /* [M,H] */
    float *out;      /* [M,H] */
    /* choices in slots: by expert, tokens in order within each */
    int32_t *slot;  /* [M,k]: of a token, rising */
    int32_t *row;   /* [M k]: token of a slot */
    float *weight;  /* [M k]: weight of a slot */
    int64_t *begin; /* [E+1]: first slot of each expert */
};

/* Routes the tokens, tells the sink, fills the slots (memory of the caller) and clears out. first:
 * of the block within the stretch. */
bool mixture_route(struct mixture *x, const struct route_target *target, int64_t first);
/* Adds what experts [first, last) give; expert[] begins at `first`, without weights where an expert
 * has no slot. Ranges must come in rising order. */
bool mixture_add(struct mixture *x, const struct glu_weights *expert, int first, int last);
/* Adds identity and shared experts, and scales. */
bool mixture_finish(struct mixture *x);

#endif
