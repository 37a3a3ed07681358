/* gate.c - the gate specification as text: reading and writing (checking: gate_check.c)
 *
 * An item of the language is a bare word (`softmax`, `bias`) or `key=value`; one row of a table per
 * key. Later items override earlier ones, so that a preset can be amended. */
#include "router/gate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

#define X(e, text, help) text,
static const char *const score_names[] = {GATE_SCORES(X) NULL};
static const char *const rule_names[] = {GATE_GROUP_RULES(X) NULL};
static const char *const fill_names[] = {GATE_FILLS(X) NULL};
static const char *const order_names[] = {GATE_ORDERS(X) NULL};
static const char *const norm_names[] = {GATE_NORMS(X) NULL};
static const char *const fn_names[] = {GATE_FNS(X) NULL};
static const char *const dtype_names[] = {GATE_DTYPES(X) NULL};
static const char *const assign_names[] = {GATE_ASSIGNS(X) NULL};
static const char *const drop_names[] = {GATE_DROPS(X) NULL};
static const char *const turn_names[] = {GATE_TURNS(X) NULL};
static const char *const rounding_names[] = {GATE_ROUNDINGS(X) NULL};
static const char *const second_names[] = {GATE_SECONDS(X) NULL};
#undef X

/* ---- reading */

static int name_index(const char *const *names, const char *text) {
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0) return i;
    return -1;
}

static bool not_one_of(const char *key, const char *const *names, const char *found,
                       struct err *err) {
    struct str list = {0};
    for (int i = 0; names[i]; i++) str_printf(&list, "%s%s", i ? " " : "", names[i]);
    err_set(err, ERR_USAGE, "gate: %s: found \"%.40s\", expected one of: %s", key, found,
            str_text(&list));
    str_free(&list);
    return false;
}

static bool read_name(const char *key, const char *const *names, const char *text, int *out,
                      struct err *err) {
    *out = name_index(names, text);
    return *out >= 0 || not_one_of(key, names, text, err);
}

/* A finite f32 from min on. */
static bool read_float(const char *key, const char *text, double min, float *out, struct err *err) {
    char name[32];
    double value;
    snprintf(name, sizeof name, "gate: %s", key);
    if (!parse_real(text, name, min, 3e38, &value, err)) return false;
    *out = (float)value;
    return true;
}

/* Splits "name:argument" in place; the argument is NULL when there is none. */
static char *split_argument(char *text) {
    char *colon = strchr(text, ':');
    if (!colon) return NULL;
    *colon = '\0';
    return colon + 1;
}

/* The rule of groups=device:.. and the like; NULL when `text` is none of their names. */
static const char *rule_of_kind(const char *text) {
#define X(name, rule, help)                                                                        \
    if (strcmp(text, name) == 0) return rule;
    GATE_GROUP_KINDS(X)
#undef X
    return NULL;
}

static bool read_groups(struct gate *gate, char *text, struct err *err) {
    if (strcmp(text, "none") == 0) {
        gate->groups = gate->groups_kept = 0;
        return true;
    }
    char *kept = split_argument(text);
    const char *kind = text, *rule = rule_of_kind(text);
    int64_t n, keep;
    int rule_index;
    if (rule) {
        text = kept;
        kept = text ? split_argument(text) : NULL;
        if (!kept)
            return err_set(err, ERR_USAGE,
                           "gate: groups: found %s without its number, expected %s:N:KEEP (replay "
                           "--groups %s:KEEP takes N from --ranks)",
                           kind, kind, kind);
    } else {
        rule = kept ? split_argument(kept) : NULL;
    }
    if (!rule)
        return err_set(err, ERR_USAGE,
                       "gate: groups: found \"%.40s\", expected none, N:KEEP:RULE, device:D:M or "
                       "node:N:M",
                       text);
    if (!parse_int(text, "gate: groups", 1, GATE_MAX_EXPERTS, &n, err) ||
        !parse_int(kept, "gate: groups kept", 1, n, &keep, err) ||
        !read_name("groups rule", rule_names, rule, &rule_index, err))
        return false;
    gate->groups = (int)n;
    gate->groups_kept = (int)keep;
    gate->group_rule = (enum gate_group_rule)rule_index;
    return true;
}

static bool read_fill(struct gate *gate, char *text, struct err *err) {
    int index;
    if (!read_name("fill", fill_names, text, &index, err)) return false;
    gate->fill = (enum gate_fill)index;
    return true;
}

