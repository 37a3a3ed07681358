/* avx512bf16.c - AVX512-BF16 level: bf16 products by vdpbf16ps; all else is the AVX-512 level
 *
 * vdpbf16ps adds two products of bf16 pairs to each of 16 f32 sums: twice the f32 rate on Zen 4 and
 * 5 (half of it on Sapphire Rapids, where kernels.c prefers widening). A tile is 14 x 32 outputs as
 * in avx512.c; activations are rounded to bf16 while they are packed. The instruction flushes
 * denormals and rounds to nearest regardless of MXCSR, so results do not depend on the environment.
 */
#include "engine/kernels/avx512.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS_DOT = 14 };

INLINE void tile_dot(const struct tile *t, const int rows) {
    const uint32_t *a = t->a, *b = t->b;
    __m512 acc[ROWS_DOT][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    for (int i = 0; i < t->k; i += 2, a += rows, b += PANEL_COLS) {
        __m512bh b0 = (__m512bh)_mm512_load_si512(b), b1 = (__m512bh)_mm512_load_si512(b + 16);
        _mm_prefetch((const char *)b + 2048, _MM_HINT_T0);
        _mm_prefetch((const char *)b + 2048 + 64, _MM_HINT_T0);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[r]);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, b0);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, b1);
        }
    }
    avx512_store_tile(t, acc, rows);
}

#define HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define DEFINE(n)                                                                                  \
    static void tile_dot_##n(const struct tile *t) { tile_dot(t, n); }
HEIGHTS(DEFINE)

static void tile_any(const struct tile *t) {
    static const tile_fn of_height[ROWS_DOT + 1] = {
#define ROW(n) [n] = tile_dot_##n,
        HEIGHTS(ROW)
#undef ROW
    };
    of_height[t->rows](t);
}

static void round_to_bf16(uint16_t *dst, const float *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, src + i));
        _mm256_mask_storeu_epi16(dst + i, mask, (__m256i)half);
    }
}

static void pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    uint32_t words[ROWS_DOT][BLOCK_K_DOT / 2];
    const uint32_t *at[ROWS_DOT];
    for (int r = 0; r < rows; r++) {
        if (k % 2) words[r][k / 2] = 0;
        round_to_bf16((uint16_t *)words[r], row[r] + offset, k);
        at[r] = words[r];
    }
    avx512_pack_words(dst, at, rows, (k + 1) / 2);
}

const struct kernels kernels_avx512bf16 = {
    .name = "avx512bf16",
    AVX512_COMMON,
    .tile_rows = {AVX512_ROWS_F32, AVX512_ROWS_BF16, ROWS_DOT},
    .block_k = {BLOCK_K, BLOCK_K, BLOCK_K_DOT},
    .pack_a = {avx512_pack_a, avx512_pack_a, pack_a},
    .tile = {avx512_tile_f32, avx512_tile_bf16, tile_any},
    .f32_to_bf16 = round_to_bf16,
};
