/* bias.c - the table of rules that move the correction bias after each balance batch */
#include "router/bias.h"

#include <string.h>

#include "base/str.h"
#include "router/bias_rules.h"

const struct bias_rule bias_rules[] = {
    {.name = "none", .summary = "no bias: the gate runs without one"},
    {.name = "frozen",
     .summary = "the captured bias, never updated",
     .source = "DeepSeek-V3 inference",
     .adds_bias = true},
    {.name = "sign",
     .summary = "b += u sign(m - n)",
     .source = "Loss-Free Balancing, arXiv 2408.15664, Algorithm 1; DeepSeek-V3, arXiv 2412.19437 "
               "sec. 2.1.2; Megatron-LM",
     .needs_rate = true,
     .rate = 1e-3,
     .adds_bias = true,
     .update = bias_update_sign},
    {.name = "centred-sign",
     .summary = "d = u sign(m - n); b += d - mean(d) over experts",
     .source = "torchtitan; Ling 2.0's training script",
     .needs_rate = true,
     .rate = 1e-3,
     .adds_bias = true,
     .centred = true,
     .update = bias_update_centred_sign},
    {.name = "proportional",
     .summary = "b += u (m - n) / m",
     .source = "arXiv 2408.15664 sec. 4.3 (b += u e; the paper does not state the unit of e)",
     .needs_rate = true,
     .rate = 1e-3,
     .adds_bias = true,
     .update = bias_update_proportional},
    {.name = "multiplicative",
     .summary = "the score times b is compared, b from 1; b += u sign(m - n)",
     .source = "arXiv 2408.15664 sec. 4.3",
     .needs_rate = true,
     .rate = 1e-3,
     .adds_bias = true,
     .multiplies = true,
     .update = bias_update_sign},
    {.name = "smebu",
     .summary = "v = (m - n) / m; d = u tanh(2 v); d -= mean(d); M = (M + d) / 2; b += M",
     .source = "SMEBU, arXiv 2602.17004 (beta .5, kappa 2)",
     .needs_rate = true,
     .rate = 5e-4,
     .adds_bias = true,
     .centred = true,
     .state = 1,
     .update = bias_update_smebu},
    {.name = "longcat",
     .summary = "b += u (1/E - n / (kT))",
     .source = "LongCat-Flash; here every expert is an FFN expert (no zero experts)",
     .needs_rate = true,
     .rate = 1e-2,
     .adds_bias = true,
     .update = bias_update_longcat},
    {.name = "quantile",
     .summary = "p_t = (k+1)-th largest of s + b over experts; y = (q+1)-th largest of s - p over "
                "tokens, q = kT/E; b += u (mean(y) - y - b)",
     .source = "Megatron-LM quantile balancing; Kimi K3 report, arXiv 2607.24653 sec. 2.3.3",
     .needs_rate = true,
     .rate = 1,
     .adds_bias = true,
     .needs_scores = true,
     .centred = true,
     .state = 1,
     .update = bias_update_quantile},
    {.name = "bip",
     .summary =
         "4 rounds of p_t = max(0, (k+1)-th largest of s + b), b = -max(0, (q+1)-th largest of "
         "s - p over tokens), q = kT/E",
     .source = "BIP-based balancing, arXiv 2502.15451, Algorithm 1; there for the same batch",
     .adds_bias = true,
     .needs_scores = true,
     .update = bias_update_bip},
    {.name = NULL}};

const struct bias_rule *bias_rule_find(const char *name, struct err *err) {
    struct str list = {0};
    for (const struct bias_rule *rule = bias_rules; rule->name; rule++) {
        if (strcmp(rule->name, name) == 0) {
            str_free(&list);
            return rule;
        }
        str_printf(&list, " %s", rule->name);
    }
    err_set(err, ERR_USAGE, "bias rule: found \"%.40s\", expected one of:%s", name,
            str_text(&list));
    str_free(&list);
    return NULL;
}

void bias_round(int experts, const double *bias, float *rounded) {
    for (int e = 0; e < experts; e++) rounded[e] = (float)bias[e];
}
