/* weights.h - the weights of one layer, packed for the kernels, from the tensors of a checkpoint
 *
 * Layer 3 (engine). One walk over a layer's spec serves three purposes: checking that every tensor
 * is there with the right shape and type (marking it used), counting the bytes that the layer will
 * occupy, and loading. Element types F32, F16, BF16, F64, F8_E4M3 with block scales
 * (`<name>_scale_inv`), and MXFP4 (`<name>_blocks`, `<name>_scales`). */
#ifndef ENGINE_WEIGHTS_H
#define ENGINE_WEIGHTS_H

#include "base/ahead.h"
#include "base/threads.h"
#include "engine/kernels/kernels.h"
#include "engine/spec.h"
#include "engine/tensors.h"

struct glu_weights {
    struct packed *in;                /* [2I,H]: gate rows, then up rows */
    struct packed *down;              /* [H,I] */
    const float *in_bias, *down_bias; /* [2I], [H]; NULL = none */
};

struct norm_weights {
    const float *weight, *bias; /* NULL: ones, zeros */
};

struct ffn_weights {
    struct glu_weights dense, shared;
    struct glu_weights *expert; /* [experts - identity_experts]; NULL: loaded as they are needed */
    struct packed *router, *shared_gate;
    const float *router_bias;
};

struct attention_weights {
    struct packed *q, *k, *v, *o, *q_a, *kv_a, *kv_b, *gate;
    const float *q_bias, *k_bias, *v_bias, *o_bias, *q_a_bias, *kv_a_bias;
    const float *sinks, *conv, *conv_bias;
    struct norm_weights q_norm, k_norm;
};

struct layer_weights {
    struct attention_weights attention;
    struct ffn_weights ffn, side;
    struct norm_weights attend_in, attend_out, feed_in, feed_out;
};

struct loader {
    const struct tensors *tensors; /* borrows all */
    const struct kernels *kernels;
    struct pool *pool;
    bool bf16;
    unsigned char *memory; /* NULL: check and count only; else 64-byte aligned, capacity bytes */
    size_t used_bytes, capacity_bytes;
    float *scratch; /* owned: loader_free */
    size_t scratch_count;
    int layer; /* the {l} and the slab or {e} of the reference in hand */
    int sub, expert;
    int64_t parameters;  /* elements seen */
    bool skip_experts;   /* leave routed experts to load_expert */
    struct ahead *ahead; /* without memory: asks for ahead_bytes of matrices; NULL: nothing */
    size_t ahead_bytes;
    bool failed;
    struct err *err;
};

/* Walks one layer. In loading mode everything points into loader->memory. */
bool load_layer(struct loader *loader, const struct layer_spec *layer, struct layer_weights *out);
/* Bytes that a routed expert takes. */
size_t expert_bytes(struct loader *loader, const struct ffn_spec *ffn, int expert);
/* One routed expert of the layer that loader->layer and loader->sub name. */
bool load_expert(struct loader *loader, const struct ffn_spec *ffn, int expert,
                 struct glu_weights *out);
/* A matrix by its reference; absent name: NULL. exact: f32 packing whatever the compute type is. */
void load_matrix(struct loader *loader, const struct weight_ref *ref, bool exact,
                 struct packed **out);
/* A vector as f32 (k = 0), or a small matrix [n,k] unpacked. */
void load_vector(struct loader *loader, const struct weight_ref *ref, const float **out);
void load_norm(struct loader *loader, const struct norm_spec *norm, struct norm_weights *out);
/* Rows [first, first+count) of a plain matrix as f32: embeddings. */
void weights_rows(const struct tensor *tensor, int64_t first, int64_t count, int64_t k, float *out);
/* Pages of a tensor may leave memory: it is not needed soon. */
void weights_drop(const struct tensor *tensor);
/* Checks a reference and answers its tensor; NULL with failed set. */
struct tensor *weights_tensor(struct loader *loader, const struct weight_ref *ref);
void loader_free(struct loader *loader);

#endif
