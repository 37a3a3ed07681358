/* throughput_result.c - writing throughput rows and placements in one transaction */
#include "traces/throughput_result.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "embed.h"
#include "traces/internal.h"
#include "traces/placement_maps.h"

struct throughput_writer {
    struct db db;
    char *out;       /* owned; NULL: the trace's own file */
    char *temporary; /* owned; where it is written, when out */
    sqlite3_stmt *row, *placement, *placed, *traffic;
    struct placement_maps maps;
};

static void bind_real(sqlite3_stmt *row, int at, double value) {
    if (isfinite(value))
        sqlite3_bind_double(row, at, value);
    else
        sqlite3_bind_null(row, at);
}

static void bind_index(sqlite3_stmt *row, int at, int value) {
    if (value >= 0)
        sqlite3_bind_int(row, at, value);
    else
        sqlite3_bind_null(row, at);
}

static void bind_text(sqlite3_stmt *row, int at, const char *text) {
    sqlite3_bind_text(row, at, text, -1, SQLITE_STATIC);
}

static bool open_inside(struct throughput_writer *w, const char *path, struct err *err) {
    return db_open(&w->db, path, DB_WRITE, err) && db_check_schema(&w->db, err) &&
           db_exec(&w->db, "BEGIN IMMEDIATE", err);
}

/* Is the file a database of the same capture? */
static bool is_of_trace(const char *path, const struct trace *trace) {
    struct err unused;
    struct trace *found = file_exists(path) ? trace_open(path, &unused) : NULL;
    bool same = found && strcmp(trace_identity(found), trace_identity(trace)) == 0;
    trace_free(found);
    return same;
}

static bool open_outside(struct throughput_writer *w, const struct trace *trace, const char *out,
                         bool force, struct err *err) {
    if (!force && file_exists(out))
        return err_set(err, ERR_EXISTS, "%s: exists already (--force replaces it)", out);
    if (file_is_folder(out))
        return err_set(err, ERR_IO, "%s: found a folder, expected a file name", out);
    struct str temporary = {0};
    str_printf(&temporary, "%s.%ld.partial", out, (long)getpid());
    w->temporary = temporary.data;
    w->out = strdup(out);
    if (temporary.failed || !w->out) return err_memory(err, out);
    unlink(w->temporary); /* of a killed process that had the same number */
    struct trace_setup setup = trace_as_setup(trace);
    return db_open_temporary(&w->db, w->temporary, out, err) &&
           db_exec(&w->db, "PRAGMA page_size = 16384; PRAGMA synchronous = OFF; BEGIN", err) &&
           db_exec(&w->db, embed_traces_schema_sql, err) &&
           trace_insert_setup(&w->db, &setup, "result", trace_identity(trace), err);
}

static bool record_run(struct throughput_writer *w, const char *identity,
                       const struct throughput_record *record, struct err *err) {
    sqlite3_stmt *row =
        db_prepare(&w->db, "INSERT INTO result_throughput_run VALUES (1, ?, ?, ?, ?)", err);
    if (!row) return false;
    bind_text(row, 1, record->cluster_json);
    bind_text(row, 2, record->options);
    bind_text(row, 3, identity);
    bind_text(row, 4, record->notes);
    bool ok = db_run(&w->db, row, err);
    sqlite3_finalize(row);
    return ok;
}

static bool prepare(struct throughput_writer *w, struct err *err) {
    w->row = db_prepare(&w->db,
                        "INSERT INTO result_throughput VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
                        "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
                        "?, ?)",
                        err);
    w->placement =
        w->row ? db_prepare(&w->db, "INSERT INTO result_placement VALUES (?, ?, ?, ?)", err) : NULL;
    w->placed =
        w->placement ? db_prepare(&w->db, "INSERT INTO result_placed VALUES (?, ?, ?)", err) : NULL;
    w->traffic =
        w->placed
            ? db_prepare(&w->db, "INSERT INTO result_traffic VALUES (?, ?, ?, ?, ?, ?, ?)", err)
            : NULL;
    return w->traffic != NULL;
}

struct throughput_writer *throughput_begin(const struct trace *trace, const char *out, bool force,
                                           const struct throughput_record *record,
                                           struct err *err) {
    struct throughput_writer *w = calloc(1, sizeof *w);
    if (!w) {
        err_memory(err, "result");
        return NULL;
    }
    const char *inside = !out ? trace_path(trace) : !force && is_of_trace(out, trace) ? out : NULL;
    bool ok = (inside ? open_inside(w, inside, err) : open_outside(w, trace, out, force, err)) &&
              db_exec(&w->db,
                      "DROP VIEW IF EXISTS throughput; DROP VIEW IF EXISTS placement_map;"
                      "DROP VIEW IF EXISTS traffic_map; DROP TABLE IF EXISTS result_throughput_run;"
                      "DROP TABLE IF EXISTS result_throughput;"
                      "DROP TABLE IF EXISTS result_placement;"
                      "DROP TABLE IF EXISTS result_placed; DROP TABLE IF EXISTS result_traffic",
                      err) &&
              db_exec(&w->db, embed_traces_throughput_sql, err) &&
              record_run(w, trace_identity(trace), record, err) && prepare(w, err);
    if (ok) return w;
    throughput_abandon(w);
    return NULL;
}

