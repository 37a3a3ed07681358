/* loop.c - what a trace says of a closed loop */
#include "traces/loop.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char head[] = "closed-loop ";

void trace_loop_print(const struct trace_loop *loop, struct str *out) {
    if (!loop->closed) return;
    str_printf(out, "%srule=%s ", head, loop->rule_name);
    if (loop->rule && loop->rule->needs_rate) str_printf(out, "rate=%.17g ", loop->rate);
    if (*loop->start) str_printf(out, "start=%s ", loop->start);
    if (loop->rule) str_printf(out, "batch-tokens=%lld ", (long long)loop->batch_tokens);
    str_printf(out, "gate=%s", loop->gate);
}

/* value <- what follows "key=" in the clause; the gate is the last and goes on to the end. */
static bool value_of(const char *clause, const char *key, char *value, size_t size) {
    const char *gate = strstr(clause, "gate="), *at = strstr(clause, key);
    if (!at || !gate || at > gate) return false;
    at += strlen(key);
    size_t length = at > gate ? strlen(at) : strcspn(at, " ");
    return (size_t)snprintf(value, size, "%.*s", (int)length, at) < size;
}

static bool read_rule(const char *clause, struct trace_loop *loop, struct err *err) {
    char text[64];
    if (strcmp(loop->rule_name, "mixed") == 0) return true;
    loop->rule = bias_rule_find(loop->rule_name, err);
    if (!loop->rule) return false;
    if (!loop->rule->update) loop->rule = NULL;
    if (!loop->rule) return true;
    if (!value_of(clause, "batch-tokens=", text, sizeof text) ||
        !parse_int(text, "batch-tokens", 1, INT64_C(1) << 40, &loop->batch_tokens, err))
        return err_set(err, ERR_FORMAT, "closed loop: found no batch-tokens, expected them");
    if (!loop->rule->needs_rate) return true;
    if (value_of(clause, "rate=", text, sizeof text) &&
        parse_real(text, "rate", 0, 1e6, &loop->rate, err))
        return true;
    return err_set(err, ERR_FORMAT, "closed loop: found no rate, expected one for rule %s",
                   loop->rule_name);
}

bool trace_loop_read(const char *options, struct trace_loop *loop, struct err *err) {
    *loop = (struct trace_loop){0};
    const char *clause = strstr(options, head);
    if (!clause) return true;
    loop->closed = true;
    if (!value_of(clause, "rule=", loop->rule_name, sizeof loop->rule_name) ||
        !value_of(clause, "gate=", loop->gate, sizeof loop->gate))
        return err_set(err, ERR_FORMAT,
                       "options: found \"%.80s\", expected rule= and gate=", clause);
    value_of(clause, "start=", loop->start, sizeof loop->start);
    return read_rule(clause, loop, err);
}
