/* lines.c - a text file line by line, plain or gzip'ed, in the memory of its longest line */
#include "base/lines.h"

#include <stdlib.h>
#include <string.h>

#include "base/gzip.h"

enum { FIRST_BYTES = 1 << 15 };
static const size_t longest = (size_t)1 << 34;

struct lines {
    struct gzip *file;
    char *buffer;           /* [cap + 1] */
    size_t cap, begin, end; /* bytes begin..end were read and not given */
    int64_t number;
    bool at_end; /* of the file */
};

struct lines *lines_open(const char *path, struct err *err) {
    struct lines *lines = calloc(1, sizeof *lines);
    if (lines) lines->buffer = malloc(FIRST_BYTES + 1);
    if (lines && lines->buffer) {
        lines->cap = FIRST_BYTES;
        if ((lines->file = gzip_open(path, err))) return lines;
    } else {
        err_memory(err, path);
    }
    lines_close(lines);
    return NULL;
}

void lines_close(struct lines *lines) {
    if (!lines) return;
    gzip_close(lines->file);
    free(lines->buffer);
    free(lines);
}

int64_t lines_number(const struct lines *lines) { return lines->number; }

/* More bytes behind those that wait, which move to the front or, when they fill the buffer, get a
 * larger one. */
static bool fill(struct lines *lines, struct err *err) {
    size_t waiting = lines->end - lines->begin, got;
    if (lines->begin) memmove(lines->buffer, lines->buffer + lines->begin, waiting);
    lines->begin = 0;
    lines->end = waiting;
    if (waiting == lines->cap) {
        char *grown = lines->cap < longest ? realloc(lines->buffer, 2 * lines->cap + 1) : NULL;
        if (!grown && lines->cap >= longest)
            return err_set(err, ERR_FORMAT, "line %lld: found more than %zu bytes",
                           (long long)lines->number + 1, longest);
        if (!grown) return err_memory(err, "line");
        lines->buffer = grown;
        lines->cap *= 2;
    }
    if (!gzip_read(lines->file, lines->buffer + waiting, lines->cap - waiting, &got, err))
        return false;
    lines->end += got;
    lines->at_end = !got;
    return true;
}

bool lines_next(struct lines *lines, char **text, size_t *len, struct err *err) {
    char *newline = NULL;
    *text = NULL;
    *len = 0;
    for (size_t seen = 0;;) {
        size_t waiting = lines->end - lines->begin;
        newline = memchr(lines->buffer + lines->begin + seen, '\n', waiting - seen);
        if (newline || lines->at_end) break;
        if (!fill(lines, err)) return false;
        seen = waiting;
    }
    char *line = lines->buffer + lines->begin;
    if (!newline && lines->begin == lines->end) return true;
    size_t n = newline ? (size_t)(newline - line) : lines->end - lines->begin;
    lines->begin += n + (newline != NULL);
    if (n && line[n - 1] == '\r') n--;
    line[n] = '\0';
    *text = line;
    *len = n;
    lines->number++;
    return true;
}
