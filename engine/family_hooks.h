/* family_hooks.h - what the table of families calls where a family has a rule of its own
 * (private to engine/)
 *
 * Layer 3. `NAME_layer` amends one layer that the generic builder has made, `NAME_model` the whole
 * afterwards, `NAME_translate` writes a config of the usual keys before. MODEL.md has the rules. */
#ifndef ENGINE_FAMILY_HOOKS_H
#define ENGINE_FAMILY_HOOKS_H

#include "engine/families.h"

#define LAYER_HOOKS(X)                                                                             \
    X(deepseek_v2)                                                                                 \
    X(axk1)                                                                                        \
    X(longcat)                                                                                     \
    X(lfm2)                                                                                        \
    X(minimax)                                                                                     \
    X(mistral4)                                                                                    \
    X(olmoe)                                                                                       \
    X(qwen2_moe)                                                                                   \
    X(qwen3_moe)                                                                                   \
    X(dots1)                                                                                       \
    X(gpt_oss)                                                                                     \
    X(minimax_m2)                                                                                  \
    X(ernie)                                                                                       \
    X(phimoe)                                                                                      \
    X(granite)                                                                                     \
    X(llama4)                                                                                      \
    X(hunyuan)                                                                                     \
    X(bailing)                                                                                     \
    X(exaone)                                                                                      \
    X(mimo)                                                                                        \
    X(afmoe)                                                                                       \
    X(laguna)                                                                                      \
    X(cohere2)                                                                                     \
    X(dbrx)
#define X(name) bool name##_layer(struct build *build, int layer, struct layer_spec *spec);
LAYER_HOOKS(X)
#undef X

#define MODEL_HOOKS(X)                                                                             \
    X(deepseek_v32)                                                                                \
    X(ernie)                                                                                       \
    X(phimoe)                                                                                      \
    X(granite)                                                                                     \
    X(afmoe)                                                                                       \
    X(laguna)                                                                                      \
    X(cohere2)
#define X(name) bool name##_model(struct build *build);
MODEL_HOOKS(X)
#undef X

/* Refuses values of keys that the reference does not read but that would mean another model. */
bool only_noaux_tc(struct build *build);
bool dbrx_translate(struct build *build, struct str *out);

/* Experts in one tensor [E, rows, k], or transposed [E, k, rows]; gate and up halves of the rows.
 */
void fused_experts(struct build *build, struct ffn_spec *ffn, const char *in, const char *out,
                   bool transposed, bool interleaved);
/* One tensor of all heads: query rows, then key rows, then value rows. bias: NULL = none. */
void fused_heads(struct build *build, struct attention_spec *a, const char *tail, const char *bias);

#endif
