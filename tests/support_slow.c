/* support_slow.c - a slow replay written from the formulas alone */
#include "tests/support_slow.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

void slow_gate_text(const struct slow_gate *g, char *text, int size) {
    char groups[64] = "", norm[64], rare[128] = "";
    size_t used = 0;
    if (g->groups)
        snprintf(groups, sizeof groups, ",groups=%d:%d:%s,fill=%s", g->groups, g->kept, g->rule,
                 g->fill_zero ? "0" : "-inf");
    if (is(g->norm, "none"))
        snprintf(norm, sizeof norm, "none");
    else
        snprintf(norm, sizeof norm, "%s:%.9g", g->norm, g->norm_arg);
#define RARE(...) used += (size_t)snprintf(rare + used, sizeof rare - used, __VA_ARGS__)
    if (g->cut) RARE(",%s=%.9g", g->cut, g->cut_arg);
    if (g->dtype) RARE(",dtype=%s%s", g->dtype, g->dtype_logits ? ":logits" : "");
    if (g->noise > 0) RARE(",noise=%.9g", g->noise);
    if (g->second) RARE(",second=random");
    if (g->hash) RARE(",fn=hash:%d", g->hash_seed);
#undef RARE
    snprintf(text, (size_t)size, "%s,%s%s,topk=%d,order=%s,norm=%s,scale=%.9g%s", g->score,
             g->bias ? "bias" : "nobias", groups, g->topk, g->late ? "topk-score" : "score-topk",
             norm, g->scale, rare);
}

void slow_gate_cut(struct rng *rng, struct slow_gate *g) {
    static const double shares[] = {0.125, 0.375, 0.625, 0.875};
    bool shares_exist = !g->late && !is(g->score, "tanh") && !is(g->score, "identity");
    if (shares_exist && rng_below(rng, 2)) {
        g->cut = "topp";
        g->cut_arg = shares[rng_below(rng, 4)];
    } else {
        g->cut = "threshold";
        g->cut_arg = g->late ? (double)rng_below(rng, 5) - 1 : (double)rng_below(rng, 4) / 4;
    }
}

void slow_gate_vary(struct rng *rng, struct slow_gate *g) {
    if (rng_below(rng, 4) == 0) {
        g->score = rng_below(rng, 2) ? "relu" : "tanh";
        if (is(g->score, "tanh")) g->norm = "none"; /* a sum near 0 would divide */
        if (is(g->score, "tanh")) g->norm_arg = 0;
    }
    if (rng_below(rng, 8) == 0 && !g->bias) {
        g->hash = true;
        g->groups = g->kept = 0;
        g->fill_zero = false;
        g->hash_seed = (int)rng_below(rng, 1000);
    } else if (rng_below(rng, 2)) {
        slow_gate_cut(rng, g);
    }
    if (rng_below(rng, 3) == 0) {
        g->dtype = rng_below(rng, 2) ? "bf16" : "f16";
        g->dtype_logits = rng_below(rng, 2);
    }
    if (rng_below(rng, 4) == 0 && !g->hash) g->noise = 0.25 * (1 + (double)rng_below(rng, 4));
    g->second = g->topk == 2 && !g->hash && !g->cut && !is(g->score, "tanh");
}

/* ---- rounding and noise */

/* To `significant` bits, multiples of 2^(lowest - significant + 1) at least; ties to even. */
static double to_bits(double x, int significant, int lowest, double largest) {
    if (x == 0) return x;
    int exponent = ilogb(x) < lowest ? lowest : ilogb(x);
    double unit = ldexp(1, exponent - significant + 1), q = fabs(x) / unit, low = floor(q);
    double up = q - low;
    double r = (low + (up > 0.5 || (up == 0.5 && fmod(low, 2) != 0))) * unit;
    return copysign(fmin(r, largest), x);
}

static double rounded(const char *dtype, double x) {
    if (!dtype) return x;
    if (is(dtype, "bf16")) return to_bits(x, 8, -126, 0x1.fep127);
    return to_bits(x, 11, -14, 65504);
}

/* The same for a value that the program knows to about `error`: a result that hangs on it is no
 * result. */
static double rounded_value(const char *dtype, double x, double error, double *margin) {
    double slack = fabs(x) * error + 1e-12;
    if (dtype && rounded(dtype, x - slack) != rounded(dtype, x + slack)) *margin = 0;
    return rounded(dtype, (double)(float)x);
}

