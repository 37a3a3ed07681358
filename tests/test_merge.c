/* test_merge.c - `steelyard merge`: equals the capture of all documents, refuses what is of another
 * make */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/support_program.h"
#include "traces/trace.h"

#define MODEL "tests/golden/deepseek_v3"

static int begin(void **state) {
    (void)state;
    enter("merge");
    return 0;
}

static void sql(const char *path, const char *statement) {
    char command[1200], *errors;
    snprintf(command, sizeof command, "sqlite3 %s \"%s\"", path, statement);
    if (test_run(command, NULL, &errors) != 0) fail_msg("%s: %s", statement, errors);
    free(errors);
}

/* Captures of two halves, and of the whole; windows of 40, passes of 100 tokens. */
static void capture_halves(const char *options) {
    write_ids(at("a.ids"), 7, 90, 5);
    write_ids(at("b.ids"), 5, 130, 6);
    runs("capture " MODEL " --ids %s --out %s %s", at("a.ids"), at("a.db"), options);
    runs("capture " MODEL " --ids %s --out %s %s", at("b.ids"), at("b.db"), options);
    runs("capture " MODEL " --ids %s --ids %s --out %s %s", at("a.ids"), at("b.ids"),
         at("whole.db"), options);
}

static void a_merge_is_row_for_row_the_capture_of_all_documents(void **state) {
    (void)state;
    static const char *const options[] = {"--context 40 --pass-tokens 100",
                                          "--context 64 --pass-tokens 50 --threads 2", ""};
    for (int i = 0; i < 3; i++) {
        enter("merge");
        capture_halves(options[i]);
        runs("merge %s %s --out %s", at("a.db"), at("b.db"), at("both.db"));
        same_content(at("both.db"), at("whole.db"));
        runs("check %s", at("both.db"));
        assert_false(file_exists(at("both.db-wal")));
        assert_false(file_exists(at("both.db.partial")));
    }
}

static void a_merge_replays_to_the_same_rows(void **state) {
    (void)state;
    static const char grid[] = "--gate native,softmax --bias-rule none,sign --batch-tokens 300";
    capture_halves("--pass-tokens 200");
    runs("merge %s %s --out %s", at("a.db"), at("b.db"), at("both.db"));
    runs("replay %s %s --out %s", at("both.db"), grid, at("r1.db"));
    runs("replay %s %s --out %s", at("whole.db"), grid, at("r2.db"));
    sql(at("r1.db"), "UPDATE result_experiment SET trace = ''");
    sql(at("r2.db"), "UPDATE result_experiment SET trace = ''");
    same_content(at("r1.db"), at("r2.db"));
}

static void three_traces_with_texts_merge(void **state) {
    (void)state;
    struct err err = {0};
    /* a tokenizer gives texts of tokens */
    runs("capture models/v3-lossfree README.md --max-tokens 90 --out %s", at("a.db"));
    runs("capture models/v3-lossfree CONTRIBUTING.md --max-tokens 70 --out %s", at("b.db"));
    runs("capture models/v3-lossfree Makefile --max-tokens 50 --out %s", at("c.db"));
    runs("merge %s %s %s --out %s", at("c.db"), at("a.db"), at("b.db"), at("all.db"));
    runs("check %s", at("all.db"));
    struct trace *trace = trace_open(at("all.db"), &err);
    test_ok(trace, &err);
    assert_int_equal(trace_tokens(trace), 210);
    assert_int_equal(trace_documents(trace), 3);
    assert_string_equal(trace_document(trace, 0)->source, "Makefile");
    assert_int_equal(trace_document(trace, 2)->first_token, 140);
    trace_free(trace);
    char *out, command[900];
    snprintf(command, sizeof command,
             "sqlite3 %s \"ATTACH '%s' AS b; SELECT count(*) FROM main.token_text x JOIN "
             "b.token_text y ON x.token = y.token + 140 AND x.id = y.id AND x.text IS y.text AND "
             "x.nll IS y.nll; SELECT count(*) FROM token WHERE id NOT IN (SELECT id FROM piece)\"",
             at("all.db"), at("b.db"));
    assert_int_equal(test_run(command, &out, NULL), 0);
    assert_string_equal(out, "70\n0\n");
    free(out);
}

static void duplicates_are_refused_or_left_out(void **state) {
    (void)state;
    write_ids(at("a.ids"), 3, 60, 5);
    write_ids(at("b.ids"), 2, 60, 6);
    runs("capture " MODEL " --ids %s --out %s", at("a.ids"), at("a.db"));
    runs("capture " MODEL " --ids %s --ids %s --out %s", at("b.ids"), at("a.ids"), at("ba.db"));
    runs("capture " MODEL " --ids %s --ids %s --out %s", at("a.ids"), at("b.ids"), at("ab.db"));
    refuses(1, "document 2 (", "merge %s %s --out %s", at("a.db"), at("ba.db"), at("c.db"));
    refuses(1, "--skip-duplicates", "merge %s %s --out %s", at("a.db"), at("ba.db"), at("c.db"));
    assert_false(file_exists(at("c.db")));
    runs("merge %s %s --skip-duplicates --out %s", at("a.db"), at("ba.db"), at("c.db"));
    same_content(at("c.db"), at("ab.db"));
    /* the same text under another domain is another document */
    sql(at("ba.db"), "UPDATE document SET domain = 'other'");
    runs("merge %s %s --out %s --force", at("a.db"), at("ba.db"), at("c.db"));
}

