/* gate.h - the gate specification: every published router as plain data, in one line of text
 *
 * Layer 2: calls base only; pure (no allocation, no I/O). The language:
 *
 *     sigmoid,bias,groups=8:4:top2sum,topk=8,norm=sum:1e-20,scale=2.5         (DeepSeek-V3)
 *
 * `gate_parse` reads it, `gate_print` writes it, and print(parse(x)) is canonical: parsing it again
 * gives an equal struct. A specification may begin with a preset (`deepseek-v3`) or `native`, whose
 * items the following ones override. Formulas and sources: router/MATH.md. */
#ifndef ROUTER_GATE_H
#define ROUTER_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* How a logit becomes a score. X(enum, text, help) */
#define GATE_SCORES(X)                                                                             \
    X(SCORE_SOFTMAX, "softmax", "exp(l - max) / sum over all experts")                             \
    X(SCORE_SIGMOID, "sigmoid", "1 / (1 + exp(-l))")                                               \
    X(SCORE_SQRTSOFTPLUS, "sqrtsoftplus", "sqrt(log(1 + exp(l)))")                                 \
    X(SCORE_RELU, "relu", "max(l, 0)")                                                             \
    X(SCORE_TANH, "tanh", "(exp(2l) - 1) / (exp(2l) + 1)")                                         \
    X(SCORE_IDENTITY, "identity", "the logit itself")

/* How a group is scored from its experts' choice scores. */
#define GATE_GROUP_RULES(X)                                                                        \
    X(GROUP_MAX, "max", "the best expert of the group (DeepSeek-V2)")                              \
    X(GROUP_TOP2SUM, "top2sum", "sum of the two best (DeepSeek-V3)")                               \
    X(GROUP_TOPSUM, "topsum", "sum of the k/KEEP best (Megatron-LM)")

/* Groups by what they are in a deployment: groups=NAME:N:KEEP is groups=N:KEEP:RULE.
 * X(NAME, RULE, help) */
#define GATE_GROUP_KINDS(X)                                                                        \
    X("device", "max", "at most M of D devices a token, by their best expert (DeepSeek-V2)")       \
    X("node", "topsum", "at most M of N nodes a token, by the sum of their k/M best (DeepSeek-V3)")

/* What experts of dropped groups are set to before the final top-k. */
#define GATE_FILLS(X)                                                                              \
    X(FILL_NEG_INF, "-inf", "never chosen")                                                        \
    X(FILL_ZERO, "0", "zero: may win over a negative choice score (a group escape)")

#define GATE_ORDERS(X)                                                                             \
    X(ORDER_SCORE_TOPK, "score-topk", "score all experts, then choose")                            \
    X(ORDER_TOPK_SCORE, "topk-score", "choose on logits, then score over the chosen (gpt-oss)")

#define GATE_NORMS(X)                                                                              \
    X(NORM_NONE, "none", "the scores as they are")                                                 \
    X(NORM_SUM, "sum", "divided by (their sum + EPS)")                                             \
    X(NORM_CLAMP, "clamp", "divided by max(their sum, MIN)")                                       \
    X(NORM_P, "p", "divided by their p-norm")

/* The type that a program keeps its router's tensors in; arithmetic within a step stays f32. */
#define GATE_DTYPES(X)                                                                             \
    X(DTYPE_F32, "f32", "nothing is rounded")                                                      \
    X(DTYPE_BF16, "bf16",                                                                          \
      "8 significant bits: logits, then scores, then each step of the weights")                    \
    X(DTYPE_F16, "f16", "11 significant bits: the same; what overflows becomes 65504")

/* How many of the k best a token keeps: their number may differ between tokens. */
#define GATE_CUTS(X)                                                                               \
    X(CUT_NONE, "none", "all k")                                                                   \
    X(CUT_TOPP, "topp", "the fewest best whose share of the sum of all scores reaches P")          \
    X(CUT_THRESHOLD, "threshold", "those whose choice score is above X; perhaps none")

/* Which second choices of a top-2 gate are kept. */
#define GATE_SECONDS(X)                                                                            \
    X(SECOND_ALL, "all", "every one")                                                              \
    X(SECOND_RANDOM, "random",                                                                     \
      "with probability min(1, 2 w_2 / (w_1 + w_2)), drawn by token from the seed (GShard)")

