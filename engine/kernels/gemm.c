/* gemm.c - the grouped product: blocks for the caches, jobs for the threads
 *
 * A job is up to CHUNK_ROWS rows of one item times a range of its panels. Per block of K its rows
 * are packed once (they stay in L2) and every panel streams past them. All splits are free to
 * depend on the pool: an output's order of summation is fixed by block_k alone (level.h). */
#include "engine/kernels/packed.h"

#include <assert.h>
#include <string.h>

/* 192 rows x 256 x 4 bytes = 192 KiB of activations: fits an L2 of 1 MiB beside panels and output.
 * MIN_PANELS keeps the packing of a job's rows below about 4 % of its multiplications. */
enum { CHUNK_ROWS = 192, MIN_PANELS = 8, JOBS_PER_WORKER = 6 };

struct plan {
    const struct kernels *kernels;
    const struct gemm *items;
    int count;
    int64_t panels, panels_per_job, column_jobs;
};

static int64_t row_chunks(const struct gemm *item) { return div_up(item->m, CHUNK_ROWS); }

/* Rows [row0, row0 + rows) of the item, panels [panel0, panel1). */
struct part {
    const struct gemm *item;
    int64_t row0, rows, panel0, panel1;
};

static struct part part_of(const struct plan *plan, int64_t job) {
    const struct gemm *item = plan->items;
    for (;; item++) {
        int64_t jobs = row_chunks(item) * plan->column_jobs;
        if (job < jobs) break;
        job -= jobs;
    }
    /* neighbouring jobs share panels; chunks of rows are equal to within one row */
    int64_t chunks = row_chunks(item), chunk = job % chunks, column = job / chunks;
    int64_t row0 = item->m * chunk / chunks, row1 = item->m * (chunk + 1) / chunks;
    int64_t panel0 = column * plan->panels_per_job, panel1 = panel0 + plan->panels_per_job;
    if (panel1 > plan->panels) panel1 = plan->panels;
    return (struct part){item, row0, row1 - row0, panel0, panel1};
}

/* One block of K: packed rows in `a`, group g at a + g * group_bytes. */
struct block {
    int64_t k0;
    int k, groups;
    const char *a;
    int64_t group_bytes;
};

static void multiply_panel(const struct plan *plan, const struct part *part,
                           const struct block *block, int64_t panel) {
    const struct gemm *item = part->item;
    const struct packed *w = item->weight;
    const int64_t n0 = panel * PANEL_COLS, left = w->n - n0;
    struct tile t = {.cols = left < PANEL_COLS ? (int)left : PANEL_COLS,
                     .k = block->k,
                     .b = packed_panel(w, panel, block->k0),
                     .ldc = item->ldc};
    for (int g = 0; g < block->groups; g++) {
        int64_t r0 = part->rows * g / block->groups, r1 = part->rows * (g + 1) / block->groups;
        t.rows = (int)(r1 - r0);
        t.a = block->a + g * block->group_bytes;
        t.c = item->c + (part->row0 + r0) * item->ldc + n0;
        t.initial = block->k0 ? t.c : item->bias ? item->bias + n0 : NULL;
        t.ld_initial = block->k0 ? t.ldc : 0;
        plan->kernels->tile[w->kind](&t);
    }
}

static void gemm_job(void *context, int64_t job, int worker) {
    const struct plan *plan = context;
    const struct part part = part_of(plan, job);
    const struct gemm *item = part.item;
    const enum panel_kind kind = item->weight->kind;
    const int block_k = plan->kernels->block_k[kind], height = plan->kernels->tile_rows[kind];
    _Alignas(64) char packed[(CHUNK_ROWS + 2 * MAX_TILE_ROWS) * BLOCK_BYTES];
    const float *row[CHUNK_ROWS];
    struct block block = {
        .groups = (int)div_up(part.rows, height), .a = packed, .group_bytes = height * BLOCK_BYTES};
    (void)worker;
    for (int64_t r = 0; r < part.rows; r++) {
        int64_t at = part.row0 + r;
        row[r] = item->a + (item->rows ? item->rows[at] : at) * item->lda;
    }
    for (block.k0 = 0; block.k0 < item->weight->k; block.k0 += block_k) {
        int64_t left = item->weight->k - block.k0;
        block.k = left < block_k ? (int)left : block_k;
        for (int g = 0; g < block.groups; g++) {
            int64_t r0 = part.rows * g / block.groups, r1 = part.rows * (g + 1) / block.groups;
            plan->kernels->pack_a[kind](packed + g * block.group_bytes, row + r0, (int)(r1 - r0),
                                        block.k0, block.k);
        }
        for (int64_t p = part.panel0; p < part.panel1; p++) multiply_panel(plan, &part, &block, p);
    }
}

void gemm_grouped(const struct kernels *kernels, struct pool *pool, const struct gemm *items,
                  int count) {
    if (count < 1) return;
    struct plan plan = {.kernels = kernels, .items = items, .count = count};
    int64_t chunks = 0;
    plan.panels = div_up(items[0].weight->n, PANEL_COLS);
    for (int i = 0; i < count; i++) {
        assert(items[i].weight->n == items[0].weight->n &&
               items[i].weight->k == items[0].weight->k);
        chunks += row_chunks(&items[i]);
    }
    if (chunks == 0) return;
    int workers = pool_size(pool);
    plan.panels_per_job = plan.panels * chunks / ((int64_t)workers * JOBS_PER_WORKER);
    if (plan.panels_per_job < MIN_PANELS) plan.panels_per_job = MIN_PANELS;
    if (plan.panels_per_job > plan.panels || workers == 1) plan.panels_per_job = plan.panels;
    plan.column_jobs = div_up(plan.panels, plan.panels_per_job);
    pool_run(pool, chunks * plan.column_jobs, gemm_job, &plan);
}
