/* safetensors.c - the safetensors container: checked reader over a mapping, streaming writer
 *
 * The reader is as strict as the format's own library: tensors must tile the data exactly, so that
 * a damaged offset cannot show one tensor's bytes under another's name. */
#include "base/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/str.h"

enum { HEADER_MAX_BYTES = 100 << 20, DATA_ALIGN = 8 };

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
#define X(e, name, bytes) {name, bytes},
    SAFETENSORS_DTYPES(X)
#undef X
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

const char *safetensors_dtype_name(enum safetensors_dtype dtype) { return dtypes[dtype].name; }
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype) { return dtypes[dtype].bytes; }

struct safetensors {
    char *path;
    struct file_map map;
    struct arena arena;
    struct json *doc; /* only while opening; the metadata stays in it */
    const struct json *metadata;
    struct safetensors_tensor *tensors;
    int count;
};

static uint64_t load_u64(const unsigned char *bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

static bool read_dtype(const struct json *entry, enum safetensors_dtype *dtype, struct err *err) {
    const char *name;
    if (!json_get_text(entry, "dtype", "", &name, err)) return false;
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            *dtype = (enum safetensors_dtype)i;
            return true;
        }
    return err_set(err, ERR_UNSUPPORTED,
                   "dtype: found '%.40s', expected one of F64 F32 F16 BF16 ...", name);
}

/* A list of `count` whole numbers >= 0; count < 0 takes up to SAFETENSORS_MAX_RANK. */
static bool read_list(const struct json *entry, const char *key, int count, int64_t *out, int *len,
                      struct err *err) {
    const struct json *list = json_member(entry, key);
    if (!list || json_kind(list) != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, "%s: found no list, expected one", key);
    int n = json_count(list);
    if (count >= 0 ? n != count : n > SAFETENSORS_MAX_RANK)
        return err_set(err, ERR_FORMAT, "%s: found %d numbers, expected %s%d", key, n,
                       count < 0 ? "at most " : "", count < 0 ? SAFETENSORS_MAX_RANK : count);
    int i = 0;
    for (const struct json *item = json_first(list); item; item = json_next(item)) {
        double x = json_number(item);
        if (!(x >= 0 && x <= 9007199254740992.0) || x != (double)(int64_t)x)
            return err_set(err, ERR_FORMAT, "%s[%d]: found no whole number from 0 to 2^53", key, i);
        out[i++] = (int64_t)x;
    }
    *len = n;
    return true;
}

static bool count_elements(struct safetensors_tensor *tensor, struct err *err) {
    uint64_t count = 1;
    for (int i = 0; i < tensor->rank; i++) {
        uint64_t d = (uint64_t)tensor->shape[i];
        if (d && count > (UINT64_MAX >> 8) / d)
            return err_set(err, ERR_FORMAT, "shape: found more elements than can be addressed");
        count *= d;
    }
    tensor->count = (int64_t)count;
    return true;
}

static bool read_tensor(const struct json *entry, const unsigned char *data, size_t data_bytes,
                        struct safetensors_tensor *tensor, struct err *err) {
    int64_t at[2];
    int two;
    if (json_kind(entry) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "found %s, expected an object", json_kind_name(entry));
    if (!read_dtype(entry, &tensor->dtype, err) ||
        !read_list(entry, "shape", -1, tensor->shape, &tensor->rank, err) ||
        !read_list(entry, "data_offsets", 2, at, &two, err) || !count_elements(tensor, err))
        return false;
    if (at[0] > at[1] || (uint64_t)at[1] > data_bytes)
        return err_set(
            err, ERR_FORMAT,
            "data_offsets: found [%lld,%lld], expected a range within the %zu bytes of data "
            "(truncated file?)",
            (long long)at[0], (long long)at[1], data_bytes);
    tensor->size_bytes = (size_t)(at[1] - at[0]);
    tensor->data = data + at[0];
    if (tensor->size_bytes != (size_t)tensor->count * dtypes[tensor->dtype].bytes)
        return err_set(err, ERR_FORMAT, "found %zu bytes, expected %lld elements of %s",
                       tensor->size_bytes, (long long)tensor->count, dtypes[tensor->dtype].name);
    return true;
}

static int by_place(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->size_bytes > y->size_bytes) - (x->size_bytes < y->size_bytes);
}

