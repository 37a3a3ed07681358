/* build.c - the generic builder: a row of the family table and a config become a model_spec */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "engine/families.h"

static const char *either(const char *text, const char *otherwise) {
    return text ? text : otherwise;
}

static const char *join(struct build *build, const char *a, const char *b, const char *c,
                        const char *d) {
    char text[256];
    int len = snprintf(text, sizeof text, "%s%s%s%s", a, b, c, d);
    char *kept = arena_text(build->config.arena, text, (size_t)len);
    if (!kept && !build->config.failed) {
        build->config.failed = true;
        err_memory(build->config.err, "tensor names");
    }
    return kept;
}

static struct weight_ref reference(struct build *build, const char *prefix, const char *tail,
                                   int64_t n, int64_t k) {
    const char *layer = either(build->family->names.layer, "model.layers.{l}.");
    return (struct weight_ref){.name = join(build, layer, prefix, tail, ""), .n = n, .k = k};
}

struct weight_ref build_matrix(struct build *build, const char *prefix, const char *tail, int64_t n,
                               int64_t k) {
    return reference(build, prefix, tail, n, k);
}

struct weight_ref build_vector(struct build *build, const char *prefix, const char *tail,
                               int64_t n) {
    return reference(build, prefix, tail, n, 0);
}

void build_glu(struct build *build, struct glu_spec *glu, const char *prefix, const char *gate,
               const char *up, const char *down, int64_t width, bool bias) {
    int hidden = build->spec->hidden;
    glu->width = width;
    glu->act = config_activation(&build->config, config_has(&build->config, "hidden_activation")
                                                     ? "hidden_activation"
                                                     : "hidden_act");
    glu->gate = build_matrix(build, prefix, either(gate, "gate_proj.weight"), width, hidden);
    glu->up = build_matrix(build, prefix, either(up, "up_proj.weight"), width, hidden);
    glu->down = build_matrix(build, prefix, either(down, "down_proj.weight"), hidden, width);
    if (!bias) return;
    glu->gate_bias = build_vector(build, prefix, "gate_proj.bias", width);
    glu->up_bias = build_vector(build, prefix, "up_proj.bias", width);
    glu->down_bias = build_vector(build, prefix, "down_proj.bias", hidden);
}

static bool same_rope(const struct rope *a, const struct rope *b) {
    return a->dims == b->dims && a->interleaved == b->interleaved && a->scale == b->scale &&
           a->long_from == b->long_from && a->limit == b->limit && !a->inv_freq_long &&
           !b->inv_freq_long &&
           memcmp(a->inv_freq, b->inv_freq, (size_t)(a->dims / 2) * sizeof *a->inv_freq) == 0;
}

int build_rope(struct build *build, const struct rope_request *request, bool interleaved,
               float *mscale) {
    struct model_spec *spec = build->spec;
    struct rope rope;
    config_rope(&build->config, request, &rope, mscale);
    if (build->config.failed) return -1;
    rope.interleaved = interleaved;
    for (int i = 0; i < spec->rope_count; i++)
        if (same_rope(&spec->ropes[i], &rope)) return i;
    spec->ropes[spec->rope_count] = rope; /* room for one per step */
    return spec->rope_count++;
}

static struct norm_spec norm(struct build *build, const char *tail, int64_t n) {
    const struct family *f = build->family;
    struct norm_spec spec = {0};
    if (!tail) return spec;
    spec.kind = f->layer_norm ? LAYER_NORM_MEAN : LAYER_NORM_RMS;
    bool own = f->eps_key && config_has(&build->config, f->eps_key);
    spec.eps = (float)config_real(&build->config, own ? f->eps_key : "rms_norm_eps",
                                  f->eps > 0 ? f->eps : 1e-6);
    if (spec.eps < 0)
        config_refuse(&build->config, own ? f->eps_key : "rms_norm_eps", "a negative number",
                      "0 or more");
    spec.weight = build_vector(build, tail, ".weight", n);
    if (f->layer_norm && !f->no_norm_bias) spec.bias = build_vector(build, tail, ".bias", n);
    return spec;
}

/* ---- attention */

