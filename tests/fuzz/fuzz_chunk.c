/* fuzz_chunk.c - the bytes are the chunks of a router: blobs of any size and value; a cursor
 * refuses them with one line, or reads them safely, in order and by rows
 *
 * A database in memory with the one table that cursors read; the router and the blocks are as the
 * loader lets them through (fuzz_trace.c is about the loader). First bytes: shape; then blobs. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "traces/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_BYTES = 512 };

struct bytes {
    const uint8_t *at, *end;
};

static struct db db;
static sqlite3_stmt *clear, *insert;

static unsigned take(struct bytes *in) { return in->at < in->end ? *in->at++ : 0; }

static void make_database(void) {
    struct err err = {0};
    sqlite3_config(SQLITE_CONFIG_SINGLETHREAD);
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    if (!db_open_memory(&db, &err) ||
        !db_exec(&db,
                 "CREATE TABLE chunk(chunk INTEGER PRIMARY KEY, choice_hash, scores, ids, weights)",
                 &err) ||
        !(clear = db_prepare(&db, "DELETE FROM chunk", &err)) ||
        !(insert = db_prepare(&db, "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?)", &err)))
        exit(1);
}

/* A value of mostly the right size; now and then NULL, a number or a text. */
static void bind_value(struct bytes *in, int column, size_t bytes) {
    static uint8_t filled[MOST_BYTES];
    unsigned head = take(in);
    if (head == 255) return;
    if (head == 254) sqlite3_bind_int64(insert, column, 77);
    if (head == 253) sqlite3_bind_text(insert, column, "0123456789abcdef", -1, SQLITE_STATIC);
    if (head >= 253) return;
    if (head >= 240) bytes = bytes + head - 246;
    if (bytes > sizeof filled) bytes = 0;
    size_t have = (size_t)(in->end - in->at);
    if (have > bytes) have = bytes;
    memset(filled, 0, bytes);
    memcpy(filled, in->at, have);
    in->at += have;
    sqlite3_bind_blob(insert, column, filled, (int)bytes, SQLITE_TRANSIENT);
}

static void fill_chunk(struct bytes *in, const struct trace *trace, int64_t block) {
    const struct trace_layer *layer = &trace->layers[0];
    size_t n = (size_t)trace->blocks[block].tokens, k = (size_t)layer->topk;
    size_t element = trace_store_bytes(trace->capture.store);
    struct err err = {0};
    sqlite3_bind_int64(insert, 1, block);
    sqlite3_bind_int64(insert, 2, take(in));
    if (layer->holds == TRACE_SCORES) {
        bind_value(in, 3, n * (size_t)layer->experts * element);
    } else {
        bind_value(in, 4, n * k * 2);
        if (layer->has_weights) bind_value(in, 5, n * k * 4);
    }
    db_run(&db, insert, &err);
}

static double drain(const struct trace_layer *layer, const struct trace_chunk *chunk) {
    double sum = 0;
    for (int64_t i = 0; chunk->logits && i < chunk->tokens * layer->experts; i++)
        sum += (double)chunk->logits[i];
    for (int64_t i = 0; chunk->expert && i < chunk->tokens * layer->topk; i++) {
        if (chunk->expert[i] < 0 || chunk->expert[i] >= layer->experts) abort();
        if (chunk->weight) sum += (double)chunk->weight[i];
    }
    return sum;
}

static double read_all(const struct trace *trace, struct bytes in) {
    const struct trace_layer *layer = &trace->layers[0];
    struct err err = {0};
    struct trace_chunk chunk;
    float logits[2 * 16], weights[2 * 16];
    int32_t experts[2 * 16];
    double sum = 0;
    struct trace_cursor *cursor = trace_cursor_open(trace, 0, &err);
    bool ok = cursor != NULL;
    while (ok && (ok = trace_cursor_next(cursor, &chunk, &err)) && chunk.tokens)
        sum += drain(layer, &chunk);
    if (!ok && (err.code == ERR_NONE || strchr(err.text, '\n'))) abort();
    int64_t tokens[2] = {take(&in) & 7, (int8_t)take(&in)};
    const struct trace_rows rows = {2, tokens, logits, experts, weights};
    err = (struct err){0};
    if (cursor && trace_cursor_seek(cursor, tokens[0], &err) &&
        trace_cursor_next(cursor, &chunk, &err))
        sum += drain(layer, &chunk);
    if (cursor && !trace_cursor_rows(cursor, &rows, &err) && err.code == ERR_NONE) abort();
    trace_cursor_free(cursor);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static volatile double sink;
    struct err err = {0};
    struct bytes in = {data, data + size};
    if (!db.handle) make_database();
    unsigned a = take(&in), b = take(&in), c = take(&in);
    struct trace_layer layer = {.experts = 1 + (int)(a & 15),
                                .holds = a & 16 ? TRACE_IDS : TRACE_SCORES,
                                .has_weights = a & 32};
    layer.topk = 1 + (int)(b & 15) % layer.experts;
    struct block blocks[2] = {{0, 1 + (b >> 4 & 3)}, {1 + (b >> 4 & 3), 1 + (b >> 6 & 3)}};
    struct trace trace = {.db = db,
                          .cursors = &db,
                          .layers = &layer,
                          .layer_count = 1,
                          .blocks = blocks,
                          .block_count = 1 + (c & 1)};
    trace.capture.store = (enum trace_store)((c >> 1 & 127) % 3);
    db_run(&db, clear, &err);
    for (int64_t i = 0; i < trace.block_count; i++) fill_chunk(&in, &trace, i);
    sink = read_all(&trace, in);
    (void)sink;
    return 0;
}
