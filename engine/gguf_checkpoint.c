/* gguf_checkpoint.c - the files of a GGUF model as one set of tensors */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "engine/gguf_model.h"

enum { MOST_PARTS = 99999 };

static void close_file(void *handle) { gguf_close(handle); }

static bool undecodable(const struct gguf *file, const struct gguf_tensor *found, struct err *err) {
    struct str known = {0};
    str_puts(&known, "F32, F16, BF16");
    for (int i = 0; quant_at(i); i++) str_printf(&known, ", %s", quant_at(i)->name);
    err_set(err, ERR_UNSUPPORTED, "%s: %.80s: found type %s, expected one of %s", gguf_path(file),
            found->name, gguf_type_name(found->type), str_text(&known));
    str_free(&known);
    return false;
}

/* The type for the set: plain, or blocks. */
static bool set_type(struct tensor *tensor) {
    static const struct {
        const char *name;
        enum tensor_type type;
    } plain[] = {{"F32", TENSOR_F32}, {"F16", TENSOR_F16}, {"BF16", TENSOR_BF16}};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(plain[i].name, tensor->type_name)) {
            tensor->type = plain[i].type;
            return true;
        }
    tensor->type = TENSOR_BLOCKS;
    tensor->quant = quant_find(tensor->type_name);
    return tensor->quant != NULL;
}

static bool add_tensors(struct tensors *set, const struct gguf *file, struct err *err) {
    for (int i = 0; i < gguf_tensor_count(file); i++) {
        const struct gguf_tensor *found = gguf_tensor_at(file, i);
        struct tensor tensor = {.name = found->name,
                                .file = gguf_path(file),
                                .type_name = gguf_type_name(found->type),
                                .rank = found->rank,
                                .elements = found->count,
                                .data = found->data,
                                .bytes = (int64_t)found->size_bytes};
        for (int d = 0; d < found->rank; d++) tensor.shape[d] = found->size[found->rank - 1 - d];
        if (!set_type(&tensor)) return undecodable(file, found, err);
        if (!tensors_add(set, &tensor, err)) return false;
    }
    return true;
}

/* What a file says of the split that it belongs to. */
struct split {
    int64_t number, count, tensors;
};

static bool read_split(const struct gguf *file, struct split *split, struct err *err) {
    return gguf_get_int(file, "split.no", 0, MOST_PARTS, 0, &split->number, err) &&
           gguf_get_int(file, "split.count", 0, MOST_PARTS, 0, &split->count, err) &&
           gguf_get_int(file, "split.tensors.count", 0, INT32_MAX, -1, &split->tensors, err);
}

/* Opens one file and takes its tensors into the set, which owns the file from then on. */
static const struct gguf *add_file(struct tensors *set, const char *path, struct split *split,
                                   struct err *err) {
    struct gguf *file = gguf_open(path, err);
    if (!file || !tensors_own(set, file, close_file, err)) return NULL;
    return read_split(file, split, err) && add_tensors(set, file, err) ? file : NULL;
}

static bool add_part(struct tensors *set, const char *path, int64_t number,
                     const struct split *first, struct err *err) {
    struct split own;
    if (!add_file(set, path, &own, err)) return false;
    if (own.number == number && own.count == first->count && own.tensors == first->tensors)
        return true;
    return err_set(err, ERR_FORMAT,
                   "%s: split: found part %lld of %lld with %lld tensors in all, expected part "
                   "%lld of %lld with %lld",
                   path, (long long)own.number + 1, (long long)own.count, (long long)own.tensors,
                   (long long)number + 1, (long long)first->count, (long long)first->tensors);
}

/* Opens parts 2..N beside `path`, which must be called NAME-00001-of-0000N.gguf. */
static bool add_parts(struct tensors *set, const char *path, const struct split *first,
                      struct err *err) {
    char tail[40];
    int len = snprintf(tail, sizeof tail, "-00001-of-%05lld.gguf", (long long)first->count);
    size_t stem = strlen(path) - (strlen(path) < (size_t)len ? strlen(path) : (size_t)len);
    struct str part = {0};
    bool ok = true;
    if (first->number != 0)
        return err_set(err, ERR_FORMAT, "%s: split.no: found part %lld of %lld, expected the first",
                       path, (long long)first->number + 1, (long long)first->count);
    if (strcmp(path + stem, tail) != 0)
        return err_set(err, ERR_FORMAT, "%s: name: found a split of %lld, expected a name in %s",
                       path, (long long)first->count, tail);
    for (int64_t i = 1; ok && i < first->count; i++) {
        str_clear(&part);
        str_append(&part, path, stem);
        str_printf(&part, "-%05lld-of-%05lld.gguf", (long long)i + 1, (long long)first->count);
        ok = add_part(set, str_text(&part), i, first, err);
    }
    str_free(&part);
    return ok;
}

bool gguf_checkpoint_open(const char *path, struct tensors *set, const struct gguf **head,
                          struct err *err) {
    struct split split;
    if (!tensors_start(set, path, err)) return false;
    *head = add_file(set, path, &split, err);
    if (!*head) return false;
    if (split.count > 1 && !add_parts(set, path, &split, err)) return false;
    if (split.tensors >= 0 && split.tensors != set->count)
        return err_set(err, ERR_FORMAT, "%s: split.tensors.count: found %lld, expected %lld", path,
                       (long long)split.tensors, (long long)set->count);
    return tensors_seal(set, err);
}

bool gguf_beyond(const char *tensor, int layers) {
    static const char block[] = "blk.";
    if (strncmp(tensor, block, sizeof block - 1) != 0) return false;
    return strtoll(tensor + sizeof block - 1, NULL, 10) >= layers;
}
