/* layer_run.c - one layer, one share of the variants
 *
 * First the plan: variants become units (equal routings are one), then hidden units for what units
 * need of each other. Then the tokens stream through in chunks: route all units, add all sums. */
#include "sim/layer_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"
#include "router/route.h"
#include "sim/optimum.h"
#include "sim/sums.h"

enum { SCORES = SCORE_IDENTITY + 1 };

/* What a job holds while it streams. */
struct stream {
    const struct replay_job *job;
    const struct source_layer *layer;
    struct layer_run *run;
    struct source_reader *reader;
    int64_t chunk_tokens; /* in flight: those of the job, or a whole batch */
    bool whole;           /* every chunk must be full */
    const struct unit *native;
    float *scores[SCORES];  /* [n,E] each; NULL where no unit needs them */
    float *gathered;        /* [n,E]; only when shuffled */
    int32_t *experts;       /* [n,k]; only when shuffled, of a source of choices */
    float *weights;         /* [n,k] */
    int64_t *document;      /* [n]; only when counted */
    struct route_rows rows; /* of the chunk; token NULL where no unit needs them */
    int64_t *token;         /* [n] behind rows */
    int32_t *id;            /* [n] behind rows; only for hash layers */
    uint64_t *mask;         /* [E/64] */
    uint8_t *native_flag;   /* [n,E] */
    void *scratch;
};

/* ---- the plan */

/* Do two variants move the very same bias, given equal choices? */
static bool one_bias(const struct variant *a, const struct variant_layer *x,
                     const struct variant *b, const struct variant_layer *y) {
    return x->rule == y->rule && x->start == y->start &&
           (!x->rule->needs_rate || rate_equal(&a->schedule, &b->schedule)) &&
           (!x->rule->update || a->batch_tokens == b->batch_tokens);
}

/* Are two gates the same up to what acts on the weights alone? */
static bool one_choice(const struct gate *a, const struct gate *b) {
    struct choice_law x = {.gate = *a}, y = {.gate = *b};
    return a->fn == GATE_TABLE && !gate_needs_batch(a) && same_choice_bits(&x, &y);
}

static struct unit *add_unit(struct stream *s, const struct variant *variant,
                             const struct variant_layer *at, struct unit *leader, bool hidden,
                             struct err *err) {
    const struct replay_job *job = s->job;
    struct unit_setup setup = {.variant = variant,
                               .at = at,
                               .total_tokens = job->source->tokens,
                               .chunk = s->chunk_tokens,
                               .captured = s->layer->bias,
                               .experts = s->layer->experts,
                               .hidden = hidden,
                               .losses = job->options->losses && !job->source->ids,
                               .ids = job->source->ids,
                               .ids_of_tokens = job->ids,
                               .rows = &s->rows,
                               .leader = leader};
    if (job->options->documents) setup.documents = job->source->documents;
    struct unit *unit = arena_alloc(&s->run->arena, 1, sizeof *unit);
    if (!unit) {
        err_memory(err, "replay");
        return NULL;
    }
    if (!unit_init(unit, &setup, &s->run->arena, err)) return NULL;
    s->run->unit[s->run->units++] = unit;
    return unit;
}

static bool add_batches(struct stream *s, struct unit *unit, int i, struct err *err) {
    const struct variant *v = &s->job->variants->variant[i];
    struct batches *b = arena_alloc(&s->run->arena, 1, sizeof *b);
    if (!unit->batches)
        unit->batches =
            arena_alloc(&s->run->arena, (size_t)s->job->variants->count, sizeof(struct batches *));
    if (!b || !unit->batches) return err_memory(err, "balance batches");
    unit->batches[unit->batch_sets++] = s->run->batches[i] = b;
    if (!batches_init(b, &s->run->arena, s->layer->experts, v->ranks, v->batch_tokens,
                      s->job->source->tokens, err))
        return false;
    if (s->job->options->losses)
        b->sent = arena_alloc(&s->run->arena, (size_t)v->ranks, sizeof *b->sent);
    return b->sent || !s->job->options->losses || err_memory(err, "losses");
}

