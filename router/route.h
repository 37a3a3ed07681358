/* route.h - from the logits of a token to its experts and their weights
 *
 * Layer 2, pure: no allocation, no I/O. The only place that turns scores into choices (law 1): the
 * engine calls it live and the simulator calls it in replay, so both see the same bits. All
 * arithmetic is f32 in a fixed order without contraction; exp and log are ours (router/mathf.h), so
 * the bits are the same on every machine. Letters: T tokens, E experts, k chosen.
 *
 * Ties: the higher choice score wins, then the lower expert index (law 7). */
#ifndef ROUTER_ROUTE_H
#define ROUTER_ROUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "router/gate.h"

/* An empty slot in a row of choices: a token with fewer experts than slots. Its weight is 0. */
enum { ROUTE_NONE = -1 };

/* What a rectangle of tokens was routed to. The caller owns the arrays; NULL = not wanted. */
struct routes {
    int32_t *expert; /* [T,k] in order of selection, then ROUTE_NONE; required */
    float *weight;   /* [T,k] */
    uint8_t *tie;    /* [T] 1 when the k-th and (k+1)-th choice scores are equal */
    uint8_t *escape; /* [T] chosen experts that lie in a dropped group (saturates at 255) */
};

/* Bytes of scratch that route_tokens needs for E experts. */
size_t route_scratch_bytes(int experts);

/* Routes T tokens. logits[T,E]; bias[E] is read only when gate->bias (f32: rounded from f64 by the
 * caller). scratch: route_scratch_bytes(E), 64-byte aligned, not shared between threads. The gate
 * must have passed gate_check and need no rows (gate_needs_rows). Returns -1 when all is well, else
 * the index t*E+e of the first logit that is NaN or infinite (then the outputs are undefined).
 * Borrows everything. */
int64_t route_tokens(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                     const float *bias, struct routes *out, void *scratch);

/* Which tokens of a trace a rectangle holds, for what is drawn per token. Borrowed. */
struct route_rows {
    uint64_t seed;
    int layer;            /* the model's own number */
    int64_t first;        /* number of the first token within the trace, the others following: */
    const int64_t *token; /* unless [T] numbers are here; else NULL */
    const int32_t *id;    /* [T] vocabulary id; only for hash layers */
};

/* A hash layer's own table (tid2eid of DeepSeek-V4). Borrowed. */
struct route_table {
    int32_t ids;           /* vocabulary ids 0..ids-1 have a row */
    const int32_t *expert; /* [ids,k] distinct experts in each row; NULL: there is no table */
};

/* What a gate with noise or a dtype routes on: logit[T,E] <- logits + noise, rounded; score[T,E] <-
 * their scores, rounded (NULL: not wanted; may be logit itself). rows: required by noise, else may
 * be NULL. The draw for a token and expert depends on seed, layer, token and expert alone. Give
 * both to route_scored. */
void route_blurred(const struct gate *gate, const struct route_rows *rows, int experts,
                   int64_t tokens, const float *logits, float *logit, float *score);

/* expert[T,k] <- the experts of a hash layer, by token id. table[ids,k]: of balanced-hash and
 * hash-table, all ids within it; NULL for hash. Weigh them with route_weights. */
void route_hashed(const struct gate *gate, const struct route_rows *rows, int experts,
                  int64_t tokens, const int32_t *table, int32_t *expert);

/* Empties the second slot of tokens whose second choice is not drawn (second=random), after the
 * weights and before any capacity; does nothing for other gates. expert[T,2], weight[T,2]. The draw
 * for a token depends on seed, layer and token alone. */
void route_thin(const struct gate *gate, const struct route_rows *rows, int64_t tokens,
                int32_t *expert, float *weight);

/* The scores alone: score[T,E] <- score function of logits[T,E], without bias and groups. Answers
 * as route_tokens; score and logits must not overlap. */
int64_t route_scores(enum gate_score score, int experts, int64_t tokens, const float *logits,
                     float *scores);

/* route_tokens for logits already known to be finite, and with scores[T,E] of the gate's own score
 * function already computed (NULL: computed here). Lets many gates share one pass over the scores:
 * the outputs are bit-equal to route_tokens. */
void route_scored(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                  const float *scores, const float *bias, struct routes *out, void *scratch);

/* weight[T,k] <- the weights of choices made before (by a gate that differs only in what comes
 * after the choice, or under any bias): expert[T,k] in order of selection. scores[T,E] as above,
 * required for order=score-topk. Not for sparsemixer. Bit-equal to route_tokens for its own
 * choices.
 */
void route_weights(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                   const float *scores, const int32_t *expert, float *weight);

/* Index of the first NaN or infinity in logits[n]; -1 when there is none. */
int64_t route_first_not_finite(const float *logits, int64_t n);

/* The CPU level in use ("avx512vbmi2", ..., "portable"); every level gives the same bits. */
const char *route_level(void);
/* The levels of this build, the best first (whether or not the machine can run them); NULL past
 * the last. */
const char *route_level_at(int i);
/* Forces a level, for tests and benchmarks; NULL returns to the best. False when this machine
 * cannot run it. Not to be called while other threads route. */
bool route_force_level(const char *name);

#endif
