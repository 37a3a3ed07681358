/* test_closed_loop.c - gates that run for real: the stream that routes them, captures under them,
 * and their comparison with a replay */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"
#include "router/stream.h"
#include "sim/compare.h"
#include "tests/support_program.h"
#include "tests/support_replay.h"
#include "traces/loop.h"

#define MODEL "tests/golden/deepseek_v3"

static int begin(void **state) {
    struct rng rng;
    (void)state;
    enter("closed_loop");
    FILE *file = fopen(at("ids.txt"), "w");
    assert_non_null(file);
    rng_init(&rng, 9);
    for (int i = 0; i < 12 * 90; i++)
        fprintf(file, "%d%c", (int)rng_below(&rng, 320), i % 90 == 89 ? '\n' : ' ');
    fclose(file);
    return 0;
}

static void capture(const char *out, const char *options) {
    runs("capture " MODEL " --ids %s --out %s %s", at("ids.txt"), at(out), options);
}

static struct comparison compare(const char *native, const char *closed) {
    struct comparison out;
    struct err err = {0};
    struct trace *a = trace_open(at(native), &err), *b = trace_open(at(closed), &err);
    assert_true(a && b);
    test_ok(compare_traces(a, b, &out, NULL, &err), &err);
    trace_free(a);
    trace_free(b);
    return out;
}

/* Exports hold logits, live choices and weights, NLL: everything but how it was cut. */
static void same_numbers(const char *a, const char *b) {
    const char *names[2] = {a, b};
    char command[1400], *out;
    for (int i = 0; i < 2; i++) runs("export %s --to csv --out %s.csv", at(names[i]), at(names[i]));
    snprintf(command, sizeof command, "wc -c < %s.csv; cmp %s.csv %s.csv", at(a), at(a), at(b));
    assert_int_equal(test_run(command, &out, NULL), 0);
    assert_true(atoll(out) > 100000);
    free(out);
}

/* ---- the stream */

static void stream_run(struct route_stream *stream, const float *logits, int64_t tokens,
                       int64_t piece, int64_t *load) {
    int32_t *expert = malloc((size_t)(tokens * stream->gate.topk) * sizeof *expert);
    void *scratch = aligned_alloc(64, route_stream_scratch_bytes(stream));
    assert_true(expert && scratch);
    for (int64_t t = 0, n; t < tokens; t += n) {
        n = route_stream_room(stream);
        if (n > piece) n = piece;
        if (n > tokens - t) n = tokens - t;
        const struct route_piece rows = {
            .n = n, .first = t, .logits = logits + t * stream->experts};
        struct routes routes = {.expert = expert + t * stream->gate.topk};
        assert_int_equal(route_stream_route(stream, &rows, &routes, scratch), -1);
        route_stream_feed(stream, &rows, routes.expert);
    }
    for (int64_t i = 0; i < tokens * stream->gate.topk; i++) load[expert[i]]++;
    free(expert);
    free(scratch);
}

static void a_stream_moves_every_bias_as_the_replay_does(void **state) {
    (void)state;
    enum { E = 16, T = 1000, N = 130 };
    struct rng rng;
    struct err err;
    struct source_arrays arrays;
    struct source source;
    const int64_t batch = N;
    rng_init(&rng, 3);
    float *logits = random_logits(&rng, T, E, 1.0), ones[E], zeros[E] = {0};
    for (int e = 0; e < E; e++) ones[e] = 1;
    struct source_layer layer = {.layer = 1, .experts = E};
    const char *spec = "sigmoid,bias,groups=4:2:top2sum,topk=4,norm=sum";
    test_ok(gate_parse(spec, NULL, &layer.native, &err), &err);
    layer.bias = zeros;
    arrays.logits = (const float *const *)&logits;
    source_of_arrays(&source, &arrays, T, &layer, 1);
    int rules = 0;
    for (const struct bias_rule *rule = bias_rules; rule->name; rule++) {
        if (!rule->update) continue;
        struct kept kept;
        const struct variant_lists lists = {.bias_rules = {&rule->name, 1},
                                            .batch_tokens = &batch,
                                            .batch_count = 1,
                                            .start = START_ZERO};
        kept_run(&kept, &lists, &source, &(struct replay_options){.threads = 1});
        const struct route_stream_setup setup = {.gate = &layer.native,
                                                 .experts = E,
                                                 .bias = rule->multiplies ? ones : zeros,
                                                 .rule = rule,
                                                 .rate = rule->rate,
                                                 .batch_tokens = N};
        for (int64_t piece = 1; piece <= T; piece = piece * 9 + 1) {
            struct route_stream stream;
            int64_t load[E] = {0};
            size_t bytes = route_stream_bytes(&setup);
            void *memory = aligned_alloc(64, bytes);
            assert_non_null(memory);
            memset(memory, 0, bytes);
            route_stream_init(&stream, &setup, memory);
            stream_run(&stream, logits, T, piece, load);
            assert_memory_equal(load, kept.row[0].tokens, sizeof load);
            assert_memory_equal(stream.bias, kept.row[0].bias, E * sizeof(double));
            free(memory);
        }
        kept_free(&kept);
        rules++;
    }
    assert_true(rules >= 7);
    free(logits);
}

