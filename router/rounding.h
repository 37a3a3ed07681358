/* rounding.h - f32 values rounded to bf16 or f16 and kept as f32 (to nearest, ties to even)
 *
 * Layer 2, pure, private to router/. What a program computes whose tensors are of that type: each
 * operation in f32, its result rounded (torch does so on CPUs and GPUs). A value beyond the range
 * becomes the largest finite one, because an infinite logit could not be routed. */
#ifndef ROUTER_ROUNDING_H
#define ROUTER_ROUNDING_H

#include <math.h>
#include <stdint.h>

#include "router/gate.h"
#include "router/mathf.h"

/* 8 significant bits, the exponents of f32: up to 3.3895e38. */
static inline float round_bf16(float x) {
    uint32_t bits = mathf_bits(x), magnitude = bits & 0x7fffffffu;
    uint32_t rounded = (magnitude + 0x7fffu + (magnitude >> 16 & 1)) & 0xffff0000u;
    rounded = rounded < 0x7f7f0000u ? rounded : 0x7f7f0000u;
    return mathf_from_bits((bits & 0x80000000u) | rounded);
}

/* 11 significant bits, multiples of 2^-24 below 2^-14, up to 65504. */
static inline float round_f16(float x) {
    uint32_t bits = mathf_bits(x), magnitude = bits & 0x7fffffffu;
    float small = (mathf_from_bits(magnitude) + 0.75f) - 0.75f; /* 0.75: its ulp is 2^-24 */
    uint32_t rounded = (magnitude + 0xfffu + (magnitude >> 13 & 1)) & 0xffffe000u;
    rounded = rounded < 0x477fe000u ? rounded : 0x477fe000u;
    if (magnitude < 0x38800000u) rounded = mathf_bits(small);
    return mathf_from_bits((bits & 0x80000000u) | rounded);
}

static inline float round_to(enum gate_dtype dtype, float x) {
    return dtype == DTYPE_BF16 ? round_bf16(x) : dtype == DTYPE_F16 ? round_f16(x) : x;
}

#endif
