/* assign.c - exact assignment under equal loads: prices first, then chains of moves */
#include "router/assign.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "router/parts.h"

enum { PRICE_ROUNDS = 12 };

/* N = T + dummies; token-major indices are t, expert-major arrays [E,N]. */
struct search {
    const struct assignment_problem *p;
    int64_t all;       /* N */
    int64_t capacity;  /* C */
    uint8_t *has;      /* [E,N] 1 where the token has chosen the expert */
    double *value;     /* [E,N] the problem's, transposed; 0 for dummies */
    int32_t *holder;   /* [E,N] the tokens of an expert, the first load[e] used */
    int64_t *load;     /* [E] */
    double *cost;      /* [E,E] of the cheapest move i -> j */
    int64_t *mover;    /* [E,E] the token that makes it; -1 = none */
    double *potential; /* [E] minus the price */
    double *distance;  /* [E] */
    int *parent;       /* [E] expert before on the chain; -1 = a start */
    bool *done;        /* [E] */
    double *limit;     /* [N] scratch: what a token's (k+1)-th best brings */
    double *sorted;    /* [max(N,E)] scratch */
};

static struct search lay_out(struct parts *parts, int64_t tokens, int experts) {
    struct search s = {.all = tokens + experts};
    size_t n = (size_t)s.all, e = (size_t)experts;
    bool fits = e == 0 || n <= SIZE_MAX / 64 / e;
    size_t cells = fits ? n * e : SIZE_MAX;
    s.has = parts_take(parts, cells, sizeof *s.has);
    s.value = parts_take(parts, cells, sizeof *s.value);
    s.holder = parts_take(parts, cells, sizeof *s.holder);
    s.load = parts_take(parts, e, sizeof *s.load);
    s.cost = parts_take(parts, e * e, sizeof *s.cost);
    s.mover = parts_take(parts, e * e, sizeof *s.mover);
    s.potential = parts_take(parts, e, sizeof *s.potential);
    s.distance = parts_take(parts, e, sizeof *s.distance);
    s.parent = parts_take(parts, e, sizeof *s.parent);
    s.done = parts_take(parts, e, sizeof *s.done);
    s.limit = parts_take(parts, n, sizeof *s.limit);
    s.sorted = parts_take(parts, n, sizeof *s.sorted);
    return s;
}

size_t assign_bytes(int64_t tokens, int experts) {
    struct parts parts = {0};
    lay_out(&parts, tokens, experts);
    return parts.used;
}

static bool holds(const struct search *s, int64_t t, int e) { return s->has[e * s->all + t]; }

static double value_at(const struct search *s, int64_t t, int e) {
    return s->value[e * s->all + t];
}

/* How many experts a token takes: dummies fill one place each. */
static int wanted(const struct search *s, int64_t t) { return t < s->p->tokens ? s->p->topk : 1; }

/* ---- prices */

/* The value that would stand at place `rank` (from 0) if x[n] were sorted falling; reorders x. */
static double select_falling(double *x, int64_t n, int64_t rank) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        double pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i > j) break;
            double swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        if (rank <= j)
            high = j;
        else if (rank >= i)
            low = i;
        else
            break;
    }
    return x[rank];
}

/* limit[t] <- the (k+1)-th best of value less price: what a token could have instead. */
static void set_limits(struct search *s) {
    int experts = s->p->experts, k = s->p->topk;
    for (int64_t t = 0; t < s->p->tokens; t++) {
        const double *row = s->p->value + t * experts;
        for (int e = 0; e < experts; e++) s->sorted[e] = row[e] + s->potential[e];
        s->limit[t] = select_falling(s->sorted, experts, k < experts ? k : k - 1);
    }
}

/* Each expert's price <- between the gain of its C-th and of its next best token. */
static void set_prices(struct search *s) {
    int64_t tokens = s->p->tokens, last = s->capacity - 1;
    for (int e = 0; e < s->p->experts && s->capacity < tokens; e++) {
        const double *value = s->value + e * s->all;
        for (int64_t t = 0; t < tokens; t++) s->sorted[t] = value[t] - s->limit[t];
        double inside = select_falling(s->sorted, tokens, last);
        double outside = select_falling(s->sorted, tokens, last + 1);
        s->potential[e] = -0.5 * (inside + outside);
    }
}

