/* upgrade.c - databases of earlier versions of the schema become present ones
 *
 * A table whose definition differs is copied aside, made anew and filled by the columns that both
 * have; views are made anew. To add a version: raise TRACE_USER_VERSION, add the hash of the form
 * that was (trace_upgrade on such a file names it), and what new columns hold that may not be
 * NULL. */
#include "traces/upgrade.h"

#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "base/str.h"
#include "embed.h"
#include "traces/db.h"

/* Forms that were, oldest first. */
static const struct form {
    int version;
    const char *hash;
    const char *words;
} forms[] = {
    {1, "77bfd1521adb3b09e30850819bfb80e6628d19013ffa65681627899f59f663ef",
     "results without dynamics and losses"},
    {1, "da3f8a99da42c9d9e66ce6aea18f5f11108b776fba2e95a89c66156c26cc1300",
     "results without losses"},
    {1, "896061551109b3404a00de581eac3c907e6534a95b179b4e5443f604d775fd37",
     "results without capacity and batch-wise gates"},
    {1, "da4eb8b93c8571be6dd0a495550c1518cdfda85811d2ec5633472439ba1c50dc",
     "the present form, numbered 1"},
};

/* What columns hold in older results, where NULL is not allowed. */
static const struct {
    const char *table, *column, *value;
} fills[] = {
    {"result_variant", "causal", "1"}, /* gates that need a whole batch came with the column */
};

/* Definitions of the present schema's objects as the file has them, in order of name. */
static bool hash_form(struct db *db, struct db *model, char hex[static 65], struct err *err) {
    struct sha256 sha;
    sqlite3_stmt *want = db_prepare(
        model, "SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name", err);
    sqlite3_stmt *have =
        want ? db_prepare(db, "SELECT sql FROM sqlite_schema WHERE type = ?1 AND name = ?2", err)
             : NULL;
    enum db_step step = DB_FAILED;
    bool ok = have != NULL;
    sha256_init(&sha);
    while (ok && (step = db_step(model, want, err)) == DB_ROW) {
        for (int i = 0; i < 2; i++) sqlite3_bind_text(have, i + 1, db_text(want, i), -1, NULL);
        enum db_step found = db_step(db, have, err);
        ok = found != DB_FAILED;
        if (found == DB_ROW) {
            sha256_add(&sha, db_text(want, 1), strlen(db_text(want, 1)) + 1);
            sha256_add(&sha, db_text(have, 0), strlen(db_text(have, 0)) + 1);
        }
        sqlite3_reset(have);
    }
    sqlite3_finalize(have);
    sqlite3_finalize(want);
    sha256_hex(&sha, hex);
    return ok && step == DB_DONE;
}

static const struct form *find_form(struct db *db, struct db *model, int64_t version,
                                    struct err *err) {
    char hex[65];
    if (!hash_form(db, model, hex, err)) return NULL;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (forms[i].version == version && strcmp(forms[i].hash, hex) == 0) return &forms[i];
    err_set(
        err, ERR_FORMAT,
        "%s: version %lld of the trace schema: found definitions of hash %s, which no release made",
        db->path, (long long)version, hex);
    return NULL;
}

/* Runs the SQL that `format` makes, all arguments being the name `name`. */
static bool run_named(struct db *db, const char *before, const char *name, const char *after,
                      struct err *err) {
    struct str sql = {0};
    str_printf(&sql, "%s \"%s\" %s", before, name, after);
    bool ok = sql.failed ? err_memory(err, name) : db_exec(db, str_text(&sql), err);
    str_free(&sql);
    return ok;
}

/* "a", "b", ... of the columns that both tables have, then those with a fixed value. */
static bool list_columns(struct db *db, const char *table, struct str *names, struct str *values,
                         struct err *err) {
    sqlite3_stmt *row =
        db_prepare(db,
                   "SELECT n.name, o.name IS NULL FROM pragma_table_info(?1, 'main') n "
                   "LEFT JOIN pragma_table_info('former', 'temp') o USING (name)",
                   err);
    if (!row) return false;
    sqlite3_bind_text(row, 1, table, -1, NULL);
    enum db_step step;
    while ((step = db_step(db, row, err)) == DB_ROW) {
        const char *name = db_text(row, 0), *value = NULL;
        for (size_t i = 0; i < sizeof fills / sizeof *fills; i++)
            if (strcmp(fills[i].table, table) == 0 && strcmp(fills[i].column, name) == 0)
                value = fills[i].value;
        if (sqlite3_column_int(row, 1) && !value) continue; /* NULL */
        str_printf(names, "%s\"%s\"", names->len ? ", " : "", name);
        if (sqlite3_column_int(row, 1))
            str_printf(values, "%s%s", values->len ? ", " : "", value);
        else
            str_printf(values, "%s\"%s\"", values->len ? ", " : "", name);
    }
    sqlite3_finalize(row);
    return step == DB_DONE && ((!names->failed && !values->failed) || err_memory(err, table));
}

