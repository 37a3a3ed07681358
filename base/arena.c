/* arena.c - memory with a name and a lifetime
 *
 * Blocks double in size up to 64 MiB, so that many small allocations cost few system calls; an
 * allocation larger than a block gets one of its own. */
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/pages.h"

enum { ALIGN = 64, FIRST_BLOCK = 1 << 16, LARGEST_BLOCK = 1 << 26 };

struct arena_block {
    struct arena_block *next;
    size_t size, used; /* bytes of payload */
    unsigned char *memory;
};

void arena_init(struct arena *arena, const char *name) { *arena = (struct arena){.name = name}; }

static struct arena_block *block_create(size_t size) {
    struct arena_block *block = malloc(sizeof *block);
    if (!block) return NULL;
    *block = (struct arena_block){.size = size, .memory = pages_alloc(size)};
    if (!block->memory) {
        free(block);
        return NULL;
    }
    return block;
}

/* The block that can take `size` more bytes: this one, a later (reset) one, or a new one. */
static struct arena_block *block_with_room(struct arena *arena, size_t size) {
    struct arena_block *last = arena->now;
    for (struct arena_block *b = arena->now; b; last = b, b = b->next)
        if (b->size - b->used >= size) return b;
    size_t want = last ? last->size * 2 : FIRST_BLOCK;
    if (want > LARGEST_BLOCK) want = LARGEST_BLOCK;
    if (want < size) want = size;
    struct arena_block *block = block_create(want);
    if (!block) return NULL;
    if (last)
        last->next = block;
    else
        arena->first = block;
    return block;
}

/* Memory of *bytes <- count * size, rounded up. */
static void *take(struct arena *arena, size_t count, size_t size, size_t *rounded) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - ALIGN) return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (bytes == 0) bytes = ALIGN;
    struct arena_block *block = block_with_room(arena, bytes);
    if (!block) return NULL;
    arena->now = block;
    void *memory = block->memory + block->used;
    block->used += bytes;
    arena->used_bytes += bytes;
    if (arena->used_bytes > arena->peak_bytes) arena->peak_bytes = arena->used_bytes;
    *rounded = bytes;
    return memory;
}

void *arena_alloc(struct arena *arena, size_t count, size_t size) {
    size_t bytes;
    void *memory = take(arena, count, size, &bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

void *arena_room(struct arena *arena, size_t count, size_t size) {
    size_t bytes;
    return take(arena, count, size, &bytes);
}

char *arena_text(struct arena *arena, const char *text, size_t len) {
    char *copy = arena_alloc(arena, len + 1, 1);
    if (copy && len) memcpy(copy, text, len);
    return copy;
}

char *arena_str(struct arena *arena, const struct str *text) {
    return text->failed ? NULL : arena_text(arena, str_text(text), text->len);
}

void arena_reset(struct arena *arena) {
    for (struct arena_block *b = arena->first; b; b = b->next) b->used = 0;
    arena->now = arena->first;
    arena->used_bytes = 0;
}

void arena_free(struct arena *arena) {
    for (struct arena_block *b = arena->first, *next; b; b = next) {
        next = b->next;
        free(b->memory);
        free(b);
    }
    arena_init(arena, arena->name);
}
