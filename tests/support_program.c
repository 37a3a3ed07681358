/* support_program.c - runs the program under test, and compares what it wrote */
#include "tests/support_program.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/str.h"
#include "tests/test.h"

static const char *folder;

void enter(const char *name) { folder = test_folder(name); }

const char *test_place(void) { return folder; }

const char *at(const char *name) {
    static char paths[16][512];
    static int turn;
    char *path = paths[turn++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

int program(char **errors, const char *format, ...) {
    struct str command = {0};
    char arguments[2000];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    str_printf(&command, "%s %s", test_program(), arguments);
    int status = test_run(command.data, NULL, errors);
    str_free(&command);
    return status;
}

void runs(const char *format, ...) {
    char arguments[2000], *errors;
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    if (program(&errors, "%s", arguments) != 0) fail_msg("steelyard %s: %s", arguments, errors);
    free(errors);
}

bool killed_after(pid_t child, int64_t us) {
    struct timespec delay = {us / 1000000, us % 1000000 * 1000};
    int status;
    assert_true(child > 0);
    nanosleep(&delay, NULL);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) assert_int_equal(WEXITSTATUS(status), 0);
    return WIFSIGNALED(status);
}

/* Fails with this status, and says `expected`. */
void refuses(int status, const char *expected, const char *format, ...) {
    char arguments[2000], *errors;
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    int found = program(&errors, "%s", arguments);
    if (found != status || !strstr(errors, expected))
        fail_msg("steelyard %s: exit %d, '%s' lacks '%s'", arguments, found, errors, expected);
    free(errors);
}

/* All content as text. */
char *dump(const char *path) {
    char command[600], *out;
    snprintf(command, sizeof command, "sqlite3 %s .dump", path);
    assert_int_equal(test_run(command, &out, NULL), 0);
    return out;
}

void same_content(const char *a, const char *b) {
    char *x = dump(a), *y = dump(b);
    assert_true(strlen(x) > 10000);
    if (strcmp(x, y) != 0) fail_msg("%s and %s differ", a, b);
    free(x);
    free(y);
}

/* `lines` documents of `tokens` ids each. */
void write_ids(const char *path, int lines, int tokens, unsigned seed) {
    struct rng rng;
    struct str text = {0};
    struct err err = {0};
    rng_init(&rng, seed);
    for (int i = 0; i < lines; i++)
        for (int t = 0; t < tokens; t++)
            str_printf(&text, "%d%c", (int)rng_below(&rng, 320), t + 1 < tokens ? ' ' : '\n');
    test_ok(file_write(path, text.data, text.len, &err), &err);
    str_free(&text);
}
