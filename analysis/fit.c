/* fit.c - robust non-linear least squares: GSL's Levenberg-Marquardt inside Huber reweighting */
#include "analysis/fit.h"

#include <gsl/gsl_blas.h>
#include <gsl/gsl_errno.h>
#include <gsl/gsl_linalg.h>
#include <gsl/gsl_matrix.h>
#include <gsl/gsl_multifit_nlinear.h>
#include <gsl/gsl_vector.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double huber = 1.345;
enum { MOST_ROUNDS = 40, STEPS_A_ROUND = 8 };

struct work {
    const struct fit_problem *problem;
    double *predicted; /* [rows] */
    double *sorted;    /* [rows] */
};

static int residuals(const gsl_vector *x, void *context, gsl_vector *f) {
    struct work *w = context;
    double parameter[FIT_PARAMETERS];
    for (int i = 0; i < w->problem->parameters; i++) parameter[i] = gsl_vector_get(x, (size_t)i);
    w->problem->model(w->problem->context, parameter, w->predicted);
    for (int64_t i = 0; i < w->problem->rows; i++) {
        double r = w->predicted[i] - w->problem->measured[i];
        if (!isfinite(r)) return GSL_EBADFUNC;
        gsl_vector_set(f, (size_t)i, r);
    }
    return GSL_SUCCESS;
}

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* 1.4826 * median |r|: the normal distribution's sd. */
static double spread_of(const gsl_vector *r, double *sorted) {
    for (size_t i = 0; i < r->size; i++) sorted[i] = fabs(gsl_vector_get(r, i));
    qsort(sorted, r->size, sizeof *sorted, by_number);
    return fmax(1.4826 * sorted[r->size / 2], 1e-12);
}

/* A^-1 B A^-1 with A = J'diag(psi')J, B = J'diag(psi^2)J; psi in units of the residual. */
static void sandwich(const gsl_matrix *jacobian, const gsl_vector *r, double spread,
                     struct fit *fit) {
    size_t p = jacobian->size2, n = jacobian->size1;
    gsl_matrix *a = gsl_matrix_calloc(p, p), *b = gsl_matrix_calloc(p, p);
    gsl_matrix *inner = gsl_matrix_calloc(p, p), *inverse = gsl_matrix_calloc(p, p);
    for (size_t i = 0; a && b && inner && inverse && i < n; i++) {
        double ri = gsl_vector_get(r, i), limit = huber * spread;
        double psi = fmax(-limit, fmin(limit, ri)), inside = fabs(ri) <= limit;
        for (size_t j = 0; j < p; j++)
            for (size_t k = 0; k < p; k++) {
                double jk = gsl_matrix_get(jacobian, i, j) * gsl_matrix_get(jacobian, i, k);
                *gsl_matrix_ptr(a, j, k) += jk * inside;
                *gsl_matrix_ptr(b, j, k) += jk * psi * psi;
            }
    }
    for (size_t j = 0; j < p; j++) fit->sd[j] = INFINITY;
    /* a direction that no row moves (or barely: 1e-10 of the largest) has no finite error */
    double top = 0;
    for (size_t j = 0; a && j < p; j++) top = fmax(top, gsl_matrix_get(a, j, j));
    for (size_t j = 0; a && j < p; j++)
        if (gsl_matrix_get(a, j, j) < 1e-10 * top) gsl_matrix_set(a, j, j, 1e-10 * top);
    bool ok =
        a && b && inner && inverse && top > 0 && gsl_linalg_cholesky_decomp1(a) == GSL_SUCCESS;
    if (ok) {
        gsl_matrix_memcpy(inverse, a);
        gsl_linalg_cholesky_invert(inverse);
        gsl_blas_dgemm(CblasNoTrans, CblasNoTrans, 1, inverse, b, 0, inner);
        gsl_blas_dgemm(CblasNoTrans, CblasNoTrans, 1, inner, inverse, 0, b);
        for (size_t j = 0; j < p; j++) fit->sd[j] = sqrt(fmax(0, gsl_matrix_get(b, j, j)));
    }
    gsl_matrix_free(a);
    gsl_matrix_free(b);
    gsl_matrix_free(inner);
    gsl_matrix_free(inverse);
}

