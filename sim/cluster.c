/* cluster.c - built-in clusters, and clusters read from and written to JSON
 *
 * The file is a table of fields (key, kind, place in the struct), read and written by one loop. */
#include "sim/cluster.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* clang-format off */
const struct cluster_preset cluster_presets[] = {
    {"h100", "H100_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8", "8 x H100 a node, FP8, TensorRT-LLM CUTLASS"},
    {"h100-bf16", "H100_SXM", "trtllm", "moe_torch_flow_cutlass", "bfloat16", "8 x H100 a node, BF16, TensorRT-LLM CUTLASS"},
    {"h100-deepgemm", "H100_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8_block", "8 x H100 a node, FP8 128x128 blocks, DeepGEMM"},
    {"h100-vllm", "H100_SXM", "vllm", "vllm_unquantizedfusedmoe_triton_tritonexperts", "bfloat16", "8 x H100 a node, BF16, vLLM Triton"},
    {"h100-sglang", "H100_SXM", "sglang", "sglang_fused_moe_triton", "fp8_block", "8 x H100 a node, FP8 blocks, SGLang Triton"},
    {"h200", "H200_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8", "8 x H200 a node, FP8, constants carried over from H100"},
    {"h200-deepgemm", "H200_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8_block", "8 x H200 a node, FP8 blocks, carried over from H100"},
    {"h800", "H800_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8_block", "8 x H800 a node, FP8 blocks: DeepSeek's published systems"},
    {"h20", "H20", "trtllm", "moe_torch_flow_cutlass", "fp8_block", "8 x H20 a node, FP8 blocks, carried over from H100"},
    {"a100", "A100_SXM", "trtllm", "moe_torch_flow", "bfloat16", "8 x A100 80 GB a node, BF16, TensorRT-LLM"},
    {"l40s", "L40S", "trtllm", "moe_torch_flow_cutlass", "fp8", "8 x L40S a node over PCIe, FP8"},
    {"b200", "B200_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8", "8 x B200 a node, FP8"},
    {"b200-deepgemm", "B200_SXM", "trtllm", "deepgemm", "fp8_block", "8 x B200 a node, FP8 blocks, DeepGEMM"},
    {"b200-nvfp4", "B200_SXM", "vllm", "vllm_compressedtensorsw4a4nvfp4moe_flashinfer_trtllm_trtllmnvfp4expertsmonolithic", "nvfp4", "8 x B200 a node, NVFP4, vLLM trtllm-gen"},
    {"gb200", "GB200", "trtllm", "deepgemm", "fp8_block", "GB200 NVL72: 72 GPUs on one NVLink, FP8 blocks"},
    {"mi300x", "MI300X", "any", "any", "fp8", "8 x MI300X a node, FP8, from the data sheet: a larger error"},
    {0}};

/* DeepEP times of the same tables (deepep_normal with 24 SMs, deepep_ll; versions 0.5.12, between
 * nodes 0.5.6.post2 on H100 over 400 Gb/s): latency us and GB/s, least absolute relative error;
 * dispatch counted as FP8, combine as BF16, remote copies only over the network. Network latencies
 * of the normal mode hold the median exchange of metadata. */
static const struct {
    const char *gpu; /* NULL: everything else, links scaled by the data sheet's from H100's */
    struct comm_affine normal_dispatch, normal_combine, low_dispatch, low_combine;
    double error_median;
} exchanges[] = {
    {"B200_SXM", {36.0, 291}, {48.0, 367}, {20.0, 533}, {19.2, 678}, 0.10},
    {"GB200", {33.0, 228}, {40.5, 285}, {15.8, 574}, {14.8, 750}, 0.12},
    {NULL, {26.1, 299}, {38.5, 323}, {11.8, 283}, {11.4, 247}, 0.09}};
static const struct comm_affine network_normal[] = {{95, 45}, {115, 45}};
static const struct comm_affine network_low[] = {{25, 46.5}, {26, 46.5}};
/* clang-format on */

