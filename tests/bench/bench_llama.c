/* bench_llama.c - the forward pass side by side with llama.cpp, on the same files
 *
 * Random-weight models of 1.7 GB and more (bf16; twice that in f32) in GGUF, which both programs
 * read: OLMoE's widths (2 layers), DeepSeek's latent attention with 64 experts (1 dense and 2
 * mixture layers), and its gate with 256 experts in groups. Vocabulary 8192; all tokens are
 * outputs on both sides, weights are loaded before. A sample is llama.cpp's window and then ours,
 * so that both meet the same machine; a ratio is the median of the samples' ratios. Both clocks
 * are printed: wall seconds, and CPU seconds per thread, which say more where others compute too.
 * The mean NLL of both stands beside: equal work shows in equal numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "engine/engine.h"
#include "tests/bench/bench.h"
#include "tests/bench/gguf_model.h"

enum { MOST_TOKENS = 2048, SAMPLES = 5 };

static const struct gguf_shape shapes[] = {
    {.name = "olmoe",
     .arch = "olmoe",
     .layers = 2,
     .vocab = 8192,
     .hidden = 2048,
     .experts = 64,
     .topk = 8,
     .width = 1024,
     .heads = 16,
     .dim = 128,
     .v_dim = 128},
    {.name = "ds64",
     .arch = "deepseek2",
     .layers = 3,
     .dense_layers = 1,
     .vocab = 8192,
     .hidden = 2048,
     .dense_width = 10944,
     .experts = 64,
     .topk = 6,
     .width = 1408,
     .shared_width = 2816,
     .heads = 16,
     .dim = 192,
     .v_dim = 128,
     .q_lora = 1536,
     .kv_lora = 512,
     .rope = 64},
    {.name = "ds256",
     .arch = "deepseek2",
     .layers = 2,
     .dense_layers = 1,
     .vocab = 8192,
     .hidden = 2048,
     .dense_width = 8192,
     .experts = 256,
     .topk = 8,
     .width = 512,
     .shared_width = 512,
     .groups = 8,
     .groups_used = 4,
     .heads = 16,
     .dim = 192,
     .v_dim = 128,
     .q_lora = 1536,
     .kv_lora = 512,
     .rope = 64},
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* ---- the other side: a process that answers on a pipe */

struct peer {
    pid_t pid;
    FILE *to, *from;
};

struct sample {
    double wall, cpu, nll;
};

static void stop(const char *what) {
    fprintf(stderr, "bench: %s\n", what);
    exit(1);
}

static struct peer peer_start(const char *driver, const char *model, int threads) {
    int in[2], out[2];
    char count[16], most[16];
    snprintf(count, sizeof count, "%d", threads);
    snprintf(most, sizeof most, "%d", MOST_TOKENS);
    if (pipe(in) != 0 || pipe(out) != 0) stop("no pipe");
    struct peer peer = {.pid = fork()};
    if (peer.pid == 0) {
        dup2(in[0], 0), dup2(out[1], 1);
        close(in[0]), close(in[1]), close(out[0]), close(out[1]);
        execl(driver, driver, model, count, most, (char *)NULL);
        _exit(127);
    }
    close(in[0]), close(out[1]);
    peer.to = fdopen(in[1], "w"), peer.from = fdopen(out[0], "r");
    if (peer.pid < 0 || !peer.to || !peer.from) stop("no process for llama.cpp");
    return peer;
}

static struct sample peer_run(struct peer *peer, int tokens) {
    struct sample s;
    fprintf(peer->to, "%d\n", tokens);
    fflush(peer->to);
    if (fscanf(peer->from, "%lf %lf %lf", &s.wall, &s.cpu, &s.nll) != 3)
        stop("llama.cpp's driver ended early");
    return s;
}

static void peer_stop(struct peer *peer) {
    int status;
    fclose(peer->to);
    fclose(peer->from);
    waitpid(peer->pid, &status, 0);
}

/* ---- our side */

static bool hear_routes(void *context, int r, int64_t first, int64_t n, const float *logits,
                        const int32_t *expert, const float *weight, struct err *err) {
    (void)context, (void)r, (void)first, (void)n, (void)logits, (void)expert, (void)weight;
    (void)err;
    return true;
}

static bool hear_nll(void *context, int64_t first, int64_t n, const float *nll, struct err *err) {
    double *sum = context;
    (void)first, (void)err;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(nll[i])) *sum += (double)nll[i];
    return true;
}

static struct sample own_run(struct engine *engine, int tokens, int vocab) {
    static int32_t ids[MOST_TOKENS];
    struct sample s = {0};
    struct err err;
    const int64_t start[] = {0, tokens};
    for (int t = 0; t < tokens; t++) ids[t] = (t * 7919 + 13) % vocab;
    const struct engine_pass pass = {tokens, ids, start, 1, 0};
    const struct engine_sink sink = {.context = &s.nll, .routes = hear_routes, .nll = hear_nll};
    s.wall = clock_seconds(), s.cpu = clock_cpu_seconds();
    if (!engine_run(engine, &pass, &sink, NULL, &err)) stop(err.text);
    s.wall = clock_seconds() - s.wall, s.cpu = clock_cpu_seconds() - s.cpu;
    s.nll /= tokens - 1;
    return s;
}

/* ---- samples and figures */

struct cell {
    const struct gguf_shape *shape;
    const char *type;
    int tokens, threads;
    struct sample own[SAMPLES], peer[SAMPLES];
    double peak[SAMPLES]; /* GFLOP/s of one thread, around our sample */
};

