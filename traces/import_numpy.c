/* import_numpy.c - NumPy files: chosen ids [tokens, layers, k], or router logits
 *
 * .npy: an integer array [tokens, layers, k] (vLLM's routed_experts, saved); a real array [tokens,
 * E] whose file name ends in the layer's number (router_logits_L3.npy), one file a layer; or a real
 * array [layers, tokens, E] (stacked output_router_logits); f32 [documents, layers, E] whose rows
 * sum to 1 are shares of counts (--gate for k). .npz: arrays of the same kinds by name,
 * and prompt_token_ids, output_token_ids, document, layers beside routed_experts. Layers of an id
 * array are numbered from 0 as they lie there; dense ones (all zeros) are dropped. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "traces/import_arrays.h"
#include "traces/import_fractions.h"
#include "traces/import_logits.h"
#include "traces/importers.h"
#include "traces/npy.h"
#include "traces/zip.h"

enum { MAX_ARRAYS = 4096 };

struct array {
    struct npy npy;
    const char *name;           /* without extension */
    int file;                   /* index in job->files */
    int64_t plane;              /* of a stacked array: which layer; 0 otherwise */
    const struct file_map *map; /* that it lies in, or NULL: in memory */
};

/* All arrays of all files. */
struct arrays {
    struct array *items; /* [count] */
    int count;
    struct file_map *maps; /* [files] */
    int map_count;
    struct zip *zips;
    int zip_count;
    unsigned char **blobs; /* of members of archives */
    int blob_count;
};

