/* test_throughput_gates.c - throughput under gates whose tokens have different numbers of experts
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "tests/support_replay.h"
#include "tests/support_trace.h"
#include "tests/test.h"

enum { TOKENS = 700, EXPERTS = WORLD_EXPERTS, LAYERS = 2 };

/* Share of choices dropped by a gate in the step of the first cell, and its time. */
static double throughput(const char *path, const char *arguments, const char *column) {
    struct str line = {0};
    char *out = NULL, *errors = NULL, *save = NULL;
    double value = NAN;
    str_printf(&line,
               "%s throughput %s %s --hidden 1024 --inter 512 --ranks 4 --placement contiguous "
               "--moe-only --out %s.out.db --force",
               test_program(), path, arguments, path);
    int status = test_run(str_text(&line), &out, &errors);
    if (status != 0) fail_msg("%s: %s", arguments, errors);
    free(out);
    free(errors);
    str_clear(&line);
    str_printf(&line, "%s sql %s.out.db \"SELECT %s FROM throughput WHERE layer IS NULL\" --csv",
               test_program(), path, column);
    assert_int_equal(test_run(str_text(&line), &out, &errors), 0);
    strtok_r(out, "\n", &save);
    value = strtod(strtok_r(NULL, "\n", &save), NULL);
    free(out);
    free(errors);
    str_free(&line);
    return value;
}

static void throughput_takes_the_drops_and_the_padding(void **state) {
    struct small_world w;
    char path[600];
    (void)state;
    plain_world_make(&w, TOKENS);
    snprintf(path, sizeof path, "%s/run.db", test_folder("batch"));
    write_random_trace(path, &w.source, TRACE_SCORES);
    static const char plain[] = "--gate native --phase train --tokens 64";
    static const char limited[] = "--gate native,capacity=1 --phase train --tokens 64";
    static const char padded[] = "--gate native,capacity=1 --phase train --tokens 64 --pad";
    assert_true(throughput(path, plain, "dropped") == 0);
    double dropped = throughput(path, limited, "dropped");
    assert_true(dropped > 0.05 && dropped < 0.6);
    /* 4 ranks with the same places: no straggler is left */
    assert_true(throughput(path, limited, "rank_max") > throughput(path, limited, "rank_mean"));
    test_near(throughput(path, padded, "rank_max"), throughput(path, padded, "rank_mean"), 1e-12);
    test_near(throughput(path, padded, "rank_max"), 64 * 4, 1e-12);
    test_near(throughput(path, padded, "dropped"), dropped, 1e-12);
    small_world_free(&w);
}

/* Experts of a token, mean over tokens and layers, in a replay. */
static double experts_mean(const char *path, const char *gate) {
    struct str line = {0};
    char *out = NULL, *save = NULL;
    str_printf(&line,
               "%s replay %s --gate %s --out %s.r.db --force >/dev/null 2>&1 && %s sql %s.r.db "
               "\"SELECT experts_mean FROM replay_summary WHERE layer IS NULL\" --csv",
               test_program(), path, gate, path, test_program(), path);
    assert_int_equal(test_run(str_text(&line), &out, NULL), 0);
    strtok_r(out, "\n", &save);
    double value = strtod(strtok_r(NULL, "\n", &save), NULL);
    free(out);
    str_free(&line);
    return value;
}

/* One batch of all tokens: the choices that reach the ranks are those of the replay. */
static void throughput_counts_the_experts_that_a_token_has(void **state) {
    static const char *const gates[] = {
        "native,nobias,groups=none,topp=0.4", "native,nobias,threshold=0.08",
        "native,nobias,groups=none,assign=expert", "softmax,topk=2,second=random"};
    struct small_world w;
    char path[600];
    (void)state;
    plain_world_make(&w, TOKENS);
    snprintf(path, sizeof path, "%s/run.db", test_folder("batch"));
    write_random_trace(path, &w.source, TRACE_SCORES);
    double tokens = (double)(w.source.tokens / 4 * 4);
    for (size_t i = 0; i < sizeof gates / sizeof *gates; i++) {
        char arguments[300];
        double mean = experts_mean(path, gates[i]);
        snprintf(arguments, sizeof arguments, "--gate %s --phase prefill --tokens %.0f", gates[i],
                 tokens / 4);
        assert_true(i == 2 || (mean > 1 && mean < 3.9));
        double found = throughput(path, arguments, "max(rank_mean)") * 4 / tokens;
        if (fabs(found - mean) > 0.01) fail_msg("%s: %g of %g", gates[i], found, mean);
        assert_true(throughput(path, arguments, "max(dropped)") == 0);
    }
    /* equal loads by construction are the balanced load of as many choices */
    char arguments[300];
    snprintf(arguments, sizeof arguments, "--gate %s --phase prefill --tokens %.0f", gates[2],
             tokens / 4);
    test_near(throughput(path, arguments, "max(rank_max / rank_mean)"), 1, 0.01);
    small_world_free(&w);
}

int test_throughput_gates(void);
int test_throughput_gates(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(throughput_takes_the_drops_and_the_padding),
        cmocka_unit_test(throughput_counts_the_experts_that_a_token_has),
    };
    return cmocka_run_group_tests_name("throughput_gates", tests, NULL, NULL);
}
