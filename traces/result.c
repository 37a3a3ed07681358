/* result.c - writing the results of a replay in one transaction
 *
 * Into the trace's own file: one transaction whose pages stay in memory (cache_spill off) until the
 * end, so that cursors can go on reading meanwhile. Into a RESULT.db: a new file under a temporary
 * name, renamed when it is whole. */
#include "traces/result.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/str.h"
#include "embed.h"
#include "traces/internal.h"

/* X(member, table, number of columns) */
#define RESULT_TABLES(X)                                                                           \
    X(variant, "result_variant", 11)                                                               \
    X(layer, "result_layer", 19)                                                                   \
    X(expert, "result_expert", 5)                                                                  \
    X(batch, "result_batch", 6)                                                                    \
    X(loss, "result_loss", 4)                                                                      \
    X(optimum, "result_optimum", 6)                                                                \
    X(dynamics, "result_dynamics", 9)                                                              \
    X(bias, "result_bias", 4)                                                                      \
    X(document, "result_document", 4)                                                              \
    X(rank_weight, "result_rank_weight", 5)

enum result_table {
#define X(member, table, columns) RESULT_##member,
    RESULT_TABLES(X)
#undef X
        RESULT_TABLE_COUNT
};

struct result {
    struct db db;
    const struct trace *trace;
    char *out;       /* final name; NULL = the trace's own file */
    char *temporary; /* with out */
    sqlite3_stmt *insert[RESULT_TABLE_COUNT];
    /* loads of documents gather by domain until the variant or layer changes */
    int64_t *domain_counts; /* [domains, E] */
    int variant, layer, experts;
};

/* NaN is NULL. */
static void bind_real(sqlite3_stmt *row, int at, double value) {
    if (isnan(value))
        sqlite3_bind_null(row, at);
    else
        sqlite3_bind_double(row, at, value);
}

static void bind_count(sqlite3_stmt *row, int at, int64_t value) {
    if (value < 0)
        sqlite3_bind_null(row, at);
    else
        sqlite3_bind_int64(row, at, value);
}

static void bind_text(sqlite3_stmt *row, int at, const char *text) {
    sqlite3_bind_text(row, at, text ? text : "", -1, SQLITE_STATIC);
}

static bool prepare_inserts(struct result *result, struct err *err) {
    static const struct {
        const char *table;
        int columns;
    } tables[] = {
#define X(member, table, columns) {table, columns},
        RESULT_TABLES(X)
#undef X
    };
    for (int i = 0; i < RESULT_TABLE_COUNT; i++) {
        struct str sql = {0};
        str_printf(&sql, "INSERT INTO %s VALUES (?", tables[i].table);
        for (int c = 1; c < tables[i].columns; c++) str_puts(&sql, ", ?");
        str_puts(&sql, ")");
        result->insert[i] = db_prepare(&result->db, str_text(&sql), err);
        str_free(&sql);
        if (!result->insert[i]) return false;
    }
    return true;
}

static bool insert_experiment(struct result *result, const struct result_experiment *experiment,
                              struct err *err) {
    sqlite3_stmt *row = db_prepare(
        &result->db, "INSERT INTO result_experiment VALUES (1, ?, ?, ?, ?, ?, ?, ?)", err);
    if (!row) return false;
    char seed[32];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)experiment->seed);
    bind_text(row, 1, experiment->options);
    bind_text(row, 2, experiment->order);
    bind_text(row, 3, seed);
    sqlite3_bind_int64(row, 4, experiment->tokens);
    bind_text(row, 5, trace_path(result->trace));
    bind_text(row, 6, trace_identity(result->trace));
    bind_text(row, 7, experiment->warnings);
    bool ok = db_run(&result->db, row, err);
    sqlite3_finalize(row);
    return ok;
}

/* Results of an earlier replay go in the same transaction. */
static bool begin_inside(struct result *result, struct err *err) {
    return db_open(&result->db, trace_path(result->trace), DB_WRITE, err) &&
           db_check_schema(&result->db, err) &&
           db_exec(&result->db,
                   "PRAGMA cache_spill = 0; BEGIN IMMEDIATE;"
                   "DELETE FROM result_experiment; DELETE FROM result_variant;"
                   "DELETE FROM result_layer; DELETE FROM result_expert; DELETE FROM result_batch;"
                   "DELETE FROM result_dynamics; DELETE FROM result_loss;"
                   "DELETE FROM result_optimum;"
                   "DELETE FROM result_bias; DELETE FROM result_document;"
                   "DELETE FROM result_domain; DELETE FROM result_rank_weight;",
                   err);
}

static bool begin_outside(struct result *result, const char *out, bool force, struct err *err) {
    struct str temporary = {0};
    if (!force && file_exists(out))
        return err_set(err, ERR_EXISTS, "%s: exists already (--force replaces it)", out);
    if (file_is_folder(out))
        return err_set(err, ERR_IO, "%s: found a folder, expected a file name", out);
    str_printf(&temporary, "%s.%ld.partial", out, (long)getpid());
    result->out = strdup(out);
    if (temporary.failed || !result->out) {
        str_free(&temporary);
        return err_memory(err, out);
    }
    result->temporary = temporary.data;
    unlink(result->temporary); /* of a killed process that had the same number */
    struct trace_setup setup = trace_as_setup(result->trace);
    return db_open_temporary(&result->db, result->temporary, out, err) &&
           db_exec(&result->db, "PRAGMA page_size = 16384; PRAGMA synchronous = OFF; BEGIN", err) &&
           db_exec(&result->db, embed_traces_schema_sql, err) &&
           trace_insert_setup(&result->db, &setup, "result", trace_identity(result->trace), err);
}

