/* attention.c - causal attention in tiles, memory linear in the number of tokens
 *
 * Flash-style: online softmax (Milakov and Gimelshein 2018, "Online normalizer calculation for
 * softmax", algorithm 3) over tiles of keys (Dao et al. 2022, "FlashAttention", algorithm 1):
 *   per key tile: m' = max(m, max s), l' = l e^(m-m') + sum e^(s-m'), o' = o e^(m-m') + e^(s-m') V
 * A sink is a key without a value: it starts m = sink, l = 1. Keys and values are packed into
 * panels once for all heads that share them, then both products run on the tiles of the GEMM.
 *
 * Key tiles are counted from the window's start and each row touches only the keys it sees, so its
 * sums do not depend on how queries are grouped or on what other tokens hold (law 3).
 *
 * With `bf16` both products run on bf16 panels: keys as pairs along the head's dimension, values as
 * pairs along the keys; queries and probabilities are rounded as they are packed. The softmax is
 * f32 either way. */
#include "engine/kernels/packed.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { QUERY_GROUPS = 6, KEY_TILE = 128, KEY_PANELS = KEY_TILE / PANEL_COLS };

/* A tile of tokens of one window, counted from its start. */
struct span {
    int32_t window, first;
};

struct plan {
    const struct kernels *kernels;
    const struct attention *job;
    int64_t padded;       /* keys of all windows, each padded to whole panels */
    int64_t value_panels; /* panels of 32 value columns */
    enum panel_kind kind; /* of both products: PANEL_F32 or PANEL_DOT */
    int64_t element;      /* bytes of one */
    int64_t depth;        /* rows of a key panel: dim, in bf16 padded to 32 */
    char *keys;           /* [kv_heads][padded / 32][depth][32] */
    char *values;         /* [kv_heads][window][value panel][padded keys of the window][32] */
    struct span *spans;   /* query tiles, then key tiles */
    int64_t query_tiles, key_tiles;
    char *scratch;         /* [workers] */
    int64_t scratch_bytes; /* of one worker */
};

static int64_t window_tokens(const struct attention *job, int window) {
    return job->start[window + 1] - job->start[window];
}

/* First padded key of a window: windows start at whole panels and do not overlap. */
static int64_t padded_start(const struct attention *job, int window) {
    return round_up(job->start[window] - job->start[0], PANEL_COLS) + (int64_t)window * PANEL_COLS;
}

static void *panel_of_keys(const struct plan *plan, int kv_head, int window, int64_t key) {
    const struct attention *job = plan->job;
    int64_t at = kv_head * plan->padded + padded_start(job, window) + key;
    return plan->keys + at * plan->depth * plan->element;
}

static void *panel_of_values(const struct plan *plan, int kv_head, int window, int64_t panel) {
    const struct attention *job = plan->job;
    int64_t padded = round_up(window_tokens(job, window), PANEL_COLS);
    int64_t base = kv_head * plan->padded + padded_start(job, window);
    int64_t at = (base * plan->value_panels + panel * padded) * PANEL_COLS;
    return plan->values + at * plan->element;
}

/* ---- keys and values into panels */

/* Values of one key in a panel's columns, zeros behind the last column. */
static void pack_value(const struct attention *job, const float *from, int64_t panel, float *to) {
    int64_t left = job->dim_v - panel * PANEL_COLS, cols = left < PANEL_COLS ? left : PANEL_COLS;
    memcpy(to, from + panel * PANEL_COLS, (size_t)cols * sizeof *to);
    memset(to + cols, 0, (size_t)(PANEL_COLS - cols) * sizeof *to);
}

/* Two keys side by side, a bf16 pair a column. */
static void pack_value_pair(const struct plan *plan, const float *first, const float *second,
                            int64_t panel, uint16_t *to) {
    float wide[PANEL_COLS];
    uint16_t half[2][PANEL_COLS] = {{0}};
    pack_value(plan->job, first, panel, wide);
    plan->kernels->f32_to_bf16(half[0], wide, PANEL_COLS);
    if (second) {
        pack_value(plan->job, second, panel, wide);
        plan->kernels->f32_to_bf16(half[1], wide, PANEL_COLS);
    }
    for (int c = 0; c < PANEL_COLS; c++) to[2 * c] = half[0][c], to[2 * c + 1] = half[1][c];
}

