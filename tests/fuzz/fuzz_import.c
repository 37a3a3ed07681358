/* fuzz_import.c - the bytes are files of a format that import reads: refused with one line, or
 * everything that the source hands out lies in memory
 *
 * FUZZ_FORMAT=NAME takes one importer of the table, so that executions are counted for each format,
 * FUZZ_FORMAT=auto the recognition alone; without it every one gets the input. An input may begin
 * with a line !GATE (the --gate option; empty = none), then be one file, or several, each behind a
 * line @NAME (given to the importer) or &NAME (lies beside them). They exist in memory only.
 * Checksums of zip archives are put right first: a fuzzer does not find them, and they would hide
 * what lies behind. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/file.h"
#include "traces/exchange.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    char path[FILE_LAID_MOST][128];
    const char *given[FILE_LAID_MOST];
    uint8_t *fixed[FILE_LAID_MOST]; /* owned copies */
    int files, given_count;
    char gate[256];
};

static uint32_t little(const uint8_t *at, int bytes) {
    uint32_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
    return value;
}

/* Entries of a zip's directory whose member is stored, not deflated, get its checksum. */
static void fix_checksums(uint8_t *data, size_t size) {
    uint8_t *end = data + size, *entry = data;
    for (; (entry = memchr(entry, 'P', (size_t)(end - entry))) && end - entry >= 46; entry++) {
        if (little(entry, 4) != 0x02014b50 || little(entry + 10, 2)) continue;
        size_t n = little(entry + 20, 4), local = little(entry + 42, 4);
        if (local > size - 30) continue;
        size_t at = local + 30 + little(data + local + 26, 2) + little(data + local + 28, 2);
        if (at > size || n > size - at) continue;
        uint32_t crc = (uint32_t)crc32(crc32(0, NULL, 0), data + at, (uInt)n);
        for (int b = 0; b < 4; b++) entry[16 + b] = (uint8_t)(crc >> 8 * b);
    }
}

static void lay_file(struct input *input, const char *name, size_t len, bool given,
                     const uint8_t *data, size_t size) {
    uint8_t **fixed = &input->fixed[input->files];
    char *path = input->path[input->files++];
    snprintf(path, sizeof input->path[0], "fuzz/%.*s", (int)len, name);
    if (size > 4 && data[0] == 'P' && data[1] == 'K' && (*fixed = malloc(size))) {
        fix_checksums(memcpy(*fixed, data, size), size);
        data = *fixed;
    }
    file_lay(path, data, size);
    if (given) input->given[input->given_count++] = path;
}

/* Takes a line that begins with one of `marks`; false when there is none. */
static bool take_line(const uint8_t **at, const uint8_t *end, const char *marks, const char **line,
                      size_t *len) {
    if (*at == end || !**at || !strchr(marks, **at)) return false;
    const uint8_t *newline = memchr(*at, '\n', (size_t)(end - *at));
    if (!newline) return false;
    *line = (const char *)*at;
    *len = (size_t)(newline - *at);
    *at = newline + 1;
    return true;
}

static bool is_name(const char *name, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (!name[i] || name[i] == '/') return false;
    return len > 0 && len < 48 && name[0] != '.';
}

/* First byte of the next file's line; the end when there is none. */
static const uint8_t *next_file(const uint8_t *at, const uint8_t *end) {
    for (const uint8_t *c = at; c < end && (c = memchr(c, '\n', (size_t)(end - c))); c++)
        if (c + 1 < end && (c[1] == '@' || c[1] == '&')) return c + 1;
    return end;
}

static void unpack(struct input *input, const uint8_t *at, size_t size) {
    const uint8_t *end = at + size;
    const char *line;
    size_t len;
    strcpy(input->gate, "softmax,topk=3");
    if (take_line(&at, end, "!", &line, &len))
        snprintf(input->gate, sizeof input->gate, "%.*s", (int)len - 1, line + 1);
    if (at == end || (*at != '@' && *at != '&'))
        lay_file(input, "expert_weights_1.txt", 20, true, at, (size_t)(end - at));
    else
        while (input->files < FILE_LAID_MOST && take_line(&at, end, "@&", &line, &len)) {
            const uint8_t *stop = next_file(at, end);
            if (is_name(line + 1, len - 1))
                lay_file(input, line + 1, len - 1, *line == '@', at, (size_t)(stop - at));
            at = stop;
        }
}

static unsigned read_text(const char *text) { return text ? (unsigned)strlen(text) : 0; }

