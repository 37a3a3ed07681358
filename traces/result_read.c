/* result_read.c - reading back what a replay recorded in bulk: loads per document */
#include "traces/result_read.h"

#include <stdlib.h>
#include <string.h>

#include "traces/internal.h"

/* counts[E] <- the blob at `column`; its size and values are checked. */
static bool take_counts(struct trace *trace, sqlite3_stmt *statement, int column, int experts,
                        int64_t *counts, struct err *err) {
    size_t size = (size_t)experts * sizeof *counts;
    int found = sqlite3_column_bytes(statement, column);
    const void *blob = sqlite3_column_blob(statement, column);
    if ((size_t)found != size || !blob)
        return err_set(err, ERR_FORMAT, "%s: load of a document: found %d bytes, expected %zu",
                       trace->db.path, found, size);
    memcpy(counts, blob, size);
    for (int e = 0; e < experts; e++)
        if (counts[e] < 0 || counts[e] > trace_tokens_total(trace))
            return err_set(
                err, ERR_FORMAT,
                "%s: load of a document: found %lld tokens at expert %d, expected 0 to %lld",
                trace->db.path, (long long)counts[e], e, (long long)trace_tokens_total(trace));
    return true;
}

bool result_read_documents(struct trace *trace, int variant, int r, result_document_fn each,
                           void *context, struct err *err) {
    int experts = trace_layer(trace, r)->experts;
    int64_t *counts = calloc((size_t)experts, sizeof *counts);
    sqlite3_stmt *statement =
        counts ? db_prepare(&trace->db,
                            "SELECT document, counts FROM result_document"
                            " WHERE variant = ?1 AND layer = ?2 ORDER BY document",
                            err)
               : NULL;
    bool ok = statement || (counts ? false : err_memory(err, "loads"));
    enum db_step step = DB_DONE;
    if (ok) {
        sqlite3_bind_int(statement, 1, variant);
        sqlite3_bind_int(statement, 2, trace_layer(trace, r)->layer);
    }
    while (ok && (step = db_step(&trace->db, statement, err)) == DB_ROW) {
        int64_t document = sqlite3_column_int64(statement, 0);
        ok = document >= 0 && document < trace_documents(trace)
                 ? take_counts(trace, statement, 1, experts, counts, err)
                 : err_set(err, ERR_FORMAT, "%s: load of document %lld: found no such document",
                           trace->db.path, (long long)document);
        if (ok) each(context, document, counts);
    }
    sqlite3_finalize(statement);
    free(counts);
    return ok && step != DB_FAILED;
}
