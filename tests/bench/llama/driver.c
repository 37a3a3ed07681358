/* driver.c - llama.cpp's side of the comparison: evaluates windows of tokens, all of them outputs
 *
 *   driver MODEL.gguf THREADS MOST_TOKENS
 *
 * Built by tests/bench/llama.sh against llama.cpp, never part of the program. Reads numbers of
 * tokens, one a line, and answers each with "wall seconds, CPU seconds, mean NLL". Every token is
 * an output: without that the last layer runs for one token only, which is not the work of a
 * capture. Settings: llama.cpp's own defaults (f16 cache, flash attention where it can, 512 tokens
 * a physical batch). The NLL is computed outside of the measured span. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "llama.h"

static double wall(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double cpu(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

static double mean_nll(struct llama_context *context, const struct llama_batch *batch, int vocab) {
    double sum = 0;
    for (int t = 0; t + 1 < batch->n_tokens; t++) {
        const float *row = llama_get_logits(context) + (size_t)t * (size_t)vocab;
        double total = 0;
        for (int i = 0; i < vocab; i++) total += exp((double)row[i]);
        sum += log(total) - (double)row[batch->token[t + 1]];
    }
    return sum / (batch->n_tokens - 1);
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static bool evaluate(struct llama_context *context, struct llama_batch *batch, int tokens,
                     int vocab) {
    batch->n_tokens = tokens;
    for (int t = 0; t < tokens; t++) {
        batch->token[t] = (t * 7919 + 13) % vocab;
        batch->pos[t] = t;
        batch->n_seq_id[t] = 1;
        batch->seq_id[t][0] = 0;
        batch->logits[t] = 1;
    }
    llama_memory_clear(llama_get_memory(context), false);
    double from = wall(), used = cpu();
    if (llama_decode(context, *batch) != 0) return false;
    llama_synchronize(context);
    from = wall() - from, used = cpu() - used;
    printf("%.6f %.6f %.6f\n", from, used, mean_nll(context, batch, vocab));
    fflush(stdout);
    return true;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const int threads = atoi(argv[2]), most = atoi(argv[3]);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = (uint32_t)most;
    params.n_threads = params.n_threads_batch = threads;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) return 1;
    int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model)), tokens;
    struct llama_batch batch = llama_batch_init(most, 0, 1);
    while (scanf("%d", &tokens) == 1)
        if (tokens < 2 || tokens > most || !evaluate(context, &batch, tokens, vocab)) return 1;
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
