/* hash_tables.h - tables of hash layers from a file: experts by token id
 *
 * Layer 4 (sim): calls router and base. The file is safetensors; a tensor whose name holds
 * "layers.N." and ends in "tid2eid" is the table of layer N, integers [ids,k]: the released shards
 * of DeepSeek-V4 (layers.N.ffn.gate.tid2eid), transformers' (model.layers.N.mlp.gate.tid2eid) and
 * an interchange file with layers.N.tid2eid all are such files. Other tensors are not looked at. */
#ifndef SIM_HASH_TABLES_H
#define SIM_HASH_TABLES_H

#include <stdbool.h>

#include "base/err.h"
#include "router/route.h"

struct hash_tables; /* an open file */

/* Refuses a file without any table. Returns owned; NULL with err set. */
struct hash_tables *hash_tables_open(const char *path, struct err *err);
void hash_tables_close(struct hash_tables *tables);

/* The table of a layer, for k of E experts; borrowed from `tables`. Refuses a layer without one,
 * another k, and rows that are not k distinct experts. Not to be called by two threads at once. */
bool hash_tables_find(const struct hash_tables *tables, int layer, int experts, int topk,
                      struct route_table *table, struct err *err);

#endif
