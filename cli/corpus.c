/* corpus.c - the texts of a capture: documents with domains, tokenised, cut into windows */
#include "cli/corpus.h"

#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/ids.h"
#include "base/sha256.h"
#include "base/str.h"

/* A file to read. */
struct entry {
    const char *path, *domain;
    bool ids;
};

struct entries {
    struct entry *items; /* owned; texts are in the corpus's arena */
    int count;
};

static const char *keep(struct corpus *corpus, const char *text, size_t len) {
    return arena_text(&corpus->arena, text, len);
}

/* A file's name without its extension. */
static const char *stem(struct corpus *corpus, const char *path) {
    const char *name = file_name(path), *dot = strrchr(name, '.');
    return keep(corpus, name, dot && dot > name ? (size_t)(dot - name) : strlen(name));
}

static bool add_entry(struct entries *entries, const char *path, const char *domain, bool ids,
                      struct err *err) {
    struct entry *items = realloc(entries->items, ((size_t)entries->count + 1) * sizeof *items);
    if (!items || !path || !domain) {
        if (items) entries->items = items;
        return err_memory(err, "documents");
    }
    entries->items = items;
    items[entries->count++] = (struct entry){path, domain, ids};
    return true;
}

/* Names the domain of a file that is in the list; adds it when it is not. */
static bool name_file(struct entries *entries, const char *path, const char *domain,
                      struct err *err) {
    bool found = false;
    for (int i = 0; i < entries->count; i++)
        if (strcmp(entries->items[i].path, path) == 0) {
            entries->items[i].domain = domain;
            found = true;
        }
    return found || add_entry(entries, path, domain, false, err);
}

static int not_hidden(const struct dirent *item) { return item->d_name[0] != '.'; }

static bool name_folder(struct corpus *corpus, struct entries *entries, const char *folder,
                        const char *domain, struct err *err) {
    struct dirent **names = NULL;
    int n = scandir(folder, &names, not_hidden, alphasort);
    if (n < 0) return err_errno(err, folder, "cannot list");
    bool ok = true;
    int files = 0;
    for (int i = 0; i < n; i++) {
        struct str path = {0};
        file_join(&path, folder, names[i]->d_name);
        if (ok && (path.failed || !file_is_folder(str_text(&path)))) {
            ok = name_file(entries, arena_str(&corpus->arena, &path), domain, err);
            files++;
        }
        str_free(&path);
        free(names[i]);
    }
    free(names);
    return ok && (files || err_set(err, ERR_DATA, "%s: found no file in this folder", folder));
}

static bool list_entries(const struct corpus_request *request, struct corpus *corpus,
                         struct entries *entries, struct err *err) {
    bool ok = true;
    for (int i = 0; ok && i < request->texts->count; i++)
        ok = add_entry(entries, request->texts->items[i], stem(corpus, request->texts->items[i]),
                       false, err);
    for (int i = 0; ok && i < request->id_files->count; i++)
        ok = add_entry(entries, request->id_files->items[i],
                       stem(corpus, request->id_files->items[i]), true, err);
    for (int i = 0; ok && i < request->domains->count; i++) {
        const char *item = request->domains->items[i], *equals = strchr(item, '=');
        if (!equals || equals == item || !equals[1])
            return err_set(err, ERR_USAGE, "--domain: found '%.60s', expected NAME=FILE", item);
        const char *domain = keep(corpus, item, (size_t)(equals - item));
        if (!domain) return err_memory(err, "documents");
        ok = file_is_folder(equals + 1) ? name_folder(corpus, entries, equals + 1, domain, err)
                                        : name_file(entries, equals + 1, domain, err);
    }
    if (ok && !entries->count)
        return err_set(err, ERR_USAGE, "found no text, expected TEXT files, --ids or --domain");
    return ok;
}

/* ---- growing */

