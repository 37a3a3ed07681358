/* fit_layer.h - fits the layer-time constants to measured rows
 *
 * Layer 4 (sim): calls analysis and base. Six constants and one of three tile rules per kernel, on
 * log(time), rows without a flag; C is at most the data-sheet peak. The error that is reported is
 * that of rows which a second fit has not seen (two halves by shape and ranks, crosswise). */
#ifndef SIM_FIT_LAYER_H
#define SIM_FIT_LAYER_H

#include "sim/timings.h"

enum { LAYER_PARAMETERS = 6, FIT_LAYER_ROWS = 30 };

struct layer_fit {
    struct layer_constants constants;
    double sd[LAYER_PARAMETERS]; /* of t0 us, B, C, c, d, e; infinite: not determined by the rows */
    double spread;               /* robust sd of log(predicted/measured) */
    int64_t rows;
};

/* Fits rows[count]. peak_tflops caps C. Refuses fewer than FIT_LAYER_ROWS rows. */
bool fit_layer(const struct timing_row *const *rows, int64_t count, double peak_tflops,
               struct layer_fit *fit, struct err *err);

/* One line per kernel of the file: constants with their standard deviations (NULL: not determined)
 * and cross-validated errors (shares). A kernel with too few rows is an error that names it; pass
 * only = NULL for all kernels, or a kernel's label. threads = 0: all. Returns owned. */
struct table *timings_fit(const struct timings *timings, const char *only, int threads,
                          struct err *err);

#endif
