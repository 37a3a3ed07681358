/* import_esft.c - DeepSeek's ESFT expert scores: expert_weights_L.txt, plain or gzip, one file a
 * layer
 *
 * One line is one sequence of N tokens: k*N expert ids, an empty field, k*N weights, all separated
 * by tabs; token t has ids[k*t .. k*t+k-1]. Weights are softmax probabilities of the chosen, not
 * renormalised. k is 6 (DeepSeek-V2-Lite) unless --gate says otherwise. Every file must hold the
 * same lines. Layout: deepseek-ai/ESFT, scripts/expert/get_expert_scores.py. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/lines.h"
#include "traces/import_build.h"
#include "traces/importers.h"

enum { ESFT_TOPK = 6 };

static const char prefix[] = "expert_weights_";

/* Layer number of a path; -1 when the name has another form. */
static int layer_of(const char *path) {
    const char *name = strstr(file_name(path), prefix);
    if (!name || name[sizeof prefix - 1] < '0' || name[sizeof prefix - 1] > '9') return -1;
    long layer = strtol(name + sizeof prefix - 1, NULL, 10);
    return layer <= 100000 ? (int)layer : -1;
}

bool import_esft_recognise(const char *path) { return layer_of(path) >= 0; }

struct line {
    int32_t *expert; /* [n] */
    float *weight;   /* [n] */
    size_t cap;
    int64_t n;
};

/* Reads the next number; *at moves behind it and one tab. */
static bool next_number(const char **at, const char *end, double *value) {
    char *stop;
    if (*at >= end || **at == '\t') return false;
    *value = strtod(*at, &stop);
    if (stop == *at || stop > end || (stop < end && *stop != '\t')) return false;
    *at = stop < end ? stop + 1 : stop;
    return true;
}

static bool parse_line(const char *begin, const char *end, struct line *line) {
    const char *at = begin, *gap = strstr(begin, "\t\t");
    double value;
    int64_t n = 0;
    if (!gap || gap >= end) return false;
    while (at <= gap && next_number(&at, gap, &value)) {
        if (!(value >= 0 && value < GATE_MAX_EXPERTS) || value != (double)(int32_t)value)
            return false;
        line->expert[n++] = (int32_t)value;
    }
    if (at != gap) return false;
    line->n = n;
    at = gap + 2;
    for (n = 0; n < line->n && next_number(&at, end, &value); n++) line->weight[n] = (float)value;
    return n == line->n && at >= end;
}

/* Room for the numbers of a line: each takes two bytes at least. */
static bool reserve(struct line *line, size_t len, struct err *err) {
    size_t need = len / 2 + 2;
    if (need <= line->cap) return true;
    line->cap = 2 * need;
    free(line->expert);
    free(line->weight);
    line->expert = malloc(line->cap * 4);
    line->weight = malloc(line->cap * 4);
    return (line->expert && line->weight) || err_memory(err, "line");
}

/* What a file adds to. */
struct target {
    struct build *build;
    int layer, topk;
    const char *source, *domain;
    bool first; /* the first file also makes the documents */
};

/* One line becomes tokens of the layer. */
static bool add_line(const struct target *to, const char *text, size_t len, struct line *line,
                     struct err *err) {
    if (strlen(text) != len) return err_set(err, ERR_FORMAT, "found a NUL byte, expected text");
    if (!reserve(line, len, err)) return false;
    if (!parse_line(text, text + len, line) || line->n % to->topk)
        return err_set(err, ERR_FORMAT,
                       "found no list of ids, empty field, list of as many weights (%d for each "
                       "token)",
                       to->topk);
    int64_t tokens = line->n / to->topk;
    struct build_layer *layer = build_layer(to->build, to->layer, to->topk, err);
    return layer && build_add(to->build, layer, tokens, line->expert, line->weight, err) &&
           (!to->first || build_document(to->build, to->source, to->domain, tokens, NULL, err));
}

static bool read_file(const struct target *to, const char *path, struct err *err) {
    struct lines *lines = lines_open(path, err);
    struct line line = {0};
    char *text;
    size_t len;
    bool ok = lines != NULL;
    while (ok && (ok = lines_next(lines, &text, &len, err)) && text)
        ok = !len || add_line(to, text, len, &line, err) ||
             err_context(err, "line %lld", (long long)lines_number(lines));
    lines_close(lines);
    free(line.expert);
    free(line.weight);
    return ok;
}

static bool add_file(const struct import_job *job, int i, int topk, struct build *build,
                     const char *domain, struct err *err) {
    struct target to = {build, layer_of(job->files[i]), topk, job->files[0], domain, i == 0};
    if (to.layer < 0)
        return err_set(err, ERR_FORMAT, "found another name, expected expert_weights_LAYER.txt");
    const struct build_layer *layer = build_layer(build, to.layer, topk, err);
    if (!layer) return false;
    if (layer->tokens) return err_set(err, ERR_DATA, "layer %d: found twice", to.layer);
    return read_file(&to, job->files[i], err);
}

/* Name of the folder that holds the file: ESFT keeps one folder for each domain. */
static const char *folder_name(struct arena *arena, const char *path) {
    const char *name = file_name(path);
    if (name - path < 2) return arena_text(arena, "esft", 4);
    const char *end = name - 1, *begin = end;
    while (begin > path && begin[-1] != '/') begin--;
    return arena_text(arena, begin, (size_t)(end - begin));
}

bool import_esft_open(const struct import_job *job, struct import_source *source, struct err *err) {
    struct build build = {0};
    struct gate gate = {.topk = ESFT_TOPK};
    const char *domain = job->domain ? job->domain : folder_name(&source->arena, job->files[0]);
    if (!domain) return err_memory(err, "domain");
    if (job->gate && !gate_parse(job->gate, NULL, &gate, err)) return err_context(err, "--gate");
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++)
        ok = add_file(job, i, gate.topk, &build, domain, err) || import_context(err, job->files[i]);
    ok = ok && (build_finish(&build, job, source, "esft", "router scores", err) ||
                import_context(err, job->files[0]));
    build_free(&build);
    return ok;
}
