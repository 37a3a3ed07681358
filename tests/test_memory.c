/* test_memory.c - `capture --memory`: the same numbers within a bound, and refusals below the least
 */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/spill.h"

static const char *folder;

static int begin(void **state) {
    struct rng rng;
    char path[600];
    (void)state;
    folder = test_folder("memory");
    snprintf(path, sizeof path, "%s/ids.txt", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    rng_init(&rng, 9);
    for (int i = 0; i < 40 * 120; i++)
        fprintf(file, "%d%c", (int)rng_below(&rng, 256), i % 120 == 119 ? '\n' : ' ');
    fclose(file);
    return 0;
}

/* `capture MODEL` with options to OUT.db, and its export to OUT.csv; stderr is returned owned. */
static char *capture(const char *model, const char *out, const char *options, int *status) {
    char command[3000], *errors;
    snprintf(command, sizeof command,
             "%s capture %s --ids %s/ids.txt --out %s/%s.db --force --pass-tokens 4800 %s && "
             "%s export %s/%s.db --to csv --out %s/%s.csv --force",
             test_program(), model, folder, folder, out, options, test_program(), folder, out,
             folder, out);
    *status = test_run(command, NULL, &errors);
    return errors;
}

static void a_bound_gives_the_same_numbers_bit_for_bit(void **state) {
    (void)state;
    static const char *const models[] = {
        "tests/golden/deepseek_v3",   "tests/golden/deepseek_v3_fp8",
        "tests/golden/gpt_oss_mxfp4", "../shared/golden/longcat_flash",
        "tests/golden/llama4_text",   "tests/golden/olmoe"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (strncmp(models[i], "..", 2) == 0 && !file_is_folder(models[i])) continue;
        char command[1500], options[100];
        int status;
        char *errors = capture(models[i], "free", "", &status);
        if (status != 0) fail_msg("%s: %s", models[i], errors);
        free(errors);
        /* too little is refused with the least; with that, experts come one by one */
        errors = capture(models[i], "least", "--memory 1000", &status);
        char *least = strstr(errors, "expected at least ");
        if (!status || !least) fail_msg("%s: %s", models[i], errors);
        long long bytes = atoll(least + strlen("expected at least "));
        free(errors);
        assert_true(bytes > 1000);
        for (int share = 0; share < 3; share++) {
            snprintf(options, sizeof options, "--memory %lld", bytes + share * bytes / 4);
            errors = capture(models[i], "least", options, &status);
            if (status != 0) fail_msg("%s %s: %s", models[i], options, errors);
            free(errors);
            snprintf(command, sizeof command, "cmp %s/free.csv %s/least.csv", folder, folder);
            if (test_run(command, NULL, NULL) != 0)
                fail_msg("%s %s: differs from the unbounded run", models[i], options);
        }
    }
}

static void what_was_dropped_from_a_spill_comes_back(void **state) {
    (void)state;
    enum { COUNT = 1 << 20 };
    struct err err = {0};
    for (int in_file = 0; in_file < 2; in_file++) {
        struct spill spill;
        test_ok(spill_open(&spill, COUNT * sizeof(uint32_t), in_file, &err), &err);
        uint32_t *data = spill.data;
        for (uint32_t i = 0; i < COUNT; i++) data[i] = i * 2654435761u;
        spill_drop(&spill, 1000, spill.bytes - 2000);
        for (uint32_t i = 0; i < COUNT; i++) assert_int_equal(data[i], i * 2654435761u);
        spill_close(&spill);
    }
}

static void a_spill_without_a_place_is_one_clear_error(void **state) {
    (void)state;
    struct err err = {0};
    struct spill spill;
    setenv("TMPDIR", "/nonexistent/folder", 1);
    assert_false(spill_open(&spill, 100, true, &err));
    unsetenv("TMPDIR");
    if (!strstr(err.text, "/nonexistent/folder")) fail_msg("%s", err.text);
    spill_close(&spill);
}

int test_memory(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_bound_gives_the_same_numbers_bit_for_bit, begin),
        cmocka_unit_test(what_was_dropped_from_a_spill_comes_back),
        cmocka_unit_test(a_spill_without_a_place_is_one_clear_error),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
