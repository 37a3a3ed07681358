/* peak_avx2.c - f32 multiply-adds per second in AVX2 registers: the f32 limit of one thread */
#include "tests/bench/bench.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

double peak_avx2(void) {
    enum { STEPS = 400000 };
    __m256 a[12], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
    for (int i = 0; i < 12; i++) a[i] = _mm256_set1_ps((float)i);
    double start = bench_seconds(1);
    for (int s = 0; s < STEPS; s++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) a[i] = _mm256_fmadd_ps(a[i], x, y);
    }
    double seconds = bench_seconds(1) - start;
    static volatile float sink;
    for (int i = 0; i < 12; i++) sink += _mm256_cvtss_f32(a[i]);
    return STEPS * 12.0 * 16 / seconds * 1e-9;
}
#else
double peak_avx2(void) { return 0; }
#endif
