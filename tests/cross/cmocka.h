/* cmocka.h - the few names of cmocka that the kernel tests use, for cross builds without the
 * library */
#ifndef TESTS_CROSS_CMOCKA_H
#define TESTS_CROSS_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};
#define cmocka_unit_test(f)                                                                        \
    { #f, f }

#define print_message                printf
#define print_error                  printf
#define fail_msg(...)                (printf(__VA_ARGS__), printf("\n"), exit(1))
#define cross_check(ok)              ((ok) ? (void)0 : (printf("%s:%d: %s\n", __FILE__, __LINE__, #ok), exit(1)))
#define assert_true(x)               cross_check(x)
#define assert_null(x)               cross_check((x) == NULL)
#define assert_non_null(x)           cross_check((x) != NULL)
#define assert_int_equal(a, b)       cross_check((a) == (b))
#define assert_memory_equal(a, b, n) cross_check(memcmp(a, b, n) == 0)

static inline int cross_run(const char *group, const struct CMUnitTest *tests, size_t count) {
    for (size_t i = 0; i < count; i++) {
        tests[i].run(NULL);
        printf("%s: %s: ok\n", group, tests[i].name);
    }
    return 0;
}
#define cmocka_run_group_tests_name(group, tests, setup, teardown)                                 \
    cross_run(group, tests, sizeof tests / sizeof *tests)

#endif
