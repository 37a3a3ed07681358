/* test_capture.c - `steelyard capture` from outside: parity, resume after kill -9, refusals, thread
 * counts; and `export`, `import`, `show` on what it made */
#include "tests/support_program.h"
#include "tests/test.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "router/route.h"
#include "traces/trace.h"

#define MODEL "tests/golden/deepseek_v3"

/* ---- helpers */

static void write_file(const char *path, const char *text) {
    struct err err = {0};
    test_ok(file_write(path, text, strlen(text), &err), &err);
}

static int begin(void **state) {
    (void)state;
    enter("capture");
    return 0;
}

/* The golden model with a tokenizer of 256 bytes (GPT-2's byte alphabet, no merges). */
static const char *model_with_tokenizer(void) {
    struct str json = {0};
    struct err err = {0};
    char command[600];
    snprintf(command, sizeof command,
             "mkdir -p %s && cp " MODEL "/config.json " MODEL "/model.safetensors %s", at("model"),
             at("model"));
    assert_int_equal(test_run(command, NULL, NULL), 0);
    str_puts(&json, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],"
                    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\","
                    "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\","
                    "\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
                    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
                    "\"fuse_unk\":false,\"byte_fallback\":false,\"merges\":[],\"vocab\":{");
    for (int b = 0, moved = 0; b < 256; b++) {
        bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        str_printf(&json, "%s\"\\u%04x\":%d", b ? "," : "", plain ? b : 256 + moved++, b);
    }
    str_puts(&json, "}}}");
    test_ok(file_write(at("model/tokenizer.json"), json.data, json.len, &err), &err);
    str_free(&json);
    static char model[512];
    snprintf(model, sizeof model, "%s", at("model"));
    return model;
}

/* ---- what a capture records */

static const struct safetensors_tensor *tensor(const struct safetensors *file, const char *name) {
    const struct safetensors_tensor *t = safetensors_find(file, name);
    if (!t) fail_msg("%s: no tensor %s", safetensors_path(file), name);
    return t;
}

static void close_to(const struct safetensors *a, const struct safetensors *b, const char *name,
                     double tolerance) {
    const struct safetensors_tensor *x = tensor(a, name), *y = tensor(b, name);
    double scale = 0;
    assert_int_equal(x->count, y->count);
    const float *p = x->data, *q = y->data;
    for (int64_t i = 0; i < x->count; i++)
        if (fabs((double)q[i]) > scale) scale = fabs((double)q[i]);
    for (int64_t i = 0; i < x->count; i++) {
        if (isnan(q[i]))
            assert_true(isnan(p[i]));
        else if (!(fabs((double)(p[i] - q[i])) <= tolerance * scale))
            fail_msg("%s[%lld]: %g, expected %g", name, (long long)i, (double)p[i], (double)q[i]);
    }
}

static void a_capture_agrees_with_the_published_implementation(void **state) {
    (void)state;
    struct err err = {0};
    runs("capture " MODEL " --ids " MODEL "/ids.txt --out %s", at("run.db"));
    runs("export %s --to safetensors --out %s", at("run.db"), at("run.safetensors"));
    struct safetensors *mine = safetensors_open(at("run.safetensors"), &err);
    test_ok(mine, &err);
    struct safetensors *theirs = safetensors_open(MODEL "/expected.safetensors", &err);
    test_ok(theirs, &err);
    close_to(mine, theirs, "nll", 1e-4);
    close_to(mine, theirs, "layers.1.router_logits", 1e-4);
    close_to(mine, theirs, "layers.2.router_logits", 1e-4);
    close_to(mine, theirs, "layers.2.bias", 0);
    const struct safetensors_tensor *ids = tensor(mine, "token_ids");
    assert_memory_equal(ids->data, tensor(theirs, "token_ids")->data, ids->size_bytes);
    assert_non_null(safetensors_metadata(mine, "gate.1"));
    safetensors_close(mine);
    safetensors_close(theirs);
}

