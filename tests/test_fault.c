/* test_fault.c - the K-th allocation, write or call of SQLite fails, or kill -9 comes: one clear
 * error and nothing half done, or everything as ever; what was committed stays
 *
 * A preloaded library (tests/fault/fault.c) counts and fails. STEELYARD_FAULTS=N takes N points of
 * each kind and job (0 = every one), STEELYARD_KILLS=N that many kills of each job; the defaults
 * keep `make check` short. Skipped where nothing can be preloaded. */
#include "tests/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/str.h"
#include "tests/support_program.h"
#include "traces/trace.h"

#define MODEL "tests/golden/deepseek_v3"

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...) {
    char line[1600], *errors;
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (test_run(line, NULL, &errors) != 0) fail_msg("%s: %s", line, errors);
    free(errors);
}

/* What is run; F stands for the test's folder. */
static const struct job {
    const char *name, *arguments, *output;
    const char *before; /* shell, makes the state that the job begins with */
    const char *again;  /* arguments of a second try after a failure */
    bool in_place;      /* the output was there before and must stay whole */
    bool resumes;       /* a failed run may leave what it had committed */
} jobs[] = {
    {"capture", "capture " MODEL " --ids F/a.ids --out F/run.db --pass-tokens 40 --threads 1",
     "run.db", "rm -f F/run.db*",
     "capture " MODEL " --ids F/a.ids --out F/run.db --pass-tokens 40 --threads 1 --resume", false,
     true},
    {"import", "import F/a.safetensors --from safetensors --out F/run.db", "run.db",
     "rm -f F/run.db*", "import F/a.safetensors --from safetensors --out F/run.db", false, false},
    {"replay", "replay F/a.db --gate native --gate native,softmax --threads 1 --out F/run.db",
     "run.db", "rm -f F/run.db*",
     "replay F/a.db --gate native --gate native,softmax --threads 1 --out F/run.db", false, false},
    {"replay in place", "replay F/run.db --gate native,topk=3 --threads 1", "run.db",
     "rm -f F/run.db* && cp F/a.db F/run.db", "replay F/run.db --gate native,topk=3 --threads 1",
     true, false},
    {"merge", "merge F/a.db F/b.db --out F/run.db", "run.db", "rm -f F/run.db*",
     "merge F/a.db F/b.db --out F/run.db", false, false}};

/* The text with F replaced by the folder; static, 4 in turn. */
static const char *filled(const char *text) {
    static char buffers[4][1024];
    static int turn;
    struct str out = {0};
    for (const char *c = text; *c; c++)
        if (c[0] == 'F' && c[1] == '/')
            str_puts(&out, test_place());
        else
            str_append(&out, c, 1);
    char *buffer = buffers[turn++ % 4];
    snprintf(buffer, sizeof buffers[0], "%s", str_text(&out));
    str_free(&out);
    return buffer;
}

#ifdef __SANITIZE_ADDRESS__
#define SANITIZED "-DWITHOUT_MEMORY"
#else
#define SANITIZED ""
#endif

static bool library_built;

static int begin(void **state) {
    (void)state;
    enter("fault");
    char line[1200];
    snprintf(line, sizeof line,
             "cc -std=c11 -D_GNU_SOURCE -O1 -shared -fPIC " SANITIZED
             " -o %s tests/fault/fault.c -ldl",
             at("fault.so"));
    library_built = test_run(line, NULL, NULL) == 0;
    if (!library_built) return 0;
    write_ids(at("a.ids"), 5, 40, 5);
    write_ids(at("b.ids"), 2, 40, 6);
    runs("capture " MODEL " --ids %s --out %s", at("a.ids"), at("a.db"));
    runs("capture " MODEL " --ids %s --out %s", at("b.ids"), at("b.db"));
    runs("export %s --to safetensors --out %s", at("a.db"), at("a.safetensors"));
    return 0;
}

