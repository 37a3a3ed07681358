/* bench_import.c - importing .npy files: warm against reading them, cold against copying them
 *
 * Chosen ids, i32 [tokens, 48, 8]. Warm: 200 MB, CPU or wall clock as BENCH_CLOCK says. Cold: 1.08
 * GB that are not in the page cache, wall clock: import (which ends when the trace is on the disk)
 * beside a copy of the same file in pieces of 1 MiB with fsync, and beside reading it alone; in
 * turns. Each import is a process of its own, so that its CPU time and peak memory are its own. */
#include "tests/bench/bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "traces/exchange.h"

enum { SMALL = 131072, LARGE = 700000, LAYERS = 48, K = 8, PIECE = 1 << 20 };
static const char *const npy = "build/bench-ids.npy", *const db = "build/bench-ids.db",
                         *const copy = "build/bench-copy.npy";

static void stop(const char *what) {
    perror(what);
    exit(1);
}

static void write_npy(int tokens) {
    char header[128];
    static int32_t row[LAYERS * K];
    FILE *file = fopen(npy, "wb");
    if (!file) stop(npy);
    memset(header, ' ', sizeof header);
    int n = snprintf(header + 10, sizeof header - 10,
                     "{'descr': '<i4', 'fortran_order': False, 'shape': (%d, %d, %d), }", tokens,
                     LAYERS, K);
    header[10 + n] = ' ';
    memcpy(header, "\x93NUMPY\x01\x00\x76\x00", 10);
    header[127] = '\n';
    fwrite(header, 1, sizeof header, file);
    for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < LAYERS * K; i++) row[i] = (t * 7 + i / K * 5 + i % K * 13) % 128;
        fwrite(row, sizeof row, 1, file);
    }
    if (fflush(file) != 0 || fsync(fileno(file)) != 0 || fclose(file) != 0) stop(npy);
}

static void import_here(void) {
    struct err err = {0};
    const struct import_job job = {.files = &npy, .file_count = 1, .out = db, .force = true};
    const struct trace_importer *importer = trace_importer_find("numpy", npy, &err);
    if (importer && trace_import(importer, &job, &err)) return;
    fprintf(stderr, "import: %s\n", err.text);
    exit(1);
}

/* What an import took. */
struct cost {
    double wall, cpu, peak_mib;
};

static struct cost import_npy(void) {
    struct rusage usage;
    int status;
    double start = clock_seconds();
    pid_t child = fork();
    if (child == 0) {
        import_here();
        _exit(0);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) != child || status != 0) stop("import");
    const struct timeval *user = &usage.ru_utime, *sys = &usage.ru_stime;
    return (struct cost){.wall = clock_seconds() - start,
                         .cpu = (double)(user->tv_sec + sys->tv_sec) +
                                (double)(user->tv_usec + sys->tv_usec) * 1e-6,
                         .peak_mib = (double)usage.ru_maxrss / 1024};
}

/* Reads the file; writes it to `to` and to the disk, unless NULL. Seconds of wall clock, CPU. */
static struct cost read_npy(const char *to) {
    static char buffer[PIECE];
    double start = clock_seconds(), cpu = clock_cpu_seconds();
    int in = open(npy, O_RDONLY), out = to ? open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    ssize_t n;
    if (in < 0 || (to && out < 0)) stop(npy);
    while ((n = read(in, buffer, sizeof buffer)) > 0)
        if (to && write(out, buffer, (size_t)n) != n) stop(to);
    if (n < 0 || (to && (fsync(out) != 0 || close(out) != 0))) stop(npy);
    close(in);
    return (struct cost){.wall = clock_seconds() - start, .cpu = clock_cpu_seconds() - cpu};
}

/* Puts the file out of the page cache; the share of it that stayed. */
static double make_cold(void) {
    struct stat info;
    int fd = open(npy, O_RDONLY);
    if (fd < 0 || fstat(fd, &info) != 0) stop(npy);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    size_t bytes = (size_t)info.st_size, pages = (bytes + 4095) / 4096, kept = 0;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    unsigned char *resident = malloc(pages);
    if (map == MAP_FAILED || !resident || mincore(map, bytes, resident) != 0) stop("mincore");
    for (size_t i = 0; i < pages; i++) kept += resident[i] & 1;
    free(resident);
    munmap(map, bytes);
    close(fd);
    return (double)kept / (double)pages;
}

static int ascending(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, ascending);
    return values[n / 2];
}

enum { TURNS = 5 };

static void warm(void) {
    double mine[TURNS], theirs[TURNS], ratio[TURNS], peak = 0;
    double mb = (double)SMALL * LAYERS * K * 4 / 1e6;
    write_npy(SMALL);
    for (int i = 0; i < TURNS; i++) {
        struct cost import = import_npy(), reading = read_npy(NULL);
        mine[i] = mb / (bench_cpu_clock() ? import.cpu : import.wall);
        theirs[i] = mb / (bench_cpu_clock() ? reading.cpu : reading.wall);
        ratio[i] = mine[i] / theirs[i];
        if (import.peak_mib > peak) peak = import.peak_mib;
    }
    bench_print("import", "200 MB of .npy", median(mine, TURNS), "MB/s");
    bench_print("import", "reading the same file", median(theirs, TURNS), "MB/s");
    bench_print("import", "import / reading", median(ratio, TURNS), "");
    bench_print("import", "peak memory at 200 MB", peak, "MiB");
}

static void cold(void) {
    double mine[TURNS], copied[TURNS], reading[TURNS], ratio[TURNS], cpu[TURNS], peak = 0;
    double mb = (double)LARGE * LAYERS * K * 4 / 1e6, kept = 0, share;
    write_npy(LARGE);
    for (int i = 0; i < TURNS; i++) {
        if ((share = make_cold()) > kept) kept = share;
        struct cost import = import_npy();
        if ((share = make_cold()) > kept) kept = share;
        copied[i] = mb / read_npy(copy).wall;
        if ((share = make_cold()) > kept) kept = share;
        reading[i] = mb / read_npy(NULL).wall;
        mine[i] = mb / import.wall;
        ratio[i] = mine[i] / copied[i];
        cpu[i] = import.cpu;
        if (import.peak_mib > peak) peak = import.peak_mib;
        unlink(copy);
    }
    bench_print("import", "1.08 GB of cold .npy (wall)", median(mine, TURNS), "MB/s");
    bench_print("import", "copy of the same cold file (wall)", median(copied, TURNS), "MB/s");
    bench_print("import", "reading the same cold file (wall)", median(reading, TURNS), "MB/s");
    bench_print("import", "import / copy", median(ratio, TURNS), "");
    bench_print("import", "CPU of the import", median(cpu, TURNS), "s");
    bench_print("import", "peak memory at 1.08 GB", peak, "MiB");
    bench_print("import", "share of the file that was not cold", kept, "");
}

void bench_import(void) {
    warm();
    cold();
    unlink(npy);
    unlink(db);
}
