/* import_fractions.h - counts from the shares that experts have of a document's choices
 *
 * Private to traces/. An array [documents, layers, E] whose rows sum to 1 holds count / (k x
 * tokens); the number of tokens is the smallest for which all shares of the document, at all
 * layers, are whole counts. */
#ifndef TRACES_IMPORT_FRACTIONS_H
#define TRACES_IMPORT_FRACTIONS_H

#include "traces/import_count.h"
#include "traces/npy.h"

/* Are its rows shares: f32, not negative, sums of 1? (No router logits are.) */
bool fractions_look(const struct npy *array);
/* Adds its documents; build->topk is k. Refuses shares that are no whole counts of less than a
 * million choices (probabilities, averages). */
bool fractions_add(struct count_build *build, const struct npy *array, const char *source,
                   const char *domain, struct err *err);

#endif
