/* test_base.c - errors, text, JSON, tables, files, threads, random numbers, SHA-256 */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "base/str.h"
#include "base/table.h"
#include "base/threads.h"
#include "tests/test.h"

static void errors_gain_context_and_stay_on_one_line(void **state) {
    (void)state;
    struct err err = {0};
    assert_false(err_set(&err, ERR_FORMAT, "found %d,\nexpected %d", 1, 2));
    assert_false(err_context(&err, "file.json"));
    assert_string_equal(err.text, "file.json: found 1,?expected 2");
    assert_int_equal(err_status(err.code), 1);
    assert_int_equal(err_status(ERR_USAGE), 2);
    char big[2000];
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = '\0';
    err_set(&err, ERR_IO, "%s", big);
    err_context(&err, "%s", big);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
}

static void numbers_are_parsed_strictly(void **state) {
    (void)state;
    struct err err = {0};
    int64_t n;
    double x;
    assert_true(parse_int("-12", "n", -20, 20, &n, &err) && n == -12);
    static const char *const bad[] = {"", " 1", "1 ", "1x", "0x10", "99999999999999999999", "21"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(parse_int(bad[i], "n", -20, 20, &n, &err));
    assert_true(parse_real("1e-3", "x", 0, 1, &x, &err) && x == 1e-3);
    assert_false(parse_real("nan", "x", 0, 1, &x, &err));
    assert_false(parse_real("inf", "x", 0, 1e300, &x, &err));
    assert_true(parse_bytes("4G", "b", &n, &err) && n == (int64_t)4 << 30);
    assert_true(parse_bytes("17", "b", &n, &err) && n == 17);
    assert_false(parse_bytes("9999999999T", "b", &n, &err));
    assert_false(parse_bytes("-1", "b", &n, &err));
    assert_false(parse_bytes("1KB", "b", &n, &err));
}

static void json_members_are_checked(void **state) {
    (void)state;
    struct err err = {0};
    const char *text =
        "{\"a\": 3, \"b\": null, \"c\": \"x\", \"d\": 1.5, \"e\": [1, 2], \"f\": true}";
    struct json *doc = json_parse(text, strlen(text), &err);
    test_ok(doc, &err);
    int64_t n;
    double x;
    bool flag;
    const char *s;
    assert_true(json_get_int(doc, "a", 0, 9, 7, &n, &err) && n == 3);
    assert_true(json_get_int(doc, "b", 0, 9, 7, &n, &err) && n == 7);
    assert_true(json_get_int(doc, "zz", 0, 9, 7, &n, &err) && n == 7);
    assert_false(json_get_int(doc, "a", 0, 2, 7, &n, &err));
    assert_false(json_get_int(doc, "c", 0, 9, 7, &n, &err));
    assert_string_equal(err.text, "c: found a string, expected a whole number");
    assert_false(json_get_int(doc, "d", 0, 9, 7, &n, &err));
    assert_true(json_get_real(doc, "d", 0, &x, &err) && x == 1.5);
    assert_true(json_get_bool(doc, "f", false, &flag, &err) && flag);
    assert_false(json_get_bool(doc, "a", false, &flag, &err));
    assert_true(json_get_text(doc, "c", NULL, &s, &err) && strcmp(s, "x") == 0);
    assert_int_equal(json_count(json_member(doc, "e")), 2);
    json_free(doc);
}

static void damaged_json_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"",    "{",    "{\"a\":}", "[1,]",
                                      "nul", "{} x", "\"\\x\"",  "[1 2]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = {0};
        struct json *doc = json_parse(bad[i], strlen(bad[i]), &err);
        if (doc) fail_msg("accepted: %s", bad[i]);
        assert_int_equal(err.code, ERR_FORMAT);
    }
    struct str deep = {0};
    struct err err = {0};
    for (int i = 0; i < 100000; i++) str_puts(&deep, "[");
    assert_null(json_parse(deep.data, deep.len, &err));
    assert_non_null(strstr(err.text, "nested"));
    str_free(&deep);
}