static int by_name(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The tensors must tile the data: no overlap, no hole, no rest; and no name twice. */
static bool check_tiling(struct safetensors *file, const unsigned char *data, size_t data_bytes,
                         struct err *err) {
    const unsigned char *end = data;
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_place);
    for (int i = 0; i < file->count; i++) {
        const struct safetensors_tensor *t = &file->tensors[i];
        if (t->data != end)
            return err_set(err, ERR_FORMAT, "%.100s: found at offset %zu, expected %zu (%s)",
                           t->name, (size_t)((const unsigned char *)t->data - data),
                           (size_t)(end - data),
                           (const unsigned char *)t->data < end ? "overlap" : "hole");
        end += t->size_bytes;
    }
    if (end != data + data_bytes)
        return err_set(err, ERR_FORMAT, "data: found %zu bytes, expected %zu", data_bytes,
                       (size_t)(end - data));
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_name);
    for (int i = 1; i < file->count; i++)
        if (strcmp(file->tensors[i - 1].name, file->tensors[i].name) == 0)
            return err_set(err, ERR_FORMAT, "%.100s: found twice", file->tensors[i].name);
    return true;
}

static bool check_metadata(const struct json *metadata, struct err *err) {
    if (json_kind(metadata) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "__metadata__: found %s, expected an object",
                       json_kind_name(metadata));
    for (const struct json *m = json_first(metadata); m; m = json_next(m))
        if (json_kind(m) != JSON_STRING)
            return err_set(err, ERR_FORMAT, "__metadata__: %.60s: found %s, expected a string",
                           json_key(m), json_kind_name(m));
    return true;
}

static bool read_header(struct safetensors *file, struct err *err) {
    const unsigned char *bytes = file->map.data;
    size_t size = file->map.size_bytes;
    if (size < 8) return err_set(err, ERR_FORMAT, "found %zu bytes, expected a header", size);
    uint64_t len = load_u64(bytes);
    if (len > size - 8 || len > HEADER_MAX_BYTES)
        return err_set(err, ERR_FORMAT,
                       "header: found a length of %llu bytes, expected at most %zu (no safetensors "
                       "file, or truncated)",
                       (unsigned long long)len,
                       size - 8 < HEADER_MAX_BYTES ? size - 8 : (size_t)HEADER_MAX_BYTES);
    file->doc = json_parse((const char *)bytes + 8, (size_t)len, err);
    if (!file->doc) return err_context(err, "header");
    if (json_kind(file->doc) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "header: found %s, expected an object",
                       json_kind_name(file->doc));
    const unsigned char *data = bytes + 8 + len;
    size_t data_bytes = size - 8 - (size_t)len;
    int entries = json_count(file->doc);
    file->tensors = arena_alloc(&file->arena, (size_t)entries, sizeof *file->tensors);
    if (!file->tensors) return err_memory(err, "tensor list");
    for (const struct json *e = json_first(file->doc); e; e = json_next(e)) {
        if (strcmp(json_key(e), "__metadata__") == 0) {
            if (!check_metadata(e, err)) return false;
            file->metadata = e;
            continue;
        }
        struct safetensors_tensor *tensor = &file->tensors[file->count++];
        tensor->name = json_key(e);
        if (!read_tensor(e, data, data_bytes, tensor, err))
            return err_context(err, "%.200s", tensor->name);
    }
    return check_tiling(file, data, data_bytes, err);
}

struct safetensors *safetensors_open(const char *path, struct err *err) {
    struct safetensors *file = calloc(1, sizeof *file);
    if (!file || !(file->path = strdup(path))) {
        free(file);
        err_memory(err, path);
        return NULL;
    }
    arena_init(&file->arena, "safetensors header");
    if (!file_map(path, &file->map, err)) {
        safetensors_close(file);
        return NULL;
    }
    if (!read_header(file, err)) {
        err_context(err, "%s", path);
        safetensors_close(file);
        return NULL;
    }
    return file;
}

void safetensors_close(struct safetensors *file) {
    if (!file) return;
    json_free(file->doc);
    arena_free(&file->arena);
    file_unmap(&file->map);
    free(file->path);
    free(file);
}

const char *safetensors_path(const struct safetensors *file) { return file->path; }
int safetensors_count(const struct safetensors *file) { return file->count; }
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, int index) {
    return &file->tensors[index];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file,
                                                  const char *name) {
    struct safetensors_tensor key = {.name = name};
    if (!file->count) return NULL;
    return bsearch(&key, file->tensors, (size_t)file->count, sizeof key, by_name);
}

const char *safetensors_metadata(const struct safetensors *file, const char *key) {
    return json_text(json_member(file->metadata, key));
}

