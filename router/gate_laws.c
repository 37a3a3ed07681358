/* gate_laws.c - law 5: which gates provably choose alike, from their specifications alone
 *
 * A gate is reduced to the part that decides its choice, spelled one way only; equal forms choose
 * alike. Reasoning in MATH.md section 7. */
#include "router/gate.h"

/* What law 5 knows of a score function. */
static const struct score_law {
    bool rises;    /* strictly with the logit, whatever the other logits are */
    bool positive; /* always above 0 */
} score_laws[] = {[SCORE_SOFTMAX] = {true, true},      [SCORE_SIGMOID] = {true, true},
                  [SCORE_SQRTSOFTPLUS] = {true, true}, [SCORE_RELU] = {false, false},
                  [SCORE_TANH] = {true, false},        [SCORE_IDENTITY] = {true, false}};

/* The part of a gate that decides the choice, with equal parts spelled equally. */
struct choice_form {
    enum gate_fn fn;
    float fn_arg;
    int score; /* of the choice; MONOTONE where only the order of logits matters */
    bool bias;
    int groups, kept, best; /* best = how many experts a group's score sums */
    enum gate_fill fill;
    int topk;
    enum gate_dtype dtype;
    bool dtype_logits;
    float noise;
    enum gate_cut cut;
    float cut_arg;
    bool seeded;
    int32_t seed;
};

int gate_summed_experts(const struct gate *gate) {
    static const int fixed[] = {[GROUP_MAX] = 1, [GROUP_TOP2SUM] = 2, [GROUP_TOPSUM] = 0};
    int best = fixed[gate->group_rule];
    return best ? best : gate->topk / gate->groups_kept;
}

enum { MONOTONE = -1 };

/* A hash layer chooses by token id: only the table counts. */
static struct choice_form hash_form(const struct gate *gate) {
    return (struct choice_form){
        .fn = gate->fn, .fn_arg = gate->fn_arg, .score = MONOTONE, .topk = gate->topk};
}

/* Does the choice hang on the order of logits alone? Rounded scores tie where others do not, and a
 * cut looks at values. */
static bool order_only(const struct choice_form *form) {
    bool sums = form->groups > 0 && (form->best != 1 || form->fill != FILL_NEG_INF);
    bool rounded = form->dtype != DTYPE_F32 && !form->dtype_logits;
    return !form->bias && !sums && !rounded && form->cut == CUT_NONE &&
           score_laws[form->score].rises;
}

static struct choice_form choice_form(const struct gate *gate) {
    struct choice_form form = {.fn = gate->fn,
                               .fn_arg = gate->fn_arg,
                               .score = (int)gate->score,
                               .bias = gate->bias,
                               .topk = gate->topk,
                               .dtype = gate->dtype,
                               .dtype_logits = gate->dtype_logits,
                               .noise = gate->noise,
                               .cut = gate->cut,
                               .cut_arg = gate->cut_arg,
                               .seeded = gate->seeded,
                               .seed = gate->seed};
    if (gate_hashes(gate)) return hash_form(gate);
    if (gate->order == ORDER_TOPK_SCORE) {
        form.score = SCORE_IDENTITY;
        form.dtype_logits = gate->dtype != DTYPE_F32; /* scores come after the choice */
    }
    if (gate->groups > 0 && gate->groups_kept < gate->groups) {
        form.groups = gate->groups;
        form.kept = gate->groups_kept;
        form.best = gate_summed_experts(gate);
        form.fill = gate->fill;
        /* positive scores without bias always beat a fill of zero; rounded ones can be zero */
        bool rounded = form.dtype != DTYPE_F32 && !form.dtype_logits;
        if (!form.bias && score_laws[form.score].positive && !rounded) form.fill = FILL_NEG_INF;
    }
    if (order_only(&form)) form.score = MONOTONE;
    return form;
}

/* Does the score rise with the logit across tokens too? Softmax does within a token alone. */
static bool rises_in_columns(int score) {
    return score != SCORE_SOFTMAX && score_laws[score].rises;
}

/* Whole batches: which part of the gate a choice hangs on depends on who chooses. */
static bool same_batch_choice(const struct gate *a, const struct gate *b) {
    bool by_weight = a->capacity > 0 && a->assign != ASSIGN_EXPERT && a->drop != DROP_POSITION;
    if (!gate_equal_batch(a, b) || (by_weight && !gate_equal(a, b))) return false;
    if (a->assign == ASSIGN_TOKEN || by_weight) return true;
    struct choice_form x = choice_form(a), y = choice_form(b);
    if (x.topk != y.topk || ((gate_blurs(a) || gate_blurs(b)) && !gate_equal(a, b))) return false;
    if (a->assign == ASSIGN_SINKHORN) return true;
    int score_a = a->order == ORDER_TOPK_SCORE ? SCORE_IDENTITY : (int)a->score;
    int score_b = b->order == ORDER_TOPK_SCORE ? SCORE_IDENTITY : (int)b->score;
    return score_a == score_b ||
           (a->assign == ASSIGN_EXPERT && rises_in_columns(score_a) && rises_in_columns(score_b));
}

bool gate_same_choice(const struct gate *a, const struct gate *b) {
    bool by_share = a->second != SECOND_ALL || b->second != SECOND_ALL; /* of the weights */
    if (by_share && !gate_equal(a, b)) return false;
    if (!same_batch_choice(a, b)) return false;
    if (a->assign != ASSIGN_TOKEN) return true;
    struct choice_form x = choice_form(a), y = choice_form(b);
    return x.fn == y.fn && x.fn_arg == y.fn_arg && x.score == y.score && x.bias == y.bias &&
           x.groups == y.groups && x.kept == y.kept && x.best == y.best && x.fill == y.fill &&
           x.topk == y.topk && x.dtype == y.dtype && x.dtype_logits == y.dtype_logits &&
           x.noise == y.noise && x.cut == y.cut && x.cut_arg == y.cut_arg && x.seeded == y.seeded &&
           x.seed == y.seed;
}
