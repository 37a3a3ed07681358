/* gguf_families.c - metadata of a GGUF architecture as the configuration of a family
 *
 * A row names the family; which keys of the configuration it reads is the family's own row
 * (families.c). Sources: the GGUF specification and files written by the public converter. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "engine/families.h"
#include "engine/gguf_model.h"

enum gating { GATING_SOFTMAX = 1, GATING_SIGMOID = 2, GATING_CHOSEN = 3 };

#define NORM_AFTER_ATTENTION "blk.{l}.post_attention_norm.weight"

/* Of several rows of one architecture the first is what a file without expert_gating_func is. */
static const struct gguf_family table[] = {
    {.name = "olmoe", .type = "olmoe", .gating = GATING_SOFTMAX},
    {.name = "qwen3moe", .type = "qwen3_moe", .gating = GATING_SOFTMAX, .normalises = true},
    {.name = "qwen2moe", .type = "qwen2_moe", .gating = GATING_SOFTMAX},
    {.name = "deepseek2", .type = "deepseek_v2", .gating = GATING_SOFTMAX},
    {.name = "deepseek2", .type = "deepseek_v3", .gating = GATING_SIGMOID},
    {.name = "llama",
     .type = "mixtral",
     .gating = GATING_SOFTMAX,
     .normalises = true,
     .permuted = true},
    {.name = "gpt-oss",
     .type = "gpt_oss",
     .gating = GATING_CHOSEN,
     .feed_norm = NORM_AFTER_ATTENTION},
    {.name = "glm4moe",
     .type = "glm4_moe",
     .gating = GATING_SIGMOID,
     .feed_norm = NORM_AFTER_ATTENTION},
    {.name = "dots1", .type = "dots1", .gating = GATING_SIGMOID},
    {.name = "granitemoe",
     .type = "granitemoe",
     .gating = GATING_SOFTMAX,
     .normalises = true,
     .permuted = true},
    {.name = "minimax-m2", .type = "minimax_m2", .gating = GATING_SIGMOID, .normalises = true},
    {.name = "ernie4_5-moe", .type = "ernie4_5_moe", .gating = GATING_SOFTMAX, .normalises = true},
    {.name = "hunyuan-moe", .type = "hunyuan_v1_moe", .gating = GATING_SOFTMAX, .normalises = true},
    {.name = "phimoe", .type = "phimoe", .gating = GATING_SOFTMAX},
    {.name = "llama4", .type = "llama4_text", .gating = GATING_SIGMOID},
    {.name = "bailingmoe2", .type = "bailing_moe_v2", .gating = GATING_SIGMOID, .normalises = true},
    {.name = "deepseek32", .type = "deepseek_v32", .gating = GATING_SIGMOID},
    {.name = "exaone-moe", .type = "exaone_moe", .gating = GATING_SIGMOID},
    {.name = "hy_v3", .type = "hy_v3", .gating = GATING_SIGMOID, .normalises = true},
    {.name = "lfm2moe", .type = "lfm2_moe", .gating = GATING_SIGMOID, .normalises = true},
    {.name = "afmoe", .type = "afmoe", .gating = GATING_SIGMOID, .normalises = true},
    {.name = "cohere2moe", .type = "cohere2_moe", .gating = GATING_SIGMOID},
    {.name = "cohere2moe", .type = "cohere2_moe", .gating = GATING_SOFTMAX, .normalises = true},
    {.name = "laguna",
     .type = "laguna",
     .gating = GATING_SIGMOID,
     .normalises = true,
     .scale_key = "moe_routed_scaling_factor"},
    {.name = "mimo2", .type = "mimo_v2_flash", .gating = GATING_SIGMOID, .normalises = true},
    {.name = "dbrx",
     .type = "dbrx",
     .gating = GATING_SOFTMAX,
     .normalises = true,
     .feed_norm = "blk.{l}.attn_output_norm.weight"},
};

enum { ROWS = sizeof table / sizeof *table, MOST = 1 << 30 };

/* What a translation works on. The first error is kept; readers then do nothing. */
struct translation {
    const struct gguf *head;
    const struct tensors *set;
    const struct gguf_family *row;
    const struct family *family;
    struct str json; /* the configuration, without its closing brace */
    int layers;
    int64_t moe_width;
    bool failed;
    struct err *err;
};

