/* layer_time.c - the layer-time formula, its tile rule and the two baselines */
#include "sim/layer_time.h"

#include <math.h>

static const double exponent = 1.5;

/* Terms of the formula, ms. */
struct terms {
    double launch, experts, memory, compute, assign, group;
};

void rank_load_count(struct rank_load *load, const int32_t *n, int count) {
    *load = (struct rank_load){0};
    int64_t sum = 0, active = 0, tiles[LAYER_TILES] = {0};
    for (int e = 0; e < count; e++) {
        sum += n[e];
        active += n[e] > 0;
        for (int i = 0; i < LAYER_TILES; i++) tiles[i] += (n[e] + (16 << i) - 1) >> (4 + i);
    }
    load->active = (double)active;
    load->assignments = (double)sum;
    for (int i = 0; i < LAYER_TILES; i++) load->padded[i] = (double)(tiles[i] << (4 + i));
}

int layer_tile(const struct layer_constants *constants, const struct rank_load *load) {
    double mean = load->active > 0 ? load->assignments / load->active : 0;
    int tile = constants->tile_min;
    while (tile < constants->tile_max && tile < mean) tile *= 2;
    return tile;
}

static double padded(const struct layer_constants *constants, const struct rank_load *load) {
    int tile = layer_tile(constants, load), index = 0;
    while (index < LAYER_TILES - 1 && (16 << index) < tile) index++;
    return load->padded[index];
}

/* ps per element; carried over from a relative GPU, larger groups go through memory. */
static double traffic_ms(const struct layer_constants *constants, double ps, double elements,
                         double group_tokens) {
    double ms = ps * elements * 1e-9;
    if (constants->traffic_tokens > 0 && group_tokens > constants->traffic_tokens)
        ms /= constants->bandwidth_ratio;
    return ms;
}

static struct terms terms_of(const struct layer_constants *constants,
                             const struct layer_shape *shape, const struct rank_load *load,
                             double group_tokens) {
    double elements = shape->matrices * shape->hidden * shape->inter;
    double width = shape->hidden + shape->inter;
    return (struct terms){
        .launch = constants->launch_us * 1e-3,
        .experts = constants->expert_us * 1e-3 * shape->local_experts,
        .memory = load->active * elements * shape->weight_bytes / (constants->weight_tbps * 1e9),
        .compute = padded(constants, load) * 2 * elements / (constants->compute_tflops * 1e9),
        .assign =
            traffic_ms(constants, constants->assign_ps, load->assignments * width, group_tokens),
        .group = traffic_ms(constants, constants->group_ps, group_tokens * shape->topk * width,
                            group_tokens)};
}

/* (a^p + b^p)^(1/p); one of them is often far larger, which pow handles well. */
static double soft_max(double a, double b) {
    if (a <= 0 || b <= 0) return fmax(a, b);
    double big = fmax(a, b), ratio = fmin(a, b) / big;
    return big * pow(1 + ratio * sqrt(ratio), 1 / exponent);
}

double layer_time_ms(const struct layer_constants *constants, const struct layer_shape *shape,
                     const struct rank_load *load, double group_tokens) {
    struct terms t = terms_of(constants, shape, load, group_tokens);
    return t.launch + t.experts + soft_max(t.memory, t.compute) + t.assign + t.group;
}

double layer_even_time_ms(const struct layer_constants *constants, const struct layer_shape *shape,
                          double active, double assignments, double group_tokens) {
    struct rank_load even = {.active = active, .assignments = assignments};
    double mean = active > 0 ? assignments / active : 0;
    for (int i = 0; i < LAYER_TILES; i++)
        even.padded[i] = active * ceil(mean / (16 << i)) * (16 << i);
    return layer_time_ms(constants, shape, &even, group_tokens);
}

double layer_roofline_ms(const struct roofline_constants *constants,
                         const struct layer_shape *shape, const struct rank_load *load) {
    double elements = shape->matrices * shape->hidden * shape->inter;
    double memory = load->active * elements * shape->weight_bytes / (constants->weight_tbps * 1e9);
    double compute = load->assignments * 2 * elements / (constants->compute_tflops * 1e9);
    return constants->launch_us * 1e-3 + fmax(memory, compute);
}

double layer_proxy_ms(const struct proxy_constants *constants, const struct layer_shape *shape,
                      const struct rank_load *load) {
    double flop = load->assignments * 2 * shape->matrices * shape->hidden * shape->inter;
    return constants->launch_us * 1e-3 + flop / (constants->compute_tflops * 1e9);
}
