/* test_import.c - other people's files: read right, refused right, and the published figures of
 * real ones */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "base/table.h"
#include "tests/support_import.h"
#include "traces/query.h"
#include "traces/trace.h"

static const char *in_folder(const char *name) {
    static char paths[64][512];
    static int turn;
    char *path = paths[turn++ % 64];
    snprintf(path, sizeof paths[0], "build/test-out/import/%s", name);
    return path;
}

static int begin(void **state) {
    (void)state;
    import_into("import");
    return 0;
}

/* ---- making files */

/* A .npy of this type and shape. */
static void npy(struct str *out, const char *type, const char *shape, const void *data,
                size_t len) {
    struct str header = {0};
    str_printf(&header, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", type, shape);
    while ((10 + header.len + 1) % 64) str_puts(&header, " ");
    str_puts(&header, "\n");
    unsigned char front[10] = {0x93,
                               'N',
                               'U',
                               'M',
                               'P',
                               'Y',
                               1,
                               0,
                               (unsigned char)header.len,
                               (unsigned char)(header.len >> 8)};
    str_append(out, front, 10);
    str_append(out, header.data, header.len);
    str_append(out, data, len);
    str_free(&header);
}

static const char *write_npy(const char *name, const char *type, const char *shape,
                             const void *data, size_t len) {
    struct str bytes = {0};
    struct err err = {0};
    npy(&bytes, type, shape, data, len);
    test_ok(file_write(in_folder(name), bytes.data, bytes.len, &err), &err);
    str_free(&bytes);
    return in_folder(name);
}

static void little(struct str *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        str_append(out, &(unsigned char){(unsigned char)(value >> 8 * i)}, 1);
}

static void base64(struct str *out, const unsigned char *bytes, size_t n) {
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t x = (uint32_t)bytes[i] << 16;
        if (i + 1 < n) x |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < n) x |= bytes[i + 2];
        for (int j = 0; j < 4; j++)
            str_append(out, i + (size_t)j <= n ? &alphabet[x >> (18 - 6 * j) & 63] : "=", 1);
    }
}

