/* import_megatron.c - Megatron's router trace: router_trace_rankR.jsonl with logits_rankR.bin
 * beside it
 *
 * A line is one layer of one step: {"step", "block": "decoder"|"mtp", "layer", "num_tokens",
 * "topk", "top_indices": [[k]...], and with logits: "logit_offset", "logit_bytes", "logit_shape":
 * [tokens, E]}. top_indices are ascending, not in order of selection. The side file holds bf16
 * little-endian, which is exact in f32. With logits in all lines the trace holds scores (--gate
 * says how they were used), else ids. Several files (ranks) are one after the other. Blocks other
 * than the decoder are left out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/lines.h"
#include "base/str.h"
#include "traces/import_build.h"
#include "traces/import_logits.h"
#include "traces/importers.h"

/* A run of tokens of a layer in a side file. */
struct segment {
    int64_t first, tokens;     /* of the layer */
    const unsigned char *data; /* bf16 [tokens, E] */
};

struct segments {
    struct segment *items;
    int64_t count;
    int layer, experts;
};

struct megatron {
    struct build build; /* choices of every layer */
    struct segments *layers;
    int layer_count;
    struct file_map *maps; /* side file of each file */
    int map_count;
    bool some, all; /* lines with logits */
};

bool import_megatron_recognise(const char *path) {
    struct err ignored;
    struct file_map map;
    if (!file_map(path, &map, &ignored)) return false;
    size_t n = map.size_bytes < 1 << 20 ? map.size_bytes : 1 << 20;
    bool found = n && map.data[0] == '{' && memmem(map.data, n, "\"top_indices\"", 13) &&
                 memmem(map.data, n, "\"num_tokens\"", 12);
    file_unmap(&map);
    return found;
}

static void megatron_free(void *own) {
    struct megatron *m = own;
    build_free(&m->build);
    for (int i = 0; i < m->layer_count; i++) free(m->layers[i].items);
    for (int i = 0; i < m->map_count; i++) file_unmap(&m->maps[i]);
    free(m->layers);
    free(m->maps);
    free(m);
}

static struct segments *segments_of(struct megatron *m, int layer, int experts, struct err *err) {
    for (int i = 0; i < m->layer_count; i++) {
        if (m->layers[i].layer != layer) continue;
        if (m->layers[i].experts == experts) return &m->layers[i];
        err_set(err, ERR_FORMAT, "logit_shape: found %d experts, before %d", experts,
                m->layers[i].experts);
        return NULL;
    }
    struct segments *layers = realloc(m->layers, ((size_t)m->layer_count + 1) * sizeof *layers);
    if (!layers) {
        err_memory(err, "layers");
        return NULL;
    }
    m->layers = layers;
    layers[m->layer_count] = (struct segments){.layer = layer, .experts = experts};
    return &layers[m->layer_count++];
}

/* The logits of a line, at `first` of its layer. */
static bool add_logits(struct megatron *m, const struct json *line, int64_t layer, int64_t tokens,
                       int64_t first, const struct file_map *side, struct err *err) {
    int64_t offset, bytes;
    const struct json *shape = json_present(line, "logit_shape");
    if (!shape) {
        m->all = false;
        return true;
    }
    const struct json *rows = json_first(shape), *columns = rows ? json_next(rows) : NULL;
    double e = columns ? json_number(columns) : 0;
    m->some = true;
    if (!json_get_int(line, "logit_offset", 0, INT64_C(1) << 50, -1, &offset, err) ||
        !json_get_int(line, "logit_bytes", 0, INT64_C(1) << 50, -1, &bytes, err))
        return false;
    if (json_number(rows) != (double)tokens || !(e >= 1 && e <= GATE_MAX_EXPERTS) ||
        bytes != tokens * (int64_t)e * 2)
        return err_set(err, ERR_FORMAT, "logit_shape: does not fit num_tokens and logit_bytes");
    if (offset < 0 || (uint64_t)offset + (uint64_t)bytes > side->size_bytes)
        return err_set(err, ERR_FORMAT, "logit_offset: found %lld, the side file has %zu bytes",
                       (long long)offset, side->size_bytes);
    struct segments *segments = segments_of(m, (int)layer, (int)e, err);
    if (!segments) return false;
    struct segment *items = realloc(segments->items, ((size_t)segments->count + 1) * sizeof *items);
    if (!items) return err_memory(err, "segments");
    segments->items = items;
    items[segments->count++] = (struct segment){first, tokens, side->data + offset};
    return true;
}

static bool add_line(struct megatron *m, const struct json *line, const struct file_map *side,
                     struct err *err) {
    const char *block;
    int64_t layer, tokens, topk;
    if (!json_get_text(line, "block", "decoder", &block, err) ||
        !json_get_int(line, "layer", 0, 100000, -1, &layer, err) ||
        !json_get_int(line, "num_tokens", 0, 1 << 30, -1, &tokens, err) ||
        !json_get_int(line, "topk", 1, GATE_MAX_TOPK, -1, &topk, err))
        return false;
    if (strcmp(block, "decoder") != 0) return true;
    const struct json *rows = json_present(line, "top_indices");
    if (layer < 0 || topk < 1 || !rows || json_count(rows) != tokens)
        return err_set(err, ERR_FORMAT, "found no layer, topk and top_indices of num_tokens rows");
    struct build_layer *to = build_layer(&m->build, (int)layer, (int)topk, err);
    if (!to || !add_logits(m, line, layer, tokens, to->tokens, side, err)) return false;
    for (const struct json *row = json_first(rows); row; row = json_next(row)) {
        int32_t expert[GATE_MAX_TOPK];
        int k = 0;
        for (const struct json *e = json_first(row); e && k < topk; e = json_next(e)) {
            double id = json_number(e);
            expert[k++] = id >= 0 && id < GATE_MAX_EXPERTS ? (int32_t)id : -1;
        }
        if (k != topk || json_count(row) != topk)
            return err_set(err, ERR_FORMAT, "top_indices: found %d ids in a row, expected %lld",
                           json_count(row), (long long)topk);
        if (!build_add(&m->build, to, 1, expert, NULL, err)) return false;
    }
    return true;
}