static bool remake_table(struct db *db, const char *name, const char *definition, struct err *err) {
    struct str names = {0}, values = {0}, sql = {0};
    bool ok = run_named(db, "CREATE TEMP TABLE former AS SELECT * FROM main.", name, "", err) &&
              run_named(db, "DROP TABLE main.", name, "", err) && db_exec(db, definition, err) &&
              list_columns(db, name, &names, &values, err);
    str_printf(&sql, "INSERT INTO main.\"%s\"(%s) SELECT %s FROM temp.former", name,
               str_text(&names), str_text(&values));
    ok = ok && (!sql.failed || err_memory(err, name)) && db_exec(db, str_text(&sql), err) &&
         db_exec(db, "DROP TABLE temp.former", err);
    str_free(&names);
    str_free(&values);
    str_free(&sql);
    return ok;
}

/* Makes one object of the present schema, unless the file has it so. */
static bool make_object(struct db *db, sqlite3_stmt *want, struct err *err) {
    const char *type = db_text(want, 0), *name = db_text(want, 1), *definition = db_text(want, 2);
    bool view = strcmp(type, "view") == 0;
    sqlite3_stmt *have = db_prepare(db, "SELECT sql = ?2 FROM sqlite_schema WHERE name = ?1", err);
    if (!have) return false;
    sqlite3_bind_text(have, 1, name, -1, NULL);
    sqlite3_bind_text(have, 2, definition, -1, NULL);
    enum db_step step = db_step(db, have, err);
    bool there = step == DB_ROW, same = there && sqlite3_column_int(have, 0) == 1;
    sqlite3_finalize(have);
    if (step == DB_FAILED || same) return same;
    if (there && !view) return remake_table(db, name, definition, err);
    return (!there || run_named(db, "DROP VIEW main.", name, "", err)) &&
           db_exec(db, definition, err);
}

/* Tables first, then views. */
static bool make_objects(struct db *db, struct db *model, struct err *err) {
    sqlite3_stmt *want = db_prepare(
        model,
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, rowid",
        err);
    enum db_step step = DB_FAILED;
    bool ok = want != NULL;
    while (ok && (step = db_step(model, want, err)) == DB_ROW) ok = make_object(db, want, err);
    sqlite3_finalize(want);
    return ok && step == DB_DONE;
}

static bool drop_throughput(struct db *db, struct upgrade_report *report, struct err *err) {
    int64_t there;
    if (!db_int(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'result_throughput'", &there,
                err))
        return false;
    report->lost_throughput = there > 0;
    return db_exec(db,
                   "DROP VIEW IF EXISTS throughput; DROP VIEW IF EXISTS placement_map;"
                   "DROP VIEW IF EXISTS traffic_map; DROP TABLE IF EXISTS result_throughput_run;"
                   "DROP TABLE IF EXISTS result_throughput;"
                   "DROP TABLE IF EXISTS result_placement; DROP TABLE IF EXISTS result_traffic",
                   err);
}

static bool upgrade(struct db *db, struct db *model, struct upgrade_report *report,
                    struct err *err) {
    int64_t version;
    if (!db_check_version(db, &version, err)) return false;
    report->from = (int)version;
    report->to = TRACE_USER_VERSION;
    report->form = "the present form";
    if (version == TRACE_USER_VERSION) return db_check_schema(db, err);
    const struct form *form = find_form(db, model, version, err);
    if (!form) return false;
    report->form = form->words;
    return drop_throughput(db, report, err) && make_objects(db, model, err) &&
           db_execf(db, err, "PRAGMA user_version = %d", TRACE_USER_VERSION) &&
           db_check_schema(db, err);
}

bool trace_upgrade(const char *path, struct upgrade_report *report, struct err *err) {
    struct db db = {0}, model = {0};
    struct err ignored;
    *report = (struct upgrade_report){0};
    bool ok = db_open(&db, path, DB_WRITE, err) && db_open_memory(&model, err) &&
              db_exec(&model, embed_traces_schema_sql, err) &&
              db_exec(&db, "PRAGMA temp_store = MEMORY; BEGIN IMMEDIATE", err);
    bool begun = ok;
    ok = ok && upgrade(&db, &model, report, err) && db_exec(&db, "COMMIT", err);
    if (begun && !ok) db_exec(&db, "ROLLBACK", &ignored);
    db_close(&model);
    db_close(&db);
    return ok;
}
