/* unit.c - one routing: choices, sums, balance batches, bias
 *
 * Every sum runs in token order and belongs to one unit alone; reals are f64. The sums of weights
 * by rank are taken about the first value seen, which keeps the variance of near-constant weights.
 */
#include "sim/unit.h"

#include <math.h>
#include <string.h>

#include "router/batch.h"
#include "router/route.h"
#include "sim/sums.h"

static bool make_bias(struct unit *unit, const struct unit_setup *setup, struct arena *arena) {
    size_t experts = (size_t)setup->experts;
    bool captured = setup->at->start == START_CAPTURED;
    if (!unit->gate.bias) return true;
    unit->bias = arena_alloc(arena, experts, sizeof *unit->bias);
    unit->rounded = arena_alloc(arena, experts, sizeof *unit->rounded);
    if (!unit->bias || !unit->rounded) return false;
    for (size_t e = 0; e < experts; e++)
        unit->bias[e] = captured ? (double)setup->captured[e] : setup->at->rule->multiplies ? 1 : 0;
    bias_round(setup->experts, unit->bias, unit->rounded);
    return true;
}

/* What a rule keeps between tokens and batches. */
static bool make_rule(struct unit *unit, const struct unit_setup *setup, struct arena *arena) {
    const struct bias_rule *rule = setup->at->rule;
    size_t experts = (size_t)setup->experts;
    int64_t batch = setup->variant->batch_tokens;
    size_t seen = (size_t)(batch < setup->total_tokens ? batch : setup->total_tokens);
    unit->used = arena_alloc(arena, experts, sizeof *unit->used);
    if (!unit->used) return false;
    if (rule->state)
        unit->state = arena_alloc(arena, experts, (size_t)rule->state * sizeof(double));
    if (rule->multiplies)
        unit->product = arena_alloc(arena, (size_t)setup->chunk, experts * sizeof(float));
    if (rule->needs_scores) {
        unit->seen = arena_alloc(arena, seen, experts * sizeof(float));
        unit->sorting = arena_alloc(arena, seen, 2 * sizeof(float));
    }
    return (unit->state || !rule->state) && (unit->product || !rule->multiplies) &&
           ((unit->seen && unit->sorting) || !rule->needs_scores);
}

/* What rare gates look at besides the recorded scores. */
static bool make_view(struct unit *unit, const struct unit_setup *setup, struct arena *arena) {
    size_t n = (size_t)setup->chunk, experts = (size_t)setup->experts;
    bool blurs = gate_blurs(&unit->gate), balances = unit->gate.fn == GATE_BALANCED_HASH;
    bool scores = blurs && unit_takes_scores(unit);
    if (blurs) unit->logit = arena_alloc(arena, n, experts * sizeof *unit->logit);
    if (scores) unit->score = arena_alloc(arena, n, experts * sizeof *unit->score);
    const struct token_ids *ids = setup->ids_of_tokens;
    if (balances)
        unit->table =
            token_ids_balance(ids, ids->vocabulary, setup->experts, unit->gate.topk, arena);
    else
        unit->table = setup->at->table.expert;
    return (unit->logit || !blurs) && (unit->score || !scores) && (unit->table || !balances);
}

static bool make_buffers(struct unit *unit, int64_t chunk, struct arena *arena) {
    size_t n = (size_t)chunk, k = (size_t)unit->slots;
    unit->expert = arena_alloc(arena, n * k, sizeof *unit->expert);
    unit->weight = arena_alloc(arena, n * k, sizeof *unit->weight);
    unit->tie = arena_alloc(arena, n, sizeof *unit->tie);
    unit->escape = arena_alloc(arena, n, sizeof *unit->escape);
    unit->held = arena_alloc(arena, n, sizeof *unit->held);
    size_t batch = route_batch_bytes(&unit->gate, unit->experts, chunk);
    if (batch > 0) unit->batch = arena_alloc(arena, batch, 1);
    return unit->expert && unit->weight && unit->tie && unit->escape && unit->held &&
           (unit->batch || !batch);
}

