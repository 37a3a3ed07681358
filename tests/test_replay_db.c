/* test_replay_db.c - `steelyard replay` on trace databases: results, options, refusals */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/table.h"
#include "tests/support_replay.h"
#include "tests/support_trace.h"
#include "tests/test.h"
#include "traces/query.h"

enum { LAYERS = 2, TOKENS = 900 };

static struct small_world world;
static char folder[512];

static int make_world(void **state) {
    (void)state;
    small_world_make(&world, 99, LAYERS, TOKENS);
    return 0;
}

static int free_world(void **state) {
    (void)state;
    small_world_free(&world);
    return 0;
}

/* A fresh folder with RUN.db. */
static void fresh(enum trace_holds holds) {
    char path[600];
    snprintf(folder, sizeof folder, "%s", test_folder("replay"));
    snprintf(path, sizeof path, "%s/run.db", folder);
    write_random_trace(path, &world.source, holds);
}

/* steelyard replay FOLDER/run.db ARGUMENTS, with ^ standing for the folder. */
static int replay(const char *arguments, char **out, char **errors) {
    struct str line = {0};
    str_printf(&line, "%s replay %s/run.db ", test_program(), folder);
    for (const char *c = arguments; *c; c++) {
        if (*c == '^')
            str_puts(&line, folder);
        else
            str_append(&line, c, 1);
    }
    int status = test_run(str_text(&line), out, errors);
    str_free(&line);
    return status;
}

static struct table *query(const char *file, const char *sql) {
    char path[600];
    struct err err;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    struct trace *trace = trace_open(path, &err);
    test_ok(trace, &err);
    struct table *table = trace_sql(trace, sql, &err);
    test_ok(table, &err);
    trace_free(trace);
    return table;
}

static double number(const char *file, const char *sql) {
    struct table *table = query(file, sql);
    assert_true(table_rows(table) >= 1);
    double value = table_number(table, 0, 0);
    table_free(table);
    return value;
}

static const char sweep[] = "--score sigmoid,softmax --bias-rule none,frozen,sign "
                            "--bias-rate 0.001,0.02 --batch-tokens 128 --ranks 4";

static void views_hold_what_the_replay_computed(void **state) {
    static const char *const scores[] = {"sigmoid", "softmax"};
    static const char *const rules[] = {"none", "frozen", "sign"};
    static const char *const rates[] = {"0.001", "0.02"};
    const int64_t batch = 128, ranks = 4;
    struct variant_lists lists = {.scores = {scores, 2},
                                  .bias_rules = {rules, 3},
                                  .rates = {rates, 2},
                                  .batch_tokens = &batch,
                                  .batch_count = 1,
                                  .ranks = &ranks,
                                  .ranks_count = 1};
    struct replay_options options = {.threads = 1};
    struct kept kept;
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(replay(sweep, NULL, NULL), 0);
    kept_run(&kept, &lists, &world.source, &options);
    struct table *summary = query(
        "run.db", "SELECT * FROM replay_summary WHERE layer IS NOT NULL ORDER BY layer, variant");
    struct table *load =
        query("run.db", "SELECT tokens, weight FROM expert_load ORDER BY layer, variant, expert");
    assert_int_equal(table_rows(summary), kept.count);
    assert_int_equal(table_rows(load), (int64_t)kept.count * WORLD_EXPERTS);
    for (int i = 0; i < kept.count; i++) {
        const struct kept_row *row = &kept.row[i];
        const struct {
            const char *name;
            double value;
        } cells[] = {{"variant", row->m.variant},
                     {"layer", row->m.layer},
                     {"maxvio_global", row->m.maxvio_global},
                     {"maxvio_batch", row->m.maxvio_batch},
                     {"cv", row->m.cv},
                     {"gini", row->m.gini},
                     {"entropy", row->m.entropy},
                     {"load_min", (double)row->m.load_min},
                     {"load_max", (double)row->m.load_max},
                     {"ties", (double)row->m.ties},
                     {"group_escapes", (double)row->m.group_escapes},
                     {"agreement", row->m.agreement},
                     {"mass_retained", row->m.mass_retained},
                     {"rank_maxvio", row->m.rank_maxvio},
                     {"efficiency", row->m.efficiency},
                     {"batch_tokens", 128},
                     {"ranks", 4}};
        for (size_t c = 0; c < sizeof cells / sizeof *cells; c++)
            assert_true(table_number(summary, i, table_find(summary, cells[c].name)) ==
                        cells[c].value);
        for (int e = 0; e < WORLD_EXPERTS; e++) {
            assert_true(table_number(load, (int64_t)i * WORLD_EXPERTS + e, 0) ==
                        (double)row->tokens[e]);
            assert_true(table_number(load, (int64_t)i * WORLD_EXPERTS + e, 1) == row->weight[e]);
        }
    }
    table_free(load);
    table_free(summary);
    kept_free(&kept);
}

