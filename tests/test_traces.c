/* test_traces.c - the trace database: what is written is read back, bad files are refused, results
 */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/table.h"
#include "traces/query.h"
#include "traces/result.h"
#include "traces/trace.h"

enum { E0 = 16, E1 = 40, K = 3, T = 5000, DOCUMENTS = 3 };

/* A made-up model of two routers and its capture. */
static struct trace_document documents[DOCUMENTS] = {{"a.txt", "prose", "aa", 100, 0, 1000},
                                                     {"b.txt", "code", "bb", 200, 1000, 1},
                                                     {"c.txt", "prose", "cc", 300, 1001, T - 1001}};
static struct trace_layer layers[2];
static float bias[E1];
static float *logits[2];
static int32_t ids[T], positions[T];

static struct trace_setup make_setup(enum trace_holds holds, enum trace_store store) {
    struct rng rng;
    struct err err = {0};
    rng_init(&rng, 7);
    for (int e = 0; e < E1; e++) bias[e] = (float)rng_normal(&rng);
    for (int r = 0; r < 2; r++) {
        int experts = r ? E1 : E0;
        layers[r] = (struct trace_layer){.layer = r ? 5 : 3,
                                         .experts = experts,
                                         .topk = K,
                                         .holds = holds,
                                         .has_gate = true,
                                         .has_weights = holds == TRACE_IDS,
                                         .bias = r ? bias : NULL};
        test_ok(gate_parse(r ? "sigmoid,bias,topk=3,norm=sum" : "softmax,topk=3", NULL,
                           &layers[r].gate, &err),
                &err);
        free(logits[r]);
        logits[r] = malloc((size_t)T * (size_t)experts * 4);
        for (int i = 0; i < T * experts; i++) logits[r][i] = (float)(rng_normal(&rng) * 2);
    }
    for (int t = 0; t < T; t++) {
        ids[t] = t % 50;
        positions[t] = t % 256;
    }
    return (struct trace_setup){.capture = {.model = "toy",
                                            .family = "made-up",
                                            .model_id = "0123",
                                            .config = "{}",
                                            .source = "capture",
                                            .compute = "f32",
                                            .kernels = "portable",
                                            .store = store,
                                            .parameters = 12,
                                            .context_tokens = 256,
                                            .pass_tokens = 512,
                                            .options = "",
                                            .lacks = "",
                                            .vocabulary = "tokenizer.json"},
                                .layers = layers,
                                .layer_count = 2,
                                .documents = documents,
                                .document_count = DOCUMENTS};
}

/* The expert and weight that the test pretends token t chose i-th at router r. */
static int32_t choice(int r, int64_t t, int i) {
    return (int32_t)((t * 7 + i + r) % (r ? E1 : E0));
}
static float choice_weight(int r, int64_t t, int i) { return (float)(t % 13 + i + r) * 0.25f; }

/* Writes one pass of n tokens, routes in pieces of `piece` tokens. */
static void write_pass(struct trace *trace, int64_t n, int64_t piece) {
    struct err err = {0};
    int64_t first = trace_tokens(trace);
    const struct trace_pass pass = {n, ids + first, positions + first};
    test_ok(trace_pass_begin(trace, &pass, &err), &err);
    for (int r = 0; r < 2; r++)
        for (int64_t at = 0; at < n; at += piece) {
            int64_t m = n - at < piece ? n - at : piece;
            int32_t *expert = malloc((size_t)m * K * 4);
            float *weight = malloc((size_t)m * K * 4);
            for (int64_t t = 0; t < m; t++)
                for (int i = 0; i < K; i++) {
                    expert[t * K + i] = choice(r, first + at + t, i);
                    weight[t * K + i] = choice_weight(r, first + at + t, i);
                }
            const struct trace_routes routes = {
                r, at, m, logits[r] + (first + at) * (r ? E1 : E0), expert, weight};
            test_ok(trace_pass_routes(trace, &routes, &err), &err);
            free(expert);
            free(weight);
        }
    float *nll = malloc((size_t)n * 4);
    for (int64_t t = 0; t < n; t++) nll[t] = positions[first + t] == 255 ? NAN : (float)(first + t);
    test_ok(trace_pass_nll(trace, 0, n, nll, &err), &err);
    free(nll);
    test_ok(trace_add_piece(trace, 1, "\xff\xfe", 2, &err), &err);
    test_ok(trace_add_piece(trace, 2, "\xc3\xa9", 2, &err), &err);
    test_ok(trace_pass_commit(trace, &err), &err);
}

