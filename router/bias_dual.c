/* bias_dual.c - bias rules that price experts so that the batch would have been balanced
 *
 * The assignment max sum s x with at most k experts a token and q = kT/E tokens an expert has dual
 * prices: p_t, what a token's next best expert offers, and b_j, what an expert's next best token
 * would pay. Each round takes one side as given and solves the other exactly, by a quantile. */
#include <math.h>

#include "router/bias_rules.h"
#include "router/gate.h"

/* The n-th largest (from 0) of x[count], which is reordered: Hoare's selection, median of three. */
static float nth_largest(float *x, int64_t count, int64_t n) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        float a = x[low], b = x[low + (high - low) / 2], c = x[high];
        float pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i > j) break;
            float t = x[i];
            x[i++] = x[j];
            x[j--] = t;
        }
        if (n <= j)
            high = j;
        else if (n >= i)
            low = i;
        else
            break;
    }
    return x[n];
}

/* The (k+1)-th largest of s + b over the experts of a token, by a short sorted list. */
static float next_best(const float *score, const double *bias, int experts, int k) {
    float best[GATE_MAX_TOPK + 1];
    int held = 0;
    for (int e = 0; e < experts; e++) {
        float x = score[e] + (float)bias[e];
        if (held == k + 1 && !(x > best[k])) continue;
        int at = held <= k ? held++ : k;
        for (; at > 0 && x > best[at - 1]; at--) best[at] = best[at - 1];
        best[at] = x;
    }
    return best[k];
}

/* Tokens that an expert may take: kT/E to the nearest. */
static int64_t share_of(const struct bias_batch *batch) {
    return (2 * batch->tokens * batch->topk + batch->experts) / (2 * batch->experts);
}

/* price[T] <- what each token's next best expert offers, at least `least`. */
static void price_tokens(const struct bias_batch *batch, const double *bias, float least,
                         float *price) {
    for (int64_t t = 0; t < batch->tokens; t++) {
        float p = next_best(batch->scores + t * batch->experts, bias, batch->experts, batch->topk);
        price[t] = p > least ? p : least;
    }
}

/* What expert e's next best token would pay above its price. column[T] is scratch. */
static double price_expert(const struct bias_batch *batch, int e, const float *price,
                           float *column) {
    for (int64_t t = 0; t < batch->tokens; t++)
        column[t] = batch->scores[t * batch->experts + e] - price[t];
    return (double)nth_largest(column, batch->tokens, share_of(batch));
}

/* With k = E, or more places than tokens, nothing can be steered. */
static bool can_price(const struct bias_batch *batch) {
    return batch->topk < batch->experts && share_of(batch) < batch->tokens;
}

void bias_update_quantile(const struct bias_batch *batch, double *bias) {
    float *price = batch->scratch, *column = price + batch->tokens;
    double mean = 0, kept = 1 - batch->rate;
    if (!can_price(batch)) return;
    price_tokens(batch, bias, -INFINITY, price);
    for (int e = 0; e < batch->experts; e++) {
        batch->state[e] = -price_expert(batch, e, price, column);
        mean += batch->state[e] / batch->experts;
    }
    for (int e = 0; e < batch->experts; e++)
        bias[e] = kept * bias[e] + batch->rate * (batch->state[e] - mean);
}

void bias_update_bip(const struct bias_batch *batch, double *bias) {
    enum { ROUNDS = 4 };
    float *price = batch->scratch, *column = price + batch->tokens;
    if (!can_price(batch)) return;
    for (int round = 0; round < ROUNDS; round++) {
        price_tokens(batch, bias, 0, price);
        for (int e = 0; e < batch->experts; e++) {
            double price_e = price_expert(batch, e, price, column);
            bias[e] = price_e > 0 ? -price_e : 0;
        }
    }
}
