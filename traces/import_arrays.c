/* import_arrays.c - sources of chosen ids that are arrays [tokens, layers, k] */
#include "traces/import_arrays.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/ahead.h"
#include "traces/importers.h"

/* Rows that are looked at together: a multiple of every vector's lanes. */
enum { ROWS = 64, PIECE_TOKENS = 2048, MAX_LAYERS = 10000 };
/* How far ahead of the reader pages are asked for; small files are not worth the thread. */
enum { AHEAD_BYTES = 128 << 20, WORTH_BYTES = 16 << 20 };

struct state {
    struct id_arrays from;
    int64_t *first; /* [count+1] first token of each array */
    int64_t layers; /* of the arrays */
    int *plane;     /* [routers] index of each router's layer in the arrays */
    int topk;
    int32_t *ids;   /* [T] or NULL */
    int32_t *piece; /* [PIECE_TOKENS, k] */
    struct ahead *ahead;
};

/* What the check finds of each layer, over all arrays. */
struct layer_facts {
    int64_t zero_rows, first_zero; /* rows of zeros; token of the first, or -1 */
    int32_t highest;
};

static bool check_shapes(const struct id_arrays *from, struct err *err) {
    for (int i = 0; i < from->count; i++) {
        const struct npy *npy = &from->items[i].npy, *first = &from->items[0].npy;
        if (npy->rank != 3 || npy->shape[1] < 1 || npy->shape[1] > MAX_LAYERS ||
            npy->shape[2] < 1 || npy->shape[2] > GATE_MAX_TOPK)
            return err_set(err, ERR_FORMAT, "%s: found %d dimensions, expected [tokens, layers, k]",
                           from->items[i].source, npy->rank);
        if (npy->shape[1] != first->shape[1] || npy->shape[2] != first->shape[2])
            return err_set(err, ERR_DATA,
                           "%s: found [tokens, %lld, %lld], expected [tokens, %lld, "
                           "%lld] as in %s",
                           from->items[i].source, (long long)npy->shape[1],
                           (long long)npy->shape[2], (long long)first->shape[1],
                           (long long)first->shape[2], from->items[0].source);
    }
    return true;
}

/* ---- the check */

/* Tokens at the end that are padding (-1) at every layer are no tokens. */
static int64_t without_padding(const struct npy *npy, int32_t *row) {
    int64_t tokens = npy->shape[0], layers = npy->shape[1];
    int k = (int)npy->shape[2];
    for (; tokens > 0; tokens--)
        for (int64_t l = 0; l < layers; l++) {
            npy_choices(npy, (tokens - 1) * layers + l, 1, k, row);
            for (int j = 0; j < k; j++)
                if (row[j] >= 0) return tokens;
        }
    return 0;
}

/* bad[r] <- whether row r of rows[ROWS,k] has an expert twice or a value below 0; most[r] <- its
 * highest. Columns are compared as a whole, ROWS at a time. */
static void judge(const int32_t *rows, int k, int32_t *column, int32_t bad[ROWS],
                  int32_t most[ROWS]) {
    memset(bad, 0, ROWS * sizeof *bad);
    memset(most, 0, ROWS * sizeof *most);
    for (int j = 0; j < k; j++) {
        int32_t *mine = column + j * ROWS;
        for (int r = 0; r < ROWS; r++) mine[r] = rows[r * k + j];
        for (int r = 0; r < ROWS; r++) bad[r] |= mine[r] < 0;
        for (int r = 0; r < ROWS; r++) most[r] = mine[r] > most[r] ? mine[r] : most[r];
        for (int i = 0; i < j; i++) {
            const int32_t *other = column + i * ROWS;
            for (int r = 0; r < ROWS; r++) bad[r] |= mine[r] == other[r];
        }
    }
}

