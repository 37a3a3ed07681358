/* fit.h - robust non-linear least squares, with errors of the parameters
 *
 * Layer 2, the GSL folder; arrays in, numbers out. Minimises sum rho((model - measured)/s) with
 * Huber's rho (k = 1.345) by Levenberg-Marquardt steps on reweighted rows; s = 1.4826 times the
 * median absolute residual, updated with the weights. A few wild rows therefore move a parameter by
 * no more than ordinary ones do. Deterministic. */
#ifndef ANALYSIS_FIT_H
#define ANALYSIS_FIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { FIT_PARAMETERS = 16 };

struct fit_problem {
    int64_t rows;
    int parameters;
    /* predicted[rows] <- the model at parameter[parameters]; must be finite near the solution */
    void (*model)(const void *context, const double *parameter, double *predicted);
    const void *context;
    const double *measured; /* [rows] */
    const double *start;    /* [parameters] */
};

struct fit {
    double value[FIT_PARAMETERS];
    /* Standard deviation, from Huber's sandwich (Huber 1981, eq. 6.6.5 form): infinite where the
     * rows do not determine the parameter. Scatter among rows is all it knows: an error of the
     * model's form is not in it. */
    double sd[FIT_PARAMETERS];
    double spread;   /* s: robust standard deviation of the residuals */
    double mean_abs; /* mean absolute residual */
    int rounds;      /* of reweighting */
};

/* Refuses fewer than 3 rows a parameter, and a start at which the model is not finite. */
bool fit_robust(const struct fit_problem *problem, struct fit *fit, struct err *err);

#endif
