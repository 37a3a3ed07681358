/* synthetic.c - drawing loads from laws, and the expected load of the hottest rank */
#include "sim/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "sim/placement.h"

bool load_law_parse(const char *text, struct load_law *law, struct err *err) {
    static const char power[] = "power_law_", eplb[] = "_eplb";
    char name[64];
    *law = (struct load_law){.kind = LOAD_BALANCED};
    snprintf(name, sizeof name, "%s", text);
    size_t len = strlen(name), tail = sizeof eplb - 1;
    law->eplb = len > tail && strcmp(name + len - tail, eplb) == 0;
    if (law->eplb) name[len - tail] = '\0';
    if (strcmp(name, "balanced") == 0) return true;
    law->kind = LOAD_UNIFORM;
    if (strcmp(name, "uniform") == 0) return true;
    law->kind = LOAD_POWER_LAW;
    if (strncmp(name, power, sizeof power - 1) == 0)
        return parse_real(name + sizeof power - 1, "power law exponent", 0, 10, &law->exponent,
                          err);
    return err_set(err, ERR_DATA,
                   "distribution: found \"%.60s\", expected balanced, uniform or power_law_A, with "
                   "or without _eplb",
                   text);
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
    if (g->slots && (g->slots < g->experts || g->slots % g->ranks != 0))
        return err_set(err, ERR_DATA,
                       "load: found %d slots for %d experts on %d ranks, expected a slot for every "
                       "expert and as many on every rank",
                       g->slots, g->experts, g->ranks);
    return true;
}

/* slot[S] <- tokens of each slot after EPLB: replicas share an expert's evenly. weight[E]. */
static bool place_load(const struct load_group *g, const int32_t *n, double *weight, int32_t *slot,
                       struct err *err) {
    const struct placement_shape shape = {g->experts, g->slots ? g->slots : g->experts, g->ranks, 1,
                                          1};
    struct placement placement;
    for (int e = 0; e < g->experts; e++) weight[e] = n[e];
    if (!placement_build(&placement, PLACE_EPLB_GLOBAL, &shape, weight, 0, err)) return false;
    for (int e = 0; e < g->experts; e++) {
        int first = placement.replica_first[e], replicas = placement.replica_first[e + 1] - first;
        for (int i = 0; i < replicas; i++)
            slot[placement.slot_of[first + i]] = n[e] / replicas + (i < n[e] % replicas);
    }
    placement_free(&placement);
    return true;
}

bool load_expect(const struct load_law *law, const struct load_group *group, int draws,
                 struct rank_load *load, struct err *err) {
    if (!check_group(group, err)) return false;
    const struct load_group slots = {.experts = group->slots ? group->slots : group->experts,
                                     .ranks = group->ranks};
    const struct load_group *held = law->eplb ? &slots : group; /* what ranks hold */
    int32_t *n = malloc((size_t)group->experts * sizeof *n), *counted = n;
    double *scratch = malloc((size_t)group->experts * sizeof *scratch);
    if (law->eplb) counted = malloc((size_t)slots.experts * sizeof *counted);
    bool ok = (n && counted && scratch) || err_memory(err, "load");
    if (law->kind != LOAD_POWER_LAW) draws = 1;
    struct rng rng;
    rng_init(&rng, seed_of(law, group));
    *load = (struct rank_load){0};
    for (int i = 0; ok && i < draws; i++) {
        struct rank_load one;
        load_draw(law, group, &rng, n, scratch);
        if (law->eplb) ok = place_load(group, n, scratch, counted, err);
        if (!ok) break;
        int local = held->experts / held->ranks;
        int hot = law->kind == LOAD_POWER_LAW ? load_hottest_rank(held, counted) : 0;
        rank_load_count(&one, counted + hot * local, local);
        load->active += one.active / draws;
        load->assignments += one.assignments / draws;
        for (int t = 0; t < LAYER_TILES; t++) load->padded[t] += one.padded[t] / draws;
    }
    if (counted != n) free(counted);
    free(n);
    free(scratch);
    return ok;
}