struct result *result_create(const struct trace *trace, const char *out, bool force,
                             const struct result_experiment *experiment, struct err *err) {
    struct result *result = calloc(1, sizeof *result);
    if (!result) {
        err_memory(err, "result");
        return NULL;
    }
    result->trace = trace;
    bool ok;
    if (!out && trace->is_result)
        ok = err_set(err, ERR_DATA, "%s: found a result, expected a trace", trace_path(trace));
    else
        ok = out ? begin_outside(result, out, force, err) : begin_inside(result, err);
    if (ok && prepare_inserts(result, err) && insert_experiment(result, experiment, err))
        return result;
    result_abandon(result);
    return NULL;
}

bool result_variant(struct result *result, const struct result_variant *v, struct err *err) {
    sqlite3_stmt *row = result->insert[RESULT_variant];
    sqlite3_bind_int(row, 1, v->variant);
    bind_text(row, 2, v->gate);
    bind_text(row, 3, v->label);
    bind_text(row, 4, v->bias_rule);
    bind_real(row, 5, v->bias_rate);
    bind_text(row, 6, v->bias_start);
    sqlite3_bind_int64(row, 7, v->batch_tokens);
    if (v->ranks > 0) sqlite3_bind_int(row, 8, v->ranks);
    if (v->same_as > 0) sqlite3_bind_int(row, 9, v->same_as);
    bind_text(row, 10, v->same_why);
    sqlite3_bind_int(row, 11, v->causal);
    return db_run(&result->db, row, err);
}

bool result_layer(struct result *result, const struct result_layer *l, struct err *err) {
    sqlite3_stmt *row = result->insert[RESULT_layer];
    const double front[] = {l->maxvio_global, l->maxvio_batch, l->cv, l->gini, l->entropy};
    const int64_t counts[] = {l->load_min, l->load_max, l->ties, l->group_escapes};
    const double back[] = {l->agreement, l->mass_retained, l->rank_maxvio, l->efficiency};
    sqlite3_bind_int(row, 1, l->variant);
    sqlite3_bind_int(row, 2, l->layer);
    for (int i = 0; i < 5; i++) bind_real(row, 3 + i, front[i]);
    for (int i = 0; i < 4; i++) bind_count(row, 8 + i, counts[i]);
    for (int i = 0; i < 4; i++) bind_real(row, 12 + i, back[i]);
    const double choices[] = {l->dropped, l->unrouted, l->experts_mean};
    for (int i = 0; i < 3; i++) bind_real(row, 16 + i, choices[i]);
    bind_count(row, 19, l->experts_max);
    return db_run(&result->db, row, err);
}

/* The first two columns of every other table. */
static sqlite3_stmt *row_of(struct result *result, enum result_table table, int variant,
                            int layer) {
    sqlite3_stmt *row = result->insert[table];
    sqlite3_bind_int(row, 1, variant);
    sqlite3_bind_int(row, 2, layer);
    return row;
}

bool result_expert_load(struct result *result, int variant, int layer, int experts,
                        const int64_t *tokens, const double *weight, struct err *err) {
    for (int e = 0; e < experts; e++) {
        sqlite3_stmt *row = row_of(result, RESULT_expert, variant, layer);
        sqlite3_bind_int(row, 3, e);
        sqlite3_bind_int64(row, 4, tokens[e]);
        if (weight) bind_real(row, 5, weight[e]);
        if (!db_run(&result->db, row, err)) return false;
    }
    return true;
}

bool result_batches(struct result *result, const struct result_batches *batches, struct err *err) {
    for (int64_t b = 0; b < batches->count; b++) {
        sqlite3_stmt *row = row_of(result, RESULT_batch, batches->variant, batches->layer);
        sqlite3_bind_int64(row, 3, batches->first + b);
        sqlite3_bind_int64(row, 4, batches->tokens[b]);
        bind_real(row, 5, batches->maxvio[b]);
        if (batches->efficiency) bind_real(row, 6, batches->efficiency[b]);
        if (!db_run(&result->db, row, err)) return false;
    }
    return true;
}

bool result_bias(struct result *result, int variant, int layer, int experts, const double *bias,
                 struct err *err) {
    for (int e = 0; e < experts; e++) {
        sqlite3_stmt *row = row_of(result, RESULT_bias, variant, layer);
        sqlite3_bind_int(row, 3, e);
        bind_real(row, 4, bias[e]);
        if (!db_run(&result->db, row, err)) return false;
    }
    return true;
}

