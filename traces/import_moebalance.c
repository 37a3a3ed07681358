/* import_moebalance.c - moe-balance JSON lines: one layer of one batch a line
 *
 * {"layer", "batch_id", "origin_rows": [n], "topk_experts": [n][k], ["topk_weights": [n][k]],
 * ["request_id", "source_file"]}. Rows are tokens; origin_rows number them within the batch. A
 * batch is a document, named by its source_file or request_id; every layer must have the same
 * batches in the same order, with the same rows. (Its .npz files are read by import_numpy.c.) */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "traces/import_build.h"
#include "traces/import_text.h"
#include "traces/importers.h"

bool import_moebalance_recognise(const char *path) {
    static const char *const marks[] = {"\"topk_experts\"", "\"layer\"", NULL};
    return import_text_holds(path, "{", marks);
}

struct target {
    struct build build;
    int64_t *batches; /* [layers of the builder] lines of each so far; owned */
    int batch_lists;
    const char *source, *domain;
    struct arena *arena;
};

static int64_t *batches_of(struct target *to, int index, struct err *err) {
    if (index >= to->batch_lists) {
        int64_t *grown = realloc(to->batches, ((size_t)index + 1) * sizeof *grown);
        if (!grown) {
            err_memory(err, "layers");
            return NULL;
        }
        to->batches = grown;
        grown[index] = 0;
        to->batch_lists = index + 1;
    }
    return &to->batches[index];
}

/* Weights of a row; -1 when they are none. */
static int read_weights(const struct json *row, float *out) {
    int k = 0;
    for (const struct json *w = row ? json_first(row) : NULL; w; w = json_next(w)) {
        if (k == GATE_MAX_TOPK || json_kind(w) != JSON_NUMBER) return -1;
        out[k++] = (float)json_number(w);
    }
    return k;
}

static bool add_rows(struct target *to, const struct json *line, int layer, int64_t *count,
                     struct err *err) {
    const struct json *weights = json_present(line, "topk_weights");
    const struct json *w = weights ? json_first(weights) : NULL;
    *count = 0;
    for (const struct json *row = json_first(json_present(line, "topk_experts")); row;
         row = json_next(row), ++*count) {
        int32_t expert[GATE_MAX_TOPK];
        float weight[GATE_MAX_TOPK];
        int k = import_json_ids(row, GATE_MAX_TOPK, GATE_MAX_EXPERTS, expert);
        if (k < 1 || (weights && (!w || read_weights(w, weight) != k)))
            return err_set(err, ERR_FORMAT,
                           "topk_experts: row %lld: found no ids (with as many "
                           "topk_weights)",
                           (long long)*count);
        struct build_layer *at = build_layer(&to->build, layer, k, err);
        if (!at || !build_add(&to->build, at, 1, expert, weights ? weight : NULL, err))
            return false;
        if (w) w = json_next(w);
    }
    return *count > 0 || err_set(err, ERR_FORMAT, "topk_experts: found no row");
}

/* The first layer's lines make the documents; other layers must have as many rows. */
static bool add_tokens(struct target *to, const struct json *line, int64_t count, struct err *err) {
    const struct json *rows = json_present(line, "origin_rows"), *row = rows ? json_first(rows) : 0;
    const char *name = json_text(json_present(line, "source_file"));
    if (!name) name = json_text(json_present(line, "request_id"));
    name = name ? arena_text(to->arena, name, strlen(name)) : to->source;
    if (!name) return err_memory(err, "documents");
    for (int64_t t = 0; t < count; t++) {
        double position = row ? json_number(row) : -1;
        const struct build_token token = {
            .source = t ? NULL : name,
            .domain = to->domain,
            .id = -1,
            .position = position >= 0 && position < INT32_MAX ? (int32_t)position : -1,
            .nll = (float)NAN};
        if (!build_token(&to->build, &token, err)) return false;
        if (row) row = json_next(row);
    }
    return true;
}

static bool add_line(void *context, const struct json *line, struct err *err) {
    struct target *to = context;
    int64_t layer, count;
    int index = 0;
    if (!json_get_int(line, "layer", 0, 100000, -1, &layer, err)) return false;
    if (layer < 0 || !json_present(line, "topk_experts"))
        return err_set(err, ERR_FORMAT, "found no layer and topk_experts");
    if (!add_rows(to, line, (int)layer, &count, err)) return false;
    while (to->build.layers[index].layer != layer) index++;
    int64_t *batch = batches_of(to, index, err);
    if (!batch || (index == 0 && !add_tokens(to, line, count, err))) return false;
    if (*batch < to->build.document_count && to->build.documents[*batch].tokens != count)
        return err_set(err, ERR_DATA, "layer %lld: batch %lld: found %lld rows, expected %lld",
                       (long long)layer, (long long)*batch, (long long)count,
                       (long long)to->build.documents[*batch].tokens);
    ++*batch;
    return true;
}

bool import_moebalance_open(const struct import_job *job, struct import_source *source,
                            struct err *err) {
    struct target to = {.arena = &source->arena};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++) {
        const char *path = job->files[i];
        to.source = file_name(path);
        to.domain = job->domain ? job->domain : import_stem(to.arena, path);
        ok = (to.domain || err_memory(err, path)) && import_json_each(path, add_line, &to, err);
        ok = ok || import_context(err, path);
    }
    bool weighted = to.build.layer_count && to.build.layers[0].weighted;
    ok = ok && (build_finish(&to.build, job, source, "moe-balance",
                             weighted ? "router scores" : "router scores; weights", err) ||
                import_context(err, job->files[0]));
    free(to.batches);
    build_free(&to.build);
    return ok;
}
