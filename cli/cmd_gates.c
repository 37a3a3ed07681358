/* cmd_gates.c - `steelyard gates`: presets, bias rules, and what a specification means step by step
 */
#include <stdio.h>
#include <string.h>

#include "base/table.h"
#include "cli/catalogue.h"
#include "cli/commands.h"
#include "router/bias.h"
#include "router/gate.h"
#include "sim/losses.h"

static const struct table_column columns[] = {{"kind", "", TABLE_TEXT},
                                              {"name", "", TABLE_TEXT},
                                              {"meaning", "", TABLE_TEXT},
                                              {"needs", "", TABLE_TEXT},
                                              {"source", "", TABLE_TEXT}};

/* One row of every table that gates are made of. */
struct part {
    const char *kind, *name, *meaning;
};

static const struct part parts[] = {
#define X(e, text, help) {"score", text, help},
    GATE_SCORES(X)
#undef X
#define X(e, text, help) {"groups", text, help},
        GATE_GROUP_RULES(X)
#undef X
#define X(name, rule, help) {"group-kind", name, help},
            GATE_GROUP_KINDS(X)
#undef X
#define X(e, text, help) {"fill", text, help},
                GATE_FILLS(X)
#undef X
#define X(e, text, help) {"order", text, help},
                    GATE_ORDERS(X)
#undef X
#define X(e, text, help) {"norm", text, help},
                        GATE_NORMS(X)
#undef X
#define X(e, text, help) {"fn", text, help},
                            GATE_FNS(X)
#undef X
#define X(e, text, help) {"assign", text, help},
                                GATE_ASSIGNS(X)
#undef X
#define X(e, text, help) {"capacity", text, help},
                                    GATE_DROPS(X)
#undef X
#define X(e, text, help) {"capacity-order", text, help},
                                        GATE_TURNS(X)
#undef X
#define X(e, text, help) {"round", text, help},
                                            GATE_ROUNDINGS(X)
#undef X
#define X(e, text, help) {"cut", text, help},
                                                GATE_CUTS(X)
#undef X
#define X(e, text, help) {"dtype", text, help},
                                                    GATE_DTYPES(X)
#undef X
#define X(e, text, help) {"second", text, help},
                                                        GATE_SECONDS(X)
#undef X
                                                            {"bias", "bias",
                                                             "choice score = score + b_e; weights "
                                                             "are "
                                                             "taken without b"},
    {"topk", "topk", "the k experts of the highest choice scores; among equals the lower index"},
    {"scale", "scale", "every weight times this, last"},
    {"noise", "noise",
     "logit + SIGMA z before anything else, z standard normal by token and expert"},
    {"seed", "seed", "what noise and the second choice are drawn from; else the run's --seed"},
    {"devices", "devices",
     "the experts of one of D contiguous equal blocks share C = factor * k T / D places of a "
     "batch"}};

static const size_t part_count = sizeof parts / sizeof *parts;

