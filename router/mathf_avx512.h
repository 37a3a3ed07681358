/* mathf_avx512.h - mathf.h on 16 lanes of AVX-512, operation by operation: the same bits
 *
 * Layer 2, private to the AVX-512 files of router/; empty for whoever is not compiled for AVX-512.
 */
#ifndef ROUTER_MATHF_AVX512_H
#define ROUTER_MATHF_AVX512_H

#ifdef __AVX512F__
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

static inline __mmask16 tail_mask(int left) {
    return (__mmask16)(left >= 16 ? 0xffff : (1u << left) - 1);
}

/* Running largest magnitude, as integers. */
static inline __m512i magnitude(__m512i most, __m512 x) {
    const __m512i clear = _mm512_set1_epi32(0x7fffffff);
    return _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(x), clear));
}

/* mathf_exp of -x, for magnitudes below 80, where nothing is clamped, under- or overflows. n times
 * the first part of ln2 is exact, so that the one fused operation rounds as the portable two do;
 * roundscale rounds to the nearest even integer, as adding 1.5 * 2^23 does. */
static inline __m512 exp_minus16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)), 8);
    __m512 r = _mm512_fnmsub_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(1.42860677e-6f)));
    __m512 p = _mm512_set1_ps(1.39304355e-3f);
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(8.36402178e-3f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(4.16663736e-2f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.66664973e-1f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(5.00000060e-1f));
    __m512 e = _mm512_add_ps(r, _mm512_mul_ps(_mm512_mul_ps(r, r), p));
    return _mm512_scalef_ps(_mm512_add_ps(one, e), n);
}
enum { PLAIN = 0x42a00000 }; /* 80 as bits */

/* mathf_exp for all x. scalef rounds once, as the two exact multiplications do together. */
static inline __m512 exp16(__m512 x) {
    x = _mm512_min_ps(x, _mm512_set1_ps(89.0f));
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    return exp_minus16(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f)));
}

static inline __m512 one_over_one_plus(__m512 e) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

/* ---- softmax of up to 16 rows */

/* Lane t <- the 16 lanes of row t folded in half four times: the portable code's tree. */
#define FOLD(name, op)                                                                             \
    static inline __m512 name##_four(const __m512 *r) {                                            \
        __m512 a =                                                                                 \
            op(_mm512_shuffle_f32x4(r[0], r[4], 0x44), _mm512_shuffle_f32x4(r[0], r[4], 0xee));    \
        __m512 b =                                                                                 \
            op(_mm512_shuffle_f32x4(r[8], r[12], 0x44), _mm512_shuffle_f32x4(r[8], r[12], 0xee));  \
        return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));             \
    }                                                                                              \
    static inline __m512 name(const __m512 r[16]) {                                                \
        __m512 a = name##_four(r), b = name##_four(r + 1);                                         \
        __m512 c = name##_four(r + 2), d = name##_four(r + 3);                                     \
        a = op(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));                      \
        c = op(_mm512_shuffle_ps(c, d, 0x44), _mm512_shuffle_ps(c, d, 0xee));                      \
        return op(_mm512_shuffle_ps(a, c, 0x88), _mm512_shuffle_ps(a, c, 0xdd));                   \
    }
FOLD(fold_max, _mm512_max_ps)
FOLD(fold_add, _mm512_add_ps)

/* top[rows] <- the highest of each row; returns the bits of the largest magnitude. */
static inline uint32_t row_maxima(const float *x, int n, int rows, float top[16]) {
    __m512 max[16];
    __m512i most = _mm512_setzero_si512();
    for (int t = 0; t < 16; t++) max[t] = _mm512_set1_ps(-INFINITY);
    for (int t = 0; t < rows; t++, x += n) {
        int i = 0;
        for (; i + 16 <= n; i += 16) {
            __m512 v = _mm512_loadu_ps(x + i);
            most = magnitude(most, v);
            max[t] = _mm512_max_ps(max[t], v);
        }
        __mmask16 m = tail_mask(n - i);
        __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        most = magnitude(most, v);
        max[t] = _mm512_mask_max_ps(max[t], m, max[t], v);
    }
    _mm512_storeu_ps(top, fold_max(max));
    return (uint32_t)_mm512_reduce_max_epi32(most);
}

/* One row: score <- exp(logit - top); returns the 16 partial sums. plain: differences below 80. */
static inline __m512 exp_row(const float *logits, float *score, int n, float highest, bool plain) {
    __m512 top = _mm512_set1_ps(highest), lane = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 x = _mm512_maskz_loadu_ps(m, logits + i);
        __m512 e = plain ? exp_minus16(_mm512_sub_ps(top, x)) : exp16(_mm512_sub_ps(x, top));
        lane = _mm512_mask_add_ps(lane, m, lane, e);
        _mm512_mask_storeu_ps(score + i, m, e);
    }
    return lane;
}

#endif
#endif
