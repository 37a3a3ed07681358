/* step.c - the rest of a step by a roofline over the model's configuration */
#include "sim/step.h"

#include <math.h>
#include <string.h>

#include "base/json.h"

static bool number(const struct json *config, const char *const *keys, double *out,
                   struct err *err) {
    for (; *keys; keys++) {
        if (!json_present(config, *keys)) continue;
        if (!json_get_real(config, *keys, 0, out, err)) return false;
        if (*out < 0 || *out > 1e9)
            return err_set(err, ERR_DATA, "config: %s: found %g, expected 0 to 1e9", *keys, *out);
        return true;
    }
    return true;
}

static bool read_numbers(const struct json *c, struct model_shape *s, double *shared_count,
                         double *first_dense, struct err *err) {
    const struct {
        const char *keys[4];
        double *place;
    } fields[] = {{{"hidden_size", "n_embd", "d_model"}, &s->hidden},
                  {{"moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"},
                   &s->expert_inter},
                  {{"intermediate_size", "ffn_hidden_size"}, &s->dense_inter},
                  {{"shared_expert_intermediate_size"}, &s->shared_inter},
                  {{"n_shared_experts", "num_shared_experts"}, shared_count},
                  {{"first_k_dense_replace"}, first_dense},
                  {{"num_hidden_layers", "n_layer", "num_layers"}, &s->layers},
                  {{"num_attention_heads", "n_head"}, &s->heads},
                  {{"num_key_value_heads"}, &s->kv_heads},
                  {{"head_dim"}, &s->head_dim},
                  {{"q_lora_rank"}, &s->q_rank},
                  {{"kv_lora_rank"}, &s->kv_rank},
                  {{"qk_rope_head_dim"}, &s->rope_dim},
                  {{"qk_nope_head_dim"}, &s->nope_dim},
                  {{"v_head_dim"}, &s->value_dim},
                  {{"n_routed_experts", "num_experts", "num_local_experts"}, &s->experts},
                  {{"vocab_size"}, &s->vocab}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!number(c, fields[i].keys, fields[i].place, err)) return false;
    return true;
}

bool model_shape_parse(struct model_shape *shape, const char *config, struct err *err) {
    double shared_count = 0, first_dense = 0;
    *shape = (struct model_shape){0};
    struct json *doc = json_parse(config, strlen(config), err);
    if (!doc) return err_context(err, "config");
    const struct json *inner = json_present(doc, "text_config");
    bool ok = read_numbers(inner ? inner : doc, shape, &shared_count, &first_dense, err);
    json_free(doc);
    if (!ok) return false;
    if (shape->hidden < 1 || shape->expert_inter < 1)
        return err_set(err, ERR_DATA,
                       "config: found no hidden_size or intermediate size of experts");
    if (shape->shared_inter == 0) shape->shared_inter = shared_count * shape->expert_inter;
    if (shape->kv_heads == 0) shape->kv_heads = shape->heads;
    if (shape->head_dim == 0 && shape->heads > 0) shape->head_dim = shape->hidden / shape->heads;
    shape->moe_layers = fmax(0, shape->layers - first_dense);
    return true;
}

struct roofline {
    double bytes_per_ms, bf16_per_ms, format_per_ms, weight_bytes;
};

static double matrices_ms(const struct roofline *r, double weights, double tokens) {
    return fmax(weights * r->weight_bytes / r->bytes_per_ms,
                2 * weights * tokens / r->format_per_ms);
}

/* Weights of the attention matrices of one layer. */
static double attention_weights(const struct model_shape *s) {
    if (s->kv_rank <= 0) return s->hidden * s->head_dim * (2 * s->heads + 2 * s->kv_heads);
    double query = s->heads * (s->nope_dim + s->rope_dim);
    double q = s->q_rank > 0 ? s->q_rank * (s->hidden + query) : s->hidden * query;
    double kv = s->hidden * (s->kv_rank + s->rope_dim) +
                s->kv_rank * s->heads * (s->nope_dim + s->value_dim);
    return q + kv + s->heads * s->value_dim * s->hidden;
}

static double attention_ms(const struct model_shape *s, const struct roofline *r, double tokens,
                           double context, bool decode) {
    bool latent = s->kv_rank > 0;
    double width =
        latent ? (decode ? 2 * s->kv_rank + s->rope_dim : s->nope_dim + s->rope_dim + s->value_dim)
               : 2 * s->head_dim;
    double keys = decode ? context : context / 2;
    double flop = 2 * tokens * keys * s->heads * width;
    double kv = latent ? 2 * (s->kv_rank + s->rope_dim) : 4 * s->kv_heads * s->head_dim;
    double bytes = (decode ? tokens * context : tokens) * kv;
    return fmax(bytes / r->bytes_per_ms, flop / r->bf16_per_ms);
}

double step_rest_ms(const struct model_shape *shape, const struct cluster *cluster, double tokens,
                    double context, bool decode) {
    const struct device *d = &cluster->device;
    const struct roofline r = {.bytes_per_ms = d->memory_tbps * cluster->memory_efficiency * 1e9,
                               .bf16_per_ms = d->bf16_tflops * cluster->compute_efficiency * 1e9,
                               .format_per_ms = device_peak_tflops(d, cluster->quant) *
                                                cluster->compute_efficiency * 1e9,
                               .weight_bytes = cluster->weight_bytes};
    double dense = shape->layers - shape->moe_layers;
    double attention = matrices_ms(&r, attention_weights(shape), tokens) +
                       attention_ms(shape, &r, tokens, context, decode);
    double moe = matrices_ms(&r, 3 * shape->hidden * shape->shared_inter, tokens) +
                 matrices_ms(&r, shape->hidden * shape->experts, tokens);
    double head = decode ? matrices_ms(&r, shape->hidden * shape->vocab, tokens) : 0;
    return shape->layers * attention + shape->moe_layers * moe +
           dense * matrices_ms(&r, 3 * shape->hidden * shape->dense_inter, tokens) + head;
}
