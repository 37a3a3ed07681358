/* import_count.c - gathers counts of a source that only says how many tokens chose each expert */
#include "traces/import_count.h"

#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "traces/importers.h"

bool count_add(struct count_build *build, int layer, int64_t document, int64_t expert, double count,
               struct err *err) {
    if (expert < 0 || expert >= GATE_MAX_EXPERTS || !(count >= 0 && count < 0x1p53) ||
        count != (double)(int64_t)count || layer < 0 || layer > 100000)
        return err_set(err, ERR_FORMAT, "layer %d, expert %lld: found %g, expected a whole count",
                       layer, (long long)expert, count);
    if (build->count == build->cap) {
        int64_t cap = build->cap ? build->cap * 2 : 256;
        struct count_entry *entries = realloc(build->entries, (size_t)cap * sizeof *entries);
        if (!entries) return err_memory(err, "counts");
        build->entries = entries;
        build->cap = cap;
    }
    build->entries[build->count++] =
        (struct count_entry){layer, (int)expert, document, (int64_t)count};
    return true;
}

bool count_document(struct count_build *build, const char *source, const char *domain,
                    int64_t tokens, struct err *err) {
    struct trace_document *documents =
        realloc(build->documents, ((size_t)build->document_count + 1) * sizeof *documents);
    if (documents) build->documents = documents;
    if (!documents || !source || !domain) return err_memory(err, "documents");
    documents[build->document_count++] =
        (struct trace_document){.source = source, .domain = domain, .sha256 = "", .tokens = tokens};
    return true;
}

void count_free(struct count_build *build) {
    free(build->entries);
    free(build->documents);
    *build = (struct count_build){0};
}

static int by_layer(const void *a, const void *b) {
    const struct count_entry *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    return (x->document > y->document) - (x->document < y->document);
}

static void close_source(struct import_source *source) { count_free(source->state); }

/* counts[E] of a layer and document: its entries lie together (sorted). */
static bool counts_of(struct import_source *source, int r, int64_t document, int64_t *counts,
                      struct err *err) {
    const struct count_build *build = source->state;
    const struct count_entry key = {.layer = source->setup.layers[r].layer, .document = document};
    int64_t low = 0, high = build->count;
    (void)err;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        if (by_layer(&build->entries[mid], &key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < build->count && by_layer(&build->entries[low], &key) == 0; low++)
        counts[build->entries[low].expert] += build->entries[low].count;
    return true;
}

static bool describe_layers(const struct count_build *build, const struct import_job *job,
                            struct import_source *source, struct err *err) {
    struct gate gate = {.topk = build->topk};
    int64_t highest = 0, layers = 0;
    if (job->gate && !gate_parse(job->gate, NULL, &gate, err)) return err_context(err, "--gate");
    if (job->gate && build->topk && gate.topk != build->topk)
        return err_set(err, ERR_DATA, "found %d experts a token, expected %d of --gate",
                       build->topk, gate.topk);
    if (gate.topk < 1)
        return err_set(err, ERR_USAGE,
                       "holds counts, but not how many experts a token has: give --gate");
    for (int64_t i = 0; i < build->count; i++) {
        if (build->entries[i].expert > highest) highest = build->entries[i].expert;
        layers += !i || build->entries[i].layer != build->entries[i - 1].layer;
    }
    int64_t known = job->experts ? job->experts : build->experts;
    if (known && highest >= known)
        return err_set(err, ERR_DATA, "found expert %lld, expected less than %lld%s",
                       (long long)highest, (long long)known, job->experts ? " of --experts" : "");
    struct trace_layer *out = arena_alloc(&source->arena, (size_t)layers, sizeof *out);
    if (!out) return err_memory(err, "layers");
    int experts = known ? (int)known : (int)highest + 1;
    if (experts < gate.topk)
        return err_set(err, ERR_DATA, "found %d experts, expected at least %d", experts, gate.topk);
    for (int64_t i = 0, r = 0; i < build->count; i++) {
        if (i && build->entries[i].layer == build->entries[i - 1].layer) continue;
        out[r++] = (struct trace_layer){.layer = build->entries[i].layer,
                                        .experts = experts,
                                        .topk = gate.topk,
                                        .holds = TRACE_COUNTS,
                                        .has_gate = job->gate && !gate.bias,
                                        .gate = gate};
    }
    source->setup.layers = out;
    source->setup.layer_count = (int)layers;
    return true;
}

/* Tokens of documents: given, or sum / k of the first layer. */
static bool describe_documents(struct count_build *build, bool strict, struct import_source *source,
                               struct err *err) {
    int k = source->setup.layers[0].topk, experts = source->setup.layers[0].experts;
    int64_t *counts = malloc((size_t)experts * sizeof *counts), first = 0;
    bool ok = counts || err_memory(err, "counts");
    for (int64_t d = 0; ok && d < build->document_count; d++) {
        struct trace_document *document = &build->documents[d];
        for (int r = 0; ok && r < source->setup.layer_count; r++) {
            int64_t sum = 0;
            memset(counts, 0, (size_t)experts * sizeof *counts);
            counts_of(source, r, d, counts, err);
            for (int e = 0; e < experts; e++) sum += counts[e];
            if (!document->tokens) document->tokens = (sum + k / 2) / k;
            for (int e = 0; ok && e < experts; e++)
                if (counts[e] > document->tokens)
                    ok = err_set(err, ERR_DATA,
                                 "layer %d, expert %d: chosen %lld times, more often than there "
                                 "are tokens (%lld with %d experts each)",
                                 source->setup.layers[r].layer, e, (long long)counts[e],
                                 (long long)document->tokens, k);
            if (ok && strict && sum != document->tokens * k)
                ok = err_set(
                    err, ERR_DATA,
                    "layer %d, document %lld: found %lld choices, expected %d x %lld tokens",
                    source->setup.layers[r].layer, (long long)d, (long long)sum, k,
                    (long long)document->tokens);
        }
        document->first_token = first;
        first += document->tokens;
    }
    free(counts);
    source->setup.documents = build->documents;
    source->setup.document_count = build->document_count;
    return ok;
}

bool count_finish(struct count_build *build, const struct import_job *job, bool strict,
                  struct import_source *source, const char *importer, struct err *err) {
    struct count_build *state = arena_alloc(&source->arena, 1, sizeof *state);
    if (!state) {
        count_free(build);
        return err_memory(err, "import");
    }
    *state = *build;
    *build = (struct count_build){0};
    source->state = state;
    source->close = close_source;
    source->counts = counts_of;
    int64_t total = 0;
    for (int64_t i = 0; i < state->count; i++) total += state->entries[i].count;
    if (!total)
        return err_set(err, ERR_DATA, "found only zeros: nothing was recorded in this file");
    qsort(state->entries, (size_t)state->count, sizeof *state->entries, by_layer);
    const char *model = job->model ? job->model : import_stem(&source->arena, job->files[0]);
    if (!model) return err_memory(err, "import");
    source->setup.capture = import_capture(importer, model);
    struct str lacks = {0};
    str_puts(&lacks, "router scores; tokens (counts only)");
    if (state->note) str_puts(&lacks, state->note);
    if (!job->experts && !state->experts)
        str_puts(&lacks, "; number of experts (taken as the highest id + 1)");
    source->setup.capture.lacks = arena_str(&source->arena, &lacks);
    bool described = source->setup.capture.lacks;
    str_free(&lacks);
    if (!described) return err_memory(err, "import");
    return describe_layers(state, job, source, err) &&
           describe_documents(state, strict, source, err);
}
