/* test_engine_bad.c - checkpoints that are damaged, hostile or unknown: one clear line each */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "engine/engine.h"
#include "tests/support_golden.h"
#include "tests/test.h"

#define GOLDEN "tests/golden/"

/* Copies one file, replacing the first occurrence of `from` by `to` (NULL: as it is). */
static void copy_file(const char *source, const char *folder, const char *name, const char *from,
                      const char *to) {
    struct str path = {0}, out = {0};
    struct err err = {0};
    size_t len = 0;
    file_join(&path, source, name);
    char *bytes = file_read(str_text(&path), 1 << 26, &len, &err);
    test_ok(bytes != NULL, &err);
    char *at = from ? memmem(bytes, len, from, strlen(from)) : NULL;
    if (from && !at) fail_msg("%s holds no %s", str_text(&path), from);
    size_t before = at ? (size_t)(at - bytes) : len;
    str_append(&out, bytes, before);
    if (at) {
        str_puts(&out, to);
        str_append(&out, at + strlen(from), len - before - strlen(from));
    }
    str_clear(&path);
    file_join(&path, folder, name);
    test_ok(file_write(str_text(&path), out.data, out.len, &err), &err);
    free(bytes);
    str_free(&path);
    str_free(&out);
}

/* A copy of a case with one change in config.json and one in model.safetensors. */
static const char *changed(const char *name, const char *config_from, const char *config_to,
                           const char *weights_from, const char *weights_to) {
    char source[256];
    const char *folder = test_folder("engine_bad");
    snprintf(source, sizeof source, GOLDEN "%s", name);
    copy_file(source, folder, "config.json", config_from, config_to);
    copy_file(source, folder, "model.safetensors", weights_from, weights_to);
    copy_file(source, folder, "ids.txt", NULL, NULL);
    return folder;
}

/* Opening must fail with a text that holds all |-separated parts, and with one line. */
static void expect_refusal(const char *folder, const char *parts) {
    struct err err = {0};
    char copy[256];
    struct pool *pool = pool_create(1, &err);
    struct engine_options options = {.pool = pool};
    struct engine *engine = engine_open(folder, &options, &err);
    if (engine) fail_msg("opened, expected a refusal with %s", parts);
    snprintf(copy, sizeof copy, "%s", parts);
    for (char *part = strtok(copy, "|"); part; part = strtok(NULL, "|"))
        if (!strstr(err.text, part))
            fail_msg("found \"%s\", expected \"%s\" in it", err.text, part);
    assert_null(strchr(err.text, '\n'));
    pool_free(pool);
}

