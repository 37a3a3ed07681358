/* test_kernels.c - every usable level against double precision, CBLAS, and itself in other shapes
 */
#include "tests/test.h"

#include <gsl/gsl_cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/level.h"
#include "tests/support_amx.h"

static struct err err;

static struct pool *pool_of(int threads) {
    struct pool *pool = pool_create(threads, &err);
    test_ok(pool != NULL, &err);
    return pool;
}

static void *block(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(memory);
    return memory;
}

static float *random_floats(uint64_t seed, int64_t n) {
    float *x = block((size_t)n * sizeof *x + 64);
    struct rng rng;
    rng_init(&rng, seed);
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_normal(&rng);
    return x;
}

/* Weights of a type as a file holds them, and the values that they stand for. */
struct weights {
    enum kernel_type type;
    void *raw;
    float *value;
};

static float half_value(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double x = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return (float)(h & 0x8000 ? -x : x);
}

static float bf16_value(uint16_t b) {
    uint32_t bits = (uint32_t)b << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static struct weights weights_of(enum kernel_type type, uint64_t seed, int64_t n) {
    struct weights w = {type, NULL, random_floats(seed, n)};
    if (type == KERNEL_F32) {
        w.raw = random_floats(seed, n);
        return w;
    }
    uint16_t *raw = w.raw = block((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &w.value[i], 4);
        /* any pattern is a value: keep sign and top bits, with an exponent near that of 1 */
        raw[i] = type == KERNEL_BF16 ? (uint16_t)(bits >> 16)
                                     : (uint16_t)((bits >> 16 & 0x8000u) | (bits >> 7 & 0x3fffu));
        w.value[i] = type == KERNEL_BF16 ? bf16_value(raw[i]) : half_value(raw[i]);
    }
    return w;
}

static void weights_free(struct weights *w) {
    free(w->raw);
    free(w->value);
}

/* Largest |a - b| over the scale of a sum of k products of unit size. */
static double gap(const float *c, int64_t ldc, const double *expected, int64_t m, int64_t n,
                  int64_t k) {
    double worst = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double d = fabs(c[i * ldc + j] - expected[i * n + j]) / sqrt((double)k);
            if (!(d <= worst)) worst = d;
        }
    return worst;
}

static void product(double *c, const float *a, const int32_t *rows, int64_t lda, const float *w,
                    const float *bias, int64_t m, int64_t n, int64_t k) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = bias ? bias[j] : 0;
            for (int64_t x = 0; x < k; x++)
                sum += (double)a[(rows ? rows[i] : i) * lda + x] * w[j * k + x];
            c[i * n + j] = sum;
        }
}

