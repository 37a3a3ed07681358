/* json.c - reading JSON: cJSON behind a small face
 *
 * `struct json` is cJSON's node under another name, so that a value costs no copy. cJSON limits
 * nesting itself (1000); ours is tighter because callers recurse over what they read. */
#include "base/json.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { DEEPEST = 500 };

static const cJSON *node(const struct json *value) { return (const cJSON *)value; }
static const struct json *value_of(const cJSON *node) { return (const struct json *)node; }

/* Depth is checked before cJSON parses, so that its own recursion is bounded too. */
static bool check_depth(const char *text, size_t len, struct err *err) {
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            if (++depth > DEEPEST)
                return err_set(err, ERR_FORMAT, "JSON: nested deeper than %d levels", DEEPEST);
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return true;
}

static size_t line_of(const char *text, const char *at) {
    size_t line = 1;
    for (const char *c = text; c < at; c++) line += *c == '\n';
    return line;
}

struct json *json_parse(const char *text, size_t len, struct err *err) {
    if (memchr(text, '\0', len)) {
        err_set(err, ERR_FORMAT, "JSON: found a NUL byte, expected text");
        return NULL;
    }
    if (!check_depth(text, len, err)) return NULL;
    const char *end = text;
    cJSON *doc = cJSON_ParseWithLengthOpts(text, len, &end, false);
    if (!doc) {
        err_set(err, ERR_FORMAT, "JSON: damaged at line %zu", line_of(text, end));
        return NULL;
    }
    while (end < text + len && strchr(" \t\r\n", *end)) end++;
    if (end < text + len) {
        cJSON_Delete(doc);
        err_set(err, ERR_FORMAT, "JSON: found more text after its end, at line %zu",
                line_of(text, end));
        return NULL;
    }
    return (struct json *)doc;
}

struct json *json_read(const char *path, size_t max_bytes, struct err *err) {
    size_t len;
    char *text = file_read(path, max_bytes, &len, err);
    if (!text) return NULL;
    struct json *doc = json_parse(text, len, err);
    if (!doc) err_context(err, "%s", path);
    free(text);
    return doc;
}

void json_free(struct json *doc) { cJSON_Delete((cJSON *)doc); }

enum json_kind json_kind(const struct json *value) {
    const cJSON *n = node(value);
    if (cJSON_IsBool(n)) return JSON_BOOL;
    if (cJSON_IsNumber(n)) return JSON_NUMBER;
    if (cJSON_IsString(n)) return JSON_STRING;
    if (cJSON_IsArray(n)) return JSON_ARRAY;
    if (cJSON_IsObject(n)) return JSON_OBJECT;
    return JSON_NULL;
}

const char *json_kind_name(const struct json *value) {
    static const char *const names[] = {"null",     "a boolean", "a number",
                                        "a string", "a list",    "an object"};
    return names[json_kind(value)];
}

const struct json *json_member(const struct json *value, const char *key) {
    if (!value || !cJSON_IsObject(node(value))) return NULL;
    return value_of(cJSON_GetObjectItemCaseSensitive(node(value), key));
}

const struct json *json_present(const struct json *value, const char *key) {
    const struct json *member = json_member(value, key);
    return member && json_kind(member) != JSON_NULL ? member : NULL;
}

const struct json *json_first(const struct json *value) {
    const cJSON *n = node(value);
    return n && (cJSON_IsArray(n) || cJSON_IsObject(n)) ? value_of(n->child) : NULL;
}

const struct json *json_next(const struct json *child) { return value_of(node(child)->next); }

const char *json_key(const struct json *child) {
    const char *key = node(child)->string;
    return key ? key : "";
}

int json_count(const struct json *value) { return cJSON_GetArraySize(node(value)); }

const char *json_text(const struct json *value) {
    return value ? cJSON_GetStringValue(node(value)) : NULL;
}

bool json_is_true(const struct json *value) { return value && cJSON_IsTrue(node(value)); }

double json_number(const struct json *value) {
    return value && cJSON_IsNumber(node(value)) ? node(value)->valuedouble : (double)NAN;
}

