/* tokenizer_load.c - a parsed tokenizer.json becomes a struct tokenizer
 *
 * "truncation", "padding" and "decoder" are not read: the first two belong to a call, not to the
 * text's ids, and the last only to the way back. */
#include "engine/tokenizer_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MERGES_MOST = 1 << 24 }; /* ranks are exact in a float up to here */

/* A whole number in [0, TOKEN_ID_MAX]. what is for the message. */
static bool read_id(const struct json *value, const char *what, const char *name, int32_t *id,
                    struct err *err) {
    double number = value ? json_number(value) : NAN;
    if (!(number >= 0 && number <= TOKEN_ID_MAX) || number != floor(number)) {
        if (isnan(number))
            return err_set(err, ERR_FORMAT, "%s: found no number for \"%.60s\", expected an id",
                           what, name);
        return err_set(err, ERR_FORMAT, "%s: found id %.17g of \"%.60s\", expected 0..%d", what,
                       number, name, TOKEN_ID_MAX);
    }
    *id = (int32_t)number;
    return true;
}

static bool load_vocab(struct tokenizer *t, const struct json *model, struct err *err) {
    const struct json *vocab = json_member(model, "vocab");
    if (!vocab || json_kind(vocab) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "model.vocab: found %s, expected an object",
                       vocab ? json_kind_name(vocab) : "none");
    for (const struct json *v = json_first(vocab); v; v = json_next(v)) {
        const char *text = json_key(v);
        int32_t id;
        size_t len = strlen(text), other_len;
        if (!read_id(v, "model.vocab", text, &id, err)) return false;
        if (!utf8_valid(text, len))
            return err_set(err, ERR_FORMAT, "model.vocab: found malformed UTF-8 at id %d", id);
        const char *other = vocab_text(&t->vocab, id, &other_len);
        if (other)
            return err_set(err, ERR_FORMAT,
                           "model.vocab: found id %d twice, at \"%.*s\" and \"%.60s\"", id,
                           other_len > 60 ? 60 : (int)other_len, other, text);
        if (vocab_find(&t->vocab, text, len) >= 0)
            return err_set(err, ERR_FORMAT, "model.vocab: found \"%.60s\" twice", text);
        if (!vocab_add(&t->vocab, text, len, id)) return err_memory(err, "model.vocab");
    }
    return true;
}

/* ---- merges */

/* The two sides of a merge: "a b", or ["a", "b"]. */
struct sides {
    const char *left, *right;
    size_t left_len, right_len;
};

static bool read_sides(const struct json *value, int row, struct sides *sides, struct err *err) {
    const char *line = json_text(value);
    if (line) {
        const char *space = strchr(line, ' ');
        if (!space || strchr(space + 1, ' '))
            return err_set(err, ERR_FORMAT,
                           "model.merges[%d]: found \"%.60s\", expected two tokens", row, line);
        *sides = (struct sides){line, space + 1, (size_t)(space - line), strlen(space + 1)};
        return true;
    }
    const struct json *first = json_kind(value) == JSON_ARRAY ? json_first(value) : NULL;
    const struct json *second = first ? json_next(first) : NULL;
    const char *left = first ? json_text(first) : NULL, *right = second ? json_text(second) : NULL;
    if (!left || !right || json_next(second))
        return err_set(err, ERR_FORMAT, "model.merges[%d]: found %s, expected a pair of strings",
                       row, json_kind_name(value));
    *sides = (struct sides){left, right, strlen(left), strlen(right)};
    return true;
}

static bool find_side(const struct tokenizer *t, const char *text, size_t len, int row, int32_t *id,
                      struct err *err) {
    *id = vocab_find(&t->vocab, text, len);
    return *id >= 0 || err_set(err, ERR_FORMAT,
                               "model.merges[%d]: found \"%.*s\", expected a token of the "
                               "vocabulary",
                               row, len > 60 ? 60 : (int)len, text);
}

static bool add_merge(struct tokenizer *t, const struct sides *sides, int row, struct str *joined,
                      struct err *err) {
    int32_t left, right, id;
    size_t cut = strlen(t->prefix); /* the right side's prefix is not repeated inside a token */
    if (!find_side(t, sides->left, sides->left_len, row, &left, err) ||
        !find_side(t, sides->right, sides->right_len, row, &right, err))
        return false;
    if (cut > sides->right_len) cut = sides->right_len;
    str_clear(joined);
    str_append(joined, sides->left, sides->left_len);
    str_append(joined, sides->right + cut, sides->right_len - cut);
    if (joined->failed) return err_memory(err, "model.merges");
    if (!find_side(t, joined->data, joined->len, row, &id, err)) return false;
    return merges_set(&t->merges, left, right, (float)row, id) || err_memory(err, "model.merges");
}