static void write_rest(struct trace *trace, int64_t pass, int64_t piece) {
    while (trace_tokens(trace) < T) {
        int64_t left = T - trace_tokens(trace);
        write_pass(trace, left < pass ? left : pass, piece);
    }
}

static const char *write_trace(const char *name, struct trace_setup setup, int64_t pass,
                               int64_t piece) {
    static char path[512];
    struct err err = {0};
    snprintf(path, sizeof path, "%s/run.db", test_folder(name));
    struct trace *trace = trace_create(path, &setup, TRACE_NEW, &err);
    test_ok(trace, &err);
    write_rest(trace, pass, piece);
    test_ok(trace_close(trace, true, &err), &err);
    return path;
}

static struct trace *reopen(const char *path) {
    struct err err = {0};
    struct trace *trace = trace_open(path, &err);
    test_ok(trace, &err);
    return trace;
}

/* What trace_choice_hash gives for the pretended choices of a chunk. */
static uint64_t live_hash(int r, const struct trace_chunk *chunk) {
    uint64_t hash = TRACE_HASH_START;
    for (int64_t t = chunk->first; t < chunk->first + chunk->tokens; t++) {
        int32_t expert[K];
        float weight[K];
        for (int i = 0; i < K; i++) {
            expert[i] = choice(r, t, i);
            weight[i] = choice_weight(r, t, i);
        }
        hash = trace_choice_hash(hash, 1, K, expert, weight);
    }
    return hash;
}

static void scores_read_back_exactly(void **state) {
    (void)state;
    struct err err = {0};
    static const int64_t cuts[][2] = {{5000, 5000}, {512, 100}, {4097, 3}};
    for (size_t c = 0; c < 3; c++) {
        struct trace *trace = reopen(
            write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), cuts[c][0], cuts[c][1]));
        assert_int_equal(trace_tokens(trace), T);
        assert_true(trace_complete(trace));
        assert_true(trace_has_scores(trace));
        for (int r = 0; r < 2; r++) {
            struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
            test_ok(cursor, &err);
            struct trace_chunk chunk;
            int64_t next = 0;
            int experts = r ? E1 : E0;
            do {
                test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
                assert_int_equal(chunk.first, next);
                if (chunk.tokens)
                    assert_memory_equal(chunk.logits, logits[r] + next * experts,
                                        (size_t)chunk.tokens * (size_t)experts * 4);
                if (chunk.tokens) assert_true(live_hash(r, &chunk) == chunk.choice_hash);
                next += chunk.tokens;
            } while (chunk.tokens);
            assert_int_equal(next, T);
            trace_cursor_free(cursor);
        }
        trace_free(trace);
    }
}

static void any_rows_read_back_in_any_order(void **state) {
    (void)state;
    struct err err = {0};
    struct trace *trace =
        reopen(write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 700, 64));
    struct trace_cursor *cursor = trace_cursor_open(trace, 1, &err);
    test_ok(cursor, &err);
    const int64_t tokens[] = {4999, 0, 699, 700, 4999, 17};
    float rows[6 * E1];
    const struct trace_rows want = {.n = 6, .token = tokens, .logits = rows};
    test_ok(trace_cursor_rows(cursor, &want, &err), &err);
    for (int i = 0; i < 6; i++)
        assert_memory_equal(rows + i * E1, logits[1] + tokens[i] * E1, E1 * 4);
    const int64_t outside[] = {T};
    assert_false(trace_cursor_rows(
        cursor, &(struct trace_rows){.n = 1, .token = outside, .logits = rows}, &err));
    test_ok(trace_cursor_seek(cursor, 1500, &err), &err);
    struct trace_chunk chunk;
    test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
    assert_true(chunk.first <= 1500 && 1500 < chunk.first + chunk.tokens);
    trace_cursor_free(cursor);
    trace_free(trace);
}

