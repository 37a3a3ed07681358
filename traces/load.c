/* load.c - opening a trace for reading: what it is made of, checked before use
 *
 * The database may be damaged or hostile: every number that later sizes a buffer or indexes an
 * array is checked here once. Also the plain accessors of trace.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "traces/hash_table.h"
#include "traces/internal.h"

static const struct {
    const char *name;
    size_t bytes;
} stores[] = {
#define X(e, name, bytes, help) {name, bytes},
    TRACE_STORES(X)
#undef X
};
static const char *const holds_names[] = {
#define X(e, name, help) name,
    TRACE_HOLDS(X)
#undef X
};

const char *trace_store_name(enum trace_store store) { return stores[store].name; }
size_t trace_store_bytes(enum trace_store store) { return stores[store].bytes; }
const char *trace_holds_name(enum trace_holds holds) { return holds_names[holds]; }

bool trace_store_find(const char *name, enum trace_store *store, struct err *err) {
    for (size_t i = 0; i < sizeof stores / sizeof *stores; i++)
        if (strcmp(name, stores[i].name) == 0) {
            *store = (enum trace_store)i;
            return true;
        }
    return err_set(err, ERR_USAGE, "found '%.40s', expected f32, bf16 or f16", name);
}

/* ---- loading */

static bool bad(struct trace *trace, struct err *err, const char *what, long long found,
                const char *expected) {
    return err_set(err, ERR_FORMAT, "%s: %s: found %lld, expected %s", trace->db.path, what, found,
                   expected);
}

/* A copy of a text column in the trace's arena. */
static const char *keep(struct trace *trace, sqlite3_stmt *row, int column) {
    const char *text = db_text(row, column);
    return arena_text(&trace->arena, text, strlen(text));
}

static bool load_capture(struct trace *trace, struct err *err) {
    struct db *db = &trace->db;
    sqlite3_stmt *row = db_prepare(db,
                                   "SELECT kind, identity, store"
#define X(member) ", " #member
                                   CAPTURE_TEXTS(X) CAPTURE_INTS(X)
#undef X
                                       " FROM capture",
                                   err);
    if (!row) return false;
    enum db_step step = db_step(db, row, err);
    bool ok = step == DB_ROW;
    if (step == DB_DONE)
        err_set(err, ERR_FORMAT, "%s: capture: found no row, expected one", db->path);
    if (ok) {
        int column = 3;
        trace->is_result = strcmp(db_text(row, 0), "result") == 0;
        snprintf(trace->identity, sizeof trace->identity, "%s", db_text(row, 1));
        ok = trace_store_find(db_text(row, 2), &trace->capture.store, err) ||
             bad(trace, err, "capture.store", -1, "f32, bf16 or f16");
#define X(member)                                                                                  \
    if (!(trace->capture.member = keep(trace, row, column++)) && ok)                               \
        ok = err_memory(err, "capture");
        CAPTURE_TEXTS(X)
#undef X
#define X(member) trace->capture.member = sqlite3_column_int64(row, column++);
        CAPTURE_INTS(X)
#undef X
    }
    sqlite3_finalize(row);
    return ok;
}

static bool load_bias(struct trace *trace, struct trace_layer *layer, sqlite3_stmt *row,
                      struct err *err) {
    const void *blob = sqlite3_column_blob(row, 7);
    int bytes = sqlite3_column_bytes(row, 7);
    if (!blob) return true;
    if (bytes != layer->experts * 4)
        return bad(trace, err, "layer.bias: bytes", bytes, "4 for each expert");
    float *bias = arena_alloc(&trace->arena, (size_t)layer->experts, sizeof *bias);
    if (!bias) return err_memory(err, "bias");
    memcpy(bias, blob, (size_t)bytes);
    for (int e = 0; e < layer->experts; e++)
        if (!isfinite(bias[e]))
            return err_set(err, ERR_DATA, "%s: layer %d: bias of expert %d is not finite",
                           trace->db.path, layer->layer, e);
    layer->bias = bias;
    return true;
}

static bool load_gate(struct trace *trace, struct trace_layer *layer, sqlite3_stmt *row,
                      struct err *err) {
    layer->has_gate = sqlite3_column_type(row, 6) != SQLITE_NULL;
    if (!layer->has_gate) return true;
    if (!gate_parse(db_text(row, 6), NULL, &layer->gate, err) ||
        !gate_check_live(&layer->gate, layer->experts, layer->bias != NULL, err))
        return err_context(err, "%s: layer %d: gate", trace->db.path, layer->layer);
    if (layer->gate.topk != layer->topk)
        return bad(trace, err, "layer.topk", layer->topk, "that of the gate");
    return true;
}