/* Reweighted rounds until the parameters stand still. */
static bool rounds(gsl_multifit_nlinear_workspace *solver, gsl_multifit_nlinear_fdf *fdf,
                   gsl_vector *x, gsl_vector *weight, struct work *work, struct fit *fit,
                   struct err *err) {
    gsl_vector_set_all(weight, 1);
    for (fit->rounds = 0; fit->rounds < MOST_ROUNDS; fit->rounds++) {
        int info;
        if (gsl_multifit_nlinear_winit(x, weight, fdf, solver) != GSL_SUCCESS)
            return err_set(err, ERR_DATA, "fit: found a start where the model is not finite");
        gsl_multifit_nlinear_driver(STEPS_A_ROUND, 1e-8, 1e-10, 0, NULL, NULL, &info, solver);
        const gsl_vector *at = gsl_multifit_nlinear_position(solver);
        double moved = 0;
        for (size_t j = 0; j < x->size; j++)
            moved = fmax(moved, fabs(gsl_vector_get(at, j) - gsl_vector_get(x, j)) /
                                    (1e-3 + fabs(gsl_vector_get(at, j))));
        gsl_vector_memcpy(x, at);
        gsl_vector *r = solver->f; /* weighted: recompute without weights */
        residuals(x, work, r);
        fit->spread = spread_of(r, work->sorted);
        fit->mean_abs = 0;
        for (size_t i = 0; i < r->size; i++) {
            double size = fabs(gsl_vector_get(r, i));
            fit->mean_abs += size / (double)r->size;
            gsl_vector_set(weight, i, fmin(1, huber * fit->spread / fmax(size, 1e-300)));
        }
        if (fit->rounds > 0 && moved < 1e-5) break;
    }
    return true;
}

static bool solve(const struct fit_problem *problem, struct work *work, struct fit *fit,
                  struct err *err) {
    size_t n = (size_t)problem->rows, p = (size_t)problem->parameters;
    gsl_multifit_nlinear_parameters parameters = gsl_multifit_nlinear_default_parameters();
    gsl_multifit_nlinear_workspace *solver =
        gsl_multifit_nlinear_alloc(gsl_multifit_nlinear_trust, &parameters, n, p);
    gsl_vector *x = gsl_vector_alloc(p), *weight = gsl_vector_alloc(n);
    gsl_multifit_nlinear_fdf fdf = {.f = residuals, .n = n, .p = p, .params = work};
    bool ok = (solver && x && weight) || err_memory(err, "fit");
    for (size_t j = 0; ok && j < p; j++) gsl_vector_set(x, j, problem->start[j]);
    ok = ok && rounds(solver, &fdf, x, weight, work, fit, err);
    if (ok) { /* one more start without weights: the plain Jacobian at the solution */
        gsl_vector_set_all(weight, 1);
        gsl_multifit_nlinear_winit(x, weight, &fdf, solver);
        sandwich(gsl_multifit_nlinear_jac(solver), gsl_multifit_nlinear_residual(solver),
                 fit->spread, fit);
        for (size_t j = 0; j < p; j++) fit->value[j] = gsl_vector_get(x, j);
    }
    if (solver) gsl_multifit_nlinear_free(solver);
    gsl_vector_free(x);
    gsl_vector_free(weight);
    return ok;
}

bool fit_robust(const struct fit_problem *problem, struct fit *fit, struct err *err) {
    *fit = (struct fit){0};
    if (problem->parameters < 1 || problem->parameters > FIT_PARAMETERS)
        return err_set(err, ERR_DATA, "fit: found %d parameters, expected 1 to %d",
                       problem->parameters, FIT_PARAMETERS);
    if (problem->rows < 3 * (int64_t)problem->parameters)
        return err_set(err, ERR_DATA,
                       "fit: found %lld rows, expected at least %d for %d parameters",
                       (long long)problem->rows, 3 * problem->parameters, problem->parameters);
    gsl_error_handler_t *before = gsl_set_error_handler_off();
    struct work work = {problem, malloc((size_t)problem->rows * sizeof(double)),
                        malloc((size_t)problem->rows * sizeof(double))};
    bool ok =
        (work.predicted && work.sorted) ? solve(problem, &work, fit, err) : err_memory(err, "fit");
    free(work.predicted);
    free(work.sorted);
    gsl_set_error_handler(before);
    return ok;
}
