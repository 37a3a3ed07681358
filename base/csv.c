/* csv.c - reading comma-separated tables: unpack, split in place, look up by header */
#include "base/csv.h"

#include <stdlib.h>
#include <string.h>

#include "base/gzip.h"
#include "base/str.h"

struct csv {
    char *name;
    char *text;    /* owned; fields end in NUL: the whole table, or the header */
    char **fields; /* [rows+1, columns], the header first */
    int columns;
    int64_t rows;
    int64_t header;      /* line of the header, from 1 */
    int64_t skipped;     /* rows before row 0 */
    struct lines *lines; /* where rows come from; NULL: all are there */
};

/* One field of the line [*at,end), unquoted in place and NUL-terminated; moves *at behind its
 * comma, or sets it to NULL after the last field. False on a misplaced quote. */
static bool take_field(char **at, char *end, char **field) {
    char *read = *at, *write = *at;
    *field = *at;
    if (read < end && *read == '"') {
        for (read++; read < end && (*read != '"' || (read + 1 < end && read[1] == '"')); read++) {
            read += *read == '"';
            *write++ = *read;
        }
        if (read++ == end) return false; /* never closed */
    } else {
        while (read < end && *read != ',' && *read != '"') read++;
        write = read;
    }
    if (read < end && *read != ',') return false;
    *at = read < end ? read + 1 : NULL;
    *write = '\0';
    return true;
}

/* Splits a line into at most max fields. Returns their number, max+1 when there are more, -1 on a
 * misplaced quote. */
static int split_line(char *line, char *end, char **fields, int max) {
    int count = 0;
    for (char *at = line; at; count++) {
        char *field;
        if (!take_field(&at, end, &field)) return -1;
        if (count == max) return max + 1;
        fields[count] = field;
    }
    return count;
}

static bool bad_fields(const struct csv *csv, int64_t row, int found, struct err *err) {
    if (found < 0)
        return err_set(err, ERR_FORMAT, "%s: line %lld: found a misplaced quote", csv->name,
                       (long long)csv_line(csv, row));
    return err_set(err, ERR_FORMAT, "%s: line %lld: found %s%d fields, expected %d", csv->name,
                   (long long)csv_line(csv, row), found > csv->columns ? "more than " : "",
                   found > csv->columns ? csv->columns : found, csv->columns);
}

static int64_t count_lines(const char *text, size_t len) {
    int64_t n = len && text[len - 1] != '\n';
    for (const char *at = text, *end = text + len; (at = memchr(at, '\n', (size_t)(end - at)));)
        n++, at++;
    return n;
}

static bool split_header(struct csv *csv, char *end, struct err *err) {
    enum { MAX_COLUMNS = 1000 };
    csv->columns = 1;
    bool quoted = false;
    for (const char *c = csv->text; c < end; c++) {
        quoted ^= *c == '"';
        csv->columns += *c == ',' && !quoted;
    }
    if (end == csv->text || csv->columns > MAX_COLUMNS)
        return err_set(err, ERR_FORMAT, "%s: line %lld: found no header, expected column names",
                       csv->name, (long long)csv->header);
    return true;
}

static bool split(struct csv *csv, size_t len, struct err *err) {
    if (memchr(csv->text, '\0', len))
        return err_set(err, ERR_FORMAT, "%s: found a zero byte, expected text", csv->name);
    int64_t lines = count_lines(csv->text, len);
    char *at = csv->text, *stop = csv->text + len;
    for (int64_t row = 0; row < lines; row++) {
        char *end = memchr(at, '\n', (size_t)(stop - at)), *next = end ? end + 1 : stop;
        if (!end) end = stop;
        if (end > at && end[-1] == '\r') end--;
        if (row == 0) {
            if (!split_header(csv, end, err)) return false;
            csv->fields = calloc((size_t)lines * (size_t)csv->columns, sizeof *csv->fields);
            if (!csv->fields) return err_memory(err, csv->name);
        }
        int found = split_line(at, end, csv->fields + row * csv->columns, csv->columns);
        if (found != csv->columns) return bad_fields(csv, row - 1, found, err);
        at = next;
    }
    csv->rows = lines - 1;
    if (lines == 0) return split_header(csv, csv->text, err);
    return true;
}

static struct csv *csv_make(const char *name, struct err *err) {
    struct csv *csv = calloc(1, sizeof *csv);
    if (csv) csv->header = 1;
    if (csv && (csv->name = strdup(name))) return csv;
    free(csv);
    err_memory(err, name);
    return NULL;
}

/* Takes text (owned, one byte longer than len). */
static struct csv *csv_take(const char *name, char *text, size_t len, struct err *err) {
    struct csv *csv = csv_make(name, err);
    if (!csv) {
        free(text);
        return NULL;
    }
    csv->text = text;
    if (split(csv, len, err)) return csv;
    csv_free(csv);
    return NULL;
}