struct keys {
    char text[160];
};

/* "architecture.key" */
static struct keys full(const struct translation *t, const char *key) {
    struct keys name;
    snprintf(name.text, sizeof name.text, "%s.%s", t->row->name, key);
    return name;
}

static bool refuse(struct translation *t, const char *key, const char *found,
                   const char *expected) {
    if (!t->failed)
        err_set(t->err, ERR_FORMAT, "%s: %s: found %s, expected %s", gguf_path(t->head),
                full(t, key).text, found, expected);
    t->failed = true;
    return false;
}

static bool has_key(const struct translation *t, const char *key) {
    return gguf_find(t->head, full(t, key).text) != NULL;
}

static int64_t get_int(struct translation *t, const char *key, int64_t otherwise) {
    int64_t value = otherwise;
    if (!t->failed)
        t->failed = !gguf_get_int(t->head, full(t, key).text, 0, MOST, otherwise, &value, t->err);
    return value;
}

static double get_real(struct translation *t, const char *key, double otherwise) {
    double value = otherwise;
    if (!t->failed)
        t->failed = !gguf_get_real(t->head, full(t, key).text, otherwise, &value, t->err);
    if (!isfinite(value)) refuse(t, key, "a number out of range", "a finite number");
    return value;
}

/* The size must be there. */
static int64_t need(struct translation *t, const char *key) {
    int64_t value = get_int(t, key, 0);
    if (value < 1) refuse(t, key, has_key(t, key) ? "0" : "nothing", "a positive number");
    return value;
}

static void put_int(struct translation *t, const char *key, int64_t value) {
    str_printf(&t->json, ",\"%s\":%lld", key, (long long)value);
}

static void put_real(struct translation *t, const char *key, double value) {
    str_printf(&t->json, ",\"%s\":%.17g", key, isfinite(value) ? value : 0);
}

static void put_bool(struct translation *t, const char *key, bool value) {
    str_printf(&t->json, ",\"%s\":%s", key, value ? "true" : "false");
}

static const struct tensor *block_tensor(const struct translation *t, int layer, const char *tail) {
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s", layer, tail);
    return tensors_find(t->set, name);
}

static const char *either(const char *text, const char *otherwise) {
    return text ? text : otherwise;
}

/* ---- parts of the configuration */

/* Keys that mean the same everywhere. Absent or 0: left to the family's default. */
static const struct {
    const char *key, *name;
    bool real;
} common[] = {
    {"context_length", "max_position_embeddings", false},
    {"attention.key_length", "head_dim", false},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps", true},
    {"attention.q_lora_rank", "q_lora_rank", false},
    {"attention.kv_lora_rank", "kv_lora_rank", false},
    {"attention.sliding_window", "sliding_window", false},
    {"attention.clamp_kqv", "clip_qkv", true},
    {"attention.scale", "attention_multiplier", true},
    {"embedding_scale", "embedding_multiplier", true},
    {"residual_scale", "residual_multiplier", true},
    {"logit_scale", "logits_scaling", true},
    {"expert_group_count", "n_group", false},
    {"expert_group_used_count", "topk_group", false},
};

/* The key's list of a whole number for each block; NULL when it is no list. */
static const struct gguf_value *list_of(struct translation *t, const char *key) {
    const struct gguf_value *list = gguf_find(t->head, full(t, key).text);
    if (!list || !list->array) return NULL;
    if (list->kind == GGUF_TEXT || list->kind == GGUF_F32 || list->kind == GGUF_F64 ||
        list->count < t->layers) {
        refuse(t, key, "a list that does not fit", "a whole number for each block");
        return NULL;
    }
    return list;
}

/* Query heads: a number, or one for each block, of which this is the first. */
static int64_t head_count(struct translation *t) {
    const struct gguf_value *list = list_of(t, "attention.head_count");
    return list ? gguf_int(list, 0) : need(t, "attention.head_count");
}

static bool is_type(const struct translation *t, const char *type) {
    return strcmp(t->row->type, type) == 0;
}

