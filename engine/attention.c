/* attention.c - attention of a stretch of windows: grouped-query and multi-head latent
 *
 * Projects, norms, rotates, then hands q, k and v to the tiled kernel (attention_run). Latent
 * attention is expanded to plain heads first: for whole windows that is fewer operations than the
 * absorbed form. Formulas: MODEL.md sections "Attention" and "Latent attention". */
#include <math.h>

#include "engine/forward.h"

/* What the row functions of one attention call share. */
struct heads {
    struct forward *f;
    const struct attention_spec *spec;
    const struct attention_weights *weights;
    float *q, *k, *v;    /* [M, heads * dim], [M, kv * dim], [M, kv * v_dim] */
    const float *latent; /* MLA: [M, kv_lora + rope_dims] */
    const float *up;     /* MLA: [M, heads * (nope + v_dim)] */
    float *out;          /* [M, heads * v_dim] */
    const float *gate;   /* output gate's logits */
};

static const struct rope_table *table_for(const struct heads *h, int64_t row) {
    int rope = h->spec->rope;
    return &h->f->ropes[2 * rope + (h->f->is_long && h->f->is_long[row])];
}

static void clamp(float *x, int64_t n, float limit) {
    for (int64_t i = 0; i < n; i++) x[i] = fminf(fmaxf(x[i], -limit), limit);
}

static void scale(float *x, int64_t n, float factor) {
    if (factor == 1) return;
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

/* Query scaling that grows with the position (llama4, mistral4); 1 where the spec has none. */
static float temper(const struct attention_spec *spec, int32_t pos) {
    if (spec->temper == 0) return 1;
    float steps = floorf((float)(pos + spec->temper_shift) / spec->temper_floor);
    return 1 + spec->temper * logf(1 + steps);
}

/* Norms, clips and rotates the heads of one token. */
static void prepare_side(const struct heads *h, int64_t row, float *x, int heads,
                         const struct norm_spec *norm, const struct norm_weights *weights) {
    const struct attention_spec *s = h->spec;
    const struct kernels *kernels = h->f->kernels;
    int64_t dim = s->head_dim, all = heads * dim;
    bool late = s->qk_norm == QK_NORM_HEAD_AFTER_ROPE;
    if (s->qk_norm == QK_NORM_WHOLE) norm_apply(kernels, norm, weights, x, x, all);
    for (int i = 0; i < heads && s->qk_norm == QK_NORM_HEAD; i++)
        norm_apply(kernels, norm, weights, x + i * dim, x + i * dim, dim);
    if (s->clip > 0) clamp(x, all, s->clip);
    for (int i = 0; i < heads; i++) {
        if (s->rope >= 0) rope_apply(table_for(h, row), h->f->position[row], x + i * dim);
        if (late) norm_apply(kernels, norm, weights, x + i * dim, x + i * dim, dim);
    }
}

static void prepare_row(void *context, int64_t row) {
    const struct heads *h = context;
    const struct attention_spec *s = h->spec;
    int64_t q = (int64_t)s->heads * s->head_dim, k = (int64_t)s->kv_heads * s->head_dim;
    int64_t v = (int64_t)s->kv_heads * s->v_dim;
    prepare_side(h, row, h->q + row * q, s->heads, &s->q_norm, &h->weights->q_norm);
    prepare_side(h, row, h->k + row * k, s->kv_heads, &s->k_norm, &h->weights->k_norm);
    if (s->clip > 0) clamp(h->v + row * v, v, s->clip);
    scale(h->v + row * v, v, s->v_scale);
    scale(h->q + row * q, q, temper(s, h->f->position[row]));
}

/* o <- o * sigmoid(g) or o * softplus(g), per channel or per head. */
static void gate_row(void *context, int64_t row) {
    const struct heads *h = context;
    const struct attention_spec *s = h->spec;
    int64_t n = (int64_t)s->heads * s->v_dim, per = s->gate_per_head ? s->v_dim : 1;
    float *out = h->out + row * n;
    const float *gate = h->gate + row * (n / per);
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i / per];
        float factor = s->output_gate == OUTPUT_GATE_SIGMOID ? 1 / (1 + expf(-g))
                                                             : (g > 20 ? g : log1pf(expf(g)));
        out[i] *= factor;
    }
}

