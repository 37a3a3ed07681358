/* families.c - the table of model families
 *
 * Sources: the implementations in transformers 5.23 and the released configurations; MODEL.md
 * states each row in words. Keys that the reference ignores are ignored here too; values that would
 * need other mathematics are refused by name. */
#include "engine/families.h"

#include <string.h>

/* clang-format off */
#define NAMES_LLAMA_HEADS(qn, kn)                                                                  \
    .attend_in = "input_layernorm", .feed_in = "post_attention_layernorm",                         \
    .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj",                     \
    .o = "self_attn.o_proj", .q_norm = "self_attn." qn, .k_norm = "self_attn." kn, .dense = "mlp."
#define NAMES_LLAMA NAMES_LLAMA_HEADS("q_norm", "k_norm")
#define NAMES_MLP_EXPERTS                                                                          \
    .router = "mlp.gate.weight", .expert = "mlp.experts.{e}.", .shared = "mlp.shared_experts."
#define NAMES_BLOCK_SPARSE                                                                         \
    .router = "block_sparse_moe.gate.weight", .expert = "block_sparse_moe.experts.{e}.",           \
    .gate = "w1.weight", .up = "w3.weight", .down = "w2.weight"

/* sigma(l) + b, groups by their two best, weights normalised with 1e-20 (arXiv 2412.19437) */
#define GATE_V3                                                                                    \
    .gate = {.score = SCORE_SIGMOID, .bias = true, .group_rule = GROUP_TOP2SUM,                    \
             .fill = FILL_NEG_INF, .norm = NORM_SUM, .norm_arg = 1e-20f},                          \
    .grouped = true, .norm_key = "norm_topk_prob", \
    .scale_key = "routed_scaling_factor"
#define GATE_V3_ALWAYS /* the released code normalises whatever norm_topk_prob says */              \
    .gate = {.score = SCORE_SIGMOID, .bias = true, .group_rule = GROUP_TOP2SUM,                    \
             .fill = FILL_NEG_INF, .norm = NORM_SUM, .norm_arg = 1e-20f},                          \
    .grouped = true, .scale_key = "routed_scaling_factor"
/* softmax over all, top-k, divided by the sum of the chosen */
#define GATE_SOFTMAX .gate = {.score = SCORE_SOFTMAX, .norm = NORM_SUM}
/* top-k on logits, softmax over the chosen */
#define GATE_CHOSEN_SOFTMAX                                                                        \
    .gate = {.score = SCORE_SOFTMAX, .order = ORDER_TOPK_SCORE, .norm = NORM_NONE}
#define V3_KEYS                                                                                    \
    .experts_key = "n_routed_experts", .shared_count_key = "n_shared_experts"
/* clang-format on */

/* Refuses values of keys that the reference does not read but that would mean another model. */
static bool only_noaux_tc(struct build *build) {
    config_choice(&build->config, "scoring_func", "sigmoid", 0);
    config_choice(&build->config, "topk_method", "noaux_tc", 0);
    if (build->family->mla) config_int(&build->config, "moe_layer_freq", 1, 1, 1);
    return true;
}

/* greedy ignores the groups; weights are never normalised (transformers; released configs agree).
 */
static bool deepseek_v2_layer(struct build *build, int layer, struct layer_spec *spec) {
    int method = config_choice(&build->config, "topk_method", "greedy|group_limited_greedy", 0);
    struct gate *gate = &spec->ffn.gate;
    (void)layer;
    config_choice(&build->config, "scoring_func", "softmax", 0);
    config_int(&build->config, "moe_layer_freq", 1, 1, 1);
    if (method == 0 && spec->ffn.experts) {
        gate->groups = gate->groups_kept = 0;
        gate->fill = FILL_NEG_INF;
    }
    return true;
}

static bool olmoe_layer(struct build *build, int layer, struct layer_spec *spec) {
    (void)layer;
    spec->attention.clip = (float)config_real(&build->config, "clip_qkv", 0);
    return true;
}

static bool qwen2_moe_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    bool listed = config_has(c, "layer_types");
    if (!listed && config_bool(c, "use_sliding_window", false)) /* every second layer */
        spec->attention.window =
            layer % 2 == 0 && layer < config_int(c, "max_window_layers", 0, INT_MAX, 28)
                ? config_int(c, "sliding_window", 1, INT_MAX, 4096)
                : 0;
    if (spec->ffn.shared.width)
        spec->ffn.shared_gate =
            build_matrix(build, "mlp.shared_expert_gate", ".weight", 1, build->spec->hidden);
    return true;
}

