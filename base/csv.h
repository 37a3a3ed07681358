/* csv.h - comma-separated tables, plain or gzip'ed, addressed by the names in their header
 *
 * Layer 1. The file is read whole or row by row, then split in place: fields are borrowed,
 * NUL-terminated texts. Quotes as in RFC 4180, but a record is one line; lines end in LF or CRLF; a
 * line with another number of fields than the header is refused, naming the line. */
#ifndef BASE_CSV_H
#define BASE_CSV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/lines.h"

struct csv; /* opaque */

/* Reads path (gzip'ed when it begins like gzip) of at most max_bytes unpacked. Returns owned. */
struct csv *csv_read(const char *path, size_t max_bytes, struct err *err);
/* The same from memory (plain); name is for messages. */
struct csv *csv_parse(const char *name, const char *text, size_t len, struct err *err);
/* Row by row, in the memory of the longest line: reads the header; csv_next makes the next row
 * number 0, and csv_rows says 1, or 0 at the end. `lines` (taken, also when this fails) may have
 * given lines before the header. */
struct csv *csv_open(const char *path, struct err *err);
struct csv *csv_follow(const char *name, struct lines *lines, struct err *err);
bool csv_next(struct csv *csv, struct err *err);
void csv_free(struct csv *csv);

const char *csv_name(const struct csv *csv);
int csv_columns(const struct csv *csv);
int64_t csv_rows(const struct csv *csv);
/* Line of a row in the file, for messages. */
int64_t csv_line(const struct csv *csv, int64_t row);
/* Column of a name; -1 when there is none. */
int csv_find(const struct csv *csv, const char *column);
/* The same, but an error that names file and column when there is none. */
bool csv_need(const struct csv *csv, const char *column, int *index, struct err *err);
const char *csv_text(const struct csv *csv, int64_t row, int column);
/* A number in [min,max]; the error names file, line, column, what was found. */
bool csv_real(const struct csv *csv, int64_t row, int column, double min, double max, double *out,
              struct err *err);
bool csv_int(const struct csv *csv, int64_t row, int column, int64_t min, int64_t max, int64_t *out,
             struct err *err);

#endif