struct shape {
    int64_t m, n, k;
};
static const struct shape shapes[] = {
    {0, 5, 7},     {1, 1, 1},     {1, 33, 257},  {2, 31, 2},    {3, 64, 255},  {5, 100, 513},
    {7, 17, 33},   {8, 32, 256},  {11, 65, 300}, {12, 32, 64},  {13, 95, 77},  {14, 96, 31},
    {15, 129, 96}, {16, 16, 600}, {25, 70, 47},  {29, 63, 129}, {32, 33, 512}, {33, 1, 99},
    {47, 40, 101}, {64, 67, 65},  {70, 39, 770}, {200, 37, 51}, {389, 70, 29},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void check_shape(const struct kernels *kernels, struct pool *pool, struct shape s,
                        enum kernel_type type, bool bf16, double tolerance) {
    const int64_t lda = s.k + 3, ldc = s.n + 5, tokens = s.m + 9;
    float *a = random_floats(1, tokens * lda), *bias = random_floats(2, s.n);
    struct weights w = weights_of(type, 3, s.n * s.k);
    int32_t *rows = block((size_t)tokens * sizeof *rows);
    for (int64_t i = 0; i < s.m; i++) rows[i] = (int32_t)((i * 7 + 3) % tokens);
    void *memory = block(packed_bytes(type, s.n, s.k, bf16));
    float *c = block((size_t)(s.m * ldc + 1) * sizeof *c);
    double *expected = block((size_t)(s.m * s.n + 1) * sizeof *expected);
    struct gemm item = {packed_make(kernels, pool, memory, type, w.raw, s.n, s.k, bf16),
                        a,
                        rows,
                        bias,
                        c,
                        s.m,
                        lda,
                        ldc};
    for (int gather = 0; gather < 2; gather++) {
        item.rows = gather ? rows : NULL;
        item.bias = gather ? bias : NULL;
        for (int64_t i = 0; i < s.m * ldc; i++) c[i] = -7.5f;
        gemm_grouped(kernels, pool, &item, 1);
        product(expected, a, item.rows, lda, w.value, item.bias, s.m, s.n, s.k);
        double worst = gap(c, ldc, expected, s.m, s.n, s.k);
        if (!(worst < tolerance))
            fail_msg("%s: M=%d N=%d K=%d type %d bf16 %d: off by %g", kernels_name(kernels),
                     (int)s.m, (int)s.n, (int)s.k, type, bf16, worst);
        for (int64_t i = 0; i < s.m; i++)
            for (int64_t j = s.n; j < ldc; j++) assert_true(c[i * ldc + j] == -7.5f);
    }
    weights_free(&w);
    free(a), free(bias), free(rows), free(memory), free(c), free(expected);
}

/* Calls `check` for every usable level (or the one that KERNEL_LEVEL names) and prints the others;
 * AMX runs on emulated tiles where the CPU has none. */
static void each_level(void (*check)(const struct kernels *kernels)) {
    const char *name, *only = getenv("KERNEL_LEVEL");
    for (int i = 0; (name = kernels_level(i)); i++) {
        if (only && strcmp(only, name) != 0) continue;
        if (strcmp(name, "amx") == 0 && !kernels_usable(name) && support_amx()) {
            check(support_amx());
            continue;
        }
        if (!kernels_usable(name)) {
            print_message("skip: level %s: this CPU lacks it\n", name);
            continue;
        }
        const struct kernels *kernels = kernels_select(name, &err);
        test_ok(kernels != NULL, &err);
        check(kernels);
    }
}

static void check_f32(const struct kernels *kernels) {
    struct pool *pool = pool_of(2);
    for (int i = 0; i < SHAPES; i++)
        for (int type = KERNEL_F32; type <= KERNEL_BF16; type++)
            check_shape(kernels, pool, shapes[i], (enum kernel_type)type, false, 5e-6);
    pool_free(pool);
}

static void every_level_multiplies_odd_shapes_like_double(void **state) {
    (void)state;
    each_level(check_f32);
}

static void check_bf16(const struct kernels *kernels) {
    struct pool *pool = pool_of(2);
    for (int i = 0; i < SHAPES; i++)
        for (int type = KERNEL_F32; type <= KERNEL_BF16; type++)
            check_shape(kernels, pool, shapes[i], (enum kernel_type)type, true, 2.5e-2);
    pool_free(pool);
}

static void every_level_computes_bf16_within_its_rounding(void **state) {
    (void)state;
    each_level(check_bf16);
}

/* With inputs that bf16 holds exactly, bf16 arithmetic must agree to f32 accuracy. */
static void check_bf16_exact(const struct kernels *kernels) {
    enum { M = 37, N = 75, K = 333 };
    struct pool *pool = pool_of(1);
    struct weights a = weights_of(KERNEL_BF16, 4, M * K), w = weights_of(KERNEL_BF16, 5, N * K);
    void *memory = block(packed_bytes(KERNEL_BF16, N, K, true));
    float *c = block(M * N * sizeof *c);
    double *expected = block(M * N * sizeof *expected);
    struct gemm item = {packed_make(kernels, pool, memory, KERNEL_BF16, w.raw, N, K, true),
                        a.value,
                        NULL,
                        NULL,
                        c,
                        M,
                        K,
                        N};
    gemm_grouped(kernels, pool, &item, 1);
    product(expected, a.value, NULL, K, w.value, NULL, M, N, K);
    double worst = gap(c, N, expected, M, N, K);
    if (!(worst < 5e-6)) fail_msg("%s: off by %g", kernels_name(kernels), worst);
    weights_free(&a), weights_free(&w);
    free(memory), free(c), free(expected);
    pool_free(pool);
}

static void bf16_products_of_exact_inputs_keep_f32_accuracy(void **state) {
    (void)state;
    each_level(check_bf16_exact);
}

/* ---- law 3: a row's result is the same alone, in any batch, group and pool */

enum { LAW_M = 31, LAW_N = 300, LAW_K = 600, LAW_ITEMS = 3 };

static void law_run(const struct kernels *kernels, int threads, const struct packed *const *w,
                    const float *a, float *c, int64_t step) {
    struct pool *pool = pool_of(threads);
    struct gemm items[LAW_ITEMS * LAW_M];
    int count = 0;
    for (int e = 0; e < LAW_ITEMS; e++)
        for (int64_t m = 0; m < LAW_M; m += step) {
            int64_t left = LAW_M - m < step ? LAW_M - m : step;
            items[count++] = (struct gemm){
                w[e], a + m * LAW_K, NULL, NULL, c + (e * LAW_M + m) * LAW_N, left, LAW_K, LAW_N};
        }
    gemm_grouped(kernels, pool, items, count);
    pool_free(pool);
}

static void check_law(const struct kernels *kernels) {
    static const int64_t steps[] = {1, 2, 5, 13, 17, LAW_M};
    float *a = random_floats(7, LAW_M * LAW_K);
    float *first = block(LAW_ITEMS * LAW_M * LAW_N * 4),
          *other = block(LAW_ITEMS * LAW_M * LAW_N * 4);
    for (int form = 0; form < 3; form++) { /* f32 panels, bf16 panels, bf16 compute */
        enum kernel_type type = form ? KERNEL_BF16 : KERNEL_F32;
        const struct packed *packed[LAW_ITEMS];
        void *memory[LAW_ITEMS];
        struct pool *pool = pool_of(2);
        for (int e = 0; e < LAW_ITEMS; e++) {
            struct weights w = weights_of(type, 20 + (uint64_t)e, LAW_N * LAW_K);
            memory[e] = block(packed_bytes(type, LAW_N, LAW_K, form == 2));
            packed[e] = packed_make(kernels, pool, memory[e], type, w.raw, LAW_N, LAW_K, form == 2);
            weights_free(&w);
        }
        pool_free(pool);
        law_run(kernels, 1, packed, a, first, LAW_M);
        for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
            for (int threads = 1; threads <= 4; threads *= 2) {
                law_run(kernels, threads, packed, a, other, steps[s]);
                assert_memory_equal(first, other, LAW_ITEMS * LAW_M * LAW_N * 4);
            }
        for (int e = 0; e < LAW_ITEMS; e++) free(memory[e]);
    }
    free(a), free(first), free(other);
}

static void a_row_gives_the_same_bits_alone_grouped_and_on_any_pool(void **state) {
    (void)state;
    each_level(check_law);
}

/* ---- CBLAS as an independent oracle */

static void check_cblas(const struct kernels *kernels) {
    enum { M = 130, N = 250, K = 700 };
    struct pool *pool = pool_of(2);
    float *a = random_floats(8, M * K), *w = random_floats(9, N * K);
    float *c = block(M * N * 4), *oracle = block(M * N * 4);
    void *memory = block(packed_bytes(KERNEL_F32, N, K, false));
    struct gemm item = {
        packed_make(kernels, pool, memory, KERNEL_F32, w, N, K, false), a, NULL, NULL, c, M, K, N};
    gemm_grouped(kernels, pool, &item, 1);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1, a, K, w, K, 0, oracle, N);
    for (int i = 0; i < M * N; i++) assert_true(fabs(c[i] - oracle[i]) < 1e-5 * sqrt(K) * 2);
    free(a), free(w), free(c), free(oracle), free(memory);
    pool_free(pool);
}

