/* pass.c - one pass over a corpus: all tokens through a layer, then the next (layer-major)
 *
 * The residual stream of the whole pass stays in memory; inside a layer the pass is cut into
 * stretches of whole windows, so that the other activations stay small. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

/* Hidden states of more than 1/SPILL_SHARE of the bound on memory lie in a file. */
enum { STRETCH_TOKENS = 4096, SPILL_SHARE = 8 };

struct pass {
    struct engine *engine;
    const struct engine_pass *input;
    const struct engine_sink *sink;
    const struct progress *progress;
    float *hidden; /* [T,H] */
    float *stash;  /* [T,H]: output of a side mixture that joins later, or NULL */
    struct spill hidden_spill, stash_spill; /* behind them */
    int32_t *position;                      /* [T] */
    bool *is_long;                          /* [T] or NULL */
    int64_t *start;                         /* [windows+1] of the stretch in hand */
    int64_t embedded;                       /* tokens */
    struct arena tables;
    struct rope_table *ropes;
    struct err *err;
};

/* ---- checking what came in */

static bool check_windows(const struct engine *engine, const struct engine_pass *pass,
                          struct err *err) {
    const struct model_spec *spec = &engine->spec;
    if (pass->tokens < 1 || pass->windows < 1 || pass->window_start[0] != 0 ||
        pass->window_start[pass->windows] != pass->tokens)
        return err_set(err, ERR_DATA, "pass: found windows that do not cover its tokens");
    for (int64_t w = 0; w < pass->windows; w++) {
        int64_t length = pass->window_start[w + 1] - pass->window_start[w];
        if (length < 1 || length > INT32_MAX)
            return err_set(err, ERR_DATA,
                           "pass: window %lld: found %lld tokens, expected 1 or more", (long long)w,
                           (long long)length);
        if (spec->window_limit && length > spec->window_limit)
            return err_set(err, ERR_UNSUPPORTED,
                           "pass: window %lld: found %lld tokens, expected at most %lld (%s)",
                           (long long)w, (long long)length, (long long)spec->window_limit,
                           spec->window_limit_reason);
        for (int r = 0; r < spec->rope_count; r++)
            if (spec->ropes[r].limit && length > spec->ropes[r].limit)
                return err_set(err, ERR_UNSUPPORTED,
                               "pass: window %lld: found %lld tokens, expected at most %lld (rope "
                               "type dynamic beyond max_position_embeddings)",
                               (long long)w, (long long)length, (long long)spec->ropes[r].limit);
    }
    return true;
}

static bool check_ids(const struct engine *engine, const struct engine_pass *pass,
                      struct err *err) {
    for (int64_t t = 0; t < pass->tokens; t++)
        if (pass->ids[t] < 0 || pass->ids[t] >= engine->spec.vocab)
            return err_set(err, ERR_DATA, "token %lld: found id %d, expected 0 .. %d", (long long)t,
                           pass->ids[t], engine->spec.vocab - 1);
    return true;
}

/* ---- preparation */

/* Positions within windows, and tables of every rotation for the longest window. */
static bool prepare_positions(struct pass *p) {
    const struct engine_pass *input = p->input;
    const struct model_spec *spec = &p->engine->spec;
    int64_t longest = 0, threshold = 0;
    for (int r = 0; r < spec->rope_count; r++)
        if (spec->ropes[r].inv_freq_long) threshold = spec->ropes[r].long_from;
    p->position = malloc((size_t)input->tokens * sizeof *p->position);
    p->is_long = calloc((size_t)input->tokens, sizeof *p->is_long);
    p->start = calloc((size_t)input->windows + 1, sizeof *p->start);
    p->ropes = arena_alloc(&p->tables, (size_t)spec->rope_count * 2 + 1, sizeof *p->ropes);
    if (!p->position || !p->is_long || !p->start || !p->ropes) return err_memory(p->err, "a pass");
    for (int64_t w = 0; w < input->windows; w++) {
        int64_t first = input->window_start[w], length = input->window_start[w + 1] - first;
        if (length > longest) longest = length;
        for (int64_t i = 0; i < length; i++) {
            p->position[first + i] = (int32_t)i;
            p->is_long[first + i] = threshold && length > threshold;
        }
    }
    for (int r = 0; r < spec->rope_count; r++) {
        const struct rope *rope = &spec->ropes[r];
        int64_t shorter = rope->long_from && longest > rope->long_from ? rope->long_from : longest;
        if (!rope_table_make(&p->ropes[2 * r], rope, shorter, &p->tables) ||
            (longest > shorter &&
             !rope_table_make(&p->ropes[2 * r + 1], rope, longest, &p->tables)))
            return err_memory(p->err, "rotation tables");
        if (longest <= shorter) p->ropes[2 * r + 1] = p->ropes[2 * r];
    }
    return true;
}

