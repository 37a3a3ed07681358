/* test_sql.c - router_score and the named queries: rows are the router's, constraints change
 * nothing */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "base/table.h"
#include "router/route.h"
#include "traces/query.h"
#include "traces/trace.h"

#define MODEL "tests/golden/deepseek_v3"
#define DB    "build/test-out/sql/run.db"
enum { TOKENS = 133, E = 32, K = 8 };

static void shell(const char *command) {
    char *errors;
    if (test_run(command, NULL, &errors) != 0) fail_msg("%s: %s", command, errors);
    free(errors);
}

static int begin(void **state) {
    (void)state;
    struct str line = {0};
    test_folder("sql");
    str_printf(&line,
               "%s capture " MODEL " --ids " MODEL
               "/ids.txt --pass-tokens 40 --context 30 --out " DB,
               test_program());
    shell(line.data);
    str_free(&line);
    return 0;
}

static struct trace *open_db(void) {
    struct err err = {0};
    struct trace *trace = trace_open(DB, &err);
    test_ok(trace, &err);
    return trace;
}

static struct table *ask(struct trace *trace, const char *sql) {
    struct err err = {0};
    struct table *table = trace_sql(trace, sql, &err);
    if (!table) fail_msg("%s: %s", sql, err.text);
    return table;
}

/* Compares the rows of one chunk with the router's answers; returns the next row. */
static int64_t compare_chunk(const struct trace_layer *layer, const struct trace_chunk *chunk,
                             const struct table *table, int64_t row) {
    float *scores = malloc((size_t)chunk->tokens * E * 4), weight[K];
    void *scratch = aligned_alloc(64, (route_scratch_bytes(E) + 63) / 64 * 64);
    int32_t expert[K];
    route_scores(layer->gate.score, E, chunk->tokens, chunk->logits, scores);
    for (int64_t t = 0; t < chunk->tokens; t++) {
        struct routes routes = {.expert = expert, .weight = weight};
        assert_int_equal(
            route_tokens(&layer->gate, E, 1, chunk->logits + t * E, layer->bias, &routes, scratch),
            -1);
        for (int e = 0; e < E; e++, row++) {
            int rank = 0;
            while (rank < K && expert[rank] != e) rank++;
            test_near(table_number(table, row, 0), layer->layer, 0);
            test_near(table_number(table, row, 1), (double)(chunk->first + t), 0);
            test_near(table_number(table, row, 2), e, 0);
            test_near(table_number(table, row, 3), (double)chunk->logits[t * E + e], 0);
            test_near(table_number(table, row, 4), (double)scores[t * E + e], 0);
            test_near(table_number(table, row, 5), rank < K ? (double)weight[rank] : (double)NAN,
                      0);
            test_near(table_number(table, row, 6), rank < K ? (double)rank : (double)NAN, 0);
            test_near(table_number(table, row, 7), rank < K, 0);
        }
    }
    free(scores);
    free(scratch);
    return row;
}

static void every_row_is_what_the_router_does(void **state) {
    (void)state;
    struct err err = {0};
    struct trace *trace = open_db();
    struct table *table = ask(trace, "SELECT * FROM router_score");
    assert_int_equal(table_columns(table), 8);
    assert_int_equal(table_rows(table), 2 * TOKENS * E);
    int64_t row = 0;
    for (int r = 0; r < 2; r++) {
        struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
        test_ok(cursor, &err);
        struct trace_chunk chunk;
        do {
            test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
            row = compare_chunk(trace_layer(trace, r), &chunk, table, row);
        } while (chunk.tokens);
        trace_cursor_free(cursor);
    }
    assert_int_equal(row, table_rows(table));
    table_free(table);
    trace_free(trace);
}

static void same_tables(const struct table *a, const struct table *b, const char *what) {
    struct str x = {0}, y = {0};
    struct err err = {0};
    test_ok(table_format(a, TABLE_AS_CSV, &x, &err), &err);
    test_ok(table_format(b, TABLE_AS_CSV, &y, &err), &err);
    if (strcmp(str_text(&x), str_text(&y)) != 0) fail_msg("%s: %s and %s", what, x.data, y.data);
    str_free(&x);
    str_free(&y);
}

