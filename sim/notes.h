/* notes.h - what a reader of a replay must be told, in one line per reason
 *
 * Layer 4 (sim), private to variant.c and outcome.c. Lines end in a newline; variants are named by
 * number. */
#ifndef SIM_NOTES_H
#define SIM_NOTES_H

#include "base/str.h"
#include "sim/variant.h"

/* Captured biases that were carried to another score function, or left behind. */
void note_biases(const struct variant_set *set, struct str *notes);
/* Gates whose choices hang on later tokens: what cannot run where tokens come one by one. */
void note_causality(const struct variant_set *set, struct str *notes);
/* Comparisons that are empty: each reason once, with the variants that it makes equal (law 5).
 * Only after the run, which withdraws the claims that rounding broke. */
void note_twins(const struct variant_set *set, struct str *notes);

#endif
