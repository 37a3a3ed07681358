/* route_choose_avx512.c - the choices of 16 tokens at once, for the common gates
 *
 * What is sorted is few and small, so tokens take the lanes: the top two of a group fold until a
 * lane is a token, groups are ranked by comparing pairs of vectors, and the candidates of each
 * token (those that reach the k+1-th highest of 16 lane maxima) are sorted by one network for all
 * tokens. No step branches on a score.
 *
 * Everything is compared as integers, which is twice as fast. For scores that are positive the bits
 * order as the floats do; a token where a negative one could matter is left to the caller. Raw
 * logits are mapped so that their bits order like the values. */
#include <immintrin.h>
#include <string.h>

#include "router/lanes_avx512.h"
#include "router/route_kernels.h"

enum { N = ROUTE_BLOCK };

/* ---- choice scores as integers */

/* How a gate's choice scores are read; constant in each copy of the code. */
struct reading {
    bool biased, ordered, grouped;
};

/* Maps floats to integers of the same order and back; -0 counts as 0. */
INLINE __m512i to_order(__m512i bits) {
    __m512i sign = _mm512_srai_epi32(bits, 31);
    return _mm512_ternarylogic_epi32(bits, sign, _mm512_set1_epi32(0x7fffffff), 0x78);
}

INLINE __m512i choice_at(const struct reading how, const float *score, __m512 bias) {
    __m512 x = _mm512_loadu_ps(score);
    if (how.biased) x = _mm512_add_ps(x, bias);
    if (!how.ordered) return _mm512_castps_si512(x);
    return to_order(_mm512_castps_si512(_mm512_add_ps(x, _mm512_setzero_ps())));
}

INLINE __m512 bias_at(const struct reading how, const float *bias, int e) {
    return how.biased ? _mm512_loadu_ps(bias + e) : _mm512_setzero_ps();
}

/* ---- groups */

struct top2 {
    __m512i high, low;
};

INLINE struct top2 merge(__m512i ah, __m512i al, __m512i bh, __m512i bl) {
    return (struct top2){_mm512_max_epi32(ah, bh),
                         _mm512_max_epi32(_mm512_min_epi32(ah, bh), _mm512_max_epi32(al, bl))};
}

/* The two best of each lane over the vectors of one group. */
INLINE struct top2 lanes_top2(const struct reading how, const struct route_job *job, int t, int e,
                              int size) {
    const float *score = job->score + (t < job->tokens ? t : job->tokens - 1) * job->experts + e;
    __m512i a = choice_at(how, score, bias_at(how, job->bias, e));
    __m512i b = choice_at(how, score + 16, bias_at(how, job->bias, e + 16));
    struct top2 p = {_mm512_max_epi32(a, b), _mm512_min_epi32(a, b)};
    for (int i = 32; i < size; i += 16) {
        __m512i x = choice_at(how, score + i, bias_at(how, job->bias, e + i));
        p.low = _mm512_max_epi32(p.low, _mm512_min_epi32(p.high, x));
        p.high = _mm512_max_epi32(p.high, x);
    }
    return p;
}

#define SHUFFLED(f, a, b, how) f((a).high, (b).high, how), f((a).low, (b).low, how)
INLINE struct top2 fold_halves(struct top2 a, struct top2 b) {
    __m512i xh = _mm512_mask_blend_epi32(0xff00, a.high, b.high);
    __m512i xl = _mm512_mask_blend_epi32(0xff00, a.low, b.low);
    return merge(xh, xl, SHUFFLED(_mm512_shuffle_i32x4, a, b, 0x4e));
}

INLINE struct top2 fold_quarters(struct top2 a, struct top2 b) {
    return merge(SHUFFLED(_mm512_shuffle_i32x4, a, b, 0x88),
                 SHUFFLED(_mm512_shuffle_i32x4, a, b, 0xdd));
}

/* A macro: the pattern must be a constant. */
#define shuffle(a, b, how)                                                                         \
    _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), how))

