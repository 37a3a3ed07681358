/* bench_engine.c - the forward pass on random-weight models of two published shapes
 *
 * OLMoE-shaped (grouped-query, 64 experts of 1024, 8 a token) and DeepSeek-V2-Lite-shaped (latent
 * attention, 64 experts of 1408, 6 a token, 2 shared), cut to two layers, bf16 weights, written
 * once to build/bench/. Windows of 512 tokens; likelihoods of all tokens are outputs. The first
 * pass packs the weights and is printed as `cold`. Work counts multiply-adds of all matrices as two
 * operations, attention over half the square.
 *
 * Capturing: the same pass with every routing stored in a database. Its cost is the time inside the
 * store's calls, from the beginning of the pass to its commit, over the rest of the pass: the calls
 * come from the engine's own thread while all others wait. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "engine/engine.h"
#include "tests/bench/bench.h"
#include "traces/trace.h"

enum { TOKENS = 512, PATTERN = 1000003 };

struct shape {
    const char *name, *config;
    bool latent;
    int hidden, vocab, layers, dense_layers, dense_width, experts, topk, width, shared;
    int heads, dim, v_dim, kv_lora, nope, rope; /* heads of dim; latent: nope + rope, v_dim */
};

static const struct shape shapes[] = {
    {.name = "olmoe-shaped",
     .config = "{\"model_type\":\"olmoe\",\"hidden_size\":2048,\"vocab_size\":50304,"
               "\"num_hidden_layers\":2,\"num_attention_heads\":16,\"num_experts\":64,"
               "\"num_experts_per_tok\":8,\"intermediate_size\":1024}",
     .hidden = 2048,
     .vocab = 50304,
     .layers = 2,
     .experts = 64,
     .topk = 8,
     .width = 1024,
     .heads = 16,
     .dim = 128,
     .v_dim = 128},
    {.name = "deepseek-shaped",
     .config = "{\"model_type\":\"deepseek_v3\",\"hidden_size\":2048,\"vocab_size\":102400,"
               "\"num_hidden_layers\":2,\"num_attention_heads\":16,\"n_routed_experts\":64,"
               "\"num_experts_per_tok\":6,\"moe_intermediate_size\":1408,\"n_shared_experts\":2,"
               "\"intermediate_size\":10944,\"first_k_dense_replace\":1,\"kv_lora_rank\":512,"
               "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128}",
     .latent = true,
     .hidden = 2048,
     .vocab = 102400,
     .layers = 2,
     .dense_layers = 1,
     .dense_width = 10944,
     .experts = 64,
     .topk = 6,
     .width = 1408,
     .shared = 2816,
     .heads = 16,
     .dim = 192,
     .v_dim = 128,
     .kv_lora = 512,
     .nope = 128,
     .rope = 64},
};

static void stop(const struct err *err) {
    fprintf(stderr, "bench: %s\n", err->text);
    exit(1);
}

/* ---- writing a model: once to declare, once to write */

struct model_file {
    struct safetensors_writer *writer;
    const uint16_t *pattern;
    bool declaring;
    int layer;
};

/* A matrix [n,k], or a vector of ones when k = 0. */
static void tensor(struct model_file *f, const char *tail, int64_t n, int64_t k) {
    static uint16_t ones[4096];
    struct err err;
    char name[128];
    int64_t shape[2] = {n, k};
    if (f->layer < 0)
        snprintf(name, sizeof name, "%s", tail);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s", f->layer, tail);
    if (f->declaring) {
        if (!safetensors_declare(f->writer, name, ST_BF16, k ? 2 : 1, shape, &err)) stop(&err);
        return;
    }
    for (int i = 0; i < 4096; i++) ones[i] = 0x3f80;
    for (int64_t left = n * (k ? k : 1); left > 0; left -= k ? PATTERN : n) {
        size_t count = (size_t)(left < PATTERN ? left : PATTERN);
        if (!safetensors_write(f->writer, k ? f->pattern : ones, count * 2, &err)) stop(&err);
    }
}