/* Losses count choices before the drop (Mesh-TensorFlow, Megatron-LM). */
static bool make_asked(struct unit *unit, size_t n, struct arena *arena) {
    if (unit->gate.capacity == 0 || unit->gate.assign != ASSIGN_TOKEN) return true;
    unit->asked = arena_alloc(arena, n, (size_t)unit->slots * sizeof *unit->asked);
    unit->asked_count = arena_alloc(arena, (size_t)unit->experts, sizeof *unit->asked_count);
    return unit->asked && unit->asked_count;
}

static bool make_sums(struct unit *unit, const struct unit_setup *setup, struct arena *arena) {
    size_t experts = (size_t)setup->experts, k = (size_t)unit->slots;
    if (setup->hidden) return true;
    unit->count = arena_alloc(arena, experts, sizeof *unit->count);
    unit->received = arena_alloc(arena, experts, sizeof *unit->received);
    unit->shift = arena_alloc(arena, 3 * k, sizeof *unit->shift);
    if (!unit->count || !unit->received || !unit->shift) return false;
    if (setup->losses) {
        unit->losses = arena_alloc(arena, 1, sizeof *unit->losses);
        if (!unit->losses || !losses_init(unit->losses, arena, &unit->gate, setup->experts))
            return false;
        if (!make_asked(unit, (size_t)setup->chunk, arena)) return false;
    }
    unit->first_sum = unit->shift + k;
    unit->second_sum = unit->shift + 2 * k;
    if (setup->documents == 0) return true;
    unit->document = arena_alloc(arena, (size_t)setup->documents, experts * sizeof *unit->document);
    return unit->document != NULL;
}

bool unit_init(struct unit *unit, const struct unit_setup *setup, struct arena *arena,
               struct err *err) {
    *unit = (struct unit){.gate = setup->at->gate,
                          .rate = setup->variant->schedule,
                          .total_tokens = setup->total_tokens,
                          .experts = setup->experts,
                          .hidden = setup->hidden,
                          .rows = setup->rows,
                          .leader = setup->leader};
    if (setup->ids) unit->gate.bias = false; /* it has acted already */
    unit->slots = gate_slots(&unit->gate, unit->experts);
    unit->sparse = gate_leaves_slots(&unit->gate);
    unit->law = choice_law(setup->variant, setup->at, setup->total_tokens);
    bool ok = make_buffers(unit, setup->chunk, arena) && make_sums(unit, setup, arena);
    if (unit->leader) {
        unit->bias = unit->leader->bias;
        unit->logit = unit->leader->logit;
        unit->score = unit->leader->score;
        return ok || err_memory(err, "replay");
    }
    unit->rule = setup->at->rule->update ? setup->at->rule : NULL;
    ok = ok && make_view(unit, setup, arena) && make_bias(unit, setup, arena) &&
         (!unit->rule || make_rule(unit, setup, arena));
    return ok || err_memory(err, "replay");
}

/* ---- routing */

/* A factor instead of an addend: chosen by score times bias, weighed by the score alone. */
static void route_product(struct unit *unit, const float *logits, const float *scores, int64_t n,
                          struct routes *out, void *scratch) {
    struct gate gate = unit->gate;
    float *weight = out->weight;
    gate.bias = false;
    out->weight = NULL;
    for (int64_t t = 0; t < n; t++)
        for (int e = 0; e < unit->experts; e++)
            unit->product[t * unit->experts + e] = scores[t * unit->experts + e] * unit->rounded[e];
    route_scored(&gate, unit->experts, n, logits, unit->product, NULL, out, scratch);
    if (weight) route_weights(&gate, unit->experts, n, logits, scores, out->expert, weight);
}

static struct route_rows rows_from(const struct unit *unit, int64_t from) {
    struct route_rows rows = *unit->rows;
    rows.token += from;
    if (rows.id) rows.id += from;
    return rows;
}

