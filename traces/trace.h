/* trace.h - the trace database: write a capture, read it back for replay
 *
 * Layer 3 (traces): calls router (types), base and SQLite; sqlite3.h is included in traces/ .c
 * files only. One SQLite file is one trace: a model, its documents and tokens, its routers
 * ("layers") and, per router and block of tokens, one blob of raw router logits [n,E] (law 2), or
 * of chosen ids where the source had no more. Schema, with a comment on every column: schema.sql.
 * While it is being written the file is in WAL mode and every commit is a state that opens; when
 * closed it is one plain file.
 *
 * Letters: T tokens of the trace, L routers, E experts, k chosen. A router is addressed by its
 * index r in [0,L), by rising layer; `layer` is the model's own layer number. Tokens are numbered
 * 0..T-1 in capture order. */
#ifndef TRACES_TRACE_H
#define TRACES_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "router/gate.h"
#include "router/route.h"

/* How logits are stored. X(enum, name, bytes, help) */
#define TRACE_STORES(X)                                                                            \
    X(TRACE_F32, "f32", 4, "exact")                                                                \
    X(TRACE_BF16, "bf16", 2, "lossy: 8 bits of mantissa")                                          \
    X(TRACE_F16, "f16", 2, "lossy: 11 bits of mantissa, range 65504")

/* What a router's chunks hold. X(enum, name, help) */
#define TRACE_HOLDS(X)                                                                             \
    X(TRACE_SCORES, "scores", "router logits of every expert: any gate can be replayed")           \
    X(TRACE_IDS, "ids", "chosen experts only (weights where known): load, no other gate")          \
    X(TRACE_COUNTS, "counts", "tokens per document and expert only: load over all tokens")

#define X(e, ...) e,
enum trace_store { TRACE_STORES(X) };
enum trace_holds { TRACE_HOLDS(X) };
#undef X
const char *trace_store_name(enum trace_store store);
const char *trace_holds_name(enum trace_holds holds);
bool trace_store_find(const char *name, enum trace_store *store, struct err *err);

/* Who made the trace, of what, how. Everything here decides the content: a resume compares it all.
 */
struct trace_capture {
    const char *model;      /* name of the model, e.g. last part of its path */
    const char *family;     /* config's model_type; "" when unknown */
    const char *model_id;   /* identity of the weights (sha256 over config and file list), or "" */
    const char *config;     /* text of config.json, or "" */
    const char *source;     /* "capture", or the importer's name */
    const char *compute;    /* "f32", "bf16"; "" when unknown */
    const char *kernels;    /* kernel level of the engine; "" when unknown */
    enum trace_store store; /* of the logits in this file */
    int64_t parameters;     /* of the model; 0 when unknown */
    int64_t context_tokens; /* longest window; 0 when unknown */
    int64_t pass_tokens;    /* tokens of a pass: where commits fall; 0 when it has no meaning */
    const char *options;    /* other options that decide the content, one line; "" when none */
    const char *lacks;      /* what the source did not have, in words; "" when nothing */
    const char *vocabulary; /* where the tokenizer came from; "" when ids were given */
};

/* A document: tokens first_token .. first_token+tokens-1. Windows within it start at position 0. */
struct trace_document {
    const char *source; /* file name as given */
    const char *domain;
    const char *sha256; /* 64 hex digits of its bytes, or "" */
    int64_t bytes;      /* of its text; 0 when unknown (ids given) */
    int64_t first_token;
    int64_t tokens;
};

/* A router. */
struct trace_layer {
    int layer;   /* the model's own layer number */
    int experts; /* E */
    int topk;    /* k */
    enum trace_holds holds;
    bool has_gate;            /* false when the source did not say how it routed */
    bool has_weights;         /* ids: chunks hold weights too */
    struct gate gate;         /* native gate; valid when has_gate */
    const float *bias;        /* [E] correction bias, or NULL */
    struct route_table table; /* of a gate fn=hash-table */
};

struct trace; /* an open database */

