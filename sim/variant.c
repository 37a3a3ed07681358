/* variant.c - the product of the user's lists, resolved at every layer
 *
 * The product is an odometer over eight digits; a combination whose digit has no meaning (a second
 * rate for a rule without rates) is skipped. Resolving is separate: words to structs at one layer.
 */
#include "sim/variant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"
#include "sim/notes.h"
#include "sim/same_as.h"

enum digit { GATE, SCORE, GROUPS, NORM, RULE, RATE, BATCH, RANKS, DIGITS };

const char *bias_start_name(enum bias_start start) {
    static const char *const names[] = {
        [START_DEFAULT] = "", [START_ZERO] = "zero", [START_CAPTURED] = "captured"};
    return names[start];
}

/* One combination, still in words; NULL = not asked. */
struct words {
    const char *gate, *score, *groups, *norm;
    int ranks;                    /* what --groups device:M and node:M divide the experts into */
    const struct bias_rule *rule; /* NULL: the default of each layer */
    enum bias_start start;
    const struct hash_tables *tables;
};

int variant_default_ranks(const struct source *source) {
    int ranks = 8;
    for (bool fits = false; ranks > 1 && !fits; ranks -= !fits) {
        fits = true;
        for (int l = 0; l < source->layers; l++)
            fits = fits && balance_ranks_fit(source->layer[l].experts, ranks);
    }
    return ranks;
}

/* ---- resolving one combination at one layer */

/* Copies one aspect of a gate from a specification that spells that aspect alone. */
static bool override_score(struct gate *gate, const char *word, struct err *err) {
    char text[GATE_TEXT_BYTES];
    struct gate from;
    snprintf(text, sizeof text, "%s,topk=1", word);
    if (strpbrk(word, ",=") || !gate_parse(text, NULL, &from, err))
        return err_set(err, ERR_USAGE,
                       "--score: found \"%.40s\", expected softmax, sigmoid, sqrtsoftplus, relu, "
                       "tanh or identity",
                       word);
    gate->score = from.score;
    return true;
}

/* "device:3" -> "device:8:3" on 8 ranks; other words stay. */
static void name_ranks(const char *word, int ranks, char *text, size_t size) {
    const char *colon = strchr(word, ':');
    size_t name = colon ? (size_t)(colon - word) : 0;
    bool kind = name > 0 && !strchr(colon + 1, ':') && strcspn(word, "0123456789") > name;
    if (kind)
        snprintf(text, size, "%.*s:%d%s", (int)name, word, ranks, colon);
    else
        snprintf(text, size, "%s", word);
}

static bool override_groups(struct gate *gate, const char *word, int ranks, struct err *err) {
    char text[GATE_TEXT_BYTES], groups[GATE_TEXT_BYTES];
    struct gate from;
    name_ranks(word, ranks, groups, sizeof groups);
    snprintf(text, sizeof text, "softmax,topk=%d,groups=%.200s", gate->topk, groups);
    if (!gate_parse(text, NULL, &from, err)) return err_context(err, "--groups %.40s", word);
    if (from.groups == 0) gate->fill = FILL_NEG_INF;
    gate->groups = from.groups;
    gate->groups_kept = from.groups_kept;
    gate->group_rule = from.group_rule;
    return true;
}

static bool override_norm(struct gate *gate, const char *word, struct err *err) {
    char text[GATE_TEXT_BYTES];
    struct gate from;
    snprintf(text, sizeof text, "softmax,topk=1,norm=%s", word);
    if (!gate_parse(text, NULL, &from, err)) return err_context(err, "--norm %.40s", word);
    gate->norm = from.norm;
    gate->norm_arg = from.norm_arg;
    return true;
}

static bool resolve_gate(const struct words *words, const struct source_layer *layer,
                         struct gate *gate, struct err *err) {
    if (!gate_parse(words->gate, &layer->native, gate, err))
        return err_context(err, "--gate %.60s", words->gate);
    if (gate->fn == GATE_SPARSEMIXER && (words->score || words->groups))
        return err_set(err, ERR_USAGE,
                       "--gate %.60s: is a special function with its own score and selection: "
                       "found --score or --groups, expected neither",
                       words->gate);
    if (words->score && !override_score(gate, words->score, err)) return false;
    if (words->groups && !override_groups(gate, words->groups, words->ranks, err)) return false;
    return !words->norm || override_norm(gate, words->norm, err);
}