static bool load_merges(struct tokenizer *t, const struct json *model, struct err *err) {
    const struct json *merges = json_member(model, "merges");
    if (!merges || json_kind(merges) != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, "model.merges: found %s, expected an array",
                       merges ? json_kind_name(merges) : "none");
    struct str joined = {0};
    int row = 0;
    bool ok = true;
    for (const struct json *v = json_first(merges); ok && v; v = json_next(v), row++) {
        struct sides sides = {0};
        const char *line = json_text(v);
        if (line && !strncmp(line, "#version", 8)) continue;
        ok = row < MERGES_MOST
                 ? read_sides(v, row, &sides, err) && add_merge(t, &sides, row, &joined, err)
                 : err_set(err, ERR_UNSUPPORTED, "model.merges: found more than %d", row);
    }
    str_free(&joined);
    return ok;
}

static bool load_affix(struct tokenizer *t, const struct json *model, const char *key,
                       const char **out, struct err *err) {
    const char *text;
    if (!json_get_text(model, key, "", &text, err)) return err_context(err, "model");
    *out = arena_text(&t->arena, text, strlen(text));
    return *out || err_memory(err, key);
}

static bool load_unk(struct tokenizer *t, const struct json *model, struct err *err) {
    const char *text;
    if (!json_get_text(model, "unk_token", NULL, &text, err)) return err_context(err, "model");
    if (!text) return true;
    t->unk = vocab_find(&t->vocab, text, strlen(text));
    return t->unk >= 0 || err_set(err, ERR_FORMAT,
                                  "model.unk_token: found \"%.60s\", expected a "
                                  "token of the vocabulary",
                                  text);
}

void tokenizer_find_bytes(struct tokenizer *t) {
    for (int byte = 0; byte < 256; byte++) {
        struct str name = {0};
        str_printf(&name, "<0x%02X>", byte);
        t->byte_ids[byte] = vocab_find(&t->vocab, str_text(&name), name.len);
        str_free(&name);
    }
}

static bool load_model(struct tokenizer *t, const struct json *model, struct err *err) {
    static const char *const known[] = {"BPE"};
    const char *type;
    double dropout;
    if (!model || json_kind(model) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "model: found %s, expected an object",
                       model ? json_kind_name(model) : "none");
    if (!json_get_text(model, "type", "BPE", &type, err)) return err_context(err, "model");
    if (strcmp(type, "BPE")) return tokenizer_unknown(err, "model.type", type, known, 1);
    if (!json_get_real(model, "dropout", 0, &dropout, err)) return err_context(err, "model");
    if (dropout != 0)
        return err_set(err, ERR_UNSUPPORTED, "model.dropout: found %g, expected none or 0",
                       dropout);
    if (!json_get_bool(model, "fuse_unk", false, &t->fuse_unk, err) ||
        !json_get_bool(model, "byte_fallback", false, &t->byte_fallback, err) ||
        !json_get_bool(model, "ignore_merges", false, &t->ignore_merges, err))
        return err_context(err, "model");
    return load_affix(t, model, "continuing_subword_prefix", &t->prefix, err) &&
           load_affix(t, model, "end_of_word_suffix", &t->suffix, err) &&
           load_vocab(t, model, err) && load_merges(t, model, err) && load_unk(t, model, err);
}

/* ---- added tokens */

/* The id of an added token: that of the vocabulary where its text is there, else the next one
 * behind the vocabulary and the added tokens so far (*next), which is what the reference assigns
 * whatever the file claims. A claim to somebody else's id is refused. */
