/* family_late.c - rules of families whose layers differ in kind from one another */
#include "engine/family_hooks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool is_sliding(struct build *build, int layer, const char *otherwise) {
    const char *kind =
        config_item_text(&build->config, "layer_types", layer, build->spec->layers, otherwise);
    return strcmp(kind, "sliding_attention") == 0;
}

/* "LLLG" or 4: every 4th layer is full. */
static int64_t pattern(struct build *build, const char *key, int64_t otherwise) {
    const struct json *value = json_present(build->config.json, key);
    if (value && json_text(value)) {
        int64_t length = (int64_t)strlen(json_text(value));
        return length > 0 ? length : otherwise;
    }
    return config_int(&build->config, key, 0, INT_MAX, otherwise);
}

/* A layer is a mixture or dense by a list of the family's own. */
static bool listed_dense(struct build *build, const char *key, int layer, bool otherwise) {
    return config_item(&build->config, key, layer, build->spec->layers, otherwise ? 0 : 1) == 0;
}

/* Full layers have no rotation where others slide. */
bool exaone_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    int64_t every = pattern(build, "sliding_window_pattern", 4);
    if (!config_has(c, "sliding_window")) return true;
    bool sliding = is_sliding(
        build, layer, every && (layer + 1) % every ? "sliding_attention" : "full_attention");
    spec->attention.window = sliding ? config_int(c, "sliding_window", 1, INT_MAX, 4096) : 0;
    if (!sliding) spec->attention.rope = -1;
    return true;
}

static int mimo_rope(struct build *build, const struct attention_spec *a, bool sliding) {
    struct rope_request request = {.dims = a->head_dim,
                                   .part = sliding ? "sliding_attention" : "full_attention",
                                   .theta_key = sliding ? "swa_rope_theta" : "rope_theta",
                                   .theta = sliding ? 10000 : 5000000,
                                   .partial = 0.334};
    return build_rope(build, &request, false, NULL);
}

/* Sliding layers have their own key/value heads, rotation base and sinks; v is narrower than q. */
bool mimo_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    bool sliding = is_sliding(
        build, layer, layer == 0 || (layer + 1) % 6 == 0 ? "full_attention" : "sliding_attention");
    if (!config_has(c, "layer_types") && config_has(c, "hybrid_layer_pattern"))
        sliding = !listed_dense(build, "hybrid_layer_pattern", layer, false);
    if (sliding) a->kv_heads = config_size(c, "swa_num_key_value_heads", 2 * (int64_t)a->kv_heads);
    a->v_dim = config_size(c, "v_head_dim", a->head_dim);
    if (sliding && (config_size(c, "swa_head_dim", a->head_dim) != a->head_dim ||
                    config_size(c, "swa_v_head_dim", a->v_dim) != a->v_dim ||
                    config_size(c, "swa_num_attention_heads", a->heads) != a->heads))
        config_refuse(c, "swa_head_dim", "other heads on sliding layers", "those of full layers");
    int64_t kv = (int64_t)a->kv_heads * a->head_dim, v = (int64_t)a->kv_heads * a->v_dim;
    a->k.n = a->k_bias.n = kv;
    a->v.n = a->v_bias.n = v;
    a->o.k = (int64_t)a->heads * a->v_dim;
    a->v_scale = (float)config_real(c, "attention_value_scale", 1);
    a->window = 0;
    if (sliding)
        a->window = config_has(c, "sliding_window_size")
                        ? config_int(c, "sliding_window_size", 0, INT_MAX - 1, 0) + 1
                        : config_int(c, "sliding_window", 1, INT_MAX, 129);
    if (config_bool(c, sliding ? "add_swa_attention_sink_bias" : "add_full_attention_sink_bias",
                    sliding))
        a->sinks = build_vector(build, "self_attn.attention_sink_bias", "", a->heads);
    a->rope = mimo_rope(build, a, sliding);
    return true;
}

