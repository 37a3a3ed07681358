/* store.c - writing a trace: create or resume, passes of tokens, one durable commit per pass
 *
 * A pass is one transaction in WAL mode: what was committed survives a kill, what was not leaves no
 * trace of itself. Pieces of logits are gathered per router until a block is full. Blocks hold
 * about 512 KiB of f32 scores (chunks of this size write and scan at the rate of raw blobs and
 * waste under 2 % of a file; one row per token and layer is 1.5-2 times slower). A lock on the file
 * itself (flock, independent of SQLite's locks) keeps a second writer out; its descriptor is closed
 * after SQLite's, which would otherwise lose its own locks. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "embed.h"
#include "traces/hash_table.h"
#include "traces/internal.h"
#include "traces/same.h"

/* Large traces have the largest pages: the kernel maps a file the faster the larger its pages were
 * written (a first pass takes two thirds of the time), and fewer tokens lie across two pages. Small
 * ones would be mostly empty pages.
 *
 * Unused bytes at the end of each page make the part of a chunk's record that stays in the b-tree a
 * multiple of 4 (2028 and 8196 bytes; 2031 and 8199 without), so that the floats in the pages
 * behind are aligned and can be used in place (in_place.h). */
enum { PAGE_BYTES = 16384, LARGE_PAGE_BYTES = 65536, LARGE_BYTES = 64 << 20, RESERVED_BYTES = 24 };

enum { BLOCK_TARGET_BYTES = 512 << 10, BLOCK_MIN_TOKENS = 16, BLOCK_MOST_TOKENS = 4096 };

/* What gathers at one router until a block is full. */
struct gather {
    int64_t done;         /* tokens of the pass taken so far */
    unsigned char *bytes; /* stored form of the block's scores, or its ids */
    float *weights;       /* of ids */
    uint64_t hash;        /* of the block's choices */
    bool hashed;
};

struct writer {
    bool whole;            /* TRACE_WHOLE */
    int lock;              /* descriptor that holds the lock */
    int64_t block_tokens;  /* of a full block */
    int64_t blocks_before; /* committed */
    bool in_pass;
    int64_t pass_first, pass_tokens;
    int32_t *id, *position; /* [pass] */
    bool have_ids;
    float *nll;             /* [pass] */
    size_t cap;             /* of the three above */
    struct gather *gathers; /* [L] */
    sqlite3_stmt *chunk, *block, *token, *piece, *counts;
};

