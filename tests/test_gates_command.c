/* test_gates_command.c - `steelyard gates` lists and explains every part of a gate */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "router/bias.h"
#include "router/gate.h"
#include "sim/losses.h"
#include "tests/test.h"

static struct json *explain(const char *words) {
    char command[512], *out;
    struct err err;
    snprintf(command, sizeof command, "%s gates %s --json", test_program(), words);
    assert_int_equal(test_run(command, &out, NULL), 0);
    struct json *doc = json_parse(out, strlen(out), &err);
    test_ok(doc, &err);
    free(out);
    return doc;
}

static const char *member(const struct json *row, const char *name) {
    const struct json *value = json_present(row, name);
    return value ? json_text(value) : "";
}

static void every_part_states_meaning_needs_and_source(void **state) {
    int rows = 0;
    (void)state;
    struct json *doc = explain("");
    for (const struct json *r = json_first(doc); r; r = json_next(r), rows++) {
        const char *name = member(r, "name"), *kind = member(r, "kind");
        bool none = strcmp(kind, "bias-rule") == 0 && strcmp(name, "none") == 0;
        if (!*member(r, "meaning") || !*member(r, "needs") || (!*member(r, "source") && !none))
            fail_msg("%s %s: meaning \"%s\", needs \"%s\", source \"%s\"", kind, name,
                     member(r, "meaning"), member(r, "needs"), member(r, "source"));
    }
    assert_true(rows > 90);
    json_free(doc);
}

/* The names that a user may ask for, each with a row of its own kind. */
static void expect(const char *kind, const char *name) {
    struct json *doc = explain(name);
    bool found = false;
    for (const struct json *r = json_first(doc); r; r = json_next(r))
        found = found || (strcmp(member(r, "kind"), kind) == 0 && *member(r, "meaning"));
    if (!found) fail_msg("gates %s: found no row of kind %s", name, kind);
    json_free(doc);
}

static void every_name_is_explained(void **state) {
    (void)state;
    for (const struct gate_preset *p = gate_presets; p->name; p++) expect("gate", p->name);
    for (const struct bias_rule *r = bias_rules; r->name; r++) expect("bias-rule", r->name);
#define X(e, text, help) expect("score", text);
    GATE_SCORES(X)
#undef X
#define X(e, text, help) expect("groups", text);
    GATE_GROUP_RULES(X)
#undef X
#define X(name, rule, help) expect("group-kind", name);
    GATE_GROUP_KINDS(X)
#undef X
#define X(e, text, help) expect("fn", text);
    GATE_FNS(X)
#undef X
#define X(e, text, help) expect("cut", text);
    GATE_CUTS(X)
#undef X
#define X(e, text, help) expect("dtype", text);
    GATE_DTYPES(X)
#undef X
#define X(name, formula, source) expect("loss", #name);
    LOSSES(X)
#undef X
    expect("noise", "noise");
    expect("second", "random");
    expect("seed", "seed");
    expect("bias-option", "bias-rate");
    expect("bias-option", "sign"); /* a rule is shown with its letters */
    expect("dynamics", "settling_batches");
    expect("reference", "optimum");
    expect("not-replayable", "jitter");
    expect("devices", "devices");
}

static void a_specification_is_explained_in_order(void **state) {
    static const char *const kinds[] = {"gate", "noise", "dtype", "order", "score",
                                        "bias", "topk",  "cut",   "norm",  "scale"};
    int i = 0;
    (void)state;
    struct json *doc = explain("moonlight,dtype=bf16,noise=0.1,topp=0.9");
    for (const struct json *r = json_first(doc); r; r = json_next(r), i++)
        assert_string_equal(member(r, "kind"), kinds[i]);
    assert_int_equal(i, 10);
    json_free(doc);
}

int test_gates_command(void);
int test_gates_command(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_part_states_meaning_needs_and_source),
                                       cmocka_unit_test(every_name_is_explained),
                                       cmocka_unit_test(a_specification_is_explained_in_order)};
    return cmocka_run_group_tests_name("gates_command", tests, NULL, NULL);
}