/* Rotation only on sliding layers; attention's output times sigmoid(gate_proj x). */
bool afmoe_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    int64_t every = config_int(c, "global_attn_every_n_layers", 1, INT_MAX, 4);
    bool sliding =
        is_sliding(build, layer, (layer + 1) % every ? "sliding_attention" : "full_attention");
    a->window = sliding ? config_int(c, "sliding_window", 1, INT_MAX, 1024) : 0;
    if (!sliding) a->rope = -1;
    a->output_gate = OUTPUT_GATE_SIGMOID;
    a->gate = build_matrix(build, "self_attn.gate_proj.weight", "", (int64_t)a->heads * a->head_dim,
                           build->spec->hidden);
    return true;
}

bool afmoe_model(struct build *build) {
    if (config_bool(&build->config, "mup_enabled", false))
        build->spec->embedding_scale = sqrtf((float)build->spec->hidden);
    return true;
}

static int laguna_rope(struct build *build, const struct attention_spec *a, bool sliding) {
    struct rope_request request = {.dims = a->head_dim,
                                   .part = sliding ? "sliding_attention" : "full_attention",
                                   .theta = sliding ? 10000 : 500000,
                                   .partial = sliding ? 1 : 0.5};
    return build_rope(build, &request, false, NULL);
}

/* Query heads differ from layer to layer; softplus output gate; rotation by kind of layer. */
bool laguna_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    const struct json *gating = json_present(c->json, "gating");
    bool element = gating && json_text(gating) && strcmp(json_text(gating), "per-element") == 0;
    bool sliding = is_sliding(build, layer, "full_attention");
    a->heads =
        (int)config_item(c, "num_attention_heads_per_layer", layer, build->spec->layers, a->heads);
    if (a->heads < 1 || a->heads > CONFIG_MAX_SIZE || a->heads % a->kv_heads) {
        config_refuse(c, "num_attention_heads_per_layer", "a number that fits no key/value heads",
                      "multiples of num_key_value_heads");
        return false;
    }
    int64_t q = (int64_t)a->heads * a->head_dim;
    a->q.n = a->q_bias.n = a->o.k = q;
    a->window = sliding ? config_int(c, "sliding_window", 1, INT_MAX, 512) : 0;
    a->rope = laguna_rope(build, a, sliding);
    if (gating && json_kind(gating) == JSON_BOOL && !json_is_true(gating)) {
        config_refuse(c, "gating", "false", "true, per-head or per-element");
        return false;
    }
    if (gating && json_text(gating)) config_choice(c, "gating", "per-head|per-element", 0);
    a->output_gate = OUTPUT_GATE_SOFTPLUS;
    a->gate_per_head = !element;
    a->gate = build_matrix(build, "self_attn.g_proj.weight", "", element ? q : a->heads,
                           build->spec->hidden);
    if (spec->ffn.experts == 0) return true;
    spec->ffn.softcap = (float)config_real(c, "moe_router_logit_softcapping", 0);
    spec->ffn.routed_scale = (float)config_real(c, "moe_routed_scaling_factor", 1);
    return true;
}

bool laguna_model(struct build *build) {
    if (config_bool(&build->config, "moe_apply_router_weight_on_input", false))
        config_refuse(&build->config, "moe_apply_router_weight_on_input", "true", "false");
    return true;
}

/* Norms: RMS where rms_norm_eps is given, else mean-subtracting without a bias. */
static void cohere2_norm(struct build *build, struct norm_spec *norm) {
    struct config *c = &build->config;
    if (config_has(c, "rms_norm_eps")) return;
    norm->kind = LAYER_NORM_MEAN;
    norm->eps = (float)config_real(c, "layer_norm_eps", 1e-5);
}

static bool cohere2_sliding(struct build *build, int layer) {
    struct config *c = &build->config;
    int64_t dense = config_int(c, "first_k_dense_replace", 0, INT_MAX, 0);
    int64_t every = pattern(build, "sliding_window_pattern", 4), at = layer - dense;
    if (layer < dense) {
        every = config_int(c, "prefix_dense_sliding_window_pattern", 1, INT_MAX, 1);
        at = layer;
    }
    return is_sliding(build, layer,
                      every && (at + 1) % every ? "sliding_attention" : "full_attention");
}

