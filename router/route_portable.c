/* route_portable.c - the inner loops of routing in plain C: the truth for all other levels */
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

static uint32_t largest_magnitude(const float *x, int n) {
    uint32_t largest = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits = mathf_bits(x[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static void softmax_row(const float *logits, float *score, int n) {
    float max = logits[0];
    for (int i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n; i++) score[i] = mathf_exp(logits[i] - max);
    float sum = lane_sum(score, n);
    for (int i = 0; i < n; i++) score[i] /= sum;
}

static uint32_t score_softmax(const float *logits, float *score, int n, int rows) {
    uint32_t largest = largest_magnitude(logits, n * rows);
    for (int t = 0; t < rows; t++) softmax_row(logits + t * n, score + t * n, n);
    return largest;
}

static uint32_t score_sigmoid(const float *logits, float *score, int n, int rows) {
    uint32_t largest = largest_magnitude(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = mathf_sigmoid(logits[i]);
    return largest;
}

static uint32_t score_sqrtsoftplus(const float *logits, float *score, int n, int rows) {
    uint32_t largest = largest_magnitude(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = mathf_sqrtsoftplus(logits[i]);
    return largest;
}

static uint32_t score_relu(const float *logits, float *score, int n, int rows) {
    uint32_t largest = largest_magnitude(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = logits[i] > 0 ? logits[i] : 0;
    return largest;
}

static uint32_t score_tanh(const float *logits, float *score, int n, int rows) {
    uint32_t largest = largest_magnitude(logits, n * rows);
    for (int i = 0; i < n * rows; i++) score[i] = mathf_tanh(logits[i]);
    return largest;
}

static uint32_t score_identity(const float *logits, float *score, int n, int rows) {
    size_t bytes = (size_t)n * (size_t)rows * sizeof *score;
    if (score != logits) memcpy(score, logits, bytes);
    return largest_magnitude(logits, n * rows);
}

static void add_bias(const float *score, const float *bias, float *choice, int n) {
    for (int i = 0; i < n; i++) choice[i] = bias ? score[i] + bias[i] : score[i];
    for (int i = n; i % ROUTE_LANES != 0; i++) choice[i] = -INFINITY;
}

/* Insertion into a short sorted list: most candidates fail the first comparison, which reads only
 * the candidate and a register. */
static void top_of_row(const float *x, int n, int k, int32_t *best) {
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

static void top(const float *x, int tokens, int stride, int n, int k, int32_t *best) {
    for (int t = 0; t < tokens; t++) top_of_row(x + t * stride, n, k, best + t * k);
}

/* The two highest of x[n], added. */
static float two_best(const float *x, int n) {
    float high = x[0], low = -INFINITY;
    for (int i = 1; i < n; i++) {
        float less = x[i] < high ? x[i] : high;
        low = less > low ? less : low;
        high = x[i] > high ? x[i] : high;
    }
    return high + low;
}

/* The highest first, so that the sum has one order. */
static float group_score_of(const float *choice, int size, int best) {
    if (best == 2) return two_best(choice, size);
    int32_t at[GATE_MAX_TOPK + 1];
    top_of_row(choice, size, best, at);
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

const struct route_kernels route_kernels_portable = {
    .name = "portable",
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
