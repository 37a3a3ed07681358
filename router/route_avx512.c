/* route_avx512.c - the inner loops of routing in AVX-512, bit for bit the portable results
 *
 * 16 lanes are the 16 partial sums of the portable code. No fused multiply-add anywhere: it would
 * round once where the portable code rounds twice. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "router/mathf_avx512.h"
#include "router/route_kernels.h"

/* One comparison for all: the largest magnitude as an integer tells whether any is not finite. */
static int64_t first_not_finite(const float *x, int64_t n) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 valid = tail_mask(n - i > 16 ? 16 : (int)(n - i));
        __m512i bits = _mm512_maskz_loadu_epi32(valid, x + i);
        most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
    }
    if (_mm512_reduce_max_epi32(most) < 0x7f800000) return -1;
    return route_kernels_portable.first_not_finite(x, n);
}

/* ---- scores */

/* mathf_log1p. */
static inline __m512 log1p16(__m512 y) {
    __m512 z = _mm512_div_ps(y, _mm512_add_ps(_mm512_set1_ps(2.0f), y));
    __m512 q = _mm512_mul_ps(z, z), s = _mm512_set1_ps(1.0f / 15.0f);
    static const float series[] = {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3};
    for (int i = 0; i < 6; i++) s = _mm512_add_ps(_mm512_mul_ps(s, q), _mm512_set1_ps(series[i]));
    __m512 high = _mm512_mul_ps(_mm512_mul_ps(z, q), s);
    return _mm512_mul_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(z, high));
}

static void sigmoid_clamped(const float *logits, float *score, int n) {
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 x = _mm512_maskz_loadu_ps(m, logits + i);
        x = exp16(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f)));
        _mm512_mask_storeu_ps(score + i, m, one_over_one_plus(x));
    }
}

/* Four vectors at a time: the steps of one wait for each other. Logits come from far away and the
 * hardware's prefetch stops at the end of a page: a page ahead is asked for (8 % of a replay). */
static uint32_t score_sigmoid(const float *logits, float *score, int n, int rows) {
    __m512i most = _mm512_setzero_si512();
    int i = 0, all = n * rows;
    if (logits == score) {
        sigmoid_clamped(logits, score, all);
        return 0;
    }
    for (; i + 64 <= all; i += 64) {
        __m512 x[4];
        for (int j = 0; j < 4; j++) {
            _mm_prefetch((const char *)(logits + i + 16 * j) + 4096, _MM_HINT_T0);
            x[j] = _mm512_loadu_ps(logits + i + 16 * j);
            most = magnitude(most, x[j]);
        }
        for (int j = 0; j < 4; j++) x[j] = one_over_one_plus(exp_minus16(x[j]));
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(score + i + 16 * j, x[j]);
    }
    for (; i < all; i += 16) {
        __mmask16 m = tail_mask(all - i);
        __m512 x = _mm512_maskz_loadu_ps(m, logits + i);
        most = magnitude(most, x);
        _mm512_mask_storeu_ps(score + i, m, one_over_one_plus(exp_minus16(x)));
    }
    uint32_t largest = (uint32_t)_mm512_reduce_max_epi32(most);
    if (largest >= PLAIN) sigmoid_clamped(logits, score, all);
    return largest;
}

static uint32_t score_sqrtsoftplus(const float *logits, float *score, int n, int rows) {
    __m512i most = _mm512_setzero_si512();
    for (int i = 0, all = n * rows; i < all; i += 16) {
        __mmask16 m = tail_mask(all - i);
        __m512 x = _mm512_maskz_loadu_ps(m, logits + i);
        most = magnitude(most, x);
        __m512 tail = log1p16(exp16(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x))));
        __m512 soft = _mm512_add_ps(_mm512_max_ps(x, _mm512_setzero_ps()), tail);
        _mm512_mask_storeu_ps(score + i, m, _mm512_sqrt_ps(soft));
    }
    return (uint32_t)_mm512_reduce_max_epi32(most);
}