static bool qwen3_moe_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    (void)layer;
    spec->attention.window = config_bool(c, "use_sliding_window", false)
                                 ? config_int(c, "sliding_window", 1, INT_MAX, 4096)
                                 : 0;
    return true;
}

static bool dots1_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    if (config_has(c, "layer_types") || !config_has(c, "sliding_window")) return true;
    if (layer >= config_int(c, "max_window_layers", 0, INT_MAX, 62))
        spec->attention.window = config_int(c, "sliding_window", 1, INT_MAX, 4096);
    return true;
}

/* Experts in one tensor [E, rows, k], or transposed [E, k, rows]; gate and up halves of the rows.
 */
static void fused_experts(struct build *build, struct ffn_spec *ffn, const char *in,
                          const char *out, bool transposed, bool interleaved) {
    int64_t width = ffn->expert.width, hidden = build->spec->hidden;
    struct weight_ref gate = build_matrix(build, in, "", width, hidden);
    gate.slabs = ffn->experts;
    gate.stored = 2 * width;
    gate.row_step = interleaved ? 2 : 1;
    gate.transposed = transposed;
    ffn->expert.gate = ffn->expert.up = gate;
    ffn->expert.up.row0 = interleaved ? 1 : width;
    ffn->expert.down = build_matrix(build, out, "", hidden, width);
    ffn->expert.down.slabs = ffn->experts;
    ffn->expert.down.transposed = transposed;
}

/* The bias of a fused tensor: [E, 2I] interleaved, or [E, H]. */
static struct weight_ref fused_bias(struct build *build, const char *name, int experts, int64_t n,
                                    int64_t stored, int64_t row0) {
    struct weight_ref ref = build_vector(build, name, "", n);
    ref.slabs = experts;
    ref.stored = stored;
    ref.row0 = row0;
    ref.row_step = stored > n ? 2 : 1;
    return ref;
}

static bool gpt_oss_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct glu_spec *expert = &spec->ffn.expert;
    int experts = spec->ffn.experts, hidden = build->spec->hidden;
    int64_t width = expert->width;
    fused_experts(build, &spec->ffn, "mlp.experts.gate_up_proj", "mlp.experts.down_proj", true,
                  true);
    expert->gate_bias =
        fused_bias(build, "mlp.experts.gate_up_proj_bias", experts, width, 2 * width, 0);
    expert->up_bias =
        fused_bias(build, "mlp.experts.gate_up_proj_bias", experts, width, 2 * width, 1);
    expert->down_bias = fused_bias(build, "mlp.experts.down_proj_bias", experts, hidden, hidden, 0);
    expert->alpha = (float)config_real(c, "swiglu_alpha", 1.702);
    expert->limit = (float)config_real(c, "swiglu_limit", 7);
    if (!(expert->limit > 0)) config_refuse(c, "swiglu_limit", "a number <= 0", "a positive one");
    spec->attention.sinks = build_vector(build, "self_attn.sinks", "", spec->attention.heads);
    if (!config_has(c, "layer_types"))
        spec->attention.window =
            layer % 2 == 0 ? config_int(c, "sliding_window", 1, INT_MAX, 128) : 0;
    return true;
}

/* rotary_dim of the released file is the older spelling of partial_rotary_factor. */
static bool minimax_m2_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    (void)layer;
    if (!config_has(c, "rotary_dim") || config_has(c, "partial_rotary_factor")) return true;
    int dims = config_size(c, "rotary_dim", CONFIG_REQUIRED);
    struct rope_request request = {.dims = spec->attention.head_dim,
                                   .theta = build->family->theta,
                                   .partial = (double)dims / spec->attention.head_dim};
    spec->attention.rope = build_rope(build, &request, false, NULL);
    return true;
}

static bool ernie_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    spec->ffn.gate.norm_arg = (float)config_real(c, "moe_norm_min", 1e-12);
    (void)layer;
    return true;
}

static bool ernie_model(struct build *build) {
    if (!config_bool(&build->config, "use_bias", false)) return true;
    build->spec->head_bias = (struct weight_ref){.name = "lm_head.bias", .n = build->spec->vocab};
    return true;
}

