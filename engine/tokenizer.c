/* tokenizer.c - the face of the tokenizer: encoding a text, the pieces of a token */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

struct tokenizer *tokenizer_create(struct err *err) {
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) {
        err_memory(err, "tokenizer");
        return NULL;
    }
    arena_init(&tokenizer->arena, "tokenizer");
    tokenizer->unk = -1;
    tokenizer->prefix = tokenizer->suffix = "";
    return tokenizer;
}

void tokenizer_free(struct tokenizer *t) {
    if (!t) return;
    vocab_free(&t->vocab);
    free(t->merges.slots);
    free(t->scores);
    steps_free(&t->steps);
    added_free(&t->raw);
    added_free(&t->normalized);
    free(t->before.ids);
    free(t->after.ids);
    str_free(&t->piece_bytes);
    free(t->pieces);
    arena_free(&t->arena);
    free(t);
}

/* ---- encoding */

/* What one call of tokenizer_encode works with. */
struct encoder {
    const struct tokenizer *tokenizer;
    struct match_state match;
    struct bpe_state bpe;
    struct pieces work[2];
    struct str normalized;
    struct id_list *ids;
    struct err *err;
};

static bool push(struct encoder *encoder, int32_t id) {
    return id_push(encoder->ids, id) || err_memory(encoder->err, "ids");
}

/* A part of normalised text without added tokens. */
static bool encode_plain(struct encoder *e, const char *text, size_t len, bool first) {
    if (!split_text(&e->tokenizer->steps, &e->match, text, len, first, e->work, e->err))
        return false;
    const struct pieces *words = &e->work[0];
    for (size_t i = 0; i < words->count; i++)
        if (!bpe_word(e->tokenizer, &e->bpe, words->text.data + words->list[i].start,
                      words->list[i].len, e->ids, e->err))
            return false;
    return true;
}

/* What is done with the text between added tokens. first: it begins the document. */
typedef bool (*encode_part)(struct encoder *encoder, const char *text, size_t len, bool first);

/* Cuts text at the added tokens of a set: their ids as they are, the rest by `part`. */
static bool encode_around(struct encoder *e, const struct added *added, const char *text,
                          size_t len, bool first, encode_part part) {
    const struct added_token *token;
    size_t from = 0, search = 0, start, end;
    while ((token = added_find(added, text, len, from, &search, &start, &end))) {
        if (start > from && !part(e, text + from, start - from, first && from == 0)) return false;
        if (!push(e, token->id)) return false;
        from = end;
    }
    return from == len || part(e, text + from, len - from, first && from == 0);
}

/* A part of raw text without added tokens of the raw set. */
static bool encode_raw(struct encoder *e, const char *text, size_t len, bool first) {
    str_clear(&e->normalized);
    if (!normalize_text(&e->tokenizer->steps, &e->match, text, len, &first, &e->normalized, e->err))
        return false;
    return encode_around(e, &e->tokenizer->normalized, str_text(&e->normalized), e->normalized.len,
                         first, encode_plain);
}

static bool encode_text(struct encoder *e, const char *text, size_t len, bool special) {
    const struct tokenizer *t = e->tokenizer;
    for (size_t i = 0; special && i < t->before.count; i++)
        if (!push(e, t->before.ids[i])) return false;
    if (len && !encode_around(e, &t->raw, text, len, true, encode_raw)) return false;
    for (size_t i = 0; special && i < t->after.count; i++)
        if (!push(e, t->after.ids[i])) return false;
    return true;
}

