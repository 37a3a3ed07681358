/* Fused kernels of the training recipe: everything between the matrix products.
 *
 * One thread; activations bf16 (as uint16_t), residual stream and statistics f32.  Compiled
 * by model.py with  cc -O3 -march=native -ffast-math -shared -fPIC. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float up(bf16 h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline bf16 down(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (bf16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline float same(float f) { return f; }

/* exp with a degree-6 polynomial; simple enough for the compiler to vectorise. */
static inline float fexp(float x)
{
    float t = x * 1.44269504f, n, r, p, s;
    int32_t i;
    t = t < -126.f ? -126.f : t > 126.f ? 126.f : t;
    n = floorf(t);
    r = t - n;
    p = 1.f + r * (0.693147180f + r * (0.240226507f + r * (0.0555041087f +
        r * (0.00961812911f + r * (0.00133335581f + r * 0.000154353f)))));
    i = ((int32_t)n + 127) << 23;
    memcpy(&s, &i, 4);
    return p * s;
}
static inline float sigmoid(float x) { return 1.f / (1.f + fexp(-x)); }

/* RMSNorm: y = w x / sqrt(mean x^2 + eps); inv keeps 1/sqrt for the way back. */
#define RMS(NAME, T_, LD, ST)                                                                  \
    void rms_fwd_##NAME(const T_ *x, const float *w, bf16 *y, float *inv, int64_t rows,        \
                        int64_t n, float eps)                                                  \
    {                                                                                          \
        for (int64_t t = 0; t < rows; t++, x += n, y += n) {                                   \
            float s = 0;                                                                       \
            for (int64_t i = 0; i < n; i++) s += LD(x[i]) * LD(x[i]);                          \
            s = inv[t] = 1.f / sqrtf(s / n + eps);                                             \
            for (int64_t i = 0; i < n; i++) y[i] = down(LD(x[i]) * s * w[i]);                  \
        }                                                                                      \
    }                                                                                          \
    void rms_bwd_##NAME(const bf16 *dy, const T_ *x, const float *w, const float *inv, T_ *dx, \
                        float *dw, int64_t rows, int64_t n)                                    \
    {                                                                                          \
        for (int64_t t = 0; t < rows; t++, x += n, dy += n, dx += n) {                         \
            float s = 0, v = inv[t];                                                           \
            for (int64_t i = 0; i < n; i++) {                                                  \
                float d = up(dy[i]), a = LD(x[i]) * v;                                         \
                dw[i] += d * a;                                                                \
                s += d * w[i] * a;                                                             \
            }                                                                                  \
            s /= n;                                                                            \
            for (int64_t i = 0; i < n; i++)                                                    \
                dx[i] = ST(v * (up(dy[i]) * w[i] - LD(x[i]) * v * s));                         \
        }                                                                                      \
    }
RMS(f, float, same, same)
RMS(b, bf16, up, down)

/* SwiGLU of rows [gate | up], times a weight per row (0 for padding) if rw is given. */
void swiglu_fwd(const bf16 *h, const float *rw, bf16 *a, int64_t rows, int64_t n)
{
    for (int64_t t = 0; t < rows; t++, h += 2 * n, a += n) {
        float w = rw ? rw[t] : 1.f;
        for (int64_t i = 0; i < n; i++) {
            float g = up(h[i]);
            a[i] = down(g * sigmoid(g) * up(h[n + i]) * w);
        }
    }
}
void swiglu_bwd(const bf16 *h, const float *rw, const bf16 *da, bf16 *dh, float *drw,
                int64_t rows, int64_t n)
{
    for (int64_t t = 0; t < rows; t++, h += 2 * n, dh += 2 * n, da += n) {
        float w = rw ? rw[t] : 1.f, s = 0;
        for (int64_t i = 0; i < n; i++) {
            float g = up(h[i]), u = up(h[n + i]), d = up(da[i]), q = sigmoid(g);
            s += d * g * q * u;
            d *= w;
            dh[i] = down(d * u * q * (1.f + g * (1.f - q)));
            dh[n + i] = down(d * g * q);
        }
        if (drw) drw[t] = s;
    }
}