/* A unary plus keeps a constraint from the virtual table: SQLite then tests every row itself. */
static void constraints_select_the_rows_that_they_describe(void **state) {
    (void)state;
    static const char *const wheres[] = {"@layer = 1",
                                         "@layer = 3",
                                         "@layer = 2 AND @token = 131",
                                         "@token = 133",
                                         "@token = -1",
                                         "@token >= 38 AND @token < 43",
                                         "@token > 38.5 AND @token <= 41.5",
                                         "@token = 7.5",
                                         "@token = 'x'",
                                         "@token = NULL",
                                         "@expert = 31",
                                         "@expert = 32",
                                         "@expert = -1",
                                         "@expert = 3 AND @chosen = 1",
                                         "@chosen = 1",
                                         "@chosen = 0",
                                         "@chosen = 2",
                                         "@layer = 2 AND @chosen = 1 AND @token BETWEEN 90 AND 100",
                                         "@position = 3",
                                         "@position > 27 AND @layer = 1",
                                         "@position < 1 AND @chosen = 1 AND @expert = 5",
                                         "@layer IN (2, 1, 7) AND @token IN (5, 5, 120)",
                                         "@layer = 1 AND @layer = 2",
                                         "@token > 9223372036854775806",
                                         "@token < -9223372036854775807"};
    static const char *const columns[] = {
        "count(*), sum(layer), sum(token), sum(expert), sum(logit)",
        "count(*), sum(expert), sum(rank), total(weight), total(score), sum(chosen)",
        "count(*), sum(document), sum(position), total(nll), sum(id), count(domain)"};
    struct trace *trace = open_db();
    for (size_t w = 0; w < sizeof wheres / sizeof *wheres; w++)
        for (size_t c = 0; c < 3; c++) {
            struct str pushed = {0}, plain = {0};
            str_printf(&pushed, "SELECT %s FROM router_score WHERE ", columns[c]);
            str_puts(&plain, pushed.data);
            for (const char *at = wheres[w]; *at; at++) {
                if (*at != '@') str_append(&pushed, at, 1);
                if (*at == '@')
                    str_puts(&plain, "+");
                else
                    str_append(&plain, at, 1);
            }
            struct table *a = ask(trace, pushed.data), *b = ask(trace, plain.data);
            same_tables(a, b, pushed.data);
            table_free(a);
            table_free(b);
            str_free(&pushed);
            str_free(&plain);
        }
    trace_free(trace);
}

static void cursors_of_one_query_do_not_disturb_each_other(void **state) {
    (void)state;
    struct trace *trace = open_db();
    struct table *a =
        ask(trace, "SELECT count(*), sum(a.position), sum(b.position), sum(a.id) FROM "
                   "router_score a JOIN router_score b ON b.layer = a.layer AND b.token "
                   "= a.token + 1 AND b.expert = a.expert WHERE a.layer = 1");
    struct table *b =
        ask(trace, "SELECT 32 * count(*), 32 * sum(a.position), 32 * sum(b.position), "
                   "32 * sum(a.id) FROM token a JOIN token b ON b.token = a.token + 1");
    for (int c = 0; c < 4; c++) test_near(table_number(a, 0, c), table_number(b, 0, c), 0);
    table_free(a);
    table_free(b);
    struct table *ordered =
        ask(trace, "SELECT layer, token FROM router_score WHERE expert = 0 ORDER BY layer DESC, "
                   "token DESC LIMIT 1");
    test_near(table_number(ordered, 0, 1), TOKENS - 1, 0);
    table_free(ordered);
    trace_free(trace);
}

