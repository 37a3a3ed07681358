/* score_table.c - the virtual table router_score over the chunked blobs
 *
 * Compiled into the program, and by extension/steelyard.c into the loadable extension, where SQLite
 * is called through the host's table of functions (that file defines STEELYARD_EXTENSION). It
 * depends on router/ and base/err only, and keeps no state outside its connection.
 *
 * xBestIndex takes layer =, token = < <= > >=, position = < <= > >=, expert =, chosen =.
 * Constraints are taken as a superset (SQLite tests each row again), so odd types of values are
 * merely slower. A scan reads up to 64 tokens of a blob at a time; of one expert's logits it reads
 * 4 bytes a token; scores and choices are computed only when their columns are used. */
#include "traces/score_table.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/half.h"
#include "router/gate.h"
#include "router/route.h"
#include "traces/score_plan.h"

#define NEED_SCORE  BIT(score)
#define NEED_CHOICE (BIT(weight) | BIT(rank) | BIT(chosen))
#define NEED_TOKEN  (BIT(document) | BIT(domain) | BIT(position) | BIT(id) | BIT(text) | BIT(nll))

enum { PIECE_TOKENS = 64, MAX_BLOCK_TOKENS = 65536 };
enum element { ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16 };

struct layer {
    int64_t layer;
    int experts, topk;
    bool scores, ids, weights, has_gate;
    struct gate gate;
    float *bias; /* owned; NULL = none */
};

struct block {
    int64_t first, tokens;
};

struct score_table {
    sqlite3_vtab base; /* first member */
    sqlite3 *db;
    enum element element;
    struct layer *layers;
    int layer_count;
    struct block *blocks;
    int64_t block_count;
    sqlite3_stmt *last_block, *more_blocks, *token;
    int64_t joined; /* token that the statement stands on; -1 = none */
};

/* Inclusive ranges. */
struct range {
    int64_t low, high;
};

struct score_cursor {
    sqlite3_vtab_cursor base; /* first member */
    struct score_table *table;
    uint64_t used; /* bits of columns */
    struct range tokens, positions;
    bool by_position;
    int64_t one_layer, one_expert; /* -1 = all */
    bool any_layer;
    int chosen; /* 1, 0, -1 = both */
    /* where it stands */
    int r;
    int64_t block, piece_first, piece_tokens, row; /* row within the piece */
    int slot, slots; /* expert, or rank when only chosen ones are shown */
    bool end, by_rank, strided;
    sqlite3_blob *scores, *ids, *weights;
    /* buffers of a piece, sized for the layer */
    int buffer_layer;
    unsigned char *raw;
    float *logits, *score, *weight;
    int32_t *expert, *rank; /* [64,k]; [E] rank of each expert of the token, -1 = not chosen */
    void *scratch;
    int64_t ranked; /* token that rank[] is of; -1 = none */
};

/* ---- errors */

static int fail(struct score_table *table, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    sqlite3_free(table->base.zErrMsg);
    table->base.zErrMsg = sqlite3_vmprintf(format, args);
    va_end(args);
    return code;
}

static int fail_db(struct score_table *table, int code) {
    return fail(table, code, "router_score: %s", sqlite3_errmsg(table->db));
}

/* ---- loading */

static int prepare(struct score_table *table, const char *sql, sqlite3_stmt **out) {
    int code = sqlite3_prepare_v3(table->db, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);
    return code == SQLITE_OK ? code : fail_db(table, code);
}