static void build_gqa(struct build *build, struct attention_spec *a) {
    const struct family *f = build->family;
    const struct family_names *names = &f->names;
    struct config *c = &build->config;
    int64_t hidden = build->spec->hidden;
    a->heads = config_size(c, "num_attention_heads", CONFIG_REQUIRED);
    a->kv_heads = config_size(c, "num_key_value_heads", a->heads);
    int dim = config_size(c, "head_dim", a->heads ? hidden / a->heads : 0);
    if (dim < 1)
        config_refuse(c, "num_attention_heads", "more than hidden_size", "at most as many");
    a->head_dim = a->v_dim = dim;
    a->scale = (float)(1 / sqrt((double)dim));
    int64_t q = (int64_t)a->heads * dim, kv = (int64_t)a->kv_heads * dim;
    a->q = build_matrix(build, names->q, ".weight", q, hidden);
    a->k = build_matrix(build, names->k, ".weight", kv, hidden);
    a->v = build_matrix(build, names->v, ".weight", kv, hidden);
    a->o = build_matrix(build, names->o, ".weight", hidden, q);
    if (config_bool(c, f->qkv_bias_key, f->qkv_bias)) {
        a->q_bias = build_vector(build, names->q, ".bias", q);
        a->k_bias = build_vector(build, names->k, ".bias", kv);
        a->v_bias = build_vector(build, names->v, ".bias", kv);
    }
    if (config_bool(c, f->o_bias_key, f->o_bias))
        a->o_bias = build_vector(build, names->o, ".bias", hidden);
    if (f->qk_norm == QK_NORM_NONE ||
        !config_bool(c, f->qk_norm_key, f->qk_norm_default || !f->qk_norm_key))
        return;
    bool whole = f->qk_norm == QK_NORM_WHOLE;
    a->qk_norm = f->qk_norm;
    a->q_norm = norm(build, names->q_norm, whole ? q : dim);
    a->k_norm = norm(build, names->k_norm, whole ? kv : dim);
}

static struct norm_spec latent_norm(struct build *build, const char *prefix, const char *tail,
                                    int64_t n) {
    return (struct norm_spec){LAYER_NORM_RMS, 1e-6f, build_vector(build, prefix, tail, n), {0}};
}

/* Multi-head latent attention (arXiv 2405.04434 sec. 2.1). */
static void build_mla(struct build *build, struct attention_spec *a) {
    struct config *c = &build->config;
    int64_t hidden = build->spec->hidden;
    bool bias = config_bool(c, "attention_bias", false);
    a->kind = ATTENTION_MLA;
    a->heads = a->kv_heads = config_size(c, "num_attention_heads", CONFIG_REQUIRED);
    a->nope = config_size(c, "qk_nope_head_dim", CONFIG_REQUIRED);
    a->rope_dims = config_size(c, "qk_rope_head_dim", CONFIG_REQUIRED);
    a->v_dim = config_size(c, "v_head_dim", CONFIG_REQUIRED);
    a->kv_lora = config_size(c, "kv_lora_rank", CONFIG_REQUIRED);
    a->q_lora = (int)config_int(c, "q_lora_rank", 0, CONFIG_MAX_SIZE, 0);
    a->head_dim = a->nope + a->rope_dims;
    a->scale = (float)(1 / sqrt((double)a->head_dim));
    int64_t q = (int64_t)a->heads * a->head_dim;
    const char *at = either(build->family->names.latent, "self_attn.");
    if (a->q_lora) {
        a->q_a = build_matrix(build, at, "q_a_proj.weight", a->q_lora, hidden);
        a->q_norm = latent_norm(build, at, "q_a_layernorm.weight", a->q_lora);
        a->q = build_matrix(build, at, "q_b_proj.weight", q, a->q_lora);
        if (bias) a->q_a_bias = build_vector(build, at, "q_a_proj.bias", a->q_lora);
    } else {
        a->q = build_matrix(build, at, "q_proj.weight", q, hidden);
    }
    int64_t latent = a->kv_lora + a->rope_dims;
    a->kv_a = build_matrix(build, at, "kv_a_proj_with_mqa.weight", latent, hidden);
    a->k_norm = latent_norm(build, at, "kv_a_layernorm.weight", a->kv_lora);
    a->kv_b = build_matrix(build, at, "kv_b_proj.weight", (int64_t)a->heads * (a->nope + a->v_dim),
                           a->kv_lora);
    a->o = build_matrix(build, at, "o_proj.weight", hidden, (int64_t)a->heads * a->v_dim);
    if (!bias) return;
    a->kv_a_bias = build_vector(build, at, "kv_a_proj_with_mqa.bias", latent);
    a->o_bias = build_vector(build, at, "o_proj.bias", hidden);
}

