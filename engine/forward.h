/* forward.h - the forward pass of a stretch of whole windows through one layer (private to engine/)
 *
 * Layer 3. attention.c and moe.c execute the two halves of a layer from its spec and weights;
 * model.c owns the residual stream and calls them. Letters: M tokens of the stretch, H hidden size.
 * What a row of an output holds depends on its own window only, never on M (law 3). */
#ifndef ENGINE_FORWARD_H
#define ENGINE_FORWARD_H

#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "engine/rope.h"
#include "engine/spec.h"
#include "engine/weights.h"
#include "router/stream.h"

struct expert_pass;

struct forward {
    const struct model_spec *spec; /* borrows all */
    const struct kernels *kernels;
    struct pool *pool;
    bool bf16;                      /* --compute bf16 */
    const struct rope_table *ropes; /* [2 * rope_count]: for short and for long windows */
    const int32_t *position;        /* [M] within the window */
    const bool *is_long;  /* [M] the window is longer than a longrope's threshold; or NULL */
    const int64_t *start; /* [windows+1]: first row of each window, then M */
    int windows;
    int64_t tokens;              /* M */
    int64_t first;               /* of the stretch, within the pass */
    int64_t pass_first;          /* of the pass, within the capture */
    const int32_t *id;           /* [M] vocabulary ids */
    int64_t rows_limit;          /* rows of experts' products at a time; 0 = any number */
    struct arena *scratch;       /* reset by pass.c between halves of a layer */
    struct expert_pass *experts; /* of the layer in hand, where experts come in groups; or NULL */
    struct err *err;
};

/* Where the routes of a layer go. */
struct route_target {
    const struct engine_router *router;
    struct route_stream *stream; /* routes, and moves its bias */
    int index;                   /* of the router */
    const struct engine_sink *sink;
};

/* out[M,H] <- attention of in[M,H] (already normed). */
bool attention_forward(struct forward *f, const struct attention_spec *spec,
                       const struct attention_weights *weights, const float *in, float *out);
/* The same for layers without softmax: short convolution, linear attention. */
bool conv_forward(struct forward *f, const struct attention_spec *spec,
                  const struct attention_weights *weights, const float *in, float *out);
bool linear_forward(struct forward *f, const struct attention_spec *spec,
                    const struct attention_weights *weights, const float *in, float *out);
/* out[M,H] <- dense feed-forward or mixture of in[M,H]. target: only for mixtures. */
bool ffn_forward(struct forward *f, const struct ffn_spec *spec, const struct ffn_weights *weights,
                 const struct route_target *target, const float *in, float *out);

/* ---- helpers */

/* The mixture of a layer, NULL when it has none; and its weights. */
const struct ffn_spec *layer_mixture(const struct layer_spec *layer);
const struct ffn_weights *layer_mixture_weights(const struct layer_spec *layer,
                                                const struct layer_weights *weights);

/* Floats for this half of a layer; NULL with err set. */
float *forward_floats(struct forward *f, int64_t rows, int64_t columns);
/* c[m,N] = a[m,K] W^T + bias; contiguous rows. */
void forward_linear(struct forward *f, const struct packed *weight, const float *bias,
                    const float *a, int64_t k, int64_t m, float *c, int64_t n);
/* Runs row(context, i) for i in [0, rows) on the pool. */
void forward_rows(struct pool *pool, int64_t rows, void (*row)(void *context, int64_t i),
                  void *context);
/* y <- norm(x) over n elements; absent: a copy. y may be x. */
void norm_apply(const struct kernels *kernels, const struct norm_spec *spec,
                const struct norm_weights *weights, const float *x, float *y, int64_t n);
/* y[m,n] <- norm of each row of x. */
void norm_rows(struct forward *f, const struct norm_spec *spec, const struct norm_weights *weights,
               const float *x, float *y, int64_t m, int64_t n);
/* hidden[m,I] <- act(gate) * up from inout[m,2I], rows in place at stride 2I. */
void glu_activate(struct forward *f, const struct glu_spec *glu, float *inout, int64_t m);

#endif
