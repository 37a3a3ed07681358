/* tensors.h - the named arrays of a checkpoint, whatever file format they came from
 *
 * Layer 3 (engine). A set borrows its bytes from mapped files that it owns. Readers (checkpoint.c)
 * add tensors whose place in the file they have checked; tensors_seal sorts them by name and
 * refuses duplicates. Element order is row-major, little-endian. */
#ifndef ENGINE_TENSORS_H
#define ENGINE_TENSORS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "engine/quant.h"

/* Element types that have a meaning as weights. X(enum, bytes per element) */
#define TENSOR_TYPES(X)                                                                            \
    X(TENSOR_F32, 4)                                                                               \
    X(TENSOR_F16, 2)                                                                               \
    X(TENSOR_BF16, 2)                                                                              \
    X(TENSOR_F64, 8)                                                                               \
    X(TENSOR_F8_E4M3, 1)                                                                           \
    X(TENSOR_U8, 1)                                                                                \
    X(TENSOR_BLOCKS, 0) /* quantised: see `quant` */                                               \
    X(TENSOR_OTHER, 0)  /* known to the file format, of no use here */

#define X(e, bytes) e,
enum tensor_type { TENSOR_TYPES(X) };
#undef X

enum { TENSOR_MAX_RANK = 8, TENSOR_SHAPE_TEXT = 160 };

struct tensor {
    const char *name; /* owned by the set */
    const char *file; /* path, for messages; owned by the set */
    enum tensor_type type;
    const char *type_name; /* as the file format calls it; static */
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    int64_t elements;          /* product of shape */
    const unsigned char *data; /* borrowed from the mapping */
    int64_t bytes;
    const struct quant *quant; /* of TENSOR_BLOCKS; else NULL */
    bool used;                 /* some part of the model has asked for it */
    int64_t read_bytes;        /* taken from the file so far, for packed weights and vectors */
};

/* One mapped file and how to release it. */
struct tensors_file {
    void *handle;
    void (*close)(void *handle);
};

struct tensors {
    struct arena arena; /* names and paths */
    struct tensor *items;
    int64_t count, capacity;
    struct tensors_file *files;
    int file_count;
    const char *path; /* the folder or file that was opened */
    /* tile of FP8 scales [rows, columns]; from the config's quantization_config, default 128x128 */
    int scale_rows, scale_columns;
};

/* An empty set for the folder or file `path`. */
bool tensors_start(struct tensors *set, const char *path, struct err *err);
/* Hands over a mapped file: tensors_close will call close(handle). On failure it is called at once.
 */
bool tensors_own(struct tensors *set, void *handle, void (*close)(void *), struct err *err);
/* Adds one tensor (name is copied; the rest taken as is). */
bool tensors_add(struct tensors *set, const struct tensor *tensor, struct err *err);
/* Sorts by name; refuses two of one name. */
bool tensors_seal(struct tensors *set, struct err *err);
/* After sealing. NULL when absent. */
struct tensor *tensors_find(const struct tensors *set, const char *name);
/* Prints "[2, 3]" into text. */
void tensor_shape_text(int rank, const int64_t *shape, char text[static TENSOR_SHAPE_TEXT]);
/* Elements [first, first+count) decoded to f32. Types without a meaning as weights decode to NaN:
 * callers check tensor_is_real first. Of quantised tensors first and count are whole blocks. */
void tensor_read(const struct tensor *tensor, int64_t first, int64_t count, float *out);
/* Has the type a value per element (F32, F16, BF16, F64, F8_E4M3, quantised blocks)? */
bool tensor_is_real(enum tensor_type type);
/* Releases everything, the mappings included. A zeroed set may be closed. */
void tensors_close(struct tensors *set);

#endif
