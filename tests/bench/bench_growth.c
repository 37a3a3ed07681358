/* bench_growth.c - how the cost of a replay grows, and how little memory it takes
 *
 * Nanoseconds per token-layer against experts, k and variants, and whole runs against tokens;
 * the cost of a further variant as a share of a full replay; two threads against one; peak memory
 * at one and eight times the tokens, from a source that makes rows as they are asked for. Writes
 * build/bench-growth.tsv and, where gnuplot is installed, build/bench-growth.svg. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "sim/replay.h"
#include "tests/bench/bench.h"
#include "tests/support_logits.h"

enum { RING = 4096, LAYERS = 4, MOST_VARIANTS = 16 };

/* ---- a source of any number of tokens: RING rows over and over */

struct source_reader {
    const float *logits;
    int experts;
};

struct made {
    float *logits; /* [RING, E] */
    float *bias;
    struct source_layer layer[LAYERS];
    int64_t first[2];
    struct source source;
};

static struct source_reader *made_open(const struct source *source, int index, struct err *err) {
    const struct made *made = source->context;
    struct source_reader *reader = malloc(sizeof *reader);
    if (reader) *reader = (struct source_reader){made->logits, source->layer[index].experts};
    if (!reader) err_memory(err, "reader");
    return reader;
}

static bool made_rows(struct source_reader *reader, int64_t first, int64_t max,
                      const float **logits, int64_t *n, struct err *err) {
    (void)err;
    int64_t at = first % RING;
    *logits = reader->logits + at * reader->experts;
    *n = max < RING - at ? max : RING - at;
    return true;
}

static void made_close(struct source_reader *reader) { free(reader); }

static void make(struct made *m, const char *gate, int experts, int64_t tokens) {
    struct rng rng;
    struct err err;
    rng_init(&rng, 1);
    *m = (struct made){.logits = random_logits(&rng, RING, experts, 1.5), .first = {0, tokens}};
    m->bias = calloc((size_t)experts, sizeof *m->bias);
    for (int e = 0; e < experts; e++) m->bias[e] = (float)(0.02 * rng_normal(&rng));
    for (int l = 0; l < LAYERS; l++) {
        m->layer[l] = (struct source_layer){.layer = l, .experts = experts};
        if (!gate_parse(gate, NULL, &m->layer[l].native, &err)) {
            fprintf(stderr, "bench: %s\n", err.text);
            exit(1);
        }
        if (m->layer[l].native.bias) m->layer[l].bias = m->bias;
    }
    m->source = (struct source){.name = "made up",
                                .tokens = tokens,
                                .layers = LAYERS,
                                .layer = m->layer,
                                .documents = 1,
                                .document_first = m->first,
                                .open = made_open,
                                .rows = made_rows,
                                .close = made_close,
                                .context = m};
}

static void unmake(struct made *m) {
    free(m->logits);
    free(m->bias);
}

/* ---- runs */

static bool ignore_row(void *context, const struct replay_row *row, struct err *err) {
    (void)context, (void)row, (void)err;
    return true;
}

static double seconds_of(const struct made *m, const struct variant_set *set, int threads) {
    const struct replay_options options = {.threads = threads};
    const struct replay_sink sink = {ignore_row, NULL};
    struct err err;
    double start = bench_seconds(threads);
    if (!replay_run(set, &m->source, &options, &sink, NULL, &err)) {
        fprintf(stderr, "bench: %s\n", err.text);
        exit(1);
    }
    return bench_seconds(threads) - start;
}

static void build(struct variant_set *set, const struct variant_lists *lists,
                  const struct made *m) {
    struct err err;
    if (variant_set_build(set, lists, &m->source, &err)) return;
    fprintf(stderr, "bench: %s\n", err.text);
    exit(1);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *value) {
    qsort(value, BENCH_RUNS, sizeof *value, ascending);
    return value[BENCH_RUNS / 2];
}

/* Nanoseconds per token-layer of lists on a gate. */
static double cost(const char *gate, int experts, int64_t tokens,
                   const struct variant_lists *lists) {
    struct made m;
    struct variant_set set;
    double value[BENCH_RUNS];
    make(&m, gate, experts, tokens);
    build(&set, lists, &m);
    seconds_of(&m, &set, 1);
    for (int r = 0; r < BENCH_RUNS; r++)
        value[r] = 1e9 * seconds_of(&m, &set, 1) / (double)(tokens * LAYERS);
    variant_set_free(&set);
    unmake(&m);
    return median(value);
}

/* ---- growth */

static const struct variant_lists native = {.batch_count = 0};

static void point(FILE *out, const char *what, int x, double ns, double of) {
    char name[64];
    snprintf(name, sizeof name, "%s %d", what, x);
    bench_print("growth", name, ns, "ns per token-layer");
    if (out) fprintf(out, "%d\t%.4g\t%.4g\n", x, ns, of > 0 ? ns / of : 1);
}

static void section(FILE *out, const char *what) {
    if (out) fprintf(out, "\n\n%s\tns\trelative\n", what);
}

static void grow_tokens(FILE *out) {
    section(out, "tokens");
    for (int t = 4096; t <= 8 * 4096; t *= 2) {
        double ns = cost("deepseek-v3", 256, t, &native);
        point(out, "tokens", t, ns * t / 4096, 0);
    }
}

static void grow_experts(FILE *out) {
    section(out, "experts");
    for (int e = 32; e <= 512; e *= 2)
        point(out, "experts", e, cost("sigmoid,bias,topk=8,norm=sum", e, 8192, &native), 0);
}

static void grow_k(FILE *out) {
    char gate[64];
    section(out, "k");
    for (int k = 1; k <= 15; k += k < 4 ? 1 : k < 8 ? 2 : 4) {
        snprintf(gate, sizeof gate, "sigmoid,bias,topk=%d,norm=sum", k);
        point(out, "k", k, cost(gate, 256, 8192, &native), 0);
    }
}