/* Kind of layer i by layer_types: 0 full, 1 sliding, 2 chunked. */
static int layer_type(struct build *build, int layer, int otherwise) {
    static const char *const known[] = {"full_attention", "sliding_attention", "chunked_attention"};
    struct config *c = &build->config;
    const char *text =
        config_item_text(c, "layer_types", layer, build->spec->layers, known[otherwise]);
    for (int i = 0; i < 3; i++)
        if (strcmp(text, known[i]) == 0) return i;
    config_refuse(c, "layer_types", text, "full_attention, sliding_attention or chunked_attention");
    return 0;
}

static void build_span(struct build *build, int layer, struct attention_spec *a) {
    struct config *c = &build->config;
    int64_t window = config_int(c, "sliding_window", 0, INT_MAX, 0);
    bool sliding = false;
    switch (build->family->span) {
    case SPAN_ALL:
        break;
    case SPAN_WINDOW:
        sliding = true;
        break;
    case SPAN_OPTIONAL:
        if (config_bool(c, "use_sliding_window", false))
            sliding = layer_type(build, layer,
                                 layer >= config_int(c, "max_window_layers", 0, INT_MAX, 0)) == 1;
        break;
    case SPAN_TYPES:
        sliding = layer_type(build, layer, 0) == 1;
        if (sliding && window == 0)
            config_refuse(c, "sliding_window", "nothing", "the window of sliding_attention layers");
        break;
    }
    a->window = sliding ? window : 0;
}

static void build_attention(struct build *build, int layer, struct attention_spec *a) {
    const struct family *f = build->family;
    struct config *c = &build->config;
    float mscale = 1;
    a->v_scale = a->q_scale = a->latent_scale = 1;
    if (f->mla)
        build_mla(build, a);
    else
        build_gqa(build, a);
    build_span(build, layer, a);
    if (c->failed) return;
    if (a->heads % a->kv_heads)
        config_refuse(c, "num_key_value_heads", "a number that does not divide the heads",
                      "a divisor of num_attention_heads");
    struct rope_request request = {.dims = f->mla ? a->rope_dims : a->head_dim,
                                   .theta = f->theta > 0 ? f->theta : 10000,
                                   .partial = f->partial > 0 ? f->partial : 1,
                                   .ignore_partial = f->mla};
    bool interleaved = config_bool(c, f->interleave_key, f->interleaved);
    a->rope = build_rope(build, &request, interleaved, f->mla ? &mscale : NULL);
    a->scale *= mscale;
}

/* ---- feed-forward */

static bool dense_by_list(struct build *build, int layer) {
    struct config *c = &build->config;
    const char *kind = config_item_text(c, "mlp_layer_types", layer, build->spec->layers, "sparse");
    if (strcmp(kind, "dense") != 0 && strcmp(kind, "sparse") != 0)
        config_refuse(c, "mlp_layer_types", kind, "dense or sparse");
    return strcmp(kind, "dense") == 0;
}