/* Chosen by token id; the scores only weigh. */
static void route_hash(struct unit *unit, const float *logits, const float *scores, int64_t from,
                       int64_t n, struct routes *out) {
    struct route_rows rows = rows_from(unit, from);
    route_hashed(&unit->gate, &rows, unit->experts, n, unit->table, out->expert);
    if (out->weight)
        route_weights(&unit->gate, unit->experts, n, logits, scores, out->expert, out->weight);
    memset(out->tie, 0, (size_t)n);
    memset(out->escape, 0, (size_t)n);
}

static void route(struct unit *unit, const float *logits, const float *scores, int64_t from,
                  int64_t n, void *scratch) {
    int k = unit->slots;
    int64_t at = from * unit->experts;
    struct routes out = {unit->expert + from * k, unit->weight + from * k, unit->tie + from,
                         unit->escape + from};
    bool thins = unit->gate.second != SECOND_ALL;
    if (unit->hidden && !unit->batch && !thins) out.weight = NULL; /* nobody adds them up */
    logits += at;
    if (scores) scores += at;
    if (gate_hashes(&unit->gate))
        route_hash(unit, logits, scores, from, n, &out);
    else if (unit->product)
        route_product(unit, logits, scores, n, &out, scratch);
    else if (unit->gate.assign == ASSIGN_TOKEN)
        route_scored(&unit->gate, unit->experts, n, logits, scores, unit->rounded, &out, scratch);
    if (thins) {
        struct route_rows rows = rows_from(unit, from);
        route_thin(&unit->gate, &rows, n, out.expert, out.weight);
    }
    if (unit->asked)
        memcpy(unit->asked + from * k, out.expert, (size_t)(n * k) * sizeof *unit->asked);
    if (unit->batch) route_batch(&unit->gate, unit->experts, n, logits, scores, &out, unit->batch);
    if (unit->seen)
        memcpy(unit->seen + unit->batches[0]->filled * unit->experts, scores ? scores : logits,
               (size_t)(n * unit->experts) * sizeof(float));
}

/* The leader has chosen: only the weights are our own. */
static void follow(struct unit *unit, const float *logits, const float *scores, int64_t n) {
    size_t tokens = (size_t)n;
    memcpy(unit->expert, unit->leader->expert, tokens * (size_t)unit->slots * sizeof *unit->expert);
    memcpy(unit->tie, unit->leader->tie, tokens);
    memcpy(unit->escape, unit->leader->escape, tokens);
    route_weights(&unit->gate, unit->experts, n, logits, scores, unit->expert, unit->weight);
}

bool unit_like(const struct unit *a, const struct unit *b) {
    bool plain = !gate_blurs(&a->gate) && !gate_needs_batch(&a->gate) && !a->hidden && !b->hidden;
    return plain && a->rule && b->rule && !a->product && !b->product && !a->seen && !b->seen &&
           gate_equal(&a->gate, &b->gate);
}

/* Routes the first n tokens of the chunk as the unit that is like it has done, when both had the
 * same bias there: rates that start alike differ only from the first update on. False: not so. */
static bool repeat(struct unit *unit, int64_t n) {
    const struct unit *like = unit->like;
    size_t tokens = (size_t)n, slots = tokens * (size_t)unit->slots;
    memcpy(unit->used, unit->rounded, (size_t)unit->experts * sizeof *unit->used);
    unit->used_tokens = n;
    if (!like || like->used_tokens < n ||
        memcmp(like->used, unit->used, (size_t)unit->experts * sizeof *unit->used) != 0)
        return false;
    memcpy(unit->expert, like->expert, slots * sizeof *unit->expert);
    memcpy(unit->weight, like->weight, slots * sizeof *unit->weight);
    memcpy(unit->tie, like->tie, tokens);
    memcpy(unit->escape, like->escape, tokens);
    return true;
}

/* Moves the bias by the batch that has just become full. */
static void update(struct unit *unit, const struct batches *full) {
    int64_t done = (full->closed + 1) * full->batch_tokens;
    const struct bias_batch batch = {
        .experts = unit->experts,
        .topk = unit->gate.topk,
        .tokens = full->filled,
        .counts = full->counts,
        .scores = unit->seen,
        .rate = rate_at(&unit->rate, (double)done / (double)unit->total_tokens),
        .state = unit->state,
        .scratch = unit->sorting};
    unit->rule->update(&batch, unit->bias);
    bias_round(unit->experts, unit->bias, unit->rounded);
}