static bool add_variants(struct stream *s, int layer, int share, struct err *err) {
    const struct variant_set *set = s->job->variants;
    struct unit **of = s->run->of;
    for (int i = 0; i < set->count; i++) {
        if (s->job->share[i] != share) continue;
        const struct variant *v = &set->variant[i];
        const struct variant_layer *at = variant_at(set, i, layer);
        struct unit *leader = NULL;
        for (int j = 0; j < i && !of[i]; j++) {
            const struct variant_layer *other = variant_at(set, j, layer);
            if (!of[j] || !one_bias(&set->variant[j], other, v, at)) continue;
            if (gate_equal(&other->gate, &at->gate))
                of[i] = of[j];
            else if (!leader && !of[j]->leader && one_choice(&other->gate, &at->gate))
                leader = of[j];
        }
        bool known = of[i] != NULL;
        if (!known) of[i] = add_unit(s, v, at, leader, false, err);
        if (!of[i] || !add_batches(s, of[i], i, err)) return false;
        for (int j = 0; j < i && !known; j++)
            if (of[j] && unit_like(of[j], of[i])) of[i]->like = of[j];
        struct unit *twin = v->same_as ? of[v->same_as - 1] : NULL;
        if (twin && twin != of[i] && !same_choice_bits(&twin->law, &of[i]->law)) of[i]->twin = twin;
    }
    return true;
}

/* A unit with this static gate: one that is there, else a hidden one. */
static struct unit *static_unit(struct stream *s, const struct gate *gate, enum bias_start start,
                                struct err *err) {
    static const struct bias_rule fixed = {.name = "static"};
    const struct variant any = {.rate = NAN, .batch_tokens = INT64_MAX, .ranks = 1};
    const struct variant_layer at = {
        .gate = *gate, .rule = &fixed, .start = start, .table = s->layer->table};
    for (int u = 0; u < s->run->units; u++) {
        const struct unit *unit = s->run->unit[u];
        if (!unit->rule && !unit->leader && gate_equal(&unit->gate, gate) &&
            (!gate->bias || unit->law.start == start))
            return s->run->unit[u];
    }
    return add_unit(s, &any, &at, NULL, true, err);
}

/* Every unit with a bias or groups is compared with the k highest of its own scores. */
static bool add_tops(struct stream *s, struct err *err) {
    int units = s->run->units;
    for (int u = 0; u < units; u++) {
        struct unit *unit = s->run->unit[u];
        const struct gate *gate = &unit->gate;
        bool highest =
            !gate->bias && gate->groups == 0 && gate->cut == CUT_NONE && gate->second == SECOND_ALL;
        bool plain = highest && !gate_blurs(gate) && !gate_hashes(gate) && !gate_needs_batch(gate);
        if (unit->hidden || plain) continue;
        struct gate top = {.score = gate->score, .topk = gate->topk, .scale = 1};
        unit->top = static_unit(s, &top, START_DEFAULT, err);
        if (!unit->top) return false;
        unit->top->holds = true;
    }
    return true;
}

static bool plan(struct stream *s, int layer, int share, struct err *err) {
    struct layer_run *run = s->run;
    size_t count = (size_t)s->job->variants->count;
    run->unit = arena_alloc(&run->arena, 2 * count + 1, sizeof(struct unit *));
    run->of = arena_alloc(&run->arena, count, sizeof(struct unit *));
    run->batches = arena_alloc(&run->arena, count, sizeof(struct batches *));
    run->row = arena_alloc(&run->arena, count, sizeof *run->row);
    if (!run->unit || !run->of || !run->batches || !run->row) return err_memory(err, "replay");
    if (!add_variants(s, layer, share, err)) return false;
    if (s->job->source->ids) {
        s->native = run->units > 0 ? run->unit[0] : NULL;
        return true;
    }
    const struct gate *native = &s->layer->native;
    s->native = static_unit(s, native, native->bias ? START_CAPTURED : START_DEFAULT, err);
    return s->native && add_tops(s, err);
}

