/* merge_plan.c - which documents of which traces make the merged one */
#include "traces/merge_plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "traces/loop.h"
#include "traces/same.h"

/* A document while duplicates are looked for. */
struct entry {
    const struct trace_document *document;
    int input;
    int64_t index; /* in its trace */
    bool duplicate;
};

static bool open_inputs(struct merge_plan *plan, const struct merge_job *job, struct err *err) {
    if (job->file_count < 2)
        return err_set(err, ERR_USAGE, "found %d traces, expected two or more", job->file_count);
    plan->inputs = arena_alloc(&plan->arena, (size_t)job->file_count, sizeof *plan->inputs);
    if (!plan->inputs) return err_memory(err, "merge");
    for (int i = 0; i < job->file_count; i++) {
        struct trace *trace = plan->inputs[i] = trace_open(job->files[i], err);
        if (!trace) return false;
        plan->input_count++;
        if (trace->is_result)
            return err_set(err, ERR_DATA, "%s: found results without tokens, expected a trace",
                           job->files[i]);
        if (!trace_complete(trace))
            return err_set(err, ERR_DATA,
                           "%s: capture not finished: found %lld tokens, expected %lld "
                           "(capture --resume finishes it)",
                           job->files[i], (long long)trace_tokens(trace),
                           (long long)trace_tokens_total(trace));
    }
    return true;
}

/* Model name, kernels and pass size do not decide what a model routes; with the weights' identity
 * known, neither does its name. */
static bool check_make(struct merge_plan *plan, int i, struct err *err) {
    const struct trace *first = plan->inputs[0], *other = plan->inputs[i];
    struct str doing = {0};
    str_printf(&doing, "cannot merge with %s", first->db.path);
    const struct same same = {other->db.path, str_text(&doing)};
    struct trace_setup found = trace_as_setup(other), expected = trace_as_setup(first);
    found.capture.kernels = expected.capture.kernels;
    found.capture.pass_tokens = expected.capture.pass_tokens;
    if (*expected.capture.model_id) found.capture.model = expected.capture.model;
    bool ok = (!doing.failed || err_memory(err, "merge")) &&
              same_capture(&same, &found.capture, &expected.capture, err) &&
              same_layers(&same, &found, &expected, err);
    str_free(&doing);
    return ok;
}

/* A bias that moved while tokens passed has one history; two of them are no third. */
static bool check_loop(const struct trace *trace, struct err *err) {
    struct trace_loop loop;
    if (!trace_loop_read(trace->capture.options, &loop, err))
        return err_context(err, "%s", trace->db.path);
    for (int r = 0; r < trace->layer_count; r++) {
        const struct gate *gate = &trace->layers[r].gate;
        if (trace->layers[r].has_gate && gate_needs_rows(gate) && !gate_hashes(gate))
            return err_set(err, ERR_DATA,
                           "%s: cannot merge: found a gate that draws by the number of a token "
                           "(noise, second=random), which a merge changes",
                           trace->db.path);
    }
    return !loop.rule ||
           err_set(err, ERR_DATA,
                   "%s: cannot merge: found a closed loop whose bias moves (%s): its choices "
                   "depend on all tokens before",
                   trace->db.path, loop.rule_name);
}

/* Kernel levels of all inputs, each once. */
static bool join_kernels(struct merge_plan *plan, struct err *err) {
    struct str all = {0};
    for (int i = 0; i < plan->input_count; i++) {
        const char *kernels = plan->inputs[i]->capture.kernels;
        bool known = false;
        for (int j = 0; j < i; j++)
            known = known || strcmp(plan->inputs[j]->capture.kernels, kernels) == 0;
        if (known) continue;
        plan->kernels_differ = i > 0;
        str_printf(&all, "%s%s", i ? "," : "", kernels);
    }
    plan->setup.capture.kernels = arena_str(&plan->arena, &all);
    bool ok = plan->setup.capture.kernels;
    str_free(&all);
    return ok || err_memory(err, "merge");
}

/* ---- documents */

static int by_content(const void *a, const void *b) {
    const struct entry *x = *(struct entry *const *)a, *y = *(struct entry *const *)b;
    int order = strcmp(x->document->sha256, y->document->sha256);
    if (!order) order = strcmp(x->document->domain, y->document->domain);
    if (!order) order = (x->input > y->input) - (x->input < y->input);
    return order ? order : (x->index > y->index) - (x->index < y->index);
}

/* Marks documents that an earlier trace has too; *first is the first of them in order. */
static bool mark_duplicates(struct merge_plan *plan, struct entry *entries, int64_t count,
                            const struct entry **first, const struct entry **before,
                            struct err *err) {
    struct entry **sorted = malloc(((size_t)count + 1) * sizeof *sorted);
    if (!sorted) return err_memory(err, "merge");
    for (int64_t i = 0; i < count; i++) sorted[i] = &entries[i];
    qsort(sorted, (size_t)count, sizeof *sorted, by_content);
    for (int64_t i = 0, run = 0; i < count; i++) {
        const struct trace_document *document = sorted[i]->document, *head = sorted[run]->document;
        if (strcmp(document->sha256, head->sha256) != 0 ||
            strcmp(document->domain, head->domain) != 0)
            run = i;
        if (!*document->sha256 || sorted[run]->input == sorted[i]->input) continue;
        sorted[i]->duplicate = true;
        plan->skipped++;
        if (*first && *first < sorted[i]) continue;
        *first = sorted[i];
        *before = sorted[run];
    }
    free(sorted);
    return true;
}

