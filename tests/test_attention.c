/* test_attention.c - tiled attention of every usable level against the formula in double */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/kernels/kernels.h"

static struct err err;

static float *random_floats(uint64_t seed, int64_t n) {
    float *x = malloc((size_t)n * sizeof *x + 64);
    struct rng rng;
    assert_non_null(x);
    rng_init(&rng, seed);
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_normal(&rng);
    return x;
}

static bool sees(const struct attention *a, int64_t i, int64_t j) {
    return j <= i && (a->span == 0 || i - j < a->span) &&
           (a->chunk == 0 || i / a->chunk == j / a->chunk);
}

/* out[dim_v] of token i (counted from the window's start `base`), head h. */
static void reference(const struct attention *a, int64_t base, int64_t i, int h, double *out) {
    const int kv = h / (a->heads / a->kv_heads);
    const float *q = a->q + (base + i) * a->ldq + h * a->head_q;
    double sum = a->sink ? exp(a->sink[h]) : 0;
    for (int d = 0; d < a->dim_v; d++) out[d] = 0;
    for (int64_t j = 0; j <= i; j++) {
        if (!sees(a, i, j)) continue;
        const float *k = a->k + (base + j) * a->ldk + kv * a->head_k;
        const float *v = a->v + (base + j) * a->ldv + kv * a->head_v;
        double s = 0;
        for (int d = 0; d < a->dim; d++) s += (double)q[d] * k[d];
        double e = exp(s * a->scale);
        sum += e;
        for (int d = 0; d < a->dim_v; d++) out[d] += e * v[d];
    }
    for (int d = 0; d < a->dim_v; d++) out[d] /= sum;
}

struct scene {
    int heads, kv_heads, dim, dim_v;
    int64_t span, chunk;
    bool sink;
    int64_t start[6];
    int windows;
};

static const struct scene scenes[] = {
    {2, 2, 24, 16, 0, 0, false, {0, 1}, 1},
    {2, 1, 19, 7, 0, 0, false, {0, 37}, 1},
    {4, 2, 64, 64, 0, 0, false, {0, 300}, 1},
    {3, 3, 48, 33, 0, 0, true, {0, 129, 130, 130, 400}, 4},
    {4, 1, 32, 40, 50, 0, false, {0, 211, 460}, 2},
    {2, 2, 16, 16, 1, 0, false, {0, 70}, 1},
    {2, 1, 16, 8, 140, 0, true, {0, 350}, 1},
    {2, 2, 20, 12, 0, 64, false, {0, 333, 340}, 2},
    {2, 2, 20, 12, 0, 200, false, {0, 433}, 1},
    {2, 2, 192, 128, 0, 0, false, {0, 150, 277, 290, 291, 310}, 5},
};
enum { SCENES = sizeof scenes / sizeof *scenes };

/* Job of a scene with random inputs and gaps between heads and tokens. */
struct inputs {
    struct attention job;
    float *q, *k, *v, *out, *sink;
    int64_t tokens;
};

static struct inputs inputs_of(const struct scene *s) {
    struct inputs in = {.tokens = s->start[s->windows]};
    in.job = (struct attention){.heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .dim = s->dim,
                                .dim_v = s->dim_v,
                                .start = s->start,
                                .windows = s->windows,
                                .span = s->span,
                                .chunk = s->chunk,
                                .scale = 1 / sqrtf((float)s->dim)};
    struct attention *a = &in.job;
    a->head_q = s->dim + 1, a->head_k = s->dim + 3, a->head_v = s->dim_v + 2, a->head_o = s->dim_v;
    a->ldq = s->heads * a->head_q + 2, a->ldk = s->kv_heads * a->head_k;
    a->ldv = s->kv_heads * a->head_v + 1, a->ldo = s->heads * a->head_o + 3;
    a->q = in.q = random_floats(1, in.tokens * a->ldq);
    a->k = in.k = random_floats(2, in.tokens * a->ldk);
    a->v = in.v = random_floats(3, in.tokens * a->ldv);
    in.sink = random_floats(4, s->heads);
    a->sink = s->sink ? in.sink : NULL;
    a->out = in.out = random_floats(5, in.tokens * a->ldo);
    return in;
}

static void inputs_free(struct inputs *in) {
    free(in->q), free(in->k), free(in->v), free(in->out), free(in->sink);
}

