/* table.c - named columns with units: appended cell by cell, printed three ways
 *
 * Column-major storage; text cells are offsets into one growing buffer, so that a table is a
 * handful of allocations however many rows it has. */
#include "base/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

union cell {
    int64_t integer;
    double real;
    size_t text; /* offset into `texts`; the text is NUL-terminated there */
};

struct column {
    struct table_column head; /* name and unit owned */
    union cell *cells;        /* [capacity] */
    bool *present;            /* [capacity] */
};

struct table {
    struct column *columns;
    int count;
    int64_t rows;     /* complete rows */
    int next;         /* column of the next cell */
    int64_t capacity; /* rows */
    struct str texts;
    bool failed;
};

struct table *table_create(const struct table_column *columns, int count, struct err *err) {
    struct table *table = calloc(1, sizeof *table);
    if (table) table->columns = calloc((size_t)count, sizeof *table->columns);
    bool ok = table && table->columns;
    if (ok) table->count = count;
    for (int i = 0; ok && i < count; i++) {
        struct table_column *head = &table->columns[i].head;
        head->name = strdup(columns[i].name);
        head->unit = strdup(columns[i].unit ? columns[i].unit : "");
        head->kind = columns[i].kind;
        ok = head->name && head->unit;
    }
    if (ok) return table;
    table_free(table);
    err_memory(err, "table");
    return NULL;
}

void table_free(struct table *table) {
    if (!table) return;
    for (int i = 0; i < table->count; i++) {
        struct column *column = &table->columns[i];
        free((char *)(uintptr_t)column->head.name);
        free((char *)(uintptr_t)column->head.unit);
        free(column->cells);
        free(column->present);
    }
    free(table->columns);
    str_free(&table->texts);
    free(table);
}

static bool grow(struct table *table) {
    int64_t capacity = table->capacity ? table->capacity * 2 : 16;
    for (int i = 0; i < table->count; i++) {
        struct column *column = &table->columns[i];
        union cell *cells = realloc(column->cells, (size_t)capacity * sizeof *cells);
        if (cells) column->cells = cells;
        bool *present = realloc(column->present, (size_t)capacity * sizeof *present);
        if (present) column->present = present;
        if (!cells || !present) return false;
    }
    table->capacity = capacity;
    return true;
}

/* The next cell, marked present or not; NULL after a failed allocation. */
static union cell *append(struct table *table, bool present) {
    if (table->next == 0 && table->rows == table->capacity && !table->failed)
        table->failed = !grow(table);
    if (table->failed) return NULL;
    struct column *column = &table->columns[table->next];
    column->present[table->rows] = present;
    union cell *cell = &column->cells[table->rows];
    *cell = (union cell){0};
    if (++table->next == table->count) {
        table->next = 0;
        table->rows++;
    }
    return cell;
}

static enum table_kind next_kind(const struct table *table) {
    return table->columns[table->next].head.kind;
}

void table_int(struct table *table, int64_t value) {
    if (next_kind(table) == TABLE_REAL) {
        table_real(table, (double)value);
        return;
    }
    union cell *cell = append(table, true);
    if (cell) cell->integer = value;
}

void table_real(struct table *table, double value) {
    union cell *cell = append(table, !isnan(value));
    if (cell) cell->real = value;
}

void table_text(struct table *table, const char *value) {
    union cell *cell = append(table, value != NULL);
    if (!cell || !value) return;
    cell->text = table->texts.len;
    str_append(&table->texts, value, strlen(value) + 1);
}

void table_null(struct table *table) { append(table, false); }

bool table_ok(const struct table *table, struct err *err) {
    return table->failed || table->texts.failed ? err_memory(err, "table") : true;
}

int table_columns(const struct table *table) { return table->count; }
int64_t table_rows(const struct table *table) { return table->rows; }

const struct table_column *table_column(const struct table *table, int column) {
    return &table->columns[column].head;
}

int table_find(const struct table *table, const char *name) {
    for (int i = 0; i < table->count; i++)
        if (strcmp(table->columns[i].head.name, name) == 0) return i;
    return -1;
}

bool table_is_null(const struct table *table, int64_t row, int column) {
    return !table->columns[column].present[row];
}

double table_number(const struct table *table, int64_t row, int column) {
    const struct column *c = &table->columns[column];
    if (!c->present[row] || c->head.kind == TABLE_TEXT) return (double)NAN;
    return c->head.kind == TABLE_INT ? (double)c->cells[row].integer : c->cells[row].real;
}

const char *table_cell(const struct table *table, int64_t row, int column) {
    const struct column *c = &table->columns[column];
    if (!c->present[row] || c->head.kind != TABLE_TEXT) return NULL;
    return table->texts.data + c->cells[row].text;
}

/* ---- printing */