static void feed(struct batches *b, const int32_t *expert, int k, int64_t n) {
    for (int64_t from = 0; from < n;) {
        int64_t room = batches_room(b);
        int64_t take = room < n - from ? room : n - from;
        if (batches_add(b, expert + from * k, k, take)) batches_close(b);
        from += take;
    }
}

bool unit_takes_scores(const struct unit *unit) {
    return unit->gate.fn != GATE_SPARSEMIXER && unit->gate.order == ORDER_SCORE_TOPK;
}

void unit_route(struct unit *unit, const float *logits, const float *scores, int64_t n,
                void *scratch) {
    int k = unit->slots;
    struct batches *drive = unit->rule ? unit->batches[0] : NULL;
    if (!unit_takes_scores(unit)) scores = NULL;
    if (unit->logit) {
        if (!unit->leader)
            route_blurred(&unit->gate, unit->rows, unit->experts, n, logits, unit->logit,
                          unit->score);
        logits = unit->logit;
        if (scores) scores = unit->score;
    }
    if (unit->leader) follow(unit, logits, scores, n);
    for (int64_t from = 0; from < n && !unit->leader;) {
        int64_t room = drive ? batches_room(drive) : n;
        int64_t take = room < n - from ? room : n - from;
        if (from > 0 || !drive || !repeat(unit, take))
            route(unit, logits, scores, from, take, scratch);
        if (drive && batches_add(drive, unit->expert + from * k, k, take)) {
            update(unit, drive);
            batches_close(drive);
        }
        from += take;
    }
    for (int s = drive ? 1 : 0; s < unit->batch_sets; s++)
        feed(unit->batches[s], unit->expert, k, n);
}

void unit_take(struct unit *unit, const int32_t *expert, const float *weight, int64_t n) {
    size_t slots = (size_t)(n * unit->gate.topk);
    memcpy(unit->expert, expert, slots * sizeof *expert);
    if (weight)
        memcpy(unit->weight, weight, slots * sizeof *weight);
    else
        memset(unit->weight, 0, slots * sizeof *weight);
    for (int s = 0; s < unit->batch_sets; s++)
        feed(unit->batches[s], unit->expert, unit->gate.topk, n);
}

/* ---- sums */

/* One token whose row may hold empty slots. */
static void add_sparse_load(struct unit *unit, const int32_t *expert, const float *weight) {
    int found = 0;
    for (int i = 0; i < unit->slots; i++) {
        if (expert[i] == ROUTE_NONE) continue;
        unit->count[expert[i]]++;
        unit->received[expert[i]] += (double)weight[i];
        found++;
    }
    unit->kept += found;
    unit->unrouted += found == 0;
    unit->most = found > unit->most ? found : unit->most;
}

static void add_sparse_loads(struct unit *unit, const struct unit_context *c) {
    for (int64_t t = 0; t < c->n; t++) {
        add_sparse_load(unit, unit->expert + t * unit->slots, unit->weight + t * unit->slots);
        unit->ties += unit->tie[t];
        unit->escapes += unit->escape[t];
    }
}

/* The same for tokens that fill all slots. */
static void add_full_loads(struct unit *unit, const struct unit_context *c,
                           const struct sums *sums) {
    unit->kept += c->n * sums->k;
    unit->most = sums->k;
    sums_received(sums, unit->weight, unit->received);
    unit->ties += sums_bytes(unit->tie, c->n);
    unit->escapes += sums_bytes(unit->escape, c->n);
}

static void add_ranks(struct unit *unit, int64_t n) {
    int k = unit->slots;
    for (int i = 0; i < k && unit->tokens == 0; i++) unit->shift[i] = (double)unit->weight[i];
    for (int64_t t = 0; t < n; t++) {
        for (int i = 0; i < k; i++) {
            double d = (double)unit->weight[t * k + i] - unit->shift[i];
            unit->first_sum[i] += d;
            unit->second_sum[i] += d * d;
        }
    }
}