bool result_dynamics(struct result *result, const struct result_dynamics *d, struct err *err) {
    sqlite3_stmt *row = row_of(result, RESULT_dynamics, d->variant, d->layer);
    const double values[] = {d->start,     d->level,     d->settling_batches,
                             d->overshoot, d->amplitude, d->period};
    sqlite3_bind_int64(row, 3, d->batches);
    for (int i = 0; i < 6; i++) bind_real(row, 4 + i, values[i]);
    return db_run(&result->db, row, err);
}

bool result_loss(struct result *result, int variant, int layer, const char *name, double value,
                 struct err *err) {
    sqlite3_stmt *row = row_of(result, RESULT_loss, variant, layer);
    bind_text(row, 3, name);
    bind_real(row, 4, value);
    return db_run(&result->db, row, err);
}

bool result_optimum(struct result *result, const struct result_optimum *o, struct err *err) {
    sqlite3_stmt *row = row_of(result, RESULT_optimum, o->variant, o->layer);
    sqlite3_bind_int64(row, 3, o->batch);
    bind_real(row, 4, o->maxvio);
    bind_real(row, 5, o->mass);
    bind_real(row, 6, o->optimum);
    return db_run(&result->db, row, err);
}

static bool insert_domain(struct result *result, sqlite3_stmt *row, int domain, struct err *err) {
    const int64_t *counts = result->domain_counts + (int64_t)domain * result->experts;
    bool ok = true;
    for (int e = 0; ok && e < result->experts; e++) {
        sqlite3_bind_int(row, 1, result->variant);
        sqlite3_bind_int(row, 2, result->layer);
        bind_text(row, 3, trace_domain(result->trace, domain));
        sqlite3_bind_int(row, 4, e);
        sqlite3_bind_int64(row, 5, counts[e]);
        ok = db_run(&result->db, row, err);
    }
    return ok;
}

/* Writes the gathered loads of domains (adding, should a variant and layer come twice). */
static bool flush_domains(struct result *result, struct err *err) {
    if (!result->domain_counts) return true;
    sqlite3_stmt *row = db_prepare(&result->db,
                                   "INSERT INTO result_domain VALUES (?1, ?2, ?3, ?4, ?5) "
                                   "ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens",
                                   err);
    bool ok = row != NULL;
    for (int d = 0; ok && d < trace_domains(result->trace); d++)
        ok = insert_domain(result, row, d, err);
    sqlite3_finalize(row);
    free(result->domain_counts);
    result->domain_counts = NULL;
    return ok;
}

static bool gather_domain(struct result *result, int variant, int layer, int experts,
                          struct err *err) {
    if (result->domain_counts && result->variant == variant && result->layer == layer) return true;
    if (!flush_domains(result, err)) return false;
    size_t n = (size_t)trace_domains(result->trace) * (size_t)experts;
    result->domain_counts = calloc(n + 1, sizeof *result->domain_counts);
    result->variant = variant;
    result->layer = layer;
    result->experts = experts;
    return result->domain_counts || err_memory(err, "domain loads");
}

bool result_document_load(struct result *result, int variant, int layer, int64_t document,
                          int experts, const int64_t *counts, struct err *err) {
    sqlite3_stmt *row = row_of(result, RESULT_document, variant, layer);
    sqlite3_bind_int64(row, 3, document);
    sqlite3_bind_blob(row, 4, counts, experts * 8, SQLITE_STATIC);
    if (!gather_domain(result, variant, layer, experts, err) || !db_run(&result->db, row, err))
        return false;
    int64_t domain = trace_domain_of(result->trace, document);
    for (int e = 0; e < experts; e++) result->domain_counts[domain * experts + e] += counts[e];
    return true;
}

bool result_rank_weight(struct result *result, int variant, int layer, int k, const double *mean,
                        const double *sd, struct err *err) {
    for (int i = 0; i < k; i++) {
        sqlite3_stmt *row = row_of(result, RESULT_rank_weight, variant, layer);
        sqlite3_bind_int(row, 3, i);
        bind_real(row, 4, mean[i]);
        bind_real(row, 5, sd[i]);
        if (!db_run(&result->db, row, err)) return false;
    }
    return true;
}

static void close_database(struct result *result) {
    for (int i = 0; i < RESULT_TABLE_COUNT; i++) sqlite3_finalize(result->insert[i]);
    memset(result->insert, 0, sizeof result->insert);
    if (result->db.handle) db_close(&result->db);
}

/* The data must be on the disk before the name is. */
static bool publish(struct result *result, struct err *err) {
    int fd = open(result->temporary, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    ok = ok && rename(result->temporary, result->out) == 0;
    if (!ok) return err_errno(err, result->out, "cannot write");
    free(result->temporary);
    result->temporary = NULL;
    return true;
}

bool result_commit(struct result *result, struct err *err) {
    bool ok = flush_domains(result, err) && db_exec(&result->db, "COMMIT", err);
    close_database(result);
    if (ok && result->out) ok = publish(result, err);
    result_abandon(result);
    return ok;
}

void result_abandon(struct result *result) {
    if (!result) return;
    close_database(result); /* rolls back */
    if (result->temporary) unlink(result->temporary);
    free(result->temporary);
    free(result->domain_counts);
    free(result->out);
    free(result);
}
