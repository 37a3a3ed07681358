/* route_avx512.c - the inner loops of routing in AVX-512, bit for bit the portable results
 *
 * 16 lanes are the 16 partial sums of the portable code. No fused multiply-add anywhere: it would
 * round once where the portable code rounds twice. */
#include <immintrin.h>
#include <math.h>

#include "router/route_kernels.h"

static __mmask16 tail_mask(int left) { return (__mmask16)(left >= 16 ? 0xffff : (1u << left) - 1); }

static int64_t first_not_finite(const float *x, int64_t n) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 valid = tail_mask(n - i > 16 ? 16 : (int)(n - i));
        __m512i bits = _mm512_maskz_loadu_epi32(valid, x + i);
        __mmask16 bad = _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
        if (bad) return i + __builtin_ctz(bad);
    }
    return -1;
}

/* ---- scores: mathf.h, operation by operation */

/* mathf_exp. scalef rounds once, as the two exact multiplications do together. */
static inline __m512 exp16(__m512 x) {
    const __m512 magic = _mm512_set1_ps(12582912.0f), one = _mm512_set1_ps(1.0f);
    x = _mm512_min_ps(x, _mm512_set1_ps(89.0f));
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), magic);
    n = _mm512_sub_ps(n, magic);
    __m512 r = _mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(0.693145752f)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(1.42860677e-6f)));
    __m512 p = _mm512_set1_ps(1.39304355e-3f);
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(8.36402178e-3f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(4.16663736e-2f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.66664973e-1f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(5.00000060e-1f));
    __m512 e = _mm512_add_ps(r, _mm512_mul_ps(_mm512_mul_ps(r, r), p));
    return _mm512_scalef_ps(_mm512_add_ps(one, e), n);
}

/* mathf_log1p. */
static inline __m512 log1p16(__m512 y) {
    __m512 z = _mm512_div_ps(y, _mm512_add_ps(_mm512_set1_ps(2.0f), y));
    __m512 q = _mm512_mul_ps(z, z), s = _mm512_set1_ps(1.0f / 15.0f);
    static const float series[] = {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3};
    for (int i = 0; i < 6; i++) s = _mm512_add_ps(_mm512_mul_ps(s, q), _mm512_set1_ps(series[i]));
    __m512 high = _mm512_mul_ps(_mm512_mul_ps(z, q), s);
    return _mm512_mul_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(z, high));
}

static void score_sigmoid(const float *logits, float *score, int n) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 e = exp16(_mm512_sub_ps(zero, _mm512_maskz_loadu_ps(m, logits + i)));
        _mm512_mask_storeu_ps(score + i, m, _mm512_div_ps(one, _mm512_add_ps(one, e)));
    }
}

static void score_sqrtsoftplus(const float *logits, float *score, int n) {
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 x = _mm512_maskz_loadu_ps(m, logits + i);
        __m512 tail = log1p16(exp16(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x))));
        __m512 soft = _mm512_add_ps(_mm512_max_ps(x, _mm512_setzero_ps()), tail);
        _mm512_mask_storeu_ps(score + i, m, _mm512_sqrt_ps(soft));
    }
}

static float lane_tree(__m512 lane) {
    float x[16];
    _mm512_storeu_ps(x, lane);
    __m256 eight = _mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static void score_softmax(const float *logits, float *score, int n) {
    __m512 max = _mm512_set1_ps(logits[0]), lane = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        max = _mm512_mask_max_ps(max, m, max, _mm512_maskz_loadu_ps(m, logits + i));
    }
    __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(max));
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 e = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, logits + i), top));
        lane = _mm512_mask_add_ps(lane, m, lane, e);
        _mm512_mask_storeu_ps(score + i, m, e);
    }
    __m512 sum = _mm512_set1_ps(lane_tree(lane));
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        _mm512_mask_storeu_ps(score + i, m,
                              _mm512_div_ps(_mm512_maskz_loadu_ps(m, score + i), sum));
    }
}

static void score_identity(const float *logits, float *score, int n) {
    route_kernels_portable.score[SCORE_IDENTITY](logits, score, n);
}

static void add_bias(const float *score, const float *bias, float *choice, int n) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 c = _mm512_maskz_loadu_ps(m, score + i);
        if (bias) c = _mm512_add_ps(c, _mm512_maskz_loadu_ps(m, bias + i));
        _mm512_storeu_ps(choice + i, _mm512_mask_blend_ps(m, none, c));
    }
}

/* ---- selection */

/* The two highest of 16 lanes of (high, low), in lane 0 of each. */
struct pair {
    __m512 high, low;
};

static inline struct pair pair_merge(struct pair a, struct pair b) {
    __m512 low = _mm512_max_ps(_mm512_min_ps(a.high, b.high), _mm512_max_ps(a.low, b.low));
    return (struct pair){_mm512_max_ps(a.high, b.high), low};
}

static inline struct pair pair_reduce(struct pair p) {
    struct pair q = {_mm512_shuffle_f32x4(p.high, p.high, 0x4e),
                     _mm512_shuffle_f32x4(p.low, p.low, 0x4e)};
    p = pair_merge(p, q);
    q = (struct pair){_mm512_shuffle_f32x4(p.high, p.high, 0xb1),
                      _mm512_shuffle_f32x4(p.low, p.low, 0xb1)};
    p = pair_merge(p, q);
    q = (struct pair){_mm512_permute_ps(p.high, 0x4e), _mm512_permute_ps(p.low, 0x4e)};
    p = pair_merge(p, q);
    q = (struct pair){_mm512_permute_ps(p.high, 0xb1), _mm512_permute_ps(p.low, 0xb1)};
    return pair_merge(p, q);
}

