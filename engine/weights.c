/* weights.c - finding, checking, decoding and packing the matrices and vectors of a layer */
#include "engine/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { NAME_BYTES = 256, MX_BLOCK = 32, MX_BYTES = 16 };

static void refuse(struct loader *loader) { loader->failed = true; }

/* name <- pattern with {l}, {s} and {e} replaced; false when too long. */
static bool expand(const struct loader *loader, const char *pattern, const char *suffix,
                   char name[static NAME_BYTES]) {
    size_t at = 0;
    for (const char *p = pattern; *p && at < NAME_BYTES; p++) {
        if (p[0] == '{' && p[1] && strchr("lse", p[1]) && p[2] == '}') {
            int number = p[1] == 'l' ? loader->layer : p[1] == 's' ? loader->sub : loader->expert;
            at += (size_t)snprintf(name + at, NAME_BYTES - at, "%d", number);
            p += 2;
        } else {
            name[at++] = *p;
        }
    }
    if (at + strlen(suffix) >= NAME_BYTES) return false;
    strcpy(name + at, suffix);
    return true;
}

static struct tensor *find(const struct loader *loader, const struct weight_ref *ref,
                           const char *suffix) {
    char name[NAME_BYTES];
    if (!expand(loader, ref->name, suffix, name)) return NULL;
    return tensors_find(loader->tensors, name);
}

static bool missing(struct loader *loader, const struct weight_ref *ref, const char *suffix) {
    char name[NAME_BYTES] = "";
    expand(loader, ref->name, suffix, name);
    refuse(loader);
    return err_set(loader->err, ERR_FORMAT, "%s: %s: found no such tensor, expected one",
                   loader->tensors->path, name);
}

/* Compares shapes without their dimensions of size 1. */
static bool same_shape(const struct tensor *tensor, int rank, const int64_t *shape) {
    int i = 0, j = 0;
    for (;;) {
        while (i < tensor->rank && tensor->shape[i] == 1) i++;
        while (j < rank && shape[j] == 1) j++;
        if (i == tensor->rank || j == rank) return i == tensor->rank && j == rank;
        if (tensor->shape[i++] != shape[j++]) return false;
    }
}

static bool check_shape(struct loader *loader, struct tensor *tensor, int rank,
                        const int64_t *shape) {
    char found[TENSOR_SHAPE_TEXT], expected[TENSOR_SHAPE_TEXT];
    tensor->used = true;
    if (same_shape(tensor, rank, shape)) return true;
    tensor_shape_text(tensor->rank, tensor->shape, found);
    tensor_shape_text(rank, shape, expected);
    refuse(loader);
    return err_set(loader->err, ERR_FORMAT, "%s: %s: found shape %s, expected %s", tensor->file,
                   tensor->name, found, expected);
}

static int64_t stored_rows(const struct weight_ref *ref) {
    return ref->stored ? ref->stored : ref->n;
}

/* The shape that the file must hold for a reference. */
static int stored_shape(const struct weight_ref *ref, int64_t *shape) {
    int rank = 0;
    int64_t rows = stored_rows(ref);
    if (ref->slabs) shape[rank++] = ref->slabs;
    if (ref->k == 0) {
        shape[rank++] = rows;
        return rank;
    }
    shape[rank++] = ref->transposed ? ref->k : rows;
    shape[rank++] = ref->transposed ? rows : ref->k;
    if (ref->merged) {
        shape[0] *= shape[1];
        shape[1] = shape[2];
        rank--;
    }
    return rank;
}

/* Where the elements of a reference come from. */
struct source {
    struct tensor *tensor, *scale; /* scale: of FP8 or MXFP4, else NULL */
    bool mx, transposed;
    int64_t rows, k, slab;
};

static bool bad_type(struct loader *loader, const struct tensor *tensor) {
    refuse(loader);
    return err_set(
        loader->err, ERR_UNSUPPORTED,
        "%s: %s: found type %s, expected F32, F16, BF16, F64, F8_E4M3, MXFP4 or GGUF blocks",
        tensor->file, tensor->name, tensor->type_name);
}

/* MXFP4: blocks [slabs, rows, k/32, 16] of nibbles and scales [slabs, rows, k/32], always with the
 * rows of W contiguous, whatever the plain form of the tensor would be. */