static int load_gate(struct score_table *table, struct layer *layer, sqlite3_stmt *row) {
    struct err err = {0};
    const char *gate = (const char *)sqlite3_column_text(row, 5);
    int bytes = sqlite3_column_bytes(row, 6);
    const void *bias = sqlite3_column_blob(row, 6);
    if (bias && bytes != layer->experts * 4)
        return fail(table, SQLITE_CORRUPT, "layer %lld: bias has %d bytes", layer->layer, bytes);
    if (bias) {
        if (!(layer->bias = malloc((size_t)bytes))) return SQLITE_NOMEM;
        memcpy(layer->bias, bias, (size_t)bytes);
    }
    if (!gate) return SQLITE_OK;
    if (!gate_parse(gate, NULL, &layer->gate, &err) ||
        !gate_check_live(&layer->gate, layer->experts, layer->bias != NULL, &err) ||
        layer->gate.topk != layer->topk)
        return fail(table, SQLITE_CORRUPT, "layer %lld: gate: %s", layer->layer, err.text);
    /* what hangs on token ids or draws does not follow from a row of logits: not known here */
    layer->has_gate = !gate_needs_rows(&layer->gate);
    return SQLITE_OK;
}

static int load_layer(struct score_table *table, sqlite3_stmt *row) {
    struct layer *layers =
        realloc(table->layers, ((size_t)table->layer_count + 1) * sizeof *layers);
    if (!layers) return SQLITE_NOMEM;
    table->layers = layers;
    struct layer *layer = &layers[table->layer_count++];
    int64_t experts = sqlite3_column_int64(row, 1), topk = sqlite3_column_int64(row, 2);
    const char *holds = (const char *)sqlite3_column_text(row, 3);
    *layer = (struct layer){.layer = sqlite3_column_int64(row, 0),
                            .scores = holds && strcmp(holds, "scores") == 0,
                            .ids = holds && strcmp(holds, "ids") == 0,
                            .weights = sqlite3_column_int(row, 4) != 0};
    if (experts < 1 || experts > GATE_MAX_EXPERTS || topk < 1 || topk > GATE_MAX_TOPK ||
        topk > experts)
        return fail(table, SQLITE_CORRUPT, "layer %lld: found %lld experts, %lld chosen",
                    layer->layer, experts, topk);
    layer->experts = (int)experts;
    layer->topk = (int)topk;
    return load_gate(table, layer, row);
}

static int load_layers(struct score_table *table) {
    sqlite3_stmt *row = NULL;
    int code = prepare(table,
                       "SELECT layer, experts, topk, holds, weights, CASE WHEN options GLOB "
                       "'*closed-loop *batch-tokens=*' THEN NULL ELSE gate END, bias "
                       "FROM main.layer, main.capture ORDER BY router",
                       &row);
    while (code == SQLITE_OK && (code = sqlite3_step(row)) == SQLITE_ROW)
        code = load_layer(table, row);
    sqlite3_finalize(row);
    return code == SQLITE_DONE ? SQLITE_OK : code;
}

static int load_element(struct score_table *table) {
    static const char *const names[] = {"f32", "bf16", "f16"};
    sqlite3_stmt *row = NULL;
    int code = prepare(table, "SELECT store FROM main.capture", &row);
    if (code == SQLITE_OK && (code = sqlite3_step(row)) == SQLITE_ROW) {
        const char *store = (const char *)sqlite3_column_text(row, 0);
        for (int i = 0; store && i < 3; i++)
            if (strcmp(store, names[i]) == 0) table->element = (enum element)i;
        code = SQLITE_OK;
    }
    sqlite3_finalize(row);
    return code == SQLITE_DONE ? fail(table, SQLITE_ERROR, "router_score: found no capture") : code;
}