static unsigned drain_setup(const struct import_source *source, int64_t *tokens) {
    const struct trace_setup *setup = &source->setup;
    unsigned sum = read_text(setup->capture.model) + read_text(setup->capture.lacks);
    *tokens = 0;
    for (int64_t d = 0; d < setup->document_count; d++) {
        const struct trace_document *document = &setup->documents[d];
        if (document->first_token != *tokens || document->tokens < 0) abort();
        *tokens += document->tokens;
        sum +=
            read_text(document->source) + read_text(document->domain) + read_text(document->sha256);
    }
    for (int64_t t = 0; t < *tokens && source->routes; t++) {
        if (source->ids) sum += (unsigned)source->ids[t];
        if (source->positions) sum += (unsigned)source->positions[t];
        if (source->nll) sum += source->nll[t] > 0;
    }
    for (int r = 0; r < setup->layer_count; r++) {
        const struct trace_layer *layer = &setup->layers[r];
        if (layer->experts < 1 || layer->experts > GATE_MAX_EXPERTS || layer->topk < 1) abort();
        if (layer->has_gate && layer->gate.topk != layer->topk) abort();
        for (int e = 0; layer->bias && e < layer->experts; e++) sum += layer->bias[e] > 0;
    }
    return sum;
}

static unsigned drain_counts(struct import_source *source) {
    struct err err = {0};
    unsigned sum = 0;
    for (int r = 0; r < source->setup.layer_count; r++) {
        int experts = source->setup.layers[r].experts;
        int64_t *counts = calloc((size_t)experts, sizeof *counts);
        bool ok = counts && source->setup.layers[r].holds == TRACE_COUNTS;
        for (int64_t d = 0; ok && d < source->setup.document_count; d++) {
            ok = source->counts(source, r, d, counts, &err);
            for (int e = 0; ok && e < experts; e++) sum += counts[e] > 0;
        }
        free(counts);
    }
    return sum;
}

static unsigned drain_routes(struct import_source *source, int64_t tokens) {
    struct err err = {0};
    unsigned sum = 0;
    for (int r = 0; r < source->setup.layer_count; r++) {
        const struct trace_layer *layer = &source->setup.layers[r];
        if (layer->holds == TRACE_COUNTS) continue;
        for (int64_t t = 0; t < tokens;) {
            struct trace_routes routes = {.r = r, .first = t, .tokens = tokens - t};
            if (!source->routes(source, &routes, &err)) return sum;
            if (routes.tokens < 1 || routes.tokens > tokens - t) abort();
            for (int64_t i = 0; routes.logits && i < routes.tokens * layer->experts; i++)
                sum += routes.logits[i] > 0;
            for (int64_t i = 0; routes.expert && i < routes.tokens * layer->topk; i++)
                sum += (unsigned)routes.expert[i];
            for (int64_t i = 0; routes.weight && i < routes.tokens * layer->topk; i++)
                sum += routes.weight[i] > 0;
            t += routes.tokens;
        }
    }
    return sum;
}

static unsigned run(const struct trace_importer *importer, const struct input *input) {
    struct err err = {0};
    struct import_source source = {0};
    unsigned sum = 0;
    int64_t tokens;
    const struct import_job job = {.files = input->given,
                                   .file_count = input->given_count,
                                   .out = "x",
                                   .gate = *input->gate ? input->gate : NULL};
    arena_init(&source.arena, "fuzz");
    if (importer->open(&job, &source, &err)) {
        sum = drain_setup(&source, &tokens);
        if (source.routes) sum += drain_routes(&source, tokens);
        if (source.counts) sum += drain_counts(&source);
    } else if (!*err.text || strchr(err.text, '\n')) {
        abort();
    }
    if (source.close) source.close(&source);
    arena_free(&source.arena);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static volatile unsigned sink;
    static const char *only;
    if (!only && !(only = getenv("FUZZ_FORMAT"))) only = "";
    struct input input = {0};
    unpack(&input, data, size);
    for (const struct trace_importer *i = trace_importers; input.given_count && i->name; i++)
        if (!*only || strcmp(only, i->name) == 0) sink += run(i, &input);
    struct err err = {0};
    if (input.given_count && (!*only || strcmp(only, "auto") == 0))
        sink += trace_importer_find("auto", input.given[0], &err) != NULL;
    file_lay(NULL, NULL, 0);
    for (int i = 0; i < FILE_LAID_MOST; i++) free(input.fixed[i]);
    (void)sink;
    return 0;
}