/* ---- storing values */

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* Round to nearest, ties to even. */
static uint16_t to_bf16(float x) {
    uint32_t bits = bits_of(x);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Round to nearest, ties to even; overflow gives infinity, which the caller refuses. */
static uint16_t to_f16(float x) {
    uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more */
    if (rest < 0x38800000) {                                  /* below 2^-14: subnormal */
        float magnitude;
        memcpy(&magnitude, &rest, 4);
        return (uint16_t)(sign | (uint32_t)lrintf(magnitude * 0x1p24f));
    }
    return (uint16_t)(sign | (((rest + 0xfff + (rest >> 13 & 1)) >> 13) - (112 << 10)));
}

/* Stores n logits; returns the index of the first that cannot be (NaN, infinite, out of range), or
 * -1. */
static int64_t encode(enum trace_store store, const float *logits, int64_t n, unsigned char *out) {
    for (int64_t i = 0; i < n; i++) {
        if ((bits_of(logits[i]) & 0x7f800000) == 0x7f800000) return i;
        if (store == TRACE_F32) continue;
        uint16_t half = store == TRACE_BF16 ? to_bf16(logits[i]) : to_f16(logits[i]);
        uint16_t infinite = store == TRACE_BF16 ? 0x7f80 : 0x7c00;
        if ((half & infinite) == infinite) return i;
        memcpy(out + 2 * i, &half, 2);
    }
    if (store == TRACE_F32 && out) memcpy(out, logits, (size_t)n * 4);
    return -1;
}

uint64_t trace_choice_hash(uint64_t hash, int64_t n, int k, const int32_t *expert,
                           const float *weight) {
    for (int64_t t = 0; t < n; t++) {
        for (int i = 0; i < k; i++) {
            hash = (hash ^ (uint32_t)expert[t * k + i]) * UINT64_C(0xff51afd7ed558ccd);
            hash ^= hash >> 32;
        }
        for (int i = 0; weight && i < k; i++) {
            hash = (hash ^ bits_of(weight[t * k + i])) * UINT64_C(0xff51afd7ed558ccd);
            hash ^= hash >> 32;
        }
    }
    return hash;
}

/* ---- creating */

static int64_t choose_block_tokens(const struct trace *trace) {
    int experts = 1;
    for (int r = 0; r < trace->layer_count; r++)
        if (trace->layers[r].experts > experts) experts = trace->layers[r].experts;
    int64_t n = BLOCK_MOST_TOKENS;
    while (n > BLOCK_MIN_TOKENS && n * experts * 4 > BLOCK_TARGET_BYTES) n /= 2;
    return n;
}

static bool take_lock(const char *path, int flags, int *lock, struct err *err) {
    *lock = open(path, flags | O_RDWR | O_CLOEXEC | O_NONBLOCK, 0666);
    if (*lock < 0) {
        if (errno == EEXIST)
            return err_set(err, ERR_EXISTS,
                           "%s: exists already (--force replaces it, --resume goes on)", path);
        return err_errno(err, path, "cannot create");
    }
    struct stat info;
    if (fstat(*lock, &info) != 0 || !S_ISREG(info.st_mode))
        return err_set(err, ERR_IO, "%s: found no regular file, expected one", path);
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0) return true;
    return err_set(err, ERR_EXISTS, "%s: another process is writing to it", path);
}

/* Removes a database and what SQLite keeps beside it. */
static void remove_files(const char *path) {
    static const char *const beside[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        struct str name = {0};
        str_printf(&name, "%s%s", path, beside[i]);
        if (!name.failed) unlink(str_text(&name));
        str_free(&name);
    }
}

/* Takes an existing file out of the way, unless somebody is writing to it. */
static bool clear_way(const char *path, struct err *err) {
    int lock;
    if (!file_exists(path)) return true;
    bool ok = take_lock(path, 0, &lock, err);
    if (ok) remove_files(path);
    if (lock >= 0) close(lock);
    return ok;
}

/* Binds a text that lives longer than the statement's next reset. */
static void bind_text(sqlite3_stmt *statement, int at, const char *text) {
    sqlite3_bind_text(statement, at, text, -1, SQLITE_STATIC);
}

static bool insert_capture(struct db *db, const struct trace_setup *setup, const char *kind,
                           const char *identity, struct err *err) {
    sqlite3_stmt *row = db_prepare(db,
                                   "INSERT INTO capture(capture, kind, identity, store"
#define X(member) ", " #member
                                   CAPTURE_TEXTS(X) CAPTURE_INTS(X)
#undef X
                                       ") VALUES (1, ?, ?, ?"
#define X(member) ", ?"
                                   CAPTURE_TEXTS(X) CAPTURE_INTS(X)
#undef X
                                       ")",
                                   err);
    if (!row) return false;
    int at = 4;
    bind_text(row, 1, kind);
    bind_text(row, 2, identity);
    bind_text(row, 3, trace_store_name(setup->capture.store));
#define X(member) bind_text(row, at++, setup->capture.member);
    CAPTURE_TEXTS(X)
#undef X
#define X(member) sqlite3_bind_int64(row, at++, setup->capture.member);
    CAPTURE_INTS(X)
#undef X
    bool ok = db_run(db, row, err);
    sqlite3_finalize(row);
    return ok;
}

