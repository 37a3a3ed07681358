/* studies.c - the studies: what can be asked of a replay, and the figure that answers */
#include "cli/studies.h"

#include <math.h>
#include <string.h>

#include "cli/wide.h"
#include "plots/plot.h"

// clang-format off
const struct study studies[] = {
    {"load_map", "Load per expert and layer", "Which experts are overloaded, which are idle?",
     "study_load_map", study_load_map},
    {"load_curves", "Sorted expert load", "How unequal is the load, and which gate evens it out?",
     "study_load_curve", study_load_curves},
    {"layer_balance", "Imbalance per layer", "Is imbalance a matter of a few layers?",
     "study_layers", study_layer_balance},
    {"tradeoff", "What balance costs", "What does a more even load cost in routing quality?",
     "study_variants", study_tradeoff},
    {"bias_trajectory", "Settling of the correction bias", "How fast does a bias rule settle, and does it oscillate?",
     "study_trajectory", study_bias_trajectory},
    {"bias_rate", "Settled imbalance against the bias rate", "Which bias-update rate is best?",
     "study_trajectory", study_bias_rate},
    {"batch_size", "Imbalance against the size of the balance batch", "How much of the imbalance is just small batches?",
     "study_variants", study_batch_size},
    {"domain_drift", "Imbalance as the text changes domain", "How does a bias rule follow when the domain changes?",
     "study_trajectory", study_domain_drift},
    {"gate_weights", "Gate weights under each normalisation", "What does normalising the kept scores change?",
     "study_weights", study_gate_weights},
    {"domain_map", "Load per domain", "Do experts specialise on domains?",
     "domain_tokens", study_domain_map},
    {"domain_balance", "Imbalance of each domain by itself", "Is a mix of domains hiding the imbalance of each?",
     "domain_tokens", study_domain_balance},
    {"ranks", "Imbalance of ranks", "How much of it reaches the ranks, and what does it cost?",
     "study_variants", study_ranks},
    {"throughput_ranks", "Tokens per second against ranks", "What are gate, placement and replicas worth in tokens/s?",
     "study_throughput_ranks", study_throughput_ranks},
    {"throughput_regimes", "Cost of skew against tokens per expert", "Does skew help, is it free, or does it cost?",
     "study_throughput_regimes", study_throughput_regimes},
    {"throughput_layers", "Time per layer with its straggler", "Which layers and ranks does a step wait for?",
     "study_throughput_layers", study_throughput_layers},
    {"throughput_replicas", "Gain against redundant experts", "How many redundant experts are worth their memory?",
     "study_throughput_replicas", study_throughput_replicas},
    {"throughput_staleness", "Gain of a placement that ages", "How often must a placement be learnt anew?",
     "study_throughput_staleness", study_throughput_staleness},
    {"traffic", "Traffic between ranks", "Who sends how much to whom?",
     "study_traffic", study_traffic},
    {"models", "Sorted expert load of the models", "How do the models compare, each under its own gate?",
     "study_load_curve", study_models},
    {NULL, NULL, NULL, NULL, NULL},
};
// clang-format on

const struct study *study_find(const char *name, struct err *err) {
    struct str known = {0};
    for (const struct study *s = studies; s->name; s++) {
        if (strcmp(s->name, name) == 0) {
            str_free(&known);
            return s;
        }
        str_printf(&known, " %s", s->name);
    }
    err_set(err, ERR_USAGE, "found figure \"%.40s\", expected one of:%s", name, str_text(&known));
    str_free(&known);
    return NULL;
}

void figure_free(struct figure *figure) {
    for (int b = 0; b < figure->blocks; b++) table_free(figure->block[b]);
    str_free(&figure->caption);
    str_free(&figure->subtitle);
    str_free(&figure->lacks);
    *figure = (struct figure){0};
}

bool figure_add(struct figure *figure, struct table *table) {
    if (table) figure->block[figure->blocks++] = table;
    return table != NULL;
}

static bool add_series(const struct subject *subject, const struct study_series *series, int v,
                       const char *label, struct wide *wide, struct err *err) {
    struct table *table = subject_query(subject, series->query, v, err);
    if (!table) return false;
    wide_series(wide, label);
    wide_column(wide, table, series->key, series->value);
    if (series->deviation) {
        wide_series(wide, series->deviation);
        wide_column(wide, table, series->key, series->deviation);
    }
    table_free(table);
    return true;
}

bool study_block(const struct subject *subject, const struct study_series *series,
                 const int *chosen, int n, struct figure *figure, struct err *err) {
    struct wide wide = {0};
    struct str labels[16] = {{0}};
    if (n > 16) n = 16;
    subject_labels(subject, chosen, n, labels);
    bool ok = true;
    for (int i = 0; ok && i < n; i++)
        ok = add_series(subject, series, chosen[i], str_text(&labels[i]), &wide, err);
    ok = ok && figure_add(figure, wide_table(&wide, series->key, err));
    for (int i = 0; i < n; i++) str_free(&labels[i]);
    wide_free(&wide);
    return ok;
}

/* In points: room for the rows of a heat map, or for a legend with more lines than fit by default.
 */
static int height_of(const struct figure *figure) {
    if (figure->rows) return figure->rows > 20 ? 130 + 14 * figure->rows : 400;
    int columns = figure->blocks ? table_columns(figure->block[0]) : 0;
    int series = figure->blocks > 2 ? figure->blocks : columns - 1;
    return 400 + 15 * (series > 3 ? series - 3 : 0);
}

bool study_render(const struct study *study, const struct figure *figure, int format,
                  struct str *image, struct str *data, struct err *err) {
    struct str own = {0};
    struct str *text = data ? data : &own;
    const struct table *blocks[FIGURE_BLOCKS];
    for (int b = 0; b < figure->blocks; b++) blocks[b] = figure->block[b];
    bool ok = plot_data(blocks, figure->blocks, text, err);
    struct plot_job job = {.figure = study->name,
                           .data = str_text(text),
                           .subtitle = str_text(&figure->subtitle),
                           .height = height_of(figure),
                           .format = (enum plot_format)format};
    ok = ok && plot_render(&job, image, err);
    str_free(&own);
    return ok;
}
