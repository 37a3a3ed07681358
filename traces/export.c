/* export.c - the table of exporters */
#include <string.h>

#include "base/str.h"
#include "traces/importers.h"

const struct trace_exporter trace_exporters[] = {
    {"safetensors", "interchange form: token ids, nll, documents, router logits, choices, bias",
     export_safetensors},
    {"csv", "one line per token, layer and chosen expert: identity, rank, expert, weight, logit",
     export_csv},
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
