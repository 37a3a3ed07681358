/* test_throughput.c - batches, exchange, communication, the rest of a step, and whole runs */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/table.h"
#include "sim/exchange.h"
#include "sim/throughput.h"
#include "tests/support_logits.h"
#include "tests/support_trace.h"
#include "tests/test.h"
#include "traces/query.h"

enum { LAYERS = 2, TOKENS = 900, EXPERTS = 16, TOPK = 4 };

static float *logits[LAYERS];
static struct source_layer layers[LAYERS];
static struct source_arrays arrays;
static struct source source;
static struct cluster cluster;
static const struct model_shape shape = {.hidden = 4096,
                                         .expert_inter = 2048,
                                         .layers = 2,
                                         .moe_layers = 2,
                                         .heads = 32,
                                         .kv_heads = 8,
                                         .head_dim = 128,
                                         .experts = EXPERTS,
                                         .vocab = 32000};

static int make_world(void **state) {
    struct rng rng;
    struct err err;
    (void)state;
    rng_init(&rng, 17);
    for (int l = 0; l < LAYERS; l++) {
        logits[l] = random_logits(&rng, TOKENS, EXPERTS, 1.5);
        layers[l] = (struct source_layer){.layer = l + 3, .experts = EXPERTS};
        test_ok(gate_parse("softmax,groups=4:2:max,topk=4", NULL, &layers[l].native, &err), &err);
    }
    arrays.logits = (const float *const *)logits;
    source_of_arrays(&source, &arrays, TOKENS, layers, LAYERS);
    test_ok(cluster_find(&cluster, "h100", &err), &err);
    return 0;
}

static int free_world(void **state) {
    (void)state;
    for (int l = 0; l < LAYERS; l++) free(logits[l]);
    return 0;
}

static const char *world_trace(const char *name, enum trace_holds holds) {
    static char path[600];
    snprintf(path, sizeof path, "%s/run.db", test_folder(name));
    write_random_trace(path, &source, holds);
    return path;
}

/* ---- batches */

static void prefill_takes_consecutive_tokens_and_decode_spread_sequences(void **state) {
    (void)state;
    static const int64_t first[] = {0, 300, 300, 1000};
    struct serving s;
    struct err err = {0};
    int64_t token[64];
    test_ok(serving_make(&s, PHASE_PREFILL, 4, 16, 3, first, 3, 0, &err), &err);
    assert_int_equal(s.batches, 3);
    serving_batch(&s, 2, token);
    for (int i = 0; i < 64; i++) assert_int_equal(token[i], 128 + i);
    serving_free(&s);
    test_ok(serving_make(&s, PHASE_DECODE, 4, 16, 100, first, 3, 5, &err), &err);
    assert_int_equal(s.batches, 15);
    int64_t next[64];
    serving_batch(&s, 0, token);
    serving_batch(&s, 1, next);
    int low = 0;
    for (int i = 0; i < 64; i++) {
        low += token[i] < 300;
        int64_t end = token[i] < 300 ? 300 : 1000;
        int64_t start = token[i] < 300 ? 0 : 300;
        assert_int_equal(next[i], token[i] + 1 == end ? start : token[i] + 1);
        for (int j = 0; j < i; j++) assert_true(token[i] != token[j]);
    }
    assert_in_range(low, 18, 21); /* 300 of 1000 tokens, stratified */
    serving_free(&s);
    test_ok(serving_make(&s, PHASE_DECODE, 100, 16, 100, first, 3, 5, &err), &err);
    assert_true(s.repeats);
    assert_int_equal(s.batches, 1);
    serving_free(&s);
    assert_false(serving_make(&s, PHASE_DECODE, 1 << 20, 1 << 20, 1, first, 3, 5, &err));
}

/* ---- exchange */

