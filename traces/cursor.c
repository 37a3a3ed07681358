/* cursor.c - reading one router's chunks for replay: in order, or rows of any tokens
 *
 * A cursor has a connection of its own, so that threads scan different routers at once. Pieces are
 * used where they lie in the file's pages, wherever that is possible (in_place.h). Else blobs are
 * read with the incremental interface into an aligned buffer (one copy); a handle that is moved
 * from chunk to chunk costs 2 us for a row, against 20 us for a SELECT (measured with 128 KiB
 * chunks). */
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "traces/in_place.h"
#include "traces/internal.h"

enum {
    CHUNK_SCORES = 2, /* the column's place in `chunk` */
    TOGETHER = 16     /* tokens that the router takes at once */
};

/* A moving handle on one blob column of `chunk`. */
struct column {
    const char *name;
    size_t row_bytes; /* of one token */
    sqlite3_blob *blob;
    int64_t chunk; /* where the handle stands; -1 = nowhere */
};

struct trace_cursor {
    const struct trace *trace;
    struct db db;
    int r;
    const struct trace_layer *layer;
    int64_t block; /* next */
    struct column scores, ids, weights;
    bool placeable;         /* not yet known to be impossible */
    struct in_place *place; /* the scores within the file's pages; NULL: not (yet) */
    int64_t placed;         /* block where it stands; -1 = nowhere */
    sqlite3_stmt *hash;
    unsigned char *raw; /* stored bytes of a chunk */
    float *logits;      /* decoded; = raw for f32 */
    int32_t *expert;
    float *weight;
};

/* ---- decoding */

static void decode_half(const unsigned char *raw, int64_t n, bool bf16, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = half_float(raw + 2 * i, bf16);
}

static void decode(enum trace_store store, const unsigned char *raw, int64_t n, float *out) {
    if (store != TRACE_F32)
        decode_half(raw, n, store == TRACE_BF16, out);
    else if ((const unsigned char *)out != raw)
        memcpy(out, raw, (size_t)n * 4);
}

static bool decode_ids(const struct trace_cursor *cursor, const unsigned char *raw, int64_t n,
                       int64_t first, int32_t *out, struct err *err) {
    int k = cursor->layer->topk;
    for (int64_t i = 0; i < n * k; i++) {
        uint16_t id;
        memcpy(&id, raw + 2 * i, 2);
        if (id >= cursor->layer->experts)
            return err_set(err, ERR_FORMAT,
                           "%s: layer %d: token %lld: found expert %u, expected less than %d",
                           cursor->db.path, cursor->layer->layer, (long long)(first + i / k), id,
                           cursor->layer->experts);
        out[i] = id;
    }
    return true;
}

/* ---- blobs */

/* Moves the column's handle to a chunk and checks the blob's size against the block. */
static bool column_at(struct trace_cursor *cursor, struct column *column, int64_t block,
                      struct err *err) {
    int64_t chunk = block * cursor->trace->layer_count + cursor->r;
    if (column->chunk == chunk) return true;
    int code = column->blob ? sqlite3_blob_reopen(column->blob, chunk)
                            : sqlite3_blob_open(cursor->db.handle, "main", "chunk", column->name,
                                                chunk, 0, &column->blob);
    if (code != SQLITE_OK) {
        db_fail(&cursor->db, code, "chunk", err);
        sqlite3_blob_close(column->blob);
        column->blob = NULL;
        column->chunk = -1;
        return err_context(err, "layer %d, block %lld", cursor->layer->layer, (long long)block);
    }
    size_t expected = (size_t)cursor->trace->blocks[block].tokens * column->row_bytes;
    column->chunk = -1;
    if ((size_t)sqlite3_blob_bytes(column->blob) != expected)
        return err_set(err, ERR_FORMAT,
                       "%s: layer %d: block %lld: %s: found %d bytes, expected %zu",
                       cursor->db.path, cursor->layer->layer, (long long)block, column->name,
                       sqlite3_blob_bytes(column->blob), expected);
    column->chunk = chunk;
    return true;
}

/* Reads rows from..from+n-1 of a block. */
static bool column_read(struct trace_cursor *cursor, struct column *column, int64_t block,
                        int64_t from, int64_t n, void *out, struct err *err) {
    if (!column_at(cursor, column, block, err)) return false;
    int code = sqlite3_blob_read(column->blob, out, (int)((size_t)n * column->row_bytes),
                                 (int)((size_t)from * column->row_bytes));
    if (code == SQLITE_OK) return true;
    column->chunk = -1;
    return db_fail(&cursor->db, code, "chunk", err);
}

/* At most max rows of a block's scores as stored, without a copy where that is possible; *n <- how
 * many. NULL: not to be had in this way. */
