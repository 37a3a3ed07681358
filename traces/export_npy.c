/* export_npy.c - chosen ids [tokens, layers, k] as one .npy, as users of vLLM save routed_experts
 *
 * u8 where there are at most 256 experts, else u16; MoE layers only, in the model's order (the
 * form has no place for their numbers, for documents, token ids or weights). */
#include "base/file.h"
#include "traces/export_routed.h"
#include "traces/importers.h"

static bool put_rows(struct routed_rows *rows, FILE *out, const struct progress *progress,
                     struct err *err) {
    int64_t done = 0, total = trace_tokens(rows->trace), layers = trace_layers(rows->trace);
    struct str header = {0};
    npy_header(&header, rows->item_bytes == 1 ? "|u1" : "<u2", 3,
               (int64_t[]){total, layers, rows->topk});
    bool ok = !header.failed || err_memory(err, "export");
    if (ok) fwrite(header.data, 1, header.len, out);
    str_free(&header);
    while (ok && (ok = routed_rows_next(rows, err)) && rows->tokens) {
        fwrite(rows->bytes, (size_t)rows->item_bytes, (size_t)(rows->tokens * layers * rows->topk),
               out);
        done += rows->tokens;
        if (!progress_report(progress, "tokens", done, total, "tokens"))
            ok = err_set(err, ERR_CANCELLED, "interrupted");
    }
    return ok;
}

bool export_npy(struct trace *trace, const char *out, const struct progress *progress,
                struct err *err) {
    struct routed_rows rows;
    struct file_output output = {0};
    bool ok = routed_rows_open(&rows, trace, err) && file_begin(&output, out, err);
    if (ok && put_rows(&rows, output.stream, progress, err))
        ok = file_commit(&output, err);
    else if (ok) {
        file_abandon(&output);
        ok = false;
    }
    routed_rows_close(&rows);
    return ok;
}