/* A capture that is running adds blocks: the list grows when its last one is new. */
static int load_blocks(struct score_table *table) {
    int64_t last = -1;
    if (sqlite3_step(table->last_block) == SQLITE_ROW &&
        sqlite3_column_type(table->last_block, 0) != SQLITE_NULL)
        last = sqlite3_column_int64(table->last_block, 0);
    int code = sqlite3_reset(table->last_block);
    if (code != SQLITE_OK) return fail_db(table, code);
    if (last + 1 == table->block_count) return SQLITE_OK;
    if (last + 1 < table->block_count) table->block_count = 0; /* another file's content */
    if (last >= INT64_C(1) << 40) return fail(table, SQLITE_CORRUPT, "block %lld", last);
    sqlite3_bind_int64(table->more_blocks, 1, table->block_count);
    while ((code = sqlite3_step(table->more_blocks)) == SQLITE_ROW) {
        int64_t b = table->block_count;
        struct block *blocks =
            b & (b - 1) ? table->blocks
                        : realloc(table->blocks, (size_t)(b ? b * 2 : 1) * sizeof *blocks);
        if (!blocks) break;
        table->blocks = blocks;
        blocks[b] = (struct block){sqlite3_column_int64(table->more_blocks, 1),
                                   sqlite3_column_int64(table->more_blocks, 2)};
        int64_t expected = b ? blocks[b - 1].first + blocks[b - 1].tokens : 0;
        if (sqlite3_column_int64(table->more_blocks, 0) != b || blocks[b].first != expected ||
            blocks[b].tokens < 1 || blocks[b].tokens > MAX_BLOCK_TOKENS) {
            sqlite3_reset(table->more_blocks);
            return fail(table, SQLITE_CORRUPT, "block %lld: found tokens out of order", b);
        }
        table->block_count++;
    }
    sqlite3_reset(table->more_blocks);
    return code == SQLITE_DONE  ? SQLITE_OK
           : code == SQLITE_ROW ? SQLITE_NOMEM
                                : fail_db(table, code);
}

static int table_disconnect(sqlite3_vtab *base) {
    struct score_table *table = (struct score_table *)base;
    sqlite3_finalize(table->last_block);
    sqlite3_finalize(table->more_blocks);
    sqlite3_finalize(table->token);
    for (int r = 0; r < table->layer_count; r++) free(table->layers[r].bias);
    free(table->layers);
    free(table->blocks);
    sqlite3_free(table->base.zErrMsg);
    free(table);
    return SQLITE_OK;
}

static int table_load(struct score_table *table) {
    int code = load_element(table);
    if (code == SQLITE_OK) code = load_layers(table);
    if (code == SQLITE_OK)
        code = prepare(table, "SELECT max(block) FROM main.block", &table->last_block);
    if (code == SQLITE_OK)
        code = prepare(table,
                       "SELECT block, first_token, tokens FROM main.block WHERE block >= ?1 "
                       "ORDER BY block",
                       &table->more_blocks);
    if (code == SQLITE_OK)
        code = prepare(table,
                       "SELECT t.document, d.domain, t.position, t.id, p.text, t.nll "
                       "FROM main.token t LEFT JOIN main.document d ON d.document = t.document "
                       "LEFT JOIN main.piece p ON p.id = t.id WHERE t.token = ?1",
                       &table->token);
    return code;
}

static int table_connect(sqlite3 *db, void *unused, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **message) {
    (void)unused, (void)argc, (void)argv;
    int code = sqlite3_declare_vtab(db, "CREATE TABLE router_score(layer INTEGER"
#define X(name, type, hidden) ", " #name " " type hidden
                                    MORE_COLUMNS(X)
#undef X
                                        ")");
    if (code != SQLITE_OK) return code;
    struct score_table *table = calloc(1, sizeof *table);
    if (!table) return SQLITE_NOMEM;
    sqlite3_vtab_config(db, SQLITE_VTAB_INNOCUOUS);
    table->db = db;
    table->joined = -1;
    code = table_load(table);
    if (code != SQLITE_OK) {
        *message = table->base.zErrMsg;
        table->base.zErrMsg = NULL;
        table_disconnect(&table->base);
        return code;
    }
    *out = &table->base;
    return SQLITE_OK;
}

/* ---- planning */

