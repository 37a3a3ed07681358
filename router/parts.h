/* parts.h - memory in parts: arrays laid out one after the other in one block of the caller's
 *
 * Layer 2, private to router/, which does not allocate. Each part begins at a multiple of 64 bytes.
 */
#ifndef ROUTER_PARTS_H
#define ROUTER_PARTS_H

#include <stddef.h>
#include <stdint.h>

struct parts {
    unsigned char *memory; /* NULL: only counted */
    size_t used;           /* SIZE_MAX: more than can be counted */
};

/* The next part of count things of `size` bytes; NULL when only counting. */
static inline void *parts_take(struct parts *parts, size_t count, size_t size) {
    size_t at = parts->used, most = SIZE_MAX - 63;
    if (at == SIZE_MAX || (size && count > most / size) || count * size > most - at) {
        parts->used = SIZE_MAX;
        return NULL;
    }
    parts->used = at + ((count * size + 63) & ~(size_t)63);
    return parts->memory ? parts->memory + at : NULL;
}

#endif
