/* test_tokenizer.c - ids against the reference library's, refusals, time on long lines
 *
 * Cases: tests/golden/tokenizers (STYLE/cases.json; components.json with its generator beside it),
 * and those of released tokenizers in ../shared where that folder is present. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/tokenizer.h"
#include "engine/tokenizer_parts.h"

#define LLVMFuzzerTestOneInput fuzz_tokenizer
#include "tests/fuzz/fuzz_tokenizer.c"

#define GOLDEN "tests/golden/tokenizers/"
#define SHARED "../shared/"

/* Our JSON strings end at a NUL, so the cases' \u0000 travels as U+E000. */
static struct json *read_cases(const char *path) {
    struct err err = {0};
    size_t len;
    char *text = file_read(path, 1 << 26, &len, &err);
    test_ok(text, &err);
    for (char *at = text; (at = strstr(at, "\\u0000"));) memcpy(at, "\\uE000", 6);
    struct json *doc = json_parse(text, len, &err);
    test_ok(doc, &err);
    free(text);
    return doc;
}

static void restore_nul(const char *text, struct str *out) {
    static const char stand_in[] = "\xEE\x80\x80";
    str_clear(out);
    str_puts(out, "");
    while (*text) {
        bool nul = !strncmp(text, stand_in, 3);
        str_append(out, nul ? "" : text, 1);
        text += nul ? 3 : 1;
    }
}

static void check_ids(const struct tokenizer *tokenizer, const struct str *text, bool special,
                      const struct json *expected, const char *name) {
    struct err err = {0};
    int32_t *ids;
    int64_t count, at = 0;
    test_ok(tokenizer_encode(tokenizer, text->data, text->len, special, &ids, &count, &err), &err);
    bool equal = count == json_count(expected);
    for (const struct json *v = json_first(expected); equal && v; v = json_next(v))
        equal = ids[at++] == (int32_t)json_number(v);
    if (!equal) fail_msg("%s: other ids than expected for \"%.200s\"", name, text->data);
    free(ids);
}

/* Returns the number of texts. */
static int check_cases(const struct tokenizer *tokenizer, const struct json *cases,
                       const char *name) {
    struct str text = {0};
    int count = 0;
    for (const struct json *c = json_first(cases); c; c = json_next(c), count++) {
        restore_nul(json_text(json_member(c, "text")), &text);
        check_ids(tokenizer, &text, false, json_member(c, "ids"), name);
        check_ids(tokenizer, &text, true, json_member(c, "ids_with_special"), name);
    }
    str_free(&text);
    return count;
}

static void check_style(const char *folder, const char *cases_path) {
    struct err err = {0};
    struct tokenizer *tokenizer = tokenizer_open(folder, &err);
    test_ok(tokenizer, &err);
    struct json *cases = read_cases(cases_path);
    assert_true(check_cases(tokenizer, cases, folder) > 20);
    json_free(cases);
    tokenizer_free(tokenizer);
}

static void every_style_gives_the_reference_ids(void **state) {
    static const char *const styles[] = {"bailing", "deepseek_v3", "gpt2",         "llama3",
                                         "o200k",   "qwen2",       "sentencepiece"};
    (void)state;
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++) {
        char folder[256], cases[300];
        snprintf(folder, sizeof folder, GOLDEN "%s", styles[i]);
        snprintf(cases, sizeof cases, "%s/cases.json", folder);
        check_style(folder, cases);
    }
}

static void check_released(const char *name) {
    char packed[256], cases[256], command[1400];
    snprintf(packed, sizeof packed, SHARED "data/tokenizers/%s/tokenizer.json.gz", name);
    snprintf(cases, sizeof cases, SHARED "golden/tokenizers/released_%s/cases.json", name);
    test_need(packed);
    test_need(cases);
    const char *folder = test_folder("released");
    snprintf(command, sizeof command, "gunzip -c %s > %s/tokenizer.json", packed, folder);
    assert_int_equal(test_run(command, NULL, NULL), 0);
    check_style(folder, cases);
}

static void released_deepseek_v3_gives_the_reference_ids(void **state) {
    (void)state;
    check_released("deepseek_v3");
}