/* Keys [first, last) of a window; where the window ends, zeros to the end of the panel. */
static void pack_values(const struct plan *plan, int kv_head, int window, int64_t first,
                        int64_t last) {
    const struct attention *job = plan->job;
    const bool end = last == window_tokens(job, window);
    const float *from = job->v + job->start[window] * job->ldv + kv_head * job->head_v;
    for (int64_t p = 0; p < plan->value_panels; p++) {
        char *panel = panel_of_values(plan, kv_head, window, p);
        const int64_t row = PANEL_COLS * plan->element;
        int64_t key = first;
        for (; key < last && plan->kind == PANEL_F32; key++)
            pack_value(job, from + key * job->ldv, p, (float *)(panel + key * row));
        for (; key < last; key += 2)
            pack_value_pair(plan, from + key * job->ldv,
                            key + 1 < last ? from + (key + 1) * job->ldv : NULL, p,
                            (uint16_t *)(panel + key * row));
        if (end) memset(panel + key * row, 0, (size_t)((round_up(last, PANEL_COLS) - key) * row));
    }
}

/* `cols` keys from `from` on into a panel. */
static void pack_keys(const struct plan *plan, const float *from, int cols, void *panel) {
    const struct attention *job = plan->job;
    uint16_t half[PANEL_COLS][BLOCK_K_DOT];
    if (plan->kind == PANEL_F32) {
        plan->kernels->transpose(panel, from, job->ldk * (int64_t)sizeof *from, cols, job->dim,
                                 false);
        return;
    }
    for (int c = 0; c < cols; c++) {
        if (job->dim % 2) half[c][job->dim] = 0;
        plan->kernels->f32_to_bf16(half[c], from + c * job->ldk, job->dim);
    }
    const int64_t units = div_up(job->dim, 2), padded = plan->depth / 2;
    plan->kernels->transpose(panel, half, sizeof half[0], cols, units, false);
    memset((uint32_t *)panel + units * PANEL_COLS, 0, (size_t)(padded - units) * PANEL_COLS * 4);
}

static void pack_job(void *context, int64_t index, int worker) {
    const struct plan *plan = context;
    const struct attention *job = plan->job;
    const int kv_head = (int)(index / plan->key_tiles);
    const struct span span = plan->spans[plan->query_tiles + index % plan->key_tiles];
    const int64_t tokens = window_tokens(job, span.window);
    int64_t last = span.first + KEY_TILE < tokens ? span.first + KEY_TILE : tokens;
    (void)worker;
    for (int64_t key = span.first; key < last; key += PANEL_COLS) {
        int cols = last - key < PANEL_COLS ? (int)(last - key) : PANEL_COLS;
        const float *from =
            job->k + (job->start[span.window] + key) * job->ldk + kv_head * job->head_k;
        pack_keys(plan, from, cols, panel_of_keys(plan, kv_head, span.window, key));
    }
    pack_values(plan, kv_head, span.window, span.first, last);
}

/* ---- a group of at most tile_rows queries of one head */

struct group {
    int head, kv_head, window, rows;
    int64_t query;     /* its first, counted from the window's start */
    void *packed;      /* queries */
    float *scores;     /* [rows][KEY_TILE], then probabilities */
    void *weights;     /* packed probabilities */
    float *out;        /* [rows][value_panels * 32] */
    float *most, *sum; /* [rows] */
};

/* Keys that query i sees: [first_key(i), i + 1). */
static int64_t first_key(const struct attention *job, int64_t i) {
    int64_t first = 0;
    if (job->span > 0 && i - job->span + 1 > first) first = i - job->span + 1;
    if (job->chunk > 0 && i / job->chunk * job->chunk > first) first = i / job->chunk * job->chunk;
    return first;
}

static void multiply_keys(const struct plan *plan, const struct group *g, int64_t key0,
                          int64_t first, int64_t last) {
    const struct attention *job = plan->job;
    struct tile t = {.rows = g->rows, .k = job->dim, .a = g->packed, .ldc = KEY_TILE};
    for (int64_t key = first / PANEL_COLS * PANEL_COLS; key < last; key += PANEL_COLS) {
        t.cols = last - key < PANEL_COLS ? (int)(last - key) : PANEL_COLS;
        t.b = panel_of_keys(plan, g->kv_head, g->window, key);
        t.c = g->scores + (key - key0);
        plan->kernels->tile[plan->kind](&t);
    }
}

/* Scores of row r, keys [first, last) of the tile, become probabilities; the running maximum and
 * sum move on and the row's output is brought to the new maximum. */
