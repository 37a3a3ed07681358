/* test_counts.c - traces that hold counts only: what they say is right, what they cannot say is
 * missing, and other gates are refused */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "sim/drawn.h"
#include "traces/trace.h"

enum { E = 6, K = 2 };
static const char *const db = "build/test-out/counts/run.db";

/* Two documents of 4 and 3 tokens at layers 0 and 3. */
static const int64_t loads[2][2][E] = {{{4, 2, 1, 1, 0, 0}, {1, 1, 2, 0, 2, 2}},
                                       {{3, 0, 0, 1, 1, 1}, {0, 3, 1, 1, 1, 0}}};

static void write_counts(void) {
    struct err err = {0};
    struct str csv = {0};
    test_folder("counts");
    str_puts(&csv, "layer,expert,count,document\n");
    for (int d = 0; d < 2; d++)
        for (int l = 0; l < 2; l++)
            for (int e = 0; e < E; e++)
                str_printf(&csv, "%d,%d,%lld,%d\n", 3 * l, e, (long long)loads[d][l][e], d);
    test_ok(file_write("build/test-out/counts/counts.csv", csv.data, csv.len, &err), &err);
    str_free(&csv);
    char command[512];
    snprintf(command, sizeof command,
             "%s import build/test-out/counts/counts.csv --gate softmax,topk=2 --out %s --force",
             test_program(), db);
    assert_int_equal(test_run(command, NULL, NULL), 0);
}

/* Runs the program on the trace; its stdout (or, when it must fail, stderr), owned. */
static char *run(const char *arguments, int expected) {
    char command[512], *out = NULL, *errors = NULL;
    snprintf(command, sizeof command, "%s %s", test_program(), arguments);
    int code = test_run(command, &out, &errors);
    if (code != expected) fail_msg("%s: %d: %s", command, code, errors);
    free(expected ? out : errors);
    return expected ? errors : out;
}

static int begin(void **state) {
    (void)state;
    write_counts();
    return 0;
}

static void counts_give_the_load_and_nothing_that_they_cannot_know(void **state) {
    (void)state;
    free(run("replay build/test-out/counts/run.db --ranks 3", 0));
    char *row = run("sql build/test-out/counts/run.db \"SELECT maxvio_global, cv, load_min, "
                    "load_max, rank_maxvio, maxvio_batch IS NULL, efficiency IS NULL, ties IS "
                    "NULL, agreement IS NULL, mass_retained IS NULL FROM replay_summary WHERE "
                    "layer = 0\" --csv",
                    0);
    double x[10];
    const char *line = strchr(row, '\n');
    assert_non_null(line);
    for (int i = 0; i < 10; i++, line = strpbrk(line, ",\r")) x[i] = strtod(++line, NULL);
    double sum = 14, mean = sum / E, square = 0;
    for (int e = 0; e < E; e++) {
        double n = (double)(loads[0][0][e] + loads[1][0][e]);
        square += (n - mean) * (n - mean) / E;
    }
    test_near(x[0], 7 / mean - 1, 1e-6);
    test_near(x[1], sqrt(square) / mean, 1e-6);
    test_near(x[2], 1, 0);
    test_near(x[3], 7, 0);
    test_near(x[4], 9 / (sum / 3) - 1, 1e-6); /* ranks hold 7 + 2, 1 + 2, 1 + 1 */
    for (int i = 5; i < 10; i++) test_near(x[i], 1, 0);
    free(row);
}

static void counts_of_documents_are_kept_apart(void **state) {
    (void)state;
    free(run("replay build/test-out/counts/run.db", 0));
    char *rows = run("sql build/test-out/counts/run.db \"SELECT count(*), sum(length(counts)) "
                     "FROM result_document\" --csv",
                     0);
    assert_non_null(strstr(rows, "4,192"));
    free(rows);
}

static void another_gate_needs_router_scores(void **state) {
    (void)state;
    static const char *const asked[] = {"--score sigmoid", "--gate softmax,topk=3",
                                        "--bias-rule sign --bias-rate 0.1"};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        char arguments[256];
        snprintf(arguments, sizeof arguments, "replay %s %s", db, asked[i]);
        char *errors = run(arguments, 1);
        if (!strstr(errors, "needs router scores")) fail_msg("%s", errors);
        free(errors);
    }
}

static void what_is_missing_is_said(void **state) {
    (void)state;
    char command[256], *errors = NULL;
    snprintf(command, sizeof command, "%s replay %s --dynamics", test_program(), db);
    assert_int_equal(test_run(command, NULL, &errors), 0);
    assert_non_null(strstr(errors, "counts only"));
    assert_non_null(strstr(errors, "maxvio_batch"));
    assert_non_null(strstr(errors, "--dynamics needs balance batches"));
    free(errors);
}

static void counts_give_figures_and_a_report(void **state) {
    (void)state;
    free(run("plot build/test-out/counts/run.db load_map --out build/test-out/counts/map.svg", 0));
    assert_true(file_exists("build/test-out/counts/map.svg"));
    free(run("report build/test-out/counts/run.db --out build/test-out/counts/report", 0));
    assert_true(file_exists("build/test-out/counts/report/report.html"));
}

static void placements_are_learnt_from_counts(void **state) {
    (void)state;
    char *errors = NULL, *out = NULL, command[512];
    snprintf(command, sizeof command,
             "%s throughput %s --ranks 2 --hidden 1024 --inter 512 --moe-only --placement "
             "contiguous,eplb --phase prefill --csv",
             test_program(), db);
    int code = test_run(command, &out, &errors);
    if (code) fail_msg("%s", errors);
    assert_non_null(strstr(out, "eplb"));
    assert_non_null(strstr(errors, "counts only"));
    free(out);
    free(errors);
}

static void drawn_choices_have_exactly_the_counts(void **state) {
    (void)state;
    struct err err = {0};
    struct trace *trace = trace_open(db, &err);
    test_ok(trace, &err);
    for (int r = 0; r < 2; r++) {
        uint16_t expert[7 * K];
        int64_t found[2][E] = {{0}};
        test_ok(drawn_choices(trace, r, expert, &err), &err);
        for (int t = 0; t < 7; t++) {
            assert_int_not_equal(expert[t * K], expert[t * K + 1]);
            for (int j = 0; j < K; j++) found[t >= 4][expert[t * K + j]]++;
        }
        for (int d = 0; d < 2; d++) assert_memory_equal(found[d], loads[d][r], sizeof found[d]);
    }
    trace_free(trace);
}

int test_counts(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(counts_give_the_load_and_nothing_that_they_cannot_know, begin),
        cmocka_unit_test_setup(counts_of_documents_are_kept_apart, begin),
        cmocka_unit_test_setup(another_gate_needs_router_scores, begin),
        cmocka_unit_test_setup(what_is_missing_is_said, begin),
        cmocka_unit_test_setup(counts_give_figures_and_a_report, begin),
        cmocka_unit_test_setup(placements_are_learnt_from_counts, begin),
        cmocka_unit_test_setup(drawn_choices_have_exactly_the_counts, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
