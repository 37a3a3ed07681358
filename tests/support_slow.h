/* support_slow.h - a slow replay written from the formulas alone: the oracle of the replay's tests
 *
 * Plain C in double precision, sharing no code with router/, sim/ and analysis/. Because the
 * program scores in f32, a choice may legitimately differ where two choice scores nearly tie:
 * `margin` is the smallest distance that decided anything, and a test discards trials where it is
 * tiny. */
#ifndef TESTS_SUPPORT_SLOW_H
#define TESTS_SUPPORT_SLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"

enum { SLOW_EXPERTS = 64, SLOW_TOPK = 16, SLOW_BATCHES = 4096 };

struct slow_gate {
    const char *score; /* softmax sigmoid sqrtsoftplus relu tanh identity */
    bool bias;
    int groups, kept; /* 0 = none */
    const char *rule; /* max top2sum topsum */
    bool fill_zero;
    int topk;
    bool late;        /* order=topk-score */
    const char *norm; /* none sum clamp p */
    double norm_arg, scale;
    const char *cut; /* NULL = none; topp threshold */
    double cut_arg;
    const char *dtype; /* NULL = f32; bf16 f16 */
    bool dtype_logits;
    double noise;
    bool hash;
    int hash_seed;
    bool second; /* kept at random */
};

/* The gate as the program's one-line language. */
void slow_gate_text(const struct slow_gate *gate, char *text, int size);
/* A random gate for E experts; bias as given. */
struct slow_gate slow_gate_random(struct rng *rng, int experts, bool bias);
/* Gives it a cut: topp or threshold. */
void slow_gate_cut(struct rng *rng, struct slow_gate *gate);
/* Gives it some of what is rare: relu, tanh, a cut, a dtype, noise, a hash layer, a second choice
 * at random. */
void slow_gate_vary(struct rng *rng, struct slow_gate *gate);

/* A token, for what is drawn per token. */
struct slow_token {
    uint64_t seed, layer, token, id;
};

struct slow_choice {
    int n; /* experts chosen */
    int expert[SLOW_TOPK];
    double weight[SLOW_TOPK], score[SLOW_EXPERTS];
    bool tie;
    int escapes;
};

/* One token; *margin falls to the smallest distance that decided anything. token may be NULL where
 * the gate draws nothing. */
void slow_choose(const struct slow_gate *gate, int experts, const float *logits, const double *bias,
                 const struct slow_token *token, struct slow_choice *choice, double *margin);

struct slow_setup {
    struct slow_gate gate, native;
    int experts, ranks;
    int64_t tokens, batch_tokens;
    const float *logits;   /* [T,E] */
    const int64_t *order;  /* [T] or NULL */
    const float *captured; /* [E] for the native gate and for start "captured", or NULL */
    bool from_captured;    /* the bias starts there */
    double rate;           /* sign rule; 0 = never updated */
};

struct slow_result {
    double tokens[SLOW_EXPERTS], weight[SLOW_EXPERTS], bias[SLOW_EXPERTS];
    double maxvio_global, maxvio_batch, cv, gini, entropy, load_min, load_max;
    double experts_mean, unrouted;
    double ties, escapes, agreement, mass, rank_maxvio, efficiency;
    int batches;
    double batch_maxvio[SLOW_BATCHES], batch_efficiency[SLOW_BATCHES];
    double margin;
};

void slow_replay(const struct slow_setup *setup, struct slow_result *out);

#endif
