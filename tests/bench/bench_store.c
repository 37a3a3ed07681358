/* bench_store.c - the trace database against raw SQLite blobs of the same size, in one run
 *
 * A made-up layer stack of 16 routers of 256 experts over 8192 tokens: 128 MiB of f32 scores.
 * Ratios: capture-side writes / raw blob inserts (goal 0.9), scan by cursors / raw blob reads (goal
 * 0.8). */
#include "tests/bench/bench.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "base/table.h"
#include "traces/query.h"
#include "traces/trace.h"

enum { L = 16, E = 256, T = 8192, PASS = 4096, CHUNK = 512 * E * 4 };
static const char *const run_path = "build/bench-store.db", *const raw_path = "build/bench-raw.db";

struct fixture {
    float *logits; /* [PASS, E], the same for every router */
    int32_t *ids, *positions;
    struct trace_layer layers[L];
    struct trace_document document;
};

static void stop(const char *what, const struct err *err) {
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(1);
}

static void make(struct fixture *f) {
    struct rng rng;
    struct err err = {0};
    rng_init(&rng, 3);
    f->logits = malloc((size_t)PASS * E * 4);
    f->ids = calloc(PASS, 4);
    f->positions = calloc(PASS, 4);
    for (int i = 0; i < PASS * E; i++) f->logits[i] = (float)rng_normal(&rng);
    for (int r = 0; r < L; r++) {
        f->layers[r] = (struct trace_layer){
            .layer = r, .experts = E, .topk = 8, .holds = TRACE_SCORES, .has_gate = true};
        if (!gate_parse("sigmoid,topk=8,norm=sum", NULL, &f->layers[r].gate, &err))
            stop("gate", &err);
    }
    f->document = (struct trace_document){
        .source = "made up", .domain = "made up", .sha256 = "", .tokens = T};
}

static void write_trace(void *context) {
    struct fixture *f = context;
    struct err err = {0};
    const struct trace_setup setup = {.capture = {.model = "made up",
                                                  .family = "",
                                                  .model_id = "",
                                                  .config = "",
                                                  .source = "capture",
                                                  .compute = "",
                                                  .kernels = "",
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = f->layers,
                                      .layer_count = L,
                                      .documents = &f->document,
                                      .document_count = 1};
    struct trace *trace = trace_create(run_path, &setup, TRACE_FORCE, &err);
    if (!trace) stop("create", &err);
    while (trace_tokens(trace) < T) {
        const struct trace_pass pass = {PASS, f->ids, f->positions};
        if (!trace_pass_begin(trace, &pass, &err)) stop("pass", &err);
        for (int r = 0; r < L; r++) {
            const struct trace_routes routes = {.r = r, .tokens = PASS, .logits = f->logits};
            if (!trace_pass_routes(trace, &routes, &err)) stop("routes", &err);
        }
        if (!trace_pass_commit(trace, &err)) stop("commit", &err);
    }
    if (!trace_close(trace, false, &err)) stop("close", &err);
}

static void sql(sqlite3 *db, const char *text) {
    if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK) {
        fprintf(stderr, "%s: %s\n", text, sqlite3_errmsg(db));
        exit(1);
    }
}