static bool phimoe_layer(struct build *build, int layer, struct layer_spec *spec) {
    (void)layer;
    spec->ffn.gate.fn_arg = (float)config_real(&build->config, "router_jitter_noise", 0.01);
    if (build->topk != 2)
        config_refuse(&build->config, "num_experts_per_tok", "another number", "2 (sparsemixer)");
    return true;
}

/* cos and sin are scaled by short_mscale or long_mscale where the rotation is scaled at all. */
static bool phimoe_model(struct build *build) {
    struct config *c = &build->config, own = *c;
    if (config_bool(c, "lm_head_bias", false))
        build->spec->head_bias =
            (struct weight_ref){.name = "lm_head.bias", .n = build->spec->vocab};
    own.json = json_present(c->json, "rope_scaling");
    if (!own.json) own.json = json_present(c->json, "rope_parameters");
    for (int i = 0; own.json && i < build->spec->rope_count; i++) {
        struct rope *rope = &build->spec->ropes[i];
        rope->scale = (float)config_real(&own, "short_mscale", (double)rope->scale);
        rope->scale_long = (float)config_real(&own, "long_mscale", (double)rope->scale_long);
    }
    c->failed |= own.failed;
    return true;
}

static bool granite_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct ffn_spec *ffn = &spec->ffn;
    int64_t shared = config_int(c, "shared_intermediate_size", 0, CONFIG_MAX_SIZE, 0);
    int64_t hidden = build->spec->hidden;
    (void)layer;
    spec->attention.scale = (float)config_real(c, "attention_multiplier", 1);
    spec->attend.add = spec->feed.add = (float)config_real(c, "residual_multiplier", 1);
    fused_experts(build, ffn, "block_sparse_moe.input_linear.weight",
                  "block_sparse_moe.output_linear.weight", false, false);
    if (!shared) return true;
    build_glu(build, &ffn->shared, "", "shared_mlp.input_linear.weight",
              "shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight", shared, false);
    ffn->shared.gate.stored = ffn->shared.up.stored = 2 * shared;
    ffn->shared.up.row0 = shared;
    ffn->shared.down = build_matrix(build, "shared_mlp.output_linear.weight", "", hidden, shared);
    return true;
}

static bool granite_model(struct build *build) {
    double divisor = config_real(&build->config, "logits_scaling", 1);
    build->spec->embedding_scale = (float)config_real(&build->config, "embedding_multiplier", 1);
    if (divisor == 0) config_refuse(&build->config, "logits_scaling", "0", "another number");
    build->spec->logit_scale = (float)(1 / divisor);
    return true;
}

static bool llama4_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    int64_t every = config_int(c, "no_rope_layer_interval", 1, INT_MAX, 4);
    int layers = build->spec->layers;
    bool list =
        config_has(c, "no_rope_layers") && json_count(json_present(c->json, "no_rope_layers"));
    bool rotated = (layer + 1) % every != 0;
    if (list) rotated = config_item(c, "no_rope_layers", layer, layers, 1) != 0;
    const char *kind = config_item_text(c, "layer_types", layer, layers,
                                        rotated ? "chunked_attention" : "full_attention");
    if (strcmp(kind, "chunked_attention") == 0)
        a->chunk = config_int(c, "attention_chunk_size", 1, INT_MAX, 8192);
    if (rotated && config_bool(c, "use_qk_norm", true)) {
        a->qk_norm = QK_NORM_HEAD_AFTER_ROPE;
        a->q_norm = (struct norm_spec){.kind = LAYER_NORM_RMS,
                                       .eps = (float)config_real(c, "rms_norm_eps", 1e-5)};
        a->k_norm = a->q_norm;
    }
    if (!rotated) {
        a->rope = -1;
        if (config_bool(c, "attn_temperature_tuning", true)) {
            a->temper = (float)config_real(c, "attn_scale", 0.1);
            a->temper_floor = (float)config_real(c, "floor_scale", 8192);
            a->temper_shift = 1;
            if (!(a->temper_floor > 0)) config_refuse(c, "floor_scale", "0", "a positive number");
        }
    }
    if (spec->ffn.experts == 0) return true;
    spec->ffn.scale_input = true;
    fused_experts(build, &spec->ffn, "feed_forward.experts.gate_up_proj",
                  "feed_forward.experts.down_proj", true, false);
    return true;
}