static int table_best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
    const struct score_table *table = (struct score_table *)base;
    const struct layer *layer = table->layer_count ? &table->layers[0] : NULL;
    const struct score_sizes sizes = {.layers = table->layer_count,
                                      .tokens = (double)table->block_count * 256,
                                      .experts = layer ? layer->experts : 1,
                                      .topk = layer ? layer->topk : 1};
    return score_plan(&sizes, info);
}

/* ---- a piece of tokens at a layer */

static void close_blobs(struct score_cursor *cursor) {
    sqlite3_blob_close(cursor->scores);
    sqlite3_blob_close(cursor->ids);
    sqlite3_blob_close(cursor->weights);
    cursor->scores = cursor->ids = cursor->weights = NULL;
}

static void free_buffers(struct score_cursor *cursor) {
    free(cursor->raw);
    free(cursor->logits);
    free(cursor->score);
    free(cursor->weight);
    free(cursor->expert);
    free(cursor->rank);
    free(cursor->scratch);
    cursor->raw = NULL;
    cursor->logits = cursor->score = cursor->weight = NULL;
    cursor->expert = cursor->rank = NULL;
    cursor->scratch = NULL;
    cursor->buffer_layer = -1;
}

static const struct layer *here(const struct score_cursor *cursor) {
    return &cursor->table->layers[cursor->r];
}

static int make_buffers(struct score_cursor *cursor) {
    const struct layer *layer = here(cursor);
    if (cursor->buffer_layer == cursor->r) return SQLITE_OK;
    free_buffers(cursor);
    size_t cells = PIECE_TOKENS * (size_t)layer->experts;
    size_t choices = PIECE_TOKENS * (size_t)layer->topk;
    cursor->raw = malloc(cells * 4);
    cursor->logits = malloc(cells * 4);
    cursor->score = malloc(cells * 4);
    cursor->weight = malloc(choices * 4);
    cursor->expert = malloc(choices * 4);
    cursor->rank = malloc((size_t)layer->experts * 4);
    cursor->scratch = aligned_alloc(64, (route_scratch_bytes(layer->experts) + 63) / 64 * 64);
    if (!cursor->raw || !cursor->logits || !cursor->score || !cursor->weight || !cursor->expert ||
        !cursor->rank || !cursor->scratch)
        return SQLITE_NOMEM;
    cursor->buffer_layer = cursor->r;
    return SQLITE_OK;
}

/* Opens (or moves) the handle of a column to the present chunk and checks its size. */
static int at_chunk(struct score_cursor *cursor, const char *column, size_t row_bytes,
                    sqlite3_blob **blob) {
    struct score_table *table = cursor->table;
    int64_t chunk = cursor->block * table->layer_count + cursor->r;
    int code = *blob ? sqlite3_blob_reopen(*blob, chunk)
                     : sqlite3_blob_open(table->db, "main", "chunk", column, chunk, 0, blob);
    if (code != SQLITE_OK) return fail_db(table, code);
    size_t expected = (size_t)table->blocks[cursor->block].tokens * row_bytes;
    if ((size_t)sqlite3_blob_bytes(*blob) != expected)
        return fail(table, SQLITE_CORRUPT, "chunk %lld: %s: found %d bytes, expected %lld", chunk,
                    column, sqlite3_blob_bytes(*blob), (sqlite3_int64)expected);
    return SQLITE_OK;
}

static float decode_one(enum element element, const unsigned char *at) {
    float x;
    if (element != ELEMENT_F32) return half_float(at, element == ELEMENT_BF16);
    memcpy(&x, at, 4);
    return x;
}

/* Of one expert only: 4 (or 2) bytes a token; logits[row] is then that expert's. */
static int read_strided(struct score_cursor *cursor, int64_t from, size_t row_bytes, size_t size) {
    for (int64_t i = 0; i < cursor->piece_tokens; i++) {
        unsigned char bytes[4];
        size_t offset = (size_t)(from + i) * row_bytes + (size_t)cursor->one_expert * size;
        int code = sqlite3_blob_read(cursor->scores, bytes, (int)size, (int)offset);
        if (code != SQLITE_OK) return fail_db(cursor->table, code);
        cursor->logits[i] = decode_one(cursor->table->element, bytes);
    }
    return SQLITE_OK;
}