static bool assign_id(struct tokenizer *t, const char *text, int32_t claimed, int32_t *next,
                      struct err *err) {
    size_t len = strlen(text), other_len;
    int32_t id = vocab_find(&t->vocab, text, len);
    const char *other = vocab_text(&t->vocab, claimed, &other_len);
    if (id < 0 && !other) other = vocab_text(&t->vocab, *next, &other_len);
    if (id < 0 && other)
        return err_set(err, ERR_FORMAT,
                       "added_tokens: found id %d for \"%.60s\", which belongs to \"%.*s\"",
                       claimed, text, other_len > 60 ? 60 : (int)other_len, other);
    if (id < 0 && *next > TOKEN_ID_MAX)
        return err_set(err, ERR_FORMAT, "added_tokens: found more than %d tokens", TOKEN_ID_MAX);
    if (id < 0 && !vocab_add(&t->vocab, text, len, id = *next))
        return err_memory(err, "added_tokens");
    if (id >= *next) *next = id + 1;
    return true;
}

static bool read_added(const struct json *value, struct added_token *token, const char **text,
                       struct err *err) {
    *text = json_text(json_member(value, "content"));
    if (!*text)
        return err_set(err, ERR_FORMAT, "added_tokens: found no content, expected a string");
    if (!utf8_valid(*text, strlen(*text)))
        return err_set(err, ERR_FORMAT, "added_tokens: found malformed UTF-8");
    if (!json_get_bool(value, "special", false, &token->special, err) ||
        !json_get_bool(value, "lstrip", false, &token->left_strip, err) ||
        !json_get_bool(value, "rstrip", false, &token->right_strip, err) ||
        !json_get_bool(value, "single_word", false, &token->single_word, err) ||
        !json_get_bool(value, "normalized", !token->special, &token->normalized, err))
        return err_context(err, "added_tokens");
    return read_id(json_member(value, "id"), "added_tokens", *text, &token->id, err);
}

/* Tokens marked `normalized` are looked for in normalised text, under their own normalised form. */
static bool insert_added(struct tokenizer *t, const char *text, const struct added_token *token,
                         struct err *err) {
    struct added *set = token->normalized ? &t->normalized : &t->raw;
    struct match_state match = {0};
    struct str form = {0};
    bool first = true;
    bool ok = token->normalized
                  ? normalize_text(&t->steps, &match, text, strlen(text), &first, &form, err)
                  : (str_puts(&form, text), true);
    if (ok && (form.failed || !added_insert(set, form.data, form.len, token)))
        ok = err_memory(err, "added_tokens");
    str_free(&form);
    match_state_free(&match);
    return ok;
}

/* Of equal texts the first of the special ones wins, then the first of the others. */
static bool load_added(struct tokenizer *t, const struct json *doc, struct err *err) {
    const struct json *list = json_present(doc, "added_tokens");
    if (list && json_kind(list) != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, "added_tokens: found %s, expected an array",
                       json_kind_name(list));
    struct added_token token = {0};
    const char *text = "";
    int32_t next = t->vocab.entries;
    for (const struct json *v = list ? json_first(list) : NULL; v; v = json_next(v))
        if (!read_added(v, &token, &text, err) ||
            (*text && !assign_id(t, text, token.id, &next, err)))
            return false;
    for (int special = 1; special >= 0; special--)
        for (const struct json *v = list ? json_first(list) : NULL; v; v = json_next(v)) {
            if (!read_added(v, &token, &text, err)) return false;
            if (!*text || token.special != special) continue;
            token.id = vocab_find(&t->vocab, text, strlen(text));
            if (!insert_added(t, text, &token, err)) return false;
        }
    return true;
}

/* ---- post-processors */

/* Puts ids at the front of list (before = true) or at its end. */
static bool put_ids(struct id_list *list, const int32_t *ids, size_t count, bool front) {
    for (size_t i = 0; i < count; i++)
        if (!id_push(list, 0)) return false;
    size_t old = list->count - count;
    if (front) memmove(list->ids + count, list->ids, old * sizeof *ids);
    if (count) memcpy(list->ids + (front ? 0 : old), ids, count * sizeof *ids);
    return true;
}

/* The ids that a template's special token stands for. */
static bool template_ids(const struct json *processor, const char *name, struct id_list *out,
                         struct err *err) {
    const struct json *entry = json_member(json_member(processor, "special_tokens"), name);
    const struct json *ids = json_member(entry, "ids");
    if (!ids || json_kind(ids) != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, "post_processor.special_tokens: found no ids of \"%.60s\"",
                       name);
    for (const struct json *v = json_first(ids); v; v = json_next(v)) {
        int32_t id;
        if (!read_id(v, "post_processor.special_tokens", name, &id, err)) return false;
        if (!id_push(out, id)) return err_memory(err, "post_processor");
    }
    return true;
}

