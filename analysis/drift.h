/* drift.h - how far the load moves when the text does
 *
 * Layer 2: arithmetic on plain arrays. Two loads over the same experts (two domains, two stretches
 * of a corpus) as distributions p = n / sum n and q. NaN when a load is empty. */
#ifndef ANALYSIS_DRIFT_H
#define ANALYSIS_DRIFT_H

#include <stdint.h>

/* Total variation distance, sum abs(p - q) / 2, in [0,1]: the share of the choices of one that
 * would have to move to give the other. */
double drift_variation(const int64_t *a, const int64_t *b, int count);

/* Jensen-Shannon divergence, H((p+q)/2) - (H(p) + H(q))/2, in bits, in [0,1] (Lin 1991). */
double drift_divergence(const int64_t *a, const int64_t *b, int count);

/* A stretch of batches of one kind of text, and how MaxVio follows its beginning. */
struct drift_stretch {
    int64_t first, count; /* batches */
    double before;        /* MaxVio of the last batch before; NaN for the first stretch */
    double start, level;  /* of its first batch; mean of its second half */
    double settling; /* batches, as in dynamics.h; NaN: not settled, fewer than four, or within the
                        band from the start: nothing that noise would not do */
};

/* stretch[most] <- maximal runs of equal kind[n], in order; returns how many there are (those
 * beyond `most` are not written). maxvio[n]: of each batch. */
int drift_stretches(const int *kind, const double *maxvio, int64_t n, struct drift_stretch *stretch,
                    int most);

#endif