static int read_scores(struct score_cursor *cursor, int64_t from) {
    const struct layer *layer = here(cursor);
    enum element element = cursor->table->element;
    size_t size = element == ELEMENT_F32 ? 4 : 2, row_bytes = (size_t)layer->experts * size;
    int code = at_chunk(cursor, "scores", row_bytes, &cursor->scores);
    if (code != SQLITE_OK) return code;
    if (cursor->strided) return read_strided(cursor, from, row_bytes, size);
    size_t n = (size_t)cursor->piece_tokens;
    bool direct = element == ELEMENT_F32;
    code = sqlite3_blob_read(cursor->scores, direct ? (void *)cursor->logits : cursor->raw,
                             (int)(n * row_bytes), (int)((size_t)from * row_bytes));
    if (code != SQLITE_OK) return fail_db(cursor->table, code);
    for (size_t i = 0; !direct && i < n * (size_t)layer->experts; i++)
        cursor->logits[i] = decode_one(element, cursor->raw + 2 * i);
    return SQLITE_OK;
}

static int route_piece(struct score_cursor *cursor) {
    const struct layer *layer = here(cursor);
    int64_t n = cursor->piece_tokens;
    struct routes out = {.expert = cursor->expert, .weight = cursor->weight};
    if (!layer->has_gate) return SQLITE_OK;
    if (cursor->used & NEED_SCORE)
        route_scores(layer->gate.score, layer->experts, n, cursor->logits, cursor->score);
    if (!(cursor->used & NEED_CHOICE) && !cursor->by_rank) return SQLITE_OK;
    int64_t bad = route_tokens(&layer->gate, layer->experts, n, cursor->logits, layer->bias, &out,
                               cursor->scratch);
    if (bad < 0) return SQLITE_OK;
    return fail(cursor->table, SQLITE_CORRUPT,
                "layer %lld, token %lld, expert %lld: found a logit that is not finite",
                layer->layer, cursor->piece_first + bad / layer->experts, bad % layer->experts);
}

static int read_ids(struct score_cursor *cursor, int64_t from) {
    const struct layer *layer = here(cursor);
    size_t k = (size_t)layer->topk, n = (size_t)cursor->piece_tokens * k;
    int code = at_chunk(cursor, "ids", 2 * k, &cursor->ids);
    if (code == SQLITE_OK)
        code =
            sqlite3_blob_read(cursor->ids, cursor->raw, (int)(2 * n), (int)((size_t)from * 2 * k));
    for (size_t i = 0; code == SQLITE_OK && i < n; i++) {
        uint16_t id;
        memcpy(&id, cursor->raw + 2 * i, 2);
        cursor->expert[i] = id;
    }
    if (code != SQLITE_OK || !layer->weights) return code;
    code = at_chunk(cursor, "weights", 4 * k, &cursor->weights);
    if (code == SQLITE_OK)
        code = sqlite3_blob_read(cursor->weights, cursor->weight, (int)(4 * n),
                                 (int)((size_t)from * 4 * k));
    return code;
}

/* Reads the piece that begins at token piece_first of the present block. */
static int read_piece(struct score_cursor *cursor) {
    const struct block *block = &cursor->table->blocks[cursor->block];
    int64_t from = cursor->piece_first - block->first, n = block->tokens - from;
    if (n > PIECE_TOKENS) n = PIECE_TOKENS;
    if (n > cursor->tokens.high - cursor->piece_first + 1)
        n = cursor->tokens.high - cursor->piece_first + 1;
    cursor->piece_tokens = n;
    cursor->row = 0;
    cursor->ranked = -1;
    int code = make_buffers(cursor);
    if (code != SQLITE_OK) return code;
    if (!here(cursor)->scores) return read_ids(cursor, from);
    code = read_scores(cursor, from);
    return code == SQLITE_OK && !cursor->strided ? route_piece(cursor) : code;
}

