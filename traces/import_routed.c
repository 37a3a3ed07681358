/* import_routed.c - JSON records of routing from studies
 *
 * {"selections": [token][layer][k]}                     chosen ids (stratamoe-lab)
 * {"router_data": [{"token_P": {"layer_i": {"selected_experts": [k], "selected_probs": [k]}}}]}
 *                                                        chosen ids and weights (gpt-oss
 * fingerprints) one a line: {"example_index", "routed": {"layer": [[expert, count], ...]}} counts a
 * document (experts4bit-qlora; --gate for k) Plain or gzip. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "traces/import_build.h"
#include "traces/import_count.h"
#include "traces/importers.h"
#include "traces/inflate.h"

static const char *const marks[] = {"\"selections\"", "\"router_data\"", "\"routed\""};

bool import_routed_recognise(const char *path) {
    struct err ignored;
    size_t len;
    char *text = inflate_file(path, (size_t)1 << 28, &len, &ignored);
    bool found = false;
    for (size_t i = 0; text && text[0] == '{' && i < sizeof marks / sizeof *marks; i++)
        found = found || strstr(text, marks[i]) != NULL;
    free(text);
    return found;
}

/* A list of numbers, as ids or as reals; its length, or -1. */
static int read_ids(const struct json *list, int32_t *out) {
    int k = 0;
    for (const struct json *e = list ? json_first(list) : NULL; e; e = json_next(e)) {
        double x = json_number(e);
        if (k == GATE_MAX_TOPK || !(x >= 0 && x < GATE_MAX_EXPERTS)) return -1;
        out[k++] = (int32_t)x;
    }
    return k;
}

static bool add_selections(const struct json *tokens, struct build *build, int64_t *count,
                           struct err *err) {
    for (const struct json *t = json_first(tokens); t; t = json_next(t), (*count)++) {
        int number = 0;
        for (const struct json *l = json_first(t); l; l = json_next(l)) {
            int32_t expert[GATE_MAX_TOPK];
            int k = read_ids(l, expert);
            struct build_layer *layer = k > 0 ? build_layer(build, number++, k, err) : NULL;
            if (k <= 0) return err_set(err, ERR_FORMAT, "selections: found no list of expert ids");
            if (!layer || !build_add(layer, 1, expert, NULL, err)) return false;
        }
    }
    return true;
}

static bool add_chosen(const struct json *layer, struct build *build, struct err *err) {
    int32_t expert[GATE_MAX_TOPK];
    float weight[GATE_MAX_TOPK];
    const char *key = json_key(layer);
    const struct json *probs = json_present(layer, "selected_probs");
    int k = read_ids(json_present(layer, "selected_experts"), expert), n = 0;
    for (const struct json *p = probs ? json_first(probs) : NULL; p && n < k; p = json_next(p))
        weight[n++] = (float)json_number(p);
    if (strncmp(key, "layer_", 6) != 0 || k < 1 || (probs && n != k))
        return err_set(err, ERR_FORMAT, "%.40s: found no selected_experts with as many probs", key);
    struct build_layer *to = build_layer(build, atoi(key + 6), k, err);
    return to && build_add(to, 1, expert, probs ? weight : NULL, err);
}

static bool add_router_data(const struct json *tokens, struct build *build, int64_t *count,
                            struct err *err) {
    for (const struct json *t = json_first(tokens); t; t = json_next(t))
        for (const struct json *token = json_first(t); token; token = json_next(token), (*count)++)
            for (const struct json *l = json_first(token); l; l = json_next(l))
                if (!add_chosen(l, build, err)) return err_context(err, "%.40s", json_key(token));
    return true;
}

/* A whole document; or a list of documents with router_data. */
static bool add_document(const struct json *doc, struct build *build, const char *source,
                         const char *domain, struct err *err) {
    if (json_kind(doc) == JSON_ARRAY) {
        for (const struct json *d = json_first(doc); d; d = json_next(d))
            if (!add_document(d, build, source, domain, err)) return false;
        return true;
    }
    const struct json *selections = json_present(doc, "selections");
    const struct json *data = json_present(doc, "router_data");
    int64_t tokens = 0;
    if (!selections && !data)
        return err_set(err, ERR_FORMAT, "found neither selections nor router_data");
    return (selections ? add_selections(selections, build, &tokens, err)
                       : add_router_data(data, build, &tokens, err)) &&
           build_document(build, source, domain, tokens, NULL, err);
}

/* ---- counts, one document a line */

static bool add_counts(const struct json *routed, struct count_build *build, int64_t document,
                       struct err *err) {
    for (const struct json *l = json_first(routed); l; l = json_next(l))
        for (const struct json *pair = json_first(l); pair; pair = json_next(pair)) {
            const struct json *expert = json_first(pair), *n = expert ? json_next(expert) : NULL;
            double id = expert ? json_number(expert) : -1;
            if (!n || !(id >= 0 && id < GATE_MAX_EXPERTS))
                return err_set(err, ERR_FORMAT, "routed: found no [expert, count]");
            if (!count_add(build, atoi(json_key(l)), document, (int64_t)id, json_number(n), err))
                return false;
        }
    return true;
}

static bool read_lines(const char *text, size_t len, struct count_build *build, const char *source,
                       const char *domain, struct err *err) {
    int64_t number = 0;
    for (const char *line = text, *end = text + len; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((newline ? newline : end) - line);
        number++;
        struct json *doc = n > 1 ? json_parse(line, n, err) : NULL;
        const struct json *routed = doc ? json_present(doc, "routed") : NULL;
        bool ok = n <= 1 || (routed && add_counts(routed, build, build->document_count, err) &&
                             count_document(build, source, domain, 0, err));
        if (doc && !routed) err_set(err, ERR_FORMAT, "found no routed");
        json_free(doc);
        if (!ok) return err_context(err, "line %lld", (long long)number);
        line += n + 1;
    }
    return true;
}

static bool open_file(const struct import_job *job, int file, struct arena *arena,
                      struct build *ids, struct count_build *counts, struct err *err) {
    size_t len;
    const char *source = file_name(job->files[file]);
    const char *domain = job->domain ? job->domain : import_stem(arena, job->files[file]);
    char *text = inflate_file(job->files[file], (size_t)1 << 34, &len, err);
    if (!text || !domain) {
        free(text);
        return text || err->code ? false : err_memory(err, "domain");
    }
    bool lines = strstr(text, marks[2]) && !strstr(text, marks[0]) && !strstr(text, marks[1]);
    struct json *doc = lines ? NULL : json_parse(text, len, err);
    bool ok = lines ? read_lines(text, len, counts, source, domain, err)
                    : doc && add_document(doc, ids, source, domain, err);
    json_free(doc);
    free(text);
    return ok;
}

bool import_routed_open(const struct import_job *job, struct import_source *source,
                        struct err *err) {
    struct build ids = {0};
    struct count_build counts = {0};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++)
        ok = open_file(job, i, &source->arena, &ids, &counts, err) ||
             import_context(err, job->files[i]);
    if (ok && ids.tokens && counts.count)
        ok = err_set(err, ERR_DATA, "found files of counts and of ids, expected one kind");
    if (ok)
        ok = (counts.count ? count_finish(&counts, job, true, source, "routed", err)
                           : build_finish(&ids, job, source, "routed", "router scores", err)) ||
             import_context(err, job->files[0]);
    build_free(&ids);
    count_free(&counts);
    return ok;
}