struct csv *csv_parse(const char *name, const char *text, size_t len, struct err *err) {
    char *copy = malloc(len + 1);
    if (!copy) {
        err_memory(err, name);
        return NULL;
    }
    memcpy(copy, text, len);
    copy[len] = '\0';
    return csv_take(name, copy, len, err);
}

struct csv *csv_read(const char *path, size_t max_bytes, struct err *err) {
    size_t len;
    char *text = gzip_whole(path, max_bytes, &len, err);
    return text ? csv_take(path, text, len, err) : NULL;
}

/* ---- row by row */

/* The next line; *line == NULL at the end. */
static bool take_line(struct csv *csv, char **line, size_t *len, struct err *err) {
    if (!lines_next(csv->lines, line, len, err))
        return strncmp(err->text, csv->name, strlen(csv->name)) != 0 &&
               err_context(err, "%s", csv->name);
    return !*line || !memchr(*line, '\0', *len) ||
           err_set(err, ERR_FORMAT, "%s: found a zero byte, expected text", csv->name);
}

static bool take_header(struct csv *csv, struct err *err) {
    char *line, nothing[1] = "";
    size_t len;
    if (!take_line(csv, &line, &len, err)) return false;
    csv->header = line ? lines_number(csv->lines) : 1;
    csv->text = malloc(len + 1);
    if (!csv->text) return err_memory(err, csv->name);
    memcpy(csv->text, line ? line : nothing, len + 1);
    if (!split_header(csv, csv->text + len, err)) return false;
    csv->fields = calloc(2 * (size_t)csv->columns, sizeof *csv->fields);
    if (!csv->fields) return err_memory(err, csv->name);
    int found = split_line(csv->text, csv->text + len, csv->fields, csv->columns);
    if (found != csv->columns) return bad_fields(csv, -1, found, err);
    csv->skipped = -1; /* the first row becomes number 0 */
    return true;
}

struct csv *csv_follow(const char *name, struct lines *lines, struct err *err) {
    struct csv *csv = csv_make(name, err);
    if (!csv) {
        lines_close(lines);
        return NULL;
    }
    csv->lines = lines;
    if (take_header(csv, err)) return csv;
    csv_free(csv);
    return NULL;
}

struct csv *csv_open(const char *path, struct err *err) {
    struct lines *lines = lines_open(path, err);
    return lines ? csv_follow(path, lines, err) : NULL;
}

bool csv_next(struct csv *csv, struct err *err) {
    char *line;
    size_t len;
    csv->rows = 0;
    if (!take_line(csv, &line, &len, err)) return false;
    csv->skipped++;
    if (!line) return true;
    int found = split_line(line, line + len, csv->fields + csv->columns, csv->columns);
    if (found != csv->columns) return bad_fields(csv, 0, found, err);
    csv->rows = 1;
    return true;
}

void csv_free(struct csv *csv) {
    if (!csv) return;
    lines_close(csv->lines);
    free(csv->name);
    free(csv->text);
    free(csv->fields);
    free(csv);
}

const char *csv_name(const struct csv *csv) { return csv->name; }
int csv_columns(const struct csv *csv) { return csv->columns; }
int64_t csv_rows(const struct csv *csv) { return csv->rows; }
int64_t csv_line(const struct csv *csv, int64_t row) {
    return csv->header + csv->skipped + row + 1;
}

int csv_find(const struct csv *csv, const char *column) {
    for (int i = 0; i < csv->columns; i++)
        if (strcmp(csv->fields[i], column) == 0) return i;
    return -1;
}

bool csv_need(const struct csv *csv, const char *column, int *index, struct err *err) {
    *index = csv_find(csv, column);
    if (*index >= 0) return true;
    return err_set(err, ERR_FORMAT, "%s: found no column \"%s\"", csv->name, column);
}

const char *csv_text(const struct csv *csv, int64_t row, int column) {
    return csv->fields[(row + 1) * csv->columns + column];
}

static bool bad_cell(const struct csv *csv, int64_t row, struct err *err) {
    return err_context(err, "%s: line %lld", csv->name, (long long)csv_line(csv, row));
}

bool csv_real(const struct csv *csv, int64_t row, int column, double min, double max, double *out,
              struct err *err) {
    return parse_real(csv_text(csv, row, column), csv->fields[column], min, max, out, err) ||
           bad_cell(csv, row, err);
}

bool csv_int(const struct csv *csv, int64_t row, int column, int64_t min, int64_t max, int64_t *out,
             struct err *err) {
    return parse_int(csv_text(csv, row, column), csv->fields[column], min, max, out, err) ||
           bad_cell(csv, row, err);
}
