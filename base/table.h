/* table.h - named columns with units: the common coin of queries, statistics, plots and the report
 *
 * Layer 1. Rows are appended cell by cell in column order; a cell may be NULL (missing). Prints as
 * aligned text for people, CSV (RFC 4180) and JSON (array of objects) for programs. */
#ifndef BASE_TABLE_H
#define BASE_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"

enum table_kind { TABLE_INT, TABLE_REAL, TABLE_TEXT };

struct table_column {
    const char *name;     /* copied */
    const char *unit;     /* copied; "" when it has none; shown in the text head only */
    enum table_kind kind; /* of every cell that is not NULL */
};

struct table; /* opaque */

/* Returns owned; NULL with err set when out of memory. */
struct table *table_create(const struct table_column *columns, int count, struct err *err);
void table_free(struct table *table);

/* Append the next cell, wrapping to the next row after the last column. Text is copied. A failed
 * allocation is remembered: table_ok answers once at the end. */
void table_int(struct table *table, int64_t value);
void table_real(struct table *table, double value);      /* NaN is stored as NULL */
void table_text(struct table *table, const char *value); /* NULL is allowed */
void table_null(struct table *table);
bool table_ok(const struct table *table, struct err *err);

int table_columns(const struct table *table);
int64_t table_rows(const struct table *table);
const struct table_column *table_column(const struct table *table, int column);
/* Column by name; -1 when there is none. */
int table_find(const struct table *table, const char *name);
bool table_is_null(const struct table *table, int64_t row, int column);
/* Numeric cell as double (NaN when NULL or text). */
double table_number(const struct table *table, int64_t row, int column);
/* Text of a TABLE_TEXT cell, borrowed; NULL when NULL. */
const char *table_cell(const struct table *table, int64_t row, int column);

enum table_format { TABLE_AS_TEXT, TABLE_AS_CSV, TABLE_AS_JSON };
/* Writes the whole table. Reals are printed so that they read back exactly (%.9g / %.17g), in text
 * form with 6 significant digits. Fails when the stream does. */
bool table_print(const struct table *table, enum table_format format, FILE *out, struct err *err);
/* The same into memory. */
bool table_format(const struct table *table, enum table_format format, struct str *out,
                  struct err *err);

#endif
