/* auto_rate.c - finds the constant rate of a bias rule that balances batches best
 *
 * A candidate is the variant itself with another rate, so that what is found is what will be run.
 */
#include "sim/auto_rate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRID = 15 }; /* half decades from 1e-6 to 10 */

struct search {
    const struct source *source;
    const struct replay_options *options;
    const struct progress *progress;
    const struct variant *model; /* whose rate is looked for */
    const struct variant_layer *at;
    uint64_t seed;
    int replays;
};

struct objectives {
    double sum[GRID]; /* of maxvio_batch over layers */
};

static bool add_objective(void *context, const struct replay_row *row, struct err *err) {
    struct objectives *objectives = context;
    (void)err;
    objectives->sum[row->measures.variant - 1] += row->measures.maxvio_batch;
    return true;
}

/* value[count] <- the objective at each rate, in one pass over the scores. */
static bool evaluate(struct search *s, const double *rate, int count, double *value,
                     struct err *err) {
    int layers = s->source->layers;
    struct variant_set set = {.count = count, .layers = layers, .seed = s->seed};
    struct objectives objectives = {{0}};
    struct replay_options options = *s->options;
    bool ok = false;
    options.documents = false;
    set.variant = calloc((size_t)count, sizeof *set.variant);
    set.at = calloc((size_t)count * (size_t)layers, sizeof *set.at);
    bool made = (set.variant && set.at) || err_memory(err, "rates");
    if (!processes_agree(options.processes, made, err)) goto done;
    for (int i = 0; i < count; i++) {
        set.variant[i] = *s->model;
        set.variant[i].number = i + 1;
        set.variant[i].rate = rate[i];
        set.variant[i].schedule = (struct rate_schedule){.pieces = 1, .rate = {rate[i]}};
        memcpy(set.at + (int64_t)i * layers, s->at, (size_t)layers * sizeof *set.at);
    }
    const struct replay_sink sink = {add_objective, &objectives};
    ok = replay_run(&set, s->source, &options, &sink, s->progress, err);
    if (ok) processes_share(options.processes, &objectives, sizeof objectives);
    for (int i = 0; i < count; i++) value[i] = objectives.sum[i] / layers;
    s->replays++;
done:
    variant_set_free(&set);
    return ok;
}

static bool value_at(struct search *s, double log_rate, double *value, struct err *err) {
    double rate = pow(10, log_rate);
    return evaluate(s, &rate, 1, value, err);
}

/* Minimum of the objective in [low, high] by golden section (Kiefer 1953), to 2 % of the rate. */
static bool golden(struct search *s, double low, double high, double *best, double *value,
                   struct err *err) {
    const double share = (sqrt(5) - 1) / 2, tolerance = log10(1.02);
    double a = high - share * (high - low), b = low + share * (high - low), at_a, at_b;
    if (!value_at(s, a, &at_a, err) || !value_at(s, b, &at_b, err)) return false;
    while (high - low > tolerance) {
        bool left = at_a <= at_b;
        if (left) {
            high = b;
            b = a;
            at_b = at_a;
            a = high - share * (high - low);
        } else {
            low = a;
            a = b;
            at_a = at_b;
            b = low + share * (high - low);
        }
        if (!value_at(s, left ? a : b, left ? &at_a : &at_b, err)) return false;
    }
    *best = at_a <= at_b ? a : b;
    *value = fmin(at_a, at_b);
    return true;
}

static bool search(struct search *s, double *rate, double *value, struct err *err) {
    double grid[GRID], at[GRID], log_rate, refined;
    int best = 0;
    for (int i = 0; i < GRID; i++) grid[i] = pow(10, -6 + 0.5 * i);
    if (!evaluate(s, grid, GRID, at, err)) return false;
    for (int i = 1; i < GRID; i++)
        if (at[i] < at[best]) best = i;
    *rate = grid[best];
    *value = at[best];
    double low = -6 + 0.5 * (best > 0 ? best - 1 : 0);
    double high = -6 + 0.5 * (best < GRID - 1 ? best + 1 : best);
    if (!golden(s, low, high, &log_rate, &refined, err)) return false;
    if (refined >= *value) return true;
    *rate = pow(10, log_rate);
    *value = refined;
    return true;
}

/* The label keeps the word and gains the rate: "sign auto" becomes "sign auto=0.0031". */
static void set_rate(struct variant *v, double rate) {
    char text[32], *word = strstr(v->label, " auto");
    v->rate = rate;
    v->schedule = (struct rate_schedule){.pieces = 1, .rate = {rate}};
    snprintf(text, sizeof text, "=%.3g", rate);
    if (!word || strlen(v->label) + strlen(text) >= sizeof v->label) return;
    word += strlen(" auto");
    memmove(word + strlen(text), word, strlen(word) + 1);
    memcpy(word, text, strlen(text));
}

bool auto_rates(struct variant_set *set, const struct source *source,
                const struct replay_options *options, const struct progress *progress,
                struct err *err) {
    bool any = false;
    for (int i = 0; i < set->count; i++) {
        struct variant *v = &set->variant[i];
        if (!v->schedule.automatic) continue;
        struct search s = {.source = source,
                           .options = options,
                           .progress = progress,
                           .model = v,
                           .seed = set->seed,
                           .at = variant_at(set, i, 0)};
        double rate, value;
        if (!search(&s, &rate, &value, err)) return false;
        set_rate(v, rate);
        str_printf(&set->notes,
                   "variant %d (%s): rate %.3g has the smallest mean maxvio_batch, %.4g (grid and "
                   "golden section, %d replays)\n",
                   v->number, v->label, rate, value, s.replays);
        any = true;
    }
    if (any) variant_set_derive(set, source);
    return true;
}