static bool insert_layers(struct db *db, const struct trace_setup *setup, struct err *err) {
    sqlite3_stmt *row = db_prepare(db, "INSERT INTO layer VALUES (?, ?, ?, ?, ?, ?, ?, ?)", err);
    bool ok = row != NULL;
    for (int r = 0; ok && r < setup->layer_count; r++) {
        const struct trace_layer *layer = &setup->layers[r];
        char gate[GATE_TEXT_BYTES];
        ok = !layer->has_gate ||
             gate_check_live(&layer->gate, layer->experts, layer->bias != NULL, err);
        if (!ok) break;
        sqlite3_bind_int(row, 1, r);
        sqlite3_bind_int(row, 2, layer->layer);
        sqlite3_bind_int(row, 3, layer->experts);
        sqlite3_bind_int(row, 4, layer->topk);
        bind_text(row, 5, trace_holds_name(layer->holds));
        sqlite3_bind_int(row, 6, layer->has_weights);
        if (layer->has_gate) gate_print(&layer->gate, gate);
        if (layer->has_gate) bind_text(row, 7, gate);
        if (layer->bias) sqlite3_bind_blob(row, 8, layer->bias, layer->experts * 4, SQLITE_STATIC);
        ok = db_run(db, row, err);
    }
    sqlite3_finalize(row);
    return ok;
}

static bool insert_documents(struct db *db, const struct trace_setup *setup, struct err *err) {
    sqlite3_stmt *row = db_prepare(db, "INSERT INTO document VALUES (?, ?, ?, ?, ?, ?, ?)", err);
    bool ok = row != NULL;
    for (int64_t d = 0; ok && d < setup->document_count; d++) {
        const struct trace_document *document = &setup->documents[d];
        sqlite3_bind_int64(row, 1, d);
        bind_text(row, 2, document->source);
        bind_text(row, 3, document->domain);
        bind_text(row, 4, document->sha256);
        sqlite3_bind_int64(row, 5, document->bytes);
        sqlite3_bind_int64(row, 6, document->first_token);
        sqlite3_bind_int64(row, 7, document->tokens);
        ok = db_run(db, row, err);
    }
    sqlite3_finalize(row);
    return ok;
}

bool trace_insert_setup(struct db *db, const struct trace_setup *setup, const char *kind,
                        const char *identity, struct err *err) {
    return insert_capture(db, setup, kind, identity, err) && insert_layers(db, setup, err) &&
           hash_tables_insert(db, setup, err) && insert_documents(db, setup, err);
}

static int choose_page_bytes(const struct trace_setup *setup) {
    double tokens = 0, bytes = 0;
    for (int64_t d = 0; d < setup->document_count; d++)
        tokens += (double)setup->documents[d].tokens;
    for (int r = 0; r < setup->layer_count; r++)
        if (setup->layers[r].holds == TRACE_SCORES)
            bytes +=
                tokens * setup->layers[r].experts * (double)trace_store_bytes(setup->capture.store);
    return bytes >= LARGE_BYTES ? LARGE_PAGE_BYTES : PAGE_BYTES;
}

/* Schema and setup in one transaction: a killed creation leaves an empty database, nothing between.
 */
static bool fill_new(struct trace *trace, const struct trace_setup *setup, struct err *err) {
    struct db *db = &trace->db;
    char identity[65];
    int reserved = RESERVED_BYTES;
    trace_setup_identity(setup, identity);
    if (!db_execf(db, err, "PRAGMA page_size = %d", choose_page_bytes(setup))) return false;
    sqlite3_file_control(db->handle, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserved);
    return db_exec(db, "PRAGMA journal_mode = WAL; BEGIN IMMEDIATE", err) &&
           db_exec(db, embed_traces_schema_sql, err) &&
           trace_insert_setup(db, setup, "trace", identity, err) && db_exec(db, "COMMIT", err);
}

/* ---- resuming */

