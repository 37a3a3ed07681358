/* import_torch.c - files of torch.save: SGLang's expert distribution recorder, router logits,
 * counters
 *
 * SGLang per_token: {"records": [{"topk_ids_of_layer": i32 [layers, tokens, 8] (-1 =
 * padding), "input_ids": [...], ...}]}: chosen ids. SGLang per_pass: records without those but
 * with "global_physical_count": [layers, physical], a document a pass, summed over files (ranks);
 * "last_physical_to_logical_map" says what they hold. Its records say their "rank": every pass must
 * have all ranks from 0 on, once, and at each layer k x tokens choices. SGLang stat:
 * {"logical_count": [steps, layers, E]}: counts. Anything else whose tensors are reals: router
 * logits, [tokens, E] each (in order) or one stacked [layers, tokens, E]. The pickle inside is read
 * by a small reader that executes nothing. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/half.h"
#include "traces/import_build.h"
#include "traces/import_count.h"
#include "traces/import_logits.h"
#include "traces/importers.h"
#include "traces/pickle.h"

enum { MAX_TENSORS = 4096 };

bool import_torch_recognise(const char *path) { return torch_recognise(path); }

static int64_t element(const unsigned char *data, int bytes, int64_t i) {
    uint64_t value = 0;
    for (int b = bytes - 1; b >= 0; b--) value = value << 8 | data[i * bytes + b];
    int unused = 64 - 8 * bytes;
    return (int64_t)(value << unused) >> unused;
}

/* Data of a mapping that were read may leave memory. */
static void drop(const struct file_map *map, const unsigned char *data, int64_t bytes) {
    file_drop(map, (size_t)(data - map->data), (size_t)bytes);
}

static const unsigned char *integers(const struct torch_file *file, const struct pickle *tensor,
                                     int rank, const char *name, int *bytes, struct err *err) {
    char kind = 0;
    if (!tensor || tensor->kind != PICKLE_TENSOR || tensor->rank != rank) {
        err_set(err, ERR_FORMAT, "%s: found no tensor of %d dimensions", name, rank);
        return NULL;
    }
    const unsigned char *data = torch_data(file, tensor, bytes, &kind, err);
    if (data && kind != 'i' && kind != 'u') {
        err_set(err, ERR_FORMAT, "%s: found reals, expected integers", name);
        return NULL;
    }
    return data;
}

/* ---- SGLang: counts */

static bool open_stat(const struct torch_file *file, const struct import_job *job,
                      struct import_source *source, const char *stem, struct err *err) {
    struct count_build build = {0};
    int bytes;
    const struct pickle *tensor = pickle_get(file->root, "logical_count");
    const unsigned char *data = integers(file, tensor, 3, "logical_count", &bytes, err);
    bool ok = data != NULL && count_document(&build, file_name(job->files[0]),
                                             job->domain ? job->domain : stem, 0, err);
    int64_t layers = ok ? tensor->shape[1] : 0, experts = ok ? tensor->shape[2] : 0;
    for (int64_t l = 0; ok && l < layers; l++) {
        int64_t total = 0;
        for (int64_t e = 0; ok && e < experts; e++) {
            int64_t sum = 0;
            for (int64_t s = 0; s < tensor->shape[0]; s++)
                sum += element(data, bytes, (s * layers + l) * experts + e);
            total += sum;
            if (sum) ok = count_add(&build, (int)l, 0, e, (double)sum, err);
        }
        if (ok && total) ok = count_add(&build, (int)l, 0, experts - 1, 0, err); /* E is known */
    }
    if (ok) ok = count_finish(&build, job, false, source, "torch", err);
    count_free(&build);
    return ok;
}

/* ---- SGLang: ids */

