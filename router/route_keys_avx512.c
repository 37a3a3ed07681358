/* route_keys_avx512.c - the choices of 16 tokens at once, found on 16-bit keys
 *
 * A key is a choice score in fixed point, wrong by less than half a stated margin: keys that far
 * apart order as the scores do. Half as wide as scores, they are folded, bounded and compressed
 * twice as fast, and they need no exact score: straight from logits a sigmoid is evaluated to four
 * digits for every expert and exactly for the chosen alone. Where two of the best keys are closer
 * than the margin, exact scores are asked whether the order found is right; a token for which it is
 * not, or whose groups or last place are closer than the margin, is left to the caller. So choices,
 * ties and weights are the portable ones bit for bit.
 *
 * Tokens take the lanes as in route_choose_avx512.c, which does what this cannot: scores outside of
 * [0, 1], other groups than those of 32 experts, more than 256 experts, k above 9. */
#include <immintrin.h>

#include "router/lanes_avx512.h"
#include "router/mathf_avx512.h"
#include "router/route_kernels.h"

enum { N = ROUTE_BLOCK, PART = 32, MOST_EXPERTS = ROUTE_KEYED, MOST_PARTS = MOST_EXPERTS / PART };
enum { MOST_TOPK = 9 }; /* 16 candidates must hold the k+2 best nearly always */
enum { NOT_CHOSEN = (1u << N) - 1 };

/* What the keys are made of; constant in each copy of the code. */
enum origin { FROM_SCORES, FROM_SIGMOID, FROM_SOFTMAX };
struct how {
    enum origin origin;
    bool grouped;
};

/* Memory of one block. */
struct room {
    _Alignas(64) uint16_t key[N][MOST_EXPERTS];
    int margin; /* keys this far apart order as the choice scores do */
    bool sound; /* every key is within its 16 bits, every logit finite */
    /* the candidates of the tokens, 16 each; a row runs over into those that are written later */
    uint16_t value[16 * N + MOST_EXPERTS + 32];
    uint16_t number[16 * N + MOST_EXPERTS + 32]; /* NO_EXPERT less the expert */
    uint32_t rest[N]; /* a key in the upper half: no candidate that was dropped is above it */
    _Alignas(64) float score[16][N];    /* [rank][token] */
    _Alignas(64) int32_t expert[16][N]; /* [rank][token] */
};
enum { NO_EXPERT = 0xffff };

/* 0, 1, 2, ... and NO_EXPERT less that */
#define FOUR(f, n)    f(n), f(n + 1), f(n + 2), f(n + 3)
#define SIXTEEN(f, n) FOUR(f, n), FOUR(f, n + 4), FOUR(f, n + 8), FOUR(f, n + 12)
#define MANY(f, n)    SIXTEEN(f, n), SIXTEEN(f, n + 16), SIXTEEN(f, n + 32), SIXTEEN(f, n + 48)
#define TWICE(n)      (uint16_t)(2 * (n))
#define LESS(n)       (uint16_t)(NO_EXPERT - (n))
static const uint16_t even_words[32] = {SIXTEEN(TWICE, 0), SIXTEEN(TWICE, 16)};
static const uint16_t numbers[MOST_EXPERTS] = {MANY(LESS, 0), MANY(LESS, 64), MANY(LESS, 128),
                                               MANY(LESS, 192)};

/* ---- keys
 *
 * Adding 1.5 * 2^23 leaves an integer in the low bits of a float: a key is the low half of that. */

#define MAGIC 12582912.0f
enum { MAGIC_BITS = 0x4b400000, LOWEST = 16 }; /* LOWEST: no key of an expert is below it */

