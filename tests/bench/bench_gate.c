/* bench_gate.c - routing against the same operations in PyTorch and numpy, in one run
 *
 * Experts, weights and loads of each token, one thread: at every CPU level with the logits in
 * memory, and read from a trace of 128 MiB by cursors (files in the page cache: a first pass opens
 * the trace and maps its pages, further ones find them mapped); then the replay of that trace with
 * all its measures. STEELYARD_PYTHON names an interpreter with numpy and torch; the
 * ratio is to torch, the median over rounds in which all take turns. CPU time on both sides. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "router/route.h"
#include "sim/replay.h"
#include "tests/bench/bench.h"
#include "tests/support_logits.h"
#include "traces/trace.h"

enum { IN_MEMORY = 4096, BYTES = 128 << 20, CHUNK = 2048 };
static const char path[] = "build/bench-gate.db";

/* ---- the anchor, a process that answers with a speed */

struct anchor {
    pid_t pid; /* 0: there is none */
    FILE *ask, *answer;
};

static void anchor_open(struct anchor *a) {
    const char *python = getenv("STEELYARD_PYTHON");
    int ask[2], answer[2];
    *a = (struct anchor){0};
    if (!python || pipe(ask) != 0 || pipe(answer) != 0) {
        fprintf(stderr, "skip: torch and numpy: STEELYARD_PYTHON names no interpreter\n");
        return;
    }
    a->pid = fork();
    if (a->pid == 0) {
        dup2(ask[0], 0);
        dup2(answer[1], 1);
        close(ask[1]);
        close(answer[0]);
        execlp(python, python, "tests/bench/replay_anchor.py", (char *)NULL);
        _exit(127);
    }
    close(ask[0]);
    close(answer[1]);
    a->ask = fdopen(ask[1], "w");
    a->answer = fdopen(answer[0], "r");
}

static void anchor_close(struct anchor *a) {
    if (!a->pid) return;
    fclose(a->ask);
    fclose(a->answer);
    waitpid(a->pid, NULL, 0);
}

/* Million token-layers per second; 0 when there is no answer. */
static double anchor_speed(struct anchor *a, const char *library, const char *model) {
    char line[64];
    if (!a->pid) return 0;
    fprintf(a->ask, "%s %s\n", library, model);
    fflush(a->ask);
    return fgets(line, sizeof line, a->answer) ? strtod(line, NULL) : 0;
}

/* ---- what is measured */

struct scene {
    const char *model;
    int experts;
    struct gate gate;
    float *logits; /* [CHUNK, E] written to the trace over and over; [IN_MEMORY, E] in memory */
    float *bias;
    int32_t *expert;
    float *weight;
    int64_t *load;
    void *scratch;
    struct trace *trace;
    int layers;
    int64_t tokens; /* of the trace */
};

static void stop(const struct err *err) {
    fprintf(stderr, "bench: %s\n", err->text);
    exit(1);
}