static void replaying_the_native_gate_gives_the_live_choices_bit_for_bit(void **state) {
    (void)state;
    struct err err = {0};
    write_ids(at("ids.txt"), 5, 300, 5);
    runs("capture " MODEL " --ids %s --out %s --pass-tokens 700 --context 200", at("ids.txt"),
         at("run.db"));
    struct trace *trace = trace_open(at("run.db"), &err);
    test_ok(trace, &err);
    assert_int_equal(trace_tokens(trace), 1500);
    for (int r = 0; r < trace_layers(trace); r++) {
        const struct trace_layer *layer = trace_layer(trace, r);
        struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
        test_ok(cursor, &err);
        struct trace_chunk chunk;
        void *scratch = aligned_alloc(64, (route_scratch_bytes(layer->experts) + 63) / 64 * 64);
        int32_t *expert = malloc(1500 * (size_t)layer->topk * 4);
        float *weight = malloc(1500 * (size_t)layer->topk * 4);
        for (;;) {
            test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
            if (!chunk.tokens) break;
            struct routes routes = {.expert = expert, .weight = weight};
            assert_int_equal(route_tokens(&layer->gate, layer->experts, chunk.tokens, chunk.logits,
                                          layer->bias, &routes, scratch),
                             -1);
            assert_true(trace_choice_hash(TRACE_HASH_START, chunk.tokens, layer->topk, expert,
                                          weight) == chunk.choice_hash);
        }
        free(scratch);
        free(expert);
        free(weight);
        trace_cursor_free(cursor);
    }
    trace_free(trace);
}

static void threads_and_texts_of_any_count_give_the_same_content(void **state) {
    (void)state;
    write_ids(at("ids.txt"), 7, 150, 5);
    for (int threads = 1; threads <= 4; threads *= 2)
        runs("capture " MODEL " --ids %s --out %s%d --threads %d --pass-tokens 400", at("ids.txt"),
             at("run"), threads, threads);
    same_content(at("run1"), at("run2"));
    same_content(at("run1"), at("run4"));
}

static void a_text_is_a_document_whose_domain_is_its_name(void **state) {
    (void)state;
    struct err err = {0};
    const char *model = model_with_tokenizer();
    write_file(at("prose.txt"), "A text. \xc3\xa9\n");
    write_file(at("code.c"), "int main(void) { return 0; }\n");
    char *command = NULL;
    char line[600];
    snprintf(line, sizeof line, "mkdir -p %s && printf one > %s && printf two > %s", at("more"),
             at("more/a.txt"), at("more/b.txt"));
    assert_int_equal(test_run(line, &command, NULL), 0);
    free(command);
    runs("capture %s %s %s --domain source=%s --domain both=%s --out %s", model, at("prose.txt"),
         at("code.c"), at("code.c"), at("more"), at("run.db"));
    struct trace *trace = trace_open(at("run.db"), &err);
    test_ok(trace, &err);
    static const char *const domains[] = {"prose", "source", "both", "both"};
    static const int64_t tokens[] = {11, 29, 3, 3};
    assert_int_equal(trace_documents(trace), 4);
    for (int d = 0; d < 4; d++) {
        assert_string_equal(trace_document(trace, d)->domain, domains[d]);
        assert_int_equal(trace_document(trace, d)->tokens, tokens[d]);
        assert_int_equal(trace_document(trace, d)->bytes, tokens[d]);
        assert_int_equal(strlen(trace_document(trace, d)->sha256), 64);
    }
    trace_free(trace);
    char *pieces;
    snprintf(line, sizeof line, "sqlite3 %s \"SELECT text FROM token_text WHERE token < 6\"",
             at("run.db"));
    assert_int_equal(test_run(line, &pieces, NULL), 0);
    assert_string_equal(pieces, "A\n \nt\ne\nx\nt\n");
    free(pieces);
}

static void max_tokens_and_context_cut(void **state) {
    (void)state;
    struct err err = {0};
    write_ids(at("ids.txt"), 3, 100, 5);
    runs("capture " MODEL " --ids %s --out %s --max-tokens 130 --context 40", at("ids.txt"),
         at("run.db"));
    struct trace *trace = trace_open(at("run.db"), &err);
    test_ok(trace, &err);
    assert_int_equal(trace_tokens(trace), 130);
    assert_int_equal(trace_documents(trace), 2);
    int32_t position[130];
    float nll[130];
    test_ok(trace_read_tokens(trace, 0, 130,
                              &(struct trace_columns){.position = position, .nll = nll}, &err),
            &err);
    for (int t = 0; t < 130; t++) {
        int inside = t < 100 ? t : t - 100;
        assert_int_equal(position[t], inside % 40);
        bool last = inside % 40 == 39 || t == 99 || t == 129;
        assert_int_equal(isnan(nll[t]) != 0, last);
    }
    trace_free(trace);
}

/* ---- killed, resumed */

