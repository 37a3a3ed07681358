/* balance.h - how evenly tokens are spread: every measure of load imbalance, defined once
 *
 * Layer 2: arithmetic on plain arrays, no GSL, no allocation, no I/O; used by the simulator, the
 * statistics and the report alike. Letters: n_e = tokens that chose expert e, over the axis that
 * the caller names (a batch, a layer's whole replay, one domain); E = experts; m = sum n_e / E.
 *
 * Every measure of an empty load (sum 0) is NaN: there is nothing to be balanced or not.
 *
 * The same quantity has other names elsewhere, and other quantities bear these names: each function
 * says which. The axis is part of a figure: MaxVio of a batch, of a whole set, of ranks instead of
 * experts, and means of each over layers, are different numbers. */
#ifndef ANALYSIS_BALANCE_H
#define ANALYSIS_BALANCE_H

#include <stdbool.h>
#include <stdint.h>

/* m = (sum of n_e) / E. */
double balance_mean(const int64_t *n, int count);

/* MaxVio = max_e n_e / m - 1, in [0, E/k - 1] for dropless top-k routing.
 * Source: Wang et al., Auxiliary-Loss-Free Load Balancing (arXiv 2408.15664), section 4.1.
 * Also called: imbalance ratio (TensorRT-LLM, per rank); MaxVio + 1 is "load imbalance" (OLMo-core)
 * and "overload factor" (Megatron-LM, per rank). Not max/min - 1, not max abs(share - 1/E). */
double balance_maxvio(const int64_t *n, int count);

/* Coefficient of variation: population standard deviation over the E experts / m.
 * Its square is the CV^2 loss of Shazeer et al. (arXiv 1701.06538, equation 6), there on soft
 * loads. TensorRT-LLM prints the sample (E - 1) standard deviation. */
double balance_cv(const int64_t *n, int count);

/* Gini = sum_ij abs(n_i - n_j) / (2 E^2 m), in [0, 1 - 1/E]. Computed from the sorted loads:
 * sum_i (2i - E - 1) n_(i) / (E^2 m), i from 1, which is exact in integers up to the division.
 * sorted[count] is scratch. */
double balance_gini(const int64_t *n, int count, int64_t *sorted);

/* Entropy = -sum p ln p with p = n_e / sum n, in nats; ln E when balanced. (Frontier uses log2.) */
double balance_entropy(const int64_t *n, int count);

int64_t balance_min(const int64_t *n, int count);
int64_t balance_max(const int64_t *n, int count);
int64_t balance_sum(const int64_t *n, int count);

/* Efficiency = m / max n, in (0, 1]: the bound on speed when the slowest of equal workers sets the
 * pace (compute-bound). = 1 / (1 + MaxVio). Also called balancedness or utilization (SGLang, per
 * GPU, there with 1e-5 added above and below the line); never min/max. */
double balance_efficiency(const int64_t *n, int count);

/* load[r] <- sum of n over the r-th of `ranks` contiguous blocks of count/ranks experts. ranks must
 * divide count (balance_ranks_fit). */
void balance_blocks(const int64_t *n, int count, int ranks, int64_t *load);
bool balance_ranks_fit(int count, int ranks);

#endif