static void run(const struct kernels *kernels, const struct attention *job, int threads) {
    struct pool *pool = pool_create(threads, &err);
    test_ok(pool != NULL, &err);
    size_t bytes = attention_bytes(job, pool);
    assert_true(bytes > 0);
    void *work = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(work);
    memset(work, 0xff, bytes); /* NaN: nothing may be read before it is written */
    attention_run(kernels, pool, job, work);
    free(work);
    pool_free(pool);
}

/* What rounding q, k, v (values below 4) and p to 8 bits may move an output by. */
static const double BF16_NEAR = 0.03;

static void check_scene(const struct kernels *kernels, const struct scene *s, bool bf16) {
    struct inputs in = inputs_of(s);
    double expected[256], error = 0;
    in.job.bf16 = bf16;
    run(kernels, &in.job, 2);
    for (int w = 0; w < s->windows; w++)
        for (int64_t i = 0; i < s->start[w + 1] - s->start[w]; i++)
            for (int h = 0; h < s->heads; h++) {
                reference(&in.job, s->start[w], i, h, expected);
                const float *out = in.out + (s->start[w] + i) * in.job.ldo + h * in.job.head_o;
                for (int d = 0; d < s->dim_v; d++) {
                    test_near(out[d], expected[d], bf16 ? BF16_NEAR : 3e-6);
                    error = fmax(error, fabs(out[d] - expected[d]));
                }
            }
    if (bf16) assert_true(error > 1e-6 || in.tokens == 1); /* it did round */
    inputs_free(&in);
}

static void each_level(void (*check)(const struct kernels *kernels)) {
    const char *name, *only = getenv("KERNEL_LEVEL");
    for (int i = 0; (name = kernels_level(i)); i++) {
        if (!kernels_usable(name) || (only && strcmp(only, name) != 0)) continue;
        const struct kernels *kernels = kernels_select(name, &err);
        test_ok(kernels != NULL, &err);
        check(kernels);
    }
}

static void check_all(const struct kernels *kernels) {
    for (int i = 0; i < SCENES; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) check_scene(kernels, &scenes[i], bf16);
}

static void every_level_equals_the_formula_with_all_options(void **state) {
    (void)state;
    each_level(check_all);
}

/* The same window behind others, on another pool, and cut short: equal bits. */
static void check_bits_of(const struct kernels *kernels, bool bf16) {
    static const struct scene long_one = {4, 2, 40, 24, 90, 0, true, {0, 290}, 1};
    static const int64_t cut[] = {0, 123};
    struct inputs in = inputs_of(&long_one);
    in.job.bf16 = bf16;
    const size_t bytes = (size_t)(in.tokens * in.job.ldo) * sizeof(float);
    float *first = malloc(bytes);
    run(kernels, &in.job, 1);
    memcpy(first, in.out, bytes);
    for (int threads = 2; threads <= 4; threads *= 2) {
        memset(in.out, 0, bytes);
        run(kernels, &in.job, threads);
        for (int64_t i = 0; i < in.tokens; i++)
            assert_memory_equal(in.out + i * in.job.ldo, first + i * in.job.ldo, 4 * 24 * 4);
    }
    memset(in.out, 0, bytes);
    in.job.start = cut;
    run(kernels, &in.job, 2);
    for (int64_t i = 0; i < cut[1]; i++)
        assert_memory_equal(in.out + i * in.job.ldo, first + i * in.job.ldo, 4 * 24 * 4);
    free(first);
    inputs_free(&in);
}

static void check_bits(const struct kernels *kernels) {
    check_bits_of(kernels, false);
    check_bits_of(kernels, true);
}

static void a_token_gives_the_same_bits_on_any_pool_and_without_later_tokens(void **state) {
    (void)state;
    each_level(check_bits);
}

static void impossible_attention_needs_no_bytes(void **state) {
    (void)state;
    struct pool *pool = pool_create(1, &err);
    struct inputs in = inputs_of(&scenes[2]);
    struct attention job = in.job;
    assert_true(attention_bytes(&job, pool) > 0);
    job.kv_heads = 3;
    assert_int_equal(attention_bytes(&job, pool), 0);
    inputs_free(&in);
    pool_free(pool);
}

int test_attention(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_equals_the_formula_with_all_options),
        cmocka_unit_test(a_token_gives_the_same_bits_on_any_pool_and_without_later_tokens),
        cmocka_unit_test(impossible_attention_needs_no_bytes),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
