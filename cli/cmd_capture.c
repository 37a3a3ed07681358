/* cmd_capture.c - `steelyard capture`: run a model over texts and record every router score
 *
 * Joins the engine and the trace: passes of whole windows go through the engine, its callbacks
 * append to the store, each pass is one commit. The plan of passes follows from what the trace
 * records, so a resumed capture commits exactly what an uninterrupted one does. Several processes
 * (mpirun) capture a part of the documents each (parts.h). */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/str.h"
#include "base/table.h"
#include "base/threads.h"
#include "cli/closed_loop.h"
#include "cli/commands.h"
#include "cli/corpus.h"
#include "cli/model_id.h"
#include "cli/parts.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "engine/tokenizer.h"
#include "traces/query.h"
#include "traces/trace.h"

enum { DEFAULT_CONTEXT = 2048, DEFAULT_PASS = 8192 };

struct request {
    const char *model, *out, *compute, *store;
    struct text_list rest, texts, id_files, domains;
    int64_t max_tokens, context, threads, memory, pass_tokens;
    bool special, resume, force;
    struct closed_loop_words loop;
    struct output_choice choice;
};

/* Everything that is open during a capture. */
struct capture {
    const struct request *request;
    struct pool *pool;
    struct engine *engine;
    struct tokenizer *tokenizer; /* NULL when the model has none */
    struct corpus corpus;
    struct parts parts;
    struct trace_layer *layers;
    struct trace *trace;
    unsigned char *seen; /* [vocab] pieces that were given to the trace */
    struct trace_loop loop;
    struct str options, notes; /* of the trace; for the user */
    struct progress_line line;
    char model_id[65];
    char no_tokenizer[512];
    int64_t pass_first, pass_tokens, passes; /* of the pass that runs */
    int64_t started_at;                      /* tokens that were there before */
    double seconds;
    atomic_bool stop; /* another process has failed */
};

/* ---- before */

static bool open_tokenizer(struct capture *c, struct err *err) {
    struct err why = {0};
    (void)err;
    if (!(c->tokenizer = tokenizer_open(c->request->model, &why)))
        snprintf(c->no_tokenizer, sizeof c->no_tokenizer, "%s", why.text);
    return true;
}

static bool open_model(struct capture *c, struct err *err) {
    const struct request *request = c->request;
    int threads = processes_threads(processes_here(), (int)request->threads);
    if (!(c->pool = pool_create(threads, err))) return false;
    const struct engine_options options = {.pool = c->pool,
                                           .bf16 = strcmp(request->compute, "bf16") == 0,
                                           .memory_bytes = request->memory};
    if (!(c->engine = engine_open(request->model, &options, err))) return false;
    if (!engine_info(c->engine)->routers)
        return err_set(err, ERR_DATA, "%s: found no router, expected a Mixture-of-Experts model",
                       request->model);
    return model_id(request->model, c->model_id, err) && open_tokenizer(c, err);
}

/* Longest window: what the user wants, within what the model was made for. */
static bool choose_context(const struct capture *c, int64_t *context, struct err *err) {
    int64_t most = engine_info(c->engine)->max_positions, asked = c->request->context;
    if (asked && most > 0 && asked > most)
        return err_set(err, ERR_USAGE, "--context: found %lld, expected at most %lld (the model's)",
                       (long long)asked, (long long)most);
    *context = asked ? asked : DEFAULT_CONTEXT;
    if (!asked && most > 0 && most < *context) *context = most;
    return true;
}

static bool read_corpus(struct capture *c, int64_t context, struct err *err) {
    const struct request *request = c->request;
    const struct corpus_request wanted = {.texts = &request->texts,
                                          .id_files = &request->id_files,
                                          .domains = &request->domains,
                                          .tokenizer = c->tokenizer,
                                          .no_tokenizer = c->no_tokenizer,
                                          .special = request->special,
                                          .vocab = engine_info(c->engine)->vocab,
                                          .max_tokens = request->max_tokens,
                                          .context_tokens = context,
                                          .out = request->out};
    return corpus_read(&wanted, &c->corpus, err);
}

