/* gguf.h - the GGUF container, versions 2 and 3: keys with values, and tensors; mapped, read safely
 *
 * Layer 1. Format (ggml docs/gguf.md), little endian: "GGUF", u32 version, u64 tensors, u64 keys;
 * keys: text name, u32 type, value; tensors: text name, u32 rank, u64 sizes (ne0, the contiguous
 * one, first), u32 type, u64 offset; padding to general.alignment (32); data. A text is u64 length
 * and bytes. Every count, length and offset is checked against the file before it is used; nothing
 * is copied but names. Of a split model this is one file of several. Used by the engine for weights
 * and tokenizers and by traces for importance matrices. */
#ifndef BASE_GGUF_H
#define BASE_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_TEXT,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS
};

/* Bytes in the mapping; not NUL-terminated. */
struct gguf_text {
    const char *data;
    size_t len;
};

struct gguf_value {
    enum gguf_kind kind; /* of the value; of the elements when it is an array */
    bool array;
    int64_t count;                 /* elements; 1 when it is no array */
    const unsigned char *data;     /* numbers, little endian, not aligned */
    const struct gguf_text *texts; /* [count] when kind is GGUF_TEXT */
};

/* X(enum, number in the file, name, values per block, bytes per block) */
#define GGUF_TENSOR_TYPES(X)                                                                       \
    X(GGUF_TYPE_F32, 0, "F32", 1, 4)                                                               \
    X(GGUF_TYPE_F16, 1, "F16", 1, 2)                                                               \
    X(GGUF_TYPE_Q4_0, 2, "Q4_0", 32, 18)                                                           \
    X(GGUF_TYPE_Q4_1, 3, "Q4_1", 32, 20)                                                           \
    X(GGUF_TYPE_Q5_0, 6, "Q5_0", 32, 22)                                                           \
    X(GGUF_TYPE_Q5_1, 7, "Q5_1", 32, 24)                                                           \
    X(GGUF_TYPE_Q8_0, 8, "Q8_0", 32, 34)                                                           \
    X(GGUF_TYPE_Q2_K, 10, "Q2_K", 256, 84)                                                         \
    X(GGUF_TYPE_Q3_K, 11, "Q3_K", 256, 110)                                                        \
    X(GGUF_TYPE_Q4_K, 12, "Q4_K", 256, 144)                                                        \
    X(GGUF_TYPE_Q5_K, 13, "Q5_K", 256, 176)                                                        \
    X(GGUF_TYPE_Q6_K, 14, "Q6_K", 256, 210)                                                        \
    X(GGUF_TYPE_IQ4_NL, 20, "IQ4_NL", 32, 18)                                                      \
    X(GGUF_TYPE_IQ4_XS, 23, "IQ4_XS", 256, 136)                                                    \
    X(GGUF_TYPE_I8, 24, "I8", 1, 1)                                                                \
    X(GGUF_TYPE_I16, 25, "I16", 1, 2)                                                              \
    X(GGUF_TYPE_I32, 26, "I32", 1, 4)                                                              \
    X(GGUF_TYPE_I64, 27, "I64", 1, 8)                                                              \
    X(GGUF_TYPE_F64, 28, "F64", 1, 8)                                                              \
    X(GGUF_TYPE_BF16, 30, "BF16", 1, 2)                                                            \
    X(GGUF_TYPE_MXFP4, 39, "MXFP4", 32, 17)

#define X(e, number, name, values, bytes) e = number,
enum gguf_tensor_type { GGUF_TENSOR_TYPES(X) };
#undef X

enum { GGUF_MAX_RANK = 4 };

struct gguf_tensor {
    const char *name; /* NUL-terminated; owned by the file */
    enum gguf_tensor_type type;
    int rank;
    int64_t size[GGUF_MAX_RANK]; /* ne0 first; 1 beyond the rank */
    int64_t count;               /* elements */
    const void *data;            /* in the mapping, aligned to general.alignment */
    size_t size_bytes;
};

struct gguf; /* an open, mapped file */

/* True when the file begins with GGUF's magic. False for what cannot be opened. */
bool gguf_is(const char *path);
/* Maps and checks a file. Returns owned; NULL with err set (err begins with the path). Unknown
 * tensor types, overlapping or repeated tensors, repeated keys and nested arrays are refused. */
struct gguf *gguf_open(const char *path, struct err *err);
/* The same from bytes in memory, which stay the caller's; name is for messages. */
struct gguf *gguf_read(const void *bytes, size_t len, const char *name, struct err *err);
void gguf_close(struct gguf *file);
const char *gguf_path(const struct gguf *file);

/* The value of a key; NULL when it is not there. Borrowed. */
const struct gguf_value *gguf_find(const struct gguf *file, const char *key);
/* Element i of a numeric or boolean value; the conversion of out-of-range reals is to 0. */
int64_t gguf_int(const struct gguf_value *value, int64_t i);
double gguf_real(const struct gguf_value *value, int64_t i);

/* Typed scalars with default: absent gives `otherwise`; a wrong kind or a value outside [min,max]
 * is an error that names file and key. */
bool gguf_get_int(const struct gguf *file, const char *key, int64_t min, int64_t max,
                  int64_t otherwise, int64_t *out, struct err *err);
bool gguf_get_real(const struct gguf *file, const char *key, double otherwise, double *out,
                   struct err *err);
bool gguf_get_bool(const struct gguf *file, const char *key, bool otherwise, bool *out,
                   struct err *err);
/* The text is NUL-terminated, owned by the file; a text with a NUL inside is an error. */
bool gguf_get_text(const struct gguf *file, const char *key, const char *otherwise,
                   const char **out, struct err *err);

int gguf_tensor_count(const struct gguf *file);
/* In order of their names. */
const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, int index);
/* By name; NULL when there is none. */
const struct gguf_tensor *gguf_tensor(const struct gguf *file, const char *name);
const char *gguf_type_name(enum gguf_tensor_type type);

#endif