static void add_documents(struct unit *unit, const struct unit_context *c) {
    int k = unit->slots;
    for (int64_t t = 0; t < c->n; t++) {
        int64_t *row = unit->document + c->document[t] * unit->experts;
        const int32_t *expert = unit->expert + t * k;
        for (int i = 0; i < k; i++)
            if (expert[i] != ROUTE_NONE) row[expert[i]]++;
    }
}

/* How many of a token's experts are in both lists. mask is left zeroed. */
static int common(const int32_t *a, int count_a, const int32_t *b, int count_b, uint64_t *mask) {
    int both = 0;
    for (int i = 0; i < count_b; i++) mask[b[i] >> 6] |= UINT64_C(1) << (b[i] & 63);
    for (int i = 0; i < count_a; i++) both += (int)(mask[a[i] >> 6] >> (a[i] & 63) & 1);
    for (int i = 0; i < count_b; i++) mask[b[i] >> 6] = 0;
    return both;
}

/* The same for lists with empty slots. */
static int common_sparse(const int32_t *a, int count_a, const int32_t *b, int count_b) {
    int both = 0;
    for (int i = 0; i < count_a; i++)
        for (int j = 0; j < count_b && a[i] != ROUTE_NONE; j++) both += a[i] == b[j];
    return both;
}

static int filled(const int32_t *expert, int slots) {
    int n = 0;
    for (int i = 0; i < slots; i++) n += expert[i] != ROUTE_NONE;
    return n;
}

static int64_t common_all(const struct unit *a, const struct unit *b, const struct unit_context *c,
                          int64_t *different) {
    int ka = a->slots, kb = b->slots;
    int64_t both = 0;
    bool sparse = a->sparse || b->sparse;
    for (int64_t t = 0; t < c->n; t++) {
        const int32_t *of_a = a->expert + t * ka, *of_b = b->expert + t * kb;
        int shared =
            sparse ? common_sparse(of_a, ka, of_b, kb) : common(of_a, ka, of_b, kb, c->mask);
        both += shared;
        *different += shared < (sparse ? filled(of_a, ka) : ka);
    }
    return both;
}

/* Where tokens choose different numbers of experts each token counts alike; one without any agrees
 * in nothing. */
static double common_shares(const struct unit *a, const struct unit *b,
                            const struct unit_context *c) {
    double sum = 0;
    for (int64_t t = 0; t < c->n; t++) {
        const int32_t *of_a = a->expert + t * a->slots;
        int n = filled(of_a, a->slots);
        if (n == 0) continue;
        sum += (double)common_sparse(of_a, a->slots, b->expert + t * b->slots, b->slots) / n;
    }
    return sum;
}

/* Sum of a token's scores at the given experts, added from the first. */
static double mass_at(const float *score, const int32_t *expert, int k) {
    double sum = 0;
    for (int i = 0; i < k; i++)
        if (expert[i] != ROUTE_NONE) sum += (double)score[expert[i]];
    return sum;
}

/* One token's share of score mass kept, to the whole and to the last full batch. */
static void add_share(struct unit *unit, int64_t token, double share) {
    unit->mass += share;
    for (int i = 0; i < unit->batch_sets; i++) {
        struct batches *b = unit->batches[i];
        int64_t first = batches_last_first(b);
        if (first >= 0 && token >= first && token < first + b->batch_tokens) b->last_mass += share;
    }
}

static void add_mass(struct unit *unit, const struct unit_context *c) {
    int k = unit->gate.topk;
    for (int64_t t = 0; t < c->n; t++) {
        double share = 1; /* the k highest themselves; or all underflowed: nothing to lose */
        if (unit->top) {
            const float *score = c->scores + t * unit->experts;
            double most = mass_at(score, unit->top->expert + t * k, k);
            if (most != 0)
                share = mass_at(score, unit->expert + t * unit->slots, unit->slots) / most;
        }
        add_share(unit, unit->tokens + t, share);
    }
}