/* Is the captured bias of this layer one that was trained with the gate's own score? */
static bool own_bias(const struct gate *gate, const struct source_layer *layer) {
    return gate->score == layer->native.score && gate->order == layer->native.order;
}

/* The rule when none was asked: a captured bias belongs to the score that it was trained with. A
 * gate that wants a bias where none was captured keeps its wish, for gate_check to refuse. */
static const struct bias_rule *default_rule(const struct gate *gate,
                                            const struct source_layer *layer) {
    const struct bias_rule *none = &bias_rules[0], *frozen = none;
    while (strcmp(frozen->name, "frozen") != 0) frozen++;
    if (!gate->bias) return none;
    return !layer->bias || own_bias(gate, layer) ? frozen : none;
}

static bool check_bias(const struct words *words, const struct variant_layer *at,
                       const struct source_layer *layer, struct err *err) {
    if (at->gate.fn != GATE_TABLE && at->rule->adds_bias)
        return err_set(err, ERR_USAGE,
                       "bias rule %s: gate %.60s is a special function without a place for a bias",
                       at->rule->name, words->gate);
    if (at->rule->multiplies && at->gate.cut != CUT_NONE)
        return err_set(err, ERR_USAGE,
                       "bias rule %s: found topp or threshold, expected neither: what they compare "
                       "is the score without its factor",
                       at->rule->name);
    bool positive = !gate_score_negative(at->gate.score) && at->gate.order == ORDER_SCORE_TOPK;
    if (at->rule->multiplies && (!positive || at->start == START_CAPTURED))
        return err_set(err, ERR_USAGE,
                       "bias rule %s: found %s, expected %s (it multiplies the score)",
                       at->rule->name,
                       positive ? "--bias-start captured"
                                : "scores that can be "
                                  "negative",
                       positive ? "zero (a factor of 1)"
                                : "softmax, sigmoid or "
                                  "sqrtsoftplus before the choice");
    if (at->start == START_CAPTURED && !layer->bias) {
        if (!words->rule) return true; /* gate_check says it better */
        return err_set(err, ERR_USAGE, "bias rule %s: found no captured bias, expected one%s",
                       at->rule->name,
                       at->rule->update ? " (or --bias-start zero)" : " (or a rule that updates)");
    }
    return true;
}

/* With choices alone only what was captured can be measured. */
static bool resolve_ids(const struct words *words, const struct source_layer *layer,
                        struct variant_layer *at, struct err *err) {
    const struct bias_rule *frozen = bias_rule_find("frozen", err);
    bool other = strcmp(words->gate, "native") != 0 || words->score || words->groups || words->norm;
    at->gate = layer->native;
    at->rule = layer->native.bias ? frozen : &bias_rules[0];
    if (other || (words->rule && words->rule != at->rule))
        return err_set(
            err, ERR_UNSUPPORTED,
            "another gate or bias rule needs router scores: the trace holds choices or counts "
            "only, expected --gate native alone");
    return true;
}

/* The layer's own table comes first: another would be another model. */
static bool find_table(const struct hash_tables *tables, const struct source_layer *layer,
                       struct variant_layer *at, struct err *err) {
    if (at->gate.fn != GATE_HASH_TABLE) return true;
    at->table = layer->table;
    if (at->table.expert) return true;
    if (!tables)
        return err_set(err, ERR_USAGE,
                       "gate: fn=hash-table: found no table of this layer, expected one in the "
                       "trace, or --hash-table FILE");
    return hash_tables_find(tables, layer->layer, layer->experts, at->gate.topk, &at->table, err);
}

