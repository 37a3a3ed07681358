/* score_plan.h - columns of router_score, and how a query's conditions become a plan
 *
 * Private to score_table.c. A plan is a text of two letters for each condition: column (l t p e c)
 * and operator (= < > g s); idxNum holds the bits of the columns that are used. */
#ifndef TRACES_SCORE_PLAN_H
#define TRACES_SCORE_PLAN_H

/* The extension calls SQLite through the host's table of functions. */
#ifdef STEELYARD_EXTENSION
#include <sqlite3ext.h>
extern const sqlite3_api_routines *sqlite3_api;
#else
#include <sqlite3.h>
#endif
#include <stdint.h>

/* X(name, type, hidden): the columns in order */
#define COLUMNS(X) X(layer, "INTEGER", "") MORE_COLUMNS(X)
#define MORE_COLUMNS(X)                                                                            \
    X(token, "INTEGER", "")                                                                        \
    X(expert, "INTEGER", "")                                                                       \
    X(logit, "REAL", "")                                                                           \
    X(score, "REAL", "")                                                                           \
    X(weight, "REAL", "")                                                                          \
    X(rank, "INTEGER", "")                                                                         \
    X(chosen, "INTEGER", "")                                                                       \
    X(document, "INTEGER", " HIDDEN")                                                              \
    X(domain, "TEXT", " HIDDEN")                                                                   \
    X(position, "INTEGER", " HIDDEN")                                                              \
    X(id, "INTEGER", " HIDDEN")                                                                    \
    X(text, "TEXT", " HIDDEN")                                                                     \
    X(nll, "REAL", " HIDDEN")
enum column {
#define X(name, type, hidden) COLUMN_##name,
    COLUMNS(X)
#undef X
        COLUMN_COUNT
};
#define BIT(name) (UINT64_C(1) << COLUMN_##name)

/* Of the trace, for estimates. */
struct score_sizes {
    double layers, tokens, experts, topk; /* tokens 0 = not known yet */
};

/* xBestIndex. */
int score_plan(const struct score_sizes *sizes, sqlite3_index_info *info);

#endif
