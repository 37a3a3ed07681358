/* synthetic.c - drawing loads from laws, and the expected load of the hottest rank */
#include "sim/synthetic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

bool load_law_parse(const char *text, struct load_law *law, struct err *err) {
    static const char power[] = "power_law_";
    *law = (struct load_law){.kind = LOAD_BALANCED};
    if (strcmp(text, "balanced") == 0) return true;
    law->kind = LOAD_UNIFORM;
    if (strcmp(text, "uniform") == 0) return true;
    law->kind = LOAD_POWER_LAW;
    if (strncmp(text, power, sizeof power - 1) == 0)
        return parse_real(text + sizeof power - 1, "power law exponent", 0, 10, &law->exponent,
                          err);
    return err_set(err, ERR_DATA,
                   "distribution: found \"%s\", expected balanced, uniform or power_law_A", text);
}

static void draw_balanced(const struct load_group *g, int32_t *n) {
    int64_t stride = (g->experts + g->topk - 1) / g->topk;
    for (int64_t t = 0; t < g->tokens; t++) {
        int64_t first = g->tokens < stride ? t * stride / g->tokens : t;
        for (int j = 0; j < g->topk; j++) n[(first + j * stride) % g->experts]++;
    }
}

static void draw_uniform(const struct load_group *g, int32_t *n) {
    int64_t each = g->tokens * g->topk / g->experts;
    int local = g->experts / g->ranks;
    int64_t some = g->tokens * g->topk / g->ranks;
    for (int e = 0; e < g->experts; e++) n[e] = (int32_t)(each > 0 ? each : e % local < some);
}

/* The least (sign > 0) or most (sign < 0) loaded expert of a rank. */
static int extreme(const int32_t *n, int first, int count, int sign) {
    int best = first;
    for (int e = first + 1; e < first + count; e++)
        if (sign > 0 ? n[e] < n[best] : n[e] > n[best]) best = e;
    return best;
}

static void draw_power_law(const struct load_group *g, double exponent, struct rng *rng, int32_t *n,
                           double *x) {
    bool many = g->tokens * g->topk > g->experts;
    double lo = many ? 1 : 0.01, hi = many ? fmax(0.8 * (double)g->tokens, 1) : 2;
    double power = 1 - exponent, sum = 0;
    bool is_log = fabs(power) < 1e-12;
    double low = is_log ? log(lo) : pow(lo, power), high = is_log ? log(hi) : pow(hi, power);
    for (int e = 0; e < g->experts; e++) {
        double at = (high - low) * rng_uniform(rng) + low;
        x[e] = is_log ? exp(at) : exp(log(at) / power);
        sum += x[e];
    }
    int64_t rest = g->tokens * g->topk;
    double scale = (double)rest / sum;
    for (int e = 0; e < g->experts; e++) {
        n[e] = (int32_t)fmin(rint(x[e] * scale), (double)g->tokens);
        rest -= n[e];
    }
    int sign = rest > 0 ? 1 : -1, local = g->experts / g->ranks;
    for (int r = 0; rest != 0; r = (r + 1) % g->ranks) {
        int e = extreme(n, r * local, local, sign);
        int64_t after = (int64_t)n[e] + sign;
        if (after < 0 || after > g->tokens) continue; /* another rank has room: k <= E */
        n[e] = (int32_t)after;
        rest -= sign;
    }
}

void load_draw(const struct load_law *law, const struct load_group *group, struct rng *rng,
               int32_t *n, double *scratch) {
    memset(n, 0, (size_t)group->experts * sizeof *n);
    if (law->kind == LOAD_BALANCED)
        draw_balanced(group, n);
    else if (law->kind == LOAD_UNIFORM)
        draw_uniform(group, n);
    else
        draw_power_law(group, law->exponent, rng, n, scratch);
}

int load_hottest_rank(const struct load_group *group, const int32_t *n) {
    int local = group->experts / group->ranks, best = 0;
    int64_t most = -1;
    for (int r = 0; r < group->ranks; r++) {
        int64_t sum = 0;
        for (int e = r * local; e < (r + 1) * local; e++) sum += n[e];
        if (sum > most) most = sum, best = r;
    }
    return best;
}

static uint64_t seed_of(const struct load_law *law, const struct load_group *g) {
    uint64_t bits, seed = UINT64_C(0x5354454c59415244);
    memcpy(&bits, &law->exponent, sizeof bits);
    const uint64_t parts[] = {bits, (uint64_t)g->experts, (uint64_t)g->topk, (uint64_t)g->ranks,
                              (uint64_t)g->tokens};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        seed = (seed ^ parts[i]) * UINT64_C(0x9e3779b97f4a7c15), seed ^= seed >> 29;
    return seed;
}

static bool check_group(const struct load_group *g, struct err *err) {
    if (g->experts < 1 || g->topk < 1 || g->topk > g->experts || g->ranks < 1 ||
        g->experts % g->ranks != 0)
        return err_set(err, ERR_DATA,
                       "load: found %d experts, top-%d, %d ranks, expected k <= E and ranks that "
                       "divide E",
                       g->experts, g->topk, g->ranks);
    if (g->tokens < 1 || g->tokens > INT32_MAX / g->topk)
        return err_set(err, ERR_DATA, "load: found %lld tokens, expected 1 to %d",
                       (long long)g->tokens, INT32_MAX / g->topk);
    return true;
}

bool load_expect(const struct load_law *law, const struct load_group *group, int draws,
                 struct rank_load *load, struct err *err) {
    if (!check_group(group, err)) return false;
    int32_t *n = malloc((size_t)group->experts * sizeof *n);
    double *scratch = malloc((size_t)group->experts * sizeof *scratch);
    bool ok = (n && scratch) || err_memory(err, "load");
    if (law->kind != LOAD_POWER_LAW) draws = 1;
    struct rng rng;
    rng_init(&rng, seed_of(law, group));
    *load = (struct rank_load){0};
    for (int i = 0; ok && i < draws; i++) {
        struct rank_load one;
        load_draw(law, group, &rng, n, scratch);
        int local = group->experts / group->ranks;
        int hot = law->kind == LOAD_POWER_LAW ? load_hottest_rank(group, n) : 0;
        rank_load_count(&one, n + hot * local, local);
        load->active += one.active / draws;
        load->assignments += one.assignments / draws;
        for (int t = 0; t < LAYER_TILES; t++) load->padded[t] += one.padded[t] / draws;
    }
    free(n);
    free(scratch);
    return ok;
}
