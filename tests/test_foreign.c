/* test_foreign.c - files as torch and numpy write them: tests/golden/foreign/make.py has the
 * formulas
 */
#include "tests/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "tests/support_import.h"

static int begin(void **state) {
    (void)state;
    import_into("foreign");
    return 0;
}

#define FOREIGN "tests/golden/foreign/"
enum { FT = 6, FL = 4, FK = 3, FE = 16 };
static int foreign_id(int t, int l, int j) { return (3 * t + 5 * l + 7 * j) % FE; }
static float foreign_logit(int t, int l, int e) {
    return (float)((7 * t + 3 * l + 5 * e) % 11 - 5) / 4;
}

static void check_foreign_ids(struct trace *trace) {
    struct err err = {0};
    assert_int_equal(trace_tokens(trace), FT);
    assert_int_equal(trace_layers(trace), FL - 1);
    for (int r = 0; r < FL - 1; r++) {
        struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
        int32_t expert[FT * FK];
        const int64_t tokens[FT] = {0, 1, 2, 3, 4, 5};
        test_ok(cursor, &err);
        test_ok(trace_cursor_rows(
                    cursor, &(struct trace_rows){.n = FT, .token = tokens, .expert = expert}, &err),
                &err);
        for (int i = 0; i < FT * FK; i++)
            assert_int_equal(expert[i], foreign_id(i / FK, trace_layer(trace, r)->layer, i % FK));
        trace_cursor_free(cursor);
    }
}

static void check_foreign_logits(struct trace *trace) {
    struct err err = {0};
    assert_int_equal(trace_layers(trace), FL);
    for (int r = 0; r < FL; r++) {
        struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
        struct trace_chunk chunk;
        test_ok(cursor, &err);
        test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
        assert_int_equal(chunk.tokens, FT);
        for (int i = 0; i < FT * FE; i++)
            assert_true(chunk.logits[i] == foreign_logit(i / FE, r, i % FE));
        trace_cursor_free(cursor);
    }
}

static void sglang_records_and_counts_read_back(void **state) {
    (void)state;
    struct trace *trace = imported("auto", "torch", import_of(FOREIGN "sglang_per_token.pt"));
    check_foreign_ids(trace);
    assert_int_equal(trace_documents(trace), 2);
    test_near(trace_number(trace, "SELECT id FROM token WHERE token = 4"), 104, 0);
    trace_free(trace);
    struct import_job job = import_of(FOREIGN "sglang_stat.pt");
    refused("auto", "--gate", job);
    job.gate = "softmax,topk=3";
    trace = imported("auto", "torch", job);
    assert_int_equal(trace_layer(trace, 0)->holds, TRACE_COUNTS);
    assert_int_equal(trace_layer(trace, 0)->experts, FE);
    for (int r = 0; r < FL - 1; r++) {
        struct err err = {0};
        int64_t counts[FE], expected[FE] = {0};
        for (int i = 0; i < FT * FK; i++) expected[foreign_id(i / FK, r + 1, i % FK)]++;
        test_ok(trace_read_counts(trace, r, -1, counts, &err), &err);
        assert_memory_equal(counts, expected, sizeof counts);
    }
    trace_free(trace);
}

static void sglang_passes_are_summed_over_ranks_and_replicas(void **state) {
    (void)state;
    static const char *const files[] = {FOREIGN "sglang_per_pass_0.pt",
                                        FOREIGN "sglang_per_pass_1.pt"};
    struct import_job job = {.files = files, .file_count = 2, .gate = "softmax,topk=1"};
    struct trace *trace = imported("auto", "torch", job);
    assert_int_equal(trace_documents(trace), 2);
    assert_int_equal(trace_layers(trace), 1);
    assert_null(strstr(trace_capture(trace)->lacks, "other ranks"));
    for (int p = 0; p < 2; p++) {
        struct err err = {0};
        int64_t counts[FE];
        test_ok(trace_read_counts(trace, 0, p, counts, &err), &err);
        for (int e = 0; e < FE; e++)
            assert_int_equal(counts[e], 2 + (e + p) % 3 + (e + p + 1) % 3 + (e == 2 ? 10 : 0));
    }
    trace_free(trace);
}