/* Each named question about a trace, with values and a check that its answer satisfies. */
static void the_named_questions_are_answered(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int values;
        const char *check; /* the same figure computed otherwise */
        int column;        /* whose sum (over rows) it is; -1 = number of rows */
    } cases[] = {
        {"load_by_domain", 1, "SELECT 8 * 133", 2},
        {"tokens_of_expert", 2,
         "SELECT count(*) FROM router_score WHERE layer = 1 AND expert = 1 AND chosen = 1", 2},
        {"experts_of_token", 1, "SELECT 2 * 8", -1},
        {"contested_tokens", 1, "SELECT 50", -1},
        {"ties", 0, "SELECT 2 * 133", 2},
        {"nll_by_expert", 1, "SELECT 8 * 133", 1},
        {"coactivation", 1, "SELECT 50", -1},
        {"unused_experts", 0,
         "SELECT 64 - count(*) FROM (SELECT DISTINCT layer, expert FROM router_score WHERE chosen "
         "= 1)",
         -1},
        {"weight_by_rank", 0, "SELECT sum(weight) / 133 FROM router_score WHERE chosen = 1", 2},
        {"expert_persistence", 0, "SELECT 2", -1},
        {"experts_for_share", 1, "SELECT 2 * 8 * 133", 2}};
    struct trace *trace = open_db();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        const struct query_value values[] = {QUERY_I(1), QUERY_I(1)};
        struct table *answer = trace_query(trace, cases[i].name, values, cases[i].values, &err);
        if (!answer) fail_msg("%s: %s", cases[i].name, err.text);
        struct table *check = ask(trace, cases[i].check);
        double sum = 0;
        for (int64_t row = 0; row < table_rows(answer); row++)
            sum += cases[i].column < 0 ? 1 : table_number(answer, row, cases[i].column);
        if (!(fabs(sum - table_number(check, 0, 0)) < 1e-9 * (1 + fabs(sum))))
            fail_msg("%s: %g, expected %g", cases[i].name, sum, table_number(check, 0, 0));
        table_free(answer);
        table_free(check);
    }
    trace_free(trace);
}

static void damaged_chunks_are_an_error_not_a_crash(void **state) {
    (void)state;
    static const char *const damages[] = {
        "UPDATE chunk SET scores = x'0011' WHERE chunk = 1", "DELETE FROM chunk WHERE chunk = 2",
        "UPDATE chunk SET scores = NULL", "DELETE FROM token WHERE token = 50",
        "UPDATE chunk SET scores = randomblob(length(scores))"};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        struct str line = {0};
        struct err err = {0};
        begin(NULL);
        str_printf(&line, "sqlite3 " DB " \"%s\"", damages[i]);
        shell(line.data);
        str_free(&line);
        struct trace *trace = open_db();
        struct table *table =
            trace_sql(trace, "SELECT sum(weight), sum(nll) FROM router_score", &err);
        if (table) fail_msg("answered after: %s", damages[i]);
        assert_int_equal(strchr(err.text, '\n') == NULL, 1);
        trace_free(trace);
    }
}

static void the_sqlite_shell_loads_the_extension(void **state) {
    (void)state;
    char *out, *errors;
    test_need("build/steelyard.so");
    int status =
        test_run("sqlite3 -readonly " DB " '.load build/steelyard' "
                 "'SELECT token, expert, logit IS NOT NULL FROM router_score WHERE layer = 2 "
                 "AND position < 1 AND expert = 4'",
                 &out, &errors);
    if (status != 0) fail_msg("%s", errors);
    assert_string_equal(out, "0|4|1\n30|4|1\n60|4|1\n90|4|1\n96|4|1\n126|4|1\n");
    free(out);
    free(errors);
    status = test_run("sqlite3 :memory: '.load build/steelyard' 'SELECT * FROM router_score'", &out,
                      &errors);
    assert_int_not_equal(status, 0);
    free(out);
    free(errors);
}

static void the_command_prints_tables(void **state) {
    (void)state;
    char line[600], *out;
    snprintf(line, sizeof line, "%s sql " DB " 'SELECT 1 AS a, NULL AS b' --json", test_program());
    assert_int_equal(test_run(line, &out, NULL), 0);
    assert_non_null(strstr(out, "{\"a\": 1, \"b\": null}"));
    free(out);
    snprintf(line, sizeof line, "%s sql " DB " experts_of_token 3 --csv", test_program());
    assert_int_equal(test_run(line, &out, NULL), 0);
    assert_non_null(strstr(out, "layer,rank,expert,logit,score,weight,text"));
    free(out);
    snprintf(line, sizeof line, "%s sql " DB " 'DELETE FROM token'", test_program());
    assert_int_equal(test_run(line, NULL, NULL), 2);
}

