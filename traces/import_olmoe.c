/* import_olmoe.c - OLMoE's routing analysis: lines of chosen ids, and pickled counters
 *
 * JSON lines {"input_ids": [T], "exp_ids": [T][k][layers]} (k before layers; layers numbered from
 * 0, or 0, 7, 15 where there are three): chosen ids with token ids, one document a line.
 * Pickles: a list of counters {expert: n} (expert_counts, one a layer), of {expert: {token: n}}
 * (eid2token), or of {(expert at one layer, expert at the next): n} (expert_counts_crosslayer,
 * one a pair of neighbours): counts, --gate for k. Lists of three are layers 0, 7, 15, pairs of
 * two are 0-7 and 7-15, as the study has them; others are numbered from 0. Layout: allenai/OLMoE,
 * scripts/run_routing_analysis.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/gzip.h"
#include "traces/import_build.h"
#include "traces/import_count.h"
#include "traces/import_text.h"
#include "traces/importers.h"
#include "traces/pickle.h"

/* The study looks at three layers of sixteen. */
static int layer_number(int index, int count) {
    static const int studied[] = {0, 7, 15};
    return count == 3 ? studied[index] : index;
}

static bool is_pickle(const char *path) {
    struct err ignored;
    size_t len;
    char *head = gzip_head(path, 4, &len, &ignored);
    bool found = head && len >= 3 && (unsigned char)head[0] == 0x80 && head[1] >= 2 && head[1] <= 5;
    free(head);
    return found;
}

bool import_olmoe_recognise(const char *path) {
    static const char *const marks[] = {"\"exp_ids\"", NULL};
    return is_pickle(path) || import_text_holds(path, "{", marks);
}

/* ---- chosen ids */

struct target {
    struct build *build;
    const char *source, *domain;
};

enum { MAX_LAYERS = 1024 };

/* One token: [k][layers]. */
static bool add_token(struct build *build, const struct json *ranks, struct err *err) {
    int row[MAX_LAYERS], k = json_count(ranks), layers = 0, j = 0;
    int32_t *expert = k > 0 && k <= GATE_MAX_TOPK ? malloc((size_t)k * MAX_LAYERS * 4) : NULL;
    bool ok = expert != NULL || err_set(err, ERR_FORMAT, "exp_ids: found %d experts of a token", k);
    for (const struct json *r = json_first(ranks); ok && r; r = json_next(r), j++) {
        int n = import_json_ids(r, MAX_LAYERS, GATE_MAX_EXPERTS, row);
        if (n < 1 || (j && n != layers))
            ok = err_set(err, ERR_FORMAT, "exp_ids: found no list of ids [k][layers]");
        layers = n;
        for (int l = 0; ok && l < n; l++) expert[l * k + j] = row[l];
    }
    for (int l = 0; ok && l < layers; l++) {
        struct build_layer *layer = build_layer(build, layer_number(l, layers), k, err);
        ok = layer && build_add(build, layer, 1, expert + l * k, NULL, err);
    }
    free(expert);
    return ok;
}

static bool add_document(void *context, const struct json *document, struct err *err) {
    struct target *to = context;
    const struct json *tokens = json_present(document, "exp_ids");
    const struct json *inputs = json_present(document, "input_ids");
    if (!tokens || json_kind(tokens) != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, "found no list exp_ids");
    const struct json *id = inputs ? json_first(inputs) : NULL;
    bool first = true;
    for (const struct json *t = json_first(tokens); t; t = json_next(t), first = false) {
        double value = id ? json_number(id) : -1;
        const struct build_token token = {.source = first ? to->source : NULL,
                                          .domain = to->domain,
                                          .id = value >= 0 && value <= INT32_MAX ? (int32_t)value
                                                                                 : -1,
                                          .position = -1,
                                          .nll = (float)NAN};
        if (!add_token(to->build, t, err) || !build_token(to->build, &token, err)) return false;
        if (id) id = json_next(id);
    }
    return true;
}

