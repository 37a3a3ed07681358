/* level.h - what one CPU level implements: the table behind struct kernels (private to kernels/)
 *
 * The drivers (pack.c, gemm.c, attention.c) are common to all levels and own blocking and threads;
 * a level supplies the inner tiles. Adding a level = one file with one table, and one row in
 * kernels.c.
 *
 * Layouts. A panel holds PANEL_COLS outputs: f32 as [K][32], bf16 as pairs along K: [K/2][32][2]
 * with K padded to 32 by zeros; the pair is what vdpbf16ps, AMX and two-step widening all want. The
 * activations of one tile are packed by the level itself (pack_a), in whatever form its tile wants.
 */
#ifndef ENGINE_KERNELS_LEVEL_H
#define ENGINE_KERNELS_LEVEL_H

#include <stdbool.h>
#include <stdint.h>

/* A sum over K is made of partial sums of block_k products, added in order. It is part of the
 * definition of a result, so a level has one for every shape: 256, or 512 where activations are
 * packed as bf16 (BLOCK_BYTES of a row either way). */
enum { PANEL_COLS = 32, BLOCK_K = 256, BLOCK_K_DOT = 512, BLOCK_BYTES = 1024, MAX_TILE_ROWS = 32 };

enum panel_kind {
    PANEL_F32,  /* f32 weights, f32 activations */
    PANEL_BF16, /* bf16 weights widened to f32, f32 activations */
    PANEL_DOT,  /* bf16 weights, activations rounded to bf16 */
    PANEL_KINDS
};

/* C[rows, cols] = initial + A[rows, k] B[k, cols]. */
struct tile {
    int rows, cols, k;    /* 1..tile_rows, 1..32, 1.. */
    const void *a;        /* packed by pack_a */
    const void *b;        /* panel, at the first k */
    const float *initial; /* [rows, cols], stride ld_initial (0: one row for all); NULL = zero */
    int64_t ld_initial;
    float *c; /* [rows, cols], stride ldc; may be initial */
    int64_t ldc;
};

/* Packs k columns of `rows` rows, all rows starting at offset: dst has room for
 * MAX_TILE_ROWS * round_up(k, 32) * 4 bytes. */
typedef void (*pack_a_fn)(void *dst, const float *const *row, int rows, int64_t offset, int k);
typedef void (*tile_fn)(const struct tile *tile);

struct kernels {
    const char *name;
    int tile_rows[PANEL_KINDS], block_k[PANEL_KINDS];
    pack_a_fn pack_a[PANEL_KINDS];
    tile_fn tile[PANEL_KINDS];
    /* dst[k][32] <- src[cols][k] of 32-bit units, stride in bytes, unaligned; columns >= cols: 0.
     * stream: dst is not needed soon, so it may bypass the caches. */
    void (*transpose)(uint32_t *dst, const void *src, int64_t stride_bytes, int cols, int64_t k,
                      bool stream);
    void (*f16_to_f32)(float *dst, const uint16_t *src, int64_t n);
    void (*f32_to_bf16)(uint16_t *dst, const float *src, int64_t n); /* to nearest even */
    float (*dot)(const float *x, const float *y, int64_t n);
    void (*axpy)(float a, const float *x, float *y, int64_t n);
    void (*scale)(float a, float *x, int64_t n);                                     /* x *= a */
    void (*scale_mul)(float a, const float *x, const float *w, float *y, int64_t n); /* y = a x w */
    void (*silu_mul)(const float *gate, const float *up, float *out, int64_t n);
    float (*max)(const float *x, int64_t n); /* n = 0: -inf */
    /* y = exp(x - shift), returns the sum; y may be x, y NULL: only the sum. */
    float (*exp_sum)(const float *x, float shift, float *y, int64_t n);
};

extern const struct kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_avx512bf16,
    kernels_amx, kernels_neon;

/* AMX asks the operating system for its tile state before first use; false when refused. */
bool amx_permission(void);

static inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static inline int64_t div_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

#endif
