/* gsl_cblas.h - sgemm by its definition, for cross builds without the library */
#ifndef TESTS_CROSS_GSL_CBLAS_H
#define TESTS_CROSS_GSL_CBLAS_H

enum { CblasRowMajor, CblasNoTrans, CblasTrans };

/* C[m,n] = A[m,k] B[n,k]^T: the only form that the tests ask for (alpha 1, beta 0). */
static inline void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k,
                               float alpha, const float *a, int lda, const float *b, int ldb,
                               float beta, float *c, int ldc) {
    (void)order, (void)trans_a, (void)trans_b, (void)alpha, (void)beta;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int x = 0; x < k; x++) sum += (double)a[i * lda + x] * b[j * ldb + x];
            c[i * ldc + j] = (float)sum;
        }
}

#endif
