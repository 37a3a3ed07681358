/* sums.c - what every routing adds up per chunk, for tokens that all keep k experts */
#include "sim/sums.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Calls run(k, ...) with k constant where it is a usual one. */
#define FOR_K(k, run, ...)                                                                         \
    switch (k) {                                                                                   \
    case 8:                                                                                        \
        run(8, __VA_ARGS__);                                                                       \
        break;                                                                                     \
    case 6:                                                                                        \
        run(6, __VA_ARGS__);                                                                       \
        break;                                                                                     \
    case 4:                                                                                        \
        run(4, __VA_ARGS__);                                                                       \
        break;                                                                                     \
    case 2:                                                                                        \
        run(2, __VA_ARGS__);                                                                       \
        break;                                                                                     \
    default:                                                                                       \
        run(k, __VA_ARGS__);                                                                       \
    }

/* Eight at a time: pairs of bytes are added before their sum could overflow. */
int64_t sums_bytes(const uint8_t *x, int64_t n) {
    const uint64_t low = UINT64_C(0x00ff00ff00ff00ff);
    int64_t sum = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, x + i, sizeof eight);
        uint64_t four = (eight & low) + (eight >> 8 & low);
        sum += (int64_t)(four * UINT64_C(0x0001000100010001) >> 48);
    }
    for (; i < n; i++) sum += x[i];
    return sum;
}

INLINE void received_k(const int k, const struct sums *s, const float *weight, double *received) {
    const int32_t *expert = s->expert;
    for (int64_t t = 0; t < s->n; t++, expert += k, weight += k)
        for (int i = 0; i < k; i++) received[expert[i]] += (double)weight[i];
}

void sums_received(const struct sums *s, const float *weight,
                   double *received){FOR_K(s->k, received_k, s, weight, received)}

/* Ranks two at a time, so that their sums stay in registers over all tokens. */
INLINE void ranks_k(const int k, const struct sums *s, const float *weight, const double *shift,
                    double *first, double *second) {
    enum { AT_ONCE = 4 };
    for (int from = 0; from < k; from += AT_ONCE) {
        int count = k - from < AT_ONCE ? k - from : AT_ONCE;
        double by[AT_ONCE] = {0}, a[AT_ONCE] = {0}, b[AT_ONCE] = {0};
        for (int i = 0; i < count; i++) {
            by[i] = shift[from + i];
            a[i] = first[from + i];
            b[i] = second[from + i];
        }
        for (int64_t t = 0; t < s->n; t++)
            for (int i = 0; i < count; i++) {
                double d = (double)weight[t * k + from + i] - by[i];
                a[i] += d;
                b[i] += d * d;
            }
        for (int i = 0; i < count; i++) {
            first[from + i] = a[i];
            second[from + i] = b[i];
        }
    }
}

void sums_ranks(const struct sums *s, const float *weight, const double *shift, double *first,
                double *second){FOR_K(s->k, ranks_k, s, weight, shift, first, second)}

INLINE void mass_k(const int k, const struct sums *s, const float *score, double *mass) {
    const int32_t *expert = s->expert;
    for (int64_t t = 0; t < s->n; t++, expert += k, score += s->experts) {
        double sum = 0;
        for (int i = 0; i < k; i++) sum += (double)score[expert[i]];
        mass[t] = sum;
    }
}

void sums_mass(const struct sums *s, const float *score, double *mass) {
    FOR_K(s->k, mass_k, s, score, mass)
}

void sums_flags(const struct sums *s, uint8_t *flag) {
    memset(flag, 0, (size_t)(s->n * s->experts));
    for (int64_t t = 0; t < s->n; t++)
        for (int i = 0; i < s->k; i++) {
            int32_t e = s->expert[t * s->k + i];
            if (e >= 0) flag[t * s->experts + e] = 1;
        }
}

INLINE int64_t common_k(const int k, const struct sums *s, const uint8_t *flag,
                        int64_t *different) {
    const int32_t *expert = s->expert;
    int64_t all = 0, parted = 0;
    for (int64_t t = 0; t < s->n; t++, expert += k, flag += s->experts) {
        unsigned both = 0;
        for (int i = 0; i < k; i++) both += flag[expert[i]];
        all += both;
        parted += both < (unsigned)k;
    }
    *different += parted;
    return all;
}

int64_t sums_common(const struct sums *s, const uint8_t *flag, int64_t *different) {
    int64_t common = 0;
#define ADD(k, s, flag, different) common = common_k(k, s, flag, different)
    FOR_K(s->k, ADD, s, flag, different)
#undef ADD
    return common;
}