void route_make_scale_avx512(const float *bias, int experts, struct route_scale *scale) {
    const float span = 65400;
    __m512 least = _mm512_setzero_ps(), most = least;
    __m512i largest = _mm512_setzero_si512();
    scale->usable = experts <= MOST_EXPERTS && experts % PART == 0;
    if (!scale->usable) return;
    for (int e = 0; e < experts && bias; e += 16) {
        __m512 b = _mm512_loadu_ps(bias + e);
        least = e == 0 ? b : _mm512_min_ps(least, b);
        most = e == 0 ? b : _mm512_max_ps(most, b);
        largest = magnitude(largest, b);
    }
    float low = _mm512_reduce_min_ps(least), range = _mm512_reduce_max_ps(most) - low;
    scale->size =
        _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epi32(largest))));
    scale->usable = scale->size < 1e3f; /* else the sums' rounding would need too much margin */
    scale->factor = span / (1 + range);
    for (int e = 0; e < experts; e += 16) {
        __m512 b = bias ? _mm512_loadu_ps(bias + e) : _mm512_set1_ps(low);
        b = _mm512_mul_ps(_mm512_sub_ps(b, _mm512_set1_ps(low)), _mm512_set1_ps(scale->factor));
        _mm512_storeu_ps(scale->offset + e, _mm512_add_ps(b, _mm512_set1_ps(MAGIC + LOWEST)));
    }
}

/* By the error of the scores that are turned into keys. */
INLINE int margin_of(const struct route_job *job, float error) {
    const float half = 0.52f; /* of a rounding to whole keys, and what is below it */
    const struct route_scale *scale = job->scale;
    float sums = 1.2e-7f * (1 + scale->size);
    return (int)(2 * ((job->bias ? 2 * half : half) + scale->factor * (error + sums))) + 2;
}

/* key[32] <- the low halves of a, then of b. */
INLINE void store_keys(uint16_t *key, __m512 a, __m512 b) {
    const __m512i even = _mm512_loadu_si512(even_words);
    _mm512_storeu_si512(
        key, _mm512_permutex2var_epi16(_mm512_castps_si512(a), even, _mm512_castps_si512(b)));
}

/* Bits of the upper half that are set where a float holds no key. */
INLINE __m512i stray_bits(__m512i stray, __m512 a) {
    return _mm512_ternarylogic_epi32(stray, _mm512_castps_si512(a), _mm512_set1_epi32(MAGIC_BITS),
                                     0xf6);
}

INLINE void keys_of_scores(const struct route_job *job, struct room *room) {
    const __m512 factor = _mm512_set1_ps(job->scale->factor);
    __m512i stray = _mm512_setzero_si512();
    for (int t = 0; t < N; t++) {
        const float *score = job->score + t * job->experts;
        for (int e = 0; e < job->experts; e += PART) {
            __m512 a = _mm512_loadu_ps(score + e), b = _mm512_loadu_ps(score + e + 16);
            a = _mm512_fmadd_ps(a, factor, _mm512_loadu_ps(job->scale->offset + e));
            b = _mm512_fmadd_ps(b, factor, _mm512_loadu_ps(job->scale->offset + e + 16));
            stray = stray_bits(stray_bits(stray, a), b);
            store_keys(room->key[t] + e, a, b);
        }
    }
    room->sound = (uint32_t)_mm512_reduce_or_epi32(stray) <= 0xffff;
}

/* 1 / (1 + exp(-x)), wrong by less than NEAR: a cubic for 2^f on [0, 1) (relative error 7.5e-5)
 * under a reciprocal of 14 bits (6.1e-5). */
#define NEAR 8.2e-5f
INLINE __m512 near_sigmoid(__m512 x) {
    __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    __m512 f = _mm512_reduce_ps(t, 9); /* t - floor(t) */
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.07802452f), f, _mm512_set1_ps(0.22606716f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69583354f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992522f));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_scalef_ps(p, t)));
}

/* Two vectors of logits and their keys. Logits come from far away and the hardware's prefetch stops
 * at the end of a page: a page ahead is asked for. */