static double seconds_of(const struct cell *c, const struct sample *s, bool cpu) {
    return cpu ? s->cpu / c->threads : s->wall;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_row(const struct cell *c, const char *who, double *value, const char *unit,
                      double *ratio, const char *of, bool cpu) {
    qsort(value, SAMPLES, sizeof *value, ascending);
    qsort(ratio, SAMPLES, sizeof *ratio, ascending);
    printf("llama,%s %s %d tokens T=%d %s,%.4g,%.4g,%.4g,%s,%.3f,%s,%s\n", c->shape->name, c->type,
           c->tokens, c->threads, who, value[SAMPLES / 2], value[0], value[SAMPLES - 1], unit,
           ratio[SAMPLES / 2], of, cpu ? "cpu" : "wall");
    fflush(stdout);
}

static void print_cell(const struct cell *c, bool cpu) {
    const bool bf16 = strcmp(c->type, "bf16") == 0;
    const double work = gguf_model_flop(c->shape, c->tokens) * 1e-9;
    double own[SAMPLES], peer[SAMPLES], ratio[SAMPLES], rate[SAMPLES], share[SAMPLES];
    double inverse[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        double a = seconds_of(c, &c->own[i], cpu), b = seconds_of(c, &c->peer[i], cpu);
        own[i] = c->tokens / a, peer[i] = c->tokens / b;
        ratio[i] = b / a, inverse[i] = a / b;
        rate[i] = work / a, share[i] = work / a / (c->peak[i] * c->threads);
    }
    print_row(c, "llama.cpp", peer, "tokens/s", inverse, "ours", cpu);
    print_row(c, "ours", own, "tokens/s", ratio, "llama.cpp", cpu);
    print_row(c, "ours", rate, "GFLOP/s", share, bf16 ? "bf16 dot peak" : "f32 fma peak", cpu);
}

/* The machine's limit of now, over some 50 ms: one call lasts two. */
static double steady(double (*peak)(void)) {
    enum { CALLS = 25 };
    double inverse = 0;
    for (int i = 0; i < CALLS; i++) inverse += 1 / peak();
    return CALLS / inverse;
}

static void measure(struct cell *c, struct engine *engine, struct peer *peer) {
    char name[96];
    double (*const peak)(void) = strcmp(c->type, "bf16") == 0 ? bench_peak_bf16 : bench_peak_f32;
    peer_run(peer, c->tokens);
    own_run(engine, c->tokens, c->shape->vocab);
    for (int i = 0; i < SAMPLES; i++) {
        c->peer[i] = peer_run(peer, c->tokens);
        c->peak[i] = steady(peak);
        c->own[i] = own_run(engine, c->tokens, c->shape->vocab);
        c->peak[i] = (c->peak[i] + steady(peak)) / 2;
    }
    print_cell(c, false);
    print_cell(c, true);
    snprintf(name, sizeof name, "%s %s %d tokens T=%d mean NLL less llama.cpp's", c->shape->name,
             c->type, c->tokens, c->threads);
    bench_print("llama", name, c->own[0].nll - c->peer[0].nll, "nats");
}

/* "olmoe bf16 512 tokens T=1", as the command line may ask for it. */
static bool wanted(const struct cell *c) {
    char name[96];
    snprintf(name, sizeof name, "%s %s %d tokens T=%d", c->shape->name, c->type, c->tokens,
             c->threads);
    return bench_wanted(name);
}

/* Cells of one model, element type and number of threads, by rising number of tokens. */
static void measure_model(struct cell *cells, int count, const char *driver) {
    const struct gguf_shape *shape = cells[0].shape;
    const bool bf16 = strcmp(cells[0].type, "bf16") == 0;
    char path[128];
    struct err err;
    snprintf(path, sizeof path, "build/bench/%s-%s.gguf", shape->name, cells[0].type);
    gguf_model_write(shape, !bf16, path);
    struct pool *pool = pool_create(cells[0].threads, &err);
    struct engine_options options = {.pool = pool, .bf16 = bf16};
    struct engine *engine = pool ? engine_open(path, &options, &err) : NULL;
    if (!engine) stop(err.text);
    struct peer peer = peer_start(driver, path, cells[0].threads);
    for (int i = 0; i < count; i++) measure(&cells[i], engine, &peer);
    peer_stop(&peer);
    engine_close(engine);
    pool_free(pool);
}

/* The driver's path, or false with the script's reason. */
static bool find_driver(char *line, int size) {
    FILE *script = popen("sh tests/bench/llama.sh", "r");
    bool ok = script && fgets(line, size, script);
    if (script) pclose(script);
    if (!ok) snprintf(line, (size_t)size, "skip: tests/bench/llama.sh did not run");
    line[strcspn(line, "\n")] = '\0';
    return strncmp(line, "skip:", 5) != 0;
}

void bench_llama(void) {
    static const char *const types[] = {"bf16", "f32"};
    char driver[256];
    struct err err;
    if (!find_driver(driver, sizeof driver)) {
        fprintf(stderr, "%s\n", driver);
        return;
    }
    if (!file_make_folder("build/bench", &err)) stop(err.text);
    for (int i = 0; i < SHAPES * 4; i++) {
        struct cell cells[2];
        int count = 0;
        for (int tokens = 512; tokens <= MOST_TOKENS; tokens *= 4) {
            cells[count] = (struct cell){.shape = &shapes[i / 4],
                                         .type = types[i / 2 % 2],
                                         .tokens = tokens,
                                         .threads = 1 + i % 2};
            count += wanted(&cells[count]);
        }
        if (count > 0) measure_model(cells, count, driver);
    }
}
