/* import_text.c - what importers of text files share: a look inside, JSON documents, base64 */
#include "traces/import_text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "traces/inflate.h"

enum { HEAD_BYTES = 1 << 22 };

bool import_text_holds(const char *path, const char *first, const char *const *marks) {
    struct err ignored;
    size_t len;
    char *head = inflate_head(path, HEAD_BYTES, &len, &ignored);
    if (!head) return false;
    size_t at = strspn(head, " \t\r\n");
    bool found = at < len && head[at] && strchr(first, head[at]);
    for (; found && *marks; marks++) found = memmem(head, len, *marks, strlen(*marks)) != NULL;
    free(head);
    return found;
}

static bool each_line(const char *text, size_t len, import_json_fn *each, void *context,
                      struct err *err) {
    long long number = 0;
    for (const char *line = text, *end = text + len; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((newline ? newline : end) - line);
        number++;
        if (n > 1) {
            struct json *document = json_parse(line, n, err);
            bool ok = document && each(context, document, err);
            json_free(document);
            if (!ok) return err_context(err, "line %lld", number);
        }
        line += n + 1;
    }
    return number > 0 || err_set(err, ERR_FORMAT, "found an empty file");
}

bool import_json_each(const char *path, import_json_fn *each, void *context, struct err *err) {
    struct err whole = {0};
    size_t len;
    char *text = inflate_file(path, (size_t)1 << 34, &len, err);
    if (!text) return false;
    struct json *document = json_parse(text, len, &whole);
    bool ok = document ? each(context, document, err) : each_line(text, len, each, context, err);
    json_free(document);
    free(text);
    return ok;
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
