/* import_sglang.c - SGLang responses with routed experts: JSON, or one response a line
 *
 * meta_info.routed_experts (or sgl_ext.routed_experts, of the response or of a choice) = base64 of
 * little-endian i32, [tokens, layers, k] in C order, dense layers included as zeros. The shape is
 * not carried: k is that of --gate; tokens follow from meta_info's prompt_tokens and
 * completion_tokens (or usage) - the last sampled token never ran, and the first
 * routed_experts_start_len are left out - or from --layers. Both known: they must agree. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "traces/import_build.h"
#include "traces/import_text.h"
#include "traces/importers.h"

bool import_sglang_recognise(const char *path) {
    static const char *const meta[] = {"\"routed_experts\"", "\"meta_info\"", NULL};
    static const char *const extension[] = {"\"routed_experts\"", "\"sgl_ext\"", NULL};
    return import_text_holds(path, "{[", meta) || import_text_holds(path, "{[", extension);
}

struct target {
    struct build *build;
    const struct import_job *job;
    const char *source, *domain;
    int topk;
};

/* Tokens that the server counted, without those of start_len; -1 when it does not say. */
static bool count_tokens(const struct json *response, const struct json *meta, int64_t *start,
                         int64_t *tokens, struct err *err) {
    const struct json *usage = json_present(response, "usage");
    const struct json *from = json_present(meta, "prompt_tokens") ? meta : usage;
    int64_t prompt = -1, completion = -1;
    *tokens = -1;
    if (!json_get_int(meta, "routed_experts_start_len", 0, INT32_MAX, 0, start, err)) return false;
    if (from && (!json_get_int(from, "prompt_tokens", 0, INT32_MAX, -1, &prompt, err) ||
                 !json_get_int(from, "completion_tokens", 0, INT32_MAX, -1, &completion, err)))
        return false;
    if (prompt >= 0 && completion >= 0) *tokens = prompt + completion - 1 - *start;
    return true;
}

static bool find_shape(const struct target *to, int64_t values, int64_t tokens, int64_t shape[3],
                       struct err *err) {
    int64_t layers = to->job->layers;
    if (!layers && tokens < 1)
        return err_set(err, ERR_USAGE,
                       "routed_experts: found neither prompt_tokens and completion_tokens nor "
                       "--layers: its shape is not known");
    if (!layers) layers = values / to->topk / tokens;
    if (layers < 1 || values % (layers * to->topk))
        return err_set(err, ERR_DATA, "routed_experts: found %lld values, expected %d x layers%s",
                       (long long)values, to->topk,
                       tokens < 1 ? "" : " x (prompt_tokens + completion_tokens - 1)");
    shape[0] = values / layers / to->topk;
    shape[1] = layers;
    shape[2] = to->topk;
    if (tokens < 1 || shape[0] == tokens) return true;
    return err_set(err, ERR_DATA,
                   "routed_experts: found %lld values = %lld tokens x %lld layers x %d, expected "
                   "%lld tokens",
                   (long long)values, (long long)shape[0], (long long)layers, to->topk,
                   (long long)tokens);
}

static int32_t list_id(const struct json **next) {
    if (!*next) return -1;
    double id = json_number(*next);
    *next = json_next(*next);
    return id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
}

/* Ids of the prompt and of what was sampled, where the response has them. */
static bool add_document(struct target *to, const struct json *response, int64_t start,
                         int64_t tokens, struct err *err) {
    const struct json *prompt = json_present(response, "prompt_token_ids");
    const struct json *output = json_present(response, "output_ids");
    if (!prompt) prompt = json_present(response, "input_ids");
    const struct json *p = prompt ? json_first(prompt) : NULL;
    const struct json *o = prompt && output ? json_first(output) : NULL;
    for (int64_t t = 0; t < start; t++) list_id(p ? &p : &o);
    for (int64_t t = 0; t < tokens; t++) {
        const struct build_token token = {.source = t ? NULL : to->source,
                                          .domain = to->domain,
                                          .id = list_id(p ? &p : &o),
                                          .position = (int32_t)(start + t),
                                          .nll = (float)NAN};
        if (!build_token(to->build, &token, err)) return false;
    }
    return true;
}

/* One holder of routed_experts. */
static bool add_routed(struct target *to, const struct json *response, const struct json *meta,
                       struct err *err) {
    const char *text = json_text(json_present(meta, "routed_experts"));
    int64_t start, tokens, shape[3];
    size_t len;
    struct npy array;
    if (!text) return err_set(err, ERR_FORMAT, "routed_experts: found no base64 text");
    if (!count_tokens(response, meta, &start, &tokens, err)) return false;
    unsigned char *bytes = import_base64(text, &len, err);
    if (!bytes) return false;
    bool ok =
        len % 4 == 0 || err_set(err, ERR_FORMAT, "routed_experts: found %zu bytes of i32", len);
    ok = ok && find_shape(to, (int64_t)(len / 4), tokens, shape, err) &&
         npy_bare("int32", 3, shape, bytes, len, &array, err) &&
         build_add_array(to->build, &array, err) &&
         add_document(to, response, start, shape[0], err);
    free(bytes);
    return ok;
}

/* meta_info or sgl_ext of a response or choice, when it holds routed_experts. */
static const struct json *holder(const struct json *value) {
    static const char *const names[] = {"meta_info", "sgl_ext"};
    for (int i = 0; i < 2; i++) {
        const struct json *found = json_present(value, names[i]);
        if (found && json_present(found, "routed_experts")) return found;
    }
    return NULL;
}

static bool add_response(void *context, const struct json *response, struct err *err) {
    struct target *to = context;
    if (json_kind(response) == JSON_ARRAY) { /* of a batch request */
        for (const struct json *r = json_first(response); r; r = json_next(r))
            if (!add_response(to, r, err)) return false;
        return true;
    }
    const struct json *meta = holder(response), *choices = json_present(response, "choices");
    if (meta) return add_routed(to, response, meta, err);
    int found = 0;
    for (const struct json *c = choices ? json_first(choices) : NULL; c; c = json_next(c)) {
        if (!(meta = holder(c))) continue;
        if (!add_routed(to, response, meta, err)) return false;
        found++;
    }
    return found > 0 || err_set(err, ERR_FORMAT,
                                "found no meta_info or sgl_ext with "
                                "routed_experts, expected an SGLang response");
}

bool import_sglang_open(const struct import_job *job, struct import_source *source,
                        struct err *err) {
    struct build build = {0};
    struct gate gate = {0};
    if (!job->gate)
        return err_set(err, ERR_USAGE, "%s: does not say how many experts a token has: give --gate",
                       job->files[0]);
    if (!gate_parse(job->gate, NULL, &gate, err)) return err_context(err, "--gate");
    bool ok = true;
    for (int i = 0; ok && i < job->file_count; i++) {
        const char *path = job->files[i];
        const char *domain = job->domain ? job->domain : import_stem(&source->arena, path);
        struct target target = {&build, job, file_name(path), domain, gate.topk};
        ok = import_json_each(path, add_response, &target, err) || import_context(err, path);
    }
    ok = ok && (build_finish(&build, job, source, "sglang", "router scores; weights", err) ||
                import_context(err, job->files[0]));
    build_free(&build);
    return ok;
}
