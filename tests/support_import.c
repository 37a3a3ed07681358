/* support_import.c - imports a file into a trace, or sees it refused with one line */
#include "tests/support_import.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/table.h"
#include "tests/test.h"
#include "traces/query.h"

static char out[512];

void import_into(const char *folder) {
    snprintf(out, sizeof out, "%s/run.db", test_folder(folder));
}

const char *import_out(void) { return out; }

bool import_as(const char *from, struct import_job job, struct err *err) {
    *err = (struct err){0};
    job.out = out;
    job.force = true;
    const struct trace_importer *importer = trace_importer_find(from, job.files[0], err);
    return importer && trace_import(importer, &job, err);
}

struct trace *imported(const char *from, const char *expected, struct import_job job) {
    struct err err;
    if (!import_as(from, job, &err)) fail_msg("%s: %s", job.files[0], err.text);
    struct trace *trace = trace_open(out, &err);
    test_ok(trace, &err);
    assert_string_equal(trace_capture(trace)->source, expected);
    return trace;
}

void refused(const char *from, const char *expected, struct import_job job) {
    struct err err;
    char partial[600];
    snprintf(partial, sizeof partial, "%s.partial", out);
    remove(out);
    if (import_as(from, job, &err)) fail_msg("%s: imported, expected: %s", job.files[0], expected);
    if (!strstr(err.text, expected)) fail_msg("'%s' lacks '%s'", err.text, expected);
    if (!strstr(err.text, job.files[0]) || strchr(err.text, '\n')) fail_msg("'%s'", err.text);
    assert_false(file_exists(out));
    assert_false(file_exists(partial));
}

struct import_job import_of(const char *path) {
    static const char *files[8];
    static int turn;
    const char **file = &files[turn++ % 8];
    *file = path;
    return (struct import_job){.files = file, .file_count = 1};
}

double trace_number(struct trace *trace, const char *sql) {
    struct err err = {0};
    struct table *table = trace_sql(trace, sql, &err);
    if (!table) fail_msg("%s: %s", sql, err.text);
    double value = table_rows(table) ? table_number(table, 0, 0) : (double)NAN;
    table_free(table);
    return value;
}
