/* same_as.c - law 5, from the specifications */
#include "sim/same_as.h"

#include <string.h>

static bool never_moves(const struct variant *variant, const struct variant_layer *at,
                        int64_t tokens) {
    if (!at->rule->update || tokens <= variant->batch_tokens) return true;
    return at->rule->needs_rate && rate_is_zero(&variant->schedule);
}

/* The plain rule that a centred one shifts by a constant; itself when there is none or when a
 * constant matters, because it is compared with a fill of zero. */
static const struct bias_rule *uncentred(const struct bias_rule *rule, const struct gate *gate) {
    bool fill_zero = gate->groups > 0 && gate->fill == FILL_ZERO;
    if (fill_zero || gate->cut == CUT_THRESHOLD || strcmp(rule->name, "centred-sign") != 0)
        return rule;
    const struct bias_rule *plain = bias_rules;
    while (strcmp(plain->name, "sign") != 0) plain++;
    return plain;
}

struct choice_law choice_law(const struct variant *variant, const struct variant_layer *at,
                             int64_t tokens) {
    struct choice_law law = {.gate = at->gate, .start = at->start};
    bool batch = gate_needs_batch(&at->gate);
    if (batch) law.batch_tokens = variant->batch_tokens < tokens ? variant->batch_tokens : tokens;
    if (never_moves(variant, at, tokens)) {
        if (at->start == START_ZERO && at->gate.order == ORDER_SCORE_TOPK) law.gate.bias = false;
        if (!law.gate.bias) law.start = START_DEFAULT;
        return law;
    }
    law.rule = uncentred(at->rule, &at->gate);
    law.exact = at->rule;
    if (at->rule->needs_rate) law.rate = variant->schedule;
    law.batch_tokens = variant->batch_tokens;
    return law;
}

static bool same_bias(const struct choice_law *a, const struct choice_law *b) {
    return a->rule == b->rule && rate_equal(&a->rate, &b->rate) && !a->rate.automatic &&
           a->start == b->start && a->batch_tokens == b->batch_tokens;
}

bool same_load(const struct choice_law *a, const struct choice_law *b) {
    return same_bias(a, b) && gate_same_choice(&a->gate, &b->gate);
}

/* The gate with what comes after the choice removed. */
static struct gate choice_part(const struct gate *gate) {
    struct gate part = *gate;
    /* weights may decide who is dropped */
    if (gate_needs_batch(gate) || gate->second != SECOND_ALL) return part;
    part.norm = NORM_NONE;
    part.norm_arg = 0;
    part.scale = 1;
    if (part.order == ORDER_TOPK_SCORE) part.score = SCORE_IDENTITY;
    return part;
}

bool same_choice_bits(const struct choice_law *a, const struct choice_law *b) {
    struct gate x = choice_part(&a->gate), y = choice_part(&b->gate);
    return same_bias(a, b) && a->exact == b->exact && gate_equal(&x, &y);
}

bool same_routes(const struct choice_law *a, const struct choice_law *b) {
    return same_bias(a, b) && a->exact == b->exact && gate_equal(&a->gate, &b->gate);
}

const char *same_why(const struct choice_law *a, const struct choice_law *b) {
    if (same_routes(a, b)) return "the same gate and bias: only the axis of measurement differs";
    if (same_choice_bits(a, b))
        return "normalisation and scale act after the choice: only weights differ";
    if (a->exact != b->exact)
        return "centring adds one constant to all biases, which moves no choice";
    if (a->gate.score != b->gate.score)
        return "without bias and with max (or no) groups these scores order experts alike: only "
               "weights differ";
    return "the specifications differ only in what cannot move a choice";
}