static bool describe_layers(struct capture *c, struct err *err) {
    const struct engine_info *info = engine_info(c->engine);
    c->layers = calloc((size_t)info->routers, sizeof *c->layers);
    if (!c->layers) return err_memory(err, "layers");
    for (int r = 0; r < info->routers; r++)
        c->layers[r] = (struct trace_layer){.layer = info->router[r].layer,
                                            .experts = info->router[r].experts,
                                            .topk = info->router[r].gate.topk,
                                            .holds = TRACE_SCORES,
                                            .has_gate = true,
                                            .gate = info->router[r].gate,
                                            .bias = info->router[r].bias,
                                            .table = info->router[r].table};
    return true;
}

static bool open_trace(struct capture *c, int64_t context, struct err *err) {
    const struct request *request = c->request;
    const struct engine_info *info = engine_info(c->engine);
    const struct kernels *kernels = kernels_select(NULL, err);
    enum trace_store store;
    if (!kernels || !describe_layers(c, err) || !trace_store_find(request->store, &store, err))
        return false;
    str_puts(&c->options, request->special ? "special" : "");
    if (c->options.len && c->loop.closed) str_puts(&c->options, " ");
    trace_loop_print(&c->loop, &c->options);
    if (c->options.failed) return err_memory(err, "options");
    const struct trace_setup setup = {
        .capture = {.model = info->name,
                    .family = info->family,
                    .model_id = c->model_id,
                    .config = info->config_json ? info->config_json : "",
                    .source = "capture",
                    .compute = request->compute,
                    .kernels = kernels_name(kernels),
                    .store = store,
                    .parameters = info->parameters,
                    .context_tokens = context,
                    .pass_tokens = request->pass_tokens,
                    .options = str_text(&c->options),
                    .lacks = "",
                    .vocabulary = c->tokenizer ? "tokenizer.json" : ""},
        .layers = c->layers,
        .layer_count = info->routers,
        .documents = c->corpus.documents,
        .document_count = c->corpus.document_count};
    enum trace_mode mode = request->force ? TRACE_FORCE : TRACE_NEW;
    bool alone = processes_alone(processes_here()), there = file_exists(c->parts.path);
    if (request->resume && (alone || there)) mode = TRACE_RESUME;
    c->trace = trace_create(c->parts.path, &setup, mode, err);
    c->seen = calloc((size_t)info->vocab + 1, 1);
    return c->trace && (c->seen || err_memory(err, "pieces")) &&
           closed_loop_resume(c->engine, &c->loop, c->trace, err);
}

/* ---- a pass */

static bool on_routes(void *context, int r, int64_t first, int64_t n, const float *logits,
                      const int32_t *expert, const float *weight, struct err *err) {
    struct capture *c = context;
    const struct trace_routes routes = {r, first, n, logits, expert, weight};
    return trace_pass_routes(c->trace, &routes, err);
}

static bool on_nll(void *context, int64_t first, int64_t n, const float *nll, struct err *err) {
    struct capture *c = context;
    return trace_pass_nll(c->trace, first, n, nll, err);
}

/* The engine counts work within the pass; people want tokens of the whole. */
static bool on_progress(void *context, const char *what, int64_t done, int64_t total,
                        const char *unit) {
    struct capture *c = context;
    (void)unit;
    double share = total > 0 ? (double)done / (double)total : 0;
    int64_t tokens = c->pass_first + (int64_t)(share * (double)c->pass_tokens);
    return progress_report(&c->line.progress, what, tokens, c->corpus.tokens, "tokens") &&
           !atomic_load(&c->stop);
}

static bool add_pieces(struct capture *c, struct err *err) {
    for (int64_t t = c->pass_first; c->tokenizer && t < c->pass_first + c->pass_tokens; t++) {
        int32_t id = c->corpus.ids[t];
        size_t len;
        if (c->seen[id]) continue;
        c->seen[id] = 1;
        const char *piece = tokenizer_piece(c->tokenizer, id, &len);
        if (piece && !trace_add_piece(c->trace, id, piece, len, err)) return false;
    }
    return true;
}

