/* zip.c - zip archives (npz, torch files), checked, through zlib
 *
 * Format of zip: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory),
 * 4.3.16 (its end), 4.5.3 (zip64). */
#include "traces/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static uint64_t little(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
    return value;
}

static bool damaged(struct err *err, const char *what) {
    return err_set(err, ERR_FORMAT, "zip: found a damaged %s", what);
}

/* The end record: at most 64 KiB of comment behind it. */
static bool find_end(const struct zip *zip, uint64_t *count, uint64_t *offset, struct err *err) {
    const unsigned char *data = zip->map.data;
    size_t size = zip->map.size_bytes;
    size_t least = size < 65535 + 22 ? 0 : size - 65535 - 22; /* where it may begin */
    for (size_t most = size < 22 ? 0 : size - 21; most > least;) {
        const unsigned char *end = memrchr(data + least, 'P', most - least);
        if (!end) break;
        most = (size_t)(end - data);
        if (memcmp(end, "PK\5\6", 4) != 0) continue;
        *count = little(end + 10, 2);
        *offset = little(end + 16, 4);
        if (*count != 0xffff && *offset != 0xffffffff) return true;
        if (end - data < 20 || memcmp(end - 20, "PK\6\7", 4) != 0) return damaged(err, "directory");
        uint64_t at = little(end - 20 + 8, 8);
        if (size < 56 || at > size - 56 || memcmp(data + at, "PK\6\6", 4) != 0)
            return damaged(err, "directory");
        *count = little(data + at + 32, 8);
        *offset = little(data + at + 48, 8);
        return true;
    }
    return err_set(err, ERR_FORMAT, "zip: found no directory (truncated?)");
}

/* The zip64 field holds, in this order, those of the three values that did not fit. */
static bool read_zip64(const unsigned char *extra, size_t len, uint64_t *values[3]) {
    while (len >= 4) {
        size_t id = little(extra, 2), n = little(extra + 2, 2);
        if (n > len - 4) return false;
        const unsigned char *at = extra + 4, *end = at + n;
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*values[i] != 0xffffffff) continue;
            if (end - at < 8) return false;
            *values[i] = little(at, 8);
            at += 8;
        }
        extra += 4 + n;
        len -= 4 + n;
    }
    return true;
}

/* One entry of the directory; *at moves behind it. */
static bool read_entry(struct zip *zip, uint64_t *at, char **name, struct zip_member *member,
                       struct err *err) {
    size_t size = zip->map.size_bytes;
    const unsigned char *e = zip->map.data + *at;
    if (*at > size || size - *at < 46 || memcmp(e, "PK\1\2", 4) != 0) return damaged(err, "entry");
    size_t n = little(e + 28, 2), extra = little(e + 30, 2), comment = little(e + 32, 2);
    if (size - *at - 46 < n + extra + comment) return damaged(err, "entry");
    uint64_t stored = little(e + 20, 4), bytes = little(e + 24, 4), local = little(e + 42, 4);
    if (!read_zip64(e + 46 + n, extra, (uint64_t *[3]){&bytes, &stored, &local}))
        return damaged(err, "zip64 field");
    int method = (int)little(e + 10, 2);
    if (little(e + 8, 2) & 1 || (method != 0 && method != 8))
        return err_set(err, ERR_UNSUPPORTED, "zip: found method %d or encryption, expected 0 or 8",
                       method);
    if (size < 30 || local > size - 30 || memcmp(zip->map.data + local, "PK\3\4", 4) != 0)
        return damaged(err, "local header");
    uint64_t data =
        local + 30 + little(zip->map.data + local + 26, 2) + little(zip->map.data + local + 28, 2);
    if (data > size || stored > size - data || (method == 0 && stored != bytes))
        return damaged(err, "size");
    memcpy(*name, e + 46, n);
    *member = (struct zip_member){*name,  zip->map.data + data,       stored, bytes,
                                  method, (uint32_t)little(e + 16, 4)};
    *name += n + 1; /* a NUL is there: the names' memory was cleared */
    *at += 46 + n + extra + comment;
    return true;
}

