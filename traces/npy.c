/* npy.c - NumPy arrays in memory: the .npy format, checked */
#include "traces/npy.h"

#include <stdlib.h>
#include <string.h>

#include "base/half.h"

/* Value of a key in the header's dictionary text; NULL when absent. */
static const char *value_of(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (!at) return NULL;
    at += strlen(key);
    at += strspn(at, "'\" ");
    if (*at != ':') return NULL;
    return at + 1 + strspn(at + 1, " ");
}

static bool read_shape(const char *text, struct npy *array, struct err *err) {
    uint64_t count = 1;
    if (*text++ != '(') return err_set(err, ERR_FORMAT, "npy: found no shape");
    while (*(text += strspn(text, " ,")) != ')') {
        char *end;
        long long n = strtoll(text, &end, 10);
        if (end == text || n < 0 || array->rank == NPY_MAX_RANK ||
            (n && count > (UINT64_C(1) << 48) / (uint64_t)n))
            return err_set(err, ERR_FORMAT, "npy: found a shape that cannot be");
        array->shape[array->rank++] = n;
        count *= (uint64_t)n;
        text = end;
    }
    array->count = (int64_t)count;
    return true;
}

static bool read_type(const char *text, struct npy *array, struct err *err) {
    bool quoted = *text == '\'' || *text == '"';
    char order = quoted ? text[1] : 0;
    if (order) array->kind = text[2];
    if (order && array->kind) array->item_bytes = atoi(text + 3);
    int size = array->item_bytes;
    bool sizes = (size == 1 && array->kind != 'f') || size == 2 || size == 4 || size == 8;
    if (strchr("<|=", order ? order : '?') && array->kind && strchr("fiu", array->kind) && sizes)
        return true;
    return err_set(err, ERR_UNSUPPORTED,
                   "npy: found type %.8s, expected little-endian integers or reals", text);
}

bool npy_parse(const unsigned char *bytes, size_t len, struct npy *array, struct err *err) {
    char header[4096];
    *array = (struct npy){0};
    if (len < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        return err_set(err, ERR_FORMAT, "npy: found no NumPy array");
    bool wide = bytes[6] >= 2;
    size_t begin = wide ? 12 : 10, n = bytes[8] | (size_t)bytes[9] << 8;
    if (wide) n |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (n >= sizeof header || n > len - begin)
        return err_set(err, ERR_FORMAT, "npy: found a header of %zu bytes (truncated?)", n);
    memcpy(header, bytes + begin, n);
    header[n] = '\0';
    const char *type = value_of(header, "descr"), *shape = value_of(header, "shape");
    const char *fortran = value_of(header, "fortran_order");
    if (!type || !shape || !fortran) return err_set(err, ERR_FORMAT, "npy: found a damaged header");
    if (!read_type(type, array, err) || !read_shape(shape, array, err)) return false;
    if (strncmp(fortran, "True", 4) == 0 && array->rank > 1)
        return err_set(err, ERR_UNSUPPORTED, "npy: found Fortran order, expected C order");
    array->data = bytes + begin + n;
    uint64_t expected = (uint64_t)array->count * (uint64_t)array->item_bytes;
    if (expected != len - begin - n)
        return err_set(err, ERR_FORMAT, "npy: found %zu bytes of data, expected %llu",
                       len - begin - n, (unsigned long long)expected);
    return true;
}

bool npy_bare(const char *dtype, int rank, const int64_t *shape, const unsigned char *bytes,
              size_t len, struct npy *array, struct err *err) {
    static const struct {
        const char *name;
        char kind;
        int bytes;
    } types[] = {{"uint8", 'u', 1}, {"uint16", 'u', 2}, {"int16", 'i', 2}, {"int8", 'i', 1},
                 {"int32", 'i', 4}, {"uint32", 'u', 4}, {"int64", 'i', 8}};
    *array = (struct npy){.rank = rank, .count = 1, .data = bytes};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, dtype) == 0) {
            array->kind = types[i].kind;
            array->item_bytes = types[i].bytes;
        }
    if (!array->kind || rank > NPY_MAX_RANK)
        return err_set(err, ERR_UNSUPPORTED, "array: found type %.20s, expected integers", dtype);
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || (shape[i] && array->count > (INT64_C(1) << 48) / shape[i]))
            return err_set(err, ERR_FORMAT, "array: found a shape that cannot be");
        array->shape[i] = shape[i];
        array->count *= shape[i];
    }
    if ((uint64_t)array->count * (uint64_t)array->item_bytes == len) return true;
    return err_set(err, ERR_FORMAT, "array: found %zu bytes of data, expected %lld", len,
                   (long long)array->count * array->item_bytes);
}