/* num_experts and moe_topk may be lists, one entry a layer. */
static bool hunyuan_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct ffn_spec *ffn = &spec->ffn;
    const struct json *topk = json_present(c->json, "moe_topk");
    const struct json *experts = json_present(c->json, "num_experts");
    int layers = build->spec->layers;
    if (topk && json_kind(topk) == JSON_ARRAY)
        ffn->gate.topk = (int)config_item(c, "moe_topk", layer, layers, 1);
    if (experts && json_kind(experts) == JSON_ARRAY) {
        ffn->experts = (int)config_item(c, "num_experts", layer, layers, 1);
        if (ffn->experts < 1 || ffn->experts > GATE_MAX_EXPERTS)
            config_refuse(c, "num_experts", "a number out of range", "1 or more experts");
        ffn->router.n = ffn->experts;
    }
    return true;
}

/* One tensor of all heads: query rows, then key rows, then value rows. */
static void fused_heads(struct build *build, struct attention_spec *a, const char *tail,
                        const char *bias) {
    int64_t q = a->q.n, kv = a->k.n;
    a->q = build_matrix(build, tail, "", q, build->spec->hidden);
    a->q.stored = q + 2 * kv;
    a->k = a->v = a->q;
    a->k.n = a->v.n = kv;
    a->k.row0 = q;
    a->v.row0 = q + kv;
    if (!bias) return;
    a->q_bias = build_vector(build, bias, "", q);
    a->q_bias.stored = q + 2 * kv;
    a->k_bias = a->v_bias = a->q_bias;
    a->k_bias.n = a->v_bias.n = kv;
    a->k_bias.row0 = q;
    a->v_bias.row0 = q + kv;
}

static bool bailing_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    (void)layer;
    fused_heads(build, &spec->attention, "attention.query_key_value.weight",
                config_bool(c, "use_qkv_bias", false) ? "attention.query_key_value.bias" : NULL);
    if (spec->ffn.experts && build->topk == 1) { /* one weight is not normalised */
        spec->ffn.gate.norm = NORM_NONE;
        spec->ffn.gate.norm_arg = 0;
    }
    return true;
}

#define BAILING_V2                                                                                 \
    .architecture = "BailingMoeV2ForCausalLM",                                                     \
    .names = {.embedding = "model.word_embeddings.weight",                                         \
              .attend_in = "input_layernorm",                                                      \
              .feed_in = "post_attention_layernorm",                                               \
              .q = "attention.q",                                                                  \
              .k = "attention.k",                                                                  \
              .v = "attention.v",                                                                  \
              .o = "attention.dense",                                                              \
              .q_norm = "attention.query_layernorm",                                               \
              .k_norm = "attention.key_layernorm",                                                 \
              .dense = "mlp.",                                                                     \
              NAMES_MLP_EXPERTS,                                                                   \
              .correction = "mlp.gate.expert_bias"},                                               \
    .o_bias_key = "use_bias", .qk_norm = QK_NORM_HEAD, .qk_norm_key = "use_qk_norm",               \
    .qk_norm_default = true, .partial = 0.5, .theta = 600000, .dense = DENSE_FIRST,                \
    .shared_count_key = "num_shared_experts", GATE_V3_ALWAYS, .layer_hook = bailing_layer

