/* family_gqa.c - rules of their own of families with grouped-query attention */
#include "engine/family_hooks.h"

#include <math.h>
#include <string.h>

/* Experts in one tensor [E, rows, k], or transposed [E, k, rows]; gate and up halves of the rows.
 */
void fused_experts(struct build *build, struct ffn_spec *ffn, const char *in, const char *out,
                   bool transposed, bool interleaved) {
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

/* One tensor of all heads: query rows, then key rows, then value rows. */
void fused_heads(struct build *build, struct attention_spec *a, const char *tail,
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

bool olmoe_layer(struct build *build, int layer, struct layer_spec *spec) {
    (void)layer;
    spec->attention.clip = (float)config_real(&build->config, "clip_qkv", 0);
    if (spec->attention.clip < 0)
        config_refuse(&build->config, "clip_qkv", "a negative number", "null or a positive number");
    return true;
}

bool qwen2_moe_layer(struct build *build, int layer, struct layer_spec *spec) {
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

bool qwen3_moe_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    (void)layer;
    spec->attention.window = config_bool(c, "use_sliding_window", false)
                                 ? config_int(c, "sliding_window", 1, INT_MAX, 4096)
                                 : 0;
    return true;
}

bool dots1_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    if (config_has(c, "layer_types") || !config_has(c, "sliding_window")) return true;
    if (layer >= config_int(c, "max_window_layers", 0, INT_MAX, 62))
        spec->attention.window = config_int(c, "sliding_window", 1, INT_MAX, 4096);
    return true;
}

bool gpt_oss_layer(struct build *build, int layer, struct layer_spec *spec) {
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
bool minimax_m2_layer(struct build *build, int layer, struct layer_spec *spec) {
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

bool ernie_layer(struct build *build, int layer, struct layer_spec *spec) {
    struct config *c = &build->config;
    spec->ffn.gate.norm_arg = (float)config_real(c, "moe_norm_min", 1e-12);
    (void)layer;
    return true;
}

bool ernie_model(struct build *build) {
    if (!config_bool(&build->config, "use_bias", false)) return true;
    build->spec->head_bias = (struct weight_ref){.name = "lm_head.bias", .n = build->spec->vocab};
    return true;
}

bool phimoe_layer(struct build *build, int layer, struct layer_spec *spec) {
    (void)layer;
    spec->ffn.gate.fn_arg = (float)config_real(&build->config, "router_jitter_noise", 0.01);
    if (build->topk != 2)
        config_refuse(&build->config, "num_experts_per_tok", "another number", "2 (sparsemixer)");
    return true;
}

/* cos and sin are scaled by short_mscale or long_mscale where the rotation is scaled at all. */
bool phimoe_model(struct build *build) {
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

bool granite_layer(struct build *build, int layer, struct layer_spec *spec) {
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

bool granite_model(struct build *build) {
    double divisor = config_real(&build->config, "logits_scaling", 1);
    build->spec->embedding_scale = (float)config_real(&build->config, "embedding_multiplier", 1);
    if (divisor == 0) config_refuse(&build->config, "logits_scaling", "0", "another number");
    build->spec->logit_scale = (float)(1 / divisor);
    return true;
}

bool llama4_layer(struct build *build, int layer, struct layer_spec *spec) {
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
bool hunyuan_layer(struct build *build, int layer, struct layer_spec *spec) {
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

bool bailing_layer(struct build *build, int layer, struct layer_spec *spec) {
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
