/* experts.c - the routed experts of a layer over all tokens of a pass, each loaded once
 *
 * Sums rise by expert, as they do when all experts are there (mixture.h): however many fit at a
 * time, no bit changes. */
#include "engine/experts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/mixture.h"
#include "engine/model.h"

static int64_t most_choices(const struct engine *engine) {
    int most = 0;
    for (int r = 0; r < engine->info.routers; r++)
        if (engine->router[r].gate.topk > most) most = engine->router[r].gate.topk;
    return most;
}

static int most_experts(const struct engine *engine) {
    int most = 0;
    for (int r = 0; r < engine->info.routers; r++)
        if (engine->router[r].experts > most) most = engine->router[r].experts;
    return most;
}

/* Of a token's choice: slot, row, weight. */
static const size_t CHOICE_BYTES = 2 * sizeof(int32_t) + sizeof(float);

size_t experts_token_bytes(const struct engine *engine) {
    return 2 * (size_t)engine->spec.hidden * sizeof(float) +
           (size_t)most_choices(engine) * CHOICE_BYTES;
}

bool experts_open(struct expert_pass *e, const struct engine *engine, int64_t tokens, bool in_file,
                  struct err *err) {
    size_t experts = (size_t)most_experts(engine), choices, rows;
    *e = (struct expert_pass){.engine = engine, .stride = most_choices(engine)};
    arena_init(&e->tables, "experts");
    if (__builtin_mul_overflow((size_t)tokens, experts_token_bytes(engine), &choices))
        return err_memory(err, "experts of a pass");
    choices = (size_t)tokens * (size_t)e->stride;
    rows = (size_t)tokens * (size_t)engine->spec.hidden * sizeof(float);
    if (!spill_open(&e->normed_spill, rows, in_file, err) ||
        !spill_open(&e->sum_spill, rows, in_file, err) ||
        !spill_open(&e->choices, choices * CHOICE_BYTES, in_file, err))
        return err_context(err, "experts of a pass");
    e->normed = e->normed_spill.data;
    e->sum = e->sum_spill.data;
    e->weight = e->choices.data;
    e->slot = (int32_t *)(e->weight + choices);
    e->row = e->slot + choices;
    e->rows = calloc(experts + 1, sizeof *e->rows);
    e->expert = calloc(experts + 1, sizeof *e->expert);
    return (e->rows && e->expert) || err_memory(err, "experts of a pass");
}

void experts_drop(const struct expert_pass *e, int64_t first, int64_t tokens) {
    size_t row = (size_t)e->engine->spec.hidden * sizeof *e->sum;
    size_t choices = e->choices.bytes / CHOICE_BYTES, stride = (size_t)e->stride;
    spill_drop(&e->normed_spill, (size_t)first * row, (size_t)tokens * row);
    spill_drop(&e->sum_spill, (size_t)first * row, (size_t)tokens * row);
    for (size_t part = 0; part < 3; part++) /* weight, slot, row: four bytes each */
        spill_drop(&e->choices, (part * choices + (size_t)first * stride) * 4,
                   (size_t)tokens * stride * 4);
}

void experts_close(struct expert_pass *e) {
    spill_close(&e->normed_spill);
    spill_close(&e->sum_spill);
    spill_close(&e->choices);
    loader_free(&e->loader);
    free(e->block);
    free(e->rows);
    free(e->expert);
    if (e->tables.name) arena_free(&e->tables);
}

/* Asks for the file pages of the experts from `first` on that a group can hold. */
static void expect(const struct expert_pass *e, const struct ffn_spec *spec, int first) {
    struct loader ahead = e->loader;
    struct glu_weights unused;
    int real = spec->experts - spec->identity_experts;
    ahead.memory = NULL;
    ahead.ahead = e->engine->ahead;
    ahead.used_bytes = 0;
    ahead.ahead_bytes = ahead.capacity_bytes;
    for (int i = first; i < real && ahead.used_bytes < ahead.capacity_bytes; i++)
        if (e->rows[i] && !load_expert(&ahead, spec, i, &unused)) return;
}

bool experts_begin(struct expert_pass *e, struct engine *engine, int step, const float *in,
                   struct err *err) {
    const struct ffn_spec *spec = layer_mixture(&engine->spec.layer[step]);
    int64_t choices = (int64_t)(e->choices.bytes / CHOICE_BYTES);
    e->step = step;
    e->in = in;
    e->blocks = e->next = 0;
    arena_reset(&e->tables);
    loader_free(&e->loader);
    if (!model_experts(engine, step, &e->loader, err)) return false;
    /* with few tokens it is not sure that the first experts have any */
    for (int i = 0; i < spec->experts; i++) e->rows[i] = choices >= 4 * (int64_t)spec->experts;
    expect(e, spec, 0);
    memset(e->rows, 0, (size_t)spec->experts * sizeof *e->rows);
    return true;
}