static void tokens_documents_and_gates_read_back(void **state) {
    (void)state;
    struct err err = {0};
    struct trace_setup setup = make_setup(TRACE_SCORES, TRACE_F32);
    struct trace *trace = reopen(write_trace("traces", setup, 512, 512));
    int32_t document[3], position[3], id[3];
    float nll[3];
    const struct trace_columns columns = {document, position, id, nll};
    test_ok(trace_read_tokens(trace, 999, 3, &columns, &err), &err);
    assert_int_equal(document[0], 0);
    assert_int_equal(document[1], 1);
    assert_int_equal(document[2], 2);
    assert_int_equal(id[1], 1000 % 50);
    assert_int_equal(position[2], 1001 % 256);
    assert_true(nll[0] == 999.0f);
    test_ok(trace_read_tokens(trace, 255, 1, &columns, &err), &err);
    assert_true(isnan(nll[0]));
    assert_false(trace_read_tokens(trace, T - 1, 2, &columns, &err));
    assert_int_equal(trace_domains(trace), 2);
    assert_string_equal(trace_domain(trace, trace_domain_of(trace, 2)), "prose");
    assert_int_equal(trace_document_of(trace, 1000), 1);
    assert_int_equal(trace_document_of(trace, T), -1);
    const struct trace_layer *layer = trace_layer(trace, trace_layer_find(trace, 5));
    assert_true(gate_equal(&layer->gate, &layers[1].gate));
    assert_memory_equal(layer->bias, bias, sizeof bias);
    assert_null(trace_layer(trace, 0)->bias);
    assert_string_equal(trace_capture(trace)->model, "toy");
    trace_free(trace);
}

static void half_precision_stores_round_to_nearest(void **state) {
    (void)state;
    struct err err = {0};
    static const struct {
        enum trace_store store;
        double relative;
    } cases[] = {{TRACE_BF16, 1.0 / 256}, {TRACE_F16, 1.0 / 2048}};
    for (size_t c = 0; c < 2; c++) {
        struct trace *trace =
            reopen(write_trace("traces", make_setup(TRACE_SCORES, cases[c].store), 512, 512));
        struct trace_cursor *cursor = trace_cursor_open(trace, 0, &err);
        test_ok(cursor, &err);
        struct trace_chunk chunk;
        test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
        for (int i = 0; i < chunk.tokens * E0; i++) {
            double x = (double)logits[0][i], slack = fabs(x) * cases[c].relative + 3e-8;
            assert_true(fabs((double)chunk.logits[i] - x) <= slack);
        }
        trace_cursor_free(cursor);
        trace_free(trace);
    }
}

static void ids_only_traces_read_back_and_say_so(void **state) {
    (void)state;
    struct err err = {0};
    struct trace *trace = reopen(write_trace("traces", make_setup(TRACE_IDS, TRACE_F32), 512, 100));
    assert_false(trace_has_scores(trace));
    struct trace_cursor *cursor = trace_cursor_open(trace, 1, &err);
    test_ok(cursor, &err);
    struct trace_chunk chunk;
    test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
    assert_null(chunk.logits);
    for (int64_t t = 0; t < chunk.tokens; t++)
        for (int i = 0; i < K; i++) {
            assert_int_equal(chunk.expert[t * K + i], choice(1, t, i));
            assert_true(chunk.weight[t * K + i] == choice_weight(1, t, i));
        }
    trace_cursor_free(cursor);
    trace_free(trace);
}

static void non_finite_logits_are_refused_with_their_place(void **state) {
    (void)state;
    struct err err = {0};
    char path[512];
    struct trace_setup setup = make_setup(TRACE_SCORES, TRACE_F32);
    snprintf(path, sizeof path, "%s/run.db", test_folder("traces"));
    struct trace *trace = trace_create(path, &setup, TRACE_NEW, &err);
    test_ok(trace, &err);
    const struct trace_pass pass = {10, ids, positions};
    test_ok(trace_pass_begin(trace, &pass, &err), &err);
    logits[1][4 * E1 + 9] = NAN;
    assert_false(trace_pass_routes(
        trace, &(struct trace_routes){.r = 1, .tokens = 10, .logits = logits[1]}, &err));
    assert_non_null(strstr(err.text, "layer 5, token 4, expert 9"));
    test_ok(trace_close(trace, true, &err), &err);
    assert_false(file_exists(path));
}

