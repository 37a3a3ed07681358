/* hash_table.h - the tables of hash layers in a trace
 *
 * Layer 3, private to traces/. Stored as traces/hash_table.sql says, only where a router has one.
 */
#ifndef TRACES_HASH_TABLE_H
#define TRACES_HASH_TABLE_H

#include "traces/internal.h"

/* Inserts the tables of the setup's layers; refuses a gate fn=hash-table without one. */
bool hash_tables_insert(struct db *db, const struct trace_setup *setup, struct err *err);
/* Gives the loaded layers their tables, from the trace's arena. Refuses a damaged table, and a gate
 * fn=hash-table without one. */
bool hash_tables_load(struct trace *trace, struct err *err);
/* Equal in every row of k experts? */
bool hash_tables_equal(const struct route_table *a, const struct route_table *b, int topk);

#endif