static const unsigned char *rows_in_place(struct trace_cursor *cursor, int64_t block, int64_t from,
                                          int64_t max, int64_t *n) {
    if (cursor->placeable && !cursor->place)
        cursor->placeable = (cursor->place = in_place_open(&cursor->db, "chunk")) != NULL;
    if (!cursor->place) return NULL;
    size_t got, row = cursor->scores.row_bytes;
    if (cursor->placed != block) {
        int64_t chunk = block * cursor->trace->layer_count + cursor->r;
        size_t bytes = (size_t)cursor->trace->blocks[block].tokens * row;
        cursor->placed = -1;
        if (!in_place_find(cursor->place, chunk, CHUNK_SCORES, bytes)) return NULL;
        cursor->placed = block;
    }
    const struct in_place_rows want = {
        .row_bytes = row,
        .align = cursor->trace->capture.store == TRACE_F32 ? sizeof(float) : 1,
        .unit = TOGETHER,
        .first = (size_t)from,
        .max = (size_t)max,
        .buffer = cursor->raw};
    const unsigned char *rows = in_place_rows(cursor->place, &want, &got);
    *n = (int64_t)got;
    return rows;
}

/* ---- the cursor */

static bool make_buffers(struct trace_cursor *cursor, struct err *err) {
    const struct trace_layer *layer = cursor->layer;
    size_t n = (size_t)trace_block_tokens(cursor->trace), k = (size_t)layer->topk;
    size_t stored = trace_store_bytes(cursor->trace->capture.store);
    cursor->scores.row_bytes = (size_t)layer->experts * stored;
    cursor->ids.row_bytes = 2 * k;
    cursor->weights.row_bytes = 4 * k;
    bool scores = layer->holds == TRACE_SCORES;
    size_t row = scores ? cursor->scores.row_bytes : cursor->ids.row_bytes;
    /* SQLite's own limit on a blob; also keeps every product below within int */
    if (n * row > 1000000000)
        return err_set(err, ERR_FORMAT, "%s: layer %d: block of %zu tokens: too big",
                       cursor->trace->db.path, layer->layer, n);
    cursor->raw = aligned_alloc(64, (n * row + 64) / 64 * 64 + 64);
    if (scores && stored != 4) cursor->logits = calloc(n * (size_t)layer->experts + 1, 4);
    if (!scores) cursor->expert = calloc(n * k + 1, 4);
    if (!scores && layer->has_weights) cursor->weight = calloc(n * k + 1, 4);
    if (!cursor->raw || (scores && stored != 4 && !cursor->logits) ||
        (!scores && !cursor->expert) || (!scores && layer->has_weights && !cursor->weight))
        return err_memory(err, "cursor");
    if (scores && stored == 4) cursor->logits = (float *)(void *)cursor->raw;
    return true;
}

struct trace_cursor *trace_cursor_open(const struct trace *trace, int r, struct err *err) {
    const struct trace_layer *layer = &trace->layers[r];
    if (layer->holds == TRACE_COUNTS || trace->is_result) {
        err_set(err, ERR_DATA, "%s: layer %d: holds counts only: found no tokens, expected them",
                trace->db.path, layer->layer);
        return NULL;
    }
    struct trace_cursor *cursor = calloc(1, sizeof *cursor);
    if (!cursor) {
        err_memory(err, "cursor");
        return NULL;
    }
    *cursor = (struct trace_cursor){.trace = trace,
                                    .r = r,
                                    .layer = layer,
                                    .placeable = true,
                                    .placed = -1,
                                    .scores = {"scores", 0, NULL, -1},
                                    .ids = {"ids", 0, NULL, -1},
                                    .weights = {"weights", 0, NULL, -1}};
    if (trace->cursors) cursor->db = *trace->cursors;
    if ((trace->cursors ||
         connections_take(trace->connections, trace->db.path, &cursor->db, err)) &&
        make_buffers(cursor, err) &&
        (cursor->hash =
             db_prepare(&cursor->db, "SELECT choice_hash FROM chunk WHERE chunk = ?1", err)))
        return cursor;
    trace_cursor_free(cursor);
    return NULL;
}

void trace_cursor_free(struct trace_cursor *cursor) {
    if (!cursor) return;
    sqlite3_blob_close(cursor->scores.blob);
    sqlite3_blob_close(cursor->ids.blob);
    sqlite3_blob_close(cursor->weights.blob);
    sqlite3_finalize(cursor->hash);
    in_place_close(cursor->place);
    if (!cursor->trace->cursors) connections_give(cursor->trace->connections, &cursor->db);
    if ((void *)cursor->logits != (void *)cursor->raw) free(cursor->logits);
    free(cursor->raw);
    free(cursor->expert);
    free(cursor->weight);
    free(cursor);
}