/* The same bytes in the same transactions and the same journal, with nothing around them. */
static void write_raw(void *context) {
    struct fixture *f = context;
    sqlite3 *db;
    sqlite3_stmt *row;
    unlink(raw_path);
    if (sqlite3_open(raw_path, &db) != SQLITE_OK) exit(1);
    sql(db, "PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            "PRAGMA cache_size=-65536; CREATE TABLE c(id INTEGER PRIMARY KEY, b BLOB)");
    sqlite3_prepare_v2(db, "INSERT INTO c VALUES(?,?)", -1, &row, NULL);
    for (int p = 0, id = 0; p < T / PASS; p++) {
        sql(db, "BEGIN");
        for (int r = 0; r < L; r++)
            for (int b = 0; b < PASS / 512; b++) {
                sqlite3_bind_int(row, 1, ++id);
                sqlite3_bind_blob(row, 2, f->logits + (size_t)b * 512 * E, CHUNK, SQLITE_STATIC);
                if (sqlite3_step(row) != SQLITE_DONE) exit(1);
                sqlite3_reset(row);
            }
        sql(db, "COMMIT");
    }
    sqlite3_finalize(row);
    sql(db, "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE");
    sqlite3_close(db);
}

static volatile float sink;

/* Cursors stay open: opening costs a fixed 0.5 ms or so each, which a trace of some GB does not
 * see. */
static struct trace *open_trace;
static struct trace_cursor *cursors[L];

static void open_cursors(void) {
    struct err err = {0};
    if (!(open_trace = trace_open(run_path, &err))) stop("open", &err);
    for (int r = 0; r < L; r++)
        if (!(cursors[r] = trace_cursor_open(open_trace, r, &err))) stop("cursor", &err);
}

static void close_cursors(void) {
    for (int r = 0; r < L; r++) trace_cursor_free(cursors[r]);
    trace_free(open_trace);
}

static void scan_trace(void *context) {
    (void)context;
    struct err err = {0};
    for (int r = 0; r < L; r++) {
        struct trace_cursor *cursor = cursors[r];
        struct trace_chunk chunk;
        if (!trace_cursor_seek(cursor, 0, &err)) stop("seek", &err);
        do {
            if (!trace_cursor_next(cursor, &chunk, &err)) stop("next", &err);
            if (chunk.tokens) sink = chunk.logits[chunk.tokens * E - 1];
        } while (chunk.tokens);
    }
}

static sqlite3 *raw;
static sqlite3_blob *raw_blob;
static char *raw_bytes;

static void open_raw(void) {
    if (sqlite3_open_v2(raw_path, &raw, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK) exit(1);
    sql(raw, "PRAGMA mmap_size=2147418112");
    raw_bytes = malloc(CHUNK);
    if (sqlite3_blob_open(raw, "main", "c", "b", 1, 0, &raw_blob) != SQLITE_OK) exit(1);
}

static void close_raw(void) {
    sqlite3_blob_close(raw_blob);
    sqlite3_close(raw);
    free(raw_bytes);
}

static void scan_raw(void *context) {
    (void)context;
    for (int id = 1; id <= L * T / 512; id++) {
        if (sqlite3_blob_reopen(raw_blob, id) != SQLITE_OK ||
            sqlite3_blob_read(raw_blob, raw_bytes, CHUNK, 0) != SQLITE_OK)
            exit(1);
        sink = (float)raw_bytes[CHUNK - 1];
    }
}

static void random_rows(void *context) {
    struct trace_cursor *cursor = context;
    static float rows[1000 * E];
    static int64_t tokens[1000];
    struct err err = {0};
    for (int i = 0; i < 1000; i++) tokens[i] = (int64_t)i * 7919 % T;
    const struct trace_rows want = {.n = 1000, .token = tokens, .logits = rows};
    if (!trace_cursor_rows(cursor, &want, &err)) stop("rows", &err);
}

static void query(void *context) {
    struct err err = {0};
    struct trace *trace = trace_open(run_path, &err);
    struct table *table = trace ? trace_sql(trace, context, &err) : NULL;
    if (!table) stop("query", &err);
    table_free(table);
    trace_free(trace);
}

/* One token's layer, 1000 times within one connection. */
static const char lookups[] =
    "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999) "
    "SELECT sum((SELECT sum(logit) FROM router_score WHERE layer = 3 AND token = i * 7 AND expert "
    "= 5)) "
    "FROM n";

/* Both in turns, so that a busy machine is busy for both; prints the medians and their ratio. */
static void pair(const char *name, void (*mine)(void *), void (*theirs)(void *), void *context) {
    enum { TURNS = 5 };
    double best_mine = 0, best_raw = 0, bytes = (double)L * T * E * 4 / 1e6;
    for (int i = 0; i < TURNS; i++) {
        double start = bench_seconds(1);
        mine(context);
        double middle = bench_seconds(1);
        theirs(context);
        double end = bench_seconds(1);
        if (bytes / (middle - start) > best_mine) best_mine = bytes / (middle - start);
        if (bytes / (end - middle) > best_raw) best_raw = bytes / (end - middle);
    }
    char line[80];
    bench_print("store", name, best_mine, "MB/s");
    snprintf(line, sizeof line, "%s of raw blobs", name);
    bench_print("store", line, best_raw, "MB/s");
    snprintf(line, sizeof line, "%s / raw blobs", name);
    bench_print("store", line, best_mine / best_raw, "");
}

void bench_store(void) {
    struct fixture fixture;
    struct err err = {0};
    struct stat info;
    make(&fixture);
    pair("write", write_trace, write_raw, &fixture);
    open_cursors();
    open_raw();
    pair("scan", scan_trace, scan_raw, &fixture);
    close_cursors();
    close_raw();
    if (stat(run_path, &info) == 0)
        bench_print("store", "file size / scores", (double)info.st_size / ((double)L * T * E * 4),
                    "");
    struct trace *trace = trace_open(run_path, &err);
    struct trace_cursor *cursor = trace ? trace_cursor_open(trace, 5, &err) : NULL;
    if (!cursor) stop("cursor", &err);
    bench_measure(&(struct bench_case){"store", "random rows", "rows/s", 1000, random_rows, cursor,
                                       NULL, "", 1});
    trace_cursor_free(cursor);
    trace_free(trace);
    bench_measure(
        &(struct bench_case){"store", "router_score scan of logit", "rows/s", (double)T * E, query,
                             "SELECT sum(logit) FROM router_score WHERE layer = 3", NULL, "", 1});
    bench_measure(
        &(struct bench_case){"store", "router_score scan of chosen", "rows/s", (double)T * E, query,
                             "SELECT sum(chosen) FROM router_score WHERE layer = 3", NULL, "", 1});
    bench_measure(&(struct bench_case){"store", "router_score point look-ups", "look-ups/s", 1000,
                                       query, (void *)(uintptr_t)lookups, NULL, "", 1});
    unlink(run_path);
    unlink(raw_path);
    free(fixture.logits);
    free(fixture.ids);
    free(fixture.positions);
}
