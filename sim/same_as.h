/* same_as.h - law 5: which variants provably put the same load on every expert
 *
 * Layer 4 (sim). Reasons from the specifications alone: gate_same_choice says when two gates choose
 * alike given equal biases; here the biases are compared too. Two that never move are equal when
 * they start alike; two that move are equal by induction over batches when rule, rate, start and
 * batch are (equal choices give equal counts, those equal updates); a bias that is zero and stays
 * zero is none; a rule that only shifts all biases alike (centred-sign) is the plain one unless
 * dropped groups are filled with zero.
 *
 * The proofs are in real arithmetic. In f32 a score can round to its neighbour's (saturation), and
 * then the tie rule decides; a replay therefore counts the tokens where twins part (see replay.h)
 * and withdraws the claim when there is one. */
#ifndef SIM_SAME_AS_H
#define SIM_SAME_AS_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/variant.h"

/* How a variant behaves at a layer, as far as its choices go. */
struct choice_law {
    struct gate gate;              /* `bias` cleared where the bias is zero throughout */
    const struct bias_rule *rule;  /* NULL when the bias never moves while tokens are left */
    const struct bias_rule *exact; /* the rule itself where `rule` stands for an equivalent one */
    struct rate_schedule rate;
    enum bias_start start;
    int64_t batch_tokens; /* 0 when neither bias nor gate looks at batches */
};

/* tokens = T of the replay: a bias that is first updated after the last token never acts. */
struct choice_law choice_law(const struct variant *variant, const struct variant_layer *at,
                             int64_t tokens);

/* Same choices for every token whatever the logits, in real arithmetic. */
bool same_load(const struct choice_law *a, const struct choice_law *b);
/* The same, and bit for bit in f32 too: they differ in nothing that precedes the weights. */
bool same_choice_bits(const struct choice_law *a, const struct choice_law *b);
/* Equal in everything that is routed, weights included. */
bool same_routes(const struct choice_law *a, const struct choice_law *b);

/* Why a and b are the same, in one line of words. Static text. */
const char *same_why(const struct choice_law *a, const struct choice_law *b);

#endif
