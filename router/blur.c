/* blur.c - what gates with noise or a dtype see instead of the recorded logits, hash layers, and
 * the second choice at random
 *
 * Rare gates: plain C for every CPU level. Numbers are drawn by key, not in sequence, so that they
 * do not depend on threads, chunks or the order of tokens (MATH.md section 8). */
#include <math.h>

#include "base/rng.h"
#include "router/rounding.h"
#include "router/route.h"

/* The standard normal quantile of u in (0,1): Wichura 1988, Applied Statistics 37, algorithm AS 241
 * (PPND7, about 7 digits), with our own logarithm. */
static double normal_quantile(double u) {
    double q = u - 0.5;
    if (fabs(q) <= 0.425) {
        double r = 0.180625 - q * q;
        double p = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179;
        return q * p / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1);
    }
    double tail = q < 0 ? u : 1 - u, x;
    double r = sqrt(-(double)mathf_log((float)tail));
    if (r <= 5) {
        r -= 1.6;
        x = (((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) /
            ((0.12021132975 * r + 0.73700164250) * r + 1);
    } else {
        r -= 5;
        x = (((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150) /
            ((0.012258202635 * r + 0.24197894225) * r + 1);
    }
    return q < 0 ? -x : x;
}

/* In (0,1), from the upper 53 bits. */
static double open_uniform(uint64_t bits) { return ((double)(bits >> 11) + 0.5) * 0x1p-53; }

static uint64_t token_key(uint64_t seed, int layer, uint64_t token) {
    return rng_at(rng_at(seed, (uint64_t)layer), token);
}

/* The key of the t-th of some tokens: by the gate's own seed, or the run's. */
static uint64_t row_key(const struct gate *gate, const struct route_rows *rows, int64_t t) {
    uint64_t seed = gate->seeded ? (uint64_t)gate->seed : rows->seed;
    return token_key(seed, rows->layer, (uint64_t)(rows->token ? rows->token[t] : rows->first + t));
}

static void add_noise(const struct gate *gate, const struct route_rows *rows, int experts,
                      int64_t tokens, const float *logits, float *logit) {
    float sigma = gate->noise;
    for (int64_t t = 0; t < tokens; t++) {
        uint64_t key = row_key(gate, rows, t);
        for (int e = 0; e < experts; e++) {
            double z = normal_quantile(open_uniform(rng_at(key, (uint64_t)e)));
            float x = logits[t * experts + e] + sigma * (float)z;
            logit[t * experts + e] = x > 3e38f ? 3e38f : x < -3e38f ? -3e38f : x;
        }
    }
}

static void round_all(enum gate_dtype dtype, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = round_to(dtype, x[i]);
}

void route_blurred(const struct gate *gate, const struct route_rows *rows, int experts,
                   int64_t tokens, const float *logits, float *logit, float *score) {
    int64_t n = tokens * experts;
    if (gate->noise > 0 && rows)
        add_noise(gate, rows, experts, tokens, logits, logit);
    else
        for (int64_t i = 0; i < n; i++) logit[i] = logits[i];
    round_all(gate->dtype, logit, n);
    if (!score) return;
    route_scores(gate->score, experts, tokens, logit, score);
    if (!gate->dtype_logits) round_all(gate->dtype, score, n);
}

/* ---- hash layers */

/* expert[k] <- distinct experts: slot i takes the r-th of those that are left, r drawn by key. */
static void draw_experts(uint64_t key, int experts, int k, int32_t *expert) {
    int32_t taken[GATE_MAX_TOPK];
    for (int i = 0; i < k; i++) {
        int32_t e = (int32_t)(rng_at(key, (uint64_t)i) % (uint64_t)(experts - i));
        int at = 0;
        for (; at < i && taken[at] <= e; at++) e++;
        for (int j = i; j > at; j--) taken[j] = taken[j - 1];
        taken[at] = expert[i] = e;
    }
}

void route_hashed(const struct gate *gate, const struct route_rows *rows, int experts,
                  int64_t tokens, const int32_t *table, int32_t *expert) {
    int k = gate->topk;
    for (int64_t t = 0; t < tokens; t++, expert += k) {
        uint32_t id = (uint32_t)rows->id[t];
        if (!table)
            draw_experts(token_key((uint64_t)gate->fn_arg, rows->layer, id), experts, k, expert);
        else
            for (int i = 0; i < k; i++) expert[i] = table[(size_t)id * (size_t)k + (size_t)i];
    }
}

/* ---- the second choice at random */

void route_thin(const struct gate *gate, const struct route_rows *rows, int64_t tokens,
                int32_t *expert, float *weight) {
    if (gate->second != SECOND_RANDOM) return;
    for (int64_t t = 0; t < tokens; t++) {
        double first = (double)weight[2 * t], second = (double)weight[2 * t + 1];
        double u = open_uniform(rng_at(row_key(gate, rows, t), GATE_MAX_EXPERTS));
        if (fabs(first + second) * u < 2 * fabs(second)) continue;
        expert[2 * t + 1] = ROUTE_NONE;
        weight[2 * t + 1] = 0;
    }
}
