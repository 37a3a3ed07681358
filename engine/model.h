/* model.h - the engine behind engine.h: an open checkpoint, and access to its packed layers
 * (private to engine/)
 *
 * Layer 3. model.c opens and owns; pass.c runs; head.c turns hidden states into likelihoods. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include "base/spill.h"
#include "engine/forward.h"
#include "router/stream.h"

struct engine {
    struct arena arena;     /* spec, names, routers, biases */
    struct tensors tensors; /* mapped files */
    struct model_spec spec;
    struct pool *pool; /* borrowed */
    const struct kernels *kernels;
    bool bf16;
    struct engine_info info;
    struct engine_router *router; /* [routers]; in the arena */
    int *router_of;               /* [steps]: router of a step, -1 = none */
    struct route_stream *stream;  /* [routers]: what routes */
    struct arena gates;           /* of streams that were set */
    struct tensor *embedding;
    struct norm_weights norm;
    const float *head_bias; /* [vocab] or NULL */
    /* packed weights: all layers stay when `resident`, else each is packed anew for a pass */
    bool resident;
    bool grouped;                 /* routed experts are packed in groups, as they are needed */
    size_t group_bytes;           /* of memory for a group */
    size_t memory_bytes;          /* bound on the resident set; 0: none */
    size_t *layer_bytes;          /* [steps] */
    size_t largest_bytes;         /* of layer_bytes */
    unsigned char **layer_memory; /* [steps]; when resident */
    struct layer_weights *layers; /* [steps]; when resident */
    unsigned char *shared_memory; /* of the layer in hand, when not resident */
    struct layer_weights shared;  /* its weights */
    unsigned char *group_memory;  /* of the experts in hand */
    struct ahead *ahead;          /* asks for file pages; NULL: a small model, or no thread */
    struct arena scratch; /* activations; kept from pass to pass where memory is not bounded:
                             a system takes its time to give back and clear large pages */
};

/* The packed weights of one step, valid until the next call. NULL with err set. */
const struct layer_weights *model_layer(struct engine *engine, int step, struct err *err);
struct loader model_loader(const struct engine *engine, struct err *err);

/* Asks the system for the file pages of a step that comes next, unless it is packed; after the last
 * step, when layers are not resident, for the output matrix's. */
void model_read_ahead(const struct engine *engine, int step);
/* A loader of the routed experts of a step, with memory for a group of them (grouped). */
bool model_experts(struct engine *engine, int step, struct loader *loader, struct err *err);

/* Every router routes by its own gate (gates.c). gates_free takes back what engine_regate set. */
bool gates_native(struct engine *engine, struct err *err);
void gates_free(struct engine *engine);

/* hidden[T,H] (before the final norm; overwritten) -> sink's nll and final_logits. */
bool head_run(struct engine *engine, const struct engine_pass *pass, const struct engine_sink *sink,
              const struct spill *hidden, struct err *err);

#endif