static void a_bad_config_is_refused_with_key_found_and_expected(void **state) {
    static const struct {
        const char *name, *from, *to, *parts;
    } cases[] = {
        {"olmoe", "\"olmoe\"", "\"brontosaurus\"", "config.json|model_type|brontosaurus|mixtral"},
        {"olmoe", "\"olmoe\"", "\"switch_transformers\"", "switch_transformers|not supported"},
        {"olmoe", "\"olmoe\"", "7", "model_type|a number"},
        {"olmoe", "\"hidden_act\": \"silu\"", "\"hidden_act\": \"mish\"", "hidden_act|mish|silu"},
        {"olmoe", "\"hidden_size\": 64", "\"hidden_size\": \"64\"", "hidden_size|a string"},
        {"olmoe", "\"hidden_size\": 64", "\"hidden_size\": 0", "hidden_size|0"},
        {"olmoe", "\"hidden_size\": 64", "\"hidden_size\": 1e300", "hidden_size"},
        {"olmoe", "\"hidden_size\": 64", "\"hidden_sizes\": 64", "hidden_size|nothing"},
        {"olmoe", "\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 17", "topk|17|16"},
        {"olmoe", "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3",
         "num_key_value_heads|divisor"},
        {"olmoe", "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"alibi\"}",
         "alibi|yarn"},
        {"olmoe", "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\"}", "factor"},
        {"olmoe", "\"rope_scaling\": null", "\"rope_scaling\": [1]", "a list"},
        {"olmoe", "\"rope_theta\": 10000.0", "\"rope_theta\": -1", "rope_theta"},
        {"olmoe", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": -1", "rms_norm_eps|negative"},
        {"olmoe", "\"clip_qkv\": null", "\"clip_qkv\": -1", "clip_qkv|negative"},
        {"olmoe", "{", "[", "config.json"},
        {"olmoe", "\"clip_qkv\": null", "\"quantization_config\": {\"quant_method\": \"awq\"}",
         "quant_method|awq|fp8"},
        {"deepseek_v3", "\"n_group\": 8", "\"n_group\": 5", "groups|5|32"},
        {"deepseek_v3", "\"topk_group\": 4", "\"topk_group\": 1", "layer 1"},
        {"deepseek_v3", "\"norm_topk_prob\": true", "\"scoring_func\": \"softmax\"",
         "scoring_func|softmax|sigmoid"},
        {"deepseek_v3", "\"qk_rope_head_dim\": 8", "\"qk_rope_head_dim\": 7", "even"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_refusal(changed(cases[i].name, cases[i].from, cases[i].to, NULL, NULL),
                       cases[i].parts);
}

static void tensors_that_do_not_fit_the_config_are_named(void **state) {
    (void)state;
    expect_refusal(changed("olmoe", "\"hidden_size\": 64", "\"hidden_size\": 32", NULL, NULL),
                   "model.safetensors|found shape [64]|expected [32]");
    expect_refusal(changed("olmoe", NULL, NULL, "model.layers.1.mlp.experts.3.up_proj.weight",
                           "model.layers.1.mlp.experts.3.up_proj.weighs"),
                   "model.layers.1.mlp.experts.3.up_proj.weight: found no such tensor");
    expect_refusal(changed("olmoe", "\"num_experts\": 16", "\"num_experts\": 12", NULL, NULL),
                   "mlp.gate.weight|[16, 64]|[12, 64]");
    expect_refusal(
        changed("olmoe", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", NULL, NULL),
        "model.layers.3.input_layernorm.weight");
    expect_refusal(
        changed("olmoe", "\"attention_bias\": false", "\"attention_bias\": true", NULL, NULL),
        "model.layers.0.self_attn.q_proj.bias");
    expect_refusal(
        changed("deepseek_v3", "\"n_shared_experts\": 1", "\"n_shared_experts\": 0", NULL, NULL),
        "shared_experts|does not use");
}

static void damaged_weight_files_are_refused(void **state) {
    struct err err = {0};
    size_t len = 0;
    char path[256];
    (void)state;
    char *bytes = file_read(GOLDEN "olmoe/model.safetensors", 1 << 26, &len, &err);
    test_ok(bytes != NULL, &err);
    const size_t sizes[] = {0, 4, 8, 100, len / 2, len - 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *folder = changed("olmoe", NULL, NULL, NULL, NULL);
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        test_ok(file_write(path, bytes, sizes[i], &err), &err);
        expect_refusal(folder, "model.safetensors");
    }
    free(bytes);
    expect_refusal(changed("olmoe", NULL, NULL, "\"BF16\"", "\"I16\" "), "I16|BF16");
    expect_refusal(changed("olmoe", NULL, NULL, "model.norm.weight", "lm_head.weight\":"),
                   "model.safetensors");
    expect_refusal("tests/golden", "model.safetensors");
    expect_refusal("tests/test.h", "folder");
    expect_refusal("tests/no_such_folder", "no_such_folder");
}

static void an_index_is_checked_against_its_shards(void **state) {
    const char *source = GOLDEN "deepseek_v3_fp8", *folder = test_folder("engine_bad");
    const char *one = "model-00001-of-000002.safetensors";
    (void)state;
    copy_file(source, folder, "config.json", NULL, NULL);
    copy_file(source, folder, one, NULL, NULL);
    copy_file(source, folder, "model.safetensors.index.json", NULL, NULL);
    expect_refusal(folder, "model-00002-of-000002.safetensors");
    copy_file(source, folder, "model-00002-of-000002.safetensors", NULL, NULL);
    copy_file(source, folder, "model.safetensors.index.json",
              "\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"model-00001");
    expect_refusal(folder, "model.norm.weight|found in model-00002|expected in model-00001");
    copy_file(source, folder, "model.safetensors.index.json", "\"model-00002-of",
              "\"../model-00002-of");
    expect_refusal(folder, "name of a shard");
    copy_file(source, folder, "model.safetensors.index.json", "\"model.norm.weight\"",
              "\"model.morn.weight\"");
    expect_refusal(folder, "model.morn.weight|in no shard");
}

/* Overwrites the first elements of a bf16 tensor. */
static void poison(const char *folder, const char *tensor, uint16_t value) {
    struct err err = {0};
    size_t len = 0;
    char path[256], key[128];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    char *bytes = file_read(path, 1 << 26, &len, &err);
    test_ok(bytes != NULL, &err);
    uint64_t header = 0;
    memcpy(&header, bytes, 8);
    snprintf(key, sizeof key, "\"%s\"", tensor);
    char *entry = memmem(bytes, len, key, strlen(key));
    assert_non_null(entry);
    size_t offset = strtoull(strchr(strstr(entry, "data_offsets"), '[') + 1, NULL, 10);
    for (int i = 0; i < 8; i++) memcpy(bytes + 8 + header + offset + 2 * i, &value, 2);
    test_ok(file_write(path, bytes, len, &err), &err);
    free(bytes);
}

static void non_finite_logits_are_refused_with_layer_token_and_expert(void **state) {
    struct heard heard;
    struct err err = {0};
    (void)state;
    const char *folder = changed("olmoe", NULL, NULL, NULL, NULL);
    poison(folder, "model.layers.1.mlp.gate.weight", 0x7fc0); /* NaN */
    assert_false(golden_run(folder, &(struct golden_options){.threads = 2}, &heard, &err));
    assert_non_null(strstr(err.text, "layer 1, token 0, expert 0"));
    heard_free(&heard);
    folder = changed("olmoe", NULL, NULL, NULL, NULL);
    poison(folder, "lm_head.weight", 0x7f80); /* infinity */
    assert_false(golden_run(folder, &(struct golden_options){.threads = 2}, &heard, &err));
    assert_non_null(strstr(err.text, "token"));
    heard_free(&heard);
}

static void ids_and_windows_of_a_pass_are_checked(void **state) {
    struct err err = {0};
    (void)state;
    struct pool *pool = pool_create(1, &err);
    struct engine_options options = {.pool = pool};
    struct engine *engine = engine_open(GOLDEN "olmoe", &options, &err);
    test_ok(engine != NULL, &err);
    const int32_t bad[] = {1, 320, 2};
    const int64_t start[] = {0, 3}, wrong[] = {0, 2};
    struct engine_pass pass = {3, bad, start, 1, 0};
    assert_false(engine_run(engine, &pass, NULL, NULL, &err));
    assert_non_null(strstr(err.text, "token 1: found id 320"));
    pass.window_start = wrong;
    assert_false(engine_run(engine, &pass, NULL, NULL, &err));
    engine_close(engine);
    pool_free(pool);
}

int test_engine_bad(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_config_is_refused_with_key_found_and_expected),
        cmocka_unit_test(tensors_that_do_not_fit_the_config_are_named),
        cmocka_unit_test(damaged_weight_files_are_refused),
        cmocka_unit_test(an_index_is_checked_against_its_shards),
        cmocka_unit_test(non_finite_logits_are_refused_with_layer_token_and_expert),
        cmocka_unit_test(ids_and_windows_of_a_pass_are_checked),
    };
    return cmocka_run_group_tests_name("engine_bad", tests, NULL, NULL);
}
