/* pass.c - one pass over a corpus: all tokens through a layer, then the next (layer-major)
 *
 * The residual stream of the whole pass stays; inside a layer the pass is cut into stretches of
 * whole windows, so that the other activations stay small. A layer whose experts do not fit into
 * the memory is run in three rounds (experts.h). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/experts.h"
#include "engine/model.h"

/* Of a bound on memory: hidden states of more than 1/SPILL_SHARE lie in a file, and stretches are
 * so short that their activations take 1/ACTIVATION_SHARE, once a first layer has shown how much
 * FIRST_TOKENS need. */
enum { STRETCH_TOKENS = 4096, FIRST_TOKENS = 512, SPILL_SHARE = 8, ACTIVATION_SHARE = 4 };

struct pass {
    struct engine *engine;
    const struct engine_pass *input;
    const struct engine_sink *sink;
    const struct progress *progress;
    float *hidden; /* [T,H] */
    float *stash;  /* [T,H]: output of a side mixture that joins later, or NULL */
    struct spill hidden_spill, stash_spill; /* behind them */
    struct expert_pass experts;             /* where experts come in groups */
    int32_t *position;                      /* [T] */
    bool *is_long;                          /* [T] or NULL */
    int64_t *start;                         /* [windows+1] of the stretch in hand */
    int64_t embedded;                       /* tokens */
    int64_t stretch_tokens;                 /* of a stretch of several windows, at most */
    int64_t longest_stretch;                /* of the layer in hand, or stretch_tokens */
    size_t token_bytes;                     /* most activations of a token so far */
    int64_t shown;                          /* tokens of the layer in hand, for progress */
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
    float *x;
    const float *normed;
    float *result;
};

