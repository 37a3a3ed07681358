/* dynamics.h - how a bias rule moves the load over balance batches: settling, overshoot,
 * oscillation
 *
 * Layer 2: arithmetic on plain arrays. One number a batch comes in, a handful come out. The `tail`
 * is the second half of the batches, where a rule that works has settled. */
#ifndef ANALYSIS_DYNAMICS_H
#define ANALYSIS_DYNAMICS_H

#include <stdint.h>

/* What is known of each expert's load over the tail, summed while the batches pass by: x = load /
 * mean load - 1 of an expert in a batch. */
struct dynamics_tail {
    int64_t pairs;        /* (expert, two consecutive batches) */
    int64_t sign_changes; /* of x between the two */
    double variance;      /* of x over the batches of the tail, mean over experts */
};

struct dynamics {
    int64_t batches;
    double start; /* MaxVio of the first batch */
    double level; /* mean MaxVio of the tail */
    /* Batches until MaxVio stays within the band above the level: the larger of a tenth of start -
     * level and the tail's own largest excess. NaN: not settled, the tail still falls or rises by
     * more than a tenth of start - level between its halves. */
    double settling_batches;
    /* How far the loads swing through to the other side: - min over batches of the response, the
     * projection of x on that of the first batch (1 there, 0 when balanced). Share of the first. */
    double overshoot;
    /* Root 2 times the standard deviation of an expert's x over the tail: the amplitude of a sine
     * of that size. It holds the noise of sampling too: about sqrt(2 (1 - k/E) / mean load). */
    double amplitude;
    /* In batches: 2 / share of sign changes. 2 = every batch turns the load over; 4 = pure noise;
     * long where an expert stays on its side. NaN: no change of sign at all. */
    double period;
};

/* maxvio[n], response[n] (NULL: not known, no overshoot) of the full batches. With fewer than four,
 * only start and level are set.
 */
void dynamics_of(const double *maxvio, const double *response, int64_t n,
                 const struct dynamics_tail *tail, struct dynamics *out);

#endif