/* logits_rankR.bin beside router_trace_rankR.jsonl; absent when no logits were recorded. */
static bool open_side(struct megatron *m, const char *path, struct err *err) {
    const char *name = file_name(path), *rank = strstr(name, "rank");
    struct str side = {0};
    str_append(&side, path, (size_t)(name - path));
    str_printf(&side, "logits_rank%d.bin", rank ? atoi(rank + 4) : 0);
    m->maps[m->map_count++] = (struct file_map){0};
    bool ok = !side.failed && (!file_exists(str_text(&side)) ||
                               file_map(str_text(&side), &m->maps[m->map_count - 1], err));
    str_free(&side);
    return ok;
}

static int64_t longest(const struct build *build) {
    int64_t most = 0;
    for (int i = 0; i < build->layer_count; i++)
        if (build->layers[i].tokens > most) most = build->layers[i].tokens;
    return most;
}

static bool add_file(struct megatron *m, const struct import_job *job, int file,
                     struct arena *arena, struct err *err) {
    size_t len;
    char *line;
    const char *path = job->files[file], *stem = import_stem(arena, path);
    if (!open_side(m, path, err)) return false;
    struct lines *lines = lines_open(path, err);
    if (!lines) return false;
    bool ok;
    int64_t before = longest(&m->build);
    while ((ok = lines_next(lines, &line, &len, err)) && line) {
        if (!len) continue;
        struct json *doc = json_parse(line, len, err);
        ok = (doc && add_line(m, doc, &m->maps[file], err)) ||
             err_context(err, "line %lld", (long long)lines_number(lines));
        json_free(doc);
        if (!ok) break;
    }
    lines_close(lines);
    return ok && build_document(&m->build, file_name(path), job->domain ? job->domain : stem,
                                longest(&m->build) - before, NULL, err);
}

/* bf16 to f32, from the segments that hold the tokens asked for. */
static void read_logits(const struct logits_layer *layer, int64_t first, int64_t n, float *out) {
    const struct segments *segments = layer->array;
    int64_t low = 0, high = segments->count, e = layer->experts;
    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (segments->items[mid].first <= first)
            low = mid;
        else
            high = mid;
    }
    for (const struct segment *s = &segments->items[low]; n > 0; s++) {
        int64_t at = first - s->first, m = s->tokens - at < n ? s->tokens - at : n;
        for (int64_t i = 0; i < m * e; i++, out++) {
            const unsigned char *half = s->data + 2 * (at * e + i);
            uint32_t bits = (uint32_t)half[0] << 16 | (uint32_t)half[1] << 24;
            memcpy(out, &bits, 4);
        }
        first += m;
        n -= m;
    }
}

static bool finish_logits(struct megatron *m, const struct import_job *job,
                          struct import_source *source, struct err *err) {
    struct logits_source from = {.read = read_logits, .own = m, .close_own = megatron_free};
    from.layers = arena_alloc(&source->arena, (size_t)m->layer_count, sizeof *from.layers);
    if (!from.layers) {
        megatron_free(m);
        return err_memory(err, "layers");
    }
    for (int i = 0; i < m->layer_count; i++) {
        const struct build_layer *chosen = NULL;
        for (int j = 0; j < m->build.layer_count; j++)
            if (m->build.layers[j].layer == m->layers[i].layer) chosen = &m->build.layers[j];
        from.layers[from.count++] = (struct logits_layer){.layer = m->layers[i].layer,
                                                          .experts = m->layers[i].experts,
                                                          .tokens = chosen ? chosen->tokens : 0,
                                                          .array = &m->layers[i],
                                                          .build = &m->build,
                                                          .chosen = chosen};
    }
    return logits_finish(&from, job, source, "megatron", err);
}

bool import_megatron_open(const struct import_job *job, struct import_source *source,
                          struct err *err) {
    struct megatron *m = calloc(1, sizeof *m);
    if (!m) return err_memory(err, "import");
    m->all = true;
    m->maps = calloc((size_t)job->file_count, sizeof *m->maps);
    bool ok = m->maps || err_memory(err, "import");
    for (int i = 0; ok && i < job->file_count; i++)
        ok = add_file(m, job, i, &source->arena, err) || import_context(err, job->files[i]);
    if (ok && m->some && !m->all)
        ok = err_set(err, ERR_DATA, "%s: found logits in some lines only, expected all or none",
                     job->files[0]);
    if (ok && m->some)
        return finish_logits(m, job, source, err) || import_context(err, job->files[0]);
    ok = ok && (build_finish(&m->build, job, source, "megatron",
                             "router scores; weights; order of selection", err) ||
                import_context(err, job->files[0]));
    megatron_free(m);
    return ok;
}