static void put_common(struct translation *t) {
    for (size_t i = 0; i < sizeof common / sizeof *common; i++) {
        double value =
            common[i].real ? get_real(t, common[i].key, 0) : (double)get_int(t, common[i].key, 0);
        if (value != 0) put_real(t, common[i].name, value);
    }
    put_int(t, "hidden_size", need(t, "embedding_length"));
    put_int(t, "num_attention_heads", head_count(t));
    put_real(t, "rope_theta", get_real(t, "rope.freq_base", 10000));
}

static void put_sizes(struct translation *t) {
    const struct tensor *embedding = tensors_find(t->set, "token_embd.weight");
    int64_t bos = -1, blocks = need(t, "block_count");
    int64_t extra = get_int(t, "nextn_predict_layers", 0);
    if (!embedding && !t->failed) {
        t->failed = true;
        err_set(t->err, ERR_FORMAT, "%s: token_embd.weight: found no such tensor, expected one",
                gguf_path(t->head));
    }
    if (blocks > CONFIG_MAX_LAYERS) refuse(t, "block_count", "too many", "at most 4096");
    if (extra >= blocks) refuse(t, "nextn_predict_layers", "all blocks", "fewer than block_count");
    if (t->failed) return;
    if (!gguf_get_int(t->head, "tokenizer.ggml.bos_token_id", -1, INT32_MAX, -1, &bos, t->err))
        t->failed = true;
    t->layers = (int)(blocks - extra);
    put_int(t, "num_hidden_layers", t->layers);
    put_int(t, "vocab_size", embedding->shape[0]);
    put_int(t, "bos_token_id", bos);
    put_bool(t, "tie_word_embeddings", !tensors_find(t->set, "output.weight"));
    if (tensors_find(t->set, "output.bias")) put_bool(t, "lm_head_bias", true);
}

/* "type" and the settings of a scaled rotation. */
static void put_scaling(struct translation *t, const char *type) {
    str_printf(&t->json, "\"type\":\"%s\"", type);
    if (strcmp(type, "default") == 0) return;
    put_real(t, "factor", get_real(t, "rope.scaling.factor", 0));
    if (strcmp(type, "yarn") != 0) return;
    double all = get_real(t, "rope.scaling.yarn_log_multiplier", 0) / 0.1;
    put_int(t, "original_max_position_embeddings", need(t, "rope.scaling.original_context_length"));
    put_real(t, "beta_fast", get_real(t, "rope.scaling.yarn_beta_fast", 32));
    put_real(t, "beta_slow", get_real(t, "rope.scaling.yarn_beta_slow", 1));
    if (all > 0) put_real(t, "mscale", all);
    if (all > 0) put_real(t, "mscale_all_dim", all);
    if (t->row->gating == GATING_CHOSEN) put_bool(t, "truncate", false);
}

/* The share of a head that rotates: a little more than the whole dimensions, which readers cut. */
static void put_partial(struct translation *t, int64_t dims, int64_t dim) {
    bool part = dims > 0 && dims < dim;
    put_real(t, "partial_rotary_factor", part ? ((double)dims + 0.5) / (double)dim : 1);
}

/* Sliding layers rotate without scaling, by a base and over dimensions of their own. */
static void put_rope_kinds(struct translation *t, const char *type, int64_t dim) {
    int64_t dims = get_int(t, "rope.dimension_count", 0);
    str_puts(&t->json, ",\"rope_scaling\":{\"full_attention\":{");
    put_scaling(t, type);
    if (has_key(t, "rope.scaling.yarn_attn_factor"))
        put_real(t, "attention_factor", get_real(t, "rope.scaling.yarn_attn_factor", 1));
    put_real(t, "rope_theta", get_real(t, "rope.freq_base", 10000));
    put_partial(t, dims, dim);
    str_puts(&t->json, "},\"sliding_attention\":{\"type\":\"default\"");
    put_real(t, "rope_theta",
             get_real(t, "rope.freq_base_swa", get_real(t, "rope.freq_base", 10000)));
    put_partial(t, get_int(t, "rope.dimension_count_swa", dims), dim);
    str_puts(&t->json, "}}");
}

