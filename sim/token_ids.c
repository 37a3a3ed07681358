/* token_ids.c - the vocabulary ids of all tokens, and tables that balance them */
#include "sim/token_ids.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The variant that needs ids, in words; the native gate is replayed whatever was asked. */
struct wish {
    char words[32]; /* "" when nobody does */
    bool balanced;
    int32_t table; /* ids of the smallest table that must know them all */
};

static void add_wish(struct wish *wish, const struct gate *gate, const struct route_table *table,
                     int variant) {
    if (!gate_hashes(gate)) return;
    if (variant)
        snprintf(wish->words, sizeof wish->words, "variant %d", variant);
    else
        snprintf(wish->words, sizeof wish->words, "native gate");
    wish->balanced = wish->balanced || gate->fn == GATE_BALANCED_HASH;
    if (gate->fn == GATE_HASH_TABLE && table->ids < wish->table) wish->table = table->ids;
}

static struct wish wish_of(const struct variant_set *set, const struct source *source) {
    struct wish wish = {.table = TOKEN_IDS_VOCABULARY};
    for (int l = 0; l < set->layers && !source->ids; l++)
        add_wish(&wish, &source->layer[l].native, &source->layer[l].table, 0);
    for (int i = set->count - 1; i >= 0; i--)
        for (int l = 0; l < set->layers; l++) {
            const struct variant_layer *at = variant_at(set, i, l);
            add_wish(&wish, &at->gate, &at->table, set->variant[i].number);
        }
    return wish;
}

static bool check_ids(struct token_ids *ids, const struct source *source, const struct wish *wish,
                      struct err *err) {
    for (int64_t t = 0; t < source->tokens; t++) {
        if (ids->id[t] < 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: a hash layer needs token ids: %s: token %lld has none", wish->words,
                           source->name, (long long)t);
        if (ids->id[t] >= wish->table)
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: %s: token %lld: found id %d, expected less than %d%s", wish->words,
                           source->name, (long long)t, ids->id[t], wish->table,
                           wish->table < TOKEN_IDS_VOCABULARY ? " (the hash table's)" : "");
        if (ids->id[t] >= ids->vocabulary) ids->vocabulary = ids->id[t] + 1;
    }
    return true;
}

struct seen {
    int64_t count;
    int32_t id;
};

static int more_frequent(const void *a, const void *b) {
    const struct seen *x = a, *y = b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static bool sort_by_frequency(struct token_ids *ids, int64_t tokens, struct err *err) {
    size_t n = (size_t)ids->vocabulary;
    struct seen *seen = calloc(n, sizeof *seen);
    ids->count = calloc(n, sizeof *ids->count);
    ids->frequent = calloc(n, sizeof *ids->frequent);
    bool ok = (seen && ids->count && ids->frequent) || err_memory(err, "token ids");
    for (int64_t t = 0; ok && t < tokens; t++) ids->count[ids->id[t]]++;
    for (int32_t i = 0; ok && i < ids->vocabulary; i++) seen[i] = (struct seen){ids->count[i], i};
    if (ok) qsort(seen, n, sizeof *seen, more_frequent);
    for (int32_t i = 0; ok && i < ids->vocabulary; i++) ids->frequent[i] = seen[i].id;
    free(seen);
    return ok;
}

bool token_ids_read(struct token_ids *ids, const struct variant_set *set,
                    const struct source *source, struct err *err) {
    const struct wish wish = wish_of(set, source);
    *ids = (struct token_ids){0};
    if (!*wish.words) return true;
    if (!source->token_ids)
        return err_set(err, ERR_UNSUPPORTED, "%s: a hash layer needs token ids: found none in %s",
                       wish.words, source->name);
    ids->id = calloc((size_t)source->tokens, sizeof *ids->id);
    if (!ids->id) return err_memory(err, "token ids");
    return source->token_ids(source, ids->id, err) && check_ids(ids, source, &wish, err) &&
           (!wish.balanced || sort_by_frequency(ids, source->tokens, err));
}

void token_ids_free(struct token_ids *ids) {
    free(ids->id);
    free(ids->frequent);
    free(ids->count);
    *ids = (struct token_ids){0};
}

/* Heap of experts, the least loaded (then the lowest index) first. */
static bool comes_first(const int64_t *load, int32_t a, int32_t b) {
    return load[a] != load[b] ? load[a] < load[b] : a < b;
}

static void sink(int32_t *heap, int n, int at, const int64_t *load) {
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_first(load, heap[child + 1], heap[child])) child++;
        if (!comes_first(load, heap[child], heap[at])) return;
        int32_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
    }
}

/* row[k] <- the first of the heap, which loses them; the caller gives them back. */
static void take_first(int32_t *heap, int experts, int topk, const int64_t *load, int32_t *row) {
    for (int j = 0; j < topk; j++) {
        int last = experts - 1 - j;
        row[j] = heap[0];
        heap[0] = heap[last];
        heap[last] = row[j];
        sink(heap, last, 0, load);
    }
}

int32_t *token_ids_balance(const struct token_ids *ids, int32_t rows, int experts, int topk,
                           struct arena *arena) {
    size_t k = (size_t)topk;
    int32_t *table = arena_alloc(arena, (size_t)rows, k * sizeof *table);
    int32_t *rest = arena_alloc(arena, k, sizeof *rest);
    int32_t *heap = arena_alloc(arena, (size_t)experts, sizeof *heap);
    int64_t *load = arena_alloc(arena, (size_t)experts, sizeof *load);
    if (!table || !rest || !heap || !load) return NULL;
    for (int e = 0; e < experts; e++) heap[e] = e;
    for (int32_t i = 0; i < ids->vocabulary && ids->count[ids->frequent[i]] > 0; i++) {
        int32_t id = ids->frequent[i];
        int32_t *row = table + (size_t)id * k;
        take_first(heap, experts, topk, load, row); /* then they return heavier */
        for (int j = 0; j < topk; j++) load[row[j]] += ids->count[id];
        for (int at = experts / 2; at-- > 0;) sink(heap, experts, at, load);
    }
    take_first(heap, experts, topk, load, rest);
    for (int32_t id = 0; id < rows; id++)
        if (id >= ids->vocabulary || ids->count[id] == 0)
            memcpy(table + (size_t)id * k, rest, k * sizeof *rest);
    return table;
}