/* ---- captures */

static void the_native_gate_as_a_closed_loop_changes_nothing(void **state) {
    (void)state;
    capture("run.db", "");
    capture("same.db", "--gate native");
    same_numbers("run.db", "same.db");
    struct comparison c = compare("run.db", "same.db");
    assert_true(c.nll_change.estimate == 0 && c.nll_change.low == 0 && c.nll_change.high == 0);
    for (int p = 0; p < COMPARE_PAIRS; p++) {
        test_near(c.mean.agreement[p], 1, 1e-15);
        assert_true(c.mean.variation[p] == 0);
    }
    comparison_free(&c);
}

static void a_closed_loop_replays_to_its_own_choices(void **state) {
    (void)state;
    static const char *const options[] = {
        "--gate native,nobias",
        "--gate native,groups=none",
        "--gate native,softmax,nobias",
        "--gate native,topk=2",
        "--gate native,topk=16",
        "--gate mixtral,topk=3",
        "--bias-rule sign --bias-rate 0.01 --batch-tokens 100 --bias-start captured",
        "--gate native,softmax --bias-rule proportional --bias-rate 0.02 --batch-tokens 64",
        "--bias-rule multiplicative --bias-rate 0.05 --batch-tokens 90",
        "--bias-rule quantile --batch-tokens 77 --pass-tokens 200"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        char command[900], *out;
        runs("capture " MODEL " --ids %s --out %s --force %s", at("ids.txt"), at("run.db"),
             options[i]);
        snprintf(command, sizeof command, "%s check %s --csv | grep -c 'replay law,ok'",
                 test_program(), at("run.db"));
        test_run(command, &out, NULL);
        if (strcmp(out, "2\n") != 0) fail_msg("%s: %s layers hold the law", options[i], out);
        free(out);
    }
}

/* The static gate does not explain these choices; what the file says of the loop does. */
static void a_closed_loop_whose_bias_moved_can_be_exported_and_imported(void **state) {
    (void)state;
    static const char *const options[] = {
        "--bias-rule sign --bias-rate 0.25 --batch-tokens 100 --bias-start captured",
        "--gate native,softmax --bias-rule proportional --bias-rate 0.25 --batch-tokens 64",
        "--gate native,softmax"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        char command[900];
        runs("capture " MODEL " --ids %s --out %s --force %s", at("ids.txt"), at("run.db"),
             options[i]);
        runs("export %s --to safetensors --out %s --force", at("run.db"), at("a.safetensors"));
        runs("import %s --out %s --force", at("a.safetensors"), at("again.db"));
        runs("export %s --to safetensors --out %s --force", at("again.db"), at("b.safetensors"));
        snprintf(command, sizeof command, "cmp %s %s", at("a.safetensors"), at("b.safetensors"));
        assert_int_equal(test_run(command, NULL, NULL), 0);
        if (i == 2) continue; /* nothing moved */
        snprintf(command, sizeof command, "sed -i 's/rate=0.25 /rate=0.26 /' %s",
                 at("a.safetensors"));
        assert_int_equal(test_run(command, NULL, NULL), 0);
        refuses(1, "expected", "import %s --out %s --force", at("a.safetensors"), at("again.db"));
    }
}

static void the_gate_that_ran_and_its_bias_are_recorded(void **state) {
    (void)state;
    struct err err = {0};
    struct trace_loop loop;
    capture("run.db", "");
    capture("closed.db", "--gate native,topk=4 --bias-rule sign --bias-rate 0.003 "
                         "--bias-start captured --batch-tokens 256");
    struct trace *native = trace_open(at("run.db"), &err);
    struct trace *closed = trace_open(at("closed.db"), &err);
    assert_true(native && closed);
    test_ok(trace_loop_read(trace_capture(closed)->options, &loop, &err), &err);
    assert_true(loop.closed && loop.rate == 0.003 && loop.batch_tokens == 256);
    assert_string_equal(loop.gate, "native,topk=4");
    assert_string_equal(loop.rule->name, "sign");
    assert_string_equal(loop.start, "captured");
    for (int r = 0; r < trace_layers(native); r++) {
        const struct trace_layer *a = trace_layer(native, r), *b = trace_layer(closed, r);
        struct gate expected = a->gate;
        expected.topk = 4;
        assert_true(gate_equal(&expected, &b->gate));
        assert_memory_equal(a->bias, b->bias, (size_t)a->experts * sizeof *a->bias);
    }
    test_ok(trace_loop_read(trace_capture(native)->options, &loop, &err), &err);
    assert_false(loop.closed);
    trace_free(native);
    trace_free(closed);
}

