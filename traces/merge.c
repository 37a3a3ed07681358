/* merge.c - captures of one model as one trace
 *
 * The plan (merge_plan.c) says which documents of which trace follow each other; here their tokens
 * go through the writer, pass by pass. Memory: one pass of tokens, one chunk of each router. */
#include "traces/merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "traces/choices.h"
#include "traces/internal.h"
#include "traces/merge_plan.h"

enum { DEFAULT_PASS_TOKENS = 16384 };

/* One router of the trace that is being read. */
struct feed {
    struct choices choices;      /* where choices follow from the scores */
    struct trace_cursor *cursor; /* where only what is stored counts */
    struct trace_chunk chunk;    /* the last one read */
    int input;                   /* that it is open on; -1 = none */
};

struct merge {
    const struct merge_job *job;
    struct merge_plan plan;
    struct trace *out;
    struct feed *feeds; /* [L] */
    int32_t *id, *position;
    float *nll; /* [cap] columns of a pass and the token behind it */
    int64_t cap;
};

/* ---- scores and choices */

static void close_feed(struct feed *feed) {
    choices_close(&feed->choices);
    trace_cursor_free(feed->cursor);
    *feed = (struct feed){.input = -1};
}

/* Do choices and weights follow from what is stored, bit for bit? */
static bool derives(const struct trace *trace, const struct trace_layer *layer) {
    return layer->holds == TRACE_SCORES && layer->has_gate && trace->capture.store == TRACE_F32;
}

static bool open_feed(struct merge *merge, int r, int input, struct err *err) {
    struct feed *feed = &merge->feeds[r];
    struct trace *trace = merge->plan.inputs[input];
    if (feed->input == input) return true;
    close_feed(feed);
    if (derives(trace, &trace->layers[r])) {
        if (!choices_open(&feed->choices, trace, r, err)) return false;
    } else if (!(feed->cursor = trace_cursor_open(trace, r, err))) {
        return false;
    }
    feed->input = input;
    return true;
}

/* Recorded choices must be those that the chunk gives. */
static bool check_hash(const struct trace *trace, int r, const struct trace_chunk *chunk,
                       struct err *err) {
    const struct trace_layer *layer = &trace->layers[r];
    if (!chunk->choice_hash || !chunk->expert) return true;
    uint64_t hash = trace_choice_hash(TRACE_HASH_START, chunk->tokens, layer->topk, chunk->expert,
                                      chunk->weight);
    return hash == chunk->choice_hash ||
           err_set(err, ERR_DATA,
                   "%s: layer %d, tokens from %lld: found other choices than those recorded",
                   trace->db.path, layer->layer, (long long)chunk->first);
}

/* Makes feed->chunk the one that holds a token of its trace. */
static bool move_feed(struct merge *merge, int r, int64_t token, struct err *err) {
    struct feed *feed = &merge->feeds[r];
    struct trace_chunk *chunk = &feed->chunk;
    const struct trace *trace = merge->plan.inputs[feed->input];
    if (chunk->tokens && token >= chunk->first && token < chunk->first + chunk->tokens) return true;
    if (feed->cursor) {
        if (!trace_cursor_seek(feed->cursor, token, err) ||
            !trace_cursor_next(feed->cursor, chunk, err))
            return false;
    } else {
        if (!trace_cursor_seek(feed->choices.cursor, token, err) ||
            !choices_next(&feed->choices, err))
            return false;
        *chunk = feed->choices.chunk;
    }
    return check_hash(trace, r, chunk, err);
}

/* Tokens first..first+n-1 of the result at router r, which lie in the pass. */
static bool copy_routes(struct merge *merge, int r, int64_t first, int64_t n, struct err *err) {
    const struct trace_layer *layer = &merge->out->layers[r];
    for (int64_t done = 0; done < n;) {
        const struct merge_part *part = merge_part_of(&merge->plan, first + done);
        int64_t token = part->from + (first + done - part->first);
        if (!open_feed(merge, r, part->input, err) || !move_feed(merge, r, token, err))
            return false;
        const struct trace_chunk *chunk = &merge->feeds[r].chunk;
        int64_t at = token - chunk->first, take = chunk->tokens - at;
        if (take > part->first + part->tokens - (first + done))
            take = part->first + part->tokens - (first + done);
        if (take > n - done) take = n - done;
        int64_t k = layer->topk;
        const struct trace_routes routes = {
            .r = r,
            .first = done,
            .tokens = take,
            .logits = chunk->logits ? chunk->logits + at * layer->experts : NULL,
            .expert = chunk->expert ? chunk->expert + at * k : NULL,
            .weight = chunk->weight ? chunk->weight + at * k : NULL};
        if (!trace_pass_routes(merge->out, &routes, err)) return false;
        done += take;
    }
    return true;
}

/* ---- tokens */

