/* safetensors.h - the safetensors container: read its header safely, write a file in one stream
 *
 * Layer 1 (base). Format (huggingface/safetensors, README "Format"): u64 little-endian N, N bytes
 * of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {text: text}},
 * then the data, row-major little-endian, offsets counted from its begin. Every size is checked
 * (overflow, bounds, shape x dtype = length, no overlap, no holes) before a pointer is handed out.
 * Used by the engine for weights and by traces for the interchange form. */
#ifndef BASE_SAFETENSORS_H
#define BASE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* X(enum, name, bytes of an element) */
#define SAFETENSORS_DTYPES(X)                                                                      \
    X(ST_F64, "F64", 8)                                                                            \
    X(ST_F32, "F32", 4)                                                                            \
    X(ST_F16, "F16", 2)                                                                            \
    X(ST_BF16, "BF16", 2)                                                                          \
    X(ST_F8_E4M3, "F8_E4M3", 1)                                                                    \
    X(ST_F8_E5M2, "F8_E5M2", 1)                                                                    \
    X(ST_F8_E8M0, "F8_E8M0", 1)                                                                    \
    X(ST_I64, "I64", 8)                                                                            \
    X(ST_I32, "I32", 4)                                                                            \
    X(ST_I16, "I16", 2)                                                                            \
    X(ST_I8, "I8", 1)                                                                              \
    X(ST_U64, "U64", 8)                                                                            \
    X(ST_U32, "U32", 4)                                                                            \
    X(ST_U16, "U16", 2)                                                                            \
    X(ST_U8, "U8", 1)                                                                              \
    X(ST_BOOL, "BOOL", 1)

#define X(e, name, bytes) e,
enum safetensors_dtype { SAFETENSORS_DTYPES(X) };
#undef X

enum { SAFETENSORS_MAX_RANK = 8 };

const char *safetensors_dtype_name(enum safetensors_dtype dtype);
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype);

struct safetensors_tensor {
    const char *name; /* borrowed from the file */
    enum safetensors_dtype dtype;
    int rank;
    int64_t shape[SAFETENSORS_MAX_RANK];
    int64_t count;    /* elements */
    const void *data; /* borrowed from the mapping; may be unaligned for its dtype */
    size_t size_bytes;
};

struct safetensors; /* an open, mapped file */

/* Maps a regular file and checks its header. Returns owned; NULL with err set (err begins with the
 * path). */
struct safetensors *safetensors_open(const char *path, struct err *err);
void safetensors_close(struct safetensors *file);
const char *safetensors_path(const struct safetensors *file);

/* Tensors in the order of their names (bytewise). */
int safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, int index);
/* By name, O(log n); NULL when there is none. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);
/* A metadata text by key; NULL when there is none. Borrowed. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* ---- writing: declare all tensors and metadata, then give the data in the order declared. */
struct safetensors_writer;

/* Writes beside `path` and renames at the end: nothing half-written is seen under the name. */
struct safetensors_writer *safetensors_create(const char *path, struct err *err);
/* Both before the first safetensors_write. Names and texts are copied. */
bool safetensors_declare(struct safetensors_writer *writer, const char *name,
                         enum safetensors_dtype dtype, int rank, const int64_t *shape,
                         struct err *err);
bool safetensors_note(struct safetensors_writer *writer, const char *key, const char *text,
                      struct err *err);
/* The next bytes of the data, through all tensors in the order declared; the file is padded so that
 * the data begin at a multiple of 8. Declare tensors with wide elements first if readers want
 * alignment. */
bool safetensors_write(struct safetensors_writer *writer, const void *bytes, size_t size_bytes,
                       struct err *err);
/* Finishes and frees; fails (and leaves no file) when fewer or more bytes were given than declared.
 */
bool safetensors_commit(struct safetensors_writer *writer, struct err *err);
/* Gives up and frees; no file is left. NULL is allowed. */
void safetensors_abandon(struct safetensors_writer *writer);

#endif