static void every_level_agrees_with_cblas(void **state) {
    (void)state;
    each_level(check_cblas);
}

static void two_sources_pack_like_their_concatenation(void **state) {
    (void)state;
    struct pool *pool = pool_of(2);
    const struct kernels *kernels = kernels_select(NULL, &err);
    enum { K = 77 };
    for (int64_t n1 = 1; n1 < 100; n1 += 13)
        for (int type = KERNEL_F32; type <= KERNEL_BF16; type++) {
            const int64_t n = 100;
            struct weights w = weights_of((enum kernel_type)type, 6, n * K);
            size_t bytes = packed_bytes((enum kernel_type)type, n, K, false);
            void *one = block(bytes), *two = block(bytes);
            memset(one, 0, bytes), memset(two, 0, bytes);
            packed_make(kernels, pool, one, (enum kernel_type)type, w.raw, n, K, false);
            packed_make2(kernels, pool, two, (enum kernel_type)type, w.raw, n1,
                         (char *)w.raw + n1 * K * (type == KERNEL_F32 ? 4 : 2), n - n1, K, false);
            assert_memory_equal(one, two, bytes);
            free(one), free(two);
            weights_free(&w);
        }
    pool_free(pool);
}

static void impossible_sizes_have_no_packed_bytes(void **state) {
    (void)state;
    assert_int_equal(packed_bytes(KERNEL_F32, 0, 5, false), 0);
    assert_int_equal(packed_bytes(KERNEL_F32, 5, -1, false), 0);
    assert_int_equal(packed_bytes(KERNEL_F32, (int64_t)1 << 62, 4, false), 0);
    assert_int_equal(packed_bytes(KERNEL_F32, (int64_t)1 << 39, (int64_t)1 << 39, false), 0);
}

static void unknown_levels_are_refused_with_the_usable_ones(void **state) {
    (void)state;
    assert_null(kernels_select("sse9", &err));
    assert_int_equal(err.code, ERR_USAGE);
    assert_non_null(strstr(err.text, "sse9"));
    assert_non_null(strstr(err.text, "portable"));
    test_ok(kernels_select("auto", &err) != NULL, &err);
}