/* Experts a token of this layer: ids that are not padding; 0 for a dense layer (all zeros). */
static int count_chosen(const unsigned char *data, int bytes, int64_t tokens, int64_t width,
                        bool *dense) {
    int most = 0;
    *dense = true;
    for (int64_t t = 0; t < tokens; t++) {
        int k = 0;
        for (int64_t j = 0; j < width; j++) {
            int64_t id = element(data, bytes, t * width + j);
            k += id >= 0;
            *dense = *dense && id <= 0;
        }
        if (k > most) most = k;
    }
    return most;
}

static bool add_record_layer(const unsigned char *data, int bytes, int64_t tokens, int64_t width,
                             int layer, struct build *build, struct err *err) {
    bool dense;
    int k = count_chosen(data, bytes, tokens, width, &dense);
    if (dense || k < 1) return true;
    struct build_layer *to = build_layer(build, layer, k, err);
    bool ok = to != NULL;
    for (int64_t t = 0; ok && t < tokens; t++) {
        int32_t expert[GATE_MAX_TOPK];
        for (int j = 0; j < k; j++) {
            int64_t id = element(data, bytes, t * width + j);
            expert[j] = id >= 0 && id < GATE_MAX_EXPERTS ? (int32_t)id : -1;
        }
        ok = build_add(build, to, 1, expert, NULL, err);
    }
    return ok;
}

static bool add_record(const struct torch_file *file, const struct pickle *record,
                       struct build *build, const char *source, const char *domain,
                       struct err *err) {
    int bytes;
    const struct pickle *top = pickle_get(record, "topk_ids_of_layer");
    const struct pickle *inputs = pickle_get(record, "input_ids");
    const unsigned char *data = integers(file, top, 3, "topk_ids_of_layer", &bytes, err);
    if (!data) return false;
    int64_t tokens = top->shape[1], width = top->shape[2];
    if (width < 1 || width > GATE_MAX_TOPK)
        return err_set(err, ERR_FORMAT, "topk_ids_of_layer: found %lld ids a token",
                       (long long)width);
    for (int64_t l = 0; l < top->shape[0]; l++) {
        const unsigned char *layer = data + l * tokens * width * bytes;
        if (!add_record_layer(layer, bytes, tokens, width, (int)l, build, err)) return false;
        drop(&file->zip.map, layer, tokens * width * bytes);
    }
    int32_t *ids = NULL;
    if (inputs && inputs->kind == PICKLE_LIST && inputs->count == tokens)
        ids = malloc(((size_t)tokens + 1) * sizeof *ids);
    for (int64_t t = 0; ids && t < tokens; t++)
        ids[t] = inputs->items[t]->kind == PICKLE_INT ? (int32_t)inputs->items[t]->integer : -1;
    bool ok = build_document(build, source, domain, tokens, ids, err);
    free(ids);
    return ok;
}

/* ---- SGLang per_pass: counts of physical experts */

/* One record: a forward pass as one rank saw it. */
struct seen {
    int64_t pass, rank; /* index of the pass; -1 = the record does not say its rank */
};

struct passes {
    struct count_build build;
    int64_t *numbers; /* forward_pass_id of each document; owned */
    int64_t count;
    struct seen *seen; /* owned */
    int64_t seen_count;
    int64_t ranks; /* that the records say there are; 0 = they do not */
};

static bool reserve_passes(struct passes *p, int64_t more, struct err *err) {
    int64_t *numbers = realloc(p->numbers, (size_t)(p->count + more + 1) * sizeof *numbers);
    if (numbers) p->numbers = numbers;
    struct seen *seen = realloc(p->seen, (size_t)(p->seen_count + more + 1) * sizeof *seen);
    if (seen) p->seen = seen;
    return (numbers && seen) || err_memory(err, "passes");
}

/* Index of a forward pass; passes of other files (ranks) are added to the first file's. */
static int64_t pass_of(struct passes *p, const struct pickle *record) {
    const struct pickle *id = pickle_get(record, "forward_pass_id");
    int64_t number = id && id->kind == PICKLE_INT ? id->integer : p->count;
    for (int64_t i = 0; i < p->count; i++)
        if (p->numbers[i] == number) return i;
    p->numbers[p->count] = number;
    return p->count++;
}

