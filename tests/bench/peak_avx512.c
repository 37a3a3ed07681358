/* peak_avx512.c - f32 multiply-adds per second in AVX-512 registers: the f32 limit of one thread */
#include "tests/bench/bench.h"

#if defined(__AVX512F__)
#include <immintrin.h>

double peak_avx512(void) {
    enum { STEPS = 400000 };
    __m512 a[16], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
    for (int i = 0; i < 16; i++) a[i] = _mm512_set1_ps((float)i);
    double start = bench_seconds(1);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) a[i] = _mm512_fmadd_ps(a[i], x, y);
    }
    double seconds = bench_seconds(1) - start;
    static volatile float sink;
    for (int i = 0; i < 16; i++) sink += _mm512_reduce_add_ps(a[i]);
    return STEPS * 16.0 * 32 / seconds * 1e-9;
}
#else
double peak_avx512(void) { return 0; }
#endif