/* A killed creation may have left a file without any table. */
static bool open_or_fill(struct trace *trace, const char *path, const struct trace_setup *setup,
                         bool resume, struct err *err) {
    int64_t objects = 0;
    if (!db_open_new(&trace->db, path, err) ||
        !db_int(&trace->db, "SELECT count(*) FROM sqlite_schema", &objects, err))
        return false;
    if (objects == 0 ? !fill_new(trace, setup, err) : !db_check_schema(&trace->db, err))
        return false;
    if (!trace_load(trace, err)) return false;
    const struct same same = {trace->db.path, "cannot resume"};
    const struct trace_setup recorded = trace_as_setup(trace);
    return !resume || objects == 0 || same_setup(&same, &recorded, setup, err);
}

static bool prepare_statements(struct trace *trace, struct err *err) {
    struct writer *w = trace->writer;
    struct db *db = &trace->db;
    return (w->chunk = db_prepare(db, "INSERT INTO chunk VALUES (?, ?, ?, ?, ?)", err)) &&
           (w->block = db_prepare(db, "INSERT INTO block VALUES (?, ?, ?)", err)) &&
           (w->token = db_prepare(db, "INSERT INTO token VALUES (?, ?, ?, ?, ?)", err)) &&
           (w->piece = db_prepare(db, "INSERT OR IGNORE INTO piece VALUES (?, ?)", err)) &&
           (w->counts = db_prepare(db, "INSERT INTO expert_count VALUES (?, ?, ?)", err)) &&
           db_exec(db,
                   trace->writer->whole
                       ? "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; "
                         "PRAGMA cache_size = -65536"
                       : "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; "
                         "PRAGMA cache_size = -65536; PRAGMA journal_size_limit = 67108864",
                   err);
}

static void writer_free(struct trace *trace) {
    struct writer *w = trace->writer;
    if (!w) return;
    sqlite3_stmt *statements[] = {w->chunk, w->block, w->token, w->piece, w->counts};
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        sqlite3_finalize(statements[i]);
    for (int r = 0; w->gathers && r < trace->layer_count; r++) {
        free(w->gathers[r].bytes);
        free(w->gathers[r].weights);
    }
    free(w->gathers);
    free(w->id);
    free(w->position);
    free(w->nll);
    free(w);
    trace->writer = NULL;
}

static bool writer_make(struct trace *trace, struct err *err) {
    struct writer *w = trace->writer;
    w->block_tokens = choose_block_tokens(trace);
    w->gathers = calloc((size_t)trace->layer_count, sizeof *w->gathers);
    if (!w->gathers) return err_memory(err, "trace writer");
    return prepare_statements(trace, err);
}

struct trace *trace_create(const char *path, const struct trace_setup *setup, enum trace_mode mode,
                           struct err *err) {
    if ((mode == TRACE_FORCE || mode == TRACE_WHOLE) && !clear_way(path, err)) return NULL;
    struct trace *trace = calloc(1, sizeof *trace);
    struct writer *w = trace ? calloc(1, sizeof *w) : NULL;
    int lock = -1;
    bool fresh = mode != TRACE_RESUME || !file_exists(path);
    if (!w) {
        free(trace);
        err_memory(err, "trace writer");
        return NULL;
    }
    trace->writer = w;
    w->whole = mode == TRACE_WHOLE;
    bool mine = take_lock(path, O_CREAT | (mode == TRACE_RESUME ? 0 : O_EXCL), &lock, err);
    w->lock = lock;
    if (mine && open_or_fill(trace, path, setup, mode == TRACE_RESUME, err) &&
        writer_make(trace, err))
        return trace;
    writer_free(trace);
    trace_free(trace);
    if (mine && fresh) remove_files(path);
    if (lock >= 0) close(lock);
    return NULL;
}

/* ---- passes */

