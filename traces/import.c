/* import.c - the table of importers, and what they have in common: passes, commit, rename */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "traces/exchange.h"
#include "traces/importers.h"

/* All layers of STEP tokens before the next ones: sources that hold tokens outermost are read once,
 * from the cache, and chunks are inserted by rising number. */
enum { IMPORT_PASS_TOKENS = 16384, STEP_TOKENS = 256 };

const struct trace_importer trace_importers[] = {
    {"safetensors", "interchange form: router logits, or chosen ids and weights",
     "steelyard export", import_safetensors_recognise, import_safetensors_open},
    {"csv", "tables by their columns: layer,token,rank,expert..; layer,expert,count; layer,expert",
     "steelyard export, SGLang (older), llama.cpp", import_csv_recognise, import_csv_open},
    {"trtllm", "rankR.safetensors (counts), rankR_raw.safetensors (chosen ids), meta_info.json",
     "TensorRT-LLM", import_trtllm_recognise, import_trtllm_open},
    {"esft", "expert_weights_L.txt[.gz], one file a layer: chosen ids and weights",
     "deepseek-ai/ESFT", import_esft_recognise, import_esft_open},
    {"numpy",
     ".npy, .npz: chosen ids [tokens,layers,k]; with --gate logits [tokens,E] a layer, shares",
     "vLLM, SGLang, transformers, moe-balance", import_numpy_recognise, import_numpy_open},
    {"sglang", "JSON responses with meta_info.routed_experts in base64 (--gate): chosen ids",
     "SGLang", import_sglang_recognise, import_sglang_open},
    {"vllm", "JSON responses with routed_experts, base64 or lists: chosen ids", "vLLM",
     import_vllm_recognise, import_vllm_open},
    {"megatron", "router_trace_rankR.jsonl with logits_rankR.bin: logits (--gate), or chosen ids",
     "Megatron-LM", import_megatron_recognise, import_megatron_open},
    {"torch", ".pt: SGLang recorder (ids or counts), or tensors of router logits (--gate)",
     "SGLang, transformers", import_torch_recognise, import_torch_open},
    {"imatrix", "GGUF importance matrices: counts (--gate where k cannot be derived)", "llama.cpp",
     import_imatrix_recognise, import_imatrix_open},
    {"bigmoe", "route_trace v1 CSV: chosen ids and weights", "BigMoeOnEdge",
     import_bigmoe_recognise, import_bigmoe_open},
    {"moe-balance", "JSON lines with topk_experts, one layer of a batch a line: chosen ids",
     "moe-balance", import_moebalance_recognise, import_moebalance_open},
    {"eplb", "JSON dumps of expert loads with physical_to_logical_map: counts", "vLLM, llm-d",
     import_eplb_recognise, import_eplb_open},
    {"olmoe", "JSON lines with exp_ids: chosen ids; pickled counters: counts (--gate)",
     "allenai/OLMoE", import_olmoe_recognise, import_olmoe_open},
    {"routed",
     "JSON of studies: selections, router_data (ids, weights); routed (--gate), tallies (counts)",
     "stratamoe-lab, gpt-oss fingerprints, experts4bit-qlora, MGSM study", import_routed_recognise,
     import_routed_open},
    {0}};

const struct trace_importer *trace_importer_find(const char *name, const char *path,
                                                 struct err *err) {
    bool detect = strcmp(name, "auto") == 0;
    struct str known = {0};
    for (const struct trace_importer *i = trace_importers; i->name; i++) {
        if (detect ? i->recognise(path) : strcmp(i->name, name) == 0) {
            str_free(&known);
            return i;
        }
        str_printf(&known, " %s", i->name);
    }
    if (detect)
        err_set(err, ERR_UNSUPPORTED, "%s: format: not recognised, give --from one of:%s", path,
                str_text(&known));
    else
        err_set(err, ERR_USAGE, "--from: found '%.40s', expected auto or one of:%s", name,
                str_text(&known));
    str_free(&known);
    return NULL;
}

/* Positions of tokens first.. when the source has none: from each document's start. */
static void count_positions(const struct trace *trace, int64_t first, int64_t n, int32_t *out) {
    int64_t document = trace_document_of(trace, first);
    for (int64_t t = 0; t < n; t++) {
        const struct trace_document *d = trace_document(trace, document);
        while (first + t >= d->first_token + d->tokens) d = trace_document(trace, ++document);
        out[t] = (int32_t)(first + t - d->first_token);
    }
}

/* Tokens first..first+n-1 of the pass that begins at token `pass`, of one router. */
static bool import_step(struct trace *trace, struct import_source *source, int r, int64_t pass,
                        int64_t first, int64_t n, struct err *err) {
    for (int64_t done = first; done < first + n;) {
        struct trace_routes routes = {.r = r, .first = pass + done, .tokens = first + n - done};
        if (!source->routes(source, &routes, err)) return false;
        routes.first = done;
        if (!trace_pass_routes(trace, &routes, err)) return false;
        done += routes.tokens;
    }
    return true;
}