#define X(e, text, help) e,
enum gate_score { GATE_SCORES(X) };
enum gate_group_rule { GATE_GROUP_RULES(X) };
enum gate_fill { GATE_FILLS(X) };
enum gate_order { GATE_ORDERS(X) };
enum gate_norm { GATE_NORMS(X) };
enum gate_dtype { GATE_DTYPES(X) };
enum gate_cut { GATE_CUTS(X) };
enum gate_second { GATE_SECONDS(X) };
#undef X

/* Which function routes: the table of all of the above, or a named special one. `fn=llama4` is read
 * as `sigmoid,order=topk-score`, which it equals; that the weight scales the expert's input is the
 * engine's business and does not touch the router. */
#define GATE_FNS(X)                                                                                \
    X(GATE_TABLE, "table", "score, bias, groups, top-k, norm, scale as specified")                 \
    X(GATE_SPARSEMIXER, "sparsemixer",                                                             \
      "PhiMoE's top-2 with jitter threshold EPS, evaluation form")                                 \
    X(GATE_HASH, "hash", "k experts drawn by token id and SEED; the logits weigh them")            \
    X(GATE_BALANCED_HASH, "balanced-hash",                                                         \
      "k experts by token id, frequent ids first, each to the least loaded; the logits weigh "     \
      "them")                                                                                      \
    X(GATE_HASH_TABLE, "hash-table",                                                               \
      "k experts by token id from the layer's own table (tid2eid); the logits weigh them")

/* Who chooses whom. All but `token` look at a whole balance batch. */
#define GATE_ASSIGNS(X)                                                                            \
    X(ASSIGN_TOKEN, "token", "each token takes its k best experts")                                \
    X(ASSIGN_EXPERT, "expert", "each expert takes its C best tokens of the batch (expert choice)") \
    X(ASSIGN_SINKHORN, "sinkhorn",                                                                 \
      "the k best of exp(l) scaled to equal row and column sums, to within TOL")                   \
    X(ASSIGN_BASE, "base", "the best total score that exactly equal loads allow (BASE)")

/* Which choices an expert over its capacity gives up. */
#define GATE_DROPS(X)                                                                              \
    X(DROP_PROB, "prob", "those of lowest weight (Megatron-LM)")                                   \
    X(DROP_POSITION, "position", "the latest of the batch: first come, first served")              \
    X(DROP_PRIORITY, "priority", "as position, tokens of high weight served first (V-MoE)")

/* In which order position and priority serve choices. */
#define GATE_TURNS(X)                                                                              \
    X(TURN_CHOICE, "choice", "all first choices, then all second ones, ... (GShard)")              \
    X(TURN_TOKEN, "token", "token by token (Megatron-LM)")

/* How a capacity becomes whole tokens. */
#define GATE_ROUNDINGS(X)                                                                          \
    X(ROUND_CEIL, "ceil", "up (Megatron-LM, DeepSpeed)")                                           \
    X(ROUND_FLOOR, "floor", "down (Mesh-TensorFlow's Switch and GShard)")                          \
    X(ROUND_NEAREST, "nearest", "to the nearest (V-MoE)")

#define X(e, text, help) e,
enum gate_fn { GATE_FNS(X) };
enum gate_assign { GATE_ASSIGNS(X) };
enum gate_drop { GATE_DROPS(X) };
enum gate_turn { GATE_TURNS(X) };
enum gate_rounding { GATE_ROUNDINGS(X) };
#undef X

struct gate {
    enum gate_fn fn;
    float fn_arg; /* sparsemixer: EPS; hash: SEED, an integer */
    enum gate_score score;
    bool bias;       /* a correction bias is added for the choice only */
    int groups;      /* N; 0 or 1 = none (canonical: 0) */
    int groups_kept; /* KEEP; 0 when there are no groups */
    enum gate_group_rule group_rule;
    enum gate_fill fill;
    int topk; /* k >= 1 */
    enum gate_order order;
    enum gate_norm norm;
    float norm_arg; /* EPS of sum, MIN of clamp, P of p */
    float scale;
    enum gate_dtype dtype;
    bool dtype_logits; /* only logits are rounded; scores and weights are f32 */
    float noise;       /* standard deviation of Gaussian noise on the logits; 0 = none */
    enum gate_cut cut;
    float cut_arg; /* P of topp, X of threshold */
    enum gate_second second;
    bool seeded;  /* noise and the second choice are drawn from `seed`; else from the run's own */
    int32_t seed; /* >= 0 */

