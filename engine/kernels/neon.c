/* neon.c - NEON level (AArch64): f32 FMA; bf16 weights are widened on load (exact)
 *
 * 32 registers hold a tile of 6 x 16 outputs (24 sums), so a panel of 32 is two halves one after
 * the other. Every tile height runs the same code with another constant, hence the same order of
 * operations for each output. Vectors of n floats end in a scalar loop that repeats the formula
 * with fused multiply-adds. Built and tested under qemu-aarch64 (tests/cross/run.sh). */
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "engine/kernels/level.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 6 };

/* Adds a tile of 16 columns to `initial` and stores those of them that exist. */
INLINE void store_half(const struct tile *t, float32x4_t (*acc)[4], const int rows, int column) {
    const int cols = t->cols - column < 16 ? t->cols - column : 16;
    for (int r = 0; r < rows; r++) {
        float sum[16], *c = t->c + r * t->ldc + column;
        const float *initial = t->initial ? t->initial + r * t->ld_initial + column : NULL;
        for (int v = 0; v < 4; v++) vst1q_f32(sum + 4 * v, acc[r][v]);
        for (int j = 0; j < cols; j++) c[j] = initial ? sum[j] + initial[j] : sum[j];
    }
}

INLINE void multiply_row(float32x4_t *acc, const float32x4_t *b, float x) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) acc[v] = vfmaq_n_f32(acc[v], b[v], x);
}

INLINE void tile_f32(const struct tile *t, const int rows) {
    for (int column = 0; column < t->cols; column += 16) {
        const float *a = t->a, *b = (const float *)t->b + column;
        float32x4_t acc[ROWS][4];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) acc[r][v] = vdupq_n_f32(0);
        for (int i = 0; i < t->k; i++, a += rows, b += PANEL_COLS) {
            const float32x4_t w[4] = {vld1q_f32(b), vld1q_f32(b + 4), vld1q_f32(b + 8),
                                      vld1q_f32(b + 12)};
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) multiply_row(acc[r], w, a[r]);
        }
        store_half(t, acc, rows, column);
    }
}

INLINE void tile_bf16(const struct tile *t, const int rows) {
    const uint32x4_t high = vdupq_n_u32(0xffff0000u);
    for (int column = 0; column < t->cols; column += 16) {
        const float *a = t->a;
        const uint32_t *b = (const uint32_t *)t->b + column;
        float32x4_t acc[ROWS][4];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) acc[r][v] = vdupq_n_f32(0);
        for (int i = 0; i < t->k; i += 2, a += 2 * rows, b += PANEL_COLS) {
            float32x4_t even[4], odd[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const uint32x4_t pair = vld1q_u32(b + 4 * v);
                even[v] = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
                odd[v] = vreinterpretq_f32_u32(vandq_u32(pair, high));
            }
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) multiply_row(acc[r], even, a[r]);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) multiply_row(acc[r], odd, a[rows + r]);
        }
        store_half(t, acc, rows, column);
    }
}

#define HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define DEFINE(n)                                                                                  \
    static void tile_f32_##n(const struct tile *t) { tile_f32(t, n); }                             \
    static void tile_bf16_##n(const struct tile *t) { tile_bf16(t, n); }
HEIGHTS(DEFINE)

static void tile_f32_any(const struct tile *t) {
    static const tile_fn of_height[ROWS + 1] = {
#define ROW(n) [n] = tile_f32_##n,
        HEIGHTS(ROW)
#undef ROW
    };
    of_height[t->rows](t);
}

static void tile_bf16_any(const struct tile *t) {
    static const tile_fn of_height[ROWS + 1] = {
#define ROW(n) [n] = tile_bf16_##n,
        HEIGHTS(ROW)
#undef ROW
    };
    of_height[t->rows](t);
}

/* Four rows of four words, transposed into dst rows of PANEL_COLS. */
INLINE void transpose4(uint32_t *dst, const char *src, int64_t stride_bytes) {
    uint32x4_t r[4];
    for (int c = 0; c < 4; c++)
        r[c] = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)src + c * stride_bytes));
    const uint32x4_t a = vtrn1q_u32(r[0], r[1]), b = vtrn2q_u32(r[0], r[1]);
    const uint32x4_t c = vtrn1q_u32(r[2], r[3]), d = vtrn2q_u32(r[2], r[3]);
#define PAIRS(f, x, y) vreinterpretq_u32_u64(f(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y)))
    vst1q_u32(dst, PAIRS(vtrn1q_u64, a, c));
    vst1q_u32(dst + PANEL_COLS, PAIRS(vtrn1q_u64, b, d));
    vst1q_u32(dst + 2 * PANEL_COLS, PAIRS(vtrn2q_u64, a, c));
    vst1q_u32(dst + 3 * PANEL_COLS, PAIRS(vtrn2q_u64, b, d));
#undef PAIRS
}

static void transpose(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k,
                      bool stream) {
    (void)stream;
    const char *from = src;
    for (int64_t i = 0; i < k; i += 4)
        for (int c = 0; c < PANEL_COLS; c += 4) {
            const char *at = from + c * stride_bytes + i * 4;
            if (c + 4 <= cols && i + 4 <= k) {
                transpose4(dst + i * PANEL_COLS + c, at, stride_bytes);
                continue;
            }
            for (int j = 0; j < 4 && i + j < k; j++)
                for (int l = 0; l < 4; l++) {
                    uint32_t *to = &dst[(i + j) * PANEL_COLS + c + l];
                    *to = 0;
                    if (c + l < cols) memcpy(to, at + l * stride_bytes + j * 4, sizeof *to);
                }
        }
}

static void pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    float *a = dst;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < k; i++) a[i * rows + r] = row[r][offset + i];
    if (k % 2) memset(a + k * rows, 0, (size_t)rows * sizeof *a); /* bf16 panels go in pairs */
}