static bool is_dense(struct build *build, int layer) {
    struct config *c = &build->config;
    int64_t first, last, every;
    switch (build->family->dense) {
    case DENSE_NONE:
        return false;
    case DENSE_ALL:
        return true;
    case DENSE_SPARSE:
        return config_list_has(c, "mlp_only_layers", layer) ||
               (layer + 1) % config_int(c, "decoder_sparse_step", 1, INT_MAX, 1) != 0;
    case DENSE_RANGE:
        first = config_int(c, "moe_layer_start_index", 0, INT_MAX, 1);
        last = config_int(c, "moe_layer_end_index", -1, INT_MAX, -1);
        every = config_int(c, "moe_layer_interval", 1, INT_MAX, 1);
        return layer < first || (last >= 0 && layer > last) || (layer + 1) % every != 0;
    case DENSE_LLAMA4:
        if (config_has(c, "moe_layers")) return !config_list_has(c, "moe_layers", layer);
        return (layer + 1) % config_int(c, "interleave_moe_layer_step", 1, INT_MAX, 1) != 0;
    case DENSE_FIRST:
        break;
    }
    const struct family *f = build->family;
    if (config_has(c, "mlp_layer_types")) return dense_by_list(build, layer);
    if (f->moe_list_key && config_has(c, f->moe_list_key))
        return config_item(c, f->moe_list_key, layer, build->spec->layers, 1) == 0;
    first = config_int(c, either(f->first_dense_key, "first_k_dense_replace"), 0, INT_MAX,
                       f->first_dense);
    return layer < first || layer % config_int(c, f->dense_every_key, 1, INT_MAX, 1) != 0;
}

static void build_gate(struct build *build, struct gate *gate) {
    const struct family *f = build->family;
    struct config *c = &build->config;
    *gate = f->gate;
    gate->topk = build->topk;
    gate->scale = (float)config_real(c, f->scale_key, 1);
    if (f->norm_key && !config_bool(c, f->norm_key, f->norm_default)) {
        gate->norm = NORM_NONE;
        gate->norm_arg = 0;
    }
    if (!f->grouped) return;
    int groups = (int)config_int(c, "n_group", 1, GATE_MAX_EXPERTS, 1);
    int kept = (int)config_int(c, "topk_group", 1, GATE_MAX_EXPERTS, 1);
    if (groups <= 1) {
        gate->group_rule = GROUP_MAX;
        gate->fill = FILL_NEG_INF;
        return;
    }
    gate->groups = groups;
    gate->groups_kept = kept;
}

void build_mixture(struct build *build, struct ffn_spec *ffn) {
    const struct family *f = build->family;
    const struct family_names *names = &f->names;
    struct config *c = &build->config;
    int hidden = build->spec->hidden;
    ffn->identity_experts = (int)config_int(c, f->identity_key, 0, GATE_MAX_EXPERTS / 2, 0);
    ffn->experts = build->experts + ffn->identity_experts;
    ffn->routed_scale = ffn->combined_scale = 1;
    ffn->router = build_matrix(build, names->router, "", ffn->experts, hidden);
    if (names->router_bias)
        ffn->router_bias = build_vector(build, names->router_bias, "", ffn->experts);
    if (names->correction)
        ffn->correction = build_vector(build, names->correction, "", ffn->experts);
    build_glu(build, &ffn->expert, names->expert, names->gate, names->up, names->down,
              build->moe_width, false);
    int64_t shared = 0;
    if (f->shared_count_key)
        shared = build->moe_width *
                 config_int(c, f->shared_count_key, 0, CONFIG_MAX_SIZE, f->shared_count);
    if (f->shared_width_key) shared = config_int(c, f->shared_width_key, 0, CONFIG_MAX_SIZE, 0);
    if (shared)
        build_glu(build, &ffn->shared, names->shared, NULL, NULL, NULL, shared,
                  config_bool(c, f->mlp_bias_key, false));
    build_gate(build, &ffn->gate);
}

static int attentions(const struct family *f) { return f->attentions ? f->attentions : 1; }

static void build_layer(struct build *build, int step, struct layer_spec *layer) {
    const struct family *f = build->family;
    int i = step / attentions(f);
    const struct family_names *names = &f->names;
    struct config *c = &build->config;
    int hidden = build->spec->hidden;
    layer->number = i;
    layer->sub = step % attentions(f);
    layer->attend = (struct step_spec){norm(build, names->attend_in, hidden),
                                       norm(build, names->attend_out, hidden), 1, 1, false};
    layer->feed = (struct step_spec){norm(build, names->feed_in, hidden),
                                     norm(build, names->feed_out, hidden), 1, 1, false};
    build_attention(build, i, &layer->attention);
    if (is_dense(build, i)) {
        if (!build->dense_width)
            build->dense_width =
                config_size(c, either(f->dense_width_key, "intermediate_size"), CONFIG_REQUIRED);
        build_glu(build, &layer->ffn.dense, names->dense, names->dense_gate, names->dense_up,
                  names->dense_down, build->dense_width, config_bool(c, f->mlp_bias_key, false));
    } else {
        build_mixture(build, &layer->ffn);
    }
    if (f->layer_hook && !c->failed && !f->layer_hook(build, i, layer)) c->failed = true;
}

