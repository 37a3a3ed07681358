/* support_golden.h - runs the engine on a reference case and compares it with what the reference
 * implementation recorded (expected.safetensors beside the checkpoint) */
#ifndef TESTS_SUPPORT_GOLDEN_H
#define TESTS_SUPPORT_GOLDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/engine.h"

/* Everything a pass told. */
struct heard {
    int routers;
    const struct engine_router *router; /* copied */
    int64_t tokens;
    int vocab;
    int64_t windows;
    float **logits;   /* [routers][T,E] */
    int32_t **expert; /* [routers][T,k] */
    float **weight;   /* [routers][T,k] */
    float *nll;       /* [T] */
    float *last;      /* [windows,vocab] */
};

struct parity {
    double logits;        /* largest difference of final logits / largest logit */
    double router_logits; /* the same of router logits, worst layer */
    double weight;        /* largest difference of a weight / max(1e-3 of the largest, it) */
    double nll;           /* largest absolute difference */
    double bias;          /* of the correction bias */
    int64_t choices;      /* tokens whose set of experts differs */
};

/* Reads ids.txt: one document a line. Both arrays are returned owned. */
bool golden_ids(const char *folder, int32_t **ids, int64_t **start, int64_t *windows,
                struct err *err);
/* How to run a case. */
struct golden_options {
    int threads;
    const char *kernels; /* level, NULL = best */
    bool bf16;
    int64_t memory_bytes; /* bound; 0 = none */
    const char *model;    /* path of the checkpoint; NULL: the folder itself */
    const char *expected; /* path of the reference; NULL: expected.safetensors in the folder */
    bool split;           /* one pass per window instead of one for all */
};
/* Opens folder and runs its ids. */
bool golden_run(const char *folder, const struct golden_options *how, struct heard *heard,
                struct err *err);
void heard_free(struct heard *heard);
bool heard_equal(const struct heard *a, const struct heard *b);
/* Runs and compares with expected.safetensors. */
bool golden_parity(const char *folder, const struct golden_options *how, struct parity *parity,
                   struct err *err);

#endif