/* What a part needs, and where it was read. */
static const struct origin {
    const char *kind, *name, *needs, *source;
} origins[] = {
    {"score", "softmax", "router scores", "arXiv 1701.06538 eq. 3; Mixtral, OLMoE, DeepSeek-V2"},
    {"score", "sigmoid", "router scores", "DeepSeek-V3, arXiv 2412.19437 eq. 15"},
    {"score", "sqrtsoftplus", "router scores", "transformers deepseek_v4; Megatron-LM"},
    {"score", "relu", "router scores", "ReMoE, arXiv 2412.14711 (there with threshold=0)"},
    {"score", "tanh", "router scores", "no model known: a bounded score that can be negative"},
    {"score", "identity", "router scores", "the control: no score function"},
    {"groups", "max", "N divides E; KEEP E/N >= k", "DeepSeek-V2, arXiv 2405.04434 sec. 2.2.2"},
    {"groups", "top2sum", "N divides E; KEEP E/N >= k; E/N >= 2",
     "DeepSeek-V3, arXiv 2412.19437 sec. 2.1.2; transformers deepseek_v3"},
    {"groups", "topsum", "N divides E; KEEP E/N >= k; k >= KEEP",
     "Megatron-LM moe_utils; the text of DeepSeek-V3 sec. 2.1.2"},
    {"group-kind", "device", "groups=device:D:M, or replay --groups device:M with --ranks D",
     "DeepSeek-V2, arXiv 2405.04434 sec. 2.2.2 (D = 8, M = 3)"},
    {"group-kind", "node", "groups=node:N:M, or replay --groups node:M with --ranks N",
     "DeepSeek-V3, arXiv 2412.19437 sec. 2.1.2 (N = 8, M = 4)"},
    {"fill", "-inf", "groups", "DeepSeek's inference code; transformers; Megatron-LM"},
    {"fill", "0", "groups", "older transformers deepseek_v3, the first released DeepSeek-V3 code"},
    {"order", "score-topk", "-", "most routers"},
    {"order", "topk-score", "-", "transformers gpt_oss, granitemoe, jetmoe"},
    {"norm", "none", "-", "OLMoE, Switch, DeepSeek-V2"},
    {"norm", "sum", "-", "Mixtral (EPS 0); DeepSeek-V3 (EPS 1e-20)"},
    {"norm", "clamp", "-", "transformers ernie4_5_moe"},
    {"norm", "p", "-", "transformers dbrx, moe_normalize_expert_weights"},
    {"fn", "table", "-", "router/MATH.md sections 1 to 4"},
    {"fn", "sparsemixer", "k = 2, no bias, no groups", "arXiv 2409.12136; transformers phimoe"},
    {"fn", "hash", "token ids; no bias, groups, noise",
     "Hash Layers, arXiv 2106.04426 sec. 3; DeepSeek-V4's first layers have such a table of their "
     "own"},
    {"fn", "balanced-hash", "token ids; no bias, groups, noise",
     "Hash Layers, arXiv 2106.04426 sec. 3.2; here by the frequencies of the replayed text"},
    {"fn", "hash-table",
     "token ids; the layer's table, in the trace or by --hash-table; no bias, groups, noise",
     "DeepSeek-V4's first layers, tid2eid of its checkpoint; transformers deepseek_v4"},
    {"assign", "token", "-", "most routers"},
    {"assign", "expert", "a whole balance batch; not causal", "Expert Choice, arXiv 2202.09368"},
    {"assign", "sinkhorn", "a whole balance batch; not causal",
     "Megatron-LM sinkhorn (there in training); S-BASE, arXiv 2202.01169"},
    {"assign", "base", "a whole balance batch; not causal", "BASE layers, arXiv 2103.16716"},
    {"capacity", "prob", "a whole balance batch; not causal", "Megatron-LM, drop policy probs"},
    {"capacity", "position", "a whole balance batch",
     "GShard, arXiv 2006.16668; Switch, arXiv 2101.03961; Megatron-LM, drop policy position"},
    {"capacity", "priority", "a whole balance batch; not causal", "V-MoE, arXiv 2106.05974 sec. 4"},
    {"capacity-order", "choice", "capacity", "GShard, arXiv 2006.16668, Algorithm 1"},
    {"capacity-order", "token", "capacity", "Megatron-LM moe_utils"},
    {"round", "ceil", "capacity", "Megatron-LM, DeepSpeed"},
    {"round", "floor", "capacity", "Mesh-TensorFlow"},
    {"round", "nearest", "capacity", "V-MoE's released code"},
    {"cut", "none", "-", "most routers"},
    {"cut", "topp", "scores of all experts that are not negative",
     "dynamic routing, arXiv 2403.07652 sec. 3.2 (there softmax)"},
    {"cut", "threshold", "-",
     "ReMoE, arXiv 2412.14711 (relu, 0); DynMoE, arXiv 2405.14297 (sigmoid, learned per expert)"},
    {"dtype", "f32", "-", "routers in f32: DeepSeek-V2, V3.2, Kimi, Ling"},
    {"dtype", "bf16", "-",
     "all three: DeepSeek-V3's inference code, gpt-oss, mistral4, lfm2_moe; bf16:logits: Mixtral, "
     "minimax_m2, afmoe"},
    {"dtype", "f16", "-", "the same programs run in f16"},
    {"bias", "bias", "a captured bias, or a bias rule that starts from zero",
     "arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437 eq. 16"},
    {"topk", "topk", "k <= E", "all routers"},
    {"scale", "scale", "-", "DeepSeek-V2, routed_scaling_factor"},
    {"second", "all", "-", "most routers"},
    {"second", "random", "k = 2, scores that are not negative; seed= or --seed",
     "GShard, arXiv 2006.16668 sec. 2.2 and Algorithm 1; fairseq, transformers nllb_moe"},
    {"seed", "seed", "noise or second=random", "-"},
    {"devices", "devices", "a capacity that drops; D divides E",
     "DeepSeek-V2, arXiv 2405.04434 sec. 2.2.4 (D = 8, factor 1, policy prob)"},
    {"noise", "noise", "seed= or --seed",
     "arXiv 1701.06538 eq. 4 (there in training, its size learned)"}};

