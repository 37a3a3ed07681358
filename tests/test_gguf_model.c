/* test_gguf_model.c - GGUF checkpoints: parity with the reference, split files, bad files */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "engine/tokenizer.h"
#include "tests/support_golden.h"
#include "tests/test.h"

#define GOLDEN "tests/golden/gguf/"
#define SHARED "../shared/golden/gguf/"

struct sample {
    const char *folder, *model, *type;
};

/* Final logits within 1e-4 of their scale, every choice equal, weights 1e-3, NLL 1e-4. */
static void check_parity(const char *root, const struct sample *c) {
    char folder[256], model[512], expected[512];
    struct parity parity;
    struct err err = {0};
    snprintf(folder, sizeof folder, "%s%s", root, c->folder);
    snprintf(model, sizeof model, "%s/%s", folder, c->model);
    snprintf(expected, sizeof expected, "%s/expected-%s.safetensors", folder, c->type);
    const struct golden_options how = {.threads = 2, .model = model, .expected = expected};
    test_ok(golden_parity(folder, &how, &parity, &err), &err);
    printf("%s: logits %.1e, router logits %.1e, weights %.1e, nll %.1e\n", model, parity.logits,
           parity.router_logits, parity.weight, parity.nll);
    assert_int_equal(parity.choices, 0);
    test_near(parity.logits, 0, 1e-4);
    test_near(parity.router_logits, 0, 1e-4);
    test_near(parity.weight, 0, 1e-3);
    test_near(parity.nll, 0, 1e-4);
    test_near(parity.bias, 0, 0);
}

static const struct sample committed[] = {
    {"olmoe", "model-Q8_0.gguf", "Q8_0"},
    {"gpt_oss_mxfp4", "model-BF16-00001-of-00003.gguf", "BF16"},
};

static const struct sample shared[] = {
    {"olmoe", "model-BF16.gguf", "BF16"},
    {"olmoe_kq", "model-MIX.gguf", "MIX"},
    {"qwen3_moe", "model-BF16.gguf", "BF16"},
    {"qwen2_moe", "model-BF16.gguf", "BF16"},
    {"deepseek_v2", "model-BF16.gguf", "BF16"},
    {"deepseek_v3", "model-BF16.gguf", "BF16"},
    {"deepseek_v3", "model-Q8_0.gguf", "Q8_0"},
    {"mixtral", "model-BF16.gguf", "BF16"},
    {"gpt_oss_mxfp4", "model-BF16.gguf", "BF16"},
    {"gpt_oss_mxfp4", "model-Q8_0.gguf", "Q8_0"},
    {"glm4_moe", "model-BF16-mtp.gguf", "BF16-mtp"},
    {"dots1", "model-BF16.gguf", "BF16"},
    {"granitemoe", "model-BF16.gguf", "BF16"},
    {"minimax_m2", "model-BF16.gguf", "BF16"},
    {"ernie4_5_moe", "model-BF16.gguf", "BF16"},
    {"hunyuan_v1_moe", "model-BF16.gguf", "BF16"},
    {"phimoe", "model-BF16.gguf", "BF16"},
    {"llama4_text", "model-BF16.gguf", "BF16"},
};

static void gguf_files_agree_with_the_reference(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof committed / sizeof *committed; i++)
        check_parity(GOLDEN, &committed[i]);
}

static void gguf_files_of_the_further_architectures_agree(void **state) {
    (void)state;
    test_need("../shared/golden/gguf");
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) check_parity(SHARED, &shared[i]);
}

/* ---- texts */

