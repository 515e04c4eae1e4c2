/*
 * OpenBLAS under MLX's CPU backend on Linux. Preloaded with LD_PRELOAD.
 *
 * The wheel of mlx brings netlib's reference BLAS. libmlx.so calls three of its functions: cblas_sgemm,
 * cblas_dgemm and cblas_cgemm. Here they are again, forwarded to the OpenBLAS of the package scipy-openblas32
 * (its symbols carry a prefix, so it cannot be preloaded itself), and a product with a single row or column,
 * which is every product of decoding one sequence, goes to sgemv: 2 to 3 times as fast as sgemm there.
 *
 * OpenBLAS is opened at the first product, not in a constructor: LD_PRELOAD reaches every child process, and
 * most never multiply anything. When it cannot be opened, products go where they would have gone without the
 * bridge.
 */

#define _GNU_SOURCE /* RTLD_NEXT, dladdr */

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

/* The values of CBLAS's enums are part of its ABI. Integers are 32 bits wide (LP64), here and in both
 * libraries. */
enum { ROW_MAJOR = 101, COL_MAJOR = 102, NO_TRANS = 111, TRANS = 112, CONJ_TRANS = 113 };

typedef void sgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc);
typedef void dgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k, double alpha, const double *a,
                      int lda, const double *b, int ldb, double beta, double *c, int ldc);
typedef void cgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                      const void *a, int lda, const void *b, int ldb, const void *beta, void *c, int ldc);
typedef void sgemv_fn(int order, int trans, int m, int n, float alpha, const float *a, int lda, const float *x,
                      int incx, float beta, float *y, int incy);

static struct {
    sgemm_fn *sgemm;
    dgemm_fn *dgemm;
    cgemm_fn *cgemm;
    sgemv_fn *sgemv; /* NULL without OpenBLAS */
} blas;

static pthread_once_t openblas_tried = PTHREAD_ONCE_INIT;

static void try_openblas(void) {
    const char *path = getenv("MLXSUP_OPENBLAS");
    const char *reason = "MLXSUP_OPENBLAS is not set";
    if (path != NULL) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        sgemm_fn *sgemm = library ? (sgemm_fn *)dlsym(library, "scipy_cblas_sgemm") : NULL;
        dgemm_fn *dgemm = sgemm ? (dgemm_fn *)dlsym(library, "scipy_cblas_dgemm") : NULL;
        cgemm_fn *cgemm = dgemm ? (cgemm_fn *)dlsym(library, "scipy_cblas_cgemm") : NULL;
        sgemv_fn *sgemv = cgemm ? (sgemv_fn *)dlsym(library, "scipy_cblas_sgemv") : NULL;
        if (sgemv != NULL) {
            blas.sgemm = sgemm;
            blas.dgemm = dgemm;
            blas.cgemm = cgemm;
            blas.sgemv = sgemv;
            return;
        }
        reason = dlerror();
    }
    fprintf(stderr, "mlxsup blas_bridge: cannot use OpenBLAS, matrix products will be slow: %s\n", reason);
}

/* Whether products go to OpenBLAS. The worker reports it, so that a slow one explains itself. */
EXPORT int mlxsup_blas_bridge_active(void) {
    pthread_once(&openblas_tried, try_openblas);
    return blas.sgemv != NULL;
}

/*
 * What the caller would have called without the bridge. RTLD_NEXT finds it only in the global scope, and
 * Python opens extensions locally: there the caller's own scope (libmlx.so and what it is linked with) has it.
 */
static void *next_symbol(void *caller, const char *name) {
    void *symbol = dlsym(RTLD_NEXT, name);
    Dl_info info;
    if (symbol == NULL && dladdr(caller, &info) != 0) {
        void *library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        if (library != NULL) symbol = dlsym(library, name);
    }
    if (symbol == NULL) {
        fprintf(stderr, "mlxsup blas_bridge: no other %s to fall back to\n", name);
        abort();
    }
    return symbol;
}

static void resolve(void *caller) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    if (mlxsup_blas_bridge_active()) return;
    pthread_mutex_lock(&lock);
    if (blas.sgemm == NULL) {
        blas.dgemm = (dgemm_fn *)next_symbol(caller, "cblas_dgemm");
        blas.cgemm = (cgemm_fn *)next_symbol(caller, "cblas_cgemm");
        blas.sgemm = (sgemm_fn *)next_symbol(caller, "cblas_sgemm");
    }
    pthread_mutex_unlock(&lock);
}

/* y = alpha op(A) x + beta y. A is stored in row-major order; op(A) has `rows` rows and `cols` columns. */
static void row_major_gemv(bool trans, int rows, int cols, float alpha, const float *a, int lda, const float *x,
                           int incx, float beta, float *y, int incy) {
    /* With beta 0 the old values must not count, not even a NaN, but kernels of OpenBLAS have multiplied them
     * by 0 all the same (its issue 929). */
    if (beta == 0) {
        for (int i = 0; i < rows; i++) y[(ptrdiff_t)i * incy] = 0;
    }
    if (trans) {
        blas.sgemv(ROW_MAJOR, TRANS, cols, rows, alpha, a, lda, x, incx, beta, y, incy);
    } else {
        blas.sgemv(ROW_MAJOR, NO_TRANS, rows, cols, alpha, a, lda, x, incx, beta, y, incy);
    }
}

/* C = alpha op(A) op(B) + beta C in row-major order, where C has one row or one column. */
static void row_major_vector_product(bool trans_a, bool trans_b, int m, int n, int k, float alpha,
                                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                                     int ldc) {
    if (m == 1) {
        /* C' = op(B)' op(A)'; the row op(A) is contiguous unless A is stored as a column. */
        row_major_gemv(!trans_b, n, k, alpha, b, ldb, a, trans_a ? lda : 1, beta, c, 1);
    } else {
        row_major_gemv(trans_a, m, k, alpha, a, lda, b, trans_b ? 1 : ldb, beta, c, ldc);
    }
}

static bool is_valid(int order, int trans_a, int trans_b) {
    return (order == ROW_MAJOR || order == COL_MAJOR) && trans_a >= NO_TRANS && trans_a <= CONJ_TRANS &&
           trans_b >= NO_TRANS && trans_b <= CONJ_TRANS;
}

EXPORT void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
                        int lda, const float *b, int ldb, float beta, float *c, int ldc) {
    resolve(__builtin_return_address(0));
    bool vector = m == 1 || n == 1;
    /* With k = 0 sgemv returns at once and leaves C unscaled: that is sgemm's, and so is the complaint about an
     * argument. */
    if (blas.sgemv == NULL || !vector || k < 1 || !is_valid(order, trans_a, trans_b)) {
        blas.sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    bool ta = trans_a != NO_TRANS, tb = trans_b != NO_TRANS;
    if (order == ROW_MAJOR) {
        row_major_vector_product(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    } else { /* The same bytes in row-major order are the transposed matrices: C' = op(B)' op(A)'. */
        row_major_vector_product(tb, ta, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc);
    }
}

EXPORT void cblas_dgemm(int order, int trans_a, int trans_b, int m, int n, int k, double alpha, const double *a,
                        int lda, const double *b, int ldb, double beta, double *c, int ldc) {
    resolve(__builtin_return_address(0));
    blas.dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_cgemm(int order, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                        const void *a, int lda, const void *b, int ldb, const void *beta, void *c, int ldc) {
    resolve(__builtin_return_address(0));
    blas.cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