bool throughput_row(struct throughput_writer *writer, const struct throughput_row *r,
                    struct err *err) {
    sqlite3_stmt *row = writer->row;
    int at = 0;
    sqlite3_bind_int64(row, ++at, r->cell);
    sqlite3_bind_int(row, ++at, r->variant);
    bind_text(row, ++at, r->gate);
    bind_text(row, ++at, r->cluster);
    sqlite3_bind_int(row, ++at, r->ranks);
    bind_text(row, ++at, r->placement);
    sqlite3_bind_int(row, ++at, r->replicas);
    bind_text(row, ++at, r->replica_choice);
    bind_text(row, ++at, r->learnt);
    bind_text(row, ++at, r->phase);
    sqlite3_bind_int64(row, ++at, r->tokens_per_rank);
    bind_index(row, ++at, r->layer);
    const double front[] = {r->time_ms, r->tokens_per_s, r->slowdown, r->against_balanced};
    for (int i = 0; i < 4; i++) bind_real(row, ++at, front[i]);
    bind_text(row, ++at, r->regime);
    const double back[] = {r->comm_share, r->error_pct, r->experts_ms, r->comm_ms,   r->move_ms,
                           r->rest_ms,    r->rank_max,  r->rank_mean,  r->active_max};
    for (int i = 0; i < 9; i++) bind_real(row, ++at, back[i]);
    bind_index(row, ++at, r->straggler);
    bind_real(row, ++at, r->dropped);
    sqlite3_bind_int64(row, ++at, r->batches);
    sqlite3_bind_int(row, ++at, r->repeats);
    sqlite3_bind_int(row, ++at, r->extrapolated);
    bind_index(row, ++at, (int)r->refresh);
    bind_real(row, ++at, r->context);
    bind_text(row, ++at, r->load);
    bind_real(row, ++at, r->load_distance);
    bind_text(row, ++at, r->bias_rule);
    bind_real(row, ++at, r->bias_rate);
    return db_run(&writer->db, row, err);
}

static bool insert_map(struct throughput_writer *writer, int64_t map, const int32_t *expert,
                       int slots, int places, struct err *err) {
    for (int s = 0; s < slots; s++) {
        sqlite3_bind_int64(writer->placement, 1, map);
        sqlite3_bind_int(writer->placement, 2, s);
        sqlite3_bind_int(writer->placement, 3, s / places);
        sqlite3_bind_int(writer->placement, 4, expert[s]);
        if (!db_run(&writer->db, writer->placement, err)) return false;
    }
    return true;
}

bool throughput_placement(struct throughput_writer *writer, int64_t cell, int layer,
                          const int32_t *expert, int slots, int places, struct err *err) {
    int64_t map;
    bool known;
    if (!placement_maps_find(&writer->maps, expert, slots, places, &map, &known, err) ||
        (!known && !insert_map(writer, map, expert, slots, places, err)))
        return false;
    sqlite3_bind_int64(writer->placed, 1, cell);
    sqlite3_bind_int(writer->placed, 2, layer);
    sqlite3_bind_int64(writer->placed, 3, map);
    return db_run(&writer->db, writer->placed, err);
}

bool throughput_traffic(struct throughput_writer *writer, const struct throughput_traffic *t,
                        struct err *err) {
    sqlite3_stmt *row = writer->traffic;
    int at = 0;
    sqlite3_bind_int64(row, ++at, t->cell);
    const int ranks[] = {t->from, t->to, t->from_node, t->to_node};
    for (int i = 0; i < 4; i++) sqlite3_bind_int(row, ++at, ranks[i]);
    bind_real(row, ++at, t->copies);
    bind_real(row, ++at, t->mbytes);
    return db_run(&writer->db, row, err);
}

static void close_database(struct throughput_writer *w) {
    sqlite3_finalize(w->row);
    sqlite3_finalize(w->placement);
    sqlite3_finalize(w->placed);
    sqlite3_finalize(w->traffic);
    w->row = w->placement = w->placed = w->traffic = NULL;
    db_close(&w->db);
}

bool throughput_commit(struct throughput_writer *writer, struct err *err) {
    bool ok = db_exec(&writer->db, "COMMIT", err);
    close_database(writer);
    if (ok && writer->out && rename(writer->temporary, writer->out) != 0)
        ok = err_errno(err, writer->out, "cannot rename into place");
    throughput_abandon(writer);
    return ok;
}

void throughput_abandon(struct throughput_writer *writer) {
    if (!writer) return;
    close_database(writer); /* rolls back */
    if (writer->temporary) unlink(writer->temporary);
    placement_maps_free(&writer->maps);
    free(writer->temporary);
    free(writer->out);
    free(writer);
}
