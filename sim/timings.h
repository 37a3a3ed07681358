/* timings.h - measured layer times (CSV), the load behind each row, and how far the model is off
 *
 * Layer 4 (sim): calls base and analysis. Columns by name: gpu, quant, hidden_size, inter_size,
 * topk, num_experts, moe_ep, distribution, num_tokens (of the whole group), latency_ms; and where
 * they exist framework, version, kernel, gated (1), moe_tp (1), phase, flag (ok), num_slots (of an
 * EPLB placement). A row is one layer on the hottest rank; what its distribution means is in
 * synthetic.h. Nothing is dropped: a row that cannot be predicted is counted and says why. Uniform
 * rows of the wide-EP phase "context" under 128 tokens an expert count as flagged: their receive
 * counts are not padded as those of every other row. */
#ifndef SIM_TIMINGS_H
#define SIM_TIMINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/table.h"
#include "sim/devices.h"
#include "sim/synthetic.h"

/* Rows of one kernel. Texts are borrowed from the table's file. */
struct timing_kernel {
    const char *gpu, *framework, *version, *kernel, *quant;
    double weight_bytes; /* per weight of the format */
    struct device_constants constants;
    const char *origin; /* of what predicts the rows */
};

struct timing_row {
    int kernel;       /* index */
    bool flagged;     /* the file marks the row as one that the model cannot know about */
    bool unknown_law; /* its distribution is none that we can draw */
    int64_t tokens;   /* T */
    double latency_ms;
    double predicted_ms; /* NaN: no prediction */
    double model_inter;  /* intermediate size before it is split over tensor-parallel GPUs */
    struct layer_shape shape;
    struct load_law law;
    struct load_group group;
    struct rank_load load; /* expected */
};

struct timings {
    struct csv *csv; /* owned */
    struct timing_row *rows;
    int64_t count;
    struct timing_kernel *kernels;
    int kernel_count;
};

/* Reads the file and expects each row's load (mean of TIMING_DRAWS draws), on `threads` threads
 * (0: all); the same numbers for any. Predictions are by the built-in constants (refit.h: others).
 * Refuses missing columns, unknown GPUs or formats, numbers out of range, an empty table: one line
 * naming file, line and column. */
enum { TIMING_DRAWS = 24 };
bool timings_read(struct timings *timings, const char *path, int threads, struct err *err);
void timings_free(struct timings *timings);

/* Error of the formula and of both baselines per gpu, framework, version, kernel, quant and phase.
 * Columns: gpu, framework, kernel, quant, phase, rows (all of the file), rows_ok (without a flag:
 * what the medians are over; a kernel that has only flagged rows, rows_ok = 0, is judged by those),
 * median_ape, p90_ape, proxy_median_ape, roofline_median_ape, median_ape_all, p90_ape_all (over all
 * rows that have a load), unmodelled (rows that no constants or no known distribution predicts),
 * origin (of the constants), version (empty where the file names none). Shares; NULL where there
 * are no rows. Returns owned. */
struct table *timings_validate(const struct timings *timings, struct err *err);

/* The `count` rows with the largest error among those without a flag (and, apart from them, flag
 * and line tell). Columns: line, gpu, kernel, quant, shape, distribution, tokens, ranks,
 * measured_ms, predicted_ms, ape. Returns owned. */
struct table *timings_worst(const struct timings *timings, int64_t count, struct err *err);

#endif