const struct family families[] = {
    {
        .type = "deepseek_v3",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS, .correction = "mlp.gate.e_score_correction_bias"},
        V3_KEYS,
        .shared_count = 1,
        .mla = true,
        .interleaved = true,
        .interleave_key = "rope_interleave",
        .dense = DENSE_FIRST,
        .first_dense = 3,
        GATE_V3,
        .norm_default = true,
        .model_hook = only_noaux_tc,
    },
    {
        .type = "kimi_k2",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS, .correction = "mlp.gate.e_score_correction_bias"},
        V3_KEYS,
        .shared_count = 1,
        .mla = true,
        .interleaved = true,
        .interleave_key = "rope_interleave",
        .dense = DENSE_FIRST,
        .first_dense = 1,
        GATE_V3,
        .norm_default = true,
        .model_hook = only_noaux_tc,
    },
    {
        .type = "deepseek_v2",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS},
        V3_KEYS,
        .shared_count = 2,
        .mla = true,
        .interleaved = true,
        .mlp_bias_key = "mlp_bias",
        .dense = DENSE_FIRST,
        .gate =
            {.score = SCORE_SOFTMAX, .group_rule = GROUP_MAX, .fill = FILL_ZERO, .norm = NORM_NONE},
        .grouped = true,
        .scale_key = "routed_scaling_factor",
        .layer_hook = deepseek_v2_layer,
    },
    {
        .type = "glm4_moe_lite",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS, .correction = "mlp.gate.e_score_correction_bias"},
        V3_KEYS,
        .shared_count = 1,
        .mla = true,
        .interleaved = true,
        .interleave_key = "rope_interleave",
        .dense = DENSE_FIRST,
        .first_dense = 1,
        GATE_V3,
        .norm_default = true,
        .model_hook = only_noaux_tc,
    },
    {
        .type = "glm4_moe",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS, .correction = "mlp.gate.e_score_correction_bias"},
        V3_KEYS,
        .shared_count = 1,
        .qkv_bias_key = "attention_bias",
        .qk_norm = QK_NORM_HEAD,
        .qk_norm_key = "use_qk_norm",
        .partial = 0.5,
        .dense = DENSE_FIRST,
        .first_dense = 1,
        GATE_V3,
        .norm_default = true,
        .model_hook = only_noaux_tc,
    },
    {
        .type = "dots1",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS, .correction = "mlp.gate.e_score_correction_bias"},
        V3_KEYS,
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        .qk_norm = QK_NORM_HEAD,
        .span = SPAN_TYPES,
        .dense = DENSE_FIRST,
        GATE_V3,
        .model_hook = only_noaux_tc,
        .layer_hook = dots1_layer,
    },
    {
        .type = "mixtral",
        .theta = 1000000,
        .names = {NAMES_LLAMA, NAMES_BLOCK_SPARSE},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .span = SPAN_WINDOW,
        GATE_SOFTMAX,
    },
    {
        .type = "olmoe",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS},
        .moe_width_key = "intermediate_size",
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        .qk_norm = QK_NORM_WHOLE,
        GATE_SOFTMAX,
        .norm_key = "norm_topk_prob",
        .layer_hook = olmoe_layer,
    },
    {
        .type = "qwen2_moe",
        .names = {NAMES_LLAMA, .router = "mlp.gate.weight", .expert = "mlp.experts.{e}.",
                  .shared = "mlp.shared_expert."},
        .shared_width_key = "shared_expert_intermediate_size",
        .qkv_bias_key = "qkv_bias",
        .qkv_bias = true,
        .span = SPAN_OPTIONAL,
        .dense = DENSE_SPARSE,
        GATE_SOFTMAX,
        .norm_key = "norm_topk_prob",
        .layer_hook = qwen2_moe_layer,
    },
    {
        .type = "qwen3_moe",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS},
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        .qk_norm = QK_NORM_HEAD,
        .dense = DENSE_SPARSE,
        GATE_SOFTMAX,
        .norm_key = "norm_topk_prob",
        .layer_hook = qwen3_moe_layer,
    },
    {
        .type = "gpt_oss",
        .names = {NAMES_LLAMA, .router = "mlp.router.weight", .router_bias = "mlp.router.bias",
                  .expert = "mlp.experts."},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .qkv_bias_key = "attention_bias",
        .qkv_bias = true,
        .o_bias_key = "attention_bias",
        .o_bias = true,
        .span = SPAN_TYPES,
        .theta = 150000,
        GATE_CHOSEN_SOFTMAX,
        .layer_hook = gpt_oss_layer,
    },
    {
        .type = "minimax_m2",
        .names = {NAMES_LLAMA, NAMES_BLOCK_SPARSE,
                  .correction = "block_sparse_moe.e_score_correction_bias"},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .qk_norm = QK_NORM_WHOLE,
        .qk_norm_key = "use_qk_norm",
        .qk_norm_default = true,
        .theta = 5000000,
        .gate = {.score = SCORE_SIGMOID, .bias = true, .norm = NORM_SUM},
        .layer_hook = minimax_m2_layer,
    },
    {
        .type = "ernie4_5_moe",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS,
                  .correction = "mlp.moe_statics.e_score_correction_bias"},
        .experts_key = "moe_num_experts",
        .topk_key = "moe_k",
        .shared_count_key = "moe_num_shared_experts",
        .shared_count = 2,
        .interleaved = true,
        .qkv_bias_key = "use_bias",
        .o_bias_key = "use_bias",
        .mlp_bias_key = "use_bias",
        .dense = DENSE_RANGE,
        .theta = 500000,
        .tied = true,
        .gate = {.score = SCORE_SOFTMAX, .bias = true, .norm = NORM_CLAMP, .norm_arg = 1e-12f},
        .layer_hook = ernie_layer,
        .model_hook = ernie_model,
    },
    {
        .type = "phimoe",
        .theta = 1000000,
        .names = {NAMES_LLAMA, NAMES_BLOCK_SPARSE},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .layer_norm = true,
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        .span = SPAN_WINDOW,
        .gate = {.fn = GATE_SPARSEMIXER, .score = SCORE_SOFTMAX, .norm = NORM_NONE},
        .layer_hook = phimoe_layer,
        .model_hook = phimoe_model,
    },
    {
        .type = "granitemoe",
        .names = {NAMES_LLAMA, .router = "block_sparse_moe.router.layer.weight", .expert = ""},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        GATE_CHOSEN_SOFTMAX,
        .layer_hook = granite_layer,
        .model_hook = granite_model,
    },
    {
        .type = "granitemoeshared",
        .names = {NAMES_LLAMA, .router = "block_sparse_moe.router.layer.weight", .expert = ""},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        GATE_CHOSEN_SOFTMAX,
        .layer_hook = granite_layer,
        .model_hook = granite_model,
    },
    {
        .type = "llama4_text",
        .names = {.attend_in = "input_layernorm",
                  .feed_in = "post_attention_layernorm",
                  .q = "self_attn.q_proj",
                  .k = "self_attn.k_proj",
                  .v = "self_attn.v_proj",
                  .o = "self_attn.o_proj",
                  .dense = "feed_forward.",
                  .router = "feed_forward.router.weight",
                  .expert = "feed_forward.experts.",
                  .shared = "feed_forward.shared_expert."},
        .experts_key = "num_local_experts",
        .moe_width_key = "intermediate_size",
        .dense_width_key = "intermediate_size_mlp",
        .shared_width_key = "intermediate_size",
        .interleaved = true,
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        .dense = DENSE_LLAMA4,
        .theta = 500000,
        .gate = {.score = SCORE_SIGMOID, .order = ORDER_TOPK_SCORE, .norm = NORM_NONE},
        .layer_hook = llama4_layer,
    },
    {
        .type = "hunyuan_v1_moe",
        .names = {NAMES_LLAMA_HEADS("query_layernorm", "key_layernorm"),
                  .router = "mlp.gate.wg.weight", .expert = "mlp.experts.{e}.",
                  .shared = "mlp.shared_mlp."},
        .topk_key = "moe_topk",
        .moe_width_key = "intermediate_size",
        .shared_width_key = "intermediate_size",
        .per_layer_gate = true,
        .qkv_bias_key = "attention_bias",
        .o_bias_key = "attention_bias",
        .qk_norm = QK_NORM_HEAD_AFTER_ROPE,
        .qk_norm_key = "use_qk_norm",
        .qk_norm_default = true,
        GATE_SOFTMAX,
        .layer_hook = hunyuan_layer,
    },
    {.type = "bailing_moe_v2", BAILING_V2},
    {.type = "bailing_moe", BAILING_V2},
    {0},
};

