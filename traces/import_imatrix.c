/* import_imatrix.c - llama.cpp importance matrices (GGUF): tokens that each expert saw
 *
 * Tensors "blk.N.ffn_{gate,up,down}_exps.weight.counts", f32 [1, E] (ne0 = 1): how many tokens
 * went through each expert's matrix; the three agree. imatrix.chunk_count x imatrix.chunk_size
 * tokens were run; k = sum / tokens where that is whole, else that of --gate. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/gguf.h"
#include "traces/import_count.h"
#include "traces/importers.h"

static const char *const parts[] = {"gate", "up", "down", "gate_up"};

/* Layer and part of a tensor of counts of experts. */
static bool read_name(const char *name, int *layer, int *part) {
    char kind[16];
    int end = 0;
    if (sscanf(name, "blk.%9d.ffn_%15[a-z_]s.weight.counts%n", layer, kind, &end) < 2) return false;
    size_t n = strlen(kind);
    static const char suffix[] = "_exps";
    if (n < sizeof suffix || strcmp(kind + n - (sizeof suffix - 1), suffix) != 0) return false;
    const char *rest = strstr(name, suffix);
    if (!rest || strcmp(rest + sizeof suffix - 1, ".weight.counts") != 0) return false;
    kind[n - (sizeof suffix - 1)] = '\0';
    for (*part = 0; *part < 4; ++*part)
        if (strcmp(parts[*part], kind) == 0) return true;
    return false;
}

bool import_imatrix_recognise(const char *path) {
    struct err ignored;
    struct gguf *file = gguf_is(path) ? gguf_open(path, &ignored) : NULL;
    bool found = false;
    int layer, part;
    for (int i = 0; file && !found && i < gguf_tensor_count(file); i++)
        found = read_name(gguf_tensor_at(file, i)->name, &layer, &part);
    gguf_close(file);
    return found;
}

static bool check_counts(const struct gguf_tensor *tensor, struct err *err) {
    if (tensor->type != GGUF_TYPE_F32 || tensor->count < 1 || tensor->count > GATE_MAX_EXPERTS ||
        tensor->size[0] != 1)
        return err_set(err, ERR_FORMAT, "%s: found %s [%lld, %lld], expected F32 [1, E]",
                       tensor->name, gguf_type_name(tensor->type), (long long)tensor->size[0],
                       (long long)tensor->size[1]);
    return true;
}

static float count_at(const struct gguf_tensor *tensor, int64_t e) {
    float count;
    memcpy(&count, (const char *)tensor->data + 4 * e, 4);
    return count;
}

/* A layer's first tensor gives its counts; another of the layer must say the same. */
static bool add_tensor(const struct gguf *file, const struct gguf_tensor *tensor, int layer,
                       struct count_build *build, double *sum, struct err *err) {
    char name[96];
    const struct gguf_tensor *first = NULL;
    for (int p = 0; p < 4 && !first; p++) {
        snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight.counts", layer, parts[p]);
        first = gguf_tensor(file, name);
    }
    if (!first || !check_counts(tensor, err) || !check_counts(first, err)) return first && false;
    if (tensor != first) {
        for (int64_t e = 0; e < tensor->count; e++)
            if (tensor->count != first->count || count_at(tensor, e) != count_at(first, e))
                return err_set(err, ERR_DATA, "%s: expert %lld: found another count than in %s",
                               tensor->name, (long long)e, first->name);
        return true;
    }
    *sum = 0;
    if (tensor->count > build->experts) build->experts = (int)tensor->count;
    for (int64_t e = 0; e < tensor->count; e++) {
        *sum += (double)count_at(tensor, e);
        if (!count_add(build, layer, 0, e, (double)count_at(tensor, e), err)) return false;
    }
    return true;
}

/* Tokens that were run; 0 when the file does not say. */
static bool read_tokens(const struct gguf *file, int64_t *tokens, struct err *err) {
    int64_t chunks, size, most = INT64_C(1) << 31;
    if (!gguf_get_int(file, "imatrix.chunk_count", 0, most, 0, &chunks, err) ||
        !gguf_get_int(file, "imatrix.chunk_size", 0, most, 0, &size, err))
        return false;
    *tokens = chunks * size;
    return true;
}

static bool add_file(const struct gguf *file, const struct import_job *job, const char *domain,
                     struct count_build *build, struct err *err) {
    int64_t tokens;
    double sum = 0;
    int layer, part;
    if (!read_tokens(file, &tokens, err)) return false;
    for (int i = 0; i < gguf_tensor_count(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        if (read_name(tensor->name, &layer, &part) &&
            !add_tensor(file, tensor, layer, build, &sum, err))
            return false;
    }
    double k = tokens > 0 ? sum / (double)tokens : 0;
    bool whole = k >= 1 && k <= GATE_MAX_TOPK && k == (double)(int)k;
    if (whole && !job->gate) build->topk = (int)k;
    build->note = "; documents";
    return count_document(build, file_name(job->files[0]), domain, whole ? tokens : 0, err);
}

bool import_imatrix_open(const struct import_job *job, struct import_source *source,
                         struct err *err) {
    struct count_build build = {0};
    const char *stem = import_stem(&source->arena, job->files[0]);
    if (job->file_count != 1)
        return err_set(err, ERR_USAGE, "imatrix: found %d files, expected 1", job->file_count);
    if (!stem) return err_memory(err, "import");
    struct gguf *file = gguf_open(job->files[0], err);
    bool ok = file && add_file(file, job, job->domain ? job->domain : stem, &build, err) &&
              count_finish(&build, job, false, source, "imatrix", err);
    gguf_close(file);
    count_free(&build);
    return ok || import_context(err, job->files[0]);
}
