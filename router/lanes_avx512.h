/* lanes_avx512.h - networks over 16 vectors whose lanes belong to 16 tokens
 *
 * Layer 2, private to the AVX-512 files of router/; empty for whoever is not compiled for AVX-512.
 */
#ifndef ROUTER_LANES_AVX512_H
#define ROUTER_LANES_AVX512_H

#ifdef __AVX512F__
#include <immintrin.h>

#include "router/network.h"

#define VBMI2  __attribute__((target("avx512vbmi2")))
#define INLINE static inline __attribute__((always_inline)) VBMI2

/* ---- networks over 16 vectors: lane t belongs to token t */

#define EXCHANGE(a, b)                                                                             \
    {                                                                                              \
        __m512i least = _mm512_min_epi32(r[a], r[b]);                                              \
        r[a] = _mm512_max_epi32(r[a], r[b]);                                                       \
        r[b] = least;                                                                              \
    }
/* clang-format off */
#define ALL16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define PAIRS(X) X(0) X(2) X(4) X(6) X(8) X(10) X(12) X(14)
#define FOURS(X) X(0) X(4) X(8) X(12)
/* clang-format on */

/* r[i] lane j <-> r[j] lane i. */
INLINE void transpose(__m512i r[16]) {
    __m512i s[16];
#define WORDS(i)                                                                                   \
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);                                                  \
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    PAIRS(WORDS)
#define LONGS(i)                                                                                   \
    r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);                                                  \
    r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);                                              \
    r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);                                          \
    r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    FOURS(LONGS)
#define QUARTERS(i)                                                                                \
    s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);                                             \
    s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);                                         \
    s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);                                    \
    s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    QUARTERS(0)
    QUARTERS(1)
    QUARTERS(2)
    QUARTERS(3)
#define HALVES(i)                                                                                  \
    r[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);                                             \
    r[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);                                         \
    r[i + 4] = _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0x88);                                    \
    r[i + 12] = _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0xdd);
    HALVES(0) HALVES(1) HALVES(2) HALVES(3)
}

#endif
#endif
