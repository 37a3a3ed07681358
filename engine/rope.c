/* rope.c - rotary position embedding: settings, tables of cos and sin, rotation
 *
 * Frequencies theta^(-2j/r) and their scalings: linear, dynamic, YaRN (arXiv 2309.00071, eq. 17-22,
 * ramp over dimensions), llama3 (wavelength bands), longrope (factors per dimension). MODEL.md
 * section "Rotation" has the formulas. */
#include "engine/rope.h"

#include <math.h>
#include <string.h>

#include "engine/config.h"

/* ---- settings */

#define ROPE_TYPES "default|linear|dynamic|yarn|llama3|longrope|su"
enum rope_type {
    ROPE_DEFAULT,
    ROPE_LINEAR,
    ROPE_DYNAMIC,
    ROPE_YARN,
    ROPE_LLAMA3,
    ROPE_LONGROPE,
    ROPE_SU, /* longrope's first name */
};

/* m(k) = 0.1 k ln(factor) + 1 (arXiv 2309.00071 sec. 3.4; DeepSeek's mscale). */
static double yarn_m(double factor, double k) {
    return factor <= 1 ? 1 : 0.1 * k * log(factor) + 1;
}

/* The dimension that turns `rotations` times over `length` positions. */
static double yarn_dimension(double rotations, int dims, double theta, double length) {
    return dims * log(length / (rotations * 2 * M_PI)) / (2 * log(theta));
}

struct scaling {
    struct config own; /* reads the object that holds type, factor, ... */
    enum rope_type type;
    double theta, factor;
    int64_t original; /* original_max_position_embeddings */
};

static void apply_yarn(struct scaling *s, int dims, float *inv_freq, struct rope *rope) {
    double fast = config_real(&s->own, "beta_fast", 32),
           slow = config_real(&s->own, "beta_slow", 1);
    double mscale = config_real(&s->own, "mscale", 0);
    double all = config_real(&s->own, "mscale_all_dim", 0);
    if (fast == 0) fast = 32;
    if (slow == 0) slow = 1;
    double low = yarn_dimension(fast, dims, s->theta, (double)s->original);
    double high = yarn_dimension(slow, dims, s->theta, (double)s->original);
    if (config_bool(&s->own, "truncate", true)) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, dims - 1);
    if (low == high) high += 0.001;
    for (int j = 0; j < dims / 2; j++) {
        double ramp = fmin(fmax((j - low) / (high - low), 0), 1);
        inv_freq[j] = (float)(inv_freq[j] / s->factor * ramp + inv_freq[j] * (1 - ramp));
    }
    double scale = mscale != 0 && all != 0 ? yarn_m(s->factor, mscale) / yarn_m(s->factor, all)
                                           : yarn_m(s->factor, 1);
    rope->scale = (float)config_real(&s->own, "attention_factor", scale);
}

static void apply_llama3(struct scaling *s, int dims, float *inv_freq) {
    double low = config_real(&s->own, "low_freq_factor", 1);
    double high = config_real(&s->own, "high_freq_factor", 4);
    double length = (double)s->original;
    for (int j = 0; j < dims / 2; j++) {
        double wave = 2 * M_PI / inv_freq[j];
        double blend = (length / wave - low) / (high - low);
        if (wave > length / low)
            inv_freq[j] = (float)(inv_freq[j] / s->factor);
        else if (wave >= length / high)
            inv_freq[j] = (float)((1 - blend) * inv_freq[j] / s->factor + blend * inv_freq[j]);
    }
}

/* Divides by the factors of one list. */
static float *longrope_list(struct scaling *s, const char *key, int dims, const float *inv_freq) {
    float *out = arena_alloc(s->own.arena, (size_t)dims / 2 + 1, sizeof *out);
    if (!config_has(&s->own, key)) config_refuse(&s->own, key, "nothing", "an array of factors");
    for (int j = 0; out && j < dims / 2 && !s->own.failed; j++) {
        double factor = config_item(&s->own, key, j, dims / 2, 1);
        if (factor == 0) config_refuse(&s->own, key, "0", "factors that are not 0");
        out[j] = (float)(inv_freq[j] / factor);
    }
    return out;
}

static void apply_longrope(struct scaling *s, int dims, float *inv_freq, struct rope *rope) {
    float *shorter = longrope_list(s, "short_factor", dims, inv_freq);
    rope->inv_freq_long = longrope_list(s, "long_factor", dims, inv_freq);
    rope->long_from = s->original;
    if (!shorter || !rope->inv_freq_long) return;
    memcpy(inv_freq, shorter, (size_t)(dims / 2) * sizeof *inv_freq);
    double scale = s->factor <= 1 ? 1 : sqrt(1 + log(s->factor) / log((double)s->original));
    rope->scale = (float)config_real(&s->own, "attention_factor", scale);
}

/* Finds the object that holds the settings: a part of rope_parameters, rope_parameters,
 * rope_scaling, or (when there is none) the config itself with type default. */
static const struct json *settings(const struct config *config, const char *part) {
    const struct json *all = json_present(config->json, "rope_scaling");
    if (!all) all = json_present(config->json, "rope_parameters");
    const struct json *own = all && part ? json_present(all, part) : NULL;
    return own ? own : all;
}