static void glu(struct model_file *f, const char *prefix, int64_t width, int64_t hidden) {
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    char name[96];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s%s.weight", prefix, parts[i]);
        tensor(f, name, i < 2 ? width : hidden, i < 2 ? hidden : width);
    }
}

static void attention(struct model_file *f, const struct shape *s) {
    int64_t h = s->hidden, q = (int64_t)s->heads * s->dim;
    tensor(f, "self_attn.q_proj.weight", q, h);
    if (s->latent) {
        tensor(f, "self_attn.kv_a_proj_with_mqa.weight", s->kv_lora + s->rope, h);
        tensor(f, "self_attn.kv_a_layernorm.weight", s->kv_lora, 0);
        tensor(f, "self_attn.kv_b_proj.weight", (int64_t)s->heads * (s->nope + s->v_dim),
               s->kv_lora);
    } else {
        tensor(f, "self_attn.k_proj.weight", q, h);
        tensor(f, "self_attn.v_proj.weight", q, h);
        tensor(f, "self_attn.q_norm.weight", q, 0);
        tensor(f, "self_attn.k_norm.weight", q, 0);
    }
    tensor(f, "self_attn.o_proj.weight", h, (int64_t)s->heads * s->v_dim);
}

static void all_tensors(struct model_file *f, const struct shape *s) {
    char prefix[64];
    f->layer = -1;
    tensor(f, "model.embed_tokens.weight", s->vocab, s->hidden);
    tensor(f, "lm_head.weight", s->vocab, s->hidden);
    tensor(f, "model.norm.weight", s->hidden, 0);
    for (f->layer = 0; f->layer < s->layers; f->layer++) {
        tensor(f, "input_layernorm.weight", s->hidden, 0);
        tensor(f, "post_attention_layernorm.weight", s->hidden, 0);
        attention(f, s);
        if (f->layer < s->dense_layers) {
            glu(f, "mlp.", s->dense_width, s->hidden);
            continue;
        }
        tensor(f, "mlp.gate.weight", s->experts, s->hidden);
        if (s->latent) tensor(f, "mlp.gate.e_score_correction_bias", s->experts, 0);
        if (s->shared) glu(f, "mlp.shared_experts.", s->shared, s->hidden);
        for (int e = 0; e < s->experts; e++) {
            snprintf(prefix, sizeof prefix, "mlp.experts.%d.", e);
            glu(f, prefix, s->width, s->hidden);
        }
    }
}

/* bf16 values of about +-0.02; the pattern's length is no multiple of a row, so rows differ. */
static uint16_t *make_pattern(void) {
    struct rng rng;
    uint16_t *pattern = malloc(PATTERN * sizeof *pattern);
    rng_init(&rng, 5);
    for (int i = 0; pattern && i < PATTERN; i++) {
        float value = 0.02f * (float)rng_normal(&rng);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        pattern[i] = (uint16_t)(bits >> 16);
    }
    return pattern;
}

static void write_model(const struct shape *s, const char *folder) {
    struct str path = {0};
    struct err err;
    file_join(&path, folder, "model.safetensors");
    if (file_exists(str_text(&path))) goto done;
    if (!file_make_folder(folder, &err)) stop(&err);
    uint16_t *pattern = make_pattern();
    struct model_file f = {
        .writer = safetensors_create(str_text(&path), &err), .pattern = pattern, .declaring = true};
    if (!f.writer || !pattern) stop(&err);
    all_tensors(&f, s);
    f.declaring = false;
    all_tensors(&f, s);
    if (!safetensors_commit(f.writer, &err)) stop(&err);
    free(pattern);
    str_clear(&path);
    file_join(&path, folder, "config.json");
    if (!file_write(str_text(&path), s->config, strlen(s->config), &err)) stop(&err);
done:
    str_free(&path);
}

/* ---- running */

