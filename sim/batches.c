/* batches.c - balance batches */
#include "sim/batches.h"

#include <math.h>
#include <string.h>

#include "analysis/balance.h"

bool batches_init(struct batches *b, struct arena *arena, int experts, int ranks,
                  int64_t batch_tokens, int64_t total_tokens, struct err *err) {
    size_t most = (size_t)(total_tokens / batch_tokens + 1);
    *b = (struct batches){.experts = experts, .ranks = ranks, .batch_tokens = batch_tokens};
    b->counts = arena_alloc(arena, 2 * (size_t)experts, sizeof *b->counts);
    b->load = arena_alloc(arena, (size_t)ranks, sizeof *b->load);
    b->tokens = arena_alloc(arena, most, sizeof *b->tokens);
    b->maxvio = arena_alloc(arena, most, sizeof *b->maxvio);
    b->efficiency = arena_alloc(arena, most, sizeof *b->efficiency);
    b->response = arena_alloc(arena, most, sizeof *b->response);
    b->first = arena_alloc(arena, 4 * (size_t)experts, sizeof *b->first);
    b->expected = total_tokens / batch_tokens;
    if (!b->response || !b->first) return err_memory(err, "balance batches");
    b->before = b->first + experts;
    b->sum = b->before + experts;
    b->squares = b->sum + experts;
    if (!b->counts || !b->load || !b->tokens || !b->maxvio || !b->efficiency)
        return err_memory(err, "balance batches");
    b->total = b->counts + experts;
    return true;
}

int64_t batches_room(const struct batches *b) { return b->batch_tokens - b->filled; }

/* A token counts once for each rank that holds one of its experts. */
static void count_sent(struct batches *b, const int32_t *expert, int k) {
    int per_rank = b->experts / b->ranks;
    for (int i = 0; i < k; i++) {
        if (expert[i] < 0) continue;
        int rank = expert[i] / per_rank;
        bool seen = false;
        for (int j = 0; j < i && !seen; j++) seen = expert[j] >= 0 && expert[j] / per_rank == rank;
        b->sent[rank] += !seen;
    }
}

bool batches_add(struct batches *b, const int32_t *expert, int k, int64_t n) {
    int64_t *counts = b->counts;
    for (int64_t i = 0; i < n * k; i++)
        if (expert[i] >= 0) counts[expert[i]]++; /* below: an empty slot */
    for (int64_t t = 0; t < n && b->sent; t++) count_sent(b, expert + t * k, k);
    b->filled += n;
    return b->filled == b->batch_tokens;
}

/* One expert's x in a batch of the tail. */
static void add_tail(struct batches *b, int e, double x) {
    b->sum[e] += x;
    b->squares[e] += x * x;
    if (b->full == b->expected / 2) return; /* the first of the tail has none before it */
    b->tail.pairs++;
    b->tail.sign_changes += (x < 0) != (b->before[e] < 0);
}

/* Follows the loads of a full batch; returns its response. */
static double follow(struct batches *b) {
    double mean = balance_mean(b->counts, b->experts), projected = 0, norm = 0;
    bool in_tail = b->full >= b->expected / 2;
    for (int e = 0; e < b->experts; e++) {
        double x = mean > 0 ? (double)b->counts[e] / mean - 1 : 0;
        if (b->full == 0) b->first[e] = x;
        projected += x * b->first[e];
        norm += b->first[e] * b->first[e];
        if (in_tail) add_tail(b, e, x);
        b->before[e] = x;
    }
    b->full++;
    return norm > 0 ? projected / norm : 0;
}

int64_t batches_last_first(const struct batches *b) {
    return b->expected > 0 ? (b->expected - 1) * b->batch_tokens : -1;
}

void batches_dynamics(const struct batches *b, struct dynamics *out) {
    struct dynamics_tail tail = b->tail;
    double n = (double)(b->full - b->expected / 2);
    for (int e = 0; e < b->experts && n > 0; e++) {
        double mean = b->sum[e] / n, variance = b->squares[e] / n - mean * mean;
        tail.variance += (variance > 0 ? variance : 0) / b->experts;
    }
    dynamics_of(b->maxvio, b->response, b->full, &tail, out);
}

void batches_close(struct batches *b) {
    if (b->filled == 0) return;
    if (b->filled == b->batch_tokens) b->response[b->closed] = follow(b);
    bool chosen = balance_sum(b->counts, b->experts) > 0;
    b->tokens[b->closed] = b->filled;
    b->maxvio[b->closed] = chosen ? balance_maxvio(b->counts, b->experts) : 0;
    balance_blocks(b->counts, b->experts, b->ranks, b->load);
    b->efficiency[b->closed] = chosen ? balance_efficiency(b->load, b->ranks) : 1;
    b->closed++;
    b->filled = 0;
    for (int e = 0; e < b->experts; e++) b->total[e] += b->counts[e];
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