static bool ends_with(const char *text, const char *ending) {
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

bool import_numpy_recognise(const char *path) {
    return ends_with(path, ".npy") || ends_with(path, ".npz");
}

static void arrays_free(void *own) {
    struct arrays *arrays = own;
    for (int i = 0; i < arrays->map_count; i++) file_unmap(&arrays->maps[i]);
    for (int i = 0; i < arrays->zip_count; i++) zip_close(&arrays->zips[i]);
    for (int i = 0; i < arrays->blob_count; i++) free(arrays->blobs[i]);
    free(arrays->items);
    free(arrays->maps);
    free(arrays->zips);
    free(arrays->blobs);
    free(arrays);
}

static bool add_array(struct arrays *arrays, struct arena *arena, const char *name, int file,
                      const unsigned char *bytes, size_t len, struct err *err) {
    if (arrays->count == MAX_ARRAYS)
        return err_set(err, ERR_UNSUPPORTED, "found more than %d arrays", MAX_ARRAYS);
    struct array *items = realloc(arrays->items, ((size_t)arrays->count + 1) * sizeof *items);
    if (!items) return err_memory(err, "arrays");
    arrays->items = items;
    struct array *array = &items[arrays->count];
    *array = (struct array){.name = import_stem(arena, name), .file = file};
    if (!array->name) return err_memory(err, "arrays");
    if (!npy_parse(bytes, len, &array->npy, err)) return err_context(err, "%s", name);
    arrays->count++;
    return true;
}

/* Stored members are read where they lie, deflated ones are unpacked. */
static bool read_archive(struct arrays *arrays, struct arena *arena, const char *path, int file,
                         struct err *err) {
    struct zip *zip = &arrays->zips[arrays->zip_count];
    if (!zip_open(zip, path, err)) return false;
    arrays->zip_count++;
    unsigned char **blobs =
        realloc(arrays->blobs, (size_t)(arrays->blob_count + zip->count + 1) * sizeof *blobs);
    if (!blobs) return err_memory(err, path);
    arrays->blobs = blobs;
    for (int i = 0; i < zip->count; i++) {
        const struct zip_member *member = &zip->members[i];
        bool stored = member->method == 0;
        const unsigned char *bytes =
            stored ? zip_view(member, err)
                   : (blobs[arrays->blob_count] = zip_read(member, (size_t)1 << 36, err));
        if (!bytes) return err_context(err, "%s", path);
        arrays->blob_count += !stored;
        int before = arrays->count;
        /* texts and objects (request ids) are not what we read; damage is */
        if (!add_array(arrays, arena, member->name, file, bytes, (size_t)member->size_bytes, err) &&
            err->code != ERR_UNSUPPORTED)
            return err_context(err, "%s", path);
        if (stored && arrays->count > before) arrays->items[before].map = &zip->map;
    }
    return true;
}

static bool read_files(struct arrays *arrays, const struct import_job *job, struct arena *arena,
                       struct err *err) {
    arrays->maps = calloc((size_t)job->file_count, sizeof *arrays->maps);
    arrays->zips = calloc((size_t)job->file_count, sizeof *arrays->zips);
    if (!arrays->maps || !arrays->zips) return err_memory(err, "import");
    for (int i = 0; i < job->file_count; i++) {
        struct file_map *map = &arrays->maps[arrays->map_count];
        if (!file_map(job->files[i], map, err)) return false;
        arrays->map_count++;
        if (map->size_bytes > 4 && memcmp(map->data, "PK", 2) == 0) {
            if (!read_archive(arrays, arena, job->files[i], i, err)) return false;
            continue;
        }
        if (!add_array(arrays, arena, file_name(job->files[i]), i, map->data, map->size_bytes, err))
            return import_context(err, job->files[i]);
        arrays->items[arrays->count - 1].map = map;
    }
    return true;
}

/* ---- chosen ids */

static const struct array *named(const struct arrays *arrays, const char *name, int file) {
    for (int i = 0; i < arrays->count; i++)
        if (arrays->items[i].file == file && strcmp(arrays->items[i].name, name) == 0)
            return &arrays->items[i];
    return NULL;
}

/* Prompt and output ids of an archive. Owned by `arrays`; NULL when it has none. */
static const int32_t *token_ids(struct arrays *arrays, int file, int64_t *known, struct err *err) {
    const struct array *prompt = named(arrays, "prompt_token_ids", file);
    const struct array *output = named(arrays, "output_token_ids", file);
    *known = 0;
    if (!prompt || !output || prompt->npy.kind == 'f' || output->npy.kind == 'f') return NULL;
    int64_t n = prompt->npy.count + output->npy.count;
    int32_t *ids = malloc(((size_t)n + 1) * sizeof *ids);
    unsigned char **blobs =
        realloc(arrays->blobs, ((size_t)arrays->blob_count + 1) * sizeof *blobs);
    if (blobs) arrays->blobs = blobs;
    if (!ids || !blobs) {
        free(ids);
        err_memory(err, "token ids");
        return NULL;
    }
    blobs[arrays->blob_count++] = (unsigned char *)ids;
    npy_ids(&prompt->npy, 0, prompt->npy.count, ids);
    npy_ids(&output->npy, 0, output->npy.count, ids + prompt->npy.count);
    *known = n;
    return ids;
}

/* Tokens from `first` on that belong to one document; all where the archive does not say. */
static int64_t run_of(const struct array *document, int64_t first, int64_t tokens) {
    int32_t here, next;
    if (!document) return tokens - first;
    npy_ids(&document->npy, first, 1, &here);
    for (int64_t t = first + 1; t < tokens; t++) {
        npy_ids(&document->npy, t, 1, &next);
        if (next != here) return t - first;
    }
    return tokens - first;
}

/* Every [tokens, layers, k] becomes one document, or several: a part of the array each. */
static bool add_ids(struct id_arrays *from, int cap, struct arrays *arrays,
                    const struct array *array, const struct import_job *job, struct arena *arena,
                    struct err *err) {
    const char *path = job->files[array->file];
    const struct array *document = named(arrays, "document", array->file);
    const char *domain = job->domain ? job->domain : import_stem(arena, path);
    int64_t known, tokens = array->npy.shape[0];
    *err = (struct err){0};
    const int32_t *ids = token_ids(arrays, array->file, &known, err);
    if (!domain || err->code) return domain ? false : err_memory(err, "documents");
    if (document && (document->npy.kind == 'f' || document->npy.count != tokens)) document = NULL;
    for (int64_t t = 0; t < tokens || t == 0;) {
        int64_t n = run_of(document, t, tokens);
        if (from->count == cap)
            return err_set(err, ERR_UNSUPPORTED, "found more than %d documents", cap);
        struct id_array *to = &from->items[from->count++];
        *to = (struct id_array){.npy = array->npy,
                                .source = file_name(path),
                                .domain = domain,
                                .ids = ids ? ids + t : NULL,
                                .known = known - t,
                                .map = array->map};
        to->npy.shape[0] = n;
        to->npy.data +=
            (size_t)(t * array->npy.shape[1] * array->npy.shape[2]) * (size_t)array->npy.item_bytes;
        t += n > 0 ? n : 1;
    }
    return true;
}

/* The model's layer numbers, which our archives hold. */
static void number_layers(struct id_arrays *from, const struct arrays *arrays,
                          struct arena *arena) {
    const struct array *layers = named(arrays, "layers", 0);
    if (!layers || layers->npy.kind == 'f' || !from->count ||
        layers->npy.count != from->items[0].npy.shape[1])
        return;
    int32_t *numbers = arena_alloc(arena, (size_t)layers->npy.count + 1, sizeof *numbers);
    if (!numbers) return;
    npy_ids(&layers->npy, 0, layers->npy.count, numbers);
    bool rising = layers->npy.count > 0 && numbers[0] >= 0;
    for (int64_t i = 1; i < layers->npy.count; i++) rising = rising && numbers[i] > numbers[i - 1];
    if (rising) from->layers = numbers;
}

static bool open_ids(const struct import_job *job, struct arrays *arrays,
                     struct import_source *source, struct err *err) {
    enum { MAX_DOCUMENTS = 1 << 20 };
    struct id_arrays from = {.own = arrays, .close_own = arrays_free};
    int64_t cap = arrays->count + 1;
    for (int i = 0; i < arrays->count; i++)
        if (strcmp(arrays->items[i].name, "document") == 0) cap += arrays->items[i].npy.count;
    if (cap > MAX_DOCUMENTS) cap = MAX_DOCUMENTS;
    from.items = arena_alloc(&source->arena, (size_t)cap, sizeof *from.items);
    bool ok = from.items || err_memory(err, "arrays");
    for (int i = 0; ok && i < arrays->count; i++) {
        const struct array *array = &arrays->items[i];
        if (array->npy.kind != 'f' && array->npy.rank >= 3)
            ok = add_ids(&from, (int)cap, arrays, array, job, &source->arena, err);
    }
    if (ok) number_layers(&from, arrays, &source->arena);
    if (ok) return arrays_finish(&from, job, source, "numpy", err);
    arrays_free(arrays);
    return false;
}

/* ---- logits */

/* Number at the end of a name ("router_logits_L12"); -1 when there is none. */
static int trailing_number(const char *name) {
    size_t n = strlen(name), at = n;
    while (at > 0 && isdigit((unsigned char)name[at - 1])) at--;
    return at < n && n - at < 6 ? atoi(name + at) : -1;
}

static void read_logits(const struct logits_layer *layer, int64_t first, int64_t n, float *out) {
    const struct array *array = layer->array;
    int64_t row = layer->experts, at = (array->plane * layer->tokens + first) * row;
    npy_reals(&array->npy, at, n * row, out);
    if (!array->map) return;
    size_t item = (size_t)array->npy.item_bytes;
    file_drop(array->map, (size_t)(array->npy.data - array->map->data) + (size_t)at * item,
              (size_t)(n * row) * item);
}

static bool add_logits(struct array *array, struct logits_source *from, struct arena *arena,
                       struct err *err) {
    struct npy *npy = &array->npy;
    int number = trailing_number(array->name);
    if (npy->item_bytes > 4)
        return err_set(err, ERR_UNSUPPORTED, "%s: found float64, expected float32 or float16",
                       array->name);
    if (npy->rank != 2 && npy->rank != 3)
        return err_set(err, ERR_FORMAT,
                       "%s: found %d dimensions, expected [tokens, E] or [layers, tokens, E]",
                       array->name, npy->rank);
    if (npy->rank == 2 && number < 0)
        return err_set(err, ERR_FORMAT, "%s: found no layer number at the end of the name",
                       array->name);
    int64_t planes = npy->rank == 3 ? npy->shape[0] : 1;
    int64_t tokens = npy->shape[npy->rank - 2], experts = npy->shape[npy->rank - 1];
    if (experts > GATE_MAX_EXPERTS || from->count + planes > MAX_ARRAYS)
        return err_set(err, ERR_FORMAT, "%s: found %lld experts", array->name, (long long)experts);
    for (int64_t p = 0; p < planes; p++) {
        struct array *copy = arena_alloc(arena, 1, sizeof *copy);
        if (!copy) return err_memory(err, "layers");
        *copy = *array;
        copy->plane = p;
        from->layers[from->count++] =
            (struct logits_layer){.layer = npy->rank == 3 ? (int)p : number,
                                  .experts = (int)experts,
                                  .tokens = tokens,
                                  .array = copy};
    }
    return true;
}

static bool open_logits(const struct import_job *job, struct arrays *arrays,
                        struct import_source *source, struct err *err) {
    struct logits_source from = {.read = read_logits, .own = arrays, .close_own = arrays_free};
    int64_t planes = 0;
    for (int i = 0; i < arrays->count && planes < MAX_ARRAYS; i++)
        planes += arrays->items[i].npy.rank == 3 ? arrays->items[i].npy.shape[0] : 1;
    from.layers = arena_alloc(&source->arena, planes < MAX_ARRAYS ? (size_t)planes : MAX_ARRAYS,
                              sizeof *from.layers);
    bool ok = from.layers || err_memory(err, "layers");
    for (int i = 0; ok && i < arrays->count; i++)
        if (arrays->items[i].npy.kind == 'f')
            ok = add_logits(&arrays->items[i], &from, &source->arena, err);
    if (!ok) {
        arrays_free(arrays);
        return false;
    }
    return logits_finish(&from, job, source, "numpy", err);
}

/* ---- shares of counts */

static bool open_fractions(const struct import_job *job, const struct arrays *arrays,
                           struct import_source *source, struct err *err) {
    struct count_build build = {
        .note = "; number of tokens (the smallest for which all shares are whole)"};
    struct gate gate = {0};
    if (!job->gate)
        return err_set(err, ERR_USAGE,
                       "holds shares of choices (rows sum to 1), but not how many experts a token "
                       "has: give --gate");
    if (!gate_parse(job->gate, NULL, &gate, err)) return err_context(err, "--gate");
    build.topk = gate.topk;
    bool ok = true;
    for (int i = 0; ok && i < arrays->count; i++) {
        const struct array *array = &arrays->items[i];
        const char *path = job->files[array->file];
        const char *domain = job->domain ? job->domain : import_stem(&source->arena, path);
        ok = (fractions_look(&array->npy) ||
              err_set(err, ERR_DATA, "found other values than shares, which other files hold")) &&
             fractions_add(&build, &array->npy, file_name(path), domain, err);
        if (!ok) import_context(err, path);
    }
    ok = ok && count_finish(&build, job, true, source, "numpy", err);
    count_free(&build);
    return ok;
}

static bool open_reals(const struct import_job *job, struct arrays *arrays,
                       struct import_source *source, struct err *err) {
    const struct array *real = arrays->items;
    while (real->npy.kind != 'f') real++;
    if (!fractions_look(&real->npy)) return open_logits(job, arrays, source, err);
    bool ok = open_fractions(job, arrays, source, err);
    arrays_free(arrays);
    return ok;
}

bool import_numpy_open(const struct import_job *job, struct import_source *source,
                       struct err *err) {
    struct arrays *arrays = calloc(1, sizeof *arrays);
    if (!arrays) return err_memory(err, "import");
    if (!read_files(arrays, job, &source->arena, err)) {
        arrays_free(arrays);
        return false;
    }
    bool real = false;
    for (int i = 0; i < arrays->count; i++) real = real || arrays->items[i].npy.kind == 'f';
    if (real ? open_reals(job, arrays, source, err) : open_ids(job, arrays, source, err))
        return true;
    return import_context(err, job->files[0]);
}