/* ---- writing */

struct safetensors_writer {
    struct file_output output;
    struct str tensors, notes; /* the two parts of the header, as JSON members */
    uint64_t declared_bytes, written_bytes;
    bool begun; /* header is out */
};

struct safetensors_writer *safetensors_create(const char *path, struct err *err) {
    struct safetensors_writer *writer = calloc(1, sizeof *writer);
    if (!writer) {
        err_memory(err, path);
        return NULL;
    }
    if (!file_begin(&writer->output, path, err)) {
        free(writer);
        return NULL;
    }
    return writer;
}

static bool still_declaring(const struct safetensors_writer *writer, struct err *err) {
    if (!writer->begun && !writer->tensors.failed && !writer->notes.failed) return true;
    return err_set(err, ERR_IO, "%s: header: cannot be extended any more", writer->output.path);
}

bool safetensors_declare(struct safetensors_writer *writer, const char *name,
                         enum safetensors_dtype dtype, int rank, const int64_t *shape,
                         struct err *err) {
    if (!still_declaring(writer, err)) return false;
    uint64_t bytes = dtypes[dtype].bytes;
    str_puts(&writer->tensors, writer->tensors.len ? "," : "");
    json_quote(&writer->tensors, name, strlen(name));
    str_printf(&writer->tensors, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[dtype].name);
    for (int i = 0; i < rank; i++) {
        str_printf(&writer->tensors, "%s%lld", i ? "," : "", (long long)shape[i]);
        bytes *= (uint64_t)shape[i];
    }
    str_printf(&writer->tensors, "],\"data_offsets\":[%llu,%llu]}",
               (unsigned long long)writer->declared_bytes,
               (unsigned long long)(writer->declared_bytes + bytes));
    writer->declared_bytes += bytes;
    return true;
}

bool safetensors_note(struct safetensors_writer *writer, const char *key, const char *text,
                      struct err *err) {
    if (!still_declaring(writer, err)) return false;
    str_puts(&writer->notes, writer->notes.len ? "," : "");
    json_quote(&writer->notes, key, strlen(key));
    str_puts(&writer->notes, ":");
    json_quote(&writer->notes, text, strlen(text));
    return true;
}

static bool put(struct safetensors_writer *writer, const void *bytes, size_t len, struct err *err) {
    if (fwrite(bytes, 1, len, writer->output.stream) == len) return true;
    return err_errno(err, writer->output.path, "cannot write");
}

static bool write_header(struct safetensors_writer *writer, struct err *err) {
    struct str header = {0};
    unsigned char length[8];
    str_puts(&header, "{");
    if (writer->notes.len)
        str_printf(&header, "\"__metadata__\":{%s}%s", writer->notes.data,
                   writer->tensors.len ? "," : "");
    str_puts(&header, str_text(&writer->tensors));
    str_puts(&header, "}");
    while (header.len % DATA_ALIGN && !header.failed) str_puts(&header, " ");
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header.len >> (8 * i));
    bool failed = header.failed || writer->notes.failed || writer->tensors.failed;
    bool ok = failed ? err_memory(err, "safetensors header")
                     : put(writer, length, 8, err) && put(writer, header.data, header.len, err);
    writer->begun = true;
    str_free(&header);
    return ok;
}

bool safetensors_write(struct safetensors_writer *writer, const void *bytes, size_t size_bytes,
                       struct err *err) {
    if (!writer->begun && !write_header(writer, err)) return false;
    writer->written_bytes += size_bytes;
    return put(writer, bytes, size_bytes, err);
}

static void writer_free(struct safetensors_writer *writer) {
    str_free(&writer->tensors);
    str_free(&writer->notes);
    free(writer);
}

bool safetensors_commit(struct safetensors_writer *writer, struct err *err) {
    bool ok = writer->begun || write_header(writer, err);
    if (ok && writer->written_bytes != writer->declared_bytes)
        ok = err_set(err, ERR_IO, "%s: data: found %llu bytes, expected %llu", writer->output.path,
                     (unsigned long long)writer->written_bytes,
                     (unsigned long long)writer->declared_bytes);
    if (ok)
        ok = file_commit(&writer->output, err);
    else
        file_abandon(&writer->output);
    writer_free(writer);
    return ok;
}

void safetensors_abandon(struct safetensors_writer *writer) {
    if (!writer) return;
    file_abandon(&writer->output);
    writer_free(writer);
}