INLINE void keys_of_part(const float *logits, const float *offset, const __m512 factor,
                         __m512 finite[2], uint16_t *key) {
    const __m512 zero = _mm512_setzero_ps();
    _mm_prefetch((const char *)logits + 4096, _MM_HINT_T0);
    _mm_prefetch((const char *)logits + 4096 + 64, _MM_HINT_T0);
    __m512 a = _mm512_loadu_ps(logits), b = _mm512_loadu_ps(logits + 16);
    finite[0] = _mm512_fmadd_ps(a, zero, finite[0]);
    finite[1] = _mm512_fmadd_ps(b, zero, finite[1]);
    a = _mm512_fmadd_ps(near_sigmoid(a), factor, _mm512_loadu_ps(offset));
    b = _mm512_fmadd_ps(near_sigmoid(b), factor, _mm512_loadu_ps(offset + 16));
    store_keys(key, a, b);
}

INLINE void keys_of_sigmoid(const struct route_job *job, struct room *room) {
    const __m512 factor = _mm512_set1_ps(job->scale->factor), zero = _mm512_setzero_ps();
    __m512 finite[2] = {zero, zero}; /* NaN as soon as a logit is not finite */
    for (int t = 0; t < N; t++) {
        const float *logits = job->logits + t * job->experts;
        for (int e = 0; e < job->experts; e += PART)
            keys_of_part(logits + e, job->scale->offset + e, factor, finite, room->key[t] + e);
    }
    __m512 zero_sum = _mm512_add_ps(finite[0], finite[1]);
    room->sound = _mm512_cmp_ps_mask(zero_sum, zero, _CMP_EQ_OQ) == 0xffff;
}

/* Exponentials and their sums of 16 rows of logits; keys are how far a logit is below the highest,
 * in 4096ths: as exp may be wrong by some 1e-7, keys 2 apart have scores that differ. */
INLINE void keys_of_softmax(const struct route_job *job, struct room *room, __m512 *sum) {
    const __m512 factor = _mm512_set1_ps(4096), offset = _mm512_set1_ps(MAGIC + 65400);
    const __m512 depth = _mm512_set1_ps(-15.9f);
    int experts = job->experts;
    float top[16];
    __m512 lane[16];
    uint32_t largest = row_maxima(job->logits, experts, N, top);
    bool plain = largest < PLAIN - (1 << 23); /* below half of it: so are all differences */
    room->sound = largest < 0x7f800000;
    room->margin = 3;
    for (int t = 0; t < N; t++) {
        const float *logits = job->logits + t * experts;
        const __m512 highest = _mm512_set1_ps(top[t]);
        float *e = job->room + t * experts;
        lane[t] = _mm512_setzero_ps();
        for (int i = 0; i < experts; i += PART) {
            __m512 d[2];
            for (int j = 0; j < 2; j++) {
                _mm_prefetch((const char *)(logits + i + 16 * j) + 4096, _MM_HINT_T0);
                d[j] = _mm512_sub_ps(_mm512_loadu_ps(logits + i + 16 * j), highest);
                __m512 minus = _mm512_xor_ps(d[j], _mm512_set1_ps(-0.0f));
                __m512 x = plain ? exp_minus16(minus) : exp16(d[j]);
                lane[t] = _mm512_add_ps(lane[t], x);
                _mm512_storeu_ps(e + i + 16 * j, x);
                d[j] = _mm512_fmadd_ps(_mm512_max_ps(d[j], depth), factor, offset);
            }
            store_keys(room->key[t] + i, d[0], d[1]);
        }
    }
    *sum = fold_add(lane);
}

/* ---- folds over 16 tokens: what belonged to a token's row ends in its lane */

struct two {
    __m256i a, b;
};

