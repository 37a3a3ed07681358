/* import_bigmoe.c - BigMoeOnEdge route traces, version 1: one row per routed expert
 *
 * Lines "# route_trace v1", "# model=.. arch=.. n_layer=.. n_expert=.. n_expert_used=..", "#
 * layer=..", then a table with columns turn, phase (0 prefill, 1 decode), step (position in the
 * context), layer, slot (rank of selection), expert, weight ("nan" = not known), ... A turn is a
 * document. The engine runs the last layer of a prefill for its last token only, which leaves that
 * layer without the other tokens: it is left out then, and the trace says so. Layout: BigMoeOnEdge,
 * docs (route trace). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/gzip.h"
#include "base/str.h"
#include "traces/import_build.h"
#include "traces/import_text.h"
#include "traces/importers.h"

bool import_bigmoe_recognise(const char *path) {
    static const char *const marks[] = {"# route_trace v1", NULL};
    return import_text_holds(path, "#", marks);
}

enum { COLUMNS = 7 };
static const char *const names[COLUMNS] = {"turn", "phase",  "step",  "layer",
                                           "slot", "expert", "weight"};

/* Which token each entry of a layer is, in the order of the file. */
struct tokens {
    int64_t *turn, *step; /* [count] owned */
    int64_t count, cap;
};

struct bigmoe {
    const struct csv *csv;
    int at[COLUMNS];
    struct build build;
    struct tokens *tokens; /* [build.layer_count] owned */
    int token_lists;
    bool weighted;
};

static bool add_token(struct tokens *to, int64_t turn, int64_t step, struct err *err) {
    if (to->count == to->cap) {
        int64_t cap = to->cap ? to->cap * 2 : 256;
        int64_t *turns = realloc(to->turn, (size_t)cap * sizeof *turns);
        if (turns) to->turn = turns;
        int64_t *steps = realloc(to->step, (size_t)cap * sizeof *steps);
        if (steps) to->step = steps;
        if (!turns || !steps) return err_memory(err, "tokens");
        to->cap = cap;
    }
    to->turn[to->count] = turn;
    to->step[to->count++] = step;
    return true;
}

/* The list of a layer of the builder: lists lie as its layers do. */
static struct tokens *tokens_of(struct bigmoe *b, const struct build_layer *layer,
                                struct err *err) {
    int index = (int)(layer - b->build.layers);
    if (index < b->token_lists) return &b->tokens[index];
    struct tokens *lists = realloc(b->tokens, ((size_t)index + 1) * sizeof *lists);
    if (!lists) {
        err_memory(err, "layers");
        return NULL;
    }
    b->tokens = lists;
    lists[index] = (struct tokens){0};
    b->token_lists = index + 1;
    return &lists[index];
}

static bool read_row(const struct bigmoe *b, int64_t row, int64_t value[COLUMNS - 1],
                     double *weight, struct err *err) {
    static const int64_t most[] = {INT32_MAX,           1, INT32_MAX, 100000, GATE_MAX_TOPK - 1,
                                   GATE_MAX_EXPERTS - 1};
    for (int i = 0; i < COLUMNS - 1; i++)
        if (!csv_int(b->csv, row, b->at[i], 0, most[i], &value[i], err)) return false;
    *weight = 0;
    return !b->weighted || csv_real(b->csv, row, b->at[6], -1e30, 1e30, weight, err);
}

/* The rows of one token at one layer: slots 0, 1, ... */
static bool take_cell(struct bigmoe *b, int64_t *row, struct err *err) {
    int64_t cell[COLUMNS - 1], next[COLUMNS - 1];
    int32_t expert[GATE_MAX_TOPK];
    float weight[GATE_MAX_TOPK];
    double w;
    int k = 0;
    for (int64_t start = *row; *row < csv_rows(b->csv); ++*row, k++) {
        if (!read_row(b, *row, next, &w, err)) return false;
        if (*row == start) memcpy(cell, next, sizeof cell);
        if (memcmp(cell, next, 4 * sizeof *cell) != 0 || (k && next[4] == 0)) break;
        if (next[4] != k)
            return err_set(err, ERR_DATA, "%s: row %lld: found slot %lld, expected %d",
                           csv_name(b->csv), (long long)*row + 1, (long long)next[4], k);
        expert[k] = (int32_t)next[5];
        weight[k] = (float)w;
    }
    struct build_layer *layer = build_layer(&b->build, (int)cell[3], k, err);
    struct tokens *tokens = layer ? tokens_of(b, layer, err) : NULL;
    return tokens && add_token(tokens, cell[0], cell[2], err) &&
           build_add(&b->build, layer, 1, expert, b->weighted ? weight : NULL, err);
}

