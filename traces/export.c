/* export.c - the table of exporters */
#include <string.h>

#include "base/str.h"
#include "traces/importers.h"

const struct trace_exporter trace_exporters[] = {
    {"safetensors", "interchange form: token ids, nll, documents, router logits, choices, bias",
     export_safetensors},
    {"csv", "one line per token, layer and chosen expert: identity, rank, expert, weight, logit",
     export_csv},
    {"npy", "chosen ids [tokens, layers, k], as users of vLLM save routed_experts", export_npy},
    {"npz", "chosen ids, token ids, documents, layer numbers: the layout of moe-balance",
     export_npz},
    {"eplb", "JSON: expert loads, one snapshot a document, as vLLM's EPLB dumps", export_eplb},
    {0}};

const struct trace_exporter *trace_exporter_find(const char *name, struct err *err) {
    struct str known = {0};
    for (const struct trace_exporter *e = trace_exporters; e->name; e++) {
        if (strcmp(e->name, name) == 0) {
            str_free(&known);
            return e;
        }
        str_printf(&known, " %s", e->name);
    }
    err_set(err, ERR_USAGE, "--to: found '%.40s', expected one of:%s", name, str_text(&known));
    str_free(&known);
    return NULL;
}
