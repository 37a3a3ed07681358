/* import_routed.c - JSON records of routing from studies, plain or gzip
 *
 * {"selections": [token][layer][k], "expertsPerLayer": E}: chosen ids (stratamoe-lab). Its
 *     capture-metadata.json beside it says which tokens are which prompt, and the model's layers.
 * {"router_data": [{"token_P": {"layer_i": {"selected_experts": [k], "selected_probs": [k]}}}],
 *     "category": ...}: chosen ids and weights, P = position (gpt-oss fingerprints).
 * One a line {"example_index", "routed": {"layer": [[expert, count], ...]}}: counts a document
 *     (experts4bit-qlora; --gate for k).
 * {"layer": {"expert": {"activation_tokens": n, "gate_values_sum": w}, ..., "total_tokens": T}}:
 *     counts (MGSM study of Qwen3); k = sum / T to one in a hundred, the sums of weights are not
 *     kept. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "traces/import_build.h"
#include "traces/import_count.h"
#include "traces/import_text.h"
#include "traces/importers.h"

bool import_routed_recognise(const char *path) {
    static const char *const marks[][2] = {{"\"selections\"", NULL},
                                           {"\"router_data\"", NULL},
                                           {"\"routed\"", NULL},
                                           {"\"activation_tokens\"", NULL}};
    bool found = false;
    for (size_t i = 0; !found && i < sizeof marks / sizeof *marks; i++)
        found = import_text_holds(path, "{[", marks[i]);
    return found;
}

/* Where the records of a file go. */
struct target {
    struct build ids;
    struct count_build counts;
    const struct import_job *job;
    struct arena *arena;
    const char *path, *domain; /* domain: of the job, else the file's name */
    double off;                /* most choices that a layer's sum is away from k x tokens */
};

/* ---- selections */

/* capture-metadata.json: which tokens are which prompt, which layers of the model. */
static bool add_prompts(struct target *to, const struct json *meta, int64_t count,
                        struct err *err) {
    const struct json *spans = json_present(meta, "prompt_spans");
    int64_t done = 0;
    for (const struct json *s = spans ? json_first(spans) : NULL; s; s = json_next(s)) {
        int64_t start, end;
        const char *id;
        if (!json_get_text(s, "id", "", &id, err) ||
            !json_get_int(s, "token_start", 0, count, -1, &start, err) ||
            !json_get_int(s, "token_end_exclusive", 0, count, -1, &end, err))
            return false;
        id = arena_text(to->arena, id, strlen(id));
        if (start != done || end < start)
            return err_set(err, ERR_DATA,
                           "prompt_spans: found tokens %lld to %lld, expected from %lld",
                           (long long)start, (long long)end, (long long)done);
        if (!id || !build_document(&to->ids, id, to->domain, end - start, NULL, err))
            return id ? false : err_memory(err, "documents");
        done = end;
    }
    return done == count ||
           build_document(&to->ids, file_name(to->path), to->domain, count - done, NULL, err);
}

static void renumber(struct build *build, const struct json *meta) {
    int layers[1024];
    const struct json *list = json_present(meta, "sparse_encoder_block_indices");
    int n = import_json_ids(list, 1024, 100000, layers);
    for (int i = 0; n == build->layer_count && i < n; i++)
        if (layers[i] >= 0) build->layers[i].layer = layers[i];
}

static bool add_documents(struct target *to, int64_t count, struct err *err) {
    struct str beside = {0};
    size_t folder = (size_t)(file_name(to->path) - to->path);
    str_append(&beside, to->path, folder);
    str_puts(&beside, "capture-metadata.json");
    bool there = !beside.failed && file_exists(str_text(&beside));
    struct json *meta = there ? json_read(str_text(&beside), 1 << 28, err) : NULL;
    bool ok = beside.failed ? err_memory(err, to->path) : meta || !there;
    if (ok && meta) ok = add_prompts(to, meta, count, err);
    if (ok && meta) renumber(&to->ids, meta);
    if (ok && !meta)
        ok = build_document(&to->ids, file_name(to->path), to->domain, count, NULL, err);
    json_free(meta);
    str_free(&beside);
    return ok;
}