/* Which tokens a chunk holds, where some unit draws by token. */
static bool make_rows(struct stream *s, size_t n) {
    bool needed = false;
    for (int u = 0; u < s->run->units; u++)
        needed = needed || gate_needs_rows(&s->run->unit[u]->gate);
    if (!needed) return true;
    s->rows = (struct route_rows){.seed = s->job->variants->seed, .layer = s->layer->layer};
    s->rows.token = s->token = arena_alloc(&s->run->arena, n, sizeof *s->token);
    if (s->job->ids->id) s->rows.id = s->id = arena_alloc(&s->run->arena, n, sizeof *s->id);
    return s->token && (s->id || !s->job->ids->id);
}

static bool make_stream_buffers(struct stream *s, struct err *err) {
    struct arena *arena = &s->run->arena;
    size_t n = (size_t)s->chunk_tokens, experts = (size_t)s->layer->experts;
    for (int u = 0; u < s->run->units; u++) {
        const struct unit *unit = s->run->unit[u];
        float **scores = &s->scores[unit->gate.score];
        bool needed = unit->top || unit->losses || unit_takes_scores(unit);
        if (!needed || *scores || unit->gate.score == SCORE_IDENTITY) continue;
        *scores = arena_alloc(arena, n, experts * sizeof **scores);
        if (!*scores) return err_memory(err, "scores");
    }
    if (!make_rows(s, n)) return err_memory(err, "replay");
    s->mask = arena_alloc(arena, experts / 64 + 1, sizeof *s->mask);
    s->native_flag = arena_alloc(arena, n, experts);
    s->scratch = arena_alloc(arena, 1, route_scratch_bytes((int)experts));
    if (s->job->options->order && s->job->source->ids) {
        size_t k = (size_t)s->layer->native.topk;
        s->experts = arena_alloc(arena, n, k * sizeof *s->experts);
        s->weights = arena_alloc(arena, n, k * sizeof *s->weights);
        if (!s->experts || !s->weights) return err_memory(err, "replay");
    }
    bool gathers = (s->job->options->order || s->whole) && !s->job->source->ids;
    if (gathers) s->gathered = arena_alloc(arena, n, experts * sizeof *s->gathered);
    bool documents = s->job->options->documents || s->job->options->losses;
    if (documents) s->document = arena_alloc(arena, n, sizeof *s->document);
    bool ok = s->mask && s->native_flag && s->scratch && (s->gathered || !gathers) &&
              (s->document || !documents);
    return ok || err_memory(err, "replay");
}

/* ---- the stream */

/* Token at a replay position. */
static int64_t token_at(const struct stream *s, int64_t position) {
    const int64_t *order = s->job->options->order;
    return order ? order[position] : position;
}

