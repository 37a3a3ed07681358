/* batches.c - balance batches */
#include "sim/batches.h"

#include <math.h>
#include <string.h>

#include "analysis/balance.h"

bool batches_init(struct batches *b, struct arena *arena, int experts, int ranks,
                  int64_t batch_tokens, int64_t total_tokens, struct err *err) {
    size_t most = (size_t)(total_tokens / batch_tokens + 1);
    *b = (struct batches){.experts = experts, .ranks = ranks, .batch_tokens = batch_tokens};
    b->counts = arena_alloc(arena, (size_t)experts, sizeof *b->counts);
    b->load = arena_alloc(arena, (size_t)ranks, sizeof *b->load);
    b->tokens = arena_alloc(arena, most, sizeof *b->tokens);
    b->maxvio = arena_alloc(arena, most, sizeof *b->maxvio);
    b->efficiency = arena_alloc(arena, most, sizeof *b->efficiency);
    if (!b->counts || !b->load || !b->tokens || !b->maxvio || !b->efficiency)
        return err_memory(err, "balance batches");
    return true;
}

int64_t batches_room(const struct batches *b) { return b->batch_tokens - b->filled; }

bool batches_add(struct batches *b, const int32_t *expert, int k, int64_t n) {
    int64_t *counts = b->counts;
    for (int64_t i = 0; i < n * k; i++) counts[expert[i]]++;
    b->filled += n;
    return b->filled == b->batch_tokens;
}

void batches_close(struct batches *b) {
    if (b->filled == 0) return;
    b->tokens[b->closed] = b->filled;
    b->maxvio[b->closed] = balance_maxvio(b->counts, b->experts);
    balance_blocks(b->counts, b->experts, b->ranks, b->load);
    b->efficiency[b->closed] = balance_efficiency(b->load, b->ranks);
    b->closed++;
    b->filled = 0;
    memset(b->counts, 0, (size_t)b->experts * sizeof *b->counts);
}

double batches_mean(const struct batches *b, const double *value) {
    double sum = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < b->closed; i++) {
        if (b->tokens[i] < b->batch_tokens && b->closed > 1) continue;
        sum += value[i];
        used++;
    }
    return used > 0 ? sum / (double)used : NAN;
}
