/* fuzz_trace.c - the bytes are the content of a hostile database: layers, blocks and blobs of any
 * size and value; it is refused with one line, or cursors and router_score read it safely
 *
 * One database in memory and one connection serve all inputs; its tables are filled anew each time
 * (that the schema is ours, word for word, is checked elsewhere). The first bytes describe capture,
 * layers and blocks; each of them is mostly sensible, so that the blobs behind are reached. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "embed.h"
#include "traces/choices.h"
#include "traces/internal.h"
#include "traces/score_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is left of the input. */
struct bytes {
    const uint8_t *at, *end;
};

static unsigned take(struct bytes *in) { return in->at < in->end ? *in->at++ : 0; }

/* Mostly `usual`; for one byte in 16 any number. */
static int64_t number(struct bytes *in, int64_t usual) {
    unsigned head = take(in);
    if (head < 240) return usual;
    uint64_t value = 0;
    for (unsigned i = 0; i < (head & 7) + 1; i++) value = value << 8 | take(in);
    return (int64_t)(head & 8 ? 0 - value : value);
}

static struct {
    struct db db;
    sqlite3_stmt *clear[6], *capture, *layer, *document, *token, *block, *chunk;
} writer;

static sqlite3_stmt *prepare(const char *sql) {
    struct err err = {0};
    sqlite3_stmt *statement = db_prepare(&writer.db, sql, &err);
    if (!statement) exit(1);
    return statement;
}

/* ---- SQLite's memory: free lists of a few sizes, since a checked allocation costs more than what
 * SQLite does with it. Our own allocations stay checked. Each begins with its size, 8 bytes. */

enum { SIZES = 9, SMALLEST = 32 };

static int64_t *free_list[SIZES];

static int size_class(int bytes) {
    int class = 0;
    while (class < SIZES && bytes > SMALLEST << class) class ++;
    return class;
}

static int round_up(int bytes) {
    int class = size_class(bytes);
    return class < SIZES ? SMALLEST << class : (bytes + 7) & ~7;
}

static void *pool_take(int bytes) {
    int class = size_class(bytes);
    int64_t *at = class < SIZES ? free_list[class] : NULL;
    if (at)
        memcpy(&free_list[class], at + 1, sizeof *free_list);
    else if (!(at = malloc(sizeof *at + (size_t)round_up(bytes))))
        return NULL;
    *at = round_up(bytes);
    return at + 1;
}

static int pool_size(void *memory) { return memory ? (int)((int64_t *)memory)[-1] : 0; }

static void pool_give(void *memory) {
    int64_t *at = (int64_t *)memory - 1;
    int class = size_class(pool_size(memory));
    if (class == SIZES) {
        free(at);
        return;
    }
    memcpy(at + 1, &free_list[class], sizeof *free_list);
    free_list[class] = at;
}

static void *pool_resize(void *memory, int bytes) {
    if (bytes <= pool_size(memory)) return memory;
    void *larger = pool_take(bytes);
    if (!larger) return NULL;
    memcpy(larger, memory, (size_t)pool_size(memory));
    pool_give(memory);
    return larger;
}

static int pool_start(void *unused) {
    (void)unused;
    return SQLITE_OK;
}

static void pool_stop(void *unused) { (void)unused; }

static const struct sqlite3_mem_methods pool = {pool_take, pool_give,  pool_resize, pool_size,
                                                round_up,  pool_start, pool_stop,   NULL};

/* ---- the database */

