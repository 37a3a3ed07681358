/* tokens.c - reading token columns and counts of a trace */
#include <math.h>
#include <string.h>

#include "traces/internal.h"

/* A column that must be a whole number in [min,max]. */
static bool ranged(struct trace *trace, sqlite3_stmt *row, int column, int64_t max, int32_t *out,
                   struct err *err) {
    int64_t value = sqlite3_column_int64(row, column);
    if (value < 0 || value > max)
        return err_set(err, ERR_FORMAT, "%s: token %lld: %s: found %lld, expected 0 to %lld",
                       trace->db.path, (long long)sqlite3_column_int64(row, 0),
                       sqlite3_column_name(row, column), (long long)value, (long long)max);
    if (out) *out = (int32_t)value;
    return true;
}

static bool take_row(struct trace *trace, sqlite3_stmt *row, int64_t i,
                     const struct trace_columns *out, struct err *err) {
    if (!ranged(trace, row, 1, trace->document_count - 1, out->document ? out->document + i : NULL,
                err) ||
        !ranged(trace, row, 2, INT32_MAX, out->position ? out->position + i : NULL, err))
        return false;
    bool known = sqlite3_column_type(row, 3) != SQLITE_NULL;
    if (known && !ranged(trace, row, 3, INT32_MAX, out->id ? out->id + i : NULL, err)) return false;
    if (!known && out->id) out->id[i] = -1;
    if (out->nll)
        out->nll[i] =
            sqlite3_column_type(row, 4) == SQLITE_NULL ? NAN : (float)sqlite3_column_double(row, 4);
    return true;
}

bool trace_read_tokens(struct trace *trace, int64_t first, int64_t n,
                       const struct trace_columns *out, struct err *err) {
    sqlite3_stmt *row = db_prepare(&trace->db,
                                   "SELECT token, document, position, id, nll FROM token "
                                   "WHERE token >= ?1 AND token < ?2 ORDER BY token",
                                   err);
    if (!row) return false;
    sqlite3_bind_int64(row, 1, first);
    sqlite3_bind_int64(row, 2, first + n);
    enum db_step step = DB_DONE;
    int64_t i = 0;
    bool ok = true;
    while (ok && i < n && (step = db_step(&trace->db, row, err)) == DB_ROW) {
        ok = sqlite3_column_int64(row, 0) == first + i && take_row(trace, row, i, out, err);
        if (ok)
            i++;
        else if (sqlite3_column_int64(row, 0) != first + i)
            break;
    }
    sqlite3_finalize(row);
    if (i < n && step != DB_FAILED && (ok || err->code == ERR_NONE))
        ok = err_set(err, ERR_FORMAT, "%s: token %lld: found no row, expected one", trace->db.path,
                     (long long)(first + i));
    return ok && step != DB_FAILED;
}

/* Adds the counts of one row to counts[E]. */
static bool add_counts(struct trace *trace, const struct trace_layer *layer, sqlite3_stmt *row,
                       int64_t *counts, struct err *err) {
    const char *blob = sqlite3_column_blob(row, 0);
    if (!blob || sqlite3_column_bytes(row, 0) != layer->experts * 8)
        return err_set(err, ERR_FORMAT, "%s: layer %d: counts: found %d bytes, expected %d",
                       trace->db.path, layer->layer, sqlite3_column_bytes(row, 0),
                       layer->experts * 8);
    for (int e = 0; e < layer->experts; e++) {
        int64_t count;
        memcpy(&count, blob + 8 * e, 8);
        if (count < 0 || count > (INT64_C(1) << 60) || counts[e] > (INT64_C(1) << 60))
            return err_set(err, ERR_FORMAT, "%s: layer %d, expert %d: found %lld tokens",
                           trace->db.path, layer->layer, e, (long long)count);
        counts[e] += count;
    }
    return true;
}

bool trace_read_counts(struct trace *trace, int r, int64_t document, int64_t *counts,
                       struct err *err) {
    const struct trace_layer *layer = &trace->layers[r];
    sqlite3_stmt *row = db_prepare(&trace->db,
                                   "SELECT counts FROM expert_count WHERE router = ?1 AND "
                                   "(document = ?2 OR ?2 < 0) ORDER BY document",
                                   err);
    if (!row) return false;
    sqlite3_bind_int(row, 1, r);
    sqlite3_bind_int64(row, 2, document);
    memset(counts, 0, (size_t)layer->experts * 8);
    enum db_step step = DB_DONE;
    bool ok = true;
    while (ok && (step = db_step(&trace->db, row, err)) == DB_ROW)
        ok = add_counts(trace, layer, row, counts, err);
    sqlite3_finalize(row);
    return ok && step != DB_FAILED;
}
