/* test_blur.c - gates that see rounded or noisy scores, and hash layers that see none */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "router/rounding.h"
#include "router/route.h"
#include "sim/token_ids.h"
#include "tests/support_replay.h"
#include "tests/support_trace.h"
#include "tests/test.h"

enum { SCRATCH = 1 << 20 };
static _Alignas(64) unsigned char scratch[SCRATCH];

static struct gate parse(const char *text) {
    struct gate gate;
    struct err err = {0};
    test_ok(gate_parse(text, NULL, &gate, &err), &err);
    return gate;
}

/* ---- rounding */

/* The nearest of the two neighbours on a grid of 2^-step, ties to even, in f64. */
static double nearest(double x, int significant, int lowest) {
    if (x == 0) return x;
    int exponent = ilogb(x) < lowest ? lowest : ilogb(x);
    double unit = ldexp(1, exponent - significant + 1), q = x / unit, low = floor(q);
    double up = q - low;
    bool odd = fmod(low, 2) != 0;
    return (low + (up > 0.5 || (up == 0.5 && odd))) * unit;
}

static void values_round_to_the_nearest_ties_to_even(void **state) {
    struct rng rng;
    (void)state;
    rng_init(&rng, 1);
    for (int i = 0; i < 400000; i++) {
        uint32_t bits = (uint32_t)rng_next(&rng);
        if (i % 3 == 0) bits &= 0xffff8000u;                  /* halfway between two bf16 */
        if (i % 3 == 1) bits &= 0xfffff000u;                  /* halfway between two f16 */
        if (i % 2) bits = (bits & 0x87ffffffu) | 0x38000000u; /* near 2^-14 .. 2^1 */
        float x = mathf_from_bits(bits);
        if (!isfinite(x)) continue;
        double bf16 = nearest((double)x, 8, -126), f16 = nearest((double)x, 11, -14);
        if (fabs(bf16) > 0x1.fep127) bf16 = copysign(0x1.fep127, bf16);
        if (fabs(f16) > 65504) f16 = copysign(65504, f16);
        assert_true((double)round_bf16(x) == bf16);
        assert_true((double)round_f16(x) == f16);
        assert_true(round_to(DTYPE_F32, x) == x);
    }
}

/* By hand: bf16 keeps multiples of 2^-8 in [1/2,1), of 2^-9 in [1/4,1/2), of 2^-7 in [1,2).
 * sigmoid(2) = .880797 = 225.48/256 -> 225/256; sigmoid(1.5) = .817574 -> 209/256; their sum
 * 434/256 is exact; .518433 -> 133/256, .481567 -> 247/512; times 2.5: 166/128, 154/128. */
static void bf16_rounds_logits_scores_and_each_step_of_the_weights(void **state) {
    const float logits[8] = {1, .5f, 2.001f, -1, .25f, 1.5f, -.5f, .75f};
    const struct {
        const char *gate;
        double weight[2];
    } cases[] = {{"sigmoid,topk=2,norm=none,dtype=bf16", {225. / 256, 209. / 256}},
                 {"sigmoid,topk=2,norm=sum,dtype=bf16", {133. / 256, 247. / 512}},
                 {"sigmoid,topk=2,norm=sum,scale=2.5,dtype=bf16", {166. / 128, 154. / 128}},
                 {"sigmoid,topk=2,norm=none,dtype=bf16:logits", {.88079708, .81757448}},
                 {"sigmoid,topk=2,norm=none", {.88090204, .81757448}}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gate gate = parse(cases[i].gate);
        int32_t expert[2];
        float weight[2];
        struct routes out = {.expert = expert, .weight = weight};
        assert_int_equal(route_tokens(&gate, 8, 1, logits, NULL, &out, scratch), -1);
        assert_int_equal(expert[0], 2);
        assert_int_equal(expert[1], 5);
        for (int j = 0; j < 2; j++) test_near((double)weight[j], cases[i].weight[j], 1e-7);
    }
}

