/* test_csv.c - reading comma-separated tables */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/str.h"
#include "tests/test.h"

static void fields_are_found_by_header_and_unquoted(void **state) {
    (void)state;
    struct err err = {0};
    const char text[] = "a,\"b,c\",d\r\n1,\"x \"\"y\"\"\",2.5\n,\"\",-3";
    struct csv *csv = csv_parse("t", text, sizeof text - 1, &err);
    test_ok(csv != NULL, &err);
    assert_int_equal(csv_columns(csv), 3);
    assert_int_equal(csv_rows(csv), 2);
    assert_int_equal(csv_find(csv, "b,c"), 1);
    assert_int_equal(csv_find(csv, "e"), -1);
    assert_string_equal(csv_text(csv, 0, 1), "x \"y\"");
    assert_string_equal(csv_text(csv, 1, 0), "");
    double x;
    test_ok(csv_real(csv, 1, 2, -5, 5, &x, &err), &err);
    test_near(x, -3, 0);
    int64_t n;
    assert_false(csv_int(csv, 0, 2, 0, 9, &n, &err));
    assert_non_null(strstr(err.text, "t: line 2: d"));
    csv_free(csv);
}

static void damaged_tables_are_refused_with_their_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {{"", "no header"},
                 {"\n1\n", "no header"},
                 {"a,b\n1\n", "line 2: found 1 fields, expected 2"},
                 {"a,b\n1,2\n1,2,3\n", "line 3: found more than 2"},
                 {"a,b\n\"1,2\n", "line 2: found a misplaced quote"},
                 {"a,b\n1,2\"\n", "line 2: found a misplaced quote"},
                 {"a,b\n\"1\"x,2\n", "line 2: found a misplaced quote"},
                 {"a,b\n1,2\n\n", "line 3: found 1 fields"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        assert_null(csv_parse("t", cases[i].text, strlen(cases[i].text), &err));
        if (!strstr(err.text, cases[i].message)) fail_msg("case %zu: %s", i, err.text);
    }
    struct err err = {0};
    assert_null(csv_parse("t", "a\n\0\n", 4, &err));
    assert_non_null(strstr(err.text, "zero byte"));
}

static void gzip_is_read_and_a_cut_stream_is_refused(void **state) {
    (void)state;
    struct err err = {0};
    char path[1200], cut[1200];
    const char *folder = test_folder("csv");
    snprintf(path, sizeof path, "%s/t.csv.gz", folder);
    snprintf(cut, sizeof cut, "%s/cut.csv.gz", folder);
    gzFile file = gzopen(path, "wb");
    gzputs(file, "a,b\n");
    for (int i = 0; i < 2000; i++) gzprintf(file, "%d,%d\n", i, i * i % 977);
    gzclose(file);
    struct csv *csv = csv_read(path, 1 << 20, &err);
    test_ok(csv != NULL, &err);
    assert_int_equal(csv_rows(csv), 2000);
    assert_string_equal(csv_text(csv, 1999, 0), "1999");
    csv_free(csv);
    assert_null(csv_read(path, 1000, &err));
    assert_non_null(strstr(err.text, "more than 1000"));
    size_t len;
    char *bytes = file_read(path, 1 << 20, &len, &err);
    test_ok(file_write(cut, bytes, len / 2, &err), &err);
    free(bytes);
    assert_null(csv_read(cut, 1 << 20, &err));
    assert_int_equal(err.code, ERR_FORMAT);
    assert_null(csv_read(folder, 1 << 20, &err));
    assert_null(csv_read("build/test-out/absent.csv", 1 << 20, &err));
}

/* Lines of up to 100 KB: longer than the buffer that reading begins with. */
static void rows_one_by_one_are_those_of_the_whole(void **state) {
    (void)state;
    struct err err = {0};
    struct str text = {0};
    char path[1200];
    snprintf(path, sizeof path, "%s/t.csv.gz", test_folder("csv"));
    str_puts(&text, "a,b\r\n");
    for (int i = 0; i < 300; i++) {
        str_printf(&text, "%d,\"", i);
        for (int j = 0; j < i * i; j++) str_puts(&text, j % 7 ? "x" : ",");
        str_puts(&text, i % 2 ? "\"\n" : "\"\r\n");
    }
    gzFile file = gzopen(path, "wb");
    assert_int_equal(gzwrite(file, text.data, (unsigned)text.len), (int)text.len);
    gzclose(file);
    struct csv *whole = csv_read(path, (size_t)1 << 30, &err), *rows = csv_open(path, &err);
    test_ok(whole && rows, &err);
    assert_int_equal(csv_rows(rows), 0);
    for (int64_t row = 0; row < csv_rows(whole); row++) {
        test_ok(csv_next(rows, &err), &err);
        assert_int_equal(csv_rows(rows), 1);
        assert_int_equal(csv_line(rows, 0), csv_line(whole, row));
        for (int c = 0; c < 2; c++)
            assert_string_equal(csv_text(rows, 0, c), csv_text(whole, row, c));
    }
    test_ok(csv_next(rows, &err), &err);
    assert_int_equal(csv_rows(rows), 0);
    csv_free(whole);
    csv_free(rows);
    str_free(&text);
}

static void damage_is_found_row_by_row_too(void **state) {
    (void)state;
    static const struct {
        const char *text, *complaint;
    } cases[] = {{"", "no header"},
                 {"a,b\n1,2\n1\n", "line 3: found 1 fields, expected 2"},
                 {"a,b\n1,2\n\n", "line 3: found 1 fields"},
                 {"a,b\n1,2\n\"1,2\n", "line 3: found a misplaced quote"}};
    char path[1200];
    snprintf(path, sizeof path, "%s/t.csv", test_folder("csv"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        test_ok(file_write(path, cases[i].text, strlen(cases[i].text), &err), &err);
        struct csv *csv = csv_open(path, &err);
        while (csv && csv_next(csv, &err) && csv_rows(csv))
            ;
        if (!strstr(err.text, cases[i].complaint) || !strstr(err.text, path))
            fail_msg("'%s' lacks '%s'", err.text, cases[i].complaint);
        csv_free(csv);
    }
}

int test_csv(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(fields_are_found_by_header_and_unquoted),
                                       cmocka_unit_test(damaged_tables_are_refused_with_their_line),
                                       cmocka_unit_test(gzip_is_read_and_a_cut_stream_is_refused),
                                       cmocka_unit_test(rows_one_by_one_are_those_of_the_whole),
                                       cmocka_unit_test(damage_is_found_row_by_row_too)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