static uint32_t softmax_rows(const float *logits, float *score, int n, int rows) {
    float top[16], sum[16];
    __m512 lane[16];
    uint32_t largest = row_maxima(logits, n, rows, top);
    bool plain = largest < PLAIN - (1 << 23); /* below half of it: so are all differences */
    for (int t = 0; t < 16; t++) lane[t] = _mm512_setzero_ps();
    for (int t = 0; t < rows; t++)
        lane[t] = exp_row(logits + t * n, score + t * n, n, top[t], plain);
    _mm512_storeu_ps(sum, fold_add(lane));
    for (int t = 0; t < rows; t++, score += n) {
        __m512 divisor = _mm512_set1_ps(sum[t]);
        for (int i = 0; i < n; i += 16) {
            __mmask16 m = tail_mask(n - i);
            __m512 x = _mm512_maskz_loadu_ps(m, score + i);
            _mm512_mask_storeu_ps(score + i, m, _mm512_div_ps(x, divisor));
        }
    }
    return largest;
}

static uint32_t score_softmax(const float *logits, float *score, int n, int rows) {
    uint32_t most = 0;
    for (int t = 0; t < rows; t += 16) {
        int count = rows - t < 16 ? rows - t : 16;
        uint32_t largest = softmax_rows(logits + t * n, score + t * n, n, count);
        most = largest > most ? largest : most;
    }
    return most;
}

/* Rare ones: the portable loops. */
static uint32_t score_relu(const float *logits, float *score, int n, int rows) {
    return route_kernels_portable.score[SCORE_RELU](logits, score, n, rows);
}

static uint32_t score_tanh(const float *logits, float *score, int n, int rows) {
    return route_kernels_portable.score[SCORE_TANH](logits, score, n, rows);
}

static uint32_t score_identity(const float *logits, float *score, int n, int rows) {
    return route_kernels_portable.score[SCORE_IDENTITY](logits, score, n, rows);
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

/* The two highest, lane by lane. */
struct pair {
    __m512 high, low;
};

static inline struct pair pair_merge(struct pair a, struct pair b) {
    __m512 low = _mm512_max_ps(_mm512_min_ps(a.high, b.high), _mm512_max_ps(a.low, b.low));
    return (struct pair){_mm512_max_ps(a.high, b.high), low};
}

/* The two highest of each lane over the vectors of one group; none where g is beyond the last. */
static inline struct pair group_pair(const struct route_groups *groups, const float *choice,
                                     int g) {
    struct pair p = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
    if (g >= groups->count) return p;
    choice += g * groups->size;
    p.high = _mm512_loadu_ps(choice);
    for (int i = 16; i < groups->size; i += 16) {
        __m512 x = _mm512_loadu_ps(choice + i);
        p.low = _mm512_max_ps(p.low, _mm512_min_ps(p.high, x));
        p.high = _mm512_max_ps(p.high, x);
    }
    return p;
}

/* Lanes 0-7 <- a folded in half, lanes 8-15 <- b folded in half. */
static inline struct pair fold_halves(struct pair a, struct pair b) {
    struct pair x = {_mm512_shuffle_f32x4(a.high, b.high, 0x44),
                     _mm512_shuffle_f32x4(a.low, b.low, 0x44)};
    struct pair y = {_mm512_shuffle_f32x4(a.high, b.high, 0xee),
                     _mm512_shuffle_f32x4(a.low, b.low, 0xee)};
    return pair_merge(x, y);
}

/* Four lanes for each half of a, then of b. */
static inline struct pair fold_quarters(struct pair a, struct pair b) {
    struct pair x = {_mm512_shuffle_f32x4(a.high, b.high, 0x88),
                     _mm512_shuffle_f32x4(a.low, b.low, 0x88)};
    struct pair y = {_mm512_shuffle_f32x4(a.high, b.high, 0xdd),
                     _mm512_shuffle_f32x4(a.low, b.low, 0xdd)};
    return pair_merge(x, y);
}

static inline struct pair fold_within(struct pair p) {
    struct pair q = {_mm512_permute_ps(p.high, 0x4e), _mm512_permute_ps(p.low, 0x4e)};
    p = pair_merge(p, q);
    q = (struct pair){_mm512_permute_ps(p.high, 0xb1), _mm512_permute_ps(p.low, 0xb1)};
    return pair_merge(p, q);
}

/* out[0..3] <- scores of groups g to g+3, reduced together. */
static inline void four_group_scores(const struct route_groups *groups, const float *choice, int g,
                                     float *out) {
    struct pair ab = fold_halves(group_pair(groups, choice, g), group_pair(groups, choice, g + 1));
    struct pair cd =
        fold_halves(group_pair(groups, choice, g + 2), group_pair(groups, choice, g + 3));
    struct pair p = fold_within(fold_quarters(ab, cd));
    __m512 score = groups->best == 2 ? _mm512_add_ps(p.high, p.low) : p.high;
    const __m512i first = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, score)));
}

