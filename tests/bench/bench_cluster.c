/* bench_cluster.c - a sweep of 1,000 cells over a million token-layers, and EPLB against numpy
 *
 * `sweep` runs the program as a user would, end to end: traces of made-up scores in the shapes of
 * OLMoE and DeepSeek-V3, five gates x four numbers of ranks x five placements x ten batches, the
 * result database included, on two threads. `eplb` places 58 layers of 256 experts with 32 replicas
 * on 32 ranks, beside the same algorithm in numpy (eplb_numpy.py; STEELYARD_PYTHON names a Python
 * that has numpy). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "sim/placement.h"
#include "tests/bench/bench.h"
#include "tests/support_logits.h"
#include "traces/trace.h"

struct shape {
    const char *name, *gate, *config;
    int layers, experts;
    int64_t tokens;
};

static const struct shape shapes[] = {
    {"olmoe", "softmax,topk=8", "{\"hidden_size\":2048,\"moe_intermediate_size\":1024}", 16, 64,
     65536},
    {"deepseek-v3", "sigmoid,bias,groups=8:4:top2sum,topk=8,norm=sum:1e-20,scale=2.5",
     "{\"hidden_size\":7168,\"moe_intermediate_size\":2048}", 58, 256, 17408}};

enum { PASS = 1024, DOCUMENTS = 32 };

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void stop(const char *what, const struct err *err) {
    fprintf(stderr, "bench: %s: %s\n", what, err->text);
    exit(1);
}

/* ---- the trace */

