/* test_safetensors.c - the container: round trip, and damaged headers refused */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/safetensors.h"
#include "base/str.h"

static const char *scratch(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", test_folder("safetensors"), name);
    return path;
}

static void what_is_written_reads_back(void **state) {
    (void)state;
    struct err err = {0};
    const char *path = scratch("a.safetensors");
    float values[6] = {1, 2, 3, 4, 5, -6};
    int32_t ids[2] = {7, -8};
    struct safetensors_writer *writer = safetensors_create(path, &err);
    test_ok(writer, &err);
    test_ok(safetensors_declare(writer, "b", ST_F32, 2, (int64_t[]){2, 3}, &err), &err);
    test_ok(safetensors_declare(writer, "a\"\n", ST_I32, 1, (int64_t[]){2}, &err), &err);
    test_ok(safetensors_note(writer, "gate.3", "softmax,topk=2", &err), &err);
    test_ok(safetensors_write(writer, values, 8, &err), &err);
    assert_false(file_exists(path));
    test_ok(safetensors_write(writer, values + 2, 16, &err), &err);
    test_ok(safetensors_write(writer, ids, sizeof ids, &err), &err);
    test_ok(safetensors_commit(writer, &err), &err);
    struct safetensors *file = safetensors_open(path, &err);
    test_ok(file, &err);
    assert_int_equal(safetensors_count(file), 2);
    const struct safetensors_tensor *b = safetensors_find(file, "b");
    assert_non_null(b);
    assert_int_equal(b->shape[1], 3);
    assert_memory_equal(b->data, values, sizeof values);
    assert_memory_equal(safetensors_find(file, "a\"\n")->data, ids, sizeof ids);
    assert_string_equal(safetensors_metadata(file, "gate.3"), "softmax,topk=2");
    assert_null(safetensors_find(file, "c"));
    safetensors_close(file);
}

static void too_few_bytes_leave_no_file(void **state) {
    (void)state;
    struct err err = {0};
    const char *path = scratch("short.safetensors");
    struct safetensors_writer *writer = safetensors_create(path, &err);
    test_ok(safetensors_declare(writer, "a", ST_F32, 1, (int64_t[]){2}, &err), &err);
    test_ok(safetensors_write(writer, "1234", 4, &err), &err);
    assert_false(safetensors_commit(writer, &err));
    assert_non_null(strstr(err.text, "found 4 bytes, expected 8"));
    assert_false(file_exists(path));
}

/* A file with this header text and `data` zero bytes behind it. */
static void damaged(const char *header, size_t data, const char *expected) {
    struct err err = {0};
    struct str bytes = {0};
    uint64_t len = strlen(header);
    const char *path = scratch("bad.safetensors");
    str_append(&bytes, &len, 8);
    str_puts(&bytes, header);
    for (size_t i = 0; i < data; i++) str_append(&bytes, "", 1);
    test_ok(file_write(path, bytes.data, bytes.len, &err), &err);
    struct safetensors *file = safetensors_open(path, &err);
    if (file) fail_msg("accepted: %s", header);
    if (!strstr(err.text, expected)) fail_msg("'%s' lacks '%s'", err.text, expected);
    str_free(&bytes);
}

static void damaged_headers_are_refused(void **state) {
    (void)state;
    damaged("{", 0, "damaged");
    damaged("[]", 0, "expected an object");
    damaged("{\"a\":3}", 0, "expected an object");
    damaged("{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F33");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 4, "truncated");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,4]}}", 8, "range");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "2 elements");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "whole number");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4,
            "whole number");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],"
            "\"data_offsets\":[0,4]}}",
            4, "addressed");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
            "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
            8, "overlap");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "8 bytes");
    damaged("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
            "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
            8, "twice");
    damaged("{\"__metadata__\":{\"a\":1}}", 0, "expected a string");
}

int test_safetensors(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_written_reads_back),
                                       cmocka_unit_test(too_few_bytes_leave_no_file),
                                       cmocka_unit_test(damaged_headers_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