/* Tokens j, 4+j, 8+j, 12+j: four lanes each, in that order. */
INLINE struct top2 four_tokens(const struct reading how, const struct route_job *job, int j, int e,
                               int size) {
    struct top2 a = lanes_top2(how, job, j, e, size), b = lanes_top2(how, job, 4 + j, e, size);
    struct top2 ab = fold_halves(a, b);
    struct top2 c = lanes_top2(how, job, 8 + j, e, size);
    struct top2 d = lanes_top2(how, job, 12 + j, e, size);
    return fold_quarters(ab, fold_halves(c, d));
}

/* Lane t <- the two best of token t in the group that begins at expert e. */
INLINE struct top2 group_top2(const struct reading how, const struct route_job *job, int e,
                              int size) {
    struct top2 a = four_tokens(how, job, 0, e, size), b = four_tokens(how, job, 1, e, size);
    struct top2 ab = merge(shuffle(a.high, b.high, 0x44), shuffle(a.low, b.low, 0x44),
                           shuffle(a.high, b.high, 0xee), shuffle(a.low, b.low, 0xee));
    struct top2 c = four_tokens(how, job, 2, e, size), d = four_tokens(how, job, 3, e, size);
    struct top2 cd = merge(shuffle(c.high, d.high, 0x44), shuffle(c.low, d.low, 0x44),
                           shuffle(c.high, d.high, 0xee), shuffle(c.low, d.low, 0xee));
    return merge(shuffle(ab.high, cd.high, 0x88), shuffle(ab.low, cd.low, 0x88),
                 shuffle(ab.high, cd.high, 0xdd), shuffle(ab.low, cd.low, 0xdd));
}

/* Lane t of the result: bit g is set when token t keeps group g. *bad gets the tokens whose second
 * best was negative, where bits do not order. */
INLINE __m512i kept_groups(const struct reading how, const struct route_job *job, unsigned *bad) {
    const struct route_groups *groups = job->groups;
    const __m512i one = _mm512_set1_epi32(1);
    __m512 score[16];
    __m512i before[16], kept = _mm512_setzero_si512();
    for (int g = 0; g < groups->count; g++) {
        struct top2 p = group_top2(how, job, g * groups->size, groups->size);
        __m512i least = groups->best == 2 ? p.low : p.high;
        if (how.ordered) {
            p.high = to_order(p.high);
            p.low = to_order(p.low);
        } else {
            *bad |= _mm512_cmplt_epi32_mask(least, _mm512_setzero_si512());
        }
        score[g] = _mm512_castsi512_ps(p.high);
        if (groups->best == 2) score[g] = _mm512_add_ps(score[g], _mm512_castsi512_ps(p.low));
        before[g] = _mm512_setzero_si512();
    }
    for (int h = 1; h < groups->count; h++)
        for (int g = 0; g < h; g++) {
            __mmask16 first = _mm512_cmp_ps_mask(score[g], score[h], _CMP_GE_OQ);
            before[h] = _mm512_mask_add_epi32(before[h], first, before[h], one);
            before[g] = _mm512_mask_add_epi32(before[g], ~first, before[g], one);
        }
    for (int g = 0; g < groups->count; g++) {
        __mmask16 keep = _mm512_cmplt_epi32_mask(before[g], _mm512_set1_epi32(groups->kept));
        kept = _mm512_mask_or_epi32(kept, keep, kept, _mm512_set1_epi32(1 << g));
    }
    return kept;
}

/* ---- candidates */

enum { MOST_EXPERTS = 1024, PART = 32 };

struct lanes {
    __m512i a, b;
};

/* Where the stretches of PART experts begin that take part, by rising expert. */
struct parts {
    int count;
    uint16_t at[MOST_EXPERTS / PART];
};

INLINE void all_parts(const struct route_job *job, struct parts *parts) {
    parts->count = job->experts / PART;
    for (int i = 0; i < parts->count; i++) parts->at[i] = (uint16_t)(i * PART);
}

INLINE void kept_parts(const struct route_groups *groups, unsigned kept, struct parts *parts) {
    int count = 0, size = groups->size;
    if (size == PART) /* one part a group */
        for (; count < groups->kept; kept &= kept - 1)
            parts->at[count++] = (uint16_t)(__builtin_ctz(kept) * PART);
    for (; kept; kept &= kept - 1)
        for (int i = 0, first = __builtin_ctz(kept) * size; i < size; i += PART)
            parts->at[count++] = (uint16_t)(first + i);
    parts->count = count;
}

