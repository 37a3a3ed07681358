/* gzip.c - the bytes of a file in order, unpacked where it is gzip'ed, in flat memory
 *
 * The file is mapped; what was read leaves memory again. */
#include "base/gzip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/file.h"
#include "base/str.h"

enum { PIECE_BYTES = 1 << 16, DROP_BYTES = 4 << 20 };

struct gzip {
    const char *path; /* a copy behind the struct */
    struct file_map map;
    size_t at, dropped; /* read of the mapping; no longer in memory */
    bool packed, ready; /* gzip'ed; the stream was made */
    bool between;       /* no member is open */
    z_stream stream;
};

static bool is_member(const struct gzip *file) {
    if (file->map.size_bytes - file->at < 3) return false;
    const unsigned char *bytes = file->map.data + file->at;
    return bytes[0] == 0x1f && bytes[1] == 0x8b;
}

struct gzip *gzip_open(const char *path, struct err *err) {
    size_t n = strlen(path) + 1;
    struct gzip *file = calloc(1, sizeof *file + n);
    if (!file) {
        err_memory(err, path);
        return NULL;
    }
    file->path = memcpy(file + 1, path, n);
    if (!file_map(path, &file->map, err)) {
        free(file);
        return NULL;
    }
    file->packed = file->between = is_member(file);
    if (!file->packed || inflateInit2(&file->stream, 16 + MAX_WBITS) == Z_OK) return file;
    file_unmap(&file->map);
    free(file);
    err_memory(err, path);
    return NULL;
}

void gzip_close(struct gzip *file) {
    if (!file) return;
    if (file->packed) inflateEnd(&file->stream);
    file_unmap(&file->map);
    free(file);
}

static void drop_behind(struct gzip *file) {
    if (file->at - file->dropped < DROP_BYTES) return;
    file_drop(&file->map, file->dropped, file->at - file->dropped);
    file->dropped = file->at;
}

static size_t copy(struct gzip *file, void *out, size_t n) {
    size_t left = file->map.size_bytes - file->at;
    if (n > left) n = left;
    if (n) memcpy(out, file->map.data + file->at, n);
    file->at += n;
    return n;
}

/* One step of inflate; false when the data are damaged or end within a member. */
static bool expand(struct gzip *file, unsigned char *out, size_t n, size_t *got) {
    z_stream *stream = &file->stream;
    size_t left = file->map.size_bytes - file->at, most = (size_t)1 << 30;
    uInt give = (uInt)(left > most ? most : left), room = (uInt)(n > most ? most : n);
    if (file->between && inflateReset(stream) != Z_OK) return false;
    file->between = false;
    stream->next_in = (unsigned char *)(uintptr_t)(file->map.data + file->at);
    stream->avail_in = give;
    stream->next_out = out;
    stream->avail_out = room;
    int code = inflate(stream, Z_NO_FLUSH);
    file->at += give - stream->avail_in;
    *got = room - stream->avail_out;
    file->between = code == Z_STREAM_END;
    return file->between || (code == Z_OK && (*got || file->at < file->map.size_bytes));
}

bool gzip_read(struct gzip *file, void *out, size_t n, size_t *got, struct err *err) {
    *got = 0;
    if (!file->packed) *got = copy(file, out, n);
    while (file->packed && !*got && (!file->between || is_member(file)))
        if (!expand(file, out, n, got))
            return err_set(err, ERR_FORMAT, "%s: found damaged or truncated gzip data", file->path);
    drop_behind(file);
    return true;
}

/* Appends to *text, of *cap bytes, until the end or until more than `enough` bytes are there. */
static bool read_on(struct gzip *file, size_t enough, char **text, size_t cap, size_t *len,
                    struct err *err) {
    for (size_t got = 1; got && *len <= enough; *len += got) {
        if (*len + 1 == cap) {
            char *grown = realloc(*text, cap *= 2);
            if (!grown) return err_memory(err, file->path);
            *text = grown;
        }
        if (!gzip_read(file, *text + *len, cap - 1 - *len, &got, err)) return false;
    }
    (*text)[*len] = '\0';
    return true;
}

/* The text of a file until its end or until more than `enough` bytes are there. */
static char *read_text(const char *path, size_t enough, size_t *len, struct err *err) {
    struct gzip *file = gzip_open(path, err);
    if (!file) return NULL;
    size_t size = file->packed ? PIECE_BYTES : file->map.size_bytes;
    size_t cap = (size < enough ? size : enough) + 2; /* one byte more tells, one is the NUL */
    char *text = malloc(cap);
    *len = 0;
    bool ok = text ? read_on(file, enough, &text, cap, len, err) : err_memory(err, path);
    gzip_close(file);
    if (ok) return text;
    free(text);
    return NULL;
}

char *gzip_whole(const char *path, size_t max_bytes, size_t *len, struct err *err) {
    char *text = read_text(path, max_bytes, len, err);
    if (!text || *len <= max_bytes) return text;
    free(text);
    err_set(err, ERR_FORMAT, "%s: found more than %zu bytes", path, max_bytes);
    return NULL;
}

char *gzip_head(const char *path, size_t max_bytes, size_t *len, struct err *err) {
    char *text = read_text(path, max_bytes, len, err);
    if (!text || *len <= max_bytes) return text;
    *len = max_bytes;
    text[max_bytes] = '\0';
    return text;
}
