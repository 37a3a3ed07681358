/* export_eplb.c - loads as a vLLM EPLB dump: one snapshot a document
 *
 * {"world_size": 1, "num_moe_layers", "num_physical_experts", "num_logical_experts",
 * "num_redundant_experts": 0, "window_size": 1, "snapshots": [{"step": document,
 * "window_expert_load": [L][E], "latest_expert_load": the same, "physical_to_logical_map": [L][E] =
 * 0..E-1}]}, and what the layout lacks: "layers": the model's layer numbers,
 * "num_experts_per_token", "model". Any trace has loads. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "traces/choices.h"
#include "traces/importers.h"

struct loads {
    struct trace *trace;
    int layers, experts;
    int64_t documents;
    int64_t *counts; /* [D, L, E] owned */
};

static int64_t *row_of(const struct loads *loads, int64_t document, int r) {
    return loads->counts + (document * loads->layers + r) * loads->experts;
}

static bool count_layer(struct loads *loads, int r, struct err *err) {
    struct choices choices;
    if (trace_layer(loads->trace, r)->holds == TRACE_COUNTS) {
        bool ok = true;
        for (int64_t d = 0; ok && d < loads->documents; d++)
            ok = trace_read_counts(loads->trace, r, d, row_of(loads, d, r), err);
        return ok;
    }
    if (!choices_open(&choices, loads->trace, r, err)) return false;
    bool ok = true;
    int64_t document = 0, k = trace_layer(loads->trace, r)->topk;
    while (ok && (ok = choices_next(&choices, err)) && choices.chunk.tokens)
        for (int64_t t = 0; t < choices.chunk.tokens; t++) {
            const struct trace_document *at = trace_document(loads->trace, document);
            while (choices.chunk.first + t >= at->first_token + at->tokens)
                at = trace_document(loads->trace, ++document);
            int64_t *row = row_of(loads, document, r);
            for (int64_t j = 0; j < k; j++) {
                int32_t expert = choices.chunk.expert[t * k + j];
                if (expert != ROUTE_NONE) row[expert]++;
            }
        }
    choices_close(&choices);
    return ok;
}

static bool count_all(struct loads *loads, const struct progress *progress, struct err *err) {
    struct trace *trace = loads->trace;
    loads->layers = trace_layers(trace);
    loads->documents = trace_documents(trace);
    loads->experts = loads->layers ? trace_layer(trace, 0)->experts : 0;
    double cells = (double)loads->documents * loads->layers * loads->experts;
    for (int r = 0; r < loads->layers; r++)
        if (trace_layer(trace, r)->experts != loads->experts)
            return err_set(err, ERR_DATA,
                           "%s: layer %d: found %d experts, expected %d as at every "
                           "layer of this form",
                           trace_path(trace), trace_layer(trace, r)->layer,
                           trace_layer(trace, r)->experts, loads->experts);
    if (!(cells > 0 && cells < 1e9))
        return err_set(err, ERR_DATA, "%s: found %.0f loads, expected 1 to 1e9", trace_path(trace),
                       cells);
    loads->counts = calloc((size_t)cells, sizeof *loads->counts);
    if (!loads->counts) return err_memory(err, "loads");
    for (int r = 0; r < loads->layers; r++)
        if (!count_layer(loads, r, err) ||
            !progress_report(progress, "layers", r + 1, loads->layers, "layers"))
            return err->code ? false : err_set(err, ERR_CANCELLED, "interrupted");
    return true;
}

/* [L][E] of a document; document < 0: the map, every expert on its own slot. */
static void put_matrix(FILE *out, const struct loads *loads, int64_t document) {
    for (int r = 0; r < loads->layers; r++)
        for (int e = 0; e < loads->experts; e++)
            fprintf(out, "%s%lld",
                    e   ? ","
                    : r ? "],["
                        : "[[",
                    document < 0 ? (long long)e : (long long)row_of(loads, document, r)[e]);
    fputs("]]", out);
}

static void put_all(FILE *out, const struct loads *loads, const char *model) {
    fprintf(out,
            "{\"model\":%s,\"world_size\":1,\"num_moe_layers\":%d,\"num_physical_experts\":%d,"
            "\"num_logical_experts\":%d,\"num_redundant_experts\":0,\"window_size\":1,"
            "\"num_experts_per_token\":%d,\"layers\":[",
            model, loads->layers, loads->experts, loads->experts,
            trace_layer(loads->trace, 0)->topk);
    for (int r = 0; r < loads->layers; r++)
        fprintf(out, "%s%d", r ? "," : "", trace_layer(loads->trace, r)->layer);
    fputs("],\"snapshots\":[", out);
    for (int64_t d = 0; d < loads->documents; d++) {
        fprintf(out, "%s\n{\"step\":%lld,\"window_expert_load\":", d ? "," : "", (long long)d);
        put_matrix(out, loads, d);
        fputs(",\"latest_expert_load\":", out);
        put_matrix(out, loads, d);
        fputs(",\"physical_to_logical_map\":", out);
        put_matrix(out, loads, -1);
        fputs("}", out);
    }
    fputs("]}\n", out);
}

bool export_eplb(struct trace *trace, const char *out, const struct progress *progress,
                 struct err *err) {
    struct loads loads = {.trace = trace};
    struct file_output output = {0};
    struct str model = {0};
    const char *name = trace_capture(trace)->model;
    *err = (struct err){0};
    json_quote(&model, name, strlen(name));
    bool ok = (!model.failed || err_memory(err, "export")) && count_all(&loads, progress, err) &&
              file_begin(&output, out, err);
    if (ok) {
        put_all(output.stream, &loads, str_text(&model));
        ok = file_commit(&output, err);
    }
    free(loads.counts);
    str_free(&model);
    return ok;
}
