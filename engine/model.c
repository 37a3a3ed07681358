/* model.c - opening a checkpoint: config to spec, tensors checked, routers read, layers packed */
#include "engine/model.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/pages.h"
#include "base/str.h"
#include "engine/checkpoint.h"
#include "engine/families.h"
#include "engine/gguf_model.h"

static const size_t CONFIG_MAX_BYTES = (size_t)16 << 20;
/* A model smaller than this is read faster than a thread starts to pay. */
static const size_t AHEAD_FROM_BYTES = (size_t)64 << 20;

struct loader model_loader(const struct engine *engine, struct err *err) {
    return (struct loader){.tensors = &engine->tensors,
                           .kernels = engine->kernels,
                           .pool = engine->pool,
                           .bf16 = engine->bf16,
                           .err = err};
}

static unsigned char *aligned(size_t bytes, struct err *err) {
    void *memory = pages_alloc(bytes);
    if (!memory) err_memory(err, "weights of a layer");
    return memory;
}

/* Packs one layer into memory. */
static bool pack_layer(struct engine *engine, int step, unsigned char *memory,
                       struct layer_weights *out, struct err *err) {
    struct loader loader = model_loader(engine, err);
    loader.memory = memory;
    loader.capacity_bytes = engine->layer_bytes[step];
    loader.skip_experts = engine->grouped;
    bool ok = load_layer(&loader, &engine->spec.layer[step], out);
    loader_free(&loader);
    return ok;
}

const struct layer_weights *model_layer(struct engine *engine, int step, struct err *err) {
    if (!engine->resident) {
        if (!engine->shared_memory) engine->shared_memory = aligned(engine->largest_bytes, err);
        if (!engine->shared_memory) return NULL;
        bool ok = pack_layer(engine, step, engine->shared_memory, &engine->shared, err);
        return ok ? &engine->shared : NULL;
    }
    if (engine->layer_memory[step]) return &engine->layers[step];
    unsigned char *memory = aligned(engine->layer_bytes[step], err);
    if (!memory) return NULL;
    if (!pack_layer(engine, step, memory, &engine->layers[step], err)) {
        free(memory);
        return NULL;
    }
    engine->layer_memory[step] = memory;
    return &engine->layers[step];
}

/* ---- opening */

static bool read_config(struct engine *engine, const char *folder, struct err *err) {
    struct str path = {0};
    size_t len = 0;
    struct json *root = NULL;
    bool ok = false;
    file_join(&path, folder, "config.json");
    char *text = file_read(str_text(&path), CONFIG_MAX_BYTES, &len, err);
    if (!text) goto done;
    root = json_parse(text, len, err);
    if (!root) {
        err_context(err, "%s", str_text(&path));
        goto done;
    }
    engine->info.config_json = arena_text(&engine->arena, text, len);
    ok = engine->info.config_json || err_memory(err, "text of config.json");
    ok = ok && spec_build(root, str_text(&path), &engine->arena, &engine->spec, err) &&
         spec_quantization(root, str_text(&path), &engine->tensors, err);
done:
    json_free(root);
    free(text);
    str_free(&path);
    return ok;
}

/* Opens the files and builds the spec, from a folder or from a GGUF file. */
static bool read_model(struct engine *engine, const char *path, struct err *err) {
    const struct gguf *head = NULL;
    if (gguf_is(path))
        return gguf_checkpoint_open(path, &engine->tensors, &head, err) &&
               gguf_spec(head, &engine->tensors, &engine->arena, &engine->spec,
                         &engine->info.config_json, err);
    if (file_is_folder(path))
        return checkpoint_open(path, &engine->tensors, err) && read_config(engine, path, err);
    return err_set(err, ERR_FORMAT,
                   "%s: found no folder, expected one with config.json and *.safetensors, or a "
                   "GGUF file",
                   path);
}

/* Loads a small vector that lives as long as the engine. */
static const float *keep_vector(struct engine *engine, int layer, const struct weight_ref *ref,
                                struct err *err) {
    const float *out = NULL;
    struct loader loader = model_loader(engine, err);
    if (!ref->name) return NULL;
    loader.layer = layer;
    load_vector(&loader, ref, &out);
    loader.memory = arena_alloc(&engine->arena, loader.used_bytes, 1);
    loader.capacity_bytes = loader.used_bytes;
    loader.used_bytes = 0;
    if (!loader.failed && loader.capacity_bytes) load_vector(&loader, ref, &out);
    loader_free(&loader);
    return out;
}

static bool finite(const float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(values[i] - values[i] == 0)) return false;
    return true;
}