static void summary_means_and_sums_over_layers(void **state) {
    char *out;
    struct err err;
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(
        replay("--score sigmoid,softmax --norm none,sum --json --ranks 4,16", &out, NULL), 0);
    struct json *doc = json_parse(out, strlen(out), &err);
    test_ok(doc, &err);
    assert_int_equal(json_count(doc), 8);
    const struct json *row = json_first(doc);
    assert_int_equal(json_kind(json_member(row, "layer")), JSON_NULL);
    assert_int_equal(json_kind(json_member(row, "bias_rate")), JSON_NULL);
    assert_string_equal(json_text(json_member(row, "bias_rule")), "frozen");
    test_near(json_number(json_member(row, "maxvio_global")),
              number("run.db", "SELECT avg(maxvio_global) FROM replay_summary WHERE variant = 1 "
                               "AND layer IS NOT NULL"),
              1e-12);
    test_near(json_number(json_member(row, "ties")),
              number("run.db", "SELECT sum(ties) FROM replay_summary WHERE variant = 1 AND layer "
                               "IS NOT NULL"),
              0);
    json_free(doc);
    free(out);
    /* ranks 4, 16 of one gate; then the norms of it: weights only */
    assert_true(number("run.db", "SELECT group_concat(coalesce(same_as, 0), '') = '01110555' FROM "
                                 "result_variant") == 1);
    assert_true(number("run.db", "SELECT count(*) FROM result_experiment") == 1);
}

static void sums_in_the_result_are_conserved(void **state) {
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(replay(sweep, NULL, NULL), 0);
    assert_true(number("run.db", "SELECT count(*) FROM (SELECT sum(tokens) AS n FROM expert_load "
                                 "GROUP BY variant, layer) WHERE n <> 900 * 4") == 0);
    assert_true(number("run.db", "SELECT count(*) FROM (SELECT sum(tokens) AS n FROM replay_batch "
                                 "GROUP BY variant, layer) WHERE n <> 900") == 0);
    assert_true(number("run.db", "SELECT count(*) FROM (SELECT sum(tokens) AS n, expert FROM "
                                 "domain_load GROUP BY variant, layer, expert EXCEPT SELECT "
                                 "tokens, expert FROM expert_load)") == 0);
    assert_true(number("run.db", "SELECT count(*) FROM replay_bias WHERE variant = 1") == 0);
    assert_true(number("run.db", "SELECT count(*) FROM replay_bias WHERE variant = 2") == 32);
    /* weights are normalised and scaled: 2.5 a token */
    assert_true(fabs(number("run.db", "SELECT sum(weight) FROM expert_load WHERE variant = 1 AND "
                                      "layer = 1") -
                     900 * 2.5) < 1e-3);
}

static void threads_give_equal_databases(void **state) {
    static const char *const tables[] = {
        "SELECT * FROM replay_summary ORDER BY variant, layer",
        "SELECT * FROM expert_load ORDER BY variant, layer, expert",
        "SELECT * FROM replay_batch ORDER BY variant, layer, batch",
        "SELECT * FROM replay_bias ORDER BY variant, layer, expert",
        "SELECT * FROM domain_load ORDER BY variant, layer, domain, expert",
        "SELECT variant, layer, rank, mean, sd FROM result_rank_weight",
        "SELECT document, hex(counts) FROM result_document ORDER BY variant, layer, document"};
    struct err err;
    char arguments[400], name[16];
    (void)state;
    fresh(TRACE_SCORES);
    for (int threads = 1; threads <= 4; threads *= 2) {
        snprintf(arguments, sizeof arguments,
                 "%s --order shuffled --seed 7 --threads %d --out ^/r%d.db", sweep, threads,
                 threads);
        assert_int_equal(replay(arguments, NULL, NULL), 0);
    }
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        struct str first = {0};
        for (int threads = 1; threads <= 4; threads *= 2) {
            struct str text = {0};
            snprintf(name, sizeof name, "r%d.db", threads);
            struct table *table = query(name, tables[t]);
            test_ok(table_format(table, TABLE_AS_CSV, &text, &err), &err);
            assert_true(table_rows(table) > 0);
            table_free(table);
            if (threads == 1)
                first = text;
            else
                assert_string_equal(str_text(&first), str_text(&text));
            if (threads > 1) str_free(&text);
        }
        str_free(&first);
    }
}

