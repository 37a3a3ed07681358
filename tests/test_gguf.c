/* test_gguf.c - the GGUF container: what is written reads back, damage is refused; its vocabularies
 */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/gguf.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "engine/quant.h"
#include "engine/tokenizer.h"
#include "tests/support_gguf.h"

#define SHARED "../shared/"

/* ---- writing files */

/* A matrix. */
static void put_matrix(struct str *out, const char *name, int64_t ne0, int64_t ne1, uint32_t type,
                       uint64_t offset) {
    put_tensor(out, name, 2, (int64_t[]){ne0, ne1}, type, offset);
}

static void put_data(struct str *out, size_t align, size_t bytes) {
    put_padding(out, align);
    for (size_t i = 0; i < bytes; i++) put(out, i, 1);
}

static struct gguf *read(const struct str *bytes) {
    struct err err = {0};
    struct gguf *file = gguf_read(bytes->data, bytes->len, "x.gguf", &err);
    test_ok(file, &err);
    return file;
}

static void make_sample(struct str *out) {
    put_header(out, 3, 2, 6);
    put_key(out, "general.architecture", GGUF_TEXT);
    put_text(out, "olmoe");
    put_key(out, "a.int", GGUF_I32);
    put(out, (uint64_t)-7, 4);
    put_key(out, "a.real", GGUF_F32);
    put(out, 0x3FC00000, 4); /* 1.5 */
    put_key(out, "a.flag", GGUF_BOOL);
    put(out, 1, 1);
    put_key(out, "a.list", GGUF_ARRAY);
    put(out, GGUF_U16, 4);
    put(out, 3, 8);
    put(out, 5, 2), put(out, 6, 2), put(out, 65535, 2);
    put_key(out, "a.texts", GGUF_ARRAY);
    put(out, GGUF_TEXT, 4);
    put(out, 2, 8);
    put_text(out, "one");
    put_text(out, "");
    put_matrix(out, "z", 32, 2, GGUF_TYPE_Q8_0, 32);
    put_matrix(out, "b", 3, 2, GGUF_TYPE_F32, 0);
    put_data(out, 32, 32 + 68);
}

static void what_is_written_reads_back(void **state) {
    (void)state;
    struct err err = {0};
    struct str bytes = {0};
    make_sample(&bytes);
    struct gguf *file = read(&bytes);
    const char *text;
    int64_t number;
    double real;
    bool flag;
    test_ok(gguf_get_text(file, "general.architecture", NULL, &text, &err), &err);
    assert_string_equal(text, "olmoe");
    test_ok(gguf_get_int(file, "a.int", -10, 10, 0, &number, &err), &err);
    assert_int_equal(number, -7);
    test_ok(gguf_get_real(file, "a.real", 0, &real, &err), &err);
    test_near(real, 1.5, 0);
    test_ok(gguf_get_bool(file, "a.flag", false, &flag, &err), &err);
    assert_true(flag);
    test_ok(gguf_get_int(file, "not.there", 0, 9, 4, &number, &err), &err);
    assert_int_equal(number, 4);
    const struct gguf_value *list = gguf_find(file, "a.list");
    assert_true(list && list->array && list->count == 3 && gguf_int(list, 2) == 65535);
    const struct gguf_value *texts = gguf_find(file, "a.texts");
    assert_true(texts->count == 2 && texts->texts[0].len == 3 && texts->texts[1].len == 0);
    assert_false(gguf_get_int(file, "a.int", 0, 10, 0, &number, &err));
    assert_non_null(strstr(err.text, "x.gguf: a.int: found -7, expected 0..10"));
    assert_false(gguf_get_text(file, "a.list", NULL, &text, &err));
    assert_int_equal(gguf_tensor_count(file), 2);
    const struct gguf_tensor *b = gguf_tensor(file, "b"), *z = gguf_tensor(file, "z");
    assert_ptr_equal(gguf_tensor_at(file, 0), b);
    assert_true(b->size[0] == 3 && b->size[1] == 2 && b->size[2] == 1 && b->count == 6);
    assert_true(b->size_bytes == 24 && z->size_bytes == 68);
    assert_int_equal(((const unsigned char *)b->data)[1], 1);
    assert_int_equal(((const unsigned char *)z->data)[0], 32);
    assert_string_equal(gguf_type_name(z->type), "Q8_0");
    assert_null(gguf_tensor(file, "c"));
    gguf_close(file);
    str_free(&bytes);
}

