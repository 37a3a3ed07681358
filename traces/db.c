/* db.c - a thin layer over SQLite: safe settings, statements, errors that name the file */
#include "traces/db.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"
#include "embed.h"

enum { APPLICATION_ID = 1398033497 };

/* What a result code of SQLite means to a user. */
static const struct {
    int code;
    enum err_code err;
    const char *text;
} meanings[] = {
    {SQLITE_BUSY, ERR_EXISTS, "another process is using it (locked)"},
    {SQLITE_LOCKED, ERR_EXISTS, "another process is using it (locked)"},
    {SQLITE_NOTADB, ERR_FORMAT, "found no SQLite database, expected a Steelyard trace"},
    {SQLITE_CORRUPT, ERR_FORMAT, "the database is damaged"},
    {SQLITE_FULL, ERR_IO, "no space left on the disk"},
    {SQLITE_READONLY, ERR_IO, "cannot be written (read-only)"},
    {SQLITE_CANTOPEN, ERR_IO, "cannot be opened"},
    {SQLITE_PERM, ERR_IO, "permission denied"},
    {SQLITE_IOERR, ERR_IO, "the operating system refused to read or write"},
    {SQLITE_NOMEM, ERR_MEMORY, "out of memory"},
    {SQLITE_TOOBIG, ERR_DATA, "a value is too big"},
    {SQLITE_INTERRUPT, ERR_CANCELLED, "interrupted"},
};

bool db_fail(struct db *db, int code, const char *doing, struct err *err) {
    const char *detail = db->handle ? sqlite3_errmsg(db->handle) : sqlite3_errstr(code);
    for (size_t i = 0; i < sizeof meanings / sizeof *meanings; i++)
        if ((code & 0xff) == meanings[i].code)
            return err_set(err, meanings[i].err, "%s: %s: %s (SQLite: %.200s)", db->path, doing,
                           meanings[i].text, detail);
    return err_set(err, ERR_FORMAT, "%s: %s: %.300s", db->path, doing, detail);
}

static bool check_file(const char *path, struct err *err) {
    struct stat info;
    if (stat(path, &info) != 0) return err_errno(err, path, "cannot open");
    if (!S_ISREG(info.st_mode))
        return err_set(err, ERR_IO, "%s: found %s, expected a regular file", path,
                       S_ISDIR(info.st_mode) ? "a folder" : "a pipe or device");
    if (info.st_size == 0)
        return err_set(err, ERR_FORMAT, "%s: found an empty file, expected a Steelyard trace",
                       path);
    return true;
}

