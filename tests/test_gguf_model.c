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

int test_gguf_model(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_files_agree_with_the_reference),
        cmocka_unit_test(gguf_files_of_the_further_architectures_agree),
    };
    return cmocka_run_group_tests_name("gguf_model", tests, NULL, NULL);
}