static struct trace *create(const struct shape *s, const char *path, struct trace_layer *layers,
                            const float *bias) {
    struct trace_document documents[DOCUMENTS];
    struct err err;
    for (int d = 0; d < DOCUMENTS; d++)
        documents[d] = (struct trace_document){.source = "made up",
                                               .domain = d % 2 ? "code" : "prose",
                                               .sha256 = "",
                                               .first_token = s->tokens / DOCUMENTS * d,
                                               .tokens = s->tokens / DOCUMENTS};
    for (int r = 0; r < s->layers; r++) {
        layers[r] = (struct trace_layer){
            .layer = r, .experts = s->experts, .topk = 8, .holds = TRACE_SCORES, .has_gate = true};
        if (!gate_parse(s->gate, NULL, &layers[r].gate, &err)) stop("gate", &err);
        if (layers[r].gate.bias) layers[r].bias = bias;
    }
    const struct trace_setup setup = {.capture = {.model = s->name,
                                                  .family = "",
                                                  .model_id = "",
                                                  .config = s->config,
                                                  .source = "made up",
                                                  .compute = "",
                                                  .kernels = "",
                                                  .store = TRACE_F32,
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = layers,
                                      .layer_count = s->layers,
                                      .documents = documents,
                                      .document_count = DOCUMENTS};
    struct trace *trace = trace_create(path, &setup, TRACE_FORCE, &err);
    if (!trace) stop(path, &err);
    return trace;
}

/* row[E] <- the token's logits, the experts turned by the layer's number: layers differ. */
static void turn(const float *from, int experts, int by, float *row) {
    memcpy(row, from + by, (size_t)(experts - by) * sizeof *row);
    memcpy(row + experts - by, from, (size_t)by * sizeof *row);
}

static void write_trace(const struct shape *s, const char *path) {
    struct rng rng;
    struct err err;
    rng_init(&rng, 5);
    float *logits = random_logits(&rng, s->tokens, s->experts, 1.2);
    float *rows = malloc((size_t)PASS * (size_t)s->experts * sizeof *rows);
    float *bias = malloc((size_t)s->experts * sizeof *bias);
    int32_t *zero = calloc(PASS, sizeof *zero);
    struct trace_layer *layers = calloc((size_t)s->layers, sizeof *layers);
    if (!rows || !bias || !zero || !layers) exit(1);
    for (int e = 0; e < s->experts; e++) bias[e] = (float)(0.02 * rng_normal(&rng));
    struct trace *trace = create(s, path, layers, bias);
    for (int64_t at = 0; at < s->tokens; at += PASS) {
        if (!trace_pass_begin(trace, &(struct trace_pass){PASS, zero, zero}, &err))
            stop("pass", &err);
        for (int r = 0; r < s->layers; r++) {
            for (int t = 0; t < PASS; t++)
                turn(logits + (at + t) * s->experts, s->experts, 3 * r % s->experts,
                     rows + t * s->experts);
            const struct trace_routes routes = {.r = r, .tokens = PASS, .logits = rows};
            if (!trace_pass_routes(trace, &routes, &err)) stop("routes", &err);
        }
        if (!trace_pass_commit(trace, &err)) stop("commit", &err);
    }
    if (!trace_close(trace, true, &err)) stop("close", &err);
    free(layers);
    free(zero);
    free(bias);
    free(rows);
    free(logits);
}

/* ---- the sweep */

/* CPU seconds of the children so far. */
static double children_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_CHILDREN, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void sweep(const struct shape *s) {
    char path[128], line[1024], name[64];
    snprintf(name, sizeof name, "%s sweep 1000 cells", s->name);
    if (!bench_wanted(name)) return;
    snprintf(path, sizeof path, "build/bench-cluster-%s.db", s->name);
    write_trace(s, path);
    snprintf(line, sizeof line,
             "build/steelyard throughput %s --out build/bench-cluster-out.db --force --threads 2 "
             "--moe-only --gate native,bias --bias-rule none,sign --bias-rate "
             "0.0001,0.0003,0.001,0.003 --ranks 8,16,32,64 "
             "--placement contiguous,shuffled,lpt,eplb,eplb-hierarchical "
             "--phase prefill,decode --tokens 128,256,512,1024,2048 --concurrency 16,32,64,128,256 "
             "--groups 8 --csv >build/bench-cluster.csv 2>build/bench-cluster.log",
             path);
    double wall = clock_seconds(), cpu = children_seconds();
    if (system(line) != 0) {
        fprintf(stderr, "bench: failed (see build/bench-cluster.log): %s\n", line);
        return;
    }
    wall = clock_seconds() - wall;
    cpu = children_seconds() - cpu;
    bool idle = !getenv("BENCH_CLOCK"); /* else the machine is shared: wall time says nothing */
    if (idle) bench_print("cluster", name, wall, "s wall");
    snprintf(name, sizeof name, "%s sweep 1000 cells cpu", s->name);
    bench_print("cluster", name, cpu, "s CPU of two threads");
    unlink("build/bench-cluster-out.db");
    unlink(path);
}

/* ---- EPLB */

enum {
    EPLB_LAYERS = 58,
    EPLB_EXPERTS = 256,
    EPLB_REPLICAS = 32,
    EPLB_SLOTS = EPLB_EXPERTS + EPLB_REPLICAS,
    EPLB_RANKS = 32,
    EPLB_NODES = 4,
    EPLB_GROUPS = 8
};

struct eplb {
    double weight[EPLB_LAYERS][EPLB_EXPERTS];
    int32_t placed[EPLB_LAYERS][EPLB_SLOTS];
};

static void place(void *context) {
    struct eplb *e = context;
    const struct placement_shape shape = {EPLB_EXPERTS, EPLB_SLOTS, EPLB_RANKS, EPLB_NODES,
                                          EPLB_GROUPS};
    struct err err;
    for (int l = 0; l < EPLB_LAYERS; l++) {
        struct placement p;
        if (!placement_build(&p, PLACE_EPLB, &shape, e->weight[l], 0, &err)) stop("eplb", &err);
        memcpy(e->placed[l], p.expert_of, sizeof e->placed[l]);
        placement_free(&p);
    }
}

static const char *const weights_path = "build/bench-eplb.txt", *const placed_path =
                                                                    "build/bench-eplb-placed.txt";

static void write_weights(const struct eplb *e) {
    FILE *f = fopen(weights_path, "w");
    if (!f) exit(1);
    for (int l = 0; l < EPLB_LAYERS; l++)
        for (int i = 0; i < EPLB_EXPERTS; i++)
            fprintf(f, "%.17g%c", e->weight[l][i], i == EPLB_EXPERTS - 1 ? '\n' : ' ');
    if (fclose(f) != 0) exit(1);
}

/* Slots that numpy gave to another expert. */
static int differences(const struct eplb *e) {
    FILE *f = fopen(placed_path, "r");
    int different = 0, expert;
    for (int l = 0; l < EPLB_LAYERS; l++)
        for (int s = 0; s < EPLB_SLOTS; s++)
            different += !f || fscanf(f, "%d", &expert) != 1 || expert != e->placed[l][s];
    if (f) fclose(f);
    return different;
}

/* Seconds of the same in numpy; 0 when there is none. */
static double run_numpy(const struct eplb *e) {
    const char *python = getenv("STEELYARD_PYTHON");
    char line[512];
    double seconds = 0;
    write_weights(e);
    snprintf(line, sizeof line, "%s tests/bench/eplb_numpy.py %s %s %d %d %d %d %d %d 2>/dev/null",
             python ? python : "python3", weights_path, placed_path, EPLB_LAYERS, EPLB_EXPERTS,
             EPLB_REPLICAS, EPLB_RANKS, EPLB_NODES, EPLB_GROUPS);
    FILE *answer = popen(line, "r");
    if (!answer || fscanf(answer, "%lf", &seconds) != 1) seconds = 0;
    if (answer) pclose(answer);
    return seconds;
}

static void eplb(void) {
    static const char name[] = "eplb hierarchical 58x256+32 on 32";
    static struct eplb e;
    struct rng rng;
    double sample[BENCH_RUNS];
    if (!bench_wanted(name)) return;
    rng_init(&rng, 11);
    for (int l = 0; l < EPLB_LAYERS; l++)
        for (int i = 0; i < EPLB_EXPERTS; i++)
            e.weight[l][i] = 1 + 1e4 * rng_uniform(&rng) * rng_uniform(&rng);
    for (int r = 0; r < BENCH_RUNS; r++) {
        double start = bench_seconds(1);
        place(&e);
        sample[r] = 1e3 * (bench_seconds(1) - start);
    }
    qsort(sample, BENCH_RUNS, sizeof *sample, ascending);
    bench_print("cluster", name, sample[BENCH_RUNS / 2], "ms");
    double numpy = run_numpy(&e);
    if (numpy <= 0) {
        fprintf(stderr, "skip: eplb in numpy: no Python with numpy (STEELYARD_PYTHON names one)\n");
        return;
    }
    bench_print("cluster", "eplb in numpy", 1e3 * numpy, "ms");
    bench_print("cluster", "eplb: slots that differ from numpy's", differences(&e), "slots");
}

void bench_cluster(void);
void bench_cluster(void) {
    eplb();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) sweep(&shapes[i]);
}
