/* csv.h - comma-separated tables, plain or gzip'ed, addressed by the names in their header
 *
 * Layer 1; the only user of zlib in base/. The file is read whole, then split in place: fields are
 * borrowed, NUL-terminated texts. Quotes as in RFC 4180, but a record is one line; lines end in LF
 * or CRLF; a line with another number of fields than the header is refused, naming the line. */
#ifndef BASE_CSV_H
#define BASE_CSV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct csv; /* opaque */

/* Reads path (gzip'ed when it begins like gzip) of at most max_bytes unpacked. Returns owned. */
struct csv *csv_read(const char *path, size_t max_bytes, struct err *err);
/* The same from memory (plain); name is for messages. */
struct csv *csv_parse(const char *name, const char *text, size_t len, struct err *err);
void csv_free(struct csv *csv);

const char *csv_name(const struct csv *csv);
int csv_columns(const struct csv *csv);
int64_t csv_rows(const struct csv *csv);
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
