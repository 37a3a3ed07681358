/* throughput_cell.h - one cell at one layer: placement, batches, the slowest rank
 *
 * Layer 4 (sim), private to throughput. */
#ifndef SIM_THROUGHPUT_CELL_H
#define SIM_THROUGHPUT_CELL_H

#include "base/arena.h"
#include "sim/throughput.h"

/* One layer of one variant, shared by the jobs of its cells. */
struct loaded {
    const struct throughput_options *options;
    int layer; /* router index */
    int experts, groups;
    int topk;  /* k; where tokens have different numbers of experts, the nearest to their mean */
    int slots; /* width of a row of choices */
    double chosen; /* experts of a token: k, or their mean where it varies */
    bool varies;
    const struct gate *gate; /* of the variant; NULL: of a trace of ids */
    uint16_t *expert;        /* [T,slots] */
    double *whole;           /* [E] tokens */
    double *domain;          /* [domains,E] tokens, or NULL: no cell learns from one */
};

/* Slots and ranks of a cell at the loaded layer. */
struct placement_shape cell_shape(const struct throughput_point *point, const struct loaded *l);

/* Batches at the start that only teach a stale placement (LEARN_PREVIOUS): the window, but at most
 * half of all. The others are measured. */
int64_t cell_warm_batches(const struct throughput_point *point,
                          const struct throughput_options *options, const struct serving *serving);

/* Fills the cell's row of the loaded layer, its placement, and what it keeps of load and traffic.
 * balanced_ms goes into the row. */
bool cell_run(struct throughput_cell *cell, const struct loaded *l, const struct serving *serving,
              double balanced_ms, struct arena *arena, struct err *err);

/* Time of the experts under the balanced law of the same tokens: over the experts, or, where the
 * ranks do not divide them, over the slots; NaN where neither has a whole number a rank. */
double cell_balanced_ms(const struct throughput_cell *cell, const struct loaded *l,
                        const struct serving *serving);

#endif
