/* replay.c - deals the jobs of a replay to threads and processes and hands their rows on in order
 *
 * A job is (layer, share of the variants). With enough layers a share is everything; with few, the
 * variants are divided too, at the price of reading a layer once per share. Jobs are dealt to the
 * processes like cards, so that the layers of all come to rank 0 about in order. Rows are handed to
 * the sink under one lock, layer by layer: whoever finishes the last share of the next layer does
 * it. */
#include "sim/replay.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/threads.h"
#include "sim/layer_run.h"
#include "sim/rows.h"

struct state {
    struct replay_job job;
    struct pool *pool;
    struct division division;
    int64_t *mine; /* [mine_count] jobs of this process */
    int64_t mine_count;
    const struct replay_sink *sink;
    const struct progress *progress;
    struct layer_run *run; /* [layers, shares] */
    int *left;             /* [layers] shares that are not done yet */
    int next_layer;        /* the first whose rows were not handed on */
    pthread_mutex_t lock;  /* of the above and all below */
    pthread_mutex_t report_lock;
    _Atomic int64_t done; /* tokens, over layers and shares */
    int64_t total;
    _Atomic bool stop;
    int64_t failed_job; /* the smallest that failed; -1 = none */
    struct err err;     /* its error */
};

/* Adds to the progress; only one thread at a time draws, others pass by. */
static bool step(void *context, int64_t tokens) {
    struct state *s = context;
    int64_t done = atomic_fetch_add(&s->done, tokens) + tokens;
    if (pthread_mutex_trylock(&s->report_lock) == 0) {
        if (!progress_report(s->progress, "replay", done / s->job.shares, s->total / s->job.shares,
                             "token-layers"))
            atomic_store(&s->stop, true);
        pthread_mutex_unlock(&s->report_lock);
    }
    return !atomic_load(&s->stop);
}

/* Keeps the error of the smallest job, so that the message does not depend on timing (but for jobs
 * that were stopped by another's failure: those are not errors of their own). */
static void remember(struct state *s, int64_t job, const struct err *err) {
    bool first = s->failed_job < 0;
    bool better = !first && s->err.code == ERR_CANCELLED && err->code != ERR_CANCELLED;
    bool earlier = !first && err->code != ERR_CANCELLED && job < s->failed_job;
    if (first || better || earlier) {
        s->failed_job = job;
        s->err = *err;
    }
    atomic_store(&s->stop, true);
}

static bool hand_on_layer(struct state *s, int layer, struct err *err) {
    const struct variant_set *set = s->job.variants;
    struct layer_run *run = &s->run[(int64_t)layer * s->job.shares];
    bool ok = true;
    for (int i = 0; ok && i < set->count; i++)
        ok = s->sink->row(s->sink->context, &run[s->job.share[i]].row[i], err);
    for (int share = 0; share < s->job.shares; share++) layer_run_free(&run[share]);
    return ok;
}

static void hand_on(struct state *s, int64_t job) {
    struct err err;
    while (s->next_layer < s->job.source->layers && s->left[s->next_layer] == 0 &&
           s->failed_job < 0) {
        if (!hand_on_layer(s, s->next_layer++, &err)) remember(s, job, &err);
    }
}