static void released_qwen3_gives_the_reference_ids(void **state) {
    (void)state;
    check_released("qwen3");
}

static void released_minimind_gives_the_reference_ids(void **state) {
    (void)state;
    check_released("minimind");
}

static void every_component_gives_the_reference_ids(void **state) {
    (void)state;
    struct json *all = read_cases(GOLDEN "components.json");
    struct err err = {0};
    for (const struct json *c = json_first(all); c; c = json_next(c)) {
        const char *name = json_text(json_member(c, "name"));
        const char *spec = json_text(json_member(c, "tokenizer"));
        struct tokenizer *tokenizer = tokenizer_parse(spec, strlen(spec), name, &err);
        test_ok(tokenizer, &err);
        assert_true(check_cases(tokenizer, json_member(c, "cases"), name) > 10);
        tokenizer_free(tokenizer);
    }
    json_free(all);
}

/* ---- text that is not UTF-8 */

static void malformed_utf8_is_replaced_by_maximal_subparts(void **state) {
    /* what bytes.decode("utf-8", "replace") of Python gives; R = U+FFFD */
    static const char *const cases[][2] = {
        {"ab", "ab"},
        {"\xFFx", "Rx"},
        {"\xC0\xAF", "RR"},
        {"\xE2\x82", "R"},
        {"\xE2\x82y", "Ry"},
        {"\xF0\x9F\x98", "R"},
        {"\xF0\x80\x80\x80", "RRRR"},
        {"\xED\xA0\x80", "RRR"},
        {"\xF4\x90\x80\x80", "RRRR"},
        {"\xE2\x82\xAC\x80", "\xE2\x82\xACR"},
        {"\xE1\x80\xE2\x82\xAC", "R\xE2\x82\xAC"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct str got = {0}, want = {0};
        utf8_repair(&got, cases[i][0], strlen(cases[i][0]));
        for (const char *c = cases[i][1]; *c; c++)
            if (*c == 'R')
                str_puts(&want, "\xEF\xBF\xBD");
            else
                str_append(&want, c, 1);
        assert_string_equal(str_text(&got), str_text(&want));
        assert_true(utf8_valid(got.data, got.len));
        str_free(&got);
        str_free(&want);
    }
}

static void the_byte_level_alphabet_is_one_to_one(void **state) {
    (void)state;
    for (int byte = 0; byte < 256; byte++) {
        uint32_t point = byte_level_char((unsigned char)byte);
        assert_true(point > 0x20 && point != 0x7F && point != 0xAD);
        assert_int_equal(byte_level_byte(point), byte);
    }
    assert_int_equal(byte_level_byte(' '), -1);
    assert_int_equal(byte_level_byte(0x144), -1);
}

static void pieces_are_the_bytes_of_the_text(void **state) {
    static const char *const styles[] = {GOLDEN "llama3", GOLDEN "sentencepiece"};
    static const char text[] = "na\xC3\xAFve \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x98\x80!";
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct err err = {0};
        struct tokenizer *tokenizer = tokenizer_open(styles[i], &err);
        test_ok(tokenizer, &err);
        int32_t *ids;
        int64_t count;
        test_ok(tokenizer_encode(tokenizer, text, strlen(text), false, &ids, &count, &err), &err);
        struct str back = {0};
        for (int64_t k = 0; k < count; k++) {
            size_t len;
            const char *piece = tokenizer_piece(tokenizer, ids[k], &len);
            assert_non_null(piece);
            str_append(&back, piece, len);
        }
        assert_string_equal(back.data + i, text); /* sentencepiece puts a space in front */
        assert_null(tokenizer_piece(tokenizer, tokenizer_vocab(tokenizer), &(size_t){0}));
        assert_null(tokenizer_piece(tokenizer, -1, &(size_t){0}));
        str_free(&back);
        free(ids);
        tokenizer_free(tokenizer);
    }
}

/* U+0EBA got its combining class after the reference's tables were made: it must not move before
 * U+0E39, nor let U+0334 move before it. Long runs of marks are sorted in n log n. */
