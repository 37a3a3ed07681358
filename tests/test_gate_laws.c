/* test_gate_laws.c - laws of the router on random gates, with the smallest counterexample */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support_trial.h"
#include "tests/test.h"

static float logits[TRIAL_TOKENS * TRIAL_EXPERTS], bias[TRIAL_EXPERTS];
static float logit[TRIAL_TOKENS * TRIAL_EXPERTS], score[TRIAL_TOKENS * TRIAL_EXPERTS];

static void run(const struct trial *t, struct trial_routes *routes) {
    trial_logits(t, logits, bias);
    trial_route(t, logits, bias, routes);
}

/* ---- the laws */

static bool text_says_all(const struct trial *t) {
    char line[GATE_TEXT_BYTES], again[GATE_TEXT_BYTES];
    struct gate gate;
    struct err err;
    gate_print(&t->gate, line);
    if (!gate_parse(line, NULL, &gate, &err)) return false;
    gate_print(&gate, again);
    return gate_equal(&gate, &t->gate) && strcmp(line, again) == 0;
}

/* Law 4: distinct experts, then empty slots of weight 0; only a cut leaves any. */
static bool load_is_conserved(const struct trial *t) {
    static struct trial_routes r;
    int k = t->gate.topk;
    run(t, &r);
    for (int i = 0; i < t->tokens; i++) {
        bool seen[TRIAL_EXPERTS] = {false};
        int n = 0;
        for (int j = 0; j < k; j++) {
            int32_t e = r.expert[i * k + j];
            float w = r.weight[i * k + j];
            if (!isfinite(w) || (e == ROUTE_NONE && w != 0)) return false;
            if (e == ROUTE_NONE) continue;
            if (e < 0 || e >= t->experts || seen[e] || j > n) return false;
            seen[e] = true;
            n++;
        }
        if (t->gate.cut == CUT_NONE ? n != k : t->gate.cut == CUT_TOPP && n < 1) return false;
    }
    return true;
}

static bool levels_agree(const struct trial *t) {
    static struct trial_routes best, other;
    bool same = true;
    run(t, &best);
    for (int i = 0; route_level_at(i); i++) {
        if (!route_force_level(route_level_at(i))) continue;
        run(t, &other);
        same = same && memcmp(&best, &other, sizeof best) == 0;
    }
    route_force_level(NULL);
    return same;
}

/* Law 3: each token alone is as it is among others. */
static bool a_token_alone_is_the_same(const struct trial *t) {
    static struct trial_routes all, one;
    int k = t->gate.topk;
    run(t, &all);
    for (int i = 0; i < t->tokens; i++) {
        struct trial single = *t;
        single.first += i;
        single.tokens = 1;
        run(&single, &one);
        if (memcmp(all.expert + i * k, one.expert, (size_t)k * sizeof *one.expert) != 0 ||
            memcmp(all.weight + i * k, one.weight, (size_t)k * sizeof *one.weight) != 0 ||
            all.tie[i] != one.tie[0] || all.escape[i] != one.escape[0])
            return false;
    }
    return true;
}

/* Scores computed before, and weights computed after, are those of one call. */
static bool shared_steps_are_the_same(const struct trial *t) {
    static _Alignas(64) unsigned char scratch[1 << 18];
    static struct trial_routes whole, parts;
    struct routes out = {parts.expert, NULL, parts.tie, parts.escape};
    bool late = t->gate.order == ORDER_TOPK_SCORE;
    if (t->gate.fn != GATE_TABLE) return true;
    run(t, &whole);
    memset(&parts, 0, sizeof parts);
    trial_view(t, logits, logit, score);
    route_scored(&t->gate, t->experts, t->tokens, logit, late ? NULL : score, bias, &out, scratch);
    route_weights(&t->gate, t->experts, t->tokens, logit, score, parts.expert, parts.weight);
    return memcmp(&whole, &parts, sizeof whole) == 0;
}

static bool same_choices(const struct trial_routes *a, const struct trial_routes *b, int n) {
    return memcmp(a->expert, b->expert, (size_t)n * sizeof *a->expert) == 0;
}

static bool what_follows_the_choice_does_not_move_it(const struct trial *t) {
    static struct trial_routes a, b;
    struct trial other = *t;
    other.gate.norm = t->gate.norm == NORM_SUM ? NORM_NONE : NORM_SUM;
    other.gate.norm_arg = 0;
    other.gate.scale = 3;
    run(t, &a);
    run(&other, &b);
    return same_choices(&a, &b, t->tokens * t->gate.topk);
}

static bool same_set(const int32_t *a, const int32_t *b, int k) {
    for (int i = 0; i < k; i++) {
        bool found = false;
        for (int j = 0; j < k; j++) found = found || a[i] == b[j];
        if (!found) return false;
    }
    return true;
}

/* Law 5: what is claimed to choose alike does, unless f32 scores tie. */
static bool claims_hold(const struct trial *t) {
    static struct trial_routes a, b;
    int k = t->gate.topk;
    run(t, &a);
    for (int s = 0; s <= SCORE_IDENTITY; s++)
        for (int late = 0; late < 2; late++) {
            struct trial other = *t;
            struct err err;
            other.gate.score = (enum gate_score)s;
            other.gate.order = (enum gate_order)late;
            if (!gate_check(&other.gate, t->experts, true, &err) ||
                !gate_same_choice(&t->gate, &other.gate))
                continue;
            run(&other, &b);
            for (int i = 0; i < t->tokens; i++)
                if (!a.tie[i] && !b.tie[i] && !same_set(a.expert + i * k, b.expert + i * k, k))
                    return false;
        }
    return true;
}