static bool resolve(const struct words *words, const struct source_layer *layer, bool ids,
                    struct variant_layer *at, struct err *err) {
    *at = (struct variant_layer){0};
    if (ids) return resolve_ids(words, layer, at, err);
    if (!resolve_gate(words, layer, &at->gate, err)) return false;
    bool wanted = at->gate.bias;
    at->rule = words->rule ? words->rule : default_rule(&at->gate, layer);
    at->gate.bias = at->rule->adds_bias;
    if (at->rule->adds_bias) {
        at->start = at->rule->update ? words->start : START_CAPTURED;
        if (at->start == START_DEFAULT) at->start = START_ZERO;
    }
    if (!check_bias(words, at, layer, err)) return false;
    at->foreign = at->start == START_CAPTURED && !own_bias(&at->gate, layer);
    at->dropped_bias = wanted && !at->gate.bias && !words->rule;
    return find_table(words->tables, layer, at, err) &&
           gate_check(&at->gate, layer->experts, layer->bias || at->start == START_ZERO, err);
}

/* ---- the product */

struct product {
    const struct variant_lists *lists;
    const struct source *source;
    const struct bias_rule **rules;  /* [max(1, bias_rules.count)]; {NULL} = default */
    struct rate_schedule *schedules; /* [max(1, rates.count)] */
    int schedule_count;
    int size[DIGITS];
    int64_t default_ranks;
};

static const char *text_at(const struct texts *texts, int i) {
    return texts->count > 0 ? texts->item[i] : NULL;
}

static int ranks_at(const struct product *p, const int *at) {
    return (int)(p->lists->ranks_count > 0 ? p->lists->ranks[at[RANKS]] : p->default_ranks);
}

static struct words words_at(const struct product *p, const int *at) {
    const char *gate = text_at(&p->lists->gates, at[GATE]);
    return (struct words){.gate = gate ? gate : "native",
                          .score = text_at(&p->lists->scores, at[SCORE]),
                          .groups = text_at(&p->lists->groups, at[GROUPS]),
                          .norm = text_at(&p->lists->norms, at[NORM]),
                          .ranks = ranks_at(p, at),
                          .rule = p->rules[at[RULE]],
                          .start = p->lists->start,
                          .tables = p->lists->tables};
}

/* Advances the odometer; false after the last combination. */
static bool next(const struct product *p, int *at) {
    for (int d = DIGITS - 1; d >= 0; d--) {
        if (++at[d] < p->size[d]) return true;
        at[d] = 0;
    }
    return false;
}

static bool meaningless(const struct product *p, const int *at) {
    const struct bias_rule *rule = p->rules[at[RULE]];
    return at[RATE] > 0 && !(rule && rule->needs_rate);
}

static void product_sizes(struct product *p) {
    const struct variant_lists *lists = p->lists;
    const int counts[DIGITS] = {lists->gates.count, lists->scores.count,     lists->groups.count,
                                lists->norms.count, lists->bias_rules.count, p->schedule_count,
                                lists->batch_count, lists->ranks_count};
    for (int d = 0; d < DIGITS; d++) p->size[d] = counts[d] > 0 ? counts[d] : 1;
}

static bool find_rules(struct product *p, struct err *err) {
    bool any_rate = false;
    p->rules = calloc((size_t)p->lists->bias_rules.count + 1, sizeof *p->rules);
    p->schedules = calloc((size_t)p->lists->rates.count + 1, sizeof *p->schedules);
    if (!p->rules || !p->schedules) return err_memory(err, "bias rules");
    if (!rate_parse(p->lists->rates.item, p->lists->rates.count, p->schedules, &p->schedule_count,
                    err))
        return false;
    for (int i = 0; i < p->lists->bias_rules.count; i++) {
        p->rules[i] = bias_rule_find(p->lists->bias_rules.item[i], err);
        if (!p->rules[i]) return false;
        any_rate = any_rate || p->rules[i]->needs_rate;
    }
    if (p->schedule_count > 0 && !any_rate)
        return err_set(err, ERR_USAGE,
                       "--bias-rate: found no rule that has a rate, expected --bias-rule sign (or "
                       "another that updates)");
    return true;
}

static bool count_variants(const struct product *p, int *count, struct err *err) {
    double product = 1;
    for (int d = 0; d < DIGITS; d++) product *= p->size[d];
    if (product > VARIANT_MAX)
        return err_set(err, ERR_USAGE, "variants: found %.0f, expected at most %d", product,
                       VARIANT_MAX);
    int at[DIGITS] = {0};
    *count = 0;
    do *count += !meaningless(p, at);
    while (next(p, at));
    return true;
}

