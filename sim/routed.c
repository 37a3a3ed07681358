/* routed.c - choices of all tokens at one layer, routed again or as recorded */
#include "sim/routed.h"

#include <math.h>
#include <string.h>

#include "base/arena.h"
#include "router/route.h"
#include "sim/drawn.h"
#include "sim/unit.h"

enum { CHUNK_TOKENS = 1024 };

static bool native_only(const struct variant_lists *l) {
    bool gates =
        l->gates.count == 0 || (l->gates.count == 1 && strcmp(l->gates.item[0], "native") == 0);
    return gates && l->scores.count == 0 && l->groups.count == 0 && l->bias_rules.count == 0;
}

static bool check_width(const struct routed *routed, struct err *err) {
    for (int i = 0; i < routed->set.count; i++)
        for (int l = 0; l < routed->set.layers; l++) {
            int slots =
                gate_slots(&variant_at(&routed->set, i, l)->gate, routed->source.layer[l].experts);
            if (slots > ROUTED_MOST_SLOTS)
                return err_set(err, ERR_UNSUPPORTED,
                               "variant %d: layer %d: found expert choice among %d experts, "
                               "expected at most %d (a token may have all of them)",
                               routed->set.variant[i].number, routed->source.layer[l].layer, slots,
                               ROUTED_MOST_SLOTS);
        }
    return true;
}

bool routed_open(struct routed *routed, const struct trace *trace,
                 const struct variant_lists *lists, struct err *err) {
    *routed = (struct routed){.trace = trace, .variants = 1};
    routed->scores = trace_has_scores(trace);
    for (int r = 0; r < trace_layers(trace); r++)
        routed->counted = routed->counted || trace_layer(trace, r)->holds == TRACE_COUNTS;
    routed->tokens = routed->counted ? trace_tokens_total(trace) : trace_tokens(trace);
    if (routed->tokens < 1)
        return err_set(err, ERR_DATA, "%s: found no tokens, expected a trace", trace_path(trace));
    if (!routed->scores) {
        if (native_only(lists)) return true;
        return err_set(err, ERR_UNSUPPORTED, "%s: found %s only; another gate needs router scores",
                       trace_path(trace), routed->counted ? "counts" : "chosen experts");
    }
    if (!source_open_trace(&routed->source, trace, NULL, err) ||
        !variant_set_build(&routed->set, lists, &routed->source, err) ||
        !check_width(routed, err) ||
        !token_ids_read(&routed->ids, &routed->set, &routed->source, err)) {
        routed_free(routed);
        return false;
    }
    routed->variants = routed->set.count;
    return true;
}

void routed_free(struct routed *routed) {
    if (routed->scores) {
        token_ids_free(&routed->ids);
        variant_set_free(&routed->set);
        source_free(&routed->source);
    }
    *routed = (struct routed){0};
}

const char *routed_label(const struct routed *routed, int variant) {
    return routed->scores ? routed->set.variant[variant].label : "native";
}

const char *routed_bias_rule(const struct routed *routed, int variant) {
    return routed->scores ? routed->set.variant[variant].rule : "";
}

double routed_bias_rate(const struct routed *routed, int variant) {
    return routed->scores ? routed->set.variant[variant].rate : (double)NAN;
}

int routed_topk(const struct routed *routed, int variant, int layer) {
    return routed->scores ? variant_at(&routed->set, variant, layer)->gate.topk
                          : trace_layer(routed->trace, layer)->topk;
}

int routed_slots(const struct routed *routed, int variant, int layer) {
    if (!routed->scores) return trace_layer(routed->trace, layer)->topk;
    return gate_slots(&variant_at(&routed->set, variant, layer)->gate,
                      trace_layer(routed->trace, layer)->experts);
}

bool routed_varies(const struct routed *routed, int variant, int layer) {
    if (!routed->scores) return false;
    const struct gate *gate = &variant_at(&routed->set, variant, layer)->gate;
    return gate->assign == ASSIGN_EXPERT || (gate_leaves_slots(gate) && gate->capacity == 0);
}

static bool recorded(const struct routed *routed, int layer, uint16_t *expert, struct err *err) {
    if (routed->counted) return drawn_choices(routed->trace, layer, expert, err);
    struct trace_cursor *cursor = trace_cursor_open(routed->trace, layer, err);
    int k = trace_layer(routed->trace, layer)->topk;
    struct trace_chunk chunk = {0};
    bool ok = cursor != NULL;
    while (ok && (ok = trace_cursor_next(cursor, &chunk, err)) && chunk.tokens > 0)
        for (int64_t i = 0; i < chunk.tokens * k; i++)
            expert[chunk.first * k + i] = (uint16_t)chunk.expert[i];
    trace_cursor_free(cursor);
    return ok;
}

