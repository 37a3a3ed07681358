/* losses.h - what the training losses for balance would be worth on a replay's choices
 *
 * Layer 4 (sim): calls router and base. Values only (their gradients cannot be replayed), each in
 * the normalisation of its source, with coefficient 1. Letters: T tokens, E experts, k chosen, D
 * ranks, n_i tokens that chose expert i, P_i = mean over tokens of s_i / (sum of s + 1e-20), which
 * for softmax is the probability (Megatron-LM's form for the others).
 *
 * Where a capacity drops choices, n_i and c_i count them before, as the sources do; t_d counts what
 * is sent.
 *
 * X(name, formula, source) */
#ifndef SIM_LOSSES_H
#define SIM_LOSSES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "router/gate.h"

#define LOSSES(X)                                                                                  \
    X(switch, "E sum n_i/(kT) P_i; 1 at balance",                                                  \
      "Switch, arXiv 2101.03961 eq. 4 (there k = 1); DeepSeekMoE's expert loss; Megatron-LM")      \
    X(gshard, "E sum c_i/T P_i, c_i the first choices; 1 at balance",                              \
      "GShard, arXiv 2006.16668, Algorithm 1, times E^2")                                          \
    X(hf, "E sum n_i/T P_i of one layer; k at balance",                                            \
      "transformers load_balancing_loss_func (there over all layers joined)")                      \
    X(sequence, "mean over documents of sum E/(kT) u_i P_i, u_i the k highest scores, no bias",    \
      "DeepSeek-V3, arXiv 2412.19437 eq. 17-20; here a document is a sequence")                    \
    X(device, "sum over ranks of (mean f_i) (sum P_i), f_i = E/(kT) n_i",                          \
      "DeepSeekMoE, arXiv 2401.06066 eq. 15-17")                                                   \
    X(communication,                                                                               \
      "sum over ranks of D/(MT) t_d sum P_i, t_d tokens sent to d, M = min(k, D, groups kept)",    \
      "DeepSeek-V2, arXiv 2405.04434 eq. 29-31")                                                   \
    X(z, "mean of (log sum exp l)^2", "ST-MoE, arXiv 2202.08906 eq. 5")

#define X(name, formula, source) LOSS_##name,
enum loss { LOSSES(X) LOSS_COUNT };
#undef X
const char *loss_name(enum loss loss);

/* Sums over tokens for one routing. */
struct losses {
    int experts, topk, places; /* places: M of the communication loss before ranks */
    int64_t tokens;
    double *mass;   /* [E] sum of normalised scores */
    int64_t *first; /* [E] first choices */
    double z;
    /* the open document, and what the closed ones gave; none when tokens come shuffled */
    int64_t document, document_tokens, documents;
    double *document_mass;    /* [E] */
    int64_t *document_counts; /* [E] of the k highest unbiased scores */
    double sequence;
};

/* Memory from the arena; false when there is none. */
bool losses_init(struct losses *l, struct arena *arena, const struct gate *gate, int experts);

/* One token: score[E] of its gate's function and logit[E], its first choice (-1: none left), the
 * experts of its k highest scores, and the document it belongs to (-1: not in order). */
struct losses_token {
    const float *score, *logit;
    int32_t first;
    const int32_t *top;
    int64_t document;
};
void losses_add(struct losses *l, const struct losses_token *token);

/* All values, given the loads count[E] and sent[ranks], the tokens that have an expert on a rank.
 */
void losses_values(struct losses *l, const int64_t *count, int ranks, const int64_t *sent,
                   double value[static LOSS_COUNT]);

#endif