/* A row that no router gives, unless it is all zeros: that may be a dense layer. */
static bool refuse_row(const int32_t *row, int k, int64_t layer, int64_t token, struct err *err) {
    for (int j = 0; j < k; j++) {
        if (row[j] < 0)
            return err_set(err, ERR_DATA,
                           "layer %lld, token %lld: found expert %d (padding, or no record), "
                           "expected an expert",
                           (long long)layer, (long long)token, row[j]);
        for (int i = 0; i < j; i++)
            if (row[i] == row[j])
                return err_set(err, ERR_DATA,
                               "layer %lld, token %lld: found expert %d twice, expected distinct "
                               "ones",
                               (long long)layer, (long long)token, row[j]);
    }
    return true;
}

static bool all_zero(const int32_t *row, int k) {
    for (int j = 0; j < k; j++)
        if (row[j]) return false;
    return true;
}

struct scan {
    struct layer_facts *facts; /* [layers] */
    int32_t *rows, *column;    /* [ROWS, k] each */
};

static bool scan_rows(const struct id_array *array, int64_t row, int n, int64_t first,
                      struct scan *scan, struct err *err) {
    int32_t bad[ROWS], most[ROWS];
    int64_t layers = array->npy.shape[1];
    int k = (int)array->npy.shape[2];
    npy_choices(&array->npy, row, n, k, scan->rows);
    judge(scan->rows, k, scan->column, bad, most);
    for (int r = 0; r < n; r++) {
        struct layer_facts *facts = &scan->facts[(row + r) % layers];
        int64_t token = first + (row + r) / layers;
        if (most[r] > facts->highest) facts->highest = most[r];
        if (most[r] == 0 && all_zero(scan->rows + r * k, k)) {
            if (!facts->zero_rows++) facts->first_zero = token;
        } else if (bad[r] && !refuse_row(scan->rows + r * k, k, (row + r) % layers, token, err)) {
            return err_context(err, "%s", array->source);
        }
    }
    return true;
}

/* The bytes of tokens, within the mapping. */
static void locate(const struct id_array *array, int64_t token, int64_t tokens, size_t *at,
                   size_t *bytes) {
    size_t row =
        (size_t)(array->npy.shape[1] * array->npy.shape[2]) * (size_t)array->npy.item_bytes;
    *at = (size_t)(array->npy.data - array->map->data) + (size_t)token * row;
    *bytes = (size_t)tokens * row;
}

/* Tokens are about to be read: what lies AHEAD_BYTES behind them is asked for, before the first
 * ones also what lies between. */
static void ask_ahead(struct state *state, const struct id_array *array, int64_t token,
                      int64_t tokens) {
    size_t at, bytes;
    if (!state->ahead || !array->map || array->map->copied) return;
    locate(array, token, tokens, &at, &bytes);
    size_t begin = token ? at + AHEAD_BYTES : at, end = at + bytes + AHEAD_BYTES;
    if (end > array->map->size_bytes) end = array->map->size_bytes;
    if (begin < end) ahead_ask(state->ahead, array->map->data + begin, end - begin);
}

/* Tokens were read: their pages may go. */
static void drop_pages(const struct id_array *array, int64_t token, int64_t tokens) {
    size_t at, bytes;
    if (!array->map) return;
    locate(array, token, tokens, &at, &bytes);
    file_drop(array->map, at, bytes);
}

static bool scan_array(struct state *state, const struct id_array *array, int64_t first,
                       int64_t tokens, struct scan *scan, struct err *err) {
    enum { STEP = 16384 };
    int64_t layers = array->npy.shape[1];
    for (int64_t t = 0; t < tokens; t += STEP) {
        int64_t n = STEP < tokens - t ? STEP : tokens - t, end = (t + n) * layers;
        ask_ahead(state, array, t, n);
        for (int64_t row = t * layers; row < end; row += ROWS)
            if (!scan_rows(array, row, end - row < ROWS ? (int)(end - row) : ROWS, first, scan,
                           err))
                return false;
        drop_pages(array, t, n);
    }
    return true;
}