static void exchange_conserves_tokens_and_bytes(void **state) {
    (void)state;
    enum { GROUP = 256, R = 8 };
    struct rng rng;
    rng_init(&rng, 3);
    uint16_t *expert = malloc(GROUP * TOPK * sizeof *expert);
    int64_t token[GROUP];
    double weight[EXPERTS];
    for (int e = 0; e < EXPERTS; e++) weight[e] = 1 + (double)rng_below(&rng, 100);
    for (int round = 0; round < 60; round++) {
        for (int i = 0; i < GROUP; i++) {
            token[i] = GROUP - 1 - i;
            int64_t order[EXPERTS];
            for (int e = 0; e < EXPERTS; e++) order[e] = e;
            rng_shuffle(&rng, order, EXPERTS);
            for (int j = 0; j < TOPK; j++) expert[i * TOPK + j] = (uint16_t)(order[j] / (j + 1));
        }
        const struct placement_shape ps = {EXPERTS, EXPERTS + 8, R, 2, 1};
        struct placement p;
        struct arena arena;
        struct err err = {0};
        arena_init(&arena, "test");
        test_ok(placement_build(&p, PLACE_EPLB_GLOBAL, &ps, weight, 0, &err), &err);
        struct exchange x = {.gpus_per_node = 4,
                             .tokens_per_rank = GROUP / R,
                             .capacity = round % 2 ? 40 : 0,
                             .replica = {.choice = (enum replica_choice)(round % 4)}};
        test_ok(exchange_init(&x, &ps, &arena, &err), &err);
        exchange_place(&x, &p);
        exchange_batch(&x, token, GROUP, expert, TOPK, (uint64_t)round);
        int64_t kept = 0, per_expert[EXPERTS] = {0}, sent[4] = {0}, received[4] = {0};
        for (int s = 0; s < ps.slots; s++) {
            kept += x.slot_tokens[s];
            per_expert[p.expert_of[s]] += x.slot_tokens[s];
        }
        assert_int_equal(kept + x.dropped, GROUP * TOPK);
        for (int e = 0; e < EXPERTS; e++) {
            int64_t most = x.capacity ? x.capacity : GROUP * TOPK;
            assert_int_equal(per_expert[e], x.expert_tokens[e] < most ? x.expert_tokens[e] : most);
        }
        for (int r = 0; r < R; r++) {
            const struct comm_traffic *t = &x.traffic[r];
            sent[0] += t->sent_ranks, received[0] += t->received_ranks;
            sent[1] += t->sent_nodes, received[1] += t->received_nodes;
            sent[2] += t->sent_near, received[2] += t->received_near;
            sent[3] += t->sent_far, received[3] += t->received_far;
        }
        for (int i = 0; i < 4; i++) assert_int_equal(sent[i], received[i]);
        assert_int_equal(sent[2] + sent[3], kept);
        assert_true(sent[0] <= kept && sent[1] <= GROUP);
        placement_free(&p);
        arena_free(&arena);
    }
    free(expert);
}

static void copies_go_once_to_a_rank_and_once_to_a_node(void **state) {
    (void)state;
    /* 4 ranks of 2 experts, 2 ranks a node; the token is on rank 0 */
    static const uint16_t expert[] = {0, 2, 4, 5, 6};
    const struct placement_shape ps = {8, 8, 4, 2, 1};
    const int64_t token[] = {0};
    struct placement p;
    struct arena arena;
    struct err err = {0};
    arena_init(&arena, "test");
    test_ok(placement_build(&p, PLACE_CONTIGUOUS, &ps, NULL, 0, &err), &err);
    struct exchange x = {.gpus_per_node = 2, .tokens_per_rank = 1};
    test_ok(exchange_init(&x, &ps, &arena, &err), &err);
    exchange_place(&x, &p);
    exchange_batch(&x, token, 1, expert, 5, 0);
    assert_int_equal(x.traffic[0].sent_ranks, 4); /* itself, 1, 2 and 3 */
    assert_int_equal(x.traffic[0].sent_nodes, 1);
    assert_int_equal(x.traffic[0].sent_near, 2);
    assert_int_equal(x.traffic[0].sent_far, 3);
    assert_int_equal(x.traffic[2].received_nodes, 1);
    assert_int_equal(x.traffic[2].received_far, 2);
    const struct comm_constants c = {.normal = {{10, 100}, {20, 50}, {30, 1}, {40, 2}},
                                     .low_latency = {{1, 100}, {1, 100}, {2, 1}, {3, 1}},
                                     .dispatch_bytes = 1,
                                     .combine_bytes = 2};
    /* one copy over the network of 1000 elements: 30 us + 1000 B / 1 GB/s; back 40 + 1 us */
    struct comm_time t = comm_time(&c, false, 1000, x.traffic, 4);
    test_near(t.dispatch_ms, 31e-3, 1e-12);
    test_near(t.combine_ms, 41e-3, 1e-12);
    t = comm_time(&c, true, 1000, x.traffic, 4);
    test_near(t.dispatch_ms, 5e-3, 1e-12); /* 2 us + 3 copies */
    t = comm_time(&c, true, 1000, x.traffic, 1);
    test_near(t.dispatch_ms + t.combine_ms, 0, 0);
    placement_free(&p);
    arena_free(&arena);
}