static void sglang_passes_of_some_ranks_are_refused(void **state) {
    (void)state;
    static const char *const files[] = {FOREIGN "sglang_per_pass_0.pt",
                                        FOREIGN "sglang_per_pass_1.pt",
                                        FOREIGN "sglang_per_pass_1.pt"};
    struct import_job second = {.files = files + 1, .file_count = 1, .gate = "softmax,topk=1"};
    refused("torch", "found no record of rank 0, expected one of each of 2 ranks", second);
    second.file_count = 2;
    refused("torch", "no record of rank 0", second);
    struct import_job twice = {.files = files, .file_count = 3, .gate = "softmax,topk=1"};
    refused("torch", "found another record of rank 1", twice);
    struct import_job both = {.files = files, .file_count = 2, .gate = "softmax,topk=2"};
    refused("torch", "found 73 choices, expected 2 x 37 tokens", both);
    struct import_job first = {.files = files, .file_count = 1, .gate = "softmax,topk=1"};
    struct trace *trace = imported("torch", "torch", first);
    assert_non_null(strstr(trace_capture(trace)->lacks, "other ranks, if there were any"));
    trace_free(trace);
}

static void logits_of_torch_and_numpy_read_back(void **state) {
    (void)state;
    static const char *const files[][2] = {{FOREIGN "logits_f32.pt", "torch"},
                                           {FOREIGN "logits_bf16.pt", "torch"},
                                           {FOREIGN "logits_f16.pt", "torch"},
                                           {FOREIGN "logits.npz", "numpy"}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct import_job job = import_of(files[i][0]);
        job.gate = "softmax,topk=3";
        struct trace *trace = imported("auto", files[i][1], job);
        check_foreign_logits(trace);
        trace_free(trace);
    }
    struct import_job job = import_of(FOREIGN "logits_strided.pt");
    job.gate = "softmax,topk=3";
    refused("auto", "not contiguous", job);
}

static void npz_of_numpy_reads_ids_and_tokens(void **state) {
    (void)state;
    struct trace *trace = imported("auto", "numpy", import_of(FOREIGN "routed.npz"));
    check_foreign_ids(trace);
    test_near(trace_number(trace, "SELECT id FROM token WHERE token = 5"), 105, 0);
    trace_free(trace);
    trace = imported("auto", "numpy", import_of(FOREIGN "routed_compressed.npz"));
    check_foreign_ids(trace);
    trace_free(trace);
}

/* Any flipped byte and any truncation: refused, or read as something else, but never a crash. */
static void damaged_foreign_files_never_crash(void **state) {
    (void)state;
    static const char *const files[] = {FOREIGN "sglang_per_token.pt", FOREIGN "logits_bf16.pt",
                                        FOREIGN "routed_compressed.npz"};
    static const char damaged[] = "build/test-out/foreign/damaged.bin";
    struct rng rng;
    rng_init(&rng, 1);
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        struct err err = {0};
        size_t len;
        char *bytes = file_read(files[f], 1 << 20, &len, &err);
        test_ok(bytes, &err);
        for (int round = 0; round < 400; round++) {
            size_t at = (size_t)rng_below(&rng, len);
            char was = bytes[at];
            size_t n = round % 4 == 3 ? at : len;
            bytes[at] = (char)rng_next(&rng);
            test_ok(file_write(damaged, bytes, n, &err), &err);
            struct import_job job = import_of(damaged);
            job.gate = "softmax,topk=3";
            struct err why;
            if (!import_as(f == 2 ? "numpy" : "torch", job, &why)) assert_true(*why.text);
            bytes[at] = was;
        }
        free(bytes);
    }
}

int test_foreign(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(sglang_records_and_counts_read_back, begin),
        cmocka_unit_test_setup(sglang_passes_are_summed_over_ranks_and_replicas, begin),
        cmocka_unit_test_setup(sglang_passes_of_some_ranks_are_refused, begin),
        cmocka_unit_test_setup(logits_of_torch_and_numpy_read_back, begin),
        cmocka_unit_test_setup(npz_of_numpy_reads_ids_and_tokens, begin),
        cmocka_unit_test_setup(damaged_foreign_files_never_crash, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