/* ---- the whole */

static void check_gates(struct build *build) {
    struct model_spec *spec = build->spec;
    for (int i = 0; i < spec->steps && !build->config.failed; i++) {
        const struct ffn_spec *ffn = &spec->layer[i].ffn;
        if (spec->layer[i].side.experts) ffn = &spec->layer[i].side;
        if (ffn->experts == 0) continue;
        if (gate_check(&ffn->gate, ffn->experts, ffn->correction.name != NULL, build->config.err))
            continue;
        build->config.failed = true;
        err_context(build->config.err, "%s: layer %d", build->config.path, spec->layer[i].number);
    }
}

static void build_ends(struct build *build) {
    const struct family_names *names = &build->family->names;
    struct model_spec *spec = build->spec;
    const char *embedding = either(names->embedding, "model.embed_tokens.weight");
    spec->embedding = (struct weight_ref){.name = embedding, .n = spec->vocab, .k = spec->hidden};
    spec->head = spec->embedding;
    spec->tied = config_bool(&build->config, "tie_word_embeddings", build->family->tied);
    if (!spec->tied) spec->head.name = either(names->head, "lm_head.weight");
    spec->embedding_scale = spec->logit_scale = 1;
    spec->norm = norm(build, either(names->norm, "model.norm"), spec->hidden);
    /* the final norm lies outside the layers: its names have no layer prefix */
    spec->norm.weight.name = join(build, either(names->norm, "model.norm"), ".weight", "", "");
    if (spec->norm.bias.name)
        spec->norm.bias.name = join(build, either(names->norm, "model.norm"), ".bias", "", "");
}

/* The first key that the config has; the last one when it has none. */
static const char *key_of(const struct build *build, const char *const *keys) {
    while (keys[1] && !config_has(&build->config, keys[0])) keys++;
    return keys[0];
}

/* E and k; per-layer lists are left to the layer hook. Writers spell the number of experts in
 * several ways: the family's own comes first. */
static void read_experts(struct build *build) {
    const struct family *f = build->family;
    struct config *c = &build->config;
    const char *const expert_keys[] = {either(f->experts_key, "num_experts"), "num_local_experts",
                                       "num_experts", "n_routed_experts", NULL};
    const char *const topk_keys[] = {either(f->topk_key, "num_experts_per_tok"),
                                     "num_experts_per_tok", NULL};
    const char *experts = key_of(build, expert_keys), *topk = key_of(build, topk_keys);
    const struct json *e = json_present(c->json, experts), *k = json_present(c->json, topk);
    build->experts = build->topk = 1;
    if (!f->per_layer_gate || !e || json_kind(e) != JSON_ARRAY)
        build->experts = (int)config_int(c, experts, 1, GATE_MAX_EXPERTS, CONFIG_REQUIRED);
    if (!f->per_layer_gate || !k || json_kind(k) != JSON_ARRAY)
        build->topk = (int)config_int(c, topk, 1, GATE_MAX_TOPK, CONFIG_REQUIRED);
}

