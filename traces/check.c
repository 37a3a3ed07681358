/* check.c - integrity of a trace, and the replay law on its stored scores */
#include "traces/check.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "traces/choices.h"
#include "traces/internal.h"

static const struct table_column columns[] = {
    {"check", "", TABLE_TEXT}, {"result", "", TABLE_TEXT}, {"detail", "", TABLE_TEXT}};

struct check {
    struct trace *trace;
    struct table *table;
    const struct progress *progress;
    int64_t stride;
    int failed;
};

static bool row(struct check *check, const char *name, const char *result, const char *detail) {
    table_text(check->table, name);
    table_text(check->table, result);
    table_text(check->table, detail);
    check->failed += strcmp(result, "failed") == 0;
    return true;
}

/* SQLite's check of its own structures; the first complaint is shown. */
static bool check_integrity(struct check *check, struct err *err) {
    sqlite3_stmt *statement = db_prepare(&check->trace->db, "PRAGMA integrity_check(1)", err);
    if (!statement) return false;
    enum db_step step = db_step(&check->trace->db, statement, err);
    bool fine = step == DB_ROW && strcmp(db_text(statement, 0), "ok") == 0;
    if (step != DB_FAILED)
        row(check, "database structure", fine ? "ok" : "failed", fine ? "" : db_text(statement, 0));
    sqlite3_finalize(statement);
    return step != DB_FAILED || row(check, "database structure", "failed", err->text);
}

/* A query whose answer must be a number that the rest of the trace implies; ?1 is a limit. */
static bool check_number(struct check *check, const char *name, const char *sql, int64_t limit,
                         int64_t expected, struct err *err) {
    char detail[120];
    int64_t found = 0;
    struct db *db = &check->trace->db;
    sqlite3_stmt *statement = db_prepare(db, sql, err);
    if (statement) sqlite3_bind_int64(statement, 1, limit);
    enum db_step step = statement ? db_step(db, statement, err) : DB_FAILED;
    if (step == DB_ROW) found = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    if (step == DB_FAILED) return row(check, name, "failed", err->text);
    snprintf(detail, sizeof detail, "found %lld, expected %lld", (long long)found,
             (long long)expected);
    return row(check, name, found == expected ? "ok" : "failed", detail);
}

/* A capture that is running has more rows by now than when it was opened. */
static bool check_rows(struct check *check, struct err *err) {
    const struct trace *trace = check->trace;
    int64_t routers = 0, tokens = trace_tokens(trace);
    int64_t chunks = trace->block_count * trace->layer_count;
    bool whole = trace_complete(trace);
    for (int r = 0; r < trace->layer_count; r++) routers += trace->layers[r].holds != TRACE_COUNTS;
    return check_number(check, "token rows", "SELECT count(*) FROM token WHERE token < ?1",
                        whole ? INT64_MAX : tokens, tokens, err) &&
           check_number(
               check, "token rows in order",
               "SELECT count(*) FROM token t JOIN document d USING (document) WHERE t.token "
               "BETWEEN d.first_token AND d.first_token + d.tokens - 1 AND t.token < ?1",
               whole ? INT64_MAX : tokens, tokens, err) &&
           check_number(check, "chunk rows", "SELECT count(*) FROM chunk WHERE chunk < ?1",
                        whole ? INT64_MAX : chunks, routers * trace->block_count, err);
}

static bool matches(const struct trace_document *document, bool *same, struct err *err) {
    struct file_map map;
    struct sha256 sha;
    char hex[65];
    if (!file_map(document->source, &map, err)) return false;
    sha256_init(&sha);
    sha256_add(&sha, map.data, map.size_bytes);
    sha256_hex(&sha, hex);
    file_unmap(&map);
    *same = strcmp(hex, document->sha256) == 0;
    return true;
}

/* Documents whose file is still where it was; lines of ids files have no file of their own. */
static bool check_documents(struct check *check) {
    const struct trace *trace = check->trace;
    int64_t same = 0, absent = 0;
    char detail[400];
    for (int64_t d = 0; d < trace->document_count; d++) {
        const struct trace_document *document = &trace->documents[d];
        struct err ignored;
        bool equal = false;
        if (!*document->sha256 || !file_exists(document->source) ||
            !matches(document, &equal, &ignored)) {
            absent++;
        } else if (equal) {
            same++;
        } else {
            snprintf(detail, sizeof detail, "%.200s: its content is no longer that of the capture",
                     document->source);
            return row(check, "document hashes", "failed", detail);
        }
    }
    snprintf(detail, sizeof detail, "%lld equal, %lld without a file here", (long long)same,
             (long long)absent);
    return row(check, "document hashes", same ? "ok" : "skipped", detail);
}

