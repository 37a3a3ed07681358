/* tokenizer_normalize.c - normalised text: Unicode forms, prepending, replacing, lower case
 *
 * Unicode forms come from utf8proc's data, one run of characters at a time: a run begins at an
 * ASCII character (none of which changes or joins what is before it) and ends before the next one.
 * Marks are sorted here, by a merge sort: utf8proc's own sort is quadratic in the length of a run
 * of marks, and a hostile text is one such run. */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Growing code points of one run; starts as {0}. */
struct points {
    int32_t *list;  /* owned */
    int32_t *spare; /* owned, same size, for sorting */
    size_t count, cap;
};

static bool points_reserve(struct points *points, size_t more) {
    if (points->cap - points->count >= more) return true;
    size_t cap = points->cap ? points->cap : 256;
    while (cap - points->count < more) cap *= 2;
    int32_t *list = realloc(points->list, cap * sizeof *list);
    if (list) points->list = list;
    int32_t *spare = realloc(points->spare, cap * sizeof *spare);
    if (spare) points->spare = spare;
    if (!list || !spare) return false;
    points->cap = cap;
    return true;
}

static int combining_class(int32_t point) { return utf8proc_get_property(point)->combining_class; }

/* Stable merge sort of list[count] by combining class. */
static void sort_marks(int32_t *list, int32_t *spare, size_t count) {
    if (count < 2) return;
    size_t half = count / 2, left = 0, right = half;
    sort_marks(list, spare, half);
    sort_marks(list + half, spare, count - half);
    for (size_t i = 0; i < count; i++) {
        bool take_left = right == count || (left < half && combining_class(list[left]) <=
                                                               combining_class(list[right]));
        spare[i] = list[take_left ? left++ : right++];
    }
    memcpy(list, spare, count * sizeof *list);
}

/* Canonical ordering (Unicode 15, definition D108): every stretch of characters with a class other
 * than 0 is sorted by it. */
static void order_marks(struct points *points) {
    for (size_t i = 0; i < points->count;) {
        size_t end = i;
        while (end < points->count && combining_class(points->list[end])) end++;
        sort_marks(points->list + i, points->spare, end - i);
        i = end + 1;
    }
}

/* One run [text, end) in the form of the step. */
static bool form_run(const struct normalize_step *step, const char *text, const char *end,
                     struct points *points, struct str *out) {
    utf8proc_option_t options = UTF8PROC_DECOMPOSE;
    if (step->compatibility) options |= UTF8PROC_COMPAT;
    points->count = 0;
    while (text < end) {
        int boundary = 0;
        enum { MOST = 18 }; /* the longest decomposition, U+FDFA's */
        if (!points_reserve(points, MOST)) return false;
        int32_t point = (int32_t)utf8_next(&text);
        utf8proc_ssize_t n =
            utf8proc_decompose_char(point, points->list + points->count, MOST, options, &boundary);
        if (n < 0 || n > MOST) return false;
        points->count += (size_t)n;
    }
    order_marks(points);
    utf8proc_ssize_t count = (utf8proc_ssize_t)points->count;
    if (step->compose)
        count = utf8proc_normalize_utf32(points->list, count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < count; i++) utf8_put(out, (uint32_t)points->list[i]);
    return count >= 0;
}

static bool form_text(const struct normalize_step *step, const char *text, size_t len,
                      struct str *out) {
    struct points points = {0};
    const char *end = text + len, *done = text;
    bool ok = true;
    while (ok && done < end) {
        const char *wide = done;
        while (wide < end && (unsigned char)*wide < 0x80) wide++;
        if (wide == end) break;
        const char *start = wide > done ? wide - 1 : wide;
        while (wide < end && (unsigned char)*wide >= 0x80) wide++;
        str_append(out, done, (size_t)(start - done));
        ok = form_run(step, start, wide, &points, out);
        done = wide;
    }
    str_append(out, done, (size_t)(end - done));
    free(points.list);
    free(points.spare);
    return ok;
}