/* Without a branch on who is kept: it would be mispredicted for every other group. */
static inline void mask_row(const struct route_groups *groups, const float score[16], float *choice,
                            uint8_t *kept) {
    const __m512 all =
        _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), tail_mask(groups->count), score);
    const __m512 fill = _mm512_set1_ps(groups->fill);
    for (int g = 0; g < groups->count; g++) {
        __m512 own = _mm512_set1_ps(score[g]);
        unsigned gt = _mm512_cmp_ps_mask(all, own, _CMP_GT_OQ);
        unsigned eq = _mm512_cmp_ps_mask(all, own, _CMP_EQ_OQ) & ((1u << g) - 1);
        bool keep = __builtin_popcount(gt | eq) < groups->kept;
        __mmask16 lanes = (__mmask16)(0 - (unsigned)keep);
        for (float *end = choice + groups->size; choice < end; choice += 16)
            _mm512_storeu_ps(choice, _mm512_mask_loadu_ps(fill, lanes, choice));
        kept[g] = keep;
    }
}

static void mask_groups(const struct route_groups *groups, int tokens, int stride, float *choice,
                        uint8_t *kept, float *group_score) {
    if (groups->best > 2 || groups->size % 16 != 0 || groups->count > 16) {
        route_kernels_portable.mask_groups(groups, tokens, stride, choice, kept, group_score);
        return;
    }
    float score[ROUTE_BLOCK][16];
    for (int t = 0; t < tokens; t++)
        for (int g = 0; g < groups->count; g += 4)
            four_group_scores(groups, choice + t * stride, g, score[t] + g);
    for (int t = 0; t < tokens; t++)
        mask_row(groups, score[t], choice + t * stride, kept + t * stride);
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

/* The vectors of a row that take part in the choice, by rising index. */
enum { MOST_VECTORS = 64 };
struct vectors {
    int count;
    uint16_t at[MOST_VECTORS + 1];
};

/* A value that at least k of x reach: the k-th highest of 16 lane maxima. */
static inline float lower_bound(const float *x, const struct vectors *vectors, int k) {
    __m512 max = _mm512_loadu_ps(x + 16 * vectors->at[0]);
    for (int i = 1; i < vectors->count; i++)
        max = _mm512_max_ps(max, _mm512_loadu_ps(x + 16 * vectors->at[i]));
    __m512 sorted = sort16(max);
    return _mm512_cvtss_f32(_mm512_permutexvar_ps(_mm512_set1_epi32(k - 1), sorted));
}

enum { MOST = 32 }; /* candidates that the fast path ranks */

/* placed[...] <- the candidates' indices by rank, counting who comes before each. The candidates
 * (value, index) stand in rising order of index, padded with -inf to 16 or 32. */
static inline void rank16(const float *value, const int32_t *index, int count, int32_t *placed) {
    __m512 a = _mm512_loadu_ps(value);
    for (int i = 0; i < count; i++) {
        __m512 x = _mm512_set1_ps(value[i]);
        unsigned gt = _mm512_cmp_ps_mask(a, x, _CMP_GT_OQ);
        unsigned eq = _mm512_cmp_ps_mask(a, x, _CMP_EQ_OQ) & ((1u << i) - 1);
        placed[__builtin_popcount(gt | eq)] = index[i];
    }
}

static inline void rank32(const float *value, const int32_t *index, int count, int32_t *placed) {
    __m512 a = _mm512_loadu_ps(value), b = _mm512_loadu_ps(value + 16);
    for (int i = 0; i < count; i++) {
        __m512 x = _mm512_set1_ps(value[i]);
        unsigned gt = _mm512_cmp_ps_mask(a, x, _CMP_GT_OQ) |
                      (unsigned)_mm512_cmp_ps_mask(b, x, _CMP_GT_OQ) << 16;
        unsigned eq = _mm512_cmp_ps_mask(a, x, _CMP_EQ_OQ) |
                      (unsigned)_mm512_cmp_ps_mask(b, x, _CMP_EQ_OQ) << 16;
        placed[__builtin_popcount(gt | (eq & ((1u << i) - 1)))] = index[i];
    }
}

/* The candidates of one token. */
struct few {
    float value[MOST + 16];
    int32_t index[MOST + 16];
    int count; /* more than MOST: not usable */
};

/* Collects all of x that reach `least`. Unconditional compression: whether a vector holds a
 * candidate is a coin toss that no branch predicts. Writes stay inside even when there are many. */
static inline void collect(const float *x, const struct vectors *vectors, float least,
                           struct few *few) {
    const __m512 bound = _mm512_set1_ps(least);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int count = 0;
    for (int i = 0; i < vectors->count; i++) {
        int first = 16 * vectors->at[i];
        __m512 v = _mm512_loadu_ps(x + first);
        __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
        __mmask16 reach = _mm512_cmp_ps_mask(v, bound, _CMP_GE_OQ);
        int at = count < MOST ? count : MOST;
        _mm512_storeu_ps(few->value + at, _mm512_maskz_compress_ps(reach, v));
        _mm512_storeu_si512(few->index + at, _mm512_maskz_compress_epi32(reach, index));
        count += __builtin_popcount(reach);
    }
    few->count = count;
    /* pads what the ranking reads behind the last one */
    int at = count < MOST ? count : MOST;
    _mm512_storeu_ps(few->value + at, _mm512_set1_ps(-INFINITY));
    if (at < 16) _mm512_storeu_ps(few->value + 16, _mm512_set1_ps(-INFINITY));
}

/* The k best of x[n] among the given vectors by one comparison each: for rows with many ties. */
static void top_slowly(const float *x, const struct vectors *vectors, int n, int k, int32_t *best) {
    float value[17];
    int held = 0;
    for (int i = 0; i < vectors->count; i++)
        for (int e = 16 * vectors->at[i]; e < 16 * vectors->at[i] + 16 && e < n; e++) {
            if (held == k && !(x[e] > value[k - 1])) continue;
            int at = held < k ? held++ : k - 1;
            for (; at > 0 && x[e] > value[at - 1]; at--) {
                value[at] = value[at - 1];
                best[at] = best[at - 1];
            }
            value[at] = x[e];
            best[at] = e;
        }
}

/* Ranks the few that reach a bound which at least k reach. Row t takes vectors[t * step]. */
static void top_of_vectors(const float *x, int tokens, int stride, int n, int k,
                           const struct vectors *vectors, int step, int32_t *best) {
    struct few few[ROUTE_BLOCK];
    float least[ROUTE_BLOCK];
    for (int t = 0; t < tokens; t++) least[t] = lower_bound(x + t * stride, &vectors[t * step], k);
    for (int t = 0; t < tokens; t++) collect(x + t * stride, &vectors[t * step], least[t], &few[t]);
    for (int t = 0; t < tokens; t++, best += k) {
        int32_t placed[MOST];
        if (few[t].count > MOST || !(least[t] > -INFINITY)) {
            top_slowly(x + t * stride, &vectors[t * step], n, k, best);
            continue;
        }
        if (few[t].count <= 16)
            rank16(few[t].value, few[t].index, few[t].count, placed);
        else
            rank32(few[t].value, few[t].index, few[t].count, placed);
        memcpy(best, placed, (size_t)k * sizeof *best);
    }
}

static void top(const float *x, int tokens, int stride, int n, int k, int32_t *best) {
    struct vectors all = {.count = (n + 15) / 16};
    if (k > 16 || n < 32 || all.count > MOST_VECTORS) {
        route_kernels_portable.top(x, tokens, stride, n, k, best);
        return;
    }
    for (int i = 0; i < all.count; i++) all.at[i] = (uint16_t)i;
    top_of_vectors(x, tokens, stride, n, k, &all, 0, best);
}

/* Lists the vectors of the kept groups without a branch on who is kept. */
static inline void list_kept(const struct route_groups *groups, const float score[16],
                             struct vectors *vectors) {
    const __m512 all =
        _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), tail_mask(groups->count), score);
    int count = 0, each = groups->size / 16;
    for (int g = 0; g < groups->count; g++) {
        __m512 own = _mm512_set1_ps(score[g]);
        unsigned gt = _mm512_cmp_ps_mask(all, own, _CMP_GT_OQ);
        unsigned eq = _mm512_cmp_ps_mask(all, own, _CMP_EQ_OQ) & ((1u << g) - 1);
        bool keep = __builtin_popcount(gt | eq) < groups->kept;
        for (int i = 0; i < each; i++) vectors->at[count + i] = (uint16_t)(g * each + i);
        count += keep ? each : 0;
    }
    vectors->count = count;
}

