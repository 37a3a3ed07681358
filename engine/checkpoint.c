/* checkpoint.c - a folder of safetensors files as one set of tensors */
#include "engine/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "base/str.h"

static const size_t INDEX_MAX_BYTES = (size_t)256 << 20;

static const enum tensor_type types[] = {
    [ST_F32] = TENSOR_F32,       [ST_F16] = TENSOR_F16,         [ST_BF16] = TENSOR_BF16,
    [ST_F64] = TENSOR_F64,       [ST_F8_E4M3] = TENSOR_F8_E4M3, [ST_U8] = TENSOR_U8,
    [ST_F8_E5M2] = TENSOR_OTHER, [ST_F8_E8M0] = TENSOR_OTHER,   [ST_I64] = TENSOR_OTHER,
    [ST_I32] = TENSOR_OTHER,     [ST_I16] = TENSOR_OTHER,       [ST_I8] = TENSOR_OTHER,
    [ST_U64] = TENSOR_OTHER,     [ST_U32] = TENSOR_OTHER,       [ST_U16] = TENSOR_OTHER,
    [ST_BOOL] = TENSOR_OTHER,
};

static void close_file(void *handle) { safetensors_close(handle); }

/* Opens one file and takes its tensors into the set, which owns the file from then on. */
static bool add_file(struct tensors *set, const char *path, struct err *err) {
    struct safetensors *file = safetensors_open(path, err);
    if (!file || !tensors_own(set, file, close_file, err)) return false;
    for (int i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_tensor *found = safetensors_at(file, i);
        struct tensor tensor = {.name = found->name,
                                .file = safetensors_path(file),
                                .type = types[found->dtype],
                                .type_name = safetensors_dtype_name(found->dtype),
                                .rank = found->rank,
                                .elements = found->count,
                                .data = found->data,
                                .bytes = (int64_t)found->size_bytes};
        memcpy(tensor.shape, found->shape, sizeof found->shape);
        if (!tensors_add(set, &tensor, err)) return false;
    }
    return true;
}

/* The shard that an entry of the index names: a plain file name, NULL with err set otherwise. */
static const char *shard_name(const char *path, const struct json *entry, struct err *err) {
    const char *shard = json_text(entry);
    if (shard && *shard && !strchr(shard, '/') && strcmp(shard, "..") != 0) return shard;
    err_set(err, ERR_FORMAT, "%s: %s: found %.80s, expected the name of a shard beside the index",
            path, json_key(entry), shard ? shard : json_kind_name(entry));
    return NULL;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Opens each shard once. */
static bool add_shards(const char *folder, const char *path, const struct json *map,
                       struct tensors *set, struct err *err) {
    size_t count = 0;
    bool ok = true;
    struct str shard = {0};
    const char **names = calloc((size_t)json_count(map) + 1, sizeof *names);
    if (!names) return err_memory(err, "list of shards");
    for (const struct json *e = json_first(map); e && ok; e = json_next(e))
        ok = (names[count++] = shard_name(path, e, err)) != NULL;
    if (ok && count) qsort(names, count, sizeof *names, by_text);
    for (size_t i = 0; i < count && ok; i++) {
        if (i && strcmp(names[i], names[i - 1]) == 0) continue;
        str_clear(&shard);
        file_join(&shard, folder, names[i]);
        ok = add_file(set, str_text(&shard), err);
    }
    str_free(&shard);
    free(names);
    return ok;
}

/* Every tensor of the index must lie in the shard that the index says. */
static bool check_places(const char *path, const struct json *map, const struct tensors *set,
                         struct err *err) {
    for (const struct json *e = json_first(map); e; e = json_next(e)) {
        const struct tensor *tensor = tensors_find(set, json_key(e));
        if (!tensor)
            return err_set(err, ERR_FORMAT, "%s: %s: found in no shard, expected in %s", path,
                           json_key(e), json_text(e));
        if (strcmp(file_name(tensor->file), json_text(e)) != 0)
            return err_set(err, ERR_FORMAT, "%s: %s: found in %s, expected in %s", path,
                           json_key(e), file_name(tensor->file), json_text(e));
    }
    return true;
}

static bool open_index(const char *folder, const char *path, struct tensors *set, struct err *err) {
    struct json *index = json_read(path, INDEX_MAX_BYTES, err);
    if (!index) return false;
    const struct json *map = json_member(index, "weight_map");
    bool ok = map && json_kind(map) == JSON_OBJECT;
    if (!ok) err_set(err, ERR_FORMAT, "%s: weight_map: expected an object of shard names", path);
    ok = ok && add_shards(folder, path, map, set, err) && tensors_seal(set, err) &&
         check_places(path, map, set, err);
    json_free(index);
    return ok;
}

bool checkpoint_open(const char *folder, struct tensors *set, struct err *err) {
    struct str index = {0}, single = {0};
    bool ok = tensors_start(set, folder, err);
    file_join(&index, folder, "model.safetensors.index.json");
    file_join(&single, folder, "model.safetensors");
    if (!ok) goto done;
    if (file_exists(str_text(&index)))
        ok = open_index(folder, str_text(&index), set, err);
    else if (file_exists(str_text(&single)))
        ok = add_file(set, str_text(&single), err) && tensors_seal(set, err);
    else
        ok = err_set(err, ERR_FORMAT,
                     "%s: weights: found neither model.safetensors nor "
                     "model.safetensors.index.json",
                     folder);
done:
    str_free(&index);
    str_free(&single);
    return ok;
}