static bool replace_text(const struct normalize_step *step, struct match_state *match,
                         const char *text, size_t len, struct str *out, struct err *err) {
    struct pattern_walk walk = {0, SIZE_MAX};
    size_t done = 0, start, end;
    const char *subject = pattern_prepare(match, text, len);
    if (!subject) return err_memory(err, "normalizer");
    int found;
    while ((found = pattern_step(step->pattern, match, subject, len, &walk, &start, &end, err)) >
           0) {
        str_append(out, text + done, start - done);
        str_append(out, step->text, step->len);
        done = end;
    }
    str_append(out, text + done, len - done);
    return found == 0;
}

static void lower_text(const char *text, size_t len, struct str *out) {
    for (const char *at = text, *end = text + len; at < end;) {
        uint32_t point = utf8_next(&at);
        utf8_put(out, (uint32_t)utf8proc_tolower((int32_t)point));
        if (point == 0x130) utf8_put(out, 0x307); /* the one lower case of two characters */
    }
}

static void strip_text(const struct normalize_step *step, const char *text, size_t len, bool *first,
                       struct str *out) {
    const char *start = text, *end = text + len, *last = text; /* last: behind the last visible */
    bool seen = false;
    for (const char *at = text; at < end;) {
        const char *here = at;
        if (utf8_is_space(utf8_next(&at))) continue;
        if (!seen) start = here;
        seen = true, last = at;
    }
    if (!seen) last = start = text;
    if (!step->left) start = text;
    if (!step->right) last = end;
    if (!seen && step->left) start = last = end;
    if (start > text) *first = false;
    if (last > start) str_append(out, start, (size_t)(last - start));
}

static void strip_marks(const char *text, size_t len, struct str *out) {
    for (const char *at = text, *end = text + len; at < end;) {
        uint32_t point = utf8_next(&at);
        utf8proc_category_t category = utf8proc_category((int32_t)point);
        if (category < UTF8PROC_CATEGORY_MN || category > UTF8PROC_CATEGORY_ME)
            utf8_put(out, point);
    }
}

static bool run_step(const struct normalize_step *step, struct match_state *match, const char *text,
                     size_t len, bool *first, struct str *out, struct err *err) {
    switch (step->kind) {
    case NORMALIZE_FORM:
        return form_text(step, text, len, out) || err_memory(err, "normalizer");
    case NORMALIZE_REPLACE:
        return replace_text(step, match, text, len, out, err);
    case NORMALIZE_PREPEND:
        if (len) str_append(out, step->text, step->len);
        str_append(out, text, len);
        return true;
    case NORMALIZE_LOWER:
        lower_text(text, len, out);
        return true;
    case NORMALIZE_STRIP:
        strip_text(step, text, len, first, out);
        return true;
    case NORMALIZE_STRIP_MARKS:
        strip_marks(text, len, out);
        return true;
    case NORMALIZE_BYTE_LEVEL:
        for (size_t i = 0; i < len; i++) utf8_put(out, byte_level_char((unsigned char)text[i]));
        return true;
    }
    return true;
}

bool normalize_text(const struct steps *steps, struct match_state *match, const char *text,
                    size_t len, bool *first, struct str *out, struct err *err) {
    struct str work[2] = {{0}, {0}}; /* input and output of a step in turn */
    bool ok = true;
    for (int i = 0; ok && i < steps->normalize_count; i++) {
        struct str *to = &work[i & 1];
        str_clear(to);
        ok = run_step(&steps->normalize[i], match, text, len, first, to, err);
        if (ok && to->failed) ok = err_memory(err, "normalizer");
        text = str_text(to), len = to->len;
    }
    if (ok) str_append(out, text, len);
    if (ok && out->failed) ok = err_memory(err, "normalizer");
    str_free(&work[0]);
    str_free(&work[1]);
    return ok;
}
