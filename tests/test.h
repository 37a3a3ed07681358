/* test.h - what every test file includes: cmocka, and helpers for files, near numbers and skips
 *
 * tests/test_NAME.c holds `int test_NAME(void)`, which runs one cmocka group; main.c lists them all
 * (generated). Test names are sentences: `router_breaks_ties_by_lowest_index`. */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/err.h"

/* "tests/golden/deepseek_v3/config.json" for ours; "../shared/..." data may be absent. */
const char *test_path(const char *relative); /* static buffer, 8 of them in turn */
/* Skips the running test, printing "skip: <reason>", when the file or folder is absent. */
void test_need(const char *path);
/* Fails with err's text unless ok. */
void test_ok_(int ok, const struct err *err, const char *expr, const char *file, int line);
#define test_ok(expr, err) test_ok_((expr) ? 1 : 0, err, #expr, __FILE__, __LINE__)
/* |a - b| <= tol * max(1, |b|), NaN equals NaN. */
void test_near_(double a, double b, double tol, const char *file, int line);
#define test_near(a, b, tol) test_near_(a, b, tol, __FILE__, __LINE__)
/* A fresh empty folder below the build folder; removed by the next call with the same name. */
const char *test_folder(const char *name);
/* Runs a command by sh, returns its exit status; stdout and stderr (if not NULL) are returned
 * owned. */
int test_run(const char *command, char **out, char **errors);
/* The program under test ($STEELYARD or build/steelyard). */
const char *test_program(void);

#endif
