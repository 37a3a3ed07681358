/* steelyard.c - the loadable extension build/steelyard.so: router_score in any SQLite shell
 *
 *     sqlite3 run.db
 *     sqlite> .load build/steelyard
 *     sqlite> SELECT token, expert, logit FROM router_score WHERE layer = 3 AND position < 10;
 *
 * SQLite is called through the table of functions that the host hands over, never linked. */
#include <sqlite3ext.h>

#include "traces/score_table.h"

SQLITE_EXTENSION_INIT1

int sqlite3_steelyard_init(sqlite3 *db, char **message, const sqlite3_api_routines *api);

int sqlite3_steelyard_init(sqlite3 *db, char **message, const sqlite3_api_routines *api) {
    (void)message;
    SQLITE_EXTENSION_INIT2(api)
    return score_table_register(db);
}
