/* bias.h - rules that move the correction bias after each balance batch (auxiliary-loss-free)
 *
 * Layer 2, pure: no allocation, no I/O. One row of a table per rule; `none` is the control. Bias
 * values are f64 and are rounded to f32 where they meet the f32 scores (bias_round). Formulas,
 * sources and where we differ from them: MATH.md section 5. Letters: T tokens of a batch, E
 * experts, k chosen, n_e the tokens that chose expert e, m = kT/E their mean. */
#ifndef ROUTER_BIAS_H
#define ROUTER_BIAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* One full balance batch, as a rule sees it. Borrowed by the update, which writes state and scratch
 * alone. */
struct bias_batch {
    int experts, topk;
    int64_t tokens;        /* T */
    const int64_t *counts; /* [E] n_e */
    const float *scores;   /* [T,E] what the bias is added to; NULL unless the rule needs them */
    double rate;
    double *state;  /* [rule->state, E], zero before the first batch */
    float *scratch; /* [2,T]; NULL unless the rule needs scores */
};

struct bias_rule {
    const char *name;
    const char *summary; /* one line, with the formula */
    const char *source;  /* paper and equation, or model code */
    bool needs_rate;
    double rate;       /* default of the rate */
    bool adds_bias;    /* false only for `none`: the gate runs without a bias */
    bool multiplies;   /* the bias multiplies the score, and is 1 where others are 0 */
    bool needs_scores; /* looks at the scores of the whole batch */
    bool centred;      /* takes the mean off: shifts all experts alike compared with a plain rule */
    int state;         /* f64 per expert that it keeps between batches */
    /* bias[E] <- updated from one full batch. NULL: never updates. */
    void (*update)(const struct bias_batch *batch, double *bias);
};

/* Ends with name == NULL; the first is `none`. */
extern const struct bias_rule bias_rules[];

/* By name; NULL with err set, listing what there is. */
const struct bias_rule *bias_rule_find(const char *name, struct err *err);

/* rounded[E] <- (float) bias[E]. */
void bias_round(int experts, const double *bias, float *rounded);

#endif
