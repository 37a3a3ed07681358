/* gguf_model.h - random-weight GGUF checkpoints of published shapes, for the benchmarks */
#ifndef TESTS_BENCH_GGUF_MODEL_H
#define TESTS_BENCH_GGUF_MODEL_H

#include <stdbool.h>

struct gguf_shape {
    const char *name, *arch; /* arch: olmoe or deepseek2 */
    int layers, dense_layers, vocab, hidden, dense_width;
    int experts, topk, width, shared_width, groups, groups_used;
    int heads, dim, v_dim;     /* of a head */
    int q_lora, kv_lora, rope; /* 0: not latent */
};

/* Writes it to `path` unless it is there: matrices in bf16 or f32 (the same values), vectors and
 * routers in f32. Stops the program on errors. */
void gguf_model_write(const struct gguf_shape *shape, bool f32, const char *path);
/* Operations (multiply and add counted each) of a window of `tokens` with all tokens as outputs,
 * attention over half the square, latent heads expanded. */
double gguf_model_flop(const struct gguf_shape *shape, int tokens);

#endif