static void the_first_layer_is_the_same_in_open_and_closed_loop(void **state) {
    (void)state;
    capture("run.db", "");
    static const char *const options[] = {"--gate native,nobias",
                                          "--bias-rule sign --bias-rate 0.01 --batch-tokens 100"};
    for (int i = 0; i < 2; i++) {
        runs("capture " MODEL " --ids %s --out %s --force %s", at("ids.txt"), at("closed.db"),
             options[i]);
        struct comparison c = compare("run.db", "closed.db");
        assert_int_equal(c.layers, 2);
        assert_true(c.layer[0].agreement[PAIR_CLOSED_OPEN] == 1);
        assert_true(c.layer[0].variation[PAIR_CLOSED_OPEN] == 0);
        assert_true(c.layer[0].agreement[PAIR_CLOSED_NATIVE] < 1);
        assert_true(c.layer[1].agreement[PAIR_CLOSED_OPEN] < 1);
        assert_true(c.layer[1].agreement[PAIR_CLOSED_OPEN] >
                    c.layer[1].agreement[PAIR_OPEN_NATIVE]);
        assert_true(c.nll[WAY_CLOSED] != c.nll[WAY_NATIVE]);
        test_near(c.nll_change.estimate, c.nll[WAY_CLOSED] - c.nll[WAY_NATIVE], 1e-12);
        assert_true(c.nll_change.low < c.nll_change.estimate);
        assert_true(c.nll_change.estimate < c.nll_change.high);
        assert_int_equal(c.nll_change.clusters, 12);
        comparison_free(&c);
    }
}

static void a_moving_bias_knows_neither_threads_nor_passes(void **state) {
    (void)state;
    const char *rule = "--bias-rule sign --bias-rate 0.02 --batch-tokens 77";
    runs("capture " MODEL " --ids %s --out %s %s --threads 1", at("ids.txt"), at("a.db"), rule);
    runs("capture " MODEL " --ids %s --out %s %s --threads 3 --pass-tokens 200", at("ids.txt"),
         at("b.db"), rule);
    same_numbers("a.db", "b.db");
}

static void a_moving_bias_goes_on_where_a_killed_capture_left_it(void **state) {
    (void)state;
    char command[1200];
    const char *rule = "--bias-rule smebu --bias-rate 0.02 --batch-tokens 77 --pass-tokens 100";
    capture("whole.db", rule);
    capture("run.db", rule);
    snprintf(command, sizeof command,
             "sqlite3 %s 'DELETE FROM chunk WHERE chunk >= 10; DELETE FROM block WHERE block >= 5; "
             "DELETE FROM token WHERE token >= 450'",
             at("run.db"));
    assert_int_equal(test_run(command, NULL, NULL), 0);
    runs("capture " MODEL " --ids %s --out %s %s --resume", at("ids.txt"), at("run.db"), rule);
    same_numbers("whole.db", "run.db");
    refuses(1, "options", "capture " MODEL " --ids %s --out %s --resume --pass-tokens 100",
            at("ids.txt"), at("run.db"));
}

static void sql_does_not_invent_choices_under_a_moving_bias(void **state) {
    (void)state;
    char command[900], *out;
    capture("run.db", "--bias-rule sign --batch-tokens 100");
    snprintf(command, sizeof command,
             "%s sql %s \"SELECT count(*) AS n, count(chosen) AS known FROM router_score "
             "WHERE token < 3\" --csv",
             test_program(), at("run.db"));
    assert_int_equal(test_run(command, &out, NULL), 0);
    if (!strstr(out, ",0\n") && !strstr(out, ",0\r\n")) fail_msg("%s", out);
    free(out);
}

/* ---- refusals */