/* Causal softmax in place: scores [m][q][k], row i of a block sees keys 0..q0+i. */
void softmax_fwd(bf16 *s, int64_t m, int64_t q, int64_t k, int64_t q0, float scale)
{
    float e[4096];
    for (int64_t b = 0; b < m; b++)
        for (int64_t i = 0; i < q; i++, s += k) {
            int64_t n = q0 + i + 1;
            float top = -1e30f, sum = 0;
            for (int64_t j = 0; j < n; j++) {
                e[j] = up(s[j]) * scale;
                top = top > e[j] ? top : e[j];
            }
            for (int64_t j = 0; j < n; j++) {
                e[j] = fexp(e[j] - top);
                sum += e[j];
            }
            sum = 1.f / sum;
            for (int64_t j = 0; j < n; j++) s[j] = down(e[j] * sum);
            for (int64_t j = n; j < k; j++) s[j] = 0;
        }
}
void softmax_bwd(const bf16 *p, bf16 *d, int64_t rows, int64_t k, float scale)
{
    for (int64_t t = 0; t < rows; t++, p += k, d += k) {
        float s = 0;
        for (int64_t j = 0; j < k; j++) s += up(p[j]) * up(d[j]);
        for (int64_t j = 0; j < k; j++) d[j] = down(up(p[j]) * (up(d[j]) - s) * scale);
    }
}

/* Cross entropy; the logits are replaced by their gradient times scale. */
void cross_entropy(bf16 *z, const int64_t *target, float *loss, int64_t rows, int64_t n, float scale)
{
    float e[65536 / 4];
    for (int64_t t = 0; t < rows; t++, z += n) {
        float top = -1e30f, sum = 0, at = up(z[target[t]]);
        for (int64_t j = 0; j < n; j++) top = top > up(z[j]) ? top : up(z[j]);
        for (int64_t j = 0; j < n; j++) {
            e[j] = fexp(up(z[j]) - top);
            sum += e[j];
        }
        loss[t] = top + logf(sum) - at;
        sum = scale / sum;
        for (int64_t j = 0; j < n; j++) z[j] = down(e[j] * sum);
        z[target[t]] = down(e[target[t]] * sum - scale);
    }
}

/* Rotary embedding and change of layout between token rows and [batch*head][pos][dim].
 * rope: 0 none, 1 pairs (2j, 2j+1), 2 halves (j, j+n/2).  back: the inverse (transposed) way;
 * with hs == 0 (one key part shared by all heads) it sums over heads. */
void pack(bf16 *rows, int64_t rs, int64_t hs, bf16 *heads, int64_t d, int64_t off, int64_t n,
          int64_t batch, int64_t len, int64_t nh, int64_t rope, const float *cs, const float *sn,
          int64_t back)
{
    float a[256], sum[256];
    for (int64_t b = 0; b < batch; b++)
        for (int64_t l = 0; l < len; l++) {
            bf16 *r0 = rows + (b * len + l) * rs;
            const float *c = cs + l * (n / 2), *s = sn + l * (n / 2);
            for (int64_t i = 0; i < n; i++) sum[i] = 0;
            for (int64_t h = 0; h < nh; h++) {
                bf16 *r = r0 + h * hs, *p = heads + ((b * nh + h) * len + l) * d + off;
                bf16 *from = back ? p : r;
                if (!rope) {
                    memcpy(back ? r : p, from, n * sizeof *r);
                    continue;
                }
                int64_t st = rope == 1 ? 2 : 1, o = rope == 1 ? 1 : n / 2;
                float sg = back ? -1.f : 1.f;
                for (int64_t j = 0; j < n / 2; j++) {
                    float x = up(from[j * st]), y = up(from[j * st + o]);
                    a[j * st] = x * c[j] - y * s[j] * sg;
                    a[j * st + o] = y * c[j] + x * s[j] * sg;
                }
                if (!back)
                    for (int64_t i = 0; i < n; i++) p[i] = down(a[i]);
                else if (hs)
                    for (int64_t i = 0; i < n; i++) r[i] = down(a[i]);
                else
                    for (int64_t i = 0; i < n; i++) sum[i] += a[i];
            }
            if (back && rope && !hs)
                for (int64_t i = 0; i < n; i++) r0[i] = down(sum[i]);
        }
}

/* The gate.  sig: sigmoid scores, else softmax.  Selection by score + bias within the best
 * `keep` of `groups` groups (sum of the two best); ties to the lower index.  Weights from the
 * scores alone, divided by their sum if norm, times scale. */
