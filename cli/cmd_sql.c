/* cmd_sql.c - `steelyard sql`: a read-only query, the user's own or a named one, on a trace or
 * result */
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/table.h"
#include "cli/commands.h"
#include "traces/query.h"

static const struct table_column columns[] = {{"query", "", TABLE_TEXT},
                                              {"answers", "", TABLE_TEXT}};

/* Names, with what the first comment line of each says. */
static bool list(struct output_choice choice, struct err *err) {
    struct table *table = table_create(columns, 2, err);
    if (!table) return false;
    for (const struct trace_named_query *q = trace_named_queries; q->name; q++) {
        const char *dash = strstr(q->sql, " - "), *end = strchr(q->sql, '\n');
        struct str answer = {0};
        if (dash && end && dash < end) str_append(&answer, dash + 3, (size_t)(end - dash - 3));
        table_text(table, q->name);
        table_text(table, str_text(&answer));
        str_free(&answer);
    }
    bool ok = table_ok(table, err) && output_table(table, choice, err);
    table_free(table);
    return ok;
}

static bool is_named(const char *text) {
    for (const struct trace_named_query *q = trace_named_queries; q->name; q++)
        if (strcmp(q->name, text) == 0) return true;
    return false;
}

static struct query_value value_of(const char *text) {
    struct err ignored = {0};
    int64_t integer;
    double real;
    if (parse_int(text, "", INT64_MIN, INT64_MAX, &integer, &ignored)) return QUERY_I(integer);
    if (parse_real(text, "", -1e300, 1e300, &real, &ignored)) return QUERY_R(real);
    return QUERY_T(text);
}

static struct table *ask_named(struct trace *trace, const struct text_list *rest, struct err *err) {
    int count = rest->count - 2;
    struct query_value *values = calloc((size_t)count + 1, sizeof *values);
    struct table *table = NULL;
    if (!values) err_memory(err, "query");
    for (int i = 0; values && i < count; i++) values[i] = value_of(rest->items[2 + i]);
    if (values) table = trace_query(trace, rest->items[1], values, count, err);
    free(values);
    return table;
}

static bool ask(const struct text_list *rest, struct output_choice choice, struct err *err) {
    struct trace *trace = trace_open(rest->items[0], err);
    if (!trace) return false;
    struct table *table = NULL;
    if (is_named(rest->items[1]))
        table = ask_named(trace, rest, err);
    else if (rest->count > 2)
        err_set(err, ERR_USAGE, "found %d arguments, expected DB and one SQL text or query name",
                rest->count);
    else
        table = trace_sql(trace, rest->items[1], err);
    bool ok = table && output_table(table, choice, err);
    table_free(table);
    trace_free(trace);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    bool names = false;
    const struct option options[] = {
        {"list", OPTION_FLAG, &names, NULL, "list the named queries", 0, 0},
        OPTION_OUTPUT(choice),
        {0}};
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done) {
        if (names)
            ok = list(choice, err);
        else if (rest.count < 2)
            ok = err_set(err, ERR_USAGE,
                         "expected DB and SQL, or DB, a query's name and its values");
        else
            ok = ask(&rest, choice, err);
    }
    text_list_free(&rest);
    return ok;
}

const struct command command_sql = {
    .name = "sql",
    .arguments = "DB SQL|NAME [VALUE...]",
    .summary = "query a trace or result, with every logit as a row of router_score",
    .example = "steelyard sql run.db \"SELECT expert, count(*) FROM router_score WHERE chosen = 1 "
               "GROUP BY expert\"",
    .run = run};
