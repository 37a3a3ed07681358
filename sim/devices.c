/* devices.c - data sheets, number formats, and constants for a pair that has no row of its own */
#include "sim/devices.h"

#include <math.h>
#include <string.h>

const struct number_format number_formats[] = {
    {"bfloat16", 2, 2, "weights and activations bf16"},
    {"fp8", 1, 1, "W8A8, one scale a tensor"},
    {"fp8_block", 1, 1, "W8A8, one scale a 128x128 block"},
    {"nvfp4", 0.5625, 0.5625, "4 bits, one scale of 8 bits for 16 weights"},
    {"int4_wo", 0.5625, 2, "weights 4 bits, groups of 32; activations bf16"},
    {"w4a16_mxfp4", 0.53125, 2, "weights MXFP4, activations bf16"},
    {"w4a8_mxfp4_mxfp8", 0.53125, 1.03125, "weights MXFP4, activations MXFP8"},
    {0}};

/* Dense peaks, HBM and NVLink as the vendors' data sheets state them; links one direction. A GB200
 * counts as an NVL72 rack. */
/* clang-format off */
const struct device devices[] = {
    {"A100_SXM", NULL, 2.039, 312, 312, 312, 40e6, 80e9, 300, 25, 8, "NVIDIA A100 80 GB SXM data sheet"},
    {"L40S", NULL, 0.864, 362, 733, 733, 96e6, 48e9, 32, 25, 8, "NVIDIA L40S data sheet (PCIe 4 x16)"},
    {"H100_SXM", NULL, 3.35, 989, 1979, 1979, 50e6, 80e9, 450, 50, 8, "NVIDIA H100 SXM5 data sheet"},
    {"H200_SXM", "H100_SXM", 4.8, 989, 1979, 1979, 50e6, 141e9, 450, 50, 8, "NVIDIA H200 SXM data sheet"},
    {"H800_SXM", "H100_SXM", 3.35, 989, 1979, 1979, 50e6, 80e9, 200, 50, 8, "H100 with NVLink at 400 GB/s both ways"},
    {"H20", "H100_SXM", 4.0, 148, 296, 296, 60e6, 96e9, 450, 50, 8, "NVIDIA H20 data sheet"},
    {"B200_SXM", NULL, 7.7, 2250, 4500, 9000, 126e6, 180e9, 900, 50, 8, "NVIDIA HGX B200 data sheet"},
    {"GB200", "B200_SXM", 8.0, 2500, 5000, 10000, 126e6, 186e9, 900, 50, 72, "NVIDIA GB200 NVL72 data sheet"},
    {"MI300X", NULL, 5.3, 1307, 2615, 2615, 256e6, 192e9, 448, 50, 8, "AMD Instinct MI300X data sheet"},
    {0}};
/* clang-format on */

/* Error of constants taken from the data sheet: the worst medians met on unflagged open rows, by
 * carrying the H100 TensorRT-LLM rows to A100, L40S, B200 and GB200 and to kernels without a row;
 * for formats that have no such row (4-bit weights) by taking FP8's. */
static const struct layer_error data_sheet_error = {0.20, 0.32, 0.34, 0.47};
static const struct layer_error other_format_error = {0.69, 0.79, 0.82, 0.90};

const struct number_format *number_format_find(const char *name, struct err *err) {
    for (const struct number_format *f = number_formats; f->name; f++)
        if (strcmp(f->name, name) == 0) return f;
    err_set(err, ERR_DATA,
            "number format: found \"%s\", expected bfloat16, fp8, fp8_block, nvfp4, "
            "int4_wo, w4a16_mxfp4 or w4a8_mxfp4_mxfp8",
            name);
    return NULL;
}

const struct device *device_find(const char *name, struct err *err) {
    char known[256] = "";
    for (const struct device *d = devices; d->name; d++) {
        if (strcmp(d->name, name) == 0) return d;
        strncat(known, " ", sizeof known - strlen(known) - 1);
        strncat(known, d->name, sizeof known - strlen(known) - 1);
    }
    err_set(err, ERR_DATA, "device: found \"%s\", expected one of%s", name, known);
    return NULL;
}

double device_peak_tflops(const struct device *device, const char *quant) {
    if (strcmp(quant, "nvfp4") == 0) return device->fp4_tflops;
    if (strncmp(quant, "fp8", 3) == 0 || strncmp(quant, "w4a8", 4) == 0) return device->fp8_tflops;
    return device->bf16_tflops; /* weight-only formats multiply in bf16 */
}

