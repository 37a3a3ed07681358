/* import_trtllm.c - TensorRT-LLM expert statistics: rank{r}.safetensors or rank{r}_raw.safetensors
 *
 * Tensors "{iteration}_{layer}": i64 or i32, [E] = tokens of this rank that chose each expert
 * (summed over ranks here), or, raw, [tokens, k] = chosen ids (ranks one after the other, as
 * tokens of their own). Beside them meta_info.json: {"num_experts", "num_experts_per_token",
 * ["ep_size"]}. An iteration is a document (of a rank, when raw). All ranks from 0 on must be
 * given; with ep_size, so many. Layout: TensorRT-LLM, examples ep_load_balancer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "base/str.h"
#include "traces/import_build.h"
#include "traces/import_count.h"
#include "traces/importers.h"
#include "traces/npy.h"

/* Iteration and layer of a tensor's name. */
static bool read_name(const char *name, int *iteration, int *layer) {
    int end = 0;
    return sscanf(name, "%9d_%9d%n", iteration, layer, &end) == 2 && !name[end] &&
           *iteration >= 0 && *layer >= 0;
}

bool import_trtllm_recognise(const char *path) {
    struct err ignored;
    struct safetensors *file = safetensors_open(path, &ignored);
    int iteration, layer, n = file ? safetensors_count(file) : 0;
    bool found = n > 0;
    for (int i = 0; found && i < n; i++)
        found = read_name(safetensors_at(file, i)->name, &iteration, &layer);
    safetensors_close(file);
    return found;
}

/* What meta_info.json says. */
struct meta {
    int64_t experts, topk, ranks;
};

static bool read_meta(const char *path, struct meta *meta, struct err *err) {
    const char *name = file_name(path);
    struct str beside = {0};
    str_append(&beside, path, (size_t)(name - path));
    str_puts(&beside, "meta_info.json");
    struct json *doc = beside.failed ? NULL : json_read(str_text(&beside), 1 << 20, err);
    if (beside.failed) err_memory(err, path);
    bool ok = doc &&
              json_get_int(doc, "num_experts", 1, GATE_MAX_EXPERTS, -1, &meta->experts, err) &&
              json_get_int(doc, "num_experts_per_token", 1, GATE_MAX_TOPK, -1, &meta->topk, err) &&
              json_get_int(doc, "ep_size", 1, 1 << 20, 0, &meta->ranks, err);
    if (ok && (meta->experts < 1 || meta->topk < 1))
        ok = err_set(err, ERR_FORMAT, "%s: found no num_experts and num_experts_per_token",
                     str_text(&beside));
    json_free(doc);
    str_free(&beside);
    return ok;
}

/* One tensor, as tensors lie in a file sorted by iteration and layer. */
struct piece {
    const struct safetensors_tensor *tensor;
    int iteration, layer;
};

