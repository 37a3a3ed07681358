/* test_formats.c - small files of every format: recognised, read right, refused with the reason;
 * and exports that come back */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/gguf.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "base/table.h"
#include "tests/support_gguf.h"
#include "tests/support_import.h"
#include "traces/exchange.h"
#include "traces/query.h"
#include "traces/trace.h"

#define FOLDER "build/test-out/formats/"

static int begin(void **state) {
    (void)state;
    import_into("formats");
    return 0;
}

static const char *write_text(const char *name, const char *text, size_t len) {
    static char path[512];
    struct err err = {0};
    snprintf(path, sizeof path, FOLDER "%s", name);
    test_ok(file_write(path, text, len, &err), &err);
    return path;
}

/* ---- text files */

#define CHOICES                                                                                    \
    "SELECT CAST(group_concat(expert, '') AS INTEGER) FROM (SELECT expert FROM router_score "      \
    "WHERE "
static const struct text_case {
    const char *file, *text;
    const char *gate;
    int64_t layers;        /* --layers */
    const char *source;    /* the importer */
    const char *sql;       /* a figure of it, and what it must be; NULL: it must be refused */
    double expected;       /* of sql */
    const char *complaint; /* of a refusal */
} cases[] = {
    /* own CSV; layer 2, two documents */
    {"own.csv",
     "layer,token,document,domain,position,id,nll,rank,expert,weight,logit\r\n"
     "2,0,0,law,5,70,0.5,0,3,0.75,1\r\n2,0,0,law,5,70,0.5,1,1,0.25,0\r\n"
     "2,1,1,\"a,b\",0,,,0,0,0.5,1\r\n2,1,1,\"a,b\",0,,,1,2,0.5,0\r\n",
     NULL, 0, "csv", CHOICES "layer=2 ORDER BY token, rank)", 3102, NULL},
    {"own.csv", "layer,token,rank,expert\n0,0,0,1\n0,0,1,2\n0,1,0,3\n0,1,1,1\n", NULL, 0, "csv",
     "SELECT count(*) FROM document", 1, NULL},
    {"own.csv", "layer,token,rank,expert\n0,0,0,1\n0,0,2,2\n", NULL, 0, "csv", NULL, 0, "line 3"},
    {"own.csv", "layer,token,rank,expert\n0,0,0,1\n0,2,0,2\n", NULL, 0, "csv", NULL, 0,
     "found token 2, expected 1"},
    {"own.csv", "layer,token,rank,expert\n0,0,0,1\n1,0,0,1\n1,1,0,2\n", NULL, 0, "csv", NULL, 0,
     "tokens, expected"},
    /* counts */
    {"old.csv", "layer_id,expert_id,count\n1,0,4\n1,1,2\n3,1,6\n", "softmax,topk=1", 0, "csv",
     "SELECT tokens FROM document", 6, NULL},
    {"old.csv", "layer_id,expert_id,count\n1,0,4\n1,1,-2\n", "softmax,topk=1", 0, "csv", NULL, 0,
     "line 3"},
    {"old.csv", "layer_id,expert_id,count\n1,0,4\n1,1,1\n1,2,1\n", "softmax,topk=2", 0, "csv", NULL,
     0, "more often than"},
    {"old.csv", "layer,expert,count\n1,0,0\n1,1,0\n", "softmax,topk=1", 0, "csv", NULL, 0,
     "only zeros"},
    {"old.csv", "layer,expert,count\n1,0,4\n1,1,4\n", NULL, 0, "csv", NULL, 0, "give --gate"},
    /* one row a choice */
    {"rows.csv", "layer,expert\n0,1\n0,2\n0,3\n0,1\n4,2\n4,3\n4,0\n4,2\n", "softmax,topk=2", 0,
     "csv", CHOICES "layer=4 ORDER BY token, rank)", 2302, NULL},
    {"rows.csv", "layer,expert\n0,1\n0,2\n0,3\n4,1\n", "softmax,topk=2", 0, "csv", NULL, 0,
     "line 5"},
    /* BigMoeOnEdge: the prefill of the last layer is run for one token */
    {"route.csv",
     "# route_trace v1\n# model=/m/tiny.gguf arch=x n_layer=3 n_expert=16 n_expert_used=2\n"
     "# layer=0 expert_bytes=1 dense_bytes=1\n"
     "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n"
     "0,0,0,0,0,3,0.6,1,0\n0,0,0,0,1,5,0.4,1,0\n0,0,1,0,0,2,0.6,1,0\n0,0,1,0,1,5,0.4,1,0\n"
     "0,0,0,1,0,9,0.6,1,0\n0,0,0,1,1,4,0.4,1,0\n0,0,1,1,0,8,0.6,1,0\n0,0,1,1,1,4,0.4,1,0\n"
     "0,0,1,2,0,1,0.6,1,0\n0,0,1,2,1,0,0.4,1,0\n",
     NULL, 0, "bigmoe", "SELECT 100 * experts + count(*) OVER () FROM layer", 1602, NULL},
    {"route.csv",
     "# route_trace v1\nturn,phase,step,layer,slot,expert,weight\n0,1,7,0,0,3,nan\n"
     "0,1,7,0,1,5,nan\n0,1,7,1,0,3,nan\n0,1,7,1,1,5,nan\n",
     NULL, 0, "bigmoe", "SELECT position + 10 * (SELECT sum(weights) FROM layer) FROM token", 7,
     NULL},
    {"route.csv",
     "# route_trace v1\nturn,phase,step,layer,slot,expert,weight\n0,1,7,0,0,3,nan\n"
     "0,1,8,1,0,3,nan\n",
     NULL, 0, "bigmoe", NULL, 0, "other tokens"},
    {"route.csv", "# route_trace v1\nturn,phase,step,layer,slot,expert,weight\n0,1,7,0,1,3,nan\n",
     NULL, 0, "bigmoe", NULL, 0, "slot 1, expected 0"},
    /* SGLang: two tokens x two layers (the first dense) x k = 2: 0 0 1 2, 0 0 3 0 */
    {"sgl.json",
     "{\"text\":\"x\",\"output_ids\":[8],\"input_ids\":[5,6],\"meta_info\":{\"prompt_tokens\":2,"
     "\"completion_tokens\":1,\"routed_experts\":"
     "\"AAAAAAAAAAABAAAAAgAAAAAAAAAAAAAAAwAAAAAAAAA=\"}}",
     "softmax,topk=2", 0, "sglang", CHOICES "layer=1 ORDER BY token, rank)", 1230, NULL},
    {"sgl.json",
     "{\"choices\":[{\"sgl_ext\":{\"routed_experts\":"
     "\"AAAAAAAAAAABAAAAAgAAAAAAAAAAAAAAAwAAAAAAAAA=\"}}]}",
     "softmax,topk=2", 2, "sglang", "SELECT count(*) FROM token", 2, NULL},
    {"sgl.json", "{\"meta_info\":{\"routed_experts\":\"AQAAAAIAAAA=\"}}", "softmax,topk=2", 0,
     "sglang", NULL, 0, "--layers"},
    {"sgl.json",
     "{\"meta_info\":{\"prompt_tokens\":4,\"completion_tokens\":1,"
     "\"routed_experts\":\"AQAAAAIAAAA=\"}}",
     "softmax,topk=2", 0, "sglang", NULL, 0, "found 2 values"},
    {"sgl.json", "{\"meta_info\":{\"routed_experts\":\"AQAAAAIAAAA=\"}}", NULL, 1, "sglang", NULL,
     0, "give --gate"},
    /* wrappers of vLLM's records */
    {"dyn.json",
     "{\"choices\":[{\"routed_experts\":{\"data\":\"AQIDAA==\",\"shape\":[2,1,2],\"dtype\":"
     "\"uint8\",\"start\":3}}]}",
     NULL, 0, "vllm", CHOICES "layer=0 ORDER BY token, rank)", 1230, NULL},
    {"dyn.json", "{\"choices\":[{\"routed_experts\":\"nrlre1:uint8:2,1,2:AQIDAA==\"}]}", NULL, 0,
     "vllm", CHOICES "layer=0 ORDER BY token, rank)", 1230, NULL},
    {"dyn.json", "{\"choices\":[{\"routed_experts\":\"nrlre1:uint8:2,2,2:AQIDAA==\"}]}", NULL, 0,
     "vllm", NULL, 0, "expected 8"},
    /* moe-balance */
    {"mb.jsonl",
     "{\"layer\":3,\"batch_id\":0,\"origin_rows\":[4,9],\"topk_experts\":[[1,2],[3,0]],"
     "\"topk_weights\":[[0.5,0.5],[0.75,0.25]],\"request_id\":\"r7\"}\n"
     "{\"layer\":5,\"batch_id\":0,\"origin_rows\":[4,9],\"topk_experts\":[[0,2],[3,1]],"
     "\"topk_weights\":[[0.5,0.5],[0.75,0.25]]}\n",
     NULL, 0, "moe-balance", CHOICES "layer=5 ORDER BY token, rank)", 231, NULL},
    {"mb.jsonl",
     "{\"layer\":3,\"batch_id\":0,\"topk_experts\":[[1,2],[3,0]]}\n"
     "{\"layer\":5,\"batch_id\":0,\"topk_experts\":[[0,2]]}\n",
     NULL, 0, "moe-balance", NULL, 0, "found 1 rows, expected 2"},
    /* EPLB dumps: expert 0 has two replicas */
    {"eplb.json",
     "{\"num_moe_layers\":1,\"num_physical_experts\":4,\"num_logical_experts\":3,"
     "\"window_size\":1,\"snapshots\":[{\"step\":0,\"window_expert_load\":[[2,1,1,0]],"
     "\"physical_to_logical_map\":[[0,1,2,0]]},{\"step\":1,\"window_expert_load\":[[2,1,1,2]],"
     "\"physical_to_logical_map\":[[0,1,2,0]]}]}",
     "softmax,topk=1", 0, "eplb", "SELECT sum(tokens) FROM document", 10, NULL},
    {"eplb.json",
     "{\"num_moe_layers\":1,\"num_logical_experts\":3,\"window_size\":9,\"snapshots\":"
     "[{\"step\":0,\"window_expert_load\":[[2,1,1]],\"physical_to_logical_map\":[[0,1,2]]},"
     "{\"step\":1,\"window_expert_load\":[[2,3,1]],\"physical_to_logical_map\":[[0,1,2]]}]}",
     "softmax,topk=1", 0, "eplb", "SELECT sum(tokens) FROM document", 6, NULL},
    {"eplb.json",
     "{\"num_moe_layers\":1,\"num_logical_experts\":3,\"snapshots\":[{\"step\":0,"
     "\"window_expert_load\":[[2,1,1]],\"physical_to_logical_map\":[[0,1,7]]}]}",
     "softmax,topk=1", 0, "eplb", NULL, 0, "found 7"},
    /* OLMoE: [tokens][k][layers] */
    {"c4_results.jsonl",
     "{\"input_ids\":[4,5],\"predicted_token_ids\":[5,6],\"exp_ids\":[[[1,0],[2,3]],[[0,2],[3,1]]]"
     "}",
     NULL, 0, "olmoe", CHOICES "layer=1 ORDER BY token, rank)", 321, NULL},
    {"c4_results.jsonl", "{\"input_ids\":[4],\"exp_ids\":[[[1,0],[2]]]}", NULL, 0, "olmoe", NULL, 0,
     "[k][layers]"},
    /* tallies of the MGSM study */
    {"mgsm.json",
     "{\"0\":{\"0\":{\"activation_tokens\":7,\"gate_values_sum\":1},\"1\":{\"activation_tokens\":8,"
     "\"gate_values_sum\":2},\"2\":{\"activation_tokens\":5},\"total_tokens\":10}}",
     NULL, 0, "routed", "SELECT topk * 100 + (SELECT tokens FROM document) FROM layer", 210, NULL},
    {"mgsm.json",
     "{\"0\":{\"0\":{\"activation_tokens\":7},\"1\":{\"activation_tokens\":8},\"total_tokens\":10}"
     "}",
     NULL, 0, "routed", NULL, 0, "to 1 %"}};