/* v->gate <- the gate as asked; v->label <- that and what else tells the variants apart. */
static void print_words(struct variant *v, const struct words *words, const struct product *p) {
    int n = snprintf(v->label, sizeof v->label, "%.200s", words->gate);
    const char *const parts[] = {words->score, words->groups ? "groups=" : NULL, words->groups,
                                 words->norm ? "norm=" : NULL, words->norm};
    char rate[RATE_TEXT_BYTES];
    bool joined = false;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!parts[i] || n >= (int)sizeof v->label) continue;
        n += snprintf(v->label + n, sizeof v->label - (size_t)n, "%s%.80s", joined ? "" : ",",
                      parts[i]);
        joined = parts[i][strlen(parts[i]) - 1] == '=';
    }
    memcpy(v->gate, v->label, sizeof v->gate);
    if (words->rule && n < (int)sizeof v->label)
        n += snprintf(v->label + n, sizeof v->label - (size_t)n, " %s", words->rule->name);
    if (v->schedule.pieces > 0 && n < (int)sizeof v->label) {
        rate_print(&v->schedule, rate);
        n += snprintf(v->label + n, sizeof v->label - (size_t)n, " %s", rate);
    }
    if (p->size[BATCH] > 1 && n < (int)sizeof v->label)
        n += snprintf(v->label + n, sizeof v->label - (size_t)n, " N=%lld",
                      (long long)v->batch_tokens);
    if (p->size[RANKS] > 1 && n < (int)sizeof v->label)
        snprintf(v->label + n, sizeof v->label - (size_t)n, " R=%d", v->ranks);
}

static bool check_ranks(const struct variant *v, const struct source *source, struct err *err) {
    for (int l = 0; l < source->layers; l++)
        if (!balance_ranks_fit(source->layer[l].experts, v->ranks))
            return err_set(err, ERR_USAGE,
                           "--ranks: found %d, expected a divisor of the %d experts of layer %d "
                           "(ranks hold equal contiguous blocks)",
                           v->ranks, source->layer[l].experts, source->layer[l].layer);
    return true;
}

/* Rules and gates that look at the scores of a whole batch must hold them in memory. */
static bool check_memory(const struct variant *v, const struct bias_rule *rule,
                         const struct variant_layer *at, const struct source *source,
                         struct err *err) {
    const double most = 1073741824.0;
    int64_t batch = v->batch_tokens < source->tokens ? v->batch_tokens : source->tokens;
    for (int l = 0; l < source->layers; l++) {
        bool by_gate = gate_needs_batch(&at[l].gate), by_rule = rule && rule->needs_scores;
        double row = (by_gate ? 8 : 1) * source->layer[l].experts * (double)sizeof(float);
        if ((by_gate || by_rule) && (double)batch * row > most)
            return err_set(
                err, ERR_USAGE,
                "--batch-tokens: found %lld, expected at most %.0f with %s (it holds the "
                "scores of a batch in memory)",
                (long long)v->batch_tokens, most / row,
                by_gate ? "a gate that needs whole batches" : rule->name);
    }
    return true;
}

/* Gate, rule and start as one text for all layers; where the gates differ they stay as asked. */
static void summarise_layers(struct variant *v, const struct variant_layer *at,
                             const struct source *source) {
    int layers = source->layers;
    bool one_gate = !source->layer[0].unknown;
    v->rule = at[0].rule->name;
    v->start = at[0].start;
    for (int l = 1; l < layers; l++) {
        one_gate = one_gate && gate_equal(&at[0].gate, &at[l].gate);
        if (at[l].rule != at[0].rule) v->rule = "mixed";
        if (at[l].start != START_DEFAULT) v->start = at[l].start;
    }
    if (one_gate) gate_print(&at[0].gate, v->gate);
}

