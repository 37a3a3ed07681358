/* test_processes.c - several processes at one job: the numbers of one, and no hang on failure */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/table.h"
#include "sim/auto_rate.h"
#include "tests/support_processes.h"
#include "tests/support_replay.h"
#include "tests/support_trace.h"
#include "tests/test.h"
#include "traces/query.h"

enum { LAYERS = 3, TOKENS = 700, MOST = 7 };

static struct small_world world;

static const char *const scores[] = {"sigmoid", "softmax"};
static const char *const rules[] = {"none", "frozen", "sign"};
static const char *const rates[] = {"0.001", "0.02"};
static const int64_t batches_of[] = {64, 100};
static const struct variant_lists lists = {.scores = {scores, 2},
                                           .bias_rules = {rules, 3},
                                           .rates = {rates, 2},
                                           .batch_tokens = batches_of,
                                           .batch_count = 2};

static int make_world(void **state) {
    (void)state;
    small_world_make(&world, 7, LAYERS, TOKENS);
    return 0;
}

static int free_world(void **state) {
    (void)state;
    small_world_free(&world);
    return 0;
}

/* ---- the replay, on threads that play processes */

/* One replay by all processes; rank 0 keeps the rows, all keep their verdict. */
struct play {
    struct kept kept;
    struct variant_set set[MOST];
    bool ok[MOST];
    struct err err[MOST];
    double rate[MOST]; /* found by auto_rates */
    bool refuse;       /* the sink fails at the second layer */
};

static bool keep_or_refuse(void *context, const struct replay_row *row, struct err *err) {
    struct play *play = context;
    if (play->refuse && row->measures.layer == world.layers[1].layer)
        return err_set(err, ERR_IO, "disk full");
    return kept_add(&play->kept, row, err);
}

static void replay_as(void *context, struct processes *p) {
    struct play *play = context;
    struct replay_options options = {
        .threads = 1, .processes = p, .losses = true, .optimum = true, .documents = true};
    const struct replay_sink sink = {p->rank == 0 ? keep_or_refuse : NULL, play};
    struct variant_set *set = &play->set[p->rank];
    bool ok = variant_set_build(set, &lists, &world.source, &play->err[p->rank]);
    play->ok[p->rank] =
        ok && replay_run(set, &world.source, &options, &sink, NULL, &play->err[p->rank]);
}

static void free_play(struct play *play, int size) {
    for (int i = 0; i < size; i++) variant_set_free(&play->set[i]);
    kept_free(&play->kept);
}

static void any_number_of_processes_gives_the_rows_of_one(void **state) {
    struct replay_options options = {
        .threads = 1, .losses = true, .optimum = true, .documents = true};
    struct kept alone;
    (void)state;
    kept_run(&alone, &lists, &world.source, &options);
    for (int size = 1; size <= MOST; size++) {
        struct play play = {0};
        run_processes(size, replay_as, &play);
        for (int i = 0; i < size; i++) test_ok(play.ok[i], &play.err[i]);
        assert_int_equal(play.kept.count, alone.count);
        for (int r = 0; r < alone.count; r++) {
            const struct kept_row *a = &alone.row[r], *b = &play.kept.row[r];
            assert_int_equal(a->m.layer, b->m.layer);
            assert_int_equal(a->m.variant, b->m.variant);
            assert_true(a->digest == b->digest && a->document_digest == b->document_digest);
            assert_true(a->document_digest != 0);
            assert_memory_equal(a->loss, b->loss, sizeof a->loss);
            assert_memory_equal(&a->last_mass, &b->last_mass, sizeof(double));
            assert_memory_equal(&a->optimum, &b->optimum, sizeof(double));
            assert_int_equal(a->parted, b->parted);
        }
        free_play(&play, size);
    }
    kept_free(&alone);
}

static void a_failure_in_one_process_ends_all_with_its_error(void **state) {
    (void)state;
    for (int bad = 0; bad < LAYERS; bad++) {
        for (int size = 2; size <= 4; size++) {
            float was = world.logits[bad][TOKENS * WORLD_EXPERTS - 3];
            struct play play = {0};
            char place[64];
            world.logits[bad][TOKENS * WORLD_EXPERTS - 3] = NAN;
            run_processes(size, replay_as, &play);
            world.logits[bad][TOKENS * WORLD_EXPERTS - 3] = was;
            snprintf(place, sizeof place, "layer %d: token %d: expert %d", world.layers[bad].layer,
                     TOKENS - 1, WORLD_EXPERTS - 3);
            for (int i = 0; i < size; i++) {
                assert_false(play.ok[i]);
                assert_int_equal(play.err[i].code, ERR_DATA);
                assert_non_null(strstr(play.err[i].text, place));
            }
            free_play(&play, size);
        }
    }
}

