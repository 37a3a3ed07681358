/* wide.c - series side by side: one table with a key column and a column per series */
#include "cli/wide.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void wide_series(struct wide *wide, const char *name) {
    char **names = realloc(wide->name, ((size_t)wide->series + 1) * sizeof *names);
    if (names) wide->name = names;
    char *copy = names ? strdup(name) : NULL;
    if (copy)
        wide->name[wide->series++] = copy;
    else
        wide->failed = true;
}

void wide_value(struct wide *wide, double key, double value) {
    if (wide->failed || isnan(key)) return;
    if (wide->count == wide->capacity) {
        int64_t capacity = wide->capacity ? wide->capacity * 2 : 64;
        struct wide_cell *cells = realloc(wide->cell, (size_t)capacity * sizeof *cells);
        if (!cells) {
            wide->failed = true;
            return;
        }
        wide->cell = cells;
        wide->capacity = capacity;
    }
    wide->cell[wide->count++] = (struct wide_cell){key, wide->series - 1, value};
}

void wide_column(struct wide *wide, const struct table *table, const char *key, const char *value) {
    int k = table_find(table, key), v = table_find(table, value);
    for (int64_t row = 0; k >= 0 && v >= 0 && row < table_rows(table); row++)
        wide_value(wide, table_number(table, row, k), table_number(table, row, v));
}

static int by_key_and_series(const void *a, const void *b) {
    const struct wide_cell *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return (x->series > y->series) - (x->series < y->series);
}

/* One row per key; cells are sorted by key, then series. */
static void put_rows(const struct wide *wide, struct table *table) {
    for (int64_t i = 0; i < wide->count;) {
        double key = wide->cell[i].key;
        table_real(table, key);
        for (int s = 0; s < wide->series; s++) {
            double value = (double)NAN;
            for (; i < wide->count && wide->cell[i].key == key && wide->cell[i].series == s; i++)
                value = wide->cell[i].value;
            table_real(table, value);
        }
    }
}

struct table *wide_table(struct wide *wide, const char *key, struct err *err) {
    struct table_column *columns = calloc((size_t)wide->series + 1, sizeof *columns);
    struct table *table = NULL;
    if (columns && !wide->failed) {
        columns[0] = (struct table_column){key, "", TABLE_REAL};
        for (int s = 0; s < wide->series; s++)
            columns[s + 1] = (struct table_column){wide->name[s], "", TABLE_REAL};
        if (wide->count)
            qsort(wide->cell, (size_t)wide->count, sizeof *wide->cell, by_key_and_series);
        table = table_create(columns, wide->series + 1, err);
        if (table) put_rows(wide, table);
        if (table && !table_ok(table, err)) {
            table_free(table);
            table = NULL;
        }
    } else {
        err_memory(err, "figure data");
    }
    free(columns);
    return table;
}

void wide_free(struct wide *wide) {
    for (int s = 0; s < wide->series; s++) free(wide->name[s]);
    free(wide->name);
    free(wide->cell);
    *wide = (struct wide){0};
}