static bool import_pass(struct trace *trace, struct import_source *source, int64_t n,
                        int32_t *positions, struct err *err) {
    int64_t first = trace_tokens(trace);
    if (!source->positions) count_positions(trace, first, n, positions);
    const struct trace_pass pass = {.tokens = n,
                                    .id = source->ids ? source->ids + first : NULL,
                                    .position =
                                        source->positions ? source->positions + first : positions};
    bool ok = trace_pass_begin(trace, &pass, err);
    if (ok && source->nll) ok = trace_pass_nll(trace, 0, n, source->nll + first, err);
    for (int64_t t = 0; ok && t < n; t += STEP_TOKENS)
        for (int r = 0; ok && r < trace_layers(trace); r++)
            ok = trace_layer(trace, r)->holds == TRACE_COUNTS ||
                 import_step(trace, source, r, first, t, n - t < STEP_TOKENS ? n - t : STEP_TOKENS,
                             err);
    return ok && trace_pass_commit(trace, err);
}

static bool import_tokens(struct trace *trace, struct import_source *source,
                          const struct progress *progress, struct err *err) {
    int64_t total = trace_tokens_total(trace);
    int32_t *positions = malloc(IMPORT_PASS_TOKENS * sizeof *positions);
    bool ok = positions || err_memory(err, "import");
    while (ok && trace_tokens(trace) < total) {
        int64_t left = total - trace_tokens(trace);
        ok = import_pass(trace, source, left < IMPORT_PASS_TOKENS ? left : IMPORT_PASS_TOKENS,
                         positions, err);
        if (ok && !progress_report(progress, "tokens", trace_tokens(trace), total, "tokens"))
            ok = err_set(err, ERR_CANCELLED, "interrupted");
    }
    free(positions);
    return ok;
}

static bool import_counts(struct trace *trace, struct import_source *source, struct err *err) {
    bool ok = true;
    for (int r = 0; ok && r < trace_layers(trace); r++) {
        if (trace_layer(trace, r)->holds != TRACE_COUNTS) continue;
        int64_t *counts = calloc((size_t)trace_layer(trace, r)->experts, sizeof *counts);
        ok = counts || err_memory(err, "counts");
        for (int64_t d = 0; ok && d < trace_documents(trace); d++) {
            memset(counts, 0, (size_t)trace_layer(trace, r)->experts * sizeof *counts);
            ok = source->counts(source, r, d, counts, err) &&
                 trace_add_counts(trace, r, d, counts, err);
        }
        free(counts);
    }
    return ok;
}

/* Into `temporary`, which is then whole. */
static bool write_trace(const char *temporary, struct import_source *source,
                        const struct progress *progress, struct err *err) {
    struct trace *trace = trace_create(temporary, &source->setup, TRACE_WHOLE, err);
    if (!trace) return false;
    bool ok = (!source->routes || import_tokens(trace, source, progress, err)) &&
              (!source->counts || import_counts(trace, source, err));
    struct err later = {0};
    bool closed = trace_close(trace, !ok && !source->counts, ok ? err : &later);
    if (!ok || !closed) unlink(temporary);
    return ok && closed;
}

/* Messages name the file that the user gave: for bad values the input, else the output. */
static void name_file(struct err *err, const char *temporary, const struct import_job *job) {
    size_t length = strlen(temporary);
    if (strncmp(err->text, temporary, length) != 0) return;
    struct err inner = *err;
    err_set(err, inner.code, "%s%s", inner.code == ERR_DATA ? job->files[0] : job->out,
            inner.text + length);
}

bool trace_import(const struct trace_importer *importer, const struct import_job *job,
                  struct err *err) {
    struct import_source source = {0};
    struct str temporary = {0};
    if (!job->force && file_exists(job->out))
        return err_set(err, ERR_EXISTS, "%s: exists already (--force replaces it)", job->out);
    arena_init(&source.arena, "import");
    str_printf(&temporary, "%s.partial", job->out);
    bool ok = importer->open(job, &source, err) &&
              (!temporary.failed || err_memory(err, job->out)) &&
              write_trace(str_text(&temporary), &source, job->progress, err);
    if (!ok) name_file(err, str_text(&temporary), job);
    if (ok && rename(str_text(&temporary), job->out) != 0) {
        ok = err_errno(err, job->out, "cannot write");
        unlink(str_text(&temporary));
    }
    if (source.close) source.close(&source);
    arena_free(&source.arena);
    str_free(&temporary);
    return ok;
}

/* ---- helpers of importers */

struct trace_capture import_capture(const char *importer, const char *model) {
    return (struct trace_capture){.model = model,
                                  .family = "",
                                  .model_id = "",
                                  .config = "",
                                  .source = importer,
                                  .compute = "",
                                  .kernels = "",
                                  .store = TRACE_F32,
                                  .options = "",
                                  .lacks = "",
                                  .vocabulary = ""};
}

bool import_context(struct err *err, const char *path) {
    return strncmp(err->text, path, strlen(path)) != 0 && err_context(err, "%s", path);
}

const char *import_stem(struct arena *arena, const char *path) {
    const char *name = file_name(path);
    size_t n = strlen(name);
    if (n > 3 && strcmp(name + n - 3, ".gz") == 0) n -= 3;
    for (size_t i = n; i-- > 1;)
        if (name[i] == '.') return arena_text(arena, name, i);
    return arena_text(arena, name, n);
}

bool import_gate(const struct import_job *job, struct trace_layer *layer, struct err *err) {
    if (!job->gate) return true;
    if (!gate_parse(job->gate, NULL, &layer->gate, err) ||
        !gate_check_native(&layer->gate, layer->experts, !layer->gate.bias, err))
        return err_context(err, "--gate");
    return layer->gate.topk == layer->topk ||
           err_set(err, ERR_DATA, "layer %d: found %d experts a token, expected %d of --gate",
                   layer->layer, layer->topk, layer->gate.topk);
}