static void text_files_of_every_format_are_read_or_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct text_case *c = &cases[i];
        const char *file = write_text(c->file, c->text, strlen(c->text));
        const struct import_job job = {
            .files = &file, .file_count = 1, .gate = c->gate, .layers = c->layers};
        if (!c->sql) {
            refused("auto", c->complaint, job);
            continue;
        }
        struct trace *trace = imported("auto", c->source, job);
        double found = trace_number(trace, c->sql);
        if (found != c->expected) fail_msg("case %zu (%s): %g", i, c->file, found);
        trace_free(trace);
    }
}

static void text_files_cut_anywhere_never_crash(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t n = 1; cases[i].sql && n < strlen(cases[i].text); n += 17) {
            const char *file = write_text(cases[i].file, cases[i].text, n);
            const struct import_job job = {
                .files = &file, .file_count = 1, .gate = cases[i].gate, .layers = cases[i].layers};
            struct err err;
            const char *from = cases[i].source;
            if (!import_as(from, job, &err) && !*err.text) fail_msg("case %zu at %zu", i, n);
        }
}

static void identity_of_tokens_is_kept(void **state) {
    (void)state;
    const char *file = write_text(cases[0].file, cases[0].text, strlen(cases[0].text));
    struct trace *trace =
        imported("auto", "csv", (struct import_job){.files = &file, .file_count = 1});
    assert_string_equal(trace_domain(trace, 0), "law");
    assert_string_equal(trace_domain(trace, 1), "a,b");
    test_near(trace_number(trace, "SELECT id FROM token WHERE token = 0"), 70, 0);
    test_near(trace_number(trace, "SELECT position FROM token WHERE token = 0"), 5, 0);
    test_near(trace_number(trace, "SELECT nll FROM token WHERE token = 0"), 0.5, 0);
    test_near(trace_number(trace, "SELECT weight FROM router_score WHERE token = 0 AND expert = 3"),
              0.75, 0);
    test_near(trace_number(trace, "SELECT count(*) FROM token WHERE id IS NULL"), 1, 0);
    trace_free(trace);
}

