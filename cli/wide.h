/* wide.h - series side by side: one table with a key column and a column per series
 *
 * Layer 5. Queries answer in long form (key, value); figures and readers want one line per key.
 * Keys are kept in rising order; a series may lack keys (its cells are missing). */
#ifndef CLI_WIDE_H
#define CLI_WIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/table.h"

struct wide_cell {
    double key;
    int series;
    double value;
};

/* Starts as all zero bytes. */
struct wide {
    char **name; /* [series] owned */
    int series;
    struct wide_cell *cell; /* [count] owned, in any order */
    int64_t count, capacity;
    bool failed; /* an allocation failed: wide_table says so */
};

/* Starts the next series; values go to the last one. */
void wide_series(struct wide *wide, const char *name);
void wide_value(struct wide *wide, double key, double value);
/* Adds two columns of a long table, found by name. */
void wide_column(struct wide *wide, const struct table *table, const char *key, const char *value);
/* The table: `key` first. Returns owned. */
struct table *wide_table(struct wide *wide, const char *key, struct err *err);
void wide_free(struct wide *wide);

#endif
