/* tokenizer_split.c - pre-tokenization: a text becomes words
 *
 * A step takes all pieces and leaves new ones; steps that change characters write a new text. Empty
 * pieces are dropped, as in the reference. */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

bool pieces_add(struct pieces *pieces, size_t start, size_t len) {
    if (!len) return true;
    if (pieces->count == pieces->cap) {
        size_t cap = pieces->cap ? pieces->cap * 2 : 64;
        struct piece *list = realloc(pieces->list, cap * sizeof *list);
        if (!list) return false;
        pieces->list = list, pieces->cap = cap;
    }
    pieces->list[pieces->count++] = (struct piece){start, len};
    return true;
}

void pieces_free(struct pieces *pieces) {
    str_free(&pieces->text);
    free(pieces->list);
}

/* What a run of matches and gaps has become so far. */
struct cutter {
    const struct split_step *step;
    struct pieces *out;
    size_t base;           /* of the piece in the text */
    size_t start, end;     /* the part that may still grow; relative to base */
    bool pending, matched; /* there is such a part; it came from a match */
};

static bool flush(struct cutter *cut) {
    bool ok = !cut->pending || pieces_add(cut->out, cut->base + cut->start, cut->end - cut->start);
    cut->pending = false;
    return ok;
}

/* Takes the next part in order: a match or the gap between two. The part before joins it when the
 * behaviour says so. */
static bool cut_part(struct cutter *cut, size_t start, size_t end, bool matched) {
    bool was = cut->matched, joins = false;
    if (cut->step->invert) matched = !matched;
    switch (cut->step->behavior) {
    case SPLIT_ISOLATED:
        break;
    case SPLIT_REMOVED:
        if (matched) return flush(cut);
        break;
    case SPLIT_CONTIGUOUS:
        joins = matched == was;
        break;
    case SPLIT_MERGED_WITH_PREVIOUS:
        joins = matched && !was;
        break;
    case SPLIT_MERGED_WITH_NEXT:
        joins = was && !matched;
        break;
    }
    cut->matched = matched;
    if (joins && cut->pending) {
        cut->end = end;
        return true;
    }
    if (!flush(cut)) return false;
    cut->start = start, cut->end = end, cut->pending = true;
    return true;
}

static bool cut_piece(const struct split_step *step, struct match_state *match, struct piece piece,
                      const char *subject, struct pieces *out, struct err *err) {
    struct pattern_walk walk = {0, SIZE_MAX};
    struct cutter cut = {.step = step, .out = out, .base = piece.start};
    size_t done = 0, start, end;
    int found;
    while ((found = pattern_step(step->pattern, match, subject + piece.start, piece.len, &walk,
                                 &start, &end, err)) > 0) {
        if (start > done && !cut_part(&cut, done, start, false)) goto memory;
        if (!cut_part(&cut, start, end, true)) goto memory;
        done = end;
    }
    if (found < 0) return false;
    if (done < piece.len && !cut_part(&cut, done, piece.len, false)) goto memory;
    if (flush(&cut)) return true;
memory:
    return err_memory(err, "pre-tokenizer");
}

static bool split_by_pattern(const struct split_step *step, struct match_state *match,
                             struct pieces *in, struct pieces *out, struct err *err) {
    const char *subject = pattern_prepare(match, str_text(&in->text), in->text.len);
    if (!subject) return err_memory(err, "pre-tokenizer");
    for (size_t i = 0; i < in->count; i++)
        if (!cut_piece(step, match, in->list[i], subject, out, err)) return false;
    struct str text = out->text; /* characters stay: the text changes hands */
    out->text = in->text;
    in->text = text;
    return true;
}

static bool starts_with(const char *text, size_t len, const struct split_step *step) {
    return len >= step->len && !memcmp(text, step->text, step->len);
}

/* The new characters of one piece. document: the piece begins the document. */
static void rewrite_piece(const struct split_step *step, const char *text, size_t len,
                          bool document, struct str *out) {
    if (step->kind == SPLIT_PREFIX && !starts_with(text, len, step) &&
        (document || !step->only_first))
        str_append(out, step->text, step->len);
    if (step->kind == SPLIT_PREFIX) {
        str_append(out, text, len);
        return;
    }
    for (size_t i = 0; i < len; i++) {
        if (step->kind == SPLIT_BYTE_LEVEL)
            utf8_put(out, byte_level_char((unsigned char)text[i]));
        else if (text[i] == ' ')
            str_append(out, step->text, step->len);
        else
            str_append(out, text + i, 1);
    }
}

static bool rewrite(const struct split_step *step, const struct pieces *in, bool first,
                    struct pieces *out, struct err *err) {
    str_clear(&out->text);
    for (size_t i = 0; i < in->count; i++) {
        struct piece piece = in->list[i];
        size_t start = out->text.len;
        rewrite_piece(step, in->text.data + piece.start, piece.len, first && piece.start == 0,
                      &out->text);
        if (out->text.failed || !pieces_add(out, start, out->text.len - start))
            return err_memory(err, "pre-tokenizer");
    }
    return true;
}

static void swap_pieces(struct pieces work[2]) {
    struct pieces other = work[0];
    work[0] = work[1];
    work[1] = other;
}

bool split_text(const struct steps *steps, struct match_state *match, const char *text, size_t len,
                bool first, struct pieces work[2], struct err *err) {
    work[0].count = work[1].count = 0;
    str_clear(&work[0].text);
    str_append(&work[0].text, text, len);
    if (work[0].text.failed || !pieces_add(&work[0], 0, len))
        return err_memory(err, "pre-tokenizer");
    for (int i = 0; i < steps->split_count; i++) {
        const struct split_step *step = &steps->split[i];
        work[1].count = 0;
        bool ok = step->kind == SPLIT_PATTERN
                      ? split_by_pattern(step, match, &work[0], &work[1], err)
                      : rewrite(step, &work[0], first, &work[1], err);
        if (!ok) return false;
        swap_pieces(work);
    }
    return true;
}
