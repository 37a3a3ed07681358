/* sums.h - what every routing adds up per chunk, for tokens that all keep k experts
 *
 * Layer 4 (sim), private to the replay; pure. Each sum runs in token order and, within a token, in
 * order of selection, as the general loops of unit.c do: the same bits, faster, because the usual k
 * are constants of their own copies. Letters: n tokens, E experts, k chosen. */
#ifndef SIM_SUMS_H
#define SIM_SUMS_H

#include <stdint.h>

/* A chunk's choices; none is empty, unless said otherwise. */
struct sums {
    int64_t n;
    int experts, k;
    const int32_t *expert; /* [n,k] */
};

/* Sum of n bytes. */
int64_t sums_bytes(const uint8_t *x, int64_t n);

/* received[E] += weight[n,k] at its expert. */
void sums_received(const struct sums *s, const float *weight, double *received);

/* first[k] += d, second[k] += d d, with d = weight[n,k] - shift[k]. */
void sums_ranks(const struct sums *s, const float *weight, const double *shift, double *first,
                double *second);

/* mass[n] <- sum of score[n,E] at the experts of each token. */
void sums_mass(const struct sums *s, const float *score, double *mass);

/* flag[n,E] <- 1 at each token's experts (negative ones left out), else 0. */
void sums_flags(const struct sums *s, uint8_t *flag);
/* How many choices are flagged; *different grows by the tokens where not all are. */
int64_t sums_common(const struct sums *s, const uint8_t *flag, int64_t *different);

#endif