static void texts_are_encoded_with_the_files_own_tokenizer(void **state) {
    static const char *const models[] = {GOLDEN "olmoe/model-Q8_0.gguf",
                                         GOLDEN "gpt_oss_mxfp4/model-BF16-00001-of-00003.gguf"};
    static const char *const expected[] = {GOLDEN "olmoe/text_ids.txt",
                                           GOLDEN "gpt_oss_mxfp4/text_ids.txt"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct err err = {0};
        size_t text_len, ids_len;
        int32_t *ids = NULL;
        int64_t count = 0;
        struct str found = {0};
        char *text = file_read(GOLDEN "text.txt", 1 << 16, &text_len, &err);
        char *wanted = file_read(expected[i], 1 << 16, &ids_len, &err);
        struct tokenizer *tokenizer = tokenizer_open(models[i], &err);
        test_ok(text && wanted && tokenizer, &err);
        test_ok(tokenizer_encode(tokenizer, text, text_len, false, &ids, &count, &err), &err);
        for (int64_t t = 0; t < count; t++) str_printf(&found, "%s%d", t ? " " : "", ids[t]);
        wanted[strcspn(wanted, "\n")] = 0;
        assert_string_equal(str_text(&found), wanted);
        str_free(&found);
        free(ids);
        free(wanted);
        free(text);
        tokenizer_free(tokenizer);
    }
}

/* ---- bad files */

/* `bytes` of `len` replace what lies `skip` bytes after the first occurrence of `find`. */
struct change {
    const char *find;
    size_t skip;
    const char *bytes;
    size_t len;
    const char *parts; /* of the message, |-separated */
};

static void copy_changed(const char *from, const char *to, const struct change *change) {
    struct err err = {0};
    size_t len = 0;
    char *bytes = file_read(from, 1 << 24, &len, &err);
    test_ok(bytes != NULL, &err);
    char *at = change ? memmem(bytes, len, change->find, strlen(change->find)) : NULL;
    if (change && !at) fail_msg("%s holds no %s", from, change->find);
    if (at) memcpy(at + strlen(change->find) + change->skip, change->bytes, change->len);
    test_ok(file_write(to, bytes, len, &err), &err);
    free(bytes);
}

/* Opening must fail with a text of one line that holds all |-separated parts. */
static void expect_refusal(const char *path, const char *parts) {
    struct err err = {0};
    char copy[256];
    struct pool *pool = pool_create(1, &err);
    const struct engine_options options = {.pool = pool};
    struct engine *engine = engine_open(path, &options, &err);
    if (engine) fail_msg("opened, expected a refusal with %s", parts);
    snprintf(copy, sizeof copy, "%s", parts);
    for (char *part = strtok(copy, "|"); part; part = strtok(NULL, "|"))
        if (!strstr(err.text, part))
            fail_msg("found \"%s\", expected \"%s\" in it", err.text, part);
    assert_null(strchr(err.text, '\n'));
    pool_free(pool);
}

#define BYTES(text) text, sizeof text - 1
#define ZEROS       "\0\0\0\0"

/* After the name of a tensor: rank (4 bytes), sizes (8 each), type (4), offset (8). After that of a
 * key: type (4), value (a text: length of 8 bytes first). */
static const struct change changes[] = {
    {"general.architecture", 12, BYTES("bromo"), "general.architecture|bromo|olmoe|deepseek2"},
    {"olmoe.block_count", 4, BYTES("\0\0\0\0"), "olmoe.block_count|found 0"},
    {"olmoe.block_count", 4, BYTES("\4\0\0\0"), "blk.3.|no such tensor"},
    {"olmoe.block_count", 4, BYTES("\0\0\0\x20"), "olmoe.block_count|at most 4096"},
    {"olmoe.embedding_length", 4, BYTES("\x20\0\0\0"), "shape"},
    {"olmoe.embedding_length", 0, BYTES("\6"), "olmoe.embedding_length|an integer"},
    {"olmoe.expert_used_count", 4, BYTES("\x11\0\0\0"), "layer 0"},
    {"olmoe.expert_count", 4, BYTES("\x11\0\0\0"), "blk.0.ffn_gate_inp.weight|[16, 64]|[17, 64]"},
    {"olmoe.rope.freq_base", 4, BYTES("\0\0\xc0\x7f"), "olmoe.rope.freq_base|finite"},
    {"blk.1.ffn_down_exps.weight", 4, BYTES("\x40" ZEROS "\0\0\0\x18"),
     "blk.1.ffn_down_exps.weight|[16, 24, 64]|[16, 64, 24]"},
    {"blk.1.attn_q.weight", 24, BYTES("\0\0\0\0" ZEROS), "blk.1.attn_q.weight|overlap"},
    {"blk.1.attn_q.weight", 24, BYTES("\0\0\0\x70" ZEROS), "blk.1.attn_q.weight"},
    {"blk.1.attn_q.weight", 20, BYTES("\x18"), "blk.1.attn_q.weight|I8|Q8_0, Q4_0, Q4_1"},
    {"blk.1.attn_q.weight", 20, BYTES("\x63"), "blk.1.attn_q.weight|99"},
    {"blk.1.attn_q.w", 0, BYTES("a"), "blk.1.attn_q.weight|no such tensor"},
    {"token_embd.w", 0, BYTES("a"), "token_embd.weight|no such tensor"},
};