/* ---- first round */

static struct mixture mixture_of(const struct expert_pass *e, struct forward *f,
                                 const struct ffn_spec *spec, const struct ffn_weights *weights,
                                 const struct expert_block *block) {
    int64_t row = block->first * f->spec->hidden, choice = block->first * e->stride;
    return (struct mixture){.f = f,
                            .spec = spec,
                            .weights = weights,
                            .tokens = block->tokens,
                            .k = block->k,
                            .in = e->in + row,
                            .out = e->sum + row,
                            .slot = e->slot + choice,
                            .row = e->row + choice,
                            .weight = e->weight + choice,
                            .begin = block->begin};
}

static struct expert_block *add_block(struct expert_pass *e, int experts) {
    if (e->blocks == e->capacity) {
        int capacity = e->capacity ? 2 * e->capacity : 16;
        struct expert_block *block = realloc(e->block, (size_t)capacity * sizeof *block);
        if (!block) return NULL;
        e->block = block;
        e->capacity = capacity;
    }
    struct expert_block *block = &e->block[e->blocks++];
    block->begin = arena_alloc(&e->tables, (size_t)experts + 1, sizeof *block->begin);
    return block->begin ? block : NULL;
}

bool experts_route(struct expert_pass *e, struct forward *f, const struct ffn_spec *spec,
                   const struct ffn_weights *weights, const struct route_target *target) {
    for (int64_t at = 0; at < f->tokens; at += MIXTURE_TOKENS) {
        struct expert_block *block = add_block(e, spec->experts);
        if (!block) return err_memory(f->err, "routing");
        block->first = f->first + at;
        block->tokens = f->tokens - at < MIXTURE_TOKENS ? f->tokens - at : MIXTURE_TOKENS;
        block->k = target->router->gate.topk;
        struct mixture x = mixture_of(e, f, spec, weights, block);
        if (!mixture_route(&x, target, at)) return false;
        for (int i = 0; i < spec->experts; i++) e->rows[i] += block->begin[i + 1] - block->begin[i];
    }
    return true;
}

/* ---- second round */

/* Loads experts from `first` on, those with tokens, while there is room; *last <- the end. */
static bool load_group(struct expert_pass *e, const struct ffn_spec *spec, int first, int *last) {
    struct loader *loader = &e->loader;
    int real = spec->experts - spec->identity_experts;
    loader->used_bytes = 0;
    for (*last = first; *last < real; ++*last) {
        struct glu_weights *to = &e->expert[*last - first];
        *to = (struct glu_weights){0};
        if (e->rows[*last] == 0) continue;
        if (loader->used_bytes + expert_bytes(loader, spec, *last) > loader->capacity_bytes) break;
        if (!load_expert(loader, spec, *last, to)) return false;
    }
    assert(*last > first); /* model.c has seen to it that each expert fits */
    if (*last < real)
        expect(e, spec, *last);
    else
        model_read_ahead(e->engine, e->step + 1);
    return true;
}

bool experts_group(struct expert_pass *e, struct forward *f, const struct ffn_spec *spec,
                   int *next) {
    int first = *next;
    if (!load_group(e, spec, first, next)) return false;
    for (int i = 0; i < e->blocks; i++) {
        struct mixture x = mixture_of(e, f, spec, NULL, &e->block[i]);
        arena_reset(f->scratch);
        if (!mixture_add(&x, e->expert, first, *next)) return false;
        experts_drop(e, e->block[i].first, e->block[i].tokens);
    }
    return true;
}

/* ---- third round */

bool experts_finish(struct expert_pass *e, struct forward *f, const struct ffn_spec *spec,
                    const struct ffn_weights *weights, float *out) {
    int64_t hidden = f->spec->hidden;
    for (int64_t at = 0; at < f->tokens; at += MIXTURE_TOKENS) {
        struct mixture x = mixture_of(e, f, spec, weights, &e->block[e->next++]);
        if (!mixture_finish(&x)) return false;
        memcpy(out + at * hidden, x.out, (size_t)(x.tokens * hidden) * sizeof *out);
    }
    return true;
}