/* ---- the rest of the step */

static void rest_of_a_step_equals_a_calculation_by_hand(void **state) {
    (void)state;
    struct cluster c = cluster;
    c.memory_efficiency = c.compute_efficiency = 1;
    c.device.memory_tbps = 1;
    c.device.bf16_tflops = c.device.fp8_tflops = 1e9; /* memory bound */
    c.weight_bytes = 1;
    struct model_shape m = {.hidden = 1000,
                            .expert_inter = 10,
                            .layers = 3,
                            .moe_layers = 2,
                            .dense_inter = 400,
                            .shared_inter = 20,
                            .heads = 10,
                            .kv_heads = 2,
                            .head_dim = 100,
                            .experts = 8,
                            .vocab = 5000};
    double attention = 1000.0 * 100 * 24 + 7.0 * 50 * 4 * 2 * 100;
    double bytes = 3 * attention + 2 * (3 * 1000.0 * 20 + 1000.0 * 8) + 3 * 1000.0 * 400 + 5e6;
    test_near(step_rest_ms(&m, &c, 7, 50, true), bytes / 1e9, 1e-12);
    struct err err = {0};
    test_ok(model_shape_parse(&m,
                              "{\"hidden_size\":8,\"moe_intermediate_size\":4,\"n_shared_experts\":"
                              "2,\"first_k_dense_replace\":1,\"num_hidden_layers\":5,"
                              "\"num_attention_heads\":2}",
                              &err),
            &err);
    test_near(m.shared_inter, 8, 0);
    test_near(m.moe_layers, 4, 0);
    test_near(m.head_dim, 4, 0);
    assert_false(model_shape_parse(&m, "{\"hidden_size\":8}", &err));
    assert_false(model_shape_parse(&m, "{\"hidden_size\":\"x\"}", &err));
    assert_false(model_shape_parse(&m, "{", &err));
}

/* ---- whole runs */

#define POINT(r, rule, more, when, tokens)                                                         \
    { .ranks = r, .placement = rule, .replicas = more, .phase = when, .tokens_per_rank = tokens }
static const struct throughput_point points[] = {POINT(8, PLACE_CONTIGUOUS, 0, PHASE_PREFILL, 32),
                                                 POINT(8, PLACE_EPLB_GLOBAL, 0, PHASE_PREFILL, 32),
                                                 POINT(8, PLACE_EPLB_GLOBAL, 8, PHASE_PREFILL, 32),
                                                 POINT(1, PLACE_CONTIGUOUS, 0, PHASE_PREFILL, 64),
                                                 POINT(16, PLACE_EPLB, 16, PHASE_DECODE, 8),
                                                 POINT(5, PLACE_LPT, 0, PHASE_DECODE, 8),
                                                 POINT(4, PLACE_SHUFFLED, 4, PHASE_TRAIN, 32)};
enum { POINTS = sizeof points / sizeof *points };

static struct throughput_options options_for(int threads) {
    return (struct throughput_options){.cluster = &cluster,
                                       .shape = &shape,
                                       .window = 2,
                                       .capacity = 1.2,
                                       .most_batches = 5,
                                       .threads = threads};
}

static void run_points(struct throughput_run *run, const char *path, enum learn_from learn,
                       int threads) {
    struct throughput_point asked[POINTS];
    for (int i = 0; i < POINTS; i++) {
        asked[i] = points[i];
        asked[i].learn = learn;
        asked[i].refresh = 1;
        asked[i].context = 100;
        snprintf(asked[i].load.name, sizeof asked[i].load.name, "trace");
    }
    struct err err = {0};
    struct trace *trace = trace_open(path, &err);
    test_ok(trace != NULL, &err);
    struct routed routed;
    const struct variant_lists lists = {0};
    test_ok(routed_open(&routed, trace, &lists, &err), &err);
    struct throughput_options o = options_for(threads);
    test_ok(throughput_run(run, &routed, asked, POINTS, &o, NULL, &err), &err);
    routed_free(&routed);
    trace_free(trace);
}