static bool reserve_pass(struct writer *w, size_t n, struct err *err) {
    if (n <= w->cap) return true;
    int32_t *id = realloc(w->id, n * 4);
    if (id) w->id = id;
    int32_t *position = realloc(w->position, n * 4);
    if (position) w->position = position;
    float *nll = realloc(w->nll, n * 4);
    if (nll) w->nll = nll;
    if (!id || !position || !nll) return err_memory(err, "pass");
    w->cap = n;
    return true;
}

static bool grow_blocks(struct trace *trace, int64_t more, struct err *err) {
    int64_t need = trace->block_count + more;
    if (need <= trace->block_cap) return true;
    struct block *blocks = realloc(trace->blocks, (size_t)need * 2 * sizeof *blocks);
    if (!blocks) return err_memory(err, "blocks");
    trace->blocks = blocks;
    trace->block_cap = need * 2;
    return true;
}

/* The pass's blocks are laid out at once; the loader's counters move only at commit. */
bool trace_pass_begin(struct trace *trace, const struct trace_pass *pass, struct err *err) {
    struct writer *w = trace->writer;
    int64_t n = pass->tokens, first = trace_tokens(trace);
    if (n < 1 || n > trace_tokens_total(trace) - first)
        return err_set(err, ERR_DATA, "%s: pass of %lld tokens: found %lld left in the documents",
                       trace->db.path, (long long)n,
                       (long long)(trace_tokens_total(trace) - first));
    if (!reserve_pass(w, (size_t)n, err) ||
        !grow_blocks(trace, (n + w->block_tokens - 1) / w->block_tokens, err) ||
        !db_exec(&trace->db, "BEGIN IMMEDIATE", err))
        return false;
    w->have_ids = pass->id != NULL;
    if (pass->id) memcpy(w->id, pass->id, (size_t)n * 4);
    memcpy(w->position, pass->position, (size_t)n * 4);
    for (int64_t t = 0; t < n; t++) w->nll[t] = NAN;
    for (int r = 0; r < trace->layer_count; r++) {
        w->gathers[r].done = 0;
        w->gathers[r].hash = TRACE_HASH_START;
        w->gathers[r].hashed = false;
    }
    w->pass_first = first;
    w->pass_tokens = n;
    w->blocks_before = trace->block_count;
    for (int64_t t = 0; t < n; t += w->block_tokens)
        trace->blocks[w->blocks_before + t / w->block_tokens] =
            (struct block){first + t, n - t < w->block_tokens ? n - t : w->block_tokens};
    w->in_pass = true;
    return true;
}

static void pass_abandon(struct trace *trace) {
    struct err ignored;
    if (trace->writer->in_pass && !sqlite3_get_autocommit(trace->db.handle))
        db_exec(&trace->db, "ROLLBACK", &ignored);
    trace->writer->in_pass = false;
}

static size_t stored_row_bytes(const struct trace *trace, const struct trace_layer *layer) {
    if (layer->holds == TRACE_IDS) return (size_t)layer->topk * 2;
    return (size_t)layer->experts * trace_store_bytes(trace->capture.store);
}

static bool insert_chunk(struct trace *trace, int r, int64_t block, const void *bytes,
                         struct err *err) {
    struct writer *w = trace->writer;
    const struct trace_layer *layer = &trace->layers[r];
    struct gather *g = &w->gathers[r];
    int64_t n = trace->blocks[block].tokens;
    int at = layer->holds == TRACE_SCORES ? 3 : 4;
    sqlite3_bind_int64(w->chunk, 1, block * trace->layer_count + r);
    if (g->hashed) sqlite3_bind_int64(w->chunk, 2, (int64_t)g->hash);
    sqlite3_bind_blob64(w->chunk, at, bytes, (uint64_t)n * stored_row_bytes(trace, layer),
                        SQLITE_STATIC);
    if (layer->holds == TRACE_IDS && layer->has_weights)
        sqlite3_bind_blob64(w->chunk, 5, g->weights, (uint64_t)n * (uint64_t)layer->topk * 4,
                            SQLITE_STATIC);
    g->hash = TRACE_HASH_START;
    g->hashed = false;
    return db_run(&trace->db, w->chunk, err);
}

