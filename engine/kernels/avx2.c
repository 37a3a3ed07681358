/* avx2.c - AVX2 level: f32 FMA; bf16 weights are widened on load (exact)
 *
 * 16 registers hold a tile of 6 x 16 outputs (12 sums), so a panel of 32 is two halves one after
 * the other. Every tile height runs the same code with another constant, hence the same order of
 * operations for each output. bf16 activations are not rounded: the level multiplies f32 only. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "engine/kernels/level.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 6 };

/* All ones in the first n of 8 lanes. */
INLINE __m256i lanes(int64_t n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? (int)n : 8), index);
}

INLINE void store_half(const struct tile *t, __m256 (*acc)[2], const int rows, int column) {
    for (int h = 0; h < 2; h++) {
        const int at = column + 8 * h, left = t->cols - at;
        if (left <= 0) return;
        const __m256i mask = lanes(left);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m256 sum = acc[r][h];
            if (t->initial)
                sum = _mm256_add_ps(sum,
                                    _mm256_maskload_ps(t->initial + r * t->ld_initial + at, mask));
            _mm256_maskstore_ps(t->c + r * t->ldc + at, mask, sum);
        }
    }
}

INLINE void tile_f32(const struct tile *t, const int rows) {
    for (int column = 0; column < t->cols; column += 16) {
        const float *a = t->a, *b = (const float *)t->b + column;
        __m256 acc[ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
        for (int i = 0; i < t->k; i++, a += rows, b += PANEL_COLS) {
            __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
            _mm_prefetch((const char *)b + 2048, _MM_HINT_T0);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                __m256 x = _mm256_broadcast_ss(a + r);
                acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
            }
        }
        store_half(t, acc, rows, column);
    }
}

INLINE void tile_bf16(const struct tile *t, const int rows) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    for (int column = 0; column < t->cols; column += 16) {
        const float *a = t->a;
        const uint32_t *b = (const uint32_t *)t->b + column;
        __m256 acc[ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
        for (int i = 0; i < t->k; i += 2, a += 2 * rows, b += PANEL_COLS) {
            const __m256i *w = (const __m256i *)b;
            __m256 b0 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(w), 16));
            __m256 b1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(w + 1), 16));
            _mm_prefetch((const char *)b + 2048, _MM_HINT_T0);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                __m256 x = _mm256_broadcast_ss(a + r);
                acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
            }
            b0 = _mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(w), high));
            b1 = _mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(w + 1), high));
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                __m256 x = _mm256_broadcast_ss(a + rows + r);
                acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
            }
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

/* 8 rows of 8 words -> their transpose. */
INLINE void transpose8(__m256 r[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    for (int c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
        t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

static void transpose(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k,
                      bool stream) {
    (void)stream;
    for (int64_t i = 0; i < k; i += 8) {
        const int n = k - i < 8 ? (int)(k - i) : 8;
        const __m256i mask = lanes(n);
        for (int part = 0; part < PANEL_COLS; part += 8) {
            __m256 r[8];
            for (int c = 0; c < 8; c++) {
                const char *from = (const char *)src + (part + c) * stride_bytes + i * 4;
                r[c] = part + c < cols ? _mm256_maskload_ps((const float *)from, mask)
                                       : _mm256_setzero_ps();
            }
            transpose8(r);
            for (int j = 0; j < n; j++)
                _mm256_store_ps((float *)(dst + (i + j) * PANEL_COLS + part), r[j]);
        }
    }
}

static void pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    float *a = dst;
    for (int i = 0; i < k; i += 8) {
        const int n = k - i < 8 ? k - i : 8;
        const __m256i mask = lanes(n), store = lanes(rows);
        __m256 r[8];
        for (int c = 0; c < 8; c++)
            r[c] = c < rows ? _mm256_maskload_ps(row[c] + offset + i, mask) : _mm256_setzero_ps();
        transpose8(r);
        for (int j = 0; j < n; j++) _mm256_maskstore_ps(a + (i + j) * rows, store, r[j]);
    }
    if (k % 2) memset(a + k * rows, 0, (size_t)rows * sizeof *a); /* bf16 panels go in pairs */
}

static void f16_to_f32(float *dst, const uint16_t *src, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(src + i))));
    for (; i < n; i++) dst[i] = _cvtsh_ss(src[i]);
}

/* To nearest even, NaN made quiet, as in portable.c; words of a partial vector go through memory.
 */
