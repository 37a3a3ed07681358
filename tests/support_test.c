/* support_test.c - the helpers of test.h */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "tests/test.h"

const char *test_path(const char *relative) {
    static char paths[8][1024];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s", relative);
    return path;
}

void test_need(const char *path) {
    if (access(path, R_OK) == 0) return;
    printf("skip: needs %s\n", path);
    skip();
}

void test_ok_(int ok, const struct err *err, const char *expr, const char *file, int line) {
    if (ok) return;
    print_error("%s: %s\n", expr, err->text);
    _fail(file, line);
}

void test_near_(double a, double b, double tol, const char *file, int line) {
    if (isnan(a) && isnan(b)) return;
    if (fabs(a - b) <= tol * fmax(1, fabs(b))) return;
    print_error("found %.9g, expected %.9g within %g\n", a, b, tol);
    _fail(file, line);
}

const char *test_folder(const char *name) {
    static char folders[8][1024];
    static int next;
    char *folder = folders[next++ % 8];
    char command[2100];
    snprintf(folder, sizeof folders[0], "build/test-out/%s", name);
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir -p '%s'", folder, folder);
    if (system(command) != 0) fail_msg("cannot make %s", folder);
    return folder;
}

int test_run(const char *command, char **out, char **errors) {
    struct str line = {0};
    static int serial;
    char out_path[128], err_path[128];
    if (system("mkdir -p build/test-out") != 0) fail_msg("cannot make build/test-out");
    snprintf(out_path, sizeof out_path, "build/test-out/.run%d-%d.out", (int)getpid(), serial);
    snprintf(err_path, sizeof err_path, "build/test-out/.run%d-%d.err", (int)getpid(), serial++);
    str_printf(&line, "{ %s\n} >%s 2>%s", command, out_path, err_path);
    int status = system(str_text(&line));
    struct err err;
    size_t len;
    if (out) *out = file_read(out_path, (size_t)1 << 30, &len, &err);
    if (errors) *errors = file_read(err_path, (size_t)1 << 30, &len, &err);
    unlink(out_path);
    unlink(err_path);
    str_free(&line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

const char *test_program(void) {
    const char *program = getenv("STEELYARD");
    return program ? program : "build/steelyard";
}
