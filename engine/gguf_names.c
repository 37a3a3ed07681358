/* gguf_names.c - a spec with the tensor names and forms of GGUF: see gguf_model.h
 *
 * One table for all architectures: a role in the forward pass has one name. What the table of
 * families has built says which roles there are; here names replace names. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "engine/gguf_model.h"

#define BLOCK "blk.{l}."

struct role {
    size_t at; /* of the weight_ref in struct layer_spec */
    const char *name;
};

#define ROLE(part, name)                                                                           \
    { offsetof(struct layer_spec, part), BLOCK name }

static const struct role roles[] = {
    ROLE(attend.in.weight, "attn_norm.weight"),
    ROLE(attend.in.bias, "attn_norm.bias"),
    ROLE(attend.out.weight, "post_attention_norm.weight"),
    ROLE(feed.in.weight, "ffn_norm.weight"),
    ROLE(feed.out.weight, "post_ffw_norm.weight"),
    ROLE(feed.in.bias, "ffn_norm.bias"),
    ROLE(attention.q, "attn_q.weight"),
    ROLE(attention.k, "attn_k.weight"),
    ROLE(attention.v, "attn_v.weight"),
    ROLE(attention.o, "attn_output.weight"),
    ROLE(attention.q_norm.weight, "attn_q_norm.weight"),
    ROLE(attention.k_norm.weight, "attn_k_norm.weight"),
    ROLE(attention.sinks, "attn_sinks.weight"),
    ROLE(attention.gate, "attn_gate.weight"),
    ROLE(ffn.router, "ffn_gate_inp.weight"),
    ROLE(ffn.router_bias, "ffn_gate_inp.bias"),
    ROLE(ffn.correction, "exp_probs_b.bias"),
    ROLE(ffn.shared_gate, "ffn_gate_inp_shexp.weight"),
    ROLE(ffn.dense.gate, "ffn_gate.weight"),
    ROLE(ffn.dense.up, "ffn_up.weight"),
    ROLE(ffn.dense.down, "ffn_down.weight"),
    ROLE(ffn.shared.gate, "ffn_gate_shexp.weight"),
    ROLE(ffn.shared.up, "ffn_up_shexp.weight"),
    ROLE(ffn.shared.down, "ffn_down_shexp.weight"),
    ROLE(ffn.expert.gate_bias, "ffn_gate_exps.bias"),
    ROLE(ffn.expert.up_bias, "ffn_up_exps.bias"),
    ROLE(ffn.expert.down_bias, "ffn_down_exps.bias"),
};

/* Latent attention: what is called otherwise there. */
static const struct role latent_roles[] = {
    ROLE(attention.q_a, "attn_q_a.weight"),
    ROLE(attention.kv_a, "attn_kv_a_mqa.weight"),
    ROLE(attention.kv_b, "attn_kv_b.weight"),
    ROLE(attention.q_norm.weight, "attn_q_a_norm.weight"),
    ROLE(attention.k_norm.weight, "attn_kv_a_norm.weight"),
};

/* Short convolutions instead of attention. */
static const struct role conv_roles[] = {
    ROLE(attention.q, "shortconv.in_proj.weight"),
    ROLE(attention.o, "shortconv.out_proj.weight"),
    ROLE(attention.conv, "shortconv.conv.weight"),
    ROLE(attention.q_bias, "shortconv.in_proj.bias"),
    ROLE(attention.o_bias, "shortconv.out_proj.bias"),
    ROLE(attention.conv_bias, "shortconv.conv.bias"),
};

static void rename_roles(struct layer_spec *layer, const struct role *role, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct weight_ref *ref = (struct weight_ref *)(void *)((char *)layer + role[i].at);
        if (ref->name) ref->name = role[i].name;
    }
}

/* Has the block this tensor? */
static bool has(const struct tensors *set, int layer, const char *tail) {
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s", layer, tail);
    return tensors_find(set, name) != NULL;
}

static struct weight_ref matrix(const char *name, int64_t n, int64_t k, int64_t slabs) {
    return (struct weight_ref){.name = name, .n = n, .k = k, .slabs = slabs};
}