static void embed_row(void *context, int64_t t) {
    const struct pass *p = context;
    int64_t hidden = p->engine->spec.hidden;
    t += p->embedded;
    float *to = p->hidden + t * hidden;
    float factor = p->engine->spec.embedding_scale;
    weights_rows(p->engine->embedding, p->input->ids[t], 1, hidden, to);
    if (factor != 1)
        for (int64_t i = 0; i < hidden; i++) to[i] *= factor;
}

/* ---- one layer */

struct residual {
    float *x;
    const float *kept, *added;
    float keep, add;
};

enum { RESIDUAL_BLOCK = 1 << 14 };

struct residual_job {
    struct residual r;
    int64_t count;
};

static void add_block(void *context, int64_t job, int worker) {
    const struct residual_job *j = context;
    const struct residual *r = &j->r;
    int64_t end = (job + 1) * RESIDUAL_BLOCK < j->count ? (job + 1) * RESIDUAL_BLOCK : j->count;
    (void)worker;
    if (r->keep == 1 && r->add == 1)
        for (int64_t i = job * RESIDUAL_BLOCK; i < end; i++) r->x[i] = r->kept[i] + r->added[i];
    else
        for (int64_t i = job * RESIDUAL_BLOCK; i < end; i++)
            r->x[i] = r->keep * r->kept[i] + r->add * r->added[i];
}

static void add_residual(struct forward *f, struct residual r) {
    struct residual_job job = {r, f->tokens * f->spec->hidden};
    pool_run(f->pool, (job.count + RESIDUAL_BLOCK - 1) / RESIDUAL_BLOCK, add_block, &job);
}

/* What the two halves of a layer share. */
struct half {
    struct forward *f;
    const struct step_spec *step;
    const struct norm_weights *in, *out;
    float *x, *normed, *result;
};

/* normed <- in(x); the residual stream itself where there is no norm. */
static bool half_begin(struct half *h) {
    int64_t hidden = h->f->spec->hidden;
    h->result = forward_floats(h->f, h->f->tokens, hidden);
    h->normed = h->x;
    if (!h->result) return false;
    if (h->step->in.kind == LAYER_NORM_ABSENT) return true;
    h->normed = forward_floats(h->f, h->f->tokens, hidden);
    if (!h->normed) return false;
    norm_rows(h->f, &h->step->in, h->in, h->x, h->normed, h->f->tokens, hidden);
    return true;
}

/* x <- keep * r + add * out(result) */
static void half_end(struct half *h) {
    if (h->step->out.kind != LAYER_NORM_ABSENT)
        norm_rows(h->f, &h->step->out, h->out, h->result, h->result, h->f->tokens,
                  h->f->spec->hidden);
    add_residual(h->f, (struct residual){h->x, h->step->from_normed ? h->normed : h->x, h->result,
                                         h->step->keep, h->step->add});
}

static struct route_target target_of(const struct pass *p, int step) {
    int index = p->engine->router_of[step];
    if (index < 0) return (struct route_target){.index = index, .sink = p->sink};
    return (struct route_target){&p->engine->router[index], &p->engine->stream[index], index,
                                 p->sink};
}

/* The feed-forward half; parallel blocks give it the attention's normed input. */
static bool feed(struct pass *p, struct forward *f, int step, const struct layer_weights *w,
                 float *x, float *given) {
    const struct layer_spec *layer = &p->engine->spec.layer[step];
    struct route_target target = target_of(p, step);
    struct half h = {f, &layer->feed, &w->feed_in, &w->feed_out, x, NULL, NULL};
    if (!half_begin(&h)) return false;
    if (given) h.normed = given;
    if (layer->side.experts && !ffn_forward(f, &layer->side, &w->side, &target, h.normed,
                                            p->stash + f->first * f->spec->hidden))
        return false;
    if (!ffn_forward(f, &layer->ffn, &w->ffn, &target, h.normed, h.result)) return false;
    half_end(&h);
    if (layer->side_joins)
        add_residual(f, (struct residual){x, x, p->stash + f->first * f->spec->hidden, 1, 1});
    return true;
}

static bool stretch(struct pass *p, struct forward *f, int step, const struct layer_weights *w) {
    const struct layer_spec *layer = &p->engine->spec.layer[step];
    float *x = p->hidden + f->first * f->spec->hidden;
    struct half h = {f, &layer->attend, &w->attend_in, &w->attend_out, x, NULL, NULL};
    arena_reset(f->scratch);
    if (!half_begin(&h) ||
        !attention_forward(f, &layer->attention, &w->attention, h.normed, h.result))
        return false;
    half_end(&h);
    if (!layer->parallel) arena_reset(f->scratch);
    return feed(p, f, step, w, x, layer->parallel ? h.normed : NULL);
}

