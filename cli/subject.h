/* subject.h - the database under study: its variants, which of them to show, and what to call them
 *
 * Layer 5: joins traces (queries) and analysis. Opened once by report and plot; figures and
 * findings read from it. A variant is addressed by its index v in [0,count), in the order asked. */
#ifndef CLI_SUBJECT_H
#define CLI_SUBJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "base/table.h"
#include "traces/query.h"
#include "traces/trace.h"

/* A row of the query study_variants: what was replayed, and its means over layers. Texts are
 * borrowed from the subject's table; NaN = does not apply. */
struct subject_variant {
    int variant;
    const char *gate, *bias_rule, *bias_start, *same_why;
    double bias_rate; /* NaN when the rule has none */
    int64_t batch_tokens;
    int ranks;   /* 0 = not asked */
    int same_as; /* index of the variant that it provably equals in load; -1 = none */
    double maxvio_global, maxvio_batch, agreement, mass_retained, rank_maxvio, efficiency;
};

struct subject {
    struct trace *trace;
    struct table *variants;          /* study_variants, owned */
    struct subject_variant *variant; /* [count] owned */
    int count;
    int native; /* index of the reference: the model's own gate where it was replayed, else 0 */
    bool has_native;      /* the reference is the model's own gate */
    char *path;           /* as given, owned: the result of a trace never replayed lies elsewhere */
    struct str temporary; /* that result, removed at the end; empty when there is none */
};

/* Opens RUN.db or RESULT.db. A trace without results is replayed under its own gate first. */
bool subject_open(struct subject *subject, const char *path, struct err *err);
void subject_close(struct subject *subject);

/* A query of variant v. Returns owned. */
struct table *subject_query(const struct subject *subject, const char *query, int v,
                            struct err *err);

/* A bias carried unchanged to another score function than it was trained with: replayed when asked
 * for, in the tables, but not among the variants that figures compare. */
bool subject_foreign(const struct subject *subject, int v);
/* Name of the model of subjects[i], with its file when another subject has the same name. Appended.
 */
void subject_model(const struct subject *subjects, int count, int i, struct str *out);
/* The variant at the end of the same_as chain. */
int subject_root(const struct subject *subject, int v);
/* Variants of different load, the best by MaxVio within batches first; at most `most` of them,
 * evenly spaced by rank when there are more, the reference always among them and first. For a bias
 * rule tried at several rates or batch sizes, the best stands for all. chosen[most]; returns how
 * many. */
int subject_pick(const struct subject *subject, int most, int *chosen);
/* The variant of lowest MaxVio within batches among those that balance at the reference's batch
 * size; -1 when none is below the reference. */
int subject_best(const struct subject *subject);

/* Names for a legend: variant number and those parts of the specification in which the n variants
 * differ. labels[n], each appended to. */
void subject_labels(const struct subject *subject, const int *chosen, int n, struct str *labels);
/* What kind of gate it is: its bias rule; from detail 1 on its score function; from 2 on its
 * groups. Appended. */
enum { KIND_DETAIL = 2 };
void subject_kind(const struct subject *subject, int v, int detail, struct str *out);
/* The name of one variant in a sentence: "the native gate", or its number and how it differs from
 * the reference. Appended. */
void subject_name(const struct subject *subject, int v, struct str *out);

#endif
