/* main.c - runs all test groups, or those named on the command line */
#include <stdio.h>
#include <string.h>

#define X(name) int test_##name(void);
#include "list.h"
#undef X

static const struct {
    const char *name;
    int (*run)(void);
} groups[] = {
#define X(name) {#name, test_##name},
#include "list.h"
#undef X
};

int main(int argc, char **argv) {
    int failed = 0;
    int ran = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], groups[i].name) == 0;
        if (!wanted) continue;
        failed += groups[i].run();
        ran++;
    }
    if (ran == 0) {
        fprintf(stderr, "no test group of that name\n");
        return 2;
    }
    printf("%d groups run, %d tests failed\n", ran, failed);
    return failed != 0;
}