struct run {
    struct engine *engine;
    int32_t ids[TOKENS];
    float nll;
};

static bool hear_nll(void *context, int64_t first, int64_t n, const float *nll, struct err *err) {
    (void)first, (void)n, (void)err;
    ((struct run *)context)->nll = nll[0];
    return true;
}

static void run_pass(void *context) {
    struct run *r = context;
    const int64_t start[] = {0, TOKENS};
    const struct engine_pass pass = {TOKENS, r->ids, start, 1, 0};
    const struct engine_sink sink = {.context = r, .nll = hear_nll};
    struct err err;
    if (!engine_run(r->engine, &pass, &sink, NULL, &err)) stop(&err);
}

/* Operations of one pass, in 1e9. */
static double pass_gflop(const struct shape *s) {
    double h = s->hidden, per_token = (double)s->vocab * h, pairs = TOKENS / 2.0;
    for (int l = 0; l < s->layers; l++) {
        double q = (double)s->heads * s->dim, v = (double)s->heads * s->v_dim;
        per_token += h * q + h * v + pairs * (q + v);
        per_token += s->latent ? h * (s->kv_lora + s->rope) +
                                     (double)s->kv_lora * s->heads * (s->nope + s->v_dim)
                               : h * (q + v);
        per_token += l < s->dense_layers
                         ? 3 * h * s->dense_width
                         : h * s->experts + 3 * h * (s->topk * (double)s->width + s->shared);
    }
    return 2 * per_token * TOKENS / 1e9;
}

/* ---- capturing */

enum { WINDOWS = 4, PASS_TOKENS = WINDOWS * TOKENS, CAPTURES = 5 };

struct capturing {
    struct trace *trace;
    double seconds; /* inside the store */
};

static bool store_routes(void *context, int router, int64_t first, int64_t n, const float *logits,
                         const int32_t *expert, const float *weight, struct err *err) {
    struct capturing *c = context;
    const struct trace_routes routes = {router, first, n, logits, expert, weight};
    double start = bench_seconds(1);
    bool ok = trace_pass_routes(c->trace, &routes, err);
    c->seconds += bench_seconds(1) - start;
    return ok;
}

static bool store_nll(void *context, int64_t first, int64_t n, const float *nll, struct err *err) {
    struct capturing *c = context;
    double start = bench_seconds(1);
    bool ok = trace_pass_nll(c->trace, first, n, nll, err);
    c->seconds += bench_seconds(1) - start;
    return ok;
}