/* Runs the kernel on prepared heads; strides tell where k and v of a head lie. */
static bool run_kernel(struct heads *h, const float *v, int64_t ldv, int64_t head_v) {
    const struct attention_spec *s = h->spec;
    struct forward *f = h->f;
    struct attention job = {.q = h->q,
                            .k = h->k,
                            .v = v,
                            .out = h->out,
                            .ldq = (int64_t)s->heads * s->head_dim,
                            .ldk = (int64_t)s->kv_heads * s->head_dim,
                            .ldv = ldv,
                            .ldo = (int64_t)s->heads * s->v_dim,
                            .head_q = s->head_dim,
                            .head_k = s->head_dim,
                            .head_v = head_v,
                            .head_o = s->v_dim,
                            .heads = s->heads,
                            .kv_heads = s->kv_heads,
                            .dim = s->head_dim,
                            .dim_v = s->v_dim,
                            .start = f->start,
                            .windows = f->windows,
                            .span = s->window,
                            .chunk = s->chunk,
                            .scale = s->scale,
                            .sink = h->weights->sinks,
                            .bf16 = f->bf16};
    size_t bytes = attention_bytes(&job, f->pool);
    void *work = bytes ? arena_room(f->scratch, bytes, 1) : NULL;
    if (!work) return err_memory(f->err, "attention");
    attention_run(f->kernels, f->pool, &job, work);
    return true;
}

/* out[M,H] <- o_proj of the heads' output, gated first where the spec says so. */
static bool project_out(struct heads *h, const float *in, float *out) {
    const struct attention_spec *s = h->spec;
    struct forward *f = h->f;
    int64_t n = (int64_t)s->heads * s->v_dim;
    if (s->output_gate != OUTPUT_GATE_NONE) {
        float *gate = forward_floats(f, f->tokens, s->gate.n);
        if (!gate) return false;
        forward_linear(f, h->weights->gate, NULL, in, f->spec->hidden, f->tokens, gate, s->gate.n);
        h->gate = gate;
        forward_rows(f->pool, f->tokens, gate_row, h);
    }
    forward_linear(f, h->weights->o, h->weights->o_bias, h->out, n, f->tokens, out,
                   f->spec->hidden);
    return true;
}

static bool gqa(struct forward *f, const struct attention_spec *s,
                const struct attention_weights *w, const float *in, float *out) {
    int64_t m = f->tokens, hidden = f->spec->hidden;
    int64_t q = (int64_t)s->heads * s->head_dim, k = (int64_t)s->kv_heads * s->head_dim;
    int64_t v = (int64_t)s->kv_heads * s->v_dim, o = (int64_t)s->heads * s->v_dim;
    struct heads h = {.f = f, .spec = s, .weights = w};
    h.q = forward_floats(f, m, q);
    h.k = forward_floats(f, m, k);
    h.v = forward_floats(f, m, v);
    h.out = forward_floats(f, m, o);
    if (!h.q || !h.k || !h.v || !h.out) return false;
    forward_linear(f, w->q, w->q_bias, in, hidden, m, h.q, q);
    forward_linear(f, w->k, w->k_bias, in, hidden, m, h.k, k);
    forward_linear(f, w->v, w->v_bias, in, hidden, m, h.v, v);
    forward_rows(f->pool, m, prepare_row, &h);
    return run_kernel(&h, h.v, v, s->v_dim) && project_out(&h, in, out);
}

/* ---- latent attention */

