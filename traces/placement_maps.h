/* placement_maps.h - placements that were stored already, so that each is stored once
 *
 * Layer 3 (traces), private to the throughput result. Cells of a sweep that differ in batch, phase
 * or context share their placements: a map is what lies on each slot, whatever cell and layer. */
#ifndef TRACES_PLACEMENT_MAPS_H
#define TRACES_PLACEMENT_MAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct placement_map;

/* Starts as {0}. */
struct placement_maps {
    struct placement_map **bucket; /* [buckets] owned chains */
    int64_t buckets, count;
};

/* *map <- the number, from 1, of expert[slots] with `places` slots a rank; *known: it was there. */
bool placement_maps_find(struct placement_maps *maps, const int32_t *expert, int slots, int places,
                         int64_t *map, bool *known, struct err *err);
void placement_maps_free(struct placement_maps *maps);

#endif
