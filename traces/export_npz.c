/* export_npz.c - chosen ids with token identity as .npz, in the layout of moe-balance
 *
 * Members: prompt_token_ids i32 [T] (left out when no id is known), output_token_ids i32 [0],
 * document i32 [T], layers i32 [L] (the model's layer numbers), routed_experts [T, L, k] (u8, or
 * u16 beyond 256 experts). Stored, not deflated, with zip64 sizes (APPNOTE 4.5.3), so that they can
 * be mapped. The reader needs routed_experts alone. */
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/file.h"
#include "traces/export_routed.h"
#include "traces/importers.h"

enum { MEMBERS = 5, STEP_TOKENS = 65536 };

struct member {
    const char *name;
    uint64_t offset, bytes;
    uint32_t crc;
};

struct archive {
    FILE *stream;
    struct member members[MEMBERS];
    int count;
    uint64_t at; /* bytes written */
};

static void put(struct archive *archive, const void *bytes, size_t n) {
    fwrite(bytes, 1, n, archive->stream);
    archive->at += n;
}

static void put_number(struct archive *archive, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        put(archive, &(unsigned char){(unsigned char)(value >> 8 * i)}, 1);
}

/* Local or central header; sizes in a zip64 field. The local one is written before the checksum is
 * known, and again over itself at the end. */
static void put_header(struct archive *archive, const struct member *m, bool central) {
    put(archive, central ? "PK\1\2" : "PK\3\4", 4);
    if (central) put_number(archive, 45, 2);
    put_number(archive, 45, 2);
    put_number(archive, 0, 4);          /* flags, method: stored */
    put_number(archive, 0x00210000, 4); /* 1980-01-01 00:00: the same bytes every time */
    put_number(archive, m->crc, 4);
    put_number(archive, 0xffffffff, 4);
    put_number(archive, 0xffffffff, 4);
    put_number(archive, strlen(m->name), 2);
    put_number(archive, central ? 28 : 20, 2);
    if (central) {
        put_number(archive, 0, 8); /* comment, disk, attributes */
        put_number(archive, 0, 2);
        put_number(archive, 0xffffffff, 4);
    }
    put(archive, m->name, strlen(m->name));
    put_number(archive, 1, 2);
    put_number(archive, central ? 24 : 16, 2);
    put_number(archive, m->bytes, 8);
    put_number(archive, m->bytes, 8);
    if (central) put_number(archive, m->offset, 8);
}

static void put_data(struct archive *archive, const void *bytes, size_t n) {
    struct member *m = &archive->members[archive->count - 1];
    m->crc = (uint32_t)crc32(m->crc, bytes, (uInt)n);
    m->bytes += n;
    put(archive, bytes, n);
}

static bool begin_member(struct archive *archive, const char *name, const char *type, int rank,
                         const int64_t *shape, struct err *err) {
    struct member *m = &archive->members[archive->count++];
    *m = (struct member){.name = name, .offset = archive->at};
    put_header(archive, m, false);
    struct str header = {0};
    npy_header(&header, type, rank, shape);
    bool ok = !header.failed || err_memory(err, "export");
    if (ok) put_data(archive, header.data, header.len);
    str_free(&header);
    return ok;
}

static void end_member(struct archive *archive) {
    uint64_t end = archive->at;
    const struct member *m = &archive->members[archive->count - 1];
    fseeko(archive->stream, (off_t)m->offset, SEEK_SET);
    put_header(archive, m, false);
    fseeko(archive->stream, (off_t)end, SEEK_SET);
    archive->at = end;
}

/* Central directory and the end records (zip64). */
static void end_archive(struct archive *archive) {
    uint64_t directory = archive->at;
    for (int i = 0; i < archive->count; i++) put_header(archive, &archive->members[i], true);
    uint64_t end = archive->at;
    put(archive, "PK\6\6", 4);
    put_number(archive, 44, 8);
    put_number(archive, 45, 2);
    put_number(archive, 45, 2);
    put_number(archive, 0, 8);
    put_number(archive, (uint64_t)archive->count, 8);
    put_number(archive, (uint64_t)archive->count, 8);
    put_number(archive, end - directory, 8);
    put_number(archive, directory, 8);
    put(archive, "PK\6\7", 4);
    put_number(archive, 0, 4);
    put_number(archive, end, 8);
    put_number(archive, 1, 4);
    put(archive, "PK\5\6", 4);
    put_number(archive, 0, 4);
    put_number(archive, (uint64_t)archive->count, 2);
    put_number(archive, (uint64_t)archive->count, 2);
    put_number(archive, end - directory, 4);
    put_number(archive, 0xffffffff, 4);
    put_number(archive, 0, 2);
}

