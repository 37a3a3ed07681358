/* hash_tables.c - tables of hash layers from a file */
#include "sim/hash_tables.h"

#include <stdlib.h>
#include <string.h>

#include "base/safetensors.h"
#include "base/str.h"

struct entry {
    int64_t layer;
    const struct safetensors_tensor *tensor;
    int32_t *expert; /* [ids,k] once somebody has asked for it */
};

struct hash_tables {
    struct safetensors *file;
    struct entry *entry; /* [count] */
    int count;
};

/* The N of "...layers.N...tid2eid"; -1 for other names. */
static int64_t layer_of(const char *name) {
    static const char before[] = "layers.", after[] = "tid2eid";
    size_t length = strlen(name), tail = sizeof after - 1;
    const char *at = strstr(name, before);
    char number[16];
    struct err ignored;
    int64_t layer;
    if (!at || length < tail || strcmp(name + length - tail, after) != 0) return -1;
    at += sizeof before - 1;
    size_t digits = strspn(at, "0123456789");
    if (digits == 0 || digits >= sizeof number || at[digits] != '.') return -1;
    memcpy(number, at, digits);
    number[digits] = '\0';
    return parse_int(number, "layer", 0, 1000000, &layer, &ignored) ? layer : -1;
}

void hash_tables_close(struct hash_tables *tables) {
    if (!tables) return;
    for (int i = 0; i < tables->count; i++) free(tables->entry[i].expert);
    free(tables->entry);
    safetensors_close(tables->file);
    free(tables);
}

static bool list_tables(struct hash_tables *tables, const char *path, struct err *err) {
    int all = safetensors_count(tables->file);
    tables->entry = calloc((size_t)all + 1, sizeof *tables->entry);
    if (!tables->entry) return err_memory(err, "hash tables");
    for (int i = 0; i < all; i++) {
        const struct safetensors_tensor *tensor = safetensors_at(tables->file, i);
        int64_t layer = layer_of(tensor->name);
        if (layer >= 0) tables->entry[tables->count++] = (struct entry){layer, tensor, NULL};
    }
    return tables->count > 0 ||
           err_set(err, ERR_DATA, "%s: found no tensor layers.N...tid2eid, expected hash tables",
                   path);
}

struct hash_tables *hash_tables_open(const char *path, struct err *err) {
    struct hash_tables *tables = calloc(1, sizeof *tables);
    if (!tables) {
        err_memory(err, path);
        return NULL;
    }
    tables->file = safetensors_open(path, err);
    if (tables->file && list_tables(tables, path, err)) return tables;
    hash_tables_close(tables);
    return NULL;
}

/* The i-th integer of a tensor; false when it holds no integers. */
static bool integer_at(const struct safetensors_tensor *tensor, int64_t i, int64_t *value) {
    const unsigned char *at = tensor->data;
    int64_t wide;
    int32_t narrow;
    uint16_t half;
    switch (tensor->dtype) {
    case ST_I64:
    case ST_U64:
        memcpy(&wide, at + 8 * i, 8);
        *value = wide;
        return true;
    case ST_I32:
    case ST_U32:
        memcpy(&narrow, at + 4 * i, 4);
        *value = narrow;
        return true;
    case ST_I16:
    case ST_U16:
        memcpy(&half, at + 2 * i, 2);
        *value = half;
        return true;
    case ST_U8:
        *value = at[i];
        return true;
    default:
        return false;
    }
}

static bool read_rows(const struct safetensors_tensor *tensor, int experts, int topk,
                      int32_t *expert, struct err *err) {
    for (int64_t i = 0; i < tensor->count; i++) {
        int64_t e = -1;
        bool fine = integer_at(tensor, i, &e) && e >= 0 && e < experts;
        for (int64_t j = i - i % topk; j < i && fine; j++) fine = expert[j] != e;
        if (!fine)
            return err_set(err, ERR_DATA,
                           "%s: token id %lld: found expert %lld, expected %d distinct ones below "
                           "%d",
                           tensor->name, (long long)(i / topk), (long long)e, topk, experts);
        expert[i] = (int32_t)e;
    }
    return true;
}

static bool read_table(struct entry *entry, int experts, int topk, struct err *err) {
    const struct safetensors_tensor *tensor = entry->tensor;
    int64_t ignored;
    if (tensor->rank != 2 || tensor->shape[1] != topk || tensor->shape[0] < 1 ||
        tensor->shape[0] > INT32_MAX)
        return err_set(err, ERR_DATA,
                       "%s: found %d dimensions of %lld and %lld, expected [ids, %d]", tensor->name,
                       tensor->rank, (long long)tensor->shape[0],
                       (long long)(tensor->rank > 1 ? tensor->shape[1] : 0), topk);
    if (!integer_at(tensor, 0, &ignored))
        return err_set(err, ERR_DATA, "%s: found %s, expected integers", tensor->name,
                       safetensors_dtype_name(tensor->dtype));
    if (entry->expert) return true;
    int32_t *expert = malloc((size_t)tensor->count * sizeof *expert);
    if (!expert) return err_memory(err, "hash table");
    if (read_rows(tensor, experts, topk, expert, err)) {
        entry->expert = expert;
        return true;
    }
    free(expert);
    return false;
}

bool hash_tables_find(const struct hash_tables *tables, int layer, int experts, int topk,
                      struct route_table *table, struct err *err) {
    const char *path = safetensors_path(tables->file);
    for (int i = 0; i < tables->count; i++) {
        struct entry *entry = &tables->entry[i];
        if (entry->layer != layer) continue;
        if (!read_table(entry, experts, topk, err)) return err_context(err, "%s", path);
        *table = (struct route_table){(int32_t)entry->tensor->shape[0], entry->expert};
        return true;
    }
    return err_set(err, ERR_DATA, "%s: found no table of layer %d, expected layers.%d...tid2eid",
                   path, layer, layer);
}