static bool load_layer(struct trace *trace, sqlite3_stmt *row, struct err *err) {
    int r = trace->layer_count;
    struct trace_layer *layer = &trace->layers[r];
    int64_t number = sqlite3_column_int64(row, 1), experts = sqlite3_column_int64(row, 2);
    int64_t topk = sqlite3_column_int64(row, 3);
    if (sqlite3_column_int64(row, 0) != r)
        return bad(trace, err, "layer.router", sqlite3_column_int64(row, 0), "0, 1, 2, ...");
    if (number < 0 || number > 1000000 || (r && number <= trace->layers[r - 1].layer))
        return bad(trace, err, "layer.layer", number, "rising numbers");
    if (experts < 1 || experts > GATE_MAX_EXPERTS)
        return bad(trace, err, "layer.experts", experts, "1 to 65536");
    if (topk < 1 || topk > GATE_MAX_TOPK || topk > experts)
        return bad(trace, err, "layer.topk", topk, "1 to the number of experts");
    *layer = (struct trace_layer){.layer = (int)number,
                                  .experts = (int)experts,
                                  .topk = (int)topk,
                                  .has_weights = sqlite3_column_int(row, 5) != 0};
    for (size_t h = 0; h < sizeof holds_names / sizeof *holds_names; h++)
        if (strcmp(db_text(row, 4), holds_names[h]) == 0) layer->holds = (enum trace_holds)h;
    if (!load_bias(trace, layer, row, err) || !load_gate(trace, layer, row, err)) return false;
    trace->layer_count++;
    return true;
}

/* Counts the rows of a table, to size the array that takes them. */
static bool count_rows(struct trace *trace, const char *sql, int64_t limit, int64_t *out,
                       struct err *err) {
    if (!db_int(&trace->db, sql, out, err)) return false;
    return (*out >= 0 && *out <= limit) || bad(trace, err, sql, *out, "fewer rows");
}

/* Calls `load` for every row of the query. */
static bool each_row(struct trace *trace, const char *sql,
                     bool (*load)(struct trace *, sqlite3_stmt *, struct err *), int64_t rows,
                     struct err *err) {
    sqlite3_stmt *row = db_prepare(&trace->db, sql, err);
    if (!row) return false;
    bool ok = true;
    enum db_step step = DB_DONE;
    while (ok && (step = db_step(&trace->db, row, err)) == DB_ROW)
        ok = rows-- > 0
                 ? load(trace, row, err)
                 : err_set(err, ERR_EXISTS, "%s: changed while it was opened", trace->db.path);
    sqlite3_finalize(row);
    return ok && step == DB_DONE;
}

static bool load_layers(struct trace *trace, struct err *err) {
    int64_t rows;
    if (!count_rows(trace, "SELECT count(*) FROM layer", 100000, &rows, err)) return false;
    if (!rows) return bad(trace, err, "layer: rows", 0, "at least 1");
    trace->layers = arena_alloc(&trace->arena, (size_t)rows, sizeof *trace->layers);
    if (!trace->layers) return err_memory(err, "layers");
    return each_row(trace,
                    "SELECT router, layer, experts, topk, holds, weights, gate, bias FROM layer "
                    "ORDER BY router",
                    load_layer, rows, err);
}

static bool load_document(struct trace *trace, sqlite3_stmt *row, struct err *err) {
    int64_t d = trace->document_count;
    struct trace_document *document = &trace->documents[d];
    *document = (struct trace_document){.source = keep(trace, row, 1),
                                        .domain = keep(trace, row, 2),
                                        .sha256 = keep(trace, row, 3),
                                        .bytes = sqlite3_column_int64(row, 4),
                                        .first_token = sqlite3_column_int64(row, 5),
                                        .tokens = sqlite3_column_int64(row, 6)};
    if (!document->source || !document->domain || !document->sha256)
        return err_memory(err, "documents");
    int64_t next = d ? document[-1].first_token + document[-1].tokens : 0;
    if (sqlite3_column_int64(row, 0) != d)
        return bad(trace, err, "document.document", sqlite3_column_int64(row, 0), "0, 1, 2, ...");
    if (document->first_token != next)
        return bad(trace, err, "document.first_token", document->first_token,
                   "the end of the document before");
    if (document->tokens < 0 || document->tokens > INT64_C(1) << 48 || document->bytes < 0)
        return bad(trace, err, "document.tokens", document->tokens, "0 to 2^48");
    trace->document_count++;
    return next <= INT64_C(1) << 48 ||
           bad(trace, err, "document.first_token", next, "at most 2^48");
}