void gate_fwd(const float *z, const float *bias, float *p, int32_t *idx, float *w, int64_t *count,
              int64_t rows, int64_t E, int64_t k, int64_t groups, int64_t keep, int64_t sig,
              int64_t norm, float scale)
{
    float c[512], gs[64];
    int64_t per = E / groups;
    for (int64_t t = 0; t < rows; t++, z += E, p += E, idx += k, w += k) {
        if (sig) {
            for (int64_t e = 0; e < E; e++) p[e] = sigmoid(z[e]);
        } else {
            float top = z[0], s = 0;
            for (int64_t e = 0; e < E; e++) top = z[e] > top ? z[e] : top;
            for (int64_t e = 0; e < E; e++) s += p[e] = fexp(z[e] - top);
            for (int64_t e = 0; e < E; e++) p[e] /= s;
        }
        for (int64_t e = 0; e < E; e++) c[e] = p[e] + (bias ? bias[e] : 0.f);
        if (keep < groups) {
            for (int64_t g = 0; g < groups; g++) {
                float a = -1e30f, b = -1e30f;
                for (int64_t e = g * per; e < (g + 1) * per; e++)
                    if (c[e] > a) { b = a; a = c[e]; } else if (c[e] > b) b = c[e];
                gs[g] = a + b;
            }
            for (int64_t j = 0; j < groups - keep; j++) { /* strike the worst */
                int64_t m = -1;
                for (int64_t g = groups - 1; g >= 0; g--)
                    if (gs[g] > -1e29f && (m < 0 || gs[g] < gs[m])) m = g;
                gs[m] = -2e30f;
                for (int64_t e = m * per; e < (m + 1) * per; e++) c[e] = -1e30f;
            }
        }
        float s = 0;
        for (int64_t j = 0; j < k; j++) {
            int64_t m = 0;
            for (int64_t e = 1; e < E; e++) m = c[e] > c[m] ? e : m;
            c[m] = -2e30f;
            idx[j] = (int32_t)m;
            s += w[j] = p[m];
            count[m]++;
        }
        s = norm ? scale / (s + 1e-20f) : scale;
        for (int64_t j = 0; j < k; j++) w[j] *= s;
    }
}
/* aux: gradient of the loss by the mean score of each expert, divided by rows; or null. */
void gate_bwd(const float *p, const int32_t *idx, const float *dw, const float *aux, float *dz,
              int64_t rows, int64_t E, int64_t k, int64_t sig, int64_t norm, float scale)
{
    for (int64_t t = 0; t < rows; t++, p += E, idx += k, dw += k, dz += E) {
        float s = 0, m = 0;
        for (int64_t e = 0; e < E; e++) dz[e] = aux ? aux[e] : 0.f;
        for (int64_t j = 0; j < k; j++) s += p[idx[j]];
        if (norm) {
            for (int64_t j = 0; j < k; j++) m += dw[j] * p[idx[j]] / s;
            for (int64_t j = 0; j < k; j++) dz[idx[j]] += scale * (dw[j] - m) / s;
        } else
            for (int64_t j = 0; j < k; j++) dz[idx[j]] += scale * dw[j];
        if (sig) {
            for (int64_t e = 0; e < E; e++) dz[e] *= p[e] * (1.f - p[e]);
        } else {
            m = 0;
            for (int64_t e = 0; e < E; e++) m += dz[e] * p[e];
            for (int64_t e = 0; e < E; e++) dz[e] = p[e] * (dz[e] - m);
        }
    }
}

/* Rows sorted by expert, each expert padded to a multiple of `pad` rows.  start has E + 1
 * entries; row[] is the token of each padded row or -1, pos[] the padded row of each choice. */
int64_t dispatch(const int32_t *idx, const float *w, const int64_t *count, int64_t *start,
                 int32_t *row, float *rw, int32_t *pos, int64_t rows, int64_t E, int64_t k,
                 int64_t pad)
{
    int64_t next[512];
    start[0] = 0;
    for (int64_t e = 0; e < E; e++) {
        next[e] = start[e];
        start[e + 1] = start[e] + (count[e] + pad - 1) / pad * pad;
    }
    for (int64_t i = 0; i < start[E]; i++) { row[i] = -1; rw[i] = 0; }
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < k; j++) {
            int64_t i = next[idx[t * k + j]]++;
            row[i] = (int32_t)t;
            rw[i] = w[t * k + j];
            pos[t * k + j] = (int32_t)i;
        }
    return start[E];
}
void gather(const bf16 *x, const int32_t *row, bf16 *y, int64_t rows, int64_t n)
{
    for (int64_t i = 0; i < rows; i++)
        if (row[i] < 0) memset(y + i * n, 0, n * sizeof *y);
        else memcpy(y + i * n, x + row[i] * n, n * sizeof *y);
}
void combine(const bf16 *y, const int32_t *pos, bf16 *out, int64_t rows, int64_t k, int64_t n)
{
    float a[2048];
    for (int64_t t = 0; t < rows; t++, pos += k, out += n) {
        for (int64_t i = 0; i < n; i++) a[i] = 0;
        for (int64_t j = 0; j < k; j++) {
            const bf16 *r = y + pos[j] * n;
            for (int64_t i = 0; i < n; i++) a[i] += up(r[i]);
        }
        for (int64_t i = 0; i < n; i++) out[i] = down(a[i]);
    }
}

