/* import_vllm.c - vLLM responses with routed experts: JSON, or one response a line
 *
 * Newer: choices[i].routed_experts = base64 of a .npy file [tokens, layers, k] (uint8, uint16 or
 * int32), from token routed_experts_prompt_start on. Its wrappers: {"data", "shape", "dtype",
 * "start"} (Dynamo), "nrlre1:DTYPE:SHAPE:BASE64" (NeMo-RL). Older: lists prompt_routed_experts
 * [prompt, layers, k] and routed_experts [generated, layers, k]. Token ids from prompt_token_ids
 * and choices[i].token_ids where the response has them. The last sampled token never ran: there is
 * one token less than in the text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "traces/import_build.h"
#include "traces/import_text.h"
#include "traces/importers.h"
#include "traces/npy.h"

bool import_vllm_recognise(const char *path) {
    static const char *const marks[] = {"\"routed_experts\"", "\"choices\"", NULL};
    return import_text_holds(path, "{", marks);
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
        if (!layer || !build_add(build, layer, 1, expert, NULL, err)) return false;
    }
    return number > 0 || err_set(err, ERR_FORMAT, "routed_experts: found a token without layers");
}

static bool add_lists(const struct json *list, struct build *build, int64_t *tokens,
                      struct err *err) {
    for (const struct json *t = json_first(list); t; t = json_next(t), (*tokens)++)
        if (!add_token(t, build, err)) return false;
    return true;
}

/* Three numbers "[a,b,c]", "a,b,c" or "axbxc". */
static bool read_shape(const char *text, int64_t shape[3]) {
    int n = 0;
    while (n < 3 && *(text += strspn(text, "[( ,x"))) {
        char *end;
        shape[n++] = strtoll(text, &end, 10);
        if (end == text) return false;
        text = end;
    }
    return n == 3 && !text[strspn(text, ")], ")];
}

/* base64 of a .npy, or of bare elements: "nrlre1:DTYPE:SHAPE:BASE64" (NeMo-RL). */
static bool add_text(const char *text, struct build *build, int64_t *tokens, struct err *err) {
    static const char mark[] = "nrlre1:";
    char dtype[16] = "", dims[64] = "";
    int at = 0;
    int64_t shape[3];
    bool bare = strncmp(text, mark, sizeof mark - 1) == 0;
    if (bare && (sscanf(text + sizeof mark - 1, "%15[^:]:%63[^:]:%n", dtype, dims, &at) != 2 ||
                 !at || !read_shape(dims, shape)))
        return err_set(err, ERR_FORMAT, "routed_experts: found no nrlre1:DTYPE:SHAPE:BASE64");
    size_t len;
    struct npy npy;
    unsigned char *bytes = import_base64(bare ? text + sizeof mark - 1 + at : text, &len, err);
    if (!bytes) return false;
    bool ok = (bare ? npy_bare(dtype, 3, shape, bytes, len, &npy, err)
                    : npy_parse(bytes, len, &npy, err)) &&
              build_add_array(build, &npy, err);
    if (ok) *tokens += npy.shape[0];
    free(bytes);
    return ok;
}

/* {"data": base64 of the elements, "shape": [3], "dtype": ...} (Dynamo). */
static bool add_object(const struct json *object, struct build *build, int64_t *tokens,
                       struct err *err) {
    const char *data = json_text(json_present(object, "data")), *dtype;
    int dims[3];
    size_t len;
    struct npy npy;
    if (!json_get_text(object, "dtype", "int32", &dtype, err)) return false;
    if (!data || import_json_ids(json_present(object, "shape"), 3, INT32_MAX, dims) != 3)
        return err_set(err, ERR_FORMAT, "routed_experts: found no data and shape [3]");
    unsigned char *bytes = import_base64(data, &len, err);
    if (!bytes) return false;
    bool ok = npy_bare(dtype, 3, (int64_t[]){dims[0], dims[1], dims[2]}, bytes, len, &npy, err) &&
              build_add_array(build, &npy, err);
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
    int64_t start;
    const char *text = json_text(routed);
    bool object = json_kind(routed) == JSON_OBJECT;
    if (!json_get_int(choice, "routed_experts_prompt_start", 0, INT32_MAX, 0, &start, err) ||
        (object && !json_get_int(routed, "start", 0, INT32_MAX, start, &start, err)))
        return false;
    bool ok = text     ? add_text(text, build, &tokens, err)
              : object ? add_object(routed, build, &tokens, err)
                       : (!prompt || add_lists(prompt, build, &tokens, err)) &&
                             add_lists(routed, build, &tokens, err);
    if (!ok) return false;
    int32_t *ids = response_ids(response, choice, start + tokens);
    for (int64_t t = 0; ok && t < tokens; t++)
        ok = build_token(build,
                         &(struct build_token){.source = t ? NULL : source,
                                               .domain = domain,
                                               .id = ids ? ids[start + t] : -1,
                                               .position = (int32_t)(start + t),
                                               .nll = (float)NAN},
                         err);
    free(ids);
    return ok;
}

/* Where the documents of a file go. */
struct target {
    struct build *build;
    const char *source, *domain;
};

static bool add_response(void *context, const struct json *response, struct err *err) {
    struct target *to = context;
    const struct json *choices = json_present(response, "choices");
    if (!choices || !json_first(choices))
        return err_set(err, ERR_FORMAT, "found no choices, expected a vLLM response");
    for (const struct json *c = json_first(choices); c; c = json_next(c))
        if (!add_choice(response, c, to->build, to->source, to->domain, err)) return false;
    return true;
}

static bool add_file(const char *path, const struct import_job *job, struct arena *arena,
                     struct build *build, struct err *err) {
    const char *domain = job->domain ? job->domain : import_stem(arena, path);
    struct target target = {build, file_name(path), domain};
    return import_json_each(path, add_response, &target, err);
}

bool import_vllm_open(const struct import_job *job, struct import_source *source, struct err *err) {
    struct build build = {0};
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++)
        ok = add_file(job->files[i], job, &source->arena, &build, err) ||
             import_context(err, job->files[i]);
    ok = ok && (build_finish(&build, job, source, "vllm", "router scores; weights", err) ||
                import_context(err, job->files[0]));
    build_free(&build);
    return ok;
}
