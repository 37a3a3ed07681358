/* step.h - the rest of a step by a roofline: attention, dense layers, shared experts, router, head
 *
 * Layer 4 (sim): calls base. The model's shape is read from its config.json. Per rank with n tokens
 * (attention is data parallel, its weights and the shared experts are on every rank):
 *
 *     matrices    max(weight bytes / memory, 2 * weights * n / peak)
 *     attention   max(n * context * KV bytes / memory, FLOP / peak)       memory, peak: the
 * cluster's
 *
 * times its efficiencies. KV bytes: 2 (kv_lora_rank + rope) for latent attention, 4 * kv_heads *
 * head_dim else. FLOP of a token over `context` keys: 4 * context * heads * head_dim (latent,
 * decode: 2 * context * heads * (2 kv_lora_rank + rope)); prefill sees half of the context on
 * average. A plain roofline, not validated: results can leave it out (--moe-only). */
#ifndef SIM_STEP_H
#define SIM_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sim/cluster.h"

struct model_shape {
    double hidden, expert_inter; /* h; f of one routed expert */
    double dense_inter,
        shared_inter; /* of dense layers; of all shared experts of a layer; 0 = none */
    double layers, moe_layers;
    double heads, kv_heads, head_dim;
    double q_rank, kv_rank, rope_dim, nope_dim, value_dim; /* latent attention; kv_rank 0 = plain */
    double experts, vocab;
};

/* Reads a config.json (its text_config where it has one). Keys that are absent are 0; hidden_size
 * and the experts' intermediate size are required. */
bool model_shape_parse(struct model_shape *shape, const char *config, struct err *err);

/* Milliseconds of everything but routed experts and their communication, on one rank. */
double step_rest_ms(const struct model_shape *shape, const struct cluster *cluster, double tokens,
                    double context, bool decode);

#endif