static bool reserve(struct merge *merge, int64_t n, struct err *err) {
    if (n <= merge->cap) return true;
    int32_t *id = realloc(merge->id, (size_t)n * sizeof *id);
    if (id) merge->id = id;
    int32_t *position = realloc(merge->position, (size_t)n * sizeof *position);
    if (position) merge->position = position;
    float *nll = realloc(merge->nll, (size_t)n * sizeof *nll);
    if (nll) merge->nll = nll;
    if (!id || !position || !nll) return err_memory(err, "pass");
    merge->cap = n;
    return true;
}

/* Columns of tokens first..first+n-1 of the result, at place `at` of the arrays. */
static bool read_columns(struct merge *merge, int64_t first, int64_t n, int64_t at,
                         struct err *err) {
    if (!reserve(merge, at + n, err)) return false;
    for (int64_t done = 0; done < n;) {
        const struct merge_part *part = merge_part_of(&merge->plan, first + done);
        int64_t take = part->first + part->tokens - (first + done);
        if (take > n - done) take = n - done;
        const struct trace_columns columns = {.position = merge->position + at + done,
                                              .id = merge->id + at + done,
                                              .nll = merge->nll + at + done};
        if (!trace_read_tokens(merge->plan.inputs[part->input],
                               part->from + (first + done - part->first), take, &columns, err))
            return false;
        done += take;
    }
    return true;
}

/* As many whole windows as fit into a pass, at least one; a window begins at position 0. */
static bool plan_pass(struct merge *merge, int64_t first, int64_t *tokens, struct err *err) {
    int64_t most = merge->plan.setup.capture.pass_tokens, left = merge->plan.tokens - first;
    if (most < 1) most = DEFAULT_PASS_TOKENS;
    int64_t have = 0, want = left < most + 1 ? left : most + 1;
    bool windows = merge->plan.setup.capture.pass_tokens > 0;
    for (;;) {
        if (!read_columns(merge, first + have, want - have, have, err)) return false;
        int64_t n = want < most ? want : most;
        if (want == left && want <= most) return *tokens = left, true;
        if (!windows) return *tokens = n, true;
        for (int64_t t = n; t > 0; t--)
            if (t < want && merge->position[t] == 0) return *tokens = t, true;
        for (int64_t t = n; t < want; t++)
            if (merge->position[t] == 0) return *tokens = t, true;
        if (want == left) return *tokens = left, true;
        have = want;
        want = left < 2 * want ? left : 2 * want;
    }
}

/* Texts of the ids that occur in tokens of an input. Two texts of one id are two tokenizers. */
static bool copy_pieces(struct merge *merge, int input, int64_t from, int64_t n, struct err *err) {
    struct db *db = &merge->plan.inputs[input]->db, *out = &merge->out->db;
    sqlite3_stmt *row = db_prepare(db,
                                   "SELECT id, text FROM piece WHERE id IN (SELECT id FROM token "
                                   "WHERE token >= ?1 AND token < ?2) ORDER BY id",
                                   err);
    sqlite3_stmt *same =
        row ? db_prepare(out, "SELECT text IS ?2 FROM piece WHERE id = ?1", err) : NULL;
    enum db_step step = DB_FAILED;
    bool ok = same != NULL;
    if (ok) sqlite3_bind_int64(row, 1, from);
    if (ok) sqlite3_bind_int64(row, 2, from + n);
    while (ok && (step = db_step(db, row, err)) == DB_ROW) {
        int64_t id = sqlite3_column_int64(row, 0);
        if (id < 0 || id > INT32_MAX)
            ok = err_set(err, ERR_FORMAT, "%s: piece: found id %lld", db->path, (long long)id);
        const char *text = ok ? sqlite3_column_blob(row, 1) : NULL;
        size_t len = ok ? (size_t)sqlite3_column_bytes(row, 1) : 0;
        ok = ok && trace_add_piece(merge->out, (int32_t)id, text ? text : "", len, err);
        if (!ok) break;
        sqlite3_bind_int64(same, 1, id);
        sqlite3_bind_value(same, 2, sqlite3_column_value(row, 1));
        ok = db_step(out, same, err) == DB_ROW &&
             (sqlite3_column_int(same, 0) == 1 ||
              err_set(err, ERR_DATA,
                      "%s: cannot merge: text of token id %lld: found another, expected that of %s",
                      db->path, (long long)id, merge->job->files[0]));
        sqlite3_reset(same);
    }
    sqlite3_finalize(same);
    sqlite3_finalize(row);
    return ok && step == DB_DONE;
}