/* Appends a document of n ids, cut by max_tokens. */
static bool add_document(const struct corpus_request *request, struct corpus *corpus,
                         struct trace_document document, const int32_t *ids, int64_t n,
                         struct err *err) {
    if (request->max_tokens && n > request->max_tokens - corpus->tokens)
        n = request->max_tokens - corpus->tokens;
    int64_t total = corpus->tokens + n;
    int32_t *all = realloc(corpus->ids, (size_t)total * sizeof *all);
    if (!all) return err_memory(err, "tokens");
    corpus->ids = all;
    memcpy(all + corpus->tokens, ids, (size_t)n * sizeof *ids);
    struct trace_document *documents =
        realloc(corpus->documents, ((size_t)corpus->document_count + 1) * sizeof *documents);
    if (!documents) return err_memory(err, "documents");
    corpus->documents = documents;
    document.first_token = corpus->tokens;
    document.tokens = n;
    documents[corpus->document_count++] = document;
    corpus->tokens = total;
    return true;
}

static bool full(const struct corpus_request *request, const struct corpus *corpus) {
    return request->max_tokens && corpus->tokens >= request->max_tokens;
}

static const char *hash_of(struct corpus *corpus, const void *bytes, size_t len) {
    struct sha256 sha;
    char hex[65];
    sha256_init(&sha);
    sha256_add(&sha, bytes, len);
    sha256_hex(&sha, hex);
    return keep(corpus, hex, 64);
}

/* A tokenizer of another model may know more ids than the model does. */
static bool check_ids(const struct corpus_request *request, const struct entry *entry,
                      const int32_t *ids, int64_t n, struct err *err) {
    for (int64_t t = 0; t < n; t++)
        if (ids[t] < 0 || ids[t] >= request->vocab)
            return err_set(
                err, ERR_DATA,
                "%s: token %lld: found id %d, expected at most %d: the tokenizer does not "
                "belong to the model",
                entry->path, (long long)t, ids[t], request->vocab - 1);
    return true;
}

static bool read_text(const struct corpus_request *request, struct corpus *corpus,
                      const struct entry *entry, struct err *err) {
    struct file_map map;
    int32_t *ids = NULL;
    int64_t n = 0;
    if (!request->tokenizer)
        return err_set(err, ERR_DATA, "%s: needs a tokenizer: %s", entry->path,
                       request->no_tokenizer);
    if (!file_map(entry->path, &map, err)) return false;
    bool ok = map.size_bytes > 0 ||
              err_set(err, ERR_DATA, "%s: found an empty file, expected text", entry->path);
    ok = ok && (tokenizer_encode(request->tokenizer, (const char *)map.data, map.size_bytes,
                                 request->special, &ids, &n, err) ||
                err_context(err, "%s", entry->path));
    if (ok && n == 0) ok = err_set(err, ERR_DATA, "%s: found text of no token", entry->path);
    struct trace_document document = {
        .source = entry->path, .domain = entry->domain, .bytes = (int64_t)map.size_bytes};
    if (ok && !(document.sha256 = hash_of(corpus, map.data, map.size_bytes)))
        ok = err_memory(err, "documents");
    ok = ok && check_ids(request, entry, ids, n, err) &&
         add_document(request, corpus, document, ids, n, err);
    free(ids);
    file_unmap(&map);
    return ok;
}

/* ---- ids files */

/* One line: a document. */
static bool read_line(const struct corpus_request *request, struct corpus *corpus,
                      const struct entry *entry, const char *line, size_t len, int64_t number,
                      struct err *err) {
    int64_t n = 0;
    int32_t *ids = ids_parse(line, len, request->vocab, &n, err);
    if (!ids) return err_context(err, "%s: line %lld", entry->path, (long long)number);
    struct str source = {0};
    str_printf(&source, "%s:%lld", entry->path, (long long)number);
    struct trace_document document = {.source = arena_str(&corpus->arena, &source),
                                      .domain = entry->domain,
                                      .sha256 = hash_of(corpus, line, len)};
    str_free(&source);
    bool ok = (document.source && document.sha256) || err_memory(err, "documents");
    ok = ok && add_document(request, corpus, document, ids, n, err);
    free(ids);
    return ok;
}