const struct family_absent families_absent[] = {
    {"switch_transformers", "encoder and decoder, capacity routing"},
    {"nllb-moe", "encoder and decoder, capacity routing"},
    {"jamba", "state-space layers"},
    {"granitemoehybrid", "state-space layers"},
    {"nemotron_h", "state-space layers"},
    {"bamba", "state-space layers"},
    {"qwen3_next", "gated delta-rule layers"},
    {"qwen3_5_moe", "gated delta-rule layers"},
    {"kimi_linear", "delta attention layers"},
    {"kimi_k3", "latent experts"},
    {"deepseek_v4", "compressed sparse attention, hyper-connections"},
    {"glm_moe_dsa", "sparse attention indexer"},
    {"minimax_m3_vl", "vision wrapper"},
    {"gemma4", "parallel dense and expert layers with per-expert scales"},
    {"step3p5", "per-layer activation clamps"},
    {"llama4", "vision wrapper; its text part is llama4_text"},
    {"kimi_vl", "vision wrapper"},
    {"deepseek_vl_v2", "vision wrapper"},
    {"qwen2", "no mixture of experts"},
    {"qwen3", "no mixture of experts"},
    {"llama", "no mixture of experts"},
    {"mistral", "no mixture of experts"},
    {"bailing_moe", "only version 2 (architectures: BailingMoeV2ForCausalLM) is"},
    {NULL, NULL},
};
