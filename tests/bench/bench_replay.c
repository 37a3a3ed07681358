/* bench_replay.c - replay speed in token-layers per second
 *
 * Logits in memory (reading a trace is another scene's matter), four layers of 4096 tokens. `route`
 * is routing alone, `native` a replay with all its measures, the others sweeps: their figure counts
 * token-layers times variants. */
#include <stdio.h>
#include <stdlib.h>

#include "router/route.h"
#include "sim/replay.h"
#include "tests/bench/bench.h"
#include "tests/support_logits.h"

enum { LAYERS = 4, TOKENS = 4096 };

static const char *const scores[] = {"softmax", "sigmoid"};
static const char *const norms[] = {"none", "sum", "sum:1e-6", "clamp:1e-9"};
static const char *const sign[] = {"sign"};
static const char *const rates[] = {"1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2"};

static const struct {
    const char *name;
    struct variant_lists lists;
} sweeps[] = {
    {"native", {.batch_count = 0}},
    {"2 scores", {.scores = {scores, 2}}},
    {"4 norms", {.norms = {norms, 4}}},
    {"8 sign rates", {.bias_rules = {sign, 1}, .rates = {rates, 8}}},
};

struct scene {
    struct source source;
    struct source_arrays arrays;
    struct source_layer layer[LAYERS];
    float *logits[LAYERS];
    float *bias;
    struct variant_set set;
    int threads;
    void *scratch;
    int32_t *expert;
    float *weight;
};

static bool ignore_row(void *context, const struct replay_row *row, struct err *err) {
    (void)context, (void)row, (void)err;
    return true;
}

static void run_replay(void *context) {
    struct scene *s = context;
    const struct replay_options options = {.threads = s->threads};
    const struct replay_sink sink = {ignore_row, NULL};
    struct err err;
    if (!replay_run(&s->set, &s->source, &options, &sink, NULL, &err)) {
        fprintf(stderr, "bench: %s\n", err.text);
        exit(1);
    }
}

static void run_route(void *context) {
    struct scene *s = context;
    struct routes out = {s->expert, s->weight, NULL, NULL};
    for (int l = 0; l < LAYERS; l++)
        route_tokens(&s->layer[l].native, s->layer[l].experts, TOKENS, s->logits[l], s->bias, &out,
                     s->scratch);
}

static void make(struct scene *s, const char *gate, int experts) {
    struct rng rng;
    struct err err;
    rng_init(&rng, 1);
    *s = (struct scene){.threads = 1};
    s->bias = calloc((size_t)experts, sizeof *s->bias);
    s->expert = calloc(TOKENS * 16, sizeof *s->expert);
    s->weight = calloc(TOKENS * 16, sizeof *s->weight);
    s->scratch = aligned_alloc(64, (route_scratch_bytes(experts) + 63) / 64 * 64);
    for (int e = 0; e < experts; e++) s->bias[e] = (float)(0.02 * rng_normal(&rng));
    for (int l = 0; l < LAYERS; l++) {
        s->logits[l] = random_logits(&rng, TOKENS, experts, 1.5);
        s->layer[l] = (struct source_layer){.layer = l, .experts = experts};
        if (!gate_parse(gate, NULL, &s->layer[l].native, &err)) exit(1);
        if (s->layer[l].native.bias) s->layer[l].bias = s->bias;
    }
    s->arrays.logits = (const float *const *)s->logits;
    source_of_arrays(&s->source, &s->arrays, TOKENS, s->layer, LAYERS);
}

static void unmake(struct scene *s) {
    for (int l = 0; l < LAYERS; l++) free(s->logits[l]);
    free(s->scratch);
    free(s->weight);
    free(s->expert);
    free(s->bias);
}

static void measure(struct scene *s, const char *gate, const char *what, int variants,
                    void (*run)(void *)) {
    char name[64];
    snprintf(name, sizeof name, "%s %s T%d", gate, what, s->threads);
    bench_measure(&(struct bench_case){.scene = "replay",
                                       .name = name,
                                       .unit = "M token-layers/s",
                                       .work = 1e-6 * TOKENS * LAYERS * variants,
                                       .run = run,
                                       .context = s,
                                       .threads = s->threads});
}

void bench_replay(void);
void bench_replay(void) {
    static const struct {
        const char *gate;
        int experts;
    } models[] = {{"deepseek-v3", 256}, {"olmoe", 64}};
    struct err err;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct scene s;
        make(&s, models[m].gate, models[m].experts);
        measure(&s, models[m].gate, "route", 1, run_route);
        for (size_t v = 0; v < sizeof sweeps / sizeof *sweeps; v++) {
            if (!variant_set_build(&s.set, &sweeps[v].lists, &s.source, &err)) {
                fprintf(stderr, "bench: %s\n", err.text);
                exit(1);
            }
            for (s.threads = 1; s.threads <= 2; s.threads++)
                measure(&s, models[m].gate, sweeps[v].name, s.set.count, run_replay);
            variant_set_free(&s.set);
            s.threads = 1;
        }
        unmake(&s);
    }
}