static void f32_to_bf16(uint16_t *dst, const float *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 8) {
        __m256 x = _mm256_maskload_ps(src + i, lanes(n - i));
        __m256i bits = _mm256_castps_si256(x), up = _mm256_srli_epi32(bits, 16);
        __m256i odd = _mm256_and_si256(up, _mm256_set1_epi32(1));
        __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        __m256i quiet = _mm256_or_si256(up, _mm256_set1_epi32(0x40));
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        __m256i result = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet, nan);
        __m128i words =
            _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
        uint16_t out[8];
        _mm_storeu_si128((void *)out, words);
        memcpy(dst + i, out, (size_t)(n - i < 8 ? n - i : 8) * sizeof *out);
    }
}

INLINE float sum_of(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static float dot(const float *x, const float *y, int64_t n) {
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};
    for (int64_t i = 0; i < n; i += 32)
        for (int j = 0; j < 4 && i + 8 * j < n; j++) {
            const int64_t at = i + 8 * j;
            const __m256i m = lanes(n - at);
            sum[j] = _mm256_fmadd_ps(_mm256_maskload_ps(x + at, m), _mm256_maskload_ps(y + at, m),
                                     sum[j]);
        }
    return sum_of(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

static void axpy(float a, const float *x, float *y, int64_t n) {
    const __m256 va = _mm256_set1_ps(a);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i m = lanes(n - i);
        __m256 sum =
            _mm256_fmadd_ps(va, _mm256_maskload_ps(x + i, m), _mm256_maskload_ps(y + i, m));
        _mm256_maskstore_ps(y + i, m, sum);
    }
}

static void scale(float a, float *x, int64_t n) {
    const __m256 va = _mm256_set1_ps(a);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i m = lanes(n - i);
        _mm256_maskstore_ps(x + i, m, _mm256_mul_ps(va, _mm256_maskload_ps(x + i, m)));
    }
}

static void scale_mul(float a, const float *x, const float *w, float *y, int64_t n) {
    const __m256 va = _mm256_set1_ps(a);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i m = lanes(n - i);
        __m256 ax = _mm256_mul_ps(va, _mm256_maskload_ps(x + i, m));
        _mm256_maskstore_ps(y + i, m, _mm256_mul_ps(ax, _mm256_maskload_ps(w + i, m)));
    }
}

/* 2^n x for whole n in [-300, 300]: two halves of the exponent, so that it may under- and overflow.
 */
INLINE __m256 scale_by_power(__m256 x, __m256 n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(x, p), q);
}

/* The method and polynomial of avx512.c. */
INLINE __m256 exp8(__m256 x) {
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q), in = x;
    x = _mm256_max_ps(_mm256_set1_ps(-160.0f), _mm256_min_ps(_mm256_set1_ps(160.0f), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(0x1.6a2434p-10f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.1239e2p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558f2p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555492p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    __m256 y = scale_by_power(_mm256_add_ps(p, _mm256_set1_ps(1)), n);
    return _mm256_blendv_ps(y, in, nan);
}

static void silu_mul(const float *gate, const float *up, float *out, int64_t n) {
    const __m256 one = _mm256_set1_ps(1);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i m = lanes(n - i);
        __m256 g = _mm256_maskload_ps(gate + i, m);
        __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
        __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
        _mm256_maskstore_ps(out + i, m, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, m)));
    }
}

static float max(const float *x, int64_t n) {
    const __m256 least = _mm256_set1_ps(-INFINITY);
    __m256 most = least;
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i m = lanes(n - i);
        __m256 in = _mm256_blendv_ps(least, _mm256_maskload_ps(x + i, m), _mm256_castsi256_ps(m));
        most = _mm256_max_ps(most, in);
    }
    float lane[8], best = -INFINITY;
    _mm256_storeu_ps(lane, most);
    for (int i = 0; i < 8; i++) best = lane[i] > best ? lane[i] : best;
    return best;
}

static float exp_sum(const float *x, float shift, float *y, int64_t n) {
    const __m256 vs = _mm256_set1_ps(shift);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i m = lanes(n - i);
        __m256 e = exp8(_mm256_sub_ps(_mm256_maskload_ps(x + i, m), vs));
        e = _mm256_and_ps(e, _mm256_castsi256_ps(m));
        sum = _mm256_add_ps(sum, e);
        if (y) _mm256_maskstore_ps(y + i, m, e);
    }
    return sum_of(sum);
}

const struct kernels kernels_avx2 = {
    .name = "avx2",
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
