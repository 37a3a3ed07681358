/* cmd_cluster.c - `steelyard cluster`: built-in clusters, and the layer-time model against measured
 * times */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/table.h"
#include "cli/commands.h"
#include "sim/cluster.h"
#include "sim/fit_layer.h"
#include "sim/published.h"
#include "sim/refit.h"
#include "sim/timings.h"

struct request {
    struct output_choice output;
    int64_t threads, worst;
    const char *kernel;
    const char *left_out, *seen, *carry; /* validate: other constants than the built-in ones */
};

static bool list(const struct request *request, const char *unused, struct err *err) {
    static const struct table_column columns[] = {
        {"name", "", TABLE_TEXT},         {"gpu", "", TABLE_TEXT},
        {"gpus_per_node", "", TABLE_INT}, {"framework", "", TABLE_TEXT},
        {"quant", "", TABLE_TEXT},        {"constants", "", TABLE_TEXT},
        {"decode_error", "", TABLE_REAL}, {"prefill_error", "", TABLE_REAL},
        {"summary", "", TABLE_TEXT}};
    (void)unused;
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    bool ok = table != NULL;
    for (const struct cluster_preset *p = cluster_presets; ok && p->name; p++) {
        struct cluster cluster;
        ok = cluster_find(&cluster, p->name, err);
        if (!ok) break;
        table_text(table, p->name);
        table_text(table, p->device);
        table_int(table, cluster.device.gpus_per_node);
        table_text(table, p->framework);
        table_text(table, p->quant);
        table_text(table, constant_origin_name(cluster.constants.origin));
        table_real(table, cluster.constants.error.decode_median);
        table_real(table, cluster.constants.error.prefill_median);
        table_text(table, p->summary);
    }
    ok = ok && output_table(table, request->output, err);
    table_free(table);
    return ok;
}

static bool show(const struct request *request, const char *name, struct err *err) {
    (void)request;
    struct cluster cluster;
    struct str text = {0};
    bool ok = cluster_find(&cluster, name, err);
    if (ok) cluster_print(&cluster, &text);
    if (ok && text.failed) ok = err_memory(err, "cluster");
    if (ok) fputs(str_text(&text), stdout);
    str_free(&text);
    return ok;
}

static void print_totals(const struct timings *timings) {
    int64_t flagged = 0, unmodelled = 0;
    for (int64_t i = 0; i < timings->count; i++) {
        flagged += timings->rows[i].flagged;
        unmodelled += isnan(timings->rows[i].predicted_ms);
    }
    printf("\n%lld rows; %lld flagged by the file (medians are over the others, *_all over all); "
           "%lld without a prediction\n",
           (long long)timings->count, (long long)flagged, (long long)unmodelled);
}

/* Replaces the predictions where other constants were asked for. */
static bool predict(const struct request *q, struct timings *timings, struct err *err) {
    if ((q->left_out != NULL) + (q->seen != NULL) + (q->carry != NULL) > 1)
        return err_set(err, ERR_USAGE,
                       "found several of --leave-out, --fit-on and --carry, expected one");
    if (q->carry) return refit_carry(timings, q->carry, err);
    enum left_out what;
    if (q->left_out)
        return left_out_find(q->left_out, &what, err) &&
               refit_left_out(timings, what, q->kernel, (int)q->threads, err);
    struct timings seen;
    if (!q->seen) return true;
    if (!timings_read(&seen, q->seen, (int)q->threads, err)) return false;
    bool ok = refit_on(timings, &seen, q->kernel, (int)q->threads, err);
    timings_free(&seen);
    return ok;
}

static bool validate(const struct request *request, const char *path, struct err *err) {
    struct timings timings;
    if (!timings_read(&timings, path, (int)request->threads, err)) return false;
    if (!predict(request, &timings, err)) {
        timings_free(&timings);
        return false;
    }
    bool people = !request->output.json && !request->output.csv;
    struct table *errors = timings_validate(&timings, err);
    bool ok = errors && output_table(errors, request->output, err);
    if (ok && people) {
        print_totals(&timings);
        printf("\nthe %lld rows without a flag that the model misses most:\n",
               (long long)request->worst);
        struct table *worst = timings_worst(&timings, request->worst, err);
        ok = worst && output_table(worst, request->output, err);
        table_free(worst);
    }
    table_free(errors);
    timings_free(&timings);
    return ok;
}

static bool fit(const struct request *request, const char *path, struct err *err) {
    struct timings timings;
    if (!timings_read(&timings, path, (int)request->threads, err)) return false;
    struct table *fits = timings_fit(&timings, request->kernel, (int)request->threads, err);
    bool ok = fits && output_table(fits, request->output, err);
    if (!fits) err_context(err, "%s", path);
    table_free(fits);
    timings_free(&timings);
    return ok;
}

/* Published systems beside the prediction, with every assumption. */
static bool study(const struct request *request, const char *unused, struct err *err) {
    (void)unused;
    struct table *table = published_study(err);
    bool ok = table && output_table(table, request->output, err);
    if (ok && !request->output.json && !request->output.csv)
        for (const char *const *line = published_assumptions; *line; line++)
            printf("%s%s\n", line == published_assumptions ? "\nassumed: " : "assumed: ", *line);
    table_free(table);
    return ok;
}

static const struct action {
    const char *name;
    bool needs_argument;
    bool (*run)(const struct request *request, const char *argument, struct err *err);
} actions[] = {{"list", false, list},
               {"show", true, show},
               {"validate", true, validate},
               {"fit", true, fit},
               {"study", false, study}};

static bool dispatch(const struct request *request, const struct text_list *rest, struct err *err) {
    const char *name = rest->count > 0 ? rest->items[0] : "list";
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        const struct action *a = &actions[i];
        if (strcmp(a->name, name) != 0) continue;
        int expected = 1 + a->needs_argument;
        if (rest->count > expected || (a->needs_argument && rest->count != expected))
            return err_set(err, ERR_USAGE, "%s: found %d arguments, expected %d", name,
                           rest->count - 1, expected - 1);
        return a->run(request, a->needs_argument ? rest->items[1] : NULL, err);
    }
    return err_set(err, ERR_USAGE,
                   "found action \"%s\", expected list, show, validate, fit or study", name);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct request request = {.worst = 20};
    const struct option options[] = {
        {"threads", OPTION_INT, &request.threads, "N", "threads (0: one per CPU)", 0, 4096},
        {"worst", OPTION_INT, &request.worst, "N", "validate: list the N worst rows", 0, 1e9},
        {"kernel", OPTION_TEXT, &request.kernel, "LABEL", "fit, --leave-out, --fit-on: only it", 0,
         0},
        {"leave-out", OPTION_TEXT, &request.left_out, "shape|ranks|half",
         "validate: each by constants fitted on the others", 0, 0},
        {"fit-on", OPTION_TEXT, &request.seen, "FILE.csv", "validate: constants fitted on FILE", 0,
         0},
        {"carry", OPTION_TEXT, &request.carry, "GPU",
         "validate: GPU's constants carried over to the others", 0, 0},
        OPTION_OUTPUT(request.output),
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) ok = dispatch(&request, &rest, err);
    text_list_free(&rest);
    return ok;
}

const struct command command_cluster = {
    .name = "cluster",
    .arguments = "list | show NAME | validate FILE.csv[.gz] | fit FILE.csv[.gz] | study",
    .summary = "named clusters, and the layer-time model against measured times",
    .example = "steelyard cluster show h100 > mine.json",
    .run = run};
