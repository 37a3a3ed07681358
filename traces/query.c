/* query.c - named queries on a trace or result, as tables
 *
 * A statement is stepped twice: once to learn the kinds of columns that have no declared type
 * (expressions), once to fill the table. */
#include "traces/query.h"

#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "embed.h"
#include "traces/internal.h"
#include "traces/score_table.h"

const struct trace_named_query trace_named_queries[] = {
#define X(name) {#name, embed_traces_queries_##name##_sql},
    TRACE_QUERIES(X)
#undef X
        {NULL, NULL}};

static bool bind_values(struct db *db, sqlite3_stmt *row, const struct query_value *values,
                        int count, struct err *err) {
    if (sqlite3_bind_parameter_count(row) != count)
        return err_set(err, ERR_USAGE, "%s: query: found %d values, expected %d", db->path, count,
                       sqlite3_bind_parameter_count(row));
    for (int i = 0; i < count; i++) {
        if (values[i].kind == QUERY_INT)
            sqlite3_bind_int64(row, i + 1, values[i].integer);
        else if (values[i].kind == QUERY_REAL)
            sqlite3_bind_double(row, i + 1, values[i].real);
        else if (values[i].kind == QUERY_TEXT)
            sqlite3_bind_text(row, i + 1, values[i].text, -1, SQLITE_STATIC);
    }
    return true;
}

/* Kind of a column from a value: text wins over real, real over integer. -1 = still unknown. */
static int wider(int kind, int type) {
    if (type == SQLITE_NULL) return kind;
    int found = type == SQLITE_INTEGER ? TABLE_INT : type == SQLITE_FLOAT ? TABLE_REAL : TABLE_TEXT;
    return found > kind ? found : kind;
}

static int declared(const char *type) {
    if (!type) return -1;
    if (strcmp(type, "INTEGER") == 0) return TABLE_INT;
    return strcmp(type, "REAL") == 0 ? TABLE_REAL : TABLE_TEXT;
}

static bool learn_columns(struct db *db, sqlite3_stmt *row, struct table_column *columns, int n,
                          struct err *err) {
    int *kinds = calloc((size_t)n + 1, sizeof *kinds);
    if (!kinds) return err_memory(err, "query");
    bool all = true;
    for (int c = 0; c < n; c++) {
        kinds[c] = declared(sqlite3_column_decltype(row, c));
        all = all && kinds[c] >= 0;
    }
    enum db_step step = DB_DONE;
    while (!all && (step = db_step(db, row, err)) == DB_ROW)
        for (int c = 0; c < n; c++)
            if (declared(sqlite3_column_decltype(row, c)) < 0)
                kinds[c] = wider(kinds[c], sqlite3_column_type(row, c));
    sqlite3_reset(row);
    for (int c = 0; c < n; c++) {
        const char *name = sqlite3_column_name(row, c);
        columns[c] = (struct table_column){name ? name : "", "",
                                           kinds[c] < 0 ? TABLE_TEXT : (enum table_kind)kinds[c]};
    }
    free(kinds);
    return step != DB_FAILED;
}

static void add_text(struct table *table, sqlite3_stmt *row, int column) {
    if (sqlite3_column_type(row, column) != SQLITE_BLOB) {
        table_text(table, (const char *)sqlite3_column_text(row, column));
        return;
    }
    const unsigned char *bytes = sqlite3_column_blob(row, column);
    int n = sqlite3_column_bytes(row, column);
    struct str text = {0};
    if (n > 64)
        str_printf(&text, "(%d bytes)", n);
    else
        str_puts(&text, "x'");
    for (int i = 0; i < n && n <= 64; i++) str_printf(&text, "%02x", bytes[i]);
    if (n <= 64) str_puts(&text, "'");
    table_text(table, text.failed ? "(out of memory)" : str_text(&text));
    str_free(&text);
}

static bool fill(struct db *db, sqlite3_stmt *row, struct table *table,
                 const struct table_column *columns, int n, struct err *err) {
    enum db_step step;
    while ((step = db_step(db, row, err)) == DB_ROW)
        for (int c = 0; c < n; c++) {
            if (sqlite3_column_type(row, c) == SQLITE_NULL)
                table_null(table);
            else if (columns[c].kind == TABLE_INT)
                table_int(table, sqlite3_column_int64(row, c));
            else if (columns[c].kind == TABLE_REAL)
                table_real(table, sqlite3_column_double(row, c));
            else
                add_text(table, row, c);
        }
    return step != DB_FAILED && table_ok(table, err);
}

static struct table *collect(struct db *db, sqlite3_stmt *row, struct err *err) {
    int n = sqlite3_column_count(row);
    struct table_column *columns = calloc((size_t)n + 1, sizeof *columns);
    struct table *table = NULL;
    if (!columns)
        err_memory(err, "query");
    else if (learn_columns(db, row, columns, n, err))
        table = table_create(columns, n, err);
    if (table && !fill(db, row, table, columns, n, err)) {
        table_free(table);
        table = NULL;
    }
    free(columns);
    return table;
}

struct table *trace_query(struct trace *trace, const char *name, const struct query_value *values,
                          int count, struct err *err) {
    const char *sql = NULL;
    for (const struct trace_named_query *q = trace_named_queries; q->name; q++)
        if (strcmp(q->name, name) == 0) sql = q->sql;
    if (!sql) {
        err_set(err, ERR_USAGE, "query '%.60s': there is none of this name", name);
        return NULL;
    }
    score_table_register(trace->db.handle);
    sqlite3_stmt *row = db_prepare(&trace->db, sql, err);
    struct table *table = NULL;
    if (row && bind_values(&trace->db, row, values, count, err))
        table = collect(&trace->db, row, err);
    sqlite3_finalize(row);
    return table;
}

struct table *trace_sql(struct trace *trace, const char *sql, struct err *err) {
    struct db *db = &trace->db;
    sqlite3_stmt *row = NULL;
    const char *rest = "";
    struct table *table = NULL;
    int code = score_table_register(db->handle);
    if (code == SQLITE_OK) code = sqlite3_prepare_v2(db->handle, sql, -1, &row, &rest);
    if (code != SQLITE_OK)
        err_set(err, ERR_USAGE, "SQL: %.400s", sqlite3_errmsg(db->handle));
    else if (!row || strspn(rest, " \t\r\n;") != strlen(rest))
        err_set(err, ERR_USAGE, "SQL: found %s, expected one statement",
                row ? "more text" : "none");
    else if (!sqlite3_stmt_readonly(row) || sqlite3_column_count(row) == 0)
        err_set(err, ERR_USAGE, "SQL: found a statement that is no query, expected SELECT");
    else
        table = collect(db, row, err);
    sqlite3_finalize(row);
    return table;
}