static void an_incomplete_pass_is_not_committed(void **state) {
    (void)state;
    struct err err = {0};
    char path[512];
    struct trace_setup setup = make_setup(TRACE_SCORES, TRACE_F32);
    snprintf(path, sizeof path, "%s/run.db", test_folder("traces"));
    struct trace *trace = trace_create(path, &setup, TRACE_NEW, &err);
    test_ok(trace, &err);
    write_pass(trace, 100, 100);
    const struct trace_pass pass = {10, ids, positions};
    test_ok(trace_pass_begin(trace, &pass, &err), &err);
    assert_false(trace_pass_commit(trace, &err));
    assert_non_null(strstr(err.text, "found 0 tokens, expected 10"));
    test_ok(trace_close(trace, true, &err), &err);
    trace = reopen(path);
    assert_int_equal(trace_tokens(trace), 100);
    assert_false(trace_complete(trace));
    trace_free(trace);
}

static void resume_goes_on_and_refuses_another_setup(void **state) {
    (void)state;
    struct err err = {0};
    char path[512];
    struct trace_setup setup = make_setup(TRACE_SCORES, TRACE_F32);
    snprintf(path, sizeof path, "%s/run.db", test_folder("traces"));
    struct trace *trace = trace_create(path, &setup, TRACE_RESUME, &err);
    test_ok(trace, &err);
    write_pass(trace, 512, 512);
    assert_null(trace_create(path, &setup, TRACE_RESUME, &err)); /* while it is being written */
    assert_non_null(strstr(err.text, "another process"));
    assert_null(trace_create(path, &setup, TRACE_FORCE, &err));
    test_ok(trace_close(trace, true, &err), &err);
    assert_null(trace_create(path, &setup, TRACE_NEW, &err));
    assert_int_equal(err.code, ERR_EXISTS);

    documents[2].sha256 = "other";
    assert_null(trace_create(path, &setup, TRACE_RESUME, &err));
    assert_non_null(strstr(err.text, "sha256 of document c.txt: found cc, expected other"));
    documents[2].sha256 = "cc";
    setup.capture.compute = "bf16";
    assert_null(trace_create(path, &setup, TRACE_RESUME, &err));
    assert_non_null(strstr(err.text, "compute: found f32, expected bf16"));
    setup.capture.compute = "f32";
    bias[3] += 1;
    assert_null(trace_create(path, &setup, TRACE_RESUME, &err));
    assert_non_null(strstr(err.text, "bias of layer 5"));
    bias[3] -= 1;

    trace = trace_create(path, &setup, TRACE_RESUME, &err);
    test_ok(trace, &err);
    assert_int_equal(trace_tokens(trace), 512);
    write_rest(trace, 512, 512);
    test_ok(trace_close(trace, true, &err), &err);
    trace = reopen(path);
    assert_int_equal(trace_tokens(trace), T);
    trace_free(trace);
}

static void a_closed_trace_is_one_file_and_small(void **state) {
    (void)state;
    char beside[600];
    const char *path = write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000);
    snprintf(beside, sizeof beside, "%s-wal", path);
    assert_false(file_exists(beside));
    struct err err = {0};
    struct file_map map;
    test_ok(file_map(path, &map, &err), &err);
    assert_int_equal(map.data[18], 1); /* not in WAL mode */
    /* empty tables take a page of 16 KiB each; token rows weigh 10 % of such small layers */
    assert_true((double)map.size_bytes < 400e3 + 1.15 * T * (E0 + E1) * 4);
    file_unmap(&map);
}

/* ---- bad databases */

static void refuse(const char *path, const char *expected) {
    struct err err = {0};
    struct trace *trace = trace_open(path, &err);
    if (trace) fail_msg("%s was opened, expected: %s", path, expected);
    if (!strstr(err.text, expected)) fail_msg("'%s' lacks '%s'", err.text, expected);
    assert_non_null(strstr(err.text, path));
    assert_null(strchr(err.text, '\n'));
}

static void run_sql(const char *path, const char *sql) {
    char command[1200];
    snprintf(command, sizeof command, "sqlite3 %s \"%s\"", path, sql);
    assert_int_equal(test_run(command, NULL, NULL), 0);
}