bool tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len, bool special,
                      int32_t **ids, int64_t *count, struct err *err) {
    struct id_list list = {0};
    struct str repaired = {0};
    struct encoder encoder = {.tokenizer = tokenizer, .ids = &list, .err = err};
    *ids = NULL, *count = 0;
    if (!utf8_valid(text, len)) {
        utf8_repair(&repaired, text, len);
        text = str_text(&repaired), len = repaired.len;
    }
    bool ok = repaired.failed ? err_memory(err, "text") : encode_text(&encoder, text, len, special);
    if (ok && !list.ids) ok = (list.ids = malloc(sizeof *list.ids)) || err_memory(err, "ids");
    match_state_free(&encoder.match);
    bpe_state_free(&encoder.bpe);
    pieces_free(&encoder.work[0]);
    pieces_free(&encoder.work[1]);
    str_free(&encoder.normalized);
    str_free(&repaired);
    if (ok)
        *ids = list.ids, *count = (int64_t)list.count;
    else
        free(list.ids);
    return ok;
}

/* ---- pieces */

int tokenizer_vocab(const struct tokenizer *tokenizer) { return tokenizer->vocab.count; }

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *len) {
    if (id < 0 || id >= t->vocab.count || t->pieces[id].len < 0) return NULL;
    *len = (size_t)t->pieces[id].len;
    return str_text(&t->piece_bytes) + t->pieces[id].start;
}

/* The byte-level alphabet back to bytes; false when text has another character. */
static bool decode_byte_level(const char *text, size_t len, struct str *out) {
    size_t mark = out->len;
    for (const char *at = text, *end = text + len; at < end;) {
        int byte = byte_level_byte(utf8_next(&at));
        if (byte < 0) {
            out->len = mark;
            return false;
        }
        char one = (char)byte;
        str_append(out, &one, 1);
    }
    return true;
}

/* U+2581 back to spaces. */
static void decode_spaces(const char *text, size_t len, struct str *out) {
    static const char low_line[] = "\xE2\x96\x81";
    for (size_t i = 0; i < len;) {
        bool space = len - i >= 3 && !memcmp(text + i, low_line, 3);
        str_append(out, space ? " " : text + i, 1);
        i += space ? 3 : 1;
    }
}

static void decode_piece(const struct tokenizer *t, const bool *is_added, int32_t id,
                         struct str *out) {
    size_t len;
    const char *text = vocab_text(&t->vocab, id, &len);
    if (!text) return;
    if (!is_added[id] && t->steps.byte_level && decode_byte_level(text, len, out)) return;
    if (!is_added[id] && t->spaces_as_low_line)
        decode_spaces(text, len, out);
    else
        str_append(out, text, len);
}

bool tokenizer_finish(struct tokenizer *t, struct err *err) {
    size_t ids = (size_t)t->vocab.count + 1;
    bool *is_added = calloc(ids, sizeof *is_added);
    t->pieces = malloc(ids * sizeof *t->pieces);
    t->spaces_as_low_line = !t->steps.byte_level;
    const struct added *sets[] = {&t->raw, &t->normalized};
    for (int s = 0; is_added && s < 2; s++)
        for (int32_t i = 0; i < sets[s]->token_count; i++) is_added[sets[s]->tokens[i].id] = true;
    for (int32_t id = 0; is_added && t->pieces && id < t->vocab.count; id++) {
        size_t start = t->piece_bytes.len, len;
        decode_piece(t, is_added, id, &t->piece_bytes);
        bool there = vocab_text(&t->vocab, id, &len) != NULL;
        t->pieces[id] =
            (struct token){(uint32_t)start, there ? (int32_t)(t->piece_bytes.len - start) : -1};
    }
    /* <0xNN> tokens are one byte each; written over what they are spelt like */
    for (int byte = 0; t->byte_fallback && t->pieces && byte < 256; byte++) {
        if (t->byte_ids[byte] < 0) continue;
        char one = (char)byte;
        t->pieces[t->byte_ids[byte]] = (struct token){(uint32_t)t->piece_bytes.len, 1};
        str_append(&t->piece_bytes, &one, 1);
    }
    bool ok = is_added && t->pieces && !t->piece_bytes.failed;
    free(is_added);
    return ok || err_memory(err, "tokenizer");
}
