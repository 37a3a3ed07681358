/* same.c - is what a trace was made of the same as in another? */
#include "traces/same.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "traces/hash_table.h"
#include "traces/internal.h"

static bool differs(const struct same *same, struct err *err, const char *what, const char *found,
                    const char *expected) {
    return err_set(err, ERR_DATA, "%s: %s: %s: found %.120s, expected %.120s", same->path,
                   same->doing, what, *found ? found : "''", *expected ? expected : "''");
}

static bool same_text(const struct same *same, const char *what, const char *found,
                      const char *expected, struct err *err) {
    return strcmp(found, expected) == 0 || differs(same, err, what, found, expected);
}

static bool same_int(const struct same *same, const char *what, int64_t found, int64_t expected,
                     struct err *err) {
    char a[32], b[32];
    snprintf(a, sizeof a, "%lld", (long long)found);
    snprintf(b, sizeof b, "%lld", (long long)expected);
    return found == expected || differs(same, err, what, a, b);
}

bool same_capture(const struct same *same, const struct trace_capture *found,
                  const struct trace_capture *expected, struct err *err) {
#define X(member)                                                                                  \
    if (!same_text(same, #member, found->member, expected->member, err)) return false;
    CAPTURE_TEXTS(X)
#undef X
#define X(member)                                                                                  \
    if (!same_int(same, #member, found->member, expected->member, err)) return false;
    CAPTURE_INTS(X)
#undef X
    return same_text(same, "store", trace_store_name(found->store),
                     trace_store_name(expected->store), err);
}

static bool same_layer(const struct same *same, const struct trace_layer *a,
                       const struct trace_layer *b, struct err *err) {
    char what[64], x[GATE_TEXT_BYTES] = "none", y[GATE_TEXT_BYTES] = "none";
    snprintf(what, sizeof what, "gate of layer %d", b->layer);
    if (a->has_gate) gate_print(&a->gate, x);
    if (b->has_gate) gate_print(&b->gate, y);
    if (!same_int(same, "layer", a->layer, b->layer, err) ||
        !same_int(same, "experts", a->experts, b->experts, err) ||
        !same_int(same, "topk", a->topk, b->topk, err) ||
        !same_int(same, "weights", a->has_weights, b->has_weights, err) ||
        !same_text(same, "holds", trace_holds_name(a->holds), trace_holds_name(b->holds), err) ||
        !same_text(same, what, x, y, err))
        return false;
    bool equal =
        !a->bias == !b->bias && (!a->bias || memcmp(a->bias, b->bias, (size_t)a->experts * 4) == 0);
    snprintf(what, sizeof what, "bias of layer %d", b->layer);
    if (!equal) return differs(same, err, what, "other values", "those of the model");
    snprintf(what, sizeof what, "hash table of layer %d", b->layer);
    return hash_tables_equal(&a->table, &b->table, b->topk) ||
           differs(same, err, what, "other experts", "the same");
}

bool same_layers(const struct same *same, const struct trace_setup *found,
                 const struct trace_setup *expected, struct err *err) {
    if (!same_int(same, "layers", found->layer_count, expected->layer_count, err)) return false;
    for (int r = 0; r < expected->layer_count; r++)
        if (!same_layer(same, &found->layers[r], &expected->layers[r], err)) return false;
    return true;
}

static bool same_document(const struct same *same, const struct trace_document *a,
                          const struct trace_document *b, struct err *err) {
    char what[64];
    snprintf(what, sizeof what, "sha256 of document %.40s", file_name(b->source));
    return same_text(same, "document", a->source, b->source, err) &&
           same_text(same, "domain", a->domain, b->domain, err) &&
           same_text(same, what, a->sha256, b->sha256, err) &&
           same_int(same, "tokens of a document", a->tokens, b->tokens, err);
}

bool same_setup(const struct same *same, const struct trace_setup *found,
                const struct trace_setup *expected, struct err *err) {
    if (!same_capture(same, &found->capture, &expected->capture, err) ||
        !same_layers(same, found, expected, err) ||
        !same_int(same, "documents", found->document_count, expected->document_count, err))
        return false;
    for (int64_t d = 0; d < expected->document_count; d++)
        if (!same_document(same, &found->documents[d], &expected->documents[d], err)) return false;
    return true;
}
