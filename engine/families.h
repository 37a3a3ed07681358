/* families.h - model families as rows of a table, and the builder that turns a config into a spec
 *
 * Layer 3 (engine). A row says which keys of config.json mean what, how tensors are called and
 * which of the common rules hold; a hook amends the spec where a family has a rule of its own.
 * MODEL.md states each family in words and formulas. */
#ifndef ENGINE_FAMILIES_H
#define ENGINE_FAMILIES_H

#include "base/json.h"
#include "base/str.h"
#include "engine/config.h"
#include "engine/spec.h"
#include "engine/tensors.h"

/* What a builder works on. */
struct build {
    struct config config;
    const struct family *family;
    struct model_spec *spec;
    int dense_width, moe_width, experts, topk; /* read for all layers */
};

/* Which layers are dense. */
enum dense_rule {
    DENSE_NONE,   /* every layer is a mixture */
    DENSE_ALL,    /* no layer is: mixtures stand beside (longcat) */
    DENSE_FIRST,  /* layers below first_k_dense_replace; or as mlp_layer_types says */
    DENSE_SPARSE, /* mixture iff not in mlp_only_layers and (i + 1) % decoder_sparse_step == 0 */
    DENSE_RANGE,  /* mixture iff moe_layer_{start,end}_index and moe_layer_interval say so */
    DENSE_LLAMA4, /* mixture iff in moe_layers, or (i + 1) % interleave_moe_layer_step == 0 */
};

/* How many keys a query sees. */
enum span_rule {
    SPAN_ALL,     /* all earlier ones */
    SPAN_WINDOW,  /* sliding_window on every layer, null = all */
    SPAN_TYPES,   /* layer_types: sliding_attention has the window */
    SPAN_OPTIONAL /* as SPAN_TYPES, only when use_sliding_window */
};

/* Tensor names after "model.layers.{l}."; NULL = the family has none. */
struct family_names {
    const char *layer;  /* prefix, NULL = "model.layers.{l}." */
    const char *latent; /* prefix of latent attention, NULL = "self_attn." */
    const char *embedding, *norm, *head;
    const char *attend_in, *attend_out, *feed_in, *feed_out; /* norms */
    const char *q, *k, *v, *o, *q_norm, *k_norm;             /* without .weight */
    const char *router, *router_bias, *correction;           /* full tails */
    const char *expert;                                      /* prefix of one expert, with {e} */
    const char *gate, *up, *down;                            /* tails of an expert's matrices */
    const char *dense;                                       /* prefix of a dense feed-forward */
    const char *dense_gate, *dense_up, *dense_down;          /* NULL: gate_proj.weight ... */
    const char *shared;                                      /* prefix of the shared expert */
};

struct family {
    const char *type;         /* model_type */
    const char *architecture; /* needed in `architectures`; NULL = any */
    struct family_names names;
    /* keys; NULL = the usual one (see build.c), or none */
    const char *experts_key, *topk_key, *moe_width_key, *dense_width_key;
    const char *shared_count_key, *shared_width_key, *eps_key;
    const char *layers_key;   /* NULL: num_hidden_layers */
    int attentions;           /* sublayers of a layer, each with attention and feed-forward; 0: 1 */
    const char *identity_key; /* number of experts without tensors, the last ones */
    bool mla;
    bool interleaved; /* rotation of neighbouring pairs */
    const char *interleave_key;
    bool layer_norm;   /* mean subtracted, with bias */
    bool no_norm_bias; /* ... without */
    double eps;        /* default of eps_key (0: 1e-6) */
    const char *qkv_bias_key, *o_bias_key, *mlp_bias_key;
    bool qkv_bias, o_bias; /* defaults of those keys */
    enum qk_norm qk_norm;
    const char *qk_norm_key; /* NULL: always */
    bool qk_norm_default;
    enum span_rule span;
    enum dense_rule dense;
    int first_dense;             /* default of first_dense_key */
    const char *first_dense_key; /* NULL: first_k_dense_replace */
    const char *dense_every_key; /* mixtures only where i % it == 0 */
    const char *moe_list_key;    /* a list of booleans, one a layer: is it a mixture? */
    int shared_count;            /* default of shared_count_key */
    double theta, partial; /* defaults of rope_theta (0: 10000), partial_rotary_factor (0: 1) */
    bool tied;             /* default of tie_word_embeddings */
    /* gate: score, bias, groups, norm */
    struct gate gate;     /* topk, groups and scale are filled from the config */
    const char *norm_key; /* false or absent (norm_default): weights are not normalised */
    bool norm_default;
    const char *scale_key;
    bool grouped;        /* n_group, topk_group */
    bool per_layer_gate; /* experts and topk may be lists: the layer hook reads them */
    /* Writes a config of the usual keys, from which the model is then built. */
    bool (*translate)(struct build *build, struct str *out);
    /* Amends one layer, or the whole after its layers (layer NULL). */
    bool (*layer_hook)(struct build *build, int layer, struct layer_spec *spec);
    bool (*model_hook)(struct build *build);
    const char *const *ignored; /* parts of tensor names to ignore */
};

/* Ends with type == NULL. */
extern const struct family families[];

/* Families that we know and do not run, and why. Ends with type == NULL. */
struct family_absent {
    const char *type, *reason;
};
extern const struct family_absent families_absent[];

/* Builds the spec of a config (root object of config.json). Names live in the arena. An unknown
 * model_type is refused with the list of known ones; a known but unsupported one by name. */
bool spec_build(const struct json *root, const char *path, struct arena *arena,
                struct model_spec *spec, struct err *err);

/* Settings of quantised checkpoints: FP8 tile sizes into the set; unknown methods are refused. */
bool spec_quantization(const struct json *root, const char *path, struct tensors *tensors,
                       struct err *err);

/* For hooks: a reference to a matrix or vector below the layer's prefix; parts are concatenated. */
struct weight_ref build_matrix(struct build *build, const char *prefix, const char *tail, int64_t n,
                               int64_t k);
struct weight_ref build_vector(struct build *build, const char *prefix, const char *tail,
                               int64_t n);
/* A feed-forward of three matrices below prefix with the usual or the given tails. */
void build_glu(struct build *build, struct glu_spec *glu, const char *prefix, const char *gate,
               const char *up, const char *down, int64_t width, bool bias);
/* A whole mixture as the row says. */
void build_mixture(struct build *build, struct ffn_spec *ffn);
/* Adds a rotation (or finds an equal request's), answers its index. */
int build_rope(struct build *build, const struct rope_request *request, bool interleaved,
               float *mscale);

#endif
