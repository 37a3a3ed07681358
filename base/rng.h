/* rng.h - the only source of randomness: seeded, the same numbers on every machine
 *
 * Layer 1. xoshiro256** (Blackman and Vigna, 2018) seeded through splitmix64. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void rng_init(struct rng *rng, uint64_t seed);
uint64_t rng_next(struct rng *rng);
/* Uniform in [0,1), 53 bits. */
double rng_uniform(struct rng *rng);
/* Uniform integer in [0,n), n >= 1, without bias. */
uint64_t rng_below(struct rng *rng, uint64_t n);
/* Standard normal (polar method). */
double rng_normal(struct rng *rng);
/* Fisher-Yates: permutes order[n]. */
void rng_shuffle(struct rng *rng, int64_t *order, int64_t n);

/* A number that depends on key and counter alone: the counter-th of splitmix64 from that state.
 * Chain it to draw by several keys: rng_at(rng_at(seed, layer), token). */
static inline uint64_t rng_at(uint64_t key, uint64_t counter) {
    uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
