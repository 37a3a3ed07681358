/* token_ids.c - the vocabulary ids of all tokens, and tables that balance them */
#include "sim/token_ids.h"

#include <stdlib.h>

static int variant_with(const struct variant_set *set, enum gate_fn fn) {
    for (int i = 0; i < set->count; i++)
        for (int l = 0; l < set->layers; l++)
            if (variant_at(set, i, l)->gate.fn == fn) return set->variant[i].number;
    return 0;
}

static bool check_ids(struct token_ids *ids, const struct source *source, int variant,
                      struct err *err) {
    for (int64_t t = 0; t < source->tokens; t++) {
        if (ids->id[t] < 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "variant %d: a hash layer needs token ids: %s: token %lld has none",
                           variant, source->name, (long long)t);
        if (ids->id[t] >= TOKEN_IDS_VOCABULARY)
            return err_set(err, ERR_UNSUPPORTED,
                           "variant %d: %s: token %lld: found id %d, expected less than %d",
                           variant, source->name, (long long)t, ids->id[t], TOKEN_IDS_VOCABULARY);
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
    int balanced = variant_with(set, GATE_BALANCED_HASH), hashed = variant_with(set, GATE_HASH);
    int variant = hashed ? hashed : balanced;
    *ids = (struct token_ids){0};
    if (!variant) return true;
    if (!source->token_ids)
        return err_set(err, ERR_UNSUPPORTED,
                       "variant %d: a hash layer needs token ids: found none in %s", variant,
                       source->name);
    ids->id = calloc((size_t)source->tokens, sizeof *ids->id);
    if (!ids->id) return err_memory(err, "token ids");
    return source->token_ids(source, ids->id, err) && check_ids(ids, source, variant, err) &&
           (!balanced || sort_by_frequency(ids, source->tokens, err));
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

int32_t *token_ids_balance(const struct token_ids *ids, int experts, int topk,
                           struct arena *arena) {
    size_t k = (size_t)topk;
    int32_t *table = arena_alloc(arena, (size_t)ids->vocabulary, k * sizeof *table);
    int32_t *heap = arena_alloc(arena, (size_t)experts, sizeof *heap);
    int64_t *load = arena_alloc(arena, (size_t)experts, sizeof *load);
    if (!table || !heap || !load) return NULL;
    for (int e = 0; e < experts; e++) heap[e] = e;
    for (int32_t i = 0; i < ids->vocabulary && ids->count[ids->frequent[i]] > 0; i++) {
        int32_t id = ids->frequent[i];
        int32_t *row = table + (size_t)id * k;
        /* the first k leave the heap, then return heavier */
        for (int j = 0; j < topk; j++) {
            int last = experts - 1 - j;
            row[j] = heap[0];
            heap[0] = heap[last];
            heap[last] = row[j];
            sink(heap, last, 0, load);
        }
        for (int j = 0; j < topk; j++) load[row[j]] += ids->count[id];
        for (int at = experts / 2; at-- > 0;) sink(heap, experts, at, load);
    }
    return table;
}
