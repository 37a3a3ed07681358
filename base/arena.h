/* arena.h - memory with a name and a lifetime: allocate many, free all at once
 *
 * Layer 1. A chain of blocks; allocations are 64-byte aligned and never move. Not
 * thread-safe: one arena belongs to one thread at a time. `reset` keeps the memory for reuse. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

#include "base/str.h"

struct arena_block;

struct arena {
    const char *name;          /* borrows; for messages */
    struct arena_block *first; /* private */
    struct arena_block *now;   /* private */
    size_t used_bytes;         /* handed out since init or reset */
    size_t peak_bytes;         /* high-water mark of used_bytes */
};

/* Prepares the caller's struct; allocates nothing yet. */
void arena_init(struct arena *arena, const char *name);

/* Returns count*size zeroed bytes, aligned to 64; NULL when out of memory or on overflow.
 * The memory lives until reset or free. count*size = 0 returns a valid pointer. */
void *arena_alloc(struct arena *arena, size_t count, size_t size);

/* The same, but the bytes hold anything: for what is written before it is read. */
void *arena_room(struct arena *arena, size_t count, size_t size);

/* Copies len bytes of text and adds a NUL. NULL when out of memory. */
char *arena_text(struct arena *arena, const char *text, size_t len);

/* Copies a string; NULL when it failed, or when out of memory. */
char *arena_str(struct arena *arena, const struct str *text);

/* Forgets all allocations, keeps the blocks. */
void arena_reset(struct arena *arena);

/* Releases everything; the arena may be used again as after init. */
void arena_free(struct arena *arena);

#endif