/* out[n] <- ids; whether one of them is none. A fixed number at a time becomes vectors. */
static bool narrow(const int32_t *expert, int64_t n, uint32_t experts, uint16_t *out) {
    enum { STEP = 64 };
    uint32_t bad = 0;
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
        for (int j = 0; j < STEP; j++) {
            bad |= (uint32_t)expert[i + j] >= experts;
            out[i + j] = (uint16_t)expert[i + j];
        }
    for (; i < n; i++) {
        bad |= (uint32_t)expert[i] >= experts;
        out[i] = (uint16_t)expert[i];
    }
    return bad;
}

/* `out` lies at an even address. */
static bool encode_ids(const struct trace *trace, const struct trace_layer *layer, int64_t first,
                       const int32_t *expert, int64_t n, unsigned char *out, struct err *err) {
    int64_t count = n * layer->topk, i = 0;
    if (!narrow(expert, count, (uint32_t)layer->experts, (uint16_t *)(void *)out)) return true;
    while (expert[i] >= 0 && expert[i] < layer->experts) i++;
    return err_set(err, ERR_DATA, "%s: layer %d, token %lld: found expert %d, expected 0 to %d",
                   trace->db.path, layer->layer, (long long)(first + i / layer->topk), expert[i],
                   layer->experts - 1);
}

/* Takes n tokens that lie within one block; `at` is their place in it. */
static bool gather_rows(struct trace *trace, const struct trace_layer *layer, struct gather *g,
                        const struct trace_routes *routes, int64_t at, struct err *err) {
    int64_t n = routes->tokens, first = trace->writer->pass_first + routes->first;
    size_t row = stored_row_bytes(trace, layer), cap = (size_t)trace->writer->block_tokens;
    if (!g->bytes && !(g->bytes = malloc(cap * row))) return err_memory(err, "chunk");
    if (layer->holds == TRACE_SCORES) {
        int64_t bad = encode(trace->capture.store, routes->logits, n * layer->experts,
                             g->bytes + (size_t)at * row);
        if (bad < 0) return true;
        return err_set(err, ERR_DATA,
                       "%s: layer %d, token %lld, expert %lld: found logit %g, expected a finite "
                       "number that %s can hold",
                       trace->db.path, layer->layer, (long long)(first + bad / layer->experts),
                       (long long)(bad % layer->experts), (double)routes->logits[bad],
                       trace_store_name(trace->capture.store));
    }
    size_t k = (size_t)layer->topk;
    if (!encode_ids(trace, layer, first, routes->expert, n, g->bytes + (size_t)at * row, err))
        return false;
    if (!layer->has_weights) return true;
    if (!g->weights && !(g->weights = malloc(cap * k * 4))) return err_memory(err, "chunk");
    memcpy(g->weights + (size_t)at * k, routes->weight, (size_t)n * k * 4);
    return true;
}

/* n tokens within one block: gathered, and inserted when the block is full. */
static bool take_piece(struct trace *trace, const struct trace_routes *routes, struct err *err) {
    struct writer *w = trace->writer;
    const struct trace_layer *layer = &trace->layers[routes->r];
    struct gather *g = &w->gathers[routes->r];
    int64_t block = w->blocks_before + routes->first / w->block_tokens;
    int64_t at = routes->first % w->block_tokens;
    if (routes->expert) {
        g->hash =
            trace_choice_hash(g->hash, routes->tokens, layer->topk, routes->expert, routes->weight);
        g->hashed = true;
    }
    if (!gather_rows(trace, layer, g, routes, at, err)) return false;
    g->done += routes->tokens;
    return at + routes->tokens < trace->blocks[block].tokens ||
           insert_chunk(trace, routes->r, block, g->bytes, err);
}