static void times_do_not_depend_on_threads(void **state) {
    (void)state;
    const char *path = world_trace("throughput", TRACE_SCORES);
    for (int learn = LEARN_WHOLE; learn <= LEARN_DOMAIN; learn++) {
        struct throughput_run one, four;
        run_points(&one, path, (enum learn_from)learn, 1);
        run_points(&four, path, (enum learn_from)learn, 4);
        for (int i = 0; i < POINTS; i++) {
            assert_memory_equal(&one.cells[i].step, &four.cells[i].step, sizeof one.cells[i].step);
            assert_memory_equal(one.cells[i].layer, four.cells[i].layer,
                                LAYERS * sizeof *one.cells[i].layer);
        }
        throughput_free(&one);
        throughput_free(&four);
    }
}

static void ids_and_scores_of_the_same_choices_cost_the_same(void **state) {
    (void)state;
    struct throughput_run scores, ids;
    run_points(&scores, world_trace("throughput", TRACE_SCORES), LEARN_WHOLE, 2);
    run_points(&ids, world_trace("throughput-ids", TRACE_IDS), LEARN_WHOLE, 2);
    for (int i = 0; i < POINTS; i++)
        assert_memory_equal(&scores.cells[i].step, &ids.cells[i].step, sizeof ids.cells[i].step);
    throughput_free(&scores);
    throughput_free(&ids);
}

static void cells_obey_their_bounds(void **state) {
    (void)state;
    struct throughput_run run;
    run_points(&run, world_trace("throughput", TRACE_SCORES), LEARN_WHOLE, 2);
    for (int i = 0; i < POINTS; i++) {
        const struct throughput_cell *c = &run.cells[i];
        if (i == 5) { /* 5 ranks do not divide 16 experts */
            assert_non_null(strstr(c->lacks, "whole number a rank"));
            continue;
        }
        assert_string_equal(c->lacks, "");
        double sum = c->rest_ms;
        for (int l = 0; l < LAYERS; l++) {
            const struct throughput_layer *row = &c->layer[l];
            assert_int_equal(row->layer, l + 3);
            assert_true(row->experts_ms >= row->even_ms * (1 - 1e-9) || row->active_max > 0);
            test_near(row->time_ms, row->experts_ms + row->comm_ms + row->move_ms, 1e-12);
            test_near(row->rank_mean * c->point.ranks,
                      (double)c->group_tokens * TOPK * (1 - row->dropped), 1e-9);
            assert_true(row->rank_max >= row->rank_mean);
            sum += row->time_ms;
        }
        test_near(c->step.time_ms, sum, 1e-12);
        test_near(c->tokens_per_s, (double)c->group_tokens / sum * 1e3, 1e-12);
    }
    assert_true(run.cells[3].step.comm_ms == 0);             /* one rank */
    test_near(run.cells[3].layer[0].rank_max, 64 * TOPK, 0); /* it has them all */
    assert_true(run.cells[6].step.dropped > 0);              /* capacity */
    assert_true(run.cells[2].step.rank_max <= run.cells[0].step.rank_max);
    throughput_free(&run);
}

static void the_previous_window_teaches_unmeasured_then_moves_cost(void **state) {
    (void)state;
    struct throughput_run whole, stale;
    const char *path = world_trace("throughput", TRACE_SCORES);
    run_points(&whole, path, LEARN_WHOLE, 2);
    run_points(&stale, path, LEARN_PREVIOUS, 2);
    assert_true(stale.cells[1].step.move_ms > 0);
    assert_true(whole.cells[1].step.move_ms == 0);
    assert_true(stale.cells[0].step.move_ms == 0); /* contiguous stays */
    /* the window, or half of the batches, only teaches */
    int64_t all = whole.cells[1].batches, half = all / 2;
    assert_int_equal(stale.cells[1].batches, all - (half < 2 ? half : 2));
    /* learnt on other batches: no better than on the same ones, no worse than not at all */
    assert_true(stale.cells[1].step.rank_max >= whole.cells[1].step.rank_max * 0.97);
    assert_true(stale.cells[1].step.rank_max <= stale.cells[0].step.rank_max * 1.1);
    throughput_free(&whole);
    throughput_free(&stale);
}