/* Without hashes of documents one file given twice is still seen. */
static bool check_twice(const struct merge_plan *plan, struct err *err) {
    for (int i = 1; i < plan->input_count; i++)
        for (int j = 0; j < i; j++)
            if (file_same(plan->inputs[i]->db.path, plan->inputs[j]->db.path))
                return err_set(err, ERR_DATA, "%s: cannot merge: found the same trace as %s",
                               plan->inputs[i]->db.path, plan->inputs[j]->db.path);
    return true;
}

static bool refuse(const struct merge_plan *plan, const struct entry *again,
                   const struct entry *before, struct err *err) {
    return err_set(err, ERR_DATA,
                   "%s: document %lld (%.80s, domain %.40s): found it in %s too, as document %lld "
                   "(--skip-duplicates leaves it out)",
                   plan->inputs[again->input]->db.path, (long long)again->index,
                   again->document->source, again->document->domain,
                   plan->inputs[before->input]->db.path, (long long)before->index);
}

/* Appends a document's tokens; joins them with the part before where they go on. */
static void add_tokens(struct merge_plan *plan, int input, int64_t from, int64_t tokens) {
    struct merge_part *last = plan->part_count ? &plan->parts[plan->part_count - 1] : NULL;
    if (last && last->input == input && last->from + last->tokens == from)
        last->tokens += tokens;
    else if (tokens)
        plan->parts[plan->part_count++] = (struct merge_part){input, plan->tokens, tokens, from};
    plan->tokens += tokens;
}

static bool lay_documents(struct merge_plan *plan, const struct entry *entries, int64_t count,
                          struct err *err) {
    struct trace_document *documents =
        arena_alloc(&plan->arena, (size_t)count + 1, sizeof *documents);
    plan->from = arena_alloc(&plan->arena, (size_t)count + 1, sizeof *plan->from);
    plan->parts = arena_alloc(&plan->arena, (size_t)count + 1, sizeof *plan->parts);
    if (!documents || !plan->from || !plan->parts) return err_memory(err, "merge");
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        if (entries[i].duplicate) continue;
        plan->from[n] = (struct merge_document){entries[i].input, entries[i].index};
        documents[n] = *entries[i].document;
        documents[n++].first_token = plan->tokens;
        add_tokens(plan, entries[i].input, entries[i].document->first_token,
                   entries[i].document->tokens);
    }
    plan->setup.documents = documents;
    plan->setup.document_count = n;
    return true;
}

static bool plan_documents(struct merge_plan *plan, const struct merge_job *job, struct err *err) {
    int64_t count = 0, at = 0;
    for (int i = 0; i < plan->input_count; i++) count += plan->inputs[i]->document_count;
    struct entry *entries = calloc((size_t)count + 1, sizeof *entries);
    const struct entry *again = NULL, *before = NULL;
    if (!entries) return err_memory(err, "merge");
    for (int i = 0; i < plan->input_count; i++)
        for (int64_t d = 0; d < plan->inputs[i]->document_count; d++)
            entries[at++] = (struct entry){&plan->inputs[i]->documents[d], i, d, false};
    bool ok = job->keep_duplicates || mark_duplicates(plan, entries, count, &again, &before, err);
    if (ok && again && !job->skip_duplicates) ok = refuse(plan, again, before, err);
    ok = ok && (again || check_twice(plan, err)) && lay_documents(plan, entries, count, err);
    free(entries);
    return ok;
}

bool merge_plan_make(struct merge_plan *plan, const struct merge_job *job, struct err *err) {
    arena_init(&plan->arena, "merge");
    if (!open_inputs(plan, job, err) || !check_loop(plan->inputs[0], err)) return false;
    for (int i = 1; i < plan->input_count; i++)
        if (!check_make(plan, i, err)) return false;
    plan->setup = trace_as_setup(plan->inputs[0]);
    return join_kernels(plan, err) && plan_documents(plan, job, err);
}

void merge_plan_free(struct merge_plan *plan) {
    for (int i = 0; i < plan->input_count; i++) trace_free(plan->inputs[i]);
    arena_free(&plan->arena);
}

const struct merge_part *merge_part_of(const struct merge_plan *plan, int64_t token) {
    int64_t low = 0, high = plan->part_count;
    while (high - low > 1) {
        int64_t mid = low + (high - low) / 2;
        if (plan->parts[mid].first <= token)
            low = mid;
        else
            high = mid;
    }
    return &plan->parts[low];
}