/* The highest of each of 32 lanes: the first and the second vectors of the parts. */
INLINE struct lanes lane_maxima(const struct reading how, const struct route_job *job,
                                const float *score, const struct parts *parts) {
    const __m512i none = _mm512_set1_epi32(INT32_MIN);
    struct lanes most = {none, none};
    for (int p = 0; p < parts->count; p++) {
        int e = parts->at[p];
        __m512i a = choice_at(how, score + e, bias_at(how, job->bias, e));
        __m512i b = choice_at(how, score + e + 16, bias_at(how, job->bias, e + 16));
        most.a = _mm512_max_epi32(most.a, a);
        most.b = _mm512_max_epi32(most.b, b);
    }
    return most;
}

/* The candidates of 16 tokens, by rising expert, padded with the least integer: 16 a token. A row
 * runs over into the next ones, which are written later. */
struct candidates {
    int32_t value[N * 16 + MOST_EXPERTS];
    uint16_t expert[N * 16 + MOST_EXPERTS];
};

/* 0, 1, 2, ... */
#define FOUR(n)    n, n + 1, n + 2, n + 3
#define SIXTEEN(n) FOUR(n), FOUR(n + 4), FOUR(n + 8), FOUR(n + 12)
#define MANY(n)    SIXTEEN(n), SIXTEEN(n + 16), SIXTEEN(n + 32), SIXTEEN(n + 48)
static const uint16_t numbers[MOST_EXPERTS] = {
    MANY(0),   MANY(64),  MANY(128), MANY(192), MANY(256), MANY(320), MANY(384), MANY(448),
    MANY(512), MANY(576), MANY(640), MANY(704), MANY(768), MANY(832), MANY(896), MANY(960)};

/* Returns how many reach `least`; all are written. */
INLINE int collect(const struct reading how, const struct route_job *job, const float *score,
                   const struct parts *parts, int32_t least, int32_t *value, uint16_t *expert) {
    const __m512i bound = _mm512_set1_epi32(least);
    int count = 0;
    for (int p = 0; p < parts->count; p++) {
        int e = parts->at[p];
        __m512i a = choice_at(how, score + e, bias_at(how, job->bias, e));
        __m512i b = choice_at(how, score + e + 16, bias_at(how, job->bias, e + 16));
        __mmask16 in_a = _mm512_cmpge_epi32_mask(a, bound);
        __mmask16 in_b = _mm512_cmpge_epi32_mask(b, bound);
        __mmask32 in = _mm512_kunpackw(in_b, in_a);
        __m512i index = _mm512_loadu_si512(numbers + e);
        int next = count + __builtin_popcount(in_a);
        _mm512_storeu_si512(value + count, _mm512_maskz_compress_epi32(in_a, a));
        _mm512_storeu_si512(value + next, _mm512_maskz_compress_epi32(in_b, b));
        _mm512_storeu_si512(expert + count, _mm512_maskz_compress_epi16(in, index));
        count = next + __builtin_popcount(in_b);
    }
    _mm512_storeu_si512(value + count, _mm512_set1_epi32(INT32_MIN));
    return count;
}

/* Keeps 16 or fewer of 17 to 32 candidates by raising the bound from value to value; false when
 * that would leave fewer than wanted. */
VBMI2 static bool shrink(int count, int wanted, int32_t *value, uint16_t *expert) {
    __m512i a = _mm512_loadu_si512(value), b = _mm512_loadu_si512(value + 16);
    __m512i index = _mm512_loadu_si512(expert);
    __mmask16 in_a = 0xffff, in_b = (__mmask16)((1u << (count - 16)) - 1);
    while (count > 16) {
        int32_t least_a = _mm512_mask_reduce_min_epi32(in_a, a);
        int32_t least_b = _mm512_mask_reduce_min_epi32(in_b, b);
        __m512i least = _mm512_set1_epi32(least_a < least_b ? least_a : least_b);
        in_a = _mm512_mask_cmpgt_epi32_mask(in_a, a, least);
        in_b = _mm512_mask_cmpgt_epi32_mask(in_b, b, least);
        count = __builtin_popcount(in_a) + __builtin_popcount(in_b);
    }
    int first = __builtin_popcount(in_a);
    _mm512_storeu_si512(value, _mm512_maskz_compress_epi32(in_a, a));
    _mm512_storeu_si512(value + first, _mm512_maskz_compress_epi32(in_b, b));
    _mm512_storeu_si512(value + count, _mm512_set1_epi32(INT32_MIN));
    _mm512_storeu_si512(expert, _mm512_maskz_compress_epi16(_mm512_kunpackw(in_b, in_a), index));
    return count >= wanted;
}

