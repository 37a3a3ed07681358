/* tensors.c - the named arrays of a checkpoint: set, look-up, decoding of elements */
#include "engine/tensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

static const int type_bytes[] = {
#define X(e, bytes) bytes,
    TENSOR_TYPES(X)
#undef X
};

bool tensors_start(struct tensors *set, const char *path, struct err *err) {
    memset(set, 0, sizeof *set);
    arena_init(&set->arena, "tensors");
    set->scale_rows = set->scale_columns = 128;
    set->path = arena_text(&set->arena, path, strlen(path));
    return set->path || err_memory(err, "path of a checkpoint");
}

bool tensors_own(struct tensors *set, void *handle, void (*close)(void *), struct err *err) {
    struct tensors_file *files = realloc(set->files, (size_t)(set->file_count + 1) * sizeof *files);
    if (!files) {
        close(handle);
        return err_memory(err, "list of files");
    }
    set->files = files;
    files[set->file_count++] = (struct tensors_file){handle, close};
    return true;
}

bool tensor_is_real(enum tensor_type type) {
    return type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16 || type == TENSOR_F64 ||
           type == TENSOR_F8_E4M3 || type == TENSOR_BLOCKS;
}

bool tensors_add(struct tensors *set, const struct tensor *tensor, struct err *err) {
    if (set->count == set->capacity) {
        int64_t capacity = set->capacity ? 2 * set->capacity : 64;
        struct tensor *items = realloc(set->items, (size_t)capacity * sizeof *items);
        if (!items) return err_memory(err, "table of tensors");
        set->items = items;
        set->capacity = capacity;
    }
    char *name = arena_text(&set->arena, tensor->name, strlen(tensor->name));
    if (!name) return err_memory(err, "name of a tensor");
    set->items[set->count] = *tensor;
    set->items[set->count++].name = name;
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

bool tensors_seal(struct tensors *set, struct err *err) {
    if (set->count == 0) return true;
    qsort(set->items, (size_t)set->count, sizeof *set->items, by_name);
    for (int64_t i = 1; i < set->count; i++) {
        const struct tensor *a = &set->items[i - 1], *b = &set->items[i];
        if (strcmp(a->name, b->name) == 0)
            return err_set(err, ERR_FORMAT, "%s: %s: found twice (also in %s), expected once",
                           b->file, b->name, a->file);
    }
    return true;
}

struct tensor *tensors_find(const struct tensors *set, const char *name) {
    if (set->count == 0) return NULL;
    struct tensor key = {.name = name};
    return bsearch(&key, set->items, (size_t)set->count, sizeof key, by_name);
}

void tensor_shape_text(int rank, const int64_t *shape, char text[static TENSOR_SHAPE_TEXT]) {
    int at = snprintf(text, TENSOR_SHAPE_TEXT, "[");
    for (int i = 0; i < rank && at < TENSOR_SHAPE_TEXT; i++)
        at += snprintf(text + at, (size_t)(TENSOR_SHAPE_TEXT - at), "%s%lld", i ? ", " : "",
                       (long long)shape[i]);
    if (at < TENSOR_SHAPE_TEXT) snprintf(text + at, (size_t)(TENSOR_SHAPE_TEXT - at), "]");
}

/* OCP FP8 E4M3 ("fn"): bias 7, no infinities, 0x7f and 0xff are NaN. */
static float from_e4m3(uint8_t v) {
    int exponent = (v >> 3) & 15, mantissa = v & 7;
    if ((v & 0x7f) == 0x7f) return NAN;
    float value =
        exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return v & 0x80 ? -value : value;
}

void tensor_read(const struct tensor *tensor, int64_t first, int64_t count, float *out) {
    const unsigned char *from = tensor->data + first * type_bytes[tensor->type];
    double real;
    switch (tensor->type) {
    case TENSOR_F32:
        memcpy(out, from, (size_t)count * sizeof *out);
        break;
    case TENSOR_BF16:
    case TENSOR_F16:
        for (int64_t i = 0; i < count; i++)
            out[i] = half_float(from + 2 * i, tensor->type == TENSOR_BF16);
        break;
    case TENSOR_F8_E4M3:
        for (int64_t i = 0; i < count; i++) out[i] = from_e4m3(from[i]);
        break;
    case TENSOR_BLOCKS:
        quant_read(tensor->quant, tensor->data, first, count, out);
        break;
    case TENSOR_F64:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&real, from + 8 * i, sizeof real);
            out[i] = (float)real;
        }
        break;
    default:
        for (int64_t i = 0; i < count; i++) out[i] = NAN;
    }
}

void tensors_close(struct tensors *set) {
    for (int i = 0; i < set->file_count; i++) set->files[i].close(set->files[i].handle);
    free(set->files);
    free(set->items);
    if (set->arena.name) arena_free(&set->arena);
    memset(set, 0, sizeof *set);
}
