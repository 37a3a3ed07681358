/* bench_kernels.c - grouped product, packing and attention against the limits of the machine
 *
 * Shapes of published experts, weights cold: each call takes the next matrix of a set that is
 * larger than any cache. Few rows are bound by reading the weights: their cases are in GB/s of
 * weights. The level that the machine would choose is measured at all shapes, every other usable
 * one at a typical expert (64 rows). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pages.h"
#include "engine/kernels/kernels.h"
#include "tests/bench/bench.h"

enum { SET_BYTES = 300 << 20, MOST_ROWS = 2048 };

struct set {
    const struct kernels *kernels;
    struct pool *pool;
    char *memory; /* packed matrices */
    char *raw;    /* as many unpacked ones: packing reads cold rows */
    float *a, *c;
    struct gemm item;
    enum kernel_type type;
    size_t bytes; /* of one packed matrix */
    int64_t n, k, matrices, next;
    bool bf16;
};

static void *allocate(size_t bytes) {
    void *memory = pages_alloc(bytes);
    if (!memory) abort();
    memset(memory, 0, bytes);
    return memory;
}

/* Random bits that are small numbers in f32 as well as in bf16 pairs. */
static void fill(void *memory, size_t bytes) {
    uint32_t *x = memory, state = 1;
    for (size_t i = 0; i < bytes / 4; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (state & 0x80ff80ffu) | 0x3c003c00u;
    }
}

static void run_product(void *context) {
    struct set *set = context;
    set->item.weight =
        (const struct packed *)(set->memory + set->next * (int64_t)((set->bytes + 63) / 64 * 64));
    set->next = (set->next + 1) % set->matrices;
    gemm_grouped(set->kernels, set->pool, &set->item, 1);
}

static void run_packing(void *context) {
    struct set *set = context;
    char *to = set->memory + set->next * (int64_t)((set->bytes + 63) / 64 * 64);
    const char *from = set->raw + set->next * set->n * set->k * (set->type == KERNEL_F32 ? 4 : 2);
    set->next = (set->next + 1) % set->matrices;
    packed_make(set->kernels, set->pool, to, set->type, from, set->n, set->k, set->bf16);
}

static void set_open(struct set *set) {
    size_t element = set->type == KERNEL_F32 ? 4 : 2;
    set->bytes = packed_bytes(set->type, set->n, set->k, set->bf16);
    set->matrices = SET_BYTES / (int64_t)set->bytes + 1;
    set->memory = allocate(((set->bytes + 63) / 64 * 64) * (size_t)set->matrices);
    set->raw = allocate((size_t)(set->matrices * set->n * set->k) * element);
    set->a = allocate((size_t)(MOST_ROWS * set->k) * 4);
    set->c = allocate((size_t)(MOST_ROWS * set->n) * 4);
    fill(set->raw, (size_t)(set->matrices * set->n * set->k) * element);
    fill(set->a, (size_t)(MOST_ROWS * set->k) * 4);
    for (int64_t i = 0; i < set->matrices; i++) run_packing(set);
    set->item = (struct gemm){.a = set->a, .c = set->c, .lda = set->k, .ldc = set->n};
}

static void set_close(struct set *set) {
    free(set->memory), free(set->raw), free(set->a), free(set->c);
}

static const char *form_of(const struct set *set) {
    return set->bf16 ? "bf16" : set->type == KERNEL_BF16 ? "f32 of bf16" : "f32";
}

static void measure_rows(struct set *set, int64_t rows, int threads) {
    const double gflop = 2e-9 * (double)set->n * (double)set->k;
    const bool dot = set->bf16 && bench_peak_bf16() > 0;
    char name[96];
    set->item.m = rows;
    snprintf(name, sizeof name, "%s %s N=%d K=%d M=%d T=%d", kernels_name(set->kernels),
             form_of(set), (int)set->n, (int)set->k, (int)rows, threads);
    struct bench_case c = {"kernels",
                           name,
                           "GFLOP/s",
                           gflop * (double)rows,
                           run_product,
                           set,
                           dot ? bench_peak_bf16 : bench_peak_f32,
                           dot ? "bf16 dot peak" : "f32 fma peak",
                           threads};
    bench_measure(&c);
    if (rows > 4) return;
    c.unit = "GB/s", c.of = "read bandwidth", c.limit = bench_read_bandwidth;
    c.work = (double)set->bytes * 1e-9;
    bench_measure(&c);
}

/* Levels that the machine would not choose. */
static void measure_levels(const char *chosen) {
    static const struct {
        enum kernel_type type;
        bool bf16;
    } forms[] = {{KERNEL_F32, false}, {KERNEL_BF16, false}, {KERNEL_BF16, true}};
    const char *level;
    struct err err;
    struct pool *pool = pool_create(1, &err);
    for (int i = 0; pool && (level = kernels_level(i)); i++)
        for (int f = 0; f < 3 && kernels_usable(level) && strcmp(level, chosen) != 0; f++) {
            struct set set = {.kernels = kernels_select(level, &err),
                              .pool = pool,
                              .type = forms[f].type,
                              .bf16 = forms[f].bf16,
                              .n = 1408,
                              .k = 2048};
            set_open(&set);
            measure_rows(&set, 64, 1);
            set_close(&set);
        }
    pool_free(pool);
}