static void gates_that_cannot_run_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *options, *expected;
        int status;
    } cases[] = {
        {"--gate native,topk=99", "layer 1: gate: topk: found 99", 2},
        {"--gate softmacks,topk=2", "softmacks", 2},
        {"--bias-rule sine", "expected one of: none", 2},
        {"--bias-rate 0.1", "no rule that has a rate", 2},
        {"--bias-rule sign --bias-rate auto", "expected one number", 2},
        {"--bias-rule sign --bias-start half", "expected zero or captured", 2},
        {"--batch-tokens 64", "does not update", 2},
        {"--bias-rule quantile --batch-tokens 1000000000", "--batch-tokens", 2},
        {"--bias-rule multiplicative --bias-start captured", "multiplies", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        refuses(cases[i].status, cases[i].expected, "capture " MODEL " --ids %s --out %s %s",
                at("ids.txt"), at("run.db"), cases[i].options);
        assert_null(fopen(at("run.db"), "r"));
    }
}

static void comparisons_of_different_captures_are_refused(void **state) {
    (void)state;
    capture("run.db", "");
    capture("closed.db", "--gate native,nobias");
    capture("short.db", "--gate native,nobias --max-tokens 500");
    capture("context.db", "--gate native,nobias --context 64");
    capture("bf16.db", "--gate native,nobias --compute bf16");
    runs("capture tests/golden/olmoe --ids %s --out %s --gate native,topk=1", at("ids.txt"),
         at("olmoe.db"));
    static const char *const cases[][2] = {{"run.db", "expected a closed-loop one"},
                                           {"short.db", "documents"},
                                           {"context.db", "context tokens"},
                                           {"bf16.db", "compute"},
                                           {"olmoe.db", "model"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuses(1, cases[i][1], "compare %s %s", at("run.db"), at(cases[i][0]));
    refuses(1, "expected a native one", "compare %s %s", at("closed.db"), at("closed.db"));
    refuses(2, "expected NATIVE.db and CLOSED.db", "compare %s", at("run.db"));
}

static void a_damaged_clause_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "closed-loop rule=sign gate=native",
        "closed-loop rule=sign rate=x batch-tokens=5 gate=native",
        "closed-loop rule=sign rate=1 batch-tokens=0 gate=native",
        "closed-loop rule=sign rate=1 batch-tokens=99999999999999999999 gate=native",
        "closed-loop rule=what gate=native",
        "closed-loop gate=native",
        "closed-loop rule=none",
        "closed-loop "};
    struct trace_loop loop;
    struct err err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (trace_loop_read(bad[i], &loop, &err)) fail_msg("%s: was read", bad[i]);
    test_ok(trace_loop_read("special", &loop, &err), &err);
    assert_false(loop.closed);
}

static void a_clause_is_read_as_it_was_printed(void **state) {
    (void)state;
    struct err err = {0};
    struct str text = {0};
    struct trace_loop loop = {.closed = true,
                              .gate = "native, softmax,topk=3",
                              .rule_name = "sign",
                              .start = "zero",
                              .rate = 0.1 + 0.2,
                              .batch_tokens = 77},
                      read;
    loop.rule = bias_rule_find("sign", &err);
    str_puts(&text, "special ");
    trace_loop_print(&loop, &text);
    test_ok(trace_loop_read(str_text(&text), &read, &err), &err);
    assert_true(read.rule == loop.rule && read.rate == loop.rate && read.batch_tokens == 77);
    assert_string_equal(read.gate, loop.gate);
    assert_string_equal(read.start, "zero");
    str_free(&text);
}

int test_closed_loop(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_moves_every_bias_as_the_replay_does),
        cmocka_unit_test(a_clause_is_read_as_it_was_printed),
        cmocka_unit_test(a_damaged_clause_is_refused),
        cmocka_unit_test_setup(the_native_gate_as_a_closed_loop_changes_nothing, begin),
        cmocka_unit_test_setup(a_closed_loop_replays_to_its_own_choices, begin),
        cmocka_unit_test_setup(a_closed_loop_whose_bias_moved_can_be_exported_and_imported, begin),
        cmocka_unit_test_setup(the_gate_that_ran_and_its_bias_are_recorded, begin),
        cmocka_unit_test_setup(the_first_layer_is_the_same_in_open_and_closed_loop, begin),
        cmocka_unit_test_setup(a_moving_bias_knows_neither_threads_nor_passes, begin),
        cmocka_unit_test_setup(a_moving_bias_goes_on_where_a_killed_capture_left_it, begin),
        cmocka_unit_test_setup(sql_does_not_invent_choices_under_a_moving_bias, begin),
        cmocka_unit_test_setup(gates_that_cannot_run_are_refused, begin),
        cmocka_unit_test_setup(comparisons_of_different_captures_are_refused, begin),
    };
    return cmocka_run_group_tests_name("closed_loop", tests, NULL, NULL);
}
