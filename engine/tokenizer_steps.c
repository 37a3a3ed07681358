/* tokenizer_steps.c - the normalizer and pre_tokenizer of a tokenizer.json as lists of steps
 *
 * Each type is a row of a table with the function that reads it; a type without a row is refused by
 * name. Sequences are flattened. */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* GPT-2's split (Radford et al. 2019, encoder.py); the pattern of ByteLevel with use_regex. */
const char pattern_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                            "\\s+(?!\\S)|\\s+";

bool tokenizer_unknown(struct err *err, const char *key, const char *found,
                       const char *const *known, int count) {
    struct str list = {0};
    for (int i = 0; i < count; i++) str_printf(&list, "%s%s", i ? ", " : "", known[i]);
    err_set(err, ERR_UNSUPPORTED, "%s: found \"%.80s\", expected one of %s", key, found,
            str_text(&list));
    str_free(&list);
    return false;
}

/* What a reader of one type works on. */
struct reading {
    struct steps *steps;
    struct arena *arena;
    const struct json *value; /* the object with the "type" */
    const char *key;          /* its place in the file, for messages */
    struct err *err;
};

struct step_type {
    const char *name;
    bool (*read)(const struct reading *in);
};

enum { TYPES_MOST = 32, KEY_MOST = 200 };

/* Calls the reader of value's type; "Sequence" calls itself for every member of `members`. */
static bool read_type(const struct reading *in, const struct step_type *types, int count,
                      const char *members) {
    const char *name;
    if (!json_get_text(in->value, "type", "", &name, in->err))
        return err_context(in->err, "%s", in->key);
    if (!strcmp(name, "Sequence")) {
        const struct json *list = json_member(in->value, members);
        if (!list || json_kind(list) != JSON_ARRAY)
            return err_set(in->err, ERR_FORMAT, "%s.%s: found none, expected an array", in->key,
                           members);
        int index = 0;
        for (const struct json *v = json_first(list); v; v = json_next(v), index++) {
            struct str key = {0};
            str_printf(&key, "%s[%d]", in->key, index);
            struct reading part = *in;
            part.value = v, part.key = str_text(&key);
            bool ok = key.len < KEY_MOST
                          ? read_type(&part, types, count, members)
                          : err_set(in->err, ERR_FORMAT, "%s: nested too deep", in->key);
            str_free(&key);
            if (!ok) return false;
        }
        return true;
    }
    const char *known[TYPES_MOST] = {"Sequence"};
    for (int i = 0; i < count; i++) {
        if (!strcmp(types[i].name, name)) return types[i].read(in);
        known[i + 1] = types[i].name;
    }
    struct str key = {0};
    str_printf(&key, "%s.type", in->key);
    tokenizer_unknown(in->err, str_text(&key), name, known, count + 1);
    str_free(&key);
    return false;
}

/* ---- members of a component */

static bool missing(const struct reading *in, const char *member, const char *expected) {
    return err_set(in->err, ERR_FORMAT, "%s.%s: found %s, expected %s", in->key, member,
                   json_member(in->value, member) ? json_kind_name(json_member(in->value, member))
                                                  : "none",
                   expected);
}

static bool read_bool(const struct reading *in, const char *member, bool otherwise, bool *out) {
    return json_get_bool(in->value, member, otherwise, out, in->err) ||
           err_context(in->err, "%s", in->key);
}

/* A text that must be there, copied to the arena. */
static bool read_text(const struct reading *in, const char *member, const char **out, size_t *len) {
    const char *text = json_text(json_member(in->value, member));
    if (!text) return missing(in, member, "a string");
    *len = strlen(text);
    *out = arena_text(in->arena, text, *len);
    return *out || err_memory(in->err, in->key);
}

/* {"String": "..."} or {"Regex": "..."}. */
static struct pattern *read_pattern(const struct reading *in) {
    const struct json *value = json_member(in->value, "pattern");
    const char *literal = json_text(json_member(value, "String"));
    const char *regex = json_text(json_member(value, "Regex"));
    const char *text = literal ? literal : regex;
    if (!text) {
        missing(in, "pattern", "a String or a Regex");
        return NULL;
    }
    struct str name = {0};
    str_printf(&name, "%s.pattern", in->key);
    struct pattern *pattern =
        pattern_compile(text, strlen(text), literal != NULL, str_text(&name), in->err);
    str_free(&name);
    return pattern;
}

/* A name of a fixed list; its index, or -1 with err set. */
static int read_choice(const struct reading *in, const char *member, const char *const *known,
                       int count, int otherwise) {
    const char *name;
    if (!json_get_text(in->value, member, known[otherwise], &name, in->err)) {
        err_context(in->err, "%s", in->key);
        return -1;
    }
    for (int i = 0; i < count; i++)
        if (!strcmp(known[i], name)) return i;
    struct str key = {0};
    str_printf(&key, "%s.%s", in->key, member);
    tokenizer_unknown(in->err, str_text(&key), name, known, count);
    str_free(&key);
    return -1;
}