/* What the record says of ranks: its own, and (DeepEP) a list that has one number for each. */
static void note_rank(struct passes *p, const struct pickle *record, int64_t pass) {
    const struct pickle *rank = pickle_get(record, "rank");
    const struct pickle *misc = pickle_get(record, "misc_objects");
    p->seen[p->seen_count++] =
        (struct seen){pass, rank && rank->kind == PICKLE_INT ? rank->integer : -1};
    for (int i = 0; misc && misc->kind == PICKLE_LIST && i < misc->count; i++) {
        const struct pickle *list = pickle_get(misc->items[i], "num_tokens_per_rank");
        if (list && list->kind == PICKLE_LIST && list->count > p->ranks) p->ranks = list->count;
        if (list && list->kind == PICKLE_TENSOR && list->rank == 1 && list->shape[0] > p->ranks)
            p->ranks = list->shape[0];
    }
}

static int compare_seen(const void *a, const void *b) {
    const struct seen *x = a, *y = b;
    if (x->pass != y->pass) return x->pass < y->pass ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

/* The counts of some ranks are not the load: every pass has each of the ranks once. */
static bool check_ranks(struct passes *p, struct err *err) {
    int64_t ranks = p->ranks, expected = 0;
    qsort(p->seen, (size_t)p->seen_count, sizeof *p->seen, compare_seen);
    for (int64_t i = 0; i < p->seen_count; i++) {
        if (p->seen[i].rank < 0) return true;
        if (p->seen[i].rank >= ranks) ranks = p->seen[i].rank + 1;
    }
    for (int64_t i = 0; i < p->seen_count; i++, expected++) {
        const struct seen *seen = &p->seen[i];
        bool ends = i + 1 == p->seen_count || seen[1].pass != seen->pass;
        if (i && seen->pass != seen[-1].pass) expected = 0;
        if (seen->rank != expected || (ends && expected != ranks - 1))
            return err_set(err, ERR_DATA,
                           "forward pass %lld: found %s of rank %lld, expected one of each of %lld "
                           "ranks: the load of some ranks is not the load",
                           (long long)p->numbers[seen->pass],
                           seen->rank < expected ? "another record" : "no record",
                           (long long)(seen->rank < expected    ? seen->rank
                                       : seen->rank == expected ? expected + 1
                                                                : expected),
                           (long long)ranks);
    }
    if (ranks == 1 && !p->ranks)
        p->build.note = "; other ranks, if there were any (the records of rank 0 do not say)";
    return true;
}

/* One pass of one rank: physical experts count for the logical ones that they hold. */
static bool add_pass(const struct torch_file *file, const struct pickle *record, int64_t document,
                     struct count_build *build, struct err *err) {
    int bytes, map_bytes;
    const struct pickle *count = pickle_get(record, "global_physical_count");
    const struct pickle *map = pickle_get(file->root, "last_physical_to_logical_map");
    const unsigned char *data = integers(file, count, 2, "global_physical_count", &bytes, err);
    const unsigned char *logical =
        data ? integers(file, map, 2, "last_physical_to_logical_map", &map_bytes, err) : NULL;
    if (!logical) return false;
    if (count->shape[0] != map->shape[0] || count->shape[1] != map->shape[1])
        return err_set(err, ERR_FORMAT,
                       "global_physical_count: found another shape than the map's");
    for (int64_t l = 0; l < count->shape[0]; l++) {
        int64_t total = 0, experts = count->shape[1];
        for (int64_t p = 0; p < experts; p++) total += element(data, bytes, l * experts + p) > 0;
        for (int64_t p = 0; total && p < experts; p++) { /* dense layers are zeros */
            int64_t expert = element(logical, map_bytes, l * experts + p);
            double n = (double)element(data, bytes, l * experts + p);
            if (!count_add(build, (int)l, document, expert, n, err)) return false;
        }
    }
    return true;
}

static bool add_passes(const struct torch_file *file, const char *path, const char *domain,
                       struct passes *p, struct err *err) {
    const struct pickle *records = pickle_get(file->root, "records");
    if (!records || records->kind != PICKLE_LIST)
        return err_set(err, ERR_FORMAT, "records: found no list");
    if (!reserve_passes(p, records->count, err)) return false;
    for (int i = 0; i < records->count; i++) {
        int64_t document = pass_of(p, records->items[i]);
        note_rank(p, records->items[i], document);
        if (document >= p->build.document_count &&
            !count_document(&p->build, file_name(path), domain, 0, err))
            return false;
        if (!add_pass(file, records->items[i], document, &p->build, err))
            return err_context(err, "record %d", i);
    }
    return true;
}

/* All files: the ranks of one run. */
static bool open_passes(const struct import_job *job, struct import_source *source,
                        const char *stem, struct err *err) {
    struct passes passes = {0};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++) {
        struct torch_file file;
        ok = torch_open(&file, &source->arena, job->files[i], err);
        if (!ok) break;
        ok = add_passes(&file, job->files[i], job->domain ? job->domain : stem, &passes, err) ||
             import_context(err, job->files[i]);
        torch_close(&file);
    }
    ok = ok && check_ranks(&passes, err) &&
         count_finish(&passes.build, job, true, source, "torch", err);
    free(passes.numbers);
    free(passes.seen);
    count_free(&passes.build);
    return ok;
}