static void quoted_json_reads_back(void **state) {
    (void)state;
    const char raw[] = "a\"\\\n\t\x01\xc3\xa9\xff\xed\xa0\x80z";
    struct str out = {0};
    struct err err = {0};
    json_quote(&out, raw, sizeof raw - 1);
    struct json *doc = json_parse(out.data, out.len, &err);
    test_ok(doc, &err);
    assert_string_equal(json_text(doc), "a\"\\\n\t\x01\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                                        "\xef\xbf\xbdz");
    json_free(doc);
    str_free(&out);
}

static struct table *small_table(void) {
    const struct table_column columns[] = {
        {"layer", "", TABLE_INT}, {"maxvio", "1", TABLE_REAL}, {"gate", "", TABLE_TEXT}};
    struct err err = {0};
    struct table *table = table_create(columns, 3, &err);
    test_ok(table, &err);
    table_int(table, 3);
    table_real(table, 0.1);
    table_text(table, "a,\"b\"");
    table_null(table);
    table_real(table, NAN);
    table_text(table, NULL);
    return table;
}

static void tables_print_three_ways(void **state) {
    (void)state;
    struct err err = {0};
    struct table *table = small_table();
    static const char *const expected[] = {
        [TABLE_AS_TEXT] =
            "layer  maxvio [1]  gate\n    3         0.1  a,\"b\"\n    -           -  -\n",
        [TABLE_AS_CSV] = "layer,maxvio,gate\r\n3,0.1,\"a,\"\"b\"\"\"\r\n,,\r\n",
        [TABLE_AS_JSON] =
            "[\n {\"layer\": 3, \"maxvio\": 0.1, \"gate\": \"a,\\\"b\\\"\"},\n {\"layer\": "
            "null, \"maxvio\": null, \"gate\": null}\n]\n"};
    for (int format = TABLE_AS_TEXT; format <= TABLE_AS_JSON; format++) {
        struct str out = {0};
        test_ok(table_format(table, (enum table_format)format, &out, &err), &err);
        assert_string_equal(str_text(&out), expected[format]);
        str_free(&out);
    }
    assert_int_equal(table_find(table, "maxvio"), 1);
    assert_true(isnan(table_number(table, 1, 0)));
    FILE *full = fopen("/dev/full", "w");
    assert_false(table_print(table, TABLE_AS_CSV, full, &err));
    fclose(full);
    table_free(table);
}

static void only_regular_files_are_read(void **state) {
    (void)state;
    struct err err = {0};
    struct file_map map;
    size_t len;
    const char *folder = test_folder("base");
    struct str path = {0};
    assert_false(file_map(folder, &map, &err));
    assert_non_null(strstr(err.text, "found a folder"));
    file_join(&path, folder, "pipe");
    assert_int_equal(mkfifo(path.data, 0600), 0);
    assert_null(file_read(path.data, 100, &len, &err));
    assert_non_null(strstr(err.text, "found a pipe"));
    file_join(&path, folder, "absent");
    assert_false(file_map(path.data, &map, &err));
    file_join(&path, folder, "text");
    test_ok(file_write(path.data, "hello", 5, &err), &err);
    assert_null(file_read(path.data, 4, &len, &err));
    char *text = file_read(path.data, 5, &len, &err);
    assert_string_equal(text, "hello");
    free(text);
    str_free(&path);
}

static void an_abandoned_output_leaves_nothing(void **state) {
    (void)state;
    struct err err = {0};
    const char *folder = test_folder("output");
    struct str path = {0};
    struct file_output output;
    file_join(&path, folder, "result");
    test_ok(file_begin(&output, path.data, &err), &err);
    fputs("half", output.stream);
    file_abandon(&output);
    assert_false(file_exists(path.data));
    assert_int_equal(rmdir(folder), 0); /* empty: no temporary file either */
    assert_false(file_write(path.data, "x", 1, &err));
    assert_non_null(strstr(err.text, "cannot write"));
    str_free(&path);
}

static void count_job(void *context, int64_t job, int worker) {
    (void)worker;
    atomic_fetch_add((atomic_int *)context + job, 1);
}

static void every_job_runs_exactly_once(void **state) {
    (void)state;
    enum { JOBS = 1000 };
    struct err err = {0};
    for (int threads = 1; threads <= 5; threads++) {
        struct pool *pool = pool_create(threads, &err);
        test_ok(pool, &err);
        assert_int_equal(pool_size(pool), threads);
        for (int round = 0; round < 200; round++) {
            atomic_int done[JOBS] = {0};
            pool_run(pool, round % 7 == 0 ? 1 : JOBS, count_job, done);
            for (int i = 0; i < (round % 7 == 0 ? 1 : JOBS); i++) assert_int_equal(done[i], 1);
            if (round % 50 == 0) usleep(200); /* let the workers fall asleep */
        }
        pool_free(pool);
    }
}

static void random_numbers_are_the_published_ones(void **state) {
    (void)state;
    struct rng rng = {.s = {1, 2, 3, 4}};
    /* xoshiro256** from state {1,2,3,4}: rotl(2*5,7)*9, ... */
    assert_int_equal(rng_next(&rng), 11520);
    assert_int_equal(rng_next(&rng), 0);
    assert_int_equal(rng_next(&rng), 1509978240);
    double sum = 0, squares = 0;
    rng_init(&rng, 7);
    for (int i = 0; i < 100000; i++) {
        double x = rng_normal(&rng);
        sum += x;
        squares += x * x;
    }
    test_near(sum / 1e5, 0, 0.02);
    test_near(squares / 1e5, 1, 0.02);
}

static void sha256_gives_the_published_digests(void **state) {
    (void)state;
    struct sha256 sha;
    char hex[65];
    sha256_init(&sha);
    sha256_add(&sha, "ab", 2);
    sha256_add(&sha, "c", 1);
    sha256_hex(&sha, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    sha256_init(&sha);
    for (int i = 0; i < 1000000; i++) sha256_add(&sha, "a", 1);
    sha256_hex(&sha, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void arenas_do_not_move_and_refuse_overflow(void **state) {
    (void)state;
    struct arena arena;
    arena_init(&arena, "test");
    unsigned char *first = arena_alloc(&arena, 10, 10);
    memset(first, 7, 100);
    for (int i = 0; i < 100; i++) {
        unsigned char *more = arena_alloc(&arena, 1, 100000);
        assert_int_equal((uintptr_t)more % 64, 0);
        assert_int_equal(more[99999], 0);
    }
    assert_int_equal(first[99], 7);
    assert_null(arena_alloc(&arena, SIZE_MAX / 2, 3));
    assert_null(arena_alloc(&arena, 1, SIZE_MAX));
    size_t peak = arena.peak_bytes;
    arena_reset(&arena);
    assert_int_equal(((unsigned char *)arena_alloc(&arena, 100, 1))[99], 0);
    assert_int_equal(arena.peak_bytes, peak);
    arena_free(&arena);
}

int test_base(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(errors_gain_context_and_stay_on_one_line),
                                       cmocka_unit_test(numbers_are_parsed_strictly),
                                       cmocka_unit_test(json_members_are_checked),
                                       cmocka_unit_test(damaged_json_is_refused),
                                       cmocka_unit_test(quoted_json_reads_back),
                                       cmocka_unit_test(tables_print_three_ways),
                                       cmocka_unit_test(only_regular_files_are_read),
                                       cmocka_unit_test(an_abandoned_output_leaves_nothing),
                                       cmocka_unit_test(every_job_runs_exactly_once),
                                       cmocka_unit_test(random_numbers_are_the_published_ones),
                                       cmocka_unit_test(sha256_gives_the_published_digests),
                                       cmocka_unit_test(arenas_do_not_move_and_refuse_overflow)};
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
