/* source.h - where a replay reads router logits from: a trace, or arrays in memory
 *
 * Layer 4 (sim): calls traces, router and base. A source is described once (layers, tokens,
 * documents) and opened per layer by each worker on its own. Letters: T tokens, E experts. */
#ifndef SIM_SOURCE_H
#define SIM_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "router/gate.h"
#include "router/route.h"

struct trace;

/* One router of the model. Borrowed by the replay. */
struct source_layer {
    int layer;                /* the model's own layer number */
    int experts;              /* E */
    struct gate native;       /* what the capture used */
    const float *bias;        /* [E] captured correction bias, or NULL */
    struct route_table table; /* of hash layers; expert NULL: none */
    bool unweighted;          /* choices whose weights are not known */
    bool unknown; /* the source did not say how it routed: only native's topk is meant */
};

struct source_reader; /* one worker's position in one layer; opaque, made by the source */

struct source {
    const char *name; /* for messages: the path */
    int64_t tokens;   /* T */
    int layers;
    const struct source_layer *layer; /* [layers] */
    int64_t documents;
    const int64_t *document_first; /* [documents + 1], the last is T */

    /* Opens layer `index`. Thread-safe. Returns owned (close); NULL with err set. */
    struct source_reader *(*open)(const struct source *source, int index, struct err *err);
    /* The rows from token `first` on, at most `max`: sets *logits to [*n,E], borrowed until the
     * next call, and *n >= 1. */
    bool (*rows)(struct source_reader *reader, int64_t first, int64_t max, const float **logits,
                 int64_t *n, struct err *err);
    /* logits[n,E] <- the rows of token[n], in the order given. */
    bool (*gather)(struct source_reader *reader, const int64_t *token, int64_t n, float *logits,
                   struct err *err);
    /* A source of choices alone (`ids`) has these two instead: expert[n,k] in order of selection
     * and weight[n,k], or NULL where weights are not known. Experts are checked to be in [0,E). */
    bool ids;
    bool (*choices)(struct source_reader *reader, int64_t first, int64_t max,
                    const int32_t **expert, const float **weight, int64_t *n, struct err *err);
    bool (*gather_choices)(struct source_reader *reader, const int64_t *token, int64_t n,
                           int32_t *expert, float *weight, struct err *err);
    /* A source of counts (`ids` and `counted`) has this one only: counts[E] <- tokens of the
     * document that chose each expert. */
    bool counted;
    bool (*counts)(struct source_reader *reader, int64_t document, int64_t *counts,
                   struct err *err);
    /* id[T] <- the vocabulary id of every token, -1 where the source does not say. NULL: no source
     * of ids. Not called twice at a time. */
    bool (*token_ids)(const struct source *source, int32_t *id, struct err *err);
    void (*close)(struct source_reader *reader);
    const void *context; /* the source's own */
};

/* Over a trace that holds scores; refuses others ("needs router scores"), a router whose gate is
 * not known unless `gate` gives it (NULL: the captured ones), and a trace without tokens. Borrows
 * the trace. source_free releases what it made. */
bool source_open_trace(struct source *source, const struct trace *trace, const struct gate *gate,
                       struct err *err);
/* The same over a trace that holds choices alone, or counts alone, at all layers: only the captured
 * gate can be measured, others need router scores. */
bool source_open_choices(struct source *source, const struct trace *trace, struct err *err);
void source_free(struct source *source);

/* Over arrays: logits[layers] each [T,E]. Borrows everything; nothing to release. One document. */
struct source_arrays {
    const float *const *logits;
    const int32_t *token_id;   /* [T] or NULL */
    int64_t document_first[2]; /* private */
};
void source_of_arrays(struct source *source, struct source_arrays *arrays, int64_t tokens,
                      const struct source_layer *layer, int layers);

#endif
