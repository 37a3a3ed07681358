/* gguf.c - reading GGUF files: see gguf.h */
#include "base/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/str.h"

struct key {
    const char *name; /* NUL-terminated, in the arena */
    struct gguf_value value;
};

struct gguf {
    char *path;
    struct file_map map;
    bool mapped; /* the bytes are ours to unmap */
    struct arena arena;
    struct key *keys; /* owned, by name */
    size_t key_count;
    struct gguf_tensor *tensors; /* owned, by name */
    size_t tensor_count;
};

static const struct type_row {
    uint32_t number;
    const char *name;
    int64_t values, bytes;
} types[] = {
#define X(e, number, name, values, bytes) {number, name, values, bytes},
    GGUF_TENSOR_TYPES(X)
#undef X
};

static const struct type_row *type_row(uint32_t number) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].number == number) return &types[i];
    return NULL;
}

const char *gguf_type_name(enum gguf_tensor_type type) {
    const struct type_row *row = type_row((uint32_t)type);
    return row ? row->name : "unknown";
}

/* Bytes of one element of each kind; 0 for texts and arrays. */
static const size_t kind_bytes[GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* ---- the cursor: every read is checked against what is left */

struct cursor {
    struct gguf *file;
    size_t at;
    struct err *err;
};

static bool damaged(struct cursor *in, const char *what, const char *name, uint64_t found,
                    const char *expected) {
    return err_set(in->err, ERR_FORMAT, "%s: %s%.80s: found %llu, expected %s", in->file->path,
                   what, name, (unsigned long long)found, expected);
}

static size_t left(const struct cursor *in) { return in->file->map.size_bytes - in->at; }

static uint64_t number_at(const unsigned char *data, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;) value = value << 8 | data[i];
    return value;
}

static bool read_number(struct cursor *in, size_t bytes, uint64_t *out) {
    *out = 0;
    if (left(in) < bytes)
        return err_set(in->err, ERR_FORMAT, "%s: found its end at byte %zu, expected %zu more",
                       in->file->path, in->file->map.size_bytes, bytes - left(in));
    *out = number_at(in->file->map.data + in->at, bytes);
    in->at += bytes;
    return true;
}

static bool read_text(struct cursor *in, const char *what, struct gguf_text *text) {
    uint64_t len;
    if (!read_number(in, 8, &len)) return false;
    if (len > left(in)) return damaged(in, what, ": length", len, "no more than the file has");
    *text = (struct gguf_text){(const char *)in->file->map.data + in->at, (size_t)len};
    in->at += (size_t)len;
    return true;
}

/* A name without NULs, as a C string. */
static bool read_name(struct cursor *in, const char *what, const char **name) {
    struct gguf_text text = {0};
    if (!read_text(in, what, &text)) return false;
    if (text.len > 65535 || (text.len && memchr(text.data, 0, text.len)))
        return damaged(in, what, "", text.len, "a name of at most 65535 bytes without NUL");
    *name = arena_text(&in->file->arena, text.len ? text.data : "", text.len);
    return *name || err_memory(in->err, in->file->path);
}

/* ---- keys */

static bool read_texts(struct cursor *in, const char *name, struct gguf_value *value) {
    if ((uint64_t)value->count > left(in) / 8)
        return damaged(in, name, ": length", (uint64_t)value->count, "no more than the file has");
    struct gguf_text *texts = arena_alloc(&in->file->arena, (size_t)value->count, sizeof *texts);
    if (!texts) return err_memory(in->err, name);
    for (int64_t i = 0; i < value->count; i++)
        if (!read_text(in, name, &texts[i])) return false;
    value->texts = texts;
    if (value->array) return true;
    texts->data = arena_text(&in->file->arena, texts->data, texts->len); /* for gguf_get_text */
    return texts->data || err_memory(in->err, name);
}

static bool read_value(struct cursor *in, const char *name, struct gguf_value *value) {
    uint64_t kind, count = 1;
    if (!read_number(in, 4, &kind)) return false;
    value->array = kind == GGUF_ARRAY;
    if (value->array && (!read_number(in, 4, &kind) || !read_number(in, 8, &count))) return false;
    if (kind >= GGUF_KINDS || kind == GGUF_ARRAY)
        return damaged(in, name, ": type", kind, "a type of 0..12, arrays not nested");
    value->kind = (enum gguf_kind)kind;
    value->count = count > INT64_MAX ? INT64_MAX : (int64_t)count;
    if (kind == GGUF_TEXT) return read_texts(in, name, value);
    size_t bytes = kind_bytes[kind];
    if (count > left(in) / bytes)
        return damaged(in, name, ": length", count, "no more than the file has");
    value->data = in->file->map.data + in->at;
    in->at += (size_t)count * bytes;
    return true;
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const struct key *)a)->name, ((const struct key *)b)->name);
}

