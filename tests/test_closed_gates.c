/* test_closed_gates.c - every gate of the catalogue in a forward pass: it runs and its capture
 * replays to it, or it is refused with the reason; hash layers with a table of their own */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/safetensors.h"
#include "router/route.h"
#include "tests/support_program.h"
#include "tests/support_replay.h"
#include "traces/choices.h"

#define MODEL "tests/golden/deepseek_v3"
enum { EXPERTS = 32, VOCAB = 320, WINDOWS = 5, WINDOW = 90, TOPK = 4 };

/* Windows of ids of which low ones are more frequent. */
static void write_skewed_ids(const char *name, uint64_t seed) {
    struct rng rng;
    FILE *file = fopen(at(name), "w");
    assert_non_null(file);
    rng_init(&rng, seed);
    for (int i = 0; i < WINDOWS * WINDOW; i++)
        fprintf(file, "%d%c", (int)rng_below(&rng, rng_below(&rng, VOCAB) + 1),
                i % WINDOW == WINDOW - 1 ? '\n' : ' ');
    fclose(file);
}

static int begin(void **state) {
    (void)state;
    enter("closed_gates");
    write_skewed_ids("ids.txt", 4);
    write_skewed_ids("more.txt", 5);
    return 0;
}

/* Captures under the options; the exit status, and the errors (owned by a static). */
static int capture(const char *out, const char *options, const char **errors) {
    static char *said;
    char command[2000];
    free(said);
    snprintf(command, sizeof command, "%s capture " MODEL " --ids %s --out %s --force %s",
             test_program(), at("ids.txt"), at(out), options);
    int status = test_run(command, NULL, &said);
    if (errors) *errors = said;
    return status;
}

static void captured(const char *out, const char *options) {
    const char *errors;
    if (capture(out, options, &errors) != 0) fail_msg("%s: %s", options, errors);
}

/* The output of `steelyard ARGUMENTS FILE` through sh, owned. */
static char *says(const char *arguments, const char *file, const char *rest) {
    char command[2000], *out;
    snprintf(command, sizeof command, "%s %s %s %s", test_program(), arguments, at(file), rest);
    if (test_run(command, &out, NULL) != 0) fail_msg("%s", command);
    return out;
}

static struct trace *opened(const char *name) {
    struct err err = {0};
    struct trace *trace = trace_open(at(name), &err);
    if (!trace) fail_msg("%s", err.text);
    return trace;
}

/* Loads of the live choices at a router. */
static void live_loads(const struct trace *trace, int r, int64_t *load) {
    struct choices choices;
    struct err err = {0};
    memset(load, 0, EXPERTS * sizeof *load);
    test_ok(choices_open(&choices, trace, r, &err), &err);
    for (;;) {
        test_ok(choices_next(&choices, &err), &err);
        if (!choices.chunk.tokens) break;
        for (int64_t i = 0; i < choices.chunk.tokens * choices.layer->topk; i++)
            if (choices.chunk.expert[i] != ROUTE_NONE) load[choices.chunk.expert[i]]++;
    }
    choices_close(&choices);
}

/* Law 1: the file's hashes of the live choices hold, and a replay under "native" has their loads.
 */
static void replays_to_itself(const char *name, const char *words) {
    struct err err = {0};
    struct source source = {0};
    struct kept kept;
    const struct variant_lists lists = {.start = START_DEFAULT};
    char *checked = says("check --csv", name, "| grep -c 'replay law,ok'");
    if (strcmp(checked, "2\n") != 0) fail_msg("%s: the law holds at %s layers", words, checked);
    free(checked);
    struct trace *trace = opened(name);
    test_ok(source_open_trace(&source, trace, NULL, &err), &err);
    kept_run(&kept, &lists, &source, &(struct replay_options){.threads = 2});
    assert_int_equal(kept.count, 2);
    for (int r = 0; r < 2; r++) {
        int64_t load[EXPERTS];
        live_loads(trace, r, load);
        if (memcmp(load, kept.row[r].tokens, sizeof load) != 0)
            fail_msg("%s: layer %d: another load in the replay", words, r);
        assert_true(kept.row[r].m.agreement <= 1 + 1e-12);
    }
    kept_free(&kept);
    source_free(&source);
    trace_free(trace);
}

