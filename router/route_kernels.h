/* route_kernels.h - the inner loops of routing, one table of functions per CPU level
 *
 * Layer 2, private to router/. `portable` is the truth, written to be read; every other level gives
 * the same bits (scores, choices), because each step has one result: elementwise arithmetic in a
 * fixed order, sums in a fixed tree, selections by a total order.
 *
 * All steps work on a block of at most ROUTE_BLOCK tokens, step by step rather than token by token:
 * the chain of one token's dependent operations then overlaps with the next token's (measured: 1.6
 * times faster than token by token with 256 experts). Rows of choice scores are padded to whole
 * lanes with -inf; their stride is route_padded(E). */
#ifndef ROUTER_ROUTE_KERNELS_H
#define ROUTER_ROUTE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "router/gate.h"

enum { ROUTE_LANES = 16, ROUTE_BLOCK = 16 };

static inline int route_padded(int experts) {
    return (experts + ROUTE_LANES - 1) / ROUTE_LANES * ROUTE_LANES;
}

/* A group mask resolved for E experts. */
struct route_groups {
    int count, kept; /* N, KEEP */
    int size;        /* E / N */
    int best;        /* a group's score is the sum of its `best` highest, highest first */
    float fill;      /* what dropped experts become */
};

/* How scores and a bias become keys of 16 bits; the same for all blocks of a call. */
enum { ROUTE_KEYED = 256 }; /* experts at most */
struct route_scale {
    bool usable;
    float factor; /* a key is the score times this, and the offset */
    float size;   /* of the largest bias */
    float offset[ROUTE_KEYED];
};

/* The choices of a block by a gate of scores, bias, groups and top-k, and perhaps their weights. */
struct route_job {
    const struct gate *gate;
    int experts, tokens, topk;
    bool signs;                        /* scores may be negative: logits */
    const struct route_groups *groups; /* NULL: none */
    const float *score, *logits;       /* [tokens,E]; score: only for choose */
    const float *bias;                 /* [E] or NULL */
    const struct route_scale *scale;   /* of that bias; NULL: not made */
    int32_t *expert;                   /* [tokens,k] */
    uint8_t *tie;                      /* [tokens] or NULL */
    float *weight;                     /* [tokens,k]; NULL: not wanted now */
    float *room;                       /* [tokens,E] scratch of choose_logits */
    bool weighed;                      /* set when the weights of settled tokens are there too */
};

struct route_kernels {
    const char *name;
    /* Index of the first NaN or infinity in x[n]; -1 when there is none. */
    int64_t (*first_not_finite)(const float *x, int64_t n);
    /* score[rows,n] <- score function of logits[rows,n]; by enum gate_score. Returns the bits of
     * the largest magnitude among the logits (from 0x7f800000 on: one is not finite); may run in
     * place, and then returns anything. */
    uint32_t (*score[SCORE_IDENTITY + 1])(const float *logits, float *score, int n, int rows);
    /* choice[padded] <- score[n] + bias[n] (bias NULL: score), padded with -inf. */
    void (*add_bias)(const float *score, const float *bias, float *choice, int n);
    /* For each of `tokens` rows choice[stride]: scores its groups, sets kept[groups->count] (rows
     * of `stride` bytes) and fills the choice scores of dropped groups. group_score: scratch
     * [stride].
     */
    void (*mask_groups)(const struct route_groups *groups, int tokens, int stride, float *choice,
                        uint8_t *kept, float *group_score);
    /* For each of `tokens` rows x[stride] of n experts: best[k] <- indices of the k highest, k <=
     * n; lower index first among equals. Rows of best are k long. */
    void (*top)(const float *x, int tokens, int stride, int n, int k, int32_t *best);
    /* mask_groups and top in one, without filling dropped groups (their choice scores stay as they
     * are and nobody may read them). False: not possible for these groups, nothing was done. NULL:
     * never possible. */
    bool (*top_of_kept)(const struct route_groups *groups, int tokens, int stride, int k,
                        const float *choice, int32_t *best);
    /* Makes the scale that choose and choose_logits read. NULL: they read none. */
    void (*make_scale)(const float *bias, int experts, struct route_scale *scale);
    /* All steps of a choice in one. Returns the tokens, one bit each, that it could not settle and
     * whose outputs are undefined: the steps above must choose for them. NULL: for none. */
    unsigned (*choose)(struct route_job *job);
    /* The same straight from logits, whose scores nobody else needs. All tokens are left where a
     * logit is not finite. NULL: never. */
    unsigned (*choose_logits)(struct route_job *job);
};

/* For AVX-512 with VBMI2: route_choose_avx512.c; route_keys_avx512.c, which falls back on it. */
unsigned route_choose_avx512(struct route_job *job);
void route_make_scale_avx512(const float *bias, int experts, struct route_scale *scale);
unsigned route_choose_keys_avx512(struct route_job *job);
unsigned route_choose_logits_avx512(struct route_job *job);
/* weight[n] <- weights of a token's experts[n] in order of selection (MATH.md section 4), from its
 * score[E] (its logits with order=topk-score). */
void route_weigh_row(const struct gate *gate, const float *score, const int32_t *expert, int n,
                     float *weight);

extern const struct route_kernels route_kernels_portable;
#if defined(__x86_64__)
extern const struct route_kernels route_kernels_avx2, route_kernels_avx512,
    route_kernels_avx512vbmi2;
#endif

#endif