static struct comm_affine faster(struct comm_affine c, double ratio) {
    c.gbps *= ratio;
    return c;
}

static struct comm_constants comm_default(const struct device *device) {
    size_t i = 0;
    while (exchanges[i].gpu && strcmp(exchanges[i].gpu, device->name) != 0) i++;
    double link = exchanges[i].gpu ? 1 : device->link_gbps / 450;
    double network = device->network_gbps / 50;
    return (struct comm_constants){
        .normal = {faster(exchanges[i].normal_dispatch, link),
                   faster(exchanges[i].normal_combine, link), faster(network_normal[0], network),
                   faster(network_normal[1], network)},
        .low_latency = {faster(exchanges[i].low_dispatch, link),
                        faster(exchanges[i].low_combine, link), faster(network_low[0], network),
                        faster(network_low[1], network)},
        .dispatch_bytes = 1,
        .combine_bytes = 2,
        .error_median = exchanges[i].error_median};
}

/* ---- the file: X(group, key, C member); group "" is the top level */
#define CLUSTER_REALS(X)                                                                           \
    X("", "memory_tbps", device.memory_tbps)                                                       \
    X("", "bf16_tflops", device.bf16_tflops)                                                       \
    X("", "fp8_tflops", device.fp8_tflops)                                                         \
    X("", "fp4_tflops", device.fp4_tflops)                                                         \
    X("", "memory_bytes", device.memory_bytes)                                                     \
    X("", "link_gbps", device.link_gbps)                                                           \
    X("", "network_gbps", device.network_gbps)                                                     \
    X("", "weight_bytes", weight_bytes)                                                            \
    X("", "memory_efficiency", memory_efficiency)                                                  \
    X("", "compute_efficiency", compute_efficiency)                                                \
    X("layer", "launch_us", constants.layer.launch_us)                                             \
    X("layer", "weight_tbps", constants.layer.weight_tbps)                                         \
    X("layer", "compute_tflops", constants.layer.compute_tflops)                                   \
    X("layer", "assign_ps", constants.layer.assign_ps)                                             \
    X("layer", "group_ps", constants.layer.group_ps)                                               \
    X("layer", "expert_us", constants.layer.expert_us)                                             \
    X("layer", "bandwidth_ratio", constants.layer.bandwidth_ratio)                                 \
    X("layer", "traffic_tokens", constants.layer.traffic_tokens)                                   \
    X("error", "decode_median", constants.error.decode_median)                                     \
    X("error", "decode_p90", constants.error.decode_p90)                                           \
    X("error", "prefill_median", constants.error.prefill_median)                                   \
    X("error", "prefill_p90", constants.error.prefill_p90)                                         \
    X("communication", "dispatch_bytes", comm.dispatch_bytes)                                      \
    X("communication", "combine_bytes", comm.combine_bytes)                                        \
    X("communication", "error_median", comm.error_median)                                          \
    X("communication", "dispatch_us", comm.normal.dispatch.latency_us)                             \
    X("communication", "dispatch_gbps", comm.normal.dispatch.gbps)                                 \
    X("communication", "combine_us", comm.normal.combine.latency_us)                               \
    X("communication", "combine_gbps", comm.normal.combine.gbps)                                   \
    X("communication", "network_dispatch_us", comm.normal.network_dispatch.latency_us)             \
    X("communication", "network_dispatch_gbps", comm.normal.network_dispatch.gbps)                 \
    X("communication", "network_combine_us", comm.normal.network_combine.latency_us)               \
    X("communication", "network_combine_gbps", comm.normal.network_combine.gbps)                   \
    X("communication", "low_dispatch_us", comm.low_latency.dispatch.latency_us)                    \
    X("communication", "low_dispatch_gbps", comm.low_latency.dispatch.gbps)                        \
    X("communication", "low_combine_us", comm.low_latency.combine.latency_us)                      \
    X("communication", "low_combine_gbps", comm.low_latency.combine.gbps)                          \
    X("communication", "low_network_dispatch_us", comm.low_latency.network_dispatch.latency_us)    \
    X("communication", "low_network_dispatch_gbps", comm.low_latency.network_dispatch.gbps)        \
    X("communication", "low_network_combine_us", comm.low_latency.network_combine.latency_us)      \
    X("communication", "low_network_combine_gbps", comm.low_latency.network_combine.gbps)