/* From 6.236 on a bf16 sigmoid is 1; gpt-oss chooses on bf16 logits themselves. */
static void rounding_makes_ties_where_f32_has_none(void **state) {
    const float logits[4] = {6.25f, 6.1875f, 7, 6.26f};
    const struct {
        const char *gate;
        int32_t expert;
        int tie;
    } cases[] = {{"sigmoid,topk=1,norm=none", 2, 0},
                 {"sigmoid,topk=1,norm=none,dtype=bf16:logits", 2, 0},
                 {"sigmoid,topk=1,norm=none,dtype=bf16", 0, 1},
                 {"sigmoid,topk=3,norm=none,dtype=bf16", 0, 0},
                 {"identity,topk=2,norm=none", 2, 0},
                 {"identity,topk=2,norm=none,dtype=bf16", 2, 1},
                 {"softmax,order=topk-score,topk=2,norm=none,dtype=bf16:logits", 2, 1},
                 {"sigmoid,topk=1,norm=none,dtype=f16", 2, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gate gate = parse(cases[i].gate);
        int32_t expert[3];
        uint8_t tie;
        struct routes out = {.expert = expert, .tie = &tie};
        assert_int_equal(route_tokens(&gate, 4, 1, logits, NULL, &out, scratch), -1);
        if (expert[0] != cases[i].expert || tie != cases[i].tie)
            fail_msg("%s: found expert %d, tie %d", cases[i].gate, expert[0], tie);
    }
}

static void rounding_overflow_stays_finite(void **state) {
    const float logits[3] = {1e5f, 2e5f, -3e38f};
    struct gate gate = parse("softmax,topk=2,norm=sum,dtype=f16");
    int32_t expert[2];
    float weight[2];
    uint8_t tie;
    struct routes out = {.expert = expert, .weight = weight, .tie = &tie};
    (void)state;
    assert_int_equal(route_tokens(&gate, 3, 1, logits, NULL, &out, scratch), -1);
    assert_int_equal(expert[0], 0);
    assert_true(weight[0] == .5f && weight[1] == .5f);
}

/* ---- noise */

static struct route_rows rows_of(const int64_t *token, uint64_t seed, int layer) {
    return (struct route_rows){.seed = seed, .layer = layer, .token = token};
}

/* Phi(z) is the uniform that z was drawn from: splitmix64 by seed, layer, token, expert. */
static void noise_is_normal_and_drawn_by_key(void **state) {
    enum { T = 2000, E = 16 };
    static float zero[T * E], noisy[T * E];
    static int64_t token[T];
    struct gate gate = parse("softmax,topk=2,noise=1");
    struct route_rows rows = rows_of(token, 7, 3);
    double mean = 0, square = 0;
    (void)state;
    for (int t = 0; t < T; t++) token[t] = 5 * t;
    route_blurred(&gate, &rows, E, T, zero, noisy, NULL);
    for (int i = 0; i < T * E; i++) {
        uint64_t key = rng_at(rng_at(7, 3), (uint64_t)token[i / E]);
        double u = ((double)(rng_at(key, (uint64_t)(i % E)) >> 11) + 0.5) * 0x1p-53;
        double z = (double)noisy[i], p = 0.5 * erfc(-z / sqrt(2));
        assert_true(fabs(p - u) < 2e-7 + 2e-6 * fmin(u, 1 - u));
        mean += z / (T * E);
        square += z * z / (T * E);
    }
    assert_true(fabs(mean) < 0.02 && fabs(square - 1) < 0.03);
}

static void noise_does_not_depend_on_what_it_is_drawn_with(void **state) {
    enum { T = 50, E = 8 };
    float logits[T * E], all[T * E], one[E], other[T * E];
    int64_t token[T];
    struct rng rng;
    (void)state;
    rng_init(&rng, 2);
    for (int i = 0; i < T * E; i++) logits[i] = (float)rng_normal(&rng);
    for (int t = 0; t < T; t++) token[t] = t;
    struct gate gate = parse("softmax,topk=2,noise=0.5"), twin = parse("sigmoid,topk=3,noise=0.5");
    struct route_rows rows = rows_of(token, 1, 1);
    route_blurred(&gate, &rows, E, T, logits, all, NULL);
    route_blurred(&twin, &rows, E, T, logits, other, NULL);
    assert_memory_equal(all, other, sizeof all);
    for (int t = T - 1; t >= 0; t--) {
        struct route_rows single = rows_of(token + t, 1, 1);
        route_blurred(&gate, &single, E, 1, logits + t * E, one, NULL);
        assert_memory_equal(all + t * E, one, sizeof one);
    }
    rows.layer = 2;
    route_blurred(&gate, &rows, E, T, logits, other, NULL);
    assert_true(memcmp(all, other, sizeof all) != 0);
    rows = rows_of(token, 2, 1);
    route_blurred(&gate, &rows, E, T, logits, other, NULL);
    assert_true(memcmp(all, other, sizeof all) != 0);
}

/* ---- replays */

enum { EXPERTS = 16, TOKENS = 3000 };

struct model {
    float *logits;
    int32_t id[TOKENS];
    struct source_layer layer;
    struct source_arrays arrays;
    struct source source;
};

static void model_init(struct model *m) {
    struct rng rng;
    rng_init(&rng, 3);
    memset(m, 0, sizeof *m);
    m->logits = random_logits(&rng, TOKENS, EXPERTS, 1.5);
    /* ids as text has them: few are frequent */
    for (int t = 0; t < TOKENS; t++) m->id[t] = (int32_t)(900 * pow(rng_uniform(&rng), 4));
    m->layer = (struct source_layer){
        .layer = 4, .experts = EXPERTS, .native = parse("softmax,topk=4,norm=sum")};
    m->arrays.logits = (const float *const *)&m->logits;
    m->arrays.token_id = m->id;
    source_of_arrays(&m->source, &m->arrays, TOKENS, &m->layer, 1);
}

static void replay(struct model *m, struct kept *kept, const char *const *gates, int count,
                   uint64_t seed, const struct replay_options *options) {
    const struct variant_lists lists = {.gates = {gates, count}, .seed = seed};
    kept_run(kept, &lists, &m->source, options);
}

static void coarser_types_tie_more_and_keep_less(void **state) {
    static const char *const gates[] = {"native,sigmoid", "native,sigmoid,dtype=f16",
                                        "native,sigmoid,dtype=bf16:logits",
                                        "native,sigmoid,dtype=bf16"};
    struct model m;
    struct kept kept;
    struct replay_options options = {.threads = 2};
    (void)state;
    model_init(&m);
    for (int i = 0; i < TOKENS * EXPERTS; i++) m.logits[i] += 3; /* where sigmoids crowd */
    replay(&m, &kept, gates, 4, 0, &options);
    for (int i = 0; i < 4; i++)
        print_message("%-34s ties %lld agreement %.5f mass %.7f\n", kept.set.variant[i].gate,
                      (long long)kept.row[i].m.ties, kept.row[i].m.agreement,
                      kept.row[i].m.mass_retained);
    assert_int_equal(kept.row[0].m.ties, 0);
    assert_true(kept.row[1].m.ties > 5);
    for (int i = 1; i < 3; i++) {
        assert_true(kept.row[3].m.ties > 4 * kept.row[i].m.ties);
        assert_true(kept.row[3].m.agreement < kept.row[i].m.agreement);
    }
    assert_true(kept.row[2].m.agreement < kept.row[0].m.agreement);
    assert_true(kept.row[3].m.mass_retained < 1 && kept.row[0].m.mass_retained == 1);
    kept_free(&kept);
    free(m.logits);
}

static void agreement_falls_with_noise(void **state) {
    static const char *const gates[] = {"native", "native,noise=0.01", "native,noise=0.1",
                                        "native,noise=1", "native,noise=10"};
    struct model m;
    struct kept kept, again;
    struct replay_options options = {.threads = 1}, other = {.threads = 3, .chunk_tokens = 7};
    struct err err;
    (void)state;
    model_init(&m);
    replay(&m, &kept, gates, 5, 11, &options);
    for (int i = 1; i < 5; i++) {
        assert_true(kept.row[i].m.agreement < kept.row[i - 1].m.agreement);
        assert_true(kept.row[i].m.mass_retained < kept.row[i - 1].m.mass_retained);
    }
    assert_true(kept.row[1].m.agreement > .98);
    assert_true(fabs(kept.row[4].m.agreement - 4. / EXPERTS) < .1); /* chance */
    replay(&m, &again, gates, 5, 11, &other);
    for (int i = 0; i < 5; i++) assert_true(kept.row[i].digest == again.row[i].digest);
    kept_free(&again);
    /* a token keeps its noise when the order changes */
    other.order = replay_shuffle(TOKENS, 9, &err);
    replay(&m, &again, gates, 5, 11, &other);
    for (int i = 0; i < 5; i++)
        assert_memory_equal(kept.row[i].tokens, again.row[i].tokens, sizeof kept.row[i].tokens);
    kept_free(&again);
    free((void *)other.order);
    other.order = NULL;
    replay(&m, &again, gates, 5, 12, &other); /* another seed */
    assert_true(kept.row[0].digest == again.row[0].digest);
    assert_true(kept.row[3].digest != again.row[3].digest);
    kept_free(&again);
    kept_free(&kept);
    free(m.logits);
}

/* ---- hash layers */

static void a_hash_layer_draws_distinct_experts_by_id_alone(void **state) {
    enum { T = 20000, E = 12, K = 5 };
    static int32_t id[T], expert[T * K];
    static int64_t token[T];
    struct gate gate = parse("sigmoid,fn=hash:5,topk=5,norm=sum");
    struct route_rows rows = {.seed = 1, .layer = 2, .token = token, .id = id};
    int count[E] = {0};
    (void)state;
    for (int t = 0; t < T; t++) id[t] = t % 9000;
    route_hashed(&gate, &rows, E, T, NULL, expert);
    for (int t = 0; t < T; t++) {
        unsigned seen = 0;
        for (int i = 0; i < K; i++) {
            assert_in_range(expert[t * K + i], 0, E - 1);
            assert_false(seen >> expert[t * K + i] & 1);
            seen |= 1u << expert[t * K + i];
            if (t < 9000) count[expert[t * K + i]]++;
        }
        if (t >= 9000) assert_memory_equal(expert + t * K, expert + (t - 9000) * K, K * 4);
    }
    for (int e = 0; e < E; e++) assert_in_range(count[e], 3750 - 250, 3750 + 250); /* 5 sigma */
    gate = parse("sigmoid,fn=hash:6,topk=5,norm=sum");
    const int32_t first = expert[0] + expert[1] * E;
    int same = 0;
    route_hashed(&gate, &rows, E, T, NULL, expert);
    for (int t = 0; t < 1000; t++) same += expert[t * K] + expert[t * K + 1] * E == first;
    assert_true(same < 40);
}

/* By hand: ids 7 x4, 2 x3, 5 x3, 9 x1 over 3 experts, k = 2. Loads after each: 7 -> {0,1} 4 4 0;
 * 2 -> {2,0} 7 4 3; 5 -> {2,1} 7 7 6; 9 -> {2,0} 8 7 7. */
static void balanced_hash_gives_frequent_ids_to_the_least_loaded(void **state) {
    int32_t id[] = {7, 2, 7, 5, 9, 7, 2, 5, 7, 2, 5};
    const float logits[11 * 3] = {0};
    const float *rows = logits;
    static const char *const gates[] = {"native,fn=balanced-hash"};
    struct source_layer layer = {.experts = 3, .native = parse("softmax,topk=2")};
    struct source_arrays arrays = {.logits = &rows, .token_id = id};
    struct source source;
    struct variant_lists lists = {.gates = {gates, 1}};
    struct variant_set set;
    struct token_ids ids;
    struct arena arena;
    struct err err;
    (void)state;
    source_of_arrays(&source, &arrays, 11, &layer, 1);
    test_ok(variant_set_build(&set, &lists, &source, &err), &err);
    test_ok(token_ids_read(&ids, &set, &source, &err), &err);
    arena_init(&arena, "test");
    const int32_t *table = token_ids_balance(&ids, ids.vocabulary, 3, 2, &arena);
    assert_int_equal(ids.vocabulary, 10);
    static const int32_t expected[][3] = {{7, 0, 1}, {2, 2, 0}, {5, 2, 1}};
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 2; j++)
            assert_int_equal(table[expected[i][0] * 2 + j], expected[i][1 + j]);
    assert_int_equal(table[9 * 2], 2); /* 7 7 6: 2, then of two equals the lower */
    assert_int_equal(table[9 * 2 + 1], 0);
    arena_free(&arena);
    token_ids_free(&ids);
    variant_set_free(&set);
}