/* Runs windows first..last-1 as one pass and commits it. */
static bool run_pass(struct capture *c, int64_t first, int64_t last, struct err *err) {
    const struct corpus *corpus = &c->corpus;
    int64_t begin = corpus->window_start[first], n = corpus->window_start[last] - begin;
    int64_t *starts = malloc((size_t)(last - first + 1) * sizeof *starts);
    if (!starts) return err_memory(err, "windows");
    for (int64_t w = first; w <= last; w++) starts[w - first] = corpus->window_start[w] - begin;
    c->pass_first = begin;
    c->pass_tokens = n;
    const struct engine_pass pass = {n, corpus->ids + begin, starts, last - first, begin};
    const struct trace_pass stored = {n, corpus->ids + begin, corpus->positions + begin};
    const struct engine_sink sink = {.context = c, .routes = on_routes, .nll = on_nll};
    const struct progress progress = {on_progress, c};
    bool ok = trace_pass_begin(c->trace, &stored, err) && add_pieces(c, err) &&
              engine_run(c->engine, &pass, &sink, &progress, err) &&
              trace_pass_commit(c->trace, err);
    free(starts);
    return ok;
}

/* As many whole windows as fit into a pass; at least one. */
static int64_t pass_end(const struct capture *c, int64_t first) {
    const int64_t *start = c->corpus.window_start;
    int64_t last = first + 1;
    while (last < c->corpus.windows && start[last + 1] - start[first] <= c->request->pass_tokens)
        last++;
    return last;
}

static bool run_passes(struct capture *c, struct err *err) {
    c->started_at = trace_tokens(c->trace);
    c->line.base = c->started_at;
    for (int64_t w = 0, end; w < c->corpus.windows; w = end) {
        end = pass_end(c, w);
        if (c->corpus.window_start[w] < c->started_at) continue; /* there already */
        if (!run_pass(c, w, end, err)) return false;
        c->passes++;
    }
    return true;
}

/* ---- after */

static const struct table_column columns[] = {{"file", "", TABLE_TEXT},
                                              {"model", "", TABLE_TEXT},
                                              {"layers", "", TABLE_INT},
                                              {"documents", "", TABLE_INT},
                                              {"tokens", "", TABLE_INT},
                                              {"nll", "nats", TABLE_REAL},
                                              {"bits_per_byte", "bit", TABLE_REAL},
                                              {"seconds", "s", TABLE_REAL},
                                              {"tokens_per_s", "1/s", TABLE_REAL}};

static bool print_summary(const struct capture *c, struct err *err) {
    struct trace *trace = trace_open(c->request->out, err);
    struct table *nll = trace ? trace_query(trace, "capture_nll", NULL, 0, err) : NULL;
    struct table *table = nll ? table_create(columns, sizeof columns / sizeof *columns, err) : NULL;
    if (table) {
        double ran = (double)(trace_tokens(trace) - c->started_at);
        if (c->request->resume && !processes_alone(processes_here())) ran = NAN; /* not known */
        table_text(table, c->request->out);
        table_text(table, trace_capture(trace)->model);
        table_int(table, trace_layers(trace));
        table_int(table, trace_documents(trace));
        table_int(table, trace_tokens(trace));
        table_real(table, table_number(nll, 0, 1));
        table_real(table, table_number(nll, 0, 2));
        table_real(table, c->seconds);
        table_real(table, c->seconds > 0 ? ran / c->seconds : (double)NAN);
    }
    bool ok = table && table_ok(table, err) && output_table(table, c->request->choice, err);
    table_free(table);
    table_free(nll);
    trace_free(trace);
    return ok;
}

/* What was committed stays, and a resume finishes it; a new capture that got nowhere leaves no
 * file. */
static bool finish(struct capture *c, bool ok, struct err *err) {
    struct err later = {0};
    bool kept = c->trace && (trace_tokens(c->trace) > 0 || c->request->resume);
    bool closed = trace_close(c->trace, !c->request->resume, ok ? err : &later);
    c->trace = NULL;
    if (!ok && kept && err->code == ERR_CANCELLED)
        err_set(err, ERR_CANCELLED, "%s: interrupted; --resume goes on from here", c->request->out);
    return ok && closed;
}

/* With a bound: how often the weights had to be read. */
static void note_reading(struct capture *c) {
    if (c->request->memory == 0) return;
    str_printf(&c->notes, "--memory: read %lld bytes of weights in %lld pass%s\n",
               (long long)engine_read_bytes(c->engine), (long long)c->passes,
               c->passes == 1 ? "" : "es");
}

