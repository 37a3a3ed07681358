/* packed.h - a packed weight matrix: header and panels (private to kernels/)
 *
 * 64 bytes of header, then div_up(n, 32) panels, each contiguous over K (layouts: level.h). No
 * pointers inside, so the bytes may be moved or written to a file. */
#ifndef ENGINE_KERNELS_PACKED_H
#define ENGINE_KERNELS_PACKED_H

#include <stdint.h>

#include "engine/kernels/kernels.h"
#include "engine/kernels/level.h"

struct packed {
    int64_t n, k;
    enum panel_kind kind;
};

/* Where inputs k.. of a panel lie (k even in the bf16 kinds). */
const void *packed_panel(const struct packed *packed, int64_t panel, int64_t k);

#endif