static void hash_replays_ignore_the_scores_for_load(void **state) {
    static const char *const gates[] = {"native",
                                        "native,fn=hash:1",
                                        "native,sigmoid,fn=hash:1,norm=none",
                                        "native,fn=hash:2",
                                        "native,fn=balanced-hash",
                                        "native,softmax,order=topk-score,norm=none,fn=hash:1"};
    struct model m;
    struct kept kept, again;
    struct replay_options options = {.threads = 2}, other = {.threads = 1, .chunk_tokens = 11};
    (void)state;
    model_init(&m);
    replay(&m, &kept, gates, 6, 0, &options);
    replay(&m, &again, gates, 6, 5, &other); /* the replay's seed is that of noise */
    for (int i = 0; i < 6; i++) assert_true(kept.row[i].digest == again.row[i].digest);
    for (int i = 1; i < 6; i++) {
        int64_t sum = 0;
        double weight = 0;
        for (int e = 0; e < EXPERTS; e++) sum += kept.row[i].tokens[e];
        for (int e = 0; e < EXPERTS; e++) weight += kept.row[i].weight[e];
        assert_int_equal(sum, 4 * TOKENS);
        if (i != 2) test_near(weight, TOKENS, 1e-5);
        assert_int_equal(kept.row[i].m.ties, 0);
        assert_true(fabs(kept.row[i].m.agreement - 4. / EXPERTS) < .1);
        assert_true(kept.row[i].m.mass_retained < .7);
    }
    assert_int_equal(kept.set.variant[2].same_as, 2);
    assert_int_equal(kept.set.variant[5].same_as, 2);
    assert_int_equal(kept.set.variant[3].same_as, 0);
    assert_int_equal(kept.row[2].parted + kept.row[5].parted, 0);
    assert_memory_equal(kept.row[1].tokens, kept.row[2].tokens, sizeof kept.row[1].tokens);
    assert_true(kept.row[4].m.maxvio_global < kept.row[1].m.maxvio_global);
    kept_free(&again);
    kept_free(&kept);
    free(m.logits);
}