/* What may not be zero: everything that is divided by. */
static bool is_rate(const char *key) {
    size_t n = strlen(key);
    return strstr(key, "bps") || (n > 7 && strcmp(key + n - 6, "tflops") == 0) ||
           strstr(key, "efficiency") || strstr(key, "ratio") || strcmp(key, "weight_bytes") == 0;
}

struct real_field {
    const char *group, *key;
    size_t offset;
};
static const struct real_field real_fields[] = {
#define X(group, key, member) {group, key, offsetof(struct cluster, member)},
    CLUSTER_REALS(X)
#undef X
};
enum { REAL_FIELDS = sizeof real_fields / sizeof *real_fields };

static const struct {
    const char *key;
    size_t offset, bytes;
} text_fields[] = {
    {"name", offsetof(struct cluster, name), CLUSTER_NAME_BYTES},
    {"summary", offsetof(struct cluster, summary), 2 * CLUSTER_NAME_BYTES},
    {"device", offsetof(struct cluster, gpu), CLUSTER_NAME_BYTES},
    {"framework", offsetof(struct cluster, framework), CLUSTER_NAME_BYTES},
    {"kernel", offsetof(struct cluster, kernel), CLUSTER_NAME_BYTES},
    {"quant", offsetof(struct cluster, quant), CLUSTER_NAME_BYTES},
};
enum { TEXT_FIELDS = sizeof text_fields / sizeof *text_fields };

static double *real_at(const struct cluster *cluster, const struct real_field *field) {
    return (double *)((char *)(uintptr_t)cluster + field->offset);
}

static bool known_key(const char *group, const char *key) {
    for (int i = 0; i < REAL_FIELDS; i++)
        if (strcmp(real_fields[i].group, group) == 0 && strcmp(real_fields[i].key, key) == 0)
            return true;
    for (int i = 0; !*group && i < TEXT_FIELDS; i++)
        if (strcmp(text_fields[i].key, key) == 0) return true;
    if (!*group) return strcmp(key, "gpus_per_node") == 0;
    return strcmp(group, "layer") == 0 &&
           (strcmp(key, "origin") == 0 || strcmp(key, "tile_min") == 0 ||
            strcmp(key, "tile_max") == 0);
}

static bool check_keys(const struct json *object, const char *group, struct err *err) {
    for (const struct json *c = json_first(object); c; c = json_next(c)) {
        const char *key = json_key(c);
        bool is_group = !*group && json_kind(c) == JSON_OBJECT &&
                        (strcmp(key, "layer") == 0 || strcmp(key, "error") == 0 ||
                         strcmp(key, "communication") == 0);
        if (is_group && !check_keys(c, key, err)) return false;
        if (!is_group && !known_key(group, key))
            return err_set(err, ERR_FORMAT, "%s%s: found key \"%s\", which no cluster has",
                           *group ? group : "cluster", *group ? " of a cluster" : "", key);
    }
    return true;
}

/* Names are plain, so that what was read is printed as it was. */
static bool printable(const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || (unsigned char)*text > 0x7e) return false;
    return true;
}