/* The halves of p and q: a gets the lower of p and the upper of q, b the others. */
INLINE struct two split_halves(__m256i p, __m256i q) {
    return (struct two){_mm256_blend_epi32(p, q, 0xf0), _mm256_permute2x128_si256(p, q, 0x21)};
}
INLINE struct two split_pairs(__m256i p, __m256i q) {
    return (struct two){_mm256_unpacklo_epi32(p, q), _mm256_unpackhi_epi32(p, q)};
}
INLINE struct two split_quarters(__m256i p, __m256i q) {
    return (struct two){_mm256_unpacklo_epi64(p, q), _mm256_unpackhi_epi64(p, q)};
}
INLINE struct two split_words(__m256i p, __m256i q) {
    return (struct two){_mm256_blend_epi16(p, _mm256_slli_epi32(q, 16), 0xaa),
                        _mm256_blend_epi16(_mm256_srli_epi32(p, 16), q, 0xaa)};
}

struct top2 {
    __m256i high, low;
};

/* The two highest of four. */
INLINE struct top2 merge(struct two high, struct two low) {
    __m256i less = _mm256_min_epu16(high.a, high.b);
    return (struct top2){_mm256_max_epu16(high.a, high.b),
                         _mm256_max_epu16(less, _mm256_max_epu16(low.a, low.b))};
}

INLINE struct top2 token_top2(const uint16_t *key) {
    __m256i a = _mm256_loadu_si256((const __m256i *)key);
    __m256i b = _mm256_loadu_si256((const __m256i *)(key + 16));
    return (struct top2){_mm256_max_epu16(a, b), _mm256_min_epu16(a, b)};
}

#define FOLDED(split, p, q) merge(split((p).high, (q).high), split((p).low, (q).low))

INLINE struct top2 two_tokens(const struct room *room, int t, int e) {
    struct top2 p = token_top2(room->key[t] + e), q = token_top2(room->key[t + 8] + e);
    return FOLDED(split_halves, p, q);
}

INLINE struct top2 eight_tokens(const struct room *room, int t, int e) {
    struct top2 a = two_tokens(room, t, e), b = two_tokens(room, t + 2, e);
    a = FOLDED(split_pairs, a, b);
    b = two_tokens(room, t + 4, e);
    struct top2 c = two_tokens(room, t + 6, e);
    b = FOLDED(split_pairs, b, c);
    return FOLDED(split_quarters, a, b);
}

/* Lane t <- half the score of the group that begins at expert e; or its highest key. */
INLINE __m256i group_score(const struct room *room, const struct route_groups *groups, int e) {
    struct top2 a = eight_tokens(room, 0, e), b = eight_tokens(room, 1, e);
    a = FOLDED(split_words, a, b);
    return groups->best == 2 ? _mm256_avg_epu16(a.high, a.low) : a.high;
}

/* kept[t]: bit g is set when token t keeps group g. Returns the tokens whose groups are too close
 * to tell. */
INLINE unsigned keep_groups(const struct room *room, const struct route_groups *groups,
                            uint16_t kept[N]) {
    const __m256i one = _mm256_set1_epi16(1), all = _mm256_set1_epi16(-1);
    __m256i score[MOST_PARTS], before[MOST_PARTS], bits = _mm256_setzero_si256();
    __m256i least = all, most = bits;
    for (int g = 0; g < groups->count; g++) {
        score[g] = group_score(room, groups, g * PART);
        before[g] = _mm256_setzero_si256();
    }
    for (int h = 1; h < groups->count; h++)
        for (int g = 0; g < h; g++) {
            __mmask16 first = _mm256_cmpge_epu16_mask(score[g], score[h]);
            before[h] = _mm256_mask_add_epi16(before[h], first, before[h], one);
            before[g] = _mm256_mask_add_epi16(before[g], (__mmask16)~first, before[g], one);
        }
    for (int g = 0; g < groups->count; g++) {
        const __m256i bit = _mm256_set1_epi16((short)(1 << g));
        __mmask16 keep = _mm256_cmplt_epu16_mask(before[g], _mm256_set1_epi16((short)groups->kept));
        bits = _mm256_or_si256(bits, _mm256_maskz_mov_epi16(keep, bit));
        least = _mm256_mask_min_epu16(least, keep, least, score[g]);
        most = _mm256_mask_max_epu16(most, (__mmask16)~keep, most, score[g]);
    }
    _mm256_storeu_si256((__m256i *)kept, bits);
    __m256i gap = _mm256_subs_epu16(least, most);
    return _mm256_cmplt_epu16_mask(gap, _mm256_set1_epi16((short)room->margin));
}