/* ---- loads that no trace made */

static void made_choices_have_the_loads_of_their_law(void **state) {
    (void)state;
    static const char *const loads[] = {"uniform", "balanced", "power_law_1.2", "power_law_0.6"};
    const struct load_group group = {32, 4, 8, 512, 0};
    uint16_t *expert = malloc(512 * 4 * sizeof *expert), *again = malloc(512 * 4 * sizeof *again);
    struct arena arena;
    struct err err = {0};
    arena_init(&arena, "test");
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++) {
        struct load_choice load;
        test_ok(load_choice_find(loads[i], &load, &err), &err);
        test_ok(choices_make(&load, &group, 7, expert, &arena, &err), &err);
        int32_t n[32] = {0}, drawn[32];
        double scratch[32];
        for (int t = 0; t < 512; t++)
            for (int j = 0; j < 4; j++) {
                assert_true(expert[t * 4 + j] < 32);
                n[expert[t * 4 + j]]++;
                for (int l = 0; l < j; l++)
                    assert_int_not_equal(expert[t * 4 + j], expert[t * 4 + l]);
            }
        if (load.source == LOAD_OF_LAW) { /* exactly the counts of the law's draw */
            struct rng rng;
            rng_init(&rng, 7);
            load_draw(&load.law, &group, &rng, drawn, scratch);
            assert_memory_equal(n, drawn, sizeof n);
        } else { /* mean 64, standard deviation 7.5 */
            for (int e = 0; e < 32; e++) assert_in_range(n[e], 28, 100);
        }
        arena_reset(&arena);
        test_ok(choices_make(&load, &group, 7, again, &arena, &err), &err);
        assert_memory_equal(expert, again, 512 * 4 * sizeof *expert);
    }
    struct load_choice load;
    assert_false(load_choice_find("power_law_x", &load, &err));
    assert_false(load_choice_find("power_law_1.2_eplb", &load, &err));
    assert_false(load_choice_find("zipf", &load, &err));
    arena_free(&arena);
    free(expert);
    free(again);
}

static void loads_are_compared_with_the_trace_and_traffic_is_conserved(void **state) {
    (void)state;
    static const char *const loads[] = {"trace", "resampled", "uniform", "balanced",
                                        "power_law_1.2"};
    enum { LOADS = sizeof loads / sizeof *loads, R = 8, EACH = 32 };
    struct throughput_point asked[LOADS];
    struct err err = {0};
    for (int i = 0; i < LOADS; i++) {
        asked[i] = (struct throughput_point){.ranks = R, .tokens_per_rank = EACH, .context = 1};
        test_ok(load_choice_find(loads[i], &asked[i].load, &err), &err);
    }
    struct trace *trace = trace_open(world_trace("throughput", TRACE_SCORES), &err);
    test_ok(trace != NULL, &err);
    struct routed routed;
    const struct variant_lists lists = {0};
    test_ok(routed_open(&routed, trace, &lists, &err), &err);
    struct throughput_options o = options_for(2);
    struct throughput_run run;
    test_ok(throughput_run(&run, &routed, asked, LOADS, &o, NULL, &err), &err);
    for (int i = 0; i < LOADS; i++) {
        const struct throughput_cell *c = &run.cells[i];
        double shares = 0, copies = 0;
        for (int e = 0; e < EXPERTS; e++) {
            shares += c->profile[e];
            if (e > 0) assert_true(c->profile[e] <= c->profile[e - 1]);
        }
        test_near(shares, 1, 1e-12);
        if (i == 0)
            test_near(c->distance, 0, 0);
        else
            assert_true(c->distance > 0 && c->distance < 1);
        for (int r = 0; r < R * R; r++) copies += c->traffic[r];
        assert_true(copies >= R * EACH && copies <= R * EACH * TOPK);
    }
    /* the balanced law against itself; and the trace against the loads by hand */
    test_near(run.cells[3].step.experts_ms, run.cells[3].step.balanced_ms, 1e-9);
    double sum = 0;
    for (int e = 0; e < EXPERTS * LAYERS; e++)
        sum += fabs(run.cells[0].profile[e] - run.cells[3].profile[e]);
    test_near(run.cells[3].distance, sum / 2 / LAYERS, 1e-12);
    assert_true(run.cells[1].distance < run.cells[4].distance);
    throughput_free(&run);
    routed_free(&routed);
    trace_free(trace);
}

