/* optimum.c - exact assignment under equal loads, by successive shortest paths over experts */
#include "sim/optimum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

struct search {
    const struct assignment_problem *p;
    int64_t capacity;
    uint8_t *has;      /* [E,T] 1 where the token has chosen the expert */
    double *value;     /* [E,T] the problem's, transposed: tokens are scanned per expert */
    int64_t *load;     /* [E] */
    double *cost;      /* [E,E] of the cheapest move i -> j */
    int64_t *mover;    /* [E,E] the token that makes it; -1 = none */
    double *potential; /* [E] */
    double *distance;  /* [E] */
    int *parent;       /* [E] expert before on the chain; -1 = a start */
    bool *done;        /* [E] */
};

static bool allocate(struct search *s, struct arena *arena, struct err *err) {
    size_t experts = (size_t)s->p->experts;
    s->has = arena_alloc(arena, (size_t)s->p->tokens, experts);
    s->value = arena_alloc(arena, (size_t)s->p->tokens, experts * sizeof *s->value);
    s->load = arena_alloc(arena, experts, sizeof *s->load);
    s->cost = arena_alloc(arena, experts, experts * sizeof *s->cost);
    s->mover = arena_alloc(arena, experts, experts * sizeof *s->mover);
    s->potential = arena_alloc(arena, experts, sizeof *s->potential);
    s->distance = arena_alloc(arena, experts, sizeof *s->distance);
    s->parent = arena_alloc(arena, experts, sizeof *s->parent);
    s->done = arena_alloc(arena, experts, sizeof *s->done);
    return (s->has && s->value && s->load && s->cost && s->mover && s->potential && s->distance &&
            s->parent && s->done) ||
           err_memory(err, "assignment");
}

static bool holds(const struct search *s, int64_t t, int e) { return s->has[e * s->p->tokens + t]; }

static double value_at(const struct search *s, int64_t t, int e) {
    return s->value[e * s->p->tokens + t];
}

/* Each token takes its k best values, the lower index first among equals. */
static void take_best(struct search *s) {
    int experts = s->p->experts;
    for (int64_t t = 0; t < s->p->tokens; t++) {
        for (int e = 0; e < experts; e++)
            s->value[e * s->p->tokens + t] = s->p->value[t * experts + e];
        for (int i = 0; i < s->p->topk; i++) {
            int best = -1;
            for (int e = 0; e < experts; e++)
                if (!holds(s, t, e) && (best < 0 || value_at(s, t, e) > value_at(s, t, best)))
                    best = e;
            s->has[best * s->p->tokens + t] = 1;
            s->load[best]++;
        }
    }
}

/* Offers token t for the move i -> j. */
static void offer(struct search *s, int i, int j, int64_t t) {
    int64_t at = (int64_t)i * s->p->experts + j;
    double cost = value_at(s, t, i) - value_at(s, t, j);
    if (cost >= s->cost[at]) return;
    s->cost[at] = cost;
    s->mover[at] = t;
}

/* The cheapest move i -> j over all tokens. */
static void price_move(struct search *s, int i, int j) {
    int64_t at = (int64_t)i * s->p->experts + j;
    const uint8_t *has_i = s->has + i * s->p->tokens, *has_j = s->has + j * s->p->tokens;
    s->cost[at] = INFINITY;
    s->mover[at] = -1;
    for (int64_t t = 0; t < s->p->tokens; t++)
        if (has_i[t] && !has_j[t]) offer(s, i, j, t);
}

/* Token t has given up i for j: what moves that makes and unmakes. */
static void reprice(struct search *s, int64_t t, int i, int j) {
    int experts = s->p->experts;
    for (int e = 0; e < experts; e++) {
        if (e != i && s->mover[(int64_t)i * experts + e] == t) price_move(s, i, e);
        if (!holds(s, t, e)) {
            offer(s, j, e, t);
            continue;
        }
        if (e == j) continue;
        if (s->mover[(int64_t)e * experts + j] == t) price_move(s, e, j);
        offer(s, e, i, t);
    }
}

static int nearest(const struct search *s) {
    int best = -1;
    for (int e = 0; e < s->p->experts; e++)
        if (!s->done[e] && (best < 0 || s->distance[e] < s->distance[best])) best = e;
    return best >= 0 && isfinite(s->distance[best]) ? best : -1;
}

/* Dijkstra from all experts over capacity to the nearest one under it; -1 when there is none. */
static int find_chain(struct search *s) {
    int experts = s->p->experts;
    for (int e = 0; e < experts; e++) {
        s->distance[e] = s->load[e] > s->capacity ? 0 : INFINITY;
        s->parent[e] = -1;
        s->done[e] = false;
    }
    for (int i = nearest(s); i >= 0; i = nearest(s)) {
        s->done[i] = true;
        if (s->load[i] < s->capacity) return i;
        const double *cost = s->cost + (int64_t)i * experts;
        for (int j = 0; j < experts; j++) {
            double reduced = cost[j] + s->potential[i] - s->potential[j];
            double d = s->distance[i] + (reduced > 0 ? reduced : 0); /* below 0 by rounding only */
            if (s->done[j] || !(d < s->distance[j])) continue;
            s->distance[j] = d;
            s->parent[j] = i;
        }
    }
    return -1;
}

/* Moves one choice along the chain that ends at expert `last`, from its end. */
static void move_along(struct search *s, int last) {
    int first = last;
    for (int j = last; s->parent[j] >= 0; j = first) {
        first = s->parent[j];
        int64_t t = s->mover[(int64_t)first * s->p->experts + j];
        s->has[first * s->p->tokens + t] = 0;
        s->has[j * s->p->tokens + t] = 1;
        reprice(s, t, first, j);
    }
    s->load[first]--;
    s->load[last]++;
}

static void settle(struct search *s) {
    int experts = s->p->experts;
    for (int i = 0; i < experts; i++)
        for (int j = 0; j < experts; j++)
            if (i != j) price_move(s, i, j);
    for (int e = 0; e < experts; e++) s->cost[(int64_t)e * experts + e] = INFINITY;
    for (int last = find_chain(s); last >= 0; last = find_chain(s)) {
        double length = s->distance[last];
        for (int e = 0; e < experts; e++)
            s->potential[e] += s->done[e] && s->distance[e] < length ? s->distance[e] : length;
        move_along(s, last);
    }
}

static void read_out(const struct search *s, double *best, int32_t *chosen) {
    int experts = s->p->experts;
    *best = 0;
    for (int64_t t = 0; t < s->p->tokens; t++) {
        for (int e = 0, i = 0; e < experts; e++) {
            if (!holds(s, t, e)) continue;
            *best += value_at(s, t, e);
            if (chosen) chosen[t * s->p->topk + i++] = e;
        }
    }
}

bool optimum_assign(const struct assignment_problem *problem, double *best, int32_t *chosen,
                    struct err *err) {
    struct search s = {.p = problem};
    struct arena arena;
    arena_init(&arena, "assignment");
    s.capacity = (problem->tokens * problem->topk + problem->experts - 1) / problem->experts;
    bool ok = allocate(&s, &arena, err);
    if (ok) {
        take_best(&s);
        settle(&s);
        read_out(&s, best, chosen);
    }
    arena_free(&arena);
    return ok;
}
