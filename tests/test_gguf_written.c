/* test_gguf_written.c - GGUF architectures without a file of their own: the golden checkpoint is
 * written as GGUF here (tensors as they are, under the names and keys of the format) and must give
 * what the reference gives for the checkpoint. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/gguf.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "tests/support_gguf.h"
#include "tests/support_golden.h"
#include "tests/test.h"

/* How a tensor is called in the checkpoint, without its layer, and in GGUF, without its block. */
struct rename {
    const char *from, *to;
};

struct written {
    const char *root, *folder, *architecture;
    const char *keys;             /* "TYPE NAME VALUES;": u, f, b, and U, B for a list */
    const struct rename *renames; /* before the common ones */
};

#define GLU(from, to)                                                                              \
    {from ".gate_proj.weight", "ffn_gate" to}, {from ".up_proj.weight", "ffn_up" to}, {            \
        from ".down_proj.weight", "ffn_down" to                                                    \
    }
#define W(from, to)                                                                                \
    { from ".weight", to ".weight" }

static const struct rename common[] = {
    W("input_layernorm", "attn_norm"),
    W("operator_norm", "attn_norm"),
    W("post_attention_layernorm", "ffn_norm"),
    W("ffn_norm", "ffn_norm"),
    W("self_attn.q_proj", "attn_q"),
    W("self_attn.k_proj", "attn_k"),
    W("self_attn.v_proj", "attn_v"),
    W("self_attn.o_proj", "attn_output"),
    W("self_attn.out_proj", "attn_output"),
    W("self_attn.q_norm", "attn_q_norm"),
    W("self_attn.k_norm", "attn_k_norm"),
    W("self_attn.q_layernorm", "attn_q_norm"),
    W("self_attn.k_layernorm", "attn_k_norm"),
    W("self_attn.gate_proj", "attn_gate"),
    W("self_attn.q_a_proj", "attn_q_a"),
    W("self_attn.q_b_proj", "attn_q_b"),
    W("self_attn.q_a_layernorm", "attn_q_a_norm"),
    W("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    W("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    W("self_attn.kv_b_proj", "attn_kv_b"),
    W("self_attn.indexer.wk", "indexer.attn_k"),
    W("attention.query_key_value", "attn_qkv"),
    W("attention.dense", "attn_output"),
    W("attention.query_layernorm", "attn_q_norm"),
    W("attention.key_layernorm", "attn_k_norm"),
    W("conv.conv", "shortconv.conv"),
    W("conv.in_proj", "shortconv.in_proj"),
    W("conv.out_proj", "shortconv.out_proj"),
    W("mlp.gate", "ffn_gate_inp"),
    W("mlp.router.gate", "ffn_gate_inp"),
    W("feed_forward.gate", "ffn_gate_inp"),
    {"mlp.gate.expert_bias", "exp_probs_b.bias"},
    {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
    {"mlp.e_score_correction_bias", "exp_probs_b.bias"},
    {"feed_forward.expert_bias", "exp_probs_b.bias"},
    GLU("mlp", ".weight"),
    GLU("mlp.experts.{e}", "_exps.weight"),
    GLU("mlp.shared_experts", "_shexp.weight"),
    GLU("mlp.shared_mlp", "_shexp.weight"),
    W("feed_forward.w1", "ffn_gate"),
    W("feed_forward.w3", "ffn_up"),
    W("feed_forward.w2", "ffn_down"),
    W("feed_forward.experts.{e}.w1", "ffn_gate_exps"),
    W("feed_forward.experts.{e}.w3", "ffn_up_exps"),
    W("feed_forward.experts.{e}.w2", "ffn_down_exps"),
    {0},
};

static const struct rename tops[] = {
    W("model.embed_tokens", "token_embd"),
    W("model.word_embeddings", "token_embd"),
    W("model.norm", "output_norm"),
    W("lm_head", "output"),
    W("model.embedding_norm", "token_embd_norm"),
    {0},
};

static const struct rename of_afmoe[] = {
    W("post_attention_layernorm", "post_attention_norm"),
    W("pre_mlp_layernorm", "ffn_norm"),
    W("post_mlp_layernorm", "post_ffw_norm"),
    {"mlp.expert_bias", "exp_probs_b.bias"},
    {0},
};
static const struct rename of_hy[] = {{"mlp.expert_bias", "exp_probs_b"}, {0}};

static const struct rename of_laguna[] = {
    W("self_attn.g_proj", "attn_gate"),
    GLU("mlp.shared_expert", "_shexp.weight"),
    {"mlp.experts.e_score_correction_bias", "exp_probs_b.bias"},
    {0}};
static const struct rename of_mimo[] = {{"self_attn.attention_sink_bias", "attn_sinks.weight"},
                                        {0}};

#define SIZES(layers, hidden, heads)                                                               \
    "u block_count " #layers ";u context_length 256;u embedding_length " #hidden                   \
    ";u attention.head_count " #heads ";"
/* several numbers of query heads: the list comes with the case */
#define LISTED(layers, hidden)                                                                     \
    "u block_count " #layers ";u context_length 256;u embedding_length " #hidden ";"
#define HEADS16 "u attention.key_length 16;u attention.value_length 16;"
#define EPS5    "f attention.layer_norm_rms_epsilon 1e-5;"
#define EPS6    "f attention.layer_norm_rms_epsilon 1e-6;"

static const struct written cases[] = {
    {"tests/golden/", "bailing_moe_v2", "bailingmoe2",
     SIZES(3, 64, 4) HEADS16 EPS6
     "u feed_forward_length 96;u attention.head_count_kv 2;f rope.freq_base 600000;u expert_count "
     "32;u expert_used_count 8;u expert_group_count 8;u expert_group_used_count 4;u "
     "expert_gating_func 2;u rope.dimension_count 8;u leading_dense_block_count 1;u "
     "expert_feed_forward_length 16;u expert_shared_count 1;f expert_weights_scale 2.5;b "
     "expert_weights_norm 1;",
     NULL},
    {"tests/golden/", "deepseek_v3", "deepseek2", /* no gating function: the bias tells */
     SIZES(3, 64, 4) EPS6
     "u feed_forward_length 96;u attention.head_count_kv 4;f rope.freq_base 10000;u expert_count "
     "32;u expert_used_count 8;u expert_group_count 8;u expert_group_used_count 4;u "
     "rope.dimension_count 8;u leading_dense_block_count 1;u attention.key_length 24;u "
     "attention.value_length 12;u attention.q_lora_rank 32;u attention.kv_lora_rank 16;u "
     "expert_feed_forward_length 16;u expert_shared_count 1;f expert_weights_scale 2.5;b "
     "expert_weights_norm 1;s rope.scaling.type yarn;f rope.scaling.factor 4;u "
     "rope.scaling.original_context_length 32;f rope.scaling.yarn_log_multiplier 0.1;",
     NULL},
    {"../shared/golden/", "deepseek_v32", "deepseek32",
     SIZES(3, 64, 4) EPS6
     "u feed_forward_length 96;u attention.head_count_kv 4;f rope.freq_base 10000;u expert_count "
     "32;u expert_used_count 8;u expert_group_count 8;u expert_group_used_count 4;u "
     "expert_gating_func 2;u rope.dimension_count 8;u leading_dense_block_count 1;u "
     "attention.key_length 24;u attention.value_length 12;u attention.q_lora_rank 32;u "
     "attention.kv_lora_rank 16;u expert_feed_forward_length 16;u expert_shared_count 1;f "
     "expert_weights_scale 2.5;b expert_weights_norm 1;s rope.scaling.type yarn;f "
     "rope.scaling.factor 40;u rope.scaling.original_context_length 32;f "
     "rope.scaling.yarn_log_multiplier 0.1;",
     NULL},
    {"../shared/golden/", "exaone_moe", "exaone-moe",
     SIZES(5, 64, 4) HEADS16 EPS5
     "u feed_forward_length 96;u attention.head_count_kv 2;f rope.freq_base 1000000;u expert_count "
     "16;u expert_used_count 4;u expert_gating_func 2;u attention.sliding_window 16;B "
     "attention.sliding_window_pattern 1 1 1 0 1;u expert_feed_forward_length 24;u "
     "expert_shared_count 1;f expert_weights_scale 2.5;b expert_weights_norm 1;u "
     "leading_dense_block_count 1;",
     NULL},
    {"../shared/golden/", "hy_v3", "hy_v3",
     SIZES(3, 64, 4) HEADS16 EPS5
     "u feed_forward_length 96;u attention.head_count_kv 2;f rope.freq_base 11158840;u "
     "expert_count 24;u expert_used_count 6;u expert_feed_forward_length 16;b "
     "expert_weights_norm 1;f expert_weights_scale 2.826;u expert_gating_func 2;",
     of_hy},
    {"../shared/golden/", "lfm2_moe", "lfm2moe",
     SIZES(5, 64, 4) EPS5
     "u feed_forward_length 96;U attention.head_count_kv 0 0 2 0 2;f rope.freq_base 1000000;u "
     "expert_count 16;u expert_used_count 4;u expert_feed_forward_length 24;u "
     "leading_dense_block_count 2;u expert_gating_func 2;u shortconv.l_cache 3;",
     NULL},
    {"../shared/golden/", "afmoe", "afmoe",
     SIZES(5, 64, 4) HEADS16 EPS5
     "u feed_forward_length 96;u attention.head_count_kv 2;f rope.freq_base 10000;u expert_count "
     "16;u expert_used_count 4;u expert_gating_func 2;u attention.sliding_window 16;u "
     "expert_feed_forward_length 16;u leading_dense_block_count 1;b expert_weights_norm 1;f "
     "expert_weights_scale 2.826;",
     of_afmoe},
    {"../shared/golden/", "cohere2_moe", "cohere2moe",
     SIZES(5, 64, 4) HEADS16 EPS6
     "u feed_forward_length 96;u attention.head_count_kv 2;f rope.freq_base 50000;u expert_count "
     "16;u expert_used_count 4;u expert_gating_func 2;f logit_scale 0.25;u "
     "attention.sliding_window 16;B attention.sliding_window_pattern 0 1 1 1 0;u "
     "expert_feed_forward_length 24;u leading_dense_block_count 1;b expert_weights_norm 0;",
     NULL},
    {"../shared/golden/", "laguna", "laguna",
     LISTED(5, 64) HEADS16 EPS6
     "U attention.head_count 4 6 6 6 4;u feed_forward_length 96;u attention.head_count_kv 2;f "
     "rope.freq_base 500000;f rope.freq_base_swa 10000;u rope.dimension_count 8;u "
     "rope.dimension_count_swa 16;s rope.scaling.type yarn;f rope.scaling.factor 8;u "
     "rope.scaling.original_context_length 32;f rope.scaling.yarn_attn_factor 1;f "
     "rope.scaling.yarn_beta_fast 64;f rope.scaling.yarn_beta_slow 1;u expert_count 16;u "
     "expert_used_count 4;u expert_gating_func 2;u attention.sliding_window 16;u "
     "expert_feed_forward_length 16;u expert_shared_feed_forward_length 24;u "
     "leading_dense_block_count 1;b expert_weights_norm 1;f expert_weights_scale 2.5;",
     of_laguna},
    {"../shared/golden/", "mimo_v2_flash", "mimo2",
     SIZES(5, 64, 4) EPS5
     "u attention.key_length 24;u attention.value_length 16;u feed_forward_length 96;U "
     "attention.head_count_kv 1 2 2 1 2;f rope.freq_base 5000000;f rope.freq_base_swa 10000;u "
     "rope.dimension_count 8;u expert_count 16;u expert_used_count 4;u expert_gating_func 2;u "
     "expert_group_count 1;u expert_group_used_count 1;u attention.sliding_window 16;U "
     "attention.sliding_window_pattern 0 1 1 0 1;f attention.value_scale 0.707;u "
     "expert_feed_forward_length 16;",
     of_mimo},
};

/* ---- writing */

static void put_value(struct str *out, char type, const char *text, char **end) {
    float real = strtof(text, end);
    uint32_t bits;
    memcpy(&bits, &real, sizeof bits);
    if (type == 'f') put(out, bits, 4);
    if (type == 'u') put(out, (uint64_t)real, 4);
    if (type == 'b') put(out, (uint64_t)real, 1);
}

static int kind_of(char type) {
    return type == 'u' ? GGUF_U32 : type == 'f' ? GGUF_F32 : type == 'b' ? GGUF_BOOL : GGUF_TEXT;
}

/* One key: "TYPE NAME VALUES". */
static void put_line(struct str *out, const char *architecture, const char *line) {
    char type = line[0], name[128], value[64], full[256], *at = value;
    assert_int_equal(sscanf(line + 1, " %127s %63[^;]", name, value), 2);
    snprintf(full, sizeof full, "%s.%s", architecture, name);
    if (type == 'U' || type == 'B') {
        char item = type == 'U' ? 'u' : 'b';
        int count = 1;
        for (const char *c = value; *c; c++) count += *c == ' ';
        put_key(out, full, GGUF_ARRAY);
        put(out, (uint64_t)kind_of(item), 4);
        put(out, (uint64_t)count, 8);
        while (count--) put_value(out, item, at, &at);
        return;
    }
    put_key(out, full, kind_of(type));
    if (type == 's') put_text(out, value);
    if (type != 's') put_value(out, type, value, &at);
}

struct writing {
    const struct safetensors *file;
    struct str head, data;
    int tensors;
};

static uint32_t type_of(enum safetensors_dtype dtype) {
    if (strcmp(safetensors_dtype_name(dtype), "BF16") == 0) return GGUF_TYPE_BF16;
    assert_string_equal(safetensors_dtype_name(dtype), "F32");
    return GGUF_TYPE_F32;
}

/* A tensor, or all experts' in one ("{e}" in its name), if the checkpoint has it. */
static void write_tensor(struct writing *w, const char *from, const char *to) {
    const char *mark = strstr(from, "{e}");
    const struct safetensors_tensor *one = NULL, *any = NULL;
    struct str bytes = {0};
    int count = 0;
    for (;; count++) {
        char name[256];
        if (mark)
            snprintf(name, sizeof name, "%.*s%d%s", (int)(mark - from), from, count, mark + 3);
        else
            snprintf(name, sizeof name, "%s", from);
        if ((!mark && count) || !(one = safetensors_find(w->file, name))) break;
        str_append(&bytes, one->data, one->size_bytes);
        any = one;
    }
    if (!any) return;
    put_padding(&w->data, 32);
    int64_t shape[4];
    int rank = 0;
    for (int i = any->rank - 1; i >= 0; i--)
        if (any->shape[i] != 1) shape[rank++] = any->shape[i];
    if (mark) shape[rank++] = count;
    put_tensor(&w->head, to, rank, shape, type_of(any->dtype), w->data.len);
    str_append(&w->data, str_text(&bytes), bytes.len);
    str_free(&bytes);
    w->tensors++;
}

static void write_layer(struct writing *w, int layer, const struct rename *own) {
    char from[256], to[128];
    for (int pass = own ? 0 : 1; pass < 2; pass++)
        for (const struct rename *r = pass ? common : own; r->from; r++) {
            bool again = false;
            for (const struct rename *o = own; pass && o && o->from; o++)
                again = again || strcmp(o->from, r->from) == 0;
            snprintf(from, sizeof from, "model.layers.%d.%s", layer, r->from);
            snprintf(to, sizeof to, "blk.%d.%s", layer, r->to);
            if (!again) write_tensor(w, from, to);
        }
}

static void write_model(const struct written *c, const char *path) {
    char source[256];
    struct err err = {0};
    struct str keys = {0}, all = {0};
    struct writing w = {0};
    int count = 1;
    snprintf(source, sizeof source, "%s%s/model.safetensors", c->root, c->folder);
    struct safetensors *file = safetensors_open(source, &err);
    test_ok(file != NULL, &err);
    w.file = file;
    put_key(&keys, "general.architecture", GGUF_TEXT);
    put_text(&keys, c->architecture);
    for (const char *line = c->keys; *line; line = strchr(line, ';') + 1, count++)
        put_line(&keys, c->architecture, line);
    for (const struct rename *r = tops; r->from; r++) write_tensor(&w, r->from, r->to);
    for (int layer = 0; layer < 8; layer++) write_layer(&w, layer, c->renames);
    put_header(&all, 3, (uint64_t)w.tensors, (uint64_t)count);
    str_append(&all, str_text(&keys), keys.len);
    str_append(&all, str_text(&w.head), w.head.len);
    put_padding(&all, 32);
    str_append(&all, str_text(&w.data), w.data.len);
    test_ok(file_write(path, str_text(&all), all.len, &err), &err);
    safetensors_close(file);
    str_free(&keys);
    str_free(&all);
    str_free(&w.head);
    str_free(&w.data);
}

static void checkpoints_written_as_gguf_agree_with_the_reference(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct written *c = &cases[i];
        char folder[256], model[512], expected[512];
        struct parity parity;
        struct err err = {0};
        snprintf(folder, sizeof folder, "%s%s", c->root, c->folder);
        snprintf(model, sizeof model, "%s/model.gguf", test_folder("gguf_written"));
        snprintf(expected, sizeof expected, "%s/expected.safetensors", folder);
        if (strncmp(c->root, "..", 2) == 0) test_need(folder);
        write_model(c, model);
        const struct golden_options how = {.threads = 2, .model = model, .expected = expected};
        test_ok(golden_parity(folder, &how, &parity, &err), &err);
        printf("%s: logits %.1e, router logits %.1e, weights %.1e, nll %.1e\n", c->architecture,
               parity.logits, parity.router_logits, parity.weight, parity.nll);
        assert_int_equal(parity.choices, 0);
        test_near(parity.logits, 0, 1e-4);
        test_near(parity.router_logits, 0, 1e-4);
        test_near(parity.weight, 0, 1e-3);
        test_near(parity.nll, 0, 1e-4);
    }
}

int test_gguf_written(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checkpoints_written_as_gguf_agree_with_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