/* The parts that take part, one byte each, by rising number. */
INLINE uint64_t list_parts(unsigned kept) {
    const __m128i all = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return (uint64_t)_mm_cvtsi128_si64(_mm_maskz_compress_epi8((__mmask16)kept, all));
}

/* ---- candidates */

/* Lane i <- the highest key of a part's lanes i and 16+i over all parts. */
INLINE __m256i lane_maxima(const uint16_t *key, int parts, uint64_t list) {
    __m512i most = _mm512_loadu_si512(key + (list & 255) * PART);
    for (int p = 1; p < parts; p++) {
        list >>= 8;
        most = _mm512_max_epu16(most, _mm512_loadu_si512(key + (list & 255) * PART));
    }
    return _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
}

#define EXCHANGE_WORDS(a, b)                                                                       \
    {                                                                                              \
        __m256i less = _mm256_min_epu16(r[a], r[b]);                                               \
        r[a] = _mm256_max_epu16(r[a], r[b]);                                                       \
        r[b] = less;                                                                               \
    }

/* Lane t <- the n-th highest of the 16 of row t. */
INLINE __m256i nth_highest(const __m256i row[N], int n) {
    __m256i r[16], s[16];
    struct two x;
#define SPLIT(split, to, i, from, p, q)                                                            \
    x = split(from[p], from[q]);                                                                   \
    to[i] = x.a;                                                                                   \
    to[i + 1] = x.b;
    for (int t = 0; t < 8; t++) {
        SPLIT(split_halves, r, 2 * t, row, t, t + 8)
    }
    /* r[2t], r[2t+1]: tokens t and t+8 */
    for (int t = 0; t < 2; t++)
        for (int j = 0; j < 2; j++) {
            SPLIT(split_pairs, s, 8 * t + 2 * j, r, 2 * t + j, 2 * (t + 2) + j)
            SPLIT(split_pairs, s, 8 * t + 4 + 2 * j, r, 2 * (t + 4) + j, 2 * (t + 6) + j)
        }
    for (int t = 0; t < 2; t++)
        for (int j = 0; j < 4; j++) {
            SPLIT(split_quarters, r, 8 * t + 2 * j, s, 8 * t + j, 8 * t + 4 + j)
        }
    for (int j = 0; j < 8; j++) {
        SPLIT(split_words, s, 2 * j, r, j, 8 + j)
    }
#undef SPLIT
    for (int i = 0; i < 16; i++) r[i] = s[i];
    NETWORK(EXCHANGE_WORDS)
    for (int i = 0; i < 16; i++) s[i] = r[i];
    return s[n - 1];
}

/* Collects the keys of one token that reach `least`; returns how many. */
INLINE int collect(const uint16_t *key, int parts, uint64_t list, uint16_t least, uint16_t *value,
                   uint16_t *number) {
    const __m512i bound = _mm512_set1_epi16((short)least);
    int count = 0;
    for (int p = 0; p < parts; p++, list >>= 8) {
        size_t e = (list & 255) * PART;
        __m512i v = _mm512_loadu_si512(key + e);
        __mmask32 in = _mm512_cmpge_epu16_mask(v, bound);
        v = _mm512_maskz_compress_epi16(in, v);
        __m512i n = _mm512_maskz_compress_epi16(in, _mm512_loadu_si512(numbers + e));
        _mm256_storeu_si256((__m256i *)(value + count), _mm512_castsi512_si256(v));
        _mm256_storeu_si256((__m256i *)(number + count), _mm512_castsi512_si256(n));
        count += __builtin_popcount(in);
    }
    _mm256_storeu_si256((__m256i *)(value + count), _mm256_setzero_si256());
    _mm256_storeu_si256((__m256i *)(number + count), _mm256_set1_epi16(-1)); /* expert 0 */
    return count;
}