static bool read_topk(struct gate *gate, char *text, struct err *err) {
    int64_t k;
    if (!parse_int(text, "gate: topk", 1, GATE_MAX_TOPK, &k, err)) return false;
    gate->topk = (int)k;
    return true;
}

static bool read_order(struct gate *gate, char *text, struct err *err) {
    int index;
    if (!read_name("order", order_names, text, &index, err)) return false;
    gate->order = (enum gate_order)index;
    return true;
}

static bool read_norm(struct gate *gate, char *text, struct err *err) {
    char *argument = split_argument(text);
    int index;
    if (!read_name("norm", norm_names, text, &index, err)) return false;
    gate->norm = (enum gate_norm)index;
    gate->norm_arg = 0;
    bool takes = gate->norm != NORM_NONE, needs = gate->norm >= NORM_CLAMP;
    if (argument && !takes)
        return err_set(err, ERR_USAGE, "gate: norm=none: found an argument, expected none");
    if (!argument && needs)
        return err_set(err, ERR_USAGE, "gate: norm=%s: found no argument, expected norm=%s:X", text,
                       text);
    if (argument && !read_float("norm", argument, needs ? 1e-30 : 0, &gate->norm_arg, err))
        return false;
    return true;
}

static bool read_scale(struct gate *gate, char *text, struct err *err) {
    return read_float("scale", text, -3e38, &gate->scale, err);
}

static bool read_dtype(struct gate *gate, char *text, struct err *err) {
    char *part = split_argument(text);
    int index;
    if (!read_name("dtype", dtype_names, text, &index, err)) return false;
    if (part && strcmp(part, "logits") != 0)
        return err_set(err, ERR_USAGE, "gate: dtype: found \"%.40s\", expected %s or %s:logits",
                       part, text, text);
    gate->dtype = (enum gate_dtype)index;
    gate->dtype_logits = part != NULL;
    return true;
}

static bool read_noise(struct gate *gate, char *text, struct err *err) {
    return read_float("noise", text, 0, &gate->noise, err);
}

/* What multiplies the input of a router cannot be drawn from its outputs. */
static bool read_jitter(struct gate *gate, char *text, struct err *err) {
    (void)gate;
    return err_set(err, ERR_UNSUPPORTED,
                   "gate: found jitter=%.40s: it multiplies the router's input (Switch, Mixtral: "
                   "training only), which recorded logits do not determine; expected noise=SIGMA",
                   text);
}

static bool read_topp(struct gate *gate, char *text, struct err *err) {
    if (!read_float("topp", text, 0, &gate->cut_arg, err)) return false;
    gate->cut = CUT_TOPP;
    if (gate->cut_arg > 0 && gate->cut_arg <= 1) return true;
    return err_set(err, ERR_USAGE, "gate: topp: found %.40s, expected a share above 0, at most 1",
                   text);
}

static bool read_threshold(struct gate *gate, char *text, struct err *err) {
    gate->cut = CUT_THRESHOLD;
    return read_float("threshold", text, -3e38, &gate->cut_arg, err);
}

static bool read_cut(struct gate *gate, char *text, struct err *err) {
    gate->cut = CUT_NONE;
    return strcmp(text, "none") == 0 ||
           err_set(err, ERR_USAGE,
                   "gate: cut: found \"%.40s\", expected none, topp=P or threshold=X", text);
}

/* The seed of a hash is kept in an f32: whole numbers up to 2^24 are exact. */
static bool read_hash_seed(struct gate *gate, const char *argument, struct err *err) {
    int64_t seed;
    if (!argument)
        return err_set(
            err, ERR_USAGE,
            "gate: fn=hash: found no SEED, expected hash:SEED (a table drawn from it), or "
            "fn=hash-table for the layer's own");
    if (!parse_int(argument, "gate: fn=hash", 0, 1 << 24, &seed, err)) return false;
    gate->fn_arg = (float)seed;
    return true;
}

static bool read_fn(struct gate *gate, char *text, struct err *err) {
    if (strcmp(text, "llama4") == 0) {
        gate->fn = GATE_TABLE;
        gate->score = SCORE_SIGMOID;
        gate->order = ORDER_TOPK_SCORE;
        return true;
    }
    char *argument = split_argument(text);
    int index;
    if (!read_name("fn", fn_names, text, &index, err)) return false;
    gate->fn = (enum gate_fn)index;
    gate->fn_arg = 0;
    if (gate->fn == GATE_SPARSEMIXER && !argument)
        return err_set(err, ERR_USAGE,
                       "gate: fn=sparsemixer: found no EPS, expected sparsemixer:X");
    if (gate->fn == GATE_HASH) return read_hash_seed(gate, argument, err);
    if (argument && (gate->fn == GATE_BALANCED_HASH || gate->fn == GATE_HASH_TABLE))
        return err_set(err, ERR_USAGE, "gate: fn=%s: found an argument, expected none", text);
    return !argument || read_float("fn", argument, 0, &gate->fn_arg, err);
}

