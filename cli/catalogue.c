/* catalogue.c - how a bias rule is driven, what says whether it works, and what cannot be replayed
 */
#include "cli/catalogue.h"

#include <stddef.h>

const struct catalogue_row catalogue_rows[] = {
    {"bias-option", "letters",
     "of a balance batch: n = tokens that chose expert e, m = k T / E, u = the rate; all act from "
     "the next batch on",
     "-", "router/MATH.md section 5"},
    {"bias-option", "bias-rate",
     "u; 0.001@0,0@80% = steps at shares of the tokens; auto = the least mean MaxVio of a batch, "
     "by "
     "a grid of half decades, then golden section in log u",
     "a rule with a rate", "steps: DeepSeek-V3, arXiv 2412.19437 sec. 4.2 (0.001, then 0)"},
    {"bias-option", "bias-start", "zero: b = 0 (multiplicative: 1); captured: the trained bias",
     "captured: a captured bias", "arXiv 2408.15664, Algorithm 1 (zero)"},
    {"bias-option", "batch-tokens",
     "T of a balance batch, the window that a rule sees: a micro-batch, or the global batch of all "
     "ranks",
     "-", "arXiv 2408.15664 fig. 5; global batch: arXiv 2501.11873; Megatron-LM"},
    {"dynamics", "level", "mean MaxVio of the second half of the full batches", "replay --dynamics",
     "analysis/dynamics.h"},
    {"dynamics", "settling_batches",
     "batches until MaxVio stays within level + max(abs(start - level) / 10, the largest excess of "
     "the second half); none while its halves differ by more than abs(start - level) / 10",
     "replay --dynamics; 4 batches", "analysis/dynamics.h"},
    {"dynamics", "overshoot",
     "- min over batches of (x . x_1) / (x_1 . x_1), x = n / m - 1 of all experts, x_1 of the "
     "first "
     "batch",
     "replay --dynamics; 4 batches", "analysis/dynamics.h"},
    {"dynamics", "amplitude",
     "sqrt(2 variance of n / m - 1 over the second half, mean over experts), noise included",
     "replay --dynamics; 4 batches", "analysis/dynamics.h"},
    {"dynamics", "period",
     "2 (pairs of batches) / (changes of sign of n / m - 1), in batches: 2 = every batch turns the "
     "load over, 4 = noise",
     "replay --dynamics; 4 batches", "analysis/dynamics.h"},
    {"dynamics", "drift",
     "between domains p and q: sum abs(p - q) / 2, and H((p + q) / 2) - (H(p) + H(q)) / 2 in bits",
     "plot RESULT.db domain_drift; sql RESULT.db domain_drift VARIANT",
     "analysis/drift.h; Lin 1991"},
    {"reference", "optimum",
     "max over assignments with k experts a token and at most ceil(kT/E) tokens an expert of the "
     "mean over tokens of (sum of chosen s) / (sum of the k highest s)",
     "replay --optimum; one full balance batch", "min-cost flow, exact: router/assign.h"},
    {"not-replayable", "jitter", "multiplies the router's input: logits do not determine it",
     "a forward pass in training", "Switch, arXiv 2101.03961 sec. 2.4; Mixtral's code"},
    {"not-replayable", "gate-residual",
     "adds a learned map of the previous layer's logits: the map is no part of a trace",
     "the model's weights", "MoE++, arXiv 2410.07348"},
    {"not-replayable", "expert-scale",
     "a learned factor per expert on the weights: choices and load replay exactly, weights do not",
     "the model's weights", "transformers gemma4"},
    {"not-replayable", "zero-experts",
     "LongCat's rule holds the bias of identity experts and counts the others alone: which experts "
     "are identity ones is no part of a trace, so rule longcat takes all alike",
     "the number of identity experts", "LongCat-Flash"},
    {"not-replayable", "loss-gradients",
     "what a balancing loss (Switch, sequence-wise, z, ReMoE's L1, SimBal, LPR) does to the "
     "router: "
     "its value replays (--losses), its effect needs training",
     "training", "Switch, arXiv 2101.03961; ReMoE, arXiv 2412.14711; LPR, arXiv 2506.21328"},
    {NULL, NULL, NULL, NULL, NULL}};