/* Why a gate cannot run in a forward pass; NULL: it can. */
static const char *reason_against(const char *spec) {
    struct gate gate, native = {0};
    struct err err = {0};
    test_ok(gate_parse("sigmoid,bias,groups=8:4:top2sum,topk=8,norm=sum", NULL, &native, &err),
            &err);
    if (!gate_parse(spec, &native, &gate, &err)) fail_msg("%s: %s", spec, err.text);
    if (gate.capacity > 0 && gate.assign == ASSIGN_TOKEN) return "found a capacity, expected";
    if (gate.assign != ASSIGN_TOKEN) return "decides over a whole balance batch";
    return gate.fn == GATE_HASH_TABLE ? "found no table" : NULL;
}

static void runs_or_is_refused(const char *spec, int *ran, int *refused) {
    char options[400];
    const char *errors, *reason = reason_against(spec);
    snprintf(options, sizeof options, "--gate %s", spec);
    remove(at("run.db"));
    int status = capture("run.db", options, &errors);
    if (reason) {
        if (status == 0 || !strstr(errors, reason))
            fail_msg("%s: exit %d: '%s' lacks '%s'", spec, status, errors, reason);
        assert_null(fopen(at("run.db"), "r"));
        ++*refused;
        return;
    }
    if (status != 0) fail_msg("%s: %s", spec, errors);
    replays_to_itself("run.db", spec);
    ++*ran;
}

static void every_preset_runs_or_is_refused_with_the_reason(void **state) {
    (void)state;
    int ran = 0, refused = 0;
    for (const struct gate_preset *p = gate_presets; p->name; p++)
        runs_or_is_refused(p->name, &ran, &refused);
    assert_true(ran >= 36 && refused >= 8);
}

static void every_part_of_the_language_runs_or_is_refused(void **state) {
    (void)state;
    static const char *const specs[] = {"native,relu,nobias",
                                        "native,tanh,nobias",
                                        "native,identity,nobias",
                                        "native,softmax",
                                        "native,groups=8:4:max",
                                        "native,groups=device:8:3",
                                        "native,groups=node:8:4",
                                        "native,fill=0",
                                        "native,order=topk-score,nobias,groups=none",
                                        "native,norm=none",
                                        "native,norm=clamp:0.5",
                                        "native,norm=p:2",
                                        "native,scale=0.5",
                                        "native,fn=llama4,topk=1",
                                        "native,dtype=bf16",
                                        "native,dtype=bf16:logits",
                                        "native,dtype=f16",
                                        "native,noise=0.2",
                                        "native,noise=0.2,seed=77",
                                        "native,dtype=bf16,noise=0.2",
                                        "native,topp=0.3",
                                        "native,nobias,groups=none,topp=0.6,noise=0.1",
                                        "native,threshold=0.55",
                                        "relu,topk=6,threshold=0,norm=sum",
                                        "native,threshold=1e30",
                                        "native,dtype=f16,threshold=0.5",
                                        "softmax,topk=2,second=random",
                                        "sigmoid,topk=2,norm=sum,second=random,seed=3,noise=0.1",
                                        "native,nobias,groups=none,fn=hash:5",
                                        "native,nobias,groups=none,fn=hash:5,dtype=bf16",
                                        "native,nobias,groups=none,fn=balanced-hash",
                                        "native,nobias,groups=none,fn=hash-table",
                                        "softmax,fn=sparsemixer:0.01,topk=2,noise=0.3",
                                        "native,capacity=1",
                                        "native,capacity=1:position",
                                        "native,capacity=1:position:token",
                                        "native,capacity=1:priority",
                                        "native,capacity=1,devices=8",
                                        "native,nobias,groups=none,assign=expert",
                                        "native,nobias,groups=none,assign=sinkhorn",
                                        "native,nobias,groups=none,assign=base"};
    int ran = 0, refused = 0;
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        runs_or_is_refused(specs[i], &ran, &refused);
    assert_int_equal(ran, 32);
    assert_int_equal(refused, 9);
}

/* ---- what an empty slot does in the forward pass */

