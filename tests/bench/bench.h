/* bench.h - benchmarks: a table of scenes, one CSV on stdout
 *
 * A scene is `void bench_NAME(void)` in tests/bench/bench_NAME.c and one line in scenes.h. Machines
 * are shared and noisy: a figure is the median of at least BENCH_RUNS samples, and where a limit of
 * the machine applies it is measured right before and after each sample and the ratio is printed.
 */
#ifndef TESTS_BENCH_H
#define TESTS_BENCH_H

#include <stdint.h>

enum { BENCH_RUNS = 7 };

/* One measured case: `work` (in the unit's numerator, e.g. 1e9 flop) per call of run(context). */
struct bench_case {
    const char *scene, *name, *unit; /* unit e.g. "GFLOP/s" */
    double work;
    void (*run)(void *context);
    void *context;
    double (*limit)(void); /* the machine's limit now, in the same unit per thread; NULL = none */
    const char *of;        /* what limit is: "f32 fma peak" */
    int threads;           /* limit is multiplied by this; >= 1 */
};

/* The clock of the measurements: wall seconds, or CPU seconds / threads with BENCH_CLOCK=cpu. */
double bench_seconds(int threads);
int bench_cpu_clock(void);
/* Warms up, measures, prints one line:
 * scene,case,value,low,high,unit,ratio,of,clock (value = median; ratio = median of value / limit).
 */
void bench_measure(const struct bench_case *c);
/* Whether the command line asks for cases of this name (for what is costly to set up). */
int bench_wanted(const char *name);
/* Prints one line of a figure that was measured otherwise. */
void bench_print(const char *scene, const char *name, double value, const char *unit);

/* Limits of one thread, each measured for some milliseconds: GFLOP/s of the widest multiply-add
 * that the CPU has, of bf16 dot products (0 without), GB/s of reading memory. */
double bench_peak_f32(void);
double bench_peak_bf16(void);
double bench_read_bandwidth(void);

/* By level; 0 when this build lacks it. Defined in peak_<level>.c, which has that level's flags. */
double peak_avx512(void);
double peak_avx512bf16(void);
double peak_avx2(void);

#endif