/* normed <- in(x), unless it is given; the residual stream itself where there is no norm. */
static bool half_begin(struct half *h, const float *given) {
    int64_t hidden = h->f->spec->hidden;
    h->result = forward_floats(h->f, h->f->tokens, hidden);
    h->normed = given ? given : h->x;
    if (!h->result) return false;
    if (given || h->step->in.kind == LAYER_NORM_ABSENT) return true;
    float *normed = forward_floats(h->f, h->f->tokens, hidden);
    if (!normed) return false;
    norm_rows(h->f, &h->step->in, h->in, h->x, normed, h->f->tokens, hidden);
    h->normed = normed;
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

/* ffn_forward, or its last step where the experts of all stretches have been gone through. */
static bool feed_forward(struct forward *f, const struct ffn_spec *spec,
                         const struct ffn_weights *weights, const struct route_target *target,
                         const float *in, float *out) {
    if (spec->experts && f->experts) return experts_finish(f->experts, f, spec, weights, out);
    return ffn_forward(f, spec, weights, target, in, out);
}

/* The feed-forward half. given[M,H]: its normed input, where that is known already. */
static bool feed(struct pass *p, struct forward *f, int step, const struct layer_weights *w,
                 const float *given) {
    const struct layer_spec *layer = &p->engine->spec.layer[step];
    int64_t at = f->first * f->spec->hidden;
    struct route_target target = target_of(p, step);
    struct half h = {f, &layer->feed, &w->feed_in, &w->feed_out, p->hidden + at, NULL, NULL};
    if (!half_begin(&h, given)) return false;
    if (layer->side.experts &&
        !feed_forward(f, &layer->side, &w->side, &target, h.normed, p->stash + at))
        return false;
    if (!feed_forward(f, &layer->ffn, &w->ffn, &target, h.normed, h.result)) return false;
    half_end(&h);
    if (layer->side_joins) add_residual(f, (struct residual){h.x, h.x, p->stash + at, 1, 1});
    return true;
}

/* The attention half; *normed <- its normed input. */
static bool attend(struct pass *p, struct forward *f, int step, const struct layer_weights *w,
                   const float **normed) {
    const struct layer_spec *layer = &p->engine->spec.layer[step];
    float *x = p->hidden + f->first * f->spec->hidden;
    struct half h = {f, &layer->attend, &w->attend_in, &w->attend_out, x, NULL, NULL};
    if (!half_begin(&h, NULL) ||
        !attention_forward(f, &layer->attention, &w->attention, h.normed, h.result))
        return false;
    half_end(&h);
    *normed = h.normed;
    return true;
}

/* What is done with one stretch in a round over all of them. */
typedef bool (*stretch_run)(struct pass *p, struct forward *f, int step,
                            const struct layer_weights *w);

static bool whole_layer(struct pass *p, struct forward *f, int step,
                        const struct layer_weights *w) {
    bool parallel = p->engine->spec.layer[step].parallel; /* one norm for both halves */
    const float *normed;
    if (!attend(p, f, step, w, &normed)) return false;
    if (!parallel) arena_reset(f->scratch);
    p->shown = f->first + f->tokens;
    return feed(p, f, step, w, parallel ? normed : NULL);
}

/* Does a feed-forward read something else than the residual stream? */
static bool has_input(const struct layer_spec *layer) {
    return layer->parallel || layer->feed.in.kind != LAYER_NORM_ABSENT;
}

/* First round: attention, and where each token goes. */
static bool route_stretch(struct pass *p, struct forward *f, int step,
                          const struct layer_weights *w) {
    const struct layer_spec *layer = &p->engine->spec.layer[step];
    int64_t hidden = f->spec->hidden, at = f->first * hidden;
    float *in = p->experts.normed + at;
    struct route_target target = target_of(p, step);
    const float *normed;
    if (!attend(p, f, step, w, &normed)) return false;
    if (layer->parallel)
        memcpy(in, normed, (size_t)(f->tokens * hidden) * sizeof *in);
    else if (has_input(layer))
        norm_rows(f, &layer->feed.in, &w->feed_in, p->hidden + at, in, f->tokens, hidden);
    arena_reset(f->scratch);
    return experts_route(&p->experts, f, layer_mixture(layer), layer_mixture_weights(layer, w),
                         &target);
}

/* Third round: what comes after the routed experts. */
static bool finish_stretch(struct pass *p, struct forward *f, int step,
                           const struct layer_weights *w) {
    return feed(p, f, step, w, p->experts.in + f->first * f->spec->hidden);
}

/* The windows [*next, ...) that make the next stretch; at least one. */
static void cut_stretch(const struct pass *p, struct forward *f, int64_t *next) {
    const int64_t *start = p->input->window_start;
    int64_t first = *next, w = first + 1;
    while (w < p->input->windows && start[w + 1] - start[first] <= p->stretch_tokens) w++;
    for (int64_t i = first; i <= w; i++) p->start[i - first] = start[i] - start[first];
    f->first = start[first];
    f->tokens = start[w] - start[first];
    f->windows = (int)(w - first);
    f->position = p->position + f->first;
    f->id = p->input->ids + f->first;
    f->is_long = p->is_long + f->first;
    *next = w;
}

/* Rows of the residual stream that are done with for now. */
static void drop_rows(const struct pass *p, int64_t first, int64_t tokens) {
    size_t row = (size_t)p->engine->spec.hidden * sizeof *p->hidden;
    spill_drop(&p->hidden_spill, (size_t)first * row, (size_t)tokens * row);
    if (p->stash) spill_drop(&p->stash_spill, (size_t)first * row, (size_t)tokens * row);
    if (p->engine->grouped) experts_drop(&p->experts, first, tokens);
}

static bool report(const struct pass *p, int step) {
    int64_t tokens = p->input->tokens, all = tokens * p->engine->spec.steps;
    if (progress_report(p->progress, "layers", step * tokens + p->shown, all, "token-layers"))
        return true;
    return err_set(p->err, ERR_CANCELLED, "stopped in layer %d", step);
}

/* A round over the stretches. */
static bool each_stretch(struct pass *p, struct forward *f, int step, const struct layer_weights *w,
                         stretch_run run) {
    for (int64_t next = 0; next < p->input->windows;) {
        cut_stretch(p, f, &next);
        if (f->tokens > p->longest_stretch) p->longest_stretch = f->tokens;
        arena_reset(f->scratch);
        if (!run(p, f, step, w)) return false;
        drop_rows(p, f->first, f->tokens);
        if (!report(p, step)) return false;
    }
    return true;
}

/* The second round. */
static bool each_group(struct pass *p, struct forward *f, int step) {
    const struct ffn_spec *spec = layer_mixture(&p->engine->spec.layer[step]);
    int real = spec->experts - spec->identity_experts;
    for (int next = 0; next < real;) {
        if (!experts_group(&p->experts, f, spec, &next)) return false;
        p->shown = p->input->tokens * next / real;
        if (!report(p, step)) return false;
    }
    return true;
}

static bool run_step(struct pass *p, struct forward *f, int step) {
    struct engine *engine = p->engine;
    const struct layer_spec *layer = &engine->spec.layer[step];
    const struct layer_weights *w = model_layer(engine, step, p->err);
    if (!w) return false;
    p->shown = 0;
    f->experts = engine->grouped && layer_mixture(layer) ? &p->experts : NULL;
    if (!f->experts) {
        model_read_ahead(engine, step + 1);
        return each_stretch(p, f, step, w, whole_layer);
    }
    const float *in = has_input(layer) ? p->experts.normed : p->hidden;
    return experts_begin(&p->experts, engine, step, in, p->err) &&
           each_stretch(p, f, step, w, route_stretch) && each_group(p, f, step) &&
           each_stretch(p, f, step, w, finish_stretch);
}

/* Within a bound, the stretches of the layers to come are as long as their activations may be. */
static void adapt_stretches(struct pass *p) {
    struct engine *engine = p->engine;
    if (engine->memory_bytes == 0) return;
    size_t token = engine->scratch.peak_bytes / (size_t)p->longest_stretch + 1;
    if (token > p->token_bytes) p->token_bytes = token;
    size_t fit = engine->memory_bytes / ACTIVATION_SHARE / p->token_bytes;
    int64_t tokens = fit < 1 ? 1 : fit < STRETCH_TOKENS ? (int64_t)fit : STRETCH_TOKENS;
    if (tokens == p->stretch_tokens) return;
    p->stretch_tokens = tokens;
    arena_free(&engine->scratch); /* for one that is no larger than it has to be */
}

static bool run_layers(struct pass *p) {
    struct engine *engine = p->engine;
    struct forward f = {.spec = &engine->spec,
                        .kernels = engine->kernels,
                        .pool = engine->pool,
                        .bf16 = engine->bf16,
                        .ropes = p->ropes,
                        .start = p->start,
                        .pass_first = p->input->first,
                        .scratch = &engine->scratch,
                        .err = p->err};
    bool ok = true;
    p->stretch_tokens = engine->memory_bytes ? FIRST_TOKENS : STRETCH_TOKENS;
    for (int step = 0; step < engine->spec.steps && ok; step++) {
        p->longest_stretch = p->stretch_tokens;
        f.rows_limit = engine->memory_bytes ? p->stretch_tokens : 0;
        ok = run_step(p, &f, step);
        if (ok) adapt_stretches(p);
    }
    arena_reset(&engine->scratch);
    if (engine->memory_bytes) arena_free(&engine->scratch);
    return ok;
}

static bool allocate_hidden(struct pass *p) {
    const struct engine *engine = p->engine;
    const struct model_spec *spec = &engine->spec;
    size_t tokens = (size_t)p->input->tokens, row = (size_t)spec->hidden * sizeof *p->hidden, all;
    bool side = false, grouped = engine->grouped;
    for (int i = 0; i < spec->steps; i++) side |= spec->layer[i].side.experts > 0;
    size_t token = row * (side ? 2 : 1) + (grouped ? experts_token_bytes(engine) : 0);
    if (__builtin_mul_overflow(tokens, token, &all) || all > SIZE_MAX / 2)
        return err_memory(p->err, "hidden states of a pass");
    bool in_file = engine->memory_bytes && all > engine->memory_bytes / SPILL_SHARE;
    if (!spill_open(&p->hidden_spill, tokens * row, in_file, p->err) ||
        (side && !spill_open(&p->stash_spill, tokens * row, in_file, p->err)))
        return err_context(p->err, "hidden states of a pass");
    p->hidden = p->hidden_spill.data;
    p->stash = p->stash_spill.data;
    return !grouped || experts_open(&p->experts, engine, p->input->tokens, in_file, p->err);
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
        model_read_ahead(engine, 0);
        embed(&p);
        ok = run_layers(&p) && head_run(engine, input, sink, &p.hidden_spill, err);
    }
    spill_close(&p.hidden_spill);
    spill_close(&p.stash_spill);
    experts_close(&p.experts);
    free(p.position);
    free(p.is_long);
    free(p.start);
    arena_free(&p.tables);
    return ok;
}