/* Whole balance batches of noisy, rounded or hashed choices: still token by key, whatever the
 * chunks. */
static void rare_gates_under_a_capacity_do_not_see_chunks(void **state) {
    static const char *const gates[] = {"native,noise=0.5,capacity=1.1",
                                        "native,noise=1,capacity=1.1",
                                        "native,fn=hash:1,capacity=1.05",
                                        "native,fn=balanced-hash,capacity=1.05",
                                        "native,sigmoid,dtype=bf16,capacity=1.1",
                                        "native,sigmoid,norm=none,dtype=bf16,assign=expert",
                                        "native,noise=0.5"};
    struct model m;
    struct kept kept, again;
    struct replay_options options = {.threads = 1}, other = {.threads = 2, .chunk_tokens = 13};
    const int64_t batch[] = {500};
    const struct variant_lists lists = {
        .gates = {gates, 7}, .batch_tokens = batch, .batch_count = 1, .seed = 4};
    (void)state;
    model_init(&m);
    kept_run(&kept, &lists, &m.source, &options);
    kept_run(&again, &lists, &m.source, &other);
    for (int i = 0; i < 7; i++) assert_true(kept.row[i].digest == again.row[i].digest);
    assert_true(kept.row[0].m.agreement < .95);
    assert_true(kept.row[1].m.agreement < kept.row[0].m.agreement);
    assert_true(kept.row[0].m.agreement < kept.row[6].m.agreement); /* what is dropped agrees not */
    assert_true(kept.row[2].m.agreement < .4 && kept.row[3].m.agreement < .4);
    kept_free(&again);
    kept_free(&kept);
    free(m.logits);
}

