/* routed.h - what every token of a trace chose, under each variant of the gate
 *
 * Layer 4 (sim): calls traces, router and base. A trace of scores is routed again (router/, with
 * the variant's bias rule moving over balance batches); a trace of ids gives its recorded choices,
 * and no other variant; for a trace of counts they are drawn (drawn.h). One layer of one variant at
 * a time: [T,S] expert ids. */
#ifndef SIM_ROUTED_H
#define SIM_ROUTED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sim/source.h"
#include "sim/token_ids.h"
#include "sim/variant.h"
#include "traces/trace.h"

/* In an empty slot: a choice that a capacity dropped or a cut left out, or nothing more of a token
 * under expert choice. */
enum { ROUTED_NONE = UINT16_MAX };

/* Slots of a row at most: under expert choice a token has up to E experts. */
enum { ROUTED_MOST_SLOTS = 4096 };

struct routed {
    const struct trace *trace; /* borrowed */
    bool scores, counted;
    int64_t tokens;         /* T */
    struct source source;   /* of scores */
    struct variant_set set; /* of scores */
    struct token_ids ids;   /* where a variant needs them */
    int variants;           /* 1 for a trace of ids */
};

/* Resolves the variants. Refuses, for traces of ids and of counts, lists that ask for more than
 * the native gate ("needs router scores"), and expert choice among more than ROUTED_MOST_SLOTS
 * experts. */
bool routed_open(struct routed *routed, const struct trace *trace,
                 const struct variant_lists *lists, struct err *err);
void routed_free(struct routed *routed);

/* Short name of a variant (from 0), for legends; borrowed. */
const char *routed_label(const struct routed *routed, int variant);
/* The bias rule's name and rate (NaN: none); a trace of ids does not know them ("", NaN). */
const char *routed_bias_rule(const struct routed *routed, int variant);
double routed_bias_rate(const struct routed *routed, int variant);
int routed_topk(const struct routed *routed, int variant, int layer);
/* Width of a row of choices, S: k, or E under expert choice. */
int routed_slots(const struct routed *routed, int variant, int layer);
/* Does the number of a token's experts differ by the gate's own will (topp, threshold, a second
 * choice at random, expert choice)? What a capacity drops is something else. */
bool routed_varies(const struct routed *routed, int variant, int layer);

/* expert[T,S] <- the choices at router index `layer`, in token order, or ROUTED_NONE.
 * Gates that need whole balance batches get the variant's. Thread-safe for different
 * arrays. */
bool routed_choices(const struct routed *routed, int variant, int layer, uint16_t *expert,
                    struct err *err);

#endif
