/* gate_check.c - which gates are possible: in themselves, among E experts, live or in a replay only
 *
 * Every refusal says what was found and what was expected. */
#include <math.h>

#include "router/gate.h"

#define X(e, text, help) text,
static const char *const score_names[] = {GATE_SCORES(X) NULL};
static const char *const fn_names[] = {GATE_FNS(X) NULL};
static const char *const dtype_names[] = {GATE_DTYPES(X) NULL};
static const char *const assign_names[] = {GATE_ASSIGNS(X) NULL};
static const char *const drop_names[] = {GATE_DROPS(X) NULL};
#undef X

bool gate_score_negative(enum gate_score score) {
    return score == SCORE_TANH || score == SCORE_IDENTITY;
}

/* ---- a gate in itself */

static bool check_rounding(const struct gate *gate, struct err *err) {
    if (gate->fn != GATE_SPARSEMIXER || gate->dtype == DTYPE_F32) return true;
    return err_set(
        err, ERR_USAGE,
        "gate: fn=sparsemixer: found dtype=%s, expected f32 (the rule is published in it)",
        dtype_names[gate->dtype]);
}

static bool check_cut(const struct gate *gate, struct err *err) {
    if (gate->cut == CUT_NONE) return true;
    if (gate->fn != GATE_TABLE)
        return err_set(err, ERR_USAGE,
                       "gate: fn=%s: found topp or threshold, expected neither: the number of its "
                       "experts is fixed",
                       fn_names[gate->fn]);
    if (gate->cut == CUT_TOPP && gate->order == ORDER_TOPK_SCORE)
        return err_set(
            err, ERR_USAGE,
            "gate: topp: found order=topk-score, expected score-topk: a share of the sum "
            "of all scores needs the scores of all experts");
    if (gate->cut == CUT_TOPP && gate_score_negative(gate->score))
        return err_set(err, ERR_USAGE,
                       "gate: topp: found the score %s, which can be negative, expected softmax, "
                       "sigmoid, sqrtsoftplus or relu (shares of a sum)",
                       score_names[gate->score]);
    return true;
}

/* A hash layer's choice looks at the token id alone. */
static bool check_hash(const struct gate *gate, struct err *err) {
    if (!gate_hashes(gate)) return true;
    const char *found = gate->bias         ? "bias"
                        : gate->groups > 0 ? "groups"
                        : gate->noise > 0  ? "noise"
                                           : NULL;
    return !found || err_set(err, ERR_USAGE,
                             "gate: fn=%s: found %s, expected none: the choice looks at the token "
                             "id, not at scores",
                             fn_names[gate->fn], found);
}

/* The second choice at random is a rule about a best and a second expert. */
static bool check_second(const struct gate *gate, struct err *err) {
    if (gate->second == SECOND_ALL) return true;
    const char *found = gate->topk != 2                    ? "another topk"
                        : gate->fn != GATE_TABLE           ? "a special function"
                        : gate->cut != CUT_NONE            ? "topp or threshold"
                        : gate->assign != ASSIGN_TOKEN     ? "assign="
                        : gate_score_negative(gate->score) ? "a score that can be negative"
                        : gate->drop == DROP_PRIORITY      ? "capacity policy priority"
                                                           : NULL;
    return !found || err_set(err, ERR_USAGE,
                             "gate: second=random: found %s, expected topk=2 and softmax, sigmoid, "
                             "sqrtsoftplus or relu without them (a token's second expert is kept "
                             "by its share of the two weights)",
                             found);
}

/* Devices share places where choices are dropped. */
static bool check_devices(const struct gate *gate, struct err *err) {
    if (gate->devices == 0) return true;
    if (gate->capacity == 0 || gate->assign == ASSIGN_EXPERT || gate->assign == ASSIGN_BASE)
        return err_set(err, ERR_USAGE,
                       "gate: devices: found %s, expected capacity=F[:POLICY] that drops choices "
                       "(the experts of a device share its places)",
                       gate->capacity == 0             ? "no capacity"
                       : gate->assign == ASSIGN_EXPERT ? "assign=expert"
                                                       : "assign=base");
    return true;
}