/* ---- vectors */

static double ulps(float x, double exact) {
    if (x == (float)exact) return 0;
    return fabs(x - exact) / ldexp(1, ilogb((float)exact ? exact : 1e-45) - 23);
}

static void check_exp(const struct kernels *kernels) {
    double worst = 0;
    for (double x = -87; x < 88; x += 0.00137) {
        float in = (float)x, out;
        kernels->exp_sum(&in, 0, &out, 1);
        double off = ulps(out, exp((double)in));
        if (off > worst) worst = off;
    }
    if (!(worst < 2)) fail_msg("%s: exp is off by %g ulp", kernels->name, worst);
    const float edge[] = {-INFINITY, -150, 0, 200, NAN};
    float out[5];
    kernels->exp_sum(edge, 0, out, 5);
    assert_true(out[0] == 0 && out[1] == 0 && out[2] == 1 && isinf(out[3]) && isnan(out[4]));
}

static void exp_is_within_two_ulp(void **state) {
    (void)state;
    each_level(check_exp);
}

static void check_vectors(const struct kernels *kernels) {
    enum { MOST = 131 };
    float *x = random_floats(11, MOST), *y = random_floats(12, MOST),
          *out = random_floats(13, MOST);
    for (int n = 1; n < MOST; n++) {
        double dot = 0, squares = 0, sum = 0, most = -INFINITY;
        for (int i = 0; i < n; i++) {
            dot += (double)x[i] * y[i], squares += (double)x[i] * x[i];
            sum += exp(x[i]), most = fmax(most, x[i]);
        }
        test_near(vector_dot(kernels, x, y, n), dot, 1e-5);
        test_near(kernels->max(x, n), most, 0);
        memcpy(out, y, MOST * 4);
        vector_axpy(kernels, 0.7f, x, out, n);
        for (int i = 0; i < MOST; i++)
            test_near(out[i], i < n ? y[i] + 0.7f * (double)x[i] : y[i], 1e-6);
        vector_silu_mul(kernels, x, y, out, n);
        for (int i = 0; i < n; i++) test_near(out[i], x[i] / (1 + exp(-x[i])) * y[i], 1e-6);
        vector_rmsnorm(kernels, x, y, 1e-5f, out, n);
        for (int i = 0; i < n; i++) test_near(out[i], x[i] / sqrt(squares / n + 1e-5) * y[i], 2e-6);
        vector_rmsnorm(kernels, x, NULL, 1e-5f, out, n);
        for (int i = 0; i < n; i++) test_near(out[i], x[i] / sqrt(squares / n + 1e-5), 2e-6);
        test_near(vector_logsumexp(kernels, x, n), log(sum), 1e-6);
        memcpy(out, x, MOST * 4);
        test_near(vector_softmax(kernels, out, n), log(sum), 1e-6);
        for (int i = 0; i < MOST; i++) test_near(out[i], i < n ? exp(x[i]) / sum : x[i], 1e-6);
    }
    free(x), free(y), free(out);
}

static void vector_functions_equal_their_formulas(void **state) {
    (void)state;
    each_level(check_vectors);
}

#if !defined(__aarch64__)
/* This file again, cross-compiled and run by an emulator (tests/cross/run.sh). */
static void the_neon_level_passes_these_tests_under_emulation(void **state) {
    (void)state;
    char *out = NULL;
    int status = test_run("KERNEL_LEVEL=neon sh tests/cross/run.sh 2>&1", &out, NULL);
    if (status == 77) {
        print_message("skip: NEON under emulation: %s", out);
        free(out);
        skip();
    }
    if (status != 0) print_message("%s", out);
    free(out);
    assert_int_equal(status, 0);
}
#endif

int test_kernels(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_multiplies_odd_shapes_like_double),
        cmocka_unit_test(every_level_computes_bf16_within_its_rounding),
        cmocka_unit_test(bf16_products_of_exact_inputs_keep_f32_accuracy),
        cmocka_unit_test(a_row_gives_the_same_bits_alone_grouped_and_on_any_pool),
        cmocka_unit_test(every_level_agrees_with_cblas),
        cmocka_unit_test(two_sources_pack_like_their_concatenation),
        cmocka_unit_test(impossible_sizes_have_no_packed_bytes),
        cmocka_unit_test(unknown_levels_are_refused_with_the_usable_ones),
        cmocka_unit_test(exp_is_within_two_ulp),
        cmocka_unit_test(vector_functions_equal_their_formulas),
#if !defined(__aarch64__)
        cmocka_unit_test(the_neon_level_passes_these_tests_under_emulation),
#endif
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