static void every_truncation_is_refused(void **state) {
    (void)state;
    struct str bytes = {0};
    make_sample(&bytes);
    for (size_t len = 0; len < bytes.len; len++) {
        struct err err = {0};
        char *copy = malloc(len + 1); /* exact, so that ASan sees a read behind the end */
        memcpy(copy, bytes.data, len);
        char *exact = realloc(copy, len ? len : 1);
        assert_null(gguf_read(exact, len, "x.gguf", &err));
        assert_non_null(strstr(err.text, "x.gguf: "));
        free(exact);
    }
    str_free(&bytes);
}

static void damaged(struct str *bytes, const char *said) {
    struct err err = {0};
    struct gguf *file = gguf_read(bytes->data, bytes->len, "x.gguf", &err);
    if (file) fail_msg("accepted, expected \"%s\"", said);
    if (!strstr(err.text, said)) fail_msg("said \"%s\", expected \"%s\"", err.text, said);
    assert_ptr_equal(strstr(err.text, "x.gguf: "), err.text);
}

static void damaged_keys_are_refused(void **state) {
    (void)state;
    struct str b = {0};
    str_puts(&b, "GGML and something behind it");
    damaged(&b, "no GGUF header");
    put_header(&b, 1, 0, 0);
    damaged(&b, "version: found 1, expected 2 or 3");
    put_header(&b, 0x03000000, 0, 0); /* big endian */
    damaged(&b, "expected 2 or 3");
    put_header(&b, 3, 0, UINT64_MAX);
    damaged(&b, "keys: found 18446744073709551615");
    put_header(&b, 3, UINT64_MAX / 2, 0);
    damaged(&b, "tensors: found");
    put_header(&b, 3, 0, 1);
    put_key(&b, "k", 13), put(&b, 0, 8);
    damaged(&b, "k: type: found 13");
    put_header(&b, 3, 0, 1);
    put_key(&b, "k", GGUF_ARRAY), put(&b, GGUF_ARRAY, 4), put(&b, 1, 8);
    damaged(&b, "arrays not nested");
    put_header(&b, 3, 0, 1);
    put_key(&b, "k", GGUF_ARRAY), put(&b, GGUF_F64, 4), put(&b, UINT64_MAX / 8 + 2, 8);
    damaged(&b, "k: length");
    put_header(&b, 3, 0, 1);
    put_key(&b, "k", GGUF_ARRAY), put(&b, GGUF_TEXT, 4), put(&b, (uint64_t)1 << 60, 8);
    damaged(&b, "k: length");
    put_header(&b, 3, 0, 1);
    put_key(&b, "k", GGUF_TEXT), put(&b, UINT64_MAX - 3, 8), put(&b, 0, 8);
    damaged(&b, "k: length");
    put_header(&b, 3, 0, 2);
    put_key(&b, "k", GGUF_U8), put(&b, 1, 1), put_key(&b, "k", GGUF_U8), put(&b, 1, 1);
    damaged(&b, "key k: found twice");
    put_header(&b, 3, 0, 1);
    put_key(&b, "general.alignment", GGUF_U32), put(&b, 12, 4);
    damaged(&b, "general.alignment: found 12, expected a power of two");
    str_free(&b);
}

static void damaged_tensors_are_refused(void **state) {
    static const struct {
        uint64_t ne0, ne1, offset;
        uint32_t type;
        const char *said;
    } cases[] = {
        {(uint64_t)1 << 63, 1, 0, GGUF_TYPE_F32, "t: size"},
        {(uint64_t)1 << 32, (uint64_t)1 << 32, 0, GGUF_TYPE_F32, "t: size"},
        {(uint64_t)1 << 31, (uint64_t)1 << 31, 0, GGUF_TYPE_F64, "t: elements"},
        {4, 4, 0, 4, "t: found tensor type 4, expected one of F32 F16 Q4_0"},
        {4, 4, 0, 1000, "t: found tensor type 1000"},
        {33, 4, 0, GGUF_TYPE_Q8_0, "t: row length: found 33, expected whole blocks"},
        {4, 4, 8, GGUF_TYPE_F32, "t: offset: found 8"},
        {4, 4, 64, GGUF_TYPE_F32, "t: found 64 bytes at offset 64"},
        {4, 4, UINT64_MAX - 31, GGUF_TYPE_F32, "t: found 64 bytes"},
        {8, 4, 0, GGUF_TYPE_F32, "t: found 128 bytes"},
    };
    (void)state;
    struct str b = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_header(&b, 3, 1, 0);
        put_matrix(&b, "t", cases[i].ne0, cases[i].ne1, cases[i].type, cases[i].offset);
        put_data(&b, 32, 64);
        damaged(&b, cases[i].said);
    }
    put_header(&b, 3, 2, 0);
    put_matrix(&b, "t", 4, 4, GGUF_TYPE_F32, 0), put_matrix(&b, "u", 4, 1, GGUF_TYPE_F32, 32);
    put_data(&b, 32, 64);
    damaged(&b, "tensors t and u overlap");
    put_header(&b, 3, 2, 0);
    put_matrix(&b, "t", 4, 2, GGUF_TYPE_F32, 0), put_matrix(&b, "t", 4, 1, GGUF_TYPE_F32, 32);
    put_data(&b, 32, 64);
    damaged(&b, "tensor t: found twice");
    put_header(&b, 3, 1, 0);
    put_text(&b, "t"), put(&b, 5, 4), put_data(&b, 32, 128);
    damaged(&b, "t: dimensions: found 5");
    str_free(&b);
}

