/* import_choices.c - do a file's own choices follow from its logits under the gate? */
#include "traces/import_choices.h"

#include <math.h>
#include <stdlib.h>

#include "base/str.h"
#include "router/route.h"

enum { STEP_TOKENS = 256 };
static const double DISAGREEMENT = 0.01, WEIGHT_DIFFERENCE = 1e-3;

void choice_check_free(struct choice_check *check) {
    free(check->expert);
    free(check->weight);
    free(check->chosen);
    free(check->scratch);
    free(check->memory);
    free(check->stream_scratch);
}

bool choice_check_begin(struct choice_check *check, const struct trace_layer *layer,
                        struct err *err) {
    size_t experts = (size_t)layer->experts;
    *check = (struct choice_check){.layer = layer, .example = -1};
    check->expert = malloc((size_t)STEP_TOKENS * (size_t)layer->topk * 4);
    check->weight = malloc((size_t)STEP_TOKENS * (size_t)layer->topk * 4);
    check->chosen = calloc(experts, 1);
    check->scratch = aligned_alloc(64, (route_scratch_bytes(layer->experts) + 63) / 64 * 64);
    if (check->expert && check->weight && check->chosen && check->scratch) return true;
    choice_check_free(check);
    return err_memory(err, "choices");
}

bool choice_check_loop(struct choice_check *check, const struct trace_loop *loop, struct err *err) {
    const struct trace_layer *layer = check->layer;
    if (!loop->rule || !layer->bias) return true;
    const struct route_stream_setup setup = {.gate = &layer->gate,
                                             .experts = layer->experts,
                                             .layer = layer->layer,
                                             .bias = layer->bias,
                                             .rule = loop->rule,
                                             .rate = loop->rate,
                                             .batch_tokens = loop->batch_tokens};
    size_t bytes = route_stream_bytes(&setup);
    check->memory = bytes < SIZE_MAX - 64 ? calloc(bytes / 64 + 2, 64) : NULL;
    if (!check->memory) return err_memory(err, "balance batches");
    uintptr_t start = ((uintptr_t)check->memory + 63) & ~(uintptr_t)63;
    route_stream_init(&check->stream, &setup, (void *)start);
    size_t scratch = (route_stream_scratch_bytes(&check->stream) + 63) / 64 * 64;
    check->stream_scratch = aligned_alloc(64, scratch);
    check->moves = check->stream_scratch != NULL;
    return check->moves || err_memory(err, "balance batches");
}

/* The gate's choices of at most n tokens into check->expert, check->weight; how many it routed, 0
 * at a logit that is not finite. */
static int64_t route_next(struct choice_check *check, int64_t n, const float *logits) {
    const struct trace_layer *layer = check->layer;
    struct routes routes = {.expert = check->expert, .weight = check->weight};
    if (n > STEP_TOKENS) n = STEP_TOKENS;
    if (!check->moves)
        return route_tokens(&layer->gate, layer->experts, n, logits, layer->bias, &routes,
                            check->scratch) < 0
                   ? n
                   : 0;
    int64_t room = route_stream_room(&check->stream);
    if (n > room) n = room;
    const struct route_piece piece = {.n = n, .logits = logits};
    if (route_stream_route(&check->stream, &piece, &routes, check->stream_scratch) >= 0) return 0;
    route_stream_feed(&check->stream, &piece, check->expert);
    return n;
}

static bool same_set(struct choice_check *check, const int32_t *mine, const int32_t *theirs) {
    int k = check->layer->topk, experts = check->layer->experts;
    bool same = true;
    for (int j = 0; j < k; j++) check->chosen[mine[j]] = 1;
    for (int j = 0; j < k; j++) {
        same = same && theirs[j] >= 0 && theirs[j] < experts && check->chosen[theirs[j]];
        if (same) check->chosen[theirs[j]] = 0; /* a second time is another set */
    }
    for (int j = 0; j < k; j++) check->chosen[mine[j]] = 0;
    return same;
}

void choice_check_add(struct choice_check *check, int64_t n, const float *logits,
                      const int32_t *ids) {
    const struct trace_layer *layer = check->layer;
    for (int64_t t = 0; t < n; t += STEP_TOKENS) {
        int64_t m = n - t < STEP_TOKENS ? n - t : STEP_TOKENS;
        struct routes routes = {.expert = check->expert};
        if (route_tokens(&layer->gate, layer->experts, m, logits + t * layer->experts, layer->bias,
                         &routes, check->scratch) >= 0)
            return;
        for (int64_t i = 0; i < m; i++, check->tokens++)
            if (!same_set(check, check->expert + i * layer->topk, ids + (t + i) * layer->topk) &&
                !check->wrong++)
                check->example = check->tokens;
    }
}

bool choice_check_end(struct choice_check *check, struct err *err) {
    choice_check_free(check);
    if ((double)check->wrong <= DISAGREEMENT * (double)check->tokens) return true;
    return err_set(err, ERR_DATA,
                   "layer %d: %lld of %lld tokens (first: %lld) chose other experts than the gate "
                   "does: another gate, or another bias",
                   check->layer->layer, (long long)check->wrong, (long long)check->tokens,
                   (long long)check->example);
}

/* ---- the strict form */

static void print_ids(struct str *out, int k, const int32_t *ids) {
    enum { SHOWN = 12 };
    for (int j = 0; j < k && j < SHOWN; j++) str_printf(out, j ? ",%d" : "%d", ids[j]);
    if (k > SHOWN) str_puts(out, ",...");
}

static bool refuse_ids(const struct choice_check *check, int64_t token, const int32_t *found,
                       const int32_t *expected, struct err *err) {
    struct str theirs = {0}, mine = {0};
    print_ids(&theirs, check->layer->topk, found);
    print_ids(&mine, check->layer->topk, expected);
    err_set(err, ERR_DATA,
            "topk_ids: token %lld: found experts %s, expected %s as the gate chooses from the "
            "logits (another gate or bias, or a damaged record)",
            (long long)token, str_text(&theirs), str_text(&mine));
    str_free(&theirs);
    str_free(&mine);
    return false;
}

/* One token whose set agrees: found[k] belong to ids[k], weight[k] to expert[k]. */
static bool agree_weights(const struct choice_check *check, int64_t token, const int32_t *ids,
                          const float *found, const int32_t *expert, const float *weight,
                          struct err *err) {
    for (int j = 0; j < check->layer->topk; j++) {
        int i = 0;
        while (expert[i] != ids[j]) i++;
        double expected = (double)weight[i], difference = fabs((double)found[j] - expected);
        if (!(difference <= WEIGHT_DIFFERENCE * fabs(expected)))
            return err_set(err, ERR_DATA,
                           "topk_weights: token %lld, expert %d: found %g, expected %g of the gate",
                           (long long)token, ids[j], (double)found[j], expected);
    }
    return true;
}

bool choice_check_exact(struct choice_check *check, int64_t n, const float *logits,
                        const int32_t *ids, const float *weights, struct err *err) {
    const struct trace_layer *layer = check->layer;
    int k = layer->topk;
    for (int64_t t = 0, m; t < n; t += m) {
        m = route_next(check, n - t, logits + t * layer->experts);
        if (!m) return true; /* not finite: the writer refuses it with its place */
        for (int64_t i = 0; i < m; i++) {
            const int32_t *mine = check->expert + i * k, *theirs = ids + (t + i) * k;
            if (!same_set(check, mine, theirs)) return refuse_ids(check, t + i, theirs, mine, err);
            if (weights && !agree_weights(check, t + i, theirs, weights + (t + i) * k, mine,
                                          check->weight + i * k, err))
                return false;
        }
    }
    return true;
}
