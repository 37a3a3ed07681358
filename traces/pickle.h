/* pickle.h - a reader of the pickle subset that torch.save and plain containers use; executes
 * nothing
 *
 * Private to traces/. Opcodes of protocols 2 to 5 for numbers, texts, bytes, lists, tuples, dicts,
 * memo, persistent ids and REDUCE. A REDUCE is never a call: tensors, OrderedDict, Counter,
 * defaultdict, torch.Size and NumPy's integer scalars are recognised by name, everything else
 * becomes an opaque value.
 * Sources: CPython Lib/pickletools.py (opcodes), torch/serialization.py and torch/_utils.py (tensor
 * layout). */
#ifndef TRACES_PICKLE_H
#define TRACES_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "traces/zip.h"

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_REAL,
    PICKLE_TEXT, /* or bytes */
    PICKLE_LIST, /* list, tuple, torch.Size */
    PICKLE_DICT, /* items: key, value, key, value, ... */
    PICKLE_TENSOR,
    PICKLE_STORAGE,
    PICKLE_GLOBAL, /* a name "module.name" */
    PICKLE_OPAQUE
};

enum { PICKLE_MAX_RANK = 8 };

struct pickle {
    enum pickle_kind kind;
    int64_t integer;  /* INT, BOOL */
    double real;      /* REAL; of an INT too */
    const char *text; /* TEXT, GLOBAL; key of a STORAGE or TENSOR */
    size_t len;
    struct pickle **items; /* LIST, DICT */
    int count;
    int cap;
    /* TENSOR and STORAGE: element type as torch names it ("FloatStorage"), C order only */
    const char *type;
    int rank;
    int64_t shape[PICKLE_MAX_RANK], offset,
        elements; /* offset in elements; of the storage: elements */
};

/* Reads a pickle. All memory is the arena's. NULL with err set. */
const struct pickle *pickle_read(struct arena *arena, const unsigned char *bytes, size_t len,
                                 struct err *err);
/* Value of a text key of a dict; NULL when absent, or when value is none. */
const struct pickle *pickle_get(const struct pickle *dict, const char *key);

/* A file of torch.save (zip format). */
struct torch_file {
    struct zip zip;
    unsigned char *bytes;      /* of data.pkl, owned */
    const struct pickle *root; /* in the arena */
};
bool torch_open(struct torch_file *file, struct arena *arena, const char *path, struct err *err);
void torch_close(struct torch_file *file);
/* Is this path such a file? */
bool torch_recognise(const char *path);

/* The elements of a tensor, borrowed from the mapping (storages are stored, not deflated). Checks
 * type, bounds. *item_bytes gets the element's size, *kind 'i', 'u', 'f' or 'b' (bf16). NULL with
 * err set. */
const unsigned char *torch_data(const struct torch_file *file, const struct pickle *tensor,
                                int *item_bytes, char *kind, struct err *err);

#endif