static bool copy_pass(struct merge *merge, int64_t first, int64_t n, struct err *err) {
    const struct trace_pass pass = {n, merge->id, merge->position};
    if (!trace_pass_begin(merge->out, &pass, err) ||
        !trace_pass_nll(merge->out, 0, n, merge->nll, err))
        return false;
    for (int64_t t = first; t < first + n;) {
        const struct merge_part *part = merge_part_of(&merge->plan, t);
        int64_t take = part->first + part->tokens - t;
        if (take > first + n - t) take = first + n - t;
        if (!copy_pieces(merge, part->input, part->from + (t - part->first), take, err))
            return false;
        t += take;
    }
    for (int r = 0; r < merge->out->layer_count; r++)
        if (merge->out->layers[r].holds != TRACE_COUNTS && !copy_routes(merge, r, first, n, err))
            return false;
    return trace_pass_commit(merge->out, err);
}

static bool copy_tokens(struct merge *merge, struct err *err) {
    int64_t total = merge->plan.tokens, n;
    bool any = false;
    for (int r = 0; r < merge->out->layer_count; r++)
        any = any || merge->out->layers[r].holds != TRACE_COUNTS;
    for (int64_t first = 0; any && first < total; first += n) {
        if (!plan_pass(merge, first, &n, err) || !copy_pass(merge, first, n, err)) return false;
        if (!progress_report(merge->job->progress, "tokens", first + n, total, "tokens"))
            return err_set(err, ERR_CANCELLED, "interrupted");
    }
    return true;
}

static bool copy_counts(struct merge *merge, struct err *err) {
    bool ok = true;
    for (int r = 0; ok && r < merge->out->layer_count; r++) {
        const struct trace_layer *layer = &merge->out->layers[r];
        if (layer->holds != TRACE_COUNTS) continue;
        int64_t *counts = calloc((size_t)layer->experts, sizeof *counts);
        ok = counts || err_memory(err, "counts");
        for (int64_t d = 0; ok && d < merge->plan.setup.document_count; d++)
            ok = trace_read_counts(merge->plan.inputs[merge->plan.from[d].input], r,
                                   merge->plan.from[d].document, counts, err) &&
                 trace_add_counts(merge->out, r, d, counts, err);
        free(counts);
    }
    return ok;
}

/* ---- the whole */

static bool write_result(struct merge *merge, const char *temporary, struct err *err) {
    const struct trace_setup *setup = &merge->plan.setup;
    merge->feeds = calloc((size_t)setup->layer_count, sizeof *merge->feeds);
    if (!merge->feeds) return err_memory(err, "merge");
    for (int r = 0; r < setup->layer_count; r++) merge->feeds[r].input = -1;
    if (!(merge->out = trace_create(temporary, setup, TRACE_FORCE, err))) return false;
    bool ok = copy_tokens(merge, err) && copy_counts(merge, err);
    struct err later = {0};
    bool closed = trace_close(merge->out, false, ok ? err : &later);
    for (int r = 0; r < setup->layer_count; r++) close_feed(&merge->feeds[r]);
    if (!ok || !closed) unlink(temporary);
    return ok && closed;
}

/* Messages name the file that the user gave. */
static void name_output(struct err *err, const char *temporary, const char *out) {
    size_t length = strlen(temporary);
    if (strncmp(err->text, temporary, length) != 0) return;
    struct err inner = *err;
    err_set(err, inner.code, "%s%s", out, inner.text + length);
}

static void fill_report(const struct merge *merge, struct merge_report *report) {
    const struct merge_plan *plan = &merge->plan;
    *report = (struct merge_report){.documents = plan->setup.document_count,
                                    .skipped = plan->skipped,
                                    .tokens = plan->tokens,
                                    .layers = plan->setup.layer_count,
                                    .kernels_differ = plan->kernels_differ};
    for (int r = 0; r < plan->setup.layer_count; r++)
        if (plan->setup.layers[r].holds == TRACE_SCORES && plan->setup.capture.store != TRACE_F32)
            report->hashes_lost = true;
}

bool trace_merge(const struct merge_job *job, struct merge_report *report, struct err *err) {
    struct merge merge = {.job = job};
    struct str temporary = {0};
    if (!job->force && file_exists(job->out))
        return err_set(err, ERR_EXISTS, "%s: exists already (--force replaces it)", job->out);
    str_printf(&temporary, "%s.partial", job->out);
    bool ok = !temporary.failed || err_memory(err, job->out);
    ok = ok && merge_plan_make(&merge.plan, job, err) &&
         write_result(&merge, str_text(&temporary), err);
    if (!ok) name_output(err, str_text(&temporary), job->out);
    if (ok && rename(str_text(&temporary), job->out) != 0) {
        ok = err_errno(err, job->out, "cannot write");
        unlink(str_text(&temporary));
    }
    if (ok) fill_report(&merge, report);
    merge_plan_free(&merge.plan);
    free(merge.feeds);
    free(merge.id);
    free(merge.position);
    free(merge.nll);
    str_free(&temporary);
    return ok;
}