/* What cannot be joined with an assignment of whole batches. */
static bool check_assign(const struct gate *gate, struct err *err) {
    const char *name = assign_names[gate->assign];
    if (gate->assign == ASSIGN_TOKEN) return true;
    if (gate->fn != GATE_TABLE)
        return err_set(err, ERR_USAGE, "gate: assign=%s: found fn=%s, expected fn=table", name,
                       fn_names[gate->fn]);
    if (gate->bias)
        return err_set(err, ERR_USAGE,
                       "gate: assign=%s: found a correction bias or a bias rule, expected nobias "
                       "(it balances each batch by itself)",
                       name);
    if (gate->groups > 0)
        return err_set(err, ERR_USAGE,
                       "gate: assign=%s: found groups, expected groups=none (no published form "
                       "limits a token's groups there)",
                       name);
    if (gate->cut != CUT_NONE)
        return err_set(err, ERR_USAGE,
                       "gate: assign=%s: found topp or threshold, expected neither (the batch "
                       "decides how many experts a token has)",
                       name);
    if (gate->assign == ASSIGN_BASE && gate->capacity > 0)
        return err_set(err, ERR_USAGE,
                       "gate: assign=base: found a capacity, expected none (its loads are equal: "
                       "nothing can be dropped)");
    if (gate->assign == ASSIGN_EXPERT && gate->drop != DROP_PROB)
        return err_set(err, ERR_USAGE,
                       "gate: assign=expert: found drop policy %s, expected capacity=F alone (each "
                       "expert takes its best tokens: nothing is dropped)",
                       drop_names[gate->drop]);
    return true;
}

bool gate_check_alone(const struct gate *gate, struct err *err) {
    if (gate->topk < 1) return err_set(err, ERR_USAGE, "gate: found no topk=, expected topk=K");
    if (gate->groups > 0 && gate->group_rule == GROUP_TOPSUM && gate->topk < gate->groups_kept)
        return err_set(err, ERR_USAGE,
                       "gate: groups rule topsum: found topk %d with %d groups kept, expected topk "
                       ">= groups kept (a group's score is the sum of its topk/KEEP best)",
                       gate->topk, gate->groups_kept);
    if (gate->fn == GATE_SPARSEMIXER && (gate->topk != 2 || gate->bias || gate->groups > 0))
        return err_set(err, ERR_USAGE,
                       "gate: fn=sparsemixer: expected topk=2 without bias and groups");
    return check_rounding(gate, err) && check_cut(gate, err) && check_hash(gate, err) &&
           check_assign(gate, err) && check_second(gate, err) && check_devices(gate, err);
}

/* ---- a gate among E experts */

bool gate_check(const struct gate *gate, int experts, bool have_bias, struct err *err) {
    if (!check_assign(gate, err)) return false;
    if (gate->topk > experts)
        return err_set(err, ERR_USAGE, "gate: topk: found %d, expected at most the %d experts",
                       gate->topk, experts);
    if (gate->bias && !have_bias)
        return err_set(
            err, ERR_USAGE,
            "gate: found bias, but there is no correction bias here (expected nobias, or "
            "a bias rule that starts from zero)");
    if (gate->devices > 0 && experts % gate->devices != 0)
        return err_set(err, ERR_USAGE, "gate: devices: found %d, expected a divisor of %d experts",
                       gate->devices, experts);
    if (gate->groups == 0) return true;
    if (experts % gate->groups != 0)
        return err_set(err, ERR_USAGE, "gate: groups: found %d, expected a divisor of %d experts",
                       gate->groups, experts);
    if (gate->groups_kept < 1 || gate->groups_kept > gate->groups)
        return err_set(err, ERR_USAGE, "gate: groups kept: found %d, expected 1 to %d",
                       gate->groups_kept, gate->groups);
    int size = experts / gate->groups;
    if (gate->groups_kept * size < gate->topk)
        return err_set(
            err, ERR_USAGE,
            "gate: groups: found %d experts in %d kept groups, expected at least topk=%d",
            gate->groups_kept * size, gate->groups_kept, gate->topk);
    if (gate->group_rule == GROUP_TOP2SUM && size < 2)
        return err_set(err, ERR_USAGE,
                       "gate: groups rule top2sum: found groups of 1 expert, expected 2 or more");
    return true;
}

