/* choices_made.h - choices of experts that no trace made: for comparison with one
 *
 * Layer 4 (sim): calls base. A batch of G tokens at one layer gets k experts each, from a law of
 * loads (synthetic.h) or at random. */
#ifndef SIM_CHOICES_MADE_H
#define SIM_CHOICES_MADE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "sim/synthetic.h"

/* Where the choices of a batch come from. X(enum, name, help) */
#define LOAD_SOURCES(X)                                                                            \
    X(LOAD_OF_TRACE, "trace", "the tokens of the trace in serving order")                          \
    X(LOAD_RESAMPLED, "resampled", "tokens of the trace drawn with replacement: no documents")     \
    X(LOAD_AT_RANDOM, "uniform", "k distinct experts at random for every token")                   \
    X(LOAD_OF_LAW, "balanced", "a law of loads: balanced, or power_law_A as in measured tables")
#define X(e, name, help) e,
enum load_source { LOAD_SOURCES(X) };
#undef X

enum { LOAD_NAME_BYTES = 32 };

struct load_choice {
    enum load_source source;
    struct load_law law; /* of LOAD_OF_LAW */
    char name[LOAD_NAME_BYTES];
};

/* "trace", "resampled", "uniform", "balanced", "power_law_1.2". */
bool load_choice_find(const char *text, struct load_choice *load, struct err *err);

/* expert[G,k] <- choices under LOAD_AT_RANDOM or LOAD_OF_LAW. A law's counts are those of one draw
 * for G tokens, dealt so that no token has an expert twice (balanced: where k divides E), tokens
 * in random order. The seed decides everything. Scratch from the arena. */
bool choices_make(const struct load_choice *load, const struct load_group *group, uint64_t seed,
                  uint16_t *expert, struct arena *arena, struct err *err);

#endif
