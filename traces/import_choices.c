/* import_choices.c - do a file's own choices follow from its logits under the gate? */
#include "traces/import_choices.h"

#include <stdlib.h>

#include "router/route.h"

enum { STEP_TOKENS = 256 };
static const double DISAGREEMENT = 0.01;

bool choice_check_begin(struct choice_check *check, const struct trace_layer *layer,
                        struct err *err) {
    size_t experts = (size_t)layer->experts;
    *check = (struct choice_check){.layer = layer, .example = -1};
    check->expert = malloc((size_t)STEP_TOKENS * (size_t)layer->topk * 4);
    check->chosen = calloc(experts, 1);
    check->scratch = aligned_alloc(64, (route_scratch_bytes(layer->experts) + 63) / 64 * 64);
    if (check->expert && check->chosen && check->scratch) return true;
    free(check->expert);
    free(check->chosen);
    free(check->scratch);
    return err_memory(err, "choices");
}

static bool same_set(struct choice_check *check, const int32_t *mine, const int32_t *theirs) {
    int k = check->layer->topk, experts = check->layer->experts;
    bool same = true;
    for (int j = 0; j < k; j++) check->chosen[mine[j]] = 1;
    for (int j = 0; j < k; j++)
        same = same && theirs[j] >= 0 && theirs[j] < experts && check->chosen[theirs[j]];
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
    free(check->expert);
    free(check->chosen);
    free(check->scratch);
    if ((double)check->wrong <= DISAGREEMENT * (double)check->tokens) return true;
    return err_set(err, ERR_DATA,
                   "layer %d: %lld of %lld tokens (first: %lld) chose other experts than the gate "
                   "does: another gate, or another bias",
                   check->layer->layer, (long long)check->wrong, (long long)check->tokens,
                   (long long)check->example);
}
