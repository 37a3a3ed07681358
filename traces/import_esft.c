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
#include "base/str.h"
#include "traces/import_build.h"
#include "traces/importers.h"
#include "traces/inflate.h"

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

/* One file: lines become tokens of `layer`; the first file also makes the documents. */
static bool read_text(struct build *build, struct build_layer *layer, const char *text,
                      const char *domain, const char *source, bool first, struct err *err) {
    size_t longest = strlen(text) / 2 + 2;
    struct line line = {malloc(longest * 4), malloc(longest * 4), 0};
    bool ok = (line.expert && line.weight) || err_memory(err, "line");
    int64_t number = 0;
    for (const char *at = text; ok && *at; number++) {
        const char *end = strchr(at, '\n');
        if (!end) end = at + strlen(at);
        const char *stop = end > at && end[-1] == '\r' ? end - 1 : end;
        if (stop > at && (!parse_line(at, stop, &line) || line.n % layer->topk))
            ok =
                err_set(err, ERR_FORMAT,
                        "line %lld: found no list of ids, empty field, list of as many weights (%d "
                        "for each token)",
                        (long long)number + 1, layer->topk);
        int64_t tokens = line.n / layer->topk;
        if (ok && stop > at)
            ok = build_add(layer, tokens, line.expert, line.weight, err) &&
                 (!first || build_document(build, source, domain, tokens, NULL, err));
        at = *end ? end + 1 : end;
    }
    free(line.expert);
    free(line.weight);
    return ok;
}

static bool read_file(const struct import_job *job, int i, int topk, struct build *build,
                      const char *domain, struct err *err) {
    size_t len;
    int number = layer_of(job->files[i]);
    if (number < 0)
        return err_set(err, ERR_FORMAT, "found another name, expected expert_weights_LAYER.txt");
    struct build_layer *layer = build_layer(build, number, topk, err);
    if (!layer) return false;
    if (layer->tokens) return err_set(err, ERR_DATA, "layer %d: found twice", number);
    char *text = inflate_file(job->files[i], (size_t)1 << 34, &len, err);
    if (!text) return false;
    bool ok = strlen(text) == len || err_set(err, ERR_FORMAT, "found a NUL byte, expected text");
    ok = ok && read_text(build, layer, text, domain, job->files[0], i == 0, err);
    free(text);
    return ok;
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
        ok =
            read_file(job, i, gate.topk, &build, domain, err) || import_context(err, job->files[i]);
    ok = ok && (build_finish(&build, job, source, "esft", "router scores", err) ||
                import_context(err, job->files[0]));
    build_free(&build);
    return ok;
}