static void group_scores(const float *choice, int groups, int size, int best, float *group_score) {
    if (best > 2 || size < 16 || size % 16 != 0) {
        route_kernels_portable.group_scores(choice, groups, size, best, group_score);
        return;
    }
    const __m512 none = _mm512_set1_ps(-INFINITY);
    for (int g = 0; g < groups; g++, choice += size) {
        struct pair p = {_mm512_loadu_ps(choice), none};
        for (int i = 16; i < size; i += 16)
            p = pair_merge(p, (struct pair){_mm512_loadu_ps(choice + i), none});
        p = pair_reduce(p);
        float high = _mm512_cvtss_f32(p.high), low = _mm512_cvtss_f32(p.low);
        group_score[g] = best == 2 ? high + low : high;
    }
}

/* One step of the bitonic sorter: lanes in `upper` keep the minimum of themselves and their
 * partner. */
static inline __m512 sort_step(__m512 x, __m512i partner, __mmask16 upper) {
    __m512 y = _mm512_permutexvar_ps(partner, x);
    return _mm512_mask_min_ps(_mm512_max_ps(x, y), upper, x, y);
}

/* Sorts 16 lanes, highest first (Batcher's bitonic network, ten steps). */
static inline __m512 sort16(__m512 x) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#define PARTNER(d) _mm512_xor_si512(lane, _mm512_set1_epi32(d))
    x = sort_step(x, PARTNER(1), 0x6666);
    x = sort_step(x, PARTNER(2), 0x3c3c);
    x = sort_step(x, PARTNER(1), 0x5a5a);
    x = sort_step(x, PARTNER(4), 0x0ff0);
    x = sort_step(x, PARTNER(2), 0x33cc);
    x = sort_step(x, PARTNER(1), 0x55aa);
    x = sort_step(x, PARTNER(8), 0xff00);
    x = sort_step(x, PARTNER(4), 0xf0f0);
    x = sort_step(x, PARTNER(2), 0xcccc);
    return sort_step(x, PARTNER(1), 0xaaaa);
#undef PARTNER
}

/* A value that at least k of x[n] reach: the k-th highest of 16 lane maxima. */
static inline float lower_bound(const float *x, int n, int k) {
    __m512 max = _mm512_loadu_ps(x);
    for (int i = 16; i < n; i += 16) max = _mm512_max_ps(max, _mm512_loadu_ps(x + i));
    __m512 sorted = sort16(max);
    return _mm512_cvtss_f32(_mm512_permutexvar_ps(_mm512_set1_epi32(k - 1), sorted));
}

enum { MOST = 32 }; /* candidates that the fast path ranks */

/* Puts the candidates (value, index; rising index) in place by counting who comes before each. */
static inline void rank(const float *value, const int32_t *index, int count, int k, int32_t *best) {
    __m512 a = _mm512_loadu_ps(value), b = _mm512_loadu_ps(value + 16);
    for (int i = 0; i < count; i++) {
        __m512 x = _mm512_set1_ps(value[i]);
        unsigned gt = _mm512_cmp_ps_mask(a, x, _CMP_GT_OQ);
        unsigned eq = _mm512_cmp_ps_mask(a, x, _CMP_EQ_OQ);
        if (count > 16) {
            gt |= (unsigned)_mm512_cmp_ps_mask(b, x, _CMP_GT_OQ) << 16;
            eq |= (unsigned)_mm512_cmp_ps_mask(b, x, _CMP_EQ_OQ) << 16;
        }
        int at = __builtin_popcount(gt | (eq & ((1u << i) - 1)));
        if (at < k) best[at] = index[i];
    }
}

static void top(const float *x, int n, int k, int32_t *best) {
    if (k > 16 || n < 32) {
        route_kernels_portable.top(x, n, k, best);
        return;
    }
    float value[MOST + 16];
    int32_t index[MOST + 16];
    const __m512 least = _mm512_set1_ps(lower_bound(x, n, k)), none = _mm512_set1_ps(-INFINITY);
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int count = 0;
    for (int i = 0; i < n; i += 16, lane = _mm512_add_epi32(lane, _mm512_set1_epi32(16))) {
        __m512 v = _mm512_loadu_ps(x + i);
        __mmask16 reach = _mm512_cmp_ps_mask(v, least, _CMP_GE_OQ) & tail_mask(n - i);
        if (!reach) continue;
        _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(reach, v));
        _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(reach, lane));
        count += __builtin_popcount(reach);
        if (count > MOST) { /* many ties or an unlucky spread over lanes */
            route_kernels_portable.top(x, n, k, best);
            return;
        }
    }
    _mm512_storeu_ps(value + count, none); /* pads what rank reads behind the last candidate */
    if (count < 16) _mm512_storeu_ps(value + 16, none);
    rank(value, index, count, k, best);
}

const struct route_kernels route_kernels_avx512 = {
    .name = "avx512",
    .first_not_finite = first_not_finite,
    .score = {[SCORE_SOFTMAX] = score_softmax,
              [SCORE_SIGMOID] = score_sigmoid,
              [SCORE_SQRTSOFTPLUS] = score_sqrtsoftplus,
              [SCORE_IDENTITY] = score_identity},
    .add_bias = add_bias,
    .group_scores = group_scores,
    .top = top};