/* ---- the first choices */

static void take(struct search *s, int64_t t, int e) {
    s->has[e * s->all + t] = 1;
    s->holder[e * s->all + s->load[e]++] = (int32_t)t;
}

static void give_up(struct search *s, int64_t t, int e) {
    int32_t *holder = s->holder + e * s->all;
    int64_t at = 0;
    while (holder[at] != (int32_t)t) at++;
    holder[at] = holder[--s->load[e]];
    s->has[e * s->all + t] = 0;
}

/* Each token takes its best at these prices, the lower index first among equals. */
static void take_best(struct search *s) {
    int experts = s->p->experts;
    for (int64_t t = 0; t < s->all; t++) {
        for (int i = 0; i < wanted(s, t); i++) {
            int best = -1;
            double most = -INFINITY;
            for (int e = 0; e < experts; e++) {
                double gain = value_at(s, t, e) + s->potential[e];
                if (holds(s, t, e) || (best >= 0 && !(gain > most))) continue;
                best = e;
                most = gain;
            }
            take(s, t, best);
        }
    }
}

/* ---- moves */

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
    const int32_t *holder = s->holder + i * s->all;
    s->cost[at] = INFINITY;
    s->mover[at] = -1;
    for (int64_t h = 0; h < s->load[i]; h++)
        if (!holds(s, holder[h], j)) offer(s, i, j, holder[h]);
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

/* ---- chains */

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
    for (int j = last; s->parent[j] >= 0;) {
        int i = s->parent[j];
        int64_t t = s->mover[(int64_t)i * s->p->experts + j];
        give_up(s, t, i);
        take(s, t, j);
        reprice(s, t, i, j);
        j = i;
    }
}

static void settle(struct search *s) {
    int experts = s->p->experts;
    for (int i = 0; i < experts; i++) {
        for (int j = 0; j < experts; j++)
            if (i != j) price_move(s, i, j);
        s->cost[(int64_t)i * experts + i] = INFINITY;
        s->mover[(int64_t)i * experts + i] = -1;
    }
    for (int last = find_chain(s); last >= 0; last = find_chain(s)) {
        double length = s->distance[last];
        for (int e = 0; e < experts; e++)
            s->potential[e] += s->done[e] && s->distance[e] < length ? s->distance[e] : length;
        move_along(s, last);
    }
}

/* ---- all of it */

static void prepare(struct search *s) {
    int experts = s->p->experts;
    size_t cells = (size_t)s->all * (size_t)experts;
    memset(s->has, 0, cells);
    memset(s->load, 0, (size_t)experts * sizeof *s->load);
    for (int e = 0; e < experts; e++) {
        s->potential[e] = 0;
        for (int64_t t = 0; t < s->all; t++)
            s->value[e * s->all + t] = t < s->p->tokens ? s->p->value[t * experts + e] : 0;
    }
}

double assign_exact(const struct assignment_problem *problem, int32_t *chosen, void *memory) {
    struct parts parts = {.memory = memory};
    struct search s = lay_out(&parts, problem->tokens, problem->experts);
    int64_t choices = problem->tokens * problem->topk;
    double best = 0;
    s.p = problem;
    s.capacity = (choices + problem->experts - 1) / problem->experts;
    s.all = problem->tokens + s.capacity * problem->experts - choices;
    prepare(&s);
    for (int round = 0; round < PRICE_ROUNDS; round++) {
        set_limits(&s);
        set_prices(&s);
    }
    take_best(&s);
    settle(&s);
    for (int64_t t = 0; t < problem->tokens; t++) {
        for (int e = 0, i = 0; e < problem->experts; e++) {
            if (!holds(&s, t, e)) continue;
            best += value_at(&s, t, e);
            if (chosen) chosen[t * problem->topk + i++] = e;
        }
    }
    return best;
}