static void a_failing_result_stops_every_process(void **state) {
    (void)state;
    for (int size = 2; size <= 4; size++) {
        struct play play = {.refuse = true};
        run_processes(size, replay_as, &play);
        for (int i = 0; i < size; i++) {
            assert_false(play.ok[i]);
            assert_string_equal(play.err[i].text, "disk full");
        }
        free_play(&play, size);
    }
}

static void find_rate(void *context, struct processes *p) {
    static const char *const automatic[] = {"auto"};
    const struct variant_lists search = {.bias_rules = {rules + 2, 1},
                                         .rates = {automatic, 1},
                                         .batch_tokens = batches_of,
                                         .batch_count = 1};
    struct play *play = context;
    struct replay_options options = {.threads = 1, .processes = p};
    struct variant_set *set = &play->set[p->rank];
    struct err *err = &play->err[p->rank];
    play->ok[p->rank] = variant_set_build(set, &search, &world.source, err) &&
                        auto_rates(set, &world.source, &options, NULL, err);
    play->rate[p->rank] = set->variant[0].rate;
}

static void all_processes_find_the_same_rate(void **state) {
    struct play one = {0}, three = {0};
    (void)state;
    run_processes(1, find_rate, &one);
    run_processes(3, find_rate, &three);
    test_ok(one.ok[0], &one.err[0]);
    for (int i = 0; i < 3; i++) {
        test_ok(three.ok[i], &three.err[i]);
        assert_true(three.rate[i] == one.rate[0]);
    }
    free_play(&one, 1);
    free_play(&three, 3);
}

/* ---- agreement */

static void vote(void *context, struct processes *p) {
    struct play *play = context;
    bool ok = p->rank != 2 && p->rank != 3;
    if (!ok) err_set(&play->err[p->rank], ERR_IO, "disk %d", p->rank);
    play->ok[p->rank] = processes_agree(p, ok, &play->err[p->rank]);
}

static void processes_agree_on_the_error_of_the_lowest(void **state) {
    struct play play = {0};
    (void)state;
    run_processes(5, vote, &play);
    for (int i = 0; i < 5; i++) {
        assert_false(play.ok[i]);
        assert_int_equal(play.err[i].code, ERR_IO);
        assert_string_equal(play.err[i].text, "process 2 of 5: disk 2");
    }
}

static void compare_texts(void *context, struct processes *p) {
    struct play *play = context;
    play->ok[p->rank] = processes_same(p, p->rank == 1 ? "b" : "a", "options", &play->err[p->rank]);
}

static void processes_at_different_work_are_refused(void **state) {
    struct play play = {0};
    (void)state;
    run_processes(3, compare_texts, &play);
    for (int i = 0; i < 3; i++) {
        assert_false(play.ok[i]);
        assert_string_equal(play.err[i].text,
                            "process 1 of 3: options: found others than process 0 has");
    }
    play = (struct play){0};
    run_processes(1, compare_texts, &play);
    assert_true(play.ok[0]);
}

/* ---- the program under mpirun */

static char folder[512], launcher[200];

/* mpirun -n size COMMAND, with @ standing for the program and ^ for the folder. */
static int launch(int size, const char *command, char **out, char **errors) {
    struct str line = {0};
    str_printf(&line, "%s -n %d ", launcher, size);
    for (const char *c = command; *c; c++) {
        if (*c == '^')
            str_puts(&line, folder);
        else if (*c == '@')
            str_puts(&line, test_program());
        else
            str_append(&line, c, 1);
    }
    int status = test_run(str_text(&line), out, errors);
    str_free(&line);
    return status;
}

/* Skips when there is no mpirun, or when the program was built without MPI. */
static void need_mpirun(void) {
    char module[1200];
    char *version = NULL;
    if (test_run("mpirun --version", &version, NULL) != 0) {
        free(version);
        printf("skip: needs mpirun\n");
        skip();
    }
    bool open_mpi = strstr(version, "Open MPI") || strstr(version, "OpenRTE");
    free(version);
    snprintf(launcher, sizeof launcher, "timeout 60 mpirun%s",
             !open_mpi        ? ""
             : geteuid() == 0 ? " --allow-run-as-root --oversubscribe"
                              : " --oversubscribe");
    char *errors = NULL;
    if (launch(2, "true", NULL, &errors) != 0) {
        printf("skip: mpirun cannot start two processes here: %.200s\n", errors);
        free(errors);
        skip();
    }
    free(errors);
    snprintf(module, sizeof module, "%s-mpi.so", test_program());
    test_need(module);
    snprintf(folder, sizeof folder, "%s", test_folder("processes"));
}