/* ---- the members */

static bool put_column(struct archive *archive, struct trace *trace, const char *name, bool ids,
                       struct err *err) {
    int64_t total = trace_tokens(trace);
    int32_t *column = malloc(STEP_TOKENS * sizeof *column);
    const struct trace_columns columns = {.id = ids ? column : NULL,
                                          .document = ids ? NULL : column};
    bool ok = column || err_memory(err, "export");
    ok = ok && begin_member(archive, name, "<i4", 1, &total, err);
    for (int64_t t = 0; ok && t < total; t += STEP_TOKENS) {
        int64_t n = total - t < STEP_TOKENS ? total - t : STEP_TOKENS;
        ok = trace_read_tokens(trace, t, n, &columns, err);
        if (ok) put_data(archive, column, (size_t)n * 4);
    }
    if (ok) end_member(archive);
    free(column);
    return ok;
}

/* Is any token's id known? */
static bool has_ids(struct trace *trace, bool *known, struct err *err) {
    int32_t id;
    *known = false;
    const struct trace_columns columns = {.id = &id};
    for (int64_t d = 0; d < trace_documents(trace) && !*known; d++) {
        int64_t first = trace_document(trace, d)->first_token;
        if (first >= trace_tokens(trace) || !trace_document(trace, d)->tokens) continue;
        if (!trace_read_tokens(trace, first, 1, &columns, err)) return false;
        *known = id >= 0;
    }
    return true;
}

static bool put_identity(struct archive *archive, struct trace *trace, struct err *err) {
    bool ids;
    int64_t none = 0, layers = trace_layers(trace);
    if (!has_ids(trace, &ids, err)) return false;
    if (ids && (!put_column(archive, trace, "prompt_token_ids.npy", true, err) ||
                !begin_member(archive, "output_token_ids.npy", "<i4", 1, &none, err)))
        return false;
    if (ids) end_member(archive);
    if (!put_column(archive, trace, "document.npy", false, err) ||
        !begin_member(archive, "layers.npy", "<i4", 1, &layers, err))
        return false;
    for (int r = 0; r < layers; r++) put_data(archive, &(int32_t){trace_layer(trace, r)->layer}, 4);
    end_member(archive);
    return true;
}

static bool put_all(struct archive *archive, struct routed_rows *rows,
                    const struct progress *progress, struct err *err) {
    int64_t done = 0, total = trace_tokens(rows->trace), layers = trace_layers(rows->trace);
    bool ok = put_identity(archive, rows->trace, err) &&
              begin_member(archive, "routed_experts.npy", rows->item_bytes == 1 ? "|u1" : "<u2", 3,
                           (int64_t[]){total, layers, rows->topk}, err);
    while (ok && (ok = routed_rows_next(rows, err)) && rows->tokens) {
        put_data(archive, rows->bytes,
                 (size_t)(rows->tokens * layers * rows->topk) * (size_t)rows->item_bytes);
        done += rows->tokens;
        if (!progress_report(progress, "tokens", done, total, "tokens"))
            ok = err_set(err, ERR_CANCELLED, "interrupted");
    }
    if (!ok) return false;
    end_member(archive);
    end_archive(archive);
    return true;
}

bool export_npz(struct trace *trace, const char *out, const struct progress *progress,
                struct err *err) {
    struct routed_rows rows;
    struct file_output output = {0};
    bool ok = routed_rows_open(&rows, trace, err) && file_begin(&output, out, err);
    struct archive archive = {.stream = output.stream};
    if (ok && put_all(&archive, &rows, progress, err))
        ok = file_commit(&output, err);
    else if (ok) {
        file_abandon(&output);
        ok = false;
    }
    routed_rows_close(&rows);
    return ok;
}
