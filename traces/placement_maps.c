/* placement_maps.c - a hash table of placements, chained */
#include "traces/placement_maps.h"

#include <stdlib.h>
#include <string.h>

struct placement_map {
    struct placement_map *next;
    uint64_t hash;
    int64_t number;
    int slots, places;
    int32_t expert[]; /* [slots] */
};

/* FNV-1a over whole numbers. */
static uint64_t hash_of(const int32_t *expert, int slots, int places) {
    uint64_t hash = UINT64_C(14695981039346656037) ^ (uint64_t)places;
    for (int s = 0; s < slots; s++) hash = (hash ^ (uint32_t)expert[s]) * UINT64_C(1099511628211);
    return hash;
}

static bool grow(struct placement_maps *maps, struct err *err) {
    int64_t buckets = maps->buckets ? 4 * maps->buckets : 256;
    struct placement_map **bucket = calloc((size_t)buckets, sizeof *bucket);
    if (!bucket) return err_memory(err, "placements");
    for (int64_t b = 0; b < maps->buckets; b++) {
        for (struct placement_map *m = maps->bucket[b], *next; m; m = next) {
            struct placement_map **to = &bucket[m->hash % (uint64_t)buckets];
            next = m->next;
            m->next = *to;
            *to = m;
        }
    }
    free(maps->bucket);
    maps->bucket = bucket;
    maps->buckets = buckets;
    return true;
}

bool placement_maps_find(struct placement_maps *maps, const int32_t *expert, int slots, int places,
                         int64_t *map, bool *known, struct err *err) {
    if (maps->count >= maps->buckets && !grow(maps, err)) return false;
    uint64_t hash = hash_of(expert, slots, places);
    size_t bytes = (size_t)slots * sizeof *expert;
    struct placement_map **head = &maps->bucket[hash % (uint64_t)maps->buckets], *m = *head;
    while (m && (m->hash != hash || m->slots != slots || m->places != places ||
                 memcmp(m->expert, expert, bytes) != 0))
        m = m->next;
    *known = m != NULL;
    if (!m) {
        m = malloc(sizeof *m + bytes);
        if (!m) return err_memory(err, "placements");
        *m = (struct placement_map){*head, hash, ++maps->count, slots, places};
        memcpy(m->expert, expert, bytes);
        *head = m;
    }
    *map = m->number;
    return true;
}

void placement_maps_free(struct placement_maps *maps) {
    for (int64_t b = 0; b < maps->buckets; b++) {
        for (struct placement_map *m = maps->bucket[b], *next; m; m = next) {
            next = m->next;
            free(m);
        }
    }
    free(maps->bucket);
    *maps = (struct placement_maps){0};
}
