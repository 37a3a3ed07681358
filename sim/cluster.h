/* cluster.h - a named cluster: GPU, links, kernel, number format and constants, as a JSON file
 *
 * Layer 4 (sim): calls base. `steelyard cluster show h100 > mine.json` writes a complete file;
 * every key of it may be edited, and every key but `device` may be left out, which takes the value
 * that the device, framework, kernel and format have in the tables. Unknown keys are refused. */
#ifndef SIM_CLUSTER_H
#define SIM_CLUSTER_H

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"
#include "sim/comm.h"
#include "sim/devices.h"

enum { CLUSTER_NAME_BYTES = 128 };

struct cluster {
    char name[CLUSTER_NAME_BYTES];
    char summary[2 * CLUSTER_NAME_BYTES];
    char gpu[CLUSTER_NAME_BYTES];
    char framework[CLUSTER_NAME_BYTES];
    char kernel[CLUSTER_NAME_BYTES];
    char quant[CLUSTER_NAME_BYTES];
    struct device device;              /* data sheet, as edited; texts borrowed from the tables */
    double weight_bytes;               /* per weight of the format, as edited */
    struct device_constants constants; /* texts borrowed from this struct or from the tables */
    struct comm_constants comm;
    double memory_efficiency;  /* of the roofline for the rest of the step */
    double compute_efficiency; /* of the same */
};

/* A built-in cluster. */
struct cluster_preset {
    const char *name, *device, *framework, *kernel, *quant, *summary;
};
extern const struct cluster_preset cluster_presets[]; /* ends with name == NULL */

/* A built-in name, or the path of a JSON file (what has a '/' or ends in ".json"). The struct must
 * not be copied afterwards: its texts point into itself. */
bool cluster_find(struct cluster *cluster, const char *name_or_path, struct err *err);

/* Parses len bytes of JSON. */
bool cluster_parse(struct cluster *cluster, const char *text, size_t len, struct err *err);

/* Appends the complete JSON text, ending with a newline. Reading it gives an equal cluster. */
void cluster_print(const struct cluster *cluster, struct str *out);

/* Median validated error of the layer time, a share: decode is at most DECODE_TOKENS tokens. */
double cluster_error(const struct cluster *cluster, double group_tokens);

#endif