/* The last layer of a prefill has fewer tokens than all others: it goes. */
static bool drop_last(struct bigmoe *b, struct str *lacks) {
    struct build *build = &b->build;
    int last = 0, fewest = 0;
    for (int i = 1; i < build->layer_count; i++) {
        if (build->layers[i].layer > build->layers[last].layer) last = i;
        if (build->layers[i].tokens < build->layers[fewest].tokens) fewest = i;
    }
    int other = last == 0 ? 1 : 0;
    if (build->layer_count < 2 || build->layers[last].tokens == build->layers[other].tokens ||
        last != fewest)
        return true;
    str_printf(lacks, "; layer %d (its prefill was run for the last token only: left out)",
               build->layers[last].layer);
    free(b->tokens[last].turn);
    free(b->tokens[last].step);
    build_drop_layer(build, last);
    b->tokens[last] = b->tokens[--b->token_lists];
    return !lacks->failed;
}

/* All layers list the same tokens; they become the documents. */
static bool add_documents(struct bigmoe *b, const char *source, const char *domain,
                          struct err *err) {
    const struct tokens *first = &b->tokens[0];
    for (int i = 1; i < b->token_lists; i++) {
        const struct tokens *list = &b->tokens[i];
        int64_t t = 0, n = list->count < first->count ? list->count : first->count;
        while (t < n && list->turn[t] == first->turn[t] && list->step[t] == first->step[t]) t++;
        if (t < list->count || t < first->count)
            return err_set(err, ERR_DATA,
                           "layer %d: found other tokens than at layer %d (from number %lld on): "
                           "records are missing",
                           b->build.layers[i].layer, b->build.layers[0].layer, (long long)t);
    }
    for (int64_t t = 0; t < first->count; t++) {
        bool another = !t || first->turn[t] != first->turn[t - 1];
        const struct build_token token = {.source = another ? source : NULL,
                                          .domain = domain,
                                          .id = -1,
                                          .position = (int32_t)first->step[t],
                                          .nll = (float)NAN};
        if (!build_token(&b->build, &token, err)) return false;
    }
    return true;
}

static bool read_table(struct bigmoe *b, struct err *err) {
    int64_t rows = csv_rows(b->csv);
    for (int i = 0; i < COLUMNS; i++)
        if (!csv_need(b->csv, names[i], &b->at[i], err)) return false;
    if (rows < 1) return err_set(err, ERR_DATA, "%s: found no row", csv_name(b->csv));
    b->weighted = true;
    for (int64_t row = 0; row < rows && b->weighted; row++)
        b->weighted = strcmp(csv_text(b->csv, row, b->at[6]), "nan") != 0;
    for (int64_t row = 0; row < rows;)
        if (!take_cell(b, &row, err)) return false;
    return true;
}

/* "key=value" of the lines before the table, up to a space. */
static const char *fact(const char *text, size_t len, const char *key, struct arena *arena) {
    const char *at = memmem(text, len, key, strlen(key));
    if (!at) return NULL;
    at += strlen(key);
    return arena_text(arena, at, strcspn(at, " \r\n"));
}

static void free_tokens(struct bigmoe *b) {
    for (int i = 0; i < b->token_lists; i++) {
        free(b->tokens[i].turn);
        free(b->tokens[i].step);
    }
    free(b->tokens);
}

/* The table behind the lines of facts. */
static bool read_file(struct bigmoe *b, const struct import_job *job, struct arena *arena,
                      const char **model, struct str *lacks, struct err *err) {
    const char *path = job->files[0], *stem = import_stem(arena, path);
    size_t len, at = 0;
    char *text = gzip_whole(path, (size_t)1 << 36, &len, err);
    if (!text) return false;
    while (text[at] == '#') {
        at += strcspn(text + at, "\n");
        at += text[at] == '\n';
    }
    const char *model_path = fact(text, at, "model=", arena);
    const char *experts = fact(text, at, " n_expert=", arena);
    *model = model_path ? import_stem(arena, model_path) : stem;
    b->build.experts = experts ? atoi(experts) : 0;
    if (b->build.experts < 0 || b->build.experts > GATE_MAX_EXPERTS) b->build.experts = 0;
    struct csv *csv = csv_parse(path, text + at, len - at, err);
    b->csv = csv;
    bool ok = csv && read_table(b, err);
    ok = ok && (drop_last(b, lacks) || err_memory(err, path));
    ok = ok && add_documents(b, file_name(path), job->domain ? job->domain : stem, err);
    csv_free(csv);
    free(text);
    return ok;
}

bool import_bigmoe_open(const struct import_job *job, struct import_source *source,
                        struct err *err) {
    struct bigmoe b = {0};
    struct str lacks = {0};
    const char *model = NULL;
    if (job->file_count != 1)
        return err_set(err, ERR_USAGE, "bigmoe: found %d files, expected 1", job->file_count);
    bool ok = read_file(&b, job, &source->arena, &model, &lacks, err);
    struct str all = {0};
    str_printf(&all, "router scores%s%s", b.weighted ? "" : "; weights", str_text(&lacks));
    if (ok && (lacks.failed || all.failed)) ok = err_memory(err, "import");
    ok = ok && build_finish(&b.build, job, source, "bigmoe", str_text(&all), err);
    if (ok && !job->model && model) source->setup.capture.model = model;
    free_tokens(&b);
    build_free(&b.build);
    str_free(&lacks);
    str_free(&all);
    return ok || import_context(err, job->files[0]);
}
