/* support_replay.c - runs a replay over arrays and keeps its rows */
#include "tests/support_replay.h"

#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

static void make_layers(struct small_world *world, struct rng *rng, double scale, const char *gate,
                        int layers, int64_t tokens) {
    struct err err;
    *world = (struct small_world){0};
    for (int l = 0; l < layers; l++) {
        world->logits[l] = random_logits(rng, tokens, WORLD_EXPERTS, scale);
        world->layers[l] = (struct source_layer){.layer = 2 * l + 1, .experts = WORLD_EXPERTS};
        test_ok(gate_parse(gate, NULL, &world->layers[l].native, &err), &err);
        if (world->layers[l].native.bias) world->layers[l].bias = world->bias;
    }
    world->arrays.logits = (const float *const *)world->logits;
    source_of_arrays(&world->source, &world->arrays, tokens, world->layers, layers);
}

void small_world_make(struct small_world *world, uint64_t seed, int layers, int64_t tokens) {
    struct rng rng;
    rng_init(&rng, seed);
    make_layers(world, &rng, 1.2, "sigmoid,bias,groups=4:2:top2sum,topk=4,norm=sum:1e-20,scale=2.5",
                layers, tokens);
    for (int e = 0; e < WORLD_EXPERTS; e++) world->bias[e] = (float)(0.05 * rng_normal(&rng));
}

void plain_world_make(struct small_world *world, int64_t tokens) {
    struct rng rng;
    rng_init(&rng, 65);
    make_layers(world, &rng, 1.5, "softmax,topk=4", 2, tokens);
}

void small_world_free(struct small_world *world) {
    for (int l = 0; l < WORLD_MOST_LAYERS; l++) free(world->logits[l]);
}

static void digest(uint64_t *hash, const void *bytes, size_t len) {
    const unsigned char *b = bytes;
    for (size_t i = 0; i < len; i++) *hash = (*hash ^ b[i]) * UINT64_C(0x100000001b3);
}

static void *copy(const void *from, size_t len) {
    void *to = malloc(len + 1);
    assert_non_null(to);
    memcpy(to, from, len);
    return to;
}

bool kept_add(void *context, const struct replay_row *row, struct err *err) {
    struct kept *kept = context;
    (void)err;
    if (kept->count == kept->cap) {
        kept->cap = kept->cap * 2 + 16;
        kept->row = realloc(kept->row, (size_t)kept->cap * sizeof *kept->row);
        assert_non_null(kept->row);
    }
    struct kept_row *to = &kept->row[kept->count++];
    size_t e = (size_t)row->experts, n = (size_t)row->batches->closed;
    *to = (struct kept_row){.m = row->measures, .batches = (int64_t)n, .parted = row->parted};
    memcpy(to->tokens, row->tokens, e * sizeof *row->tokens);
    memcpy(to->weight, row->weight, e * sizeof *row->weight);
    to->has_bias = row->bias != NULL;
    if (row->bias) memcpy(to->bias, row->bias, e * sizeof *row->bias);
    memcpy(to->loss, row->loss, sizeof to->loss);
    to->last_mass = row->last_mass;
    to->optimum = row->optimum;
    batches_dynamics(row->batches, &to->dynamics);
    to->maxvio = copy(row->batches->maxvio, n * sizeof(double));
    to->efficiency = copy(row->batches->efficiency, n * sizeof(double));
    to->batch_tokens = copy(row->batches->tokens, n * sizeof(int64_t));
    to->digest = UINT64_C(0xcbf29ce484222325);
    digest(&to->digest, &to->m, sizeof to->m);
    digest(&to->digest, to->tokens, sizeof to->tokens);
    digest(&to->digest, to->weight, sizeof to->weight);
    digest(&to->digest, to->bias, sizeof to->bias);
    digest(&to->digest, &to->dynamics, sizeof to->dynamics);
    digest(&to->digest, to->maxvio, n * sizeof(double));
    digest(&to->digest, to->efficiency, n * sizeof(double));
    size_t ranked = row->rank_mean ? (size_t)row->topk * sizeof(double) : 0;
    digest(&to->digest, row->rank_mean, ranked);
    digest(&to->digest, row->rank_sd, ranked);
    if (row->document) digest(&to->document_digest, row->document, e * sizeof *row->document);
    return true;
}

void kept_run(struct kept *kept, const struct variant_lists *lists, const struct source *source,
              const struct replay_options *options) {
    struct err err;
    *kept = (struct kept){0};
    struct replay_sink sink = {kept_add, kept};
    test_ok(variant_set_build(&kept->set, lists, source, &err), &err);
    test_ok(replay_run(&kept->set, source, options, &sink, NULL, &err), &err);
    assert_int_equal(kept->count, kept->set.count * source->layers);
}

void kept_free(struct kept *kept) {
    for (int i = 0; i < kept->count; i++) {
        free(kept->row[i].maxvio);
        free(kept->row[i].efficiency);
        free(kept->row[i].batch_tokens);
    }
    free(kept->row);
    variant_set_free(&kept->set);
}