/* Starts the program and kills it after `us` microseconds; true when it was killed before its end.
 */
static bool start_and_kill(const char *ids, const char *out, int64_t us) {
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr)) _exit(127);
        execl(test_program(), "steelyard", "capture", MODEL, "--ids", ids, "--out", out,
              "--pass-tokens", "100", "--threads", "1", "--resume", (char *)NULL);
        _exit(127);
    }
    return killed_after(pid, us);
}

static void a_capture_killed_fifty_times_resumes_to_the_same_content(void **state) {
    (void)state;
    struct rng rng;
    int killed = 0, finished = 0;
    int64_t tokens = 0;
    rng_init(&rng, 11);
    write_ids(at("ids.txt"), 40, 100, 5);
    runs("capture " MODEL " --ids %s --out %s --pass-tokens 100 --threads 2", at("ids.txt"),
         at("whole.db"));
    while (killed < 50) {
        struct err err = {0};
        if (start_and_kill(at("ids.txt"), at("run.db"), (int64_t)rng_below(&rng, 120000))) {
            killed++;
            /* what was reported written is there; the file may not even exist yet */
            struct trace *trace = trace_open(at("run.db"), &err);
            int64_t now = trace ? trace_tokens(trace) : 0;
            if (now < tokens)
                fail_msg("%lld tokens, before %lld %s", (long long)now, (long long)tokens,
                         err.text);
            tokens = now;
            trace_free(trace);
            continue;
        }
        finished++;
        same_content(at("whole.db"), at("run.db"));
        unlink(at("run.db"));
        tokens = 0;
    }
    runs("capture " MODEL " --ids %s --out %s --pass-tokens 100 --resume", at("ids.txt"),
         at("run.db"));
    same_content(at("whole.db"), at("run.db"));
    print_message("killed %d times, finished %d times\n", killed, finished + 1);
}

static void a_resume_with_other_input_is_refused(void **state) {
    (void)state;
    write_ids(at("ids.txt"), 3, 50, 5);
    runs("capture " MODEL " --ids %s --out %s", at("ids.txt"), at("run.db"));
    runs("capture " MODEL " --ids %s --out %s --resume", at("ids.txt"), at("run.db"));
    char *before = dump(at("run.db"));
#define RESUME "--ids %s --out %s --resume"
    refuses(1, "context_tokens: found 256, expected 20",
            "capture " MODEL " " RESUME " --context 20", at("ids.txt"), at("run.db"));
    refuses(1, "store: found f32, expected bf16", "capture " MODEL " " RESUME " --store bf16",
            at("ids.txt"), at("run.db"));
    refuses(1, "model: found deepseek_v3, expected olmoe", "capture tests/golden/olmoe " RESUME,
            at("ids.txt"), at("run.db"));
    write_file(at("ids.txt"), "1 2 3\n4 5 6\n7 8 9\n");
    refuses(1, "sha256 of document", "capture " MODEL " " RESUME, at("ids.txt"), at("run.db"));
#undef RESUME
    char *after = dump(at("run.db"));
    assert_string_equal(before, after);
    free(before);
    free(after);
}

/* ---- bad input, bad places */

