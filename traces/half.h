/* half.h - 16-bit floating point numbers as files hold them (little-endian) to f32, exactly
 *
 * Private to traces/. IEEE 754 binary16: a subnormal m * 2^-24 is exact in f32. bf16 is the upper
 * half of an f32. */
#ifndef TRACES_HALF_H
#define TRACES_HALF_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline float half_float(const unsigned char *at, bool bf16) {
    uint32_t half = at[0] | (uint32_t)at[1] << 8, bits = half << 16;
    uint32_t sign = bits & 0x80000000u, exponent = half >> 10 & 31, mantissa = half & 1023;
    float x;
    if (!bf16 && exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    if (!bf16)
        bits = exponent == 31 ? sign | 0x7f800000u | mantissa << 13
                              : sign | (exponent + 112) << 23 | mantissa << 13;
    memcpy(&x, &bits, 4);
    return x;
}

#endif