/* z with Phi(z) = u: Newton's steps from a logistic start. */
static double quantile(double u) {
    double z = log(u / (1 - u)) / 1.702;
    for (int i = 0; i < 20; i++) {
        double density = exp(-z * z / 2) / sqrt(2 * acos(-1.0));
        double step = (0.5 * erfc(-z / sqrt(2)) - u) / density;
        z -= step > 1 ? 1 : step < -1 ? -1 : step;
        if (fabs(step) < 1e-12) break;
    }
    return z;
}

static double uniform_of(const struct slow_token *t, int what) {
    uint64_t bits = rng_at(rng_at(rng_at(t->seed, t->layer), t->token), (uint64_t)what);
    return ((double)(bits >> 11) + 0.5) * 0x1p-53;
}

static double noise_of(const struct slow_token *t, int expert) {
    return quantile(uniform_of(t, expert));
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
    if (is(name, "relu")) return fmax(l, 0);
    if (is(name, "tanh")) return tanh(l);
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
    /* equal sums of unequal parts: sigmoid(1) + sigmoid(-1) and 2 sigmoid(0) */
    if (next >= 0 && m > 1 && score[last] == score[next]) *margin = 0;
    for (int e = 0; e < experts; e++) {
        dropped[e] = !taken[e / size];
        if (dropped[e]) choice[e] = g->fill_zero ? 0 : -INFINITY;
    }
}

static void weigh(const struct slow_gate *g, struct slow_choice *c) {
    const char *dtype = g->dtype_logits ? NULL : g->dtype;
    double sum = 0, power = 0, divisor = 1;
    for (int i = 0; i < c->n; i++) {
        sum += c->weight[i];
        power += pow(fabs(c->weight[i]), g->norm_arg);
    }
    if (is(g->norm, "sum")) divisor = sum + g->norm_arg;
    if (is(g->norm, "clamp")) divisor = fmax(sum, g->norm_arg);
    if (is(g->norm, "p")) divisor = pow(power, 1 / g->norm_arg);
    if (divisor == 0) divisor = 1;
    for (int i = 0; i < c->n; i++)
        c->weight[i] = rounded(dtype, rounded(dtype, c->weight[i] / divisor) * g->scale);
}

/* expert[k]: each the r-th of those that are left. */
static void hash_experts(const struct slow_gate *g, int experts, const struct slow_token *t,
                         struct slow_choice *c) {
    int left[SLOW_EXPERTS];
    uint64_t key = rng_at(rng_at((uint64_t)g->hash_seed, t->layer), t->id);
    for (int e = 0; e < experts; e++) left[e] = e;
    for (int i = 0; i < g->topk; i++) {
        int r = (int)(rng_at(key, (uint64_t)i) % (uint64_t)(experts - i));
        c->expert[i] = left[r];
        for (int j = r; j + 1 < experts - i; j++) left[j] = left[j + 1];
    }
    c->n = g->topk;
}

/* How many of the k best stay; choice score x[E], c->expert[k] in order. */
static int count_kept(const struct slow_gate *g, int experts, const double *x,
                      const struct slow_choice *c, double *margin) {
    double total = 0, sum = 0;
    int n = 0;
    if (!g->cut) return g->topk;
    if (is(g->cut, "threshold")) {
        for (; n < g->topk && x[c->expert[n]] > g->cut_arg; n++) continue;
        for (int i = 0; i < g->topk; i++) note_margin(x[c->expert[i]], g->cut_arg, margin);
        return n;
    }
    for (int e = 0; e < experts; e++) total += c->score[e];
    if (total == 0) return 1;
    for (n = 0; n < g->topk;) {
        sum += c->score[c->expert[n++]];
        note_margin(sum / total, g->cut_arg, margin);
        if (sum >= g->cut_arg * total) break;
    }
    return n;
}

static void choose_best(const struct slow_gate *g, int experts, double *x, struct slow_choice *c,
                        double *margin) {
    bool dropped[SLOW_EXPERTS] = {false}, taken[SLOW_EXPERTS] = {false};
    int order[SLOW_EXPERTS], k = g->topk, wanted = k < experts ? k + 1 : k;
    if (g->groups) drop_groups(g, experts, x, dropped, margin);
    for (int i = 0; i < wanted; i++) {
        taken[order[i] = best_of(x, experts, taken)] = true;
        if (i > 0) note_margin(x[order[i - 1]], x[order[i]], margin);
        if (i < k) c->expert[i] = order[i];
    }
    c->n = count_kept(g, experts, x, c, margin);
    c->tie = c->n > 0 && c->n < wanted && x[order[c->n]] == x[order[c->n - 1]];
    c->escapes = 0;
    for (int i = 0; i < c->n; i++) c->escapes += dropped[c->expert[i]];
}