static bool make_variant(const struct product *p, const int *at, struct variant *v,
                         struct variant_layer *layer, struct err *err) {
    const struct variant_lists *lists = p->lists;
    struct words words = words_at(p, at);
    bool rated = words.rule && words.rule->needs_rate;
    if (rated && p->schedule_count > 0)
        v->schedule = p->schedules[at[RATE]];
    else if (rated)
        v->schedule = (struct rate_schedule){.pieces = 1, .rate = {words.rule->rate}};
    v->rate = rated ? v->schedule.rate[0] : NAN;
    v->batch_tokens =
        lists->batch_count > 0 ? lists->batch_tokens[at[BATCH]] : VARIANT_BATCH_TOKENS;
    v->ranks = words.ranks;
    v->same_why = "";
    print_words(v, &words, p);
    if (!check_ranks(v, p->source, err)) return false;
    for (int l = 0; l < p->source->layers; l++)
        if (!resolve(&words, &p->source->layer[l], p->source->ids, &layer[l], err))
            return err_context(err, "variant %d: layer %d", v->number, p->source->layer[l].layer);
    summarise_layers(v, layer, p->source);
    return check_memory(v, words.rule, layer, p->source, err);
}

/* ---- law 5 */

/* Smallest earlier variant whose load is provably the same at every layer. */
static int find_twin(const struct variant_set *set, const struct source *source, int i) {
    for (int j = 0; j < i; j++) {
        bool same = true;
        for (int l = 0; same && l < set->layers; l++) {
            struct choice_law a =
                choice_law(&set->variant[j], variant_at(set, j, l), source->tokens);
            struct choice_law b =
                choice_law(&set->variant[i], variant_at(set, i, l), source->tokens);
            same = same_load(&a, &b);
        }
        if (same) return j;
    }
    return -1;
}

void variant_set_derive(struct variant_set *set, const struct source *source) {
    for (int i = 1; i < set->count; i++) {
        struct variant *v = &set->variant[i];
        v->same_as = 0;
        v->same_why = "";
        int twin = find_twin(set, source, i);
        if (twin < 0) continue;
        struct choice_law a =
            choice_law(&set->variant[twin], variant_at(set, twin, 0), source->tokens);
        struct choice_law b = choice_law(v, variant_at(set, i, 0), source->tokens);
        v->same_as = set->variant[twin].number;
        v->same_why = same_why(&a, &b);
    }
}

const struct variant_layer *variant_at(const struct variant_set *set, int variant, int layer) {
    return &set->at[(int64_t)variant * set->layers + layer];
}

bool variant_needs_batch(const struct variant_set *set, int variant) {
    bool any = false;
    for (int l = 0; l < set->layers; l++)
        any = any || gate_needs_batch(&variant_at(set, variant, l)->gate);
    return any;
}

bool variant_is_causal(const struct variant_set *set, int variant) {
    bool all = true;
    for (int l = 0; l < set->layers; l++)
        all = all && gate_is_causal(&variant_at(set, variant, l)->gate);
    return all;
}

bool variant_set_build(struct variant_set *set, const struct variant_lists *lists,
                       const struct source *source, struct err *err) {
    struct product p = {.lists = lists, .source = source};
    int at[DIGITS] = {0};
    bool ok = false;
    *set = (struct variant_set){.layers = source->layers, .seed = lists->seed};
    p.default_ranks = variant_default_ranks(source);
    if (!find_rules(&p, err)) goto done;
    product_sizes(&p);
    if (!count_variants(&p, &set->count, err)) goto done;
    set->variant = calloc((size_t)set->count, sizeof *set->variant);
    set->at = calloc((size_t)set->count * (size_t)set->layers, sizeof *set->at);
    if (!set->variant || !set->at) {
        err_memory(err, "variants");
        goto done;
    }
    int made = 0;
    do {
        if (meaningless(&p, at)) continue;
        set->variant[made].number = made + 1;
        if (!make_variant(&p, at, &set->variant[made], set->at + (int64_t)made * set->layers, err))
            goto done;
        made++;
    } while (next(&p, at));
    note_biases(set, &set->notes);
    note_causality(set, &set->notes);
    bool automatic = false; /* then rates are still to be found: auto_rate derives */
    for (int i = 0; i < set->count; i++) automatic |= set->variant[i].schedule.automatic;
    if (!automatic) variant_set_derive(set, source);
    ok = !set->notes.failed || err_memory(err, "notes");
done:
    free((void *)p.rules);
    free(p.schedules);
    return ok;
}

void variant_set_free(struct variant_set *set) {
    free(set->variant);
    free(set->at);
    str_free(&set->notes);
    *set = (struct variant_set){0};
}