/* ---- products of the experts ----
 * Operands are pairs of bf16 along the summed dimension, as the dot-product instruction takes
 * them: A as 32-bit words A[i * ai + p * ap], B packed [p][ldb] with ldb a multiple of 48.
 * Rows come in multiples of 8. */
#ifdef __AVX512BF16__
#include <immintrin.h>
static inline void tile(const uint32_t *A, int64_t ai, int64_t ap, const uint32_t *B, int64_t ldb,
                        int64_t P, int64_t n, bf16 *C, float *F, int64_t ldc)
{
    __m512 acc[8][3];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) acc[i][0] = acc[i][1] = acc[i][2] = _mm512_setzero_ps();
    for (int64_t p = 0; p < P; p++, A += ap, B += ldb) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(B), b1 = (__m512bh)_mm512_loadu_si512(B + 16),
                 b2 = (__m512bh)_mm512_loadu_si512(B + 32);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512bh a = (__m512bh)_mm512_set1_epi32((int)A[i * ai]);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], a, b0);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], a, b1);
            acc[i][2] = _mm512_dpbf16_ps(acc[i][2], a, b2);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
#pragma GCC unroll 3
        for (int j = 0; j < 3; j++) {
            int64_t left = n - 16 * j;
            __mmask16 m = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
            if (F)
                _mm512_mask_storeu_ps(F + i * ldc + 16 * j, m, acc[i][j]);
            else
                _mm256_mask_storeu_epi16(C + i * ldc + 16 * j, m, (__m256i)_mm512_cvtneps_pbh(acc[i][j]));
        }
}
#else
static inline void tile(const uint32_t *A, int64_t ai, int64_t ap, const uint32_t *B, int64_t ldb,
                        int64_t P, int64_t n, bf16 *C, float *F, int64_t ldc)
{
    float acc[8][48] = {0};
    for (int64_t p = 0; p < P; p++, A += ap, B += ldb)
        for (int i = 0; i < 8; i++) {
            float lo = up((bf16)A[i * ai]), hi = up((bf16)(A[i * ai] >> 16));
            for (int j = 0; j < 48; j++) acc[i][j] += lo * up((bf16)B[j]) + hi * up((bf16)(B[j] >> 16));
        }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 48 && j < n; j++)
            if (F) F[i * ldc + j] = acc[i][j];
            else C[i * ldc + j] = down(acc[i][j]);
}
#endif

static void gemm(const uint32_t *A, int64_t ai, int64_t ap, const uint32_t *B, int64_t ldb, int64_t P,
                 int64_t M, int64_t N, bf16 *C, float *F, int64_t ldc)
{
    for (int64_t j = 0; j < N; j += 48)
        for (int64_t i = 0; i < M; i += 8)
            tile(A + i * ai, ai, ap, B + j, ldb, P, N - j, C ? C + i * ldc + j : 0,
                 F ? F + i * ldc + j : 0, ldc);
}
static inline int64_t up48(int64_t n) { return (n + 47) / 48 * 48; }

