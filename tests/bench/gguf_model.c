/* gguf_model.c - writes random-weight GGUF checkpoints of published shapes
 *
 * One walk over the tensors serves twice: to list them in the header, and to write their bytes.
 * Values are normal with deviation 0.02, rounded to bf16 in both element types, from a pattern
 * whose length is no multiple of a row. No vocabulary: token ids are given as numbers. */
#include "tests/bench/gguf_model.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"

enum { PATTERN = 1000003, ALIGNMENT = 32, TYPE_F32 = 0, TYPE_BF16 = 30 };
enum { KEY_U32 = 4, KEY_F32 = 6, KEY_BOOL = 7, KEY_STRING = 8 };

struct writer {
    FILE *file;
    const struct gguf_shape *shape;
    bool f32;
    bool listing; /* else writing bytes */
    int tensors;
    uint64_t offset;
    float *pattern;         /* [PATTERN] */
    uint16_t *pattern_bf16; /* the same values */
};

static void stop(const char *path) {
    fprintf(stderr, "bench: %s: cannot write\n", path);
    exit(1);
}

static void put(struct writer *w, const void *bytes, size_t count) {
    fwrite(bytes, 1, count, w->file); /* checked once, at the end */
}

static void put_u32(struct writer *w, uint32_t value) { put(w, &value, sizeof value); }
static void put_u64(struct writer *w, uint64_t value) { put(w, &value, sizeof value); }

static void put_text(struct writer *w, const char *text) {
    put_u64(w, strlen(text));
    put(w, text, strlen(text));
}

/* ---- metadata */

static void key(struct writer *w, const char *tail, uint32_t type) {
    char name[96];
    bool whole = strchr(tail, '.') &&
                 (strncmp(tail, "general.", 8) == 0 || strncmp(tail, "tokenizer.", 10) == 0);
    snprintf(name, sizeof name, "%s%s%s", whole ? "" : w->shape->arch, whole ? "" : ".", tail);
    put_text(w, name);
    put_u32(w, type);
}

struct number {
    const char *key;
    int value; /* 0: left out */
};

static int put_numbers(struct writer *w) {
    const struct gguf_shape *s = w->shape;
    const bool latent = s->kv_lora > 0;
    const struct number numbers[] = {
        {"block_count", s->layers},
        {"vocab_size", s->vocab},
        {"context_length", 4096},
        {"embedding_length", s->hidden},
        {"feed_forward_length", latent ? s->dense_width : s->width},
        {"attention.head_count", s->heads},
        {"attention.head_count_kv", latent ? 1 : s->heads},
        {"rope.dimension_count", latent ? s->rope : s->dim},
        {"expert_count", s->experts},
        {"expert_used_count", s->topk},
        {"expert_feed_forward_length", latent ? s->width : 0},
        {"expert_shared_count", s->shared_width / s->width},
        {"expert_group_count", s->groups},
        {"expert_group_used_count", s->groups_used},
        {"expert_gating_func", latent ? 2 : 0},
        {"leading_dense_block_count", s->dense_layers},
        {"attention.q_lora_rank", s->q_lora},
        {"attention.kv_lora_rank", s->kv_lora},
        {"attention.key_length", latent ? s->kv_lora + s->rope : 0},
        {"attention.value_length", s->kv_lora},
        {"attention.key_length_mla", latent ? s->dim : 0},
        {"attention.value_length_mla", latent ? s->v_dim : 0},
    };
    int count = 0;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (numbers[i].value == 0) continue;
        count++;
        if (!w->file) continue;
        key(w, numbers[i].key, KEY_U32);
        put_u32(w, (uint32_t)numbers[i].value);
    }
    return count;
}