/* The windows [*next, ...) that make the next stretch; at least one. */
static void cut_stretch(const struct pass *p, struct forward *f, int64_t *next) {
    const int64_t *start = p->input->window_start;
    int64_t first = *next, w = first + 1;
    while (w < p->input->windows && start[w + 1] - start[first] <= STRETCH_TOKENS) w++;
    for (int64_t i = first; i <= w; i++) p->start[i - first] = start[i] - start[first];
    f->first = start[first];
    f->tokens = start[w] - start[first];
    f->windows = (int)(w - first);
    f->position = p->position + f->first;
    f->is_long = p->is_long + f->first;
    *next = w;
}

/* Rows of the residual stream that are done with for now. */
static void drop_rows(const struct pass *p, int64_t first, int64_t tokens) {
    size_t row = (size_t)p->engine->spec.hidden * sizeof *p->hidden;
    spill_drop(&p->hidden_spill, (size_t)first * row, (size_t)tokens * row);
    if (p->stash) spill_drop(&p->stash_spill, (size_t)first * row, (size_t)tokens * row);
}

static bool run_layers(struct pass *p) {
    struct engine *engine = p->engine;
    struct forward f = {.spec = &engine->spec,
                        .kernels = engine->kernels,
                        .pool = engine->pool,
                        .bf16 = engine->bf16,
                        .ropes = p->ropes,
                        .start = p->start,
                        .err = p->err};
    int64_t all = p->input->tokens * engine->spec.steps;
    bool ok = true;
    struct loader experts = {0};
    if (engine->grouped) f.experts = &experts;
    f.scratch = &engine->scratch;
    for (int step = 0; step < engine->spec.steps && ok; step++) {
        const struct layer_weights *w = model_layer(engine, step, p->err);
        ok = w != NULL && (!engine->grouped || model_experts(engine, step, &experts, p->err));
        model_read_ahead(engine, step + 1);
        for (int64_t next = 0; next < p->input->windows && ok;) {
            cut_stretch(p, &f, &next);
            ok = stretch(p, &f, step, w);
            drop_rows(p, f.first, f.tokens);
            int64_t done = step * p->input->tokens + f.first + f.tokens;
            if (ok && !progress_report(p->progress, "layers", done, all, "token-layers"))
                ok = err_set(p->err, ERR_CANCELLED, "stopped in layer %d", step);
        }
        loader_free(&experts);
    }
    arena_reset(&engine->scratch);
    if (engine->memory_bytes) arena_free(&engine->scratch);
    return ok;
}

static bool allocate_hidden(struct pass *p) {
    const struct model_spec *spec = &p->engine->spec;
    size_t count = (size_t)p->input->tokens * (size_t)spec->hidden;
    bool side = false;
    if (count / (size_t)spec->hidden != (size_t)p->input->tokens || count > SIZE_MAX / 8)
        return err_memory(p->err, "hidden states of a pass");
    for (int i = 0; i < spec->steps; i++) side |= spec->layer[i].side.experts > 0;
    size_t bytes = count * sizeof *p->hidden, bound = p->engine->memory_bytes;
    bool in_file = bound && bytes * (side ? 2 : 1) > bound / SPILL_SHARE;
    if (!spill_open(&p->hidden_spill, bytes, in_file, p->err) ||
        (side && !spill_open(&p->stash_spill, bytes, in_file, p->err)))
        return err_context(p->err, "hidden states of a pass");
    p->hidden = p->hidden_spill.data;
    p->stash = p->stash_spill.data;
    return true;
}

static void embed(struct pass *p) {
    for (int64_t n; p->embedded < p->input->tokens; p->embedded += n) {
        n = p->input->tokens - p->embedded;
        if (n > STRETCH_TOKENS) n = STRETCH_TOKENS;
        forward_rows(p->engine->pool, n, embed_row, p);
        drop_rows(p, p->embedded, n);
        if (p->engine->memory_bytes) weights_drop(p->engine->embedding);
    }
}

bool engine_run(struct engine *engine, const struct engine_pass *input,
                const struct engine_sink *sink, const struct progress *progress, struct err *err) {
    struct pass p = {
        .engine = engine, .input = input, .sink = sink, .progress = progress, .err = err};
    arena_init(&p.tables, "pass");
    bool ok = check_windows(engine, input, err) && check_ids(engine, input, err) &&
              allocate_hidden(&p) && prepare_positions(&p);
    if (ok) {
        embed(&p);
        ok = run_layers(&p) && head_run(engine, input, sink, &p.hidden_spill, err);
    }
    spill_close(&p.hidden_spill);
    spill_close(&p.stash_spill);
    free(p.position);
    free(p.is_long);
    free(p.start);
    arena_free(&p.tables);
    return ok;
}