static void make_database(void) {
    static const char *const tables[] = {"capture", "layer", "document", "token", "block", "chunk"};
    struct err err = {0};
    sqlite3_config(SQLITE_CONFIG_SINGLETHREAD);
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    sqlite3_config(SQLITE_CONFIG_MALLOC, &pool);
    if (!db_open_memory(&writer.db, &err) || !db_exec(&writer.db, embed_traces_schema_sql, &err) ||
        !db_exec(&writer.db, "PRAGMA ignore_check_constraints = 1", &err))
        exit(1);
    for (int i = 0; i < 6; i++) {
        char sql[64];
        snprintf(sql, sizeof sql, "DELETE FROM %s", tables[i]);
        writer.clear[i] = prepare(sql);
    }
    writer.capture =
        prepare("INSERT INTO capture VALUES (1, '', ?, '', '', '', '', 'fuzz', '', '', "
                "?, 0, 0, 0, ?, '', '')");
    writer.layer = prepare("INSERT OR IGNORE INTO layer VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
    writer.document = prepare("INSERT OR IGNORE INTO document VALUES (?, 's', 'd', '', 0, ?, ?)");
    writer.token = prepare("INSERT OR IGNORE INTO token VALUES (?, ?, ?, ?, ?)");
    writer.block = prepare("INSERT OR IGNORE INTO block VALUES (?, ?, ?)");
    writer.chunk = prepare("INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?)");
}

static void insert(sqlite3_stmt *row, const int64_t *values, int count) {
    struct err err = {0};
    for (int i = 0; i < count; i++) sqlite3_bind_int64(row, i + 1, values[i]);
    db_run(&writer.db, row, &err);
}

/* ---- filling the tables */

struct shape {
    int layers, blocks, experts[2], topk[2], element;
    int64_t tokens;
};

static void fill_capture(struct bytes *in) {
    static const char *const stores[] = {"f32", "bf16", "f16", "f64"};
    static const char *const options[] = {
        "", "closed-loop rule=sign rate=0.001 start=zero batch-tokens=4 gate=sigmoid,bias,topk=2",
        "closed-loop rule= gate="};
    struct err err = {0};
    unsigned head = take(in);
    sqlite3_bind_text(writer.capture, 1, head & 128 ? "result" : "trace", -1, NULL);
    sqlite3_bind_text(writer.capture, 2, stores[head & 3], -1, NULL);
    sqlite3_bind_text(writer.capture, 3, options[(head >> 2 & 15) % 3], -1, NULL);
    db_run(&writer.db, writer.capture, &err);
}

static void fill_layer(struct bytes *in, int r, struct shape *shape) {
    static const char *const gates[] = {NULL,
                                        "softmax,topk=%d",
                                        "sigmoid,bias,topk=%d,norm=sum:1e-20",
                                        "sigmoid,bias,groups=2:1:top2sum,topk=%d",
                                        "softmax,order=topk-score,topk=%d",
                                        "sqrtsoftplus,topk=%d,norm=p:2",
                                        "identity,topk=%d,fn=sparsemixer:0.01",
                                        "garbage%d"};
    static const char *const holds[] = {"scores", "ids", "counts", "all"};
    float bias[64];
    char gate[64] = "";
    struct err err = {0};
    unsigned head = take(in), kind = take(in) & 7;
    int experts = 1 + (int)(head & 15), topk = 1 + (int)(head >> 4) % experts;
    shape->experts[r] = experts;
    shape->topk[r] = topk;
    const int64_t values[] = {number(in, r), number(in, r + 1), number(in, experts),
                              number(in, topk)};
    unsigned what = take(in);
    for (int i = 0; i < 4; i++) sqlite3_bind_int64(writer.layer, i + 1, values[i]);
    sqlite3_bind_text(writer.layer, 5, holds[what & 3], -1, NULL);
    sqlite3_bind_int(writer.layer, 6, what >> 2 & 1);
    if (gates[kind]) snprintf(gate, sizeof gate, gates[kind], topk);
    if (gates[kind]) sqlite3_bind_text(writer.layer, 7, gate, -1, NULL);
    for (int e = 0; e < experts; e++) bias[e] = (float)(int8_t)take(in) / 64;
    if (what & 8)
        sqlite3_bind_blob(writer.layer, 8, bias, (int)(number(in, experts * 4) & 63), NULL);
    db_run(&writer.db, writer.layer, &err);
}

static void fill_tokens(struct bytes *in, struct shape *shape) {
    int64_t tokens = number(in, shape->tokens), second = number(in, shape->tokens / 2);
    const int64_t one[] = {0, 0, second};
    const int64_t two[] = {1, number(in, second), (int64_t)((uint64_t)tokens - (uint64_t)second)};
    insert(writer.document, one, 3);
    insert(writer.document, two, 3);
    for (int64_t t = 0; t < shape->tokens; t++) {
        const int64_t values[] = {t, t >= second, t, t * 7, 1};
        if (number(in, 0) == 0) insert(writer.token, values, 5);
    }
}

/* A blob of mostly the right size. */
static void bind_blob(struct bytes *in, int column, int64_t bytes) {
    int64_t n = number(in, bytes);
    uint8_t filled[1024] = {0};
    if (n < 0 || n > (int64_t)sizeof filled) return; /* NULL */
    int64_t have = in->end - in->at < n ? in->end - in->at : n;
    memcpy(filled, in->at, (size_t)have);
    in->at += have;
    sqlite3_bind_blob(writer.chunk, column, filled, (int)n, SQLITE_TRANSIENT);
}

static void fill_chunks(struct bytes *in, const struct shape *shape, int block, int64_t tokens) {
    struct err err = {0};
    for (int r = 0; r < shape->layers; r++) {
        sqlite3_bind_int64(writer.chunk, 1, number(in, block * shape->layers + r));
        sqlite3_bind_int64(writer.chunk, 2, number(in, 0));
        bind_blob(in, 3, tokens * shape->experts[r] * shape->element);
        bind_blob(in, 4, tokens * shape->topk[r] * 2);
        bind_blob(in, 5, tokens * shape->topk[r] * 4);
        db_run(&writer.db, writer.chunk, &err);
    }
}

static void fill(struct bytes in) {
    struct err err = {0};
    unsigned head = take(&in);
    struct shape shape = {.layers = 1 + (head & 1), .blocks = 1 + (head >> 1 & 1)};
    shape.element = in.at < in.end && (*in.at & 3) ? 2 : 4;
    db_exec(&writer.db, "BEGIN", &err);
    for (int i = 0; i < 6; i++) db_run(&writer.db, writer.clear[i], &err);
    fill_capture(&in);
    for (int r = 0; r < shape.layers; r++) fill_layer(&in, r, &shape);
    int sizes[2] = {1 + (int)(head >> 2 & 3), 1 + (int)(head >> 4 & 3)};
    for (int b = 0; b < shape.blocks; b++) {
        const int64_t values[] = {number(&in, b), number(&in, shape.tokens), number(&in, sizes[b])};
        insert(writer.block, values, 3);
        shape.tokens += sizes[b];
    }
    fill_tokens(&in, &shape);
    for (int b = 0; b < shape.blocks; b++) fill_chunks(&in, &shape, b, sizes[b]);
    db_exec(&writer.db, "COMMIT", &err);
}

/* ---- reading */

static void said(const struct err *err) {
    if (err->code == ERR_NONE || !*err->text || strchr(err->text, '\n')) abort();
}

static double drain_chunk(const struct trace_layer *layer, const struct trace_chunk *chunk) {
    double sum = 0;
    for (int64_t i = 0; chunk->logits && i < chunk->tokens * layer->experts; i++)
        sum += (double)chunk->logits[i];
    for (int64_t i = 0; chunk->expert && i < chunk->tokens * layer->topk; i++) {
        if (chunk->expert[i] < 0 || chunk->expert[i] >= layer->experts) abort();
        if (chunk->weight) sum += (double)chunk->weight[i];
    }
    return sum;
}

static double scan(const struct trace *trace, int r) {
    const struct trace_layer *layer = trace_layer(trace, r);
    struct err err = {0};
    struct trace_chunk chunk;
    double sum = 0;
    struct trace_cursor *cursor = trace_cursor_open(trace, r, &err);
    bool ok = cursor != NULL;
    while (ok && (ok = trace_cursor_next(cursor, &chunk, &err)) && chunk.tokens)
        sum += drain_chunk(layer, &chunk);
    int64_t tokens[] = {0, trace_tokens(trace) - 1, trace_tokens(trace)};
    size_t width = (size_t)(layer->experts > layer->topk ? layer->experts : layer->topk);
    float *logits = calloc(3 * width, 4), *weights = calloc(3 * width, 4);
    int32_t *experts = calloc(3 * width, 4);
    const struct trace_rows rows = {3, tokens, logits, experts, weights};
    if (!logits || !weights || !experts) exit(1);
    if (ok) ok = trace_cursor_rows(cursor, &rows, &err);
    if (!ok) said(&err);
    trace_cursor_free(cursor);
    free(logits);
    free(weights);
    free(experts);
    return sum;
}

static double route(const struct trace *trace, int r) {
    struct err err = {0};
    struct choices choices;
    double sum = 0;
    if (!choices_open(&choices, trace, r, &err)) {
        said(&err);
        return 0;
    }
    bool ok = true;
    while ((ok = choices_next(&choices, &err)) && choices.chunk.tokens)
        sum += drain_chunk(choices.layer, &choices.chunk);
    if (!ok) said(&err);
    choices_close(&choices);
    return sum;
}

/* Registering the module anew makes it read layers and blocks again. */
static double query(struct trace *trace, unsigned which) {
    static const char *const texts[] = {
        "SELECT sum(logit), sum(score), sum(weight), max(rank), sum(chosen) FROM router_score",
        "SELECT sum(logit) FROM router_score WHERE expert = 1",
        "SELECT sum(weight), max(expert) FROM router_score WHERE chosen = 1 AND token >= 1",
        "SELECT sum(nll), max(text) FROM router_score WHERE layer = 1 AND position < 3",
        "SELECT max(logit), max(domain) FROM router_score WHERE token = 2 AND layer = 2"};
    struct err err = {0};
    double sum = 0;
    score_table_register(trace->db.handle);
    sqlite3_stmt *row = db_prepare(&trace->db, texts[which % 5], &err);
    while (row && db_step(&trace->db, row, &err) == DB_ROW) sum += sqlite3_column_double(row, 0);
    sqlite3_finalize(row);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static volatile double sink;
    struct err err = {0};
    unsigned last = size ? data[size - 1] : 0;
    if (!writer.db.handle) make_database();
    fill((struct bytes){data, data + size});
    struct trace trace = {.db = writer.db, .cursors = &writer.db};
    arena_init(&trace.arena, "fuzz");
    bool loaded = trace_load_rows(&trace, &err);
    if (!loaded) said(&err);
    for (int r = 0; loaded && r < trace.layer_count; r++) {
        sink = scan(&trace, r);
        if (last & 8) sink = route(&trace, r);
    }
    if (!(last & 8)) sink = query(&trace, last);
    (void)sink;
    trace_release(&trace);
    return 0;
}