static bool add_selections(struct target *to, const struct json *doc, struct err *err) {
    int64_t count = 0, experts;
    if (!json_get_int(doc, "expertsPerLayer", 0, GATE_MAX_EXPERTS, 0, &experts, err)) return false;
    if (to->ids.tokens)
        return err_set(err, ERR_USAGE, "selections: found several files, expected 1");
    to->ids.experts = (int)experts;
    const struct json *tokens = json_present(doc, "selections");
    for (const struct json *t = json_first(tokens); t; t = json_next(t), count++) {
        int number = 0;
        for (const struct json *l = json_first(t); l; l = json_next(l)) {
            int32_t expert[GATE_MAX_TOPK];
            int k = import_json_ids(l, GATE_MAX_TOPK, GATE_MAX_EXPERTS, expert);
            struct build_layer *layer = k > 0 ? build_layer(&to->ids, number++, k, err) : NULL;
            if (k <= 0) return err_set(err, ERR_FORMAT, "selections: found no list of expert ids");
            if (!layer || !build_add(&to->ids, layer, 1, expert, NULL, err)) return false;
        }
    }
    return add_documents(to, count, err);
}

/* ---- router_data */

static bool add_chosen(const struct json *layer, struct build *build, struct err *err) {
    int32_t expert[GATE_MAX_TOPK];
    float weight[GATE_MAX_TOPK];
    const char *key = json_key(layer);
    const struct json *probs = json_present(layer, "selected_probs");
    int k = import_json_ids(json_present(layer, "selected_experts"), GATE_MAX_TOPK,
                            GATE_MAX_EXPERTS, expert),
        n = 0;
    for (const struct json *p = probs ? json_first(probs) : NULL; p && n < k; p = json_next(p))
        weight[n++] = (float)json_number(p);
    if (strncmp(key, "layer_", 6) != 0 || k < 1 || (probs && n != k))
        return err_set(err, ERR_FORMAT, "%.40s: found no selected_experts with as many probs", key);
    struct build_layer *to = build_layer(build, atoi(key + 6), k, err);
    return to && build_add(build, to, 1, expert, probs ? weight : NULL, err);
}

static bool add_router_data(struct target *to, const struct json *doc, struct err *err) {
    const char *category, *source = file_name(to->path);
    if (!json_get_text(doc, "category", "", &category, err)) return false;
    const char *domain = *category && !to->job->domain
                             ? arena_text(to->arena, category, strlen(category))
                             : to->domain;
    bool first = true;
    for (const struct json *t = json_first(json_present(doc, "router_data")); t; t = json_next(t))
        for (const struct json *at = json_first(t); at; at = json_next(at), first = false) {
            const char *key = json_key(at);
            bool numbered = strncmp(key, "token_", 6) == 0 && key[6] >= '0' && key[6] <= '9';
            const struct build_token token = {.source = first ? source : NULL,
                                              .domain = domain,
                                              .id = -1,
                                              .position = numbered ? atoi(key + 6) : -1,
                                              .nll = (float)NAN};
            for (const struct json *l = json_first(at); l; l = json_next(l))
                if (!add_chosen(l, &to->ids, err)) return err_context(err, "%.40s", key);
            if (!build_token(&to->ids, &token, err)) return false;
        }
    return true;
}

/* ---- counts */

static bool add_routed(struct target *to, const struct json *routed, struct err *err) {
    struct count_build *build = &to->counts;
    for (const struct json *l = json_first(routed); l; l = json_next(l))
        for (const struct json *pair = json_first(l); pair; pair = json_next(pair)) {
            const struct json *expert = json_first(pair), *n = expert ? json_next(expert) : NULL;
            double id = expert ? json_number(expert) : -1;
            if (!n || !(id >= 0 && id < GATE_MAX_EXPERTS))
                return err_set(err, ERR_FORMAT, "routed: found no [expert, count]");
            if (!count_add(build, atoi(json_key(l)), build->document_count, (int64_t)id,
                           json_number(n), err))
                return false;
        }
    return count_document(build, file_name(to->path), to->domain, 0, err);
}

