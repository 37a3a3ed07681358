/* quant.c - block formats of quantised weights: see quant.h
 *
 * d and m stand for the scale and the minimum of a block (binary16), q for the stored integers. */
#include "engine/quant.h"

#include <math.h>
#include <string.h>

#include "engine/tensors.h"

enum { SMALL = 32, LARGE = 256 };

static float half_at(const unsigned char *bytes) {
    return tensor_half((uint16_t)(bytes[0] | bytes[1] << 8));
}

/* d, 32 x i8: y = d q */
static void decode_q8_0(const unsigned char *block, float *out) {
    float d = half_at(block);
    for (int i = 0; i < SMALL; i++) out[i] = d * (float)(int8_t)block[2 + i];
}

/* d, 16 bytes of two nibbles (values i and i + 16): y = d (q - 8) */
static void decode_q4_0(const unsigned char *block, float *out) {
    float d = half_at(block);
    for (int i = 0; i < SMALL / 2; i++) {
        out[i] = d * (float)((block[2 + i] & 15) - 8);
        out[i + SMALL / 2] = d * (float)((block[2 + i] >> 4) - 8);
    }
}

/* One exponent byte, then 16 bytes of two E2M1 values (i and i + 16): y = v 2^(e - 127) */
static void decode_mxfp4(const unsigned char *block, float *out) {
    static const float value[16] = {0,    .5f,  1,  1.5f,  2,  3,  4,  6,
                                    -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    float scale = ldexpf(1, block[0] - 127);
    for (int i = 0; i < SMALL / 2; i++) {
        out[i] = value[block[1 + i] & 15] * scale;
        out[i + SMALL / 2] = value[block[1 + i] >> 4] * scale;
    }
}

/* Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each in the low bits of
 * bytes 0..3 and 4..7, the others' low nibbles in bytes 8..11 and their top bits above the first
 * four. */
static void scale_and_minimum(const unsigned char *packed, int i, int *scale, int *minimum) {
    if (i < 4) {
        *scale = packed[i] & 63;
        *minimum = packed[i + 4] & 63;
        return;
    }
    *scale = (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
    *minimum = packed[i + 4] >> 4 | packed[i] >> 6 << 4;
}

/* d, m, 12 bytes of scales, [5 bits: 32 bytes of fifth bits,] 128 bytes of nibbles. Group g of 32
 * values (nibbles low for even, high for odd g): y = d scale q - m minimum */
static void decode_k(const unsigned char *block, const unsigned char *fifth,
                     const unsigned char *nibbles, float *out) {
    float d = half_at(block), m = half_at(block + 2);
    for (int g = 0; g < LARGE / SMALL; g++) {
        int scale, minimum;
        scale_and_minimum(block + 4, g, &scale, &minimum);
        float slope = d * (float)scale, offset = m * (float)minimum;
        for (int i = 0; i < SMALL; i++) {
            int q = nibbles[g / 2 * SMALL + i] >> g % 2 * 4 & 15;
            if (fifth) q |= (fifth[i] >> g & 1) << 4;
            out[g * SMALL + i] = slope * (float)q - offset;
        }
    }
}

static void decode_q4_k(const unsigned char *block, float *out) {
    decode_k(block, NULL, block + 16, out);
}

static void decode_q5_k(const unsigned char *block, float *out) {
    decode_k(block, block + 16, block + 48, out);
}

/* 128 bytes of low nibbles, 64 of upper pairs of bits, 16 i8 scales, d. In each half of 128 values,
 * quarter p has nibbles low for p < 2, high else, and bits 2p of the pairs: y = d scale (q - 32) */
static void decode_q6_k(const unsigned char *block, float *out) {
    float d = half_at(block + 208);
    for (int at = 0; at < LARGE; at++) {
        int half = at / 128, p = at % 128 / SMALL, i = at % SMALL;
        int low = block[half * 64 + p % 2 * SMALL + i] >> p / 2 * 4 & 15;
        int high = block[128 + half * SMALL + i] >> 2 * p & 3;
        float slope = d * (float)(int8_t)block[192 + at / 16];
        out[at] = slope * (float)((low | high << 4) - 32);
    }
}

static const struct quant table[] = {
    {"Q8_0", SMALL, 34, decode_q8_0},  {"Q4_0", SMALL, 18, decode_q4_0},
    {"Q4_K", LARGE, 144, decode_q4_k}, {"Q5_K", LARGE, 176, decode_q5_k},
    {"Q6_K", LARGE, 210, decode_q6_k}, {"MXFP4", SMALL, 17, decode_mxfp4},
};

const struct quant *quant_at(int index) {
    return index < (int)(sizeof table / sizeof *table) ? &table[index] : NULL;
}

const struct quant *quant_find(const char *name) {
    for (int i = 0; quant_at(i); i++)
        if (!strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

void quant_read(const struct quant *quant, const unsigned char *data, int64_t first, int64_t count,
                float *out) {
    const unsigned char *block = data + first / quant->values * quant->bytes;
    for (int64_t at = 0; at < count; at += quant->values, block += quant->bytes)
        quant->decode(block, out + at);
}
