/* import_csv.c - comma-separated tables: our own, counts, and lists of activations
 *
 * Told by the names in the header, plain or gzip:
 *   layer, token, rank, expert [, weight, document, domain, position, id, nll]   chosen ids: what
 *       `export --to csv` writes; its column of the chosen experts' logits is not read;
 *   layer (or layer_id), expert (or expert_id), count [, document]               counts, added up
 *       over files (SGLang's older dumps: one file a rank) and rows; --gate for k;
 *   layer, expert                                                              one row a choice,
 *       in runs of one layer; --gate for k (llama.cpp). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/gzip.h"
#include "traces/import_build.h"
#include "traces/import_count.h"
#include "traces/import_text.h"
#include "traces/importers.h"

/* Columns by name; -1 = not there. */
struct columns {
    int layer, token, rank, expert, weight, document, domain, position, id, nll, count;
};

static int find(const struct csv *csv, const char *name, const char *other) {
    int column = csv_find(csv, name);
    return column < 0 && other ? csv_find(csv, other) : column;
}

static struct columns find_columns(const struct csv *csv) {
    return (struct columns){.layer = find(csv, "layer", "layer_id"),
                            .token = find(csv, "token", NULL),
                            .rank = find(csv, "rank", NULL),
                            .expert = find(csv, "expert", "expert_id"),
                            .weight = find(csv, "weight", NULL),
                            .document = find(csv, "document", NULL),
                            .domain = find(csv, "domain", NULL),
                            .position = find(csv, "position", NULL),
                            .id = find(csv, "id", NULL),
                            .nll = find(csv, "nll", NULL),
                            .count = find(csv, "count", NULL)};
}

bool import_csv_recognise(const char *path) {
    struct err ignored;
    size_t len;
    char *head = gzip_head(path, 1 << 16, &len, &ignored);
    size_t line = head ? strcspn(head, "\r\n") : 0;
    struct csv *csv = line ? csv_parse(path, head, line, &ignored) : NULL;
    bool found = false;
    if (csv) {
        struct columns c = find_columns(csv);
        found = c.layer >= 0 && c.expert >= 0 &&
                ((c.token >= 0 && c.rank >= 0) || c.count >= 0 || csv_columns(csv) == 2);
    }
    csv_free(csv);
    free(head);
    return found;
}

/* ---- chosen ids */

struct reading {
    struct csv *csv; /* its row 0 is the next one to be taken */
    struct columns at;
    struct build *build;
    struct arena *arena;
    const char *source, *stem;
    const char *domain; /* of the job; NULL = of the file, or its stem */
    int first_layer;    /* whose rows say what the tokens are */
    int64_t document;   /* of the last token */
    bool weighted;
};

/* An integer that may be missing; -1 then. */
static bool optional_int(const struct csv *csv, int column, int64_t *out, struct err *err) {
    *out = -1;
    return column < 0 || !*csv_text(csv, 0, column) ||
           csv_int(csv, 0, column, -1, INT32_MAX, out, err);
}

static bool layer_and_token(const struct reading *r, int64_t *layer, int64_t *token,
                            struct err *err) {
    return csv_int(r->csv, 0, r->at.layer, 0, 100000, layer, err) &&
           csv_int(r->csv, 0, r->at.token, 0, INT64_C(1) << 50, token, err);
}