static void f16_to_f32(float *dst, const uint16_t *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) {
        uint16_t in[4] = {0};
        float out[4];
        const size_t count = (size_t)(n - i < 4 ? n - i : 4);
        memcpy(in, src + i, count * sizeof *in);
        vst1q_f32(out, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(in))));
        memcpy(dst + i, out, count * sizeof *out);
    }
}

/* To nearest even, NaN made quiet, as in portable.c. */
static void f32_to_bf16(uint16_t *dst, const float *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) {
        float in[4] = {0};
        uint16_t out[4];
        const size_t count = (size_t)(n - i < 4 ? n - i : 4);
        memcpy(in, src + i, count * sizeof *in);
        const float32x4_t x = vld1q_f32(in);
        const uint32x4_t bits = vreinterpretq_u32_f32(x), up = vshrq_n_u32(bits, 16);
        const uint32x4_t odd = vandq_u32(up, vdupq_n_u32(1));
        const uint32x4_t near =
            vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
        const uint32x4_t quiet = vorrq_u32(up, vdupq_n_u32(0x40));
        vst1_u16(out, vmovn_u32(vbslq_u32(vceqq_f32(x, x), near, quiet)));
        memcpy(dst + i, out, count * sizeof *out);
    }
}

static float dot(const float *x, const float *y, int64_t n) {
    float32x4_t sum[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int v = 0; v < 4; v++)
            sum[v] = vfmaq_f32(sum[v], vld1q_f32(x + i + 4 * v), vld1q_f32(y + i + 4 * v));
    float total = vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
    for (; i < n; i++) total = fmaf(x[i], y[i], total);
    return total;
}

static void axpy(float a, const float *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(y + i), vld1q_f32(x + i), a));
    for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static void scale(float a, float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), a));
    for (; i < n; i++) x[i] *= a;
}

static void scale_mul(float a, const float *x, const float *w, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), a), vld1q_f32(w + i)));
    for (; i < n; i++) y[i] = a * x[i] * w[i];
}

/* 2^n x for whole n in [-300, 300]: two halves of the exponent, so that it may under- and overflow.
 */
INLINE float32x4_t scale_by_power(float32x4_t x, float32x4_t n) {
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    const int32x4_t rest = vsubq_s32(whole, half), bias = vdupq_n_s32(127);
    const float32x4_t p = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    const float32x4_t q = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    return vmulq_f32(vmulq_f32(x, p), q);
}

/* The method and polynomial of avx512.c. NEON's minimum and maximum keep NaN. */
INLINE float32x4_t exp4(float32x4_t x) {
    x = vmaxq_f32(vdupq_n_f32(-160), vminq_f32(vdupq_n_f32(160), x));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 0x1.715476p+0f));
    float32x4_t r = vfmsq_n_f32(x, n, 0x1.62e4p-1f);
    r = vfmsq_n_f32(r, n, 0x1.7f7d1cp-20f);
    float32x4_t p = vdupq_n_f32(0x1.6a2434p-10f);
    p = vfmaq_f32(vdupq_n_f32(0x1.1239e2p-7f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.5558f2p-5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.555492p-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.fffffcp-2f), p, r);
    p = vfmaq_f32(r, p, vmulq_f32(r, r));
    return scale_by_power(vaddq_f32(p, vdupq_n_f32(1)), n);
}

/* Loads up to four floats; lanes beyond n are `other`. */
INLINE float32x4_t load_part(const float *x, int64_t n, float other) {
    float part[4] = {other, other, other, other};
    memcpy(part, x, (size_t)(n < 4 ? n : 4) * sizeof *part);
    return vld1q_f32(part);
}

INLINE void store_part(float *y, float32x4_t x, int64_t n) {
    float part[4];
    vst1q_f32(part, x);
    memcpy(y, part, (size_t)(n < 4 ? n : 4) * sizeof *part);
}

static void silu_mul(const float *gate, const float *up, float *out, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) {
        const float32x4_t g = load_part(gate + i, n - i, 0);
        const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), exp4(vnegq_f32(g))));
        store_part(out + i, vmulq_f32(silu, load_part(up + i, n - i, 0)), n - i);
    }
}

static float max(const float *x, int64_t n) {
    float32x4_t most = vdupq_n_f32(-INFINITY);
    for (int64_t i = 0; i < n; i += 4) most = vmaxq_f32(most, load_part(x + i, n - i, -INFINITY));
    return vmaxvq_f32(most);
}

static float exp_sum(const float *x, float shift, float *y, int64_t n) {
    float32x4_t sum = vdupq_n_f32(0);
    for (int64_t i = 0; i < n; i += 4) {
        const float32x4_t in = load_part(x + i, n - i, -INFINITY);
        const float32x4_t e = exp4(vsubq_f32(in, vdupq_n_f32(shift)));
        sum = vaddq_f32(sum, e);
        if (y) store_part(y + i, e, n - i);
    }
    return vaddvq_f32(sum);
}

const struct kernels kernels_neon = {
    .name = "neon",
    .tile_rows = {ROWS, ROWS, ROWS},
    .block_k = {BLOCK_K, BLOCK_K, BLOCK_K},
    .pack_a = {pack_a, pack_a, pack_a},
    .tile = {tile_f32_any, tile_bf16_any, tile_bf16_any},
    .transpose = transpose,
    .f16_to_f32 = f16_to_f32,
    .f32_to_bf16 = f32_to_bf16,
    .dot = dot,
    .axpy = axpy,
    .scale = scale,
    .scale_mul = scale_mul,
    .silu_mul = silu_mul,
    .max = max,
    .exp_sum = exp_sum,
};