/* ---- ranking */

/* order[t] <- the places of token t's candidates by rank, four bits each: even ranks in the lower
 * half. The low four bits of a value give way to its place, so that one comparison does; whoever
 * reads the order must check that values do not rise along it. */
INLINE void rank(const int32_t *value, uint64_t order[N]) {
    const __m512i place = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_set1_epi32(15);
    __m512i r[16], even, odd;
#define KEY(t)                                                                                     \
    r[t] = _mm512_ternarylogic_epi32(low, _mm512_loadu_si512(value + 16 * t), place, 0xac);
    ALL16(KEY)
    transpose(r);
    NETWORK(EXCHANGE)
    even = _mm512_andnot_si512(r[0], low);
    odd = _mm512_andnot_si512(r[1], low);
#define PLACES(i)                                                                                  \
    even = _mm512_or_si512(even, _mm512_slli_epi32(_mm512_andnot_si512(r[i], low), 2 * i));        \
    odd = _mm512_or_si512(odd, _mm512_slli_epi32(_mm512_andnot_si512(r[i + 1], low), 2 * i));
    /* clang-format off */
    PLACES(2) PLACES(4) PLACES(6) PLACES(8) PLACES(10) PLACES(12) PLACES(14)
        /* clang-format on */
        const __m512i first =
            _mm512_set_epi64(0x1700000007, 0x1600000006, 0x1500000005, 0x1400000004, 0x1300000003,
                             0x1200000002, 0x1100000001, 0x1000000000);
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    _mm512_storeu_si512(order, _mm512_permutex2var_epi32(even, first, odd));
    _mm512_storeu_si512(order + 8, _mm512_permutex2var_epi32(even, last, odd));
}

/* Writes one token's experts and tie by their order; false when the order was not settled by the
 * bits that were compared. room: slots of job->expert from there on. */
INLINE bool place(const struct route_job *job, const int32_t *value, const uint16_t *expert,
                  uint64_t order, int t) {
    const __m512i shifts =
        _mm512_set_epi32(28, 28, 24, 24, 20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0);
    const __m512i after = _mm512_set_epi32(15, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1);
    int k = job->topk, room = (job->tokens - t) * k;
    __m512i at = _mm512_srlv_epi32(_mm512_set1_epi64((long long)order), shifts);
    __m512i sorted = _mm512_permutexvar_epi32(at, _mm512_loadu_si512(value));
    __m512i next = _mm512_permutexvar_epi32(after, sorted);
    __m512i index = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)expert));
    index = _mm512_permutexvar_epi32(at, index);
    if (room >= 16)
        _mm512_storeu_si512(job->expert + t * k, index);
    else
        _mm512_mask_storeu_epi32(job->expert + t * k, (__mmask16)((1u << k) - 1), index);
    if (job->tie)
        job->tie[t] =
            k < job->experts && (_mm512_cmpeq_epi32_mask(sorted, next) >> (k - 1) & 1) != 0;
    return _mm512_cmplt_epi32_mask(sorted, next) == 0;
}

/* ---- a block */

INLINE void sort_lanes(__m512i r[16], __m512i sorted[16]) {
    transpose(r);
    NETWORK(EXCHANGE)
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(&sorted[i], r[i]);
}

/* Lane t <- a value that `wanted` of token t's experts reach: the wanted-th highest of 16 lane
 * maxima, or of 32 where 16 would let too many pass. */
