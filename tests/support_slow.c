/* support_slow.c - a slow replay written from the formulas alone */
#include "tests/support_slow.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

void slow_gate_text(const struct slow_gate *g, char *text, int size) {
    char groups[64] = "", norm[64];
    if (g->groups)
        snprintf(groups, sizeof groups, ",groups=%d:%d:%s,fill=%s", g->groups, g->kept, g->rule,
                 g->fill_zero ? "0" : "-inf");
    if (is(g->norm, "none"))
        snprintf(norm, sizeof norm, "none");
    else
        snprintf(norm, sizeof norm, "%s:%.9g", g->norm, g->norm_arg);
    snprintf(text, (size_t)size, "%s,%s%s,topk=%d,order=%s,norm=%s,scale=%.9g", g->score,
             g->bias ? "bias" : "nobias", groups, g->topk, g->late ? "topk-score" : "score-topk",
             norm, g->scale);
}

struct slow_gate slow_gate_random(struct rng *rng, int experts, bool bias) {
    static const char *const scores[] = {"softmax", "sigmoid", "sqrtsoftplus", "identity"};
    static const char *const rules[] = {"max", "top2sum", "topsum"};
    static const char *const norms[] = {"none", "sum", "clamp", "p"};
    struct slow_gate g = {.bias = bias, .rule = "max", .scale = 1 + (double)rng_below(rng, 4) / 2};
    g.late = rng_below(rng, 5) == 0;
    g.score = scores[rng_below(rng, 3)];
    g.norm = norms[rng_below(rng, 4)];
    g.norm_arg = is(g.norm, "p") ? 1 + (double)rng_below(rng, 3) : is(g.norm, "none") ? 0 : 0.125;
    g.topk = 1 + (int)rng_below(rng, (uint64_t)(experts < 8 ? experts : 8));
    int groups = 1 << (1 + rng_below(rng, 3));
    if (rng_below(rng, 3) == 0 || experts % groups || experts / groups < 2) return g;
    g.groups = groups;
    g.rule = rules[rng_below(rng, 3)];
    g.fill_zero = rng_below(rng, 2);
    g.kept = 1 + (int)rng_below(rng, (uint64_t)groups);
    while (g.kept * (experts / groups) < g.topk) g.kept++;
    if (is(g.rule, "topsum") && g.topk < g.kept) g.rule = "max";
    return g;
}

static double score_of(const char *name, double l) {
    if (is(name, "sigmoid")) return 1 / (1 + exp(-l));
    if (is(name, "sqrtsoftplus")) return sqrt(log1p(exp(l)));
    return l;
}

/* s[n] <- scores of l[n]. */
static void scores_of(const char *name, const double *l, int n, double *s) {
    double sum = 0;
    for (int i = 0; i < n; i++) s[i] = is(name, "softmax") ? exp(l[i]) : score_of(name, l[i]);
    for (int i = 0; i < n; i++) sum += s[i];
    for (int i = 0; i < n && is(name, "softmax"); i++) s[i] /= sum;
}

/* The highest of x[n] that is not taken; lower index first. */
static int best_of(const double *x, int n, const bool *taken) {
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || x[i] > x[best])) best = i;
    return best;
}

static double sum_of_best(const double *x, int n, int m) {
    bool taken[SLOW_EXPERTS] = {false};
    double sum = 0;
    for (int i = 0; i < m; i++) {
        int b = best_of(x, n, taken);
        taken[b] = true;
        sum += x[b];
    }
    return sum;
}

static void note_margin(double a, double b, double *margin) {
    if (a != b && isfinite(a) && isfinite(b) && fabs(a - b) < *margin) *margin = fabs(a - b);
}

struct slow_choice {
    int expert[SLOW_TOPK];
    double weight[SLOW_TOPK], score[SLOW_EXPERTS];
    bool tie;
    int escapes;
};

static void drop_groups(const struct slow_gate *g, int experts, double *choice, bool *dropped,
                        double *margin) {
    int size = experts / g->groups;
    int m = is(g->rule, "max") ? 1 : is(g->rule, "top2sum") ? 2 : g->topk / g->kept;
    double score[SLOW_EXPERTS];
    bool taken[SLOW_EXPERTS] = {false};
    for (int j = 0; j < g->groups; j++) score[j] = sum_of_best(choice + j * size, size, m);
    int last = 0;
    for (int j = 0; j < g->kept; j++) taken[last = best_of(score, g->groups, taken)] = true;
    int next = best_of(score, g->groups, taken);
    if (next >= 0) note_margin(score[last], score[next], margin);
    for (int e = 0; e < experts; e++) {
        dropped[e] = !taken[e / size];
        if (dropped[e]) choice[e] = g->fill_zero ? 0 : -INFINITY;
    }
}

static void weigh(const struct slow_gate *g, struct slow_choice *c) {
    double sum = 0, power = 0, divisor = 1;
    for (int i = 0; i < g->topk; i++) {
        sum += c->weight[i];
        power += pow(fabs(c->weight[i]), g->norm_arg);
    }
    if (is(g->norm, "sum")) divisor = sum + g->norm_arg;
    if (is(g->norm, "clamp")) divisor = fmax(sum, g->norm_arg);
    if (is(g->norm, "p")) divisor = pow(power, 1 / g->norm_arg);
    for (int i = 0; i < g->topk; i++) c->weight[i] = c->weight[i] / divisor * g->scale;
}

