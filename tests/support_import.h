/* support_import.h - imports a file into a trace, or sees it refused with one line */
#ifndef TESTS_SUPPORT_IMPORT_H
#define TESTS_SUPPORT_IMPORT_H

#include <stdbool.h>

#include "traces/exchange.h"

/* Where the calls below write their trace; `folder` ends in '/'. Makes it fresh and empty. */
void import_into(const char *folder);
const char *import_out(void);
bool import_as(const char *from, struct import_job job, struct err *err);
/* Imports and opens; fails unless the importer is `expected`. */
struct trace *imported(const char *from, const char *expected, struct import_job job);
/* Fails unless the import is refused with one line that names the file and holds `expected`, and
 * leaves nothing. */
void refused(const char *from, const char *expected, struct import_job job);
/* A job of one file. */
struct import_job import_of(const char *path);
/* The first value that a query gives; NaN when it has no row. */
double trace_number(struct trace *trace, const char *sql);

#endif
