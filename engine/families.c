/* families.c - the table of model families
 *
 * Sources: the implementations in transformers 5.23 and the released configurations; MODEL.md
 * states each row in words. Keys that the reference ignores are ignored here too; values that would
 * need other mathematics are refused by name. */
#include "engine/families.h"

#include <string.h>

/* clang-format off */
#define NAMES_LLAMA                                                                                \
    .attend_in = "input_layernorm", .feed_in = "post_attention_layernorm",                         \
    .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj",                     \
    .o = "self_attn.o_proj", .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm",           \
    .dense = "mlp."
#define NAMES_MLP_EXPERTS                                                                          \
    .router = "mlp.gate.weight", .expert = "mlp.experts.{e}.", .shared = "mlp.shared_experts."
#define NAMES_BLOCK_SPARSE                                                                         \
    .router = "block_sparse_moe.gate.weight", .expert = "block_sparse_moe.experts.{e}.",           \
    .gate = "w1.weight", .up = "w3.weight", .down = "w2.weight"

/* sigma(l) + b, groups by their two best, weights normalised with 1e-20 (arXiv 2412.19437) */
#define GATE_V3                                                                                    \
    .gate = {.score = SCORE_SIGMOID, .bias = true, .group_rule = GROUP_TOP2SUM,                    \
             .fill = FILL_NEG_INF, .norm = NORM_SUM, .norm_arg = 1e-20f},                          \
    .grouped = true, .norm_key = "norm_topk_prob", .norm_default = true,                           \
    .scale_key = "routed_scaling_factor"
/* softmax over all, top-k, divided by the sum of the chosen */
#define GATE_SOFTMAX .gate = {.score = SCORE_SOFTMAX, .norm = NORM_SUM}
/* clang-format on */

/* Refuses values of keys that the reference does not read but that would mean another model. */
static bool only_noaux_tc(struct build *build) {
    config_choice(&build->config, "scoring_func", "sigmoid", 0);
    config_choice(&build->config, "topk_method", "noaux_tc", 0);
    config_int(&build->config, "moe_layer_freq", 1, 1, 1);
    return true;
}

static bool olmoe_layer(struct build *build, int layer, struct layer_spec *spec) {
    (void)layer;
    spec->attention.clip = (float)config_real(&build->config, "clip_qkv", 0);
    return true;
}

const struct family families[] = {
    {
        .type = "deepseek_v3",
        .names = {NAMES_LLAMA, NAMES_MLP_EXPERTS, .correction = "mlp.gate.e_score_correction_bias"},
        .experts_key = "n_routed_experts",
        .shared_count_key = "n_shared_experts",
        .shared_count = 1,
        .mla = true,
        .interleaved = true,
        .interleave_key = "rope_interleave",
        .dense = DENSE_FIRST,
        .first_dense = 3,
        GATE_V3,
        .model_hook = only_noaux_tc,
    },
    {
        .type = "mixtral",
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
    {0},
};
