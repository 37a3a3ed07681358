/* kernels.h - arithmetic of the engine: contract, one table of functions per CPU level
 *
 * Layer 3 (engine). kernels_select chooses by CPU features alone (or by force, for tests), so a
 * machine always gives the same numbers. `portable` is the truth; every other level is tested
 * against it. Row-major everywhere. Letters: M rows (tokens), N outputs, K inputs.
 *
 * Law 3: an output element is one fixed-order sum over K that depends on nothing but its row and
 * its column: not on M, on the position of the row, or on the thread. */
#ifndef ENGINE_KERNELS_H
#define ENGINE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/threads.h"

/* Element types of weights as files hold them. */
enum kernel_type { KERNEL_F32, KERNEL_F16, KERNEL_BF16 };

struct kernels; /* one level: opaque table of functions */

/* level: NULL or "auto" = best of this CPU; else "portable", "avx2", "avx512", "avx512bf16", "amx",
 * "neon". Unknown or unusable levels are refused with the list of usable ones. */
const struct kernels *kernels_select(const char *level, struct err *err);
const char *kernels_name(const struct kernels *kernels);
/* The levels this build knows, best first, NULL at the end; kernels_usable says why one is not. */
const char *kernels_level(int index);
bool kernels_usable(const char *level);

/* ---- products of matrices */

/* A weight matrix W[N,K], packed once. The layout is the same at every level: panels of 32 outputs,
 * in f32, or in bf16 where the source is bf16 (widened when used: exact) or where `bf16` is asked
 * for (activations are then rounded to bf16 too, at the levels that multiply bf16; f16 and f32
 * sources are rounded to bf16). */
struct packed;

/* Bytes that a packed W[N,K] of source type `type` occupies for compute type f32 (bf16 = false) or
 * bf16 (true); 0 when the size overflows or n or k is below 1. */
size_t packed_bytes(enum kernel_type type, int64_t n, int64_t k, bool bf16);

/* Packs rows [N,K] of `type` (row stride = K elements, any alignment) into memory[packed_bytes],
 * 64-byte aligned, on the pool. Returns the handle that lies at its start; it may be moved or
 * stored as bytes. `memory` is borrowed; `rows` is not needed afterwards. */
struct packed *packed_make(const struct kernels *kernels, struct pool *pool, void *memory,
                           enum kernel_type type, const void *rows, int64_t n, int64_t k,
                           bool bf16);

/* Rows of the packed matrix are taken from two places, e.g. gate_proj and up_proj fused into one
 * product: rows [n1,K] of `first` and then [n2,K] of `second` (which may be NULL when n2 = 0). */
struct packed *packed_make2(const struct kernels *kernels, struct pool *pool, void *memory,
                            enum kernel_type type, const void *first, int64_t n1,
                            const void *second, int64_t n2, int64_t k, bool bf16);

/* One product C[M,N] = A[M,K] W[N,K]^T (+ bias[N] where given). rows: NULL, or an index per row of
 * A (gather), so that a grouped call needs no copy of the tokens. Strides in elements. */
struct gemm {
    const struct packed *weight;
    const float *a;      /* [*,K] */
    const int32_t *rows; /* [M] or NULL */
    const float *bias;   /* [N] or NULL */
    float *c;            /* [M,N]; must not overlap a */
    int64_t m, lda, ldc;
};

/* Runs a group of independent products (e.g. one per expert, any M including 0) on the pool. All
 * share N, K and compute type. Bit-equal for any pool size and any grouping. */
void gemm_grouped(const struct kernels *kernels, struct pool *pool, const struct gemm *items,
                  int count);

/* ---- vectors of n floats (callers spread rows over the pool). No result depends on alignment. */

float vector_dot(const struct kernels *kernels, const float *x, const float *y, int64_t n);
/* y += a x */
void vector_axpy(const struct kernels *kernels, float a, const float *x, float *y, int64_t n);
/* out = silu(gate) * up, silu(x) = x / (1 + exp(-x)); out may be gate or up. */
void vector_silu_mul(const struct kernels *kernels, const float *gate, const float *up, float *out,
                     int64_t n);
/* y = x / sqrt(mean(x^2) + eps) * weight (weight NULL: 1); y may be x. */
void vector_rmsnorm(const struct kernels *kernels, const float *x, const float *weight, float eps,
                    float *y, int64_t n);
/* x = exp(x - max x) / sum, in place; returns ln(sum of exp(x)) of the input (for the NLL). */
float vector_softmax(const struct kernels *kernels, float *x, int64_t n);
/* The same ln(sum of exp(x)), x unchanged. */
float vector_logsumexp(const struct kernels *kernels, const float *x, int64_t n);

/* ---- attention */

/* Causal attention of all heads over one or more windows of tokens. Row i of q, k, v and out is
 * token i; head h of a token lies at row + h * head stride. Query head h uses key/value head
 * h / (heads / kv_heads). Token i sees token j when both lie in the same window, j <= i,
 * i - j < span (span > 0) and, counted from the window's start, i / chunk == j / chunk (chunk > 0).
 *   out_i = sum_j p_ij v_j,  p_ij = exp(scale q_i k_j) / (sum_j exp(scale q_i k_j) + exp(sink_h))
 */
struct attention {
    const float *q, *k, *v;                 /* [T, heads|kv_heads, dim|dim|dim_v] */
    float *out;                             /* [T, heads, dim_v] */
    int64_t ldq, ldk, ldv, ldo;             /* stride from token to token, in elements */
    int64_t head_q, head_k, head_v, head_o; /* stride from head to head, in elements */
    int heads, kv_heads, dim, dim_v;
    const int64_t *start; /* [windows + 1]: first row of each, then T */
    int windows;
    int64_t span, chunk; /* 0 = not limited */
    float scale;
    const float *sink; /* [heads] or NULL */
    bool bf16; /* products of bf16: q, k, v and p are rounded (heads wider than 512: in f32) */
};

/* Bytes of working memory that attention_run needs (linear in T); 0 when the sizes are impossible.
 */
size_t attention_bytes(const struct attention *job, const struct pool *pool);

/* Runs it in tiles on the pool; work[attention_bytes], 64-byte aligned. A token's result does not
 * depend on the pool, on later tokens or on other windows. */
void attention_run(const struct kernels *kernels, struct pool *pool, const struct attention *job,
                   void *work);

#endif