/* ---- TensorRT-LLM */

static const char *write_rank(int rank, bool raw, const int64_t *data, int64_t rows,
                              int64_t columns) {
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ % 4];
    struct err err = {0};
    snprintf(path, sizeof paths[0], FOLDER "rank%d%s.safetensors", rank, raw ? "_raw" : "");
    struct safetensors_writer *w = safetensors_create(path, &err);
    test_ok(w, &err);
    for (int i = 0; i < 2; i++) {
        char name[16];
        snprintf(name, sizeof name, "5_%d", 3 + i);
        test_ok(safetensors_declare(w, name, ST_I64, raw ? 2 : 1,
                                    (int64_t[]){raw ? rows : columns, columns}, &err),
                &err);
    }
    for (int i = 0; i < 2; i++)
        test_ok(safetensors_write(w, data, (size_t)(raw ? rows * columns : columns) * 8, &err),
                &err);
    test_ok(safetensors_commit(w, &err), &err);
    return path;
}

static void ranks_of_tensorrt_are_summed_and_none_may_be_missing(void **state) {
    (void)state;
    static const int64_t counts[2][4] = {{4, 2, 1, 1}, {0, 3, 2, 1}};
    static const int64_t chosen[4] = {3, 1, 0, 2};
    static const char meta[] = "{\"num_experts\": 4, \"num_experts_per_token\": 2}";
    static const char two[] = "{\"num_experts\": 4, \"num_experts_per_token\": 2, \"ep_size\": 2}";
    const char *files[2];
    write_text("meta_info.json", meta, strlen(meta));
    for (int r = 0; r < 2; r++) files[r] = write_rank(r, false, counts[r], 0, 4);
    struct import_job job = {.files = files, .file_count = 2};
    struct trace *trace = imported("auto", "trtllm", job);
    int64_t found[4];
    struct err err = {0};
    test_ok(trace_read_counts(trace, 1, -1, found, &err), &err);
    for (int e = 0; e < 4; e++) assert_int_equal(found[e], counts[0][e] + counts[1][e]);
    assert_int_equal(trace_layer(trace, 1)->layer, 4);
    assert_int_equal(trace_document(trace, 0)->tokens, 7);
    trace_free(trace);
    write_text("meta_info.json", two, strlen(two));
    job.file_count = 1;
    refused("auto", "0 files of rank 1", job);
    job.files = files + 1;
    write_text("meta_info.json", meta, strlen(meta));
    refused("auto", "0 files of rank 0", job);
    job.files = files;
    files[0] = write_rank(0, true, chosen, 2, 2);
    trace = imported("auto", "trtllm", job);
    test_near(trace_number(trace, CHOICES "layer=4 ORDER BY token, rank)"), 3102, 0);
    assert_int_equal(trace_layer(trace, 0)->experts, 4);
    trace_free(trace);
    remove(FOLDER "meta_info.json");
    refused("auto", "meta_info.json", job);
}

