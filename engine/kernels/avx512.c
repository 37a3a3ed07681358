/* avx512.c - AVX-512 level: f32 FMA; bf16 weights are widened on load (exact)
 *
 * A tile holds up to 14 x 32 outputs in 28 registers. For bf16 panels one load brings 16 columns of
 * two consecutive k: the even k is the word shifted up, the odd one is the word masked, so widening
 * costs one cheap instruction a vector. Every tile height runs the same code with another constant,
 * hence the same order of operations for each output. */
#include "engine/kernels/avx512.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE void tile_f32(const struct tile *t, const int rows) {
    const float *a = t->a, *b = t->b;
    __m512 acc[AVX512_ROWS_F32][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    for (int i = 0; i < t->k; i++, a += rows, b += PANEL_COLS) {
        __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
        _mm_prefetch((const char *)b + 2048, _MM_HINT_T0);
        _mm_prefetch((const char *)b + 2048 + 64, _MM_HINT_T0);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[r]);
            acc[r][0] = _mm512_fmadd_ps(x, b0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(x, b1, acc[r][1]);
        }
    }
    avx512_store_tile(t, acc, rows);
}

INLINE void tile_bf16(const struct tile *t, const int rows) {
    const float *a = t->a;
    const uint32_t *b = t->b;
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    __m512 acc[AVX512_ROWS_BF16][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    for (int i = 0; i < t->k; i += 2, a += 2 * rows, b += PANEL_COLS) {
        __m512i w0 = _mm512_load_si512(b), w1 = _mm512_load_si512(b + 16);
        __m512 b0 = _mm512_castsi512_ps(_mm512_slli_epi32(w0, 16));
        __m512 b1 = _mm512_castsi512_ps(_mm512_slli_epi32(w1, 16));
        _mm_prefetch((const char *)b + 2048, _MM_HINT_T0);
        _mm_prefetch((const char *)b + 2048 + 64, _MM_HINT_T0);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[r]);
            acc[r][0] = _mm512_fmadd_ps(x, b0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(x, b1, acc[r][1]);
        }
        b0 = _mm512_castsi512_ps(_mm512_and_si512(w0, high));
        b1 = _mm512_castsi512_ps(_mm512_and_si512(w1, high));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[rows + r]);
            acc[r][0] = _mm512_fmadd_ps(x, b0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(x, b1, acc[r][1]);
        }
    }
    avx512_store_tile(t, acc, rows);
}

#define HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#define DEFINE_BOTH(n)                                                                             \
    static void tile_f32_##n(const struct tile *t) { tile_f32(t, n); }                             \
    static void tile_bf16_##n(const struct tile *t) { tile_bf16(t, n); }
HEIGHTS(DEFINE_BOTH)
static void tile_f32_13(const struct tile *t) { tile_f32(t, 13); }
static void tile_f32_14(const struct tile *t) { tile_f32(t, 14); }

void avx512_tile_f32(const struct tile *t) {
    static const tile_fn of_height[AVX512_ROWS_F32 + 1] = {
#define ROW(n) [n] = tile_f32_##n,
        HEIGHTS(ROW) ROW(13) ROW(14)
#undef ROW
    };
    of_height[t->rows](t);
}

void avx512_tile_bf16(const struct tile *t) {
    static const tile_fn of_height[AVX512_ROWS_BF16 + 1] = {
#define ROW(n) [n] = tile_bf16_##n,
        HEIGHTS(ROW)
#undef ROW
    };
    of_height[t->rows](t);
}

/* 16 rows of 16 words -> their transpose. */
INLINE void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    /* r[4 g + c] holds column 4 lane + c of rows 4 g .. 4 g + 3 in each lane */
    for (int c = 0; c < 4; c++) {
        __m512i x = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        __m512i y = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i z = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i w = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(x, z, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(x, z, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(y, w, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(y, w, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* A streamed block skips the caches: without the read for ownership, and with the source fetched 16
 * lines ahead (the hardware does not follow 32 rows), packing went from 5 to 13 GB/s of weights. */
INLINE void transpose_block(uint32_t *dst, const void *src, int64_t stride_bytes, int cols,
                            int64_t k, const bool stream) {
    for (int64_t i = 0; i < k; i += 16) {
        const int n = k - i < 16 ? (int)(k - i) : 16;
        const __mmask16 mask = (__mmask16)((1u << n) - 1);
        for (int half = 0; half < PANEL_COLS; half += 16) {
            __m512i r[16];
            for (int c = 0; c < 16; c++) {
                const char *from = (const char *)src + (half + c) * stride_bytes + i * 4;
                if (stream) _mm_prefetch(from + 1024, _MM_HINT_T1);
                r[c] =
                    half + c < cols ? _mm512_maskz_loadu_epi32(mask, from) : _mm512_setzero_si512();
            }
            transpose16(r);
            __m512i *to = (__m512i *)(dst + i * PANEL_COLS + half);
            for (int j = 0; j < n; j++, to += PANEL_COLS / 16) {
                if (stream) {
                    _mm512_stream_si512(to, r[j]);
                } else {
                    _mm512_store_si512(to, r[j]);
                }
            }
        }
    }
}

void avx512_transpose(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k,
                      bool stream) {
    if (stream) {
        transpose_block(dst, src, stride_bytes, cols, k, true);
        _mm_sfence(); /* before another thread is told that the panel is there */
    } else {
        transpose_block(dst, src, stride_bytes, cols, k, false);
    }
}

void avx512_pack_words(uint32_t *dst, const uint32_t *const *row, int rows, int k) {
    for (int i = 0; i < k; i += 16) {
        const int n = k - i < 16 ? k - i : 16;
        const __mmask16 mask = (__mmask16)((1u << n) - 1);
        const __mmask16 store = (__mmask16)((1u << rows) - 1);
        __m512i r[16];
        for (int c = 0; c < 16; c++)
            r[c] = c < rows ? _mm512_maskz_loadu_epi32(mask, row[c] + i) : _mm512_setzero_si512();
        transpose16(r);
        for (int j = 0; j < n; j++) _mm512_mask_storeu_epi32(dst + (i + j) * rows, store, r[j]);
    }
}

void avx512_pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    const uint32_t *at[16];
    for (int r = 0; r < rows; r++) at[r] = (const uint32_t *)(row[r] + offset);
    avx512_pack_words(dst, at, rows, k);
    if (k % 2) memset((float *)dst + k * rows, 0, (size_t)rows * sizeof(float)); /* pairs */
}

void avx512_f16_to_f32(float *dst, const uint16_t *src, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(src + i))));
    for (; i < n; i++) dst[i] = _cvtsh_ss(src[i]);
}

/* To nearest even, NaN made quiet, as in portable.c. */
void avx512_round(uint16_t *dst, const float *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        __m512 x = _mm512_maskz_loadu_ps(mask, src + i);
        __m512i bits = _mm512_castps_si512(x), up = _mm512_srli_epi32(bits, 16);
        __m512i odd = _mm512_and_si512(up, _mm512_set1_epi32(1));
        __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        __m512i quiet = _mm512_or_si512(up, _mm512_set1_epi32(0x40));
        __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        __m512i result = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, quiet);
        _mm512_mask_cvtepi32_storeu_epi16(dst + i, mask, result);
    }
}