static bool find_mx(struct loader *loader, const struct weight_ref *ref, struct source *source) {
    int64_t shape[4] = {ref->slabs ? ref->slabs : 1, stored_rows(ref), ref->k / MX_BLOCK, MX_BYTES};
    source->tensor = find(loader, ref, "_blocks");
    if (!source->tensor || ref->k == 0) return missing(loader, ref, "");
    source->scale = find(loader, ref, "_scales");
    if (!source->scale) return missing(loader, ref, "_scales");
    source->mx = true;
    source->transposed = false;
    if (ref->k % MX_BLOCK) shape[2] = ref->k / MX_BLOCK + 1; /* never matches what can be decoded */
    if (!check_shape(loader, source->tensor, 4, shape) ||
        !check_shape(loader, source->scale, 3, shape))
        return false;
    if (source->tensor->type != TENSOR_U8) return bad_type(loader, source->tensor);
    if (source->scale->type != TENSOR_U8) return bad_type(loader, source->scale);
    if (ref->k % MX_BLOCK == 0) return true;
    refuse(loader);
    return err_set(loader->err, ERR_UNSUPPORTED,
                   "%s: %s: found rows of %lld, expected a multiple "
                   "of %d for MXFP4",
                   source->tensor->file, source->tensor->name, (long long)ref->k, MX_BLOCK);
}

static bool find_fp8_scale(struct loader *loader, const struct weight_ref *ref,
                           struct source *source) {
    const struct tensors *set = loader->tensors;
    int64_t rows = ref->transposed ? source->k : source->rows;
    int64_t columns = ref->transposed ? source->rows : source->k;
    int64_t shape[3] = {ref->slabs ? ref->slabs : 1, (rows + set->scale_rows - 1) / set->scale_rows,
                        (columns + set->scale_columns - 1) / set->scale_columns};
    source->scale = find(loader, ref, "_scale_inv");
    if (!source->scale) return missing(loader, ref, "_scale_inv");
    if (source->scale->type != TENSOR_F32 && source->scale->type != TENSOR_BF16)
        return bad_type(loader, source->scale);
    return check_shape(loader, source->scale, 3, shape);
}

static bool find_source(struct loader *loader, const struct weight_ref *ref,
                        struct source *source) {
    int64_t shape[3];
    *source = (struct source){.transposed = ref->transposed,
                              .rows = stored_rows(ref),
                              .k = ref->k ? ref->k : 1,
                              .slab = ref->slabs ? loader->expert : 0};
    source->tensor = find(loader, ref, "");
    if (!source->tensor) return find_mx(loader, ref, source);
    int rank = stored_shape(ref, shape);
    if (!check_shape(loader, source->tensor, rank, shape)) return false;
    if (!tensor_is_real(source->tensor->type)) return bad_type(loader, source->tensor);
    if (source->tensor->type == TENSOR_F8_E4M3) return find_fp8_scale(loader, ref, source);
    return true;
}

struct tensor *weights_tensor(struct loader *loader, const struct weight_ref *ref) {
    struct source source;
    if (loader->failed || !find_source(loader, ref, &source)) return NULL;
    if (!source.scale) return source.tensor;
    bad_type(loader, source.tensor);
    return NULL;
}

void weights_rows(const struct tensor *tensor, int64_t first, int64_t count, int64_t k,
                  float *out) {
    tensor_read(tensor, first * k, count * k, out);
}

/* ---- decoding to f32 */

static const float mx_value[16] = {0,    .5f,  1,  1.5f,  2,  3,  4,  6,
                                   -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};

/* One stored row of MXFP4: value * 2^(scale - 127), low nibble first. */
static void read_mx(const struct source *source, int64_t row, float *out) {
    int64_t blocks = source->k / MX_BLOCK, at = (source->slab * source->rows + row) * blocks;
    for (int64_t b = 0; b < blocks; b++) {
        float scale = ldexpf(1, source->scale->data[at + b] - 127);
        const unsigned char *from = source->tensor->data + (at + b) * MX_BYTES;
        for (int i = 0; i < MX_BYTES; i++) {
            out[b * MX_BLOCK + 2 * i] = mx_value[from[i] & 15] * scale;
            out[b * MX_BLOCK + 2 * i + 1] = mx_value[from[i] >> 4] * scale;
        }
    }
}

