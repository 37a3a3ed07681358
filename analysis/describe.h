/* describe.h - plain descriptions of a sample: mean, spread, quantiles, correlation
 *
 * Layer 2, the GSL folder; arrays in, numbers out, no I/O. Values must be finite: a NaN in the
 * sample is refused, naming its index, since a quantile over NaN means nothing. */
#ifndef ANALYSIS_DESCRIBE_H
#define ANALYSIS_DESCRIBE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct description {
    size_t count;
    double mean;
    double sd; /* sample standard deviation (n - 1); NaN when count < 2 */
    double min, max;
    double median, q25, q75, p5, p95;
    double mad; /* median absolute deviation from the median, not scaled */
};

/* Fails on an empty sample, on NaN or infinity, and when out of memory. Borrows values[count]. */
bool describe(const double *values, size_t count, struct description *out, struct err *err);

/* Quantile at share in [0,1] of values sorted ascending, by linear interpolation between order
 * statistics (Hyndman-Fan type 7, as gsl_stats_quantile_from_sorted_data, numpy and R do). */
double describe_quantile_sorted(const double *sorted, size_t count, double share);

/* Pearson's correlation and Spearman's rank correlation (ties get mean ranks) of paired samples;
 * NaN when a side is constant. */
bool describe_correlation(const double *a, const double *b, size_t count, double *pearson,
                          double *spearman, struct err *err);

#endif