static bool take_token(struct reading *r, struct err *err) {
    int64_t document, id, position;
    double nll = (double)NAN;
    if (!optional_int(r->csv, r->at.document, &document, err) ||
        !optional_int(r->csv, r->at.id, &id, err) ||
        !optional_int(r->csv, r->at.position, &position, err))
        return false;
    if (r->at.nll >= 0 && *csv_text(r->csv, 0, r->at.nll) &&
        !csv_real(r->csv, 0, r->at.nll, -1e30, 1e30, &nll, err))
        return false;
    bool another = !r->build->tokens || document != r->document;
    if (another && r->build->tokens && document != r->document + 1)
        return err_set(err, ERR_DATA, "line %lld: found document %lld, expected %lld or %lld",
                       (long long)csv_line(r->csv, 0), (long long)document, (long long)r->document,
                       (long long)r->document + 1);
    struct build_token token = {
        .id = (int32_t)id, .position = (int32_t)position, .nll = (float)nll};
    if (another) {
        const char *domain =
            r->domain || r->at.domain < 0 ? r->domain : csv_text(r->csv, 0, r->at.domain);
        token.source = r->source;
        token.domain = domain ? arena_text(r->arena, domain, strlen(domain)) : r->stem;
    }
    r->document = document;
    return build_token(r->build, &token, err);
}

/* The rows of one token at one layer. */
static bool take_choice(struct reading *r, struct err *err) {
    int32_t expert[GATE_MAX_TOPK];
    float weight[GATE_MAX_TOPK];
    int64_t layer, token, rank, id, start = csv_line(r->csv, 0);
    int k = 0;
    double w = 0;
    if (!layer_and_token(r, &layer, &token, err) ||
        (layer == r->first_layer && !take_token(r, err)))
        return false;
    for (int64_t l = layer, t = token; csv_rows(r->csv); k++) {
        if (!layer_and_token(r, &l, &t, err)) return false;
        if (l != layer || t != token) break;
        if (!csv_int(r->csv, 0, r->at.rank, k, k, &rank, err) ||
            !csv_int(r->csv, 0, r->at.expert, 0, GATE_MAX_EXPERTS - 1, &id, err) ||
            (r->weighted && !csv_real(r->csv, 0, r->at.weight, -1e30, 1e30, &w, err)))
            return false;
        if (k == GATE_MAX_TOPK)
            return err_set(err, ERR_FORMAT, "line %lld: found more than %d experts of a token",
                           (long long)csv_line(r->csv, 0), GATE_MAX_TOPK);
        expert[k] = (int32_t)id;
        weight[k] = (float)w;
        if (!csv_next(r->csv, err)) return false;
    }
    struct build_layer *to = build_layer(r->build, (int)layer, k, err);
    if (!to) return false;
    if (token != to->tokens)
        return err_set(err, ERR_DATA, "line %lld: layer %lld: found token %lld, expected %lld",
                       (long long)start, (long long)layer, (long long)token, (long long)to->tokens);
    return build_add(r->build, to, 1, expert, r->weighted ? weight : NULL, err);
}

static bool read_choices(struct reading *r, struct err *err) {
    int64_t layer = 0;
    if (csv_rows(r->csv) && !csv_int(r->csv, 0, r->at.layer, 0, 100000, &layer, err)) return false;
    r->first_layer = (int)layer;
    r->weighted = r->at.weight >= 0 && csv_rows(r->csv) && *csv_text(r->csv, 0, r->at.weight);
    while (csv_rows(r->csv))
        if (!take_choice(r, err)) return false;
    return true;
}

/* ---- one row a choice */

/* The rows of one token: as many as it has experts, of one layer. */
static bool take_run(struct reading *r, int topk, int64_t *longest, struct err *err) {
    int64_t layer, expert, start = csv_line(r->csv, 0);
    int32_t chosen[GATE_MAX_TOPK];
    if (!csv_int(r->csv, 0, r->at.layer, 0, 100000, &layer, err)) return false;
    struct build_layer *to = build_layer(r->build, (int)layer, topk, err);
    if (!to) return false;
    for (int j = 0; j < topk; j++) {
        if (!csv_rows(r->csv))
            return err_set(err, ERR_DATA,
                           "line %lld: found %d more rows of layer %lld, expected %d of a token",
                           (long long)start, j, (long long)layer, topk);
        if (!csv_int(r->csv, 0, r->at.layer, layer, layer, &layer, err) ||
            !csv_int(r->csv, 0, r->at.expert, 0, GATE_MAX_EXPERTS - 1, &expert, err) ||
            !csv_next(r->csv, err))
            return false;
        chosen[j] = (int32_t)expert;
    }
    if (!build_add(r->build, to, 1, chosen, NULL, err)) return false;
    if (to->tokens > *longest) *longest = to->tokens;
    return true;
}