static void release(struct capture *c) {
    corpus_free(&c->corpus);
    parts_free(&c->parts);
    tokenizer_free(c->tokenizer);
    engine_close(c->engine);
    pool_free(c->pool);
    free(c->layers);
    free(c->seen);
    str_free(&c->options);
    str_free(&c->notes);
}

/* ---- the run, by one process or several */

static bool leads(void) { return processes_alone(processes_here()) || processes_here()->rank == 0; }

/* A bias that moves has one history, and a draw one number for each token. */
static bool check_divisible(const struct capture *c, struct err *err) {
    const struct processes *all = processes_here();
    if (processes_alone(all)) return true;
    if (closed_loop_draws(c->engine))
        return err_set(err, ERR_USAGE,
                       "--gate: found %d processes, expected one (noise and second=random draw by "
                       "the number of a token in the whole capture)",
                       all->size);
    if (!c->loop.rule) return true;
    return err_set(err, ERR_USAGE,
                   "--bias-rule %s: found %d processes, expected one (the bias moves with every "
                   "token before)",
                   c->loop.rule_name, all->size);
}

/* Do all processes see the same model, texts and options? */
static bool same_work(const struct capture *c, int64_t context, struct err *err) {
    const struct request *q = c->request;
    struct str work = {0};
    str_printf(&work, "%s %s %s %lld %lld", c->model_id, q->compute, q->store, (long long)context,
               (long long)q->pass_tokens);
    for (int64_t d = 0; d < c->corpus.document_count; d++)
        str_printf(&work, " %s %s %lld", c->corpus.documents[d].sha256,
                   c->corpus.documents[d].domain, (long long)c->corpus.documents[d].tokens);
    trace_loop_print(&c->loop, &work);
    bool ok = processes_same(processes_here(), str_text(&work), "model, texts and options", err);
    str_free(&work);
    return ok;
}

/* This process's part, if it has one. */
static bool compute(void *context, int64_t *where, struct err *err) {
    struct capture *c = context;
    const struct processes *all = processes_here();
    *where = leads() ? 0 : all->rank;
    if (!parts_mine(&c->parts) || run_passes(c, err)) return true;
    return leads() ? false : err_context(err, "process %d of %d", all->rank, all->size);
}

static void stop(void *context) {
    struct capture *c = context;
    atomic_store(&c->stop, true);
}

/* Collective: what fails in one process fails in all. */
static bool run_all(struct capture *c, struct err *err) {
    struct processes *all = processes_here();
    struct division division = {.processes = all, .compute = compute, .stop = stop, .context = c};
    int64_t context = 0;
    bool ok = open_model(c, err) && choose_context(c, &context, err) &&
              read_corpus(c, context, err) &&
              closed_loop_set(c->engine, &c->request->loop, c->corpus.ids, c->corpus.tokens,
                              &c->loop, &c->notes, err) &&
              check_divisible(c, err);
    ok = processes_agree(all, ok, err) && same_work(c, context, err);
    ok = ok && parts_deal(&c->parts, all, c->request->out, &c->corpus, err) &&
         (!parts_mine(&c->parts) || open_trace(c, context, err));
    double began = clock_seconds();
    ok = processes_agree(all, ok, err) && division_run(&division, err);
    c->seconds = clock_seconds() - began;
    return ok;
}

static bool capture(const struct request *request, struct err *err) {
    struct capture c = {.request = request};
    struct processes *all = processes_here();
    progress_begin(&c.line, leads() ? "capture" : NULL);
    bool ok = finish(&c, run_all(&c, err), err);
    ok = processes_agree(all, ok, err);
    if (ok && leads()) ok = parts_join(&c.parts, request->force, &c.line.progress, &c.notes, err);
    progress_end(&c.line);
    if (ok && leads()) ok = print_summary(&c, err);
    if (ok) note_reading(&c);
    if (ok && leads()) print_notes(str_text(&c.notes));
    release(&c);
    return processes_agree(all, ok, err);
}