static bool configure(struct db *db, struct err *err) {
    sqlite3 *h = db->handle;
    sqlite3_extended_result_codes(h, 1);
    sqlite3_db_config(h, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(h, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_db_config(h, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_busy_timeout(h, 2000);
    return db_exec(db, "PRAGMA cell_size_check = 1; PRAGMA mmap_size = 2147418112;", err);
}

/* Opens path; messages say `name`. */
static bool open_named(struct db *db, const char *path, const char *name, int flags,
                       struct err *err) {
    *db = (struct db){.path = strdup(name)};
    if (!db->path) return err_memory(err, name);
    int code = sqlite3_open_v2(path, &db->handle, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (code != SQLITE_OK)
        db_fail(db, code, "open", err);
    else if (configure(db, err))
        return true;
    db_close(db);
    return false;
}

static bool open_as(struct db *db, const char *path, int flags, struct err *err) {
    return open_named(db, path, path, flags, err);
}

/* On a read-only medium a file in WAL mode cannot make its shared memory; without a WAL it is safe
 * to read it as it is. */
static bool reopen_immutable(struct db *db, struct err *err) {
    struct str uri = {0};
    str_printf(&uri, "%s-wal", db->path);
    struct stat info;
    bool wal = stat(str_text(&uri), &info) == 0 && info.st_size > 0;
    str_clear(&uri);
    str_puts(&uri, "file:");
    for (const char *c = db->path; *c; c++)
        str_printf(&uri, strchr("?#%", *c) ? "%%%02x" : "%c", (unsigned char)*c);
    str_puts(&uri, "?immutable=1");
    if (wal || uri.failed) {
        str_free(&uri);
        return false;
    }
    sqlite3_close(db->handle);
    db->handle = NULL;
    int code = sqlite3_open_v2(str_text(&uri), &db->handle,
                               SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, NULL);
    str_free(&uri);
    return code == SQLITE_OK && configure(db, err);
}

/* A writer that was killed while it closed leaves a journal that only a writer can roll back. */
static bool recover(const char *path) {
    struct db db;
    struct err ignored;
    int64_t version;
    if (!open_as(&db, path, SQLITE_OPEN_READWRITE, &ignored)) return false;
    bool ok = db_int(&db, "PRAGMA schema_version", &version, &ignored);
    db_close(&db);
    return ok;
}

bool db_open(struct db *db, const char *path, enum db_mode mode, struct err *err) {
    *db = (struct db){0};
    if (!check_file(path, err)) return false;
    if (!open_as(db, path, mode == DB_READ ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE, err))
        return false;
    int64_t version;
    if (db_int(db, "PRAGMA schema_version", &version, err)) return true;
    int code = sqlite3_extended_errcode(db->handle) & 0xff;
    if (mode == DB_READ && code == SQLITE_READONLY && recover(path) &&
        db_int(db, "PRAGMA schema_version", &version, err))
        return true;
    if (mode == DB_READ && (code == SQLITE_CANTOPEN || code == SQLITE_READONLY) &&
        reopen_immutable(db, err))
        return true;
    db_close(db);
    return false;
}

bool db_open_new(struct db *db, const char *path, struct err *err) {
    return open_as(db, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
}

bool db_open_temporary(struct db *db, const char *path, const char *name, struct err *err) {
    return open_named(db, path, name, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
}

bool db_open_memory(struct db *db, struct err *err) {
    return open_as(db, ":memory:", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
}

void db_close(struct db *db) {
    sqlite3_close_v2(db->handle);
    free(db->path);
    *db = (struct db){0};
}

bool db_exec(struct db *db, const char *sql, struct err *err) {
    int code = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);
    return code == SQLITE_OK || db_fail(db, code, "cannot be used", err);
}

bool db_execf(struct db *db, struct err *err, const char *format, ...) {
    char sql[256];
    va_list args;
    va_start(args, format);
    vsnprintf(sql, sizeof sql, format, args);
    va_end(args);
    return db_exec(db, sql, err);
}

sqlite3_stmt *db_prepare(struct db *db, const char *sql, struct err *err) {
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(db->handle, sql, -1, &statement, NULL);
    if (code != SQLITE_OK)
        db_fail(db, code, "cannot be used", err);
    else if (!statement)
        err_memory(err, db->path); /* an empty text: it could not be put together */
    return statement;
}

enum db_step db_step(struct db *db, sqlite3_stmt *statement, struct err *err) {
    int code = sqlite3_step(statement);
    if (code == SQLITE_ROW) return DB_ROW;
    if (code == SQLITE_DONE) return DB_DONE;
    db_fail(db, code, sqlite3_stmt_readonly(statement) ? "cannot read" : "cannot write", err);
    return DB_FAILED;
}

bool db_run(struct db *db, sqlite3_stmt *statement, struct err *err) {
    bool ok = db_step(db, statement, err) != DB_FAILED;
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return ok;
}

bool db_int(struct db *db, const char *sql, int64_t *out, struct err *err) {
    sqlite3_stmt *statement = db_prepare(db, sql, err);
    if (!statement) return false;
    enum db_step step = db_step(db, statement, err);
    if (step == DB_ROW)
        *out = sqlite3_column_int64(statement, 0);
    else if (step == DB_DONE)
        *out = 0;
    sqlite3_finalize(statement);
    return step != DB_FAILED;
}

const char *db_text(sqlite3_stmt *statement, int column) {
    const char *text = (const char *)sqlite3_column_text(statement, column);
    return text ? text : "";
}

/* Every object of schema.sql must be in the file word for word; others do not matter. */
static bool compare_schema(struct db *db, struct db *model, struct err *err) {
    static const char list[] = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL";
    static const char same[] =
        "SELECT count(*) FROM sqlite_schema WHERE type = ?1 AND name = ?2 AND sql = ?3";
    sqlite3_stmt *want = db_prepare(model, list, err);
    sqlite3_stmt *have = want ? db_prepare(db, same, err) : NULL;
    bool ok = have != NULL;
    while (ok && db_step(model, want, err) == DB_ROW) {
        for (int i = 0; i < 3; i++) sqlite3_bind_text(have, i + 1, db_text(want, i), -1, NULL);
        ok = db_step(db, have, err) == DB_ROW;
        if (ok && sqlite3_column_int(have, 0) != 1)
            ok = err_set(err, ERR_FORMAT,
                         "%s: %s %s: found another definition, expected that of "
                         "version %d of the trace schema",
                         db->path, db_text(want, 0), db_text(want, 1), TRACE_USER_VERSION);
        sqlite3_reset(have);
    }
    sqlite3_finalize(have);
    sqlite3_finalize(want);
    return ok;
}

bool db_check_version(struct db *db, int64_t *version, struct err *err) {
    int64_t id;
    if (!db_int(db, "PRAGMA application_id", &id, err) ||
        !db_int(db, "PRAGMA user_version", version, err))
        return false;
    if (id != APPLICATION_ID)
        return err_set(
            err, ERR_FORMAT,
            "%s: application_id: found %lld, expected %d (a database, but no Steelyard trace)",
            db->path, (long long)id, APPLICATION_ID);
    if (*version < 1 || *version > TRACE_USER_VERSION)
        return err_set(err, ERR_UNSUPPORTED, "%s: user_version: found %lld, expected %d (%s)",
                       db->path, (long long)*version, TRACE_USER_VERSION,
                       *version > TRACE_USER_VERSION ? "made by a newer steelyard" : "damaged");
    return true;
}

bool db_check_schema(struct db *db, struct err *err) {
    int64_t version;
    if (!db_check_version(db, &version, err)) return false;
    if (version != TRACE_USER_VERSION)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: user_version: found %lld, expected %d (made by an earlier steelyard: "
                       "`steelyard upgrade` brings it up to date)",
                       db->path, (long long)version, TRACE_USER_VERSION);
    struct db model;
    if (!db_open_memory(&model, err)) return false;
    bool ok = db_exec(&model, embed_traces_schema_sql, err) && compare_schema(db, &model, err);
    db_close(&model);
    return ok;
}