/* Collects again with higher and higher bounds until there are no more than 16; *rest <- the last
 * value that was dropped, in the upper half. */
INLINE void shrink(const uint16_t *key, int parts, uint64_t list, uint16_t *value, uint16_t *number,
                   uint16_t least, uint32_t *rest) {
    int count = 17;
    while (count > 16) {
        const __m512i bound = _mm512_set1_epi16((short)least);
        __m512i next = _mm512_set1_epi16(-1);
        uint64_t left = list;
        for (int p = 0; p < parts; p++, left >>= 8) {
            __m512i v = _mm512_loadu_si512(key + (left & 255) * PART);
            next = _mm512_mask_min_epu16(next, _mm512_cmpgt_epu16_mask(v, bound), next, v);
        }
        __m256i half =
            _mm256_min_epu16(_mm512_castsi512_si256(next), _mm512_extracti64x4_epi64(next, 1));
        __m128i quarter =
            _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        least = (uint16_t)_mm_cvtsi128_si32(_mm_minpos_epu16(quarter));
        *rest = (uint32_t)(least - 1) << 16 | NO_EXPERT;
        count = collect(key, parts, list, least, value, number);
    }
}

/* ---- ranking */

/* r[i] lane t <- the key of token t's i-th best and, below it, its number. */
INLINE void rank(const struct room *room, __m512i r[16]) {
    for (int t = 0; t < N; t++) {
        const __m256i *value = (const __m256i *)(room->value + 16 * t);
        const __m256i *number = (const __m256i *)(room->number + 16 * t);
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(value));
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(number));
        r[t] = _mm512_or_si512(_mm512_slli_epi32(high, 16), low);
    }
    transpose(r);
#define EXCHANGE_UNSIGNED(a, b)                                                                    \
    {                                                                                              \
        __m512i less = _mm512_min_epu32(r[a], r[b]);                                               \
        r[a] = _mm512_max_epu32(r[a], r[b]);                                                       \
        r[b] = less;                                                                               \
    }
    NETWORK(EXCHANGE_UNSIGNED)
}

/* The exact score of the expert at a rank. */
INLINE float score_at(const struct how how, const struct route_job *job, const struct room *room,
                      int t, int i) {
    if (how.origin == FROM_SCORES) return job->score[t * job->experts + room->expert[i][t]];
    return room->score[i][t];
}

/* Is the order of token t the exact one, as far as the k+1 best are concerned? Sets its tie. */
INLINE bool in_order(const struct how how, const struct route_job *job, const struct room *room,
                     int t) {
    float last = 0, next = 0;
    for (int i = 0; i <= job->topk; i++, last = next) {
        next = score_at(how, job, room, t, i);
        if (job->bias) next += job->bias[room->expert[i][t]];
        if (i == 0 || last > next) continue;
        if (last < next || room->expert[i - 1][t] > room->expert[i][t]) return false;
        if (i == job->topk && job->tie) job->tie[t] = 1;
    }
    return true;
}

/* rows[N][k] <- lane t of r[i]. */
INLINE void store_rows(__m512i r[16], int k, int32_t *rows) {
    transpose(r);
    for (int t = 0; t < N; t++, rows += k) {
        if (k == 8)
            _mm256_storeu_si256((__m256i *)rows, _mm512_castsi512_si256(r[t]));
        else if ((N - t) * k >= 16)
            _mm512_storeu_si512(rows, r[t]);
        else
            _mm512_mask_storeu_epi32(rows, (__mmask16)((1u << k) - 1), r[t]);
    }
}

/* ---- weights */

