/* import_vllm.c - vLLM responses with routed experts: JSON, or one response a line
 *
 * Newer: choices[i].routed_experts = base64 of a .npy file [tokens, layers, k] (uint8, uint16 or
 * int32). Older: lists prompt_routed_experts [prompt, layers, k] and routed_experts [generated,
 * layers, k]. Token ids from prompt_token_ids and choices[i].token_ids where the response has them.
 * The last sampled token never ran: there is one token less than in the text. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "traces/import_build.h"
#include "traces/importers.h"
#include "traces/inflate.h"
#include "traces/npy.h"

bool import_vllm_recognise(const char *path) {
    struct err ignored;
    struct file_map map;
    if (!file_map(path, &map, &ignored)) return false;
    size_t n = map.size_bytes < 1 << 20 ? map.size_bytes : 1 << 20;
    bool found = n && map.data[0] == '{' && memmem(map.data, n, "\"routed_experts\"", 16) &&
                 memmem(map.data, n, "\"choices\"", 9);
    file_unmap(&map);
    return found;
}

static int sextet(char c) {
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(alphabet, c) : NULL;
    return at ? (int)(at - alphabet) : -1;
}

/* Returns owned; NULL with err set. */
static unsigned char *decode_base64(const char *text, size_t *len, struct err *err) {
    size_t n = strlen(text);
    unsigned char *bytes = malloc(n / 4 * 3 + 4);
    uint32_t bits = 0;
    int have = 0;
    *len = 0;
    if (!bytes) {
        err_memory(err, "base64");
        return NULL;
    }
    while (n && text[n - 1] == '=') n--;
    for (size_t i = 0; i < n; i++) {
        int value = sextet(text[i]);
        if (value < 0) {
            free(bytes);
            err_set(err, ERR_FORMAT, "base64: found '%c' at %zu", text[i], i);
            return NULL;
        }
        bits = bits << 6 | (uint32_t)value;
        if ((have += 6) >= 8) bytes[(*len)++] = (unsigned char)(bits >> (have -= 8));
    }
    return bytes;
}

/* One token: list of layers of lists of ids. */
static bool add_token(const struct json *token, struct build *build, struct err *err) {
    int number = 0;
    for (const struct json *l = json_first(token); l; l = json_next(l), number++) {
        int32_t expert[GATE_MAX_TOPK];
        int k = 0;
        for (const struct json *e = json_first(l); e; e = json_next(e)) {
            double id = json_number(e);
            if (k == GATE_MAX_TOPK || !(id >= -1 && id < GATE_MAX_EXPERTS))
                return err_set(err, ERR_FORMAT, "routed_experts: found no list of expert ids");
            expert[k++] = (int32_t)id;
        }
        struct build_layer *layer = build_layer(build, number, k, err);
        if (!layer || !build_add(layer, 1, expert, NULL, err)) return false;
    }
    return number > 0 || err_set(err, ERR_FORMAT, "routed_experts: found a token without layers");
}

static bool add_lists(const struct json *list, struct build *build, int64_t *tokens,
                      struct err *err) {
    for (const struct json *t = json_first(list); t; t = json_next(t), (*tokens)++)
        if (!add_token(t, build, err)) return false;
    return true;
}

static bool add_npy(const char *text, struct build *build, int64_t *tokens, struct err *err) {
    size_t len;
    struct npy npy;
    unsigned char *bytes = decode_base64(text, &len, err);
    if (!bytes) return false;
    bool ok = npy_parse(bytes, len, &npy, err);
    if (ok &&
        (npy.rank != 3 || npy.kind == 'f' || npy.shape[2] < 1 || npy.shape[2] > GATE_MAX_TOPK))
        ok = err_set(err, ERR_FORMAT,
                     "routed_experts: found %d dimensions, expected [tokens, layers, k]", npy.rank);
    for (int64_t t = 0; ok && t < npy.shape[0]; t++)
        for (int64_t l = 0; ok && l < npy.shape[1]; l++) {
            int32_t expert[GATE_MAX_TOPK];
            npy_ids(&npy, (t * npy.shape[1] + l) * npy.shape[2], npy.shape[2], expert);
            struct build_layer *layer = build_layer(build, (int)l, (int)npy.shape[2], err);
            ok = layer && build_add(layer, 1, expert, NULL, err);
        }
    if (ok) *tokens += npy.shape[0];
    free(bytes);
    return ok;
}