/* A zip of one member, deflated or stored. */
static const char *write_zip(const char *name, const char *member, const struct str *content,
                             bool deflated) {
    struct str zip = {0}, packed = {0};
    struct err err = {0};
    uint32_t crc = (uint32_t)crc32(0, (const unsigned char *)content->data, (uInt)content->len);
    if (deflated) {
        uLong room = compressBound((uLong)content->len) + 64;
        unsigned char *bytes = malloc(room);
        z_stream stream = {.next_in = (unsigned char *)content->data,
                           .avail_in = (uInt)content->len,
                           .next_out = bytes,
                           .avail_out = (uInt)room};
        deflateInit2(&stream, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
        assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
        str_append(&packed, bytes, stream.total_out);
        deflateEnd(&stream);
        free(bytes);
    } else
        str_append(&packed, content->data, content->len);
    size_t directory = 0;
    for (int central = 0; central < 2; central++) {
        if (central) directory = zip.len;
        str_append(&zip, central ? "PK\1\2" : "PK\3\4", 4);
        if (central) little(&zip, 20, 2);
        little(&zip, 20, 2);
        little(&zip, 0, 2);
        little(&zip, deflated ? 8 : 0, 2);
        little(&zip, 0, 4);
        little(&zip, crc, 4);
        little(&zip, packed.len, 4);
        little(&zip, content->len, 4);
        little(&zip, strlen(member), 2);
        little(&zip, 0, 2);
        for (int i = 0; central && i < 7; i++)
            little(&zip, 0, 2); /* comment, disk, attributes, 0 */
        str_puts(&zip, member);
        if (!central) str_append(&zip, packed.data, packed.len);
    }
    size_t end = zip.len;
    str_append(&zip, "PK\5\6", 4);
    little(&zip, 0, 4);
    little(&zip, 1, 2);
    little(&zip, 1, 2);
    little(&zip, end - directory, 4);
    little(&zip, directory, 4);
    little(&zip, 0, 2);
    test_ok(file_write(in_folder(name), zip.data, zip.len, &err), &err);
    str_free(&zip);
    str_free(&packed);
    return in_folder(name);
}

/* ---- NumPy */

/* 3 tokens, 3 layers (the first dense), k = 2, and a padding token. */
static const uint8_t routed[] = {0, 0, 5, 1, 2, 3, 0,   0,   4,   1,   0,   3,
                                 0, 0, 2, 7, 3, 1, 255, 255, 255, 255, 255, 255};

static void check_routed(struct trace *trace) {
    assert_int_equal(trace_tokens(trace), 3);
    assert_int_equal(trace_layers(trace), 2);
    assert_int_equal(trace_layer(trace, 0)->layer, 1);
    assert_int_equal(trace_layer(trace, 0)->experts, 8);
    assert_false(trace_has_scores(trace));
    test_near(
        trace_number(trace, "SELECT expert FROM router_score WHERE layer=1 AND token=2 AND rank=1"),
        7, 0);
    test_near(
        trace_number(trace, "SELECT expert FROM router_score WHERE layer=2 AND token=1 AND rank=0"),
        0, 0);
}

static void numpy_ids_drop_dense_layers_and_padding(void **state) {
    (void)state;
    struct trace *trace = imported(
        "auto", "numpy", import_of(write_npy("a.npy", "|u1", "(4, 3, 2)", routed, sizeof routed)));
    check_routed(trace);
    assert_non_null(strstr(trace_capture(trace)->lacks, "router scores"));
    trace_free(trace);
    int32_t wide[sizeof routed];
    for (size_t i = 0; i < sizeof routed; i++) wide[i] = routed[i] == 255 ? -1 : routed[i];
    trace = imported("auto", "numpy",
                     import_of(write_npy("b.npy", "<i4", "(4, 3, 2)", wide, sizeof wide)));
    check_routed(trace);
    trace_free(trace);
}

static void npz_archives_stored_or_deflated_read_the_same(void **state) {
    (void)state;
    struct str bytes = {0};
    npy(&bytes, "|u1", "(4, 3, 2)", routed, sizeof routed);
    for (int deflated = 0; deflated < 2; deflated++) {
        struct trace *trace = imported(
            "auto", "numpy", import_of(write_zip("a.npz", "routed_experts.npy", &bytes, deflated)));
        check_routed(trace);
        trace_free(trace);
    }
    struct err err = {0};
    struct file_map map;
    test_ok(file_map(in_folder("a.npz"), &map, &err), &err);
    for (size_t n = 0; n < map.size_bytes; n += 7) { /* truncated anywhere: refused, no crash */
        test_ok(file_write(in_folder("cut.npz"), map.data, n, &err), &err);
        assert_false(import_as("numpy", import_of(in_folder("cut.npz")), &err));
    }
    file_unmap(&map);
    str_free(&bytes);
}

static void numpy_files_without_a_record_are_refused(void **state) {
    (void)state;
    uint8_t zeros[12] = {0}, twice[4] = {3, 3, 1, 2}, hole[6] = {1, 2, 255, 255, 3, 4};
    refused("auto", "only zeros", import_of(write_npy("z.npy", "|u1", "(3, 2, 2)", zeros, 12)));
    refused("auto", "expert 3 twice", import_of(write_npy("t.npy", "|u1", "(2, 1, 2)", twice, 4)));
    refused("auto", "token 1: found expert -1",
            import_of(write_npy("h.npy", "|u1", "(3, 1, 2)", hole, 6)));
    refused("auto", "expected 12", import_of(write_npy("s.npy", "|u1", "(3, 2, 2)", zeros, 11)));
    refused("auto", "4 dimensions",
            import_of(write_npy("n.npy", "|u1", "(1, 1, 3, 4)", zeros, 12)));
    refused("auto", "1 dimensions", import_of(write_npy("f.npy", "<f4", "(3,)", zeros, 12)));
}

static void numpy_logits_need_a_gate_and_keep_their_values(void **state) {
    (void)state;
    float logits[2][12];
    const char *files[2];
    struct err err = {0};
    for (int l = 0; l < 2; l++) {
        char name[64];
        for (int i = 0; i < 12; i++)
            logits[l][i] = (float)(i * 7 % 5) + (float)l / 3 + (float)i / 64;
        snprintf(name, sizeof name, "router_logits_L%d.npy", l ? 3 : 11);
        files[l] = write_npy(name, "<f4", "(3, 4)", logits[l], sizeof logits[l]);
    }
    struct import_job job = {.files = files, .file_count = 2};
    refused("auto", "give --gate", job);
    job.gate = "softmax,topk=2";
    struct trace *trace = imported("auto", "numpy", job);
    assert_int_equal(trace_layer(trace, 0)->layer, 3);
    struct trace_cursor *cursor = trace_cursor_open(trace, 1, &err);
    struct trace_chunk chunk;
    test_ok(cursor, &err);
    test_ok(trace_cursor_next(cursor, &chunk, &err), &err);
    assert_memory_equal(chunk.logits, logits[0], sizeof logits[0]);
    trace_cursor_free(cursor);
    trace_free(trace);
    job.gate = "softmax,topk=5";
    refused("auto", "--gate", job);
    logits[0][5] = NAN;
    write_npy("router_logits_L11.npy", "<f4", "(3, 4)", logits[0], sizeof logits[0]);
    job.gate = "softmax,topk=2";
    struct err why;
    assert_false(import_as("auto", job, &why));
    assert_non_null(strstr(why.text, "layer 11, token 1, expert 1"));
}

/* ---- vLLM */

static void vllm_responses_old_and_new_read_the_same(void **state) {
    (void)state;
    struct str bytes = {0}, json = {0};
    struct err err = {0};
    npy(&bytes, "|u1", "(3, 3, 2)", routed, 18);
    str_puts(&json, "{\"prompt_token_ids\":[11,12],\"choices\":[{\"token_ids\":[13,14],"
                    "\"routed_experts\":\"");
    base64(&json, (const unsigned char *)bytes.data, bytes.len);
    str_puts(&json, "\"}]}");
    test_ok(file_write(in_folder("new.json"), json.data, json.len, &err), &err);
    struct trace *trace = imported("auto", "vllm", import_of(in_folder("new.json")));
    check_routed(trace);
    test_near(trace_number(trace, "SELECT id FROM token WHERE token = 2"), 13, 0);
    trace_free(trace);

    str_clear(&json);
    str_puts(&json,
             "{\"choices\":[{\"prompt_routed_experts\":[[[0,0],[5,1],[2,3]],[[0,0],[4,1],[0,3]]],"
             "\"routed_experts\":[[[0,0],[2,7],[3,1]]]}]}\n");
    str_append(&json, json.data, json.len); /* two lines: two documents */
    test_ok(file_write(in_folder("old.jsonl"), json.data, json.len, &err), &err);
    trace = imported("auto", "vllm", import_of(in_folder("old.jsonl")));
    assert_int_equal(trace_documents(trace), 2);
    assert_int_equal(trace_tokens(trace), 6);
    test_near(trace_number(trace, "SELECT count(*) FROM router_score WHERE expert = 7"), 2, 0);
    trace_free(trace);
    static const char *const bad[][2] = {
        {"{\"choices\":[{\"routed_experts\":\"!!!!\"}]}", "base64"},
        {"{\"choices\":[{\"routed_experts\":\"AAAA\"}]}", "NumPy"},
        {"{\"choices\":[{\"routed_experts\":[[[1,2],[3]],[[1],[2]]]}]}", "experts a token"},
        {"{\"choices\":[{\"routed_experts\":[[[1,2]],[[1,2],[3,4]]]}]}", "tokens, expected"},
        {"{\"choices\":[{\"text\":\"routed_experts\"}]}", "no routed_experts"},
        {"{\"choices\":[{\"routed_experts\":[[]]}]}", "without layers"},
        {"{\"choices\":[]}", "no choices"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        test_ok(file_write(in_folder("bad.json"), bad[i][0], strlen(bad[i][0]), &err), &err);
        refused("vllm", bad[i][1], import_of(in_folder("bad.json")));
    }
    str_free(&bytes);
    str_free(&json);
}

/* More choices than stay in memory while they are gathered. */
static void many_choices_leave_memory_and_come_back(void **state) {
    (void)state;
    enum { TOKENS = 600000, LAYERS = 2, CHOSEN = 8, SOME = 5 };
    static const int64_t some[SOME] = {0, 1023, 1024, 500001, TOKENS - 1};
    struct str json = {0};
    struct err err = {0};
    unsigned char *ids = malloc((size_t)TOKENS * LAYERS * CHOSEN);
    for (int i = 0; i < TOKENS * LAYERS * CHOSEN; i++)
        ids[i] = (unsigned char)((i / 16 * 7 + i / CHOSEN % LAYERS * 5 + i % CHOSEN * 13) % 251);
    str_printf(&json, "{\"choices\":[{\"routed_experts\":\"nrlre1:uint8:%d,%d,%d:", TOKENS, LAYERS,
               CHOSEN);
    base64(&json, ids, (size_t)TOKENS * LAYERS * CHOSEN);
    str_puts(&json, "\"}]}\n");
    test_ok(file_write(in_folder("many.jsonl"), json.data, json.len, &err), &err);
    struct trace *trace = imported("auto", "vllm", import_of(in_folder("many.jsonl")));
    assert_int_equal(trace_tokens(trace), TOKENS);
    for (int r = 0; r < LAYERS; r++) {
        int32_t expert[SOME * CHOSEN];
        struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
        test_ok(cursor, &err);
        test_ok(trace_cursor_rows(
                    cursor, &(struct trace_rows){.n = SOME, .token = some, .expert = expert}, &err),
                &err);
        for (int i = 0; i < SOME * CHOSEN; i++)
            assert_int_equal(expert[i], ids[(some[i / CHOSEN] * LAYERS + r) * CHOSEN + i % CHOSEN]);
        trace_cursor_free(cursor);
    }
    trace_free(trace);
    free(ids);
    str_free(&json);
}

/* ---- Megatron */

/* Two steps of 2 and 1 tokens at layers 1 and 2, E = 4, k = 2; with logits the side file holds
 * bf16. */
static void write_megatron(bool logits, int wrong) {
    static const float values[3][4] = {{1, 2, 3, 4}, {-4, 0.5f, -2, 1}, {8, 7, 0, -1}};
    static const int top[3][2] = {{2, 3}, {1, 3}, {0, 1}};
    struct str lines = {0}, side = {0};
    struct err err = {0};
    for (int step = 0; step < 2; step++)
        for (int layer = 1; layer <= 2; layer++) {
            int n = step ? 1 : 2, first = step ? 2 : 0;
            str_printf(&lines,
                       "{\"step\":%d,\"stage\":\"pre_dispatch\",\"block\":\"decoder\","
                       "\"layer\":%d,\"rank\":0,\"num_tokens\":%d,\"topk\":2,\"top_indices\":[",
                       step, layer, n);
            for (int t = first; t < first + n; t++)
                str_printf(&lines, "%s[%d,%d]", t > first ? "," : "", wrong ? 0 : top[t][0],
                           wrong ? 2 : top[t][1]);
            str_puts(&lines, "]");
            if (logits)
                str_printf(&lines,
                           ",\"logit_offset\":%zu,\"logit_bytes\":%d,\"logit_shape\":[%d,4]",
                           side.len, n * 8, n);
            str_puts(&lines, "}\n");
            for (int t = first; t < first + n; t++)
                for (int e = 0; e < 4; e++) {
                    float x = values[t][e] * (float)layer;
                    str_append(&side, (const char *)&x + 2, 2);
                }
        }
    test_ok(file_write(in_folder("router_trace_rank3.jsonl"), lines.data, lines.len, &err), &err);
    if (logits) test_ok(file_write(in_folder("logits_rank3.bin"), side.data, side.len, &err), &err);
    str_free(&lines);
    str_free(&side);
}

static void megatron_logits_can_be_replayed(void **state) {
    (void)state;
    struct import_job job = import_of(in_folder("router_trace_rank3.jsonl"));
    write_megatron(false, 0);
    struct trace *trace = imported("auto", "megatron", job);
    assert_int_equal(trace_tokens(trace), 3);
    assert_false(trace_has_scores(trace));
    trace_free(trace);
    write_megatron(true, 0);
    refused("auto", "--gate", job);
    job.gate = "softmax,topk=2";
    trace = imported("auto", "megatron", job);
    assert_true(trace_has_scores(trace));
    test_near(trace_number(trace,
                           "SELECT logit FROM router_score WHERE layer=2 AND token=1 AND expert=0"),
              -8, 0);
    test_near(trace_number(trace,
                           "SELECT logit FROM router_score WHERE layer=1 AND token=2 AND expert=3"),
              -1, 0);
    trace_free(trace);
    write_megatron(true, 1);
    refused("auto", "chose other experts", job);
    write_megatron(true, 0);
    struct err err = {0};
    test_ok(file_write(in_folder("logits_rank3.bin"), "1234", 4, &err), &err);
    refused("auto", "side file has 4 bytes", job);
}

/* ---- JSON of studies */

static void published_counts_of_real_records_are_met(void **state) {
    (void)state;
    test_need("../shared/data/switch-base-8");
    struct trace *trace =
        imported("auto", "routed", import_of("../shared/data/switch-base-8/router-trace.v2.json"));
    assert_int_equal(trace_tokens(trace), 215);
    assert_int_equal(trace_layers(trace), 6);
    assert_int_equal(trace_layer(trace, 0)->topk, 1);
    test_near(trace_number(trace, "SELECT expert FROM router_score WHERE layer = 11 AND token = 1"),
              1, 0);
    trace_free(trace);
    struct import_job job =
        import_of("../shared/data/olmoe-alpaca/null1024_olmoe_bf16_offload/routed_sets.jsonl.gz");
    job.gate = "olmoe"; /* every layer of every example must sum to 8 x tokens: else refused */
    trace = imported("auto", "routed", job);
    assert_int_equal(trace_documents(trace), 1024);
    assert_int_equal(trace_layers(trace), 16);
    assert_int_equal(trace_document(trace, 0)->tokens, 42);
    assert_int_equal(trace_document(trace, 1)->tokens, 112);
    trace_free(trace);
}

/* ---- ESFT */

static void esft_lines_are_sequences(void **state) {
    (void)state;
    struct err err = {0};
    static const char text[] =
        "8\t26\t56\t57\t60\t11\t\t0.2\t0.1\t0.05\t0.04\t0.03\t0.02\n"
        "1\t2\t3\t4\t5\t6\t2\t3\t4\t5\t6\t7\t\t.1\t.1\t.1\t.1\t.1\t.1\t.2\t.2\t.2\t"
        ".2\t.2\t.2\n";
    test_ok(file_write(in_folder("expert_weights_4.txt"), text, sizeof text - 1, &err), &err);
    struct trace *trace = imported("auto", "esft", import_of(in_folder("expert_weights_4.txt")));
    assert_int_equal(trace_tokens(trace), 3);
    assert_int_equal(trace_documents(trace), 2);
    assert_string_equal(trace_domain(trace, 0), "import");
    assert_int_equal(trace_layer(trace, 0)->layer, 4);
    test_near(
        trace_number(trace, "SELECT weight FROM router_score WHERE token = 0 AND expert = 11"),
        0.02, 1e-8);
    trace_free(trace);
    for (size_t n = 5; n < sizeof text - 1; n += 9) { /* cut in the middle of a sequence */
        if (text[n - 1] == '\n') continue;
        test_ok(file_write(in_folder("expert_weights_5.txt"), text, n, &err), &err);
        if (import_as("esft", import_of(in_folder("expert_weights_5.txt")), &err)) {
            trace = trace_open(import_out(), &err);
            if (trace_tokens(trace) != 1 && n < sizeof text - 3) fail_msg("cut at %zu", n);
            trace_free(trace);
        }
    }
}

/* expert_configs: experts of each layer until their token scores reach 0.2. */
static void check_expert_config(struct trace *trace, const char *path) {
    struct err err = {0};
    struct json *published = json_read(path, 1 << 20, &err);
    test_ok(published, &err);
    const struct query_value share = QUERY_R(0.2);
    struct table *table = trace_query(trace, "experts_for_share", &share, 1, &err);
    test_ok(table, &err);
    const struct json *layers = json_member(published, "experts"), *next;
    int64_t row = 0, expected = 0;
    for (int number = 1; number <= 26; number++) {
        char key[16];
        snprintf(key, sizeof key, "%d", number);
        for (next = json_first(json_member(layers, key)); next; next = json_next(next), row++) {
            assert_true(row < table_rows(table));
            assert_int_equal((int)table_number(table, row, 0), number);
            assert_int_equal((int)table_number(table, row, 1), (int)json_number(next));
        }
        expected += json_count(json_member(layers, key));
    }
    assert_true(expected > 0);
    assert_int_equal(table_rows(table), expected);
    table_free(table);
    json_free(published);
}

/* Published: token_scores = count / 6T, gate_scores = sum of weights / T, to four decimals. */
static void esft_reproduces_the_published_summary(void **state) {
    (void)state;
    const char *folder = "../shared/data/esft-deepseek-v2-lite";
    test_need(folder);
    static const char *const domains[] = {"law", "intent"};
    for (int d = 0; d < 2; d++) {
        struct err err = {0};
        char paths[26][256], summary[256];
        const char *files[26];
        for (int l = 0; l < 26; l++) {
            snprintf(paths[l], sizeof paths[l], "%s/%s/expert_weights_%d.txt.gz", folder,
                     domains[d], l + 1);
            files[l] = paths[l];
        }
        struct trace *trace =
            imported("auto", "esft", (struct import_job){.files = files, .file_count = 26});
        snprintf(summary, sizeof summary, "%s/%s/summary.json", folder, domains[d]);
        struct json *published = json_read(summary, 1 << 24, &err);
        test_ok(published, &err);
        struct table *table = trace_sql(
            trace,
            "SELECT layer, expert, count(*) / 6.0 / t, sum(weight) / t FROM router_score, "
            "(SELECT sum(tokens) AS t FROM document) GROUP BY layer, expert",
            &err);
        test_ok(table, &err);
        for (int64_t row = 0; row < table_rows(table); row++) {
            static const char *const names[] = {"token_scores", "gate_scores"};
            char layer[16], expert[16];
            snprintf(layer, sizeof layer, "%d", (int)table_number(table, row, 0));
            snprintf(expert, sizeof expert, "%d", (int)table_number(table, row, 1));
            for (int i = 0; i < 2; i++) {
                double value = json_number(
                    json_member(json_member(json_member(published, names[i]), layer), expert));
                if (!(fabs(value - table_number(table, row, 2 + i)) <= 0.50001e-4))
                    fail_msg("%s layer %s expert %s", names[i], layer, expert);
            }
        }
        table_free(table);
        json_free(published);
        snprintf(summary, sizeof summary, "%s/expert_configs/%s.json", folder, domains[d]);
        check_expert_config(trace, summary);
        trace_free(trace);
    }
}

/* ---- safetensors */

enum { ST_TOKENS = 2, ST_EXPERTS = 4, ST_K = 2 };
static const float st_logits[ST_TOKENS * ST_EXPERTS] = {3, 2, 1, 0, 0, 1, 2, 3};

struct st_file {
    bool logits;
    int32_t ids[ST_TOKENS * ST_K], tokens[ST_TOKENS];
    const float *weights;
    int shift;         /* of the data, in bytes */
    bool not_a_number; /* the logit of token 1, expert 2 */
};

/* One layer, number 5. A header with spaces behind its JSON moves the data. */
static const char *write_st(const struct st_file *from) {
    static const char name[] = "made.safetensors";
    struct str header = {0}, data = {0}, file = {0};
    struct err err = {0};
    float logits[ST_TOKENS * ST_EXPERTS];
    memcpy(logits, st_logits, sizeof logits);
    if (from->not_a_number) logits[6] = NAN;
    str_puts(&header, "{\"__metadata__\":{\"gate.5\":\"softmax,topk=2,norm=sum\"}");
#define PART(name, dtype, shape, values, bytes)                                                    \
    (str_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",     \
                name, dtype, shape, data.len, data.len + (bytes)),                                 \
     str_append(&data, values, bytes))
    PART("token_ids", "I32", "[2]", from->tokens, sizeof from->tokens);
    if (from->logits) PART("layers.5.router_logits", "F32", "[2,4]", logits, sizeof logits);
    PART("layers.5.topk_ids", "I32", "[2,2]", from->ids, sizeof from->ids);
    if (from->weights) PART("layers.5.topk_weights", "F32", "[2,2]", from->weights, (size_t)16);
#undef PART
    str_puts(&header, "}");
    while (header.len % 8 != (size_t)from->shift) str_puts(&header, " ");
    little(&file, header.len, 8);
    str_append(&file, header.data, header.len);
    str_append(&file, data.data, data.len);
    test_ok(file_write(in_folder(name), file.data, file.len, &err), &err);
    str_free(&header);
    str_free(&data);
    str_free(&file);
    return in_folder(name);
}

static void recorded_choices_must_follow_from_the_logits(void **state) {
    (void)state;
    static const float good[] = {0.7310586f, 0.2689414f, 0.2689414f, 0.7310586f};
    static const float off[] = {0.7310586f, 0.2689414f, 0.2689414f, 0.7326f};
    static const float nan[] = {0.7310586f, 0.2689414f, NAN, 0.7310586f};
    const struct st_file whole = {.logits = true, .ids = {0, 1, 2, 3}, .weights = good};
    trace_free(imported("auto", "safetensors", import_of(write_st(&whole))));
    static const struct {
        int32_t id; /* in place of token 1's expert 3 */
        const float *weights;
        const char *expected;
    } bad[] = {
        {1, NULL, "layer 5: topk_ids: token 1: found experts 2,1, expected 3,2"},
        {2, good, "layer 5: topk_ids: token 1: found experts 2,2, expected 3,2"},
        {4, NULL, "token 1: found experts 2,4, expected 3,2"},
        {-1, NULL, "token 1: found experts 2,-1, expected 3,2"},
        {3, off, "layer 5: topk_weights: token 1, expert 3: found 0.7326, expected 0.731059"},
        {3, nan, "topk_weights: token 1, expert 2: found nan, expected 0.268941"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct st_file file = whole;
        file.ids[3] = bad[i].id;
        file.weights = bad[i].weights;
        refused("auto", bad[i].expected, import_of(write_st(&file)));
    }
}

static void recorded_ids_alone_must_be_possible(void **state) {
    (void)state;
    const struct st_file whole = {.ids = {0, 1, 2, 3}};
    struct import_job job = import_of(write_st(&whole));
    job.experts = 6;
    struct trace *trace = imported("auto", "safetensors", job);
    assert_int_equal(trace_layer(trace, 0)->experts, 6);
    trace_free(trace);
    job.experts = 3;
    refused("auto", "layer 5: topk_ids: token 1: found expert 3, expected 0 to 2", job);
    struct st_file twice = whole;
    twice.ids[3] = 2;
    refused("auto", "layer 5: topk_ids: token 1: found expert 2 twice",
            import_of(write_st(&twice)));
}

static void data_at_odd_addresses_read_the_same(void **state) {
    (void)state;
    static const float weights[] = {0.7310586f, 0.2689414f, 0.2689414f, 0.7310586f};
    for (int shift = 0; shift < 8; shift++) {
        const struct st_file file = {true, {0, 1, 2, 3}, {7, 8}, weights, shift, false};
        struct trace *trace = imported("auto", "safetensors", import_of(write_st(&file)));
        test_near(trace_number(trace, "SELECT id FROM token WHERE token = 1"), 8, 0);
        test_near(
            trace_number(trace, "SELECT logit FROM router_score WHERE token = 1 AND expert = 2"), 2,
            0);
        trace_free(trace);
    }
}

static void negative_token_ids_are_refused_or_unknown(void **state) {
    (void)state;
    const struct st_file file = {.ids = {0, 1, 2, 3}, .tokens = {7, -2}};
    refused("auto", "token_ids: token 1: found -2, expected 0 to 2147483647",
            import_of(write_st(&file)));
    const struct st_file unknown = {.ids = {0, 1, 2, 3}, .tokens = {7, -1}};
    struct trace *trace = imported("auto", "safetensors", import_of(write_st(&unknown)));
    test_near(trace_number(trace, "SELECT count(*) FROM token WHERE id IS NULL"), 1, 0);
    trace_free(trace);
}

static void errors_name_the_input_not_the_output(void **state) {
    (void)state;
    const struct st_file file = {.logits = true, .ids = {0, 1, 2, 3}, .not_a_number = true};
    struct import_job job = import_of(write_st(&file));
    struct err err;
    refused("auto", "layer 5, token 1, expert 2: found logit nan", job);
    assert_false(import_as("auto", job, &err));
    assert_ptr_equal(strstr(err.text, job.files[0]), err.text);
    assert_null(strstr(err.text, ".partial"));
}

int test_import(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(recorded_choices_must_follow_from_the_logits, begin),
        cmocka_unit_test_setup(recorded_ids_alone_must_be_possible, begin),
        cmocka_unit_test_setup(negative_token_ids_are_refused_or_unknown, begin),
        cmocka_unit_test_setup(errors_name_the_input_not_the_output, begin),
        cmocka_unit_test_setup(data_at_odd_addresses_read_the_same, begin),
        cmocka_unit_test_setup(numpy_ids_drop_dense_layers_and_padding, begin),
        cmocka_unit_test_setup(npz_archives_stored_or_deflated_read_the_same, begin),
        cmocka_unit_test_setup(numpy_files_without_a_record_are_refused, begin),
        cmocka_unit_test_setup(numpy_logits_need_a_gate_and_keep_their_values, begin),
        cmocka_unit_test_setup(vllm_responses_old_and_new_read_the_same, begin),
        cmocka_unit_test_setup(many_choices_leave_memory_and_come_back, begin),
        cmocka_unit_test_setup(megatron_logits_can_be_replayed, begin),
        cmocka_unit_test_setup(published_counts_of_real_records_are_met, begin),
        cmocka_unit_test_setup(esft_lines_are_sequences, begin),
        cmocka_unit_test_setup(esft_reproduces_the_published_summary, begin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