static void make_trace(const char *name) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    write_random_trace(path, &world.source, TRACE_SCORES);
}

static int count_of(const char *text, const char *word) {
    int count = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++) count++;
    return count;
}

static struct str rows_text(const char *file, const char *sql) {
    char path[600];
    struct err err;
    struct str text = {0};
    snprintf(path, sizeof path, "%s/%s", folder, file);
    struct trace *trace = trace_open(path, &err);
    test_ok(trace, &err);
    struct table *table = trace_sql(trace, sql, &err);
    test_ok(table, &err);
    assert_true(table_rows(table) > 0);
    test_ok(table_format(table, TABLE_AS_CSV, &text, &err), &err);
    table_free(table);
    trace_free(trace);
    return text;
}

static void mpirun_gives_the_database_of_one_process(void **state) {
    static const char *const queries[] = {
        "SELECT * FROM replay_summary ORDER BY variant, layer",
        "SELECT * FROM expert_load ORDER BY variant, layer, expert",
        "SELECT * FROM replay_batch ORDER BY variant, layer, batch",
        "SELECT * FROM replay_bias ORDER BY variant, layer, expert",
        "SELECT * FROM domain_load ORDER BY variant, layer, domain, expert",
        "SELECT * FROM result_variant",
        "SELECT * FROM result_experiment",
        "SELECT * FROM result_loss ORDER BY variant, layer, loss",
        "SELECT * FROM result_optimum ORDER BY variant, layer",
        "SELECT * FROM result_dynamics ORDER BY variant, layer",
        "SELECT * FROM result_rank_weight ORDER BY variant, layer, rank",
        "SELECT variant, layer, document, hex(counts) FROM result_document ORDER BY 1, 2, 3"};
    char command[600], name[16];
    char *printed = NULL;
    (void)state;
    need_mpirun();
    make_trace("run.db");
    for (int size = 1; size <= 4; size *= 2) {
        char *out = NULL;
        snprintf(command, sizeof command,
                 "@ replay ^/run.db --score sigmoid,softmax --bias-rule none,frozen,sign "
                 "--bias-rate auto,0.02 --batch-tokens 64 --losses --optimum "
                 "--order shuffled --out ^/r%d.db",
                 size);
        assert_int_equal(launch(size, command, &out, NULL), 0);
        if (size == 1)
            printed = out;
        else
            assert_string_equal(out, printed);
        if (size > 1) free(out);
    }
    for (size_t q = 0; q < sizeof queries / sizeof *queries; q++) {
        struct str one = rows_text("r1.db", queries[q]);
        for (int size = 2; size <= 4; size *= 2) {
            snprintf(name, sizeof name, "r%d.db", size);
            struct str more = rows_text(name, queries[q]);
            assert_string_equal(str_text(&one), str_text(&more));
            str_free(&more);
        }
        str_free(&one);
    }
    free(printed);
}

/* One line of error, the others silent; nothing written. */
static void expect_one_error(int size, const char *command, const char *text) {
    char *errors = NULL;
    char left[600];
    int status = launch(size, command, NULL, &errors);
    if (status == 0 || status == 124) fail_msg("status %d", status);
    if (!strstr(errors, text)) fail_msg("found %s, expected %s", errors, text);
    assert_int_equal(count_of(errors, "steelyard replay:"), 1);
    free(errors);
    snprintf(left, sizeof left, "ls %s/x.db*", folder);
    assert_int_not_equal(test_run(left, NULL, NULL), 0);
}

static void a_failing_worker_is_told_once_and_nobody_hangs(void **state) {
    char damage[700];
    (void)state;
    need_mpirun();
    make_trace("run.db");
    make_trace("bad.db");
    snprintf(damage, sizeof damage,
             "sqlite3 %s/bad.db \"UPDATE chunk SET scores = x'00' WHERE chunk = 1\"", folder);
    assert_int_equal(test_run(damage, NULL, NULL), 0);
    expect_one_error(3, "@ replay ^/bad.db --out ^/x.db", "found 1 bytes");
    expect_one_error(3,
                     "sh -c 'f=^/run.db; "
                     "[ ${OMPI_COMM_WORLD_RANK-$PMI_RANK} = 2 ] && f=^/none.db; "
                     "exec @ replay $f --out ^/x.db'",
                     "process 2 of 3: ");
    expect_one_error(2, "@ replay ^/run.db --out ^/none/x.db", "none/x.db");
}

static void a_killed_worker_ends_all(void **state) {
    (void)state;
    need_mpirun();
    make_trace("run.db");
    int status = launch(3,
                        "sh -c '[ ${OMPI_COMM_WORLD_RANK-$PMI_RANK} = 1 ] && kill -9 $$; "
                        "exec @ replay ^/run.db --out ^/x.db'",
                        NULL, NULL);
    assert_int_not_equal(status, 0);
    assert_int_not_equal(status, 124);
}