/* ---- vocabularies */

enum { TOKENS_MOST = 4000 };

/* What a tokenizer.json holds, as GGUF spells it. */
static void parts_of(const struct json *doc, struct tokenizer_vocabulary *v, struct str *lines) {
    static struct tokenizer_text tokens[TOKENS_MOST], merges[TOKENS_MOST];
    static int32_t types[TOKENS_MOST];
    static size_t starts[TOKENS_MOST];
    const struct json *model = json_member(doc, "model");
    for (const struct json *t = json_first(json_member(model, "vocab")); t; t = json_next(t)) {
        int id = (int)json_number(t);
        assert_true(id < TOKENS_MOST);
        tokens[id] = (struct tokenizer_text){json_key(t), strlen(json_key(t))};
        types[id] = 1;
        if (id >= v->token_count) v->token_count = id + 1;
    }
    for (const struct json *t = json_first(json_member(doc, "added_tokens")); t; t = json_next(t))
        types[(int)json_number(json_member(t, "id"))] = 3;
    for (const struct json *m = json_first(json_member(model, "merges")); m; m = json_next(m)) {
        starts[v->merge_count++] = lines->len;
        str_printf(lines, "%s %s", json_text(json_first(m)), json_text(json_next(json_first(m))));
    }
    for (int64_t i = 0; i < v->merge_count; i++) {
        size_t end = i + 1 < v->merge_count ? starts[i + 1] : lines->len;
        merges[i] = (struct tokenizer_text){lines->data + starts[i], end - starts[i]};
    }
    v->tokens = tokens, v->types = types, v->merges = merges;
}

static void check_style(const char *style, const char *pre) {
    struct err err = {0};
    char path[256];
    struct str lines = {0};
    snprintf(path, sizeof path, "tests/golden/tokenizers/%s/tokenizer.json", style);
    struct json *doc = json_read(path, 1 << 24, &err);
    test_ok(doc, &err);
    struct tokenizer *wanted = tokenizer_open(path, &err);
    test_ok(wanted, &err);
    struct tokenizer_vocabulary v = {.model = "gpt2",
                                     .pre = pre,
                                     .bos = 0,
                                     .eos = 1,
                                     .unk = -1,
                                     .add_bos = 1,
                                     .add_eos = 0,
                                     .add_space_prefix = -1};
    parts_of(doc, &v, &lines);
    struct tokenizer *got = tokenizer_from_parts(&v, style, &err);
    test_ok(got, &err);
    snprintf(path, sizeof path, "tests/golden/tokenizers/%s/cases.json", style);
    struct json *cases = json_read(path, 1 << 24, &err);
    test_ok(cases, &err);
    for (const struct json *c = json_first(cases); c; c = json_next(c)) {
        const char *text = json_text(json_member(c, "text"));
        int32_t *a, *b;
        int64_t an, bn;
        test_ok(tokenizer_encode(wanted, text, strlen(text), false, &a, &an, &err), &err);
        test_ok(tokenizer_encode(got, text, strlen(text), true, &b, &bn, &err), &err);
        if (bn != an + 1 || b[0] != 0 || (an && memcmp(a, b + 1, (size_t)an * sizeof *a)))
            fail_msg("%s: other ids than those of tokenizer.json for \"%s\"", style, text);
        free(a);
        free(b);
    }
    json_free(cases);
    json_free(doc);
    tokenizer_free(got);
    tokenizer_free(wanted);
    str_free(&lines);
}

static void named_pre_tokenizers_equal_the_published_ones(void **state) {
    (void)state;
    check_style("gpt2", "gpt-2");
    check_style("gpt2", NULL);
    check_style("llama3", "llama-bpe");
    check_style("deepseek_v3", "deepseek-v3");
    check_style("bailing", "bailingmoe2");
}

