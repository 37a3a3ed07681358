/* portable.c - the truth: every kernel in plain C, written to be read
 *
 * No intrinsics, no assumptions about the CPU; all other levels are tested against these functions.
 * Activations of a tile are packed [k][rows] in f32; for PANEL_DOT they are rounded to bf16 first.
 */
#include "engine/kernels/level.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

enum { TILE_ROWS = 8 };

static uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* To nearest, ties to even; NaN stays NaN (quiet). */
static uint16_t bf16_of(float x) {
    uint32_t bits = float_to_bits(x);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static void f16_to_f32(float *dst, const uint16_t *src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = half_f16(src[i]);
}

static void f32_to_bf16(uint16_t *dst, const float *src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = bf16_of(src[i]);
}

static void transpose(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k,
                      bool stream) {
    (void)stream;
    const char *from = src;
    for (int64_t i = 0; i < k; i++)
        for (int c = 0; c < PANEL_COLS; c++) {
            dst[i * PANEL_COLS + c] = 0;
            if (c < cols)
                memcpy(&dst[i * PANEL_COLS + c], from + c * stride_bytes + i * 4, sizeof *dst);
        }
}

/* w[32] <- the weights of a panel's outputs at input i */
static void weights_f32(const void *panel, int i, float w[static PANEL_COLS]) {
    memcpy(w, (const float *)panel + i * PANEL_COLS, PANEL_COLS * sizeof *w);
}

static void weights_bf16(const void *panel, int i, float w[static PANEL_COLS]) {
    const uint16_t *b = (const uint16_t *)panel + i / 2 * PANEL_COLS * 2 + i % 2;
    for (int c = 0; c < PANEL_COLS; c++) w[c] = half_bf16(b[2 * c]);
}

static void pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    float *a = dst;
    for (int i = 0; i < k; i++)
        for (int r = 0; r < rows; r++) a[i * rows + r] = row[r][offset + i];
}

static void pack_a_rounded(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    float *a = dst;
    for (int i = 0; i < k; i++)
        for (int r = 0; r < rows; r++) a[i * rows + r] = half_bf16(bf16_of(row[r][offset + i]));
}

/* All sums of a tile advance together, each in the order of k: the inner loop runs over the panel's
 * columns, which any compiler can do several at a time. */
static void tile_of(const struct tile *t,
                    void (*weights)(const void *panel, int i, float w[static PANEL_COLS])) {
    float sum[TILE_ROWS][PANEL_COLS] = {{0}}, w[PANEL_COLS];
    for (int i = 0; i < t->k; i++) {
        const float *a = (const float *)t->a + i * t->rows;
        weights(t->b, i, w);
        for (int r = 0; r < t->rows; r++)
            for (int c = 0; c < PANEL_COLS; c++) sum[r][c] += a[r] * w[c];
    }
    for (int r = 0; r < t->rows; r++)
        for (int c = 0; c < t->cols; c++) {
            if (t->initial) sum[r][c] += t->initial[r * t->ld_initial + c];
            t->c[r * t->ldc + c] = sum[r][c];
        }
}

static void tile_f32(const struct tile *t) { tile_of(t, weights_f32); }
static void tile_bf16(const struct tile *t) { tile_of(t, weights_bf16); }

static float dot(const float *x, const float *y, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

static void axpy(float a, const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void scale(float a, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= a;
}

static void scale_mul(float a, const float *x, const float *w, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = a * x[i] * w[i];
}

static void silu_mul(const float *gate, const float *up, float *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static float max(const float *x, int64_t n) {
    float most = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > most) most = x[i];
    return most;
}

static float exp_sum(const float *x, float shift, float *y, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float e = expf(x[i] - shift);
        if (y) y[i] = e;
        sum += e;
    }
    return sum;
}

const struct kernels kernels_portable = {
    .name = "portable",
    .tile_rows = {TILE_ROWS, TILE_ROWS, TILE_ROWS},
    .block_k = {BLOCK_K, BLOCK_K, BLOCK_K},
    .pack_a = {pack_a, pack_a, pack_a_rounded},
    .tile = {tile_f32, tile_bf16, tile_bf16},
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