static bool scan_all(struct state *state, struct scan *scan, struct err *err) {
    for (int i = 0; i < state->from.count; i++) {
        const struct id_array *array = &state->from.items[i];
        int64_t tokens = without_padding(&array->npy, scan->rows);
        state->first[i + 1] = state->first[i] + tokens;
        if (!scan_array(state, array, state->first[i], tokens, scan, err)) return false;
    }
    if (!state->first[state->from.count]) return err_set(err, ERR_DATA, "found no token");
    return true;
}

static bool check(struct state *state, struct layer_facts *facts, struct err *err) {
    size_t cells = (size_t)ROWS * (size_t)state->topk;
    struct scan scan = {facts, calloc(cells, 4), calloc(cells, 4)};
    bool ok = (scan.rows && scan.column) || err_memory(err, "import");
    ok = ok && scan_all(state, &scan, err);
    free(scan.rows);
    free(scan.column);
    return ok;
}

/* ---- what was found */

/* Layers that are zeros throughout are dense; a few zeros are what was not recorded. */
static bool describe_layers(struct state *state, const struct layer_facts *facts,
                            const struct import_job *job, struct import_source *source,
                            struct err *err) {
    int64_t tokens = state->first[state->from.count];
    int routers = 0, highest = 0;
    struct trace_layer *layers = arena_alloc(&source->arena, (size_t)state->layers, sizeof *layers);
    state->plane = arena_alloc(&source->arena, (size_t)state->layers, sizeof *state->plane);
    if (!layers || !state->plane) return err_memory(err, "layers");
    for (int64_t l = 0; l < state->layers; l++) {
        if (facts[l].zero_rows == tokens) continue;
        if (facts[l].zero_rows && state->topk > 1)
            return err_set(err, ERR_DATA,
                           "layer %lld, token %lld: found expert 0 twice, expected distinct ones "
                           "(padding, or no record)",
                           (long long)l, (long long)facts[l].first_zero);
        if (facts[l].highest > highest) highest = facts[l].highest;
        state->plane[routers] = (int)l;
        layers[routers++] =
            (struct trace_layer){.layer = state->from.layers ? state->from.layers[l] : (int)l,
                                 .topk = state->topk,
                                 .holds = TRACE_IDS,
                                 .has_gate = job->gate != NULL};
    }
    if (!routers)
        return err_set(err, ERR_DATA,
                       "found only zeros as chosen experts: nothing was recorded in this file");
    if (highest >= (job->experts ? job->experts : GATE_MAX_EXPERTS))
        return err_set(err, ERR_DATA, "found expert %d, expected less than %lld%s", highest,
                       (long long)(job->experts ? job->experts : GATE_MAX_EXPERTS),
                       job->experts ? " of --experts" : "");
    source->setup.layers = layers;
    source->setup.layer_count = routers;
    for (int r = 0; r < routers; r++) {
        layers[r].experts = job->experts ? (int)job->experts : highest + 1;
        if (!import_gate(job, &layers[r], err)) return false;
    }
    return true;
}

static bool describe_documents(struct state *state, struct import_source *source, struct err *err) {
    int n = state->from.count;
    bool known = false;
    struct trace_document *documents = arena_alloc(&source->arena, (size_t)n, sizeof *documents);
    if (!documents) return err_memory(err, "documents");
    for (int i = 0; i < n; i++) {
        const struct id_array *array = &state->from.items[i];
        documents[i] = (struct trace_document){.source = array->source,
                                               .domain = array->domain,
                                               .sha256 = "",
                                               .first_token = state->first[i],
                                               .tokens = state->first[i + 1] - state->first[i]};
        known = known || (array->ids && array->known >= documents[i].tokens);
    }
    source->setup.documents = documents;
    source->setup.document_count = n;
    if (!known) return true;
    state->ids = malloc(((size_t)state->first[n] + 1) * 4);
    if (!state->ids) return err_memory(err, "token ids");
    for (int i = 0; i < n; i++)
        for (int64_t t = 0; t < documents[i].tokens; t++) {
            const struct id_array *array = &state->from.items[i];
            bool has = array->ids && array->known >= documents[i].tokens;
            state->ids[documents[i].first_token + t] = has ? array->ids[t] : -1;
        }
    source->ids = state->ids;
    return true;
}