/* ---- llama.cpp */

/* Counts of 3 experts at layer 2 in the tensors of two matrices. */
static const char *write_imatrix(const float counts[2][3], uint32_t chunks) {
    struct str file = {0};
    put_header(&file, 3, 2, 2);
    put_key(&file, "imatrix.chunk_count", GGUF_U32);
    put(&file, chunks, 4);
    put_key(&file, "imatrix.chunk_size", GGUF_U32);
    put(&file, 4, 4);
    for (int i = 0; i < 2; i++)
        put_tensor(&file,
                   i ? "blk.2.ffn_up_exps.weight.counts" : "blk.2.ffn_down_exps.weight.counts", 2,
                   (int64_t[]){1, 3}, GGUF_TYPE_F32, (uint64_t)i * 32);
    put_padding(&file, 32);
    for (int i = 0; i < 2; i++) {
        str_append(&file, counts[i], 12);
        put_padding(&file, 32);
    }
    const char *path = write_text("imatrix.gguf", file.data, file.len);
    str_free(&file);
    return path;
}

static void importance_matrices_give_counts(void **state) {
    (void)state;
    static const float good[2][3] = {{8, 5, 3}, {8, 5, 3}}, bad[2][3] = {{8, 5, 3}, {8, 4, 4}};
    const char *file = write_imatrix(good, 2);
    struct import_job job = {.files = &file, .file_count = 1};
    struct trace *trace = imported("auto", "imatrix", job);
    assert_int_equal(trace_layer(trace, 0)->topk, 2);
    assert_int_equal(trace_layer(trace, 0)->layer, 2);
    assert_int_equal(trace_document(trace, 0)->tokens, 8);
    trace_free(trace);
    file = write_imatrix(good, 0); /* tokens not known */
    refused("auto", "--gate", job);
    job.gate = "softmax,topk=1";
    trace = imported("auto", "imatrix", job);
    assert_int_equal(trace_document(trace, 0)->tokens, 16);
    trace_free(trace);
    file = write_imatrix(bad, 2);
    refused("auto", "another count", job);
}