static bool read_directory(struct zip *zip, struct err *err) {
    uint64_t count = 0, at = 0;
    if (!find_end(zip, &count, &at, err)) return false;
    if (count > zip->map.size_bytes / 46 || at > zip->map.size_bytes)
        return damaged(err, "directory");
    zip->members = calloc((size_t)count + 1, sizeof *zip->members);
    zip->names = calloc(zip->map.size_bytes - (size_t)at + (size_t)count + 1, 1);
    if (!zip->members || !zip->names) return err_memory(err, "zip directory");
    char *name = zip->names;
    for (; zip->count < (int)count; zip->count++)
        if (!read_entry(zip, &at, &name, &zip->members[zip->count], err)) return false;
    return true;
}

bool zip_open(struct zip *zip, const char *path, struct err *err) {
    *zip = (struct zip){0};
    if (!file_map(path, &zip->map, err)) return false;
    if (read_directory(zip, err)) return true;
    zip_close(zip);
    return err_context(err, "%s", path);
}

void zip_close(struct zip *zip) {
    file_unmap(&zip->map);
    free(zip->members);
    free(zip->names);
    *zip = (struct zip){0};
}

const struct zip_member *zip_find(const struct zip *zip, const char *ending) {
    size_t n = strlen(ending);
    for (int i = 0; i < zip->count; i++) {
        size_t len = strlen(zip->members[i].name);
        if (len >= n && strcmp(zip->members[i].name + len - n, ending) == 0)
            return &zip->members[i];
    }
    return NULL;
}

/* Raw deflate, the whole member at once. */
static bool expand(const struct zip_member *member, unsigned char *out) {
    z_stream stream = {.next_in = (unsigned char *)(uintptr_t)member->data, .next_out = out};
    uint64_t in = member->stored_bytes, room = member->size_bytes;
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
    int code = Z_OK;
    while (code == Z_OK) {
        uInt give = in > (1u << 30) ? 1u << 30 : (uInt)in;
        uInt take = room > (1u << 30) ? 1u << 30 : (uInt)room;
        stream.avail_in = give;
        stream.avail_out = take;
        code = inflate(&stream, Z_NO_FLUSH);
        in -= give - stream.avail_in;
        room -= take - stream.avail_out;
        if (code == Z_OK && give == stream.avail_in && take == stream.avail_out) break;
    }
    inflateEnd(&stream);
    return code == Z_STREAM_END && room == 0;
}

static uint32_t checksum(const unsigned char *bytes, uint64_t n) {
    uLong crc = crc32(0, NULL, 0);
    for (uint64_t at = 0; at < n; at += 1u << 30)
        crc = crc32(crc, bytes + at, n - at > (1u << 30) ? 1u << 30 : (uInt)(n - at));
    return (uint32_t)crc;
}

unsigned char *zip_read(const struct zip_member *member, size_t max_bytes, struct err *err) {
    if (member->size_bytes > max_bytes) {
        err_set(err, ERR_FORMAT, "%s: found %llu bytes, expected at most %zu", member->name,
                (unsigned long long)member->size_bytes, max_bytes);
        return NULL;
    }
    /* deflate expands at most 1032 times: a claim beyond is a lie, refused before it is allocated
     */
    bool plausible = member->method == 0 || member->size_bytes / 1032 <= member->stored_bytes;
    unsigned char *bytes = plausible ? malloc((size_t)member->size_bytes + 1) : NULL;
    if (plausible && !bytes) {
        err_memory(err, member->name);
        return NULL;
    }
    bool ok = plausible;
    if (ok && member->method == 0)
        memcpy(bytes, member->data, (size_t)member->size_bytes);
    else if (ok)
        ok = expand(member, bytes);
    if (ok && checksum(bytes, member->size_bytes) == member->crc) {
        bytes[member->size_bytes] = 0;
        return bytes;
    }
    free(bytes);
    err_set(err, ERR_FORMAT, "%s: found damaged data (checksum)", member->name);
    return NULL;
}

const unsigned char *zip_view(const struct zip_member *member, struct err *err) {
    if (member->method != 0) return NULL;
    if (checksum(member->data, member->size_bytes) == member->crc) return member->data;
    err_set(err, ERR_FORMAT, "%s: found damaged data (checksum)", member->name);
    return NULL;
}