/* SentencePiece: the best score first, leftmost among equals; unknown characters become bytes. */
static void scores_decide_the_merges_of_sentencepiece(void **state) {
    (void)state;
    static const char *const texts[] = {"<unk>",
                                        "<s>",
                                        "</s>",
                                        "a",
                                        "b",
                                        "c",
                                        "ab",
                                        "bc",
                                        "abc",
                                        "\xE2\x96\x81",
                                        "\xE2\x96\x81"
                                        "a",
                                        "<0xC3>",
                                        "<0xA9>"};
    static const float scores[] = {0, 0, 0, -9, -9, -9, -2, -1, -3, -9, -4, 0, 0};
    static const int32_t types[] = {2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 6, 6};
    struct tokenizer_text tokens[13];
    for (int i = 0; i < 13; i++) tokens[i] = (struct tokenizer_text){texts[i], strlen(texts[i])};
    struct tokenizer_vocabulary v = {.model = "llama",
                                     .tokens = tokens,
                                     .types = types,
                                     .scores = scores,
                                     .token_count = 13,
                                     .bos = 1,
                                     .eos = 2,
                                     .unk = 0,
                                     .add_bos = -1,
                                     .add_eos = -1,
                                     .add_space_prefix = -1};
    static const struct {
        const char *text;
        int32_t ids[8];
        int count;
    } cases[] = {
        {"", {1}, 1},
        {"abc", {1, 9, 8}, 3},           /* bc (-1), abc (-3), and no space with a (-4) */
        {"bab", {1, 9, 4, 6}, 4},        /* ab */
        {"\xC3\xA9", {1, 9, 11, 12}, 4}, /* bytes */
        {"\xC3\xA8", {1, 9, 11, 0}, 4},  /* no byte token: unknown */
        {"a</s>a", {1, 10, 2, 10}, 4},   /* found in the text; a prefix again behind it */
    };
    struct err err = {0};
    struct tokenizer *tokenizer = tokenizer_from_parts(&v, "spm", &err);
    test_ok(tokenizer, &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *ids;
        int64_t count;
        test_ok(tokenizer_encode(tokenizer, cases[i].text, strlen(cases[i].text), true, &ids,
                                 &count, &err),
                &err);
        if (count != cases[i].count || memcmp(ids, cases[i].ids, (size_t)count * sizeof *ids))
            fail_msg("other ids for \"%s\"", cases[i].text);
        free(ids);
    }
    tokenizer_free(tokenizer);
    v.scores = NULL;
    assert_null(tokenizer_from_parts(&v, "spm", &err));
    assert_non_null(strstr(err.text, "spm: tokenizer.ggml.scores: found none"));
    v.scores = scores, v.bos = 13;
    assert_null(tokenizer_from_parts(&v, "spm", &err));
    assert_non_null(strstr(err.text, "bos_token_id: found 13, expected 0..12"));
    v.model = "t5";
    assert_null(tokenizer_from_parts(&v, "spm", &err));
    assert_non_null(strstr(err.text, "model: found \"t5\", expected one of gpt2, llama"));
    v.model = "gpt2", v.pre = "gpt-2 phi-2";
    assert_null(tokenizer_from_parts(&v, "spm", &err));
    assert_non_null(strstr(err.text, "tokenizer.ggml.pre: found \"gpt-2 phi-2\""));
}

/* The cases of the released vocabularies: texts between marker lines, ids a line. */
static void check_released(const char *name) {
    static const char marker[] = "\n__ggml_vocab_test__\n";
    char packed[300], inputs[300], outputs[300], command[1500], model[1100];
    snprintf(packed, sizeof packed, SHARED "data/tokenizers/llama.cpp-vocabs/%s.gguf.gz", name);
    snprintf(inputs, sizeof inputs, SHARED "data/tokenizers/llama.cpp-vocabs/%s.gguf.inp", name);
    snprintf(outputs, sizeof outputs, SHARED "data/tokenizers/llama.cpp-vocabs/%s.gguf.out", name);
    test_need(packed);
    const char *folder = test_folder("vocabulary");
    snprintf(model, sizeof model, "%s/v.gguf", folder);
    snprintf(command, sizeof command, "gunzip -c %s > %s", packed, model);
    assert_int_equal(test_run(command, NULL, NULL), 0);
    struct err err = {0};
    size_t len, out_len;
    struct tokenizer *tokenizer = tokenizer_open(model, &err);
    test_ok(tokenizer, &err);
    char *texts = file_read(inputs, 1 << 20, &len, &err), *text = texts;
    char *lines = file_read(outputs, 1 << 20, &out_len, &err), *line = lines;
    test_ok(texts && lines, &err);
    int compared = 0;
    for (char *next; text; text = next, compared++) {
        char *end = strstr(text, marker);
        next = end ? end + strlen(marker) : NULL;
        size_t size = end ? (size_t)(end - text) : strlen(text);
        int32_t *ids;
        int64_t count;
        test_ok(tokenizer_encode(tokenizer, text, size, false, &ids, &count, &err), &err);
        for (int64_t i = 0; i < count; i++)
            if (strtol(line, &line, 10) != ids[i])
                fail_msg("%s: other ids for \"%.*s\"", name, (int)size, text);
        assert_true(*line == '\n' || *line == '\0' || !strncmp(line, " \n", 2));
        line = strchr(line, '\n') ? strchr(line, '\n') + 1 : line;
        free(ids);
    }
    assert_int_equal(compared, 47);
    free(texts);
    free(lines);
    tokenizer_free(tokenizer);
}