static bool load_documents(struct trace *trace, struct err *err) {
    int64_t rows;
    if (!count_rows(trace, "SELECT count(*) FROM document", INT32_MAX, &rows, err)) return false;
    trace->documents = arena_alloc(&trace->arena, (size_t)rows, sizeof *trace->documents);
    if (!trace->documents) return err_memory(err, "documents");
    return each_row(trace,
                    "SELECT document, source, domain, sha256, bytes, first_token, tokens "
                    "FROM document ORDER BY document",
                    load_document, rows, err) &&
           trace_index_domains(trace, err);
}

bool trace_index_domains(struct trace *trace, struct err *err) {
    size_t n = (size_t)trace->document_count;
    trace->document_domain = arena_alloc(&trace->arena, n, sizeof *trace->document_domain);
    trace->domains = arena_alloc(&trace->arena, n, sizeof *trace->domains);
    if (!trace->document_domain || !trace->domains) return err_memory(err, "domains");
    for (size_t d = 0; d < n; d++) {
        const char *name = trace->documents[d].domain;
        int i = d ? trace->document_domain[d - 1] : 0; /* mostly that of the document before */
        if (!trace->domain_count || strcmp(trace->domains[i], name) != 0)
            for (i = 0; i < trace->domain_count && strcmp(trace->domains[i], name) != 0;) i++;
        if (i == trace->domain_count) trace->domains[trace->domain_count++] = name;
        trace->document_domain[d] = i;
    }
    return true;
}

static bool load_block(struct trace *trace, sqlite3_stmt *row, struct err *err) {
    int64_t b = trace->block_count;
    struct block *block = &trace->blocks[b];
    *block = (struct block){sqlite3_column_int64(row, 1), sqlite3_column_int64(row, 2)};
    if (sqlite3_column_int64(row, 0) != b ||
        block->first != (b ? block[-1].first + block[-1].tokens : 0))
        return bad(trace, err, "block.first_token", block->first, "the end of the block before");
    if (block->tokens < 1 || block->tokens > BLOCK_MAX_TOKENS)
        return bad(trace, err, "block.tokens", block->tokens, "1 to 65536");
    trace->block_count++;
    return true;
}

static bool load_blocks(struct trace *trace, struct err *err) {
    int64_t rows;
    if (!count_rows(trace, "SELECT count(*) FROM block", INT64_C(1) << 32, &rows, err))
        return false;
    trace->block_cap = rows + 16;
    trace->blocks = calloc((size_t)trace->block_cap, sizeof *trace->blocks);
    if (!trace->blocks) return err_memory(err, "blocks");
    if (!each_row(trace, "SELECT block, first_token, tokens FROM block ORDER BY block", load_block,
                  rows, err))
        return false;
    return trace_tokens(trace) <= trace_tokens_total(trace) ||
           bad(trace, err, "block: tokens", trace_tokens(trace), "at most those of the documents");
}

bool trace_load(struct trace *trace, struct err *err) {
    arena_init(&trace->arena, "trace");
    return db_check_schema(&trace->db, err) && trace_load_rows(trace, err);
}

bool trace_load_rows(struct trace *trace, struct err *err) {
    /* one read transaction: the four tables belong to the same moment of a running capture */
    if (!db_exec(&trace->db, "BEGIN", err)) return false;
    bool ok = load_capture(trace, err) && load_layers(trace, err) && hash_tables_load(trace, err) &&
              load_documents(trace, err) && load_blocks(trace, err);
    struct err ignored;
    db_exec(&trace->db, "COMMIT", &ignored);
    return ok;
}

struct trace *trace_open(const char *path, struct err *err) {
    struct trace *trace = calloc(1, sizeof *trace);
    if (!trace) {
        err_memory(err, path);
        return NULL;
    }
    trace->connections = connections_create();
    if (!trace->connections)
        err_memory(err, path);
    else if (db_open(&trace->db, path, DB_READ, err) && trace_load(trace, err))
        return trace;
    trace_free(trace);
    return NULL;
}

void trace_release(struct trace *trace) {
    arena_free(&trace->arena);
    free(trace->blocks);
}

void trace_free(struct trace *trace) {
    if (!trace) return;
    trace_release(trace);
    connections_free(trace->connections);
    db_close(&trace->db);
    free(trace);
}

/* ---- identity */

static void hash_text(struct sha256 *sha, const char *text) {
    sha256_add(sha, text, strlen(text) + 1); /* the NUL separates */
}

static void hash_int(struct sha256 *sha, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    hash_text(sha, text);
}