static bool check(struct request *request, struct err *err) {
    if (request->rest.count < 1 || !request->out)
        return err_set(err, ERR_USAGE, "expected MODEL, texts and --out RUN.db");
    if (request->resume && request->force)
        return err_set(err, ERR_USAGE, "found --resume and --force, expected one of them");
    if (strcmp(request->compute, "f32") != 0 && strcmp(request->compute, "bf16") != 0)
        return err_set(err, ERR_USAGE, "--compute: found '%.40s', expected f32 or bf16",
                       request->compute);
    enum trace_store store;
    if (!trace_store_find(request->store, &store, err)) return err_context(err, "--store");
    if (!request->resume && !request->force && file_exists(request->out))
        return err_set(err, ERR_EXISTS,
                       "%s: exists already (--force replaces it, --resume goes on)", request->out);
    request->model = request->rest.items[0];
    request->texts = (struct text_list){request->rest.items + 1, request->rest.count - 1};
    return true;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct request q = {.compute = "f32", .store = "f32", .pass_tokens = DEFAULT_PASS};
    const double big = 1e15;
    const struct option options[] = {
        {"out", OPTION_TEXT, &q.out, "RUN.db", "the trace to write", 0, 0},
        {"domain", OPTION_TEXTS, &q.domains, "NAME=FILE",
         "domain of a file, or of a folder's files", 0, 0},
        {"ids", OPTION_TEXTS, &q.id_files, "FILE", "documents of decimal token ids, one a line", 0,
         0},
        {"max-tokens", OPTION_INT, &q.max_tokens, "N", "stop after N tokens, in the order given", 1,
         big},
        {"context", OPTION_INT, &q.context, "N",
         "longest window; default: the model's, at most 2048", 1, 1e9},
        {"special", OPTION_FLAG, &q.special, NULL,
         "add the tokenizer's special tokens (BOS) to each text; default: none", 0, 0},
        {"compute", OPTION_TEXT, &q.compute, "f32|bf16", "arithmetic; default f32", 0, 0},
        {"store", OPTION_TEXT, &q.store, "f32|bf16|f16", "stored logits; default f32, others lossy",
         0, 0},
        {"pass-tokens", OPTION_INT, &q.pass_tokens, "N", "tokens between commits; default 8192", 1,
         1e9},
        {"threads", OPTION_INT, &q.threads, "N", "0 = one per CPU (0)", 0, 4096},
        {"memory", OPTION_BYTES, &q.memory, "BYTES", "bound on resident memory (4G)", 0, 0},
        {"gate", OPTION_TEXT, &q.loop.gate, "SPEC",
         "closed loop: run under this gate (\"native,softmax\"), not the model's own", 0, 0},
        {"bias-rule", OPTION_TEXT, &q.loop.bias_rule, "RULE",
         "closed loop: moves the bias as tokens pass; default as for replay", 0, 0},
        {"bias-rate", OPTION_TEXT, &q.loop.bias_rate, "X", "of the rule; default its own", 0, 0},
        {"bias-start", OPTION_TEXT, &q.loop.bias_start, "zero|captured",
         "of rules that update (zero); captured = the model's", 0, 0},
        {"batch-tokens", OPTION_INT, &q.loop.batch_tokens, "N",
         "tokens of a balance batch; default 4096", 1, 1e12},
        {"hash-table", OPTION_TEXT, &q.loop.hash_table, "FILE",
         "closed loop: tables for fn=hash-table (safetensors with layers.N...tid2eid)", 0, 0},
        {"seed", OPTION_INT, &q.loop.seed, "N",
         "closed loop: of noise= and second=random, where the gate has no seed= (0)", 0, INT32_MAX},
        {"resume", OPTION_FLAG, &q.resume, NULL, "go on with an interrupted capture", 0, 0},
        {"force", OPTION_FLAG, &q.force, NULL, "replace an existing file", 0, 0},
        OPTION_OUTPUT(q.choice),
        {0}};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &q.rest, &done, err);
    ok = processes_agree(processes_here(), ok && (done || check(&q, err)), err);
    if (ok && !done) ok = capture(&q, err);
    text_list_free(&q.rest);
    text_list_free(&q.id_files);
    text_list_free(&q.domains);
    return ok;
}

const struct command command_capture = {
    .name = "capture",
    .arguments = "MODEL TEXT...",
    .summary = "run a model over texts and record every router score",
    .example = "steelyard capture models/v3-lossfree book.txt --domain code=src/ --out run.db",
    .run = run,
    .divides = true};