/* Biases of q, k, v and o: absent or present as in layer 0, whatever the family's default. */
static void set_biases(const struct tensors *set, struct attention_spec *a) {
    const struct {
        struct weight_ref *bias;
        const char *tail, *name;
        int64_t n;
    } table[] = {
        {&a->q_bias, "attn_q.bias", BLOCK "attn_q.bias", a->q.n},
        {&a->k_bias, "attn_k.bias", BLOCK "attn_k.bias", a->k.n},
        {&a->v_bias, "attn_v.bias", BLOCK "attn_v.bias", a->v.n},
        {&a->o_bias, "attn_output.bias", BLOCK "attn_output.bias", a->o.n},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        *table[i].bias = has(set, 0, table[i].tail) ? matrix(table[i].name, table[i].n, 0, 0)
                                                    : (struct weight_ref){0};
}

/* One of the three parts of attn_qkv: rows of q, then of k, then of v. */
static void take_rows(struct weight_ref *ref, const char *name, int64_t row0, int64_t stored) {
    ref->name = name;
    ref->row0 = row0;
    ref->stored = stored;
}

static void set_fused_heads(const struct tensors *set, struct attention_spec *a) {
    int64_t q = a->q.n, k = a->k.n, all = q + k + a->v.n;
    if (!has(set, 0, "attn_qkv.weight")) return;
    take_rows(&a->q, BLOCK "attn_qkv.weight", 0, all);
    take_rows(&a->k, BLOCK "attn_qkv.weight", q, all);
    take_rows(&a->v, BLOCK "attn_qkv.weight", q + k, all);
    if (!has(set, 0, "attn_qkv.bias")) return;
    a->q_bias = matrix(BLOCK "attn_qkv.bias", q, 0, 0);
    a->k_bias = matrix(BLOCK "attn_qkv.bias", k, 0, 0);
    a->v_bias = matrix(BLOCK "attn_qkv.bias", a->v.n, 0, 0);
    a->q_bias.stored = a->k_bias.stored = a->v_bias.stored = all;
    a->k_bias.row0 = q;
    a->v_bias.row0 = q + k;
}

/* Newer files hold kv_b in two: k_b [heads, lora, nope] transposed, v_b [heads, v, lora]. */
static void set_latent(const struct tensors *set, struct layer_spec *layer) {
    struct attention_spec *a = &layer->attention;
    rename_roles(layer, latent_roles, sizeof latent_roles / sizeof *latent_roles);
    if (a->q_lora) a->q.name = BLOCK "attn_q_b.weight";
    if (!has(set, 0, "attn_k_b.weight")) return;
    a->k_b = matrix(BLOCK "attn_k_b.weight", a->nope, a->kv_lora, a->heads);
    a->k_b.transposed = true;
    a->v_b = matrix(BLOCK "attn_v_b.weight", a->v_dim, a->kv_lora, a->heads);
    a->kv_b.name = NULL;
}

/* Experts: [E, I, H] and [E, H, I] in one tensor each; gate and up in one; or a tensor each. */
static void set_experts(const struct tensors *set, int layer, int hidden, struct ffn_spec *ffn) {
    struct glu_spec *e = &ffn->expert;
    int64_t width = e->width;
    int slabs = ffn->experts;
    if (has(set, layer, "ffn_gate.0.weight")) { /* the oldest files */
        e->gate = matrix(BLOCK "ffn_gate.{e}.weight", width, hidden, 0);
        e->up = matrix(BLOCK "ffn_up.{e}.weight", width, hidden, 0);
        e->down = matrix(BLOCK "ffn_down.{e}.weight", hidden, width, 0);
        return;
    }
    e->gate = matrix(BLOCK "ffn_gate_exps.weight", width, hidden, slabs);
    e->up = matrix(BLOCK "ffn_up_exps.weight", width, hidden, slabs);
    e->down = matrix(BLOCK "ffn_down_exps.weight", hidden, width, slabs);
    if (e->gate_bias.name) {
        e->gate_bias = matrix(e->gate_bias.name, width, 0, slabs);
        e->up_bias = matrix(e->up_bias.name, width, 0, slabs);
        e->down_bias = matrix(e->down_bias.name, hidden, 0, slabs);
    }
    if (!has(set, layer, "ffn_gate_up_exps.weight")) return;
    take_rows(&e->gate, BLOCK "ffn_gate_up_exps.weight", 0, 2 * width);
    take_rows(&e->up, BLOCK "ffn_gate_up_exps.weight", width, 2 * width);
}

/* A fused pair of a safetensors checkpoint is two tensors here: all rows of each. */
static void whole(struct weight_ref *ref) {
    ref->row0 = ref->stored = ref->row_step = 0;
    ref->transposed = ref->merged = false;
}

static void rename_layer(const struct gguf_family *family, const struct tensors *set, int hidden,
                         struct layer_spec *layer) {
    struct attention_spec *a = &layer->attention;
    rename_roles(layer, roles, sizeof roles / sizeof *roles);
    if (family->feed_norm) layer->feed.in.weight.name = family->feed_norm;
    if (a->kind == ATTENTION_MLA) {
        set_latent(set, layer);
    } else if (a->kind == ATTENTION_CONV) {
        rename_roles(layer, conv_roles, sizeof conv_roles / sizeof *conv_roles);
    } else {
        set_biases(set, a);
        set_fused_heads(set, a);
    }
    if (layer->ffn.experts == 0) return;
    if (layer->ffn.correction.name && has(set, layer->number, "exp_probs_b"))
        layer->ffn.correction.name = BLOCK "exp_probs_b";
    whole(&layer->ffn.shared.gate);
    whole(&layer->ffn.shared.up);
    set_experts(set, layer->number, hidden, &layer->ffn);
}

void gguf_rename(const struct gguf_family *family, const struct tensors *set,
                 struct model_spec *spec) {
    spec->embedding.name = "token_embd.weight";
    spec->head.name = spec->tied ? spec->embedding.name : "output.weight";
    spec->norm.weight.name =
        tensors_find(set, "output_norm.weight") ? "output_norm.weight" : "token_embd_norm.weight";
    if (spec->norm.bias.name) spec->norm.bias.name = "output_norm.bias";
    if (spec->head_bias.name) spec->head_bias.name = "output.bias";
    for (int i = 0; i < spec->steps; i++) rename_layer(family, set, spec->hidden, &spec->layer[i]);
    for (int i = 0; family->permuted && i < spec->rope_count; i++)
        spec->ropes[i].interleaved = true;
}