static bool read_assign(struct gate *gate, char *text, struct err *err) {
    char *tolerance = split_argument(text);
    char *iterations = tolerance ? split_argument(tolerance) : NULL;
    int index;
    int64_t most = SINKHORN_ITERATIONS;
    if (!read_name("assign", assign_names, text, &index, err)) return false;
    gate->assign = (enum gate_assign)index;
    gate->tolerance = SINKHORN_TOLERANCE;
    if (tolerance && gate->assign != ASSIGN_SINKHORN)
        return err_set(err, ERR_USAGE, "gate: assign=%s: found an argument, expected none", text);
    if (tolerance && !read_float("assign=sinkhorn", tolerance, 1e-30, &gate->tolerance, err))
        return false;
    if (iterations &&
        !parse_int(iterations, "gate: assign=sinkhorn: iterations", 1, 1000000, &most, err))
        return false;
    gate->iterations = (int)most;
    return true;
}

static bool read_capacity(struct gate *gate, char *text, struct err *err) {
    int drop = DROP_PROB, turn = TURN_CHOICE;
    gate->capacity = 0;
    if (strcmp(text, "none") == 0) {
        gate->devices = 0;
        return true;
    }
    char *policy = split_argument(text);
    char *order = policy ? split_argument(policy) : NULL;
    if (!parse_real(text, "gate: capacity", 0, 1e9, &gate->capacity, err) ||
        (policy && !read_name("capacity policy", drop_names, policy, &drop, err)) ||
        (order && !read_name("capacity order", turn_names, order, &turn, err)))
        return false;
    if (!(gate->capacity > 0))
        return err_set(err, ERR_USAGE,
                       "gate: capacity: found 0, expected a factor above 0, or none");
    if (order && drop == DROP_PROB)
        return err_set(err, ERR_USAGE,
                       "gate: capacity: found order %s with policy prob, expected it with position "
                       "or priority (dropping by weight serves in no order)",
                       order);
    gate->drop = (enum gate_drop)drop;
    gate->turn = (enum gate_turn)turn;
    return true;
}

static bool read_round(struct gate *gate, char *text, struct err *err) {
    int index;
    if (!read_name("round", rounding_names, text, &index, err)) return false;
    gate->rounding = (enum gate_rounding)index;
    return true;
}

static bool read_devices(struct gate *gate, char *text, struct err *err) {
    int64_t devices = 0;
    bool ok = strcmp(text, "none") == 0 ||
              parse_int(text, "gate: devices", 1, GATE_MAX_EXPERTS, &devices, err);
    gate->devices = (int)devices;
    return ok;
}

static bool read_second(struct gate *gate, char *text, struct err *err) {
    int index;
    if (!read_name("second", second_names, text, &index, err)) return false;
    gate->second = (enum gate_second)index;
    return true;
}

static bool read_seed(struct gate *gate, char *text, struct err *err) {
    int64_t seed;
    if (!parse_int(text, "gate: seed", 0, INT32_MAX, &seed, err)) return false;
    gate->seed = (int32_t)seed;
    gate->seeded = true;
    return true;
}

static bool read_score(struct gate *gate, char *text, struct err *err) {
    int index;
    if (!read_name("score", score_names, text, &index, err)) return false;
    gate->score = (enum gate_score)index;
    return true;
}

static const struct {
    const char *key;
    bool (*read)(struct gate *, char *, struct err *);
} keys[] = {{"groups", read_groups},
            {"fill", read_fill},
            {"topk", read_topk},
            {"order", read_order},
            {"norm", read_norm},
            {"scale", read_scale},
            {"fn", read_fn},
            {"score", read_score},
            {"dtype", read_dtype},
            {"noise", read_noise},
            {"jitter", read_jitter},
            {"topp", read_topp},
            {"threshold", read_threshold},
            {"cut", read_cut},
            {"assign", read_assign},
            {"capacity", read_capacity},
            {"round", read_round},
            {"devices", read_devices},
            {"second", read_second},
            {"seed", read_seed}};