static bool open_router(struct engine *engine, int step, struct err *err) {
    const struct layer_spec *layer = &engine->spec.layer[step];
    const struct ffn_spec *ffn = layer_mixture(layer);
    engine->router_of[step] = -1;
    if (!ffn) return true;
    struct engine_router *router = &engine->router[engine->info.routers];
    router->layer = layer->number;
    router->experts = ffn->experts;
    router->gate = ffn->gate;
    err->code = ERR_NONE;
    router->bias = keep_vector(engine, layer->number, &ffn->correction, err);
    if (err->code != ERR_NONE) return false;
    if (router->bias && !finite(router->bias, ffn->experts))
        return err_set(err, ERR_DATA,
                       "%s: correction bias of layer %d: found NaN or infinity, "
                       "expected finite numbers",
                       engine->tensors.path, layer->number);
    if (!router->bias) router->gate.bias = false; /* the file has none where that is allowed */
    engine->router_of[step] = engine->info.routers++;
    return true;
}

/* Checks every tensor that the spec names, and counts what each layer needs. */
static bool check_layers(struct engine *engine, struct err *err) {
    struct layer_weights unused;
    struct loader loader = model_loader(engine, err);
    struct model_spec *spec = &engine->spec;
    for (int i = 0; i < spec->steps; i++) {
        loader.used_bytes = 0;
        if (!load_layer(&loader, &spec->layer[i], &unused)) return false;
        if (!open_router(engine, i, err)) return false;
        engine->layer_bytes[i] = loader.used_bytes;
        if (loader.used_bytes > engine->largest_bytes) engine->largest_bytes = loader.used_bytes;
    }
    engine->embedding = weights_tensor(&loader, &spec->embedding);
    if (!engine->embedding) return false;
    loader.parameters += spec->embedding.n * spec->embedding.k;
    if (!spec->tied) {
        if (!weights_tensor(&loader, &spec->head)) return false;
        loader.parameters += spec->head.n * spec->head.k;
    }
    load_norm(&loader, &spec->norm, &engine->norm);
    if (loader.failed) return false;
    engine->info.parameters = loader.parameters;
    engine->norm.weight = keep_vector(engine, 0, &spec->norm.weight, err);
    engine->norm.bias = keep_vector(engine, 0, &spec->norm.bias, err);
    engine->head_bias = keep_vector(engine, 0, &spec->head_bias, err);
    return err->code == ERR_NONE;
}

static bool begins(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool ends(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && strcmp(text + n - m, tail) == 0;
}

/* Tensors that no forward pass needs: buffers, extra prediction layers, a stored copy of tied
 * weights, and what the family lists. */
static bool may_ignore(const struct engine *engine, const struct tensor *tensor) {
    const char *name = tensor->name, *layers = "model.layers.";
    for (const char *const *i = engine->spec.ignored; i && *i; i++)
        if (strstr(name, *i)) return true;
    if (ends(name, "rotary_emb.inv_freq") || begins(name, "mtp.") || begins(name, "model.mtp"))
        return true;
    if (gguf_beyond(name, engine->spec.layers)) return true;
    if (begins(name, layers)) return atoll(name + strlen(layers)) >= engine->spec.layers;
    return engine->spec.tied && strcmp(name, "lm_head.weight") == 0;
}

/* A tensor that the spec does not use means another model than the config says: refused. */
static bool check_unused(const struct engine *engine, struct err *err) {
    for (int64_t i = 0; i < engine->tensors.count; i++) {
        const struct tensor *tensor = &engine->tensors.items[i];
        if (tensor->used || may_ignore(engine, tensor)) continue;
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: %s: found a tensor that %s with this configuration does not use",
                       tensor->file, tensor->name, engine->spec.family);
    }
    return true;
}

/* Layers without their routed experts, which are packed in groups within what is left. */
static bool group_experts(struct engine *engine, size_t limit, struct err *err) {
    struct loader loader = model_loader(engine, err);
    struct layer_weights unused;
    size_t most = 0;
    loader.skip_experts = true;
    engine->grouped = true;
    engine->largest_bytes = 0;
    for (int i = 0; i < engine->spec.steps; i++) {
        const struct layer_spec *layer = &engine->spec.layer[i];
        loader.used_bytes = 0;
        if (!load_layer(&loader, layer, &unused)) return false;
        engine->layer_bytes[i] = loader.used_bytes;
        if (loader.used_bytes > engine->largest_bytes) engine->largest_bytes = loader.used_bytes;
        const struct ffn_spec *ffn = layer_mixture(layer);
        for (int e = 0; ffn && e < ffn->experts - ffn->identity_experts; e++) {
            size_t one = expert_bytes(&loader, ffn, e);
            if (one > most) most = one;
        }
    }
    if (engine->largest_bytes + most > limit)
        return err_set(err, ERR_USAGE,
                       "memory: found %zu bytes, expected at least %zu: twice the largest layer "
                       "with one routed expert, packed",
                       engine->memory_bytes, 2 * (engine->largest_bytes + most));
    engine->group_bytes = limit - engine->largest_bytes;
    return true;
}

/* Packed layers stay in memory when they fit well: in half of the machine, or of the bound. Else
 * one layer at a time is; within a bound that holds no whole layer, experts come in groups. */
