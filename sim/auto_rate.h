/* auto_rate.h - finds the constant rate of a bias rule that balances batches best (`--bias-rate
 * auto`)
 *
 * Layer 4 (sim). The objective is the mean over layers of maxvio_batch. It is flat near its minimum
 * and need not have one valley only, so a grid of half decades over [1e-6, 10] is replayed first,
 * all of it in one pass; then golden section narrows the best cell's neighbourhood, in log(rate),
 * to 2 %. */
#ifndef SIM_AUTO_RATE_H
#define SIM_AUTO_RATE_H

#include <stdbool.h>

#include "base/err.h"
#include "base/progress.h"
#include "sim/replay.h"

/* Sets the rate of every variant whose schedule is automatic, adds a note for each, and derives
 * same_as again. Does nothing when there is none. */
bool auto_rates(struct variant_set *set, const struct source *source,
                const struct replay_options *options, const struct progress *progress,
                struct err *err);

#endif