static void notes_say_what_is_no_finding(void **state) {
    char *out, *errors;
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(replay("--norm none,sum", &out, &errors), 0);
    assert_non_null(strstr(errors,
                           "note: same load: variants 2 (as 1): normalisation and scale act "
                           "after the choice"));
    assert_null(strstr(errors, "note: replaces"));
    free(out);
    free(errors);
    assert_int_equal(replay("--score softmax", &out, &errors), 0);
    assert_non_null(strstr(errors, "note: replaces the results of an earlier replay in "));
    assert_non_null(strstr(errors, "variants 1: run without the captured bias"));
    free(out);
    free(errors);
    assert_int_equal(replay("--score softmax --bias-rule frozen", &out, &errors), 0);
    assert_non_null(strstr(errors, "not trained with"));
    free(out);
    free(errors);
    struct table *table = query("run.db", "SELECT warnings FROM result_experiment");
    assert_non_null(strstr(table_cell(table, 0, 0), "not trained with"));
    table_free(table);
}

/* A limit on the size of files stands in for a full disk. */
static void a_failed_write_names_the_file_asked_for(void **state) {
    char command[2048], *errors;
    (void)state;
    fresh(TRACE_SCORES);
    snprintf(command, sizeof command,
             "trap '' XFSZ; ulimit -f 40; %s replay %s/run.db --out %s/result.db", test_program(),
             folder, folder);
    assert_int_equal(test_run(command, NULL, &errors), 1);
    assert_non_null(strstr(errors, "/result.db: "));
    assert_null(strstr(errors, "partial"));
    free(errors);
    snprintf(command, sizeof command, "test \"$(ls %s)\" = run.db", folder);
    assert_int_equal(test_run(command, NULL, NULL), 0);
}

/* Logits of 40 and more all have the sigmoid 1 in f32. */
static void a_claim_that_rounding_broke_is_not_made(void **state) {
    char *out, *errors;
    (void)state;
    for (int i = 0; i < TOKENS * WORLD_EXPERTS; i++) world.logits[0][i] += 40;
    fresh(TRACE_SCORES);
    for (int i = 0; i < TOKENS * WORLD_EXPERTS; i++) world.logits[0][i] -= 40;
    assert_int_equal(replay("--gate softmax,topk=4 --score softmax,sigmoid", &out, &errors), 0);
    assert_non_null(strstr(errors, "same_as is not claimed"));
    assert_null(strstr(errors, "same load"));
    free(out);
    free(errors);
    assert_true(number("run.db", "SELECT count(same_as) FROM result_variant") == 0);
}

static void dynamics_are_rows_and_a_table(void **state) {
    char *out, *errors;
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(replay("--bias-rule none,sign --bias-rate auto --batch-tokens 50 --dynamics "
                            "--csv",
                            &out, &errors),
                     0);
    assert_non_null(strstr(out, "variant,label,batch_tokens,batches,start,level,settling_batches"));
    assert_non_null(strstr(out, "\n2,native sign auto="));
    assert_non_null(strstr(errors, "has the smallest mean maxvio_batch"));
    assert_true(number("run.db", "SELECT count(*) FROM replay_dynamics") == 2 * 3);
    assert_true(number("run.db", "SELECT count(*) FROM replay_dynamics WHERE batches = 18") == 6);
    free(out);
    free(errors);
}

static void losses_and_optima_are_rows_and_tables(void **state) {
    char *out;
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(replay("--batch-tokens 50 --losses --csv", &out, NULL), 0);
    assert_non_null(strstr(out, "variant,label,switch,gshard,hf,sequence,device,communication,z"));
    assert_true(number("run.db", "SELECT count(*) FROM replay_loss") == 7 * 3);
    free(out);
    assert_int_equal(
        replay("--bias-rule none,frozen --batch-tokens 50 --optimum --csv", &out, NULL), 0);
    assert_non_null(strstr(out, "variant,label,batch,maxvio,mass,optimum,above"));
    assert_true(number("run.db", "SELECT count(*) FROM replay_optimum WHERE optimum < 1") == 6);
    assert_true(number("run.db", "SELECT count(*) FROM replay_loss") == 0);
    free(out);
}