static int compare_pieces(const void *a, const void *b) {
    const struct piece *x = a, *y = b;
    if (x->iteration != y->iteration) return x->iteration < y->iteration ? -1 : 1;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

struct trtllm {
    const struct import_job *job;
    struct meta meta;
    struct build ids;
    struct count_build counts;
    int first_iteration;
};

static bool as_array(const struct piece *piece, struct npy *array, struct err *err) {
    const struct safetensors_tensor *t = piece->tensor;
    bool wide = t->dtype == ST_I64;
    if ((!wide && t->dtype != ST_I32) || t->rank < 1 || t->rank > 2)
        return err_set(err, ERR_FORMAT, "%s: found %d-d %s, expected [E] or [tokens, k] of I64",
                       t->name, t->rank, safetensors_dtype_name(t->dtype));
    return npy_bare(wide ? "int64" : "int32", t->rank, t->shape, t->data, t->size_bytes, array,
                    err);
}

static bool add_counts(struct trtllm *t, const struct piece *piece, const struct npy *array,
                       struct err *err) {
    int64_t document = piece->iteration - t->first_iteration;
    if (array->shape[0] != t->meta.experts)
        return err_set(err, ERR_FORMAT, "%s: found %lld experts, expected %lld of meta_info.json",
                       piece->tensor->name, (long long)array->shape[0], (long long)t->meta.experts);
    if (document < 0 || document > t->counts.document_count)
        return err_set(err, ERR_DATA, "%s: found iteration %d, expected %lld", piece->tensor->name,
                       piece->iteration,
                       (long long)(t->first_iteration + t->counts.document_count));
    const char *source = file_name(t->job->files[0]);
    const char *domain = t->job->domain ? t->job->domain : "trtllm";
    if (document == t->counts.document_count && !count_document(&t->counts, source, domain, 0, err))
        return false;
    for (int64_t e = 0; e < array->count; e++) {
        int32_t count;
        npy_ids(array, e, 1, &count);
        if (!count_add(&t->counts, piece->layer, document, e, (double)count, err)) return false;
    }
    return true;
}

/* All layers of one iteration; *at moves behind them. */
static bool add_choices(struct trtllm *t, const struct piece *pieces, int count, int *at,
                        const char *path, struct err *err) {
    int64_t tokens = pieces[*at].tensor->shape[0];
    int iteration = pieces[*at].iteration;
    for (; *at < count && pieces[*at].iteration == iteration; ++*at) {
        struct npy array;
        const struct piece *piece = &pieces[*at];
        if (!as_array(piece, &array, err)) return false;
        if (array.rank != 2 || array.shape[0] != tokens || array.shape[1] != t->meta.topk)
            return err_set(err, ERR_DATA, "%s: found another shape, expected [%lld, %lld]",
                           piece->tensor->name, (long long)tokens, (long long)t->meta.topk);
        struct build_layer *layer = build_layer(&t->ids, piece->layer, (int)t->meta.topk, err);
        if (!layer) return false;
        for (int64_t i = 0; i < tokens; i++) {
            int32_t expert[GATE_MAX_TOPK];
            npy_ids(&array, i * t->meta.topk, t->meta.topk, expert);
            if (!build_add(&t->ids, layer, 1, expert, NULL, err)) return false;
        }
    }
    return build_document(&t->ids, file_name(path), t->job->domain ? t->job->domain : "trtllm",
                          tokens, NULL, err);
}

static bool add_pieces(struct trtllm *t, const struct piece *pieces, int count, const char *path,
                       struct err *err) {
    if (!t->counts.document_count) t->first_iteration = pieces[0].iteration;
    for (int i = 0; i < count;) {
        struct npy array;
        if (!as_array(&pieces[i], &array, err)) return false;
        if (array.rank == 2) {
            if (!add_choices(t, pieces, count, &i, path, err)) return false;
        } else if (!add_counts(t, &pieces[i++], &array, err)) {
            return false;
        }
    }
    return true;
}

static bool add_file(struct trtllm *t, const char *path, struct err *err) {
    struct safetensors *file = safetensors_open(path, err);
    if (!file) return false;
    int n = safetensors_count(file);
    struct piece *pieces = calloc((size_t)n + 1, sizeof *pieces);
    bool ok = pieces || err_memory(err, path);
    for (int i = 0; ok && i < n; i++) {
        pieces[i].tensor = safetensors_at(file, i);
        ok = read_name(pieces[i].tensor->name, &pieces[i].iteration, &pieces[i].layer) ||
             err_set(err, ERR_FORMAT, "found tensor %.60s, expected ITERATION_LAYER",
                     pieces[i].tensor->name);
    }
    if (ok && n < 1) ok = err_set(err, ERR_DATA, "found no tensor");
    if (ok) qsort(pieces, (size_t)n, sizeof *pieces, compare_pieces);
    ok = ok && add_pieces(t, pieces, n, path, err);
    free(pieces);
    safetensors_close(file);
    return ok;
}

static int rank_of(const char *path) {
    int rank = -1;
    return sscanf(file_name(path), "rank%9d", &rank) == 1 ? rank : -1;
}

/* The load of some ranks is not the load: all must be there, each once. */
static bool check_ranks(const struct import_job *job, const struct meta *meta, struct err *err) {
    int64_t expected = meta->ranks ? meta->ranks : job->file_count;
    for (int64_t rank = 0; rank < expected; rank++) {
        int times = 0;
        for (int i = 0; i < job->file_count; i++) times += rank_of(job->files[i]) == rank;
        if (times != 1)
            return err_set(err, ERR_DATA,
                           "%s: found %d file%s of rank %lld, expected 1 of each of %lld ranks: "
                           "the load of some ranks is not the load",
                           job->files[0], times, times == 1 ? "" : "s", (long long)rank,
                           (long long)expected);
    }
    return true;
}

bool import_trtllm_open(const struct import_job *job, struct import_source *source,
                        struct err *err) {
    struct trtllm t = {.job = job};
    bool ok = (read_meta(job->files[0], &t.meta, err) || import_context(err, job->files[0])) &&
              check_ranks(job, &t.meta, err);
    for (int i = 0; ok && i < job->file_count; i++)
        ok = add_file(&t, job->files[i], err) || import_context(err, job->files[i]);
    t.ids.experts = t.counts.experts = (int)t.meta.experts;
    t.counts.topk = (int)t.meta.topk;
    if (ok && t.ids.tokens && t.counts.count)
        ok = err_set(err, ERR_DATA, "%s: found files of counts and of ids, expected one kind",
                     job->files[0]);
    if (ok)
        ok = (t.counts.count
                  ? count_finish(&t.counts, job, true, source, "trtllm", err)
                  : build_finish(&t.ids, job, source, "trtllm", "router scores; weights", err)) ||
             import_context(err, job->files[0]);
    build_free(&t.ids);
    count_free(&t.counts);
    return ok;
}
