/* importers.h - the importers' functions, for the table in import.c; private to traces/ */
#ifndef TRACES_IMPORTERS_H
#define TRACES_IMPORTERS_H

#include "traces/exchange.h"

/* X(name): import_NAME_recognise, import_NAME_open in import_NAME.c */
/* clang-format off */
#define TRACE_IMPORTER_FILES(X)                                                                    \
    X(safetensors) X(csv) X(trtllm) X(esft) X(numpy) X(sglang) X(vllm) X(megatron) X(torch)        \
    X(imatrix) X(bigmoe) X(moebalance) X(eplb) X(olmoe) X(routed)
/* clang-format on */

#define X(name)                                                                                    \
    bool import_##name##_recognise(const char *path);                                              \
    bool import_##name##_open(const struct import_job *job, struct import_source *source,          \
                              struct err *err);
TRACE_IMPORTER_FILES(X)
#undef X

/* X(name): export_NAME in export_NAME.c */
#define TRACE_EXPORTER_FILES(X) X(safetensors) X(csv) X(npy) X(npz) X(eplb)
#define X(name)                                                                                    \
    bool export_##name(struct trace *trace, const char *out, const struct progress *progress,      \
                       struct err *err);
TRACE_EXPORTER_FILES(X)
#undef X

/* A capture row with every text empty, for importers to fill. */
struct trace_capture import_capture(const char *importer, const char *model);
/* err_context with the path, unless the text begins with it already; always returns false. */
bool import_context(struct err *err, const char *path);
/* layer->gate from --gate (none: true at once), checked against the layer's experts and k. */
bool import_gate(const struct import_job *job, struct trace_layer *layer, struct err *err);
/* Name of a file without folder, .gz and last extension, in the arena. NULL when out of memory. */
const char *import_stem(struct arena *arena, const char *path);

#endif
