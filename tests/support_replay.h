/* support_replay.h - runs a replay over arrays and keeps its rows */
#ifndef TESTS_SUPPORT_REPLAY_H
#define TESTS_SUPPORT_REPLAY_H

#include <stdint.h>

#include "sim/replay.h"
#include "tests/support_logits.h"

enum { KEPT_EXPERTS = 512 };

/* Two or three routers of 16 experts and random logits: small enough to replay in every way. */
enum { WORLD_EXPERTS = 16, WORLD_MOST_LAYERS = 3 };
struct small_world {
    float *logits[WORLD_MOST_LAYERS]; /* [tokens, WORLD_EXPERTS] each */
    float bias[WORLD_EXPERTS];
    struct source_layer layers[WORLD_MOST_LAYERS];
    struct source_arrays arrays;
    struct source source;
};
/* With DeepSeek-V3's gate and a bias. */
void small_world_make(struct small_world *world, uint64_t seed, int layers, int64_t tokens);
/* Two layers, softmax,topk=4, no bias. */
void plain_world_make(struct small_world *world, int64_t tokens);
void small_world_free(struct small_world *world);

/* A copy of a replay_row. */
struct kept_row {
    struct result_layer m;
    int64_t tokens[KEPT_EXPERTS];
    double weight[KEPT_EXPERTS], bias[KEPT_EXPERTS];
    bool has_bias;
    int64_t batches, parted;
    struct dynamics dynamics;
    double loss[LOSS_COUNT], last_mass, optimum;
    double *maxvio, *efficiency; /* [batches] */
    int64_t *batch_tokens;
    uint64_t digest;          /* of every number of the row but the next */
    uint64_t document_digest; /* of the first document's loads; 0 when not counted */
};

struct kept {
    struct kept_row *row; /* in the order they came: layer by layer, variant by variant */
    int count, cap;
    struct variant_set set;
};

/* Builds the variants and runs them; fails the test when that fails. Free with kept_free. */
void kept_run(struct kept *kept, const struct variant_lists *lists, const struct source *source,
              const struct replay_options *options);
/* The sink of a replay that keeps the rows; context is a struct kept. */
bool kept_add(void *kept, const struct replay_row *row, struct err *err);
void kept_free(struct kept *kept);

#endif
