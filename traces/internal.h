/* internal.h - what an open trace consists of; shared by the traces/ .c files only */
#ifndef TRACES_INTERNAL_H
#define TRACES_INTERNAL_H

#include "base/arena.h"
#include "traces/connections.h"
#include "traces/db.h"
#include "traces/trace.h"

/* Tokens lie in blocks; one chunk per block and router. */
struct block {
    int64_t first, tokens;
};

enum { BLOCK_MAX_TOKENS = 65536 };

struct writer; /* store.c */

struct trace {
    struct db db;
    struct arena arena; /* everything below that is loaded */
    bool is_result;
    struct trace_capture capture;
    char identity[65];
    struct trace_layer *layers;
    int layer_count;
    struct trace_document *documents;
    int64_t document_count;
    int *document_domain; /* [documents] */
    const char **domains;
    int domain_count;
    struct block *blocks; /* malloc'd: it grows while writing */
    int64_t block_count, block_cap;
    struct writer *writer; /* NULL for readers */
    const struct db
        *cursors; /* connection that cursors share; NULL: each has its own, taken from */
    struct connections *connections; /* NULL: each opens its own */
};

/* The text columns and the integer columns of `capture`, as members of struct trace_capture;
 * written, read, hashed and compared from these lists. */
#define CAPTURE_TEXTS(X)                                                                           \
    X(model)                                                                                       \
    X(family)                                                                                      \
    X(model_id) X(config) X(source) X(compute) X(kernels) X(options) X(lacks) X(vocabulary)
#define CAPTURE_INTS(X) X(parameters) X(context_tokens) X(pass_tokens)

/* Reads capture, layers, documents, blocks of an open database into `trace` and checks them against
 * each other. */
bool trace_load(struct trace *trace, struct err *err);
/* The same of a database whose schema has been checked; trace->arena is ready. */
bool trace_load_rows(struct trace *trace, struct err *err);
/* Distinct domains of the documents. */
bool trace_index_domains(struct trace *trace, struct err *err);
/* sha256 over the setup. */
void trace_setup_identity(const struct trace_setup *setup, char hex[static 65]);
/* Inserts capture, layers and documents (kind: "trace" or "result"). */
bool trace_insert_setup(struct db *db, const struct trace_setup *setup, const char *kind,
                        const char *identity, struct err *err);
struct trace_setup trace_as_setup(const struct trace *trace);
/* Index of the block that holds a token; -1 when there is none. */
int64_t trace_block_of(const struct trace *trace, int64_t token);
/* Bytes of one element of the stored logits. */
size_t trace_store_bytes(enum trace_store store);
/* Frees what the loader owns, but not the connection. */
void trace_release(struct trace *trace);

#endif