void trace_setup_identity(const struct trace_setup *setup, char hex[static 65]) {
    struct sha256 sha;
    sha256_init(&sha);
#define X(member) hash_text(&sha, setup->capture.member);
    CAPTURE_TEXTS(X)
#undef X
#define X(member) hash_int(&sha, setup->capture.member);
    CAPTURE_INTS(X)
#undef X
    hash_text(&sha, trace_store_name(setup->capture.store));
    for (int r = 0; r < setup->layer_count; r++) {
        const struct trace_layer *layer = &setup->layers[r];
        char gate[GATE_TEXT_BYTES] = "";
        if (layer->has_gate) gate_print(&layer->gate, gate);
        hash_int(&sha, layer->layer);
        hash_int(&sha, layer->experts);
        hash_int(&sha, layer->topk);
        hash_text(&sha, trace_holds_name(layer->holds));
        hash_text(&sha, gate);
        if (layer->bias) sha256_add(&sha, layer->bias, (size_t)layer->experts * 4);
        const struct route_table *table = &layer->table;
        size_t cells = (size_t)table->ids * (size_t)layer->topk;
        if (table->expert) sha256_add(&sha, table->expert, cells * sizeof *table->expert);
    }
    for (int64_t d = 0; d < setup->document_count; d++) {
        hash_text(&sha, setup->documents[d].source);
        hash_text(&sha, setup->documents[d].domain);
        hash_text(&sha, setup->documents[d].sha256);
        hash_int(&sha, setup->documents[d].tokens);
    }
    sha256_hex(&sha, hex);
}

struct trace_setup trace_as_setup(const struct trace *trace) {
    return (struct trace_setup){.capture = trace->capture,
                                .layers = trace->layers,
                                .layer_count = trace->layer_count,
                                .documents = trace->documents,
                                .document_count = trace->document_count};
}

/* ---- accessors */

bool trace_is_result(const struct trace *trace) { return trace->is_result; }
const char *trace_path(const struct trace *trace) { return trace->db.path; }
const struct trace_capture *trace_capture(const struct trace *trace) { return &trace->capture; }
const char *trace_identity(const struct trace *trace) { return trace->identity; }

int64_t trace_tokens(const struct trace *trace) {
    if (!trace->block_count) return 0;
    const struct block *last = &trace->blocks[trace->block_count - 1];
    return last->first + last->tokens;
}

int64_t trace_tokens_total(const struct trace *trace) {
    if (!trace->document_count) return 0;
    const struct trace_document *last = &trace->documents[trace->document_count - 1];
    return last->first_token + last->tokens;
}

bool trace_complete(const struct trace *trace) {
    if (trace->is_result) return true;
    for (int r = 0; r < trace->layer_count; r++)
        if (trace->layers[r].holds != TRACE_COUNTS)
            return trace_tokens(trace) == trace_tokens_total(trace);
    return true;
}

int trace_layers(const struct trace *trace) { return trace->layer_count; }
const struct trace_layer *trace_layer(const struct trace *trace, int r) {
    return &trace->layers[r];
}

int trace_layer_find(const struct trace *trace, int layer) {
    for (int r = 0; r < trace->layer_count; r++)
        if (trace->layers[r].layer == layer) return r;
    return -1;
}

int64_t trace_documents(const struct trace *trace) { return trace->document_count; }
const struct trace_document *trace_document(const struct trace *trace, int64_t document) {
    return &trace->documents[document];
}
int trace_domains(const struct trace *trace) { return trace->domain_count; }
const char *trace_domain(const struct trace *trace, int domain) { return trace->domains[domain]; }
int trace_domain_of(const struct trace *trace, int64_t document) {
    return trace->document_domain[document];
}

int64_t trace_document_of(const struct trace *trace, int64_t token) {
    int64_t low = 0, high = trace->document_count;
    if (token < 0 || token >= trace_tokens_total(trace)) return -1;
    while (high - low > 1) { /* the last document that begins at or before token */
        int64_t mid = low + (high - low) / 2;
        if (trace->documents[mid].first_token <= token)
            low = mid;
        else
            high = mid;
    }
    return low;
}

int64_t trace_block_of(const struct trace *trace, int64_t token) {
    int64_t low = 0, high = trace->block_count;
    if (token < 0 || token >= trace_tokens(trace)) return -1;
    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (trace->blocks[mid].first <= token)
            low = mid;
        else
            high = mid;
    }
    return low;
}

bool trace_has_scores(const struct trace *trace) {
    for (int r = 0; r < trace->layer_count; r++)
        if (trace->layers[r].holds != TRACE_SCORES) return false;
    return true;
}

int64_t trace_block_tokens(const struct trace *trace) {
    int64_t most = 0;
    for (int64_t b = 0; b < trace->block_count; b++)
        if (trace->blocks[b].tokens > most) most = trace->blocks[b].tokens;
    return most;
}
