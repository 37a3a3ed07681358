/* score_plan.c - how a query's conditions on router_score become a plan */
#include "traces/score_plan.h"

#include <stdbool.h>

/* Letter of a column and an operator that a plan can use; 0 = none. */
static char column_letter(int column) {
    switch (column) {
    case COLUMN_layer:
        return 'l';
    case COLUMN_token:
        return 't';
    case COLUMN_position:
        return 'p';
    case COLUMN_expert:
        return 'e';
    case COLUMN_chosen:
        return 'c';
    default:
        return 0;
    }
}

static char operator_letter(int op) {
    switch (op) {
    case SQLITE_INDEX_CONSTRAINT_EQ:
        return '=';
    case SQLITE_INDEX_CONSTRAINT_GT:
        return '>';
    case SQLITE_INDEX_CONSTRAINT_GE:
        return 'g';
    case SQLITE_INDEX_CONSTRAINT_LT:
        return '<';
    case SQLITE_INDEX_CONSTRAINT_LE:
        return 's';
    default:
        return 0;
    }
}

static double narrow(const struct score_sizes *sizes, double rows, char column, char op) {
    double tokens = sizes->tokens > 0 ? sizes->tokens : 1e6;
    if (column == 'l') return rows / (sizes->layers > 0 ? sizes->layers : 1);
    if (column == 't') return op == '=' ? rows / tokens : rows / 4;
    if (column == 'p') return op == '=' ? rows / 256 : rows / 4;
    if (column == 'e') return rows / sizes->experts;
    return rows * sizes->topk / sizes->experts;
}

/* Rows come by layer, token, expert (or rank): may ORDER BY be left to that? */
static bool order_is_ours(const sqlite3_index_info *info, bool one_layer) {
    int want = one_layer ? COLUMN_token : COLUMN_layer;
    for (int i = 0; i < info->nOrderBy; i++) {
        int column = info->aOrderBy[i].iColumn;
        if (one_layer && column == COLUMN_layer) continue;
        if (column != want || info->aOrderBy[i].desc || want > COLUMN_token) return false;
        want++;
    }
    return true;
}

int score_plan(const struct score_sizes *sizes, sqlite3_index_info *info) {
    char plan[2 * 32 + 1];
    int used = 0;
    bool one_layer = false;
    double rows = 1e6 * 64 * (sizes->layers > 0 ? sizes->layers : 1);
    for (int i = 0; i < info->nConstraint && used < 32; i++) {
        char column = column_letter(info->aConstraint[i].iColumn);
        char op = operator_letter(info->aConstraint[i].op);
        bool range = column == 't' || column == 'p';
        if (!info->aConstraint[i].usable || !column || !op || (op != '=' && !range)) continue;
        plan[2 * used] = column;
        plan[2 * used + 1] = op;
        info->aConstraintUsage[i].argvIndex = ++used;
        one_layer = one_layer || column == 'l';
        rows = narrow(sizes, rows, column, op);
    }
    plan[2 * used] = '\0';
    info->idxStr = sqlite3_mprintf("%s", plan);
    if (!info->idxStr) return SQLITE_NOMEM;
    info->needToFreeIdxStr = 1;
    info->idxNum = (int)(info->colUsed & (BIT(nll) * 2 - 1));
    info->estimatedCost = rows < 1 ? 1 : rows;
    info->estimatedRows = rows < 1 ? 1 : (sqlite3_int64)rows;
    info->orderByConsumed = info->nOrderBy && order_is_ours(info, one_layer);
    return SQLITE_OK;
}
