/* plot.h - draws a figure: tables become a data file, gnuplot runs the figure's template on it
 *
 * Layer 2: calls base and, as a process, gnuplot. One template per figure, plots/<figure>.gp,
 * carried in the program and runnable by hand on the same data file. No gnuplot text is ever built
 * from data: names travel in the data file only, so nothing in a trace can run as a command. Same
 * data, same bytes. */
#ifndef PLOTS_PLOT_H
#define PLOTS_PLOT_H

#include "base/err.h"
#include "base/str.h"
#include "base/table.h"

/* X(name): template plots/<name>.gp; what the data file holds is said at its top. */
#define PLOT_FIGURES(X)                                                                            \
    X(load_map)                                                                                    \
    X(load_curves)                                                                                 \
    X(layer_balance)                                                                               \
    X(tradeoff)                                                                                    \
    X(bias_trajectory)                                                                             \
    X(bias_rate)                                                                                   \
    X(batch_size)                                                                                  \
    X(domain_drift)                                                                                \
    X(gate_weights)                                                                                \
    X(domain_map)                                                                                  \
    X(domain_balance)                                                                              \
    X(ranks)                                                                                       \
    X(throughput_ranks)                                                                            \
    X(throughput_regimes)                                                                          \
    X(throughput_layers)                                                                           \
    X(throughput_replicas)                                                                         \
    X(throughput_staleness)                                                                        \
    X(traffic)                                                                                     \
    X(models)

/* X(enum, name) */
#define PLOT_FORMATS(X)                                                                            \
    X(PLOT_SVG, "svg")                                                                             \
    X(PLOT_PNG, "png")                                                                             \
    X(PLOT_PDF, "pdf")

#define X(e, name) e,
enum plot_format { PLOT_FORMATS(X) };
#undef X

/* Text of a figure's template, or of the shared style; NULL when there is no such figure. */
const char *plot_template(const char *figure);
const char *plot_style(void);

/* The format that a file name's ending asks for. */
bool plot_format_of(const char *path, enum plot_format *format, struct err *err);

/* Appends tables as the blocks of a data file: tab-separated, a header line each, two empty lines
 * between blocks; missing cells are empty; tabs, line ends and double quotes in texts become blanks
 * and single quotes. */
bool plot_data(const struct table *const *blocks, int count, struct str *out, struct err *err);

/* Runs the template of `figure` on the data file's text and appends the image's bytes to *image.
 * subtitle follows the title ("" for none); height in points, 0 = the style's. Fails with gnuplot's
 * own message, or says that gnuplot is missing. */
struct plot_job {
    const char *figure;
    const char *data;
    const char *subtitle;
    int height;
    enum plot_format format;
};
bool plot_render(const struct plot_job *job, struct str *image, struct err *err);

#endif
