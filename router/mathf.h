/* mathf.h - exp, log1p and log in f32 with the same bits on every machine
 *
 * Layer 2, pure. Only additions, multiplications, divisions and square roots in a fixed order,
 * never contracted (the Makefile says -ffp-contract=off), so that scalar and vector code agree bit
 * for bit (law 1 holds across machines). libm is not used: its last bits differ between versions.
 * Errors are measured over all arguments of the named range by tests/test_gate.c. */
#ifndef ROUTER_MATHF_H
#define ROUTER_MATHF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float mathf_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t mathf_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^n for n in [-126, 127]. */
static inline float mathf_pow2(int n) { return mathf_from_bits((uint32_t)(n + 127) << 23); }

/* Adding it rounds to the nearest integer, which then is in the low bits: 1.5 * 2^23. */
#define MATHF_MAGIC 12582912.0f

/* exp(x - n ln2) for n within 1 of x / ln2: in two parts of ln2 (Cody and Waite), then a degree-6
 * polynomial. */
static inline float mathf_exp_rest(float x, float n) {
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.39304355e-3f;
    p = p * r + 8.36402178e-3f;
    p = p * r + 4.16663736e-2f;
    p = p * r + 1.66664973e-1f;
    p = p * r + 5.00000060e-1f;
    return 1.0f + (r + r * r * p);
}

/* exp(x), within 1.6 ulp for results that are normal. Overflow gives +inf, underflow goes through
 * subnormals to 0. Method: x = n ln2 + r with |r| <= ln2/2, exp(r), then two exact multiplications
 * by powers of two. */
static inline float mathf_exp(float x) {
    x = x > 89.0f ? 89.0f : x;     /* e^89 > FLT_MAX */
    x = x < -104.0f ? -104.0f : x; /* e^-104 < 2^-150 */
    float n = (x * 1.44269504f + MATHF_MAGIC) - MATHF_MAGIC;
    float e = mathf_exp_rest(x, n);
    int whole = (int)n, half = whole / 2;
    return (e * mathf_pow2(half)) * mathf_pow2(whole - half);
}

/* The bits of mathf_exp for |x| < MATHF_PLAIN, where n can be added to the exponent. */
#define MATHF_PLAIN 80.0f
static inline float mathf_exp_plain(float x) {
    float shifted = x * 1.44269504f + MATHF_MAGIC;
    float e = mathf_exp_rest(x, shifted - MATHF_MAGIC);
    return mathf_from_bits(mathf_bits(e) + (mathf_bits(shifted) << 23));
}

/* log(1 + y) for y in [0, 1], within 2 ulp: 2 atanh(y / (2 + y)) by its series. */
static inline float mathf_log1p(float y) {
    float z = y / (2.0f + y), q = z * z;
    float s = 1.0f / 15.0f;
    s = s * q + 1.0f / 13.0f;
    s = s * q + 1.0f / 11.0f;
    s = s * q + 1.0f / 9.0f;
    s = s * q + 1.0f / 7.0f;
    s = s * q + 1.0f / 5.0f;
    s = s * q + 1.0f / 3.0f;
    return 2.0f * (z + z * q * s);
}

/* log(x) for positive normal x, within 3 ulp outside [0.7, 1.4] (absolute error 1e-7 inside):
 * x = m 2^n with m in [1, 2), log1p of m - 1. */
static inline float mathf_log(float x) {
    uint32_t bits = mathf_bits(x);
    int n = (int)(bits >> 23) - 127;
    float m = mathf_from_bits((bits & 0x7fffffu) | 0x3f800000u);
    return (float)n * 0.693147182f + mathf_log1p(m - 1.0f);
}

/* 1 / (1 + exp(-x)). */
static inline float mathf_sigmoid(float x) { return 1.0f / (1.0f + mathf_exp(-x)); }

/* (exp(2x) - 1) / (exp(2x) + 1); near zero its series, which keeps small arguments apart. */
static inline float mathf_tanh(float x) {
    float a = fabsf(x), q = x * x;
    if (a < 0.25f) {
        float s = -1382.0f / 155925.0f;
        s = s * q + 62.0f / 2835.0f;
        s = s * q - 17.0f / 315.0f;
        s = s * q + 2.0f / 15.0f;
        s = s * q - 1.0f / 3.0f;
        return x + x * q * s;
    }
    float e = mathf_exp(2.0f * (a < 20.0f ? a : 20.0f));
    return copysignf((e - 1.0f) / (e + 1.0f), x);
}

/* sqrt(log(1 + exp(x))), without overflow: softplus(x) = max(x, 0) + log1p(exp(-|x|)). */
static inline float mathf_sqrtsoftplus(float x) {
    float tail = mathf_log1p(mathf_exp(-fabsf(x)));
    return sqrtf((x > 0 ? x : 0) + tail);
}

#endif
