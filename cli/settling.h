/* settling.h - when a trajectory has settled, where, and how much it swings then */
#ifndef CLI_SETTLING_H
#define CLI_SETTLING_H

#include "base/table.h"

/* Over the second half of the batches: mean (level) and population standard deviation (swing).
 * `first` = the first batch from which a running mean of five stays within two swings (and at least
 * 2 %) of the level to the end of the first half; -1 when that never comes, when the second half
 * still drifts (a line through it moves by more than 2 % of the level, its slope is beyond three
 * standard errors), or with fewer than 8 batches. NaN without. */
struct settling {
    double level, swing;
    double start; /* mean of the first five batches */
    int first;
};
struct settling settling_of(const struct table *trajectory, int column);

#endif
