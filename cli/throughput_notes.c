/* throughput_notes.c - what a reader of `steelyard throughput` must know, in lines */
#include "cli/throughput_notes.h"

#include <math.h>
#include <string.h>

static void note_model(const struct throughput_request *q, const struct cluster *c, bool moe_only,
                       struct str *out) {
    const struct layer_error *e = &c->constants.error;
    str_printf(
        out,
        "layer times of %s, %s, %s (%s constants): validated median error %.1f %% in decode, "
        "%.1f %% in prefill\n",
        c->gpu, c->kernel, c->quant, constant_origin_name(c->constants.origin),
        100 * e->decode_median, 100 * e->prefill_median);
    str_puts(out, "communication is modelled from the bytes of the busiest rank: no public "
                  "measurement has imbalanced communication\n");
    if (moe_only)
        str_puts(out, "only routed experts and their communication are counted\n");
    else
        str_puts(out, "the rest of the step is a plain roofline, not validated\n");
    for (int i = 0; i < q->list[LIST_LEARN].count; i++)
        if (strcmp(q->list[LIST_LEARN].items[i], "whole") == 0)
            str_puts(
                out,
                "placements learnt on the whole trace are used on the same tokens: optimistic\n");
}

static void note_drawn(const struct routed *routed, struct str *out) {
    if (routed->counted)
        str_puts(out, "the trace holds counts only: tokens are drawn with exactly these loads; "
                      "which experts a token has together and how batches differ is made up\n");
}

/* Was the same reason met in an earlier cell? */
static bool seen_before(const struct throughput_run *run, int i) {
    for (int j = 0; j < i; j++)
        if (strcmp(run->cells[j].lacks, run->cells[i].lacks) == 0) return true;
    return false;
}

static void note_cells(const struct throughput_run *run, struct str *out) {
    int repeats = 0, extrapolated = 0, lacks = 0;
    for (int i = 0; i < run->count; i++) {
        repeats += run->cells[i].repeats;
        extrapolated += run->cells[i].extrapolated;
        lacks += *run->cells[i].lacks != '\0';
        if (*run->cells[i].lacks && !seen_before(run, i))
            str_printf(out, "left out: %s\n", run->cells[i].lacks);
    }
    if (lacks) str_printf(out, "left out: %d of %d cells in all\n", lacks, run->count);
    if (repeats)
        str_printf(out,
                   "%d of %d cells use tokens more than once: the trace is shorter than a batch\n",
                   repeats, run->count);
    if (extrapolated)
        str_printf(out,
                   "%d of %d cells are extrapolated: outside the shapes and batches that the "
                   "layer time was validated on (hidden 1024 to 8192, at most 65536 tokens and 256 "
                   "ranks)\n",
                   extrapolated, run->count);
}

static bool same_but_placement(const struct throughput_point *a, const struct throughput_point *b) {
    return a->ranks == b->ranks && a->phase == b->phase &&
           a->tokens_per_rank == b->tokens_per_rank && a->context == b->context &&
           a->load.source == b->load.source && strcmp(a->load.name, b->load.name) == 0;
}

/* What another placement or gate is worth against the first of the same ranks and batch. */
static void note_worth(const struct routed *routed, const struct throughput_run *run,
                       struct str *out) {
    for (int i = 0; i < run->count; i++) {
        const struct throughput_cell *base = &run->cells[i], *best = NULL;
        bool first = !*base->lacks && base->point.load.source == LOAD_OF_TRACE;
        for (int j = 0; first && j < i; j++)
            first = *run->cells[j].lacks || !same_but_placement(&run->cells[j].point, &base->point);
        for (int j = i + 1; first && j < run->count; j++) {
            const struct throughput_cell *c = &run->cells[j];
            if (*c->lacks || !same_but_placement(&c->point, &base->point)) continue;
            if (!best || c->tokens_per_s > best->tokens_per_s) best = c;
        }
        if (!best) continue;
        double gain = best->tokens_per_s / base->tokens_per_s - 1;
        const struct throughput_point *p = &best->point;
        double skew = base->step.experts_ms / base->step.balanced_ms;
        str_printf(out,
                   "%s, %d ranks, %lld tokens a rank%s%s: best is %s, %s, %d replicas: %+.1f %% "
                   "tokens/s against %s, %s, %d replicas\n",
                   serving_phase_name(p->phase), p->ranks, (long long)p->tokens_per_rank,
                   isfinite(skew) ? ", " : "",
                   isfinite(skew) ? skew_regime_name(skew_regime_of(skew)) : "",
                   routed_label(routed, p->variant), placement_name(p->placement), p->replicas,
                   100 * gain, routed_label(routed, base->point.variant),
                   placement_name(base->point.placement), base->point.replicas);
    }
}

/* How far the trace's load is from each other load, once per load and batch. */
static void note_distances(const struct throughput_run *run, struct str *out) {
    for (int i = 0; i < run->count; i++) {
        const struct throughput_cell *c = &run->cells[i];
        if (c->profile == NULL || !isfinite(c->distance) || c->point.load.source == LOAD_OF_TRACE)
            continue;
        str_printf(out,
                   "%s, %lld tokens a batch: %.1f %% of the trace's choices would have to go to "
                   "other experts to make the load %s (experts ranked by load, mean over layers)\n",
                   serving_phase_name(c->point.phase), (long long)c->group_tokens,
                   100 * c->distance, c->point.load.name);
    }
}

void throughput_notes(const struct throughput_request *request, const struct routed *routed,
                      const struct throughput_run *run, const struct cluster *cluster,
                      bool moe_only, struct str *out) {
    note_drawn(routed, out);
    note_model(request, cluster, moe_only, out);
    if (routed->scores) str_puts(out, str_text(&routed->set.notes));
    note_cells(run, out);
    note_distances(run, out);
    note_worth(routed, run, out);
}