static void bad_input_is_refused_without_leaving_a_file(void **state) {
    (void)state;
    const char *model = model_with_tokenizer();
    static const struct {
        const char *name, *text, *option, *expected;
    } cases[] = {{"empty.txt", "", "", "empty file"},
                 {"empty.ids", "", "--ids", "empty file"},
                 {"blank.ids", "1 2\n\n3\n", "--ids", "line 2: found no id"},
                 {"word.ids", "1 2 x3 4\n", "--ids", "line 1: token 2: found 'x3"},
                 {"minus.ids", "-1\n", "--ids", "expected an id from 0 to 319"},
                 {"big.ids", "1 320\n", "--ids", "expected an id from 0 to 319"},
                 {"huge.ids", "99999999999999999999\n", "--ids", "expected an id from 0 to 319"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(at(cases[i].name), cases[i].text);
        refuses(1, cases[i].expected, "capture %s %s %s --out %s", model, cases[i].option,
                at(cases[i].name), at("run.db"));
        assert_false(file_exists(at("run.db")));
    }
    write_ids(at("ids.txt"), 2, 20, 5);
    char *ignored;
    char line[600];
    snprintf(line, sizeof line, "rm -f %s; mkfifo %s", at("pipe"), at("pipe"));
    assert_int_equal(test_run(line, &ignored, NULL), 0);
    free(ignored);
    refuses(1, "found a pipe, expected a regular file", "capture %s %s --out %s", model, at("pipe"),
            at("run.db"));
    refuses(1, "no-such.txt", "capture %s %s --out %s", model, at("no-such.txt"), at("run.db"));
    refuses(1, "tokenizer", "capture " MODEL " %s --out %s", at("word.ids"), at("run.db"));
    refuses(1, "cannot create", "capture %s --ids %s --out %s", model, at("ids.txt"),
            at("word.ids/run.db"));
    refuses(1, "cannot create", "capture %s --ids %s --out %s", model, at("ids.txt"),
            at("no-such-folder/run.db"));
    refuses(2, "no text", "capture %s --out %s", model, at("run.db"));
    refuses(2, "--out", "capture %s --ids %s", model, at("ids.txt"));
    refuses(2, "--store", "capture %s --ids %s --store f8 --out %s", model, at("ids.txt"),
            at("run.db"));
    refuses(2, "expected at most 256", "capture %s --ids %s --context 257 --out %s", model,
            at("ids.txt"), at("run.db"));
    assert_false(file_exists(at("run.db")));
}

static void an_existing_output_needs_force(void **state) {
    (void)state;
    write_ids(at("ids.txt"), 2, 20, 5);
    write_file(at("run.db"), "precious");
    refuses(1, "exists already", "capture " MODEL " --ids %s --out %s", at("ids.txt"),
            at("run.db"));
    refuses(1, "no SQLite database", "capture " MODEL " --ids %s --resume --out %s", at("ids.txt"),
            at("run.db"));
    struct err err = {0};
    size_t len;
    char *text = file_read(at("run.db"), 1000, &len, &err);
    test_ok(text, &err);
    assert_string_equal(text, "precious");
    free(text);
    runs("capture " MODEL " --ids %s --force --out %s", at("ids.txt"), at("run.db"));
    struct trace *trace = trace_open(at("run.db"), &err);
    test_ok(trace, &err);
    assert_int_equal(trace_tokens(trace), 40);
    trace_free(trace);
}

static void a_full_disk_is_one_clear_error_and_resumable(void **state) {
    (void)state;
    char line[1200], *errors;
    write_ids(at("ids.txt"), 40, 100, 5);
    runs("capture " MODEL " --ids %s --out %s --pass-tokens 100", at("ids.txt"), at("whole.db"));
    /* a limit on the size of a file stands for the full disk; the signal is ignored, writes fail */
    static const int limits[] = {1, 20, 200, 700, 1200};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        unlink(at("run.db"));
        snprintf(line, sizeof line,
                 "trap '' XFSZ; ulimit -f %d; exec %s capture " MODEL
                 " --ids %s --out %s --pass-tokens 100 > /dev/null",
                 limits[i], test_program(), at("ids.txt"), at("run.db"));
        int status = test_run(line, NULL, &errors);
        assert_int_equal(status, 1);
        const char *newline = strchr(errors, '\n');
        if (!strstr(errors, "run.db") || !newline || newline[1]) fail_msg("'%s'", errors);
        free(errors);
        runs("capture " MODEL " --ids %s --out %s --pass-tokens 100 --resume", at("ids.txt"),
             at("run.db"));
        same_content(at("whole.db"), at("run.db"));
    }
}

static void check_finds_what_is_wrong(void **state) {
    (void)state;
    static const char *const damages[][2] = {
        {"UPDATE chunk SET choice_hash = 5 WHERE chunk = 3", "route otherwise"},
        {"DELETE FROM chunk WHERE chunk = 2", "chunk rows"},
        {"UPDATE chunk SET scores = x'00' WHERE chunk = 1", "found 1 bytes"},
        {"DELETE FROM token WHERE token = 3", "token rows"},
        {"UPDATE capture SET model = 'other'", "identity"},
        {"UPDATE token SET document = 1 WHERE token = 0", "token rows in order"}};
    char line[1200], *out;
    write_ids(at("ids.txt"), 4, 90, 5);
    for (int i = -1; i < (int)(sizeof damages / sizeof *damages); i++) {
        runs("capture " MODEL " --ids %s --out %s --force --pass-tokens 90", at("ids.txt"),
             at("run.db"));
        if (i >= 0) {
            snprintf(line, sizeof line, "sqlite3 %s \"%s\"", at("run.db"), damages[i][0]);
            assert_int_equal(test_run(line, NULL, NULL), 0);
        }
        snprintf(line, sizeof line, "%s check %s", test_program(), at("run.db"));
        int status = test_run(line, &out, NULL);
        if (status != (i >= 0) || (i >= 0 && !strstr(out, damages[i][1])))
            fail_msg("%s: exit %d: %s", i < 0 ? "intact" : damages[i][0], status, out);
        assert_int_equal(strstr(out, "failed") != NULL, i >= 0);
        free(out);
    }
}