static void hash_layers_need_token_ids(void **state) {
    static const char *const gates[] = {"native,fn=hash:1"};
    struct model m;
    struct variant_set set;
    struct token_ids ids;
    struct variant_lists lists = {.gates = {gates, 1}};
    struct err err;
    (void)state;
    model_init(&m);
    test_ok(variant_set_build(&set, &lists, &m.source, &err), &err);
    m.source.token_ids = NULL;
    assert_false(token_ids_read(&ids, &set, &m.source, &err));
    assert_non_null(strstr(err.text, "variant 1: a hash layer needs token ids"));
    token_ids_free(&ids);
    source_of_arrays(&m.source, &m.arrays, TOKENS, &m.layer, 1);
    m.id[17] = -1;
    assert_false(token_ids_read(&ids, &set, &m.source, &err));
    assert_non_null(strstr(err.text, "token 17 has none"));
    token_ids_free(&ids);
    m.id[17] = INT32_MAX;
    assert_false(token_ids_read(&ids, &set, &m.source, &err));
    assert_non_null(strstr(err.text, "token 17: found id 2147483647"));
    token_ids_free(&ids);
    variant_set_free(&set);
    free(m.logits);
}

int test_blur(void);
int test_blur(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_round_to_the_nearest_ties_to_even),
        cmocka_unit_test(bf16_rounds_logits_scores_and_each_step_of_the_weights),
        cmocka_unit_test(rounding_makes_ties_where_f32_has_none),
        cmocka_unit_test(rounding_overflow_stays_finite),
        cmocka_unit_test(noise_is_normal_and_drawn_by_key),
        cmocka_unit_test(noise_does_not_depend_on_what_it_is_drawn_with),
        cmocka_unit_test(coarser_types_tie_more_and_keep_less),
        cmocka_unit_test(agreement_falls_with_noise),
        cmocka_unit_test(a_hash_layer_draws_distinct_experts_by_id_alone),
        cmocka_unit_test(balanced_hash_gives_frequent_ids_to_the_least_loaded),
        cmocka_unit_test(hash_replays_ignore_the_scores_for_load),
        cmocka_unit_test(rare_gates_under_a_capacity_do_not_see_chunks),
        cmocka_unit_test(hash_layers_need_token_ids),
    };
    return cmocka_run_group_tests_name("blur", tests, NULL, NULL);
}