static void need_library(void) {
    if (library_built) return;
    print_message("skip: cc makes no shared library here\n");
    skip();
}

static int64_t setting(const char *name, int64_t usual) {
    const char *text = getenv(name);
    return text && *text ? atoll(text) : usual;
}

/* Runs a job under a fault; returns the exit status, stderr owned in *errors. */
static int run_with(const struct job *job, const char *kind, int64_t k, char **errors) {
    char line[2600];
    shell("%s", filled(job->before));
    snprintf(line, sizeof line,
             "exec env FAULT=%s:%lld FAULT_COUNT=%s LD_PRELOAD=%s "
             "ASAN_OPTIONS=verify_asan_link_order=0:allocator_may_return_null=1:$ASAN_OPTIONS "
             "%s %s > /dev/null",
             kind, (long long)k, at("count"), at("fault.so"), test_program(),
             filled(job->arguments));
    return test_run(line, NULL, errors);
}

static int64_t count_operations(const struct job *job, const char *kind) {
    char *errors, *text;
    struct err err = {0};
    size_t len;
    unlink(at("count"));
    int status = run_with(job, kind, 0, &errors);
    if (status != 0) fail_msg("%s: exit %d: %s", job->name, status, errors);
    free(errors);
    text = file_read(at("count"), 64, &len, &err);
    test_ok(text, &err);
    int64_t n = atoll(text);
    free(text);
    return n;
}

/* One line that names the command; notes may stand before it. */
static bool one_error(const char *errors) {
    int lines = 0;
    for (const char *line = errors; *line;) {
        const char *end = strchr(line, '\n');
        if (!end) return false;
        if (strncmp(line, "note: ", 6) != 0) {
            lines++;
            if (strncmp(line, "steelyard", 9) != 0) return false;
        }
        line = end + 1;
    }
    return lines == 1;
}

/* After a failure: nothing, or what a second try makes whole. */
static void check_rest(const struct job *job, const char *what, int64_t k, const char *whole,
                       bool always) {
    const char *out = at(job->output);
    bool there = file_exists(out);
    if (there && !job->resumes && !job->in_place) {
        char *found = dump(out); /* it was written, and something after it failed */
        if (strcmp(found, whole) != 0)
            fail_msg("%s, %s %lld: half an output", job->name, what, (long long)k);
        free(found);
        return;
    }
    if (there) {
        char line[700], *answer;
        snprintf(line, sizeof line, "sqlite3 %s 'PRAGMA integrity_check'", out);
        int status = test_run(line, &answer, NULL);
        if (status != 0 || strcmp(answer, "ok\n") != 0)
            fail_msg("%s, %s %lld: integrity: %s", job->name, what, (long long)k, answer);
        free(answer);
    }
    if (!there && !always) return;
    runs("%s", filled(job->again));
    char *found = dump(out);
    if (strcmp(found, whole) != 0)
        fail_msg("%s, %s %lld: second try differs", job->name, what, (long long)k);
    free(found);
}

static char *whole_content(const struct job *job) {
    shell("%s", filled(job->before));
    runs("%s", filled(job->arguments));
    return dump(at(job->output));
}

static void fail_everywhere(const char *kind, int64_t usual) {
    need_library();
    for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++) {
        const struct job *job = &jobs[j];
        char *whole = whole_content(job);
        int64_t n = count_operations(job, kind), points = setting("STEELYARD_FAULTS", usual);
        int64_t failed = 0, tried = 0;
        assert_true(n > 5);
        if (points == 0 || points > n) points = n;
        for (int64_t i = 0; i < points; i++) {
            int64_t k = 1 + i * n / points + (points < n ? (i * 7) % (n / points) : 0);
            char *errors;
            int status = run_with(job, kind, k, &errors);
            tried++;
            if (status == 0) {
                char *found = dump(at(job->output));
                if (strcmp(found, whole) != 0)
                    fail_msg("%s, %s %lld: exit 0, but other content", job->name, kind,
                             (long long)k);
                free(found);
            } else {
                failed++;
                if (status != 1 || !one_error(errors))
                    fail_msg("%s, %s %lld: exit %d: '%s'", job->name, kind, (long long)k, status,
                             errors);
                check_rest(job, kind, k, whole, false);
            }
            free(errors);
        }
        print_message("%s: %lld of %lld %s operations failed one by one: %lld errors\n", job->name,
                      (long long)tried, (long long)n, kind, (long long)failed);
        assert_true(failed > 0);
        free(whole);
    }
}