static void refusals_leave_the_file_as_it_was(void **state) {
    static const struct {
        const char *arguments;
        int status;
        const char *says;
    } cases[] = {
        {"--gate softmax,topk=17", 2, "layer 1: gate: topk: found 17"},
        {"--ranks 5", 2, "--ranks: found 5, expected a divisor of the 16 experts"},
        {"--ranks 0", 2, "--ranks"},
        {"--batch-tokens 0", 2, "--batch-tokens"},
        {"--bias-rate -1 --bias-rule sign", 2, "--bias-rate"},
        {"--bias-rate 0.1@0,0.2@0.5 --bias-rule sign", 2, "expected a percentage"},
        {"--bias-rate 0.1@50% --bias-rule sign", 2, "expected a piece at 0"},
        {"--bias-rate nan --bias-rule sign", 2, "--bias-rate"},
        {"--bias-start half", 2, "--bias-start: found \"half\""},
        {"--order reversed", 2, "--order"},
        {"--score softmax,", 2, "--score: found \"\""},
        {"extra.db", 2, "found 2 files"},
        {"--out ^/exists.db", 1, "exists already (--force replaces it)"},
        {"--out ^ --force", 1, "found a folder"},
        {"--out ^/none/r.db", 1, "none/r.db"},
    };
    char exists[600];
    struct err err;
    (void)state;
    fresh(TRACE_SCORES);
    assert_int_equal(replay("--norm none", NULL, NULL), 0);
    snprintf(exists, sizeof exists, "%s/exists.db", folder);
    test_ok(file_write(exists, "mine", 4, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *out, *errors;
        int status = replay(cases[i].arguments, &out, &errors);
        if (status != cases[i].status || !strstr(errors, cases[i].says))
            fail_msg("%s: status %d: %s", cases[i].arguments, status, errors);
        assert_string_equal(out, "");
        free(out);
        free(errors);
    }
    struct table *table = query("run.db", "SELECT options FROM result_experiment");
    assert_string_equal(table_cell(table, 0, 0), "replay --norm none");
    table_free(table);
    assert_int_equal(replay("--out ^/exists.db --force", NULL, NULL), 0);
    assert_true(number("exists.db", "SELECT count(*) FROM replay_summary") == 3);
}

static void ids_alone_cannot_be_routed_again(void **state) {
    static const char *const others[] = {"--score softmax", "--bias-rule sign", "--norm none",
                                         "--gate native,topk=2", "--bias-rule none"};
    (void)state;
    fresh(TRACE_IDS);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *out, *errors;
        assert_int_equal(replay(others[i], &out, &errors), 1);
        assert_non_null(strstr(errors, "needs router scores"));
        free(out);
        free(errors);
    }
}

/* Load, batches, ranks and documents of ids are those of the scores that they came from. */
static void ids_give_the_load_that_their_scores_gave(void **state) {
    static const char *const same[] = {
        "SELECT maxvio_global, maxvio_batch, cv, gini, entropy, load_min, load_max, agreement, "
        "rank_maxvio, efficiency FROM replay_summary ORDER BY variant, layer",
        "SELECT * FROM expert_load ORDER BY variant, layer, expert",
        "SELECT * FROM replay_batch ORDER BY variant, layer, batch",
        "SELECT * FROM domain_load ORDER BY variant, layer, domain, expert",
        "SELECT mean, sd FROM result_rank_weight ORDER BY variant, layer, rank"};
    static const char *const orders[] = {"", "--order shuffled --seed 3 "};
    struct str text[2][5] = {{{0}}};
    struct err err;
    char arguments[200];
    (void)state;
    for (int shuffled = 0; shuffled < 2; shuffled++) {
        for (int ids = 0; ids < 2; ids++) {
            fresh(ids ? TRACE_IDS : TRACE_SCORES);
            snprintf(arguments, sizeof arguments, "%s--batch-tokens 70,128 --ranks 4,16",
                     orders[shuffled]);
            assert_int_equal(replay(arguments, NULL, NULL), 0);
            for (int q = 0; q < 5; q++) {
                struct table *table = query("run.db", same[q]);
                str_clear(&text[ids][q]);
                test_ok(table_format(table, TABLE_AS_CSV, &text[ids][q], &err), &err);
                table_free(table);
            }
        }
        for (int q = 0; q < 5; q++)
            if (strcmp(str_text(&text[0][q]), str_text(&text[1][q])) != 0)
                fail_msg("%s: found\n%.900s\nexpected\n%.900s", same[q], str_text(&text[1][q]),
                         str_text(&text[0][q]));
        assert_true(number("run.db",
                           "SELECT count(*) FROM replay_summary WHERE mass_retained IS NULL "
                           "AND ties IS NULL") == 4 * 3);
    }
    for (int q = 0; q < 10; q++) str_free(&text[q / 5][q % 5]);
}

int test_replay_db(void);
int test_replay_db(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(views_hold_what_the_replay_computed),
        cmocka_unit_test(summary_means_and_sums_over_layers),
        cmocka_unit_test(sums_in_the_result_are_conserved),
        cmocka_unit_test(threads_give_equal_databases),
        cmocka_unit_test(notes_say_what_is_no_finding),
        cmocka_unit_test(a_failed_write_names_the_file_asked_for),
        cmocka_unit_test(a_claim_that_rounding_broke_is_not_made),
        cmocka_unit_test(dynamics_are_rows_and_a_table),
        cmocka_unit_test(losses_and_optima_are_rows_and_tables),
        cmocka_unit_test(refusals_leave_the_file_as_it_was),
        cmocka_unit_test(ids_alone_cannot_be_routed_again),
        cmocka_unit_test(ids_give_the_load_that_their_scores_gave),
    };
    return cmocka_run_group_tests_name("replay_db", tests, make_world, free_world);
}