/* Returns the number of keys; writes them where there is a file. */
static int put_keys(struct writer *w) {
    const bool latent = w->shape->kv_lora > 0;
    const float eps = 1e-5f, base = 10000, scale = 2.5f;
    const unsigned char yes = 1;
    int count = put_numbers(w);
    if (!w->file) return count + (latent ? 6 : 4);
    key(w, "general.architecture", KEY_STRING), put_text(w, w->shape->arch);
    key(w, "tokenizer.ggml.model", KEY_STRING), put_text(w, "no_vocab");
    key(w, "attention.layer_norm_rms_epsilon", KEY_F32), put(w, &eps, 4);
    key(w, "rope.freq_base", KEY_F32), put(w, &base, 4);
    if (latent) {
        key(w, "expert_weights_scale", KEY_F32), put(w, &scale, 4);
        key(w, "expert_weights_norm", KEY_BOOL), put(w, &yes, 1);
    }
    return count;
}

/* ---- tensors */

static void pad(struct writer *w) {
    static const char zeros[ALIGNMENT];
    long at = ftell(w->file);
    put(w, zeros, (size_t)((ALIGNMENT - at % ALIGNMENT) % ALIGNMENT));
}

static void put_values(struct writer *w, int64_t count, bool matrix, bool f32) {
    static float ones[4096];
    for (int i = 0; i < 4096; i++) ones[i] = 1;
    while (count > 0) {
        int64_t most = matrix ? PATTERN : 4096, n = count < most ? count : most;
        const void *from = !matrix ? (void *)ones : f32 ? (void *)w->pattern : w->pattern_bf16;
        put(w, from, (size_t)n * (f32 ? 4 : 2));
        count -= n;
    }
    pad(w);
}

