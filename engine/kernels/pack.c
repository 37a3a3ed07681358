/* pack.c - weights from rows to panels, once per pass, on the pool
 *
 * A panel of 32 outputs is contiguous over all of K, so a tile streams it. Packing reads each
 * weight once and is a transposition of 32-bit units in both formats (bf16 goes in pairs), which
 * the level supplies; other source types are converted in blocks of BLOCK_K that stay in the L1
 * cache. */
#include "engine/kernels/packed.h"

#include <assert.h>
#include <string.h>

enum { HEADER_BYTES = 64 };

static bool in_bf16(enum kernel_type type, bool bf16) { return bf16 || type == KERNEL_BF16; }

static int64_t element_bytes(enum kernel_type type) { return type == KERNEL_F32 ? 4 : 2; }

/* Bytes of one panel. */
static int64_t panel_bytes(int64_t k, bool bf16) {
    return bf16 ? round_up(k, 32) * PANEL_COLS * 2 : k * PANEL_COLS * 4;
}

size_t packed_bytes(enum kernel_type type, int64_t n, int64_t k, bool bf16) {
    const int64_t limit = (int64_t)1 << 40;
    if (n < 1 || k < 1 || n > limit || k > limit) return 0;
    int64_t panels = div_up(n, PANEL_COLS), bytes = panel_bytes(k, in_bf16(type, bf16));
    if (panels > (INT64_MAX - HEADER_BYTES) / bytes) return 0;
    return (size_t)(panels * bytes) + HEADER_BYTES;
}

const void *packed_panel(const struct packed *packed, int64_t panel, int64_t k) {
    bool bf16 = packed->kind != PANEL_F32;
    return (const char *)packed + HEADER_BYTES + panel * panel_bytes(packed->k, bf16) +
           k * PANEL_COLS * (bf16 ? 2 : 4);
}

struct packing {
    const struct kernels *kernels;
    struct packed *packed;
    enum kernel_type type;
    const char *source[2];
    int64_t rows[2]; /* rows in source 0 and source 1 */
};

/* One row's k elements from k0 on, converted and padded with zeros to whole 32-bit units. */
static void convert_row(const struct packing *p, uint32_t *dst, const char *row, int64_t k0,
                        int k) {
    float wide[BLOCK_K];
    const char *from = row + k0 * element_bytes(p->type);
    bool bf16 = p->packed->kind != PANEL_F32;
    if (bf16 && k % 2) dst[k / 2] = 0;
    if (p->type == KERNEL_BF16) {
        memcpy(dst, from, (size_t)k * 2);
        return;
    }
    if (p->type == KERNEL_F32) {
        memcpy(bf16 ? (void *)wide : (void *)dst, from, (size_t)k * 4);
    } else {
        uint16_t half[BLOCK_K];
        memcpy(half, from, (size_t)k * 2);
        p->kernels->f16_to_f32(bf16 ? wide : (float *)dst, half, k);
    }
    if (bf16) p->kernels->f32_to_bf16((uint16_t *)dst, wide, k);
}

static const char *source_row(const struct packing *p, int64_t n) {
    int second = n >= p->rows[0];
    return p->source[second] +
           (n - (second ? p->rows[0] : 0)) * p->packed->k * element_bytes(p->type);
}

/* Rows [n, n + cols) of the source, columns [k0, k0 + k), into the panel. */
static void pack_block(const struct packing *p, int64_t n, int cols, int64_t k0, int k) {
    uint32_t block[PANEL_COLS * BLOCK_K];
    bool bf16 = p->packed->kind != PANEL_F32;
    int units = bf16 ? (k + 1) / 2 : k;
    uint32_t *dst = (uint32_t *)packed_panel(p->packed, n / PANEL_COLS, k0);
    const int64_t stride = p->packed->k * element_bytes(p->type);
    bool direct = p->type == (bf16 ? KERNEL_BF16 : KERNEL_F32) && !(bf16 && k % 2) &&
                  (n + cols <= p->rows[0] || n >= p->rows[0]);
    if (direct) {
        const char *from = source_row(p, n) + k0 * element_bytes(p->type);
        p->kernels->transpose(dst, from, stride, cols, units, true);
        return;
    }
    for (int c = 0; c < cols; c++) convert_row(p, block + c * BLOCK_K, source_row(p, n + c), k0, k);
    p->kernels->transpose(dst, block, BLOCK_K * 4, cols, units, true);
}

static void pack_panel(void *context, int64_t panel, int worker) {
    const struct packing *p = context;
    const int64_t k = p->packed->k, n = panel * PANEL_COLS, left = p->packed->n - n;
    int cols = left < PANEL_COLS ? (int)left : PANEL_COLS;
    (void)worker;
    for (int64_t k0 = 0; k0 < k; k0 += BLOCK_K)
        pack_block(p, n, cols, k0, k - k0 < BLOCK_K ? (int)(k - k0) : BLOCK_K);
    if (p->packed->kind == PANEL_F32) return;
    int64_t used = round_up(k, 2), padded = round_up(k, 32);
    memset((void *)packed_panel(p->packed, panel, used), 0,
           (size_t)(padded - used) * PANEL_COLS * 2);
}

struct packed *packed_make2(const struct kernels *kernels, struct pool *pool, void *memory,
                            enum kernel_type type, const void *first, int64_t n1,
                            const void *second, int64_t n2, int64_t k, bool bf16) {
    struct packed *packed = memory;
    assert((uintptr_t)memory % 64 == 0 && packed_bytes(type, n1 + n2, k, bf16) > 0);
    packed->n = n1 + n2;
    packed->k = k;
    packed->kind = bf16 ? PANEL_DOT : type == KERNEL_BF16 ? PANEL_BF16 : PANEL_F32;
    struct packing p = {kernels, packed, type, {first, second}, {n1, n2}};
    pool_run(pool, div_up(packed->n, PANEL_COLS), pack_panel, &p);
    return packed;
}

struct packed *packed_make(const struct kernels *kernels, struct pool *pool, void *memory,
                           enum kernel_type type, const void *rows, int64_t n, int64_t k,
                           bool bf16) {
    return packed_make2(kernels, pool, memory, type, rows, n, NULL, 0, k, bf16);
}
