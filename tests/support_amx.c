/* support_amx.c - the AMX level on emulated tile instructions, to test it on machines without AMX
 *
 * The instructions are written after their pseudocode in Intel's Architecture Instruction Set
 * Extensions Programming Reference, chapter 3 (tdpbf16ps: for each row and pair of k, both products
 * are added to the f32 sum). Needs AVX-512 and AVX512-BF16 for the rest of the level. */
#include "tests/support_amx.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#include <string.h>

static _Thread_local char tile_register[8][16][64];

static void emulate_zero(int tile) { memset(tile_register[tile], 0, sizeof tile_register[tile]); }

static void emulate_load(int tile, const void *base, long stride) {
    for (int r = 0; r < 16; r++)
        memcpy(tile_register[tile][r], (const char *)base + r * stride, 64);
}

static void emulate_store(int tile, void *base, long stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)base + r * stride, tile_register[tile][r], 64);
}

static float element(int tile, int row, int index) {
    uint16_t half;
    memcpy(&half, tile_register[tile][row] + 2 * index, 2);
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void emulate_dot(int c, int a, int b) {
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) {
                float sum;
                char *at = tile_register[c][m] + 4 * n;
                memcpy(&sum, at, 4);
                sum += element(a, m, 2 * k) * element(b, k, 2 * n);
                sum += element(a, m, 2 * k + 1) * element(b, k, 2 * n + 1);
                memcpy(at, &sum, 4);
            }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero     emulate_zero
#define _tile_loadd    emulate_load
#define _tile_stored   emulate_store
#define _tile_dpbf16ps emulate_dot
#define AMX_EMULATED
#define kernels_amx kernels_amx_emulated
static void configure_tiles(void) {}
#include "engine/kernels/amx.c"

const struct kernels *support_amx(void) {
    return kernels_usable("avx512bf16") ? &kernels_amx_emulated : NULL;
}
#else
const struct kernels *support_amx(void) { return NULL; }
#endif
