/* import_text.c - what importers of text files share: a look inside, JSON documents, base64 */
#include "traces/import_text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/gzip.h"
#include "base/lines.h"

enum { HEAD_BYTES = 1 << 22 };

bool import_text_holds(const char *path, const char *first, const char *const *marks) {
    struct err ignored;
    size_t len;
    char *head = gzip_head(path, HEAD_BYTES, &len, &ignored);
    if (!head) return false;
    size_t at = strspn(head, " \t\r\n");
    bool found = at < len && head[at] && strchr(first, head[at]);
    for (; found && *marks; marks++) found = memmem(head, len, *marks, strlen(*marks)) != NULL;
    free(head);
    return found;
}

/* The next line that is not blank; *line == NULL at the end. */
static bool next_line(struct lines *lines, char **line, size_t *len, struct err *err) {
    bool ok = lines_next(lines, line, len, err);
    while (ok && *line && strspn(*line, " \t\r") == *len) ok = lines_next(lines, line, len, err);
    return ok;
}

/* A document a line, from the one on that the first line holds (taken). */
static bool each_line(struct lines *lines, struct json *document, import_json_fn *each,
                      void *context, struct err *err) {
    for (char *line; document;) {
        size_t len;
        bool ok = each(context, document, err);
        json_free(document);
        if (!ok) return err_context(err, "line %lld", (long long)lines_number(lines));
        if (!next_line(lines, &line, &len, err)) return false;
        if (!line) return true;
        document = json_parse(line, len, err);
    }
    return err_context(err, "line %lld", (long long)lines_number(lines));
}

/* A document over several lines: in memory as a whole. */
static bool whole_document(const char *path, import_json_fn *each, void *context, struct err *err) {
    size_t len;
    char *text = gzip_whole(path, (size_t)1 << 34, &len, err);
    if (!text) return false;
    struct json *document = json_parse(text, len, err);
    free(text);
    bool ok = document && each(context, document, err);
    json_free(document);
    return ok;
}

bool import_json_each(const char *path, import_json_fn *each, void *context, struct err *err) {
    char *line;
    size_t len;
    struct err ignored;
    struct lines *lines = lines_open(path, err);
    if (!lines) return false;
    bool ok = next_line(lines, &line, &len, err) &&
              (line || err_set(err, ERR_FORMAT, "found an empty file"));
    struct json *first = ok ? json_parse(line, len, &ignored) : NULL;
    if (first) ok = each_line(lines, first, each, context, err);
    lines_close(lines);
    return ok && (first || whole_document(path, each, context, err));
}

static int sextet(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

unsigned char *import_base64(const char *text, size_t *len, struct err *err) {
    size_t n = strlen(text);
    unsigned char *bytes = malloc(n / 4 * 3 + 4);
    uint32_t bits = 0;
    int have = 0;
    *len = 0;
    if (!bytes) {
        err_memory(err, "base64");
        return NULL;
    }
    while (n && text[n - 1] == '=') n--;
    for (size_t i = 0; i < n; i++) {
        int value = sextet(text[i]);
        if (value < 0) {
            free(bytes);
            err_set(err, ERR_FORMAT, "base64: found '%c' at %zu", text[i], i);
            return NULL;
        }
        bits = bits << 6 | (uint32_t)value;
        if ((have += 6) >= 8) bytes[(*len)++] = (unsigned char)(bits >> (have -= 8));
    }
    return bytes;
}

int import_json_ids(const struct json *list, int most, int limit, int *out) {
    int count = 0;
    for (const struct json *e = list ? json_first(list) : NULL; e; e = json_next(e)) {
        double x = json_number(e);
        if (count == most || !(x >= -1 && x < limit) || x != (double)(int)x) return -1;
        out[count++] = (int)x;
    }
    return count;
}