/* Rotation of a part of the head, and its scaling. */
static void put_rope(struct translation *t) {
    const char *type = NULL;
    if (t->failed) return;
    t->failed = !gguf_get_text(t->head, full(t, "rope.scaling.type").text, "none", &type, t->err);
    int64_t dims = get_int(t, "rope.dimension_count", 0), heads = head_count(t);
    int64_t dim = get_int(t, "attention.key_length", 0);
    if (heads < 1) refuse(t, "attention.head_count", "0", "a positive number");
    if (t->failed) return;
    if (dim == 0) dim = need(t, "embedding_length") / heads;
    bool linear = strcmp(type, "linear") == 0, yarn = strcmp(type, "yarn") == 0;
    if (strcmp(type, "none") != 0 && !linear && !yarn)
        refuse(t, "rope.scaling.type", type, "none, linear or yarn");
    if (linear && !(get_real(t, "rope.scaling.factor", 0) > 0)) type = "none";
    if (t->failed) return;
    if (is_type(t, "laguna")) {
        put_rope_kinds(t, strcmp(type, "none") ? type : "default", dim);
        return;
    }
    if (dim > 0 && !t->family->mla) put_partial(t, dims, dim);
    if (strcmp(type, "none") == 0) return;
    str_puts(&t->json, ",\"rope_scaling\":{");
    put_scaling(t, type);
    str_puts(&t->json, "}");
}

/* Heads of latent attention: two spellings, see MODEL.md. */
static void put_latent(struct translation *t) {
    bool split = has_key(t, "attention.key_length_mla");
    int64_t rope = need(t, "rope.dimension_count");
    int64_t key = need(t, split ? "attention.key_length_mla" : "attention.key_length");
    int64_t value = need(t, split ? "attention.value_length_mla" : "attention.value_length");
    if (key <= rope) refuse(t, "attention.key_length", "no more than rope.dimension_count", "more");
    put_int(t, "qk_rope_head_dim", rope);
    put_int(t, "qk_nope_head_dim", key - rope);
    put_int(t, "v_head_dim", value);
}

/* Blocks before the first that has a router. */
static int64_t dense_prefix(const struct translation *t) {
    int first = 0;
    while (first < t->layers && !block_tensor(t, first, "ffn_gate_inp.weight")) first++;
    return first;
}

static void put_dense_layers(struct translation *t) {
    int64_t every = get_int(t, "interleave_moe_layer_step", 1);
    int64_t first = has_key(t, "leading_dense_block_count")
                        ? get_int(t, "leading_dense_block_count", 0)
                        : (every > 1 ? 0 : dense_prefix(t));
    put_int(t, either(t->family->first_dense_key, "first_k_dense_replace"), first);
    put_int(t, "moe_layer_start_index", first);
    put_int(t, "moe_layer_interval", every > 0 ? every : 1);
    put_int(t, "interleave_moe_layer_step", every > 0 ? every : 1);
}

/* A number, or one a layer: the same for all as a number, else as the list. */
static void put_per_layer(struct translation *t, const char *key, const char *name) {
    const struct gguf_value *list = list_of(t, key);
    bool same = true;
    if (t->failed) return;
    if (!list) {
        put_int(t, name, need(t, key));
        return;
    }
    for (int i = 1; i < t->layers; i++) same = same && gguf_int(list, i) == gguf_int(list, 0);
    str_printf(&t->json, ",\"%s\":%s", name, same ? "" : "[");
    for (int i = 0; i < (same ? 1 : t->layers); i++)
        str_printf(&t->json, "%s%lld", i ? "," : "", (long long)gguf_int(list, i));
    if (!same) str_puts(&t->json, "]");
}

/* Does a block slide? The list of the file; else (laguna) every block but each fourth. */
static bool slides(const struct translation *t, const struct gguf_value *list, int block) {
    if (list) return gguf_int(list, block) != 0;
    return is_type(t, "laguna") && has_key(t, "attention.sliding_window") && block % 4 != 0;
}

/* Key and value heads; a list has 0 for the blocks that do not attend. Where `sliding`, those of
 * the blocks that slide are another number. */