static bool per_pass(const struct pickle *records) {
    return records && records->kind == PICKLE_LIST && records->count &&
           !pickle_get(records->items[0], "topk_ids_of_layer") &&
           pickle_get(records->items[0], "global_physical_count");
}

static bool open_records(const struct torch_file *file, const struct import_job *job,
                         struct import_source *source, const char *stem, struct err *err) {
    struct build build = {0};
    const struct pickle *records = pickle_get(file->root, "records");
    bool ok = records->kind == PICKLE_LIST || err_set(err, ERR_FORMAT, "records: found no list");
    for (int i = 0; ok && i < records->count; i++)
        ok = add_record(file, records->items[i], &build, file_name(job->files[0]),
                        job->domain ? job->domain : stem, err) ||
             err_context(err, "record %d", i);
    ok = ok && build_finish(&build, job, source, "torch", "router scores; weights", err);
    build_free(&build);
    return ok;
}

/* ---- router logits */

struct plane {
    const struct file_map *map; /* that the data lie in */
    const unsigned char *data;
    int bytes;
    char kind;
};

static void read_plane(const struct logits_layer *layer, int64_t first, int64_t n, float *out) {
    const struct plane *plane = layer->array;
    int64_t e = layer->experts;
    for (int64_t i = 0; i < n * e; i++) {
        const unsigned char *at = plane->data + (first * e + i) * plane->bytes;
        if (plane->bytes == 2)
            out[i] = half_float(at, plane->kind == 'b');
        else
            memcpy(&out[i], at, 4);
    }
    drop(plane->map, plane->data + first * e * plane->bytes, n * e * plane->bytes);
}

/* Every tensor below a value, in order; out == NULL: they are counted only. */
static void find_tensors(const struct pickle *value, const struct pickle **out, int *count,
                         int depth) {
    if (value->kind == PICKLE_TENSOR && *count < MAX_TENSORS) {
        if (out) out[*count] = value;
        ++*count;
    }
    bool nested = (value->kind == PICKLE_LIST || value->kind == PICKLE_DICT) && depth < 16;
    for (int i = 0; nested && i < value->count && i < MAX_TENSORS; i++)
        find_tensors(value->items[i], out, count, depth + 1);
}