/* ---- lists of steps */

/* Room for one more element of size bytes in a list that grows by doubling. */
static void *grow(void **list, int count, size_t size) {
    if ((count & (count - 1)) == 0) { /* 0, 1, 2, 4, ... are full */
        void *more = realloc(*list, (count ? (size_t)count * 2 : 1) * size);
        if (!more) return NULL;
        *list = more;
    }
    void *place = (char *)*list + (size_t)count * size;
    memset(place, 0, size);
    return place;
}

struct normalize_step *steps_add_normalize(struct steps *steps) {
    void *list = steps->normalize;
    struct normalize_step *step = grow(&list, steps->normalize_count, sizeof *step);
    steps->normalize = list;
    if (step) steps->normalize_count++;
    return step;
}

struct split_step *steps_add_split(struct steps *steps) {
    void *list = steps->split;
    struct split_step *step = grow(&list, steps->split_count, sizeof *step);
    steps->split = list;
    if (step) steps->split_count++;
    return step;
}

void steps_free(struct steps *steps) {
    for (int i = 0; i < steps->normalize_count; i++) pattern_free(steps->normalize[i].pattern);
    for (int i = 0; i < steps->split_count; i++) pattern_free(steps->split[i].pattern);
    free(steps->normalize);
    free(steps->split);
}

static bool add_split(struct steps *steps, struct split_step step, const char *name,
                      struct err *err) {
    struct split_step *place = steps_add_split(steps);
    if (!place) {
        pattern_free(step.pattern);
        return err_memory(err, name);
    }
    *place = step;
    return true;
}

bool steps_add_pattern(struct steps *steps, const char *expression, enum split_behavior behavior,
                       bool invert, const char *name, struct err *err) {
    struct pattern *pattern = pattern_compile(expression, strlen(expression), false, name, err);
    struct split_step step = {
        .kind = SPLIT_PATTERN, .behavior = behavior, .invert = invert, .pattern = pattern};
    return pattern && add_split(steps, step, name, err);
}

static bool add_normalize(const struct reading *in, struct normalize_step step) {
    struct normalize_step *place = steps_add_normalize(in->steps);
    if (!place) {
        pattern_free(step.pattern);
        return err_memory(in->err, in->key);
    }
    *place = step;
    return true;
}

/* ---- normalizers */

static bool read_nfc(const struct reading *in) {
    return add_normalize(in, (struct normalize_step){.kind = NORMALIZE_FORM, .compose = true});
}

static bool read_nfd(const struct reading *in) {
    return add_normalize(in, (struct normalize_step){.kind = NORMALIZE_FORM});
}

static bool read_nfkc(const struct reading *in) {
    return add_normalize(in, (struct normalize_step){
                                 .kind = NORMALIZE_FORM, .compose = true, .compatibility = true});
}

static bool read_nfkd(const struct reading *in) {
    return add_normalize(in,
                         (struct normalize_step){.kind = NORMALIZE_FORM, .compatibility = true});
}

static bool read_prepend(const struct reading *in) {
    struct normalize_step step = {.kind = NORMALIZE_PREPEND};
    return read_text(in, "prepend", &step.text, &step.len) && add_normalize(in, step);
}

static bool read_replace(const struct reading *in) {
    struct normalize_step step = {.kind = NORMALIZE_REPLACE};
    if (!read_text(in, "content", &step.text, &step.len)) return false;
    step.pattern = read_pattern(in);
    return step.pattern && add_normalize(in, step);
}

static bool read_lowercase(const struct reading *in) {
    return add_normalize(in, (struct normalize_step){.kind = NORMALIZE_LOWER});
}

static bool read_strip(const struct reading *in) {
    struct normalize_step step = {.kind = NORMALIZE_STRIP};
    return read_bool(in, "strip_left", true, &step.left) &&
           read_bool(in, "strip_right", true, &step.right) && add_normalize(in, step);
}

static bool read_strip_accents(const struct reading *in) {
    return add_normalize(in, (struct normalize_step){.kind = NORMALIZE_STRIP_MARKS});
}

static bool read_byte_level_normalizer(const struct reading *in) {
    in->steps->byte_level = true;
    return add_normalize(in, (struct normalize_step){.kind = NORMALIZE_BYTE_LEVEL});
}

static const struct step_type normalizers[] = {
    {"NFC", read_nfc},
    {"NFD", read_nfd},
    {"NFKC", read_nfkc},
    {"NFKD", read_nfkd},
    {"Prepend", read_prepend},
    {"Replace", read_replace},
    {"Lowercase", read_lowercase},
    {"Strip", read_strip},
    {"StripAccents", read_strip_accents},
    {"ByteLevel", read_byte_level_normalizer},
};