/* Parallel block with one norm; rotation on sliding layers, and on a dense prefix of full ones. */
bool cohere2_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct ffn_spec *ffn = &spec->ffn;
    bool sliding = cohere2_sliding(build, layer);
    bool forced = ffn->experts == 0 &&
                  config_int(c, "prefix_dense_sliding_window_pattern", 1, INT_MAX, 1) == 1;
    cohere2_norm(build, &spec->attend.in);
    spec->parallel = true;
    spec->attention.window = sliding ? config_int(c, "sliding_window", 1, INT_MAX, 4096) : 0;
    if (!sliding && !forced) spec->attention.rope = -1;
    if (ffn->experts == 0) return true;
    if (config_choice(c, "expert_selection_fn", "softmax|sigmoid", 0) == 1) {
        ffn->gate.score = SCORE_SIGMOID;
        if (config_bool(c, "norm_topk_prob", true)) ffn->gate.norm = NORM_SUM;
    }
    if (config_choice(c, "shared_expert_combination_strategy", "average|sum", 0) == 0 &&
        ffn->shared.width)
        ffn->combined_scale = 0.5f;
    return true;
}

bool cohere2_model(struct build *build) {
    cohere2_norm(build, &build->spec->norm);
    build->spec->logit_scale = (float)config_real(&build->config, "logit_scale", 0.0625);
    return true;
}

/* ---- dbrx: settings in parts, everything fused, norms without bias */

static const struct json *part_of(const struct build *build, const char *part) {
    const struct json *own = json_present(build->config.json, part);
    return own ? own : build->config.json;
}

bool dbrx_translate(struct build *build, struct str *out) {
    struct config top = build->config, attn = top, ffn = top, act = top;
    attn.json = part_of(build, "attn_config");
    ffn.json = part_of(build, "ffn_config");
    act.json = json_present(ffn.json, "ffn_act_fn");
    if (!act.json) act.json = ffn.json;
    double p = config_real(&ffn, "moe_normalize_expert_weights", 0);
    str_printf(out, "{\"model_type\":\"dbrx\",\"hidden_size\":%d,\"num_attention_heads\":%d,",
               config_size(&top, "d_model", 2048), config_size(&top, "n_heads", 16));
    str_printf(out, "\"num_hidden_layers\":%d,\"max_position_embeddings\":%d,\"vocab_size\":%d,",
               config_size(&top, "n_layers", 24), config_size(&top, "max_seq_len", 2048),
               config_size(&top, "vocab_size", 32000));
    str_printf(out, "\"num_key_value_heads\":%d,\"clip_qkv\":%.9g,\"rope_theta\":%.17g,",
               config_size(&attn, "kv_n_heads", 1), config_real(&attn, "clip_qkv", 0),
               config_real(&attn, "rope_theta", config_real(&top, "rope_theta", 10000)));
    str_printf(out, "\"moe_intermediate_size\":%d,\"num_experts\":%d,\"num_experts_per_tok\":%d,",
               config_size(&ffn, "ffn_hidden_size", 3584), config_size(&ffn, "moe_num_experts", 4),
               config_size(&ffn, "moe_top_k", 1));
    str_puts(out, "\"hidden_act\":");
    const char *name = config_text(&act, "name", "silu");
    json_quote(out, name, strlen(name));
    str_printf(out, ",\"tie_word_embeddings\":%s,\"norm_p\":%.9g,\"bos_token_id\":%d}",
               config_bool(&top, "tie_word_embeddings", false) ? "true" : "false", p,
               (int)config_int(&top, "bos_token_id", -1, INT_MAX, -1));
    return !(top.failed || attn.failed || ffn.failed || act.failed);
}