static const struct origin *origin_of(const char *kind, const char *name) {
    static const struct origin unknown = {.needs = "-", .source = NULL};
    for (size_t i = 0; i < sizeof origins / sizeof *origins; i++)
        if (strcmp(origins[i].kind, kind) == 0 && strcmp(origins[i].name, name) == 0)
            return &origins[i];
    return &unknown;
}

static void row(struct table *table, const char *kind, const char *name, const char *meaning,
                const char *needs, const char *source) {
    table_text(table, kind);
    table_text(table, name);
    table_text(table, meaning);
    table_text(table, needs);
    table_text(table, source);
}

static void part_row(struct table *table, const struct part *part) {
    const struct origin *origin = origin_of(part->kind, part->name);
    row(table, part->kind, part->name, part->meaning, origin->needs, origin->source);
}

static void rule_row(struct table *table, const struct bias_rule *rule) {
    char needs[128], rate[32];
    snprintf(rate, sizeof rate, ", a rate (%g)", rule->rate);
    snprintf(needs, sizeof needs, "%s%s%s",
             rule->update      ? "batches"
             : rule->adds_bias ? "a captured bias"
                               : "-",
             rule->needs_rate ? rate : "",
             rule->needs_scores ? ", the scores of a batch in memory"
             : rule->multiplies ? ", scores that are not negative"
                                : "");
    row(table, "bias-rule", rule->name, rule->summary, needs, rule->source);
}

static bool wanted(const char *name, const char *kind, const char *found) {
    return name == NULL || strcmp(name, found) == 0 || strcmp(name, kind) == 0;
}

static const struct gate_preset *preset_of(const char *name) {
    for (const struct gate_preset *p = gate_presets; p->name; p++)
        if (strcmp(p->name, name) == 0) return p;
    return NULL;
}

/* What a whole gate needs of a trace and its experts. */
static void gate_needs(const struct gate *gate, char *text, size_t size) {
    int n = snprintf(text, size, "E >= %d", gate->topk);
    if (gate->groups > 0 && n < (int)size)
        n += snprintf(text + n, size - (size_t)n, ", %d | E, %d E/%d >= %d", gate->groups,
                      gate->groups_kept, gate->groups, gate->topk);
    if (gate->bias && n < (int)size) n += snprintf(text + n, size - (size_t)n, ", a bias");
    if (gate_needs_batch(gate) && n < (int)size)
        n += snprintf(text + n, size - (size_t)n, ", whole batches");
    if (n < (int)size)
        snprintf(text + n, size - (size_t)n, ", %s",
                 gate->fn == GATE_HASH_TABLE ? "token ids, a table of them and router scores"
                 : gate_hashes(gate)         ? "token ids and router scores"
                                             : "router scores");
}

static void preset_row(struct table *table, const struct gate_preset *preset) {
    char needs[128] = "";
    struct gate gate;
    struct err err;
    if (gate_parse(preset->spec, NULL, &gate, &err)) gate_needs(&gate, needs, sizeof needs);
    row(table, "preset", preset->name, preset->spec, needs, preset->source);
}

static bool is_rule(const char *name) {
    for (const struct bias_rule *r = bias_rules; r->name; r++)
        if (strcmp(r->name, name) == 0) return true;
    return false;
}

