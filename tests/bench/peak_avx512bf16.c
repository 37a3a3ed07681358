/* peak_avx512bf16.c - bf16 multiply-adds per second by vdpbf16ps: the bf16 limit of one thread */
#include "tests/bench/bench.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

double peak_avx512bf16(void) {
    enum { STEPS = 400000 };
    __m512 a[16];
    __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f803f80),
             y = (__m512bh)_mm512_set1_epi32(0x30003000);
    for (int i = 0; i < 16; i++) a[i] = _mm512_set1_ps((float)i);
    double start = bench_seconds(1);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) a[i] = _mm512_dpbf16_ps(a[i], x, y);
    }
    double seconds = bench_seconds(1) - start;
    static volatile float sink;
    for (int i = 0; i < 16; i++) sink += _mm512_reduce_add_ps(a[i]);
    return STEPS * 16.0 * 64 / seconds * 1e-9;
}
#else
double peak_avx512bf16(void) { return 0; }
#endif
