/* losses.c - what the training losses for balance would be worth */
#include "sim/losses.h"

#include <math.h>
#include <string.h>

#include "router/mathf.h"

const char *loss_name(enum loss loss) {
    static const char *const names[] = {
#define X(name, formula, source) #name,
        LOSSES(X)
#undef X
    };
    return names[loss];
}

bool losses_init(struct losses *l, struct arena *arena, const struct gate *gate, int experts) {
    *l = (struct losses){
        .experts = experts, .topk = gate->topk, .places = gate->topk, .document = -1};
    if (gate->groups > 0 && gate->groups_kept < l->places) l->places = gate->groups_kept;
    l->mass = arena_alloc(arena, (size_t)experts, sizeof *l->mass);
    l->first = arena_alloc(arena, (size_t)experts, sizeof *l->first);
    l->document_mass = arena_alloc(arena, (size_t)experts, sizeof *l->document_mass);
    l->document_counts = arena_alloc(arena, (size_t)experts, sizeof *l->document_counts);
    return l->mass && l->first && l->document_mass && l->document_counts;
}

/* Sum over experts of E/(kT) u_i P_i of the open document, which it closes. */
static void close_document(struct losses *l) {
    double n = (double)l->document_tokens, sum = 0;
    if (l->document_tokens == 0) return;
    for (int e = 0; e < l->experts; e++) sum += (double)l->document_counts[e] * l->document_mass[e];
    l->sequence += sum * l->experts / (l->topk * n * n);
    l->documents++;
    l->document_tokens = 0;
    memset(l->document_mass, 0, (size_t)l->experts * sizeof *l->document_mass);
    memset(l->document_counts, 0, (size_t)l->experts * sizeof *l->document_counts);
}

/* log sum exp by the router's own exp and log: the same on every machine. */
static double log_sum_exp(const float *logit, int n) {
    float max = logit[0];
    double sum = 0;
    for (int i = 1; i < n; i++) max = logit[i] > max ? logit[i] : max;
    for (int i = 0; i < n; i++) sum += (double)mathf_exp(logit[i] - max);
    return (double)max + (double)mathf_log((float)sum);
}

void losses_add(struct losses *l, const struct losses_token *token) {
    double sum = 1e-20, lse = log_sum_exp(token->logit, l->experts);
    bool ordered = token->document >= 0;
    if (token->document != l->document) close_document(l);
    l->document = token->document;
    for (int e = 0; e < l->experts; e++) sum += (double)token->score[e];
    for (int e = 0; e < l->experts; e++) {
        double p = (double)token->score[e] / sum;
        l->mass[e] += p;
        if (ordered) l->document_mass[e] += p;
    }
    for (int i = 0; i < l->topk && ordered; i++) l->document_counts[token->top[i]]++;
    l->document_tokens += ordered;
    if (token->first >= 0) l->first[token->first]++;
    l->z += lse * lse;
    l->tokens++;
}

void losses_values(struct losses *l, const int64_t *count, int ranks, const int64_t *sent,
                   double value[static LOSS_COUNT]) {
    double n = (double)l->tokens, chosen = 0, experts = l->experts;
    int per_rank = l->experts / ranks, places = l->places < ranks ? l->places : ranks;
    close_document(l);
    memset(value, 0, LOSS_COUNT * sizeof *value);
    for (int e = 0; e < l->experts; e++) chosen += (double)count[e];
    double k = chosen > 0 ? chosen / n : 1; /* where tokens differ: their mean */
    for (int e = 0; e < l->experts; e++) {
        double p = l->mass[e] / n;
        value[LOSS_switch] += experts * (double)count[e] / (k * n) * p;
        value[LOSS_gshard] += experts * (double)l->first[e] / n * p;
    }
    for (int r = 0; r < ranks; r++) {
        double p = 0, f = 0;
        for (int e = r * per_rank; e < (r + 1) * per_rank; e++) {
            p += l->mass[e] / n;
            f += experts / (k * n) * (double)count[e] / per_rank;
        }
        value[LOSS_device] += f * p;
        value[LOSS_communication] += ranks / (places * n) * (double)sent[r] * p;
    }
    value[LOSS_hf] = k * value[LOSS_switch];
    value[LOSS_sequence] = l->documents > 0 ? l->sequence / (double)l->documents : NAN;
    value[LOSS_z] = l->z / n;
}