static void marks_are_ordered_as_in_unicode_9(void **state) {
    (void)state;
    struct normalize_step form = {.kind = NORMALIZE_FORM, .compose = true};
    struct steps steps = {.normalize = &form, .normalize_count = 1};
    struct match_state match = {0};
    struct err err = {0};
    static const char *const cases[][2] = {
        {"\xE0\xB9\x89\xE0\xB8\xB9", "\xE0\xB8\xB9\xE0\xB9\x89"}, /* 107 103 -> 103 107 */
        {"\xE0\xB9\x89\xE0\xBA\xBA", "\xE0\xB9\x89\xE0\xBA\xBA"}, /* 107, none */
        {"\xE0\xBA\xBA\xCC\xB4", "\xE0\xBA\xBA\xCC\xB4"},
        {"e\xCC\xA3\xCC\x81", "\xE1\xBA\xB9\xCC\x81"},
        {"e\xCC\x81\xCC\xA3", "\xE1\xBA\xB9\xCC\x81"},
        {"\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct str out = {0};
        bool first = true;
        test_ok(
            normalize_text(&steps, &match, cases[i][0], strlen(cases[i][0]), &first, &out, &err),
            &err);
        assert_string_equal(str_text(&out), cases[i][1]);
        str_free(&out);
    }
}

/* ---- refusals */

#define MODEL(more) "\"model\":{\"type\":\"BPE\"," more "}"
#define SMALL       "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[[\"a\",\"b\"]]"

static void refused(const char *json, const char *said) {
    struct err err = {0};
    struct tokenizer *tokenizer = tokenizer_parse(json, strlen(json), "x.json", &err);
    if (tokenizer) fail_msg("accepted %s", json);
    if (!strstr(err.text, said)) fail_msg("said \"%s\", expected \"%s\"", err.text, said);
    assert_ptr_equal(strstr(err.text, "x.json: "), err.text);
    assert_null(strchr(err.text, '\n'));
}

static void damaged_and_unknown_parts_are_refused_by_name(void **state) {
    static const char *const cases[][2] = {
        {"", "JSON"},
        {"[]", "expected an object"},
        {"{}", "model: found none"},
        {"{\"model\":3}", "model: found a number"},
        {"{\"model\":{\"type\":\"Unigram\"}}",
         "model.type: found \"Unigram\", expected one of BPE"},
        {"{\"model\":{\"type\":\"BPE\"}}", "model.vocab: found none"},
        {"{" MODEL("\"vocab\":{\"a\":0}") "}", "model.merges: found none"},
        {"{" MODEL("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]") "}", "found id 0 twice"},
        {"{" MODEL("\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]") "}", "\"a\" twice"},
        {"{" MODEL("\"vocab\":{\"a\":4294967296},\"merges\":[]") "}", "id 4294967296 of \"a\""},
        {"{" MODEL("\"vocab\":{\"a\":-1},\"merges\":[]") "}", "id -1 of \"a\""},
        {"{" MODEL("\"vocab\":{\"a\":0.5},\"merges\":[]") "}", "id 0.5 of \"a\""},
        {"{" MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]") "}", "no number for \"a\""},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a b\"]") "}", "merges[0]: found \"b\""},
        {"{" MODEL("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[[\"a\",\"b\"]]") "}", "\"ab\""},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a\"]") "}", "expected two tokens"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]") "}", "expected a pair"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[7]") "}", "expected a pair"},
        {"{" MODEL(SMALL ",\"unk_token\":\"u\"") "}", "model.unk_token: found \"u\""},
        {"{" MODEL(SMALL ",\"dropout\":0.1") "}", "model.dropout: found 0.1"},
        {"{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL(SMALL) "}",
         "normalizer.type: found \"Precompiled\", expected one of Sequence, NFC"},
        {"{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"
         "\"Nmt\"}]}," MODEL(SMALL) "}",
         "normalizer[1].type: found \"Nmt\""},
        {"{\"normalizer\":{\"type\":\"Sequence\"}," MODEL(SMALL) "}", "normalizer.normalizers"},
        {"{\"normalizer\":{\"type\":\"Prepend\"}," MODEL(SMALL) "}", "normalizer.prepend"},
        {"{\"pre_tokenizer\":{\"type\":\"Bert\"}," MODEL(SMALL) "}", "pre_tokenizer.type"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\"}," MODEL(SMALL) "}",
         "pre_tokenizer.pattern"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"No\"}"
         "," MODEL(SMALL) "}",
         "pre_tokenizer.behavior: found \"No\", expected one of Isolated"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":"
         "\"Isolated\"}," MODEL(SMALL) "}",
         "pre_tokenizer.pattern: found a group without end"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{Nope}\"},"
         "\"behavior\":\"Isolated\"}," MODEL(SMALL) "}",
         "Nope"},
        {"{\"post_processor\":{\"type\":\"Odd\"}," MODEL(SMALL) "}", "post_processor.type"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}," MODEL(SMALL) "}",
         "found 0 sequences"},
        {"{\"added_tokens\":{}," MODEL(SMALL) "}", "added_tokens: found an object"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"z\"}]," MODEL(SMALL) "}",
         "found id 1 for \"z\", which belongs to \"b\""},
        {"{\"added_tokens\":[{\"content\":\"z\"}]," MODEL(SMALL) "}", "no number for \"z\""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refused(cases[i][0], cases[i][1]);
}