/* room->score[i] <- exact scores of the experts at the ranks up to `last`. */
INLINE void exact_scores(const struct how how, const struct route_job *job, struct room *room,
                         const __m512 sum, int last) {
    const float *from = how.origin == FROM_SCORES    ? job->score
                        : how.origin == FROM_SIGMOID ? job->logits
                                                     : job->room;
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i row = _mm512_mullo_epi32(lane, _mm512_set1_epi32(job->experts));
    for (int i = 0; i <= last; i++) {
        __m512i at = _mm512_add_epi32(row, _mm512_loadu_si512(room->expert[i]));
        __m512 x = _mm512_i32gather_ps(at, from, 4);
        if (how.origin == FROM_SIGMOID)
            x = one_over_one_plus(exp16(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f))));
        if (how.origin == FROM_SOFTMAX) x = _mm512_div_ps(x, sum);
        _mm512_storeu_ps(room->score[i], x);
    }
}

/* finish_weights of route.c for 16 tokens. */
INLINE void store_weights(const struct route_job *job, const struct room *room) {
    const struct gate *gate = job->gate;
    const __m512 one = _mm512_set1_ps(1.0f), argument = _mm512_set1_ps(gate->norm_arg);
    __m512 divisor = one, sum = _mm512_setzero_ps();
    __m512i w[16];
    int k = job->topk;
    for (int i = 0; i < k; i++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(room->score[i]));
    if (gate->norm == NORM_SUM) divisor = _mm512_add_ps(sum, argument);
    if (gate->norm == NORM_CLAMP) divisor = _mm512_max_ps(sum, argument);
    __mmask16 none = _mm512_cmp_ps_mask(divisor, _mm512_setzero_ps(), _CMP_EQ_OQ);
    divisor = _mm512_mask_mov_ps(divisor, none, one);
    for (int i = 0; i < k; i++) {
        __m512 x = _mm512_loadu_ps(room->score[i]);
        if (gate->norm != NORM_NONE) x = _mm512_div_ps(x, divisor);
        w[i] = _mm512_castps_si512(_mm512_mul_ps(x, _mm512_set1_ps(gate->scale)));
    }
    for (int i = k; i < 16; i++) w[i] = _mm512_setzero_si512();
    store_rows(w, k, (int32_t *)job->weight);
}

/* ---- a block */

/* Experts by rank from the sorted keys, ties and weights; returns the tokens that are not settled.
 */
INLINE unsigned finish(const struct how how, struct route_job *job, struct room *room,
                       __m512i r[16], __m512 sum) {
    const __m512i close = _mm512_set1_epi32(room->margin << 16);
    const __m512i rest = _mm512_loadu_si512(room->rest);
    int k = job->topk;
    unsigned bad = 0;
    __m512i gap = _mm512_set1_epi32(-1), sorted[16];
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(&sorted[i], r[i]);
    __m512i beyond = _mm512_max_epu32(sorted[k + 1], rest);
    bad = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(sorted[k - 1], beyond), close) |
          _mm512_cmplt_epu32_mask(sorted[k - 1], beyond);
    for (int i = 0; i < k; i++)
        gap = _mm512_min_epu32(gap, _mm512_sub_epi32(sorted[i], sorted[i + 1]));
    for (int i = 0; i <= k; i++) {
        sorted[i] = _mm512_andnot_si512(sorted[i], _mm512_set1_epi32(NO_EXPERT));
        _mm512_storeu_si512(room->expert[i], sorted[i]);
    }
    if (job->tie) _mm_storeu_si128((__m128i *)job->tie, _mm_setzero_si128());
    store_rows(sorted, k, job->expert);
    if (job->weight || how.origin != FROM_SCORES)
        exact_scores(how, job, room, sum, how.origin == FROM_SCORES ? k - 1 : k);
    for (unsigned left = _mm512_cmplt_epu32_mask(gap, close) & ~bad; left; left &= left - 1) {
        int t = __builtin_ctz(left);
        bad |= (unsigned)!in_order(how, job, room, t) << t;
    }
    if (job->weight) store_weights(job, room);
    job->weighed = job->weight != NULL;
    return bad;
}