/* ---- shared data */

/* max / mean of layers 0, 7, 15, as computed from the published pickles. */
static void counters_of_olmoe_have_the_published_loads(void **state) {
    (void)state;
    static const struct {
        const char *domain;
        int64_t tokens;
        double overload[3];
    } published[] = {
        {"c4", 208896, {3.017, 2.658, 2.499}},     {"arxiv", 208896, {7.813, 6.283, 7.495}},
        {"github", 208896, {5.006, 6.157, 4.509}}, {"wikipedia", 208896, {6.179, 6.780, 4.651}},
        {"book", 208896, {3.632, 4.057, 2.928}},   {"tulu", 205243, {3.234, 4.451, 4.138}}};
    static const char *const folders[] = {"expert_counts", "expert_counts_crosslayer", "eid2token"};
    test_need("../shared/data/allenai-routing");
    for (size_t f = 0; f < 3; f++)
        for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
            char path[256];
            const char *file = path;
            struct err err = {0};
            int64_t counts[64];
            snprintf(path, sizeof path, "../shared/data/allenai-routing/olmoe/%s/%s.pkl",
                     folders[f], published[i].domain);
            if (!file_exists(path)) continue; /* not every folder has every domain */
            struct trace *trace =
                imported("auto", "olmoe",
                         (struct import_job){.files = &file, .file_count = 1, .gate = "olmoe"});
            assert_int_equal(trace_document(trace, 0)->tokens, published[i].tokens);
            for (int r = 0; r < 3; r++) {
                int64_t sum = 0, most = 0;
                test_ok(trace_read_counts(trace, r, -1, counts, &err), &err);
                for (int e = 0; e < 64; e++) {
                    sum += counts[e];
                    if (counts[e] > most) most = counts[e];
                }
                assert_int_equal(sum, 8 * published[i].tokens);
                assert_int_equal(trace_layer(trace, r)->layer, r == 0 ? 0 : r == 1 ? 7 : 15);
                test_near((double)most * 64 / (double)sum, published[i].overload[r],
                          f == 2 ? 5e-3 : 2e-4); /* eid2token is of another run */
            }
            trace_free(trace);
        }
}