static void foreign_newer_and_damaged_files_are_refused(void **state) {
    (void)state;
    struct err err = {0};
    static const struct {
        const char *sql, *expected;
    } cases[] = {
        {"PRAGMA application_id = 5", "application_id: found 5"},
        {"PRAGMA user_version = 3", "user_version: found 3, expected 2"},
        {"DROP VIEW expert_load", "view expert_load: found another definition"},
        {"DROP VIEW token_text; CREATE TABLE token_text(x)", "view token_text"},
        {"DELETE FROM capture", "capture: found no row"},
        {"DELETE FROM layer", "layer: rows: found 0"},
        {"UPDATE layer SET experts = 1 << 40", "layer.experts"},
        {"UPDATE layer SET experts = 41 WHERE router = 1", "bias"},
        {"UPDATE layer SET topk = 4", "layer.topk"},
        {"UPDATE layer SET gate = 'nonsense'", "gate"},
        {"UPDATE layer SET router = 7 WHERE router = 1", "layer.router"},
        {"UPDATE document SET first_token = 5 WHERE document = 1", "document.first_token"},
        {"UPDATE document SET tokens = -1 WHERE document = 2", "document.tokens"},
        {"UPDATE block SET tokens = 1 << 30 WHERE block = 0", "block.tokens"},
        {"UPDATE block SET first_token = 3 WHERE block = 1", "block.first_token"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000);
        run_sql(path, cases[i].sql);
        refuse(path, cases[i].expected);
    }
    const char *path = write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000);
    assert_int_equal(truncate(path, 50000), 0);
    refuse(path, "damaged");
    assert_int_equal(truncate(path, 0), 0);
    refuse(path, "empty file");
    test_ok(file_write(path, "This is a text, no database at all.\n", 36, &err), &err);
    refuse(path, "no SQLite database");
    refuse("build", "found a folder");
    refuse("build/no-such-file.db", "cannot open");
    unlink(path);
    run_sql(path, "CREATE TABLE t(x)");
    refuse(path, "no Steelyard trace");
}

static void damaged_chunks_are_refused_when_read(void **state) {
    (void)state;
    static const struct {
        const char *sql, *expected;
    } cases[] = {{"UPDATE chunk SET scores = x'00' WHERE chunk = 0", "scores: found 1 bytes"},
                 {"UPDATE chunk SET scores = NULL WHERE chunk = 0", "chunk"},
                 {"DELETE FROM chunk WHERE chunk = 0", "chunk"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        const char *path = write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000);
        run_sql(path, cases[i].sql);
        struct trace *trace = reopen(path);
        struct trace_cursor *cursor = trace_cursor_open(trace, 0, &err);
        test_ok(cursor, &err);
        struct trace_chunk chunk;
        assert_false(trace_cursor_next(cursor, &chunk, &err));
        if (!strstr(err.text, cases[i].expected)) fail_msg("%s", err.text);
        trace_cursor_free(cursor);
        trace_free(trace);
    }
}

/* Flipped bytes anywhere in the file: refused with one line, or read within bounds; never a crash.
 */
static void damaged_databases_never_crash(void **state) {
    (void)state;
    struct err err = {0};
    struct rng rng;
    char path[512];
    size_t len;
    struct trace_setup setup = make_setup(TRACE_SCORES, TRACE_BF16);
    snprintf(path, sizeof path, "%s", write_trace("traces", setup, 5000, 5000));
    char *bytes = file_read(path, 1 << 26, &len, &err);
    test_ok(bytes, &err);
    rng_init(&rng, 9);
    for (int round = 0; round < 150; round++) {
        size_t at[8];
        char was[8];
        for (int i = 0; i < 8; i++) { /* mostly where the structure is: the begin of a page */
            at[i] = round % 2 ? (size_t)rng_below(&rng, len)
                              : (size_t)rng_below(&rng, len / 16384) * 16384 +
                                    (size_t)rng_below(&rng, 200);
            was[i] = bytes[at[i]];
            bytes[at[i]] = (char)rng_next(&rng);
        }
        test_ok(file_write(path, bytes, len, &err), &err);
        struct trace *trace = trace_open(path, &err);
        for (int r = 0; trace && r < trace_layers(trace); r++) {
            struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
            struct trace_chunk chunk;
            while (cursor && trace_cursor_next(cursor, &chunk, &err) && chunk.tokens) continue;
            trace_cursor_free(cursor);
        }
        if (trace) {
            struct table *table = trace_sql(
                trace, "SELECT count(*), total(weight), total(nll) FROM router_score", &err);
            table_free(table);
        }
        trace_free(trace);
        for (int i = 7; i >= 0; i--) bytes[at[i]] = was[i];
    }
    free(bytes);
}