static void damaged_files_are_refused_in_one_line(void **state) {
    char path[512];
    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        snprintf(path, sizeof path, "%s/model.gguf", test_folder("gguf_bad"));
        copy_changed(GOLDEN "olmoe/model-Q8_0.gguf", path, &changes[i]);
        expect_refusal(path, changes[i].parts);
    }
}

/* Whatever the length that is left, opening ends with an error that names the file. */
static void truncated_files_are_refused(void **state) {
    char path[512];
    struct err err = {0};
    size_t len = 0;
    (void)state;
    char *bytes = file_read(GOLDEN "olmoe/model-Q8_0.gguf", 1 << 24, &len, &err);
    test_ok(bytes != NULL, &err);
    snprintf(path, sizeof path, "%s/model.gguf", test_folder("gguf_bad"));
    for (size_t left = 4; left < len; left += left < 4096 ? 97 : 30011) {
        test_ok(file_write(path, bytes, left, &err), &err);
        expect_refusal(path, "model.gguf");
    }
    free(bytes);
}

/* The parts of the split model in a folder of their own; part 2 from `second` (NULL: left out). */
static void copy_split(const char *folder, const struct change *first, const char *second) {
    char from[256], to[512];
    for (int i = 1; i <= 3; i++) {
        if (i == 2 && !second) continue;
        snprintf(from, sizeof from, GOLDEN "gpt_oss_mxfp4/model-BF16-%05d-of-00003.gguf", i);
        snprintf(to, sizeof to, "%s/model-%05d-of-00003.gguf", folder, i);
        copy_changed(i == 2 ? second : from, to, i == 1 ? first : NULL);
    }
}

static void splits_that_do_not_fit_are_refused(void **state) {
    static const char second[] = GOLDEN "gpt_oss_mxfp4/model-BF16-00002-of-00003.gguf";
    static const char third[] = GOLDEN "gpt_oss_mxfp4/model-BF16-00003-of-00003.gguf";
    const struct change more = {"split.tensors.count", 4, BYTES("\x63"), NULL};
    const struct change parts = {"split.count", 4, BYTES("\4"), NULL};
    char path[512], other[512];
    (void)state;
    const char *folder = test_folder("gguf_split");
    snprintf(path, sizeof path, "%s/model-00001-of-00003.gguf", folder);
    copy_split(folder, NULL, NULL);
    expect_refusal(path, "model-00002-of-00003.gguf");
    copy_split(folder, NULL, third);
    expect_refusal(path, "model-00002-of-00003.gguf|found part 3 of 3|expected part 2 of 3");
    copy_split(folder, NULL, GOLDEN "olmoe/model-Q8_0.gguf");
    expect_refusal(path, "model-00002-of-00003.gguf|expected part 2 of 3");
    copy_split(folder, &more, second);
    expect_refusal(path, "split|99");
    copy_split(folder, &parts, second);
    expect_refusal(path, "-00001-of-00004.gguf");
    expect_refusal(second, "split.no|part 2 of 3|the first");
    copy_split(folder, NULL, second);
    snprintf(other, sizeof other, "%s/renamed.gguf", folder);
    assert_int_equal(rename(path, other), 0);
    expect_refusal(other, "renamed.gguf|-00001-of-00003.gguf");
}

int test_gguf_model(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_files_agree_with_the_reference),
        cmocka_unit_test(gguf_files_of_the_further_architectures_agree),
        cmocka_unit_test(texts_are_encoded_with_the_files_own_tokenizer),
        cmocka_unit_test(damaged_files_are_refused_in_one_line),
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(splits_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests_name("gguf_model", tests, NULL, NULL);
}