static bool read_template(struct tokenizer *t, const struct json *value, struct err *err) {
    const struct json *single = json_member(value, "single");
    struct id_list part[2] = {{0}, {0}}; /* before and after the sequence */
    int sequences = 0;
    bool ok = true;
    if (!single || json_kind(single) != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, "post_processor.single: found none, expected an array");
    for (const struct json *v = json_first(single); ok && v; v = json_next(v)) {
        const struct json *special = json_member(v, "SpecialToken");
        const char *name = json_text(json_member(special, "id"));
        if (json_member(v, "Sequence"))
            sequences++;
        else if (name)
            ok = template_ids(value, name, &part[sequences > 0], err);
        else
            ok = err_set(err, ERR_FORMAT,
                         "post_processor.single: found %s, expected SpecialToken "
                         "or Sequence",
                         json_kind_name(v));
    }
    if (ok && sequences != 1)
        ok = err_set(err, ERR_UNSUPPORTED, "post_processor.single: found %d sequences, expected 1",
                     sequences);
    if (ok && (!put_ids(&t->before, part[0].ids, part[0].count, true) ||
               !put_ids(&t->after, part[1].ids, part[1].count, false)))
        ok = err_memory(err, "post_processor");
    free(part[0].ids);
    free(part[1].ids);
    return ok;
}

/* BertProcessing and RobertaProcessing: "cls" and "sep" are pairs of text and id. */
static bool read_cls_sep(struct tokenizer *t, const struct json *value, struct err *err) {
    static const char *const keys[] = {"cls", "sep"};
    int32_t ids[2];
    for (int i = 0; i < 2; i++) {
        const struct json *pair = json_member(value, keys[i]),
                          *text = pair ? json_first(pair) : NULL;
        if (!read_id(text ? json_next(text) : NULL, "post_processor", keys[i], &ids[i], err))
            return false;
    }
    return (put_ids(&t->before, &ids[0], 1, true) && put_ids(&t->after, &ids[1], 1, false)) ||
           err_memory(err, "post_processor");
}

/* Moves offsets only, which we do not report. */
static bool read_offsets(struct tokenizer *t, const struct json *value, struct err *err) {
    (void)t, (void)value, (void)err;
    return true;
}

static bool load_post(struct tokenizer *t, const struct json *value, int depth, struct err *err) {
    static const struct {
        const char *name;
        bool (*read)(struct tokenizer *t, const struct json *value, struct err *err);
    } types[] = {{"TemplateProcessing", read_template},
                 {"ByteLevel", read_offsets},
                 {"RobertaProcessing", read_cls_sep},
                 {"BertProcessing", read_cls_sep}};
    static const char *const known[] = {"Sequence", "TemplateProcessing", "ByteLevel",
                                        "RobertaProcessing", "BertProcessing"};
    const char *type;
    if (!json_get_text(value, "type", "", &type, err)) return err_context(err, "post_processor");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, type)) return types[i].read(t, value, err);
    if (strcmp(type, "Sequence"))
        return tokenizer_unknown(err, "post_processor.type", type, known, 5);
    const struct json *list = json_member(value, "processors");
    if (!list || json_kind(list) != JSON_ARRAY || depth > 50)
        return err_set(err, ERR_FORMAT, "post_processor.processors: expected an array");
    for (const struct json *v = json_first(list); v; v = json_next(v))
        if (!load_post(t, v, depth + 1, err)) return false;
    return true;
}

bool tokenizer_load(struct tokenizer *t, const struct json *doc, struct err *err) {
    if (json_kind(doc) != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, "found %s, expected an object", json_kind_name(doc));
    const struct json *normalizer = json_present(doc, "normalizer");
    const struct json *pre_tokenizer = json_present(doc, "pre_tokenizer");
    const struct json *post = json_present(doc, "post_processor");
    if (!load_model(t, json_member(doc, "model"), err)) return false;
    if (normalizer && !steps_read_normalizer(&t->steps, &t->arena, normalizer, "normalizer", err))
        return false;
    if (pre_tokenizer &&
        !steps_read_pre_tokenizer(&t->steps, &t->arena, pre_tokenizer, "pre_tokenizer", err))
        return false;
    if (!load_added(t, doc, err)) return false;
    tokenizer_find_bytes(t);
    return !post || load_post(t, post, 0, err);
}
