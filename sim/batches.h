/* batches.h - balance batches: the load of the next N tokens, measured and then forgotten
 *
 * Layer 4 (sim): calls analysis and base. A balance batch is the next `batch_tokens` tokens of all
 * documents in replay order. A batch is closed when it is full, the last shorter one at the end; it
 * counts in means only when it is the only one (DESIGN section 8). A batch in which nobody chose
 * any expert (a threshold that no score passes) is balanced: maxvio 0, efficiency 1. Letters: E
 * experts, k chosen. */
#ifndef SIM_BATCHES_H
#define SIM_BATCHES_H

#include <stdbool.h>
#include <stdint.h>

#include "analysis/dynamics.h"
#include "base/arena.h"
#include "base/err.h"

struct batches {
    int experts, ranks;
    int64_t batch_tokens;
    int64_t filled;     /* tokens of the open batch */
    int64_t *counts;    /* [E] of the open batch */
    int64_t *total;     /* [E] of all closed ones */
    int64_t *sent;      /* [ranks] tokens with an expert on the rank, over all; NULL: not counted */
    int64_t *load;      /* [ranks] scratch */
    int64_t closed;     /* batches below */
    int64_t *tokens;    /* [closed] */
    double *maxvio;     /* [closed] over experts */
    double *efficiency; /* [closed] mean / max over ranks */
    double *response; /* [closed] loads projected on those of the first batch: 1, then towards 0 */

    /* of full batches, for the dynamics: x = load / mean - 1 */
    int64_t full, expected; /* closed so far; of the whole replay */
    double *first, *before; /* [E] x of the first batch, of the one before */
    double *sum, *squares;  /* [E] of x over the tail, the second half of the expected ones */
    struct dynamics_tail tail;
    double last_mass; /* sum of the share of score mass kept over the last full batch */
};

/* All memory, enough for total_tokens, comes from the arena. */
bool batches_init(struct batches *b, struct arena *arena, int experts, int ranks,
                  int64_t batch_tokens, int64_t total_tokens, struct err *err);
/* Tokens that the open batch still takes; >= 1. */
int64_t batches_room(const struct batches *b);
/* Counts n <= room tokens with their expert[n,k]. True when the batch is full now: read counts,
 * then close it. */
bool batches_add(struct batches *b, const int32_t *expert, int k, int64_t n);
/* Measures the open batch and opens the next; does nothing when it is empty. */
void batches_close(struct batches *b);
/* First token (in replay order) of the last full batch; -1 when there is none. */
int64_t batches_last_first(const struct batches *b);
/* Settling, overshoot and oscillation over the full batches. */
void batches_dynamics(const struct batches *b, struct dynamics *out);
/* Means over full batches (over the only one when none is full); NaN when there is none. */
double batches_mean(const struct batches *b, const double *value);

#endif