/* ---- moving */

static int64_t token_of(const struct score_cursor *cursor) {
    return cursor->piece_first + cursor->row;
}

/* rank[e] of the present token. */
static void rank_token(struct score_cursor *cursor) {
    const struct layer *layer = here(cursor);
    if (cursor->ranked == token_of(cursor)) return;
    for (int e = 0; e < layer->experts; e++) cursor->rank[e] = -1;
    for (int i = 0; i < layer->topk; i++) {
        int32_t e = cursor->expert[cursor->row * layer->topk + i];
        if (e >= 0 && e < layer->experts) cursor->rank[e] = i;
    }
    cursor->ranked = token_of(cursor);
}

/* Stands the statement on the present token. */
static int join_token(struct score_cursor *cursor) {
    struct score_table *table = cursor->table;
    if (table->joined == token_of(cursor)) return SQLITE_OK;
    sqlite3_reset(table->token);
    sqlite3_bind_int64(table->token, 1, token_of(cursor));
    table->joined = -1;
    int code = sqlite3_step(table->token);
    if (code == SQLITE_ROW)
        table->joined = token_of(cursor);
    else if (code == SQLITE_DONE)
        return fail(table, SQLITE_CORRUPT, "token %lld: found no row", token_of(cursor));
    return code == SQLITE_ROW ? SQLITE_OK : fail_db(table, code);
}

static int expert_of(const struct score_cursor *cursor) {
    return cursor->by_rank ? cursor->expert[cursor->row * here(cursor)->topk + cursor->slot]
                           : cursor->slot;
}

/* Are the present token and slot wanted? The rest of the constraints SQLite tests. */
static int wanted(struct score_cursor *cursor, bool *yes) {
    *yes = true;
    if (cursor->by_position) {
        int code = join_token(cursor);
        if (code != SQLITE_OK) return code;
        int64_t position = sqlite3_column_int64(cursor->table->token, 2);
        *yes = position >= cursor->positions.low && position <= cursor->positions.high;
        if (!*yes) cursor->slot = cursor->slots; /* the whole token */
    }
    if (*yes && cursor->by_rank) *yes = expert_of(cursor) != ROUTE_NONE;
    if (*yes && cursor->by_rank && cursor->one_expert >= 0)
        *yes = expert_of(cursor) == cursor->one_expert;
    return SQLITE_OK;
}

/* The slots of a token: experts low..slots-1, or ranks. */
static void first_slot(struct score_cursor *cursor) {
    const struct layer *layer = here(cursor);
    bool one = cursor->one_expert >= 0 && !cursor->by_rank;
    cursor->slots = cursor->by_rank ? layer->topk : layer->experts;
    cursor->slot = one ? (int)cursor->one_expert : 0;
    if (one && cursor->one_expert < cursor->slots) cursor->slots = cursor->slot + 1;
}

/* Block that holds a token, by bisection. */
static int64_t find_block(const struct score_table *table, int64_t token) {
    int64_t low = 0, high = table->block_count;
    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (table->blocks[mid].first <= token)
            low = mid;
        else
            high = mid;
    }
    return low;
}

