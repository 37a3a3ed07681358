/* import_logits.h - sources of router logits whose layers are arrays of a mapping or of memory
 *
 * Private to traces/. */
#ifndef TRACES_IMPORT_LOGITS_H
#define TRACES_IMPORT_LOGITS_H

#include "traces/exchange.h"
#include "traces/import_build.h"

/* The logits of a layer; rows(first, n) of the layer are handed out in pieces. */
struct logits_layer {
    int layer, experts;
    int64_t tokens;
    const float *bias; /* [E] or NULL, borrowed */
    const void *array; /* what `read` understands */
    /* the file's own choices, to compare with; NULL = none */
    const struct build *build;
    const struct build_layer *chosen;
};

/* Makes a source of `count` layers of logits: sorts, checks equal tokens, attaches job->gate
 * (required), one document of all tokens named after the first file. `read` fills out[n,E]. `own`
 * is freed by close_own at the end (also when this fails). */
struct logits_source {
    struct logits_layer *layers; /* arena of the source */
    int count;
    void (*read)(const struct logits_layer *layer, int64_t first, int64_t n, float *out);
    void *own;
    void (*close_own)(void *own);
};
bool logits_finish(const struct logits_source *from, const struct import_job *job,
                   struct import_source *source, const char *importer, struct err *err);

#endif