static bool describe_capture(const struct state *state, const struct import_job *job,
                             const char *importer, struct import_source *source, struct err *err) {
    const char *name = job->model ? job->model : import_stem(&source->arena, job->files[0]);
    char *lacks = arena_alloc(&source->arena, 160, 1);
    if (!name || !lacks) return err_memory(err, "import");
    int n = snprintf(lacks, 160, "router scores; weights%s", state->ids ? "" : "; token ids");
    if (!job->experts)
        snprintf(lacks + n, 160 - (size_t)n,
                 "; number of experts (taken as the highest id + 1 = %d)",
                 source->setup.layers[0].experts);
    source->setup.capture = import_capture(importer, name);
    source->setup.capture.lacks = lacks;
    return true;
}

/* ---- the source */

static bool routes(struct import_source *source, struct trace_routes *want, struct err *err) {
    (void)err;
    struct state *state = source->state;
    int low = 0, high = state->from.count;
    while (high - low > 1) {
        int mid = low + (high - low) / 2;
        if (state->first[mid] <= want->first)
            low = mid;
        else
            high = mid;
    }
    while (state->first[low + 1] <= want->first) low++; /* past empty arrays */
    const struct id_array *array = &state->from.items[low];
    int64_t at = want->first - state->first[low], n = state->first[low + 1] - want->first;
    if (n > want->tokens) n = want->tokens;
    if (n > PIECE_TOKENS) n = PIECE_TOKENS;
    if (want->r == 0) ask_ahead(state, array, at, n);
    npy_gather(&array->npy, at * state->layers + state->plane[want->r], state->layers, n,
               state->topk, state->piece);
    if (want->r == source->setup.layer_count - 1) drop_pages(array, at, n);
    want->tokens = n;
    want->expert = state->piece;
    return true;
}

static void close_source(struct import_source *source) {
    struct state *state = source->state;
    free(state->ids);
    free(state->piece);
    free(state->first);
    ahead_free(state->ahead);
    if (state->from.close_own) state->from.close_own(state->from.own);
}

bool arrays_finish(const struct id_arrays *from, const struct import_job *job,
                   struct import_source *source, const char *importer, struct err *err) {
    struct state *state = arena_alloc(&source->arena, 1, sizeof *state);
    if (!state) {
        if (from->close_own) from->close_own(from->own);
        return err_memory(err, "import");
    }
    state->from = *from;
    source->state = state;
    source->close = close_source;
    source->routes = routes;
    if (from->count < 1) return err_set(err, ERR_DATA, "found no token");
    if (!check_shapes(from, err)) return false;
    state->layers = from->items[0].npy.shape[1];
    state->topk = (int)from->items[0].npy.shape[2];
    state->first = calloc((size_t)from->count + 1, sizeof *state->first);
    int64_t rows = 1;
    for (int i = 0; i < from->count; i++)
        if (from->items[i].npy.shape[0] > rows) rows = from->items[i].npy.shape[0];
    if (rows > PIECE_TOKENS) rows = PIECE_TOKENS;
    if (from->items[0].map && from->items[0].map->size_bytes > WORTH_BYTES)
        state->ahead = ahead_create();
    state->piece = malloc((size_t)rows * (size_t)state->topk * 4);
    struct layer_facts *facts = calloc((size_t)state->layers, sizeof *facts);
    bool ok = (state->first && state->piece && facts) || err_memory(err, "import");
    ok = ok && check(state, facts, err) && describe_layers(state, facts, job, source, err) &&
         describe_documents(state, source, err) &&
         describe_capture(state, job, importer, source, err);
    free(facts);
    return ok;
}