static void absorb_row(const struct plan *plan, const struct group *g, int r, int64_t first,
                       int64_t last) {
    const struct kernels *kernels = plan->kernels;
    float *s = g->scores + r * KEY_TILE;
    int64_t width = plan->value_panels * PANEL_COLS;
    kernels->scale(plan->job->scale, s + first, last - first);
    float most = kernels->max(s + first, last - first);
    if (most > g->most[r]) {
        float shrink = expf(g->most[r] - most); /* 0 for the first keys */
        g->most[r] = most;
        g->sum[r] *= shrink;
        kernels->scale(shrink, g->out + r * width, width);
    }
    g->sum[r] += kernels->exp_sum(s + first, g->most[r], s + first, last - first);
}

static void multiply_values(const struct plan *plan, const struct group *g, int64_t key0,
                            int64_t first, int64_t last) {
    const float *row[MAX_TILE_ROWS];
    const int64_t width = plan->value_panels * PANEL_COLS;
    for (int r = 0; r < g->rows; r++) row[r] = g->scores + r * KEY_TILE;
    plan->kernels->pack_a[plan->kind](g->weights, row, g->rows, first - key0, (int)(last - first));
    struct tile t = {.rows = g->rows,
                     .cols = PANEL_COLS,
                     .k = (int)(last - first),
                     .a = g->weights,
                     .ld_initial = width,
                     .ldc = width};
    for (int64_t p = 0; p < plan->value_panels; p++) {
        t.b = (char *)panel_of_values(plan, g->kv_head, g->window, p) +
              first * PANEL_COLS * plan->element;
        t.c = g->out + p * PANEL_COLS;
        t.initial = t.c;
        plan->kernels->tile[plan->kind](&t);
    }
}

/* One tile of keys from key0 on. */
static void absorb_tile(const struct plan *plan, const struct group *g, int64_t key0) {
    const struct attention *job = plan->job;
    int64_t first = first_key(job, g->query), last = g->query + g->rows;
    if (plan->kind == PANEL_DOT) first = first / PANEL_COLS * PANEL_COLS; /* whole pairs */
    if (first < key0) first = key0;
    if (last > key0 + KEY_TILE) last = key0 + KEY_TILE;
    if (first >= last) return;
    multiply_keys(plan, g, key0, first, last);
    for (int r = 0; r < g->rows; r++) {
        int64_t from = first_key(job, g->query + r), to = g->query + r + 1;
        if (from < first) from = first;
        if (to > last) to = last;
        float *s = g->scores + r * KEY_TILE - key0;
        if (from >= to) {
            memset(s + first, 0, (size_t)(last - first) * sizeof *s);
            continue;
        }
        absorb_row(plan, g, r, from - key0, to - key0);
        memset(s + first, 0, (size_t)(from - first) * sizeof *s);
        memset(s + to, 0, (size_t)(last - to) * sizeof *s);
    }
    multiply_values(plan, g, key0, first, last);
}

static void start_group(const struct plan *plan, struct group *g) {
    const struct attention *job = plan->job;
    const float *row[MAX_TILE_ROWS];
    for (int r = 0; r < g->rows; r++) {
        row[r] = job->q + (job->start[g->window] + g->query + r) * job->ldq + g->head * job->head_q;
        g->most[r] = job->sink ? job->sink[g->head] : -INFINITY;
        g->sum[r] = job->sink ? 1 : 0;
    }
    plan->kernels->pack_a[plan->kind](g->packed, row, g->rows, 0, job->dim);
    memset(g->out, 0, (size_t)(g->rows * plan->value_panels * PANEL_COLS) * sizeof *g->out);
}

static void finish_group(const struct plan *plan, const struct group *g) {
    const struct attention *job = plan->job;
    const int64_t width = plan->value_panels * PANEL_COLS;
    for (int r = 0; r < g->rows; r++) {
        float *to =
            job->out + (job->start[g->window] + g->query + r) * job->ldo + g->head * job->head_o;
        plan->kernels->scale(1 / g->sum[r], g->out + r * width, job->dim_v);
        memcpy(to, g->out + r * width, (size_t)job->dim_v * sizeof *to);
    }
}

static int64_t packed_a_floats(int64_t k) { return MAX_TILE_ROWS * round_up(k, 32); }

static int64_t group_floats(const struct attention *job) {
    return packed_a_floats(job->dim) + packed_a_floats(KEY_TILE) + MAX_TILE_ROWS * KEY_TILE +
           MAX_TILE_ROWS * round_up(job->dim_v, PANEL_COLS) + 2 * MAX_TILE_ROWS;
}

/* Cuts one group's buffers out of the worker's scratch. */
static void place_group(const struct attention *job, struct group *g, float *at) {
    g->packed = at, at += packed_a_floats(job->dim);
    g->weights = at, at += packed_a_floats(KEY_TILE);
    g->scores = at, at += MAX_TILE_ROWS * KEY_TILE;
    g->out = at, at += MAX_TILE_ROWS * round_up(job->dim_v, PANEL_COLS);
    g->most = at, at += MAX_TILE_ROWS;
    g->sum = at;
}

