/* hash_table.c - the tables of hash layers in a trace */
#include "traces/hash_table.h"

#include <stdlib.h>
#include <string.h>

#include "embed.h"

static bool is_hash_layer(const struct trace_layer *layer) {
    return layer->has_gate && layer->gate.fn == GATE_HASH_TABLE;
}

static bool refuse_missing(const char *path, const struct trace_layer *layer, struct err *err) {
    return err_set(err, ERR_DATA,
                   "%s: layer %d: gate: found fn=hash-table without a table, expected one", path,
                   layer->layer);
}

/* ---- writing */

static bool insert(struct db *db, sqlite3_stmt *row, int r, const struct trace_layer *layer,
                   struct err *err) {
    const struct route_table *table = &layer->table;
    size_t cells = (size_t)table->ids * (size_t)layer->topk;
    uint16_t *experts = malloc(cells * sizeof *experts + 1);
    if (!experts) return err_memory(err, "hash table");
    for (size_t i = 0; i < cells; i++) experts[i] = (uint16_t)table->expert[i];
    sqlite3_bind_int(row, 1, r);
    sqlite3_bind_int(row, 2, table->ids);
    sqlite3_bind_blob64(row, 3, experts, cells * sizeof *experts, SQLITE_STATIC);
    bool ok = db_run(db, row, err);
    free(experts);
    return ok;
}

bool hash_tables_insert(struct db *db, const struct trace_setup *setup, struct err *err) {
    int first = 0;
    while (first < setup->layer_count && !is_hash_layer(&setup->layers[first])) first++;
    if (first == setup->layer_count) return true;
    if (!db_exec(db, embed_traces_hash_table_sql, err)) return false;
    sqlite3_stmt *row = db_prepare(db, "INSERT INTO hash_table VALUES (?, ?, ?)", err);
    bool ok = row != NULL;
    for (int r = first; ok && r < setup->layer_count; r++) {
        const struct trace_layer *layer = &setup->layers[r];
        if (!is_hash_layer(layer)) continue;
        ok = layer->table.expert ? insert(db, row, r, layer, err)
                                 : refuse_missing(db->path, layer, err);
    }
    sqlite3_finalize(row);
    return ok;
}

/* ---- reading */

static bool read_experts(const uint16_t *from, const struct trace_layer *layer, int32_t *expert,
                         struct err *err) {
    int k = layer->topk;
    for (int64_t id = 0; id < layer->table.ids; id++, expert += k, from += k) {
        for (int i = 0; i < k; i++) {
            bool fine = from[i] < layer->experts;
            for (int j = 0; j < i && fine; j++) fine = from[j] != from[i];
            if (!fine)
                return err_set(err, ERR_FORMAT,
                               "layer %d: hash table: token id %lld: found expert %d, expected "
                               "distinct ones below %d",
                               layer->layer, (long long)id, from[i], layer->experts);
            expert[i] = from[i];
        }
    }
    return true;
}

static bool load_table(struct trace *trace, sqlite3_stmt *row, struct err *err) {
    int64_t r = sqlite3_column_int64(row, 0), ids = sqlite3_column_int64(row, 1);
    if (r < 0 || r >= trace->layer_count)
        return err_set(err, ERR_FORMAT, "%s: hash_table.router: found %lld, expected 0 to %d",
                       trace->db.path, (long long)r, trace->layer_count - 1);
    struct trace_layer *layer = &trace->layers[r];
    int64_t bytes = sqlite3_column_bytes(row, 2);
    if (ids < 1 || ids > INT32_MAX || bytes != ids * layer->topk * 2)
        return err_set(err, ERR_FORMAT,
                       "%s: layer %d: hash table of %lld ids: found %lld bytes, expected %d an id",
                       trace->db.path, layer->layer, (long long)ids, (long long)bytes,
                       2 * layer->topk);
    size_t cells = (size_t)ids * (size_t)layer->topk;
    int32_t *expert = arena_room(&trace->arena, cells, sizeof *expert);
    uint16_t *stored = malloc(cells * sizeof *stored);
    bool ok = (expert && stored) || err_memory(err, "hash table");
    layer->table = (struct route_table){(int32_t)ids, expert};
    if (ok) {
        memcpy(stored, sqlite3_column_blob(row, 2), cells * sizeof *stored);
        ok = read_experts(stored, layer, expert, err) || err_context(err, "%s", trace->db.path);
    }
    free(stored);
    return ok;
}

bool hash_tables_load(struct trace *trace, struct err *err) {
    int64_t there = 0;
    bool ok = db_int(&trace->db,
                     "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND "
                     "name = 'hash_table'",
                     &there, err);
    sqlite3_stmt *row = NULL;
    if (ok && there)
        ok = (row = db_prepare(&trace->db, "SELECT router, ids, experts FROM hash_table", err));
    enum db_step step = DB_DONE;
    while (ok && row && (step = db_step(&trace->db, row, err)) == DB_ROW)
        ok = load_table(trace, row, err);
    sqlite3_finalize(row);
    ok = ok && step == DB_DONE;
    for (int r = 0; ok && r < trace->layer_count; r++)
        if (is_hash_layer(&trace->layers[r]) && !trace->layers[r].table.expert)
            ok = refuse_missing(trace->db.path, &trace->layers[r], err);
    return ok;
}

bool hash_tables_equal(const struct route_table *a, const struct route_table *b, int topk) {
    size_t cells = (size_t)a->ids * (size_t)topk;
    if (!a->expert || !b->expert) return !a->expert && !b->expert;
    return a->ids == b->ids && memcmp(a->expert, b->expert, cells * sizeof *a->expert) == 0;
}