/* Everything but the gate's own words: logits, ids, choices and NLL. */
static void same_columns(const char *a, const char *b, const char *columns) {
    char command[1600];
    const char *names[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        snprintf(command, sizeof command,
                 "%s export %s --to csv --out %s.csv --force && "
                 "cut -d, -f%s %s.csv > %s.cut",
                 test_program(), at(names[i]), at(names[i]), columns, at(names[i]), at(names[i]));
        assert_int_equal(test_run(command, NULL, NULL), 0);
    }
    snprintf(command, sizeof command, "test -s %s.cut && cmp %s.cut %s.cut", at(a), at(a), at(b));
    if (test_run(command, NULL, NULL) != 0) fail_msg("%s and %s differ", a, b);
}

static void a_cut_that_cuts_nothing_changes_nothing(void **state) {
    (void)state;
    captured("run.db", "");
    captured("cut.db", "--gate native,threshold=-1e30");
    same_columns("run.db", "cut.db", "1-");
    captured("cut.db", "--gate native,topp=1");
    same_columns("run.db", "cut.db", "1-");
}

/* No expert at all is the same forward pass as experts of weight 0. */
static void an_empty_slot_adds_nothing_to_the_output(void **state) {
    (void)state;
    captured("none.db", "--gate native,threshold=1e30");
    captured("zero.db", "--gate native,scale=0");
    char *none = says("sql", "none.db", "\"SELECT token, nll FROM token\" --csv");
    char *zero = says("sql", "zero.db", "\"SELECT token, nll FROM token\" --csv");
    assert_true(strlen(none) > 5000);
    assert_string_equal(none, zero);
    free(none);
    free(zero);
    none = says("sql", "none.db", "\"SELECT count(chosen), sum(chosen) FROM router_score\" --csv");
    assert_non_null(strstr(none, "28800,0"));
    free(none);
}

static void rare_gates_know_neither_threads_nor_passes(void **state) {
    (void)state;
    static const char *const gates[] = {
        "--gate native,noise=0.3,topp=0.5 --seed 9", "--gate sigmoid,topk=2,second=random,norm=sum",
        "--gate native,nobias,groups=none,fn=balanced-hash",
        "--gate native,noise=0.2 --bias-rule quantile --batch-tokens 77"};
    for (size_t i = 0; i < sizeof gates / sizeof *gates; i++) {
        char options[300];
        snprintf(options, sizeof options, "%s --threads 1", gates[i]);
        captured("a.db", options);
        snprintf(options, sizeof options, "%s --threads 3 --pass-tokens 100 --memory 1M", gates[i]);
        captured("b.db", options);
        same_columns("a.db", "b.db", "1-");
    }
}

static void a_killed_capture_goes_on_with_its_draws(void **state) {
    (void)state;
    static const char *const gates[] = {
        "--gate native,noise=0.3 --bias-rule smebu --bias-rate 0.02 --batch-tokens 77 "
        "--pass-tokens 90",
        "--gate native,nobias,groups=none,fn=balanced-hash --pass-tokens 90"};
    for (size_t i = 0; i < 2; i++) {
        char command[1500], options[300];
        captured("whole.db", gates[i]);
        captured("run.db", gates[i]);
        snprintf(command, sizeof command,
                 "sqlite3 %s 'DELETE FROM chunk WHERE chunk >= 4; DELETE FROM block WHERE block >= "
                 "2; DELETE FROM token WHERE token >= 180' && %s capture " MODEL
                 " --ids %s --out %s --resume %s",
                 at("run.db"), test_program(), at("ids.txt"), at("run.db"), gates[i]);
        assert_int_equal(test_run(command, NULL, NULL), 0);
        same_columns("whole.db", "run.db", "1-");
        snprintf(options, sizeof options, "%s --resume --seed 5", gates[i]);
        snprintf(command, sizeof command, "%s capture " MODEL " --ids %s --out %s %s",
                 test_program(), at("ids.txt"), at("run.db"), options);
        assert_int_equal(test_run(command, NULL, NULL), i == 0 ? 1 : 0);
    }
}