/* The shortest decimal that reads back as the same double. */
static void print_real(struct str *out, double value) {
    char text[40];
    for (int digits = 9; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    str_puts(out, text);
}

static void print_cell(const struct table *table, int64_t row, int column, bool exact,
                       struct str *out) {
    const struct column *c = &table->columns[column];
    if (!c->present[row]) return;
    switch (c->head.kind) {
    case TABLE_INT:
        str_printf(out, "%lld", (long long)c->cells[row].integer);
        break;
    case TABLE_REAL:
        if (exact)
            print_real(out, c->cells[row].real);
        else
            str_printf(out, "%.6g", c->cells[row].real);
        break;
    case TABLE_TEXT:
        str_puts(out, table_cell(table, row, column));
        break;
    }
}

/* Characters of UTF-8 text, for alignment. */
static size_t width_of(const char *text) {
    size_t width = 0;
    for (; *text; text++) width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static void pad(struct str *out, size_t width) {
    for (size_t i = 0; i < width; i++) str_puts(out, " ");
}

static void text_head(const struct table *table, int column, struct str *out) {
    const struct table_column *head = &table->columns[column].head;
    str_puts(out, head->name);
    if (*head->unit) str_printf(out, " [%s]", head->unit);
}

/* row -1 is the head. */
static void text_piece(const struct table *table, int64_t row, int column, struct str *piece) {
    str_clear(piece);
    if (row < 0)
        text_head(table, column, piece);
    else if (table_is_null(table, row, column))
        str_puts(piece, "-");
    else
        print_cell(table, row, column, false, piece);
}

static void print_text(const struct table *table, struct str *out) {
    struct str piece = {0};
    size_t *widths = calloc((size_t)table->count, sizeof *widths);
    if (!widths) {
        out->failed = true;
        return;
    }
    for (int64_t row = -1; row < table->rows; row++)
        for (int i = 0; i < table->count; i++) {
            text_piece(table, row, i, &piece);
            size_t width = width_of(str_text(&piece));
            if (width > widths[i]) widths[i] = width;
        }
    for (int64_t row = -1; row < table->rows; row++)
        for (int i = 0; i < table->count; i++) {
            bool left = table->columns[i].head.kind == TABLE_TEXT;
            bool last = i == table->count - 1;
            text_piece(table, row, i, &piece);
            size_t gap = widths[i] - width_of(str_text(&piece));
            if (!left) pad(out, gap);
            str_puts(out, str_text(&piece));
            if (left && !last) pad(out, gap);
            str_puts(out, last ? "\n" : "  ");
        }
    free(widths);
    str_free(&piece);
}

static void csv_field(struct str *out, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) {
        str_puts(out, text);
        return;
    }
    str_puts(out, "\"");
    for (; *text; text++) str_append(out, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    str_puts(out, "\"");
}

static void print_csv(const struct table *table, struct str *out) {
    struct str piece = {0};
    for (int64_t row = -1; row < table->rows; row++)
        for (int i = 0; i < table->count; i++) {
            str_clear(&piece);
            if (row < 0)
                str_puts(&piece, table->columns[i].head.name);
            else
                print_cell(table, row, i, true, &piece);
            csv_field(out, str_text(&piece));
            str_puts(out, i == table->count - 1 ? "\r\n" : ",");
        }
    str_free(&piece);
}

static void json_cell(const struct table *table, int64_t row, int column, struct str *out) {
    const struct column *c = &table->columns[column];
    if (!c->present[row] || (c->head.kind == TABLE_REAL && !isfinite(c->cells[row].real))) {
        str_puts(out, "null"); /* JSON has no infinities */
    } else if (c->head.kind == TABLE_TEXT) {
        const char *text = table_cell(table, row, column);
        json_quote(out, text, strlen(text));
    } else {
        print_cell(table, row, column, true, out);
    }
}

static void print_json(const struct table *table, struct str *out) {
    str_puts(out, "[");
    for (int64_t row = 0; row < table->rows; row++) {
        str_puts(out, row ? ",\n {" : "\n {");
        for (int i = 0; i < table->count; i++) {
            const char *name = table->columns[i].head.name;
            if (i) str_puts(out, ", ");
            json_quote(out, name, strlen(name));
            str_puts(out, ": ");
            json_cell(table, row, i, out);
        }
        str_puts(out, "}");
    }
    str_puts(out, table->rows ? "\n]\n" : "]\n");
}

bool table_format(const struct table *table, enum table_format format, struct str *out,
                  struct err *err) {
    static void (*const printers[])(const struct table *, struct str *) = {
        [TABLE_AS_TEXT] = print_text, [TABLE_AS_CSV] = print_csv, [TABLE_AS_JSON] = print_json};
    if (!table_ok(table, err)) return false;
    printers[format](table, out);
    return out->failed ? err_memory(err, "table") : true;
}

bool table_print(const struct table *table, enum table_format format, FILE *out, struct err *err) {
    struct str text = {0};
    bool ok = table_format(table, format, &text, err);
    if (ok && (fwrite(str_text(&text), 1, text.len, out) != text.len || fflush(out) != 0))
        ok = err_errno(err, "output", "cannot write");
    str_free(&text);
    return ok;
}