/* ---- the replay law */

struct law {
    int64_t chunks, hashed, broken, first_token;
};

static bool replay_layer(struct check *check, int r, struct law *law, struct err *err) {
    struct choices choices;
    const struct trace_layer *layer = &check->trace->layers[r];
    if (!choices_open(&choices, check->trace, r, err)) return false;
    bool ok = true;
    for (int64_t b = 0; ok && b < check->trace->block_count;
         b += choices_move(&choices) ? 1 : check->stride) {
        const struct trace_chunk *chunk = &choices.chunk;
        ok = trace_cursor_seek(choices.cursor, check->trace->blocks[b].first, err) &&
             choices_next(&choices, err);
        if (!ok) break;
        law->chunks++;
        if (!chunk->choice_hash) continue;
        law->hashed++;
        uint64_t hash = trace_choice_hash(TRACE_HASH_START, chunk->tokens, layer->topk,
                                          chunk->expert, chunk->weight);
        if (hash == chunk->choice_hash) continue;
        if (!law->broken++) law->first_token = chunk->first;
        if (!progress_report(check->progress, "chunks", b, check->trace->block_count, "chunks"))
            ok = err_set(err, ERR_CANCELLED, "interrupted");
    }
    choices_close(&choices);
    return ok;
}

static bool check_layer(struct check *check, int r, struct err *err) {
    const struct trace_layer *layer = &check->trace->layers[r];
    struct law law = {0};
    char name[64], detail[200];
    snprintf(name, sizeof name, "layer %d: chunks and replay law", layer->layer);
    if (layer->holds == TRACE_COUNTS) return row(check, name, "skipped", "counts only");
    if (layer->holds == TRACE_SCORES && !layer->has_gate)
        return row(check, name, "skipped", "no gate");
    if (!replay_layer(check, r, &law, err))
        return err->code != ERR_CANCELLED && row(check, name, "failed", err->text);
    bool lossy = check->trace->capture.store != TRACE_F32 && layer->holds == TRACE_SCORES;
    snprintf(detail, sizeof detail, "%lld of %lld chunks read, %lld with recorded choices",
             (long long)law.chunks, (long long)check->trace->block_count, (long long)law.hashed);
    if (law.broken && !lossy) {
        snprintf(detail, sizeof detail,
                 "%lld of %lld chunks route otherwise than when captured, the first at token %lld",
                 (long long)law.broken, (long long)law.hashed, (long long)law.first_token);
        return row(check, name, "failed", detail);
    }
    if (law.broken)
        snprintf(detail, sizeof detail,
                 "%lld of %lld chunks route otherwise than live: stored as %s (lossy)",
                 (long long)law.broken, (long long)law.hashed,
                 trace_store_name(check->trace->capture.store));
    return row(check, name, law.hashed && !law.broken ? "ok" : "skipped", detail);
}

static bool check_identity(struct check *check) {
    struct trace_setup setup = trace_as_setup(check->trace);
    char identity[65];
    trace_setup_identity(&setup, identity);
    bool same = strcmp(identity, check->trace->identity) == 0;
    return row(check, "identity", same ? "ok" : "failed", check->trace->identity);
}

struct table *trace_check(struct trace *trace, int64_t stride, const struct progress *progress,
                          int *failed, struct err *err) {
    struct check check = {.trace = trace,
                          .progress = progress,
                          .stride = stride,
                          .table = table_create(columns, 3, err)};
    if (!check.table) return NULL;
    bool ok = check_integrity(&check, err) && check_identity(&check) && check_documents(&check);
    if (ok && !trace->is_result) ok = check_rows(&check, err);
    for (int r = 0; ok && !trace->is_result && r < trace->layer_count; r++)
        ok = check_layer(&check, r, err);
    if (!trace_complete(trace) && ok) row(&check, "complete", "skipped", "capture not finished");
    *failed = check.failed;
    if (ok && table_ok(check.table, err)) return check.table;
    table_free(check.table);
    return NULL;
}