static bool read_scaling(struct config *config, const struct rope_request *request,
                         struct scaling *s) {
    const char *theta_key = request->theta_key ? request->theta_key : "rope_theta";
    const struct json *own = settings(config, request->part);
    if (own && json_kind(own) != JSON_OBJECT)
        config_refuse(config, "rope settings", json_kind_name(own), "an object");
    s->own = *config;
    s->own.json = own ? own : config->json;
    s->theta = config_real(config, theta_key, request->theta);
    if (!own || config->failed) return false;
    const char *key = config_has(&s->own, "rope_type") ? "rope_type" : "type";
    s->theta = config_real(&s->own, "rope_theta", s->theta);
    s->type = (enum rope_type)config_choice(&s->own, key, ROPE_TYPES, ROPE_DEFAULT);
    int64_t longest = config_int(config, "max_position_embeddings", 1, INT_MAX, 4096);
    s->original = config_int(&s->own, "original_max_position_embeddings", 1, INT_MAX, longest);
    /* the top level wins where both have it */
    s->original = config_int(config, "original_max_position_embeddings", 1, INT_MAX, s->original);
    bool ratio = s->type == ROPE_YARN || s->type == ROPE_LONGROPE || s->type == ROPE_SU;
    s->factor = config_real(&s->own, "factor", ratio ? (double)longest / (double)s->original : 0);
    double alpha = config_real(&s->own, "alpha", 0);
    if (s->type == ROPE_DYNAMIC && alpha > 0) { /* hunyuan: a fixed stretch of the base */
        s->type = ROPE_DEFAULT;
        s->theta *= pow(alpha, request->dims / (request->dims - 2.0));
    }
    if (s->type != ROPE_DEFAULT && !(s->factor > 0))
        config_refuse(&s->own, "rope factor", "nothing or a number <= 0", "a positive number");
    return true;
}

void config_rope(struct config *config, const struct rope_request *request, struct rope *rope,
                 float *mscale) {
    struct scaling s = {.type = ROPE_DEFAULT};
    bool scaled = read_scaling(config, request, &s);
    config->failed |= s.own.failed;
    *rope = (struct rope){.scale = 1, .scale_long = 1};
    if (mscale) *mscale = 1;
    if (config->failed) return;
    double partial = config_real(config, "partial_rotary_factor", request->partial);
    if (scaled) partial = config_real(&s.own, "partial_rotary_factor", partial);
    if (request->ignore_partial) partial = 1;
    double dims = request->dims * partial;
    rope->dims = dims >= 2 && dims <= request->dims ? (int)dims : 0;
    if (rope->dims == 0 || rope->dims % 2)
        config_refuse(config, "partial_rotary_factor", "an odd, empty or too large part of a head",
                      "an even number of rotated dimensions");
    if (!(s.theta > 1 && isfinite(s.theta)))
        config_refuse(config, "rope_theta", "a number <= 1 or infinite", "a number > 1");
    if (config->failed) return;
    float *inv_freq = arena_alloc(config->arena, (size_t)rope->dims / 2, sizeof *inv_freq);
    rope->inv_freq = inv_freq;
    if (!inv_freq) {
        config->failed = true;
        err_memory(config->err, "rope frequencies");
        return;
    }
    for (int j = 0; j < rope->dims / 2; j++)
        inv_freq[j] = (float)(1 / pow(s.theta, 2.0 * j / rope->dims));
    if (s.type == ROPE_LINEAR)
        for (int j = 0; j < rope->dims / 2; j++) inv_freq[j] = (float)(inv_freq[j] / s.factor);
    if (s.type == ROPE_DYNAMIC)
        rope->limit = config_int(config, "max_position_embeddings", 1, INT_MAX, 4096);
    if (s.type == ROPE_YARN) apply_yarn(&s, rope->dims, inv_freq, rope);
    if (s.type == ROPE_LLAMA3) apply_llama3(&s, rope->dims, inv_freq);
    if (s.type == ROPE_LONGROPE || s.type == ROPE_SU)
        apply_longrope(&s, rope->dims, inv_freq, rope);
    double all = scaled ? config_real(&s.own, "mscale_all_dim", 0) : 0;
    if (mscale && s.type != ROPE_DEFAULT && all != 0)
        *mscale = (float)(yarn_m(s.factor, all) * yarn_m(s.factor, all));
    if (s.type != ROPE_DEFAULT) rope->scale_long = rope->scale;
    config->failed |= s.own.failed;
}

/* ---- tables and rotation */

bool rope_table_make(struct rope_table *table, const struct rope *rope, int64_t longest,
                     struct arena *arena) {
    int half = rope->dims / 2;
    bool is_long = rope->inv_freq_long && longest > rope->long_from;
    const float *inv_freq = is_long ? rope->inv_freq_long : rope->inv_freq;
    float scale = is_long ? rope->scale_long : rope->scale;
    float *cosine = arena_alloc(arena, (size_t)longest * (size_t)half, sizeof *cosine);
    float *sine = arena_alloc(arena, (size_t)longest * (size_t)half, sizeof *sine);
    if (!cosine || !sine) return false;
    for (int64_t pos = 0; pos < longest; pos++)
        for (int j = 0; j < half; j++) {
            double angle = (double)((float)pos * inv_freq[j]);
            cosine[pos * half + j] = (float)cos(angle) * scale;
            sine[pos * half + j] = (float)sin(angle) * scale;
        }
    *table = (struct rope_table){half, rope->interleaved, cosine, sine};
    return true;
}

void rope_apply(const struct rope_table *table, int64_t pos, float *x) {
    const float *cosine = table->cosine + pos * table->half;
    const float *sine = table->sine + pos * table->half;
    int step = table->interleaved ? 2 : 1, other = table->interleaved ? 1 : table->half;
    for (int j = 0; j < table->half; j++) {
        float *a = x + step * j, *b = a + other;
        float p = *a, q = *b;
        *a = p * cosine[j] - q * sine[j];
        *b = q * cosine[j] + p * sine[j];
    }
}
