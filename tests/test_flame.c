/* test_flame.c - FLAME-MoE's parquet files through traces/convert_flame.py: what is written there
 * is in the trace, and files that do not fit are refused
 *
 * Needs a Python with pyarrow and numpy: $STEELYARD_PYTHON, else python3. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "tests/support_import.h"
#include "traces/trace.h"

enum { TOKENS = 7, K = 3 };

/* Three files in argv[1]: tokens 50 + t; layers 2 and 11, whose expert j of token t is (5t + l +
 * 3j) % 64 with the probability 0.5 / (j + 1), once as lists, once as lists of fixed size; and a
 * layer whose last row is too short. */
static const char make[] =
    "import sys\n"
    "import pyarrow as pa, pyarrow.parquet as pq\n"
    "T, K = 7, 3\n"
    "d = sys.argv[1] + '/'\n"
    "pq.write_table(pa.table({'token_id': pa.array([50 + t for t in range(T)], pa.int32())}), d + "
    "'tokens.parquet')\n"
    "def layer(l, ids, reals, cut=0):\n"
    "    i = [[(5 * t + l + 3 * j) % 64 for j in range(K)] for t in range(T)]\n"
    "    s = [[0.5 / (j + 1) for j in range(K)] for t in range(T)]\n"
    "    if cut: i[-1].pop()\n"
    "    pq.write_table(pa.table({'scores': pa.array(s, reals), 'indices': pa.array(i, ids)}), "
    "d + f'layer_{l:02d}.parquet')\n"
    "layer(2, pa.list_(pa.int64()), pa.list_(pa.float32()))\n"
    "layer(11, pa.list_(pa.int32(), K), pa.list_(pa.float64(), K))\n"
    "layer(12, pa.list_(pa.int64()), pa.list_(pa.float32()), 1)\n";

static const char *python(void) {
    const char *named = getenv("STEELYARD_PYTHON");
    return named ? named : "python3";
}

/* Runs the converter over the tokens and two layers of the folder. */
static int convert(const char *folder, const char *second, char **errors) {
    struct str line = {0};
    str_printf(&line, "%s traces/convert_flame.py %s/out.safetensors %s/tokens.parquet ", python(),
               folder, folder);
    str_printf(&line, "%s/layer_02.parquet %s/%s", folder, folder, second);
    int status = test_run(str_text(&line), NULL, errors);
    str_free(&line);
    return status;
}

static void check_layer(const struct trace *trace, int r, int layer) {
    struct err err = {0};
    int32_t expert[TOKENS * K];
    float weight[TOKENS * K];
    int64_t tokens[TOKENS];
    for (int t = 0; t < TOKENS; t++) tokens[t] = t;
    const struct trace_rows rows = {
        .n = TOKENS, .token = tokens, .expert = expert, .weight = weight};
    struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
    test_ok(cursor, &err);
    test_ok(trace_cursor_rows(cursor, &rows, &err), &err);
    assert_int_equal(trace_layer(trace, r)->layer, layer);
    for (int i = 0; i < TOKENS * K; i++) {
        assert_int_equal(expert[i], (5 * (i / K) + layer + 3 * (i % K)) % 64);
        test_near((double)weight[i], 0.5 / (i % K + 1), 1e-7);
    }
    trace_cursor_free(cursor);
}

static void parquet_becomes_ids_weights_and_tokens(void **state) {
    (void)state;
    char path[600], *errors = NULL;
    struct str line = {0};
    struct err err = {0};
    const char *folder = test_folder("flame");
    str_printf(&line, "%s -c 'import pyarrow.parquet, numpy' 2>/dev/null", python());
    if (test_run(str_text(&line), NULL, NULL) != 0) {
        str_free(&line);
        printf("skip: no Python with pyarrow and numpy (STEELYARD_PYTHON names one)\n");
        skip();
    }
    snprintf(path, sizeof path, "%s/make.py", folder);
    test_ok(file_write(path, make, sizeof make - 1, &err), &err);
    str_clear(&line);
    str_printf(&line, "%s %s %s", python(), path, folder);
    assert_int_equal(test_run(str_text(&line), NULL, NULL), 0);
    str_free(&line);
    assert_int_equal(convert(folder, "layer_11.parquet", NULL), 0);
    snprintf(path, sizeof path, "%s/out.safetensors", folder);
    import_into("flame/trace");
    struct import_job job = import_of(path);
    job.experts = 64;
    struct trace *trace = imported("auto", "safetensors", job);
    assert_int_equal(trace_tokens(trace), TOKENS);
    assert_int_equal(trace_layers(trace), 2);
    assert_int_equal(trace_layer(trace, 0)->experts, 64);
    test_near(trace_number(trace, "SELECT sum(id) FROM token"), 7 * 50 + 21, 0);
    check_layer(trace, 0, 2);
    check_layer(trace, 1, 11);
    trace_free(trace);
    remove(path);
    assert_int_not_equal(convert(folder, "layer_12.parquet", &errors), 0);
    if (!strstr(errors, "layer_12.parquet: found 7 rows of [2, 3] values")) fail_msg("%s", errors);
    assert_false(file_exists(path));
    free(errors);
    assert_int_not_equal(convert(folder, "tokens.parquet", &errors), 0);
    if (!strstr(errors, "expected layer_NN.parquet")) fail_msg("%s", errors);
    free(errors);
}

int test_flame(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(parquet_becomes_ids_weights_and_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