/* Gates that all choose differently, by one score function. */
static const char *const gates[MOST_VARIANTS] = {"native",
                                                 "native,groups=none",
                                                 "native,groups=8:2:top2sum",
                                                 "native,groups=8:3:top2sum",
                                                 "native,groups=8:5:top2sum",
                                                 "native,groups=8:4:max",
                                                 "native,groups=4:2:top2sum",
                                                 "native,groups=4:1:top2sum",
                                                 "native,groups=8:6:top2sum",
                                                 "native,groups=8:7:top2sum",
                                                 "native,groups=2:1:top2sum",
                                                 "native,groups=8:2:max",
                                                 "native,groups=8:3:max",
                                                 "native,groups=4:2:max",
                                                 "native,groups=4:3:top2sum",
                                                 "native,topk=6"};

/* Variants of one sweep: all measured in turns, so that their ratio is of one moment. */
static void grow_variants(FILE *out) {
    static const int counts[] = {1, 2, 4, 8, MOST_VARIANTS};
    enum { POINTS = sizeof counts / sizeof *counts };
    struct variant_set set[POINTS];
    struct made m;
    double value[POINTS][BENCH_RUNS], further[POINTS][BENCH_RUNS];
    char name[64];
    make(&m, "deepseek-v3", 256, 8192);
    for (int i = 0; i < POINTS; i++)
        build(&set[i], &(struct variant_lists){.gates = {gates, counts[i]}}, &m);
    for (int r = -1; r < BENCH_RUNS; r++)
        for (int i = 0; i < POINTS; i++) {
            double ns = 1e9 * seconds_of(&m, &set[i], 1) / (double)(m.source.tokens * LAYERS);
            if (r < 0) continue;
            value[i][r] = ns;
            if (i > 0) further[i][r] = (ns - value[0][r]) / (counts[i] - 1) / value[0][r];
        }
    section(out, "variants");
    for (int i = 0; i < POINTS; i++) {
        point(out, "variants", counts[i], median(value[i]), 0);
        snprintf(name, sizeof name, "a further variant of %d", counts[i]);
        if (i > 0) bench_print("growth", name, median(further[i]), "full replays");
        variant_set_free(&set[i]);
    }
    unmake(&m);
}

/* Eight rates of one rule against one, in turns. */
static void grow_rates(const char *gate, int experts) {
    static const char *const sign[] = {"sign"};
    static const char *const rates[] = {"1e-5", "3e-5", "1e-4", "3e-4",
                                        "1e-3", "3e-3", "1e-2", "3e-2"};
    const struct variant_lists lists = {.bias_rules = {sign, 1}, .rates = {rates, 8}};
    struct variant_set one, eight;
    struct made m;
    double ratio[BENCH_RUNS];
    char name[64];
    make(&m, gate, experts, 16384);
    build(&one, &native, &m);
    build(&eight, &lists, &m);
    seconds_of(&m, &one, 1);
    for (int r = 0; r < BENCH_RUNS; r++) {
        double before = seconds_of(&m, &one, 1), all = seconds_of(&m, &eight, 1);
        ratio[r] = all / ((before + seconds_of(&m, &one, 1)) / 2);
    }
    snprintf(name, sizeof name, "%s 8 sign rates", gate);
    bench_print("growth", name, median(ratio), "full replays");
    variant_set_free(&eight);
    variant_set_free(&one);
    unmake(&m);
}

static void two_threads(const char *gate, int experts) {
    struct variant_set set;
    struct made m;
    double ratio[BENCH_RUNS];
    char name[64];
    make(&m, gate, experts, 32768);
    build(&set, &native, &m);
    seconds_of(&m, &set, 2);
    for (int r = 0; r < BENCH_RUNS; r++) {
        double before = seconds_of(&m, &set, 1), both = seconds_of(&m, &set, 2);
        ratio[r] = (before + seconds_of(&m, &set, 1)) / 2 / both;
    }
    snprintf(name, sizeof name, "%s two threads against one", gate);
    bench_print("growth", name, median(ratio), "times");
    variant_set_free(&set);
    unmake(&m);
}

static double peak_mib(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

/* The first of all, because a peak never falls. */
static void memory(void) {
    for (int64_t tokens = 1 << 17; tokens <= 1 << 20; tokens *= 8) {
        struct variant_set set;
        struct made m;
        char name[64];
        make(&m, "deepseek-v3", 256, tokens);
        build(&set, &(struct variant_lists){.gates = {gates, 4}}, &m);
        seconds_of(&m, &set, 1);
        snprintf(name, sizeof name, "peak memory at %lld tokens", (long long)tokens);
        bench_print("growth", name, peak_mib(), "MiB");
        variant_set_free(&set);
        unmake(&m);
    }
}

static void draw(void) {
    if (system("command -v gnuplot > /dev/null 2>&1") != 0)
        fprintf(stderr, "skip: the figure: gnuplot is not installed\n");
    else if (system("gnuplot -e \"data='build/bench-growth.tsv'; out='build/bench-growth.svg'\" "
                    "tests/bench/growth.gp") != 0)
        fprintf(stderr, "bench: gnuplot failed\n");
}

void bench_growth(void);
void bench_growth(void) {
    FILE *out = fopen("build/bench-growth.tsv", "w");
    memory();
    grow_tokens(out);
    grow_experts(out);
    grow_k(out);
    grow_variants(out);
    grow_rates("deepseek-v3", 256);
    grow_rates("olmoe", 64);
    two_threads("deepseek-v3", 256);
    two_threads("olmoe", 64);
    if (out) fclose(out);
    draw();
}