/* Stored row `row` of `length` elements; FP8 tiles are scaled. */
static void read_stored(const struct source *source, const struct tensors *set, int64_t row,
                        int64_t rows, int64_t length, float *out) {
    tensor_read(source->tensor, (source->slab * rows + row) * length, length, out);
    if (!source->scale) return;
    int64_t tiles = (length + set->scale_columns - 1) / set->scale_columns;
    int64_t tile_rows = (rows + set->scale_rows - 1) / set->scale_rows;
    int64_t at = (source->slab * tile_rows + row / set->scale_rows) * tiles;
    for (int64_t t = 0; t < tiles; t++) {
        float scale;
        int64_t end = (t + 1) * set->scale_columns;
        tensor_read(source->scale, at + t, 1, &scale);
        for (int64_t i = t * set->scale_columns; i < end && i < length; i++) out[i] *= scale;
    }
}

struct decode {
    const struct source *source;
    const struct weight_ref *ref;
    const struct tensors *tensors;
    float *slab; /* [k, rows] as stored, when transposed */
    float *out;  /* [n, k] */
};

enum { DECODE_ROWS = 64 };

static int64_t ref_row(const struct weight_ref *ref, int64_t i) {
    return ref->row0 + i * (ref->row_step ? ref->row_step : 1);
}

static void decode_rows(void *context, int64_t job, int worker) {
    const struct decode *d = context;
    const struct source *s = d->source;
    int64_t end = (job + 1) * DECODE_ROWS;
    (void)worker;
    for (int64_t i = job * DECODE_ROWS; i < end && i < d->ref->n; i++) {
        int64_t row = ref_row(d->ref, i);
        float *out = d->out + i * s->k;
        if (s->mx)
            read_mx(s, row, out);
        else if (d->slab)
            for (int64_t j = 0; j < s->k; j++) out[j] = d->slab[j * s->rows + row];
        else
            read_stored(s, d->tensors, row, s->rows, s->k, out);
    }
}

static void decode_slab(void *context, int64_t job, int worker) {
    const struct decode *d = context;
    const struct source *s = d->source;
    int64_t end = (job + 1) * DECODE_ROWS;
    (void)worker;
    for (int64_t j = job * DECODE_ROWS; j < end && j < s->k; j++)
        read_stored(s, d->tensors, j, s->k, s->rows, d->slab + j * s->rows);
}

static int64_t jobs_for(int64_t rows) { return (rows + DECODE_ROWS - 1) / DECODE_ROWS; }

/* slab[k, rows] <- a matrix that is stored transposed. */
static void read_slab(struct loader *loader, const struct source *source, float *slab) {
    struct decode d = {source, NULL, loader->tensors, slab, NULL};
    if (source->transposed) pool_run(loader->pool, jobs_for(source->k), decode_slab, &d);
}

/* out[n,k] <- the matrix as f32; from the slab where it is transposed and there is one. */
static void decode(struct loader *loader, const struct weight_ref *ref, const struct source *source,
                   float *slab, float *out) {
    struct decode d = {source, ref, loader->tensors, source->transposed ? slab : NULL, out};
    pool_run(loader->pool, jobs_for(ref->n), decode_rows, &d);
}

/* ---- loading */

/* The next bytes of the layer's memory, or a count of them. */
static void *take(struct loader *loader, size_t bytes) {
    size_t begin = loader->used_bytes;
    loader->used_bytes = (begin + bytes + 63) & ~(size_t)63;
    if (!loader->memory || loader->used_bytes > loader->capacity_bytes) return NULL;
    return loader->memory + begin;
}

static float *scratch(struct loader *loader, size_t count) {
    if (count > loader->scratch_count) {
        free(loader->scratch);
        loader->scratch = malloc(count * sizeof *loader->scratch);
        loader->scratch_count = loader->scratch ? count : 0;
    }
    if (!loader->scratch) {
        refuse(loader);
        err_memory(loader->err, "weights in decoding");
    }
    return loader->scratch;
}

