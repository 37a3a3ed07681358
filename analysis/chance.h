/* chance.h - how much imbalance chance alone makes, when every expert is equally likely
 *
 * Layer 2, the GSL folder. A small balance batch looks unbalanced even under a perfectly even
 * router; this is the line below which a MaxVio within batches says nothing. */
#ifndef ANALYSIS_CHANCE_H
#define ANALYSIS_CHANCE_H

#include <stdint.h>

/* Expected MaxVio of a batch of `tokens` tokens that each choose `topk` of `experts` experts at
 * random: E[max_e n_e] / m - 1 with n_e ~ Binomial(tokens, topk / experts) taken as independent
 * (they are slightly negatively correlated, so this is high by little), by E[max] = sum_{x>=0} (1 -
 * F(x)^E). NaN unless 1 <= topk <= experts and tokens >= 1. */
double chance_maxvio(int experts, int topk, int64_t tokens);

#endif
