/* test_optimum.c - the balanced optimum against all assignments, and losses against their formulas
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/optimum.h"
#include "tests/support_replay.h"
#include "tests/support_slow.h"
#include "tests/test.h"

enum { E = 4, K = 2, T = 6 };

/* Best over all ways to give tokens t.. two experts each, with places left. */
static double best_of_all(const double *value, int t, int *places) {
    if (t == T) return 0;
    double best = -INFINITY;
    for (int a = 0; a < E; a++) {
        for (int b = a + 1; b < E; b++) {
            if (!places[a] || !places[b]) continue;
            places[a]--;
            places[b]--;
            double sum = value[t * E + a] + value[t * E + b] + best_of_all(value, t + 1, places);
            best = fmax(best, sum);
            places[a]++;
            places[b]++;
        }
    }
    return best;
}

static void optimum_is_the_best_of_all_assignments(void **state) {
    struct rng rng;
    struct err err;
    (void)state;
    rng_init(&rng, 51);
    for (int trial = 0; trial < 60; trial++) {
        double value[T * E], best;
        int32_t chosen[T * K];
        int places[E] = {3, 3, 3, 3}, load[E] = {0};
        for (int i = 0; i < T * E; i++) /* every third: integers, with many ties */
            value[i] =
                trial % 3 ? rng_uniform(&rng) + 0.4 * (i % E == 0) : (double)rng_below(&rng, 3);
        const struct assignment_problem problem = {T, E, K, value};
        test_ok(optimum_assign(&problem, &best, chosen, &err), &err);
        test_near(best, best_of_all(value, 0, places), 1e-12);
        double sum = 0;
        for (int i = 0; i < T * K; i++) {
            sum += value[i / K * E + chosen[i]];
            load[chosen[i]]++;
            assert_true(i % K == 0 || chosen[i] > chosen[i - 1]);
        }
        test_near(sum, best, 1e-12);
        for (int e = 0; e < E; e++) assert_int_equal(load[e], 3);
    }
}

/* Dual prices b certify optimality: sum over tokens of their k best of s - b, plus C sum b, is
 * never below the primal value for any b, and equals it for the best b. Here the bound alone, on a
 * batch too large to enumerate, with prices by many rounds of quantiles. */
static void optimum_lies_under_every_dual_bound(void **state) {
    enum { N = 240, M = 12, TOP = 3 };
    static double value[N * M];
    double price[M] = {0}, best, gap = INFINITY;
    struct rng rng;
    struct err err;
    (void)state;
    rng_init(&rng, 52);
    for (int i = 0; i < N * M; i++) value[i] = rng_uniform(&rng) + 0.3 * (i % M < 3);
    const struct assignment_problem problem = {N, M, TOP, value};
    test_ok(optimum_assign(&problem, &best, NULL, &err), &err);
    for (int round = 1; round < 4000; round++) {
        double bound = 0;
        int load[M] = {0};
        for (int t = 0; t < N; t++) {
            bool taken[M] = {false};
            for (int i = 0; i < TOP; i++) {
                int top = -1;
                for (int e = 0; e < M; e++)
                    if (!taken[e] &&
                        (top < 0 || value[t * M + e] - price[e] > value[t * M + top] - price[top]))
                        top = e;
                taken[top] = true;
                load[top]++;
                bound += value[t * M + top] - price[top];
            }
        }
        for (int e = 0; e < M; e++) bound += price[e] * (N * TOP / M);
        assert_true(bound >= best - 1e-9);
        gap = fmin(gap, bound - best);
        for (int e = 0; e < M; e++) price[e] += 0.3 / round * (load[e] - N * TOP / M) / 60.0;
    }
    assert_true(gap < 0.02 * best);
}