static void measure_form(const char *level, enum kernel_type type, bool bf16, int threads) {
    static const int64_t shapes[][2] = {{1408, 2048}, {2048, 7168}};
    struct err err;
    static const int64_t rows[] = {1, 4, 16, 64, 256, 2048};
    struct pool *pool = pool_create(threads, &err);
    const struct kernels *kernels = kernels_select(level, &err);
    if (!pool || !kernels) abort();
    for (int s = 0; s < 2; s++) {
        char name[96];
        struct set set = {.kernels = kernels,
                          .pool = pool,
                          .type = type,
                          .bf16 = bf16,
                          .n = shapes[s][0],
                          .k = shapes[s][1]};
        set_open(&set);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            measure_rows(&set, rows[i], threads);
        snprintf(name, sizeof name, "%s %s N=%d K=%d pack T=%d", level, form_of(&set), (int)set.n,
                 (int)set.k, threads);
        double gb = (double)(set.n * set.k) * (type == KERNEL_F32 ? 4e-9 : 2e-9);
        struct bench_case c = {
            "kernels",        name,   "GB/s", gb, run_packing, &set, bench_read_bandwidth,
            "read bandwidth", threads};
        bench_measure(&c);
        set_close(&set);
    }
    pool_free(pool);
}

/* ---- attention: one window, heads as in published models */

struct attending {
    const struct kernels *kernels;
    struct pool *pool;
    struct attention job;
    void *work;
};

static void run_attention(void *context) {
    const struct attending *a = context;
    attention_run(a->kernels, a->pool, &a->job, a->work);
}

static void measure_attention(const char *level, bool bf16, int dim, int64_t tokens, int threads) {
    const int dim_v = 128;
    enum { HEADS = 16 };
    struct err err;
    char name[96];
    const int64_t start[] = {0, tokens};
    struct attending a = {kernels_select(level, &err), pool_create(threads, &err), {0}, NULL};
    if (!a.kernels || !a.pool) abort();
    float *q = allocate((size_t)(tokens * HEADS * dim) * 4);
    float *k = allocate((size_t)(tokens * HEADS * dim) * 4);
    float *v = allocate((size_t)(tokens * HEADS * dim_v) * 4);
    float *out = allocate((size_t)(tokens * HEADS * dim_v) * 4);
    fill(q, (size_t)(tokens * HEADS * dim) * 4), fill(k, (size_t)(tokens * HEADS * dim) * 4);
    fill(v, (size_t)(tokens * HEADS * dim_v) * 4);
    a.job = (struct attention){.q = q,
                               .k = k,
                               .v = v,
                               .out = out,
                               .ldq = HEADS * dim,
                               .ldk = HEADS * dim,
                               .ldv = HEADS * dim_v,
                               .ldo = HEADS * dim_v,
                               .head_q = dim,
                               .head_k = dim,
                               .head_v = dim_v,
                               .head_o = dim_v,
                               .heads = HEADS,
                               .kv_heads = HEADS,
                               .dim = dim,
                               .dim_v = dim_v,
                               .start = start,
                               .windows = 1,
                               .scale = 0.1f,
                               .bf16 = bf16};
    a.work = allocate(attention_bytes(&a.job, a.pool));
    snprintf(name, sizeof name, "%s attention %s %d/%d tokens=%d T=%d", level,
             bf16 ? "bf16" : "f32", dim, dim_v, (int)tokens, threads);
    double flop = (double)HEADS * (double)tokens * (double)(tokens + 1) * (dim + dim_v);
    struct bench_case c = {"kernels",
                           name,
                           "GFLOP/s",
                           flop * 1e-9,
                           run_attention,
                           &a,
                           bf16 ? bench_peak_bf16 : bench_peak_f32,
                           bf16 ? "bf16 dot peak" : "f32 fma peak",
                           threads};
    bench_measure(&c);
    free(q), free(k), free(v), free(out), free(a.work);
    pool_free(a.pool);
}

void bench_kernels(void) {
    struct err err;
    const char *level = kernels_name(kernels_select(NULL, &err));
    bench_print("kernels", "peak f32 fma", bench_peak_f32(), "GFLOP/s");
    bench_print("kernels", "peak bf16 dot", bench_peak_bf16(), "GFLOP/s");
    bench_print("kernels", "read bandwidth", bench_read_bandwidth(), "GB/s");
    measure_levels(level);
    int most = cpu_count();
    for (int threads = 1; threads <= most; threads += most > 1 ? most - 1 : 1) {
        measure_form(level, KERNEL_F32, false, threads);
        measure_form(level, KERNEL_BF16, false, threads);
        measure_form(level, KERNEL_BF16, true, threads);
        for (int64_t tokens = 512; tokens <= 2048; tokens *= 4) {
            for (int bf16 = 0; bf16 < 2; bf16++) {
                measure_attention(level, bf16, 128, tokens, threads);
                measure_attention(level, bf16, 192, tokens, threads);
            }
        }
    }
}