static void a_failed_allocation_is_one_clear_error(void **state) {
    (void)state;
    if (*SANITIZED) {
        print_message("skip: the sanitizer has an allocator of its own\n");
        skip();
    }
    fail_everywhere("own", 8);
    fail_everywhere("alloc", 6);
}

static void a_failed_write_is_one_clear_error(void **state) {
    (void)state;
    fail_everywhere("write", 8);
}

static void a_failed_call_of_the_database_is_one_clear_error(void **state) {
    (void)state;
    fail_everywhere("sql", 10);
}

/* ---- kill -9 */

static int64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Kills the job after a time; true when it had not ended. */
static bool kill_after(const struct job *job, int64_t us) {
    char line[1300];
    shell("%s", filled(job->before));
    snprintf(line, sizeof line, "exec %s %s >/dev/null 2>&1", test_program(),
             filled(job->arguments));
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    return killed_after(pid, us);
}

/* Dies at the K-th operation that writes, a write being done by half. */
static bool kill_at_write(const struct job *job, int64_t k) {
    char kind[64], *errors;
    snprintf(kind, sizeof kind, "%lld:kill", (long long)k);
    char line[2600];
    shell("%s", filled(job->before));
    snprintf(line, sizeof line,
             "FAULT=write:%s LD_PRELOAD=%s ASAN_OPTIONS=verify_asan_link_order=0:$ASAN_OPTIONS %s "
             "%s > /dev/null",
             kind, at("fault.so"), test_program(), filled(job->arguments));
    int status = test_run(line, NULL, &errors);
    if (status != 0 && status != 128 + SIGKILL)
        fail_msg("%s, killed at write %lld: exit %d: %s", job->name, (long long)k, status, errors);
    free(errors);
    return status != 0;
}

static void killed_jobs_lose_nothing_and_can_be_repeated(void **state) {
    (void)state;
    need_library();
    struct rng rng;
    rng_init(&rng, 23);
    for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++) {
        const struct job *job = &jobs[j];
        int64_t started = milliseconds();
        char *whole = whole_content(job);
        int64_t us = (milliseconds() - started) * 1000 + 1000;
        int64_t n = count_operations(job, "write"), want = setting("STEELYARD_KILLS", 6);
        int64_t killed = 0, at_write = 0;
        for (int64_t tries = 0; killed < want && tries < 4 * want; tries++) {
            int64_t k = 1 + (int64_t)rng_below(&rng, (uint64_t)n);
            bool by_write = tries % 2 == 0;
            int64_t after = (int64_t)rng_below(&rng, (uint64_t)us);
            if (!(by_write ? kill_at_write(job, k) : kill_after(job, after))) continue;
            killed++;
            at_write += by_write;
            check_rest(job, "kill", by_write ? k : after, whole, true);
        }
        print_message("%s: killed %lld times, %lld of them within a write\n", job->name,
                      (long long)killed, (long long)at_write);
        assert_true(killed > 0);
        free(whole);
    }
}

int test_fault(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_failed_allocation_is_one_clear_error, begin),
        cmocka_unit_test_setup(a_failed_write_is_one_clear_error, begin),
        cmocka_unit_test_setup(a_failed_call_of_the_database_is_one_clear_error, begin),
        cmocka_unit_test_setup(killed_jobs_lose_nothing_and_can_be_repeated, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