const char *constant_origin_name(enum constant_origin origin) {
    static const char *const names[] = {
#define X(e, name, help) name,
        CONSTANT_ORIGINS(X)
#undef X
    };
    return names[origin];
}

static bool matches(const char *wanted, const char *found) {
    return !wanted || strcmp(wanted, found) == 0;
}

/* The row with most measurements; NULL when there is none. */
static const struct device_constants *row_find(const char *gpu, const char *framework,
                                               const char *kernel, const char *quant) {
    const struct device_constants *best = NULL;
    for (const struct device_constants *r = device_constants; r->gpu; r++)
        if (strcmp(r->gpu, gpu) == 0 && strcmp(r->quant, quant) == 0 &&
            matches(framework, r->framework) && matches(kernel, r->kernel) &&
            (!best || r->rows > best->rows))
            best = r;
    return best;
}

/* B and C by data-sheet ratios; everything else unchanged. */
static struct device_constants scaled(const struct device_constants *row, const struct device *from,
                                      const struct device *to, const char *quant) {
    struct device_constants out = *row;
    double memory = to->memory_tbps / from->memory_tbps;
    double compute = device_peak_tflops(to, quant) / device_peak_tflops(from, row->quant);
    out.gpu = to->name;
    out.quant = quant;
    out.layer.weight_tbps *= memory;
    out.layer.compute_tflops *= compute;
    out.roofline.weight_tbps *= memory;
    out.roofline.compute_tflops *= compute;
    out.proxy.compute_tflops *= compute;
    out.rows = 0;
    return out;
}

static const struct relative_error *relative_find(const struct device_constants *c) {
    for (const struct relative_error *r = relative_errors; r->gpu; r++)
        if (strcmp(r->gpu, c->gpu) == 0 && strcmp(r->framework, c->framework) == 0 &&
            strcmp(r->kernel, c->kernel) == 0 && strcmp(r->quant, c->quant) == 0)
            return r;
    return NULL;
}

/* A near relative: activations that stay in the cache keep their speed, which is why c and d are
 * scaled only for larger groups (layer_time.h): that is what fits both phases best. */
static struct device_constants from_relative(const struct device_constants *row,
                                             const struct device *from, const struct device *to,
                                             const char *quant) {
    struct device_constants out = scaled(row, from, to, quant);
    const struct relative_error *measured = relative_find(&out);
    out.origin = ORIGIN_RELATIVE;
    out.layer.bandwidth_ratio = to->memory_tbps / from->memory_tbps;
    out.layer.traffic_tokens = !measured || measured->traffic_scales ? DECODE_TOKENS : 0;
    out.error = measured ? measured->error : data_sheet_error;
    return out;
}

static struct device_constants from_data_sheet(const struct device *device, const char *quant) {
    struct err unused;
    const struct device *h100 = device_find("H100_SXM", &unused);
    const struct device_constants *row =
        row_find("H100_SXM", "trtllm", "moe_torch_flow_cutlass", quant);
    bool known = row != NULL;
    if (!known) row = row_find("H100_SXM", "trtllm", "moe_torch_flow_cutlass", "fp8");
    struct device_constants out = scaled(row, h100, device, quant);
    double memory = device->memory_tbps / h100->memory_tbps;
    out.framework = "any";
    out.kernel = "any";
    out.layer.assign_ps /= memory;
    out.layer.group_ps /= memory;
    out.error = known ? data_sheet_error : other_format_error;
    out.origin = ORIGIN_DATA_SHEET;
    return out;
}

struct device_constants constants_find(const struct device *device, const char *framework,
                                       const char *kernel, const char *quant) {
    const struct device_constants *row = row_find(device->name, framework, kernel, quant);
    if (row) return *row;
    struct err unused;
    const struct device *relative =
        device->relative ? device_find(device->relative, &unused) : NULL;
    row = relative ? row_find(relative->name, framework, kernel, quant) : NULL;
    if (row) return from_relative(row, relative, device, quant);
    return from_data_sheet(device, quant);
}

bool constants_carry(const struct device *from, const struct device *to, const char *framework,
                     const char *kernel, const char *quant, struct device_constants *out) {
    const struct device_constants *row = row_find(from->name, framework, kernel, quant);
    if (row) *out = from_relative(row, from, to, quant);
    return row != NULL;
}
