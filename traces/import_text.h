/* import_text.h - what importers of text files share: a look inside, JSON documents, base64
 *
 * Private to traces/. All read plain files and gzip'ed ones alike. */
#ifndef TRACES_IMPORT_TEXT_H
#define TRACES_IMPORT_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/json.h"

/* Do the first 4 MiB hold all of these texts (ends with NULL), and is the first character that is
 * no space one of `first`? */
bool import_text_holds(const char *path, const char *first, const char *const *marks);

/* Calls `each` for the document of every line or, when the first line is none, for the file's one
 * document; stops at the first false. Errors of lines name them. Lines are read one at a time; a
 * document over several lines is in memory as a whole, about 25 times its text where it is lists of
 * small numbers, 3 times where it is base64. */
typedef bool import_json_fn(void *context, const struct json *document, struct err *err);
bool import_json_each(const char *path, import_json_fn *each, void *context, struct err *err);

/* The bytes of a base64 text (padding optional). Returns owned; NULL with err set. */
unsigned char *import_base64(const char *text, size_t *len, struct err *err);

/* A JSON list of at most `most` whole numbers in [-1,limit), into out; their number, or -1. */
int import_json_ids(const struct json *list, int most, int limit, int *out);

#endif