static void what_is_of_another_make_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *statement, *expected;
    } cases[] = {
        {"UPDATE capture SET model_id = 'x'", "model_id: found x, expected"},
        {"UPDATE capture SET compute = 'bf16'", "compute: found bf16, expected f32"},
        {"UPDATE capture SET context_tokens = 9", "context_tokens: found 9, expected"},
        {"UPDATE capture SET options = 'special'", "options: found special, expected ''"},
        {"UPDATE layer SET gate = replace(gate, 'scale=2.5', 'scale=2') WHERE router = 1",
         "gate of layer 2: found"},
        {"UPDATE layer SET bias = zeroblob(length(bias)) WHERE router = 1", "bias of layer 2"},
        {"UPDATE document SET tokens = tokens + 1 WHERE document = 1", "capture not finished"},
        {"UPDATE chunk SET choice_hash = 5 WHERE chunk = 1", "other choices than those recorded"},
        {"UPDATE token SET position = -1 WHERE token = 3", "position: found -1"},
        {"DELETE FROM chunk WHERE chunk = 0", "chunk"},
        {"PRAGMA user_version = 99", "made by a newer steelyard"}};
    char line[1200];
    write_ids(at("a.ids"), 2, 60, 5);
    write_ids(at("b.ids"), 2, 60, 6);
    runs("capture " MODEL " --ids %s --out %s", at("a.ids"), at("a.db"));
    runs("capture " MODEL " --ids %s --out %s", at("b.ids"), at("b.db"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(line, sizeof line, "cp %s %s", at("b.db"), at("x.db"));
        assert_int_equal(test_run(line, NULL, NULL), 0);
        sql(at("x.db"), cases[i].statement);
        refuses(1, cases[i].expected, "merge %s %s --out %s", at("a.db"), at("x.db"), at("c.db"));
        refuses(1, at("x.db"), "merge %s %s --out %s", at("a.db"), at("x.db"), at("c.db"));
        assert_false(file_exists(at("c.db")));
        assert_false(file_exists(at("c.db.partial")));
    }
    refuses(2, "two traces", "merge %s --out %s", at("a.db"), at("c.db"));
    refuses(2, "as output", "merge %s %s --out %s --force", at("a.db"), at("b.db"), at("a.db"));
    runs("merge %s %s --out %s", at("a.db"), at("b.db"), at("c.db"));
    refuses(1, "exists already", "merge %s %s --out %s", at("a.db"), at("b.db"), at("c.db"));
}

static void other_kernels_merge_with_a_note(void **state) {
    (void)state;
    char *errors;
    write_ids(at("a.ids"), 2, 60, 5);
    write_ids(at("b.ids"), 2, 60, 6);
    runs("capture " MODEL " --ids %s --out %s", at("a.ids"), at("a.db"));
    runs("capture " MODEL " --ids %s --out %s", at("b.ids"), at("b.db"));
    sql(at("b.db"), "UPDATE capture SET kernels = 'portable-x'");
    assert_int_equal(program(&errors, "merge %s %s --out %s", at("a.db"), at("b.db"), at("c.db")),
                     0);
    assert_non_null(strstr(errors, "kernel levels"));
    free(errors);
}

/* Chosen ids, from serving engines: no scores, no hashes of documents. */
static void traces_of_ids_and_of_lossy_scores_merge(void **state) {
    (void)state;
    struct err err = {0};
    capture_halves("--store bf16");
    runs("merge %s %s --out %s", at("a.db"), at("b.db"), at("both.db"));
    runs("check %s", at("both.db"));
    sql(at("whole.db"), "UPDATE chunk SET choice_hash = NULL");
    same_content(at("both.db"), at("whole.db"));
    static const char npy[] = "\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, "
                              "'shape': (4, 1, 2), }";
    char file[128 + 8];
    memset(file, ' ', sizeof file);
    memcpy(file, npy, sizeof npy - 1);
    file[127] = '\n';
    memcpy(file + 128, "\0\1\1\2\2\3\3\0", 8);
    test_ok(file_write(at("a.npy"), file, sizeof file, &err), &err);
    memcpy(file + 128, "\3\1\1\2\2\0\3\0", 8);
    test_ok(file_write(at("b.npy"), file, sizeof file, &err), &err);
    for (int i = 0; i < 2; i++)
        runs("import %s --model m --out %s", at(i ? "b.npy" : "a.npy"), at(i ? "ib.db" : "ia.db"));
    refuses(1, "same trace", "merge %s %s --out %s", at("ia.db"), at("ia.db"), at("ids.db"));
    runs("merge %s %s --out %s", at("ia.db"), at("ib.db"), at("ids.db"));
    runs("check %s", at("ids.db"));
    struct trace *trace = trace_open(at("ids.db"), &err);
    test_ok(trace, &err);
    assert_int_equal(trace_tokens(trace), 8);
    int32_t expert[2];
    const int64_t token = 4;
    struct trace_cursor *cursor = trace_cursor_open(trace, 0, &err);
    test_ok(trace_cursor_rows(cursor, &(struct trace_rows){1, &token, NULL, expert, NULL}, &err),
            &err);
    assert_int_equal(expert[0], 3);
    assert_int_equal(expert[1], 1);
    trace_cursor_free(cursor);
    trace_free(trace);
}

int test_merge(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_merge_is_row_for_row_the_capture_of_all_documents, begin),
        cmocka_unit_test_setup(a_merge_replays_to_the_same_rows, begin),
        cmocka_unit_test_setup(three_traces_with_texts_merge, begin),
        cmocka_unit_test_setup(duplicates_are_refused_or_left_out, begin),
        cmocka_unit_test_setup(what_is_of_another_make_is_refused, begin),
        cmocka_unit_test_setup(other_kernels_merge_with_a_note, begin),
        cmocka_unit_test_setup(traces_of_ids_and_of_lossy_scores_merge, begin)};
    return cmocka_run_group_tests_name("merge", tests, NULL, NULL);
}