/* [slabs, rows, columns]; columns 0: a vector of ones, slabs 0: a matrix. */
static void tensor(struct writer *w, int layer, const char *tail, int64_t columns, int64_t rows,
                   int64_t slabs, bool f32) {
    char name[96];
    const bool matrix = columns > 0;
    f32 |= w->f32 || !matrix;
    int64_t dims[3] = {matrix ? columns : rows, rows, slabs};
    int rank = !matrix ? 1 : slabs ? 3 : 2;
    int64_t count = 1;
    for (int i = 0; i < rank; i++) count *= dims[i];
    w->tensors++;
    if (!w->file) return;
    if (!w->listing) {
        put_values(w, count, matrix, f32);
        return;
    }
    if (layer < 0)
        snprintf(name, sizeof name, "%s", tail);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, tail);
    put_text(w, name);
    put_u32(w, (uint32_t)rank);
    for (int i = 0; i < rank; i++) put_u64(w, (uint64_t)dims[i]);
    put_u32(w, f32 ? TYPE_F32 : TYPE_BF16);
    put_u64(w, w->offset);
    w->offset += ((uint64_t)count * (f32 ? 4 : 2) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void glu(struct writer *w, int layer, const char *kind, int64_t width, int64_t slabs) {
    static const char *const parts[] = {"gate", "up", "down"};
    char name[64];
    for (int i = 0; i < 3; i++) {
        int64_t hidden = w->shape->hidden;
        snprintf(name, sizeof name, "ffn_%s%s.weight", parts[i], kind);
        tensor(w, layer, name, i < 2 ? hidden : width, i < 2 ? width : hidden, slabs, false);
    }
}

static void latent_attention(struct writer *w, int layer) {
    const struct gguf_shape *s = w->shape;
    int64_t nope = s->dim - s->rope;
    tensor(w, layer, "attn_q_a_norm.weight", 0, s->q_lora, 0, true);
    tensor(w, layer, "attn_kv_a_norm.weight", 0, s->kv_lora, 0, true);
    tensor(w, layer, "attn_q_a.weight", s->hidden, s->q_lora, 0, false);
    tensor(w, layer, "attn_q_b.weight", s->q_lora, (int64_t)s->heads * s->dim, 0, false);
    tensor(w, layer, "attn_kv_a_mqa.weight", s->hidden, s->kv_lora + s->rope, 0, false);
    tensor(w, layer, "attn_k_b.weight", nope, s->kv_lora, s->heads, false);
    tensor(w, layer, "attn_v_b.weight", s->kv_lora, s->v_dim, s->heads, false);
}

static void plain_attention(struct writer *w, int layer) {
    const struct gguf_shape *s = w->shape;
    int64_t q = (int64_t)s->heads * s->dim;
    tensor(w, layer, "attn_q_norm.weight", 0, q, 0, true);
    tensor(w, layer, "attn_k_norm.weight", 0, q, 0, true);
    tensor(w, layer, "attn_q.weight", s->hidden, q, 0, false);
    tensor(w, layer, "attn_k.weight", s->hidden, q, 0, false);
    tensor(w, layer, "attn_v.weight", s->hidden, q, 0, false);
}

static void all_tensors(struct writer *w) {
    const struct gguf_shape *s = w->shape;
    tensor(w, -1, "token_embd.weight", s->hidden, s->vocab, 0, false);
    tensor(w, -1, "output_norm.weight", 0, s->hidden, 0, true);
    tensor(w, -1, "output.weight", s->hidden, s->vocab, 0, false);
    for (int layer = 0; layer < s->layers; layer++) {
        tensor(w, layer, "attn_norm.weight", 0, s->hidden, 0, true);
        tensor(w, layer, "ffn_norm.weight", 0, s->hidden, 0, true);
        s->kv_lora ? latent_attention(w, layer) : plain_attention(w, layer);
        tensor(w, layer, "attn_output.weight", (int64_t)s->heads * s->v_dim, s->hidden, 0, false);
        if (layer < s->dense_layers) {
            glu(w, layer, "", s->dense_width, 0);
            continue;
        }
        tensor(w, layer, "ffn_gate_inp.weight", s->hidden, s->experts, 0, true);
        if (s->kv_lora) tensor(w, layer, "exp_probs_b.bias", 0, s->experts, 0, true);
        if (s->shared_width) glu(w, layer, "_shexp", s->shared_width, 0);
        glu(w, layer, "_exps", s->width, s->experts);
    }
}

static void make_pattern(struct writer *w) {
    struct rng rng;
    w->pattern = malloc(PATTERN * sizeof *w->pattern);
    w->pattern_bf16 = malloc(PATTERN * sizeof *w->pattern_bf16);
    rng_init(&rng, 5);
    for (int i = 0; w->pattern && w->pattern_bf16 && i < PATTERN; i++) {
        float value = 0.02f * (float)rng_normal(&rng);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits &= 0xffff0000u;
        memcpy(&w->pattern[i], &bits, sizeof bits);
        w->pattern_bf16[i] = (uint16_t)(bits >> 16);
    }
}

void gguf_model_write(const struct gguf_shape *shape, bool f32, const char *path) {
    char part[512];
    struct writer w = {.shape = shape, .f32 = f32, .listing = true};
    if (file_exists(path)) return;
    all_tensors(&w); /* without a file: counts */
    make_pattern(&w);
    snprintf(part, sizeof part, "%s.part", path);
    int keys = put_keys(&w);
    w.file = fopen(part, "wb");
    if (!w.file || !w.pattern || !w.pattern_bf16) stop(path);
    put(&w, "GGUF", 4);
    put_u32(&w, 3);
    put_u64(&w, (uint64_t)w.tensors);
    put_u64(&w, (uint64_t)keys);
    put_keys(&w);
    all_tensors(&w);
    pad(&w);
    w.listing = false;
    all_tensors(&w);
    bool failed = ferror(w.file);
    if (fclose(w.file) != 0 || failed || rename(part, path) != 0) stop(path);
    free(w.pattern);
    free(w.pattern_bf16);
}

double gguf_model_flop(const struct gguf_shape *s, int tokens) {
    double h = s->hidden, q = (double)s->heads * s->dim, v = (double)s->heads * s->v_dim;
    double per_token = (double)s->vocab * h, pairs = tokens / 2.0;
    for (int l = 0; l < s->layers; l++) {
        per_token += h * v + pairs * (q + v);
        per_token += s->kv_lora ? h * s->q_lora + s->q_lora * q + h * (s->kv_lora + s->rope) +
                                      s->kv_lora * ((double)s->heads * (s->dim - s->rope) + v)
                                : h * (2 * q + v);
        per_token += l < s->dense_layers
                         ? 3 * h * s->dense_width
                         : h * s->experts + 3 * h * (s->topk * (double)s->width + s->shared_width);
    }
    return 2 * per_token * tokens;
}
