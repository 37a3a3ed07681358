/* tokenizer_bpe.c - one word to ids: byte-pair encoding (Sennrich et al. 2016, algorithm 1)
 *
 * A word starts as its characters. The adjacent pair with the best score (for tokenizer.json the
 * lowest rank; leftmost among equals) is joined until no pair has a merge. Symbols are a linked
 * list and candidate pairs a binary heap, so a word of n characters takes O(n log n): a megabyte
 * without a space is one word. Candidates that were overtaken stay in the heap and are dropped when
 * they come up. */
#include "engine/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct symbol {
    int32_t id;          /* -1: a character without a token (only with by_score) */
    int32_t prev, next;  /* index; -1 = none */
    uint32_t start, len; /* bytes in the word */
    bool alive;
};

struct candidate {
    float score;
    int32_t left; /* index of the left symbol */
    int32_t id;   /* of the joined token */
};

/* ---- the table of merges */

static size_t slot_of_pair(const struct merges *merges, uint64_t pair) {
    uint64_t hash = (pair ^ pair >> 31) * 0xBF58476D1CE4E5B9u;
    size_t at = (size_t)((hash ^ hash >> 29) & (merges->slot_count - 1));
    while (merges->slots[at].pair != UINT64_MAX && merges->slots[at].pair != pair)
        at = (at + 1) & (merges->slot_count - 1);
    return at;
}

