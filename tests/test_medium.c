/* test_medium.c - the trace on a read-only medium, read while it is written, locked by others */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/support_program.h"

#define MODEL "tests/golden/deepseek_v3"

static int begin(void **state) {
    (void)state;
    enter("medium");
    write_ids(at("a.ids"), 5, 90, 5);
    runs("capture " MODEL " --ids %s --out %s", at("a.ids"), at("run.db"));
    return 0;
}

/* Runs a script in which P is the program, F the folder; exit status, both streams owned. */
static int script(const char *text, char **out, char **errors) {
    char line[3000];
    snprintf(line, sizeof line, "P=%s; F=%s; export P F; %s", test_program(), test_place(), text);
    return test_run(line, out, errors);
}

static void a_read_only_medium_is_read_and_not_written(void **state) {
    (void)state;
    char *out, *errors;
    if (script("unshare -rm sh -c 'mount -t tmpfs none '$F", NULL, NULL) != 0) {
        print_message("skip: no mount namespace here\n");
        skip();
    }
    /* a finished trace, and one in WAL mode whose WAL is gone: no file can be made beside it */
    int status =
        script("unshare -rm sh -c '"
               "mkdir $F/ro && mount -t tmpfs none $F/ro && cp $F/run.db $F/ro/ && cp $F/run.db "
               "$F/ro/wal.db"
               " && sqlite3 $F/ro/wal.db \"PRAGMA journal_mode = WAL\" >/dev/null && "
               "mount -o remount,ro $F/ro || exit 99; "
               "for db in run wal; do $P check $F/ro/$db.db >/dev/null || exit 3; "
               "$P show $F/ro/$db.db >/dev/null || exit 4; "
               "$P sql $F/ro/$db.db tokens_of_expert 1 2 >/dev/null || exit 5; "
               "$P replay $F/ro/$db.db --gate native --out $F/$db-result.db >/dev/null || exit 6; "
               "$P export $F/ro/$db.db --to safetensors --out $F/$db.st || exit 7; done; "
               "$P replay $F/ro/run.db --gate native && exit 8; "
               "$P capture " MODEL " --ids $F/a.ids --out $F/ro/run.db --resume && exit 9; "
               "$P capture " MODEL " --ids $F/a.ids --out $F/ro/new.db && exit 10; "
               "$P import $F/run.st --from safetensors --out $F/ro/new.db && exit 11; "
               "$P merge $F/run.db $F/ro/wal.db --skip-duplicates --out $F/ro/new.db && exit 12; "
               "exit 0'",
               &out, &errors);
    if (status != 0) fail_msg("exit %d: %s", status, errors);
    int lines = 0;
    for (const char *c = errors; (c = strchr(c, '\n')); c++) lines++;
    if (lines != 5 || strstr(errors, "Assert")) fail_msg("expected 5 errors: %s", errors);
    free(out);
    free(errors);
    same_content(at("run-result.db"), at("run-result.db"));
}

static void a_trace_reads_while_it_is_written(void **state) {
    (void)state;
    char *out, *errors;
    write_ids(at("long.ids"), 60, 100, 7);
    int status = script(
        "$P capture " MODEL " --ids $F/long.ids --out $F/live.db --pass-tokens 100 --threads 1 "
        ">/dev/null & writer=$!; reads=0; before=0; "
        "while kill -0 $writer 2>/dev/null; do "
        "n=$($P sql $F/live.db 'SELECT count(*) FROM token' --csv 2>/dev/null | tail -1); "
        "if [ -n \"$n\" ]; then [ $n -ge $before ] || exit 3; before=$n; reads=$((reads+1)); "
        "$P sql $F/live.db 'SELECT max(logit) FROM router_score WHERE layer = 1' >/dev/null || "
        "exit 4; "
        "$P check $F/live.db --every 3 >/dev/null || exit 5; fi; done; "
        "wait $writer || exit 6; [ $reads -gt 0 ] || exit 7; echo $reads",
        &out, &errors);
    if (status != 0) fail_msg("exit %d: %s", status, errors);
    print_message("read %d times while it was written\n", atoi(out));
    free(out);
    free(errors);
    runs("check %s", at("live.db"));
    runs("capture " MODEL " --ids %s --out %s --pass-tokens 100", at("long.ids"), at("alone.db"));
    same_content(at("live.db"), at("alone.db"));
}

static void a_second_writer_gets_one_clear_error(void **state) {
    (void)state;
    static const char *const second[] = {
        "capture " MODEL " --ids $F/long.ids --out $F/live.db --pass-tokens 100 --resume",
        "capture " MODEL " --ids $F/long.ids --out $F/live.db --pass-tokens 100 --force"};
    write_ids(at("long.ids"), 200, 100, 7);
    for (size_t i = 0; i < sizeof second / sizeof *second; i++) {
        char line[1200], *errors;
        snprintf(line, sizeof line,
                 "rm -f $F/live.db*; $P capture " MODEL
                 " --ids $F/long.ids --out $F/live.db --pass-tokens 100 --threads 1 >/dev/null & "
                 "writer=$!; until [ -s $F/live.db ]; do :; done; "
                 "$P %s >/dev/null; status=$?; kill -9 $writer; wait $writer 2>/dev/null; "
                 "exit $status",
                 second[i]);
        int status = script(line, NULL, &errors);
        if (status != 1 || !strstr(errors, "another process is writing to it"))
            fail_msg("exit %d: %s", status, errors);
        free(errors);
    }
}

/* A command while another process holds a lock of this kind. */
#define LOCKED(kind, command)                                                                      \
    "rm -f $F/held $F/done; (echo 'BEGIN " kind ";'; echo \".system touch $F/held\"; until [ -e "  \
    "$F/done ]; do sleep 0.1; done) | sqlite3 $F/run.db & until [ -e $F/held ]; do sleep 0.1; "    \
    "done; " command " >/dev/null; status=$?; touch $F/done; wait; exit $status"

static void a_locked_database_and_a_full_output_are_one_clear_error(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {LOCKED("IMMEDIATE", "$P replay $F/run.db --gate native"), "another process is using it"},
        {LOCKED("EXCLUSIVE", "$P show $F/run.db"), "another process is using it"},
        {"$P show $F/run.db > /dev/full", "cannot write"},
        {"$P sql $F/run.db 'SELECT * FROM token' --csv > /dev/full", "cannot write"},
        {"$P replay $F/run.db --gate native --out /dev/full", "/dev/full"},
        {"$P export $F/run.db --to safetensors --out $F/none/x.st", "none"},
        {"$P import $F/run.db --from safetensors --out $F/x.db", "run.db"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *errors;
        int status = script(cases[i][0], NULL, &errors);
        const char *newline = strchr(errors, '\n');
        if (status != 1 || !strstr(errors, cases[i][1]) || !newline || newline[1])
            fail_msg("%s: exit %d: %s", cases[i][0], status, errors);
        free(errors);
    }
    runs("check %s", at("run.db"));
}

int test_medium(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_read_only_medium_is_read_and_not_written, begin),
        cmocka_unit_test_setup(a_trace_reads_while_it_is_written, begin),
        cmocka_unit_test_setup(a_second_writer_gets_one_clear_error, begin),
        cmocka_unit_test_setup(a_locked_database_and_a_full_output_are_one_clear_error, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
