/* route_portable.c - the inner loops of routing in plain C: the truth for all other levels
 *
 * Written so that compilers make vector code of them; route_avx2.c compiles them once more. */
#include <math.h>
#include <string.h>

#include "router/mathf.h"
#include "router/route_kernels.h"

static int64_t first_not_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if ((mathf_bits(x[i]) & 0x7f800000u) == 0x7f800000u) return i;
    return -1;
}

/* Sum of x[n] in strided partial sums, then pairwise: the one order for all machines. */
static float lane_sum(const float *x, int n) {
    float lane[ROUTE_LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % ROUTE_LANES] += x[i];
    for (int width = ROUTE_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

/* The bits of an infinity when one of x[n] is not finite, else 0. */
static uint32_t not_finite(const float *x, int n) {
    uint32_t any = 0;
    for (int i = 0; i < n; i++) any |= (mathf_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    return any ? 0x7f800000u : 0;
}

static void softmax_row(const float *logits, float *score, int n) {
    float max = logits[0];
    for (int i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n; i++) score[i] = mathf_exp(logits[i] - max);
    float sum = lane_sum(score, n);
    for (int i = 0; i < n; i++) score[i] /= sum;
}

static uint32_t score_softmax(const float *logits, float *score, int n, int rows) {
    uint32_t bad = not_finite(logits, n * rows);
    for (int t = 0; t < rows; t++) softmax_row(logits + t * n, score + t * n, n);
    return bad;
}

static uint32_t score_sigmoid(const float *logits, float *score, int n, int rows) {
    uint32_t bad = not_finite(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = mathf_sigmoid(logits[i]);
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

/* A value that at least k <= 16 of x[padded] reach: the k-th highest of 16 lane maxima. */
static float lower_bound(const float *x, int padded, int k) {
    float lane[ROUTE_LANES], least = -INFINITY;
    int32_t reached[ROUTE_LANES] = {0};
    for (int j = 0; j < ROUTE_LANES; j++) lane[j] = x[j];
    for (int i = ROUTE_LANES; i < padded; i += ROUTE_LANES)
        for (int j = 0; j < ROUTE_LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (int i = 0; i < ROUTE_LANES; i++)
        for (int j = 0; j < ROUTE_LANES; j++) reached[j] += lane[i] >= lane[j];
    for (int j = 0; j < ROUTE_LANES; j++) {
        float value = reached[j] >= k ? lane[j] : -INFINITY;
        least = value > least ? value : least;
    }
    return least;
}

enum { MOST = 32 }; /* candidates that are ranked */

struct few {
    float value[MOST + 64];
    int32_t index[MOST + 64];
    int count; /* more than MOST: not all are there */
};

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

/* Collects all of x[padded] that reach `least`, by rising index. */
static void collect(const float *x, int padded, float least, struct few *few) {
    few->count = 0;
    for (int i = 0; i < padded && few->count <= MOST; i += 64) {
        float rest[64];
        const float *from = x + i;
        if (i + 64 > padded) {
            for (int j = 0; j < 64; j++) rest[j] = i + j < padded ? x[i + j] : -INFINITY;
            from = rest;
        }
        for (uint64_t bits = reach64(from, least); bits; bits &= bits - 1) {
            int at = i + __builtin_ctzll(bits);
            few->value[few->count] = x[at];
            few->index[few->count++] = at;
        }
    }
}

/* best[k] <- the first k by rank; how many come before each is counted for all at once. */
static inline void rank(const struct few *few, int width, int k, int32_t *best) {
    int32_t before[MOST] = {0}, placed[MOST];
    float value[MOST];
    for (int j = 0; j < width; j++) value[j] = j < few->count ? few->value[j] : -INFINITY;
    for (int i = 0; i < few->count; i++) {
        float x = few->value[i];
        for (int j = 0; j < width; j++) before[j] += (x > value[j]) | ((x == value[j]) & (i < j));
    }
    for (int j = 0; j < few->count; j++) placed[before[j]] = few->index[j];
    memcpy(best, placed, (size_t)k * sizeof *best);
}

static void top_of_row(const float *x, int n, int k, int32_t *best) {
    struct few few;
    int padded = route_padded(n);
    float least = n >= 32 && k <= ROUTE_LANES ? lower_bound(x, padded, k) : -INFINITY;
    few.count = MOST + 1;
    if (least > -INFINITY) collect(x, padded, least, &few);
    if (few.count > MOST)
        top_slowly(x, n, k, best);
    else if (few.count <= MOST / 2)
        rank(&few, MOST / 2, k, best);
    else
        rank(&few, MOST, k, best);
}

static void top(const float *x, int tokens, int stride, int n, int k, int32_t *best) {
    for (int t = 0; t < tokens; t++) top_of_row(x + t * stride, n, k, best + t * k);
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
    for (int width = ROUTE_LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) {
            float less = high[j] < high[j + width] ? high[j] : high[j + width];
            float rest = low[j] > low[j + width] ? low[j] : low[j + width];
            high[j] = high[j] > high[j + width] ? high[j] : high[j + width];
            low[j] = less > rest ? less : rest;
        }
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
                                            .top = top};