/* Element i of 8 bytes at most, little-endian; -1 when it does not fit into i32. */
static int32_t integer_at(const struct npy *array, int64_t i) {
    const unsigned char *at = array->data + i * array->item_bytes;
    uint64_t value = 0;
    for (int b = array->item_bytes - 1; b >= 0; b--) value = value << 8 | at[b];
    int unused = 64 - 8 * array->item_bytes;
    int64_t whole = array->kind == 'i' ? (int64_t)(value << unused) >> unused
                                       : (int64_t)(value > INT32_MAX ? UINT64_MAX : value);
    return whole >= 0 && whole <= INT32_MAX ? (int32_t)whole : -1;
}

/* Loops that a compiler makes vectors of: the narrow types are what gigabytes come in. */
static void widen(const struct npy *array, int64_t first, int64_t n, int32_t *out) {
    const unsigned char *at = array->data + first * array->item_bytes;
    if (array->kind == 'u' && array->item_bytes == 1) {
        for (int64_t i = 0; i < n; i++) out[i] = at[i];
    } else if (array->kind == 'u' && array->item_bytes == 2) {
        for (int64_t i = 0; i < n; i++) out[i] = at[2 * i] | at[2 * i + 1] << 8;
    } else if (array->kind == 'i' && array->item_bytes == 4) {
        memcpy(out, at, (size_t)n * 4);
        for (int64_t i = 0; i < n; i++) out[i] = out[i] < 0 ? -1 : out[i];
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = integer_at(array, first + i);
    }
}

void npy_ids(const struct npy *array, int64_t first, int64_t n, int32_t *out) {
    widen(array, first, n, out);
}

void npy_choices(const struct npy *array, int64_t row, int64_t rows, int k, int32_t *out) {
    widen(array, row * k, rows * k, out);
    if (array->kind != 'u' || array->item_bytes > 2) return;
    int32_t most = array->item_bytes == 1 ? UINT8_MAX : UINT16_MAX;
    for (int64_t r = 0; r < rows; r++) {
        int32_t *chosen = out + r * k;
        int padding = 0;
        while (padding < k && chosen[padding] == most) padding++;
        for (int j = 0; padding == k && j < k; j++) chosen[j] = -1;
    }
}

static void gather_u8(const unsigned char *at, size_t step, int64_t rows, int k, int32_t *out) {
    for (int64_t r = 0; r < rows; r++, at += step, out += k)
        for (int j = 0; j < k; j++) out[j] = at[j];
}

static void gather_u16(const unsigned char *at, size_t step, int64_t rows, int k, int32_t *out) {
    for (int64_t r = 0; r < rows; r++, at += step, out += k)
        for (int j = 0; j < k; j++) out[j] = at[2 * j] | at[2 * j + 1] << 8;
}

/* Eight at a time, whose size the compiler knows: a row is rarely longer. */
static void gather_i32(const unsigned char *at, size_t step, int64_t rows, int k, int32_t *out) {
    for (int64_t r = 0; r < rows; r++, at += step, out += k) {
        int j = 0;
        for (; j + 8 <= k; j += 8) memcpy(out + j, at + 4 * j, 32);
        for (; j < k; j++) memcpy(out + j, at + 4 * j, 4);
    }
}

void npy_gather(const struct npy *array, int64_t row, int64_t stride, int64_t rows, int k,
                int32_t *out) {
    size_t bytes = (size_t)k * (size_t)array->item_bytes, step = (size_t)stride * bytes;
    const unsigned char *at = array->data + (size_t)row * bytes;
    if (array->kind == 'u' && array->item_bytes == 1)
        gather_u8(at, step, rows, k, out);
    else if (array->kind == 'u' && array->item_bytes == 2)
        gather_u16(at, step, rows, k, out);
    else if (array->kind == 'i' && array->item_bytes == 4)
        gather_i32(at, step, rows, k, out);
    else
        for (int64_t r = 0; r < rows; r++) widen(array, (row + r * stride) * k, k, out + r * k);
}

void npy_reals(const struct npy *array, int64_t first, int64_t n, float *out) {
    const unsigned char *at = array->data + first * array->item_bytes;
    if (array->item_bytes == 4) {
        memcpy(out, at, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = half_float(at + 2 * i, false);
}
