/* route_portable.c - the inner loops of routing in plain C: the truth for all other levels
 *
 * Written so that compilers make vector code of them; route_avx2.c compiles them once more. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "router/mathf.h"
#include "router/network.h"
#include "router/route_kernels.h"

static int64_t first_not_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if ((mathf_bits(x[i]) & 0x7f800000u) == 0x7f800000u) return i;
    return -1;
}

/* Sum of x[n] in strided partial sums, then pairwise: the one order for all machines. */
static float lane_sum(const float *x, int n) {
    float lane[ROUTE_LANES] = {0};
    int i = 0;
    for (; i + ROUTE_LANES <= n; i += ROUTE_LANES)
        for (int j = 0; j < ROUTE_LANES; j++) lane[j] += x[i + j];
    for (int j = 0; i < n; i++, j++) lane[j] += x[i];
    for (int width = ROUTE_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) lane[j] += lane[j + width];
    return lane[0];
}

/* Negative when x is not below `limit` in magnitude, or NaN; the sign alone means something. */
static inline int32_t magnitude_less(float x, float limit) {
    return (int32_t)mathf_bits(limit) - 1 - (int32_t)(mathf_bits(x) & 0x7fffffffu);
}

/* Is that so of one of x[n]? */
static bool any_reaches(const float *x, int n, float limit) {
    int32_t any = 0;
    for (int i = 0; i < n; i++) any |= magnitude_less(x[i], limit);
    return any < 0;
}

/* The bits of an infinity when one of x[n] is not finite, else 0. */
static uint32_t not_finite(const float *x, int n) {
    return any_reaches(x, n, INFINITY) ? 0x7f800000u : 0;
}

