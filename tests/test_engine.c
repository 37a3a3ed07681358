/* test_engine.c - the forward pass: parity with the reference, and the laws of determinism */
#include <stdio.h>

#include "engine/kernels/kernels.h"
#include "tests/support_golden.h"
#include "tests/test.h"

#define GOLDEN "tests/golden/"

/* Final logits within 1e-4 of their scale, every choice equal, weights 1e-3, NLL 1e-4. */
static void check_parity(const char *folder) {
    struct parity parity;
    struct err err = {0};
    test_ok(golden_parity(folder, &(struct golden_options){.threads = 2}, &parity, &err), &err);
    printf("%s: logits %.1e, router logits %.1e, weights %.1e, nll %.1e\n", folder, parity.logits,
           parity.router_logits, parity.weight, parity.nll);
    assert_int_equal(parity.choices, 0);
    test_near(parity.logits, 0, 1e-4);
    test_near(parity.router_logits, 0, 1e-4);
    test_near(parity.weight, 0, 1e-3);
    test_near(parity.nll, 0, 1e-4);
    test_near(parity.bias, 0, 0);
}

/* In the repository: one case per kind of attention, gate and storage, and three of our own making
 * (make_golden.py). */
static const char *const committed[] = {"deepseek_v3",    "deepseek_v3_plain", "deepseek_v3_fp8",
                                        "deepseek_v2",    "mixtral",           "mixtral_window",
                                        "olmoe",          "olmoe_clip",        "llama4_text",
                                        "bailing_moe_v2", "gpt_oss_mxfp4"};

/* Beside the repository. */
static const char *const shared[] = {"deepseek_v2_lite",
                                     "kimi_k2",
                                     "qwen2_moe",
                                     "qwen3_moe",
                                     "gpt_oss",
                                     "glm4_moe",
                                     "dots1",
                                     "minimax_m2",
                                     "phimoe",
                                     "glm4_moe_lite",
                                     "ernie4_5_moe",
                                     "granitemoe",
                                     "granitemoeshared",
                                     "hunyuan_v1_moe",
                                     "deepseek_v32",
                                     "axk1",
                                     "mistral4",
                                     "solar_open",
                                     "exaone_moe",
                                     "mimo_v2_flash",
                                     "afmoe",
                                     "hy_v3",
                                     "laguna",
                                     "flex_olmo",
                                     "cohere2_moe",
                                     "cohere2_moe_ln",
                                     "dbrx",
                                     "longcat_flash",
                                     "lfm2_moe",
                                     "minimax"};

static void engine_agrees_with_the_reference(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof committed / sizeof *committed; i++) {
        char folder[256];
        snprintf(folder, sizeof folder, GOLDEN "%s", committed[i]);
        check_parity(folder);
    }
}

static void engine_agrees_on_the_further_families(void **state) {
    (void)state;
    test_need("../shared/golden");
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
        char folder[256];
        snprintf(folder, sizeof folder, "../shared/golden/%s", shared[i]);
        check_parity(folder);
    }
}

static void threads_and_cuts_do_not_change_a_bit(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof committed / sizeof *committed; i++) {
        struct heard one, other;
        struct err err = {0};
        struct golden_options how = {.threads = 1};
        char folder[256];
        snprintf(folder, sizeof folder, GOLDEN "%s", committed[i]);
        test_ok(golden_run(folder, &how, &one, &err), &err);
        for (int way = 0; way < 6;
             way++) { /* 1, 2, 4 threads, whole and cut, weights kept or not */
            how = (struct golden_options){
                .threads = 1 << way / 2, .split = way % 2, .memory_bytes = way % 3 * 1500000};
            test_ok(golden_run(folder, &how, &other, &err), &err);
            assert_true(heard_equal(&one, &other));
            heard_free(&other);
        }
        heard_free(&one);
    }
}

static void every_kernel_level_agrees_with_the_reference(void **state) {
    (void)state;
    for (int i = 0; kernels_level(i); i++) {
        struct golden_options how = {.threads = 1, .kernels = kernels_level(i)};
        struct parity parity;
        struct err err = {0};
        if (!kernels_usable(how.kernels)) continue;
        test_ok(golden_parity(GOLDEN "deepseek_v3", &how, &parity, &err), &err);
        assert_int_equal(parity.choices, 0);
        test_near(parity.logits, 0, 1e-4);
        test_near(parity.nll, 0, 1e-4);
    }
}

/* bf16 activations have 8 significant bits: likelihoods move a little, and always the same way. */
static void bf16_compute_stays_near_and_is_deterministic(void **state) {
    struct golden_options how = {.threads = 1, .bf16 = true};
    struct heard one, other;
    struct parity parity;
    struct err err = {0};
    (void)state;
    test_ok(golden_parity(GOLDEN "mixtral", &how, &parity, &err), &err);
    test_near(parity.nll, 0, 0.3);
    test_ok(golden_run(GOLDEN "mixtral", &how, &one, &err), &err);
    how.threads = 2;
    how.split = true;
    test_ok(golden_run(GOLDEN "mixtral", &how, &other, &err), &err);
    assert_true(heard_equal(&one, &other));
    heard_free(&one);
    heard_free(&other);
}

int test_engine(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engine_agrees_with_the_reference),
        cmocka_unit_test(engine_agrees_on_the_further_families),
        cmocka_unit_test(threads_and_cuts_do_not_change_a_bit),
        cmocka_unit_test(every_kernel_level_agrees_with_the_reference),
        cmocka_unit_test(bf16_compute_stays_near_and_is_deterministic),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
