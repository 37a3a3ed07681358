/* half.h - 16-bit floating point numbers to f32, exactly
 *
 * Layer 1 (base). IEEE 754 binary16: a subnormal m * 2^-24 is exact in f32. bf16 is the upper half
 * of an f32. */
#ifndef BASE_HALF_H
#define BASE_HALF_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The f32 of these bits. */
static inline float half_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* One bf16. */
static inline float half_bf16(uint16_t h) { return half_bits((uint32_t)h << 16); }

/* One binary16. */
static inline float half_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    return half_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) |
                     mantissa << 13);
}

/* The one that two bytes of a file hold, little-endian. */
static inline float half_float(const unsigned char *at, bool bf16) {
    uint16_t half = (uint16_t)(at[0] | at[1] << 8);
    return bf16 ? half_bf16(half) : half_f16(half);
}

#endif
