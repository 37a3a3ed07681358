/* refit.c - predictions of measured rows by refitted or carried-over constants
 *
 * A job is one kernel and one group left out; it writes the predictions of its own rows only, so
 * that any number of threads gives the same numbers. */
#include "sim/refit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/threads.h"
#include "sim/fit_layer.h"

static const char *const names[] = {
#define X(e, name, help) name,
    LEFT_OUT(X)
#undef X
};

bool left_out_find(const char *name, enum left_out *what, struct err *err) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], name) != 0) continue;
        *what = (enum left_out)i;
        return true;
    }
    return err_set(err, ERR_USAGE, "found \"%.40s\", expected shape, ranks or half", name);
}

static uint64_t shape_of(const struct timing_row *row) {
    const double parts[] = {row->shape.hidden, row->model_inter, (double)row->group.topk,
                            (double)row->group.experts};
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        hash = (hash ^ (uint64_t)parts[i]) * UINT64_C(1099511628211);
    return hash ^ hash >> 29;
}

static uint64_t group_of(const struct timing_row *row, enum left_out what) {
    if (what == LEFT_OUT_RANKS) return (uint64_t)row->group.ranks;
    uint64_t shape = shape_of(row);
    if (what == LEFT_OUT_SHAPE) return shape;
    return (shape ^ (uint64_t)row->group.ranks) * UINT64_C(0x9e3779b97f4a7c15) >> 63;
}

/* One fit and the rows that it predicts. */
struct job {
    int kernel, source; /* to predict; in `seen`: to fit */
    bool everything;    /* else: without this group */
    uint64_t group;
    struct err err;
};

struct refit {
    struct timings *timings;
    const struct timings *seen; /* may be the same */
    enum left_out what;
    struct job *jobs;
    int count;
};

static bool belongs(const struct job *job, const struct timing_row *row, enum left_out what) {
    return job->everything || group_of(row, what) == job->group;
}

static void run_job(void *context, int64_t index, int worker) {
    struct refit *r = context;
    struct job *job = &r->jobs[index];
    (void)worker;
    const struct timing_kernel *kernel = &r->timings->kernels[job->kernel];
    const struct timing_row **rows = malloc((size_t)r->seen->count * sizeof *rows);
    if (!rows) {
        err_memory(&job->err, "fit");
        return;
    }
    int64_t count = 0;
    for (int64_t i = 0; i < r->seen->count; i++) {
        const struct timing_row *row = &r->seen->rows[i];
        bool wanted = row->kernel == job->source && !row->flagged && !row->unknown_law;
        if (wanted && (job->everything || !belongs(job, row, r->what))) rows[count++] = row;
    }
    struct err unused;
    struct layer_fit fit;
    double peak = device_peak_tflops(device_find(kernel->gpu, &unused), kernel->quant);
    bool ok = fit_layer(rows, count, peak, &fit, &job->err);
    for (int64_t i = 0; i < r->timings->count; i++) {
        struct timing_row *row = &r->timings->rows[i];
        if (row->kernel == job->kernel && !row->unknown_law && belongs(job, row, r->what))
            row->predicted_ms =
                ok ? layer_time_ms(&fit.constants, &row->shape, &row->load, (double)row->tokens)
                   : NAN;
    }
    free(rows);
}

static bool add_job(struct refit *r, struct job job, struct err *err) {
    struct job *more = realloc(r->jobs, (size_t)(r->count + 1) * sizeof *more);
    if (!more) return err_memory(err, "fits");
    r->jobs = more;
    r->jobs[r->count++] = job;
    return true;
}

/* A job for each group of a kernel, in the order of the rows. */
static bool add_groups(struct refit *r, int kernel, struct err *err) {
    int first = r->count;
    for (int64_t i = 0; i < r->timings->count; i++) {
        const struct timing_row *row = &r->timings->rows[i];
        if (row->kernel != kernel) continue;
        struct job job = {kernel, kernel, false, group_of(row, r->what), {0}};
        bool known = false;
        for (int j = first; j < r->count && !known; j++) known = r->jobs[j].group == job.group;
        if (!known && !add_job(r, job, err)) return false;
    }
    return true;
}

