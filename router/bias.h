/* bias.h - rules that move the correction bias after each balance batch (auxiliary-loss-free)
 *
 * Layer 2, pure. One row of a table per rule; `none` is the control. Bias values are f64 and are
 * rounded to f32 where they are added to the f32 scores (bias_round). Formulas: MATH.md section 5.
 */
#ifndef ROUTER_BIAS_H
#define ROUTER_BIAS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct bias_rule {
    const char *name;
    const char *summary; /* one line, with the formula */
    const char *source;  /* paper and equation, or model code */
    bool needs_rate;
    bool adds_bias; /* false only for `none`: the gate runs without a bias */
    /* bias[E] <- updated from counts[E] of one full batch; mean = kT/E. NULL: never updates. */
    void (*update)(int experts, const int64_t *counts, double rate, double *bias);
};

/* Ends with name == NULL; the first is `none`. */
extern const struct bias_rule bias_rules[];

/* By name; NULL with err set, listing what there is. */
const struct bias_rule *bias_rule_find(const char *name, struct err *err);

/* rounded[E] <- (float) bias[E]. */
void bias_round(int experts, const double *bias, float *rounded);

#endif
