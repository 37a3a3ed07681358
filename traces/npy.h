/* npy.h - NumPy arrays in memory: the .npy format, checked
 *
 * Private to traces/. Format: numpy/lib/format.py (versions 1 to 3). Little-endian, C order. */
#ifndef TRACES_NPY_H
#define TRACES_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { NPY_MAX_RANK = 6 };

struct npy {
    char kind; /* 'f' real, 'i' signed, 'u' unsigned */
    int item_bytes;
    int rank;
    int64_t shape[NPY_MAX_RANK];
    int64_t count;
    const unsigned char *data; /* borrowed */
};

/* A bare array: dtype as NumPy names it ("uint8", "int32"), shape[rank]; refuses another length. */
bool npy_bare(const char *dtype, int rank, const int64_t *shape, const unsigned char *bytes,
              size_t len, struct npy *array, struct err *err);
bool npy_parse(const unsigned char *bytes, size_t len, struct npy *array, struct err *err);
/* Elements first..first+n-1 of an integer array; ones that do not fit into i32 become -1. */
void npy_ids(const struct npy *array, int64_t first, int64_t n, int32_t *out);
/* Rows row..row+rows-1 of k chosen experts, [rows,k]. A row that is nothing but 255 (u8) or 65535
 * (u16) is padding and becomes -1s; a single 255 is an expert, for there are models of 256. */
void npy_choices(const struct npy *array, int64_t row, int64_t rows, int k, int32_t *out);
/* Rows row, row + stride, ... of k chosen experts, [rows,k], that npy_choices was seen to read as
 * experts: padding is not looked for again. */
void npy_gather(const struct npy *array, int64_t row, int64_t stride, int64_t rows, int k,
                int32_t *out);
/* Elements of a real array of 2 or 4 bytes an element. */
void npy_reals(const struct npy *array, int64_t first, int64_t n, float *out);

#endif
