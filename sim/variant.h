/* variant.h - what a replay runs: the product of the user's lists, resolved at every layer
 *
 * Layer 4 (sim): calls router, analysis (which ranks fit) and base. A variant is one gate with one
 * bias rule, rate, balance batch and number of ranks. The product nests in this order, the last
 * varying fastest: gate, score, groups, norm, bias-rule, bias-rate, batch-tokens, ranks; variants
 * are numbered from 1 in that order. A rule that needs no rate is taken once, not once per rate.
 *
 * `native` differs between layers where the model's routers do, and the captured bias is a layer's
 * own, so each variant is resolved per layer: struct variant_layer is what runs there. */
#ifndef SIM_VARIANT_H
#define SIM_VARIANT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "router/bias.h"
#include "router/gate.h"
#include "sim/hash_tables.h"
#include "sim/rate.h"
#include "sim/source.h"

enum bias_start { START_DEFAULT, START_ZERO, START_CAPTURED };
const char *bias_start_name(enum bias_start start); /* "zero", "captured", "" */

struct texts {
    const char *const *item;
    int count;
};

/* The user's lists; an empty one takes its default. Borrowed. */
struct variant_lists {
    struct texts gates;      /* gate specifications; default: native */
    struct texts scores;     /* override the score of each gate */
    struct texts groups;     /* none, N:KEEP:RULE */
    struct texts norms;      /* none, sum:EPS, ... */
    struct texts bias_rules; /* default: frozen where score and bias are the captured, else none */
    struct texts rates;      /* as rate.h reads them; default: the rule's own */
    const int64_t *batch_tokens; /* default: VARIANT_BATCH_TOKENS */
    int batch_count;
    const int64_t *ranks; /* default: variant_default_ranks */
    int ranks_count;
    enum bias_start start;            /* default: zero for rules that update, captured for frozen */
    const struct hash_tables *tables; /* of hash layers whose source has none; NULL: none */
    uint64_t seed;                    /* of noise */
};

enum { VARIANT_BATCH_TOKENS = 4096, VARIANT_MAX = 10000 };

/* What a variant is at one layer. */
struct variant_layer {
    struct gate gate; /* effective: `bias` is set exactly when the rule adds one */
    const struct bias_rule *rule;
    enum bias_start start;    /* of the bias; START_DEFAULT when there is none */
    struct route_table table; /* of fn=hash-table; borrowed from the source or the lists */
    bool foreign;             /* carries a bias that was trained with another score function */
    bool dropped_bias; /* the gate has a bias, but runs without: its score is a foreign one */
};

struct variant {
    int number;                      /* from 1 */
    char gate[2 * GATE_TEXT_BYTES];  /* effective specification, or the words asked where layers
                                        differ */
    char label[2 * GATE_TEXT_BYTES]; /* as asked, short */
    const char *rule;                /* name; "mixed" where the default differs between layers */
    double rate;                     /* the first of the schedule; NaN when the rule has none */
    struct rate_schedule schedule;
    enum bias_start start; /* START_DEFAULT when no layer has a bias */
    int64_t batch_tokens;
    int ranks;
    int same_as;          /* smaller variant of provably equal load at every layer; 0 = none */
    const char *same_why; /* "" when same_as is 0 */
};

struct variant_set {
    struct variant *variant;  /* [count] owned */
    struct variant_layer *at; /* [count, layers] owned */
    int count, layers;
    uint64_t seed;    /* of noise */
    struct str notes; /* lines for the user: foreign biases, dropped biases, rates found */
};

/* Builds, resolves and checks the product; derives same_as (variant_set_derive). Refuses with the
 * reason what cannot run at some layer. Nothing is kept of `lists`. Release with variant_set_free
 * in any case. */
bool variant_set_build(struct variant_set *set, const struct variant_lists *lists,
                       const struct source *source, struct err *err);
/* Derives same_as (same_as.h) anew, once rates have changed. */
void variant_set_derive(struct variant_set *set, const struct source *source);
void variant_set_free(struct variant_set *set);
const struct variant_layer *variant_at(const struct variant_set *set, int variant, int layer);

/* Does a variant look at whole balance batches at any layer (router/batch.h)? */
bool variant_needs_batch(const struct variant_set *set, int variant);
/* Is no token's choice moved by a later token, at any layer? */
bool variant_is_causal(const struct variant_set *set, int variant);

/* The largest number of ranks up to 8 that divides the experts of every layer. */
int variant_default_ranks(const struct source *source);

#endif
