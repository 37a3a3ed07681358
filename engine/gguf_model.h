/* gguf_model.h - a GGUF model as the engine wants it: one set of tensors and a model_spec
 *
 * Layer 3 (engine). gguf_checkpoint.c joins the files of a split model; gguf_families.c turns the
 * metadata of an architecture into the configuration that the family table reads; gguf_names.c
 * gives the spec the tensor names of GGUF. The forward pass knows nothing of it. MODEL.md section
 * "GGUF" has the tables in words. */
#ifndef ENGINE_GGUF_MODEL_H
#define ENGINE_GGUF_MODEL_H

#include "base/gguf.h"
#include "engine/spec.h"
#include "engine/tensors.h"

/* Opens a file, and the others when it is the first of several (NAME-00001-of-0000N.gguf). The set
 * is sealed and owns the files; *head, borrowed from it, has the metadata. Tensors keep their
 * names; shapes are turned to row-major order. Missing parts, parts of another split, tensors found
 * twice and types that cannot be decoded are refused. tensors_close releases also after a failure.
 */
bool gguf_checkpoint_open(const char *path, struct tensors *set, const struct gguf **head,
                          struct err *err);

/* One row of the table of architectures. */
struct gguf_family {
    const char *name; /* general.architecture */
    const char *type; /* row of the family table that it becomes */
    int gating;       /* expert_gating_func of that family: 1 softmax, 2 sigmoid, 3 of chosen */
    bool normalises;  /* what an absent expert_weights_norm means */
    bool permuted;    /* rows of q and k lie so that neighbouring pairs rotate */
    const char *feed_norm; /* tensor before the feed-forward; NULL: ffn_norm */
    const char *scale_key; /* of expert_weights_scale where the family's hook reads it */
};

/* Builds the spec of an opened model. *config_json <- the configuration that stands for the
 * metadata, in the arena. An unknown architecture is refused with the list of known ones. */
bool gguf_spec(const struct gguf *head, const struct tensors *set, struct arena *arena,
               struct model_spec *spec, const char **config_json, struct err *err);

/* Gives every reference of a spec its GGUF name and form; biases are there when layer 0 has them.
 * (Between gguf_families.c and gguf_names.c.) */
void gguf_rename(const struct gguf_family *family, const struct tensors *set,
                 struct model_spec *spec);

/* Blocks that the metadata counts but the model does not run (nextn_predict_layers) are at
 * spec->layers and beyond. Is this tensor's block one of them? */
bool gguf_beyond(const char *tensor, int layers);

#endif