/* Ids of prompt and output, when there are at least as many as routed tokens. Owned; NULL = none.
 */
static int32_t *response_ids(const struct json *response, const struct json *choice,
                             int64_t tokens) {
    const struct json *prompt = json_present(choice, "prompt_token_ids");
    if (!prompt) prompt = json_present(response, "prompt_token_ids");
    const struct json *parts[] = {prompt, json_present(choice, "token_ids")};
    int64_t n = 0, most = 0;
    for (int i = 0; i < 2; i++) most += parts[i] ? json_count(parts[i]) : 0;
    int32_t *ids = prompt && most >= tokens ? malloc(((size_t)most + 1) * sizeof *ids) : NULL;
    for (int i = 0; ids && i < 2; i++)
        for (const struct json *id = parts[i] ? json_first(parts[i]) : NULL; id;
             id = json_next(id)) {
            double value = json_number(id);
            ids[n++] = value >= 0 && value <= INT32_MAX ? (int32_t)value : -1;
        }
    return ids;
}

static bool add_choice(const struct json *response, const struct json *choice, struct build *build,
                       const char *source, const char *domain, struct err *err) {
    const struct json *routed = json_present(choice, "routed_experts");
    const struct json *prompt = json_present(choice, "prompt_routed_experts");
    int64_t tokens = 0;
    if (!prompt) prompt = json_present(response, "prompt_routed_experts");
    if (!routed) return err_set(err, ERR_FORMAT, "choices: found no routed_experts");
    const char *text = json_text(routed);
    bool ok = text ? add_npy(text, build, &tokens, err)
                   : (!prompt || add_lists(prompt, build, &tokens, err)) &&
                         add_lists(routed, build, &tokens, err);
    if (!ok) return false;
    int32_t *ids = response_ids(response, choice, tokens);
    ok = build_document(build, source, domain, tokens, ids, err);
    free(ids);
    return ok;
}

static bool add_response(const struct json *response, struct build *build, const char *source,
                         const char *domain, struct err *err) {
    const struct json *choices = json_present(response, "choices");
    if (!choices || !json_first(choices))
        return err_set(err, ERR_FORMAT, "found no choices, expected a vLLM response");
    for (const struct json *c = json_first(choices); c; c = json_next(c))
        if (!add_choice(response, c, build, source, domain, err)) return false;
    return true;
}

/* The whole file is one response, or every line is. */
static bool add_file(const struct import_job *job, int file, struct arena *arena,
                     struct build *build, struct err *err) {
    size_t len;
    const char *stem = import_stem(arena, job->files[file]), *source = file_name(job->files[file]);
    char *text = inflate_file(job->files[file], (size_t)1 << 34, &len, err);
    if (!text) return false;
    const char *domain = job->domain ? job->domain : stem;
    struct err whole = {0};
    struct json *doc = json_parse(text, len, &whole);
    bool ok = true;
    if (doc) ok = add_response(doc, build, source, domain, err);
    json_free(doc);
    int64_t number = 0;
    for (char *line = text, *end = text + len; !doc && ok && line < end;) {
        char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((newline ? newline : end) - line);
        number++;
        if (n > 1) {
            struct json *response = json_parse(line, n, err);
            ok = response && add_response(response, build, source, domain, err);
            json_free(response);
            if (!ok) err_context(err, "line %lld", (long long)number);
        }
        line += n + 1;
    }
    free(text);
    return ok;
}

bool import_vllm_open(const struct import_job *job, struct import_source *source, struct err *err) {
    struct build build = {0};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++)
        ok = add_file(job, i, &source->arena, &build, err) || import_context(err, job->files[i]);
    ok = ok && (build_finish(&build, job, source, "vllm", "router scores; weights", err) ||
                import_context(err, job->files[0]));
    build_free(&build);
    return ok;
}
