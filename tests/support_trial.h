/* support_trial.h - a random gate on random logits, and the smallest like it that breaks a law
 *
 * A trial is a few numbers: logits and biases follow from seed, token and expert, so that a smaller
 * trial keeps the ones that it still has. A law that fails is tried again on trials with fewer
 * tokens, experts, choices and items until nothing can be taken away. */
#ifndef TESTS_SUPPORT_TRIAL_H
#define TESTS_SUPPORT_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "router/route.h"

enum { TRIAL_TOKENS = 32, TRIAL_EXPERTS = 96, TRIAL_TOPK = 12 };

struct trial {
    struct gate gate;
    int experts, tokens;
    int64_t first; /* number of the first token */
    uint64_t seed;
    bool coarse; /* whole logits: many ties */
};

/* Any gate of the grammar that routes token by token. */
void trial_random(struct rng *rng, struct trial *trial);

/* logits[T,E], bias[E] of the trial. */
void trial_logits(const struct trial *trial, float *logits, float *bias);

struct trial_routes {
    int32_t expert[TRIAL_TOKENS * TRIAL_TOPK];
    float weight[TRIAL_TOKENS * TRIAL_TOPK];
    uint8_t tie[TRIAL_TOKENS], escape[TRIAL_TOKENS];
};
/* As a replay routes it, noise and hash layers included. */
void trial_route(const struct trial *trial, const float *logits, const float *bias,
                 struct trial_routes *routes);
/* What it routes on: noisy, rounded logits and scores. [T,E] each. */
void trial_view(const struct trial *trial, const float *logits, float *logit, float *score);

/* A law: true when it holds. */
typedef bool trial_law(const struct trial *trial);
/* Makes a failing trial as small as it gets; returns the number of steps. */
int trial_shrink(struct trial *trial, trial_law *law);
/* Checks the law on `count` random trials; fails the test with the smallest counterexample. */
void trial_check(const char *name, trial_law *law, uint64_t seed, int count);

#endif
