/* tokenizer_vocab.c - token text <-> id: one blob of text, an array by id, an open hash table */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* FNV-1a, finished by a multiplication so that the low bits depend on all. */
static uint32_t hash_text(const char *text, size_t len) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < len; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001B3u;
    return (uint32_t)((hash ^ hash >> 29) * 0xBF58476D1CE4E5B9u >> 32);
}

/* The slot that holds the text, or the empty one where it belongs. */
static uint32_t slot_of(const struct vocab *vocab, const char *text, size_t len) {
    uint32_t mask = vocab->slot_count - 1;
    for (uint32_t at = hash_text(text, len) & mask;; at = (at + 1) & mask) {
        int32_t id = vocab->slots[at];
        if (id < 0) return at;
        const struct token *token = &vocab->tokens[id];
        if ((size_t)token->len == len && !memcmp(vocab->bytes.data + token->start, text, len))
            return at;
    }
}

static bool grow_slots(struct vocab *vocab) {
    uint32_t count = vocab->slot_count ? vocab->slot_count * 2 : 1024;
    int32_t *slots = malloc(count * sizeof *slots), *old = vocab->slots;
    if (!slots) return false;
    memset(slots, 0xFF, count * sizeof *slots);
    uint32_t old_count = vocab->slot_count;
    vocab->slots = slots, vocab->slot_count = count;
    for (uint32_t i = 0; i < old_count; i++) {
        if (old[i] < 0) continue;
        const struct token *token = &vocab->tokens[old[i]];
        slots[slot_of(vocab, vocab->bytes.data + token->start, (size_t)token->len)] = old[i];
    }
    free(old);
    return true;
}

static bool grow_tokens(struct vocab *vocab, int32_t id) {
    int32_t cap = vocab->cap ? vocab->cap : 1024;
    while (cap <= id) cap *= 2;
    struct token *tokens = realloc(vocab->tokens, (size_t)cap * sizeof *tokens);
    if (!tokens) return false;
    for (int32_t i = vocab->cap; i < cap; i++) tokens[i] = (struct token){0, -1};
    vocab->tokens = tokens, vocab->cap = cap;
    return true;
}

bool vocab_add(struct vocab *vocab, const char *text, size_t len, int32_t id) {
    if (vocab->bytes.len + len > UINT32_MAX || len > INT32_MAX) return false;
    if (id >= vocab->cap && !grow_tokens(vocab, id)) return false;
    if ((uint32_t)vocab->entries >= vocab->slot_count / 2 && !grow_slots(vocab)) return false;
    uint32_t start = (uint32_t)vocab->bytes.len;
    str_append(&vocab->bytes, text, len);
    if (vocab->bytes.failed) return false;
    if (!vocab->bytes.data) str_puts(&vocab->bytes, "");
    uint32_t slot = slot_of(vocab, text, len);
    vocab->tokens[id] = (struct token){start, (int32_t)len};
    if (vocab->slots[slot] < 0) vocab->slots[slot] = id;
    vocab->entries++;
    if (id >= vocab->count) vocab->count = id + 1;
    return true;
}

int32_t vocab_find(const struct vocab *vocab, const char *text, size_t len) {
    return vocab->slot_count ? vocab->slots[slot_of(vocab, text, len)] : -1;
}

const char *vocab_text(const struct vocab *vocab, int32_t id, size_t *len) {
    if (id < 0 || id >= vocab->count || vocab->tokens[id].len < 0) return NULL;
    *len = (size_t)vocab->tokens[id].len;
    return str_text(&vocab->bytes) + vocab->tokens[id].start;
}

void vocab_free(struct vocab *vocab) {
    str_free(&vocab->bytes);
    free(vocab->tokens);
    free(vocab->slots);
}
