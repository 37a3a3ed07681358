/* refit.h - measured rows predicted by constants other than the built-in ones
 *
 * Layer 4 (sim): calls base. Each function replaces predicted_ms of every row and `origin` of every
 * kernel; timings_validate and timings_worst then tell the error. A row that gets no prediction
 * (a kernel with too few rows, a GPU without a source) has NaN and counts as unmodelled. */
#ifndef SIM_REFIT_H
#define SIM_REFIT_H

#include "sim/timings.h"

/* What is left out of each fit in turn. X(enum, name, help) */
#define LEFT_OUT(X)                                                                                \
    X(LEFT_OUT_SHAPE, "shape", "each model shape: hidden, inter, top-k, experts")                  \
    X(LEFT_OUT_RANKS, "ranks", "each number of ranks")                                             \
    X(LEFT_OUT_HALF, "half", "each half of the (shape, ranks) groups")
#define X(e, name, help) e,
enum left_out { LEFT_OUT(X) };
#undef X
bool left_out_find(const char *name, enum left_out *what, struct err *err);

/* Rows of each group by a fit of all other unflagged rows of their kernel. `only` (or NULL): the
 * kernel label to do this for. threads = 0: all. */
bool refit_left_out(struct timings *timings, enum left_out what, const char *only, int threads,
                    struct err *err);

/* Every kernel by a fit of the same kernel's unflagged rows in `seen`. */
bool refit_on(struct timings *timings, const struct timings *seen, const char *only, int threads,
              struct err *err);

/* Rows of every other GPU by `gpu`'s built-in constants, carried over by data-sheet ratios. */
bool refit_carry(struct timings *timings, const char *gpu, struct err *err);

#endif
