/* choices_made.c - choices of experts from a law of loads or at random */
#include "sim/choices_made.h"

#include <stdio.h>
#include <string.h>

bool load_choice_find(const char *text, struct load_choice *load, struct err *err) {
    static const char *const names[] = {
#define X(e, name, help) name,
        LOAD_SOURCES(X)
#undef X
    };
    *load = (struct load_choice){.source = LOAD_OF_LAW};
    snprintf(load->name, sizeof load->name, "%s", text);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], text) == 0) load->source = (enum load_source)i;
    if (load->source != LOAD_OF_LAW) return true;
    struct err unused;
    if (strlen(text) < sizeof load->name && load_law_parse(text, &load->law, &unused) &&
        load->law.kind != LOAD_UNIFORM && !load->law.eplb)
        return true;
    return err_set(err, ERR_USAGE,
                   "load: found \"%.40s\", expected trace, resampled, uniform, balanced or "
                   "power_law_A",
                   text);
}

/* k distinct experts a token: the first k of a shuffle that goes on from token to token. */
static void choose_at_random(const struct load_group *g, struct rng *rng, uint16_t *expert,
                             int32_t *order) {
    for (int e = 0; e < g->experts; e++) order[e] = e;
    for (int64_t t = 0; t < g->tokens; t++)
        for (int j = 0; j < g->topk; j++) {
            int at = j + (int)rng_below(rng, (uint64_t)(g->experts - j));
            int32_t chosen = order[at];
            order[at] = order[j];
            order[j] = chosen;
            expert[t * g->topk + j] = (uint16_t)chosen;
        }
}

/* Column by column: an expert's tokens are neighbours, at most G of them. */
static void deal(const struct load_group *g, const int32_t *n, const int64_t *token,
                 uint16_t *expert) {
    int64_t position = 0;
    for (int e = 0; e < g->experts; e++)
        for (int32_t i = 0; i < n[e]; i++, position++)
            expert[token[position % g->tokens] * g->topk + position / g->tokens] = (uint16_t)e;
}

bool choices_make(const struct load_choice *load, const struct load_group *group, uint64_t seed,
                  uint16_t *expert, struct arena *arena, struct err *err) {
    int32_t *n = arena_alloc(arena, (size_t)group->experts, sizeof *n);
    double *scratch = arena_alloc(arena, (size_t)group->experts, sizeof *scratch);
    int64_t *token = arena_alloc(arena, (size_t)group->tokens, sizeof *token);
    if (!n || !scratch || !token) return err_memory(err, "choices");
    struct rng rng;
    rng_init(&rng, seed);
    if (load->source == LOAD_AT_RANDOM) {
        choose_at_random(group, &rng, expert, n);
        return true;
    }
    load_draw(&load->law, group, &rng, n, scratch);
    for (int64_t i = 0; i < group->tokens; i++) token[i] = i;
    rng_shuffle(&rng, token, group->tokens);
    deal(group, n, token, expert);
    return true;
}