/* Document of a token, by binary search over the documents' first tokens. */
static int64_t document_of(const struct source *source, int64_t token) {
    int64_t low = 0, high = source->documents;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (source->document_first[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* gathered[n,E] <- the rows of n tokens, however many the source gives at a time. */
static bool join_rows(struct stream *s, int64_t position, int64_t n, struct err *err) {
    const struct source *source = s->job->source;
    int experts = s->layer->experts;
    for (int64_t at = 0, m; at < n; at += m) {
        const float *rows;
        if (!source->rows(s->reader, position + at, n - at, &rows, &m, err)) return false;
        memcpy(s->gathered + at * experts, rows, (size_t)(m * experts) * sizeof *rows);
    }
    return true;
}

static bool fetch(struct stream *s, int64_t position, const float **logits, int64_t *n,
                  struct err *err) {
    const struct source *source = s->job->source;
    int64_t left = source->tokens - position, max = s->chunk_tokens;
    if (!s->gathered)
        return source->rows(s->reader, position, left < max ? left : max, logits, n, err);
    *n = left < max ? left : max;
    *logits = s->gathered;
    if (!s->job->options->order) return join_rows(s, position, *n, err);
    return source->gather(s->reader, s->job->options->order + position, *n, s->gathered, err);
}

static bool refuse_logit(const struct stream *s, int64_t position, int64_t bad, float value,
                         struct err *err) {
    int experts = s->layer->experts;
    return err_set(
        err, ERR_DATA,
        "%s: layer %d: token %lld: expert %lld: found logit %g, expected a finite number",
        s->job->source->name, s->layer->layer, (long long)token_at(s, position + bad / experts),
        (long long)(bad % experts), (double)value);
}

/* Scores of a unit's function for the chunk: the identity's are the logits. */
static const float *scores_for(const struct stream *s, const struct unit *unit,
                               const float *logits) {
    return unit->gate.score == SCORE_IDENTITY ? logits : s->scores[unit->gate.score];
}

static void fill_rows_of_chunk(struct stream *s, int64_t position, int64_t n) {
    for (int64_t t = 0; t < n && s->token; t++) s->token[t] = token_at(s, position + t);
    for (int64_t t = 0; t < n && s->id; t++) s->id[t] = s->job->ids->id[s->token[t]];
}

/* The score functions that units share; returns the first logit that is not finite, or -1. */
static int64_t score_chunk(struct stream *s, const float *logits, int64_t n) {
    bool scored = false;
    for (int score = 0; score < SCORES; score++) {
        if (!s->scores[score]) continue;
        int64_t bad =
            route_scores((enum gate_score)score, s->layer->experts, n, logits, s->scores[score]);
        if (bad >= 0) return bad;
        scored = true;
    }
    return scored ? -1 : route_first_not_finite(logits, n * s->layer->experts);
}

/* What the units' sums share: the native choices as flags, the mass of the k highest. */
static void hold(struct stream *s, const float *logits, int64_t n) {
    const struct unit *native = s->native;
    const struct sums sums = {n, native->experts, native->slots, native->expert};
    bool compared = false;
    for (int u = 0; u < s->run->units; u++) {
        struct unit *unit = s->run->unit[u];
        compared = compared || (unit != native && !unit->hidden);
        if (unit->holds) unit_hold(unit, scores_for(s, unit, logits), n);
    }
    if (compared && !native->sparse) sums_flags(&sums, s->native_flag);
}

static bool run_chunk(struct stream *s, int64_t position, const float *logits, int64_t n,
                      struct err *err) {
    struct layer_run *run = s->run;
    struct unit_context context = {.n = n,
                                   .native = s->native,
                                   .logits = logits,
                                   .ordered = !s->job->options->order,
                                   .native_flag = s->native_flag,
                                   .mask = s->mask};
    int64_t bad = score_chunk(s, logits, n);
    if (bad >= 0) return refuse_logit(s, position, bad, logits[bad], err);
    fill_rows_of_chunk(s, position, n);
    for (int u = 0; u < run->units; u++)
        unit_route(run->unit[u], logits, scores_for(s, run->unit[u], logits), n, s->scratch);
    for (int64_t t = 0; t < n && s->document; t++)
        s->document[t] = document_of(s->job->source, token_at(s, position + t));
    context.document = s->document;
    hold(s, logits, n);
    for (int u = 0; u < run->units; u++) {
        context.scores = scores_for(s, run->unit[u], logits);
        unit_accumulate(run->unit[u], &context);
    }
    return true;
}

/* A chunk of choices: nothing is routed. */
static bool take_chunk(struct stream *s, int64_t position, int64_t *n, struct err *err) {
    const struct source *source = s->job->source;
    struct unit_context context = {
        .native = s->native, .native_flag = s->native_flag, .mask = s->mask};
    int64_t left = source->tokens - position, max = s->chunk_tokens;
    const int32_t *expert = s->experts;
    const float *weight = s->weights;
    *n = left < max ? left : max;
    bool ok = s->experts ? source->gather_choices(s->reader, s->job->options->order + position, *n,
                                                  s->experts, s->weights, err)
                         : source->choices(s->reader, position, *n, &expert, &weight, n, err);
    if (!ok) return false;
    context.n = *n;
    for (int64_t t = 0; t < *n && s->document; t++)
        s->document[t] = document_of(source, token_at(s, position + t));
    context.document = s->document;
    for (int u = 0; u < s->run->units; u++) unit_take(s->run->unit[u], expert, weight, *n);
    hold(s, NULL, *n);
    for (int u = 0; u < s->run->units; u++) unit_accumulate(s->run->unit[u], &context);
    return true;
}

static bool next_chunk(struct stream *s, int64_t position, int64_t *n, struct err *err) {
    const float *logits;
    if (s->job->source->ids) return take_chunk(s, position, n, err);
    return fetch(s, position, &logits, n, err) && run_chunk(s, position, logits, *n, err);
}

/* Counts of every document: what a stream of its tokens would have added up to. */
static bool run_counts(struct stream *s, struct err *err) {
    const struct source *source = s->job->source;
    int experts = s->layer->experts;
    int64_t *counts = malloc((size_t)experts * sizeof *counts);
    bool ok = counts || err_memory(err, "counts");
    for (int64_t d = 0; ok && d < source->documents; d++) {
        ok = source->counts(s->reader, d, counts, err);
        for (int u = 0; ok && u < s->run->units; u++) {
            struct unit *unit = s->run->unit[u];
            for (int e = 0; e < experts; e++) unit->count[e] += counts[e];
            if (unit->document)
                memcpy(unit->document + d * experts, counts, (size_t)experts * sizeof *counts);
        }
    }
    free(counts);
    if (ok && !s->job->step(s->job->context, source->tokens))
        ok = err_set(err, ERR_CANCELLED, "interrupted");
    return ok;
}

static bool run_tokens(struct stream *s, struct err *err) {
    if (s->job->source->counted) return run_counts(s, err);
    for (int64_t position = 0; position < s->job->source->tokens;) {
        int64_t n;
        if (!next_chunk(s, position, &n, err)) return false;
        position += n;
        if (!s->job->step(s->job->context, n)) return err_set(err, ERR_CANCELLED, "interrupted");
    }
    return true;
}

/* ---- the measures */

static bool rank_weights(const struct unit *unit, struct replay_row *row, struct arena *arena) {
    size_t k = (size_t)unit->slots;
    double *mean = arena_alloc(arena, 2 * k, sizeof *mean);
    if (!mean) return false;
    double *sd = mean + k;
    for (size_t i = 0; i < k; i++) {
        double n = (double)unit->tokens, d = unit->first_sum[i] / n;
        double variance = unit->second_sum[i] / n - d * d;
        mean[i] = unit->shift[i] + d;
        sd[i] = variance > 0 ? sqrt(variance) : 0;
    }
    row->rank_mean = mean;
    row->rank_sd = sd;
    return true;
}

/* The measures of DESIGN section 8, of one variant at one layer. */
static bool measure(const struct unit *unit, const struct batches *b, struct result_layer *m,
                    struct arena *arena) {
    int experts = unit->experts;
    int64_t *sorted = arena_alloc(arena, (size_t)experts, sizeof *sorted);
    if (!sorted) return false;
    double tokens = (double)unit->tokens;
    m->maxvio_global = balance_maxvio(unit->count, experts);
    m->maxvio_batch = batches_mean(b, b->maxvio);
    m->cv = balance_cv(unit->count, experts);
    m->gini = balance_gini(unit->count, experts, sorted);
    m->entropy = balance_entropy(unit->count, experts);
    m->load_min = balance_min(unit->count, experts);
    m->load_max = balance_max(unit->count, experts);
    m->ties = unit->ties;
    m->group_escapes = unit->escapes;
    m->agreement = unit->gate.cut != CUT_NONE ? unit->agreed_share / tokens
                                              : (double)unit->agreed / (tokens * unit->gate.topk);
    m->mass_retained = unit->mass / tokens;
    balance_blocks(unit->count, experts, b->ranks, b->load);
    m->rank_maxvio = balance_maxvio(b->load, b->ranks);
    m->efficiency = batches_mean(b, b->efficiency);
    bool drops = (unit->gate.capacity > 0 && unit->gate.assign != ASSIGN_EXPERT) ||
                 unit->gate.second != SECOND_ALL;
    m->dropped = drops ? 1 - (double)unit->kept / (tokens * unit->gate.topk) : 0.0;
    m->unrouted = (double)unit->unrouted / tokens;
    m->experts_mean = (double)unit->kept / tokens;
    m->experts_max = unit->most;
    return true;
}

/* ---- the balanced optimum of the last full batch */

/* value[n,E] <- scores as shares of the token's k highest: what mass_retained adds up. */
static void share_scores(const float *score, int64_t n, int experts, const struct unit *unit,
                         const int32_t *top, double *value) {
    int k = unit->gate.topk;
    for (int64_t t = 0; t < n; t++) {
        double most = 0;
        for (int i = 0; i < k; i++) most += (double)score[t * experts + top[t * k + i]];
        for (int e = 0; e < experts; e++)
            value[t * experts + e] = most != 0 ? (double)score[t * experts + e] / most : 0;
    }
}

/* The same for a window of the replay, read again. */
static bool read_window(struct stream *s, const struct unit *unit, int64_t first, int64_t tokens,
                        double *value, struct err *err) {
    int experts = s->layer->experts;
    const struct gate top = {.score = unit->gate.score, .topk = unit->gate.topk, .scale = 1};
    int64_t chunk = s->chunk_tokens, n;
    float *score = malloc((size_t)chunk * (size_t)experts * sizeof *score);
    int32_t *best = malloc((size_t)chunk * (size_t)top.topk * sizeof *best);
    struct routes out = {.expert = best};
    bool ok = (score && best) || err_memory(err, "optimum");
    for (int64_t at = 0; ok && at < tokens; at += n) {
        const float *logits;
        ok = fetch(s, first + at, &logits, &n, err);
        if (!ok) break;
        n = n < tokens - at ? n : tokens - at;
        route_scores(top.score, experts, n, logits, score);
        route_scored(&top, experts, n, logits, score, NULL, &out, s->scratch);
        share_scores(score, n, experts, unit, best, value + at * experts);
    }
    free(best);
    free(score);
    return ok;
}

static bool solve_window(struct stream *s, const struct unit *unit, const struct batches *b,
                         double *optimum, struct err *err) {
    int64_t first = batches_last_first(b);
    size_t cells = (size_t)(b->batch_tokens * unit->experts);
    *optimum = NAN;
    if (first < 0 || b->batch_tokens * unit->experts > REPLAY_OPTIMUM_CELLS) return true;
    double *value = malloc(cells * sizeof *value), best;
    if (!value) return err_memory(err, "optimum");
    const struct assignment_problem problem = {b->batch_tokens, unit->experts, unit->gate.topk,
                                               value};
    bool ok = read_window(s, unit, first, b->batch_tokens, value, err) &&
              optimum_assign(&problem, &best, NULL, err);
    if (ok) *optimum = best / (double)b->batch_tokens;
    free(value);
    return ok;
}

/* Score function, k and batch decide the optimum; variants that share them share it. */
static bool add_optima(struct stream *s, struct err *err) {
    struct layer_run *run = s->run;
    for (int i = 0; i < s->job->variants->count; i++) {
        const struct unit *unit = run->of[i];
        struct replay_row *row = &run->row[i];
        bool known = false;
        if (!unit) continue;
        row->last_mass = row->optimum = NAN;
        if (!s->job->options->optimum || s->job->source->ids) continue;
        const struct batches *b = run->batches[i];
        if (b->expected > 0) row->last_mass = b->last_mass / (double)b->batch_tokens;
        for (int j = 0; j < i && !known; j++) {
            known = run->of[j] && run->of[j]->gate.score == unit->gate.score &&
                    run->of[j]->gate.topk == unit->gate.topk &&
                    run->batches[j]->batch_tokens == b->batch_tokens;
            if (known) row->optimum = run->row[j].optimum;
        }
        if (!known && !solve_window(s, unit, b, &row->optimum, err)) return false;
    }
    return true;
}

/* What choices alone cannot say. */
static void clear_unknown(const struct stream *s, struct replay_row *row) {
    row->measures.ties = row->measures.group_escapes = -1;
    row->measures.mass_retained = NAN;
    if (s->job->source->counted) row->measures.agreement = NAN;
    if (!s->layer->unweighted) return;
    row->weight = row->rank_mean = row->rank_sd = NULL;
}

static bool fill_rows(struct stream *s, struct err *err) {
    struct layer_run *run = s->run;
    for (int i = 0; i < s->job->variants->count; i++) {
        struct unit *unit = run->of[i];
        struct replay_row *row = &run->row[i];
        if (!unit) continue;
        batches_close(run->batches[i]);
        unit_close(unit);
        *row = (struct replay_row){.experts = unit->experts,
                                   .topk = unit->gate.topk,
                                   .tokens = unit->count,
                                   .weight = unit->received,
                                   .bias = unit->bias,
                                   .batches = run->batches[i],
                                   .document = unit->document,
                                   .parted = unit->parted};
        if (unit->losses)
            losses_values(unit->losses, unit->asked ? unit->asked_count : unit->count,
                          run->batches[i]->ranks, run->batches[i]->sent, row->loss);
        row->has_losses = unit->losses != NULL;
        row->measures.variant = s->job->variants->variant[i].number;
        row->measures.layer = s->layer->layer;
        if (!measure(unit, run->batches[i], &row->measures, &run->arena) ||
            !rank_weights(unit, row, &run->arena))
            return err_memory(err, "measures");
        if (s->job->source->ids) clear_unknown(s, row);
        if (unit->gate.assign != ASSIGN_TOKEN)
            row->measures.ties = row->measures.group_escapes = -1;
        if (unit->slots > unit->gate.topk) row->rank_mean = row->rank_sd = NULL;
    }
    return true;
}

bool layer_run(struct layer_run *run, const struct replay_job *job, int layer, int share,
               struct err *err) {
    struct stream s = {.job = job, .layer = &job->source->layer[layer], .run = run};
    int64_t batch = job->batch[share];
    *run = (struct layer_run){0};
    s.whole = batch > 0;
    s.chunk_tokens = s.whole ? batch : job->chunk_tokens;
    arena_init(&run->arena, "replay");
    if (!job->source->ids &&
        !gate_check_live(&s.layer->native, s.layer->experts, s.layer->bias != NULL, err))
        return err_context(err, "%s: layer %d: native gate", job->source->name, s.layer->layer);
    if (!plan(&s, layer, share, err) || !make_stream_buffers(&s, err)) return false;
    s.reader = job->source->open(job->source, layer, err);
    if (!s.reader) return false;
    bool ok = run_tokens(&s, err) && fill_rows(&s, err) && add_optima(&s, err);
    job->source->close(s.reader);
    return ok;
}

void layer_run_free(struct layer_run *run) {
    arena_free(&run->arena);
    *run = (struct layer_run){0};
}