/* All rows of that name or kind, or all rows; returns how many. */
static int list_named(struct table *table, const char *name) {
    int64_t before = table_rows(table);
    for (const struct gate_preset *p = gate_presets; p->name; p++)
        if (!name || strcmp(name, "preset") == 0) preset_row(table, p);
    for (const struct bias_rule *r = bias_rules; r->name; r++)
        if (wanted(name, "bias-rule", r->name)) rule_row(table, r);
    for (size_t i = 0; i < part_count; i++)
        if (wanted(name, parts[i].kind, parts[i].name)) part_row(table, &parts[i]);
#define X(loss, formula, source)                                                                   \
    if (wanted(name, "loss", #loss)) row(table, "loss", #loss, formula, "replay --losses", source);
    LOSSES(X)
#undef X
    bool rule = table_rows(table) > before && name && is_rule(name); /* its letters */
    for (const struct catalogue_row *r = catalogue_rows; r->kind; r++)
        if (wanted(name, r->kind, r->name) || (rule && strcmp(r->name, "letters") == 0))
            row(table, r->kind, r->name, r->meaning, r->needs, r->source);
    return (int)(table_rows(table) - before);
}

static void explain_part(struct table *table, const char *kind, int index, bool acts) {
    for (size_t i = 0; acts && i < part_count; i++)
        if (strcmp(parts[i].kind, kind) == 0 && index-- == 0) part_row(table, &parts[i]);
}

/* What looks at a whole balance batch, and what that means for use. */
static void explain_batch(struct table *table, const struct gate *gate) {
    bool expert = gate->assign == ASSIGN_EXPERT, limited = gate->capacity > 0;
    if (!gate_needs_batch(gate)) return;
    explain_part(table, "assign", (int)gate->assign, gate->assign != ASSIGN_TOKEN);
    if (limited)
        row(table, "capacity", "C",
            gate->devices > 0 ? "factor * k T / D choices of a balance batch on one of D devices"
                              : "factor * k T / E tokens of a balance batch, at most T",
            "-", NULL);
    explain_part(table, "devices", 0, gate->devices > 0);
    explain_part(table, "round", (int)gate->rounding, limited);
    explain_part(table, "capacity", (int)gate->drop, limited && !expert);
    explain_part(table, "capacity-order", (int)gate->turn, limited && gate->drop != DROP_PROB);
    row(table, "batch", gate_is_causal(gate) ? "causal" : "not causal",
        gate_is_causal(gate) ? "no later token matters"
                             : "later tokens matter, so that training can run it and generation "
                               "cannot",
        "a whole balance batch", NULL);
}

/* The canonical line, then every step that acts, in the order in which it acts. */
static bool explain(struct table *table, const char *spec, struct err *err) {
    struct gate gate;
    char line[GATE_TEXT_BYTES], needs[128];
    const struct gate_preset *preset = preset_of(spec);
    if (!gate_parse(spec, NULL, &gate, err)) return false;
    gate_print(&gate, line);
    gate_needs(&gate, needs, sizeof needs);
    row(table, "gate", spec, line, needs, preset ? preset->source : NULL);
    explain_part(table, "noise", 0, gate.noise > 0);
    explain_part(table, "dtype", (int)gate.dtype, gate.dtype != DTYPE_F32);
    explain_part(table, "fn", (int)gate.fn, gate.fn != GATE_TABLE);
    explain_part(table, "order", (int)gate.order, true);
    explain_part(table, "score", (int)gate.score, gate.fn != GATE_SPARSEMIXER);
    explain_part(table, "bias", 0, gate.bias);
    explain_part(table, "groups", (int)gate.group_rule, gate.groups > 0);
    explain_part(table, "fill", (int)gate.fill, gate.groups > 0);
    explain_part(table, "topk", 0, !gate_hashes(&gate));
    explain_part(table, "cut", (int)gate.cut, gate.cut != CUT_NONE);
    explain_part(table, "norm", (int)gate.norm, true);
    explain_part(table, "scale", 0, gate.scale != 1);
    explain_part(table, "second", (int)gate.second, gate.second != SECOND_ALL);
    explain_part(table, "seed", 0, gate.seeded);
    explain_batch(table, &gate);
    return true;
}

/* A preset step by step, whatever else has its name, or a specification step by step. */
static bool list(struct table *table, const struct text_list *names, struct err *err) {
    if (names->count == 0) list_named(table, NULL);
    for (int i = 0; i < names->count; i++) {
        const char *name = names->items[i];
        bool preset = preset_of(name) != NULL;
        if (preset && !explain(table, name, err)) return false;
        if (list_named(table, name) == 0 && !preset && !explain(table, name, err)) return false;
    }
    return true;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct output_choice choice = {0};
    const struct option options[] = {OPTION_OUTPUT(choice), {0}};
    struct text_list names = {0};
    bool done = false;
    bool ok = options_parse(command, options, argc, argv, &names, &done, err);
    if (ok && !done) {
        struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
        ok = table && list(table, &names, err) && output_table(table, choice, err);
        table_free(table);
    }
    text_list_free(&names);
    return ok;
}

const struct command command_gates = {
    .name = "gates",
    .arguments = "[NAME|SPEC...]",
    .summary = "list gates, their parts, bias rules, losses, dynamics and limits; or explain one",
    .example = "steelyard gates deepseek-v3,softmax,nobias",
    .run = run};