/* A query tile of one head: its groups take every tile of keys in turn, while it is in the cache.
 */
static void query_job(void *context, int64_t index, int worker) {
    const struct plan *plan = context;
    const struct attention *job = plan->job;
    /* the last tiles of a window see the most keys: they go first */
    const struct span span = plan->spans[plan->query_tiles - 1 - index / job->heads];
    const int head = (int)(index % job->heads), rows = plan->kernels->tile_rows[plan->kind];
    const int64_t tokens = window_tokens(job, span.window);
    struct group group[QUERY_GROUPS];
    int groups = 0;
    float *at = (float *)(plan->scratch + worker * plan->scratch_bytes);
    for (int64_t i = span.first; i < tokens && groups < QUERY_GROUPS; i += rows) {
        struct group *g = &group[groups];
        *g = (struct group){.head = head,
                            .kv_head = head / (job->heads / job->kv_heads),
                            .window = span.window,
                            .query = i,
                            .rows = tokens - i < rows ? (int)(tokens - i) : rows};
        place_group(job, g, at + groups++ * group_floats(job));
        start_group(plan, g);
    }
    const struct group *last = &group[groups - 1];
    int64_t key = first_key(job, span.first) / KEY_TILE * KEY_TILE;
    for (; key < last->query + last->rows; key += KEY_TILE)
        for (int g = 0; g < groups; g++) absorb_tile(plan, &group[g], key);
    for (int g = 0; g < groups; g++) finish_group(plan, &group[g]);
}

/* ---- sizes */

static int64_t padded_keys(const struct attention *job) {
    return padded_start(job, job->windows) + PANEL_COLS;
}

size_t attention_bytes(const struct attention *job, const struct pool *pool) {
    if (job->windows < 1 || job->heads < 1 || job->kv_heads < 1 || job->dim < 1 || job->dim_v < 1)
        return 0;
    if (job->heads % job->kv_heads != 0) return 0;
    const int64_t width = round_up(job->dim, PANEL_COLS) + round_up(job->dim_v, PANEL_COLS);
    int64_t keys = padded_keys(job), most = INT64_MAX / 64;
    if (width > most / keys / job->kv_heads) return 0;
    int64_t spans = 2 * (div_up(job->start[job->windows] - job->start[0], 8) + job->windows);
    int64_t bytes = keys * job->kv_heads * width * 4;
    bytes += round_up(spans * (int64_t)sizeof(struct span), 64);
    bytes += pool_size(pool) * QUERY_GROUPS * round_up(group_floats(job) * 4, 64);
    return (size_t)bytes;
}

static int64_t list_spans(const struct attention *job, int rows, struct span *spans) {
    int64_t count = 0;
    for (int w = 0; w < job->windows; w++)
        for (int64_t i = 0; i < window_tokens(job, w); i += rows)
            spans[count++] = (struct span){w, (int32_t)i};
    return count;
}

void attention_run(const struct kernels *kernels, struct pool *pool, const struct attention *job,
                   void *work) {
    const bool bf16 = job->bf16 && job->dim <= BLOCK_K_DOT;
    struct plan plan = {.kernels = kernels,
                        .job = job,
                        .kind = bf16 ? PANEL_DOT : PANEL_F32,
                        .element = bf16 ? 2 : 4,
                        .depth = bf16 ? round_up(job->dim, PANEL_COLS) : job->dim,
                        .padded = padded_keys(job)};
    int query_tile = QUERY_GROUPS * kernels->tile_rows[plan.kind];
    assert((uintptr_t)work % 64 == 0 && kernels->tile_rows[plan.kind] >= 4);
    plan.value_panels = div_up(job->dim_v, PANEL_COLS);
    plan.keys = work;
    plan.values = plan.keys + plan.padded * job->kv_heads * plan.depth * plan.element;
    plan.scratch =
        plan.values + plan.padded * job->kv_heads * plan.value_panels * PANEL_COLS * plan.element;
    plan.scratch_bytes = QUERY_GROUPS * group_floats(job) * 4;
    plan.spans = (struct span *)(plan.scratch + pool_size(pool) * plan.scratch_bytes);
    plan.query_tiles = list_spans(job, query_tile, plan.spans);
    plan.key_tiles = list_spans(job, KEY_TILE, plan.spans + plan.query_tiles);
    pool_run(pool, plan.key_tiles * job->kv_heads, pack_job, &plan);
    pool_run(pool, plan.query_tiles * job->heads, query_job, &plan);
}