static bool wrong_kind(const char *key, const struct json *found, const char *expected,
                       struct err *err) {
    return err_set(err, ERR_FORMAT, "%s: found %s, expected %s", key, json_kind_name(found),
                   expected);
}

bool json_get_int(const struct json *obj, const char *key, int64_t min, int64_t max,
                  int64_t otherwise, int64_t *out, struct err *err) {
    *out = otherwise;
    const struct json *member = json_present(obj, key);
    if (!member) return true;
    double number = json_number(member);
    if (isnan(number)) return wrong_kind(key, member, "a whole number", err);
    if (number != floor(number) || number < (double)min || number > (double)max)
        return err_set(err, ERR_FORMAT,
                       "%s: found %.17g, expected a whole number from %lld to %lld", key, number,
                       (long long)min, (long long)max);
    *out = (int64_t)number;
    return true;
}

bool json_get_real(const struct json *obj, const char *key, double otherwise, double *out,
                   struct err *err) {
    *out = otherwise;
    const struct json *member = json_present(obj, key);
    if (!member) return true;
    double number = json_number(member);
    if (!isfinite(number)) return wrong_kind(key, member, "a finite number", err);
    *out = number;
    return true;
}

bool json_get_bool(const struct json *obj, const char *key, bool otherwise, bool *out,
                   struct err *err) {
    *out = otherwise;
    const struct json *member = json_present(obj, key);
    if (!member) return true;
    if (json_kind(member) != JSON_BOOL) return wrong_kind(key, member, "true or false", err);
    *out = json_is_true(member);
    return true;
}

bool json_get_text(const struct json *obj, const char *key, const char *otherwise, const char **out,
                   struct err *err) {
    *out = otherwise;
    const struct json *member = json_present(obj, key);
    if (!member) return true;
    if (json_kind(member) != JSON_STRING) return wrong_kind(key, member, "a string", err);
    *out = json_text(member);
    return true;
}

/* Length of the valid UTF-8 sequence at s (1..4), 0 when it is not one. */
static size_t utf8_length(const unsigned char *s, size_t left) {
    static const struct {
        unsigned char mask, lead;
        size_t len;
    } kinds[] = {{0x80, 0x00, 1}, {0xe0, 0xc0, 2}, {0xf0, 0xe0, 3}, {0xf8, 0xf0, 4}};
    for (size_t i = 0; i < 4; i++) {
        if ((s[0] & kinds[i].mask) != kinds[i].lead) continue;
        size_t len = kinds[i].len;
        if (len > left || s[0] == 0xc0 || s[0] == 0xc1 || s[0] > 0xf4) return 0;
        for (size_t j = 1; j < len; j++)
            if ((s[j] & 0xc0) != 0x80) return 0;
        if (s[0] == 0xe0 && s[1] < 0xa0) return 0; /* overlong */
        if (s[0] == 0xed && s[1] > 0x9f) return 0; /* surrogate */
        if (s[0] == 0xf0 && s[1] < 0x90) return 0; /* overlong */
        if (s[0] == 0xf4 && s[1] > 0x8f) return 0; /* beyond U+10FFFF */
        return len;
    }
    return 0;
}

static void quote_ascii(struct str *out, char c) {
    static const char plain[] = "\"\"\\\\\nn\tt\rr\bb\ff";
    for (size_t i = 0; i + 1 < sizeof plain; i += 2)
        if (plain[i] == c) {
            str_printf(out, "\\%c", plain[i + 1]);
            return;
        }
    if ((unsigned char)c < 0x20 || c == 0x7f)
        str_printf(out, "\\u%04x", (unsigned)c);
    else
        str_append(out, &c, 1);
}

void json_quote(struct str *out, const char *text, size_t len) {
    const unsigned char *s = (const unsigned char *)text;
    str_puts(out, "\"");
    for (size_t i = 0; i < len;) {
        size_t n = utf8_length(s + i, len - i);
        if (n == 1)
            quote_ascii(out, text[i]);
        else if (n)
            str_append(out, text + i, n);
        else
            str_puts(out, "\xef\xbf\xbd");
        i += n ? n : 1;
    }
    str_puts(out, "\"");
}