static bool grow_merges(struct merges *merges) {
    struct merges more = {.slot_count = merges->slot_count ? merges->slot_count * 2 : 1024,
                          .count = merges->count};
    more.slots = malloc(more.slot_count * sizeof *more.slots);
    if (!more.slots) return false;
    for (size_t i = 0; i < more.slot_count; i++) more.slots[i].pair = UINT64_MAX;
    for (size_t i = 0; i < merges->slot_count; i++)
        if (merges->slots[i].pair != UINT64_MAX)
            more.slots[slot_of_pair(&more, merges->slots[i].pair)] = merges->slots[i];
    free(merges->slots);
    *merges = more;
    return true;
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

bool merges_set(struct merges *merges, int32_t left, int32_t right, float score, int32_t id) {
    if (merges->count >= merges->slot_count / 2 && !grow_merges(merges)) return false;
    struct merge *slot = &merges->slots[slot_of_pair(merges, pair_of(left, right))];
    if (slot->pair == UINT64_MAX) merges->count++;
    *slot = (struct merge){pair_of(left, right), score, id};
    return true;
}

const struct merge *merges_find(const struct merges *merges, int32_t left, int32_t right) {
    if (!merges->slot_count) return NULL;
    const struct merge *slot = &merges->slots[slot_of_pair(merges, pair_of(left, right))];
    return slot->pair == UINT64_MAX ? NULL : slot;
}

bool id_push(struct id_list *list, int32_t id) {
    if (list->count == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 64;
        int32_t *ids = realloc(list->ids, cap * sizeof *ids);
        if (!ids) return false;
        list->ids = ids, list->cap = cap;
    }
    list->ids[list->count++] = id;
    return true;
}

void bpe_state_free(struct bpe_state *state) {
    free(state->symbols);
    free(state->heap);
    str_free(&state->text);
}

/* ---- the heap of candidates: best score first, then leftmost */

static bool before(const struct candidate *a, const struct candidate *b) {
    return a->score < b->score || (a->score == b->score && a->left < b->left);
}

static bool heap_push(struct bpe_state *state, struct candidate item) {
    if (state->heap_count == state->heap_cap) {
        size_t cap = state->heap_cap ? state->heap_cap * 2 : 64;
        struct candidate *heap = realloc(state->heap, cap * sizeof *heap);
        if (!heap) return false;
        state->heap = heap, state->heap_cap = cap;
    }
    size_t at = state->heap_count++;
    for (; at > 0 && before(&item, &state->heap[(at - 1) / 2]); at = (at - 1) / 2)
        state->heap[at] = state->heap[(at - 1) / 2];
    state->heap[at] = item;
    return true;
}

static struct candidate heap_pop(struct bpe_state *state) {
    struct candidate *heap = state->heap, top = heap[0], last = heap[--state->heap_count];
    state->pops++;
    size_t at = 0, child;
    while ((child = at * 2 + 1) < state->heap_count) {
        if (child + 1 < state->heap_count && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &last)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

/* ---- a word's symbols */

/* What one word is encoded with. */
struct work {
    const struct tokenizer *tokenizer;
    struct bpe_state *state;
    const char *word;
    size_t count; /* symbols */
    bool full;    /* an allocation failed */
};

static void add_symbol(struct work *work, int32_t id, size_t start, size_t len) {
    struct bpe_state *state = work->state;
    if (work->count == state->symbol_cap) {
        size_t cap = state->symbol_cap ? state->symbol_cap * 2 : 64;
        struct symbol *symbols = realloc(state->symbols, cap * sizeof *symbols);
        if (!symbols) {
            work->full = true;
            return;
        }
        state->symbols = symbols, state->symbol_cap = cap;
    }
    int32_t index = (int32_t)work->count++;
    state->symbols[index] =
        (struct symbol){id, index - 1, index + 1, (uint32_t)start, (uint32_t)len, true};
}

/* The id of a character, with the affixes it takes at its place in the word. */
static int32_t char_id(struct work *work, size_t start, size_t len, bool first, bool last) {
    const struct tokenizer *t = work->tokenizer;
    const char *prefix = first ? "" : t->prefix, *suffix = last ? t->suffix : "";
    if (!*prefix && !*suffix) return vocab_find(&t->vocab, work->word + start, len);
    struct str *text = &work->state->text;
    str_clear(text);
    str_puts(text, prefix);
    str_append(text, work->word + start, len);
    str_puts(text, suffix);
    if (text->failed) work->full = true;
    return text->failed ? -1 : vocab_find(&t->vocab, text->data, text->len);
}

/* The bytes of a character as <0xNN> tokens. False when one of them has no token. */
static bool add_bytes(struct work *work, size_t start, size_t len) {
    const struct tokenizer *t = work->tokenizer;
    for (size_t i = 0; i < len; i++)
        if (t->byte_ids[(unsigned char)work->word[start + i]] < 0) return false;
    for (size_t i = 0; i < len; i++)
        add_symbol(work, t->byte_ids[(unsigned char)work->word[start + i]], start + i, 1);
    return true;
}

/* Characters -> symbols. What has no token becomes bytes, else the unknown token (a run of them one
 * token with fuse_unk), else nothing. An unknown run is written when the next known character
 * comes, behind bytes that came before that: so does the reference. */
static void make_symbols(struct work *work, size_t len) {
    const struct tokenizer *t = work->tokenizer;
    size_t unknown = 0; /* bytes of the pending unknown token */
    for (const char *at = work->word, *end = work->word + len; at < end && !work->full;) {
        size_t start = (size_t)(at - work->word);
        utf8_next(&at);
        size_t size = (size_t)(at - work->word) - start;
        int32_t id = char_id(work, start, size, start == 0, at == end);
        if (id >= 0) {
            if (unknown) add_symbol(work, t->unk, start - unknown, unknown);
            unknown = 0;
            add_symbol(work, id, start, size);
        } else if (t->scores) {
            add_symbol(work, -1, start, size); /* it may still become part of a token */
        } else if (t->byte_fallback && add_bytes(work, start, size)) {
            continue;
        } else if (t->unk >= 0) {
            if (unknown && !t->fuse_unk) add_symbol(work, t->unk, start - unknown, unknown);
            unknown = t->fuse_unk ? unknown + size : size;
        }
    }
    if (unknown && !work->full) add_symbol(work, t->unk, len - unknown, unknown);
    if (work->count) work->state->symbols[work->count - 1].next = -1;
}

/* The merge of a symbol and its neighbour: by the pair of their ids, or (SentencePiece vocabularies
 * with scores) when their joined text is a token. */
static bool find_merge(const struct work *work, const struct symbol *left, struct merge *out) {
    const struct tokenizer *t = work->tokenizer;
    const struct symbol *right = &work->state->symbols[left->next];
    if (!t->scores) {
        const struct merge *merge = merges_find(&t->merges, left->id, right->id);
        if (merge) *out = *merge;
        return merge != NULL;
    }
    int32_t id = vocab_find(&t->vocab, work->word + left->start, left->len + right->len);
    if (id >= 0) *out = (struct merge){0, -t->scores[id], id};
    return id >= 0;
}

/* Offers the pair that begins at symbol `left`, if it has a merge. */
static void offer(struct work *work, int32_t left) {
    const struct symbol *symbols = work->state->symbols;
    struct merge merge = {0};
    if (left < 0 || symbols[left].next < 0 || !find_merge(work, &symbols[left], &merge)) return;
    if (!heap_push(work->state, (struct candidate){merge.score, left, merge.id})) work->full = true;
}

static void join(struct work *work) {
    struct symbol *symbols = work->state->symbols;
    struct candidate best = heap_pop(work->state);
    struct symbol *left = &symbols[best.left];
    struct merge now = {0};
    if (!left->alive || left->next < 0) return;
    if (!find_merge(work, left, &now) || now.id != best.id) return; /* overtaken */
    struct symbol *right = &symbols[left->next];
    left->id = best.id;
    left->len += right->len;
    left->next = right->next;
    right->alive = false;
    if (right->next >= 0) symbols[right->next].prev = best.left;
    offer(work, left->prev);
    offer(work, best.left);
}

/* The ids of a finished symbol; with scores, a character without a token becomes bytes only now. */
static bool push_symbol(const struct work *work, const struct symbol *symbol, struct id_list *ids) {
    const struct tokenizer *t = work->tokenizer;
    if (symbol->id >= 0) return id_push(ids, symbol->id);
    for (uint32_t i = 0; i < symbol->len; i++) {
        int32_t id = t->byte_ids[(unsigned char)work->word[symbol->start + i]];
        if (id < 0) id = t->unk;
        if (id >= 0 && !id_push(ids, id)) return false;
    }
    return true;
}

bool bpe_word(const struct tokenizer *tokenizer, struct bpe_state *state, const char *word,
              size_t len, struct id_list *ids, struct err *err) {
    if (len > INT32_MAX / 2)
        return err_set(err, ERR_DATA, "text: found a word of %zu bytes, expected at most %d", len,
                       INT32_MAX / 2);
    int32_t whole = tokenizer->ignore_merges ? vocab_find(&tokenizer->vocab, word, len) : -1;
    if (whole >= 0) return id_push(ids, whole) || err_memory(err, "ids");
    struct work work = {tokenizer, state, word, 0, false};
    state->heap_count = 0;
    make_symbols(&work, len);
    for (size_t i = 0; i < work.count && !work.full; i++) offer(&work, (int32_t)i);
    while (state->heap_count && !work.full) join(&work);
    bool ok = !work.full;
    for (int32_t i = work.count ? 0 : -1; ok && i >= 0; i = state->symbols[i].next)
        ok = push_symbol(&work, &state->symbols[i], ids);
    return ok || err_memory(err, "ids");
}