static bool check_routes(struct trace *trace, const struct trace_routes *routes, struct err *err) {
    const struct writer *w = trace->writer;
    const struct trace_layer *layer = &trace->layers[routes->r];
    if (layer->holds == TRACE_COUNTS || (layer->holds == TRACE_SCORES && !routes->logits) ||
        (layer->holds == TRACE_IDS && (!routes->expert || (layer->has_weights && !routes->weight))))
        return err_set(err, ERR_DATA, "%s: layer %d: does not get the %s that it was declared with",
                       trace->db.path, layer->layer, trace_holds_name(layer->holds));
    if (!w->in_pass || routes->first != w->gathers[routes->r].done || routes->tokens < 0 ||
        routes->tokens > w->pass_tokens - routes->first)
        return err_set(err, ERR_DATA, "%s: layer %d: found token %lld of the pass, expected %lld",
                       trace->db.path, layer->layer, (long long)routes->first,
                       (long long)w->gathers[routes->r].done);
    return true;
}

bool trace_pass_routes(struct trace *trace, const struct trace_routes *routes, struct err *err) {
    if (!check_routes(trace, routes, err)) return false;
    const struct trace_layer *layer = &trace->layers[routes->r];
    int64_t block_tokens = trace->writer->block_tokens;
    for (int64_t done = 0; done < routes->tokens;) {
        int64_t n = block_tokens - (routes->first + done) % block_tokens;
        if (n > routes->tokens - done) n = routes->tokens - done;
        const struct trace_routes piece = {
            .r = routes->r,
            .first = routes->first + done,
            .tokens = n,
            .logits = routes->logits ? routes->logits + done * layer->experts : NULL,
            .expert = routes->expert ? routes->expert + done * layer->topk : NULL,
            .weight = routes->weight ? routes->weight + done * layer->topk : NULL};
        if (!take_piece(trace, &piece, err)) return false;
        done += n;
    }
    return true;
}

bool trace_pass_nll(struct trace *trace, int64_t first, int64_t n, const float *nll,
                    struct err *err) {
    struct writer *w = trace->writer;
    if (!w->in_pass || first < 0 || n < 0 || n > w->pass_tokens - first)
        return err_set(err, ERR_DATA, "%s: nll: found tokens outside the pass", trace->db.path);
    memcpy(w->nll + first, nll, (size_t)n * 4);
    return true;
}

/* Length of the UTF-8 sequence at s, 0 when it is none (overlong forms and surrogates are none). */
static size_t utf8_step(const unsigned char *s, size_t len) {
    if (s[0] < 0x80) return 1;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n > len) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

static bool is_text(const char *bytes, size_t len) {
    const unsigned char *s = (const unsigned char *)bytes;
    for (size_t i = 0, n; i < len; i += n)
        if (!s[i] || !(n = utf8_step(s + i, len - i))) return false;
    return true;
}

bool trace_add_piece(struct trace *trace, int32_t id, const char *piece, size_t len,
                     struct err *err) {
    sqlite3_stmt *row = trace->writer->piece;
    bool text = is_text(piece, len);
    sqlite3_bind_int(row, 1, id);
    if (text)
        sqlite3_bind_text64(row, 2, piece, len, SQLITE_STATIC, SQLITE_UTF8);
    else
        sqlite3_bind_blob64(row, 2, len ? piece : "", len, SQLITE_STATIC);
    return db_run(&trace->db, row, err);
}

bool trace_add_counts(struct trace *trace, int r, int64_t document, const int64_t *counts,
                      struct err *err) {
    const struct trace_layer *layer = &trace->layers[r];
    if (layer->holds != TRACE_COUNTS || document < 0 || document >= trace->document_count)
        return err_set(err, ERR_DATA, "%s: layer %d: takes no counts of document %lld",
                       trace->db.path, layer->layer, (long long)document);
    for (int e = 0; e < layer->experts; e++)
        if (counts[e] < 0)
            return err_set(err, ERR_DATA, "%s: layer %d, expert %d: found %lld tokens",
                           trace->db.path, layer->layer, e, (long long)counts[e]);
    sqlite3_stmt *row = trace->writer->counts;
    sqlite3_bind_int(row, 1, r);
    sqlite3_bind_int64(row, 2, document);
    sqlite3_bind_blob(row, 3, counts, layer->experts * 8, SQLITE_STATIC);
    return db_run(&trace->db, row, err);
}

