/* ids.h - decimal token ids as text: one document a line
 *
 * Layer 1. */
#ifndef BASE_IDS_H
#define BASE_IDS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Reads a line of decimal ids between blanks (space, tab, carriage return); each must be below
 * `limit`. Returns owned ids[*count], at least one; NULL with err set: "token N: found 'x',
 * expected an id from 0 to limit - 1", or "found no id". */
int32_t *ids_parse(const char *line, size_t len, int32_t limit, int64_t *count, struct err *err);

#endif