static void put_kv_kind(struct translation *t, const char *name, int sliding) {
    const struct gguf_value *list = list_of(t, "attention.head_count_kv");
    const struct gguf_value *pattern = list_of(t, "attention.sliding_window_pattern");
    int64_t most = list ? 0 : get_int(t, "attention.head_count_kv", 0);
    for (int i = 0; list && i < t->layers; i++) {
        int64_t heads = gguf_int(list, i);
        if (sliding >= 0 && slides(t, pattern, i) != sliding) continue;
        if (heads != 0 && most != 0 && heads != most)
            refuse(t, "attention.head_count_kv", "several numbers of heads", "one, or 0");
        if (heads != 0) most = heads;
    }
    if (most != 0) put_int(t, name, most);
}

static void put_kv_heads(struct translation *t) {
    bool kinds = is_type(t, "mimo_v2_flash");
    put_kv_kind(t, "num_key_value_heads", kinds ? 0 : -1);
    if (kinds) put_kv_kind(t, "swa_num_key_value_heads", 1);
}

/* Which blocks slide, which convolve (those without heads). */
static void put_layer_types(struct translation *t) {
    const struct gguf_value *sliding = list_of(t, "attention.sliding_window_pattern");
    const struct gguf_value *heads = list_of(t, "attention.head_count_kv");
    if (t->failed || (!sliding && !heads && !is_type(t, "laguna"))) return;
    str_puts(&t->json, ",\"layer_types\":[");
    for (int i = 0; i < t->layers; i++) {
        const char *kind = slides(t, sliding, i) ? "sliding_attention" : "full_attention";
        if (heads && gguf_int(heads, i) == 0) kind = "conv";
        str_printf(&t->json, "%s\"%s\"", i ? "," : "", kind);
    }
    str_puts(&t->json, "]");
}

/* The first block that has shared experts says how wide they are: writers get the key wrong. */
static int64_t shared_width(const struct translation *t) {
    for (int i = 0; i < t->layers; i++) {
        const struct tensor *up = block_tensor(t, i, "ffn_up_shexp.weight");
        if (up && up->rank == 2) return up->shape[0];
    }
    return 0;
}

static void put_widths(struct translation *t) {
    const struct family *f = t->family;
    const char *moe = either(f->moe_width_key, "moe_intermediate_size");
    const char *dense = either(f->dense_width_key, "intermediate_size");
    bool own = has_key(t, "expert_feed_forward_length");
    int64_t width = need(t, own ? "expert_feed_forward_length" : "feed_forward_length");
    int64_t shared = shared_width(t), all = get_int(t, "feed_forward_length", 0);
    put_int(t, moe, width);
    if (all > 0 && strcmp(dense, moe) != 0) put_int(t, dense, all);
    if (width < 1) return;
    if (f->shared_count_key) put_int(t, f->shared_count_key, shared / width);
    if (f->shared_width_key && strcmp(f->shared_width_key, moe) != 0)
        put_int(t, f->shared_width_key, shared);
    put_int(t, "shared_intermediate_size", shared);
}

static void put_gate(struct translation *t) {
    const struct family *f = t->family;
    double scale = get_real(t, "expert_weights_scale", 0);
    bool normalises = t->row->normalises, cohere = strcmp(f->type, "cohere2_moe") == 0;
    const char *norm_key = cohere ? "norm_topk_prob" : f->norm_key; /* read by its hook */
    put_per_layer(t, "expert_count", either(f->experts_key, "num_experts"));
    put_per_layer(t, "expert_used_count", either(f->topk_key, "num_experts_per_tok"));
    if (t->failed) return;
    t->failed = !gguf_get_bool(t->head, full(t, "expert_weights_norm").text, normalises,
                               &normalises, t->err);
    if (norm_key)
        put_bool(t, norm_key, normalises);
    else if (normalises != t->row->normalises)
        refuse(t, "expert_weights_norm", normalises ? "true" : "false", "the other value");
    const char *scale_key = either(t->row->scale_key, f->scale_key);
    if (scale != 0 && scale_key)
        put_real(t, scale_key, scale);
    else if (scale != 0 && scale != 1)
        refuse(t, "expert_weights_scale", "a factor", "1: this architecture has none");
    if (strcmp(f->type, "deepseek_v2") == 0)
        str_printf(&t->json, ",\"topk_method\":\"%s\"",
                   get_int(t, "expert_group_count", 1) > 1 ? "group_limited_greedy" : "greedy");
}