/* ---- results */

static void write_results(struct result *result, int variants) {
    struct err err = {0};
    for (int v = 1; v <= variants; v++) {
        const struct result_variant variant = {.variant = v,
                                               .gate = "softmax,topk=3",
                                               .label = "softmax",
                                               .bias_rule = v > 1 ? "sign" : "none",
                                               .bias_rate = v > 1 ? 0.001 : NAN,
                                               .bias_start = v > 1 ? "zero" : "",
                                               .batch_tokens = 4096,
                                               .ranks = v > 1 ? 4 : 0,
                                               .same_as = v == 3 ? 2 : 0,
                                               .same_why = ""};
        test_ok(result_variant(result, &variant, &err), &err);
        for (int r = 0; r < 2; r++) {
            const struct result_layer layer = {.variant = v,
                                               .layer = layers[r].layer,
                                               .maxvio_global = 0.5 + r,
                                               .maxvio_batch = 1,
                                               .cv = 2,
                                               .gini = 3,
                                               .entropy = 4,
                                               .load_min = 10 * r,
                                               .load_max = 20,
                                               .ties = 1 + r,
                                               .group_escapes = r,
                                               .agreement = 0.25,
                                               .mass_retained = NAN,
                                               .rank_maxvio = v > 1 ? 0.1 : NAN,
                                               .efficiency = v > 1 ? 0.9 : NAN};
            test_ok(result_layer(result, &layer, &err), &err);
            int64_t tokens[E0] = {1, 2, 3};
            double weight[E0] = {0.5};
            test_ok(result_expert_load(result, v, layers[r].layer, E0, tokens, weight, &err), &err);
            test_ok(result_bias(result, v, layers[r].layer, E0, weight, &err), &err);
            for (int d = 0; d < DOCUMENTS; d++)
                test_ok(result_document_load(result, v, layers[r].layer, d, E0, tokens, &err),
                        &err);
            const struct result_batches batches = {
                v, layers[r].layer, 0, 2, (int64_t[]){4096, 904}, (double[]){0.5, 0.75}, NULL};
            test_ok(result_batches(result, &batches, &err), &err);
            test_ok(result_rank_weight(result, v, layers[r].layer, K, weight, weight, &err), &err);
        }
    }
}

static const struct result_experiment experiment = {
    .options = "--score softmax", .order = "captured", .seed = 1, .tokens = T, .warnings = ""};

static void check_results(const char *path, int variants) {
    struct err err = {0};
    struct trace *trace = reopen(path);
    struct table *summary = trace_query(trace, "replay_summary", NULL, 0, &err);
    test_ok(summary, &err);
    assert_int_equal(table_rows(summary), variants * 3);
    static const char *const names[] = {
        "variant",       "gate",      "bias_rule",     "bias_rate",    "batch_tokens",
        "ranks",         "layer",     "maxvio_global", "maxvio_batch", "cv",
        "gini",          "entropy",   "load_min",      "load_max",     "ties",
        "group_escapes", "agreement", "mass_retained", "rank_maxvio",  "efficiency",
        "same_as",       "dropped",   "unrouted",      "experts_mean", "experts_max",
        "causal"};
    assert_int_equal(table_columns(summary), 26);
    for (int c = 0; c < 26; c++) assert_string_equal(table_column(summary, c)->name, names[c]);
    assert_true(table_is_null(summary, 0, 6)); /* the mean comes first */
    test_near(table_number(summary, 0, 7), 1.0, 0);
    test_near(table_number(summary, 0, 12), 5.0, 0);
    test_near(table_number(summary, 0, 14), 3.0, 0);
    assert_true(table_is_null(summary, 0, 17));
    assert_true(table_is_null(summary, 0, 18));
    if (variants == 3) test_near(table_number(summary, 6, 20), 2, 0);
    table_free(summary);
    struct table *domains = trace_sql(
        trace, "SELECT sum(tokens) FROM domain_load WHERE variant=1 AND layer=3 AND domain='prose'",
        &err);
    test_ok(domains, &err);
    test_near(table_number(domains, 0, 0), 12, 0);
    table_free(domains);
    trace_free(trace);
}