/* Enters router r (or the next one that has rows) at the first token. */
static int enter_layer(struct score_cursor *cursor) {
    struct score_table *table = cursor->table;
    for (; cursor->r < table->layer_count; cursor->r++) {
        const struct layer *layer = here(cursor);
        if (!layer->scores && !layer->ids) continue;
        if (!cursor->any_layer && layer->layer != cursor->one_layer) continue;
        if (cursor->one_expert >= layer->experts) continue;
        if (layer->ids && cursor->chosen == 0) continue;
        break;
    }
    cursor->end = cursor->r >= table->layer_count || !table->block_count ||
                  cursor->tokens.low > cursor->tokens.high;
    if (cursor->end) return SQLITE_OK;
    const struct layer *layer = here(cursor);
    cursor->by_rank = layer->ids || (cursor->chosen == 1 && layer->has_gate);
    cursor->strided = layer->scores && !cursor->by_rank && cursor->one_expert >= 0 &&
                      !(cursor->used & (NEED_SCORE | NEED_CHOICE));
    cursor->block = find_block(table, cursor->tokens.low);
    cursor->piece_first = cursor->tokens.low;
    int code = read_piece(cursor);
    first_slot(cursor);
    return code;
}

static int next_piece(struct score_cursor *cursor) {
    struct score_table *table = cursor->table;
    cursor->piece_first += cursor->piece_tokens;
    if (cursor->piece_first > cursor->tokens.high) {
        cursor->r++;
        return enter_layer(cursor);
    }
    const struct block *block = &table->blocks[cursor->block];
    if (cursor->piece_first >= block->first + block->tokens) cursor->block++;
    int code = read_piece(cursor);
    first_slot(cursor);
    return code;
}

/* Goes on until a wanted row, from the present one. */
static int settle(struct score_cursor *cursor) {
    int code = SQLITE_OK;
    while (code == SQLITE_OK && !cursor->end) {
        if (cursor->slot >= cursor->slots) {
            if (++cursor->row < cursor->piece_tokens)
                first_slot(cursor);
            else
                code = next_piece(cursor);
            continue;
        }
        bool yes;
        code = wanted(cursor, &yes);
        if (code != SQLITE_OK || yes) break;
        if (cursor->slot < cursor->slots) cursor->slot++;
    }
    return code;
}

static int cursor_next(sqlite3_vtab_cursor *base) {
    struct score_cursor *cursor = (struct score_cursor *)base;
    cursor->slot++;
    return settle(cursor);
}

static void tighten(struct range *range, char op, int64_t value) {
    if ((op == '=' || op == 'g' || op == '>') && value > range->low) range->low = value;
    if ((op == '=' || op == 's' || op == '<') && value < range->high) range->high = value;
}

/* Only whole numbers narrow; others (NULL, text, fractions) leave it to SQLite's own test. */
static void apply(struct score_cursor *cursor, char column, char op, sqlite3_value *value) {
    if (sqlite3_value_numeric_type(value) != SQLITE_INTEGER) return;
    int64_t x = sqlite3_value_int64(value);
    if (column == 't') tighten(&cursor->tokens, op, x);
    if (column == 'p') {
        tighten(&cursor->positions, op, x);
        cursor->by_position = true;
    }
    if (column == 'l') {
        cursor->one_layer = x;
        cursor->any_layer = false;
    }
    if (column == 'e') cursor->one_expert = x < 0 ? INT32_MAX : x;
    if (column == 'c') cursor->chosen = x == 1 ? 1 : x == 0 ? 0 : -1;
}

static int cursor_filter(sqlite3_vtab_cursor *base, int used, const char *plan, int argc,
                         sqlite3_value **argv) {
    struct score_cursor *cursor = (struct score_cursor *)base;
    struct score_table *table = cursor->table;
    int code = load_blocks(table);
    if (code != SQLITE_OK) return code;
    const struct block *last = table->block_count ? &table->blocks[table->block_count - 1] : NULL;
    sqlite3_reset(table->token);
    table->joined = -1;
    cursor->used = (uint64_t)used;
    cursor->tokens = (struct range){0, last ? last->first + last->tokens - 1 : -1};
    cursor->positions = (struct range){0, INT64_MAX};
    cursor->by_position = false;
    cursor->any_layer = true;
    cursor->one_expert = -1;
    cursor->chosen = -1;
    cursor->r = 0;
    for (int i = 0; i < argc; i++) apply(cursor, plan[2 * i], plan[2 * i + 1], argv[i]);
    code = enter_layer(cursor);
    return code == SQLITE_OK ? settle(cursor) : code;
}