static bool read_texts(struct cluster *cluster, const struct json *doc, struct err *err) {
    for (int i = 0; i < TEXT_FIELDS; i++) {
        char *place = (char *)cluster + text_fields[i].offset;
        const char *text;
        if (!json_get_text(doc, text_fields[i].key, place, &text, err)) return false;
        if (strlen(text) >= text_fields[i].bytes)
            return err_set(err, ERR_FORMAT, "%s: found %zu bytes, expected at most %zu",
                           text_fields[i].key, strlen(text), text_fields[i].bytes - 1);
        if (!printable(text))
            return err_set(err, ERR_FORMAT, "%s: found other bytes, expected printable ASCII",
                           text_fields[i].key);
        if (text != place) strcpy(place, text);
    }
    return true;
}

static bool read_reals(struct cluster *cluster, const struct json *doc, struct err *err) {
    for (int i = 0; i < REAL_FIELDS; i++) {
        const struct real_field *f = &real_fields[i];
        const struct json *object = *f->group ? json_present(doc, f->group) : doc;
        double *place = real_at(cluster, f);
        if (!object) continue;
        if (!json_get_real(object, f->key, *place, place, err)) return false;
        if (!isfinite(*place) || *place < 0 || *place > 1e18 || (is_rate(f->key) && *place <= 0))
            return err_set(err, ERR_FORMAT, "%s: found %g, expected %s", f->key, *place,
                           is_rate(f->key) ? "more than 0" : "at least 0");
    }
    return true;
}

static bool read_tile(struct cluster *cluster, const struct json *layer, struct err *err) {
    struct layer_constants *c = &cluster->constants.layer;
    int64_t lo, hi;
    if (!json_get_int(layer, "tile_min", 16, 128, c->tile_min, &lo, err) ||
        !json_get_int(layer, "tile_max", 16, 128, c->tile_max, &hi, err))
        return false;
    if ((lo & (lo - 1)) || (hi & (hi - 1)) || lo > hi)
        return err_set(err, ERR_FORMAT,
                       "layer: found tiles %d to %d, expected powers of two from 16 to 128",
                       (int)lo, (int)hi);
    c->tile_min = (int)lo;
    c->tile_max = (int)hi;
    return true;
}

/* Everything that follows from device, framework, kernel and format. */
static bool fill(struct cluster *cluster, struct err *err) {
    const struct device *device = device_find(cluster->gpu, err);
    const struct number_format *format = device ? number_format_find(cluster->quant, err) : NULL;
    if (!format) return false;
    cluster->device = *device;
    cluster->weight_bytes = format->weight_bytes;
    const char *framework = *cluster->framework ? cluster->framework : NULL;
    const char *kernel = *cluster->kernel ? cluster->kernel : NULL;
    cluster->constants = constants_find(device, framework, kernel, cluster->quant);
    cluster->comm = comm_default(device);
    cluster->memory_efficiency = 0.8;
    cluster->compute_efficiency = 0.7;
    if (!framework) strcpy(cluster->framework, cluster->constants.framework);
    if (!kernel) strcpy(cluster->kernel, cluster->constants.kernel);
    return true;
}

static bool parse(struct cluster *cluster, const struct json *doc, struct err *err) {
    memset(cluster, 0, sizeof *cluster);
    strcpy(cluster->quant, "bfloat16");
    if (json_kind(doc) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "cluster: found %s, expected an object",
                       json_kind_name(doc));
    if (!check_keys(doc, "", err) || !read_texts(cluster, doc, err) || !fill(cluster, err))
        return false;
    const struct json *layer = json_present(doc, "layer");
    struct layer_constants before = cluster->constants.layer;
    int64_t gpus;
    if (!read_reals(cluster, doc, err) || (layer && !read_tile(cluster, layer, err)) ||
        !json_get_int(doc, "gpus_per_node", 1, 4096, cluster->device.gpus_per_node, &gpus, err))
        return false;
    cluster->device.gpus_per_node = (int)gpus;
    if (memcmp(&before, &cluster->constants.layer, sizeof before) != 0)
        cluster->constants.origin = ORIGIN_USER;
    return true;
}