/* ---- whole batches */

bool gate_needs_batch(const struct gate *gate) {
    return gate->assign != ASSIGN_TOKEN || gate->capacity > 0;
}

bool gate_is_causal(const struct gate *gate) {
    if (!gate_needs_batch(gate)) return true;
    bool in_order = gate->turn == TURN_TOKEN || gate->topk == 1;
    return gate->assign == ASSIGN_TOKEN && gate->drop == DROP_POSITION && in_order;
}

/* The order of operations is that of the sources (Megatron-LM get_capacity; Mesh-TensorFlow moe.py,
 * V-MoE's formula), so that factors such as 1.1 round as theirs do. */
int64_t gate_capacity(const struct gate *gate, int experts, int64_t tokens) {
    int sharers = gate->devices > 0 ? gate->devices : experts;
    int64_t most = gate->devices > 0 ? tokens * gate->topk : tokens;
    double choices = (double)tokens * gate->topk, places;
    if (gate->capacity == 0) return most;
    if (gate->rounding == ROUND_CEIL)
        places = ceil(choices / sharers * gate->capacity);
    else if (gate->rounding == ROUND_FLOOR)
        places = floor(choices * gate->capacity / sharers);
    else
        places = nearbyint(choices * gate->capacity / sharers);
    return places < (double)most ? (int64_t)places : most;
}

int gate_slots(const struct gate *gate, int experts) {
    return gate->assign == ASSIGN_EXPERT ? experts : gate->topk;
}

bool gate_leaves_slots(const struct gate *gate) {
    return gate->capacity > 0 || gate->cut != CUT_NONE || gate->second != SECOND_ALL;
}

/* ---- live */

bool gate_check_live(const struct gate *gate, int experts, bool have_bias, struct err *err) {
    if (gate_needs_batch(gate))
        return err_set(err, ERR_UNSUPPORTED,
                       "gate: found %s%s, expected a gate that routes token by token (this one "
                       "decides over a whole balance batch: a replay can run it)",
                       gate->assign == ASSIGN_TOKEN ? "a capacity" : "assign=",
                       gate->assign == ASSIGN_TOKEN ? "" : assign_names[gate->assign]);
    if (gate->fn == GATE_BALANCED_HASH)
        return err_set(
            err, ERR_UNSUPPORTED,
            "gate: found fn=balanced-hash, which follows from the frequencies of a whole "
            "text: expected fn=hash-table (capture --gate makes one of it)");
    if ((gate->noise > 0 || gate->second != SECOND_ALL) && !gate->seeded)
        return err_set(err, ERR_UNSUPPORTED,
                       "gate: found %s without a seed, expected seed=N: what routed once must be "
                       "drawn again",
                       gate->noise > 0 ? "noise" : "second=random");
    return gate_check(gate, experts, have_bias, err);
}

bool gate_check_native(const struct gate *gate, int experts, bool have_bias, struct err *err) {
    const char *found = gate->noise > 0              ? "noise"
                        : gate->second != SECOND_ALL ? "second=random"
                        : gate_hashes(gate)          ? fn_names[gate->fn]
                        : gate->cut == CUT_TOPP      ? "topp"
                        : gate->cut == CUT_THRESHOLD ? "threshold"
                                                     : NULL;
    if (found && !gate_needs_batch(gate))
        return err_set(err, ERR_UNSUPPORTED,
                       "gate: found %s, which acts in a capture or replay of ours only: expected a "
                       "gate that follows from the logits of one token, with topk experts for each",
                       found);
    return gate_check_live(gate, experts, have_bias, err);
}

bool gate_hashes(const struct gate *gate) {
    return gate->fn == GATE_HASH || gate->fn == GATE_BALANCED_HASH || gate->fn == GATE_HASH_TABLE;
}

bool gate_blurs(const struct gate *gate) { return gate->noise > 0 || gate->dtype != DTYPE_F32; }

bool gate_needs_rows(const struct gate *gate) {
    return gate->noise > 0 || gate->second != SECOND_ALL || gate_hashes(gate);
}
