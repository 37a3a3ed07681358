/* throughput_request.c - the lists of `steelyard throughput`, and the cells that they make */
#include "cli/throughput_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CELLS = 100000 };

static const char *const list_names[] = {
#define X(e, name, otherwise) name,
    THROUGHPUT_LISTS(X)
#undef X
};
static const char *const list_defaults[] = {
#define X(e, name, otherwise) otherwise,
    THROUGHPUT_LISTS(X)
#undef X
};

bool throughput_request_lists(struct throughput_request *q, struct err *err) {
    for (int i = 0; i < THROUGHPUT_LIST_COUNT; i++) {
        if (q->list[i].count == 0 && list_defaults[i]) {
            q->list[i].items = malloc(sizeof *q->list[i].items);
            if (!q->list[i].items) return err_memory(err, "options");
            q->list[i].items[0] = list_defaults[i];
            q->list[i].count = 1;
        }
        if (!text_list_split(&q->list[i], &q->storage[i], err)) return false;
    }
    return true;
}

void throughput_request_free(struct throughput_request *q) {
    for (int i = 0; i < THROUGHPUT_LIST_COUNT; i++) {
        text_list_free(&q->list[i]);
        free(q->storage[i]);
    }
    text_list_free(&q->gates);
}

void throughput_request_describe(const struct throughput_request *q, struct str *out) {
    str_printf(out, "throughput --cluster %s", q->cluster);
    for (int i = 0; i < q->gates.count; i++) str_printf(out, " --gate %s", q->gates.items[i]);
    for (int l = 0; l < THROUGHPUT_LIST_COUNT; l++)
        for (int i = 0; i < q->list[l].count; i++)
            str_printf(out, i ? ",%s" : " --%s %s", i ? q->list[l].items[i] : list_names[l],
                       q->list[l].items[i]);
    str_printf(out, " --replica-choice %s --window %lld --batches %lld --seed %lld", q->choice,
               (long long)q->window, (long long)q->batches, (long long)q->seed);
    if (q->hash_table) str_printf(out, " --hash-table %s", q->hash_table);
    if (q->capacity > 0) str_printf(out, " --capacity %g", q->capacity);
    if (q->pad) str_puts(out, " --pad");
    if (q->overlap) str_puts(out, " --overlap");
    if (q->moe_only) str_puts(out, " --moe-only");
}

/* ---- cells */

struct making {
    const struct throughput_request *q;
    const struct trace *trace;
    struct throughput_points *points;
};

static bool item_int(const struct throughput_request *q, enum throughput_list list, int i,
                     int64_t min, int64_t *out, struct err *err) {
    char name[32];
    snprintf(name, sizeof name, "--%s", list_names[list]);
    bool ok = parse_int(q->list[list].items[i], name, min, 1 << 20, out, err);
    if (!ok) err->code = ERR_USAGE;
    return ok;
}

static bool add_point(struct throughput_points *points, struct throughput_point point,
                      struct err *err) {
    if (points->count == MOST_CELLS)
        return err_set(err, ERR_USAGE, "found more than %d cells, expected fewer list items",
                       MOST_CELLS);
    if (points->count == points->room) {
        int room = points->room ? 2 * points->room : 64;
        struct throughput_point *more = realloc(points->item, (size_t)room * sizeof *more);
        if (!more) return err_memory(err, "cells");
        points->item = more;
        points->room = room;
    }
    points->item[points->count++] = point;
    return true;
}

static bool read_learn(const char *text, const struct trace *trace, struct throughput_point *point,
                       struct err *err) {
    static const char domain[] = "domain=";
    point->learn = LEARN_WHOLE;
    if (strcmp(text, "whole") == 0) return true;
    point->learn = LEARN_PREVIOUS;
    if (strcmp(text, "previous") == 0) return true;
    point->learn = LEARN_DOMAIN;
    for (point->domain = 0; point->domain < trace_domains(trace); point->domain++)
        if (strncmp(text, domain, sizeof domain - 1) == 0 &&
            strcmp(text + sizeof domain - 1, trace_domain(trace, point->domain)) == 0)
            return true;
    return err_set(err, ERR_USAGE,
                   "--learn: found \"%.80s\", expected whole, previous or domain=NAME of the trace",
                   text);
}