bool cluster_parse(struct cluster *cluster, const char *text, size_t len, struct err *err) {
    struct json *doc = json_parse(text, len, err);
    if (!doc) return false;
    bool ok = parse(cluster, doc, err);
    json_free(doc);
    return ok;
}

static bool from_preset(struct cluster *cluster, const struct cluster_preset *p, struct err *err) {
    memset(cluster, 0, sizeof *cluster);
    strcpy(cluster->name, p->name);
    strcpy(cluster->summary, p->summary);
    strcpy(cluster->gpu, p->device);
    strcpy(cluster->framework, p->framework);
    strcpy(cluster->kernel, p->kernel);
    strcpy(cluster->quant, p->quant);
    return fill(cluster, err);
}

static bool names_a_file(const char *text) {
    size_t n = strlen(text);
    return strchr(text, '/') || (n > 5 && strcmp(text + n - 5, ".json") == 0);
}

bool cluster_find(struct cluster *cluster, const char *name_or_path, struct err *err) {
    if (names_a_file(name_or_path)) {
        struct json *doc = json_read(name_or_path, 1 << 20, err);
        if (!doc) return false;
        bool ok = parse(cluster, doc, err);
        json_free(doc);
        return ok || err_context(err, "%s", name_or_path);
    }
    struct str known = {0};
    for (const struct cluster_preset *p = cluster_presets; p->name; p++) {
        if (strcmp(p->name, name_or_path) == 0) {
            str_free(&known);
            return from_preset(cluster, p, err);
        }
        str_printf(&known, " %s", p->name);
    }
    err_set(err, ERR_USAGE, "cluster: found \"%s\", expected a .json file or one of%s",
            name_or_path, str_text(&known));
    str_free(&known);
    return false;
}

/* Fields of a group, one a line; %.17g reads back exactly, the shortest that does is printed. */
static void print_reals(const struct cluster *cluster, const char *group, const char *indent,
                        bool *first, struct str *out) {
    for (int i = 0; i < REAL_FIELDS; i++) {
        if (strcmp(real_fields[i].group, group) != 0) continue;
        char number[40];
        double value = *real_at(cluster, &real_fields[i]);
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(number, sizeof number, "%.*g", digits, value);
            if (strtod(number, NULL) == value) break;
        }
        str_printf(out, "%s%s\"%s\": %s", *first ? "" : ",\n", indent, real_fields[i].key, number);
        *first = false;
    }
}

void cluster_print(const struct cluster *cluster, struct str *out) {
    static const char *const groups[] = {"layer", "error", "communication"};
    str_puts(out, "{\n");
    for (int i = 0; i < TEXT_FIELDS; i++) {
        const char *text = (const char *)cluster + text_fields[i].offset;
        str_printf(out, "  \"%s\": ", text_fields[i].key);
        json_quote(out, text, strlen(text));
        str_puts(out, ",\n");
    }
    str_printf(out, "  \"gpus_per_node\": %d", cluster->device.gpus_per_node);
    bool first = false;
    print_reals(cluster, "", "  ", &first, out);
    for (size_t g = 0; g < 3; g++) {
        str_printf(out, ",\n  \"%s\": {\n", groups[g]);
        first = true;
        if (g == 0) {
            str_printf(out, "    \"origin\": \"%s\",\n    \"tile_min\": %d,\n    \"tile_max\": %d",
                       constant_origin_name(cluster->constants.origin),
                       cluster->constants.layer.tile_min, cluster->constants.layer.tile_max);
            first = false;
        }
        print_reals(cluster, groups[g], "    ", &first, out);
        str_puts(out, "\n  }");
    }
    str_puts(out, "\n}\n");
}

double cluster_error(const struct cluster *cluster, double group_tokens) {
    const struct layer_error *error = &cluster->constants.error;
    return group_tokens <= DECODE_TOKENS ? error->decode_median : error->prefill_median;
}