static bool wanted(const struct timing_kernel *kernel, const char *only) {
    return !only || strcmp(kernel->kernel, only) == 0;
}

static void clear(struct timings *timings, const char *origin) {
    for (int64_t i = 0; i < timings->count; i++) timings->rows[i].predicted_ms = NAN;
    for (int k = 0; k < timings->kernel_count; k++) timings->kernels[k].origin = origin;
}

static bool run_jobs(struct refit *r, const char *only, int threads, struct err *err) {
    struct pool *pool = pool_create(threads, err);
    bool ok = pool != NULL;
    if (ok && r->count == 0)
        ok = err_set(err, ERR_DATA, "found no rows%s%s to fit", only ? " of kernel " : "",
                     only ? only : "");
    if (ok) pool_run(pool, r->count, run_job, r);
    for (int j = 0; ok && j < r->count; j++)
        if (r->jobs[j].err.code == ERR_MEMORY) *err = r->jobs[j].err, ok = false;
    pool_free(pool);
    free(r->jobs);
    return ok;
}

bool refit_left_out(struct timings *timings, enum left_out what, const char *only, int threads,
                    struct err *err) {
    struct refit r = {.timings = timings, .seen = timings, .what = what};
    clear(timings, "left out");
    bool ok = true;
    for (int k = 0; ok && k < timings->kernel_count; k++)
        if (wanted(&timings->kernels[k], only)) ok = add_groups(&r, k, err);
    if (ok) return run_jobs(&r, only, threads, err);
    free(r.jobs);
    return false;
}

static int same_kernel(const struct timings *seen, const struct timing_kernel *kernel) {
    for (int k = 0; k < seen->kernel_count; k++) {
        const struct timing_kernel *s = &seen->kernels[k];
        if (strcmp(s->gpu, kernel->gpu) == 0 && strcmp(s->framework, kernel->framework) == 0 &&
            strcmp(s->version, kernel->version) == 0 && strcmp(s->kernel, kernel->kernel) == 0 &&
            strcmp(s->quant, kernel->quant) == 0)
            return k;
    }
    return -1;
}

bool refit_on(struct timings *timings, const struct timings *seen, const char *only, int threads,
              struct err *err) {
    struct refit r = {.timings = timings, .seen = seen};
    clear(timings, "refitted");
    bool ok = true;
    for (int k = 0; ok && k < timings->kernel_count; k++) {
        int source = same_kernel(seen, &timings->kernels[k]);
        if (source >= 0 && wanted(&timings->kernels[k], only))
            ok = add_job(&r, (struct job){k, source, true, 0, {0}}, err);
    }
    if (ok) return run_jobs(&r, only, threads, err);
    free(r.jobs);
    return false;
}

bool refit_carry(struct timings *timings, const char *gpu, struct err *err) {
    const struct device *from = device_find(gpu, err);
    if (!from) return false;
    clear(timings, "carried");
    for (int k = 0; k < timings->kernel_count; k++) {
        struct timing_kernel *kernel = &timings->kernels[k];
        struct err unused;
        const struct device *to = device_find(kernel->gpu, &unused);
        struct device_constants constants;
        if (to == from || !constants_carry(from, to, kernel->framework, kernel->kernel,
                                           kernel->quant, &constants))
            continue;
        kernel->constants = constants;
        for (int64_t i = 0; i < timings->count; i++) {
            struct timing_row *row = &timings->rows[i];
            if (row->kernel == k && !row->unknown_law)
                row->predicted_ms =
                    layer_time_ms(&constants.layer, &row->shape, &row->load, (double)row->tokens);
        }
    }
    return true;
}