void unit_hold(struct unit *unit, const float *scores, int64_t n) {
    const struct sums sums = {n, unit->experts, unit->gate.topk, unit->expert};
    sums_mass(&sums, scores, unit->held);
}

/* add_mass where nobody left a slot empty; the last full batch is a range of the chunk. */
static void add_full_mass(struct unit *unit, const struct unit_context *c,
                          const struct sums *sums) {
    double *share = unit->held, mass = unit->mass;
    const double *most = unit->top ? unit->top->held : NULL;
    if (most) sums_mass(sums, c->scores, share);
    for (int64_t t = 0; t < c->n; t++) {
        double kept = most && most[t] != 0 ? share[t] / most[t] : 1;
        if (most) share[t] = kept;
        mass += kept;
    }
    unit->mass = mass;
    for (int i = 0; i < unit->batch_sets; i++) {
        struct batches *b = unit->batches[i];
        int64_t first = batches_last_first(b) - unit->tokens, last = first + b->batch_tokens;
        if (batches_last_first(b) < 0) continue;
        for (int64_t t = first > 0 ? first : 0; t < c->n && t < last; t++)
            b->last_mass += unit->top ? share[t] : 1;
    }
}

static void add_losses(struct unit *unit, const struct unit_context *c) {
    int k = unit->gate.topk;
    const struct unit *top = unit->top ? unit->top : unit;
    const int32_t *expert = unit->asked ? unit->asked : unit->expert;
    for (int64_t i = 0; unit->asked && i < c->n * unit->slots; i++)
        if (unit->asked[i] != ROUTE_NONE) unit->asked_count[unit->asked[i]]++;
    for (int64_t t = 0; t < c->n; t++) {
        const struct losses_token token = {.score = c->scores + t * unit->experts,
                                           .logit = c->logits + t * unit->experts,
                                           .first = expert[t * unit->slots],
                                           .top = top->expert + t * k,
                                           .document = c->ordered ? c->document[t] : -1};
        losses_add(unit->losses, &token);
    }
}

static void accumulate_sparse(struct unit *unit, const struct unit_context *c) {
    int64_t different = 0;
    add_sparse_loads(unit, c);
    add_ranks(unit, c->n);
    if (unit->gate.cut != CUT_NONE)
        unit->agreed_share += common_shares(unit, c->native, c);
    else if (unit == c->native)
        unit->agreed += c->n * unit->gate.topk;
    else
        unit->agreed += common_all(unit, c->native, c, &different);
    add_mass(unit, c);
}

static void accumulate_full(struct unit *unit, const struct unit_context *c) {
    const struct sums sums = {c->n, unit->experts, unit->slots, unit->expert};
    int64_t different = 0;
    add_full_loads(unit, c, &sums);
    for (int i = 0; i < sums.k && unit->tokens == 0; i++) unit->shift[i] = (double)unit->weight[i];
    sums_ranks(&sums, unit->weight, unit->shift, unit->first_sum, unit->second_sum);
    if (unit == c->native)
        unit->agreed += c->n * sums.k;
    else
        unit->agreed += sums_common(&sums, c->native_flag, &different);
    add_full_mass(unit, c, &sums);
}

void unit_accumulate(struct unit *unit, const struct unit_context *c) {
    if (unit->hidden) return;
    if (unit->document) add_documents(unit, c);
    if (unit->losses) add_losses(unit, c);
    if (unit->twin) common_all(unit, unit->twin, c, &unit->parted);
    if (unit->sparse || c->native->sparse)
        accumulate_sparse(unit, c);
    else
        accumulate_full(unit, c);
    unit->tokens += c->n;
}

/* Each choice is counted once, into its batch. Counts that came without tokens stay. */
void unit_close(struct unit *unit) {
    if (unit->hidden || unit->sparse || unit->tokens == 0) return;
    memcpy(unit->count, unit->batches[0]->total, (size_t)unit->experts * sizeof *unit->count);
}
