/* json.h - reading JSON: cJSON behind a small face with checked look-ups
 *
 * Layer 1; the only place that includes cJSON. A value is a borrowed `const struct json *` inside
 * the document that `json_read`/`json_parse` returned; only the document is freed. Numbers are
 * doubles (integers are exact to 2^53 and are checked to be whole). Nesting is limited to 500. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct json; /* a cJSON node */

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* Parses len bytes; trailing garbage and embedded NULs are errors. Returns owned; NULL with err
 * set. */
struct json *json_parse(const char *text, size_t len, struct err *err);
/* Reads a regular file of at most max_bytes and parses it; err begins with the path. Returns owned.
 */
struct json *json_read(const char *path, size_t max_bytes, struct err *err);
void json_free(struct json *doc);

enum json_kind json_kind(const struct json *value);
const char *json_kind_name(const struct json *value); /* "a string", for messages */
/* Member of an object; NULL when absent, or when value is no object. */
const struct json *json_member(const struct json *value, const char *key);
/* Like json_member, but a member that is JSON null counts as absent. */
const struct json *json_present(const struct json *value, const char *key);
/* Children of an array or object in file order: first, then next; NULL at the end. */
const struct json *json_first(const struct json *value);
const struct json *json_next(const struct json *child);
const char *json_key(const struct json *child);  /* of an object's child; borrowed, never NULL */
int json_count(const struct json *value);        /* children */
const char *json_text(const struct json *value); /* of a string; NULL when it is none */
bool json_is_true(const struct json *value);
double json_number(const struct json *value); /* NaN when it is no number */

/* Typed members with default: absent or null gives `otherwise`; a wrong kind or a value outside
 * [min,max] is an error that names the key, what was found and what was expected. */
bool json_get_int(const struct json *obj, const char *key, int64_t min, int64_t max,
                  int64_t otherwise, int64_t *out, struct err *err);
bool json_get_real(const struct json *obj, const char *key, double otherwise, double *out,
                   struct err *err);
bool json_get_bool(const struct json *obj, const char *key, bool otherwise, bool *out,
                   struct err *err);
/* Borrowed from the document. */
bool json_get_text(const struct json *obj, const char *key, const char *otherwise, const char **out,
                   struct err *err);

/* Appends text as a quoted, escaped JSON string. Invalid UTF-8 becomes U+FFFD. */
void json_quote(struct str *out, const char *text, size_t len);

#endif
