/* amx.c - AMX level (Sapphire Rapids and later): bf16 products on tiles; all else is AVX-512
 *
 * A tile call makes 32 x 32 outputs: four accumulator tiles of 16 x 16 f32, two tiles of
 * activations (16 rows x 32 k) and two of weights (16 pairs of k x 16 columns), so each loaded tile
 * is used twice. Weight panels already have the pair layout that tdpbf16ps wants; a panel's row of
 * pairs is 128 bytes long, of which a tile takes one half. Rows that do not exist are packed as
 * zeros: an output's sums are the same whatever the height.
 *
 * Traps met: (1) gcc 12 declares 8 of the 64 bytes that ldtilecfg reads, so a configuration on the
 * stack may be optimised away: it is loaded by our own statement with a 64-byte operand. (2) The
 * tile-load intrinsics do not say that they read memory: a barrier stands before them. (3) Every
 * thread configures its own tiles. (4) Linux grants the tile state on request only, per process.
 * Without such a machine the logic is tested on emulated tile instructions (tests/support_amx.c).
 */
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/kernels/avx512.h"

enum { ROWS_DOT = 32, TILE_ROWS = 16, TILE_K = 32, A_STEP_BYTES = ROWS_DOT * TILE_K * 2 };

#ifndef AMX_EMULATED
bool amx_permission(void) {
    enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned long granted = 0;
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return false;
    if (syscall(SYS_arch_prctl, GET_PERMISSION, &granted) != 0) return false;
    return granted >> TILE_DATA & 1u;
}

/* Operand of ldtilecfg: palette 1, eight tiles of 16 rows x 64 bytes. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void configure_tiles(void) {
    static const struct tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 16, 16},
    };
    static _Thread_local bool configured;
    if (configured) return;
    _Static_assert(sizeof config == 64, "ldtilecfg reads 64 bytes");
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    configured = true;
}
#endif

/* Sums of one tile call, before `initial` is added. */
struct sums {
    _Alignas(64) float at[ROWS_DOT][PANEL_COLS];
};

/* Up to 16 rows: two accumulators. */
static void multiply_16(const char *a, const char *b, int steps, struct sums *sums) {
    _tile_zero(0);
    _tile_zero(1);
    for (int s = 0; s < steps; s++, a += A_STEP_BYTES, b += TILE_K / 2 * PANEL_COLS * 4) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, PANEL_COLS * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 64, PANEL_COLS * 4);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sums->at[0], PANEL_COLS * 4);
    _tile_stored(1, sums->at[0] + TILE_ROWS, PANEL_COLS * 4);
}

/* Up to 32 rows: four accumulators. */
static void multiply_32(const char *a, const char *b, int steps, struct sums *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < steps; s++, a += A_STEP_BYTES, b += TILE_K / 2 * PANEL_COLS * 4) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, PANEL_COLS * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 64, PANEL_COLS * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE_ROWS * 64, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums->at[0], PANEL_COLS * 4);
    _tile_stored(1, sums->at[0] + TILE_ROWS, PANEL_COLS * 4);
    _tile_stored(2, sums->at[TILE_ROWS], PANEL_COLS * 4);
    _tile_stored(3, sums->at[TILE_ROWS] + TILE_ROWS, PANEL_COLS * 4);
}

static void tile_dot(const struct tile *t) {
    struct sums sums;
    const int steps = (t->k + TILE_K - 1) / TILE_K;
    const __mmask16 mask[2] = {avx512_columns(t->cols, 0), avx512_columns(t->cols, 1)};
    configure_tiles();
    __asm__ volatile("" : : : "memory");
    if (t->rows <= TILE_ROWS) {
        multiply_16(t->a, t->b, steps, &sums);
    } else {
        multiply_32(t->a, t->b, steps, &sums);
    }
    for (int r = 0; r < t->rows; r++)
        for (int h = 0; h < 2; h++) {
            __m512 sum = _mm512_load_ps(sums.at[r] + 16 * h);
            if (t->initial)
                sum = _mm512_add_ps(
                    sum, _mm512_maskz_loadu_ps(mask[h], t->initial + r * t->ld_initial + h * 16));
            _mm512_mask_storeu_ps(t->c + r * t->ldc + h * 16, mask[h], sum);
        }
}

/* [k / 32][32 rows][32 k], rounded to bf16, zero where a row or a k does not exist. */
static void pack_a(void *dst, const float *const *row, int rows, int64_t offset, int k) {
    const int height = rows <= TILE_ROWS ? TILE_ROWS : ROWS_DOT;
    for (int i = 0; i < k; i += TILE_K) {
        char *step = (char *)dst + i / TILE_K * A_STEP_BYTES;
        const __mmask16 low = avx512_columns(k - i, 0), high = avx512_columns(k - i, 1);
        for (int r = 0; r < height; r++) {
            __m512i pairs = _mm512_setzero_si512();
            if (r < rows) {
                const float *x = row[r] + offset + i;
                pairs = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, x + 16),
                                                     _mm512_maskz_loadu_ps(low, x));
            }
            _mm512_store_si512(step + r * TILE_K * 2, pairs);
        }
    }
}

const struct kernels kernels_amx = {
    .name = "amx",
    AVX512_COMMON,
    .tile_rows = {AVX512_ROWS_F32, AVX512_ROWS_BF16, ROWS_DOT},
    .block_k = {BLOCK_K, BLOCK_K, BLOCK_K_DOT},
    .pack_a = {avx512_pack_a, avx512_pack_a, pack_a},
    .tile = {avx512_tile_f32, avx512_tile_bf16, tile_dot},
    .f32_to_bf16 = avx512_round,
};
