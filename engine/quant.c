/* quant.c - block formats of quantised weights: see quant.h
 *
 * d and m stand for the scale and the minimum of a block (binary16), q for the stored integers. */
#include "engine/quant.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

enum { SMALL = 32, LARGE = 256 };

static float half_at(const unsigned char *bytes) { return half_float(bytes, false); }

/* d, 32 x i8: y = d q */
static void decode_q8_0(const unsigned char *block, float *out) {
    float d = half_at(block);
    for (int i = 0; i < SMALL; i++) out[i] = d * (float)(int8_t)block[2 + i];
}

/* 16 bytes of two nibbles (values i and i + 16), each with bit i of `fifth` above it:
 * y = d (q - zero) + m */
static void decode_small(float d, float m, uint32_t fifth, int zero, const unsigned char *nibbles,
                         float *out) {
    for (int i = 0; i < SMALL; i++) {
        int q = nibbles[i % 16] >> i / 16 * 4 & 15;
        q |= (int)(fifth >> i & 1) << 4;
        out[i] = d * (float)(q - zero) + m;
    }
}

static uint32_t word_at(const unsigned char *bytes) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* d [, m] [, 32 fifth bits], nibbles */
static void decode_q4_0(const unsigned char *block, float *out) {
    decode_small(half_at(block), 0, 0, 8, block + 2, out);
}

static void decode_q4_1(const unsigned char *block, float *out) {
    decode_small(half_at(block), half_at(block + 2), 0, 0, block + 4, out);
}

static void decode_q5_0(const unsigned char *block, float *out) {
    decode_small(half_at(block), 0, word_at(block + 2), 16, block + 6, out);
}

static void decode_q5_1(const unsigned char *block, float *out) {
    decode_small(half_at(block), half_at(block + 2), word_at(block + 4), 0, block + 8, out);
}

/* 16 bytes of two indices (values i and i + 16) into a table: y = d table[q] */
static void decode_table(float d, const float table[16], const unsigned char *nibbles, float *out) {
    for (int i = 0; i < SMALL; i++) out[i] = d * table[nibbles[i % 16] >> i / 16 * 4 & 15];
}

/* One exponent byte, then E2M1 values: d = 2^(e - 127) */
static void decode_mxfp4(const unsigned char *block, float *out) {
    static const float e2m1[16] = {0,    .5f,  1,  1.5f,  2,  3,  4,  6,
                                   -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    decode_table(ldexpf(1, block[0] - 127), e2m1, block + 1, out);
}

/* The unevenly spaced values of the IQ4 types */
static const float iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};

static void decode_iq4_nl(const unsigned char *block, float *out) {
    decode_table(half_at(block), iq4, block + 2, out);
}

/* d, eight 6-bit scales (2 bytes of the upper pairs of bits, 4 of the low nibbles), nibbles */
static void decode_iq4_xs(const unsigned char *block, float *out) {
    float d = half_at(block);
    int high = block[2] | block[3] << 8;
    for (int g = 0; g < LARGE / SMALL; g++) {
        int scale = (block[4 + g / 2] >> g % 2 * 4 & 15) | (high >> 2 * g & 3) << 4;
        decode_table(d * (float)(scale - 32), iq4, block + 8 + 16 * g, out + SMALL * g);
    }
}

/* Pair `at` of the 256 pairs of bits in 64 bytes: byte i of a half holds values i, i + 32, ... */
static int pair_at(const unsigned char *pairs, int at) {
    return pairs[at / 128 * SMALL + at % SMALL] >> at % 128 / SMALL * 2 & 3;
}

/* 16 bytes of a scale (low nibble) and a minimum for 16 values each, 64 bytes of pairs, d, m:
 * y = d scale q - m minimum */
static void decode_q2_k(const unsigned char *block, float *out) {
    float d = half_at(block + 80), m = half_at(block + 82);
    for (int at = 0; at < LARGE; at++) {
        int scale = block[at / 16];
        float slope = d * (float)(scale & 15), offset = m * (float)(scale >> 4);
        out[at] = slope * (float)pair_at(block + 16, at) - offset;
    }
}

/* 32 bytes of third bits (bit g of byte i: value i of group g of 32), 64 bytes of pairs, 16 6-bit
 * scales (8 bytes of low nibbles, 4 of upper pairs of bits), d: y = d (scale - 32) (q - 4) */
static void decode_q3_k(const unsigned char *block, float *out) {
    const unsigned char *scales = block + 96;
    float d = half_at(block + 108);
    for (int at = 0; at < LARGE; at++) {
        int s = at / 16, third = block[at % SMALL] >> at / SMALL & 1;
        int scale = (scales[s % 8] >> s / 8 * 4 & 15) | (scales[8 + s % 4] >> s / 4 * 2 & 3) << 4;
        float slope = d * (float)(scale - 32);
        out[at] = slope * (float)((pair_at(block + 32, at) | third << 2) - 4);
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
    {"Q8_0", SMALL, 34, decode_q8_0},     {"Q4_0", SMALL, 18, decode_q4_0},
    {"Q4_1", SMALL, 20, decode_q4_1},     {"Q5_0", SMALL, 22, decode_q5_0},
    {"Q5_1", SMALL, 24, decode_q5_1},     {"Q2_K", LARGE, 84, decode_q2_k},
    {"Q3_K", LARGE, 110, decode_q3_k},    {"Q4_K", LARGE, 144, decode_q4_k},
    {"Q5_K", LARGE, 176, decode_q5_k},    {"Q6_K", LARGE, 210, decode_q6_k},
    {"IQ4_NL", SMALL, 18, decode_iq4_nl}, {"IQ4_XS", LARGE, 136, decode_iq4_xs},
    {"MXFP4", SMALL, 17, decode_mxfp4},
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