enum trace_mode {
    TRACE_NEW,   /* refuse an existing file */
    TRACE_FORCE, /* replace it (never one that another process is writing) */
    TRACE_WHOLE, /* the same, and nobody looks before trace_close: no log, one sync at the end; what
                    a kill leaves is to be thrown away */
    TRACE_RESUME /* go on where a killed capture stopped; everything above must be equal */
};

/* What trace_create needs to know at once. Copied. */
struct trace_setup {
    struct trace_capture capture;
    const struct trace_layer *layers; /* [L], by rising layer */
    int layer_count;
    const struct trace_document *documents; /* in order, first_token contiguous from 0 */
    int64_t document_count;
};

/* Creates (or resumes) a trace for writing. Holds a lock: a second writer gets ERR_EXISTS. A resume
 * refuses naming the first difference. trace_tokens says how many tokens are there already. Returns
 * owned; NULL with err set. */
struct trace *trace_create(const char *path, const struct trace_setup *setup, enum trace_mode mode,
                           struct err *err);

/* Opens read-only (also a trace that is being written or was killed, and a RESULT.db, which has no
 * chunks). A foreign database, a newer user_version, a damaged file: one clear error. Returns
 * owned. */
struct trace *trace_open(const char *path, struct err *err);

/* Writer: checkpoints and leaves one plain file. A trace without any committed pass is removed when
 * `discard_empty`. Frees in any case. NULL is allowed. */
bool trace_close(struct trace *trace, bool discard_empty, struct err *err);
/* Reader: just frees. NULL is allowed. */
void trace_free(struct trace *trace);

/* ---- what is in it; all borrowed from the trace */
const char *trace_path(const struct trace *trace);
const struct trace_capture *trace_capture(const struct trace *trace);
/* sha256 over capture, layers and documents: equal for equal captures, whatever the file is called.
 */
const char *trace_identity(const struct trace *trace);
/* True for a RESULT.db: it describes a trace, but holds no tokens and chunks. */
bool trace_is_result(const struct trace *trace);
int64_t trace_tokens(const struct trace *trace);       /* T committed so far (0 in a RESULT.db) */
int64_t trace_tokens_total(const struct trace *trace); /* of all documents */
bool trace_complete(const struct trace *trace);        /* all tokens of all documents are there */
int trace_layers(const struct trace *trace);           /* L */
const struct trace_layer *trace_layer(const struct trace *trace, int r);
/* Index of a model layer; -1 when there is none. */
int trace_layer_find(const struct trace *trace, int layer);
int64_t trace_documents(const struct trace *trace);
const struct trace_document *trace_document(const struct trace *trace, int64_t document);
/* Distinct domains in order of first appearance, and the domain index of a document. */
int trace_domains(const struct trace *trace);
const char *trace_domain(const struct trace *trace, int domain);
int trace_domain_of(const struct trace *trace, int64_t document);
/* Document that holds a token (binary search); -1 when there is none. */
int64_t trace_document_of(const struct trace *trace, int64_t token);
/* True when replay under other gates is possible: every layer holds scores. */
bool trace_has_scores(const struct trace *trace);
/* Tokens of the largest chunk (0 when there are none). */
int64_t trace_block_tokens(const struct trace *trace);

/* Columns of tokens; the caller's arrays of n, NULL = not wanted. */
struct trace_columns {
    int32_t *document;
    int32_t *position; /* within its window, from 0 */
    int32_t *id;
    float *nll; /* nats, of token t+1; NaN where there is none */
};
/* Reads n tokens from `first`. */
bool trace_read_tokens(struct trace *trace, int64_t first, int64_t n,
                       const struct trace_columns *out, struct err *err);
/* counts[E] of a counts-only router for a document (or, document = -1, over all). */
bool trace_read_counts(struct trace *trace, int r, int64_t document, int64_t *counts,
                       struct err *err);

/* ---- writing: a pass is some tokens at all routers, committed at once */

/* The next n tokens of the trace (whole windows, n >= 1), in document order. Borrowed for the call.
 */
