/* quant.h - block formats of quantised weights: how a block of values is decoded
 *
 * Layer 3 (engine). A row of GGUF is a whole number of blocks. The layouts are those of ggml's
 * formats of the same names; the values that come out equal its own, in f32. */
#ifndef ENGINE_QUANT_H
#define ENGINE_QUANT_H

#include <stdint.h>

struct quant {
    const char *name; /* as the file format calls it */
    int values;       /* of a block */
    int bytes;        /* of a block */
    /* out[values] <- one block */
    void (*decode)(const unsigned char *block, float *out);
};

/* By name; NULL when it is not one that is decoded here. */
const struct quant *quant_find(const char *name);
/* By index, for messages and tests; NULL after the last. */
const struct quant *quant_at(int index);
/* Values [first, first + count) of blocks that begin at data; both multiples of the block. */
void quant_read(const struct quant *quant, const unsigned char *data, int64_t first, int64_t count,
                float *out);

#endif
