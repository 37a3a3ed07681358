/* catalogue.h - what `steelyard gates` lists beside gates, rules and losses: how a rule is driven,
 * what says whether it works, and what cannot be replayed
 *
 * Layer 5: text alone. The definitions stand where they are computed; these are their formulas. */
#ifndef CLI_CATALOGUE_H
#define CLI_CATALOGUE_H

struct catalogue_row {
    const char *kind, *name, *meaning, *needs, *source;
};

/* Ends with kind == NULL. */
extern const struct catalogue_row catalogue_rows[];

#endif
