/* synthetic.h - loads drawn from a law instead of a trace: balanced, uniform, power law
 *
 * Layer 4 (sim): calls base. The laws are those of the published timing tables, so that a measured
 * row's load can be expected, and a trace can be compared with them. T tokens of the whole group,
 * E experts, k chosen, R ranks; rank r holds experts r*E/R .. (r+1)*E/R - 1.
 *
 *     balanced      token i takes experts (i + j*ceil(E/k)) mod E, j < k; below ceil(E/k) tokens
 * are spread evenly over the first ceil(E/k) experts. As many distinct experts as there can be.
 *     uniform       floor(T*k/E) tokens to every expert; if that is 0, one token to each of the
 *                   first T*k/R experts of a rank
 *     power_law_a   x_e ~ density x^-a on [lo,hi] ([1, 0.8*T] when T*k > E, else [0.01, 2]);
 *                   n_e = round(x_e*T*k/sum x), at most T; what is missing (or too much) is given
 *                   (taken) one by one, ranks in turn, to the rank's least (from its most) loaded
 *                   expert. Then the rank with most tokens is the one that counts.
 *     ..._eplb      the same loads after EPLB (global) has replicated hot experts to `slots` and
 *                   packed them; replicas share an expert's tokens evenly */
#ifndef SIM_SYNTHETIC_H
#define SIM_SYNTHETIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rng.h"
#include "sim/layer_time.h"

/* X(enum, name, help); the name of a power law is followed by its exponent */
#define LOAD_LAWS(X)                                                                               \
    X(LOAD_BALANCED, "balanced", "as many distinct experts as possible, evenly")                   \
    X(LOAD_UNIFORM, "uniform", "the same whole number of tokens for every expert")                 \
    X(LOAD_POWER_LAW, "power_law_", "loads from the density x^-a; larger a: more skew")
#define X(e, name, help) e,
enum load_kind { LOAD_LAWS(X) };
#undef X

struct load_law {
    enum load_kind kind;
    double exponent; /* a of a power law */
    bool eplb;       /* placed by EPLB, learnt on the same loads */
};

/* What the tokens of a group meet. */
struct load_group {
    int experts, topk, ranks;
    int64_t tokens;
    int slots; /* of an EPLB placement; 0: one an expert */
};

/* "balanced", "uniform", "power_law_1.2", each with "_eplb" where it was placed by EPLB. */
bool load_law_parse(const char *text, struct load_law *law, struct err *err);

/* n[E] <- tokens of each expert; they sum to T*k (uniform: at most). scratch[E]. */
void load_draw(const struct load_law *law, const struct load_group *group, struct rng *rng,
               int32_t *n, double *scratch);

/* Rank with most tokens, the lowest of equals. */
int load_hottest_rank(const struct load_group *group, const int32_t *n);

/* Mean load of the hottest rank over `draws` draws of a power law (of the first rank of the other
 * laws, which draw nothing). The seed is mixed from the arguments: the same numbers anywhere.
 * Refuses groups that cannot be (R does not divide E or the slots, k > E). */
bool load_expect(const struct load_law *law, const struct load_group *group, int draws,
                 struct rank_load *load, struct err *err);

#endif
