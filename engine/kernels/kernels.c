/* kernels.c - finds out once what the CPU can do and chooses the level; small vector functions
 *
 * A level is usable when CPUID reports its instructions and the operating system saves its
 * registers (XCR0). The order of the table is the order of preference; AVX512-BF16 multiplies at
 * twice the f32 rate on AMD (Zen 4, 5) and at half of it on Intel, so elsewhere it must be forced
 * (perf: bench scene `kernels`). */
#include "engine/kernels/kernels.h"

#include <math.h>
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "engine/kernels/level.h"

enum { HAS_AVX2 = 1, HAS_AVX512 = 2, HAS_BF16 = 4, HAS_AMX = 8, FAST_BF16 = 16, HAS_NEON = 32 };

struct level {
    const struct kernels *kernels;
    unsigned needs;     /* to be usable */
    unsigned preferred; /* and to be chosen without being named */
};

static const struct level levels[] = {
#if defined(__x86_64__)
    {&kernels_amx, HAS_AVX512 | HAS_BF16 | HAS_AMX, 0},
    {&kernels_avx512bf16, HAS_AVX512 | HAS_BF16, FAST_BF16},
    {&kernels_avx512, HAS_AVX512, 0},
    {&kernels_avx2, HAS_AVX2, 0},
#elif defined(__aarch64__)
    {&kernels_neon, HAS_NEON, 0},
#endif
    {&kernels_portable, 0, 0},
};

enum { LEVELS = sizeof levels / sizeof *levels };

#if defined(__x86_64__)
static bool bit(unsigned value, int index) { return value >> index & 1u; }

/* Register sets that the operating system saves: XCR0, or 0 without OSXSAVE. */
static unsigned saved_states(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned detect(void) {
    unsigned a, b, c, d, b7 = 0, c1 = 0, d7 = 0, max7, has = 0, saved = saved_states();
    char vendor[13] = "";
    if (!__get_cpuid(0, &a, &b, &c, &d)) return 0;
    memcpy(vendor, &b, 4), memcpy(vendor + 4, &d, 4), memcpy(vendor + 8, &c, 4);
    if (!__get_cpuid(1, &a, &b, &c1, &d)) return 0;
    if (!__get_cpuid_count(7, 0, &max7, &b7, &c, &d7)) return 0;
    bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6,
         tiles = bit(saved, 17) && bit(saved, 18);
    if (ymm && bit(b7, 5) && bit(c1, 12) && bit(c1, 29)) has |= HAS_AVX2; /* AVX2, FMA, F16C */
    if ((has & HAS_AVX2) && zmm && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31))
        has |= HAS_AVX512; /* F, DQ, BW, VL */
    if (max7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5)) has |= HAS_BF16;
    if (strcmp(vendor, "AuthenticAMD") == 0) has |= FAST_BF16;
    if (tiles && bit(d7, 22) && bit(d7, 24) && amx_permission()) has |= HAS_AMX;
    return has;
}
#elif defined(__aarch64__)
static unsigned detect(void) { return HAS_NEON; } /* part of the base architecture */
#else
static unsigned detect(void) { return 0; }
#endif

static unsigned features;
static void detect_once(void) { features = detect(); }

static bool usable(const struct level *level) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, detect_once);
    return (level->needs & features) == level->needs;
}

static const struct level *level_named(const char *name) {
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(levels[i].kernels->name, name) == 0) return &levels[i];
    return NULL;
}

const char *kernels_level(int index) {
    return index >= 0 && index < LEVELS ? levels[index].kernels->name : NULL;
}

bool kernels_usable(const char *level) {
    const struct level *found = level_named(level);
    return found && usable(found);
}

static bool refuse(const char *name, struct err *err) {
    char list[128] = "";
    for (int i = 0; i < LEVELS; i++)
        if (usable(&levels[i])) {
            if (*list) strcat(list, ", ");
            strcat(list, levels[i].kernels->name);
        }
    return err_set(err, ERR_USAGE, "kernels: level: found %s, expected auto or one of %s", name,
                   list);
}

const struct kernels *kernels_select(const char *level, struct err *err) {
    if (level && strcmp(level, "auto") != 0) {
        const struct level *found = level_named(level);
        if (found && usable(found)) return found->kernels;
        refuse(level, err);
        return NULL;
    }
    int i = 0;
    while (!usable(&levels[i]) || (levels[i].preferred & features) != levels[i].preferred) i++;
    return levels[i].kernels;
}

const char *kernels_name(const struct kernels *kernels) { return kernels->name; }

float vector_dot(const struct kernels *kernels, const float *x, const float *y, int64_t n) {
    return kernels->dot(x, y, n);
}

void vector_axpy(const struct kernels *kernels, float a, const float *x, float *y, int64_t n) {
    kernels->axpy(a, x, y, n);
}

void vector_silu_mul(const struct kernels *kernels, const float *gate, const float *up, float *out,
                     int64_t n) {
    kernels->silu_mul(gate, up, out, n);
}

void vector_rmsnorm(const struct kernels *kernels, const float *x, const float *weight, float eps,
                    float *y, int64_t n) {
    float factor = 1 / sqrtf(kernels->dot(x, x, n) / (float)n + eps);
    if (weight) {
        kernels->scale_mul(factor, x, weight, y, n);
        return;
    }
    if (y != x) memcpy(y, x, (size_t)n * sizeof *y);
    kernels->scale(factor, y, n);
}

float vector_softmax(const struct kernels *kernels, float *x, int64_t n) {
    float most = kernels->max(x, n), sum = kernels->exp_sum(x, most, x, n);
    kernels->scale(1 / sum, x, n);
    return most + logf(sum);
}

float vector_logsumexp(const struct kernels *kernels, const float *x, int64_t n) {
    float most = kernels->max(x, n);
    return most + logf(kernels->exp_sum(x, most, NULL, n));
}