/* Whole counts come back from f32 shares: the tokens of a question are the same at every layer. */
static void shares_of_mixtral_become_whole_counts(void **state) {
    (void)state;
    test_need("../shared/data/mixtral-mmlu");
    const char *file = "../shared/data/mixtral-mmlu/frac_vecs/moral_scenarios.npy";
    struct import_job job = {.files = &file, .file_count = 1};
    refused("auto", "give --gate", job);
    job.gate = "mixtral";
    struct trace *trace = imported("auto", "numpy", job);
    assert_int_equal(trace_documents(trace), 895);
    assert_int_equal(trace_layers(trace), 32);
    test_near(trace_number(trace, "SELECT min(tokens) >= 700 AND max(tokens) < 800 FROM document"),
              1, 0);
    trace_free(trace);
}

static void studies_of_gpt_oss_and_qwen_load(void **state) {
    (void)state;
    test_need("../shared/data/gpt-oss-20b");
    const char *file = "../shared/data/gpt-oss-20b/traces/mmlu_test/philosophy/"
                       "True_False_examples.json.gz";
    struct import_job job = {.files = &file, .file_count = 1};
    struct trace *trace = imported("auto", "routed", job);
    assert_int_equal(trace_layers(trace), 24);
    assert_int_equal(trace_layer(trace, 0)->topk, 4);
    assert_string_equal(trace_domain(trace, 0), "philosophy");
    test_near(trace_number(trace, "SELECT min(position) > 50 FROM token"), 1,
              0); /* decode steps only */
    trace_free(trace);
    test_need("../shared/data/qwen3-30b-mgsm");
    file = "../shared/data/qwen3-30b-mgsm/mgsm_de.json.gz";
    trace = imported("auto", "routed", job);
    assert_int_equal(trace_layers(trace), 48);
    assert_int_equal(trace_layer(trace, 0)->topk, 8);
    assert_int_equal(trace_document(trace, 0)->tokens, 23433);
    int64_t counts[128];
    struct err err = {0};
    test_ok(trace_read_counts(trace, 0, -1, counts, &err), &err);
    assert_int_equal(counts[0], 1470);
    assert_int_equal(counts[2], 4141);
    trace_free(trace);
}

/* ---- exports */

enum { T = 5, L = 2, K = 2 };
static int expert_at(int t, int l, int j) { return (3 * t + 2 * l + 5 * j) % 9; }

/* 5 tokens in two documents at layers 1 and 4. */
static void write_source(void) {
    struct str csv = {0};
    str_puts(&csv, "layer,token,document,domain,id,rank,expert\n");
    for (int l = 0; l < L; l++)
        for (int t = 0; t < T; t++)
            for (int j = 0; j < K; j++)
                str_printf(&csv, "%d,%d,%d,%s,%d,%d,%d\n", l ? 4 : 1, t, t >= 3, "d", 40 + t, j,
                           expert_at(t, l, j));
    const char *file = write_text("source.csv", csv.data, csv.len);
    const struct import_job job = {.files = &file, .file_count = 1, .experts = 9};
    trace_free(imported("auto", "csv", job));
    str_free(&csv);
    rename(import_out(), FOLDER "source.db");
}

static const char *exported(const char *to, const char *name) {
    static char path[256];
    struct err err = {0};
    struct trace *trace = trace_open(FOLDER "source.db", &err);
    const struct trace_exporter *exporter = trace_exporter_find(to, &err);
    test_ok(trace && exporter, &err);
    snprintf(path, sizeof path, FOLDER "%s", name);
    test_ok(exporter->run(trace, path, NULL, &err), &err);
    trace_free(trace);
    return path;
}

static void check_choices(struct trace *trace, bool numbered) {
    assert_int_equal(trace_tokens(trace), T);
    for (int l = 0; l < L; l++)
        for (int t = 0; t < T; t++)
            for (int j = 0; j < K; j++) {
                char sql[160];
                int layer = numbered ? (l ? 4 : 1) : l;
                snprintf(sql, sizeof sql,
                         "SELECT expert FROM router_score WHERE layer=%d AND token=%d AND rank=%d",
                         layer, t, j);
                test_near(trace_number(trace, sql), expert_at(t, l, j), 0);
            }
}