static void deep_nesting_is_refused(void **state) {
    (void)state;
    for (int depth = 100; depth <= 100000; depth *= 10) {
        struct str json = {0};
        str_puts(&json, "{\"normalizer\":");
        for (int i = 0; i < depth; i++) str_puts(&json, "{\"type\":\"Sequence\",\"normalizers\":[");
        for (int i = 0; i < depth; i++) str_puts(&json, "]}");
        str_puts(&json, "," MODEL(SMALL) "}");
        refused(json.data, "nested");
        str_free(&json);
    }
}

/* Every truncation, and every byte replaced by a few others: an error or a working tokenizer. */
static void damaged_files_never_crash(void **state) {
    (void)state;
    struct json *all = read_cases(GOLDEN "components.json");
    int number = 0;
    for (const struct json *c = json_first(all); c; c = json_next(c)) {
        if (number++ % 9) continue;
        struct str data = {0};
        str_puts(&data, json_text(json_member(c, "tokenizer")));
        size_t json = data.len;
        str_append(&data, "\0ab 1-1 \xC3\xA9\xFF", 11);
        for (size_t cut = 0; cut < json; cut += 97) fuzz_tokenizer((uint8_t *)data.data, cut);
        for (size_t at = number % 31; at < json; at += 31) {
            char old = data.data[at];
            data.data[at] = "\"{}[],:0-\\\xFF"[at % 11];
            fuzz_tokenizer((uint8_t *)data.data, data.len);
            data.data[at] = old;
        }
        str_free(&data);
    }
    json_free(all);
}

/* ---- time */

/* A megabyte of each of these is one word, or one run that a pattern must look through. Quadratic
 * work would take minutes; the bound is loose because machines differ. */
static void a_megabyte_without_spaces_takes_seconds(void **state) {
    static const char *const runs[] = {"a",   " ",  "\n",           "1",
                                       "A",   "=",  "\xE4\xB8\xAD", "e\xCC\x81\xCC\x96",
                                       " \n", "<|", "\xFF",         "'"};
    static const char *const styles[] = {GOLDEN "llama3", GOLDEN "qwen2", GOLDEN "o200k",
                                         GOLDEN "deepseek_v3", GOLDEN "sentencepiece"};
    (void)state;
    for (size_t s = 0; s < sizeof styles / sizeof *styles; s++) {
        struct err err = {0};
        struct tokenizer *tokenizer = tokenizer_open(styles[s], &err);
        test_ok(tokenizer, &err);
        for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
            struct str text = {0};
            while (text.len < 1000000) str_puts(&text, runs[r]);
            int32_t *ids;
            int64_t count;
            double start = clock_cpu_seconds();
            test_ok(tokenizer_encode(tokenizer, text.data, text.len, false, &ids, &count, &err),
                    &err);
            assert_true(count > 1000);
            if (clock_cpu_seconds() - start > 30)
                fail_msg("%s: a megabyte of \"%s\" takes %.0f s", styles[s], runs[r],
                         clock_cpu_seconds() - start);
            free(ids);
            str_free(&text);
        }
        tokenizer_free(tokenizer);
    }
}

