/* replay.c - deals the jobs of a replay to threads and hands their rows on in order
 *
 * A job is (layer, share of the variants). With enough layers a share is everything; with few, the
 * variants are divided too, at the price of reading a layer once per share. Rows are handed to the
 * sink under one lock, layer by layer: whoever finishes the last share of the next layer does it.
 */
#include "sim/replay.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/threads.h"
#include "sim/layer_run.h"

struct state {
    struct replay_job job;
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

static void run_job(void *context, int64_t index, int worker) {
    struct state *s = context;
    struct err err;
    int layer = (int)(index / s->job.shares), share = (int)(index % s->job.shares);
    (void)worker;
    if (atomic_load(&s->stop)) return;
    bool ok = layer_run(&s->run[index], &s->job, layer, share, &err);
    pthread_mutex_lock(&s->lock);
    if (ok) {
        s->left[layer]--;
        hand_on(s, index);
    } else {
        remember(s, index, &err);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- setting up */

/* The variant that stands for all of equal load: variants of one root stay in one share. */
static int root(const struct variant_set *set, int i) {
    while (set->variant[i].same_as) i = set->variant[i].same_as - 1;
    return i;
}

/* Shares are needed only when there are too few layers to go round. */
static int count_shares(const struct variant_set *set, int layers, int threads) {
    int roots = 0;
    for (int i = 0; i < set->count; i++) roots += set->variant[i].same_as == 0;
    if (threads == 1 || layers >= 4 * threads || layers % threads == 0) return 1;
    return roots < threads ? roots : threads;
}

static void deal_shares(const struct variant_set *set, int shares, int *share) {
    int roots = 0;
    for (int i = 0; i < set->count; i++)
        share[i] = set->variant[i].same_as ? share[root(set, i)] : roots++ % shares;
}

/* About a quarter of a megabyte of logits: they and their scores stay in a core's L2 cache. */
static int64_t default_chunk(const struct source *source) {
    int most = 1;
    for (int l = 0; l < source->layers; l++)
        most = source->layer[l].experts > most ? source->layer[l].experts : most;
    int64_t tokens = 65536 / most;
    return tokens < 1 ? 1 : tokens > 1024 ? 1024 : tokens;
}

static bool prepare(struct state *s, int *share, int threads, struct err *err) {
    const struct source *source = s->job.source;
    int64_t given = s->job.options->chunk_tokens;
    s->job.shares = count_shares(s->job.variants, source->layers, threads);
    s->job.share = share;
    s->job.chunk_tokens = given > 0 ? given : default_chunk(source);
    s->job.step = step;
    s->job.context = s;
    deal_shares(s->job.variants, s->job.shares, share);
    s->total = source->tokens * source->layers * s->job.shares;
    s->run = calloc((size_t)source->layers * (size_t)s->job.shares, sizeof *s->run);
    s->left = calloc((size_t)source->layers, sizeof *s->left);
    if (!s->run || !s->left) return err_memory(err, "replay");
    for (int l = 0; l < source->layers; l++) s->left[l] = s->job.shares;
    return true;
}

bool replay_run(const struct variant_set *variants, const struct source *source,
                const struct replay_options *options, const struct replay_sink *sink,
                const struct progress *progress, struct err *err) {
    struct state s = {.job = {.variants = variants, .source = source, .options = options},
                      .sink = sink,
                      .progress = progress,
                      .failed_job = -1};
    bool ok = false;
    int *share = calloc((size_t)variants->count + 1, sizeof *share);
    struct pool *pool = pool_create(options->threads, err);
    pthread_mutex_init(&s.lock, NULL);
    pthread_mutex_init(&s.report_lock, NULL);
    if (!pool) goto done;
    if (!share) {
        err_memory(err, "replay");
        goto done;
    }
    if (!prepare(&s, share, pool_size(pool), err)) goto done;
    int64_t jobs = (int64_t)source->layers * s.job.shares;
    pool_run(pool, jobs, run_job, &s);
    ok = s.failed_job < 0;
    if (!ok) *err = s.err;
    for (int64_t j = 0; j < jobs; j++) layer_run_free(&s.run[j]);
done:
    pthread_mutex_destroy(&s.report_lock);
    pthread_mutex_destroy(&s.lock);
    pool_free(pool);
    free(s.left);
    free(s.run);
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
