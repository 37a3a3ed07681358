/* describe.c - plain descriptions of a sample, through GSL statistics
 *
 * Of GSL only functions without its error handler are called on inputs that were checked here. */
#include "analysis/describe.h"

#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics_double.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static bool check_finite(const double *values, size_t count, struct err *err) {
    if (count == 0) return err_set(err, ERR_DATA, "sample: found 0 values, expected at least 1");
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return err_set(err, ERR_DATA, "sample: value %zu: found %g, expected a finite number",
                           i, values[i]);
    return true;
}

double describe_quantile_sorted(const double *sorted, size_t count, double share) {
    return count == 0 ? NAN : gsl_stats_quantile_from_sorted_data(sorted, 1, count, share);
}

static void from_sorted(double *sorted, size_t count, struct description *out) {
    out->min = sorted[0];
    out->max = sorted[count - 1];
    out->p5 = describe_quantile_sorted(sorted, count, 0.05);
    out->q25 = describe_quantile_sorted(sorted, count, 0.25);
    out->median = describe_quantile_sorted(sorted, count, 0.5);
    out->q75 = describe_quantile_sorted(sorted, count, 0.75);
    out->p95 = describe_quantile_sorted(sorted, count, 0.95);
    for (size_t i = 0; i < count; i++) sorted[i] = fabs(sorted[i] - out->median);
    gsl_sort(sorted, 1, count);
    out->mad = describe_quantile_sorted(sorted, count, 0.5);
}

bool describe(const double *values, size_t count, struct description *out, struct err *err) {
    if (!check_finite(values, count, err)) return false;
    double *sorted = count > SIZE_MAX / sizeof *sorted ? NULL : malloc(count * sizeof *sorted);
    if (!sorted) return err_memory(err, "sample");
    memcpy(sorted, values, count * sizeof *sorted);
    gsl_sort(sorted, 1, count);
    out->count = count;
    out->mean = gsl_stats_mean(values, 1, count);
    out->sd = count < 2 ? NAN : gsl_stats_sd(values, 1, count);
    from_sorted(sorted, count, out);
    free(sorted);
    return true;
}

bool describe_correlation(const double *a, const double *b, size_t count, double *pearson,
                          double *spearman, struct err *err) {
    if (!check_finite(a, count, err) || !check_finite(b, count, err)) return false;
    if (count < 2) return err_set(err, ERR_DATA, "correlation: found 1 pair, expected at least 2");
    if (count > SIZE_MAX / (2 * sizeof(double))) return err_memory(err, "ranks");
    double *work = malloc(2 * count * sizeof *work);
    if (!work) return err_memory(err, "ranks");
    *pearson = gsl_stats_correlation(a, 1, b, 1, count);
    *spearman = gsl_stats_spearman(a, 1, b, 1, count, work);
    free(work);
    return true;
}