/* The replay looks at the last full batch, in replay order, in shares of each token's k highest. */
static void replay_sets_the_optimum_of_its_last_batch(void **state) {
    enum { TOKENS = 130, EXPERTS = 8, TOP = 2, BATCH = 50 };
    static double value[BATCH * EXPERTS];
    static const char *const rules[] = {"none", "sign", "bip"};
    const int64_t batch = BATCH;
    struct rng rng;
    struct err err;
    struct kept kept;
    double best, kept_mass = 0;
    struct replay_options options = {.threads = 1, .chunk_tokens = 7, .optimum = true};
    struct variant_lists lists = {
        .bias_rules = {rules, 3}, .batch_tokens = &batch, .batch_count = 1};
    (void)state;
    rng_init(&rng, 54);
    float *logits = random_logits(&rng, TOKENS, EXPERTS, 1.5);
    int64_t *order = replay_shuffle(TOKENS, 3, &err);
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = (const float *const *)&logits};
    struct source source;
    assert_non_null(order);
    test_ok(gate_parse("sigmoid,topk=2", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    for (int t = 0; t < BATCH; t++) {
        double high = 0, second = 0, *row = value + t * EXPERTS;
        for (int e = 0; e < EXPERTS; e++) {
            row[e] = 1 / (1 + exp(-(double)logits[order[50 + t] * EXPERTS + e]));
            second = row[e] > high ? high : fmax(second, row[e]);
            high = fmax(high, row[e]);
        }
        for (int e = 0; e < EXPERTS; e++) row[e] /= high + second;
    }
    const struct assignment_problem problem = {BATCH, EXPERTS, TOP, value};
    test_ok(optimum_assign(&problem, &best, NULL, &err), &err);
    options.order = order;
    kept_run(&kept, &lists, &source, &options);
    for (int i = 0; i < 3; i++) {
        test_near(kept.row[i].optimum, best / BATCH, 1e-6);
        kept_mass = kept.row[i].last_mass;
        assert_true(kept_mass <= 1 + 1e-12 && kept_mass > 0.5);
    }
    assert_true(kept.row[0].last_mass == 1 && kept.row[0].optimum < 1);
    kept_free(&kept);
    free(order);
    free(logits);
}

/* ---- losses */

static void losses_are_their_formulas(void **state) {
    enum { TOKENS = 300, EXPERTS = 8, TOP = 2, RANKS = 4 };
    static double p[TOKENS][EXPERTS];
    const int64_t ranks = RANKS, documents[] = {0, 120, TOKENS};
    struct rng rng;
    struct err err;
    struct kept kept;
    struct replay_options options = {.threads = 1, .chunk_tokens = 7, .losses = true};
    static const char *const gates[] = {"native", "native,capacity=0.5:position"};
    struct variant_lists lists = {.gates = {gates, 2}, .ranks = &ranks, .ranks_count = 1};
    double n[EXPERTS] = {0}, first[EXPERTS] = {0}, mass[EXPERTS] = {0}, sent[RANKS] = {0};
    double sequence = 0, z = 0, expected[LOSS_COUNT] = {0};
    (void)state;
    rng_init(&rng, 53);
    float *logits = random_logits(&rng, TOKENS, EXPERTS, 1.5);
    struct source_layer layer = {.layer = 0, .experts = EXPERTS};
    struct source_arrays arrays = {.logits = (const float *const *)&logits};
    struct source source;
    test_ok(gate_parse("softmax,topk=2", NULL, &layer.native, &err), &err);
    source_of_arrays(&source, &arrays, TOKENS, &layer, 1);
    source.documents = 2;
    source.document_first = documents;
    for (int d = 0; d < 2; d++) {
        double u[EXPERTS] = {0}, q[EXPERTS] = {0},
               length = (double)(documents[d + 1] - documents[d]);
        for (int64_t t = documents[d]; t < documents[d + 1]; t++) {
            double sum = 0;
            int a = 0, b = -1;
            for (int e = 0; e < EXPERTS; e++) sum += exp((double)logits[t * EXPERTS + e]);
            for (int e = 0; e < EXPERTS; e++) {
                p[t][e] = exp((double)logits[t * EXPERTS + e]) / sum;
                mass[e] += p[t][e] / TOKENS;
                q[e] += p[t][e] / length;
                if (p[t][e] > p[t][a]) a = e;
            }
            for (int e = 0; e < EXPERTS; e++)
                if (e != a && (b < 0 || p[t][e] > p[t][b])) b = e;
            n[a]++, n[b]++, u[a]++, u[b]++, first[a]++;
            sent[a / 2]++;
            sent[b / 2] += a / 2 != b / 2;
            z += log(sum) * log(sum) / TOKENS;
        }
        for (int e = 0; e < EXPERTS; e++) sequence += EXPERTS / (TOP * length) * u[e] * q[e] / 2;
    }
    for (int e = 0; e < EXPERTS; e++) {
        expected[LOSS_switch] += EXPERTS * n[e] / (TOP * TOKENS) * mass[e];
        expected[LOSS_hf] += EXPERTS * n[e] / TOKENS * mass[e];
        expected[LOSS_gshard] += EXPERTS * first[e] / TOKENS * mass[e];
    }
    for (int r = 0; r < RANKS; r++) {
        double f = EXPERTS * (n[2 * r] + n[2 * r + 1]) / (TOP * TOKENS) / 2;
        expected[LOSS_device] += f * (mass[2 * r] + mass[2 * r + 1]);
        expected[LOSS_communication] +=
            RANKS * sent[r] / (TOP * TOKENS) * (mass[2 * r] + mass[2 * r + 1]);
    }
    expected[LOSS_sequence] = sequence;
    expected[LOSS_z] = z;
    kept_run(&kept, &lists, &source, &options);
    for (int i = 0; i < LOSS_COUNT; i++) {
        if (fabs(kept.row[0].loss[i] - expected[i]) > 1e-5 * expected[i])
            fail_msg("%s: found %g, expected %g", loss_name((enum loss)i), kept.row[0].loss[i],
                     expected[i]);
        /* what a capacity drops was asked for; less is sent */
        double dropped = kept.row[1].loss[i] / kept.row[0].loss[i];
        assert_true(i == LOSS_communication ? dropped < 0.9 : fabs(dropped - 1) < 1e-9);
    }
    assert_true(kept.row[1].m.dropped > 0.2);
    kept_free(&kept);
    free(logits);
}

int test_optimum(void);
int test_optimum(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimum_is_the_best_of_all_assignments),
        cmocka_unit_test(optimum_lies_under_every_dual_bound),
        cmocka_unit_test(replay_sets_the_optimum_of_its_last_batch),
        cmocka_unit_test(losses_are_their_formulas),
    };
    return cmocka_run_group_tests_name("optimum", tests, NULL, NULL);
}
