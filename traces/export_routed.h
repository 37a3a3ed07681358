/* export_routed.h - the choices of all layers token by token, as the forms [tokens, layers, k] want
 *
 * Private to traces/. */
#ifndef TRACES_EXPORT_ROUTED_H
#define TRACES_EXPORT_ROUTED_H

#include "base/progress.h"
#include "base/str.h"
#include "traces/choices.h"

struct routed_rows {
    struct trace *trace;
    struct choices *layers; /* [L] owned */
    int opened, topk;
    int item_bytes;       /* 1 where E <= 256, else 2 */
    unsigned char *bytes; /* [n, L, k] little-endian, of the last block; owned */
    int64_t tokens;       /* n; 0 at the end */
};

/* Opens all layers; refuses counts, and layers of different k. routed_rows_close also after it. */
bool routed_rows_open(struct routed_rows *rows, struct trace *trace, struct err *err);
/* The next block of tokens, live choices in order of selection. */
bool routed_rows_next(struct routed_rows *rows, struct err *err);
void routed_rows_close(struct routed_rows *rows);

/* A .npy header of a little-endian array ("|u1", "<u2", "<i4"; rank 1 to 3), padded to 64 bytes. */
void npy_header(struct str *out, const char *type, int rank, const int64_t *shape);

#endif
