/* outcome.c - from the rows of a replay to the result tables */
#include "sim/outcome.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/notes.h"

bool outcome_begin(struct outcome *outcome, struct result *result, struct variant_set *variants,
                   int64_t documents, struct err *err) {
    *outcome = (struct outcome){.result = result, .variants = variants, .documents = documents};
    outcome->parted = calloc((size_t)variants->count + 1, sizeof *outcome->parted);
    return outcome->parted || err_memory(err, "result");
}

static bool write_documents(struct outcome *outcome, const struct replay_row *row,
                            struct err *err) {
    const struct result_layer *m = &row->measures;
    for (int64_t d = 0; row->document && d < outcome->documents; d++)
        if (!result_document_load(outcome->result, m->variant, m->layer, d, row->experts,
                                  row->document + d * row->experts, err))
            return false;
    return true;
}

static bool write_dynamics(struct result *result, const struct replay_row *row, struct err *err) {
    struct dynamics d;
    batches_dynamics(row->batches, &d);
    const struct result_dynamics out = {.variant = row->measures.variant,
                                        .layer = row->measures.layer,
                                        .batches = d.batches,
                                        .start = d.start,
                                        .level = d.level,
                                        .settling_batches = d.settling_batches,
                                        .overshoot = d.overshoot,
                                        .amplitude = d.amplitude,
                                        .period = d.period};
    return result_dynamics(result, &out, err);
}

static bool write_losses(struct result *result, const struct replay_row *row, struct err *err) {
    const struct result_layer *m = &row->measures;
    for (int i = 0; row->has_losses && i < LOSS_COUNT; i++)
        if (!result_loss(result, m->variant, m->layer, loss_name((enum loss)i), row->loss[i], err))
            return false;
    return true;
}

static bool write_optimum(struct result *result, const struct replay_row *row, struct err *err) {
    const struct batches *b = row->batches;
    if (isnan(row->last_mass)) return true;
    const struct result_optimum out = {.variant = row->measures.variant,
                                       .layer = row->measures.layer,
                                       .batch = b->expected - 1,
                                       .maxvio = b->maxvio[b->expected - 1],
                                       .mass = row->last_mass,
                                       .optimum = row->optimum};
    return result_optimum(result, &out, err);
}

static bool write_row(void *context, const struct replay_row *row, struct err *err) {
    struct outcome *outcome = context;
    struct result *result = outcome->result;
    const struct result_layer *m = &row->measures;
    const struct result_batches batches = {.variant = m->variant,
                                           .layer = m->layer,
                                           .count = row->batches->closed,
                                           .tokens = row->batches->tokens,
                                           .maxvio = row->batches->maxvio,
                                           .efficiency = row->batches->efficiency};
    outcome->parted[m->variant - 1] += row->parted;
    return result_layer(result, m, err) &&
           result_expert_load(result, m->variant, m->layer, row->experts, row->tokens, row->weight,
                              err) &&
           result_batches(result, &batches, err) && write_dynamics(result, row, err) &&
           write_losses(result, row, err) && write_optimum(result, row, err) &&
           (!row->bias ||
            result_bias(result, m->variant, m->layer, row->experts, row->bias, err)) &&
           (!row->rank_mean || result_rank_weight(result, m->variant, m->layer, row->topk,
                                                  row->rank_mean, row->rank_sd, err)) &&
           write_documents(outcome, row, err);
}

struct replay_sink outcome_sink(struct outcome *outcome) {
    return (struct replay_sink){write_row, outcome};
}

/* A proof in real arithmetic that rounding has broken is no claim about these numbers. */
static void withdraw_twins(struct outcome *outcome) {
    for (int i = 0; i < outcome->variants->count; i++) {
        struct variant *v = &outcome->variants->variant[i];
        if (outcome->parted[i] == 0) continue;
        str_printf(&outcome->notes,
                   "variant %d (%s): equals variant %d by law, but on %lld tokens f32 scores tie "
                   "where logits do not and the lower expert wins: same_as is not claimed\n",
                   v->number, v->label, v->same_as, (long long)outcome->parted[i]);
        v->same_as = 0;
        v->same_why = "";
    }
}

static bool write_variants(struct outcome *outcome, struct err *err) {
    for (int i = 0; i < outcome->variants->count; i++) {
        const struct variant *v = &outcome->variants->variant[i];
        const struct result_variant row = {.variant = v->number,
                                           .gate = v->gate,
                                           .label = v->label,
                                           .bias_rule = v->rule,
                                           .bias_rate = v->rate,
                                           .bias_start = bias_start_name(v->start),
                                           .batch_tokens = v->batch_tokens,
                                           .ranks = v->ranks,
                                           .same_as = v->same_as,
                                           .same_why = v->same_why,
                                           .causal = variant_is_causal(outcome->variants, i)};
        if (!result_variant(outcome->result, &row, err)) return false;
    }
    return true;
}

bool outcome_commit(struct outcome *outcome, struct err *err) {
    struct result *result = outcome->result;
    withdraw_twins(outcome);
    note_twins(outcome->variants, &outcome->notes);
    bool ok = write_variants(outcome, err);
    outcome->result = NULL;
    if (ok)
        ok = result_commit(result, err);
    else
        result_abandon(result);
    free(outcome->parted);
    outcome->parted = NULL;
    return ok;
}

void outcome_abandon(struct outcome *outcome) {
    result_abandon(outcome->result);
    free(outcome->parted);
    str_free(&outcome->notes);
    *outcome = (struct outcome){0};
}

bool outcome_keeps_documents(const struct variant_set *variants, const struct source *source) {
    const double most_cells = 16e6, most_rows = 1e6; /* 128 MB of counts a thread; blobs written */
    int experts = 0;
    for (int l = 0; l < source->layers; l++)
        experts = source->layer[l].experts > experts ? source->layer[l].experts : experts;
    double per_layer = (double)variants->count * (double)source->documents;
    return per_layer * experts <= most_cells && per_layer * source->layers <= most_rows;
}
