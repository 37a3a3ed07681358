/* import_build.h - gathers chosen ids of a source that is parsed, and checks them as a whole
 *
 * Private to traces/. Importers add layers and documents in any order; build_finish refuses what no
 * router can have done (layers of unequal length, only zeros; build_add an expert twice in a token
 * and ids out of range), drops dense layers (all ids zero) and makes the import_source. Choices go
 * through a spool, so that memory stays flat but for 4 bytes a token and column of what is known of
 * tokens. All memory is the builder's; build_free also after a failure. */
#ifndef TRACES_IMPORT_BUILD_H
#define TRACES_IMPORT_BUILD_H

#include "base/spool.h"
#include "traces/exchange.h"
#include "traces/npy.h"

enum { BUILD_CHUNK = 1024 }; /* tokens */

struct build_layer {
    int layer, topk;
    int64_t tokens;
    bool weighted;
    /* of import_build.c: tokens that the spool does not have yet, and where it has the others */
    uint16_t *expert; /* [cap, topk] */
    float *weight;    /* [cap, topk], or NULL */
    int64_t cap;
    int64_t *chunks;           /* [tokens / BUILD_CHUNK] places in the spool */
    int64_t zeros, first_zero; /* tokens whose ids are all zero; the first of them */
    int32_t highest;
};

struct build {
    struct build_layer *layers;
    int layer_count;
    struct trace_document *documents;
    int64_t document_count;
    int32_t *ids;       /* [tokens] -1 = unknown; NULL until one is known, like the two below */
    int32_t *positions; /* within the document, -1 = unknown */
    float *nll;         /* NaN = unknown */
    int64_t tokens, token_cap;
    int experts; /* E, where the source says it; 0 = not */
    struct spool spool;
    int32_t *piece; /* [BUILD_CHUNK, k] what the source hands out */
    float *piece_weight;
};

/* The layer of this number, added when it is new; NULL with err set (another k than before). */
struct build_layer *build_layer(struct build *build, int layer, int topk, struct err *err);
/* Appends n tokens; weight may be NULL (then for all calls of this layer). Refuses ids that are no
 * experts, an expert twice in a token, and weights that are not finite. */
bool build_add(struct build *build, struct build_layer *layer, int64_t n, const int32_t *expert,
               const float *weight, struct err *err);
/* Tokens first..first+n-1 of a layer, n at most BUILD_CHUNK and none behind the next multiple of
 * it: [n, topk]; weight may be NULL. */
bool build_read(const struct build *build, const struct build_layer *layer, int64_t first,
                int64_t n, int32_t *expert, float *weight, struct err *err);
/* The layer goes; the last one takes its place. */
void build_drop_layer(struct build *build, int index);
/* Appends chosen ids that are an array [tokens, layers, k]: layers numbered from 0. */
bool build_add_array(struct build *build, const struct npy *array, struct err *err);
/* Appends a document; source and domain are borrowed from the source's arena; ids may be NULL. */
bool build_document(struct build *build, const char *source, const char *domain, int64_t tokens,
                    const int32_t *ids, struct err *err);
/* What is known of the next token, which belongs to the last document or, with `source`, begins
 * another one. */
struct build_token {
    const char *source, *domain; /* borrowed from the source's arena; NULL = of the last document */
    int32_t id, position;        /* -1 = unknown */
    float nll;                   /* NaN = unknown */
};
bool build_token(struct build *build, const struct build_token *token, struct err *err);
/* Checks everything and fills source (state = a copy of the builder). `importer` and `lacks`
 * describe. */
bool build_finish(struct build *build, const struct import_job *job, struct import_source *source,
                  const char *importer, const char *lacks, struct err *err);
void build_free(struct build *build);

#endif