/* The kernels' name for an element type; false when it has to be decoded first. */
static bool kernel_type(enum tensor_type found, enum kernel_type *type) {
    static const enum kernel_type map[] = {
        [TENSOR_F32] = KERNEL_F32, [TENSOR_F16] = KERNEL_F16, [TENSOR_BF16] = KERNEL_BF16};
    if (found != TENSOR_F32 && found != TENSOR_F16 && found != TENSOR_BF16) return false;
    *type = map[found];
    return true;
}

/* Can the kernels read the rows as they lie in the file? */
static const void *as_stored(const struct weight_ref *ref, const struct source *source,
                             enum kernel_type *type) {
    if (!kernel_type(source->tensor->type, type)) return NULL;
    if (source->transposed || ref->row_step > 1) return NULL;
    int64_t size = *type == KERNEL_F32 ? 4 : 2;
    return source->tensor->data + (source->slab * source->rows + ref->row0) * source->k * size;
}

/* Pages that lie whole within a slab may leave memory. */
static void drop(const struct tensor *tensor, int64_t slabs, int64_t slab) {
    int64_t size = tensor->bytes / (slabs ? slabs : 1);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)(tensor->data + slab * size);
    uintptr_t end = (begin + (uintptr_t)size) / page * page;
    begin = (begin + page - 1) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void weights_drop(const struct tensor *tensor) { drop(tensor, 1, 0); }

/* Tells the system that the pages of a packed matrix are not needed soon: the resident set holds
 * the packed form alone. */
static void give_back(const struct weight_ref *ref, const struct source *source) {
    drop(source->tensor, ref->slabs, source->slab);
}

/* Asks for the pages of a matrix that is soon packed, as long as there is room for them. */
static void read_ahead(struct loader *loader, const struct weight_ref *ref,
                       const struct source *source) {
    size_t size = (size_t)(source->tensor->bytes / (ref->slabs ? ref->slabs : 1));
    if (!loader->ahead || loader->memory || size > loader->ahead_bytes) return;
    loader->ahead_bytes -= size;
    ahead_ask(loader->ahead, source->tensor->data + (size_t)source->slab * size, size);
}

/* Counts what a reference has taken from the file, for those who ask whether a pass reads twice. */
static void count_read(const struct weight_ref *ref, const struct source *source) {
    int64_t slabs = ref->slabs ? ref->slabs : 1;
    struct tensor *parts[] = {source->tensor, source->scale};
    for (int i = 0; i < 2 && parts[i]; i++) {
        int64_t bytes = parts[i]->bytes / slabs;
        parts[i]->read_bytes += ref->n == source->rows ? bytes : bytes / source->rows * ref->n;
    }
}

/* Packs one matrix, or two of one k as one (second NULL or absent: none). */
static void load_rows(struct loader *loader, const struct weight_ref *first,
                      const struct weight_ref *second, bool exact, struct packed **out) {
    struct source one, two = {0};
    enum kernel_type type = KERNEL_F32, other = KERNEL_F32;
    bool pair = second && second->name;
    if (!find_source(loader, first, &one) || (pair && !find_source(loader, second, &two))) return;
    int64_t n2 = pair ? second->n : 0, k = first->k;
    loader->parameters += (first->n + n2) * k;
    bool same = pair && two.tensor == one.tensor && two.slab == one.slab; /* rows of one matrix */
    read_ahead(loader, first, &one);
    if (pair && !same) read_ahead(loader, second, &two);
    const void *a = as_stored(first, &one, &type), *b = pair ? as_stored(second, &two, &other) : a;
    bool direct = a && b && (!pair || type == other);
    if (!direct) type = KERNEL_F32;
    bool bf16 = loader->bf16 && !exact;
    void *memory = take(loader, packed_bytes(type, first->n + n2, k, bf16));
    if (!memory) return;
    if (!direct) {
        size_t count = (size_t)((first->n + n2) * k);
        int64_t slab = one.transposed ? one.rows * k : 0;
        if (two.transposed && two.rows * k > slab) slab = two.rows * k;
        float *buffer = scratch(loader, count + (size_t)slab);
        if (!buffer) return;
        read_slab(loader, &one, buffer + count);
        decode(loader, first, &one, buffer + count, buffer);
        if (pair && !same) read_slab(loader, &two, buffer + count);
        if (pair) decode(loader, second, &two, buffer + count, buffer + first->n * k);
        a = buffer;
        b = buffer + first->n * k;
    }
    *out = packed_make2(loader->kernels, loader->pool, memory, type, a, first->n, pair ? b : NULL,
                        n2, k, bf16);
    give_back(first, &one);
    count_read(first, &one);
    if (!pair) return;
    give_back(second, &two);
    count_read(second, &two);
}

