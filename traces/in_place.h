/* in_place.h - the rows of a stored blob in place, in the mapped pages of the database file
 *
 * Private to traces/. sqlite3_blob_read copies, and the copy costs as much as routing what was
 * copied. A long blob lies in a chain of overflow pages (sqlite.org/fileformat2.html, sections 1.5
 * and 1.6), each a 4-byte number of the next page and then payload, so most rows can be used where
 * they are. This reader finds a row of one table through its b-tree and follows the chain in the
 * memory map that SQLite itself keeps of the file (beyond the 2 GiB that it maps: in a window read
 * through SQLite's own file). No descriptor is opened: closing one would drop SQLite's locks.
 *
 * Every function may answer "no", at any time: the caller then reads through SQLite, which reports
 * what is wrong, if anything is. Answered "no" are files in WAL mode (the log may know better),
 * databases in memory, encrypted ones, auto_vacuum, and every surprise in the file. What is
 * answered is what SQLite would read. A read transaction is held from open to close, so the file
 * cannot change; a file that is cut short meanwhile ends the process by SIGBUS, as SQLite's own map
 * does. */
#ifndef TRACES_IN_PLACE_H
#define TRACES_IN_PLACE_H

#include <stddef.h>

#include "traces/db.h"

struct in_place;

/* Begins a read transaction and looks at `table` of db. Returns owned; NULL: read through SQLite
 * (no transaction is left open). Borrows db. */
struct in_place *in_place_open(struct db *db, const char *table);
/* Ends the transaction; what was handed out is gone. NULL is allowed. */
void in_place_close(struct in_place *place);

/* Goes to the blob of `bytes` bytes in `column` (counted from 0) of the row `rowid`. */
bool in_place_find(struct in_place *place, int64_t rowid, int column, size_t bytes);

/* Rows of a matrix stored as the blob that was found. */
struct in_place_rows {
    size_t row_bytes;
    size_t align;          /* that a pointer into the pages must have to be handed out */
    size_t unit;           /* rows that are best used together */
    size_t first, max;     /* rows wanted, at least 1; all within the blob */
    unsigned char *buffer; /* [max * row_bytes] for rows that do not lie in one piece */
};
/* *n <- 1..max rows from `first` on; returns where they are: in the file's place, until the next
 * call, or in the buffer. NULL: read through SQLite. */
const unsigned char *in_place_rows(struct in_place *place, const struct in_place_rows *want,
                                   size_t *n);

#endif