INLINE __m512i thresholds(const __m512i a[N], const __m512i b[N], int wanted) {
    enum { FEW = 10 };
    __m512i r[16], high[16], low[16], least;
#define BOTH(t) r[t] = _mm512_max_epi32(a[t], b[t]);
#define ONE(t)  r[t] = a[t];
#define TWO(t)  r[t] = b[t];
    if (wanted <= FEW) {
        ALL16(BOTH)
        sort_lanes(r, high);
        return high[wanted - 1];
    }
    ALL16(ONE)
    sort_lanes(r, high);
    ALL16(TWO)
    sort_lanes(r, low);
    /* the i highest of one and the wanted - i highest of the other all reach the lesser last */
    least = _mm512_max_epi32(high[wanted - 1], low[wanted - 1]);
    for (int i = 1; i < wanted; i++)
        least = _mm512_max_epi32(least, _mm512_min_epi32(high[i - 1], low[wanted - i - 1]));
    return least;
}

INLINE unsigned choose(const struct reading how, const struct route_job *job) {
    struct candidates few;
    struct parts parts[N];
    int32_t kept[N], least[N];
    uint64_t order[N];
    __m512i maxima_a[N], maxima_b[N];
    int wanted = job->topk < job->experts ? job->topk + 1 : job->topk;
    unsigned bad = 0;
    if (how.grouped)
        _mm512_storeu_si512(kept, kept_groups(how, job, &bad));
    else
        all_parts(job, parts);
    for (int t = 0; t < N; t++) {
        const float *score = job->score + (t < job->tokens ? t : job->tokens - 1) * job->experts;
        if (how.grouped) kept_parts(job->groups, (unsigned)kept[t], &parts[t]);
        struct lanes most = lane_maxima(how, job, score, &parts[how.grouped ? t : 0]);
        maxima_a[t] = most.a;
        maxima_b[t] = most.b;
    }
    __m512i bound = thresholds(maxima_a, maxima_b, wanted);
    if (!how.ordered) bad |= _mm512_cmple_epi32_mask(bound, _mm512_setzero_si512());
    _mm512_storeu_si512(least, bound);
    for (int t = 0; t < job->tokens; t++) {
        int32_t *value = few.value + 16 * t;
        uint16_t *expert = few.expert + 16 * t;
        int count = collect(how, job, job->score + t * job->experts, &parts[how.grouped ? t : 0],
                            least[t], value, expert);
        if (count > 16) bad |= (unsigned)(count > 32 || !shrink(count, wanted, value, expert)) << t;
    }
    rank(few.value, order);
    for (int t = 0; t < job->tokens; t++)
        bad |= (unsigned)!place(job, few.value + 16 * t, few.expert + 16 * t, order[t], t) << t;
    return bad & ((1u << job->tokens) - 1);
}

#define COPY(biased, ordered, grouped)                                                             \
    VBMI2 static unsigned choose_##biased##ordered##grouped(const struct route_job *job) {         \
        return choose((const struct reading){biased, ordered, grouped}, job);                      \
    }
/* clang-format off */
COPY(0, 0, 0) COPY(0, 0, 1) COPY(0, 1, 0) COPY(0, 1, 1)
COPY(1, 0, 0) COPY(1, 0, 1) COPY(1, 1, 0) COPY(1, 1, 1)
    /* clang-format on */

    static unsigned (*const copies[2][2][2])(const struct route_job *) = {
        {{choose_000, choose_001}, {choose_010, choose_011}},
        {{choose_100, choose_101}, {choose_110, choose_111}}};

static bool can_mask(const struct route_groups *groups, int wanted) {
    return groups->count <= 16 && groups->size % PART == 0 && groups->best <= 2 &&
           !(groups->fill > -__builtin_inff()) && groups->kept * groups->size >= wanted;
}

unsigned route_choose_avx512(struct route_job *job) {
    unsigned all = (1u << job->tokens) - 1;
    if (job->experts % PART != 0 || job->experts > MOST_EXPERTS || job->topk > 15 ||
        job->tokens < N / 2 || (job->groups && !can_mask(job->groups, job->topk + 1)))
        return all;
    return copies[job->bias != NULL][job->signs][job->groups != NULL](job);
}