void load_matrix(struct loader *loader, const struct weight_ref *ref, bool exact,
                 struct packed **out) {
    *out = NULL;
    if (!loader->failed && ref->name) load_rows(loader, ref, NULL, exact, out);
}

void load_vector(struct loader *loader, const struct weight_ref *ref, const float **out) {
    struct source source;
    *out = NULL;
    if (loader->failed || !ref->name) return;
    if (ref->optional && !find(loader, ref, "")) return;
    if (!find_source(loader, ref, &source)) return;
    int64_t count = ref->n * (ref->k ? ref->k : 1);
    loader->parameters += count;
    float *memory = take(loader, (size_t)count * sizeof *memory);
    if (!memory) return;
    decode(loader, ref, &source, NULL, memory);
    count_read(ref, &source);
    *out = memory;
}

void load_norm(struct loader *loader, const struct norm_spec *norm, struct norm_weights *out) {
    load_vector(loader, &norm->weight, &out->weight);
    load_vector(loader, &norm->bias, &out->bias);
}

/* in_bias[2I] <- gate bias, then up bias; both or none. */
static void load_pair(struct loader *loader, const struct glu_spec *glu, const float **out) {
    const float *gate, *up;
    size_t begin = loader->used_bytes;
    if (!glu->gate_bias.name) return;
    load_vector(loader, &glu->gate_bias, &gate);
    loader->used_bytes =
        begin + (size_t)glu->width * sizeof *gate; /* closes the gap of alignment */
    load_vector(loader, &glu->up_bias, &up);
    *out = gate;
}

static void load_glu(struct loader *loader, const struct glu_spec *glu, struct glu_weights *out) {
    if (glu->width == 0 || loader->failed) return;
    load_rows(loader, &glu->gate, &glu->up, false, &out->in);
    if (loader->failed) return;
    load_matrix(loader, &glu->down, false, &out->down);
    load_pair(loader, glu, &out->in_bias);
    load_vector(loader, &glu->down_bias, &out->down_bias);
}

static void load_ffn(struct loader *loader, const struct ffn_spec *ffn, struct ffn_weights *out) {
    int experts = ffn->experts - ffn->identity_experts;
    load_glu(loader, &ffn->dense, &out->dense);
    if (ffn->experts == 0) return;
    load_matrix(loader, &ffn->router, true, &out->router);
    load_vector(loader, &ffn->router_bias, &out->router_bias);
    load_glu(loader, &ffn->shared, &out->shared);
    load_matrix(loader, &ffn->shared_gate, true, &out->shared_gate);
    if (loader->skip_experts) return;
    out->expert = take(loader, (size_t)experts * sizeof *out->expert);
    for (loader->expert = 0; loader->expert < experts && !loader->failed; loader->expert++) {
        struct glu_weights unused = {0}, *expert = &unused;
        if (out->expert) {
            expert = &out->expert[loader->expert];
            *expert = unused;
        }
        load_glu(loader, &ffn->expert, expert);
    }
    loader->expert = 0;
}

/* The rows of kv_b from their halves, head by head: k_b's rows, then v_b's. */
static bool decode_latent(struct loader *loader, const struct weight_ref *k_b,
                          const struct weight_ref *v_b, float *slab, float *out) {
    int64_t step = (k_b->n + v_b->n) * k_b->k;
    for (loader->expert = 0; loader->expert < k_b->slabs; loader->expert++) {
        struct source k, v;
        if (!find_source(loader, k_b, &k) || !find_source(loader, v_b, &v)) break;
        if (!out) break; /* only checked */
        read_slab(loader, &k, slab);
        decode(loader, k_b, &k, slab, out + loader->expert * step);
        read_slab(loader, &v, slab);
        decode(loader, v_b, &v, slab, out + loader->expert * step + k_b->n * k_b->k);
        count_read(k_b, &k);
        count_read(v_b, &v);
    }
    loader->expert = 0;
    return !loader->failed;
}

