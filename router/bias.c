/* bias.c - the table of rules that move the correction bias after each balance batch */
#include "router/bias.h"

#include <string.h>

#include "base/str.h"

/* b += u sign(mean - n), sign(0) = 0. The mean kT/E is compared as n E <=> sum n, which is exact.
 */
static void update_sign(int experts, const int64_t *counts, double rate, double *bias) {
    int64_t total = 0;
    for (int e = 0; e < experts; e++) total += counts[e];
    for (int e = 0; e < experts; e++) {
        int64_t load = counts[e] * experts;
        if (load < total) bias[e] += rate;
        if (load > total) bias[e] -= rate;
    }
}

const struct bias_rule bias_rules[] = {
    {"none", "no bias: the gate runs without one", NULL, false, false, NULL},
    {"frozen", "the captured bias, never updated", "DeepSeek-V3 inference", false, true, NULL},
    {"sign", "b += u * sign(mean - n) after each batch",
     "Loss-Free Balancing, arXiv 2408.15664, Algorithm 1; DeepSeek-V3, arXiv 2412.19437 sec. 2.1.2",
     true, true, update_sign},
    {NULL, NULL, NULL, false, false, NULL}};

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