static bool read_runs(struct reading *r, int topk, struct err *err) {
    int64_t longest = 0;
    while (csv_rows(r->csv))
        if (!take_run(r, topk, &longest, err)) return false;
    return build_document(r->build, r->source, r->domain ? r->domain : r->stem, longest, NULL, err);
}

/* ---- counts */

static bool read_counts(const struct reading *r, struct count_build *counts, struct err *err) {
    while (csv_rows(r->csv)) {
        int64_t layer, expert, document = 0, most = INT64_C(1) << 50, count;
        if (!csv_int(r->csv, 0, r->at.layer, 0, 100000, &layer, err) ||
            !csv_int(r->csv, 0, r->at.expert, 0, GATE_MAX_EXPERTS - 1, &expert, err) ||
            !csv_int(r->csv, 0, r->at.count, 0, most, &count, err) ||
            (r->at.document >= 0 &&
             !csv_int(r->csv, 0, r->at.document, 0, counts->document_count, &document, err)))
            return false;
        while (document >= counts->document_count)
            if (!count_document(counts, r->source, r->domain ? r->domain : r->stem, 0, err))
                return false;
        if (!count_add(counts, (int)layer, document, expert, (double)count, err) ||
            !csv_next(r->csv, err))
            return false;
    }
    return true;
}

/* ---- files */

static bool read_file(const struct import_job *job, const char *path, struct arena *arena,
                      struct build *ids, struct count_build *counts, struct err *err) {
    struct gate gate = {0};
    const char *stem = import_stem(arena, path);
    struct csv *csv = stem ? csv_open(path, err) : NULL;
    if (!csv || !csv_next(csv, err)) {
        csv_free(csv);
        return stem ? false : err_memory(err, path);
    }
    struct reading r = {.csv = csv,
                        .at = find_columns(csv),
                        .build = ids,
                        .arena = arena,
                        .source = file_name(path),
                        .stem = stem,
                        .domain = job->domain};
    bool ok = true;
    if (r.at.layer < 0 || r.at.expert < 0)
        ok = err_set(err, ERR_FORMAT, "found no columns layer and expert");
    else if (r.at.count >= 0)
        ok = read_counts(&r, counts, err);
    else if (ids->tokens)
        ok = err_set(err, ERR_USAGE, "csv: found several files of choices, expected 1");
    else if (r.at.token >= 0 && r.at.rank >= 0)
        ok = read_choices(&r, err);
    else if (!job->gate)
        ok = err_set(err, ERR_USAGE,
                     "has one row a choice, but not how many a token has: give --gate");
    else
        ok = (gate_parse(job->gate, NULL, &gate, err) || err_context(err, "--gate")) &&
             read_runs(&r, gate.topk, err);
    csv_free(csv);
    return ok;
}

bool import_csv_open(const struct import_job *job, struct import_source *source, struct err *err) {
    struct build ids = {0};
    struct count_build counts = {0};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++)
        ok = read_file(job, job->files[i], &source->arena, &ids, &counts, err) ||
             import_context(err, job->files[i]);
    if (ok && ids.tokens && counts.count)
        ok = err_set(err, ERR_DATA, "%s: found files of counts and of ids, expected one kind",
                     job->files[0]);
    const char *lacks =
        ids.layer_count && ids.layers[0].weighted ? "router scores" : "router scores; weights";
    if (ok)
        ok = (counts.count ? count_finish(&counts, job, false, source, "csv", err)
                           : build_finish(&ids, job, source, "csv", lacks, err)) ||
             import_context(err, job->files[0]);
    build_free(&ids);
    count_free(&counts);
    return ok;
}