struct trace_pass {
    int64_t tokens;          /* n */
    const int32_t *id;       /* [n], or NULL: unknown (stored as NULL) */
    const int32_t *position; /* [n] within its window */
};
bool trace_pass_begin(struct trace *trace, const struct trace_pass *pass, struct err *err);
/* Tokens first..first+n-1 of the pass at router r, in rising order for a router, in pieces of any
 * size. logits[n,E] for TRACE_SCORES (finite, else refused naming layer, token, expert);
 * expert[n,k] in order of selection: required for TRACE_IDS, else only hashed (with weight[n,k]) so
 * that the replay law can be checked later; may be NULL there. */
struct trace_routes {
    int r;
    int64_t first, tokens;
    const float *logits;
    const int32_t *expert;
    const float *weight;
};
bool trace_pass_routes(struct trace *trace, const struct trace_routes *routes, struct err *err);
/* nll[n], NaN = none. Optional. */
bool trace_pass_nll(struct trace *trace, int64_t first, int64_t n, const float *nll,
                    struct err *err);
/* Refuses when a router has not got all tokens; else one durable commit. */
bool trace_pass_commit(struct trace *trace, struct err *err);
/* The text of a token id (any bytes); ids already there are left alone. Within a pass. */
bool trace_add_piece(struct trace *trace, int32_t id, const char *piece, size_t len,
                     struct err *err);
/* counts[E] of a TRACE_COUNTS router over a document; committed by trace_close. */
bool trace_add_counts(struct trace *trace, int r, int64_t document, const int64_t *counts,
                      struct err *err);

/* ---- reading for replay */

/* One chunk: consecutive tokens of one router. Borrowed until the next call on its cursor. */
struct trace_chunk {
    int64_t first, tokens;
    const float *logits;   /* [n,E]; NULL unless TRACE_SCORES */
    const int32_t *expert; /* [n,k]; NULL unless TRACE_IDS or live choices (choices.h), which hold
                              ROUTE_NONE in empty slots */
    const float *weight;   /* [n,k] of TRACE_IDS, or NULL */
    uint64_t choice_hash;  /* of the live choices: trace_choice_hash; 0 = not recorded */
};

struct trace_cursor; /* a reader of one router with a connection of its own: one per thread */

/* Opens a cursor on router r, standing at token 0. The trace may be shared by threads. Returns
 * owned. */
struct trace_cursor *trace_cursor_open(const struct trace *trace, int r, struct err *err);
void trace_cursor_free(struct trace_cursor *cursor);
/* The next chunk in token order; chunk->tokens = 0 at the end. Every blob's size is checked. */
bool trace_cursor_next(struct trace_cursor *cursor, struct trace_chunk *chunk, struct err *err);
/* A piece of a chunk of scores: tokens from `first` on, at most `max` and never beyond the chunk,
 * which stay in a near cache while they are used. Does not move the cursor; choice_hash is not
 * read. */
bool trace_cursor_piece(struct trace_cursor *cursor, int64_t first, int64_t max,
                        struct trace_chunk *piece, struct err *err);
/* Goes to the chunk that holds `token` (trace_cursor_next returns that whole chunk). */
bool trace_cursor_seek(struct trace_cursor *cursor, int64_t token, struct err *err);
/* Rows of any tokens, in the order given: logits[n,E] (scores) or expert[n,k], weight[n,k] (ids;
 * weight may be NULL). About 2 us a row when the file is in memory; does not move the cursor. */
struct trace_rows {
    int64_t n;
    const int64_t *token; /* [n] */
    float *logits;
    int32_t *expert;
    float *weight;
};
bool trace_cursor_rows(struct trace_cursor *cursor, const struct trace_rows *rows, struct err *err);

/* Goes on hashing n tokens' choices: per token its k ids, then its k weights' bits (skipped when
 * weight is NULL), in order of selection. Start with hash = TRACE_HASH_START for each chunk. */
#define TRACE_HASH_START UINT64_C(0x9e3779b97f4a7c15)
uint64_t trace_choice_hash(uint64_t hash, int64_t n, int k, const int32_t *expert,
                           const float *weight);

#endif