static bool decide_residence(struct engine *engine, struct err *err) {
    size_t total = 0, half = engine->memory_bytes / 2;
    size_t limit = (size_t)sysconf(_SC_PHYS_PAGES) / 2 * (size_t)sysconf(_SC_PAGESIZE);
    if (half > 0 && half < limit) limit = half;
    for (int i = 0; i < engine->spec.steps; i++) total += engine->layer_bytes[i];
    engine->resident = total <= limit;
    if (!engine->resident || total > AHEAD_FROM_BYTES) engine->ahead = ahead_create();
    if (engine->memory_bytes == 0 || engine->largest_bytes <= half) return true;
    return group_experts(engine, half, err);
}

void model_read_ahead(const struct engine *engine, int step) {
    struct layer_weights unused;
    struct err ignored;
    struct loader loader = model_loader(engine, &ignored);
    struct packed *head;
    bool last = step == engine->spec.steps;
    if (!engine->ahead || (engine->resident && (last || engine->layer_memory[step]))) return;
    loader.ahead = engine->ahead;
    loader.ahead_bytes = engine->memory_bytes ? engine->memory_bytes / 2 : engine->largest_bytes;
    loader.skip_experts = engine->grouped;
    if (last)
        load_matrix(&loader, &engine->spec.head, false, &head);
    else
        load_layer(&loader, &engine->spec.layer[step], &unused);
}

bool model_experts(struct engine *engine, int step, struct loader *loader, struct err *err) {
    *loader = model_loader(engine, err);
    loader->layer = engine->spec.layer[step].number;
    loader->sub = engine->spec.layer[step].sub;
    loader->capacity_bytes = engine->group_bytes;
    if (!engine->group_memory) engine->group_memory = aligned(engine->group_bytes, err);
    loader->memory = engine->group_memory;
    return loader->memory != NULL;
}

static bool allocate(struct engine *engine, struct err *err) {
    size_t steps = (size_t)engine->spec.steps;
    engine->router = arena_alloc(&engine->arena, steps, sizeof *engine->router);
    engine->router_of = arena_alloc(&engine->arena, steps, sizeof *engine->router_of);
    engine->layer_bytes = arena_alloc(&engine->arena, steps, sizeof *engine->layer_bytes);
    engine->layer_memory = arena_alloc(&engine->arena, steps, sizeof *engine->layer_memory);
    engine->layers = arena_alloc(&engine->arena, steps, sizeof *engine->layers);
    if (engine->router && engine->router_of && engine->layer_bytes && engine->layer_memory &&
        engine->layers)
        return true;
    return err_memory(err, "table of layers");
}

static void describe(struct engine *engine, const char *name) {
    struct engine_info *info = &engine->info;
    const struct model_spec *spec = &engine->spec;
    info->family = spec->family;
    info->name = name;
    info->layers = spec->layers;
    info->hidden = spec->hidden;
    info->vocab = spec->vocab;
    info->max_positions = spec->max_positions;
    info->bos = spec->bos;
    info->router = engine->router;
}

/* The last part of a path, without a trailing slash. */
static char *path_name(struct arena *arena, const char *path) {
    size_t end = strlen(path), begin;
    while (end > 1 && path[end - 1] == '/') end--;
    for (begin = end; begin > 0 && path[begin - 1] != '/';) begin--;
    return arena_text(arena, path + begin, end - begin);
}

struct engine *engine_open(const char *path, const struct engine_options *options,
                           struct err *err) {
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine) {
        err_memory(err, "engine");
        return NULL;
    }
    err->code = ERR_NONE;
    arena_init(&engine->arena, "model");
    arena_init(&engine->scratch, "step");
    engine->pool = options->pool;
    engine->bf16 = options->bf16;
    engine->memory_bytes = options->memory_bytes > 0 ? (size_t)options->memory_bytes : 0;
    engine->kernels = kernels_select(options->kernels, err);
    char *name = path_name(&engine->arena, path);
    bool ok = engine->kernels && (name || err_memory(err, "name of the model"));
    ok = ok && read_model(engine, path, err) && allocate(engine, err) &&
         check_layers(engine, err) && check_unused(engine, err) && gates_native(engine, err);
    if (!ok && engine->kernels && err->code == ERR_USAGE) err->code = ERR_FORMAT; /* of the file */
    ok = ok && decide_residence(engine, err);
    if (!ok) {
        engine_close(engine);
        return NULL;
    }
    describe(engine, name);
    return engine;
}

void engine_close(struct engine *engine) {
    if (!engine) return;
    for (int i = 0; engine->layer_memory && i < engine->spec.steps; i++)
        free(engine->layer_memory[i]);
    free(engine->shared_memory);
    free(engine->group_memory);
    ahead_free(engine->ahead);
    tensors_close(&engine->tensors);
    gates_free(engine);
    arena_free(&engine->arena);
    arena_free(&engine->scratch);
    free(engine);
}

const struct engine_info *engine_info(const struct engine *engine) { return &engine->info; }

int64_t engine_read_bytes(const struct engine *engine) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < engine->tensors.count; i++)
        bytes += engine->tensors.items[i].read_bytes;
    return bytes;
}