void throughput_learn_name(const struct throughput_point *point, const struct trace *trace,
                           struct str *out) {
    static const char *const names[] = {
#define X(e, name, help) name,
        LEARN_FROM(X)
#undef X
    };
    str_puts(out, names[point->learn]);
    if (point->learn == LEARN_DOMAIN) str_printf(out, "=%s", trace_domain(trace, point->domain));
}

static bool add_learns(const struct making *m, struct throughput_point point, struct err *err) {
    const struct text_list *learn = &m->q->list[LIST_LEARN];
    for (int i = 0; i < learn->count; i++) {
        if (!read_learn(learn->items[i], m->trace, &point, err)) return false;
        int intervals = point.learn == LEARN_PREVIOUS ? m->q->list[LIST_REFRESH].count : 1;
        for (int j = 0; j < intervals; j++)
            if (!item_int(m->q, LIST_REFRESH, j, 1, &point.refresh, err) ||
                !add_point(m->points, point, err))
                return false;
    }
    return true;
}

static bool add_contexts(const struct making *m, struct throughput_point point, struct err *err) {
    const struct text_list *contexts = &m->q->list[LIST_CONTEXT];
    for (int i = 0; i < contexts->count; i++) {
        if (!parse_real(contexts->items[i], "--context", 1, 1e8, &point.context, err)) {
            err->code = ERR_USAGE;
            return false;
        }
        if (!add_learns(m, point, err)) return false;
    }
    return true;
}

/* The batch sizes of one phase, ranks, placement and replicas. */
static bool add_sizes(const struct making *m, struct throughput_point point, struct err *err) {
    enum throughput_list sizes = point.phase == PHASE_DECODE ? LIST_CONCURRENCY : LIST_TOKENS;
    for (int i = 0; i < m->q->list[sizes].count; i++)
        if (!item_int(m->q, sizes, i, 1, &point.tokens_per_rank, err) ||
            !add_contexts(m, point, err))
            return false;
    return true;
}

static bool add_placements(const struct making *m, struct throughput_point point, struct err *err) {
    const struct text_list *rules = &m->q->list[LIST_PLACEMENT];
    for (int p = 0; p < rules->count; p++) {
        if (!placement_find(rules->items[p], &point.placement, err)) return false;
        for (int i = 0; i < m->q->list[LIST_REPLICAS].count; i++) {
            int64_t replicas;
            if (!item_int(m->q, LIST_REPLICAS, i, 0, &replicas, err)) return false;
            point.replicas = (int)replicas;
            if (!add_sizes(m, point, err)) return false;
        }
    }
    return true;
}

static bool add_phases(const struct making *m, struct throughput_point point, struct err *err) {
    for (int p = 0; p < m->q->list[LIST_PHASE].count; p++)
        for (int r = 0; r < m->q->list[LIST_RANKS].count; r++) {
            int64_t ranks;
            if (!serving_phase_find(m->q->list[LIST_PHASE].items[p], &point.phase, err) ||
                !item_int(m->q, LIST_RANKS, r, 1, &ranks, err))
                return false;
            point.ranks = (int)ranks;
            if (!add_placements(m, point, err)) return false;
        }
    return true;
}

bool throughput_request_points(const struct throughput_request *request, const struct trace *trace,
                               int variants, struct throughput_points *points, struct err *err) {
    const struct making m = {request, trace, points};
    const struct text_list *loads = &request->list[LIST_LOAD];
    for (int i = 0; i < loads->count; i++) {
        struct throughput_point point = {0};
        if (!load_choice_find(loads->items[i], &point.load, err)) return false;
        bool made = point.load.source == LOAD_AT_RANDOM || point.load.source == LOAD_OF_LAW;
        for (point.variant = 0; point.variant < (made ? 1 : variants); point.variant++)
            if (!add_phases(&m, point, err)) return false;
    }
    return true;
}
