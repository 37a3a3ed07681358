/* kernels.h - matrix kernels of the engine: contract, one table of functions per CPU level
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

/* A weight matrix W[N,K], packed once for the level. */
struct packed;

/* Bytes that a packed W[N,K] occupies for compute type f32 (bf16 = false) or bf16 (true). */
size_t packed_bytes(const struct kernels *kernels, int64_t n, int64_t k, bool bf16);

/* Packs rows [N,K] of `type` (row stride = K elements) into memory[packed_bytes], 64-byte aligned,
 * on the pool. Returns the handle that lies at its start. */
struct packed *packed_make(const struct kernels *kernels, struct pool *pool, void *memory,
                           enum kernel_type type, const void *rows, int64_t n, int64_t k,
                           bool bf16);

/* One product C[M,N] = A[M,K] W[N,K]^T. rows: NULL, or an index per row of A (gather), so that a
 * grouped call needs no copy of the tokens. Strides in elements. */
struct gemm {
    const struct packed *weight;
    const float *a;      /* [*,K] */
    const int32_t *rows; /* [M] or NULL */
    float *c;            /* [M,N] */
    int64_t m, lda, ldc;
};

/* Runs a group of independent products (e.g. one per expert, any M including 0) on the pool. All
 * share N and K. Bit-equal for any pool size and any grouping. */
void gemm_grouped(const struct kernels *kernels, struct pool *pool, const struct gemm *items,
                  int count);

#endif