static bool read_ids(const struct corpus_request *request, struct corpus *corpus,
                     const struct entry *entry, struct err *err) {
    size_t len;
    char *text = file_read(entry->path, (size_t)1 << 33, &len, err);
    if (!text) return false;
    bool ok =
        len > 0 || err_set(err, ERR_DATA, "%s: found an empty file, expected ids", entry->path);
    int64_t number = 0;
    for (char *line = text, *end = text + len; ok && line < end && !full(request, corpus);) {
        char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((newline ? newline : end) - line);
        ok = read_line(request, corpus, entry, line, length, ++number, err);
        line += length + 1;
    }
    free(text);
    return ok;
}

/* ---- windows */

static bool cut_windows(struct corpus *corpus, int64_t context, struct err *err) {
    int64_t most = corpus->document_count + corpus->tokens / context + 1;
    corpus->window_start = malloc((size_t)most * sizeof *corpus->window_start);
    corpus->positions = malloc((size_t)corpus->tokens * sizeof *corpus->positions);
    if (!corpus->window_start || !corpus->positions) return err_memory(err, "windows");
    for (int64_t d = 0; d < corpus->document_count; d++) {
        const struct trace_document *document = &corpus->documents[d];
        for (int64_t i = 0; i < document->tokens; i++) {
            int64_t t = document->first_token + i;
            if (i % context == 0) corpus->window_start[corpus->windows++] = t;
            corpus->positions[t] = (int32_t)(i % context);
        }
    }
    corpus->window_start[corpus->windows] = corpus->tokens;
    return true;
}

bool corpus_read(const struct corpus_request *request, struct corpus *corpus, struct err *err) {
    struct entries entries = {0};
    *corpus = (struct corpus){0};
    arena_init(&corpus->arena, "corpus");
    bool ok = list_entries(request, corpus, &entries, err);
    for (int i = 0; ok && i < entries.count; i++)
        ok = output_is_no_input(request->out, &entries.items[i].path, 1, err);
    for (int i = 0; ok && i < entries.count && !full(request, corpus); i++)
        ok = entries.items[i].ids ? read_ids(request, corpus, &entries.items[i], err)
                                  : read_text(request, corpus, &entries.items[i], err);
    free(entries.items);
    return ok && cut_windows(corpus, request->context_tokens, err);
}

void corpus_keep(struct corpus *corpus, int64_t first, int64_t last) {
    struct trace_document *documents = corpus->documents;
    int64_t begin = first < last ? documents[first].first_token : 0, windows = 0;
    int64_t end = first < last ? documents[last - 1].first_token + documents[last - 1].tokens : 0;
    memmove(documents, documents + first, (size_t)(last - first) * sizeof *documents);
    for (int64_t d = 0; d < last - first; d++) documents[d].first_token -= begin;
    memmove(corpus->ids, corpus->ids + begin, (size_t)(end - begin) * sizeof *corpus->ids);
    memmove(corpus->positions, corpus->positions + begin,
            (size_t)(end - begin) * sizeof *corpus->positions);
    for (int64_t w = 0; w < corpus->windows; w++)
        if (corpus->window_start[w] >= begin && corpus->window_start[w] < end)
            corpus->window_start[windows++] = corpus->window_start[w] - begin;
    corpus->window_start[windows] = end - begin;
    corpus->windows = windows;
    corpus->tokens = end - begin;
    corpus->document_count = last - first;
}

void corpus_free(struct corpus *corpus) {
    free(corpus->documents);
    free(corpus->ids);
    free(corpus->positions);
    free(corpus->window_start);
    arena_free(&corpus->arena);
}