static bool read_keys(struct cursor *in, uint64_t count) {
    struct gguf *file = in->file;
    enum { LEAST = 13 }; /* bytes of the shortest key */
    if (count > left(in) / LEAST)
        return damaged(in, "keys", "", count, "no more than the file has");
    file->keys = calloc((size_t)count + 1, sizeof *file->keys);
    if (!file->keys) return err_memory(in->err, file->path);
    for (uint64_t i = 0; i < count; i++) {
        struct key *key = &file->keys[i];
        if (!read_name(in, "key", &key->name) || !read_value(in, key->name, &key->value))
            return false;
        file->key_count++;
    }
    qsort(file->keys, file->key_count, sizeof *file->keys, by_key);
    for (size_t i = 1; i < file->key_count; i++)
        if (!strcmp(file->keys[i].name, file->keys[i - 1].name))
            return err_set(in->err, ERR_FORMAT, "%s: key %.80s: found twice", file->path,
                           file->keys[i].name);
    return true;
}

/* ---- tensors */

static bool read_shape(struct cursor *in, struct gguf_tensor *t) {
    uint64_t rank, size;
    if (!read_number(in, 4, &rank)) return false;
    if (rank > GGUF_MAX_RANK) return damaged(in, t->name, ": dimensions", rank, "0..4");
    t->rank = (int)rank, t->count = 1;
    for (int i = 0; i < GGUF_MAX_RANK; i++) t->size[i] = 1;
    for (int i = 0; i < t->rank; i++) {
        if (!read_number(in, 8, &size)) return false;
        if (size > INT64_MAX || (size && t->count > INT64_MAX / (int64_t)size))
            return damaged(in, t->name, ": size", size, "a product below 2^63");
        t->size[i] = (int64_t)size;
        t->count *= (int64_t)size;
    }
    return true;
}

static bool read_type(struct cursor *in, struct gguf_tensor *t) {
    uint64_t number;
    if (!read_number(in, 4, &number)) return false;
    const struct type_row *row = type_row((uint32_t)number);
    if (!row) {
        struct str known = {0};
        for (size_t i = 0; i < sizeof types / sizeof *types; i++)
            str_printf(&known, "%s%s", i ? " " : "", types[i].name);
        err_set(in->err, ERR_UNSUPPORTED, "%s: %.80s: found tensor type %llu, expected one of %s",
                in->file->path, t->name, (unsigned long long)number, str_text(&known));
        str_free(&known);
        return false;
    }
    t->type = (enum gguf_tensor_type)number;
    if (t->size[0] % row->values)
        return damaged(in, t->name, ": row length", (uint64_t)t->size[0], "whole blocks");
    if (t->count / row->values > INT64_MAX / row->bytes)
        return damaged(in, t->name, ": elements", (uint64_t)t->count, "fewer");
    t->size_bytes = (size_t)(t->count / row->values * row->bytes);
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static int by_data(const void *a, const void *b) {
    const struct gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->data > (*y)->data) - ((*x)->data < (*y)->data);
}

/* No two tensors share a name or a byte. Tensors without elements share nothing. */
static bool check_tensors(struct cursor *in) {
    struct gguf *file = in->file;
    qsort(file->tensors, file->tensor_count, sizeof *file->tensors, by_name);
    const struct gguf_tensor **order = malloc((file->tensor_count + 1) * sizeof *order);
    if (!order) return err_memory(in->err, file->path);
    for (size_t i = 0; i < file->tensor_count; i++) order[i] = &file->tensors[i];
    bool ok = true;
    for (size_t i = 1; ok && i < file->tensor_count; i++)
        if (!strcmp(order[i]->name, order[i - 1]->name))
            ok = err_set(in->err, ERR_FORMAT, "%s: tensor %.80s: found twice", file->path,
                         order[i]->name);
    qsort(order, file->tensor_count, sizeof *order, by_data);
    for (size_t i = 1; ok && i < file->tensor_count; i++)
        if ((const char *)order[i - 1]->data + order[i - 1]->size_bytes >
            (const char *)order[i]->data)
            ok = err_set(in->err, ERR_FORMAT, "%s: tensors %.80s and %.80s overlap", file->path,
                         order[i - 1]->name, order[i]->name);
    free(order);
    return ok;
}

