/* rate.h - the rate of a bias rule over a replay: constant, stepwise, or still to be found
 *
 * Layer 4 (sim): calls base. In text `0.001`; `0.001@0,0@80%`, pieces from a share of the tokens on
 * (DeepSeek-V3 trained with 0.001 and, for the last part, 0); `auto`. */
#ifndef SIM_RATE_H
#define SIM_RATE_H

#include <stdbool.h>

#include "base/err.h"

enum { RATE_PIECES = 8 };

struct rate_schedule {
    int pieces; /* 0: the rule has no rate */
    double rate[RATE_PIECES];
    double from[RATE_PIECES]; /* share of the tokens, rising, from[0] = 0 */
    bool automatic;           /* the constant rate that balances batches best (auto_rate.h) */
};

/* Reads the items of a comma list: a plain number, `auto` or a piece at 0 begins a schedule, a
 * later piece goes on with it. schedule[items] receives *count of them. */
bool rate_parse(const char *const *item, int items, struct rate_schedule *schedule, int *count,
                struct err *err);

/* The rate when this share of the tokens is done. */
double rate_at(const struct rate_schedule *schedule, double share);
bool rate_equal(const struct rate_schedule *a, const struct rate_schedule *b);
/* Zero from the first token to the last. */
bool rate_is_zero(const struct rate_schedule *schedule);

/* "0.001", "0.001@0,0@80%" */
enum { RATE_TEXT_BYTES = 256 };
void rate_print(const struct rate_schedule *schedule, char text[static RATE_TEXT_BYTES]);

#endif
