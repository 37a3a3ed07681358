/* engine.h - face of the forward pass: open a checkpoint, run a corpus, hear every routing
 *
 * Layer 3: calls router and base (and PCRE2, utf8proc in the tokenizer). Knows no database: what it
 * finds goes out through callbacks. Layer-major: all tokens of a pass go through layer 0, then
 * layer 1, ...; results do not depend on how a corpus is cut into passes, nor on threads (law 3).
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/progress.h"
#include "base/threads.h"
#include "router/bias.h"
#include "router/gate.h"
#include "router/route.h"

struct engine; /* opaque: config, weights (mapped), kernels */

struct engine_options {
    struct pool *pool;    /* borrows; required */
    const char *kernels;  /* level to force, or NULL */
    bool bf16;            /* --compute bf16; default f32 */
    int64_t memory_bytes; /* bound on the resident set; 0 = none */
};

/* One router of the model. */
struct engine_router {
    int layer;         /* the model's own layer number */
    int experts;       /* E */
    struct gate gate;  /* native gate, or the one set by engine_regate */
    const float *bias; /* [E] correction bias as stored or set, or NULL; borrowed from the engine */
    struct route_table table; /* of fn=hash-table; borrowed from the engine */
};

struct engine_info {
    const char *family; /* config's model_type, e.g. "deepseek_v3" */
    const char *name;   /* last part of the path */
    int layers;
    int hidden;
    int vocab;
    int max_positions;
    int bos; /* -1 when none */
    int64_t parameters;
    int routers;                        /* number of MoE layers */
    const struct engine_router *router; /* [routers], by rising layer */
    const char *config_json; /* the text of config.json (GGUF: one made of the metadata) */
};

/* Opens a folder (config.json + *.safetensors) or a GGUF file (the first of a split). Returns
 * owned; NULL with err set. */
struct engine *engine_open(const char *path, const struct engine_options *options, struct err *err);
void engine_close(struct engine *engine);
const struct engine_info *engine_info(const struct engine *engine);

/* Gates to run instead of the model's own (a closed loop), one per router. */
struct engine_gates {
    const struct gate *gate;  /* [routers]; each must pass gate_check_live */
    const float *const *bias; /* [routers] [E] at the start, or NULL where the gate has none */
    const struct route_table *table; /* [routers] of fn=hash-table: a row for every id of the
                                        vocabulary; NULL: no router has one */
    const struct bias_rule *rule;    /* moves the bias after each balance batch; NULL: it stays */
    double rate;
    int64_t batch_tokens; /* of a balance batch, in the order of tokens at each router */
};

/* Sets the gates of all passes to come, beginning with an empty balance batch. Copies. On failure
 * the engine must not run. */
bool engine_regate(struct engine *engine, const struct engine_gates *gates, struct err *err);
/* Moves the bias as if n more tokens, from number `first` of the capture on, had passed router r
 * with these logits[n,E]: a capture that goes on. */
bool engine_repeat(struct engine *engine, int r, int64_t first, int64_t n, const float *logits,
                   struct err *err);

/* The tokens of one pass: whole windows, each attending only within itself from position 0. */
struct engine_pass {
    int64_t tokens;              /* T */
    const int32_t *ids;          /* [T] */
    const int64_t *window_start; /* [windows+1] rising, first 0, last T */
    int64_t windows;
    int64_t first; /* number of its first token within the capture; noise is drawn by it */
};

/* What a pass tells. Any callback may be NULL; a false return with err set stops the pass. Called
 * from the caller's thread, tokens in order, a layer at a time. */
struct engine_sink {
    void *context;
    /* n tokens from `first` (within the pass) at router index r: logits[n,E], expert[n,k]
     * (ROUTE_NONE in empty slots), weight[n,k]. Borrowed for the call. */
    bool (*routes)(void *context, int r, int64_t first, int64_t n, const float *logits,
                   const int32_t *expert, const float *weight, struct err *err);
    /* nll[n]: of token t+1 given the window up to t, in nats; NaN at the last token of a window. */
    bool (*nll)(void *context, int64_t first, int64_t n, const float *nll, struct err *err);
    /* logits[vocab] of the last token of each window, for parity checks. */
    bool (*final_logits)(void *context, int64_t window, const float *logits, struct err *err);
};

/* Runs one pass. Refuses ids outside the vocabulary (naming position and id) and non-finite router
 * logits (naming layer, token, expert). */
bool engine_run(struct engine *engine, const struct engine_pass *pass,
                const struct engine_sink *sink, const struct progress *progress, struct err *err);

/* Bytes of the checkpoint that were read for packed weights and vectors so far: where weights are
 * not kept, each pass adds every tensor of its layers once (routed experts without a token: not at
 * all). */
int64_t engine_read_bytes(const struct engine *engine);

#endif