static void choose(const struct slow_gate *g, int experts, const float *logits, const double *bias,
                   struct slow_choice *c, double *margin) {
    double l[SLOW_EXPERTS] = {0}, x[SLOW_EXPERTS], chosen[SLOW_TOPK] = {0};
    bool dropped[SLOW_EXPERTS] = {false}, taken[SLOW_EXPERTS] = {false};
    for (int e = 0; e < experts; e++) l[e] = (double)logits[e];
    scores_of(g->score, l, experts, c->score);
    for (int e = 0; e < experts; e++)
        x[e] = (g->late ? l[e] : c->score[e]) + (g->bias ? (double)(float)bias[e] : 0);
    if (g->groups) drop_groups(g, experts, x, dropped, margin);
    c->escapes = 0;
    for (int i = 0; i < g->topk; i++) {
        int b = best_of(x, experts, taken);
        if (i > 0) note_margin(x[c->expert[i - 1]], x[b], margin);
        taken[c->expert[i] = b] = true;
        c->escapes += dropped[b];
        chosen[i] = l[b];
        c->weight[i] = c->score[b];
    }
    int next = best_of(x, experts, taken);
    c->tie = next >= 0 && x[next] == x[c->expert[g->topk - 1]];
    if (next >= 0) note_margin(x[c->expert[g->topk - 1]], x[next], margin);
    if (g->late) scores_of(g->score, chosen, g->topk, c->weight);
    weigh(g, c);
}

static double max_over_mean(const double *n, int count) {
    double sum = 0, max = 0;
    for (int i = 0; i < count; i++) {
        sum += n[i];
        max = fmax(max, n[i]);
    }
    return max / (sum / count);
}

static void rank_loads(const double *n, int experts, int ranks, double *load) {
    for (int r = 0; r < ranks; r++) load[r] = 0;
    for (int e = 0; e < experts; e++) load[e / (experts / ranks)] += n[e];
}

static void end_batch(const struct slow_setup *s, double *batch, double *bias, bool full,
                      struct slow_result *out) {
    double load[SLOW_EXPERTS], mean = 0;
    for (int e = 0; e < s->experts; e++) mean += batch[e] / s->experts;
    out->batch_maxvio[out->batches] = max_over_mean(batch, s->experts) - 1;
    rank_loads(batch, s->experts, s->ranks, load);
    out->batch_efficiency[out->batches++] = 1 / max_over_mean(load, s->ranks);
    for (int e = 0; e < s->experts && full; e++)
        bias[e] += batch[e] < mean - 1e-9 ? s->rate : batch[e] > mean + 1e-9 ? -s->rate : 0;
    memset(batch, 0, SLOW_EXPERTS * sizeof *batch);
}

static void measures(const struct slow_setup *s, struct slow_result *out) {
    double total = 0, square = 0, pairs = 0, load[SLOW_EXPERTS];
    int experts = s->experts;
    for (int e = 0; e < experts; e++) total += out->tokens[e];
    double mean = total / experts;
    out->load_min = INFINITY;
    for (int e = 0; e < experts; e++) {
        double n = out->tokens[e], p = n / total;
        square += (n - mean) * (n - mean);
        if (n > 0) out->entropy -= p * log(p);
        for (int f = 0; f < experts; f++) pairs += fabs(n - out->tokens[f]);
        out->load_min = fmin(out->load_min, n);
        out->load_max = fmax(out->load_max, n);
    }
    out->maxvio_global = out->load_max / mean - 1;
    out->cv = sqrt(square / experts) / mean;
    out->gini = pairs / (2 * (double)experts * experts * mean);
    rank_loads(out->tokens, experts, s->ranks, load);
    out->rank_maxvio = max_over_mean(load, s->ranks) - 1;
    int full = (int)(s->tokens / s->batch_tokens), used = full > 0 ? full : out->batches;
    for (int b = 0; b < used; b++) {
        out->maxvio_batch += out->batch_maxvio[b] / used;
        out->efficiency += out->batch_efficiency[b] / used;
    }
}

static double overlap(const struct slow_choice *a, int ka, const struct slow_choice *b, int kb) {
    double both = 0;
    for (int i = 0; i < ka; i++)
        for (int j = 0; j < kb; j++) both += a->expert[i] == b->expert[j];
    return both / ka;
}

static void add_token(const struct slow_setup *s, const struct slow_choice *c,
                      const struct slow_choice *native, double *batch, struct slow_result *out) {
    int k = s->gate.topk;
    double kept = 0;
    for (int i = 0; i < k; i++) {
        out->tokens[c->expert[i]]++;
        batch[c->expert[i]]++;
        out->weight[c->expert[i]] += c->weight[i];
        kept += c->score[c->expert[i]];
    }
    out->ties += c->tie;
    out->escapes += c->escapes;
    out->agreement += overlap(c, k, native, s->native.topk) / (double)s->tokens;
    out->mass += kept / sum_of_best(c->score, s->experts, k) / (double)s->tokens;
}

void slow_replay(const struct slow_setup *s, struct slow_result *out) {
    double bias[SLOW_EXPERTS] = {0}, own[SLOW_EXPERTS] = {0}, batch[SLOW_EXPERTS] = {0};
    memset(out, 0, sizeof *out);
    out->margin = INFINITY;
    for (int e = 0; e < s->experts && s->captured; e++) {
        own[e] = (double)s->captured[e];
        if (s->from_captured) bias[e] = own[e];
    }
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *row = s->logits + (s->order ? s->order[t] : t) * s->experts;
        struct slow_choice c, native;
        choose(&s->gate, s->experts, row, bias, &c, &out->margin);
        choose(&s->native, s->experts, row, own, &native, &out->margin);
        add_token(s, &c, &native, batch, out);
        bool full = (t + 1) % s->batch_tokens == 0;
        if (full || t + 1 == s->tokens) end_batch(s, batch, bias, full, out);
    }
    memcpy(out->bias, bias, sizeof bias);
    measures(s, out);
}
