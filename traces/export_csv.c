/* export_csv.c - one line per token, layer and chosen expert (RFC 4180); empty slots have none
 *
 * Columns: layer, token, document, domain, position, id, nll, rank, expert, weight, logit. Layer by
 * layer, tokens in order, ranks in order of selection. Empty = not known. Reals read back exactly.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "traces/choices.h"
#include "traces/importers.h"

static void put_text(FILE *out, const char *text) {
    if (!text[strcspn(text, ",\"\r\n")]) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"') fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

/* Token columns of one chunk. */
struct identity {
    int32_t *document, *position, *id;
    float *nll;
};

static void put_token(FILE *out, const struct trace *trace, const struct identity *identity,
                      const struct choices *choices, int64_t i) {
    const struct trace_layer *layer = choices->layer;
    const struct trace_chunk *chunk = &choices->chunk;
    for (int j = 0; j < layer->topk; j++) {
        int32_t expert = chunk->expert[i * layer->topk + j];
        if (expert == ROUTE_NONE) continue;
        fprintf(out, "%d,%lld,%d,", layer->layer, (long long)(chunk->first + i),
                identity->document[i]);
        put_text(out, trace_document(trace, identity->document[i])->domain);
        fprintf(out, ",%d,", identity->position[i]);
        if (identity->id[i] >= 0) fprintf(out, "%d", identity->id[i]);
        fputc(',', out);
        if (!isnan(identity->nll[i])) fprintf(out, "%.9g", (double)identity->nll[i]);
        fprintf(out, ",%d,%d,", j, expert);
        if (chunk->weight) fprintf(out, "%.9g", (double)chunk->weight[i * layer->topk + j]);
        fputc(',', out);
        if (chunk->logits) fprintf(out, "%.9g", (double)chunk->logits[i * layer->experts + expert]);
        fputs("\r\n", out);
    }
}

static bool put_layer(FILE *out, struct trace *trace, int r, const struct identity *identity,
                      struct err *err) {
    struct choices choices;
    if (!choices_open(&choices, trace, r, err)) return false;
    const struct trace_columns columns = {identity->document, identity->position, identity->id,
                                          identity->nll};
    bool ok = true;
    do {
        ok = choices_next(&choices, err) &&
             trace_read_tokens(trace, choices.chunk.first, choices.chunk.tokens, &columns, err);
        for (int64_t i = 0; ok && i < choices.chunk.tokens; i++)
            put_token(out, trace, identity, &choices, i);
    } while (ok && choices.chunk.tokens);
    choices_close(&choices);
    return ok;
}

static bool put_all(FILE *out, struct trace *trace, const struct progress *progress,
                    struct err *err) {
    size_t n = (size_t)trace_block_tokens(trace) + 1;
    struct identity identity = {calloc(n, 4), calloc(n, 4), calloc(n, 4), calloc(n, 4)};
    bool ok = (identity.document && identity.position && identity.id && identity.nll) ||
              err_memory(err, "export");
    fputs("layer,token,document,domain,position,id,nll,rank,expert,weight,logit\r\n", out);
    for (int r = 0; ok && r < trace_layers(trace); r++) {
        ok = put_layer(out, trace, r, &identity, err);
        if (ok && !progress_report(progress, "layers", r + 1, trace_layers(trace), "layers"))
            ok = err_set(err, ERR_CANCELLED, "interrupted");
    }
    free(identity.document);
    free(identity.position);
    free(identity.id);
    free(identity.nll);
    return ok;
}

bool export_csv(struct trace *trace, const char *out, const struct progress *progress,
                struct err *err) {
    struct file_output output;
    if (!trace_tokens(trace))
        return err_set(err, ERR_DATA, "%s: found no tokens to export", trace_path(trace));
    if (!file_begin(&output, out, err)) return false;
    if (put_all(output.stream, trace, progress, err)) return file_commit(&output, err);
    file_abandon(&output);
    return false;
}