static bool place_tensors(struct cursor *in, const uint64_t *offsets) {
    struct gguf *file = in->file;
    int64_t alignment;
    if (!gguf_get_int(file, "general.alignment", 1, 1 << 20, 32, &alignment, in->err)) return false;
    size_t align = (size_t)alignment;
    if (align & (align - 1)) return damaged(in, "general.alignment", "", align, "a power of two");
    size_t begin = (in->at + align - 1) & ~(align - 1);
    size_t room = begin < file->map.size_bytes ? file->map.size_bytes - begin : 0;
    for (size_t i = 0; i < file->tensor_count; i++) {
        struct gguf_tensor *t = &file->tensors[i];
        if (offsets[i] & (align - 1))
            return damaged(in, t->name, ": offset", offsets[i], "a multiple of the alignment");
        if (offsets[i] > room || t->size_bytes > room - offsets[i])
            return err_set(in->err, ERR_FORMAT,
                           "%s: %.80s: found %zu bytes at offset %llu, expected "
                           "them within the %zu bytes of data",
                           file->path, t->name, t->size_bytes, (unsigned long long)offsets[i],
                           room);
        t->data = file->map.data + (room ? begin + offsets[i] : 0);
    }
    return check_tensors(in);
}

static bool read_tensors(struct cursor *in, uint64_t count) {
    struct gguf *file = in->file;
    enum { LEAST = 24 }; /* bytes of the shortest entry */
    if (count > left(in) / LEAST)
        return damaged(in, "tensors", "", count, "no more than the file has");
    file->tensors = calloc((size_t)count + 1, sizeof *file->tensors);
    uint64_t *offsets = calloc((size_t)count + 1, sizeof *offsets);
    bool ok = (file->tensors && offsets) || err_memory(in->err, file->path);
    for (uint64_t i = 0; ok && i < count; i++) {
        struct gguf_tensor *t = &file->tensors[i];
        ok = read_name(in, "tensor", &t->name) && read_shape(in, t) && read_type(in, t) &&
             read_number(in, 8, &offsets[i]);
        file->tensor_count += ok;
    }
    ok = ok && place_tensors(in, offsets);
    free(offsets);
    return ok;
}

/* ---- the file */

static bool read_file(struct gguf *file, struct err *err) {
    struct cursor in = {file, 0, err};
    uint64_t version, tensors, keys;
    if (file->map.size_bytes < 24 || memcmp(file->map.data, "GGUF", 4))
        return err_set(err, ERR_FORMAT, "%s: found no GGUF header, expected one", file->path);
    in.at = 4;
    if (!read_number(&in, 4, &version)) return false;
    if (version != 2 && version != 3) return damaged(&in, "version", "", version, "2 or 3");
    return read_number(&in, 8, &tensors) && read_number(&in, 8, &keys) && read_keys(&in, keys) &&
           read_tensors(&in, tensors);
}

bool gguf_is(const char *path) {
    char magic[4] = "";
    FILE *stream = file_is_folder(path) ? NULL : fopen(path, "rb");
    if (!stream) return false;
    bool is = fread(magic, 1, 4, stream) == 4 && !memcmp(magic, "GGUF", 4);
    fclose(stream);
    return is;
}

static struct gguf *create(const char *name, struct err *err) {
    struct gguf *file = calloc(1, sizeof *file);
    if (file) file->path = strdup(name);
    if (file && file->path) {
        arena_init(&file->arena, "gguf");
        return file;
    }
    err_memory(err, name);
    free(file);
    return NULL;
}

struct gguf *gguf_read(const void *bytes, size_t len, const char *name, struct err *err) {
    struct gguf *file = create(name, err);
    if (!file) return NULL;
    file->map = (struct file_map){.data = bytes, .size_bytes = len};
    if (read_file(file, err)) return file;
    gguf_close(file);
    return NULL;
}

struct gguf *gguf_open(const char *path, struct err *err) {
    struct gguf *file = create(path, err);
    if (!file) return NULL;
    file->mapped = file_map(path, &file->map, err);
    if (file->mapped && read_file(file, err)) return file;
    gguf_close(file);
    return NULL;
}

void gguf_close(struct gguf *file) {
    if (!file) return;
    if (file->mapped) file_unmap(&file->map);
    arena_free(&file->arena);
    free(file->keys);
    free(file->tensors);
    free(file->path);
    free(file);
}

const char *gguf_path(const struct gguf *file) { return file->path; }

