/* import_eplb.c - vLLM EPLB load dumps (llm-d): loads of physical experts, window by window
 *
 * {"num_moe_layers", "num_logical_experts", "window_size", "snapshots": [{"step",
 * "window_expert_load": [L][P], "physical_to_logical_map": [L][P]}]}; optional
 * "num_experts_per_token" (else --gate) and "layers". Loads of an expert's replicas are added. A
 * snapshot is a document where windows do not overlap (steps at least window_size apart); else the
 * last one alone is read, and the trace says so. */
#include <string.h>

#include "base/file.h"
#include "traces/import_count.h"
#include "traces/import_text.h"
#include "traces/importers.h"

enum { MAX_LAYERS = 4096 };

bool import_eplb_recognise(const char *path) {
    static const char *const marks[] = {"\"window_expert_load\"", "\"snapshots\"", NULL};
    return import_text_holds(path, "{", marks);
}

struct target {
    struct count_build *build;
    const char *source, *domain;
    int64_t layers, experts;
    int number[MAX_LAYERS]; /* of each layer */
};

static bool add_layer(struct target *to, const struct json *loads, const struct json *map,
                      int64_t layer, struct err *err) {
    const struct json *slot = json_first(map);
    for (const struct json *n = json_first(loads); n; n = json_next(n)) {
        double expert = slot ? json_number(slot) : -1;
        if (!(expert >= 0 && expert < (double)to->experts))
            return err_set(err, ERR_FORMAT,
                           "physical_to_logical_map: layer %lld: found %g, expected an expert "
                           "below %lld for each load",
                           (long long)layer, expert, (long long)to->experts);
        if (!count_add(to->build, to->number[layer], to->build->document_count, (int64_t)expert,
                       json_number(n), err))
            return false;
        slot = json_next(slot);
    }
    return true;
}

static bool add_snapshot(struct target *to, const struct json *snapshot, struct err *err) {
    const struct json *loads = json_present(snapshot, "window_expert_load");
    const struct json *map = json_present(snapshot, "physical_to_logical_map");
    if (!loads || !map || json_count(loads) != to->layers || json_count(map) != to->layers)
        return err_set(err, ERR_FORMAT,
                       "snapshots: found no window_expert_load and physical_to_logical_map of %lld "
                       "layers",
                       (long long)to->layers);
    const struct json *l = json_first(loads), *m = json_first(map);
    for (int64_t layer = 0; layer < to->layers; layer++, l = json_next(l), m = json_next(m))
        if (!add_layer(to, l, m, layer, err)) return false;
    return count_document(to->build, to->source, to->domain, 0, err);
}

/* The last snapshot's element when windows overlap, else the first. */
static bool first_to_read(const struct json *list, int64_t window, const struct json **first,
                          struct err *err) {
    int64_t before = INT64_MIN / 2, step;
    const struct json *last = NULL;
    *first = json_first(list);
    for (const struct json *s = *first; s; s = json_next(s)) {
        if (!json_get_int(s, "step", 0, INT64_C(1) << 50, -1, &step, err)) return false;
        if (last && (step < 0 || step - before < window)) *first = NULL;
        before = step;
        last = s;
    }
    if (!*first) *first = last;
    return last || err_set(err, ERR_DATA, "snapshots: found none");
}

static bool add_dump(void *context, const struct json *dump, struct err *err) {
    struct target *to = context;
    int64_t window, topk;
    const struct json *list = json_present(dump, "snapshots"), *first;
    const struct json *layers = json_present(dump, "layers");
    if (!list) return err_set(err, ERR_FORMAT, "found no snapshots");
    if (!json_get_int(dump, "num_moe_layers", 1, MAX_LAYERS, -1, &to->layers, err) ||
        !json_get_int(dump, "num_logical_experts", 1, GATE_MAX_EXPERTS, -1, &to->experts, err) ||
        !json_get_int(dump, "window_size", 0, INT64_C(1) << 50, 1, &window, err) ||
        !json_get_int(dump, "num_experts_per_token", 1, GATE_MAX_TOPK, 0, &topk, err) ||
        !first_to_read(list, window, &first, err))
        return false;
    if (to->layers < 1 || to->experts < 1)
        return err_set(err, ERR_FORMAT, "found no num_moe_layers and num_logical_experts");
    for (int i = 0; i < to->layers; i++) to->number[i] = i;
    if (layers && import_json_ids(layers, MAX_LAYERS, 100000, to->number) != to->layers)
        return err_set(err, ERR_FORMAT, "layers: found no list of %lld numbers",
                       (long long)to->layers);
    to->build->topk = (int)topk;
    to->build->experts = (int)to->experts;
    if (first != json_first(list)) to->build->note = "; earlier snapshots (their windows overlap)";
    for (const struct json *s = first; s; s = json_next(s))
        if (!add_snapshot(to, s, err)) return false;
    return true;
}

bool import_eplb_open(const struct import_job *job, struct import_source *source, struct err *err) {
    struct count_build build = {0};
    const char *stem = import_stem(&source->arena, job->files[0]);
    struct target target = {.build = &build,
                            .source = file_name(job->files[0]),
                            .domain = job->domain ? job->domain : stem};
    if (job->file_count != 1)
        return err_set(err, ERR_USAGE, "eplb: found %d files, expected 1", job->file_count);
    bool ok = (stem || err_memory(err, "import")) &&
              import_json_each(job->files[0], add_dump, &target, err) &&
              count_finish(&build, job, false, source, "eplb", err);
    count_free(&build);
    return ok || import_context(err, job->files[0]);
}