#define GATE_KEYS                                                                                  \
    "groups= fill= topk= order= norm= scale= fn= dtype= noise= topp= threshold= second= seed= "    \
    "assign= capacity= round= devices="

static bool read_item(struct gate *gate, char *item, struct err *err) {
    char *equals = strchr(item, '=');
    if (!equals) {
        int score = name_index(score_names, item);
        if (score >= 0)
            gate->score = (enum gate_score)score;
        else if (strcmp(item, "bias") == 0)
            gate->bias = true;
        else if (strcmp(item, "nobias") == 0)
            gate->bias = false;
        else
            return err_set(
                err, ERR_USAGE,
                "gate: found \"%.40s\", expected a preset (first), a score, bias, nobias "
                "or " GATE_KEYS,
                item);
        return true;
    }
    *equals = '\0';
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i].key, item) == 0) return keys[i].read(gate, equals + 1, err);
    return err_set(err, ERR_USAGE, "gate: found \"%.40s=\", expected " GATE_KEYS, item);
}

/* What cannot act is set to its default, so that equal gates are equal structs. */
static void canonicalise(struct gate *gate) {
    if (gate->groups <= 1) gate->groups = gate->groups_kept = 0;
    if (gate->groups == 0) {
        gate->group_rule = GROUP_MAX;
        gate->fill = FILL_NEG_INF;
    }
    if (gate->fn != GATE_SPARSEMIXER && gate->fn != GATE_HASH) gate->fn_arg = 0;
    if (gate->noise == 0 && gate->second == SECOND_ALL) gate->seeded = false;
    if (!gate->seeded) gate->seed = 0;
    if (gate->norm == NORM_NONE) gate->norm_arg = 0;
    if (gate->dtype == DTYPE_F32) gate->dtype_logits = false;
    if (gate->cut == CUT_NONE) gate->cut_arg = 0;
    if (gate->assign != ASSIGN_SINKHORN) {
        gate->tolerance = 0;
        gate->iterations = 0;
    }
    if (gate->assign == ASSIGN_EXPERT && gate->capacity == 0) gate->capacity = 1;
    if (gate->capacity == 0 || gate->drop == DROP_PROB) gate->turn = TURN_CHOICE;
    if (gate->capacity > 0) return;
    gate->drop = DROP_PROB;
    gate->rounding = ROUND_CEIL;
}

static bool start_from(const char *item, const struct gate *native, struct gate *gate, bool *found,
                       struct err *err) {
    *found = true;
    if (strcmp(item, "native") == 0) {
        if (!native)
            return err_set(err, ERR_USAGE,
                           "gate: found native, but there is no captured gate here");
        *gate = *native;
        return true;
    }
    for (const struct gate_preset *p = gate_presets; p->name; p++)
        if (strcmp(p->name, item) == 0) return gate_parse(p->spec, NULL, gate, err);
    *found = false;
    return true;
}

bool gate_parse(const char *text, const struct gate *native, struct gate *gate, struct err *err) {
    char line[GATE_TEXT_BYTES];
    if (strlen(text) >= sizeof line)
        return err_set(err, ERR_USAGE, "gate: found %zu characters, expected fewer than %zu",
                       strlen(text), sizeof line);
    memcpy(line, text, strlen(text) + 1);
    *gate = (struct gate){.scale = 1};
    bool first = true;
    for (char *item = line, *next; item; item = next, first = false) {
        next = strchr(item, ',');
        if (next) *next++ = '\0';
        bool found = false;
        if (first && !start_from(item, native, gate, &found, err)) return false;
        if (!found && !read_item(gate, item, err)) return false;
    }
    canonicalise(gate);
    return gate_check_alone(gate, err);
}

/* ---- writing */

/* Exponent without padding: 1e-20. */
static void trim_exponent(char *text) {
    char *e = strchr(text, 'e');
    if (e) {
        char *from = e + 2, *to = e[1] == '-' ? e + 2 : e + 1;
        while (*from == '0' && from[1]) from++;
        memmove(to, from, strlen(from) + 1);
    }
}

/* Shortest decimal that rounds to the same f32. */
static void print_float(char *text, size_t size, float value) {
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, size, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    trim_exponent(text);
}

/* The same for f64. */
static void print_real(char *text, size_t size, double value) {
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, size, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    trim_exponent(text);
}

struct writer {
    char *at;
    size_t left;
};

static void put(struct writer *writer, const char *key, const char *value) {
    int n = snprintf(writer->at, writer->left, "%s%s", key, value);
    if (n < 0 || (size_t)n >= writer->left) return;
    writer->at += n;
    writer->left -= (size_t)n;
}