static bool insert_tokens(struct trace *trace, struct err *err) {
    struct writer *w = trace->writer;
    int64_t document = trace_document_of(trace, w->pass_first);
    for (int64_t t = 0; t < w->pass_tokens; t++) {
        int64_t token = w->pass_first + t;
        const struct trace_document *d = &trace->documents[document];
        while (token >= d->first_token + d->tokens) d = &trace->documents[++document];
        sqlite3_bind_int64(w->token, 1, token);
        sqlite3_bind_int64(w->token, 2, document);
        sqlite3_bind_int(w->token, 3, w->position[t]);
        if (w->have_ids && w->id[t] >= 0) sqlite3_bind_int(w->token, 4, w->id[t]);
        if (!isnan(w->nll[t])) sqlite3_bind_double(w->token, 5, (double)w->nll[t]);
        if (!db_run(&trace->db, w->token, err)) return false;
    }
    return true;
}

static bool insert_blocks(struct trace *trace, int64_t end, struct err *err) {
    sqlite3_stmt *row = trace->writer->block;
    for (int64_t b = trace->writer->blocks_before; b < end; b++) {
        sqlite3_bind_int64(row, 1, b);
        sqlite3_bind_int64(row, 2, trace->blocks[b].first);
        sqlite3_bind_int64(row, 3, trace->blocks[b].tokens);
        if (!db_run(&trace->db, row, err)) return false;
    }
    return true;
}

bool trace_pass_commit(struct trace *trace, struct err *err) {
    struct writer *w = trace->writer;
    for (int r = 0; r < trace->layer_count; r++)
        if (trace->layers[r].holds != TRACE_COUNTS && w->gathers[r].done != w->pass_tokens)
            return err_set(err, ERR_DATA, "%s: layer %d: found %lld tokens, expected %lld",
                           trace->db.path, trace->layers[r].layer, (long long)w->gathers[r].done,
                           (long long)w->pass_tokens);
    int64_t end = w->blocks_before + (w->pass_tokens + w->block_tokens - 1) / w->block_tokens;
    if (!insert_tokens(trace, err) || !insert_blocks(trace, end, err) ||
        !db_exec(&trace->db, "COMMIT", err))
        return false;
    trace->block_count = end;
    w->in_pass = false;
    return true;
}

/* ---- closing */

/* One plain file: everything into the database, no WAL beside it. Readers that are at work keep the
 * WAL alive; then the file stays in WAL mode, which opens as well. */
static bool make_plain(struct db *db, struct err *err) {
    if (!db_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", err)) return false;
    int code = sqlite3_exec(db->handle, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL);
    return code == SQLITE_OK || (code & 0xff) == SQLITE_BUSY || (code & 0xff) == SQLITE_LOCKED ||
           db_fail(db, code, "close", err);
}

/* What was written without syncs is on the disk now. */
static bool sync_file(const char *path, struct err *err) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (!ok) err_errno(err, path, "cannot write");
    if (fd >= 0) close(fd);
    return ok;
}

bool trace_close(struct trace *trace, bool discard_empty, struct err *err) {
    if (!trace) return true;
    int lock = trace->writer->lock;
    bool whole = trace->writer->whole;
    pass_abandon(trace);
    writer_free(trace);
    bool discard = discard_empty && !trace_tokens(trace);
    bool ok = discard || (whole ? sync_file(trace->db.path, err) : make_plain(&trace->db, err));
    if (discard) remove_files(trace->db.path);
    trace_free(trace);
    close(lock);
    return ok;
}
