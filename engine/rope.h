/* rope.h - rotary position embedding: tables of cos and sin, and the rotation of heads
 *
 * Layer 3 (engine). Frequencies come from the spec (config_rope); angles are f32 products as in the
 * reference implementation. */
#ifndef ENGINE_ROPE_H
#define ENGINE_ROPE_H

#include "base/arena.h"
#include "engine/spec.h"

/* cos and sin of one rope for positions 0 .. positions-1: [positions, dims/2] each, already times
 * rope->scale. Lives in the arena. */
struct rope_table {
    int half; /* dims/2 */
    bool interleaved;
    const float *cosine, *sine;
};

/* longest: choose the frequencies for a window of this length. NULL when out of memory. */
bool rope_table_make(struct rope_table *table, const struct rope *rope, int64_t longest,
                     struct arena *arena);

/* Rotates the first 2*half elements of x in place, for position pos. */
void rope_apply(const struct rope_table *table, int64_t pos, float *x);

#endif