static bool read_hash(struct trace_cursor *cursor, int64_t block, uint64_t *hash, struct err *err) {
    sqlite3_bind_int64(cursor->hash, 1, block * cursor->trace->layer_count + cursor->r);
    enum db_step step = db_step(&cursor->db, cursor->hash, err);
    if (step == DB_ROW) *hash = (uint64_t)sqlite3_column_int64(cursor->hash, 0);
    sqlite3_reset(cursor->hash);
    return step != DB_FAILED;
}

static bool read_ids(struct trace_cursor *cursor, int64_t block, int64_t from, int64_t n,
                     int32_t *expert, float *weight, struct err *err) {
    int64_t first = cursor->trace->blocks[block].first + from;
    if (!column_read(cursor, &cursor->ids, block, from, n, cursor->raw, err) ||
        !decode_ids(cursor, cursor->raw, n, first, expert, err))
        return false;
    if (!weight || !cursor->layer->has_weights) return true;
    return column_read(cursor, &cursor->weights, block, from, n, weight, err);
}

bool trace_cursor_next(struct trace_cursor *cursor, struct trace_chunk *chunk, struct err *err) {
    int64_t b = cursor->block;
    *chunk = (struct trace_chunk){.first = trace_tokens(cursor->trace)};
    if (b >= cursor->trace->block_count) return true;
    const struct block *block = &cursor->trace->blocks[b];
    *chunk = (struct trace_chunk){.first = block->first};
    if (!read_hash(cursor, b, &chunk->choice_hash, err)) return false;
    if (cursor->layer->holds == TRACE_SCORES) {
        if (!column_read(cursor, &cursor->scores, b, 0, block->tokens, cursor->raw, err))
            return false;
        decode(cursor->trace->capture.store, cursor->raw, block->tokens * cursor->layer->experts,
               cursor->logits);
        chunk->logits = cursor->logits;
    } else {
        if (!read_ids(cursor, b, 0, block->tokens, cursor->expert, cursor->weight, err))
            return false;
        chunk->expert = cursor->expert;
        chunk->weight = cursor->weight;
    }
    chunk->tokens = block->tokens;
    cursor->block++;
    return true;
}

static bool no_token(struct trace_cursor *cursor, int64_t token, struct err *err) {
    return err_set(err, ERR_DATA, "%s: token %lld: found %lld tokens", cursor->db.path,
                   (long long)token, (long long)trace_tokens(cursor->trace));
}

bool trace_cursor_piece(struct trace_cursor *cursor, int64_t first, int64_t max,
                        struct trace_chunk *piece, struct err *err) {
    int64_t b = trace_block_of(cursor->trace, first);
    *piece = (struct trace_chunk){.first = first};
    if (b < 0) return no_token(cursor, first, err);
    const struct block *block = &cursor->trace->blocks[b];
    int64_t from = first - block->first, left = block->tokens - from;
    int64_t n = left < max ? left : max;
    if (!column_at(cursor, &cursor->scores, b, err)) return false;
    const unsigned char *rows = rows_in_place(cursor, b, from, n, &n);
    if (!rows) {
        if (!column_read(cursor, &cursor->scores, b, from, n, cursor->raw, err)) return false;
        rows = cursor->raw;
    }
    if (cursor->trace->capture.store == TRACE_F32) {
        piece->logits = (const float *)(const void *)rows;
    } else {
        decode_half(rows, n * cursor->layer->experts, cursor->trace->capture.store == TRACE_BF16,
                    cursor->logits);
        piece->logits = cursor->logits;
    }
    piece->tokens = n;
    return true;
}

bool trace_cursor_seek(struct trace_cursor *cursor, int64_t token, struct err *err) {
    int64_t block = trace_block_of(cursor->trace, token);
    if (block < 0) return no_token(cursor, token, err);
    cursor->block = block;
    return true;
}

bool trace_cursor_rows(struct trace_cursor *cursor, const struct trace_rows *rows,
                       struct err *err) {
    int experts = cursor->layer->experts, k = cursor->layer->topk;
    bool scores = cursor->layer->holds == TRACE_SCORES;
    for (int64_t i = 0; i < rows->n; i++) {
        int64_t b = trace_block_of(cursor->trace, rows->token[i]);
        if (b < 0) return no_token(cursor, rows->token[i], err);
        int64_t from = rows->token[i] - cursor->trace->blocks[b].first;
        if (scores) {
            if (!column_read(cursor, &cursor->scores, b, from, 1, cursor->raw, err)) return false;
            decode(cursor->trace->capture.store, cursor->raw, experts, rows->logits + i * experts);
        } else if (!read_ids(cursor, b, from, 1, rows->expert + i * k,
                             rows->weight ? rows->weight + i * k : NULL, err)) {
            return false;
        }
    }
    return true;
}