static bool build_model(struct build *build) {
    const struct family *f = build->family;
    struct config *c = &build->config;
    struct model_spec *spec = build->spec;
    spec->family = f->type;
    spec->hidden = config_size(c, "hidden_size", CONFIG_REQUIRED);
    spec->vocab = config_size(c, "vocab_size", CONFIG_REQUIRED);
    spec->layers = (int)config_int(c, either(f->layers_key, "num_hidden_layers"), 1,
                                   CONFIG_MAX_LAYERS, CONFIG_REQUIRED);
    spec->max_positions = (int)config_int(c, "max_position_embeddings", 1, INT_MAX, INT_MAX);
    spec->bos = (int)config_int(c, "bos_token_id", -1, INT_MAX, -1);
    spec->ignored = f->ignored;
    spec->steps = spec->layers * attentions(f);
    read_experts(build);
    build->moe_width =
        config_size(c, either(f->moe_width_key, "moe_intermediate_size"), CONFIG_REQUIRED);
    if (c->failed) return false;
    spec->layer = arena_alloc(c->arena, (size_t)spec->steps, sizeof *spec->layer);
    spec->ropes = arena_alloc(c->arena, (size_t)spec->steps + 1, sizeof *spec->ropes);
    if (!spec->layer || !spec->ropes) return err_memory(c->err, "specification of the model");
    build_ends(build);
    for (int i = 0; i < spec->steps && !c->failed; i++) build_layer(build, i, &spec->layer[i]);
    if (f->model_hook && !c->failed && !f->model_hook(build)) c->failed = true;
    check_gates(build);
    return !c->failed;
}

/* Does `architectures` name what the row needs? */
static bool fits(const struct json *root, const struct family *family, const char *type) {
    if (strcmp(family->type, type) != 0) return false;
    if (!family->architecture) return true;
    const struct json *list = json_present(root, "architectures");
    for (const struct json *a = list ? json_first(list) : NULL; a; a = json_next(a))
        if (json_text(a) && strcmp(json_text(a), family->architecture) == 0) return true;
    return false;
}

static bool unknown_family(const char *path, const char *type, struct err *err) {
    struct str known = {0};
    for (const struct family_absent *f = families_absent; f->type; f++)
        if (strcmp(f->type, type) == 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: model_type: found %s, which is known but not supported: %s", path,
                           type, f->reason);
    for (const struct family *f = families; f->type; f++)
        str_printf(&known, "%s%s", f == families ? "" : ", ", f->type);
    err_set(err, ERR_UNSUPPORTED, "%s: model_type: found %.60s, expected one of %.380s", path, type,
            str_text(&known));
    str_free(&known);
    return false;
}

/* Builds from the config that the family's translation makes. */
static bool build_translated(struct build *build) {
    struct str text = {0};
    struct json *own = NULL;
    bool ok = build->family->translate(build, &text) &&
              (own = json_parse(str_text(&text), text.len, build->config.err)) != NULL;
    if (ok) {
        build->config.json = own;
        ok = build_model(build);
    }
    json_free(own);
    str_free(&text);
    return ok;
}

bool spec_build(const struct json *root, const char *path, struct arena *arena,
                struct model_spec *spec, struct err *err) {
    struct build build = {.config = {root, path, arena, err, false}, .spec = spec};
    memset(spec, 0, sizeof *spec);
    if (json_kind(root) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "%s: found %s, expected an object", path,
                       json_kind_name(root));
    const char *type = config_text(&build.config, "model_type", NULL);
    if (!type) {
        config_refuse(&build.config, "model_type", "nothing", "the name of a family");
        return false;
    }
    for (build.family = families; build.family->type; build.family++)
        if (fits(root, build.family, type))
            return build.family->translate ? build_translated(&build) : build_model(&build);
    return unknown_family(path, type, err);
}

bool spec_quantization(const struct json *root, const char *path, struct tensors *tensors,
                       struct err *err) {
    const struct json *own = json_present(root, "quantization_config");
    struct config c = {own, path, NULL, err, false};
    if (!own) return true;
    if (json_kind(own) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "%s: quantization_config: found %s, expected an object",
                       path, json_kind_name(own));
    int method = config_choice(&c, "quant_method", "fp8|mxfp4", -1);
    if (method < 0) config_refuse(&c, "quant_method", "nothing", "fp8 or mxfp4");
    config_choice(&c, "fmt", "e4m3|float8_e4m3fn", 0);
    if (method == 0 && config_has(&c, "weight_block_size")) {
        tensors->scale_rows = (int)config_item(&c, "weight_block_size", 0, 2, 128);
        tensors->scale_columns = (int)config_item(&c, "weight_block_size", 1, 2, 128);
        if (tensors->scale_rows < 1 || tensors->scale_columns < 1)
            config_refuse(&c, "weight_block_size", "a number below 1", "two sizes of a tile");
    }
    return !c.failed;
}
