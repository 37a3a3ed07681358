/* settling.c - when a trajectory has settled, where, and how much it swings then */
#include "cli/settling.h"

#include <math.h>

enum { WINDOW = 5, FEWEST = 8 };

/* Mean of rows [from, to). */
static double mean_of(const struct table *t, int column, int64_t from, int64_t to) {
    double sum = 0;
    for (int64_t row = from; row < to; row++) sum += table_number(t, row, column);
    return sum / (double)(to - from);
}

/* Least squares over rows [half, rows): does the line move by more than 2 % of the level, and its
 * slope by more than three standard errors? */
static bool drifts(const struct table *t, int column, int64_t half, double level) {
    int64_t rows = table_rows(t);
    double n = (double)(rows - half), middle = (n - 1) / 2, xx = 0, xy = 0, left = 0;
    for (int64_t row = half; row < rows; row++) {
        double x = (double)(row - half) - middle;
        xx += x * x;
        xy += x * (table_number(t, row, column) - level);
    }
    double slope = xy / xx;
    for (int64_t row = half; row < rows; row++) {
        double x = (double)(row - half) - middle;
        double residual = table_number(t, row, column) - level - slope * x;
        left += residual * residual;
    }
    double error = sqrt(left / (n - 2) / xx);
    return fabs(slope) > 3 * error && fabs(slope) * n > 0.02 * fabs(level);
}

struct settling settling_of(const struct table *trajectory, int column) {
    int64_t rows = table_rows(trajectory), half = rows / 2;
    struct settling out = {(double)NAN, (double)NAN, (double)NAN, -1};
    if (rows == 0 || column < 0) return out;
    out.start = mean_of(trajectory, column, 0, rows < WINDOW ? rows : WINDOW);
    double sum = 0, squares = 0;
    for (int64_t row = half; row < rows; row++) {
        double value = table_number(trajectory, row, column);
        sum += value;
        squares += value * value;
    }
    double n = (double)(rows - half);
    out.level = sum / n;
    out.swing = sqrt(fmax(0, squares / n - out.level * out.level));
    if (rows < FEWEST || drifts(trajectory, column, half, out.level)) return out;
    double near = fmax(2 * out.swing, 0.02 * fabs(out.level));
    for (int64_t row = half; row >= 0; row--) {
        int64_t end = row + WINDOW < rows ? row + WINDOW : rows;
        if (!(fabs(mean_of(trajectory, column, row, end) - out.level) <= near)) break;
        out.first = (int)row;
    }
    return out;
}
