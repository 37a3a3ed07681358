/* main.c - runs all benchmark scenes, or those named on the command line; CSV on stdout
 *
 * `make bench SCENE=kernels` runs one scene, `SCENE="kernels=f32 N"` its cases of that name. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/kernels/kernels.h"
#include "tests/bench/scenes.h"

#define X(name) void bench_##name(void);
BENCH_SCENES(X)
#undef X

static const struct {
    const char *name;
    void (*run)(void);
} scenes[] = {
#define X(name) {#name, bench_##name},
    BENCH_SCENES(X)
#undef X
};

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Calls per sample, so that a sample lasts at least 20 ms; warms up on the way. */
static int64_t calls_per_sample(const struct bench_case *c) {
    for (int64_t calls = 1;; calls *= 2) {
        double start = clock_seconds();
        for (int64_t i = 0; i < calls; i++) c->run(c->context);
        if (clock_seconds() - start > 0.02) return calls;
    }
}

/* BENCH_CLOCK=cpu counts CPU seconds per thread instead of wall seconds: on a machine where others
 * compute too, it shows what the code does rather than what the scheduler gave it. */
int bench_cpu_clock(void) {
    const char *name = getenv("BENCH_CLOCK");
    return name && strcmp(name, "cpu") == 0;
}

double bench_seconds(int threads) {
    return bench_cpu_clock() ? clock_cpu_seconds() / threads : clock_seconds();
}

static const char *filter; /* only cases whose name contains this; NULL = all */

int bench_wanted(const char *name) { return !filter || strstr(name, filter) != NULL; }

void bench_measure(const struct bench_case *c) {
    if (!bench_wanted(c->name)) return;
    double value[BENCH_RUNS], ratio[BENCH_RUNS];
    const int64_t calls = calls_per_sample(c);
    for (int r = 0; r < BENCH_RUNS; r++) {
        double limit = c->limit ? c->limit() : 0, start = bench_seconds(c->threads);
        for (int64_t i = 0; i < calls; i++) c->run(c->context);
        value[r] = c->work * (double)calls / (bench_seconds(c->threads) - start);
        if (c->limit) limit = (limit + c->limit()) / 2 * c->threads;
        ratio[r] = limit > 0 ? value[r] / limit : 0;
    }
    qsort(value, BENCH_RUNS, sizeof *value, ascending);
    qsort(ratio, BENCH_RUNS, sizeof *ratio, ascending);
    printf("%s,%s,%.4g,%.4g,%.4g,%s,%.3f,%s,%s\n", c->scene, c->name, value[BENCH_RUNS / 2],
           value[0], value[BENCH_RUNS - 1], c->unit, ratio[BENCH_RUNS / 2], c->limit ? c->of : "",
           bench_cpu_clock() ? "cpu" : "wall");
    fflush(stdout);
}

void bench_print(const char *scene, const char *name, double value, const char *unit) {
    printf("%s,%s,%.4g,,,%s,,,%s\n", scene, name, value, unit, bench_cpu_clock() ? "cpu" : "wall");
    fflush(stdout);
}

double bench_peak_f32(void) {
    if (kernels_usable("avx512")) return peak_avx512();
    return kernels_usable("avx2") ? peak_avx2() : 0;
}

double bench_peak_bf16(void) { return kernels_usable("avx512bf16") ? peak_avx512bf16() : 0; }

double bench_read_bandwidth(void) {
    enum { BYTES = 192 << 20 };
    static uint64_t *memory;
    static volatile uint64_t sink;
    if (!memory) {
        memory = malloc(BYTES);
        if (!memory) return 0;
        memset(memory, 1, BYTES);
    }
    double start = bench_seconds(1);
    uint64_t sum[8] = {0};
    for (int64_t i = 0; i < BYTES / 8; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += memory[i + j];
    for (int j = 0; j < 8; j++) sink += sum[j];
    return BYTES / (bench_seconds(1) - start) * 1e-9;
}

/* "scene", or "scene=text" for its cases that contain the text. */
static int names_scene(const char *argument, const char *scene) {
    size_t length = strlen(scene);
    if (strncmp(argument, scene, length) != 0) return 0;
    if (argument[length] == '=') filter = argument + length + 1;
    return argument[length] == '=' || argument[length] == '\0';
}

int main(int argc, char **argv) {
    printf("scene,case,value,low,high,unit,ratio,of,clock\n");
    int ran = 0;
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= names_scene(argv[a], scenes[i].name);
        if (wanted) scenes[i].run(), ran++;
    }
    if (ran > 0) return 0;
    fprintf(stderr, "no scene of that name\n");
    return 2;
}