/* Layers that tensors of logits hold, at most. */
static size_t count_planes(const struct pickle **tensors, int count) {
    int64_t planes = 0;
    for (int i = 0; i < count && planes < MAX_TENSORS; i++)
        planes += tensors[i]->rank == 3 ? tensors[i]->shape[0] : 1;
    return planes < MAX_TENSORS ? (size_t)planes : MAX_TENSORS;
}

static bool add_tensor(const struct torch_file *file, const struct pickle *tensor,
                       struct logits_source *from, struct arena *arena, struct err *err) {
    int bytes;
    char kind = 0;
    const unsigned char *data = torch_data(file, tensor, &bytes, &kind, err);
    if (!data) return false;
    if (kind != 'f' && kind != 'b') return true; /* ids, masks */
    if (tensor->rank != 2 && tensor->rank != 3)
        return err_set(err, ERR_FORMAT,
                       "tensor: found %d dimensions, expected [tokens, E] or [layers, tokens, E]",
                       tensor->rank);
    int64_t planes = tensor->rank == 3 ? tensor->shape[0] : 1;
    int64_t tokens = tensor->shape[tensor->rank - 2], experts = tensor->shape[tensor->rank - 1];
    if (experts < 1 || experts > GATE_MAX_EXPERTS || from->count + planes > MAX_TENSORS)
        return err_set(err, ERR_FORMAT, "tensor: found %lld experts", (long long)experts);
    for (int64_t p = 0; p < planes; p++) {
        struct plane *plane = arena_alloc(arena, 1, sizeof *plane);
        if (!plane) return err_memory(err, "layers");
        *plane = (struct plane){&file->zip.map, data + p * tokens * experts * bytes, bytes, kind};
        from->layers[from->count] = (struct logits_layer){
            .layer = from->count, .experts = (int)experts, .tokens = tokens, .array = plane};
        from->count++;
    }
    return true;
}

static void close_file(void *own) {
    torch_close(own);
    free(own);
}

static bool open_logits(struct torch_file *file, const struct import_job *job,
                        struct import_source *source, struct err *err) {
    struct logits_source from = {.read = read_plane, .own = file, .close_own = close_file};
    int count = 0;
    find_tensors(file->root, NULL, &count, 0);
    const struct pickle **tensors = arena_alloc(&source->arena, (size_t)count, sizeof *tensors);
    bool ok = tensors || err_memory(err, "layers");
    count = 0;
    if (ok) find_tensors(file->root, tensors, &count, 0);
    if (ok)
        from.layers =
            arena_alloc(&source->arena, count_planes(tensors, count), sizeof *from.layers);
    ok = ok && (from.layers || err_memory(err, "layers"));
    for (int i = 0; ok && i < count; i++)
        ok = add_tensor(file, tensors[i], &from, &source->arena, err);
    if (ok) return logits_finish(&from, job, source, "torch", err);
    close_file(file);
    return false;
}

bool import_torch_open(const struct import_job *job, struct import_source *source,
                       struct err *err) {
    struct torch_file *file = calloc(1, sizeof *file);
    const char *stem = import_stem(&source->arena, job->files[0]);
    bool ok = (file && stem) || err_memory(err, "import");
    if (!ok || !torch_open(file, &source->arena, job->files[0], err)) {
        free(file);
        return false;
    }
    if (per_pass(pickle_get(file->root, "records"))) {
        close_file(file);
        return open_passes(job, source, stem, err) || import_context(err, job->files[0]);
    }
    if (job->file_count != 1) {
        close_file(file);
        return err_set(err, ERR_USAGE, "torch: found %d files, expected 1", job->file_count);
    }
    bool records = pickle_get(file->root, "records"),
         stat = pickle_get(file->root, "logical_count");
    if (records || stat) {
        ok = records ? open_records(file, job, source, stem, err)
                     : open_stat(file, job, source, stem, err);
        close_file(file);
    } else {
        ok = open_logits(file, job, source, err);
    }
    return ok || import_context(err, job->files[0]);
}