/* Latent attention whose kv_b the file holds in two tensors of a slab a head. */
static void load_latent(struct loader *loader, const struct weight_ref *k_b,
                        const struct weight_ref *v_b, struct packed **out) {
    if (loader->failed || !k_b->name || !decode_latent(loader, k_b, v_b, NULL, NULL)) return;
    int64_t n = k_b->slabs * (k_b->n + v_b->n), k = k_b->k;
    loader->parameters += n * k;
    void *memory = take(loader, packed_bytes(KERNEL_F32, n, k, loader->bf16));
    if (!memory) return;
    float *buffer = scratch(loader, (size_t)((n + k_b->n) * k));
    if (!buffer || !decode_latent(loader, k_b, v_b, buffer + n * k, buffer)) return;
    *out = packed_make2(loader->kernels, loader->pool, memory, KERNEL_F32, buffer, n, NULL, 0, k,
                        loader->bf16);
}

size_t expert_bytes(struct loader *loader, const struct ffn_spec *ffn, int expert) {
    struct glu_weights unused = {0};
    unsigned char *memory = loader->memory;
    size_t used = loader->used_bytes;
    loader->memory = NULL;
    loader->used_bytes = 0;
    loader->expert = expert;
    load_glu(loader, &ffn->expert, &unused);
    size_t bytes = loader->used_bytes;
    loader->expert = 0;
    loader->memory = memory;
    loader->used_bytes = used;
    return bytes;
}

bool load_expert(struct loader *loader, const struct ffn_spec *ffn, int expert,
                 struct glu_weights *out) {
    *out = (struct glu_weights){0};
    loader->expert = expert;
    load_glu(loader, &ffn->expert, out);
    return !loader->failed;
}

static void load_attention(struct loader *loader, const struct attention_spec *spec,
                           struct attention_weights *out) {
    load_matrix(loader, &spec->q, false, &out->q);
    load_matrix(loader, &spec->k, false, &out->k);
    load_matrix(loader, &spec->v, false, &out->v);
    load_matrix(loader, &spec->o, false, &out->o);
    load_matrix(loader, &spec->q_a, false, &out->q_a);
    load_matrix(loader, &spec->kv_a, false, &out->kv_a);
    load_matrix(loader, &spec->kv_b, false, &out->kv_b);
    load_latent(loader, &spec->k_b, &spec->v_b, &out->kv_b);
    load_matrix(loader, &spec->gate, false, &out->gate);
    load_vector(loader, &spec->q_bias, &out->q_bias);
    load_vector(loader, &spec->k_bias, &out->k_bias);
    load_vector(loader, &spec->v_bias, &out->v_bias);
    load_vector(loader, &spec->o_bias, &out->o_bias);
    load_vector(loader, &spec->q_a_bias, &out->q_a_bias);
    load_vector(loader, &spec->kv_a_bias, &out->kv_a_bias);
    load_vector(loader, &spec->sinks, &out->sinks);
    load_vector(loader, &spec->conv, &out->conv);
    load_vector(loader, &spec->conv_bias, &out->conv_bias);
    load_norm(loader, &spec->q_norm, &out->q_norm);
    load_norm(loader, &spec->k_norm, &out->k_norm);
}

bool load_layer(struct loader *loader, const struct layer_spec *layer, struct layer_weights *out) {
    memset(out, 0, sizeof *out);
    loader->layer = layer->number;
    loader->sub = layer->sub;
    load_norm(loader, &layer->attend.in, &out->attend_in);
    load_norm(loader, &layer->attend.out, &out->attend_out);
    load_norm(loader, &layer->feed.in, &out->feed_in);
    load_norm(loader, &layer->feed.out, &out->feed_out);
    load_attention(loader, &layer->attention, &out->attention);
    load_ffn(loader, &layer->ffn, &out->ffn);
    load_ffn(loader, &layer->side, &out->side);
    return !loader->failed;
}

void loader_free(struct loader *loader) {
    free(loader->scratch);
    loader->scratch = NULL;
    loader->scratch_count = 0;
}