/* ---- pre-tokenizers */

static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};

static bool read_behavior(const struct reading *in, enum split_behavior *behavior) {
    int choice = read_choice(in, "behavior", behaviors, 5, 0);
    if (choice >= 0) *behavior = (enum split_behavior)choice;
    return choice >= 0;
}

static bool read_split(const struct reading *in) {
    struct split_step step = {.kind = SPLIT_PATTERN};
    if (!json_text(json_member(in->value, "behavior"))) return missing(in, "behavior", "a string");
    if (!read_behavior(in, &step.behavior) || !read_bool(in, "invert", false, &step.invert))
        return false;
    step.pattern = read_pattern(in);
    return step.pattern && add_split(in->steps, step, in->key, in->err);
}

static bool read_byte_level(const struct reading *in) {
    bool prefix, pattern;
    if (!read_bool(in, "add_prefix_space", true, &prefix) ||
        !read_bool(in, "use_regex", true, &pattern))
        return false;
    struct split_step space = {.kind = SPLIT_PREFIX, .text = " ", .len = 1};
    if (prefix && !add_split(in->steps, space, in->key, in->err)) return false;
    if (pattern &&
        !steps_add_pattern(in->steps, pattern_gpt2, SPLIT_ISOLATED, false, in->key, in->err))
        return false;
    in->steps->byte_level = true;
    return add_split(in->steps, (struct split_step){.kind = SPLIT_BYTE_LEVEL}, in->key, in->err);
}

static bool read_metaspace(const struct reading *in) {
    static const char *const schemes[] = {"always", "first", "never"};
    struct split_step spaces = {.kind = SPLIT_REPLACE};
    bool cut, prefix;
    if (!read_text(in, "replacement", &spaces.text, &spaces.len)) return false;
    if (!read_bool(in, "split", true, &cut) || !read_bool(in, "add_prefix_space", true, &prefix))
        return false;
    int scheme = read_choice(in, "prepend_scheme", schemes, 3, prefix ? 0 : 2);
    if (scheme < 0 || !add_split(in->steps, spaces, in->key, in->err)) return false;
    struct split_step before = spaces;
    before.kind = SPLIT_PREFIX, before.only_first = scheme == 1;
    if (scheme != 2 && !add_split(in->steps, before, in->key, in->err)) return false;
    if (!cut) return true;
    struct split_step split = {.kind = SPLIT_PATTERN, .behavior = SPLIT_MERGED_WITH_NEXT};
    split.pattern = pattern_compile(spaces.text, spaces.len, true, in->key, in->err);
    return split.pattern && add_split(in->steps, split, in->key, in->err);
}

static bool read_digits(const struct reading *in) {
    bool each;
    return read_bool(in, "individual_digits", false, &each) &&
           steps_add_pattern(in->steps, "\\p{N}", each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false,
                             in->key, in->err);
}

static bool read_punctuation(const struct reading *in) {
    enum split_behavior behavior;
    return read_behavior(in, &behavior) && steps_add_pattern(in->steps, "[\\p{P}!-/:-@\\[-`{-~]",
                                                             behavior, false, in->key, in->err);
}

/* The one pattern here that the reference runs on another engine, whose \w is that of UTS 18. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200C\\u200D"
static bool read_whitespace(const struct reading *in) {
    return steps_add_pattern(in->steps, "[" WORD "]+|[^" WORD "\\s]+", SPLIT_REMOVED, true, in->key,
                             in->err);
}

static bool read_whitespace_split(const struct reading *in) {
    return steps_add_pattern(in->steps, "\\s", SPLIT_REMOVED, false, in->key, in->err);
}

static const struct step_type pre_tokenizers[] = {
    {"Split", read_split},
    {"ByteLevel", read_byte_level},
    {"Digits", read_digits},
    {"Metaspace", read_metaspace},
    {"Punctuation", read_punctuation},
    {"Whitespace", read_whitespace},
    {"WhitespaceSplit", read_whitespace_split},
};

#define COUNT(rows) ((int)(sizeof rows / sizeof *rows))

bool steps_read_normalizer(struct steps *steps, struct arena *arena, const struct json *value,
                           const char *path, struct err *err) {
    struct reading in = {steps, arena, value, path, err};
    return read_type(&in, normalizers, COUNT(normalizers), "normalizers");
}

bool steps_read_pre_tokenizer(struct steps *steps, struct arena *arena, const struct json *value,
                              const char *path, struct err *err) {
    struct reading in = {steps, arena, value, path, err};
    return read_type(&in, pre_tokenizers, COUNT(pre_tokenizers), "pretokenizers");
}