/* Rounding what is rounded changes nothing. */
static bool rounding_is_idempotent(const struct trial *t) {
    static struct trial_routes a, b;
    struct trial quiet = *t;
    quiet.gate.noise = 0;
    if (t->gate.dtype == DTYPE_F32) return true;
    run(&quiet, &a);
    trial_view(&quiet, logits, logit, NULL);
    trial_route(&quiet, logit, bias, &b);
    return memcmp(&a, &b, sizeof a) == 0;
}

/* A cut keeps a prefix of the uncut choice, and a higher one a prefix of a lower one's. */
static bool cuts_are_nested(const struct trial *t) {
    static struct trial_routes some, more;
    struct trial wider = *t;
    int k = t->gate.topk;
    if (t->gate.cut == CUT_NONE) return true;
    for (int step = 0; step < 2; step++) {
        if (t->gate.cut == CUT_TOPP && step == 0)
            wider.gate.cut_arg = 0.5f + 0.5f * t->gate.cut_arg;
        else if (step == 0)
            wider.gate.cut_arg = t->gate.cut_arg - 0.5f;
        else
            wider.gate.cut = CUT_NONE, wider.gate.cut_arg = 0;
        run(t, &some);
        run(&wider, &more);
        for (int i = 0; i < t->tokens * k; i++)
            if (some.expert[i] != ROUTE_NONE && some.expert[i] != more.expert[i]) return false;
    }
    return true;
}

static const struct {
    const char *name;
    trial_law *law;
} laws[] = {{"the text says all", text_says_all},
            {"load is conserved", load_is_conserved},
            {"every CPU level gives the same bits", levels_agree},
            {"a token alone is the same", a_token_alone_is_the_same},
            {"shared steps are the same", shared_steps_are_the_same},
            {"what follows the choice does not move it", what_follows_the_choice_does_not_move_it},
            {"claims of equal choices hold", claims_hold},
            {"rounding is idempotent", rounding_is_idempotent},
            {"cuts are nested", cuts_are_nested}};

static void random_gates_obey_the_laws(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof laws / sizeof *laws; i++)
        trial_check(laws[i].name, laws[i].law, 100 + i, 4000);
}

/* Do the trials reach what the laws are about? */
static void trials_cover_the_grammar(void **state) {
    struct rng rng;
    int cut = 0, dtype = 0, noise = 0, hash = 0, groups = 0, biased = 0, mixer = 0;
    (void)state;
    rng_init(&rng, 5);
    for (int i = 0; i < 4000; i++) {
        struct trial t;
        trial_random(&rng, &t);
        cut += t.gate.cut != CUT_NONE;
        dtype += t.gate.dtype != DTYPE_F32;
        noise += t.gate.noise > 0;
        hash += gate_hashes(&t.gate);
        mixer += t.gate.fn == GATE_SPARSEMIXER;
        groups += t.gate.groups > 0;
        biased += t.gate.bias;
    }
    assert_true(cut > 100 && dtype > 200 && noise > 150 && hash > 30 && mixer > 2);
    assert_true(groups > 400 && biased > 1000);
}

/* ---- shrinking finds the smallest */

static bool no_third_choice_of_five(const struct trial *t) {
    return t->gate.topk < 3 || t->experts < 5;
}

static bool no_bf16_tie(const struct trial *t) {
    static struct trial_routes r;
    run(t, &r);
    for (int i = 0; i < t->tokens; i++)
        if (r.tie[i] && t->gate.dtype == DTYPE_BF16) return false;
    return true;
}

static void counterexamples_shrink_to_the_smallest(void **state) {
    struct rng rng;
    int shrunk = 0, ties = 0;
    (void)state;
    rng_init(&rng, 8);
    for (int i = 0; i < 2000; i++) {
        struct trial t;
        char line[GATE_TEXT_BYTES];
        trial_random(&rng, &t);
        if (!no_third_choice_of_five(&t)) {
            struct trial small = t;
            trial_shrink(&small, no_third_choice_of_five);
            gate_print(&small.gate, line);
            assert_string_equal(line, "softmax,topk=3,norm=none");
            assert_int_equal(small.experts, 5);
            assert_int_equal(small.tokens, 1);
            shrunk++;
        }
        if (!no_bf16_tie(&t)) {
            trial_shrink(&t, no_bf16_tie);
            assert_false(no_bf16_tie(&t));
            assert_int_equal(t.tokens, 1);
            assert_true(t.gate.noise == 0 || !t.coarse);
            assert_true(t.gate.norm == NORM_NONE && t.gate.scale == 1);
            ties++;
        }
    }
    print_message("%d and %d counterexamples made small\n", shrunk, ties);
    assert_true(shrunk > 200 && ties > 20);
}

int test_gate_laws(void);
int test_gate_laws(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(trials_cover_the_grammar),
                                       cmocka_unit_test(random_gates_obey_the_laws),
                                       cmocka_unit_test(counterexamples_shrink_to_the_smallest)};
    return cmocka_run_group_tests_name("gate_laws", tests, NULL, NULL);
}