/* ---- out and in again */

static void export_import_export_is_the_identity(void **state) {
    (void)state;
    write_ids(at("ids.txt"), 4, 90, 5);
    runs("capture " MODEL " --ids %s --out %s --context 32", at("ids.txt"), at("run.db"));
    runs("export %s --to safetensors --out %s", at("run.db"), at("a.safetensors"));
    runs("import %s --from safetensors --out %s", at("a.safetensors"), at("again.db"));
    runs("export %s --to safetensors --out %s", at("again.db"), at("b.safetensors"));
    char line[1200];
    snprintf(line, sizeof line, "cmp %s %s", at("a.safetensors"), at("b.safetensors"));
    assert_int_equal(test_run(line, NULL, NULL), 0);
    refuses(1, "exists already", "export %s --to csv --out %s", at("run.db"), at("b.safetensors"));
    refuses(2, "expected one of: safetensors csv", "export %s --to x --out %s", at("run.db"),
            at("x"));
    runs("export %s --to csv --out %s", at("run.db"), at("run.csv"));
    snprintf(line, sizeof line, "test $(wc -l < %s) = %d", at("run.csv"), 1 + 360 * 2 * 8);
    assert_int_equal(test_run(line, NULL, NULL), 0);
    runs("show %s", at("again.db"));
}

static void imports_refuse_what_does_not_fit(void **state) {
    (void)state;
    refuses(2, "gate.1", "import " MODEL "/expected.safetensors --out %s", at("run.db"));
    refuses(1, "found 8 a token, expected 6 of the gate",
            "import " MODEL "/expected.safetensors --gate deepseek-v3,topk=6 --out %s",
            at("run.db"));
    refuses(1, "as the gate chooses",
            "import " MODEL "/expected.safetensors --gate deepseek-v3,groups=8:8:max --out %s",
            at("run.db"));
    refuses(1, "not recognised", "import " MODEL "/model.safetensors --out %s", at("run.db"));
    refuses(1, "layers.N", "import " MODEL "/model.safetensors --from safetensors --out %s",
            at("run.db"));
    assert_false(file_exists(at("run.db")));
    assert_false(file_exists(at("run.db.partial")));
    runs("import " MODEL "/expected.safetensors --gate deepseek-v3 --out %s", at("run.db"));
}

/* A file of one layer of 4 tokens and 3 experts, with one flaw. */
static void flawed(const char *expected, enum safetensors_dtype dtype, int64_t rows, float value,
                   int32_t document) {
    struct err err = {0};
    float logits[24] = {1, 2, 3, 4, 5, 6, 7, value, 9, 10, 11, 12};
    int32_t documents[4] = {0, 0, document, document};
    struct safetensors_writer *writer = safetensors_create(at("flawed.safetensors"), &err);
    test_ok(writer, &err);
    safetensors_declare(writer, "layers.4.router_logits", dtype, 2, (int64_t[]){rows, 3}, &err);
    safetensors_declare(writer, "document", ST_I32, 1, (int64_t[]){4}, &err);
    safetensors_note(writer, "gate.4", "softmax,topk=2", &err);
    safetensors_write(writer, logits, (size_t)rows * 3 * safetensors_dtype_bytes(dtype), &err);
    safetensors_write(writer, documents, sizeof documents, &err);
    test_ok(safetensors_commit(writer, &err), &err);
    if (expected)
        refuses(1, expected, "import %s --out %s", at("flawed.safetensors"), at("run.db"));
    else
        runs("import %s --out %s", at("flawed.safetensors"), at("run.db"));
}

static void imports_refuse_flawed_tensors(void **state) {
    (void)state;
    flawed("layer 4, token 2, expert 1: found logit nan", ST_F32, 4, NAN, 0);
    flawed("layer 4, token 2, expert 1: found logit inf", ST_F32, 4, INFINITY, 0);
    flawed("found 2-d F64, expected 2-d F32", ST_F64, 4, 8, 0);
    flawed("document: found 4 rows, expected 3", ST_F32, 3, 8, 0);
    flawed("document: token 2: found 2, expected 0 or 1", ST_F32, 4, 8, 2);
    assert_false(file_exists(at("run.db")));
    flawed(NULL, ST_F32, 4, 8, 1);
}