/* What a chunk needs: rules look at scores, so units get them as in the replay. */
struct chunk {
    int64_t tokens; /* n */
    bool whole;     /* all chunks but the last must be full */
    float *scores;  /* [n,E] */
    float *joined;  /* [n,E]; only when whole */
    void *scratch;
    struct route_rows rows; /* which tokens, for units that draw by token */
    int64_t *token;         /* [n] behind rows */
};

/* The next rows, at most a chunk of them; exactly a chunk, or what is left, when whole. */
static bool next_rows(const struct source *source, struct source_reader *reader,
                      const struct chunk *chunk, int experts, int64_t at, const float **logits,
                      int64_t *n, struct err *err) {
    int64_t left = source->tokens - at, max = left < chunk->tokens ? left : chunk->tokens, m;
    if (!chunk->whole) return source->rows(reader, at, max, logits, n, err);
    for (int64_t got = 0; got < max; got += m) {
        if (!source->rows(reader, at + got, max - got, logits, &m, err)) return false;
        memcpy(chunk->joined + got * experts, *logits, (size_t)(m * experts) * sizeof(float));
    }
    *logits = chunk->joined;
    *n = max;
    return true;
}

static void fill_chunk_rows(struct chunk *c, const struct routed *routed, int64_t first,
                            int64_t n) {
    for (int64_t t = 0; t < n; t++) c->token[t] = first + t;
    c->rows.token = c->token;
    c->rows.id = routed->ids.id ? routed->ids.id + first : NULL;
}

static bool stream(const struct routed *routed, struct unit *unit, int layer, uint16_t *expert,
                   struct chunk *chunk, struct err *err) {
    const struct source *source = &routed->source;
    struct source_reader *reader = source->open(source, layer, err);
    int k = unit->slots;
    bool ok = reader != NULL;
    for (int64_t at = 0; ok && at < source->tokens;) {
        const float *logits;
        int64_t n;
        ok = next_rows(source, reader, chunk, unit->experts, at, &logits, &n, err);
        if (ok && route_first_not_finite(logits, n * unit->experts) >= 0)
            ok = err_set(err, ERR_DATA,
                         "%s: layer %d: found a logit that is no finite number near token %lld",
                         source->name, source->layer[layer].layer, (long long)at);
        if (!ok) break;
        bool identity = unit->gate.score == SCORE_IDENTITY;
        if (!identity) route_scores(unit->gate.score, unit->experts, n, logits, chunk->scores);
        fill_chunk_rows(chunk, routed, at, n);
        unit_route(unit, logits, identity ? logits : chunk->scores, n, chunk->scratch);
        for (int64_t i = 0; i < n * k; i++) /* ROUTE_NONE becomes ROUTED_NONE */
            expert[at * k + i] = (uint16_t)unit->expert[i];
        at += n;
    }
    source->close(reader);
    return ok;
}

bool routed_choices(const struct routed *routed, int variant, int layer, uint16_t *expert,
                    struct err *err) {
    if (!routed->scores) return recorded(routed, layer, expert, err);
    const struct source_layer *at = &routed->source.layer[layer];
    const struct variant *v = &routed->set.variant[variant];
    int64_t tokens = routed->source.tokens;
    struct chunk chunk = {CHUNK_TOKENS, .whole = variant_needs_batch(&routed->set, variant)};
    if (chunk.whole) chunk.tokens = v->batch_tokens < tokens ? v->batch_tokens : tokens;
    chunk.rows = (struct route_rows){.seed = routed->set.seed, .layer = at->layer};
    struct unit_setup setup = {.variant = v,
                               .at = variant_at(&routed->set, variant, layer),
                               .total_tokens = tokens,
                               .chunk = chunk.tokens,
                               .captured = at->bias,
                               .experts = at->experts,
                               .ids_of_tokens = &routed->ids,
                               .rows = &chunk.rows,
                               .hidden = true};
    struct arena arena;
    struct unit unit;
    struct batches batches, *drive = &batches;
    arena_init(&arena, "routed");
    size_t row = (size_t)at->experts * sizeof(float);
    chunk.scratch = arena_alloc(&arena, 1, route_scratch_bytes(at->experts));
    chunk.scores = arena_alloc(&arena, (size_t)chunk.tokens, row);
    if (chunk.whole) chunk.joined = arena_alloc(&arena, (size_t)chunk.tokens, row);
    chunk.token = arena_alloc(&arena, (size_t)chunk.tokens, sizeof *chunk.token);
    bool buffers = chunk.scratch && chunk.scores && chunk.token && (chunk.joined || !chunk.whole);
    bool ok = (buffers || err_memory(err, "routing")) && unit_init(&unit, &setup, &arena, err);
    if (ok && unit.rule) {
        ok = batches_init(&batches, &arena, at->experts, 1, v->batch_tokens, routed->source.tokens,
                          err);
        unit.batches = &drive;
        unit.batch_sets = 1;
    }
    ok = ok && stream(routed, &unit, layer, expert, &chunk, err);
    arena_free(&arena);
    return ok;
}
