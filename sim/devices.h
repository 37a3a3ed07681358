/* devices.h - GPUs by data sheet, and the layer-time constants of GPU x kernel x number format
 *
 * Layer 4 (sim): tables of facts. The constants were fitted (mean |log(predicted/measured)|) on the
 * measured MoE layer times that NVIDIA publishes inside AIConfigurator (github.com/ai-dynamo/
 * aiconfigurator, Apache-2.0, commit 095f58a51c4ca8e61b66ec108d86f223f8d559ce, systems/data:
 * TensorRT-LLM 1.3.0rc20, vLLM 0.24.0, SGLang 0.5.14; A100: 1.0.0, 0.14.0, 0.5.10), rows without a
 * flag, a part of the shapes kept out to measure the error. A pair without a row gets constants
 * carried over by data-sheet ratios, with the larger error that this has been measured to have. */
#ifndef SIM_DEVICES_H
#define SIM_DEVICES_H

#include "base/err.h"
#include "sim/layer_time.h"

/* Number formats of weights and activations. */
struct number_format {
    const char *name;
    double weight_bytes; /* per weight, scales included */
    double active_bytes; /* per activation sent over the network */
    const char *summary;
};
extern const struct number_format number_formats[]; /* ends with name == NULL */
const struct number_format *number_format_find(const char *name, struct err *err);

/* A GPU as its data sheet has it (dense rates). */
struct device {
    const char *name;
    const char *relative; /* the GPU whose fitted constants are carried over, or NULL */
    double memory_tbps;   /* TB/s */
    double bf16_tflops;   /* dense */
    double fp8_tflops;    /* dense; bf16's where the GPU has no FP8 */
    double fp4_tflops;    /* dense; FP8's where it has no FP4 */
    double cache_bytes;   /* L2 */
    double memory_bytes;  /* HBM */
    double link_gbps;     /* GB/s to GPUs of the same node, one direction */
    double network_gbps;  /* GB/s to other nodes, one direction */
    int gpus_per_node;
    const char *source;
};
extern const struct device devices[]; /* ends with name == NULL */
const struct device *device_find(const char *name, struct err *err);
/* Peak of a format on a device, TFLOPS. */
double device_peak_tflops(const struct device *device, const char *quant);

/* Median and 90th percentile absolute error, as shares. */
struct layer_error {
    double decode_median, decode_p90, prefill_median, prefill_p90;
};

/* Where constants come from. X(enum, name, help) */
#define CONSTANT_ORIGINS(X)                                                                        \
    X(ORIGIN_HELD_OUT, "held-out", "fitted; error on rows that the fit has not seen")              \
    X(ORIGIN_OPEN, "fitted", "fitted; error on the fitted rows themselves")                        \
    X(ORIGIN_RELATIVE, "relative", "carried over from a near relative by data-sheet ratios")       \
    X(ORIGIN_DATA_SHEET, "data-sheet", "data sheet times usual efficiencies: a larger error")      \
    X(ORIGIN_USER, "user", "given in the cluster file")
#define X(e, name, help) e,
enum constant_origin { CONSTANT_ORIGINS(X) };
#undef X
const char *constant_origin_name(enum constant_origin origin);

/* One row of the table. */
struct device_constants {
    const char *gpu, *framework, *kernel, *quant;
    struct layer_constants layer;
    struct roofline_constants roofline;
    struct proxy_constants proxy;
    struct layer_error error;
    enum constant_origin origin;
    int rows; /* measured rows of the fit; 0 = none */
};
extern const struct device_constants device_constants[]; /* ends with gpu == NULL */

/* Measured error of constants carried over to a relative, and whether c and d of prefill follow
 * the memory bandwidth there. */
struct relative_error {
    const char *gpu, *framework, *kernel, *quant;
    bool traffic_scales;
    struct layer_error error;
};
extern const struct relative_error relative_errors[]; /* ends with gpu == NULL */

/* Constants of (device, framework, kernel, quant): the row of the table; else the relative's row
 * scaled by data-sheet ratios; else the data sheet. framework and kernel may be
 * NULL: the row with most measurements. Returns a value that says its origin; its texts are
 * borrowed from the table or from the arguments. */
struct device_constants constants_find(const struct device *device, const char *framework,
                                       const char *kernel, const char *quant);

/* The row of `from`, carried over to `to` by data-sheet ratios as constants_find does for a
 * relative. False: `from` has no such row. */
bool constants_carry(const struct device *from, const struct device *to, const char *framework,
                     const char *kernel, const char *quant, struct device_constants *out);

#endif
