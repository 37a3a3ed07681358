/* mixers.c - token mixers without softmax: gated short convolution (lfm2), linear attention
 * (minimax)
 *
 * Formulas: MODEL.md section "Layers without softmax". Each window starts from nothing. */
#include <math.h>
#include <string.h>

#include "engine/forward.h"

/* ---- convolution: [B|C|u] = in_proj h, y_t = sum_j w_j (B u)_{t-taps+1+j}, out_proj (C y) */

struct conv_job {
    struct forward *f;
    const struct attention_spec *spec;
    const struct attention_weights *weights;
    const float *parts; /* [M,3H] */
    float *mixed;       /* [M,H] */
};

static void conv_row(void *context, int64_t t) {
    const struct conv_job *job = context;
    int64_t hidden = job->f->spec->hidden, taps = job->spec->conv_length;
    int64_t reach = job->f->position[t] + 1 < taps ? job->f->position[t] + 1 : taps;
    float *out = job->mixed + t * hidden;
    for (int64_t c = 0; c < hidden; c++) {
        const float *w = job->weights->conv + c * taps + taps - reach;
        float sum = job->weights->conv_bias ? job->weights->conv_bias[c] : 0;
        for (int64_t j = 0; j < reach; j++) {
            const float *row = job->parts + (t - reach + 1 + j) * 3 * hidden;
            sum += w[j] * (row[c] * row[2 * hidden + c]);
        }
        out[c] = sum * job->parts[t * 3 * hidden + hidden + c];
    }
}

bool conv_forward(struct forward *f, const struct attention_spec *spec,
                  const struct attention_weights *weights, const float *in, float *out) {
    int64_t hidden = f->spec->hidden, m = f->tokens;
    float *parts = forward_floats(f, m, 3 * hidden), *mixed = forward_floats(f, m, hidden);
    if (!parts || !mixed) return false;
    struct conv_job job = {f, spec, weights, parts, mixed};
    forward_linear(f, weights->q, weights->q_bias, in, hidden, m, parts, 3 * hidden);
    forward_rows(f->pool, m, conv_row, &job);
    forward_linear(f, weights->o, weights->o_bias, mixed, hidden, m, out, hidden);
    return true;
}

/* ---- linear attention: S <- e^-r S + k v', o = S' q (arXiv 2501.08313 sec. 2.2) */

struct linear_job {
    struct forward *f;
    const struct attention_spec *spec;
    const struct attention_weights *weights;
    float *parts; /* [M, heads * 3 d]: q, k, v of each head side by side */
    float *mixed; /* [M, heads * d] */
    float *gate;  /* [M, heads * d] */
    float *state; /* [heads, d, d] */
};

static void silu_row(void *context, int64_t t) {
    const struct linear_job *job = context;
    int64_t n = 3 * (int64_t)job->spec->heads * job->spec->head_dim;
    float *x = job->parts + t * n;
    for (int64_t i = 0; i < n; i++) x[i] = x[i] / (1 + expf(-x[i]));
}

/* One head through all windows of the stretch. */
static void linear_head(void *context, int64_t head, int worker) {
    const struct linear_job *job = context;
    const struct kernels *kernels = job->f->kernels;
    int64_t d = job->spec->head_dim, n = job->spec->heads * d;
    float slope = exp2f(-8.0f * (float)(head + 1) / (float)job->spec->heads) * job->spec->decay;
    float kept = expf(-slope), *state = job->state + head * d * d;
    (void)worker;
    for (int64_t t = 0; t < job->f->tokens; t++) {
        const float *q = job->parts + t * 3 * n + head * 3 * d, *k = q + d, *v = k + d;
        float *out = job->mixed + t * n + head * d;
        if (job->f->position[t] == 0) memset(state, 0, (size_t)(d * d) * sizeof *state);
        memset(out, 0, (size_t)d * sizeof *out);
        for (int64_t i = 0; i < d; i++) {
            float *row = state + i * d;
            for (int64_t j = 0; j < d; j++) row[j] *= kept;
            vector_axpy(kernels, k[i], v, row, d);
            vector_axpy(kernels, q[i], row, out, d);
        }
    }
}

static void close_row(void *context, int64_t t) {
    const struct linear_job *job = context;
    int64_t n = (int64_t)job->spec->heads * job->spec->head_dim;
    float *x = job->mixed + t * n;
    const float *gate = job->gate + t * n;
    norm_apply(job->f->kernels, &job->spec->q_norm, &job->weights->q_norm, x, x, n);
    for (int64_t i = 0; i < n; i++) x[i] *= 1 / (1 + expf(-gate[i]));
}

bool linear_forward(struct forward *f, const struct attention_spec *spec,
                    const struct attention_weights *weights, const float *in, float *out) {
    int64_t hidden = f->spec->hidden, m = f->tokens, n = (int64_t)spec->heads * spec->head_dim;
    struct linear_job job = {.f = f, .spec = spec, .weights = weights};
    job.parts = forward_floats(f, m, 3 * n);
    job.mixed = forward_floats(f, m, n);
    job.gate = forward_floats(f, m, n);
    job.state = forward_floats(f, n, spec->head_dim);
    if (!job.parts || !job.mixed || !job.gate || !job.state) return false;
    forward_linear(f, weights->q, NULL, in, hidden, m, job.parts, 3 * n);
    forward_linear(f, weights->gate, NULL, in, hidden, m, job.gate, n);
    forward_rows(f->pool, m, silu_row, &job);
    pool_run(f->pool, spec->heads, linear_head, &job);
    forward_rows(f->pool, m, close_row, &job);
    forward_linear(f, weights->o, NULL, job.mixed, n, m, out, hidden);
    return true;
}