static const char captured[] = "@ capture models/v3-lossfree ^/a.txt ^/b.txt ^/c.txt ^/d.txt "
                               "--domain prose=^/a.txt --domain prose=^/d.txt --pass-tokens 128 ";

/* Four documents, the first and the last of equal content. */
static void write_texts(void) {
    char command[2000];
    snprintf(command, sizeof command,
             "cd %s && head -c 900 ../../../README.md >a.txt && cp a.txt d.txt && "
             "head -c 500 ../../../Makefile >b.txt && head -c 1500 ../../../CONTRIBUTING.md >c.txt",
             folder);
    assert_int_equal(test_run(command, NULL, NULL), 0);
}

static void assert_equal_dumps(const char *a, const char *b) {
    struct str line = {0};
    str_printf(&line, "cd %s; for f in %s %s; do sqlite3 $f .dump >$f.sql; done; ", folder, a, b);
    str_printf(&line, "grep -q 'INSERT INTO chunk' %s.sql && cmp %s.sql %s.sql", a, a, b);
    assert_int_equal(test_run(str_text(&line), NULL, NULL), 0);
    str_free(&line);
}

static void captures_divided_by_document_are_those_of_one_process(void **state) {
    char command[600], name[16];
    (void)state;
    need_mpirun();
    write_texts();
    for (int size = 1; size <= 4; size += size == 1 ? 1 : 2) {
        snprintf(command, sizeof command, "%s --out ^/c%d.db", captured, size);
        assert_int_equal(launch(size, command, NULL, NULL), 0);
        snprintf(name, sizeof name, "c%d.db", size);
        assert_equal_dumps("c1.db", name);
    }
    snprintf(command, sizeof command, "ls %s/*.part*", folder);
    assert_int_not_equal(test_run(command, NULL, NULL), 0);
    snprintf(command, sizeof command, "%s --bias-rule sign --out ^/x.db", captured);
    char *errors = NULL;
    assert_int_not_equal(launch(2, command, NULL, &errors), 0);
    assert_int_equal(count_of(errors, "found 2 processes, expected one (the bias moves"), 1);
    free(errors);
}

static void what_cannot_be_divided_is_refused_under_mpirun(void **state) {
    char *errors = NULL;
    (void)state;
    need_mpirun();
    make_trace("run.db");
    assert_int_not_equal(launch(3, "@ show ^/run.db", NULL, &errors), 0);
    assert_int_equal(count_of(errors, "steelyard show: found 3 processes of a launcher"), 1);
    free(errors);
    assert_int_equal(launch(1, "@ show ^/run.db", NULL, NULL), 0);
}

/* The module is looked for beside the program: a copy elsewhere has none. */
static void a_program_without_mpi_does_not_race(void **state) {
    char command[2000];
    char *errors = NULL;
    (void)state;
    snprintf(folder, sizeof folder, "%s", test_folder("processes"));
    make_trace("run.db");
    snprintf(command, sizeof command,
             "cp %s %s/alone && OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 %s/alone replay "
             "%s/run.db",
             test_program(), folder, folder, folder);
    assert_int_equal(test_run(command, NULL, &errors), 1);
    assert_non_null(strstr(errors, "found 4 processes of a launcher, expected one: this program "
                                   "has no MPI"));
    free(errors);
    snprintf(command, sizeof command, "PMI_RANK=1 PMI_SIZE=2 %s/alone replay %s/run.db", folder,
             folder);
    assert_int_equal(test_run(command, NULL, &errors), 1);
    assert_string_equal(errors, "");
    free(errors);
}

int test_processes(void);
int test_processes(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_processes_gives_the_rows_of_one),
        cmocka_unit_test(a_failure_in_one_process_ends_all_with_its_error),
        cmocka_unit_test(a_failing_result_stops_every_process),
        cmocka_unit_test(all_processes_find_the_same_rate),
        cmocka_unit_test(processes_agree_on_the_error_of_the_lowest),
        cmocka_unit_test(processes_at_different_work_are_refused),
        cmocka_unit_test(mpirun_gives_the_database_of_one_process),
        cmocka_unit_test(a_failing_worker_is_told_once_and_nobody_hangs),
        cmocka_unit_test(a_killed_worker_ends_all),
        cmocka_unit_test(captures_divided_by_document_are_those_of_one_process),
        cmocka_unit_test(what_cannot_be_divided_is_refused_under_mpirun),
        cmocka_unit_test(a_program_without_mpi_does_not_race)};
    return cmocka_run_group_tests_name("processes", tests, make_world, free_world);
}