static int command(const char *arguments, char **out, char **errors) {
    char line[3000];
    snprintf(line, sizeof line, "%s throughput %s", test_program(), arguments);
    return test_run(line, out, errors);
}

static void command_fills_both_views(void **state) {
    (void)state;
    char line[1400], *out, *errors;
    struct err err = {0};
    const char *path = world_trace("throughput", TRACE_SCORES);
    snprintf(line, sizeof line,
             "%s --hidden 4096 --inter 2048 --ranks 4,8 --replicas 0,8 --tokens "
             "32 --concurrency 16 --gate native --gate native,groups=1:1:max --json",
             path);
    if (command(line, &out, &errors) != 0) fail_msg("%s", errors);
    struct json *doc = json_parse(out, strlen(out), &err);
    test_ok(doc != NULL, &err);
    assert_int_equal(json_count(doc), 2 * 2 * 2 * 2 * 2);
    assert_true(json_number(json_member(json_first(doc), "tokens_per_s")) > 0);
    assert_non_null(strstr(errors, "no public measurement has imbalanced communication"));
    json_free(doc);
    struct trace *trace = trace_open(path, &err);
    struct table *t = trace_sql(trace,
                                "SELECT (SELECT count(*) FROM throughput), (SELECT count(*) FROM "
                                "placement_map), (SELECT count(*) FROM throughput WHERE layer IS "
                                "NULL AND error_pct > 0 AND slowdown > 0)",
                                &err);
    test_ok(t != NULL, &err);
    test_near(table_number(t, 0, 0), 32 * (1 + LAYERS), 0);
    test_near(table_number(t, 0, 1), 16 * LAYERS * (EXPERTS + EXPERTS + 8), 0);
    test_near(table_number(t, 0, 2), 32, 0);
    table_free(t);
    trace_free(trace);
    free(out);
    free(errors);
    static const char *const figures[] = {"throughput_ranks", "throughput_regimes",
                                          "throughput_layers", "throughput_replicas", "traffic"};
    for (int i = 0; i < 5; i++) {
        snprintf(line, sizeof line, "%s plot %s %s --out build/test-out/%s.svg --force",
                 test_program(), path, figures[i], figures[i]);
        if (test_run(line, &out, &errors) != 0) fail_msg("%s: %s", figures[i], errors);
        assert_true(strlen(out) > 60); /* a caption with what was found */
        free(out);
        free(errors);
    }
}

static double first_number(struct trace *trace, const char *query) {
    struct err err = {0};
    struct table *t = trace_sql(trace, query, &err);
    test_ok(t != NULL, &err);
    double number = table_number(t, 0, 0);
    table_free(t);
    return number;
}