static struct trace *create_trace(const struct engine_info *info, const char *path) {
    struct err err;
    struct trace_layer layers[8] = {{0}};
    const struct trace_document document = {
        .source = "made up", .domain = "made up", .sha256 = "", .tokens = PASS_TOKENS * CAPTURES};
    for (int i = 0; i < info->routers; i++)
        layers[i] = (struct trace_layer){.layer = info->router[i].layer,
                                         .experts = info->router[i].experts,
                                         .topk = info->router[i].gate.topk,
                                         .holds = TRACE_SCORES,
                                         .has_gate = true,
                                         .gate = info->router[i].gate,
                                         .bias = info->router[i].bias};
    const struct trace_setup setup = {.capture = {.model = info->name,
                                                  .family = info->family,
                                                  .model_id = "",
                                                  .config = "",
                                                  .source = "capture",
                                                  .compute = "",
                                                  .kernels = "",
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = layers,
                                      .layer_count = info->routers,
                                      .documents = &document,
                                      .document_count = 1};
    struct trace *trace = trace_create(path, &setup, TRACE_FORCE, &err);
    if (!trace) stop(&err);
    return trace;
}

/* One pass of WINDOWS windows into the trace; the time in the store over the time outside of it. */
static double capture_cost(struct engine *engine, struct trace *trace, int vocab, int threads) {
    static int32_t ids[PASS_TOKENS], positions[PASS_TOKENS];
    int64_t starts[WINDOWS + 1];
    struct err err;
    struct capturing c = {.trace = trace};
    for (int t = 0; t < PASS_TOKENS; t++) ids[t] = (t * 7919 + 13) % vocab;
    for (int t = 0; t < PASS_TOKENS; t++) positions[t] = t % TOKENS;
    for (int w = 0; w <= WINDOWS; w++) starts[w] = w * TOKENS;
    const struct engine_pass pass = {PASS_TOKENS, ids, starts, WINDOWS, 0};
    const struct trace_pass stored = {PASS_TOKENS, ids, positions};
    const struct engine_sink sink = {.context = &c, .routes = store_routes, .nll = store_nll};
    double start = bench_seconds(1), all = bench_seconds(threads), outer;
    if (!trace_pass_begin(trace, &stored, &err)) stop(&err);
    c.seconds += bench_seconds(1) - start;
    if (!engine_run(engine, &pass, &sink, NULL, &err)) stop(&err);
    start = bench_seconds(1);
    if (!trace_pass_commit(trace, &err)) stop(&err);
    c.seconds += bench_seconds(1) - start;
    outer = bench_seconds(threads) - all;
    return c.seconds / (outer - c.seconds / (bench_cpu_clock() ? threads : 1));
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench_capture(struct engine *engine, const struct shape *s, const char *name,
                          int threads) {
    static const char path[] = "build/bench/capture.db";
    struct err err;
    double cost[CAPTURES];
    if (!bench_wanted(name)) return;
    struct trace *trace = create_trace(engine_info(engine), path);
    for (int i = 0; i < CAPTURES; i++) cost[i] = capture_cost(engine, trace, s->vocab, threads);
    if (!trace_close(trace, false, &err)) stop(&err);
    remove(path);
    qsort(cost, CAPTURES, sizeof *cost, ascending);
    bench_print("engine", name, cost[CAPTURES / 2], "of the pass");
}

static void bench_shape(const struct shape *s, bool bf16, int threads) {
    char folder[128], name[96], label[64], cost[128], row[128];
    struct err err;
    struct run run = {.engine = NULL};
    snprintf(label, sizeof label, "%s %s", s->name, bf16 ? "bf16" : "f32");
    snprintf(name, sizeof name, "%s %d tokens T=%d", label, TOKENS, threads);
    snprintf(cost, sizeof cost, "%s %d tokens T=%d cost of capturing", label, PASS_TOKENS, threads);
    if (!bench_wanted(name) && !bench_wanted(cost)) return;
    struct pool *pool = pool_create(threads, &err);
    struct engine_options options = {.pool = pool, .bf16 = bf16};
    snprintf(folder, sizeof folder, "build/bench/%s", s->name);
    write_model(s, folder);
    run.engine = pool ? engine_open(folder, &options, &err) : NULL;
    if (!run.engine) stop(&err);
    for (int t = 0; t < TOKENS; t++) run.ids[t] = (t * 7919 + 13) % s->vocab;
    double start = bench_seconds(threads);
    run_pass(&run);
    snprintf(row, sizeof row, "%s cold", name);
    bench_print("engine", row, TOKENS / (bench_seconds(threads) - start), "tokens/s");
    snprintf(row, sizeof row, "%s work per token", label);
    bench_print("engine", row, pass_gflop(s) / TOKENS, "GFLOP");
    struct bench_case c = {"engine",
                           name,
                           "GFLOP/s",
                           pass_gflop(s),
                           run_pass,
                           &run,
                           bf16 ? bench_peak_bf16 : bench_peak_f32,
                           bf16 ? "bf16 dot peak" : "f32 fma peak",
                           threads};
    bench_measure(&c);
    bench_capture(run.engine, s, cost, threads);
    engine_close(run.engine);
    pool_free(pool);
}

void bench_engine(void) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            for (int threads = 1; threads <= 2; threads++) bench_shape(&shapes[i], bf16, threads);
}
