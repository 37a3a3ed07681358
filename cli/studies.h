/* studies.h - the studies: what can be asked of a replay, and the figure that answers
 *
 * Layer 5. Each study is a row of one table: its figure (plots/<name>.gp), the question, the query
 * its data come from, and a function that takes the data, computes the statistic and writes the
 * caption for this very trace. report, plot and figures walk the table. */
#ifndef CLI_STUDIES_H
#define CLI_STUDIES_H

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"
#include "base/table.h"
#include "cli/subject.h"

enum { FIGURE_BLOCKS = 9 }; /* as many as there are line types (plots/style.gp) */

/* A study's answer. Starts as all zero bytes. */
struct figure {
    struct table *block[FIGURE_BLOCKS]; /* owned: the blocks of the data file */
    int blocks;
    int rows;            /* of a heat map, for its height; 0 = lines with a legend */
    struct str caption;  /* what it shows for this trace, with numbers and intervals */
    struct str subtitle; /* after the title; may be empty */
    struct str lacks;    /* not empty: nothing to draw, because of this */
};
void figure_free(struct figure *figure);

/* subjects[count]: all but `models` look at the first alone. Returns false only on errors; a figure
 * that these data cannot give says so in `lacks`. */
typedef bool (*study_draw)(const struct subject *subjects, int count, struct figure *figure,
                           struct err *err);

struct study {
    const char *name; /* of the template and of the files */
    const char *title;
    const char *question; /* that the figure answers */
    const char *query;    /* traces/queries/<query>.sql */
    study_draw draw;
};
extern const struct study studies[]; /* ends with name == NULL */

/* By name; NULL with err set, listing what there is. */
const struct study *study_find(const char *name, struct err *err);

/* The image of a figure that has data; *image is appended to, and *data, when not NULL, gets the
 * text of the data file. format: enum plot_format. */
bool study_render(const struct study *study, const struct figure *figure, int format,
                  struct str *image, struct str *data, struct err *err);

/* For the draw functions: the series of `query` for n variants side by side, as the figure's next
 * block. */
struct study_series {
    const char *query, *key, *value;
    const char *deviation; /* NULL, or a second column that follows each value */
};
bool study_block(const struct subject *subject, const struct study_series *series,
                 const int *chosen, int n, struct figure *figure, struct err *err);
/* Adds a table as the figure's next block (takes it); false when it is NULL. */
bool figure_add(struct figure *figure, struct table *table);

#define STUDY_DRAWS(X)                                                                             \
    X(load_map)                                                                                    \
    X(load_curves)                                                                                 \
    X(layer_balance)                                                                               \
    X(tradeoff)                                                                                    \
    X(gate_weights)                                                                                \
    X(ranks)                                                                                       \
    X(bias_trajectory)                                                                             \
    X(bias_rate)                                                                                   \
    X(batch_size)                                                                                  \
    X(domain_drift)                                                                                \
    X(domain_map)                                                                                  \
    X(domain_balance)                                                                              \
    X(throughput_ranks)                                                                            \
    X(throughput_regimes)                                                                          \
    X(throughput_layers)                                                                           \
    X(throughput_replicas)                                                                         \
    X(throughput_staleness)                                                                        \
    X(traffic)                                                                                     \
    X(models)
/* study_load_map(...) and so on, in study_gates.c, study_bias.c, study_domains.c, ... */
#define X(name)                                                                                    \
    bool study_##name(const struct subject *subjects, int count, struct figure *figure,            \
                      struct err *err);
STUDY_DRAWS(X)
#undef X

/* chosen[most] <- the variants of the largest family of one bias rule at one batch size that differ
 * in their rate alone, by rising rate; returns how many, 0 when no bias moves. */
int study_rates(const struct subject *subject, int most, int *chosen);
/* A variant that routes as the reference does, with balance batches of this size; -1 when none was
 * replayed. */
int study_native_at(const struct subject *subject, int64_t batch_tokens);

struct loads;
struct interval;
/* Appends which domain is the least even by itself, against all text, with the interval of the
 * difference. */
bool study_domain_contrast(const struct subject *subject, const struct loads *loads,
                           struct interval *interval, struct str *out, struct err *err);

#endif