INLINE unsigned choose(const struct how how, struct route_job *job) {
    struct room room;
    uint16_t kept[N], bound[N];
    uint64_t list[N];
    __m256i lanes[N];
    __m512i r[16];
    __m512 sum = _mm512_setzero_ps();
    int parts = how.grouped ? job->groups->kept : job->experts / PART;
    unsigned bad = 0;
    if (how.origin != FROM_SOFTMAX)
        room.margin = margin_of(job, how.origin == FROM_SIGMOID ? NEAR : 0);
    if (how.origin == FROM_SOFTMAX)
        keys_of_softmax(job, &room, &sum);
    else if (how.origin == FROM_SIGMOID)
        keys_of_sigmoid(job, &room);
    else
        keys_of_scores(job, &room);
    if (!room.sound) return NOT_CHOSEN;
    if (how.grouped) bad = keep_groups(&room, job->groups, kept);
    for (int t = 0; t < N; t++) {
        list[t] = how.grouped ? list_parts(kept[t]) : UINT64_C(0x0706050403020100);
        lanes[t] = lane_maxima(room.key[t], parts, list[t]);
    }
    __m256i least =
        _mm256_subs_epu16(nth_highest(lanes, job->topk + 1), _mm256_set1_epi16((short)room.margin));
    _mm256_storeu_si256((__m256i *)bound, least);
    _mm512_storeu_si512(room.rest, _mm512_setzero_si512());
    for (int t = 0; t < N; t++) {
        uint16_t *value = room.value + 16 * t, *number = room.number + 16 * t;
        if (collect(room.key[t], parts, list[t], bound[t], value, number) > 16)
            shrink(room.key[t], parts, list[t], value, number, bound[t], &room.rest[t]);
    }
    rank(&room, r);
    return bad | finish(how, job, &room, r, sum);
}

#define COPY(name, ...)                                                                            \
    VBMI2 static unsigned name(struct route_job *job) {                                            \
        return choose((const struct how){__VA_ARGS__}, job);                                       \
    }
COPY(by_scores, FROM_SCORES, false)
COPY(by_scores_in_groups, FROM_SCORES, true)
COPY(by_sigmoid, FROM_SIGMOID, false)
COPY(by_sigmoid_in_groups, FROM_SIGMOID, true)
COPY(by_softmax, FROM_SOFTMAX, false)

static bool can_mask(const struct route_groups *groups) {
    return groups->size == PART && groups->best <= 2 && !(groups->fill > -INFINITY);
}

static bool can_choose(const struct route_job *job) {
    return job->tokens == N && job->scale && job->scale->usable && job->topk <= MOST_TOPK &&
           (!job->groups || can_mask(job->groups)) && (!job->weight || job->gate->norm != NORM_P);
}

unsigned route_choose_keys_avx512(struct route_job *job) {
    unsigned left = NOT_CHOSEN;
    bool shares = job->gate->score == SCORE_SIGMOID || job->gate->score == SCORE_SOFTMAX;
    if (can_choose(job) && shares && !job->signs)
        left = (job->groups ? by_scores_in_groups : by_scores)(job);
    if (left != NOT_CHOSEN) return left;
    job->weighed = false;
    return route_choose_avx512(job);
}

unsigned route_choose_logits_avx512(struct route_job *job) {
    if (!can_choose(job)) return (1u << job->tokens) - 1;
    if (job->gate->score == SCORE_SIGMOID)
        return (job->groups ? by_sigmoid_in_groups : by_sigmoid)(job);
    if (job->gate->score == SCORE_SOFTMAX && !job->groups && !job->bias) return by_softmax(job);
    return NOT_CHOSEN;
}
