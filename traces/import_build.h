/* import_build.h - gathers chosen ids of a source that is parsed, and checks them as a whole
 *
 * Private to traces/. Importers add layers and documents in any order; build_finish refuses what no
 * router can have done (an expert twice in a token, ids out of range, layers of unequal length,
 * only zeros), drops dense layers (all ids zero) and padding tokens at the end, and makes the
 * import_source. All memory is the builder's; build_free also after a failure. */
#ifndef TRACES_IMPORT_BUILD_H
#define TRACES_IMPORT_BUILD_H

#include "traces/exchange.h"
#include "traces/npy.h"

struct build_layer {
    int layer, topk;
    int64_t tokens, cap;
    int32_t *expert; /* [tokens, topk] */
    float *weight;   /* [tokens, topk], or NULL */
    bool weighted;
};

struct build {
    struct build_layer *layers;
    int layer_count;
    struct trace_document *documents;
    int64_t document_count;
    int32_t *ids;       /* token ids, -1 = unknown */
    int32_t *positions; /* within the document, -1 = unknown */
    float *nll;         /* NaN = unknown */
    int64_t tokens, token_cap;
    bool have_ids, have_positions, have_nll;
    int experts; /* E, where the source says it; 0 = not */
};

/* The layer of this number, added when it is new; NULL with err set (another k than before). */
struct build_layer *build_layer(struct build *build, int layer, int topk, struct err *err);
/* Appends n tokens; weight may be NULL (then for all calls of this layer). */
bool build_add(struct build_layer *layer, int64_t n, const int32_t *expert, const float *weight,
               struct err *err);
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