const struct gguf_value *gguf_find(const struct gguf *file, const char *key) {
    struct key wanted = {.name = key};
    const struct key *found = bsearch(&wanted, file->keys, file->key_count, sizeof wanted, by_key);
    return found ? &found->value : NULL;
}

/* ---- values */

double gguf_real(const struct gguf_value *value, int64_t i) {
    const unsigned char *data = value->data + (size_t)i * kind_bytes[value->kind];
    float single;
    double real;
    switch (value->kind) {
    case GGUF_F32:
        memcpy(&single, data, sizeof single);
        return single;
    case GGUF_F64:
        memcpy(&real, data, sizeof real);
        return real;
    case GGUF_U64:
        return (double)number_at(data, 8);
    default:
        return (double)gguf_int(value, i);
    }
}

int64_t gguf_int(const struct gguf_value *value, int64_t i) {
    size_t bytes = kind_bytes[value->kind];
    if (value->kind == GGUF_F32 || value->kind == GGUF_F64) {
        double real = gguf_real(value, i);
        return fabs(real) < 9e18 ? (int64_t)real : 0;
    }
    uint64_t number = number_at(value->data + (size_t)i * bytes, bytes);
    switch (value->kind) {
    case GGUF_I8:
        return (int8_t)number;
    case GGUF_I16:
        return (int16_t)number;
    case GGUF_I32:
        return (int32_t)number;
    case GGUF_U64:
        return number > INT64_MAX ? INT64_MAX : (int64_t)number;
    default:
        return (int64_t)number;
    }
}

static bool wrong_kind(const struct gguf *file, const char *key, const struct gguf_value *value,
                       const char *expected, struct err *err) {
    return err_set(err, ERR_FORMAT, "%s: %s: found %s of type %d, expected %s", file->path, key,
                   value->array ? "an array" : "a value", (int)value->kind, expected);
}

static bool is_real(const struct gguf_value *value) {
    return value->kind == GGUF_F32 || value->kind == GGUF_F64;
}

bool gguf_get_int(const struct gguf *file, const char *key, int64_t min, int64_t max,
                  int64_t otherwise, int64_t *out, struct err *err) {
    const struct gguf_value *value = gguf_find(file, key);
    *out = otherwise;
    if (!value) return true;
    if (value->array || value->kind == GGUF_TEXT || value->kind == GGUF_BOOL || is_real(value))
        return wrong_kind(file, key, value, "an integer", err);
    *out = gguf_int(value, 0);
    if (*out >= min && *out <= max) return true;
    return err_set(err, ERR_FORMAT, "%s: %s: found %lld, expected %lld..%lld", file->path, key,
                   (long long)*out, (long long)min, (long long)max);
}

bool gguf_get_real(const struct gguf *file, const char *key, double otherwise, double *out,
                   struct err *err) {
    const struct gguf_value *value = gguf_find(file, key);
    *out = otherwise;
    if (!value) return true;
    if (value->array || value->kind == GGUF_TEXT || value->kind == GGUF_BOOL)
        return wrong_kind(file, key, value, "a number", err);
    *out = gguf_real(value, 0);
    return true;
}

bool gguf_get_bool(const struct gguf *file, const char *key, bool otherwise, bool *out,
                   struct err *err) {
    const struct gguf_value *value = gguf_find(file, key);
    *out = otherwise;
    if (!value) return true;
    if (value->array || value->kind != GGUF_BOOL)
        return wrong_kind(file, key, value, "a boolean", err);
    *out = gguf_int(value, 0) != 0;
    return true;
}

bool gguf_get_text(const struct gguf *file, const char *key, const char *otherwise,
                   const char **out, struct err *err) {
    const struct gguf_value *value = gguf_find(file, key);
    *out = otherwise;
    if (!value) return true;
    if (value->array || value->kind != GGUF_TEXT)
        return wrong_kind(file, key, value, "a text", err);
    struct gguf_text text = value->texts[0];
    if (text.len && memchr(text.data, 0, text.len))
        return err_set(err, ERR_FORMAT, "%s: %s: found a NUL in it, expected text", file->path,
                       key);
    *out = text.data;
    return true;
}

/* ---- tensors, for the caller */

int gguf_tensor_count(const struct gguf *file) { return (int)file->tensor_count; }

const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, int index) {
    return &file->tensors[index];
}

const struct gguf_tensor *gguf_tensor(const struct gguf *file, const char *name) {
    struct gguf_tensor wanted = {.name = name};
    return bsearch(&wanted, file->tensors, file->tensor_count, sizeof wanted, by_name);
}
