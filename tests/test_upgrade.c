/* test_upgrade.c - databases of every earlier form of the schema become present ones
 *
 * tests/golden/schema/v1-N.sql.gz: the same small capture of tests/golden/deepseek_v3 with a
 * replay, as the schema stood when results had (1) neither dynamics nor losses, (2) no losses, (3)
 * neither capacity nor gates of whole batches. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/support_program.h"

enum { FORMS = 3 };

static int begin(void **state) {
    (void)state;
    enter("upgrade");
    return 0;
}

/* The database of a stored form. */
static void make_old(int form, const char *path) {
    char line[600];
    snprintf(line, sizeof line,
             "rm -f %s && gzip -dc tests/golden/schema/v1-%d.sql.gz | sqlite3 %s", path, form,
             path);
    assert_int_equal(test_run(line, NULL, NULL), 0);
}

static char *answer(const char *path, const char *query) {
    char line[1200], *out;
    snprintf(line, sizeof line, "sqlite3 %s \"%s\"", path, query);
    assert_int_equal(test_run(line, &out, NULL), 0);
    return out;
}

static void same_answer(const char *a, const char *b, const char *query) {
    char *x = answer(a, query), *y = answer(b, query);
    assert_true(strlen(x) > 1);
    if (strcmp(x, y) != 0) fail_msg("%s: '%s' is not '%s'", query, x, y);
    free(x);
    free(y);
}

static void every_earlier_form_becomes_the_present_one(void **state) {
    (void)state;
    for (int form = 1; form <= FORMS; form++) {
        make_old(form, at("run.db"));
        make_old(form, at("old.db"));
        refuses(1, "steelyard upgrade", "show %s", at("run.db"));
        refuses(1, "steelyard upgrade", "replay %s --gate native", at("run.db"));
        runs("upgrade %s", at("run.db"));
        runs("check %s", at("run.db"));
        runs("show %s", at("run.db"));
        /* measured data and results are what they were */
        same_answer(at("old.db"), at("run.db"),
                    "SELECT chunk, choice_hash, hex(scores) FROM chunk ORDER BY chunk");
        same_answer(at("old.db"), at("run.db"), "SELECT * FROM token; SELECT * FROM document");
        same_answer(at("old.db"), at("run.db"),
                    "SELECT variant, layer, maxvio_global, ties, agreement FROM replay_summary");
        same_answer(at("old.db"), at("run.db"), "SELECT * FROM result_bias");
        char *causal = answer(at("run.db"), "SELECT min(causal), max(causal), count(dropped) FROM "
                                            "replay_summary; PRAGMA user_version");
        assert_string_equal(causal, "1|1|0\n2\n");
        free(causal);
        /* and it takes new results */
        runs("replay %s --gate native --gate native,softmax --bias-rule sign --batch-tokens 6",
             at("run.db"));
        /* once more: nothing to do */
        char *before = dump(at("run.db"));
        runs("upgrade %s", at("run.db"));
        char *after = dump(at("run.db"));
        assert_string_equal(before, after);
        free(before);
        free(after);
    }
}

static void what_is_not_ours_is_left_alone(void **state) {
    (void)state;
    static const char *const damages[][2] = {
        {"DROP VIEW replay_bias; CREATE VIEW replay_bias AS SELECT 1", "which no release made"},
        {"ALTER TABLE chunk ADD COLUMN more INTEGER", "which no release made"},
        {"PRAGMA user_version = 99", "made by a newer steelyard"},
        {"PRAGMA user_version = 0", "damaged"},
        {"PRAGMA application_id = 5", "no Steelyard trace"}};
    char line[1200];
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        make_old(3, at("run.db"));
        snprintf(line, sizeof line, "sqlite3 %s \"%s\"", at("run.db"), damages[i][0]);
        assert_int_equal(test_run(line, NULL, NULL), 0);
        char *before = dump(at("run.db"));
        refuses(1, damages[i][1], "upgrade %s", at("run.db"));
        char *after = dump(at("run.db"));
        assert_string_equal(before, after);
        free(before);
        free(after);
    }
    refuses(1, "none.db", "upgrade %s", at("none.db"));
    refuses(2, "at least one", "upgrade");
}

static void an_upgrade_waits_for_no_writer(void **state) {
    (void)state;
    make_old(3, at("run.db"));
    char line[1200], *out;
    snprintf(line, sizeof line,
             "(echo 'BEGIN IMMEDIATE;'; sleep 4) | sqlite3 %s & sleep 0.5; %s upgrade %s; echo $?; "
             "wait",
             at("run.db"), test_program(), at("run.db"));
    char *errors;
    assert_int_equal(test_run(line, &out, &errors), 0);
    assert_string_equal(out, "1\n");
    assert_non_null(strstr(errors, "another process"));
    free(out);
    free(errors);
    runs("upgrade %s", at("run.db"));
}

int test_upgrade(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_earlier_form_becomes_the_present_one, begin),
        cmocka_unit_test_setup(what_is_not_ours_is_left_alone, begin),
        cmocka_unit_test_setup(an_upgrade_waits_for_no_writer, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
