/* import_build.h - gathers chosen ids of a source that is parsed, and checks them as a whole
 *
 * Private to traces/. Importers add layers and documents in any order; build_finish refuses what no
 * router can have done (an expert twice in a token, ids out of range, layers of unequal length,
 * only zeros), drops dense layers (all ids zero) and padding tokens at the end, and makes the
 * import_source. All memory is the builder's; build_free also after a failure. */
#ifndef TRACES_IMPORT_BUILD_H
#define TRACES_IMPORT_BUILD_H

#include "traces/exchange.h"

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
    int32_t *ids; /* token ids, -1 = unknown */
    int64_t tokens;
    bool have_ids;
};

/* The layer of this number, added when it is new; NULL with err set (another k than before). */
struct build_layer *build_layer(struct build *build, int layer, int topk, struct err *err);
/* Appends n tokens; weight may be NULL (then for all calls of this layer). */
bool build_add(struct build_layer *layer, int64_t n, const int32_t *expert, const float *weight,
               struct err *err);
/* Appends a document; source and domain are borrowed from the source's arena; ids may be NULL. */
bool build_document(struct build *build, const char *source, const char *domain, int64_t tokens,
                    const int32_t *ids, struct err *err);
/* Checks everything and fills source (state = a copy of the builder). `importer` and `lacks`
 * describe. */
bool build_finish(struct build *build, const struct import_job *job, struct import_source *source,
                  const char *importer, const char *lacks, struct err *err);
void build_free(struct build *build);

#endif