static void exports_of_choices_come_back(void **state) {
    (void)state;
    static const struct {
        const char *to, *file, *source;
        bool numbered, documents, ids;
    } forms[] = {{"safetensors", "x.safetensors", "safetensors", true, true, true},
                 {"csv", "x.csv", "csv", true, true, true},
                 {"npz", "x.npz", "numpy", true, true, true},
                 {"npy", "x.npy", "numpy", false, false, false}};
    write_source();
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const char *file = exported(forms[i].to, forms[i].file);
        const struct import_job job = {.files = &file, .file_count = 1, .experts = 9};
        struct trace *trace = imported("auto", forms[i].source, job);
        check_choices(trace, forms[i].numbered);
        assert_int_equal(trace_documents(trace), forms[i].documents ? 2 : 1);
        if (forms[i].ids)
            test_near(trace_number(trace, "SELECT id FROM token WHERE token=3"), 43, 0);
        trace_free(trace);
    }
}

static void exports_of_loads_come_back(void **state) {
    (void)state;
    struct err err = {0};
    write_source();
    const char *file = exported("eplb", "x.json");
    struct trace *trace =
        imported("auto", "eplb", (struct import_job){.files = &file, .file_count = 1});
    assert_int_equal(trace_layer(trace, 1)->layer, 4);
    for (int d = 0; d < 2; d++)
        for (int l = 0; l < L; l++) {
            int64_t counts[9], expected[9] = {0};
            for (int t = d ? 3 : 0; t < (d ? T : 3); t++)
                for (int j = 0; j < K; j++) expected[expert_at(t, l, j)]++;
            test_ok(trace_read_counts(trace, l, d, counts, &err), &err);
            assert_memory_equal(counts, expected, sizeof counts);
        }
    trace_free(trace);
}

/* The manual has a row for every importer and exporter, the front page names them, and neither has
 * others. */
static void the_manual_lists_the_formats_that_there_are(void **state) {
    (void)state;
    struct err err = {0};
    size_t len;
    char row[64], *manual = file_read("traces/TRACES.md", 1 << 20, &len, &err);
    char *front = file_read("README.md", 1 << 20, &len, &err);
    int rows = 0, formats = 0;
    test_ok(manual && front, &err);
    const char *from = strstr(manual, "| importer | reads"), *to = strstr(manual, "| exporter |");
    const char *list = strstr(front, "`import` reads");
    assert_true(from && to && from < to && list && strstr(list, "`export`"));
    for (const struct trace_importer *i = trace_importers; i->name; i++, formats++) {
        snprintf(row, sizeof row, "\n| `%s` | ", i->name);
        const char *at = strstr(from, row);
        if (!at || at > to) fail_msg("TRACES.md has no row for %s", i->name);
        snprintf(row, sizeof row, "`%s`", i->name);
        at = strstr(list, row);
        if (!at || at > strstr(list, "`export`")) fail_msg("README.md does not name %s", i->name);
    }
    for (const struct trace_exporter *e = trace_exporters; e->name; e++, formats++) {
        snprintf(row, sizeof row, "\n| `%s` | ", e->name);
        if (!strstr(to, row)) fail_msg("TRACES.md has no row for %s", e->name);
        snprintf(row, sizeof row, "`%s`", e->name);
        if (!strstr(strstr(list, "`export`"), row)) fail_msg("README.md does not name %s", e->name);
    }
    const char *stop = strstr(to, "\n\n");
    for (const char *at = from; (at = strstr(at, "\n| `")) && at < stop; at++) rows++;
    assert_int_equal(rows, formats);
    free(manual);
    free(front);
}

int test_formats(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(text_files_of_every_format_are_read_or_refused, begin),
        cmocka_unit_test_setup(text_files_cut_anywhere_never_crash, begin),
        cmocka_unit_test_setup(identity_of_tokens_is_kept, begin),
        cmocka_unit_test_setup(ranks_of_tensorrt_are_summed_and_none_may_be_missing, begin),
        cmocka_unit_test_setup(importance_matrices_give_counts, begin),
        cmocka_unit_test_setup(counters_of_olmoe_have_the_published_loads, begin),
        cmocka_unit_test_setup(shares_of_mixtral_become_whole_counts, begin),
        cmocka_unit_test_setup(studies_of_gpt_oss_and_qwen_load, begin),
        cmocka_unit_test_setup(exports_of_choices_come_back, begin),
        cmocka_unit_test_setup(exports_of_loads_come_back, begin),
        cmocka_unit_test(the_manual_lists_the_formats_that_there_are)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
