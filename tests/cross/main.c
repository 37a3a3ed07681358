/* main.c - the kernel tests alone, for another architecture (run.sh) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/test.h"

int test_kernels(void);
int test_attention(void);

void test_ok_(int ok, const struct err *err, const char *expr, const char *file, int line) {
    if (ok) return;
    printf("%s:%d: %s: %s\n", file, line, expr, err->text);
    exit(1);
}

void test_near_(double a, double b, double tol, const char *file, int line) {
    double scale = fabs(b) > 1 ? fabs(b) : 1;
    if (fabs(a - b) <= tol * scale || (isnan(a) && isnan(b)) || a == b) return;
    printf("%s:%d: found %.9g, expected %.9g\n", file, line, a, b);
    exit(1);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    return test_kernels() || test_attention();
}
