/* support_gguf.h - writes GGUF files piece by piece; the tests of readers make theirs with it
 *
 * Format as in base/gguf.h. All append to `out`. */
#ifndef TESTS_SUPPORT_GGUF_H
#define TESTS_SUPPORT_GGUF_H

#include <stdint.h>

#include "base/str.h"

/* The lowest `bytes` bytes of a number, little-endian. */
void put(struct str *out, uint64_t number, int bytes);
/* Length and bytes. */
void put_text(struct str *out, const char *text);
/* Empties out; mark, version, numbers of tensors and keys. */
void put_header(struct str *out, uint64_t version, uint64_t tensors, uint64_t keys);
/* Name and kind (enum gguf_kind); the value follows. */
void put_key(struct str *out, const char *name, int kind);
/* Shape innermost first; offset within the data. */
void put_tensor(struct str *out, const char *name, int rank, const int64_t *shape, uint32_t type,
                uint64_t offset);
/* Zeros up to a multiple of `align`. */
void put_padding(struct str *out, size_t align);

#endif
