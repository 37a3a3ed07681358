/* layers.c - the small parts of a layer: linear maps, norms, activations, all over rows */
#include <math.h>
#include <string.h>

#include "engine/forward.h"

enum { ROWS_PER_JOB = 16 };

const struct ffn_spec *layer_mixture(const struct layer_spec *layer) {
    return layer->side.experts ? &layer->side : layer->ffn.experts ? &layer->ffn : NULL;
}

const struct ffn_weights *layer_mixture_weights(const struct layer_spec *layer,
                                                const struct layer_weights *weights) {
    return layer->side.experts ? &weights->side : &weights->ffn;
}

float *forward_floats(struct forward *f, int64_t rows, int64_t columns) {
    float *floats = arena_room(f->scratch, (size_t)rows, (size_t)columns * sizeof *floats);
    if (!floats) err_memory(f->err, "activations of a layer");
    return floats;
}

void forward_linear(struct forward *f, const struct packed *weight, const float *bias,
                    const float *a, int64_t k, int64_t m, float *c, int64_t n) {
    struct gemm item = {.weight = weight, .a = a, .bias = bias, .c = c, .m = m, .lda = k, .ldc = n};
    gemm_grouped(f->kernels, f->pool, &item, 1);
}

struct rows {
    int64_t count;
    void (*row)(void *context, int64_t i);
    void *context;
};

static void run_rows(void *context, int64_t job, int worker) {
    const struct rows *rows = context;
    int64_t end = (job + 1) * ROWS_PER_JOB;
    (void)worker;
    for (int64_t i = job * ROWS_PER_JOB; i < end && i < rows->count; i++)
        rows->row(rows->context, i);
}

void forward_rows(struct pool *pool, int64_t count, void (*row)(void *context, int64_t i),
                  void *context) {
    struct rows rows = {count, row, context};
    pool_run(pool, (count + ROWS_PER_JOB - 1) / ROWS_PER_JOB, run_rows, &rows);
}

/* ---- norms */

static void mean_norm(const struct norm_weights *w, float eps, const float *x, float *y,
                      int64_t n) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    float mean = (float)(sum / (double)n);
    for (int64_t i = 0; i < n; i++) squares += (double)(x[i] - mean) * (double)(x[i] - mean);
    float factor = 1 / sqrtf((float)(squares / (double)n) + eps);
    for (int64_t i = 0; i < n; i++) {
        float value = (x[i] - mean) * factor;
        if (w->weight) value *= w->weight[i];
        y[i] = w->bias ? value + w->bias[i] : value;
    }
}

void norm_apply(const struct kernels *kernels, const struct norm_spec *spec,
                const struct norm_weights *weights, const float *x, float *y, int64_t n) {
    if (spec->kind == LAYER_NORM_RMS)
        vector_rmsnorm(kernels, x, weights->weight, spec->eps, y, n);
    else if (spec->kind == LAYER_NORM_MEAN)
        mean_norm(weights, spec->eps, x, y, n);
    else if (y != x)
        memcpy(y, x, (size_t)n * sizeof *y);
}

struct norm_job {
    struct forward *f;
    const struct norm_spec *spec;
    const struct norm_weights *weights;
    const float *x;
    float *y;
    int64_t n;
};

static void norm_row(void *context, int64_t i) {
    const struct norm_job *job = context;
    norm_apply(job->f->kernels, job->spec, job->weights, job->x + i * job->n, job->y + i * job->n,
               job->n);
}

void norm_rows(struct forward *f, const struct norm_spec *spec, const struct norm_weights *weights,
               const float *x, float *y, int64_t m, int64_t n) {
    struct norm_job job = {f, spec, weights, x, y, n};
    forward_rows(f->pool, m, norm_row, &job);
}

/* ---- activations */

static float act_silu(float x) { return x / (1 + expf(-x)); }
static float act_gelu(float x) { return 0.5f * x * (1 + erff(x * 0.70710678f)); }
static float act_relu(float x) { return x > 0 ? x : 0; }

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), arXiv 1606.08415 */
static float act_gelu_tanh(float x) {
    return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

static float (*const activations[])(float) = {
    [ACT_SILU] = act_silu,           [ACT_SWISH] = act_silu,         [ACT_GELU] = act_gelu,
    [ACT_GELU_TANH] = act_gelu_tanh, [ACT_GELU_NEW] = act_gelu_tanh, [ACT_RELU] = act_relu};

struct glu_job {
    struct forward *f;
    const struct glu_spec *glu;
    float *inout;
};

/* (u + 1) g sigmoid(alpha g), g = min(gate, limit), u = clamp(up, +-limit) (gpt-oss) */
static void clamped_row(const struct glu_spec *glu, float *gate, const float *up) {
    for (int64_t i = 0; i < glu->width; i++) {
        float g = fminf(gate[i], glu->limit);
        float u = fminf(fmaxf(up[i], -glu->limit), glu->limit);
        gate[i] = (u + 1) * (g / (1 + expf(-glu->alpha * g)));
    }
}

static void glu_row(void *context, int64_t i) {
    const struct glu_job *job = context;
    const struct glu_spec *glu = job->glu;
    float *gate = job->inout + i * 2 * glu->width;
    const float *up = gate + glu->width;
    if (glu->limit > 0) {
        clamped_row(glu, gate, up);
    } else if (glu->act == ACT_SILU || glu->act == ACT_SWISH) {
        vector_silu_mul(job->f->kernels, gate, up, gate, glu->width);
    } else {
        for (int64_t j = 0; j < glu->width; j++) gate[j] = activations[glu->act](gate[j]) * up[j];
    }
}

void glu_activate(struct forward *f, const struct glu_spec *glu, float *inout, int64_t m) {
    struct glu_job job = {f, glu, inout};
    forward_rows(f->pool, m, glu_row, &job);
}
