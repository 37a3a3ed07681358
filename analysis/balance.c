/* balance.c - how evenly tokens are spread
 *
 * Sums are exact in int64; only the last steps are in double, so every figure is the same on every
 * machine up to the rounding of sqrt and log. */
#include "analysis/balance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t balance_sum(const int64_t *n, int count) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += n[i];
    return sum;
}

int64_t balance_min(const int64_t *n, int count) {
    int64_t min = count > 0 ? n[0] : 0;
    for (int i = 1; i < count; i++) min = n[i] < min ? n[i] : min;
    return min;
}

int64_t balance_max(const int64_t *n, int count) {
    int64_t max = count > 0 ? n[0] : 0;
    for (int i = 1; i < count; i++) max = n[i] > max ? n[i] : max;
    return max;
}

double balance_mean(const int64_t *n, int count) {
    return count > 0 ? (double)balance_sum(n, count) / count : NAN;
}

double balance_maxvio(const int64_t *n, int count) {
    int64_t sum = balance_sum(n, count);
    if (sum == 0) return NAN;
    return (double)balance_max(n, count) * count / (double)sum - 1;
}

double balance_cv(const int64_t *n, int count) {
    int64_t sum = balance_sum(n, count);
    if (sum == 0) return NAN;
    double mean = (double)sum / count;
    double squares = 0;
    for (int i = 0; i < count; i++) {
        double d = (double)n[i] - mean;
        squares += d * d;
    }
    return sqrt(squares / count) / mean;
}

static int compare_int64(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

double balance_gini(const int64_t *n, int count, int64_t *sorted) {
    int64_t sum = balance_sum(n, count);
    if (sum == 0) return NAN;
    memcpy(sorted, n, (size_t)count * sizeof *n);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_int64);
    double weighted = 0;
    for (int i = 0; i < count; i++) weighted += (double)(2 * i + 1 - count) * (double)sorted[i];
    return weighted / ((double)count * (double)sum);
}

double balance_entropy(const int64_t *n, int count) {
    int64_t sum = balance_sum(n, count);
    if (sum == 0) return NAN;
    double entropy = 0;
    for (int i = 0; i < count; i++) {
        if (n[i] == 0) continue; /* p ln p -> 0 */
        double p = (double)n[i] / (double)sum;
        entropy -= p * log(p);
    }
    return entropy > 0 ? entropy : 0; /* one expert alone: -0.0 */
}

double balance_efficiency(const int64_t *n, int count) {
    int64_t sum = balance_sum(n, count);
    if (sum == 0) return NAN;
    return (double)sum / ((double)balance_max(n, count) * count);
}

bool balance_ranks_fit(int count, int ranks) {
    return ranks >= 1 && ranks <= count && count % ranks == 0;
}

void balance_blocks(const int64_t *n, int count, int ranks, int64_t *load) {
    int per_rank = count / ranks;
    for (int r = 0; r < ranks; r++) load[r] = balance_sum(n + (int64_t)r * per_rank, per_rank);
}