static void results_inside_the_trace_are_replaced_at_once(void **state) {
    (void)state;
    struct err err = {0};
    const char *path = write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000);
    struct trace *trace = reopen(path);
    for (int variants = 3; variants >= 1; variants -= 2) {
        struct result *result = result_create(trace, NULL, false, &experiment, &err);
        test_ok(result, &err);
        write_results(result, variants);
        test_ok(result_commit(result, &err), &err);
        check_results(path, variants);
    }
    struct result *result = result_create(trace, NULL, false, &experiment, &err);
    test_ok(result, &err);
    write_results(result, 2);
    result_abandon(result);
    check_results(path, 1);
    trace_free(trace);
}

static void a_result_file_holds_what_a_report_needs(void **state) {
    (void)state;
    struct err err = {0};
    char out[512];
    const char *path = write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000);
    snprintf(out, sizeof out, "%s/result.db", test_folder("traces-result"));
    struct trace *trace = reopen(path);
    struct result *result = result_create(trace, out, false, &experiment, &err);
    test_ok(result, &err);
    write_results(result, 3);
    assert_false(file_exists(out));
    test_ok(result_commit(result, &err), &err);
    check_results(out, 3);
    assert_null(result_create(trace, out, false, &experiment, &err));
    assert_int_equal(err.code, ERR_EXISTS);
    result = result_create(trace, out, true, &experiment, &err);
    test_ok(result, &err);
    write_results(result, 1);
    result_abandon(result);
    check_results(out, 3); /* an abandoned one changes nothing */
    struct trace *copy = reopen(out);
    assert_string_equal(trace_identity(copy), trace_identity(trace));
    assert_int_equal(trace_documents(copy), DOCUMENTS);
    assert_null(trace_cursor_open(copy, 0, &err));
    trace_free(copy);
    trace_free(trace);
}

static void sql_is_one_query_and_changes_nothing(void **state) {
    (void)state;
    struct err err = {0};
    struct trace *trace =
        reopen(write_trace("traces", make_setup(TRACE_SCORES, TRACE_F32), 5000, 5000));
    static const char *const refused[] = {"DELETE FROM token",       "",
                                          "SELECT 1; SELECT 2",      "SELECT nonsense",
                                          "PRAGMA journal_mode=WAL", "ATTACH 'x' AS y"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct table *table = trace_sql(trace, refused[i], &err);
        if (table) fail_msg("accepted: %s", refused[i]);
    }
    struct table *table =
        trace_sql(trace, "SELECT 1.5 AS a, text, id FROM piece ORDER BY id;", &err);
    test_ok(table, &err);
    assert_string_equal(table_cell(table, 0, 1), "x'fffe'");
    assert_string_equal(table_cell(table, 1, 1), "\xc3\xa9");
    table_free(table);
    trace_free(trace);
}

int test_traces(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_read_back_exactly),
        cmocka_unit_test(any_rows_read_back_in_any_order),
        cmocka_unit_test(tokens_documents_and_gates_read_back),
        cmocka_unit_test(half_precision_stores_round_to_nearest),
        cmocka_unit_test(ids_only_traces_read_back_and_say_so),
        cmocka_unit_test(non_finite_logits_are_refused_with_their_place),
        cmocka_unit_test(an_incomplete_pass_is_not_committed),
        cmocka_unit_test(resume_goes_on_and_refuses_another_setup),
        cmocka_unit_test(a_closed_trace_is_one_file_and_small),
        cmocka_unit_test(foreign_newer_and_damaged_files_are_refused),
        cmocka_unit_test(damaged_chunks_are_refused_when_read),
        cmocka_unit_test(damaged_databases_never_crash),
        cmocka_unit_test(results_inside_the_trace_are_replaced_at_once),
        cmocka_unit_test(a_result_file_holds_what_a_report_needs),
        cmocka_unit_test(sql_is_one_query_and_changes_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