/* dbrx names its settings differently. */
static void put_dbrx(struct translation *t) {
    put_int(t, "d_model", need(t, "embedding_length"));
    put_int(t, "n_heads", need(t, "attention.head_count"));
    put_int(t, "kv_n_heads", need(t, "attention.head_count_kv"));
    put_int(t, "n_layers", t->layers);
    put_int(t, "max_seq_len", need(t, "context_length"));
    put_int(t, "ffn_hidden_size", need(t, "feed_forward_length"));
    put_int(t, "moe_num_experts", need(t, "expert_count"));
    put_int(t, "moe_top_k", need(t, "expert_used_count"));
    put_int(t, "moe_normalize_expert_weights", 1);
}

static void put_cohere2(struct translation *t) {
    str_printf(&t->json, ",\"expert_selection_fn\":\"%s\"",
               t->row->gating == GATING_SIGMOID ? "sigmoid" : "softmax");
    put_real(t, "logit_scale", get_real(t, "logit_scale", 0.0625));
    put_real(t, "layer_norm_eps", get_real(t, "attention.layer_norm_epsilon", 1e-5));
}

/* Query heads by block; the output gate has a column for each head, or for each channel. */
static void put_laguna(struct translation *t) {
    const struct tensor *gate = block_tensor(t, 0, "attn_gate.weight");
    const struct gguf_value *list = list_of(t, "attention.head_count");
    bool per_head = gate && gate->rank == 2 && gate->shape[0] == head_count(t);
    str_printf(&t->json, ",\"gating\":\"%s\"", per_head ? "per-head" : "per-element");
    if (!list || t->failed) return;
    str_puts(&t->json, ",\"num_attention_heads_per_layer\":[");
    for (int i = 0; i < t->layers; i++)
        str_printf(&t->json, "%s%lld", i ? "," : "", (long long)gguf_int(list, i));
    str_puts(&t->json, "]");
}

/* Has a block of this kind sinks? */
static bool has_sinks(struct translation *t, bool sliding) {
    const struct gguf_value *pattern = list_of(t, "attention.sliding_window_pattern");
    for (int i = 0; i < t->layers && !t->failed; i++)
        if (slides(t, pattern, i) == sliding && block_tensor(t, i, "attn_sinks.weight"))
            return true;
    return false;
}

/* The released model sees one token more than its window (sliding_window_size). */
static void put_mimo(struct translation *t) {
    put_int(t, "v_head_dim", need(t, "attention.value_length"));
    put_int(t, "sliding_window_size", need(t, "attention.sliding_window"));
    put_real(t, "swa_rope_theta", get_real(t, "rope.freq_base_swa", 10000));
    put_real(t, "attention_value_scale", get_real(t, "attention.value_scale", 1));
    put_bool(t, "add_swa_attention_sink_bias", has_sinks(t, true));
    put_bool(t, "add_full_attention_sink_bias", has_sinks(t, false));
}

/* Settings that one family alone reads. */
static void put_own(struct translation *t) {
    const char *type = t->family->type;
    const char *norm = t->family->qk_norm_key;
    if (norm) put_bool(t, norm, block_tensor(t, 0, "attn_q_norm.weight") != NULL);
    if (strcmp(type, "llama4_text") == 0)
        put_bool(t, "use_qk_norm", get_int(t, "expert_count", 0) != 128);
    if (strcmp(type, "afmoe") == 0) put_bool(t, "mup_enabled", true);
    if (strcmp(type, "lfm2_moe") == 0) put_int(t, "conv_L_cache", need(t, "shortconv.l_cache"));
    if (strcmp(type, "dbrx") == 0) put_dbrx(t);
    if (strcmp(type, "cohere2_moe") == 0) put_cohere2(t);
    if (strcmp(type, "laguna") == 0) put_laguna(t);
    if (strcmp(type, "mimo_v2_flash") == 0) put_mimo(t);
    if (strcmp(type, "granitemoe") == 0 && get_real(t, "attention.scale", 0) == 0)
        put_real(t, "attention_multiplier",
                 1 / sqrt((double)need(t, "embedding_length") /
                          (double)need(t, "attention.head_count")));
}