/* Rotates q's rope parts, and assembles k = [k_nope | rotated shared key] for every head. */
static void expand_row(void *context, int64_t row) {
    const struct heads *h = context;
    const struct attention_spec *s = h->spec;
    const struct rope_table *table = table_for(h, row);
    int32_t pos = h->f->position[row];
    int64_t width = (int64_t)s->heads * s->head_dim, up = s->nope + s->v_dim;
    float *q = h->q + row * width, *k = h->k + row * width;
    const float *key = h->latent + row * (s->kv_lora + s->rope_dims) + s->kv_lora;
    scale(q, width, s->q_scale * temper(s, pos));
    for (int i = 0; i < s->heads; i++, q += s->head_dim, k += s->head_dim) {
        const float *nope = h->up + (row * s->heads + i) * up;
        rope_apply(table, pos, q + s->nope);
        for (int j = 0; j < s->nope; j++) k[j] = nope[j];
        for (int j = 0; j < s->rope_dims; j++) k[s->nope + j] = key[j];
        rope_apply(table, pos, k + s->nope);
    }
}

/* The query latent is normed in place; the kv latent into rows of its own. */
struct latent_job {
    const struct heads *h;
    float *normed; /* [M, kv_lora] */
};

static void latent_row(void *context, int64_t row) {
    const struct latent_job *job = context;
    const struct attention_spec *s = job->h->spec;
    float *to = job->normed + row * s->kv_lora;
    norm_apply(job->h->f->kernels, &s->k_norm, &job->h->weights->k_norm,
               job->h->latent + row * (s->kv_lora + s->rope_dims), to, s->kv_lora);
    scale(to, s->kv_lora, s->latent_scale);
}

static bool mla_query(struct heads *h, const float *in) {
    const struct attention_spec *s = h->spec;
    const struct attention_weights *w = h->weights;
    struct forward *f = h->f;
    int64_t m = f->tokens, width = (int64_t)s->heads * s->head_dim;
    if (s->q_lora == 0) {
        forward_linear(f, w->q, NULL, in, f->spec->hidden, m, h->q, width);
        return true;
    }
    float *latent = forward_floats(f, m, s->q_lora);
    if (!latent) return false;
    forward_linear(f, w->q_a, w->q_a_bias, in, f->spec->hidden, m, latent, s->q_lora);
    norm_rows(f, &s->q_norm, &w->q_norm, latent, latent, m, s->q_lora);
    forward_linear(f, w->q, NULL, latent, s->q_lora, m, h->q, width);
    return true;
}

static bool mla(struct forward *f, const struct attention_spec *s,
                const struct attention_weights *w, const float *in, float *out) {
    int64_t m = f->tokens, width = (int64_t)s->heads * s->head_dim;
    int64_t latent = s->kv_lora + s->rope_dims, up = (int64_t)s->heads * (s->nope + s->v_dim);
    struct heads h = {.f = f, .spec = s, .weights = w};
    float *compressed = forward_floats(f, m, latent), *expanded = forward_floats(f, m, up);
    struct latent_job job = {&h, forward_floats(f, m, s->kv_lora)};
    h.q = forward_floats(f, m, width);
    h.k = forward_floats(f, m, width);
    h.out = forward_floats(f, m, (int64_t)s->heads * s->v_dim);
    if (!compressed || !expanded || !job.normed || !h.q || !h.k || !h.out) return false;
    if (!mla_query(&h, in)) return false;
    forward_linear(f, w->kv_a, w->kv_a_bias, in, f->spec->hidden, m, compressed, latent);
    h.latent = compressed;
    forward_rows(f->pool, m, latent_row, &job);
    forward_linear(f, w->kv_b, NULL, job.normed, s->kv_lora, m, expanded, up);
    h.up = expanded;
    forward_rows(f->pool, m, expand_row, &h);
    return run_kernel(&h, expanded + s->nope, up, s->nope + s->v_dim) && project_out(&h, in, out);
}

bool attention_forward(struct forward *f, const struct attention_spec *spec,
                       const struct attention_weights *weights, const float *in, float *out) {
    static bool (*const kinds[])(struct forward *, const struct attention_spec *,
                                 const struct attention_weights *, const float *,
                                 float *) = {[ATTENTION_GQA] = gqa,
                                             [ATTENTION_MLA] = mla,
                                             [ATTENTION_CONV] = conv_forward,
                                             [ATTENTION_LINEAR] = linear_forward};
    return kinds[spec->kind](f, spec, weights, in, out);
}