    /* what needs a whole balance batch */
    enum gate_assign assign;
    float tolerance; /* of sinkhorn: mean change of the column factors */
    int iterations;  /* of sinkhorn, at most */
    double capacity; /* an expert takes at most capacity * kT/E tokens; 0: all that come */
    int devices;     /* D: the experts of one of D contiguous equal blocks share its places, at most
                        capacity * kT/D choices; 0: each expert has its own */
    enum gate_drop drop;
    enum gate_turn turn;
    enum gate_rounding rounding;
};

/* assign=sinkhorn alone: Megatron-LM's tolerance; it has no limit of iterations. */
#define SINKHORN_TOLERANCE 1e-4f
enum { SINKHORN_ITERATIONS = 1000 };

enum { GATE_TEXT_BYTES = 256, GATE_MAX_TOPK = 256, GATE_MAX_EXPERTS = 65536 };

/* Reads one specification. `native` is what the capture used (NULL: the word is refused). The
 * result is checked in itself (not against a number of experts: gate_check). */
bool gate_parse(const char *text, const struct gate *native, struct gate *gate, struct err *err);
/* Is it possible in itself? gate_parse asks this last. */
bool gate_check_alone(const struct gate *gate, struct err *err);

/* Writes the canonical line, always NUL-terminated. */
void gate_print(const struct gate *gate, char text[static GATE_TEXT_BYTES]);

bool gate_equal(const struct gate *a, const struct gate *b);
/* Equal in what needs a whole balance batch (assign, capacity and their arguments). */
bool gate_equal_batch(const struct gate *a, const struct gate *b);

/* Can this gate route among `experts`? Refuses with the reason: k > E, groups that do not divide E,
 * kept groups that hold fewer than k experts, a gate that needs a bias where there is none. */
bool gate_check(const struct gate *gate, int experts, bool have_bias, struct err *err);
/* Must a whole balance batch be known before any of its tokens is routed? */
bool gate_needs_batch(const struct gate *gate);
/* Is no token's choice moved by a later token? False for what looks ahead in the batch. */
bool gate_is_causal(const struct gate *gate);
/* Tokens of a batch that an expert takes at most, C; T when there is no capacity. With devices: the
 * choices that a device takes. */
int64_t gate_capacity(const struct gate *gate, int experts, int64_t tokens);

/* The same as gate_check for a gate that routes live: what it chooses must follow from one token
 * (its logits, its id, its number) and be the same when asked again. Refuses besides: gates that
 * need a whole balance batch, fn=balanced-hash, and draws without a seed. */
bool gate_check_live(const struct gate *gate, int experts, bool have_bias, struct err *err);
/* The same for the gate of a foreign trace: it must follow from the logits of one token, with k
 * experts for each. Refuses besides: noise, second=random, hash layers, topp and threshold. */
bool gate_check_native(const struct gate *gate, int experts, bool have_bias, struct err *err);

/* Does it choose by token ids? */
bool gate_hashes(const struct gate *gate);
/* Does it see other logits or scores than the recorded ones in f32 (noise, dtype)? */
bool gate_blurs(const struct gate *gate);
/* Does a choice hang on which token it is: must route_rows say? */
bool gate_needs_rows(const struct gate *gate);
/* Can a score be negative? */
bool gate_score_negative(enum gate_score score);

/* How many of its best experts a group's score sums (1 for max, 2 for top2sum, k/KEEP for topsum;
 * MATH.md section 2). Only for gates with groups. */
int gate_summed_experts(const struct gate *gate);

/* How many slots a token's row of choices has: k, or E where experts choose their tokens. */
int gate_slots(const struct gate *gate, int experts);
/* May a row hold fewer experts than slots? */
bool gate_leaves_slots(const struct gate *gate);

/* True when the two provably choose the same experts for any logits, given that they see the same
 * bias values (law 5): they differ only in what cannot move a choice. Reasoning in MATH.md. */
bool gate_same_choice(const struct gate *a, const struct gate *b);

/* Presets, for `steelyard gates`; ends with name == NULL. */
struct gate_preset {
    const char *name;
    const char *spec;
    const char *source; /* where the rule was read */
};
extern const struct gate_preset gate_presets[];

#endif