INLINE __mmask16 tail(int64_t left) {
    return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

float avx512_dot(const float *x, const float *y, int64_t n) {
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    for (int64_t i = 0; i < n; i += 64)
        for (int j = 0; j < 4 && i + 16 * j < n; j++) {
            const int64_t at = i + 16 * j;
            const __mmask16 m = tail(n - at);
            sum[j] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, x + at),
                                     _mm512_maskz_loadu_ps(m, y + at), sum[j]);
        }
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

void avx512_axpy(float a, const float *x, float *y, int64_t n) {
    const __m512 va = _mm512_set1_ps(a);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail(n - i);
        __m512 sum =
            _mm512_fmadd_ps(va, _mm512_maskz_loadu_ps(m, x + i), _mm512_maskz_loadu_ps(m, y + i));
        _mm512_mask_storeu_ps(y + i, m, sum);
    }
}

void avx512_scale(float a, float *x, int64_t n) {
    const __m512 va = _mm512_set1_ps(a);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail(n - i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_mul_ps(va, _mm512_maskz_loadu_ps(m, x + i)));
    }
}

void avx512_scale_mul(float a, const float *x, const float *w, float *y, int64_t n) {
    const __m512 va = _mm512_set1_ps(a);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail(n - i);
        __m512 ax = _mm512_mul_ps(va, _mm512_maskz_loadu_ps(m, x + i));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(ax, _mm512_maskz_loadu_ps(m, w + i)));
    }
}

/* exp(x) = 2^n e^r, n = rint(x / ln 2), r = x - n ln 2 in two parts (Cody and Waite), e^r by a
 * polynomial of degree 6 (minimax on [-ln2/2, ln2/2], error 3e-9); within 1 ulp of the exact value.
 * Underflows to 0 below -104, overflows to infinity above 88.8; NaN stays NaN. */
INLINE __m512 exp16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* second operand wins for NaN */
    x = _mm512_min_ps(_mm512_set1_ps(200.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_set1_ps(0x1.6a2434p-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.1239e2p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558f2p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555492p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1)), n);
}

void avx512_silu_mul(const float *gate, const float *up, float *out, int64_t n) {
    const __m512 one = _mm512_set1_ps(1);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail(n - i);
        __m512 g = _mm512_maskz_loadu_ps(m, gate + i);
        __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(m, up + i)));
    }
}

float avx512_max(const float *x, int64_t n) {
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 most = least;
    for (int64_t i = 0; i < n; i += 16)
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, tail(n - i), x + i));
    return _mm512_reduce_max_ps(most);
}

float avx512_exp_sum(const float *x, float shift, float *y, int64_t n) {
    const __m512 vs = _mm512_set1_ps(shift);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail(n - i);
        __m512 e = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), vs));
        sum = _mm512_mask_add_ps(sum, m, sum, e);
        if (y) _mm512_mask_storeu_ps(y + i, m, e);
    }
    return _mm512_reduce_add_ps(sum);
}

const struct kernels kernels_avx512 = {
    .name = "avx512",
    .tile_rows = {AVX512_ROWS_F32, AVX512_ROWS_BF16, AVX512_ROWS_BF16},
    .block_k = {BLOCK_K, BLOCK_K, BLOCK_K},
    .pack_a = {avx512_pack_a, avx512_pack_a, avx512_pack_a},
    .tile = {avx512_tile_f32, avx512_tile_bf16, avx512_tile_bf16},
    AVX512_COMMON,
    .f32_to_bf16 = avx512_round,
};
