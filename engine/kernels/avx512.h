/* avx512.h - functions of the AVX-512 level that avx512bf16 and amx share (private to kernels/) */
#ifndef ENGINE_KERNELS_AVX512_H
#define ENGINE_KERNELS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "engine/kernels/level.h"

enum { AVX512_ROWS_F32 = 14, AVX512_ROWS_BF16 = 12 };

void avx512_tile_f32(const struct tile *t);
void avx512_tile_bf16(const struct tile *t);
void avx512_pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k);
/* dst[k][rows] <- row[rows][k], words, rows <= 16. */
void avx512_pack_words(uint32_t *dst, const uint32_t *const *row, int rows, int k);
void avx512_transpose(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k,
                      bool stream);
void avx512_round(uint16_t *dst, const float *src, int64_t n);
void avx512_f16_to_f32(float *dst, const uint16_t *src, int64_t n);
float avx512_dot(const float *x, const float *y, int64_t n);
void avx512_axpy(float a, const float *x, float *y, int64_t n);
void avx512_scale(float a, float *x, int64_t n);
void avx512_scale_mul(float a, const float *x, const float *w, float *y, int64_t n);
void avx512_silu_mul(const float *gate, const float *up, float *out, int64_t n);
float avx512_max(const float *x, int64_t n);
float avx512_exp_sum(const float *x, float shift, float *y, int64_t n);

/* Columns of half h (0, 1) of a tile that exist. */
static inline __mmask16 avx512_columns(int cols, int half) {
    int n = cols - half * 16;
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

static inline __attribute__((always_inline)) void
avx512_store_tile(const struct tile *t, __m512 (*acc)[2], const int rows) {
    const __mmask16 m[2] = {avx512_columns(t->cols, 0), avx512_columns(t->cols, 1)};
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512 sum = acc[r][h];
            if (t->initial)
                sum = _mm512_add_ps(
                    sum, _mm512_maskz_loadu_ps(m[h], t->initial + r * t->ld_initial + h * 16));
            _mm512_mask_storeu_ps(t->c + r * t->ldc + h * 16, m[h], sum);
        }
}

/* What the three AVX-512 levels have in common in their tables. */
#define AVX512_COMMON                                                                              \
    .transpose = avx512_transpose, .f16_to_f32 = avx512_f16_to_f32, .dot = avx512_dot,             \
    .axpy = avx512_axpy, .scale = avx512_scale, .scale_mul = avx512_scale_mul,                     \
    .silu_mul = avx512_silu_mul, .max = avx512_max, .exp_sum = avx512_exp_sum

#endif
