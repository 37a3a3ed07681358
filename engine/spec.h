/* spec.h - a model as plain data: what the forward pass executes
 *
 * Layer 3 (engine). families.c turns config.json into one `struct model_spec`; model.c and its
 * helpers execute it without knowing families. All formulas: MODEL.md. Letters: H hidden size,
 * I width of a feed-forward, E experts, T tokens. Numbers are f32 unless said. */
#ifndef ENGINE_SPEC_H
#define ENGINE_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "router/gate.h"

/* One matrix W[n,k] (y = W x) or vector [n] (k = 0) as the forward pass wants it, and where the
 * checkpoint holds it. Row i of W is stored row row0 + i*row_step of slab e (the expert asked for).
 * Stored dimensions of size 1 do not count. */
struct weight_ref {
    const char
        *name; /* pattern: {l} = layer, {s} = sublayer, {e} = expert; NULL = the model has none */
    int64_t n, k;
    int64_t slabs;   /* leading dimension of experts; 0: the tensor is one matrix or vector */
    bool merged;     /* slabs and rows are one dimension in the file (dbrx) */
    int64_t stored;  /* rows of a stored matrix; 0: n */
    int64_t row0;    /* first row taken */
    int row_step;    /* 0 or 1: all rows; 2: every second (interleaved halves) */
    bool transposed; /* stored [k, rows] (x W) */
    bool optional;   /* absent in the file: as if the model had none (vectors only) */
};

enum norm_kind { LAYER_NORM_ABSENT, LAYER_NORM_RMS, LAYER_NORM_MEAN };

/* y = x / sqrt(mean(x^2) + eps) * weight, or with the mean subtracted first (+ bias). */
struct norm_spec {
    enum norm_kind kind;
    float eps;
    struct weight_ref weight, bias; /* [n]; absent weight: ones; absent bias: zeros */
};

#define ACTIVATIONS(X)                                                                             \
    X(ACT_SILU, "silu")                                                                            \
    X(ACT_SWISH, "swish") /* the same function under its other name */                             \
    X(ACT_GELU, "gelu")                                                                            \
    X(ACT_GELU_TANH, "gelu_pytorch_tanh")                                                          \
    X(ACT_GELU_NEW, "gelu_new")                                                                    \
    X(ACT_RELU, "relu")

#define X(e, name) e,
enum activation { ACTIVATIONS(X) };
#undef X

/* down( act(gate x) * (up x) ), each with an optional bias. limit > 0: the clamped form of gpt-oss,
 * g = min(gate, limit), u = clamp(up, +-limit), (u + 1) * g * sigmoid(alpha g). */
struct glu_spec {
    int64_t width; /* I; 0 = absent */
    enum activation act;
    float alpha, limit;
    struct weight_ref gate, up, down;
    struct weight_ref gate_bias, up_bias, down_bias;
};

struct ffn_spec {
    struct glu_spec dense;                 /* width 0: this layer is a mixture */
    struct glu_spec expert;                /* pattern for each routed expert */
    struct glu_spec shared;                /* width 0: none */
    int experts;                           /* E, identity experts included; 0: dense */
    int identity_experts;                  /* the last ones add w*x and have no tensors (longcat) */
    struct weight_ref router, router_bias; /* [E,H], [E] (linear bias, part of the logit) */
    struct weight_ref correction;          /* [E] correction bias */
    struct weight_ref shared_gate;         /* [1,H]: shared output x sigmoid of it (qwen2_moe) */
    struct gate gate;
    bool scale_input;   /* the weight multiplies the input of an expert, not its output (llama4) */
    float softcap;      /* > 0: logit = c tanh(logit / c) */
    float routed_scale; /* of the routed sum, beside the gate's scale; 1 */
    float combined_scale; /* of routed + shared; 1 */
};

enum attention_kind { ATTENTION_GQA, ATTENTION_MLA, ATTENTION_CONV, ATTENTION_LINEAR };

enum qk_norm { QK_NORM_NONE, QK_NORM_WHOLE, QK_NORM_HEAD, QK_NORM_HEAD_AFTER_ROPE };