static void no_command_overwrites_its_own_input(void **state) {
    (void)state;
    const char *place = test_folder("same-file");
    struct str line = {0};
    static const char *const commands[] = {
        "capture tests/golden/olmoe --ids $D/ids.txt --out $D/ids.txt --force",
        "replay $D/run.db --out $D/./run.db --force",
        "export $D/run.db --to csv --out $D/run.db --force",
        "import $D/run.st --from safetensors --out $D/run.st --force",
        "plot $D/run.svg load_map --out $D/run.svg --force"};
    str_printf(&line,
               "D=%s; S=%s; cp tests/golden/olmoe/ids.txt $D/ && "
               "$S capture tests/golden/olmoe --ids $D/ids.txt --out $D/run.db >/dev/null && "
               "$S export $D/run.db --to safetensors --out $D/run.st && cp $D/run.db $D/run.svg && "
               "cat $D/ids.txt $D/run.db $D/run.st $D/run.svg | sha256sum >$D/before",
               place, test_program());
    assert_int_equal(test_run(str_text(&line), NULL, NULL), 0);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char *errors;
        str_clear(&line);
        str_printf(&line, "D=%s; %s %s", place, test_program(), commands[i]);
        assert_int_equal(test_run(str_text(&line), NULL, &errors), 2);
        assert_non_null(strstr(errors, "expected another file"));
        free(errors);
    }
    str_clear(&line);
    str_printf(&line, "cd %s && cat ids.txt run.db run.st run.svg | sha256sum | cmp - before",
               place);
    assert_int_equal(test_run(str_text(&line), NULL, NULL), 0);
    str_free(&line);
}

static void an_impossible_router_in_a_config_is_a_bad_file(void **state) {
    (void)state;
    static const char *const edits[][2] = {
        {"s/\"num_experts_per_tok\": 8/\"num_experts_per_tok\": 99/", "at most the 32 experts"},
        {"s/\"n_group\": 8/\"n_group\": 7/", "divisor"},
        {"s/\"topk_group\": 4/\"topk_group\": 9/", "1 to 8"}};
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        struct str line = {0};
        char *errors;
        const char *place = test_folder("bad-router");
        str_printf(&line,
                   "D=%s; cp tests/golden/deepseek_v3/* $D/ && chmod u+w $D/* && "
                   "sed -i '%s' $D/config.json && %s capture $D --ids $D/ids.txt --out $D/x.db",
                   place, edits[i][0], test_program());
        assert_int_equal(test_run(str_text(&line), NULL, &errors), 1);
        assert_non_null(strstr(errors, edits[i][1]));
        assert_non_null(strstr(errors, "config.json"));
        assert_null(strstr(errors, "usage:"));
        free(errors);
        str_free(&line);
    }
}

int test_capture(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_command_overwrites_its_own_input),
        cmocka_unit_test(an_impossible_router_in_a_config_is_a_bad_file),
        cmocka_unit_test_setup(a_capture_agrees_with_the_published_implementation, begin),
        cmocka_unit_test_setup(replaying_the_native_gate_gives_the_live_choices_bit_for_bit, begin),
        cmocka_unit_test_setup(threads_and_texts_of_any_count_give_the_same_content, begin),
        cmocka_unit_test_setup(a_text_is_a_document_whose_domain_is_its_name, begin),
        cmocka_unit_test_setup(max_tokens_and_context_cut, begin),
        cmocka_unit_test_setup(a_capture_killed_fifty_times_resumes_to_the_same_content, begin),
        cmocka_unit_test_setup(a_resume_with_other_input_is_refused, begin),
        cmocka_unit_test_setup(bad_input_is_refused_without_leaving_a_file, begin),
        cmocka_unit_test_setup(an_existing_output_needs_force, begin),
        cmocka_unit_test_setup(a_full_disk_is_one_clear_error_and_resumable, begin),
        cmocka_unit_test_setup(check_finds_what_is_wrong, begin),
        cmocka_unit_test_setup(export_import_export_is_the_identity, begin),
        cmocka_unit_test_setup(imports_refuse_what_does_not_fit, begin),
        cmocka_unit_test_setup(imports_refuse_flawed_tensors, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