/* ---- pickled counters */

static bool key_of(const struct pickle *key, int64_t *expert) {
    *expert = key->integer;
    return key->kind == PICKLE_INT && key->integer >= 0 && key->integer < GATE_MAX_EXPERTS;
}

static bool sum_of(const struct pickle *value, double *sum) {
    *sum = value->real;
    if (value->kind == PICKLE_INT) return true;
    *sum = 0;
    for (int i = 1; value->kind == PICKLE_DICT && i < value->count; i += 2) {
        if (value->items[i]->kind != PICKLE_INT) return false;
        *sum += value->items[i]->real;
    }
    return value->kind == PICKLE_DICT;
}

/* The counts of one layer: of the expert itself, or of one side of a pair. */
static bool add_counter(struct count_build *build, const struct pickle *counter, int side,
                        int layer, struct err *err) {
    bool ok = counter->kind == PICKLE_DICT;
    for (int i = 0; ok && i + 1 < counter->count; i += 2) {
        const struct pickle *key = counter->items[i];
        int64_t expert;
        double count;
        bool pair = key->kind == PICKLE_LIST && key->count == 2;
        if (pair != (side >= 0) || !key_of(pair ? key->items[side] : key, &expert) ||
            !sum_of(counter->items[i + 1], &count))
            ok = false;
        else if (!count_add(build, layer, build->document_count, expert, count, err))
            return false;
    }
    return ok || err_set(err, ERR_FORMAT,
                         "found no list of counters {expert: n}, {expert: {token: n}} or "
                         "{(expert, expert): n}");
}

static bool add_counters(struct count_build *build, const struct pickle *root, struct err *err) {
    if (root->kind != PICKLE_LIST || root->count < 1)
        return err_set(err, ERR_FORMAT, "found no list of counters");
    const struct pickle *first = root->items[0];
    bool pairs = first->kind == PICKLE_DICT && first->count && first->items[0]->kind == PICKLE_LIST;
    int layers = root->count + pairs;
    for (int i = 0; i < root->count; i++)
        if (!add_counter(build, root->items[i], pairs ? 0 : -1, layer_number(i, layers), err))
            return false;
    return !pairs || add_counter(build, root->items[root->count - 1], 1,
                                 layer_number(layers - 1, layers), err);
}

static bool read_pickle(const char *path, const char *domain, struct count_build *build,
                        struct err *err) {
    struct arena arena;
    size_t len;
    char *bytes = gzip_whole(path, (size_t)1 << 30, &len, err);
    if (!bytes) return false;
    arena_init(&arena, "pickle");
    const struct pickle *root = pickle_read(&arena, (const unsigned char *)bytes, len, err);
    bool ok = root && add_counters(build, root, err) &&
              count_document(build, file_name(path), domain, 0, err);
    arena_free(&arena);
    free(bytes);
    return ok;
}

bool import_olmoe_open(const struct import_job *job, struct import_source *source,
                       struct err *err) {
    struct build ids = {0};
    struct count_build counts = {0};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++) {
        const char *path = job->files[i], *stem = import_stem(&source->arena, path);
        struct target target = {&ids, file_name(path), job->domain ? job->domain : stem};
        ok = (stem || err_memory(err, path)) &&
             (is_pickle(path) ? read_pickle(path, target.domain, &counts, err)
                              : import_json_each(path, add_document, &target, err));
        ok = ok || import_context(err, path);
    }
    if (ok && ids.tokens && counts.count)
        ok = err_set(err, ERR_DATA, "%s: found files of counts and of ids, expected one kind",
                     job->files[0]);
    if (ok)
        ok = (counts.count
                  ? count_finish(&counts, job, true, source, "olmoe", err)
                  : build_finish(&ids, job, source, "olmoe", "router scores; weights", err)) ||
             import_context(err, job->files[0]);
    build_free(&ids);
    count_free(&counts);
    return ok;
}