/* The second expert stays with probability 2 w_2 / (w_1 + w_2). */
static void thin(const struct slow_gate *g, const struct slow_token *token, struct slow_choice *c,
                 double *margin) {
    double share = 2 * c->weight[1] / (c->weight[0] + c->weight[1]);
    double u = uniform_of(token, 65536), slack = g->dtype && !g->dtype_logits ? 0.05 : 1e-5;
    if (c->weight[0] + c->weight[1] == 0) share = 0;
    if (fabs(u - share) < slack) *margin = 0;
    if (u >= share) c->n = 1;
}

void slow_choose(const struct slow_gate *g, int experts, const float *logits, const double *bias,
                 const struct slow_token *token, struct slow_choice *c, double *margin) {
    const char *dtype = g->dtype_logits ? NULL : g->dtype;
    double l[SLOW_EXPERTS] = {0}, x[SLOW_EXPERTS], chosen[SLOW_TOPK] = {0};
    memset(c, 0, sizeof *c);
    for (int e = 0; e < experts; e++) {
        double noise = g->noise > 0 ? g->noise * noise_of(token, e) : 0;
        l[e] = rounded_value(g->dtype, (double)logits[e] + noise, noise != 0 ? 3e-6 : 0, margin);
    }
    scores_of(g->score, l, experts, c->score);
    for (int e = 0; e < experts; e++) {
        c->score[e] = rounded_value(dtype, c->score[e], 1e-6, margin);
        x[e] = (g->late ? l[e] : c->score[e]) + (g->bias ? (double)(float)bias[e] : 0);
    }
    if (g->hash)
        hash_experts(g, experts, token, c);
    else
        choose_best(g, experts, x, c, margin);
    for (int i = 0; i < c->n; i++) {
        chosen[i] = l[c->expert[i]];
        c->weight[i] = c->score[c->expert[i]];
    }
    if (g->late) {
        scores_of(g->score, chosen, c->n, c->weight);
        for (int i = 0; i < c->n; i++) c->weight[i] = rounded(dtype, c->weight[i]);
    }
    weigh(g, c);
    if (g->second) thin(g, token, c, margin);
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
    out->batch_maxvio[out->batches] = mean > 0 ? max_over_mean(batch, s->experts) - 1 : 0;
    rank_loads(batch, s->experts, s->ranks, load);
    out->batch_efficiency[out->batches++] = mean > 0 ? 1 / max_over_mean(load, s->ranks) : 1;
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
    if (total == 0) out->entropy = NAN;
    out->experts_mean = total / (double)s->tokens;
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

/* Share of a's experts that are b's too; 0 where it has none. */
static double overlap(const struct slow_choice *a, const struct slow_choice *b) {
    double both = 0;
    for (int i = 0; i < a->n; i++)
        for (int j = 0; j < b->n; j++) both += a->expert[i] == b->expert[j];
    return a->n > 0 ? both / a->n : 0;
}

static void add_token(const struct slow_setup *s, const struct slow_choice *c,
                      const struct slow_choice *native, double *batch, struct slow_result *out) {
    int k = s->gate.topk;
    double kept = 0;
    for (int i = 0; i < c->n; i++) {
        out->tokens[c->expert[i]]++;
        batch[c->expert[i]]++;
        out->weight[c->expert[i]] += c->weight[i];
        kept += c->score[c->expert[i]];
    }
    out->unrouted += (c->n == 0) / (double)s->tokens;
    out->ties += c->tie;
    out->escapes += c->escapes;
    double most = sum_of_best(c->score, s->experts, k);
    out->agreement += overlap(c, native) / (double)s->tokens;
    out->mass += (most != 0 ? kept / most : 1) / (double)s->tokens;
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
        slow_choose(&s->gate, s->experts, row, bias, NULL, &c, &out->margin);
        slow_choose(&s->native, s->experts, row, own, NULL, &native, &out->margin);
        add_token(s, &c, &native, batch, out);
        bool full = (t + 1) % s->batch_tokens == 0;
        if (full || t + 1 == s->tokens) end_batch(s, batch, bias, full, out);
    }
    memcpy(out->bias, bias, sizeof bias);
    measures(s, out);
}
