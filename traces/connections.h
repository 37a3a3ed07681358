/* connections.h - read connections to one file that wait for their next user
 *
 * Private to traces/. A connection costs 1 ms (most of it reads the schema) and a fault for every
 * page that SQLite maps; who scans one router after another takes the same connection again, and
 * the pages of an earlier pass are still mapped. Thread-safe. */
#ifndef TRACES_CONNECTIONS_H
#define TRACES_CONNECTIONS_H

#include "traces/db.h"

struct connections;

/* Returns owned; NULL when out of memory. */
struct connections *connections_create(void);
/* Closes those that wait; all must have been given back. NULL is allowed. */
void connections_free(struct connections *connections);
/* *db <- one that waits, or a new one of `path`. connections NULL: a new one. The taker owns it. */
bool connections_take(struct connections *connections, const char *path, struct db *db,
                      struct err *err);
/* Gives one back, its statements finalised and its transaction ended. connections NULL: closes it.
 */
void connections_give(struct connections *connections, struct db *db);

#endif
