/* layer_time.h - time of one MoE layer on one rank, from its load: formula, tile rule, baselines
 *
 * Layer 4 (sim), pure: no allocation, no I/O. In milliseconds:
 *
 *     t = t0 + e*E_loc + ((A*W/B)^p + (P*F/C)^p)^(1/p) + c*N*(h+f) + d*T*k*(h+f)       p = 1.5
 *
 *     A      local experts with at least one token        W = m*h*f*w   bytes of one expert
 *     N      assignments (token, expert) on this rank      F = 2*m*h*f   FLOP of one assignment
 *     P      sum over local experts of ceil(n_e/M)*M       T, k          tokens of the group, top-k
 *     E_loc  experts of the rank                           h, f          hidden size, local inter
 * size m = 3 matrices when gated, else 2;  w = bytes per weight, scales included M      tile rule
 * "a-b": the smallest power of two >= N/A inside [a,b]
 *
 * Idle experts cost nothing but e, so tokens and activated experts count separately: skew makes a
 * layer faster where few tokens meet each expert, and slower where many do. The formula and its
 * constants were fitted on published kernel timings (devices.h says which, with their errors). */
#ifndef SIM_LAYER_TIME_H
#define SIM_LAYER_TIME_H

#include <stdbool.h>
#include <stdint.h>

/* Constants of one GPU, kernel and number format. */
struct layer_constants {
    int tile_min, tile_max; /* powers of two, 16..128 */
    double launch_us;       /* t0 */
    double weight_tbps;     /* B, TB/s */
    double compute_tflops;  /* C */
    double assign_ps;       /* c, per assignment and element of h+f */
    double group_ps;        /* d, per choice of the whole group and element of h+f */
    double expert_us;       /* e, per local expert */
    /* Constants carried over from a relative GPU (1 and 0 otherwise): above traffic_tokens tokens
     * of the group the activations no longer stay in the cache; c and d are traffic to memory and
     * shrink by the bandwidth ratio. 0: never. */
    double bandwidth_ratio;
    double traffic_tokens;
};

/* Decode is at most so many tokens of the group. */
enum { DECODE_TOKENS = 512 };

/* The two simple models that the formula is compared with, fitted on the same rows. */
struct roofline_constants { /* t0 + max(A*W/B, N*F/C) */
    double launch_us, weight_tbps, compute_tflops;
};
struct proxy_constants { /* t0 + N*F/C: time follows the tokens of the hottest rank */
    double launch_us, compute_tflops;
};

/* The layer's shape as one rank sees it. */
struct layer_shape {
    double hidden, inter; /* h; f after tensor parallelism */
    int matrices;         /* m: 3 gated, 2 not */
    double weight_bytes;  /* w */
    double topk;          /* k, or the mean where tokens differ */
    double local_experts; /* E_loc (slots, when experts are replicated) */
};

enum { LAYER_TILES = 4 }; /* 16, 32, 64, 128 */

/* Load of one rank; real numbers, because expectations over random draws are loads too. */
struct rank_load {
    double active;              /* A */
    double assignments;         /* N */
    double padded[LAYER_TILES]; /* P for M = 16, 32, 64, 128 */
};

/* Counts the load of a rank from n[count] tokens of each of its experts. */
void rank_load_count(struct rank_load *load, const int32_t *n, int count);

/* The tile M that the rule picks for a load. */
int layer_tile(const struct layer_constants *constants, const struct rank_load *load);

/* The formula; group_tokens = T. Milliseconds. */
double layer_time_ms(const struct layer_constants *constants, const struct layer_shape *shape,
                     const struct rank_load *load, double group_tokens);

/* Time at perfectly even load with the same activated experts: each of `active` experts gets
 * assignments/active tokens. What a slowdown is measured against. */
double layer_even_time_ms(const struct layer_constants *constants, const struct layer_shape *shape,
                          double active, double assignments, double group_tokens);

double layer_roofline_ms(const struct roofline_constants *constants,
                         const struct layer_shape *shape, const struct rank_load *load);
double layer_proxy_ms(const struct proxy_constants *constants, const struct layer_shape *shape,
                      const struct rank_load *load);

#endif