enum output_gate { OUTPUT_GATE_NONE, OUTPUT_GATE_SIGMOID, OUTPUT_GATE_SOFTPLUS };

struct attention_spec {
    enum attention_kind kind;
    int heads, kv_heads;
    int head_dim;   /* of q and k; MLA: nope + rope */
    int v_dim;      /* of v */
    float scale;    /* of the scores */
    int64_t window; /* a query sees this many keys, itself included; 0 = all */
    int64_t chunk;  /* > 0: only keys of the same chunk of positions (llama4) */
    int rope;       /* index into ropes; -1 = none */
    float clip;     /* > 0: q, k, v clamped to +-clip */
    enum qk_norm qk_norm;
    struct norm_spec q_norm, k_norm; /* MLA: of the two latents */
    float q_scale, latent_scale;     /* MLA: of q and of the normed latent; 1 (longcat) */
    float v_scale;                   /* of v; 1 */
    float temper, temper_floor;      /* q x (1 + temper ln(1 + floor((pos+shift)/temper_floor))) */
    int temper_shift;
    enum output_gate output_gate;
    bool gate_per_head;
    int q_lora, kv_lora, nope, rope_dims; /* MLA; q_lora 0: q straight from x */
    struct weight_ref q, k, v, o;         /* MLA: q = q_proj or q_b_proj; k unused */
    struct weight_ref q_bias, k_bias, v_bias, o_bias;
    struct weight_ref q_a, q_a_bias, kv_a, kv_a_bias, kv_b; /* MLA */
    struct weight_ref k_b, v_b; /* MLA: kv_b in two, a slab a head; kv_b is absent then */
    struct weight_ref sinks;    /* [heads] */
    struct weight_ref gate;     /* output gate */
    int conv_length;            /* CONV: taps; q = in_proj [3H,H], o = out_proj */
    float decay; /* LINEAR: of the heads' slopes; q = qkv_proj, q_norm of the output */
    struct weight_ref conv, conv_bias; /* [H, taps], [H] */
};

/* One residual step: x <- keep * r + add * out(f(in(x))), with r = x, or in(x) when from_normed. */
struct step_spec {
    struct norm_spec in, out;
    float keep, add;
    bool from_normed;
};

struct layer_spec {
    int number; /* the {l} of tensor names */
    int sub;    /* the {s}: which attention of that layer (longcat) */
    struct attention_spec attention;
    struct ffn_spec ffn;
    struct step_spec attend, feed;
    bool parallel;        /* feed uses attend.in(x): x += attention(h) + ffn(h) */
    struct ffn_spec side; /* experts > 0: a mixture on the ffn's input (longcat) ... */
    bool side_joins;      /* ... whose output is added after this layer's ffn */
};

/* Rotation of pairs by pos * inv_freq; cos and sin are multiplied by scale. */
struct rope {
    int dims;                   /* r: the first r dims of a head (MLA: of its rope part) */
    bool interleaved;           /* pairs (2j, 2j+1), else (j, j + r/2) */
    float scale, scale_long;    /* for windows up to, and beyond long_from */
    const float *inv_freq;      /* [r/2] */
    const float *inv_freq_long; /* longrope: for windows longer than long_from; else NULL */
    int64_t long_from;
    int64_t limit; /* longest window that the type is defined for here; 0 = any */
};

struct model_spec {
    const char *family; /* model_type */
    int layers, hidden, vocab, max_positions, bos;
    struct weight_ref embedding, head, head_bias; /* head = embedding when tied */
    bool tied;
    float embedding_scale, logit_scale;
    struct norm_spec norm; /* final */
    struct rope *ropes;
    int rope_count;
    struct layer_spec *layer; /* [steps]: more than layers when one layer attends twice (longcat) */
    int steps;
    int64_t window_limit; /* longest window that is computed exactly; 0 = any */
    const char *window_limit_reason;
    const char *const *ignored; /* tensor name prefixes that the model does not use; NULL-ended */
};

#endif