/* One layer: its counts; k from their sum, which is not exact in these files. */
static bool add_tally(struct target *to, const struct json *layer, int64_t *tokens,
                      struct err *err) {
    struct count_build *build = &to->counts;
    int64_t total, expert = -1;
    double sum = 0;
    if (!json_get_int(layer, "total_tokens", 1, INT64_C(1) << 50, -1, &total, err)) return false;
    for (const struct json *e = json_first(layer); e; e = json_next(e)) {
        double count = json_number(json_member(e, "activation_tokens"));
        if (strcmp(json_key(e), "total_tokens") == 0) continue;
        if (isnan(count) ||
            !parse_int(json_key(e), "expert", 0, GATE_MAX_EXPERTS - 1, &expert, err))
            return err_set(err, ERR_FORMAT, "%.20s: found no activation_tokens", json_key(e));
        sum += count;
        if (!count_add(build, atoi(json_key(layer)), build->document_count, expert, count, err))
            return false;
        if (expert >= build->experts) build->experts = (int)expert + 1;
    }
    double k = total > 0 ? round(sum / (double)total) : 0, off = fabs(sum - k * (double)total);
    if (k < 1 || k > GATE_MAX_TOPK || off > 0.01 * sum || (*tokens && total != *tokens) ||
        (build->topk && k != build->topk))
        return err_set(err, ERR_DATA,
                       "found %.0f choices of %lld tokens, expected k x tokens to 1 %%, and the "
                       "same k and tokens at every layer",
                       sum, (long long)total);
    build->topk = (int)k;
    *tokens = total;
    if (off > to->off) to->off = off;
    return true;
}

static bool add_tallies(struct target *to, const struct json *doc, struct err *err) {
    int64_t tokens = 0;
    for (const struct json *layer = json_first(doc); layer; layer = json_next(layer))
        if (!add_tally(to, layer, &tokens, err))
            return err_context(err, "layer %.20s", json_key(layer));
    return count_document(&to->counts, file_name(to->path), to->domain, tokens, err);
}

/* ---- documents */

static bool add_document(void *context, const struct json *doc, struct err *err) {
    struct target *to = context;
    const struct json *first = json_first(doc), *routed = json_present(doc, "routed");
    if (json_kind(doc) == JSON_ARRAY) {
        for (const struct json *d = first; d; d = json_next(d))
            if (!add_document(to, d, err)) return false;
        return true;
    }
    if (json_present(doc, "selections")) return add_selections(to, doc, err);
    if (json_present(doc, "router_data")) return add_router_data(to, doc, err);
    if (routed) return add_routed(to, routed, err);
    if (first && json_member(json_first(first), "activation_tokens"))
        return add_tallies(to, doc, err);
    return err_set(err, ERR_FORMAT,
                   "found none of selections, router_data, routed, activation_tokens");
}

static bool finish(struct target *to, struct import_source *source, struct err *err) {
    char *note = arena_alloc(to->arena, 96, 1);
    if (to->ids.tokens && to->counts.count)
        return err_set(err, ERR_DATA, "found files of counts and of ids, expected one kind");
    if (!note) return err_memory(err, "import");
    if (!to->counts.count)
        return build_finish(&to->ids, to->job, source, "routed",
                            to->ids.layer_count && to->ids.layers[0].weighted
                                ? "router scores"
                                : "router scores; weights",
                            err);
    if (to->off > 0) {
        snprintf(note, 96, "; up to %.0f choices of a layer (its sum is not k x tokens)", to->off);
        to->counts.note = note;
    }
    return count_finish(&to->counts, to->job, to->off == 0, source, "routed", err);
}

bool import_routed_open(const struct import_job *job, struct import_source *source,
                        struct err *err) {
    struct target to = {.job = job, .arena = &source->arena};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++) {
        to.path = job->files[i];
        to.domain = job->domain ? job->domain : import_stem(to.arena, to.path);
        ok = (to.domain || err_memory(err, "domain")) &&
             import_json_each(to.path, add_document, &to, err);
        ok = ok || import_context(err, job->files[i]);
    }
    ok = ok && (finish(&to, source, err) || import_context(err, job->files[0]));
    build_free(&to.ids);
    count_free(&to.counts);
    return ok;
}