static bool top_of_kept(const struct route_groups *groups, int tokens, int stride, int k,
                        const float *choice, int32_t *best) {
    int n = groups->count * groups->size;
    if (groups->best > 2 || groups->size % 16 != 0 || groups->count > 16 || k > 16 ||
        n > 16 * MOST_VECTORS - groups->size || k > groups->kept * groups->size ||
        groups->fill > -INFINITY)
        return false;
    float score[ROUTE_BLOCK][16];
    struct vectors vectors[ROUTE_BLOCK];
    for (int t = 0; t < tokens; t++)
        for (int g = 0; g < groups->count; g += 4)
            four_group_scores(groups, choice + t * stride, g, score[t] + g);
    for (int t = 0; t < tokens; t++) list_kept(groups, score[t], &vectors[t]);
    top_of_vectors(choice, tokens, stride, n, k, vectors, 1, best);
    return true;
}

#define STEPS                                                                                      \
    .first_not_finite = first_not_finite,                                                          \
    .score = {[SCORE_SOFTMAX] = score_softmax,                                                     \
              [SCORE_SIGMOID] = score_sigmoid,                                                     \
              [SCORE_SQRTSOFTPLUS] = score_sqrtsoftplus,                                           \
              [SCORE_RELU] = score_relu,                                                           \
              [SCORE_TANH] = score_tanh,                                                           \
              [SCORE_IDENTITY] = score_identity},                                                  \
    .add_bias = add_bias, .mask_groups = mask_groups, .top = top, .top_of_kept = top_of_kept

const struct route_kernels route_kernels_avx512 = {.name = "avx512", STEPS};

const struct route_kernels route_kernels_avx512vbmi2 = {.name = "avx512vbmi2",
                                                        STEPS,
                                                        .make_scale = route_make_scale_avx512,
                                                        .choose = route_choose_keys_avx512,
                                                        .choose_logits =
                                                            route_choose_logits_avx512};
