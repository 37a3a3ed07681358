/* serving.c - which tokens make a batch */
#include "sim/serving.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static const char *const names[] = {
#define X(e, name, help) name,
    SERVING_PHASES(X)
#undef X
};

const char *serving_phase_name(enum serving_phase phase) { return names[phase]; }

bool serving_phase_find(const char *name, enum serving_phase *phase, struct err *err) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], name) != 0) continue;
        *phase = (enum serving_phase)i;
        return true;
    }
    return err_set(err, ERR_USAGE, "phase: found \"%s\", expected prefill, decode or train", name);
}

/* Positions stratified over the trace, then dealt at random to the ranks. */
static bool start_sequences(struct serving *s, uint64_t seed, struct err *err) {
    s->start = malloc((size_t)s->group * sizeof *s->start);
    if (!s->start) return err_memory(err, "sequences");
    struct rng rng;
    rng_init(&rng, seed);
    for (int64_t i = 0; i < s->group; i++) {
        double low = (double)i * (double)s->total / (double)s->group;
        double width = (double)s->total / (double)s->group;
        int64_t at = (int64_t)(low + width * rng_uniform(&rng));
        s->start[i] = at < s->total ? at : s->total - 1;
    }
    rng_shuffle(&rng, s->start, s->group);
    return true;
}

bool serving_make(struct serving *serving, enum serving_phase phase, int ranks,
                  int64_t tokens_per_rank, int64_t most_batches, const int64_t *document_first,
                  int64_t documents, uint64_t seed, struct err *err) {
    int64_t total = documents > 0 ? document_first[documents] : 0;
    *serving = (struct serving){.phase = phase,
                                .ranks = ranks,
                                .tokens_per_rank = tokens_per_rank,
                                .total = total,
                                .document_first = document_first,
                                .documents = documents};
    if (total < 1 || ranks < 1 || tokens_per_rank < 1 ||
        tokens_per_rank > (INT64_C(1) << 24) / ranks)
        return err_set(err, ERR_DATA,
                       "batches: found %d ranks of %lld tokens over a trace of %lld, expected at "
                       "most %d tokens in a batch",
                       ranks, (long long)tokens_per_rank, (long long)total, 1 << 24);
    serving->group = ranks * tokens_per_rank;
    serving->repeats = serving->group > total;
    serving->batches = total / serving->group;
    if (serving->batches > most_batches) serving->batches = most_batches;
    if (serving->batches < 1) serving->batches = 1;
    return phase != PHASE_DECODE || start_sequences(serving, seed, err);
}

void serving_free(struct serving *serving) {
    free(serving->start);
    serving->start = NULL;
}

static int64_t document_of(const struct serving *s, int64_t token) {
    int64_t low = 0, high = s->documents;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (s->document_first[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

void serving_batch(const struct serving *serving, int64_t b, int64_t *token) {
    if (serving->phase != PHASE_DECODE) {
        for (int64_t i = 0; i < serving->group; i++)
            token[i] = (b * serving->group + i) % serving->total;
        return;
    }
    for (int64_t i = 0; i < serving->group; i++) {
        int64_t d = document_of(serving, serving->start[i]);
        int64_t first = serving->document_first[d], size = serving->document_first[d + 1] - first;
        token[i] = first + (serving->start[i] - first + b) % size;
    }
}