static void lists_make_cells_and_the_report_says_what_they_are_worth(void **state) {
    (void)state;
    char line[1400], *out, *errors;
    struct err err = {0};
    const char *path = world_trace("throughput", TRACE_SCORES), *folder = test_folder("worth");
    snprintf(
        line, sizeof line,
        "%s --hidden 4096 --inter 2048 --ranks 4 --tokens 32 --concurrency 16 --replicas 0,8 "
        "--load trace,resampled,balanced --context 1000,2000 --learn whole,previous,domain=code "
        "--refresh 1,2 --bias-rule none,sign --bias-rate 0.001,0.1 --csv",
        path);
    if (command(line, &out, &errors) != 0) fail_msg("%s", errors);
    assert_non_null(strstr(errors, "of the trace's choices would have to go to other experts"));
    free(out);
    free(errors);
    struct trace *trace = trace_open(path, &err);
    /* 2 phases x 2 placements x 2 replicas x 2 contexts x (1 + 2 + 1) learnings */
    test_near(first_number(trace, "SELECT count(*) FROM throughput WHERE layer IS NULL AND load = "
                                  "'balanced'"),
              64, 0);
    test_near(first_number(trace, "SELECT count(DISTINCT variant) FROM throughput WHERE load = "
                                  "'trace'"),
              first_number(trace, "SELECT max(variant) FROM throughput"), 0);
    test_near(first_number(trace, "SELECT count(*) FROM throughput WHERE (refresh IS NULL) = "
                                  "(learnt = 'previous')"),
              0, 0);
    test_near(first_number(trace, "SELECT count(*) FROM throughput WHERE load_distance IS NULL"), 0,
              0);
    assert_true(first_number(trace, "SELECT min(copies) FROM (SELECT sum(copies) AS copies FROM "
                                    "traffic_map GROUP BY cell)") >= 64 * LAYERS - 1e-6);
    trace_free(trace);
    snprintf(line, sizeof line, "%s plot %s throughput_staleness --out %s/a.svg", test_program(),
             path, folder);
    if (test_run(line, &out, &errors) != 0) fail_msg("%s", errors);
    assert_non_null(strstr(out, "validated median error"));
    free(out);
    free(errors);
    snprintf(line, sizeof line, "%s report %s --out %s/page --force", test_program(), path, folder);
    if (test_run(line, &out, &errors) != 0) fail_msg("%s", errors);
    free(out);
    free(errors);
    size_t len;
    snprintf(line, sizeof line, "%s/page/report.html", folder);
    char *page = file_read(line, 1 << 26, &len, &err);
    test_ok(page != NULL, &err);
    static const char *const said[] = {
        "What it is worth in tokens per second", "the bias rate is worth", "the placement is worth",
        "redundant experts are worth",           "validated median error", "a bias rule is worth"};
    for (int i = 0; i < 6; i++)
        if (!strstr(page, said[i])) fail_msg("not said: %s", said[i]);
    free(page);
}

static void every_time_has_its_error_and_extrapolations_are_marked(void **state) {
    (void)state;
    static const struct {
        const char *options;
        double decode_pct, prefill_pct, extrapolated; /* of 4 cells */
    } cases[] = {{"--cluster h100 --hidden 4096 --inter 2048", 2.9, 6.6, 0},
                 {"--cluster h100 --hidden 256 --inter 2048", 2.9, 6.6, 4}, /* narrower than any */
                 {"--cluster h200 --hidden 4096 --inter 2048", 3.8, 7.2, 0},
                 {"--cluster mi300x --hidden 4096 --inter 2048", 20, 34, 4}}; /* data sheet */
    const char *path = world_trace("throughput", TRACE_SCORES);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[1600], *out, *errors;
        struct err err = {0};
        snprintf(line, sizeof line, "%s %s --ranks 4 --tokens 256 --concurrency 8", path,
                 cases[i].options);
        if (command(line, &out, &errors) != 0) fail_msg("%s", errors);
        assert_true((strstr(errors, "are extrapolated") != NULL) == (cases[i].extrapolated > 0));
        struct trace *trace = trace_open(path, &err);
        test_near(
            first_number(trace, "SELECT sum(extrapolated) FROM throughput WHERE layer IS NULL"),
            cases[i].extrapolated, 0);
        test_near(
            first_number(trace, "SELECT max(error_pct) FROM throughput WHERE phase = 'decode'"),
            cases[i].decode_pct, 1e-9);
        test_near(
            first_number(trace, "SELECT min(error_pct) FROM throughput WHERE phase = 'prefill'"),
            cases[i].prefill_pct, 1e-9); /* 1024 tokens */
        trace_free(trace);
        free(out);
        free(errors);
    }
}

static void a_result_of_the_same_trace_is_added_to(void **state) {
    (void)state;
    char line[2600], *out, *errors;
    struct err err = {0};
    const char *path = world_trace("throughput", TRACE_SCORES), *folder = test_folder("added");
    snprintf(line, sizeof line, "%s replay %s --out %s/result.db", test_program(), path, folder);
    if (test_run(line, &out, &errors) != 0) fail_msg("%s", errors);
    free(out);
    free(errors);
    snprintf(line, sizeof line,
             "%s --hidden 64 --inter 64 --ranks 4 --tokens 32 --concurrency 8 --out %s/result.db",
             path, folder);
    for (int round = 0; round < 2; round++) { /* the second replaces the first */
        if (command(line, &out, &errors) != 0) fail_msg("%s", errors);
        free(out);
        free(errors);
    }
    snprintf(line, sizeof line, "%s/result.db", folder);
    struct trace *result = trace_open(line, &err);
    test_ok(result != NULL, &err);
    test_near(first_number(result, "SELECT count(*) FROM throughput WHERE layer IS NULL"), 4, 0);
    assert_true(first_number(result, "SELECT count(*) FROM replay_summary") > 0);
    trace_free(result);
    struct trace *untouched = trace_open(path, &err);
    assert_null(trace_query(untouched, "throughput_steps", NULL, 0, &err));
    trace_free(untouched);
    snprintf(line, sizeof line, "%s/other", folder);
    test_ok(file_write(line, "x", 1, &err), &err);
    snprintf(line, sizeof line, "%s --hidden 64 --inter 64 --out %s/other", path, folder);
    assert_int_equal(command(line, &out, &errors), 1);
    assert_non_null(strstr(errors, "exists already"));
    free(out);
    free(errors);
}