static bool translate(struct translation *t) {
    str_printf(&t->json, "{\"model_type\":\"%s\"", t->row->type);
    if (t->family->architecture)
        str_printf(&t->json, ",\"architectures\":[\"%s\"]", t->family->architecture);
    put_sizes(t);
    put_common(t);
    put_kv_heads(t);
    put_layer_types(t);
    put_rope(t);
    if (t->family->mla) put_latent(t);
    put_dense_layers(t);
    put_gate(t);
    put_widths(t);
    put_own(t);
    str_puts(&t->json, "}");
    return !t->failed;
}

/* ---- the whole */

static bool unknown_architecture(const struct gguf *head, const char *name, struct err *err) {
    struct str known = {0};
    for (int i = 0; i < ROWS; i++)
        if (i == 0 || strcmp(table[i].name, table[i - 1].name) != 0)
            str_printf(&known, "%s%s", i ? ", " : "", table[i].name);
    err_set(err, ERR_UNSUPPORTED, "%s: general.architecture: found %.60s, expected one of %s",
            gguf_path(head), name, str_text(&known));
    str_free(&known);
    return false;
}

/* Has any block a correction bias? */
static bool corrects(const struct tensors *set) {
    for (int64_t i = 0; i < set->count; i++)
        if (strstr(set->items[i].name, ".exp_probs_b.bias")) return true;
    return false;
}

/* The row of the file's architecture whose gating is the file's. Where a file does not say and the
 * architecture has two, a correction bias tells: only the gate on sigmoids has one. */
static const struct gguf_family *find_row(const struct gguf *head, const struct tensors *set,
                                          struct err *err) {
    const char *name = NULL;
    char key[96];
    int64_t gating = 0;
    bool known = false;
    if (!gguf_get_text(head, "general.architecture", "nothing", &name, err)) return NULL;
    snprintf(key, sizeof key, "%.60s.expert_gating_func", name);
    if (!gguf_get_int(head, key, 0, MOST, 0, &gating, err)) return NULL;
    if (gating == 0 && strcmp(name, "deepseek2") == 0 && corrects(set)) gating = GATING_SIGMOID;
    for (int i = 0; i < ROWS; i++) {
        if (strcmp(table[i].name, name) != 0) continue;
        if (gating == 0 || gating == table[i].gating) return &table[i];
        known = true;
    }
    if (known)
        err_set(err, ERR_UNSUPPORTED, "%s: %s: found %lld, expected that of the architecture",
                gguf_path(head), key, (long long)gating);
    else
        unknown_architecture(head, name, err);
    return NULL;
}

static const struct family *find_family(const char *type) {
    const struct family *family = families;
    while (family->type && strcmp(family->type, type) != 0) family++;
    return family;
}

static bool build(struct translation *t, struct arena *arena, struct model_spec *spec,
                  const char **config_json) {
    struct json *root = NULL;
    const char *path = gguf_path(t->head);
    bool ok = translate(t);
    if (ok && t->json.failed) ok = err_memory(t->err, "configuration");
    *config_json = ok ? arena_text(arena, str_text(&t->json), t->json.len) : NULL;
    if (ok && !*config_json) ok = err_memory(t->err, "configuration");
    ok = ok && (root = json_parse(str_text(&t->json), t->json.len, t->err)) != NULL &&
         spec_build(root, path, arena, spec, t->err);
    json_free(root);
    if (ok) gguf_rename(t->row, t->set, spec);
    return ok;
}

bool gguf_spec(const struct gguf *head, const struct tensors *set, struct arena *arena,
               struct model_spec *spec, const char **config_json, struct err *err) {
    struct translation t = {.head = head, .set = set, .err = err};
    if (!(t.row = find_row(head, set, err))) return false;
    t.family = find_family(t.row->type);
    bool ok = build(&t, arena, spec, config_json);
    str_free(&t.json);
    return ok;
}
