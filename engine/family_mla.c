/* family_mla.c - rules of their own of families with multi-head latent attention */
#include "engine/family_hooks.h"

#include <math.h>

/* Refuses values of keys that the reference does not read but that would mean another model. */
bool only_noaux_tc(struct build *build) {
    config_choice(&build->config, "scoring_func", "sigmoid", 0);
    config_choice(&build->config, "topk_method", "noaux_tc", 0);
    if (build->family->mla) config_int(&build->config, "moe_layer_freq", 1, 1, 1);
    return true;
}

/* greedy ignores the groups; weights are never normalised (transformers; released configs agree).
 */
bool deepseek_v2_layer(struct build *build, int layer, struct layer_spec *spec) {
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

/* The indexer picks index_topk keys a query: all of them while a window is no longer than that. */
bool deepseek_v32_model(struct build *build) {
    build->spec->window_limit = config_int(&build->config, "index_topk", 1, INT_MAX, 2048);
    build->spec->window_limit_reason = "index_topk: sparse attention is not supported";
    return only_noaux_tc(build);
}

/* A norm over routed + shared; no correction bias in the released files. */
bool axk1_layer(struct build *build, int layer, struct layer_spec *spec) {
    (void)layer;
    if (spec->ffn.experts == 0) return true;
    spec->ffn.correction.optional = true;
    spec->feed.out = spec->feed.in;
    spec->feed.out.weight =
        build_vector(build, "post_mlp_layernorm", ".weight", build->spec->hidden);
    return true;
}

/* Fused experts, and queries that grow with the position. */
bool mistral4_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config, own = *c;
    own.json = json_present(c->json, "rope_parameters");
    if (!own.json) own.json = json_present(c->json, "rope_scaling");
    (void)layer;
    if (own.json) {
        spec->attention.temper = (float)config_real(&own, "llama_4_scaling_beta", 0);
        spec->attention.temper_floor =
            (float)config_real(&own, "original_max_position_embeddings", 8192);
    }
    c->failed |= own.failed;
    if (spec->ffn.experts)
        fused_experts(build, &spec->ffn, "mlp.experts.gate_up_proj", "mlp.experts.down_proj", false,
                      false);
    return true;
}

/* Two attentions and two dense feed-forwards a layer; a mixture on the first one's input, whose
 * output is added after the second. The last zero_expert_num experts pass their input through. */
bool longcat_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    (void)layer;
    if (!config_bool(c, "mla_scale_q_lora", true) || !config_bool(c, "mla_scale_kv_lora", true))
        config_refuse(c, "mla_scale_q_lora, mla_scale_kv_lora", "false", "true");
    if (config_bool(c, "router_bias", false)) config_refuse(c, "router_bias", "true", "false");
    config_choice(c, "zero_expert_type", "identity", 0);
    if (a->q_lora) a->q_scale = (float)sqrt((double)build->spec->hidden / a->q_lora);
    a->latent_scale = (float)sqrt((double)build->spec->hidden / a->kv_lora);
    spec->side_joins = spec->sub == 1;
    if (spec->sub == 0) build_mixture(build, &spec->side);
    return true;
}
