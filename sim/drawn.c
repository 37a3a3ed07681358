/* drawn.c - choices for tokens of which only the experts' counts are known */
#include "sim/drawn.h"

#include <stdlib.h>

#include "base/rng.h"

struct drawing {
    int experts, topk;
    int64_t *counts;  /* [E] of the document */
    int64_t *order;   /* [tokens of the longest document] */
    uint16_t *expert; /* [T,k] */
};

/* Brings the sum to k x tokens, no expert above tokens. */
static void settle(struct drawing *d, int64_t tokens) {
    int64_t sum = 0;
    for (int e = 0; e < d->experts; e++) {
        if (d->counts[e] > tokens) d->counts[e] = tokens;
        sum += d->counts[e];
    }
    for (; sum > d->topk * tokens; sum--) {
        int most = 0;
        for (int e = 1; e < d->experts; e++)
            if (d->counts[e] > d->counts[most]) most = e;
        d->counts[most]--;
    }
    for (; sum < d->topk * tokens; sum++) {
        int least = 0;
        for (int e = 1; e < d->experts; e++)
            if (d->counts[e] < d->counts[least]) least = e;
        d->counts[least]++;
    }
}

static void deal(struct drawing *d, int64_t first, int64_t tokens, struct rng *rng) {
    int64_t place = 0;
    for (int64_t t = 0; t < tokens; t++) d->order[t] = first + t;
    rng_shuffle(rng, d->order, tokens);
    for (int e = 0; e < d->experts; e++)
        for (int64_t i = 0; i < d->counts[e]; i++, place++)
            d->expert[d->order[place % tokens] * d->topk + place / tokens] = (uint16_t)e;
}

bool drawn_choices(const struct trace *trace, int r, uint16_t *expert, struct err *err) {
    const struct trace_layer *layer = trace_layer(trace, r);
    struct drawing d = {.experts = layer->experts, .topk = layer->topk, .expert = expert};
    struct rng rng;
    int64_t longest = 0;
    for (int64_t i = 0; i < trace_documents(trace); i++)
        if (trace_document(trace, i)->tokens > longest) longest = trace_document(trace, i)->tokens;
    d.counts = malloc((size_t)d.experts * sizeof *d.counts);
    d.order = malloc((size_t)(longest + 1) * sizeof *d.order);
    struct trace *own = d.counts && d.order ? trace_open(trace_path(trace), err) : NULL;
    if (!d.counts || !d.order) err_memory(err, "choices");
    bool ok = own != NULL;
    rng_init(&rng, (uint64_t)layer->layer);
    for (int64_t i = 0; ok && i < trace_documents(trace); i++) {
        const struct trace_document *document = trace_document(trace, i);
        ok = trace_read_counts(own, r, i, d.counts, err);
        if (!ok || !document->tokens) continue;
        settle(&d, document->tokens);
        deal(&d, document->first_token, document->tokens, &rng);
    }
    trace_free(own);
    free(d.counts);
    free(d.order);
    return ok;
}
