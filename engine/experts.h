/* experts.h - the routed experts of a layer over all tokens of a pass, each loaded once (private to
 * engine/)
 *
 * Layer 3. Where memory holds no whole layer, pass.c takes a layer in three rounds. The first goes
 * over all stretches: attention, and experts_route puts the feed-forward's inputs and every token's
 * choices aside. The second goes over the experts: experts_group loads as many as there is memory
 * for and adds what they give to the sums of all tokens. The third goes over the stretches again:
 * experts_finish completes the sums. T tokens of the pass, k the most choices. */
#ifndef ENGINE_EXPERTS_H
#define ENGINE_EXPERTS_H

#include "base/spill.h"
#include "engine/forward.h"

struct engine;

/* Tokens that were routed together, with their slots (mixture.h). */
struct expert_block {
    int64_t first, tokens; /* within the pass */
    int k;
    int64_t *begin; /* [E+1] */
};

struct expert_pass {
    const struct engine *engine;                   /* borrows */
    struct spill normed_spill, sum_spill, choices; /* owned */
    float *normed;                                 /* [T,H] */
    float *sum;                                    /* [T,H] */
    int32_t *slot, *row;                           /* [T,k] */
    float *weight;                                 /* [T,k] */
    int64_t stride;                                /* k */
    /* the layer in hand */
    int step;
    const float *in; /* [T,H]: normed, or the residual stream where there is no norm */
    struct expert_block *block;
    int blocks, capacity;
    int next;                   /* block that experts_finish comes to */
    int64_t *rows;              /* [E]: tokens of each expert */
    struct glu_weights *expert; /* [E]: of the group in hand */
    struct loader loader;
    struct arena tables; /* rows, expert, begin */
};

/* Bytes that the arrays take for each token. */
size_t experts_token_bytes(const struct engine *engine);
/* For passes of `tokens`; in_file: the arrays lie in a temporary file. */
bool experts_open(struct expert_pass *e, const struct engine *engine, int64_t tokens, bool in_file,
                  struct err *err);
/* A new layer; asks for the file pages of its first experts. in[T,H]: borrowed. */
bool experts_begin(struct expert_pass *e, struct engine *engine, int step, const float *in,
                   struct err *err);
/* Routes the stretch in hand; its rows of e->in are there. */
bool experts_route(struct expert_pass *e, struct forward *f, const struct ffn_spec *spec,
                   const struct ffn_weights *weights, const struct route_target *target);
/* Experts from *next on, as many as fit, on all tokens; *next <- the first that is left. Asks for
 * the file pages of those, or of the next layer, before it computes. */
bool experts_group(struct expert_pass *e, struct forward *f, const struct ffn_spec *spec,
                   int *next);
/* out[M,H] <- the completed sums of the stretch in hand. */
bool experts_finish(struct expert_pass *e, struct forward *f, const struct ffn_spec *spec,
                    const struct ffn_weights *weights, float *out);
/* Rows that are done with for now may leave memory. */
void experts_drop(const struct expert_pass *e, int64_t first, int64_t tokens);
/* A zeroed struct is allowed. */
void experts_close(struct expert_pass *e);

#endif
