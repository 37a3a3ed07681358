/* avx512.h - functions of the AVX-512 level that avx512bf16 and amx share (private to kernels/) */
#ifndef ENGINE_KERNELS_AVX512_H
#define ENGINE_KERNELS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "engine/kernels/level.h"

void avx512_tile_f32(const struct tile *t);
void avx512_tile_bf16(const struct tile *t);
void avx512_pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k);
/* dst[k][rows] <- row[rows][k], words, rows <= 16. */
void avx512_pack_words(uint32_t *dst, const uint32_t *const *row, int rows, int k);
void avx512_transpose(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k);
void avx512_f16_to_f32(float *dst, const uint16_t *src, int64_t n);
float avx512_dot(const float *x, const float *y, int64_t n);
void avx512_axpy(float a, const float *x, float *y, int64_t n);
void avx512_scale(float a, float *x, int64_t n);
void avx512_scale_mul(float a, const float *x, const float *w, float *y, int64_t n);
void avx512_silu_mul(const float *gate, const float *up, float *out, int64_t n);
float avx512_max(const float *x, int64_t n);
float avx512_exp_sum(const float *x, float shift, float *y, int64_t n);

/* What the three AVX-512 levels have in common in their tables. */
#define AVX512_COMMON                                                                              \
    .transpose = avx512_transpose, .f16_to_f32 = avx512_f16_to_f32, .dot = avx512_dot,             \
    .axpy = avx512_axpy, .scale = avx512_scale, .scale_mul = avx512_scale_mul,                     \
    .silu_mul = avx512_silu_mul, .max = avx512_max, .exp_sum = avx512_exp_sum

#endif