static void released_vocabularies_give_the_published_ids(void **state) {
    (void)state;
    static const char *const names[] = {"deepseek-coder", "deepseek-llm", "gpt-2", "llama-bpe",
                                        "llama-spm",      "phi-3",        "qwen2"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[64];
        snprintf(name, sizeof name, "ggml-vocab-%s", names[i]);
        check_released(name);
    }
}

static void vocabularies_of_models_give_their_ids(void **state) {
    (void)state;
    static const char *const names[] = {
        "deepseek_v2", "deepseek_v3",    "dots1",       "ernie4_5_moe", "gpt_oss_mxfp4",
        "granitemoe",  "hunyuan_v1_moe", "llama4_text", "minimax_m2",   "mixtral",
        "olmoe",       "phimoe",         "qwen2_moe",   "qwen3_moe"};
    test_need(SHARED "golden/gguf/text.txt");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct err err = {0};
        char path[300];
        size_t len, size;
        snprintf(path, sizeof path, SHARED "golden/gguf/%s/model-BF16.gguf", names[i]);
        struct tokenizer *tokenizer = tokenizer_open(path, &err);
        test_ok(tokenizer, &err);
        snprintf(path, sizeof path, SHARED "golden/gguf/%s/text_ids.txt", names[i]);
        char *wanted = file_read(path, 1 << 20, &len, &err), *at = wanted;
        char *text = file_read(SHARED "golden/gguf/text.txt", 1 << 20, &size, &err);
        test_ok(wanted && text, &err);
        int32_t *ids;
        int64_t count;
        test_ok(tokenizer_encode(tokenizer, text, size, false, &ids, &count, &err), &err);
        assert_true(count > 90);
        for (int64_t k = 0; k < count; k++) assert_int_equal(strtol(at, &at, 10), ids[k]);
        assert_int_equal(strspn(at, " \n"), strlen(at));
        free(ids);
        free(text);
        free(wanted);
        tokenizer_free(tokenizer);
    }
}

/* ---- quantised blocks */

static void every_quantised_type_gives_the_reference_values(void **state) {
    struct err err = {0};
    (void)state;
    struct safetensors *file = safetensors_open("tests/golden/gguf/blocks.safetensors", &err);
    test_ok(file != NULL, &err);
    for (int i = 0; quant_at(i); i++) {
        const struct quant *quant = quant_at(i);
        char name[64];
        float found[4 * 256];
        snprintf(name, sizeof name, "%s.blocks", quant->name);
        const struct safetensors_tensor *blocks = safetensors_find(file, name);
        snprintf(name, sizeof name, "%s.values", quant->name);
        const struct safetensors_tensor *values = safetensors_find(file, name);
        assert_true(blocks && values && blocks->shape[0] == 4);
        assert_int_equal(blocks->shape[1], quant->bytes);
        assert_int_equal(values->shape[1], quant->values);
        quant_read(quant, blocks->data, 0, 4 * (int64_t)quant->values, found);
        for (int at = 0; at < 4 * quant->values; at++) {
            float wanted;
            memcpy(&wanted, (const char *)values->data + 4 * at, sizeof wanted);
            if (found[at] != wanted) fail_msg("%s: value %d", quant->name, at);
        }
    }
    safetensors_close(file);
}

int test_gguf(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(damaged_keys_are_refused),
        cmocka_unit_test(damaged_tensors_are_refused),
        cmocka_unit_test(named_pre_tokenizers_equal_the_published_ones),
        cmocka_unit_test(scores_decide_the_merges_of_sentencepiece),
        cmocka_unit_test(released_vocabularies_give_the_published_ids),
        cmocka_unit_test(vocabularies_of_models_give_their_ids),
        cmocka_unit_test(every_quantised_type_gives_the_reference_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