static void write_trace(struct scene *s) {
    enum { LAYERS = 4 };
    struct trace_layer layer[LAYERS];
    struct err err = {0};
    s->layers = LAYERS;
    s->tokens = BYTES / LAYERS / s->experts / 4;
    struct trace_document document = {
        .source = "made up", .domain = "made up", .sha256 = "", .tokens = s->tokens};
    int32_t *zero = calloc(CHUNK, sizeof *zero);
    for (int r = 0; r < LAYERS; r++)
        layer[r] = (struct trace_layer){.layer = r,
                                        .experts = s->experts,
                                        .topk = s->gate.topk,
                                        .holds = TRACE_SCORES,
                                        .has_gate = true,
                                        .gate = s->gate,
                                        .bias = s->gate.bias ? s->bias : NULL};
    const struct trace_setup setup = {.capture = {.model = "made up",
                                                  .family = "",
                                                  .model_id = "",
                                                  .config = "",
                                                  .source = "capture",
                                                  .compute = "",
                                                  .kernels = "",
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = layer,
                                      .layer_count = LAYERS,
                                      .documents = &document,
                                      .document_count = 1};
    struct trace *trace = trace_create(path, &setup, TRACE_FORCE, &err);
    while (trace && trace_tokens(trace) < s->tokens) {
        const struct trace_pass pass = {CHUNK, zero, zero};
        if (!trace_pass_begin(trace, &pass, &err)) stop(&err);
        for (int r = 0; r < LAYERS; r++) {
            const struct trace_routes routes = {.r = r, .tokens = CHUNK, .logits = s->logits};
            if (!trace_pass_routes(trace, &routes, &err)) stop(&err);
        }
        if (!trace_pass_commit(trace, &err)) stop(&err);
    }
    if (!trace || !trace_close(trace, false, &err)) stop(&err);
    if (!(s->trace = trace_open(path, &err))) stop(&err);
    free(zero);
}

static void make(struct scene *s, const char *model, int experts) {
    struct rng rng;
    struct err err;
    rng_init(&rng, 1);
    *s = (struct scene){.model = model, .experts = experts};
    if (!gate_parse(model, NULL, &s->gate, &err)) stop(&err);
    s->logits = random_logits(&rng, IN_MEMORY, experts, 1.5);
    s->bias = calloc((size_t)experts, sizeof *s->bias);
    for (int e = 0; e < experts; e++) s->bias[e] = (float)(0.02 * rng_normal(&rng));
    s->expert = calloc((size_t)IN_MEMORY * 8, sizeof *s->expert);
    s->weight = calloc((size_t)IN_MEMORY * 8, sizeof *s->weight);
    s->load = calloc((size_t)experts, sizeof *s->load);
    s->scratch = aligned_alloc(64, (route_scratch_bytes(experts) + 63) / 64 * 64);
    write_trace(s);
}

static void unmake(struct scene *s) {
    trace_free(s->trace);
    unlink(path);
    free(s->scratch);
    free(s->load);
    free(s->weight);
    free(s->expert);
    free(s->bias);
    free(s->logits);
}

static void route(struct scene *s, const float *logits, int64_t n) {
    struct routes out = {s->expert, s->weight, NULL, NULL};
    route_tokens(&s->gate, s->experts, n, logits, s->bias, &out, s->scratch);
    for (int64_t i = 0; i < n * s->gate.topk; i++) s->load[s->expert[i]]++;
}

static int64_t in_memory(struct scene *s) {
    for (int i = 0; i < 4; i++) route(s, s->logits, IN_MEMORY);
    return 4 * IN_MEMORY;
}

static void touch(struct scene *s, const float *logits, int64_t n) {
    s->weight[0] += logits[n * s->experts - 1];
}

/* As a replay reads. */
static int64_t scan(struct scene *s, void (*use)(struct scene *, const float *, int64_t)) {
    struct source source;
    struct err err;
    if (!source_open_trace(&source, s->trace, NULL, &err)) stop(&err);
    for (int r = 0; r < s->layers; r++) {
        struct source_reader *reader = source.open(&source, r, &err);
        if (!reader) stop(&err);
        for (int64_t at = 0, n; at < s->tokens; at += n) {
            const float *logits;
            if (!source.rows(reader, at, CHUNK, &logits, &n, &err)) stop(&err);
            use(s, logits, n);
        }
        source.close(reader);
    }
    source_free(&source);
    return s->layers * s->tokens;
}

static int64_t read_only(struct scene *s) { return scan(s, touch); }

static int64_t from_trace(struct scene *s) { return scan(s, route); }

static int64_t first_pass(struct scene *s) {
    struct err err;
    trace_free(s->trace);
    if (!(s->trace = trace_open(path, &err))) stop(&err);
    return from_trace(s);
}

static bool ignore_row(void *context, const struct replay_row *row, struct err *err) {
    (void)context, (void)row, (void)err;
    return true;
}

static int64_t replay(struct scene *s) {
    const struct replay_options options = {.threads = 1};
    const struct replay_sink sink = {ignore_row, NULL};
    struct variant_lists lists = {.batch_count = 0};
    struct variant_set set;
    struct source source;
    struct err err;
    if (!source_open_trace(&source, s->trace, NULL, &err) ||
        !variant_set_build(&set, &lists, &source, &err) ||
        !replay_run(&set, &source, &options, &sink, NULL, &err))
        stop(&err);
    variant_set_free(&set);
    source_free(&source);
    return s->layers * s->tokens;
}

/* ---- rounds */

enum { MOST = 12 };

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One line: the median speed and the median ratio to torch (0 without). */
static void print(const char *model, const char *what, const double *value, const double *torch) {
    double ratio[BENCH_RUNS], sorted[BENCH_RUNS];
    for (int r = 0; r < BENCH_RUNS; r++) {
        sorted[r] = value[r];
        ratio[r] = torch[r] > 0 ? value[r] / torch[r] : 0;
    }
    qsort(sorted, BENCH_RUNS, sizeof *sorted, ascending);
    qsort(ratio, BENCH_RUNS, sizeof *ratio, ascending);
    printf("gate,%s %s,%.4g,%.4g,%.4g,M token-layers/s,%.3f,%s,cpu\n", model, what,
           sorted[BENCH_RUNS / 2], sorted[0], sorted[BENCH_RUNS - 1], ratio[BENCH_RUNS / 2],
           torch[0] > 0 ? "torch" : "");
    fflush(stdout);
}

static double speed(struct scene *s, int64_t (*run)(struct scene *), const char *level) {
    if (!route_force_level(level)) return 0;
    double start = clock_cpu_seconds();
    int64_t tokens = run(s);
    double seconds = clock_cpu_seconds() - start;
    route_force_level(NULL);
    return 1e-6 * (double)tokens / seconds;
}

static void rounds(struct scene *s, struct anchor *anchor) {
    double torch[BENCH_RUNS], numpy[BENCH_RUNS], level[MOST][BENCH_RUNS], trace[BENCH_RUNS],
        whole[BENCH_RUNS], alone[BENCH_RUNS], first[BENCH_RUNS];
    char name[64];
    for (int r = 0; r < BENCH_RUNS; r++) {
        torch[r] = anchor_speed(anchor, "torch", s->model);
        for (int i = 0; i < MOST && route_level_at(i); i++)
            level[i][r] = speed(s, in_memory, route_level_at(i));
        first[r] = speed(s, first_pass, NULL);
        alone[r] = speed(s, read_only, NULL);
        trace[r] = speed(s, from_trace, NULL);
        whole[r] = speed(s, replay, NULL);
        numpy[r] = anchor_speed(anchor, "numpy", s->model);
        torch[r] = (torch[r] + anchor_speed(anchor, "torch", s->model)) / 2;
    }
    if (torch[0] > 0) print(s->model, "PyTorch", torch, torch);
    if (numpy[0] > 0) print(s->model, "numpy", numpy, torch);
    for (int i = 0; i < MOST && route_level_at(i); i++) {
        snprintf(name, sizeof name, "in memory %s", route_level_at(i));
        if (level[i][0] > 0) print(s->model, name, level[i], torch);
    }
    print(s->model, "reading the trace alone", alone, torch);
    print(s->model, "from the trace, first pass", first, torch);
    print(s->model, "from the trace", trace, torch);
    print(s->model, "replay of the trace with all measures", whole, torch);
}

void bench_gate(void);
void bench_gate(void) {
    static const struct {
        const char *gate;
        int experts;
    } models[] = {{"deepseek-v3", 256}, {"olmoe", 64}};
    struct anchor anchor;
    anchor_open(&anchor);
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct scene s;
        make(&s, models[m].gate, models[m].experts);
        rounds(&s, &anchor);
        unmake(&s);
    }
    anchor_close(&anchor);
}