/* By lanes, so that the comparisons do not wait for each other. */
static float highest(const float *x, int n) {
    float lane[ROUTE_LANES];
    int i = 0;
    for (int j = 0; j < ROUTE_LANES; j++) lane[j] = x[0];
    for (; i + ROUTE_LANES <= n; i += ROUTE_LANES)
        for (int j = 0; j < ROUTE_LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    for (int width = ROUTE_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lane[j] = lane[j + width] > lane[j] ? lane[j + width] : lane[j];
    return lane[0];
}

/* plain: no logit reaches half of MATHF_PLAIN, so no difference reaches it. */
static void softmax_row(const float *logits, float *score, int n, bool plain) {
    float max = highest(logits, n);
    if (plain)
        for (int i = 0; i < n; i++) score[i] = mathf_exp_plain(logits[i] - max);
    else
        for (int i = 0; i < n; i++) score[i] = mathf_exp(logits[i] - max);
    float sum = lane_sum(score, n);
    for (int i = 0; i < n; i++) score[i] /= sum;
}

static uint32_t score_softmax(const float *logits, float *score, int n, int rows) {
    bool plain = !any_reaches(logits, n * rows, MATHF_PLAIN / 2);
    uint32_t bad = plain ? 0 : not_finite(logits, n * rows);
    for (int t = 0; t < rows; t++) softmax_row(logits + t * n, score + t * n, n, plain);
    return bad;
}

static uint32_t score_sigmoid(const float *logits, float *score, int n, int rows) {
    int all = n * rows;
    int32_t most = 0;
    for (int i = 0; i < all && score != logits; i++) {
        most |= magnitude_less(logits[i], MATHF_PLAIN);
        score[i] = 1.0f / (1.0f + mathf_exp_plain(-logits[i]));
    }
    if (score != logits && most >= 0) return 0;
    uint32_t bad = not_finite(logits, all);
    for (int i = 0; i < all; i++) score[i] = mathf_sigmoid(logits[i]);
    return bad;
}

static uint32_t score_sqrtsoftplus(const float *logits, float *score, int n, int rows) {
    uint32_t bad = not_finite(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = mathf_sqrtsoftplus(logits[i]);
    return bad;
}

static uint32_t score_relu(const float *logits, float *score, int n, int rows) {
    uint32_t bad = not_finite(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = logits[i] > 0 ? logits[i] : 0;
    return bad;
}

static uint32_t score_tanh(const float *logits, float *score, int n, int rows) {
    uint32_t bad = not_finite(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = mathf_tanh(logits[i]);
    return bad;
}

static uint32_t score_identity(const float *logits, float *score, int n, int rows) {
    size_t bytes = (size_t)n * (size_t)rows * sizeof *score;
    if (score != logits) memcpy(score, logits, bytes);
    return not_finite(logits, n * rows);
}

static void add_bias(const float *score, const float *bias, float *choice, int n) {
    for (int i = 0; i < n; i++) choice[i] = bias ? score[i] + bias[i] : score[i];
    for (int i = n; i % ROUTE_LANES != 0; i++) choice[i] = -INFINITY;
}

/* ---- selection
 *
 * In loops over 16 lanes that compilers turn into vector code, and without branches on scores,
 * which would be mispredicted. */

/* Insertion into a short sorted list: for rows with few experts, many ties or a large k. */
static void top_slowly(const float *x, int n, int k, int32_t *best) {
    float value[GATE_MAX_TOPK + 1], least = -INFINITY;
    int held = 0;
    for (int32_t i = 0; i < n; i++) {
        if (held == k && !(x[i] > least)) continue;
        int at = held < k ? held++ : k - 1;
        for (; at > 0 && x[i] > value[at - 1]; at--) {
            value[at] = value[at - 1];
            best[at] = best[at - 1];
        }
        value[at] = x[i];
        best[at] = i;
        least = value[held - 1];
    }
}

/* Four tokens take the lanes of the networks. */
enum { TOKENS = 4 };

/* Both comparisons in these words, both results in names: what gcc makes vector code of. */
static inline void exchange(float *restrict a, float *restrict b) {
    for (int t = 0; t < TOKENS; t++) {
        float p = a[t], q = b[t], high = p > q ? p : q, low = q < p ? q : p;
        a[t] = high;
        b[t] = low;
    }
}

static inline void exchange_keys(double *restrict a, double *restrict b) {
    for (int t = 0; t < TOKENS; t++) {
        double p = a[t], q = b[t], high = p > q ? p : q, low = q < p ? q : p;
        a[t] = high;
        b[t] = low;
    }
}

/* least[TOKENS] <- values that at least k <= 16 of each x[padded] reach: the k-th highest of 16
 * lane maxima. */
static void lower_bounds(const float *const x[TOKENS], int padded, int k, float least[TOKENS]) {
    float row[ROUTE_LANES][TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        float lane[ROUTE_LANES];
        for (int j = 0; j < ROUTE_LANES; j++) lane[j] = x[t][j];
        for (int i = ROUTE_LANES; i < padded; i += ROUTE_LANES)
            for (int j = 0; j < ROUTE_LANES; j++)
                lane[j] = x[t][i + j] > lane[j] ? x[t][i + j] : lane[j];
        for (int j = 0; j < ROUTE_LANES; j++) row[j][t] = lane[j];
    }
#define EXCHANGE(a, b) exchange(row[a], row[b]);
    NETWORK(EXCHANGE)
    for (int t = 0; t < TOKENS; t++) least[t] = row[k - 1][t];
}

/* A score and its expert as one number: higher scores first, then lower experts. A float leaves the
 * low bits of a double free; those of a negative one count downwards. */
static inline double key_of(float x, int expert) {
    double wide = (double)(x + 0.0f); /* -0 counts as 0 */
    uint64_t bits;
    memcpy(&bits, &wide, sizeof bits);
    bits |= (uint64_t)(x < 0 ? expert : GATE_MAX_EXPERTS - expert);
    memcpy(&wide, &bits, sizeof bits);
    return wide;
}

static inline int32_t expert_of(double key) {
    uint64_t bits;
    memcpy(&bits, &key, sizeof bits);
    int32_t low = (int32_t)(bits & 0x1fffff);
    return key < 0 ? low : GATE_MAX_EXPERTS - low;
}

enum { FEW = 16 }; /* candidates that are ranked */

/* Bit i <- x[i] >= least, for 64 values. */
static uint64_t reach64(const float *x, float least) {
    uint8_t flag[64];
    uint64_t bits = 0, eight;
    for (int i = 0; i < 64; i++) flag[i] = x[i] >= least;
    for (int i = 0; i < 64; i += 8) {
        memcpy(&eight, flag + i, sizeof eight);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        eight = __builtin_bswap64(eight);
#endif
        bits |= eight * UINT64_C(0x0102040810204080) >> 56 << i; /* eight bytes of 0 or 1 */
    }
    return bits;
}

/* key[][t] <- those of x[padded] that reach `least`, padded below all. Returns false when there are
 * more than FEW, or values that keys cannot hold. */
static bool collect(const float *x, int padded, float least, double key[FEW][TOKENS], int t) {
    int count = 0;
    for (int i = 0; i < FEW; i++) key[i][t] = -DBL_MAX;
    if (!(least > -INFINITY)) return false;
    for (int i = 0; i < padded; i += 64) {
        float rest[64];
        const float *from = x + i;
        if (i + 64 > padded) {
            for (int j = 0; j < 64; j++) rest[j] = i + j < padded ? x[i + j] : -INFINITY;
            from = rest;
        }
        for (uint64_t bits = reach64(from, least); bits; bits &= bits - 1) {
            int at = i + __builtin_ctzll(bits);
            if (count == FEW || !(x[at] < INFINITY)) return false;
            key[count++][t] = key_of(x[at], at);
        }
    }
    return true;
}

/* Sorts the keys of each token, highest first. */
static void rank(double key[FEW][TOKENS]) {
#define EXCHANGE_KEYS(a, b) exchange_keys(key[a], key[b]);
    NETWORK(EXCHANGE_KEYS)
}

/* Up to TOKENS rows; the last stands in for those that are not there. */
static void top_of_rows(const float *x, int tokens, int stride, int n, int k, int32_t *best) {
    double key[FEW][TOKENS];
    const float *row[TOKENS];
    float least[TOKENS];
    bool ranked[TOKENS];
    int padded = route_padded(n);
    for (int t = 0; t < TOKENS; t++) row[t] = x + (t < tokens ? t : tokens - 1) * stride;
    lower_bounds(row, padded, k, least);
    for (int t = 0; t < TOKENS; t++) ranked[t] = collect(row[t], padded, least[t], key, t);
    rank(key);
    for (int t = 0; t < tokens; t++, best += k) {
        if (!ranked[t]) top_slowly(row[t], n, k, best);
        for (int i = 0; i < k && ranked[t]; i++) best[i] = expert_of(key[i][t]);
    }
}

static void top(const float *x, int tokens, int stride, int n, int k, int32_t *best) {
    bool fast = n >= 32 && k <= ROUTE_LANES;
    for (int t = 0; t < tokens && !fast; t++) top_slowly(x + t * stride, n, k, best + t * k);
    for (int t = 0; t < tokens && fast; t += TOKENS)
        top_of_rows(x + t * stride, tokens - t < TOKENS ? tokens - t : TOKENS, stride, n, k,
                    best + t * k);
}

/* The two highest of lanes j and j + width, into lane j. */
static inline void fold(float *high, float *low, const int width) {
    for (int j = 0; j < width; j++) {
        float less = high[j] < high[j + width] ? high[j] : high[j + width];
        float rest = low[j] > low[j + width] ? low[j] : low[j + width];
        high[j] = high[j] > high[j + width] ? high[j] : high[j + width];
        low[j] = less > rest ? less : rest;
    }
}

/* The two highest of x[n], added: by lanes where they fill, then the lanes against each other. */
static float two_best(const float *x, int n) {
    float high[ROUTE_LANES], low[ROUTE_LANES];
    int i = 0;
    for (int j = 0; j < ROUTE_LANES; j++) high[j] = low[j] = -INFINITY;
    for (; i + ROUTE_LANES <= n; i += ROUTE_LANES)
        for (int j = 0; j < ROUTE_LANES; j++) {
            float less = x[i + j] < high[j] ? x[i + j] : high[j];
            low[j] = less > low[j] ? less : low[j];
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
        }
    for (int j = 0; i < n; i++, j++) {
        float less = x[i] < high[j] ? x[i] : high[j];
        low[j] = less > low[j] ? less : low[j];
        high[j] = x[i] > high[j] ? x[i] : high[j];
    }
    fold(high, low, 8);
    fold(high, low, 4);
    fold(high, low, 2);
    fold(high, low, 1);
    return high[0] + low[0];
}

/* The highest first, so that the sum has one order. */
static float group_score_of(const float *choice, int size, int best) {
    if (best == 2) return two_best(choice, size);
    int32_t at[GATE_MAX_TOPK + 1];
    top_slowly(choice, size, best, at);
    float sum = choice[at[0]];
    for (int i = 1; i < best; i++) sum += choice[at[i]];
    return sum;
}

/* How many groups come before group g: a higher score, or an equal one and a lower index. */
static int groups_before(const float *group_score, int count, int g) {
    int before = 0;
    for (int h = 0; h < g; h++) before += group_score[h] >= group_score[g];
    for (int h = g + 1; h < count; h++) before += group_score[h] > group_score[g];
    return before;
}

static void mask_groups(const struct route_groups *groups, int tokens, int stride, float *choice,
                        uint8_t *kept, float *group_score) {
    int size = groups->size;
    for (int t = 0; t < tokens; t++, choice += stride, kept += stride) {
        for (int g = 0; g < groups->count; g++)
            group_score[g] = group_score_of(choice + g * size, size, groups->best);
        for (int g = 0; g < groups->count; g++) {
            kept[g] = groups_before(group_score, groups->count, g) < groups->kept;
            for (int i = 0; !kept[g] && i < size; i++) choice[g * size + i] = groups->fill;
        }
    }
}

/* Experts that a choice among kept groups looks at, groups that it can have. */
enum { MOST_KEPT = 512, MOST_GROUPS = 64 };

/* row[padded] <- the choice scores of a token's kept groups side by side; first[kept] <- the expert
 * that each begins with. */
static void keep_groups(const struct route_groups *groups, const float *choice, int *first,
                        float *row) {
    float score[MOST_GROUPS];
    int size = groups->size, count = 0, n = groups->kept * size;
    for (int g = 0; g < groups->count; g++)
        score[g] = group_score_of(choice + g * size, size, groups->best);
    for (int g = 0; g < groups->count && count < groups->kept; g++) {
        first[count] = g * size;
        count += groups_before(score, groups->count, g) < groups->kept;
    }
    for (int g = 0; g < groups->kept; g++)
        memcpy(row + g * size, choice + first[g], (size_t)size * sizeof *row);
    for (int i = n; i < route_padded(n); i++) row[i] = -INFINITY;
}

static bool top_of_kept(const struct route_groups *groups, int tokens, int stride, int k,
                        const float *choice, int32_t *best) {
    float row[TOKENS][MOST_KEPT];
    int first[TOKENS][MOST_GROUPS], n = groups->kept * groups->size;
    if (groups->fill > -INFINITY || n > MOST_KEPT || groups->count > MOST_GROUPS || k > n)
        return false;
    for (int t = 0; t < tokens; t += TOKENS) {
        int some = tokens - t < TOKENS ? tokens - t : TOKENS;
        for (int j = 0; j < some; j++)
            keep_groups(groups, choice + (t + j) * stride, first[j], row[j]);
        top(row[0], some, MOST_KEPT, n, k, best + t * k);
        for (int j = 0; j < some; j++)
            for (int32_t *e = best + (t + j) * k; e < best + (t + j + 1) * k; e++)
                *e = first[j][*e / groups->size] + *e % groups->size;
    }
    return true;
}

#ifndef ROUTE_KERNELS
#define ROUTE_KERNELS route_kernels_portable
#define ROUTE_NAME    "portable"
#endif

const struct route_kernels ROUTE_KERNELS = {.name = ROUTE_NAME,
                                            .first_not_finite = first_not_finite,
                                            .score = {[SCORE_SOFTMAX] = score_softmax,
                                                      [SCORE_SIGMOID] = score_sigmoid,
                                                      [SCORE_SQRTSOFTPLUS] = score_sqrtsoftplus,
                                                      [SCORE_RELU] = score_relu,
                                                      [SCORE_TANH] = score_tanh,
                                                      [SCORE_IDENTITY] = score_identity},
                                            .add_bias = add_bias,
                                            .mask_groups = mask_groups,
                                            .top_of_kept = top_of_kept,
                                            .top = top};
