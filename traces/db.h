/* db.h - a thin layer over SQLite: connections with safe settings, statements, errors naming the
 * file
 *
 * Layer 3, private to traces/. Only traces/ .c files include it (it includes sqlite3.h). Bound
 * parameters only; statements are finalised by their owner. */
#ifndef TRACES_DB_H
#define TRACES_DB_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct db {
    sqlite3 *handle;
    char *path; /* owned */
};

enum db_mode { DB_READ, DB_WRITE };

/* Opens an existing file (regular, not empty) with untrusted-schema settings: defensive, no trusted
 * schema, no triggers, cells checked. Nothing is read yet. */
bool db_open(struct db *db, const char *path, enum db_mode mode, struct err *err);
/* Also creates; an empty file is fine. */
bool db_open_new(struct db *db, const char *path, struct err *err);
/* The same for a file that will be renamed to `name`, which messages say. */
bool db_open_temporary(struct db *db, const char *path, const char *name, struct err *err);
bool db_open_memory(struct db *db, struct err *err);
void db_close(struct db *db);

/* Of schema.sql; upgrade.c knows the earlier ones. */
enum { TRACE_USER_VERSION = 2 };

/* Refuses what is no Steelyard database, or one of a later version. */
bool db_check_version(struct db *db, int64_t *version, struct err *err);
/* Also an earlier version, and what is not word for word as schema.sql has it. */
bool db_check_schema(struct db *db, struct err *err);

bool db_exec(struct db *db, const char *sql, struct err *err);
bool db_execf(struct db *db, struct err *err, const char *format, ...) ERR_PRINTF(3, 4);
/* Returns owned (sqlite3_finalize); NULL with err set. */
sqlite3_stmt *db_prepare(struct db *db, const char *sql, struct err *err);
enum db_step { DB_ROW, DB_DONE, DB_FAILED };
enum db_step db_step(struct db *db, sqlite3_stmt *statement, struct err *err);
/* Steps a statement that returns no row, resets it and unbinds. */
bool db_run(struct db *db, sqlite3_stmt *statement, struct err *err);
/* One integer answer of one row. */
bool db_int(struct db *db, const char *sql, int64_t *out, struct err *err);
/* Sets err from a result code of SQLite; returns false. `doing` is what was tried. */
bool db_fail(struct db *db, int code, const char *doing, struct err *err);

/* Text column as never NULL (borrowed until the next step). */
const char *db_text(sqlite3_stmt *statement, int column);

#endif
