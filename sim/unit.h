/* unit.h - one routing that several variants share: chunk in, choices and sums out
 *
 * Layer 4 (sim), private to the replay. A unit is one gate with one bias trajectory at one layer;
 * the variants that only measure along another axis (batch size without updates, ranks) share it. A
 * hidden unit serves the others: the native choices, or the k highest scores. Letters: n tokens of
 * a chunk, E experts, k chosen, D documents. */
#ifndef SIM_UNIT_H
#define SIM_UNIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "router/bias.h"
#include "router/gate.h"
#include "router/route.h"
#include "sim/batches.h"
#include "sim/losses.h"
#include "sim/same_as.h"
#include "sim/token_ids.h"

struct unit {
    struct choice_law law;
    struct gate gate;             /* effective */
    const struct bias_rule *rule; /* NULL: static, or moved by the leader */
    struct rate_schedule rate;
    int64_t total_tokens;
    double *bias;   /* [E]; NULL when the gate has none */
    float *rounded; /* [E] as it meets the scores */
    double *state;  /* [rule->state, E] */
    float *product; /* [n,E] scores times bias, where the rule multiplies */
    float *seen;    /* [batch,E] scores of the open batch, where the rule needs them */
    float *sorting; /* [2,batch] scratch of such a rule */
    void *batch;    /* route_batch_bytes, where the gate needs whole batches */
    int experts;
    const struct route_rows *rows; /* of the chunk in flight; of noise and hash layers */
    float *logit, *score; /* [n,E] what a gate with noise or a dtype sees; NULL: what is recorded */
    const int32_t *table; /* [vocabulary,k] of balanced-hash and hash-table */
    int slots;            /* width of a row of choices: k unless the gate gives tokens more */
    bool sparse;          /* rows may hold empty slots (ROUTE_NONE) */
    struct unit *leader; /* earlier unit with the very same choices and bias: only weights differ */
    struct unit *like;   /* earlier unit with the same gate and a bias of its own; or NULL */
    float *used;         /* [E] the rounded bias of the chunk's first tokens; only where it moves */
    int64_t used_tokens; /* how many those were */

    /* of the chunk in flight */
    int32_t *expert; /* [n,slots] */
    float *weight;   /* [n,slots] */
    uint8_t *tie;    /* [n] */
    uint8_t *escape; /* [n] */
    double *held;    /* [n] sum of its experts' scores, where it holds; else scratch */
    bool holds;      /* it is some unit's top */

    /* over all tokens so far */
    bool hidden; /* keeps no sums */
    int64_t tokens;
    int64_t *count;    /* [E]; of what fills all slots only when closed */
    double *received;  /* [E] */
    int64_t *document; /* [D,E] or NULL */
    int64_t ties, escapes, agreed;
    int64_t kept;        /* choices that are not empty */
    int64_t unrouted;    /* tokens without any expert */
    int most;            /* experts of the token that has most */
    double agreed_share; /* sum over tokens of the share of their own number, where it differs */
    double mass;         /* sum over tokens of the share of score mass kept */
    double *shift, *first_sum,
        *second_sum; /* [slots] of the weight at each rank, less its first value */

    struct losses *losses; /* NULL when not asked */
    int32_t *asked;        /* [n,k] choices before a capacity dropped some: what losses look at;
                              NULL: the same as expert */
    int64_t *asked_count;  /* [E] of them over all tokens */

    struct batches **batches; /* [batch_sets] one per variant; the first drives the updates */
    int batch_sets;

    struct unit *top; /* hidden or not: the k highest of the same score; NULL: this one is it */
    const struct unit *twin; /* earlier unit of claimed equal load, not bit for bit; or NULL */
    int64_t parted;          /* tokens where it and twin differ */
};

/* Makes gate, bias and buffers for chunks of `chunk` tokens; everything from the arena.
 * captured[E]: the captured bias or NULL. documents = 0: no loads per document. */
struct unit_setup {
    const struct variant *variant;
    const struct variant_layer *at;
    int64_t total_tokens, documents, chunk;
    const float *captured;
    int experts;
    bool hidden, losses;
    const struct token_ids *ids_of_tokens;
    const struct route_rows *rows; /* filled for each chunk, where unit_needs_rows */
    bool ids;                      /* choices come from outside (unit_take) */
    struct unit *leader;           /* or NULL */
};
bool unit_init(struct unit *unit, const struct unit_setup *setup, struct arena *arena,
               struct err *err);

/* Would these two route alike if their biases were the same? Both must have a bias that moves. */
bool unit_like(const struct unit *a, const struct unit *b);

/* Does it route on scores of all experts (which units can then share)? */
bool unit_takes_scores(const struct unit *unit);

/* Routes n tokens of finite logits[n,E] (a whole balance batch, or the last one, where the gate
 * needs that), feeding the balance batches and moving the bias after each full one. scores[n,E]: of
 * the unit's score function, when unit_takes_scores; else not read. */
void unit_route(struct unit *unit, const float *logits, const float *scores, int64_t n,
                void *scratch);

/* Takes n choices that were made elsewhere: expert[n,k], weight[n,k] or NULL. */
void unit_take(struct unit *unit, const int32_t *expert, const float *weight, int64_t n);

/* What a chunk needs besides its choices. */
struct unit_context {
    int64_t n;
    const float *logits; /* [n,E] */
    bool ordered;        /* documents come one after the other */
    const float *scores; /* [n,E] of the unit's score function; NULL when mass is kept fully */
    const struct unit *native;  /* its choices of this chunk */
    const uint8_t *native_flag; /* [n,E] 1 where native chose; made where another unit counts */
    const int64_t *document;    /* [n] document of each token; NULL when not counted */
    uint64_t *mask;             /* [words] zeroed scratch, E bits */
};
/* Before any unit adds its sums: held[n] of a unit that holds. */
void unit_hold(struct unit *unit, const float *scores, int64_t n);
/* Adds the chunk to the sums, token by token. */
void unit_accumulate(struct unit *unit, const struct unit_context *context);
/* After the last chunk, its batches closed: what the batches have counted becomes the count. */
void unit_close(struct unit *unit);

#endif