static void put_float(struct writer *writer, const char *key, float value) {
    char text[32];
    print_float(text, sizeof text, value);
    put(writer, key, text);
}

static void put_int(struct writer *writer, const char *key, int value) {
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    put(writer, key, text);
}

static void put_assign(struct writer *out, const struct gate *gate) {
    if (gate->assign == ASSIGN_TOKEN) return;
    put(out, ",assign=", assign_names[gate->assign]);
    if (gate->assign != ASSIGN_SINKHORN) return;
    put_float(out, ":", gate->tolerance);
    if (gate->iterations != SINKHORN_ITERATIONS) put_int(out, ":", gate->iterations);
}

static void put_capacity(struct writer *out, const struct gate *gate) {
    char text[32];
    if (gate->capacity == 0) return;
    print_real(text, sizeof text, gate->capacity);
    put(out, ",capacity=", text);
    bool ordered = gate->turn != TURN_CHOICE;
    if (gate->drop != DROP_PROB || ordered) put(out, ":", drop_names[gate->drop]);
    if (ordered) put(out, ":", turn_names[gate->turn]);
    if (gate->rounding != ROUND_CEIL) put(out, ",round=", rounding_names[gate->rounding]);
    if (gate->devices > 0) put_int(out, ",devices=", gate->devices);
}

void gate_print(const struct gate *gate, char text[static GATE_TEXT_BYTES]) {
    struct writer out = {.at = text, .left = GATE_TEXT_BYTES};
    put(&out, "", score_names[gate->score]);
    if (gate->bias) put(&out, ",", "bias");
    if (gate->fn != GATE_TABLE) {
        put(&out, ",fn=", fn_names[gate->fn]);
        if (gate->fn == GATE_HASH)
            put_int(&out, ":", (int)gate->fn_arg);
        else if (gate->fn == GATE_SPARSEMIXER)
            put_float(&out, ":", gate->fn_arg);
    }
    put_assign(&out, gate);
    if (gate->order != ORDER_SCORE_TOPK) put(&out, ",order=", order_names[gate->order]);
    if (gate->groups > 0) {
        put_int(&out, ",groups=", gate->groups);
        put_int(&out, ":", gate->groups_kept);
        put(&out, ":", rule_names[gate->group_rule]);
    }
    if (gate->fill != FILL_NEG_INF) put(&out, ",fill=", fill_names[gate->fill]);
    put_int(&out, ",topk=", gate->topk);
    if (gate->cut == CUT_TOPP) put_float(&out, ",topp=", gate->cut_arg);
    if (gate->cut == CUT_THRESHOLD) put_float(&out, ",threshold=", gate->cut_arg);
    put(&out, ",norm=", norm_names[gate->norm]);
    if (gate->norm_arg != 0) put_float(&out, ":", gate->norm_arg);
    if (gate->scale != 1) put_float(&out, ",scale=", gate->scale);
    if (gate->dtype != DTYPE_F32) put(&out, ",dtype=", dtype_names[gate->dtype]);
    if (gate->dtype_logits) put(&out, ":", "logits");
    if (gate->noise > 0) put_float(&out, ",noise=", gate->noise);
    if (gate->second != SECOND_ALL) put(&out, ",second=", second_names[gate->second]);
    if (gate->seeded) put_int(&out, ",seed=", gate->seed);
    put_capacity(&out, gate);
}

bool gate_equal_batch(const struct gate *a, const struct gate *b) {
    return a->assign == b->assign && a->tolerance == b->tolerance &&
           a->iterations == b->iterations && a->capacity == b->capacity && a->drop == b->drop &&
           a->turn == b->turn && a->rounding == b->rounding && a->devices == b->devices;
}

bool gate_equal(const struct gate *a, const struct gate *b) {
    return a->fn == b->fn && a->fn_arg == b->fn_arg && a->score == b->score && a->bias == b->bias &&
           a->groups == b->groups && a->groups_kept == b->groups_kept &&
           a->group_rule == b->group_rule && a->fill == b->fill && a->topk == b->topk &&
           a->order == b->order && a->norm == b->norm && a->norm_arg == b->norm_arg &&
           a->scale == b->scale && a->dtype == b->dtype && a->dtype_logits == b->dtype_logits &&
           a->noise == b->noise && a->cut == b->cut && a->cut_arg == b->cut_arg &&
           a->second == b->second && a->seeded == b->seeded && a->seed == b->seed &&
           gate_equal_batch(a, b);
}