/* W [n][k] f32 to pairs along k, transposed: B[p][n]. */
static void pack_t(const float *w, uint32_t *B, int64_t n, int64_t k)
{
    int64_t ld = up48(n);
    for (int64_t j = n; j < ld; j++)
        for (int64_t p = 0; p < k / 2; p++) B[p * ld + j] = 0;
    for (int64_t j0 = 0; j0 < n; j0 += 16)
        for (int64_t p = 0; p < k / 2; p++)
            for (int64_t j = j0; j < n && j < j0 + 16; j++)
                B[p * ld + j] = down(w[j * k + 2 * p]) | (uint32_t)down(w[j * k + 2 * p + 1]) << 16;
}
/* W [n][k] f32 to pairs along n: B[p][k]. */
static void pack_n(const float *w, uint32_t *B, int64_t n, int64_t k)
{
    int64_t ld = up48(k);
    for (int64_t p = 0; p < n / 2; p++, B += ld, w += 2 * k) {
        for (int64_t j = 0; j < k; j++) B[j] = down(w[j]) | (uint32_t)down(w[k + j]) << 16;
        for (int64_t j = k; j < ld; j++) B[j] = 0;
    }
}
/* Rows of bf16 to pairs of rows. */
static void pair(const bf16 *x, uint32_t *B, int64_t rows, int64_t n)
{
    int64_t ld = up48(n);
    for (int64_t p = 0; p < rows / 2; p++, B += ld, x += 2 * n) {
        for (int64_t j = 0; j < n; j++) B[j] = x[j] | (uint32_t)x[n + j] << 16;
        for (int64_t j = n; j < ld; j++) B[j] = 0;
    }
}

/* All experts of a layer: gather, up, SwiGLU times weight, down.  tmp: room for a packed matrix. */
void experts_fwd(const bf16 *x, const int32_t *row, const float *rw, const int64_t *start,
                 const float *wu, const float *wd, bf16 *xs, bf16 *h, bf16 *act, bf16 *y,
                 uint32_t *tmp, int64_t E, int64_t H, int64_t I)
{
    for (int64_t e = 0; e < E; e++, wu += 2 * I * H, wd += I * H) {
        int64_t a = start[e], m = start[e + 1] - a;
        if (!m) continue;
        gather(x, row + a, xs + a * H, m, H);
        pack_t(wu, tmp, 2 * I, H);
        gemm((uint32_t *)(xs + a * H), H / 2, 1, tmp, up48(2 * I), H / 2, m, 2 * I, h + a * 2 * I, 0, 2 * I);
        swiglu_fwd(h + a * 2 * I, rw + a, act + a * I, m, I);
        pack_t(wd, tmp, H, I);
        gemm((uint32_t *)(act + a * I), I / 2, 1, tmp, up48(H), I / 2, m, H, y + a * H, 0, H);
    }
}
/* The way back; dx [rows][H] by padded row, du and dd the gradients of the weights. */
void experts_bwd(const bf16 *dout, const int32_t *row, const float *rw, const int64_t *start,
                 const float *wu, const float *wd, const bf16 *xs, const bf16 *h, const bf16 *act,
                 bf16 *dx, float *drw, float *du, float *dd, uint32_t *tmp, int64_t E, int64_t H,
                 int64_t I, int64_t most)
{
    /* tmp: a packed matrix, four packed activations and three plain ones of `most` rows */
    uint32_t *pw = tmp, *px = pw + up48(2 * I) * up48(H), *pa = px + most / 2 * up48(H),
             *py = pa + most / 2 * up48(I), *ph = py + most / 2 * up48(H);
    bf16 *dy = (bf16 *)(ph + most / 2 * up48(2 * I)), *da = dy + most * H, *dh = da + most * I;
    for (int64_t e = 0; e < E; e++, wu += 2 * I * H, wd += I * H, du += 2 * I * H, dd += I * H) {
        int64_t a = start[e], m = start[e + 1] - a;
        if (!m) {
            memset(du, 0, 2 * I * H * sizeof *du);
            memset(dd, 0, I * H * sizeof *dd);
            continue;
        }
        gather(dout, row + a, dy, m, H);
        pack_n(wd, pw, H, I);
        gemm((uint32_t *)dy, H / 2, 1, pw, up48(I), H / 2, m, I, da, 0, I);
        pair(dy, py, m, H);
        pair(act + a * I, pa, m, I);
        gemm(py, 1, up48(H), pa, up48(I), m / 2, H, I, 0, dd, I);
        swiglu_bwd(h + a * 2 * I, rw + a, da, dh, drw + a, m, I);
        pack_n(wu, pw, 2 * I, H);
        gemm((uint32_t *)dh, I, 1, pw, up48(H), I, m, H, dx + a * H, 0, H);
        pair(dh, ph, m, 2 * I);
        pair(xs + a * H, px, m, H);
        gemm(ph, 1, up48(2 * I), px, up48(H), m / 2, 2 * I, H, 0, du, H);
    }
}
