/* import_arrays.h - sources of chosen ids that are arrays [tokens, layers, k], read where they lie
 *
 * Private to traces/. Nothing is copied: one pass over the arrays checks them and finds what is
 * padding, which layers are dense and how many experts there are; the import then reads pieces.
 * Pages that were read may leave memory, so that it stays flat for files of any size. */
#ifndef TRACES_IMPORT_ARRAYS_H
#define TRACES_IMPORT_ARRAYS_H

#include "base/file.h"
#include "traces/exchange.h"
#include "traces/npy.h"

/* One array, which becomes one document. */
struct id_array {
    struct npy npy;
    const char *source, *domain; /* borrowed from the source's arena */
    const int32_t *ids;          /* [known] token ids, borrowed from `own`; NULL = not known */
    int64_t known;
    const struct file_map *map; /* that the data lie in, or NULL: they are in memory */
};

struct id_arrays {
    struct id_array *items; /* in the source's arena */
    int count;
    const int32_t *layers; /* [layers] the model's rising layer numbers; NULL = 0, 1, 2, ... */
    void *own;             /* freed by close_own at the end, also when arrays_finish fails */
    void (*close_own)(void *own);
};

/* Checks all arrays like build_finish does and fills source. Layers are numbered from 0; padding
 * tokens at the end of an array and dense layers (all zeros) are dropped. */
bool arrays_finish(const struct id_arrays *from, const struct import_job *job,
                   struct import_source *source, const char *importer, struct err *err);

#endif