/* A job is done: at rank 0, or when alone, it is handed on in its turn. */
static void settle(struct state *s, int64_t job, bool ok, const struct err *err) {
    pthread_mutex_lock(&s->lock);
    if (ok) {
        s->left[job / s->job.shares]--;
        hand_on(s, job);
    } else {
        remember(s, job, err);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Sends the rows of a job that is done to rank 0, after its number. */
static bool post(struct state *s, int64_t job, struct err *err) {
    struct str message = {0};
    division_begin(&message);
    str_append(&message, &job, sizeof job);
    rows_write(&message, &s->job, &s->run[job], (int)(job % s->job.shares));
    layer_run_free(&s->run[job]);
    return division_post(&s->division, &message, err);
}

static void run_job(void *context, int64_t index, int worker) {
    struct state *s = context;
    struct err err;
    int64_t job = s->mine[index];
    int layer = (int)(job / s->job.shares), share = (int)(job % s->job.shares);
    (void)worker;
    if (atomic_load(&s->stop)) return;
    bool ok = layer_run(&s->run[job], &s->job, layer, share, &err);
    bool far = !processes_alone(s->division.processes) && s->division.processes->rank > 0;
    if (far && ok) ok = post(s, job, &err);
    if (!far || !ok) settle(s, job, ok, &err);
}

/* ---- the part of this process, and what comes from the others */

static bool verdict(struct state *s, int64_t *where, struct err *err) {
    pthread_mutex_lock(&s->lock);
    bool ok = s->failed_job < 0;
    *where = s->failed_job;
    if (!ok) *err = s->err;
    pthread_mutex_unlock(&s->lock);
    return ok;
}

static bool compute(void *context, int64_t *where, struct err *err) {
    struct state *s = context;
    pool_run(s->pool, s->mine_count, run_job, s);
    return verdict(s, where, err);
}

/* Rows of another process's job. */
static bool take(void *context, const char *bytes, size_t size, int64_t *where, struct err *err) {
    struct state *s = context;
    struct err failure = {0};
    int64_t job;
    memcpy(&job, bytes, sizeof job);
    bool ok = rows_read(&s->run[job], &s->job, (int)(job % s->job.shares), bytes + sizeof job,
                        size - sizeof job, &failure);
    settle(s, job, ok, &failure);
    step(s, s->job.source->tokens);
    return verdict(s, where, err);
}

static void stop(void *context) {
    struct state *s = context;
    atomic_store(&s->stop, true);
}

/* ---- setting up */

/* The variant that stands for all of equal load: variants of one root stay in one share. */
static int root(const struct variant_set *set, int i) {
    while (set->variant[i].same_as) i = set->variant[i].same_as - 1;
    return i;
}

/* Shares are needed only when there are too few layers to go round: the fewest with which threads
 * (of all processes) are busy for 85 % of the time, were all jobs equal. */
static int count_shares(const struct variant_set *set, int layers, int threads) {
    int roots = 0, shares = 1;
    for (int i = 0; i < set->count; i++)
        roots += set->variant[i].same_as == 0 && !variant_needs_batch(set, i);
    for (; shares < roots && shares < threads; shares++) {
        int64_t jobs = (int64_t)layers * shares, rounds = (jobs + threads - 1) / threads;
        if ((double)jobs >= 0.85 * (double)(rounds * threads)) break;
    }
    return roots > 0 ? shares : 0;
}

/* Variants that need whole batches: one share for each size of batch, beyond the `shares` of the
 * others. batch[] <- the size, 0 for the others; returns how many shares there are now. */
static int deal_batches(const struct variant_set *set, int64_t tokens, int shares, int *share,
                        int64_t *batch) {
    int all = shares;
    for (int i = 0; i < set->count; i++) {
        int64_t size = set->variant[i].batch_tokens;
        size = size < tokens ? size : tokens;
        if (!variant_needs_batch(set, i)) continue;
        share[i] = shares;
        while (share[i] < all && batch[share[i]] != size) share[i]++;
        if (share[i] == all) batch[all++] = size;
    }
    return all;
}

static int deal_shares(const struct variant_set *set, int64_t tokens, int shares, int *share,
                       int64_t *batch) {
    int roots = 0;
    for (int i = 0; i < set->count; i++)
        if (!variant_needs_batch(set, i))
            share[i] = set->variant[i].same_as ? share[root(set, i)] : roots++ % shares;
    return deal_batches(set, tokens, shares, share, batch);
}

/* About a quarter of a megabyte of logits: they and their scores stay in a core's L2 cache. */
static int64_t default_chunk(const struct source *source) {
    int most = 1;
    for (int l = 0; l < source->layers; l++)
        most = source->layer[l].experts > most ? source->layer[l].experts : most;
    int64_t tokens = 65536 / most;
    return tokens < 1 ? 1 : tokens > 1024 ? 1024 : tokens;
}

/* Job (layer, share) belongs to rank (layer * shares + share) mod size, but moved on by one per
 * layer where that would always give a rank the same share. */
static bool deal_jobs(struct state *s, struct err *err) {
    const struct processes *p = s->division.processes;
    int64_t jobs = (int64_t)s->job.source->layers * s->job.shares;
    int size = processes_alone(p) ? 1 : p->size, rank = size > 1 ? p->rank : 0;
    bool turn = s->job.shares > 1 && s->job.shares % size == 0;
    s->mine = calloc((size_t)jobs + 1, sizeof *s->mine);
    if (!s->mine) return err_memory(err, "replay");
    for (int64_t j = 0; j < jobs; j++)
        if ((j + (turn ? j / s->job.shares : 0)) % size == rank) s->mine[s->mine_count++] = j;
    return true;
}

static bool prepare(struct state *s, int *share, int64_t *batch, int threads, struct err *err) {
    const struct source *source = s->job.source;
    int64_t given = s->job.options->chunk_tokens;
    s->job.shares = count_shares(s->job.variants, source->layers, threads);
    s->job.share = share;
    s->job.chunk_tokens = given > 0 ? given : default_chunk(source);
    s->job.step = step;
    s->job.context = s;
    s->job.shares = deal_shares(s->job.variants, source->tokens, s->job.shares, share, batch);
    s->job.batch = batch;
    s->total = source->tokens * source->layers * s->job.shares;
    s->run = calloc((size_t)source->layers * (size_t)s->job.shares, sizeof *s->run);
    s->left = calloc((size_t)source->layers, sizeof *s->left);
    if (!s->run || !s->left) return err_memory(err, "replay");
    for (int l = 0; l < source->layers; l++) s->left[l] = s->job.shares;
    return deal_jobs(s, err);
}

/* Threads of all processes, as rank 0 counts them: all must divide the work alike. */
static int all_threads(struct state *s) {
    struct processes *p = s->division.processes;
    int threads = s->pool ? pool_size(s->pool) : 1;
    processes_share(p, &threads, sizeof threads);
    return processes_alone(p) ? threads : threads * p->size;
}

bool replay_run(const struct variant_set *variants, const struct source *source,
                const struct replay_options *options, const struct replay_sink *sink,
                const struct progress *progress, struct err *err) {
    struct state s = {.job = {.variants = variants, .source = source, .options = options},
                      .sink = sink,
                      .progress = progress,
                      .failed_job = -1};
    struct token_ids ids = {0};
    struct processes *processes = options->processes;
    s.division = (struct division){
        .processes = processes, .compute = compute, .take = take, .stop = stop, .context = &s};
    int *share = calloc((size_t)variants->count + 1, sizeof *share);
    pthread_mutex_init(&s.lock, NULL);
    pthread_mutex_init(&s.report_lock, NULL);
    s.pool = pool_create(processes_threads(processes, options->threads), err);
    int threads = all_threads(&s);
    int64_t *batch = calloc((size_t)variants->count + (size_t)threads + 1, sizeof *batch);
    s.job.ids = &ids;
    bool ok = s.pool && ((share && batch) || err_memory(err, "replay")) &&
              token_ids_read(&ids, variants, source, err) &&
              prepare(&s, share, batch, threads, err);
    ok = processes_agree(processes, ok, err) && division_run(&s.division, err);
    for (int64_t j = 0; s.run && j < (int64_t)source->layers * s.job.shares; j++)
        layer_run_free(&s.run[j]);
    pthread_mutex_destroy(&s.report_lock);
    pthread_mutex_destroy(&s.lock);
    pool_free(s.pool);
    free(s.mine);
    token_ids_free(&ids);
    free(s.left);
    free(s.run);
    free(batch);
    free(share);
    return ok;
}

int64_t *replay_shuffle(int64_t tokens, uint64_t seed, struct err *err) {
    struct rng rng;
    int64_t *order =
        (uint64_t)tokens > SIZE_MAX / sizeof *order ? NULL : malloc((size_t)tokens * sizeof *order);
    if (!order) {
        err_memory(err, "token order");
        return NULL;
    }
    for (int64_t t = 0; t < tokens; t++) order[t] = t;
    rng_init(&rng, seed);
    rng_shuffle(&rng, order, tokens);
    return order;
}