/* Words of two lines: equal, or numbers near each other. */
static bool near_line(char *found, char *shown) {
    char *rest_a, *rest_b, *a = strtok_r(found, " ", &rest_a), *b = strtok_r(shown, " ", &rest_b);
    for (; a && b; a = strtok_r(NULL, " ", &rest_a), b = strtok_r(NULL, " ", &rest_b)) {
        char *end_a, *end_b;
        double x = strtod(a, &end_a), y = strtod(b, &end_b);
        bool numbers = !*end_a && !*end_b;
        if (numbers ? !(fabs(x - y) <= 1e-3 * fmax(0.01, fabs(y))) : strcmp(a, b) != 0)
            return false;
    }
    return !a && !b;
}

/* Runs a command of the manual; `shown` are the lines below it. */
static void compare_answer(const char *command, char *shown) {
    char line[600], *out, *rest_a, *rest_b;
    snprintf(line, sizeof line, "%s sql build/test-out/sql/manual.db %s", test_program(), command);
    assert_int_equal(test_run(line, &out, NULL), 0);
    char *b = strtok_r(shown, "\n", &rest_b);
    assert_non_null(b);
    for (char *a = strtok_r(out, "\n", &rest_a); b; b = strtok_r(NULL, "\n", &rest_b)) {
        char was[400];
        snprintf(was, sizeof was, "%s", b);
        if (!a || !near_line(a, b)) fail_msg("TRACES.md: %s: no longer '%s'", command, was);
        a = strtok_r(NULL, "\n", &rest_a);
    }
    free(out);
}

static void the_manual_shows_what_the_questions_answer(void **state) {
    (void)state;
    static const char mark[] = "\n    $ steelyard sql run.db ";
    struct err err = {0};
    size_t len;
    char line[600];
    int blocks = 0;
    snprintf(line, sizeof line,
             "%s capture models/v3-lossfree --domain prose=LICENSE --domain "
             "code=models/recipe/kernels.c --out build/test-out/sql/manual.db",
             test_program());
    shell(line);
    struct trace *trace = trace_open("build/test-out/sql/manual.db", &err);
    test_ok(trace, &err);
    bool same_kernels = strncmp(trace_capture(trace)->kernels, "avx512", 6) == 0;
    trace_free(trace);
    if (!same_kernels) {
        print_message("skip: the manual's answers are those of AVX-512 kernels\n");
        skip();
    }
    char *text = file_read("traces/TRACES.md", 1 << 20, &len, &err);
    test_ok(text, &err);
    for (char *at = text; (at = strstr(at, mark)); blocks++) {
        char *command = at + strlen(mark), *shown = strchr(command, '\n');
        assert_non_null(shown);
        char *end = strstr(shown, "\n\n");
        assert_non_null(end);
        *shown = *end = '\0';
        compare_answer(command, shown + 1);
        *end = '\n';
        at = end; /* the mark begins with a line end */
    }
    free(text);
    assert_int_equal(blocks, 10);
}

int test_sql(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_row_is_what_the_router_does, begin),
        cmocka_unit_test_setup(constraints_select_the_rows_that_they_describe, begin),
        cmocka_unit_test_setup(cursors_of_one_query_do_not_disturb_each_other, begin),
        cmocka_unit_test_setup(the_named_questions_are_answered, begin),
        cmocka_unit_test_setup(damaged_chunks_are_an_error_not_a_crash, begin),
        cmocka_unit_test_setup(the_sqlite_shell_loads_the_extension, begin),
        cmocka_unit_test_setup(the_command_prints_tables, begin),
        cmocka_unit_test_setup(the_manual_shows_what_the_questions_answer, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