/* `steelyard merge` of two captures of different texts; its exit status and errors (owned). */
static int merged(const char *gate, const char *out, char **errors) {
    static const char *const texts[] = {"ids.txt", "more.txt"};
    static const char *const names[] = {"a.db", "b.db"};
    char command[1500];
    for (int i = 0; i < 2; i++) {
        snprintf(command, sizeof command,
                 "%s capture " MODEL " --ids %s --out %s --force --gate %s", test_program(),
                 at(texts[i]), at(names[i]), gate);
        assert_int_equal(test_run(command, NULL, NULL), 0);
    }
    snprintf(command, sizeof command, "%s merge %s %s --out %s --force", test_program(), at("a.db"),
             at("b.db"), at(out));
    return test_run(command, NULL, errors);
}

static void draws_by_number_and_other_tables_are_not_merged(void **state) {
    (void)state;
    static const struct {
        const char *gate, *expected;
    } cases[] = {{"native,noise=0.1", "draws by the number of a token"},
                 {"softmax,topk=2,second=random", "draws by the number of a token"},
                 {"native,nobias,groups=none,fn=balanced-hash", "hash table of layer 1"},
                 {"native,nobias,groups=none,fn=hash:5", NULL},
                 {"native,topp=0.4", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *errors;
        int status = merged(cases[i].gate, "c.db", &errors);
        if (status != (cases[i].expected ? 1 : 0) ||
            (cases[i].expected && !strstr(errors, cases[i].expected)))
            fail_msg("%s: exit %d: %s", cases[i].gate, status, errors);
        free(errors);
        if (!cases[i].expected) replays_to_itself("c.db", cases[i].gate);
    }
}

/* ---- tables of their own */

/* What one tensor of a table file holds. */
struct tensor {
    const char *name;
    enum safetensors_dtype dtype;
    int64_t rows, k;
    int change; /* 1: an expert out of range, 2: the same twice */
};

static int expert_at(int64_t id, int64_t slot) {
    return (int)((id * 7 + slot * (1 + id % 3)) % EXPERTS);
}

static void write_tables(const char *name, const struct tensor *tensors, int count) {
    struct err err = {0};
    struct safetensors_writer *writer = safetensors_create(at(name), &err);
    assert_non_null(writer);
    for (int i = 0; i < count; i++)
        test_ok(safetensors_declare(writer, tensors[i].name, tensors[i].dtype, 2,
                                    (int64_t[]){tensors[i].rows, tensors[i].k}, &err),
                &err);
    for (int i = 0; i < count; i++)
        for (int64_t c = 0; c < tensors[i].rows * tensors[i].k; c++) {
            int64_t e = expert_at(c / tensors[i].k, c % tensors[i].k);
            if (tensors[i].change == 1 && c == 37) e = EXPERTS;
            if (tensors[i].change == 2 && c == 41) e = expert_at(10, 0);
            size_t bytes = safetensors_dtype_bytes(tensors[i].dtype);
            test_ok(safetensors_write(writer, &e, bytes, &err), &err);
        }
    test_ok(safetensors_commit(writer, &err), &err);
}

static const char *const table_options =
    "--gate sqrtsoftplus,fn=hash-table,topk=4,norm=sum:1e-20,scale=1.5 --hash-table";

static void a_layer_routes_by_its_own_table(void **state) {
    (void)state;
    static const struct tensor forms[3][3] = {
        {{"layers.1.ffn.gate.tid2eid", ST_I64, VOCAB, TOPK, 0},
         {"layers.2.ffn.gate.tid2eid", ST_I32, VOCAB + 9, TOPK, 0}},
        {{"model.layers.1.mlp.gate.tid2eid", ST_I32, VOCAB, TOPK, 0},
         {"model.layers.2.mlp.gate.tid2eid", ST_U16, VOCAB, TOPK, 0}},
        {{"layers.1.tid2eid", ST_U8, VOCAB, TOPK, 0},
         {"layers.2.tid2eid", ST_I16, VOCAB, TOPK, 0},
         {"layers.2.weight", ST_F32, 2, 2, 0}}};
    for (int form = 0; form < 3; form++) {
        char options[700];
        struct err err = {0};
        struct choices choices;
        int32_t id[WINDOWS * WINDOW];
        write_tables("table.safetensors", forms[form], form < 2 ? 2 : 3);
        snprintf(options, sizeof options, "%s %s", table_options, at("table.safetensors"));
        captured("run.db", options);
        replays_to_itself("run.db", forms[form][0].name);
        struct trace *trace = opened("run.db");
        assert_int_equal(trace_layer(trace, 0)->table.ids, VOCAB);
        const struct trace_columns columns = {.id = id};
        test_ok(trace_read_tokens(trace, 0, WINDOWS * WINDOW, &columns, &err), &err);
        test_ok(choices_open(&choices, trace, 1, &err), &err);
        test_ok(choices_next(&choices, &err), &err);
        assert_true(choices.chunk.tokens > 50);
        for (int64_t i = 0; i < choices.chunk.tokens * TOPK; i++)
            assert_int_equal(choices.chunk.expert[i], expert_at(id[i / TOPK], i % TOPK));
        choices_close(&choices);
        trace_free(trace);
    }
}

static void a_replay_takes_tables_from_a_file_where_the_trace_has_none(void **state) {
    (void)state;
    static const struct tensor tables[] = {{"layers.1.tid2eid", ST_I32, VOCAB, TOPK, 0},
                                           {"layers.2.tid2eid", ST_I32, VOCAB, TOPK, 0}};
    char options[700], rest[900];
    const char *gate = "sqrtsoftplus,fn=hash-table,topk=4";
    write_tables("table.safetensors", tables, 2);
    snprintf(options, sizeof options, "%s %s", table_options, at("table.safetensors"));
    captured("own.db", options);
    captured("run.db", "");
    snprintf(rest, sizeof rest, "--gate %s --hash-table %s --out %s --force", gate,
             at("table.safetensors"), at("file.db"));
    free(says("replay", "run.db", rest));
    snprintf(rest, sizeof rest, "--out %s --force", at("mine.db"));
    free(says("replay", "own.db", rest));
    const char *loads = "\"SELECT layer, expert, tokens FROM expert_load\" --csv";
    char *file = says("sql", "file.db", loads), *own = says("sql", "mine.db", loads);
    assert_true(strlen(file) > 300);
    assert_string_equal(file, own); /* the choices of a hash layer hang on ids alone */
    free(file);
    free(own);
}

static void tables_that_do_not_fit_are_refused(void **state) {
    (void)state;
    static const struct {
        struct tensor tensors[2];
        const char *expected;
    } cases[] = {
        {{{"layers.1.tid2eid", ST_I32, VOCAB, TOPK, 0}, {"layers.3.tid2eid", ST_I32, 9, TOPK, 0}},
         "found no table of layer 2"},
        {{{"layers.1.tid2eid", ST_I32, VOCAB, 3, 0}, {"layers.2.tid2eid", ST_I32, VOCAB, 3, 0}},
         "expected [ids, 4]"},
        {{{"layers.1.tid2eid", ST_I32, VOCAB, TOPK, 1}, {"layers.2.tid2eid", ST_I32, 9, TOPK, 0}},
         "token id 9: found expert 32"},
        {{{"layers.1.tid2eid", ST_I32, VOCAB, TOPK, 2}, {"layers.2.tid2eid", ST_I32, 9, TOPK, 0}},
         "expected 4 distinct ones"},
        {{{"layers.1.tid2eid", ST_F32, VOCAB, TOPK, 0}, {"layers.2.tid2eid", ST_I32, 9, TOPK, 0}},
         "found F32, expected integers"},
        {{{"layers.1.tid2eid", ST_I32, 100, TOPK, 0}, {"layers.2.tid2eid", ST_I32, 100, TOPK, 0}},
         "found less than the text's ids"},
        {{{"layers.1.gate", ST_I32, VOCAB, TOPK, 0}, {"gate.tid2eid", ST_I32, 9, TOPK, 0}},
         "found no tensor layers.N"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char options[700];
        const char *errors;
        write_tables("table.safetensors", cases[i].tensors, 2);
        snprintf(options, sizeof options, "%s %s", table_options, at("table.safetensors"));
        int status = capture("run.db", options, &errors);
        const char *expected = i == 5 ? "found id" : cases[i].expected;
        if (status == 0 || !strstr(errors, expected))
            fail_msg("%s: exit %d: %s", cases[i].expected, status, errors);
    }
    assert_int_equal(capture("run.db", "--hash-table nothing", NULL), 2);
    assert_int_equal(capture("run.db", "--gate native --hash-table nothing", NULL), 1);
}

static void a_damaged_table_in_a_trace_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *sql, *expected;
    } cases[] = {
        {"UPDATE hash_table SET ids = 7", "found 5120 bytes"},
        {"UPDATE hash_table SET router = 9 WHERE router = 1", "hash_table.router: found 9"},
        {"UPDATE hash_table SET experts = zeroblob(5120)", "token id 0: found expert 0"},
        {"DELETE FROM hash_table WHERE router = 1", "layer 2: gate: found fn=hash-table without"},
        {"DROP TABLE hash_table", "layer 1: gate: found fn=hash-table without"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char command[900];
        struct err err = {0};
        captured("run.db", "--gate native,nobias,groups=none,fn=balanced-hash");
        snprintf(command, sizeof command, "sqlite3 %s '%s'", at("run.db"), cases[i].sql);
        assert_int_equal(test_run(command, NULL, NULL), 0);
        struct trace *trace = trace_open(at("run.db"), &err);
        if (trace || !strstr(err.text, cases[i].expected))
            fail_msg("%s: %s", cases[i].sql, err.text);
        trace_free(trace);
    }
}

static void exports_and_comparisons_take_empty_slots(void **state) {
    (void)state;
    char command[1500], *out;
    captured("run.db", "");
    captured("cut.db", "--gate native,groups=none,topp=0.25");
    snprintf(command, sizeof command, "%s compare %s %s --csv", test_program(), at("run.db"),
             at("cut.db"));
    assert_int_equal(test_run(command, &out, NULL), 0);
    free(out);
    snprintf(command, sizeof command,
             "%s export %s --to safetensors --out %s && %s export %s --to npz --out %s",
             test_program(), at("cut.db"), at("x.safetensors"), test_program(), at("cut.db"),
             at("x.npz"));
    assert_int_equal(test_run(command, NULL, &out), 1);
    assert_non_null(strstr(out, "leaves slots empty"));
    free(out);
    char *rows = says("sql", "cut.db",
                      "\"SELECT min(n) < max(n), max(n) FROM (SELECT sum(chosen) AS n FROM "
                      "router_score GROUP BY layer, token)\" --csv");
    if (!strstr(rows, "\n1,")) fail_msg("%s", rows);
    free(rows);
    rows = says("sql", "cut.db",
                "\"SELECT count(*) FROM router_score WHERE chosen = 1 AND expert < 0\""
                " --csv");
    assert_non_null(strstr(rows, "\n0"));
    free(rows);
}

int test_closed_gates(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_preset_runs_or_is_refused_with_the_reason, begin),
        cmocka_unit_test_setup(every_part_of_the_language_runs_or_is_refused, begin),
        cmocka_unit_test_setup(a_cut_that_cuts_nothing_changes_nothing, begin),
        cmocka_unit_test_setup(an_empty_slot_adds_nothing_to_the_output, begin),
        cmocka_unit_test_setup(rare_gates_know_neither_threads_nor_passes, begin),
        cmocka_unit_test_setup(a_killed_capture_goes_on_with_its_draws, begin),
        cmocka_unit_test_setup(draws_by_number_and_other_tables_are_not_merged, begin),
        cmocka_unit_test_setup(a_layer_routes_by_its_own_table, begin),
        cmocka_unit_test_setup(a_replay_takes_tables_from_a_file_where_the_trace_has_none, begin),
        cmocka_unit_test_setup(tables_that_do_not_fit_are_refused, begin),
        cmocka_unit_test_setup(a_damaged_table_in_a_trace_is_refused, begin),
        cmocka_unit_test_setup(exports_and_comparisons_take_empty_slots, begin),
    };
    return cmocka_run_group_tests_name("closed_gates", tests, NULL, NULL);
}
