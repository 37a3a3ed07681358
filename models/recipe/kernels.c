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
/* x += y */
void add(float *x, const bf16 *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] += up(y[i]);
}