static void bad_requests_are_refused_and_change_nothing(void **state) {
    (void)state;
    static const struct {
        const char *arguments;
        int status;
        const char *message;
    } cases[] = {{"", 2, "does not hold its model's configuration"},
                 {"--hidden 64 --inter 64 --cluster nope", 2, "found \"nope\""},
                 {"--hidden 64 --inter 64 --ranks 0", 2, "--ranks"},
                 {"--hidden 64 --inter 64 --ranks 5", 2, "whole number a rank"},
                 {"--hidden 64 --inter 64 --placement best", 2, "found \"best\""},
                 {"--hidden 64 --inter 64 --phase lunch", 2, "found \"lunch\""},
                 {"--hidden 64 --inter 64 --learn domain=x", 2, "domain=x"},
                 {"--hidden 64 --inter 64 --load zipf", 2, "found \"zipf\""},
                 {"--hidden 64 --inter 64 --context 0", 2, "--context"},
                 {"--hidden 64 --inter 64 --refresh 0", 2, "--refresh"},
                 {"--hidden 64 --inter 64 --replica-choice x", 2, "replica choice"},
                 {"--hidden 64 --inter 64 --tokens 99999999", 2, "--tokens"}};
    const char *path = world_trace("throughput", TRACE_SCORES);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[1400], *out, *errors;
        snprintf(line, sizeof line, "%s %s", path, cases[i].arguments);
        assert_int_equal(command(line, &out, &errors), cases[i].status);
        if (!strstr(errors, cases[i].message)) fail_msg("case %zu: %s", i, errors);
        free(out);
        free(errors);
    }
    struct err err = {0};
    struct trace *trace = trace_open(path, &err);
    assert_null(trace_query(trace, "throughput_steps", NULL, 0, &err));
    trace_free(trace);
    char line[1400], *out, *errors;
    path = world_trace("throughput-ids", TRACE_IDS);
    snprintf(line, sizeof line, "%s --hidden 64 --inter 64 --gate softmax,topk=2", path);
    assert_int_equal(command(line, &out, &errors), 1);
    assert_non_null(strstr(errors, "needs router scores"));
    free(out);
    free(errors);
}

int test_throughput(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_takes_consecutive_tokens_and_decode_spread_sequences),
        cmocka_unit_test(exchange_conserves_tokens_and_bytes),
        cmocka_unit_test(copies_go_once_to_a_rank_and_once_to_a_node),
        cmocka_unit_test(rest_of_a_step_equals_a_calculation_by_hand),
        cmocka_unit_test(times_do_not_depend_on_threads),
        cmocka_unit_test(ids_and_scores_of_the_same_choices_cost_the_same),
        cmocka_unit_test(cells_obey_their_bounds),
        cmocka_unit_test(the_previous_window_teaches_unmeasured_then_moves_cost),
        cmocka_unit_test(made_choices_have_the_loads_of_their_law),
        cmocka_unit_test(loads_are_compared_with_the_trace_and_traffic_is_conserved),
        cmocka_unit_test(command_fills_both_views),
        cmocka_unit_test(lists_make_cells_and_the_report_says_what_they_are_worth),
        cmocka_unit_test(every_time_has_its_error_and_extrapolations_are_marked),
        cmocka_unit_test(a_result_of_the_same_trace_is_added_to),
        cmocka_unit_test(bad_requests_are_refused_and_change_nothing)};
    return cmocka_run_group_tests(tests, make_world, free_world);
}