bool dbrx_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct ffn_spec *ffn = &spec->ffn;
    double p = config_real(&build->config, "norm_p", 0);
    const char *names[] = {"ffn.experts.mlp.w1", "ffn.experts.mlp.v1", "ffn.experts.mlp.w2"};
    struct weight_ref *refs[] = {&ffn->expert.gate, &ffn->expert.up, &ffn->expert.down};
    (void)layer;
    fused_heads(build, &spec->attention, "norm_attn_norm.attn.Wqkv.weight", NULL);
    spec->attention.clip = (float)config_real(&build->config, "clip_qkv", 0);
    for (int i = 0; i < 3; i++) {
        int64_t n = refs[i]->n, k = refs[i]->k;
        *refs[i] = build_matrix(build, names[i], "", n, k);
        refs[i]->slabs = ffn->experts;
        refs[i]->merged = true;
        refs[i]->transposed = i == 2;
    }
    if (p > 0) {
        ffn->gate.norm = NORM_P;
        ffn->gate.norm_arg = (float)p;
    }
    return true;
}

/* ---- layers without softmax */

/* "conv" layers: a gated short convolution instead of attention. */
bool lfm2_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    int64_t hidden = build->spec->hidden;
    const char *kind =
        config_item_text(c, "layer_types", layer, build->spec->layers, "full_attention");
    if (spec->ffn.experts && !config_bool(c, "use_expert_bias", true)) {
        spec->ffn.correction.name = NULL;
        spec->ffn.gate.bias = false;
    }
    if (strcmp(kind, "conv") != 0) return true;
    bool bias = config_bool(c, "conv_bias", false);
    *a = (struct attention_spec){.kind = ATTENTION_CONV,
                                 .rope = -1,
                                 .conv_length = config_size(c, "conv_L_cache", CONFIG_REQUIRED)};
    a->q = build_matrix(build, "conv.in_proj.weight", "", 3 * hidden, hidden);
    a->o = build_matrix(build, "conv.out_proj.weight", "", hidden, hidden);
    a->conv = build_matrix(build, "conv.conv.weight", "", hidden, a->conv_length);
    if (!bias) return true;
    a->q_bias = build_vector(build, "conv.in_proj.bias", "", 3 * hidden);
    a->o_bias = build_vector(build, "conv.out_proj.bias", "", hidden);
    a->conv_bias = build_vector(build, "conv.conv.bias", "", hidden);
    return true;
}

static void minimax_step(struct build *build, struct step_spec *step, const char *part) {
    char keep[48], add[48];
    snprintf(keep, sizeof keep, "%s_alpha_factor", part);
    snprintf(add, sizeof add, "%s_beta_factor", part);
    step->keep = (float)config_real(&build->config, keep, 1);
    step->add = (float)config_real(&build->config, add, 1);
    step->from_normed = true;
}

/* "linear_attention" layers: a decaying state of k v' per head; residuals from the normed stream.
 */
bool minimax_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    struct attention_spec *a = &spec->attention;
    int layers = build->spec->layers;
    int64_t n = (int64_t)a->heads * a->head_dim, hidden = build->spec->hidden;
    const char *kind = config_item_text(c, "layer_types", layer, layers,
                                        (layer + 1) % 2 ? "linear_attention" : "full_attention");
    bool linear = strcmp(kind, "linear_attention") == 0;
    if (!linear && strcmp(kind, "full_attention") != 0)
        config_refuse(c, "layer_types", kind, "linear_attention or full_attention");
    minimax_step(build, &spec->attend, linear ? "linear_attn" : "full_attn");
    minimax_step(build, &spec->feed, "mlp");
    if (!linear) return true;
    *a = (struct attention_spec){.kind = ATTENTION_LINEAR,
                                 .rope = -1,
                                 .heads = a->heads,
                                 .kv_heads = a->heads,
                                 .head_dim = a->head_dim};
    a->decay = (float)(1 - layer / (layers - 1 + 1e-5) + 1e-5);
    a->q = build_matrix(build, "self_attn.qkv_proj.weight", "", 3 * n, hidden);
    a->gate = build_matrix(build, "self_attn.output_gate.weight", "", n, hidden);
    a->o = build_matrix(build, "self_attn.out_proj.weight", "", hidden, n);
    a->q_norm = (struct norm_spec){.kind = LAYER_NORM_RMS, .eps = 1e-6f};
    a->q_norm.weight = build_vector(build, "self_attn.norm.weight", "", n);
    return true;
}