/* ---- values */

static void result_real(sqlite3_context *context, float x) {
    sqlite3_result_double(context, (double)x);
}

static void choice_column(struct score_cursor *cursor, sqlite3_context *context, int column) {
    const struct layer *layer = here(cursor);
    if (layer->scores && !layer->has_gate) return; /* NULL: nobody knows how it routes */
    int rank = cursor->slot;
    if (!cursor->by_rank) {
        rank_token(cursor);
        rank = cursor->rank[cursor->slot];
    }
    if (column == COLUMN_chosen)
        sqlite3_result_int(context, rank >= 0);
    else if (rank >= 0 && column == COLUMN_rank)
        sqlite3_result_int(context, rank);
    else if (rank >= 0 && (layer->scores || layer->weights))
        result_real(context, cursor->weight[cursor->row * layer->topk + rank]);
}

static int cursor_column(sqlite3_vtab_cursor *base, sqlite3_context *context, int column) {
    struct score_cursor *cursor = (struct score_cursor *)base;
    const struct layer *layer = here(cursor);
    int64_t cell = cursor->strided ? cursor->row : cursor->row * layer->experts + expert_of(cursor);
    switch (column) {
    case COLUMN_layer:
        sqlite3_result_int64(context, layer->layer);
        break;
    case COLUMN_token:
        sqlite3_result_int64(context, token_of(cursor));
        break;
    case COLUMN_expert:
        sqlite3_result_int(context, expert_of(cursor));
        break;
    case COLUMN_logit:
        if (layer->scores) result_real(context, cursor->logits[cell]);
        break;
    case COLUMN_score:
        if (layer->scores && layer->has_gate) result_real(context, cursor->score[cell]);
        break;
    case COLUMN_weight:
    case COLUMN_rank:
    case COLUMN_chosen:
        choice_column(cursor, context, column);
        break;
    default: {
        int code = join_token(cursor);
        if (code != SQLITE_OK) return code;
        sqlite3_result_value(context,
                             sqlite3_column_value(cursor->table->token, column - COLUMN_document));
    }
    }
    return SQLITE_OK;
}

static int cursor_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *rowid) {
    const struct score_cursor *cursor = (struct score_cursor *)base;
    *rowid = (int64_t)cursor->r << 52 | token_of(cursor) << 16 | expert_of(cursor);
    return SQLITE_OK;
}

static int cursor_eof(sqlite3_vtab_cursor *base) { return ((struct score_cursor *)base)->end; }

static int cursor_open(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
    struct score_cursor *cursor = calloc(1, sizeof *cursor);
    if (!cursor) return SQLITE_NOMEM;
    cursor->table = (struct score_table *)base;
    cursor->buffer_layer = -1;
    cursor->end = true;
    *out = &cursor->base;
    return SQLITE_OK;
}

static int cursor_close(sqlite3_vtab_cursor *base) {
    struct score_cursor *cursor = (struct score_cursor *)base;
    close_blobs(cursor);
    free_buffers(cursor);
    sqlite3_reset(cursor->table->token);
    cursor->table->joined = -1;
    free(cursor);
    return SQLITE_OK;
}

static const sqlite3_module module = {.xConnect = table_connect,
                                      .xBestIndex = table_best_index,
                                      .xDisconnect = table_disconnect,
                                      .xOpen = cursor_open,
                                      .xClose = cursor_close,
                                      .xFilter = cursor_filter,
                                      .xNext = cursor_next,
                                      .xEof = cursor_eof,
                                      .xColumn = cursor_column,
                                      .xRowid = cursor_rowid};

int score_table_register(sqlite3 *db) {
    return sqlite3_create_module(db, "router_score", &module, NULL);
}