/* Merges of a word of n characters: the heap sees at most three candidates a character. */
static void merging_a_word_is_not_quadratic(void **state) {
    (void)state;
    struct err err = {0};
    struct tokenizer *tokenizer = tokenizer_open(GOLDEN "llama3", &err);
    test_ok(tokenizer, &err);
    for (size_t n = 1000; n <= 1000000; n *= 10) {
        struct bpe_state bpe = {0};
        struct id_list ids = {0};
        char *word = malloc(n);
        for (size_t i = 0; i < n; i++) word[i] = "etaoin"[i * 7919 % 6];
        test_ok(bpe_word(tokenizer, &bpe, word, n, &ids, &err), &err);
        assert_true(ids.count > 0 && ids.count <= n);
        assert_true(bpe.heap_cap <= 8 * n);
        assert_true(bpe.pops <= 3 * n);
        bpe_state_free(&bpe);
        free(ids.ids);
        free(word);
    }
    tokenizer_free(tokenizer);
}

/* ---- the command */

static void the_command_prints_a_line_for_each_document(void **state) {
    (void)state;
    const char *folder = test_folder("tokenize");
    char command[1024];
    char *out;
    snprintf(command, sizeof command,
             "cd %s && printf 'Hello, world!' > a && : > b && cd - > /dev/null && "
             "%s tokenize " GOLDEN "llama3 %s/a %s/b %s/a",
             folder, test_program(), folder, folder, folder);
    assert_int_equal(test_run(command, &out, NULL), 0);
    assert_string_equal(out, "41 70 287 80 13 295 304 927 2\n\n41 70 287 80 13 295 304 927 2\n");
    free(out);
    snprintf(command, sizeof command,
             "cd %s && printf 'a' | %s/%s tokenize ../../../" GOLDEN
             "llama3/tokenizer.json --special"
             " --json",
             folder, "../../..", test_program());
    assert_int_equal(test_run(command, &out, NULL), 0);
    assert_string_equal(out, "[{\"file\": \"-\", \"ids\": [0, 66]}]\n");
    free(out);
}

static void the_command_refuses_what_it_cannot_read(void **state) {
    (void)state;
    char command[512];
    char *out, *errors;
    snprintf(command, sizeof command, "%s tokenize " GOLDEN "llama3 no/such/file", test_program());
    assert_int_equal(test_run(command, &out, &errors), 1);
    assert_string_equal(out, "");
    assert_non_null(strstr(errors, "no/such/file"));
    free(out);
    free(errors);
    snprintf(command, sizeof command, "%s tokenize", test_program());
    assert_int_equal(test_run(command, NULL, NULL), 2);
}

int test_tokenizer(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_style_gives_the_reference_ids),
        cmocka_unit_test(every_component_gives_the_reference_ids),
        cmocka_unit_test(released_deepseek_v3_gives_the_reference_ids),
        cmocka_unit_test(released_qwen3_gives_the_reference_ids),
        cmocka_unit_test(released_minimind_gives_the_reference_ids),
        cmocka_unit_test(malformed_utf8_is_replaced_by_maximal_subparts),
        cmocka_unit_test(the_byte_level_alphabet_is_one_to_one),
        cmocka_unit_test(pieces_are_the_bytes_of_the_text),
        cmocka_unit_test(marks_are_ordered_as_in_unicode_9),
        cmocka_unit_test(damaged_and_unknown_parts_are_refused_by_name),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(damaged_files_never_crash),
        cmocka_unit_test(a_megabyte_without_spaces_takes_seconds),
        cmocka_unit_test(merging_a_word_is_not_quadratic),
        cmocka_unit_test(the_command_prints_a_line_for_each_document),
        cmocka_unit_test(the_command_refuses_what_it_cannot_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
