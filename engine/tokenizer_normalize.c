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

/* The reference normalises with the tables of Unicode 9: characters that later versions gave a
 * decomposition or a combining class (or that later ones are composed of) are starters there that
 * join with nothing. */
static const uint32_t inert[][2] = {
    /* clang-format off */
    {0x7FD, 0x7FD}, {0x897, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C}, {0xD3B, 0xD3C},
    {0xEBA, 0xEBA}, {0xECE, 0xECE}, {0x1715, 0x1715}, {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA},
    {0x32FF, 0x32FF}, {0xA7F2, 0xA7F4}, {0xA82C, 0xA82C}, {0xAB69, 0xAB69}, {0x105C9, 0x105C9},
    {0x105D2, 0x105D2}, {0x105DA, 0x105DA}, {0x105E4, 0x105E4}, {0x10781, 0x10785},
    {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10D69, 0x10D6D},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11383, 0x11383}, {0x11385, 0x11385},
    {0x1138E, 0x1138E}, {0x11391, 0x11391}, {0x113B8, 0x113B8}, {0x113BB, 0x113BB},
    {0x113C2, 0x113C2}, {0x113C5, 0x113C5}, {0x113C7, 0x113C9}, {0x113CE, 0x113D0},
    {0x113E1, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930},
    {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x1611E, 0x16129}, {0x1612F, 0x1612F}, {0x16D63, 0x16D63}, {0x16D67, 0x16D6A},
    {0x16FF0, 0x16FF1}, {0x1CCD6, 0x1CCF9}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    {0x1E5EE, 0x1E5EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
    /* clang-format on */
};

static bool is_inert(uint32_t point) {
    size_t low = 0, high = sizeof inert / sizeof *inert;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > inert[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof inert / sizeof *inert && point >= inert[low][0];
}

/* The characters collected in points, in order and composed if that is the form; empties it. */
static bool finish_run(const struct normalize_step *step, struct points *points, struct str *out) {
    utf8proc_ssize_t count = (utf8proc_ssize_t)points->count;
    order_marks(points);
    if (step->compose && count)
        count = utf8proc_normalize_utf32(points->list, count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < count; i++) utf8_put(out, (uint32_t)points->list[i]);
    points->count = 0;
    return count >= 0;
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
        uint32_t point = utf8_next(&text);
        if (is_inert(point)) {
            if (!finish_run(step, points, out)) return false;
            utf8_put(out, point);
            continue;
        }
        utf8proc_ssize_t n = utf8proc_decompose_char((int32_t)point, points->list + points->count,
                                                     MOST, options, &boundary);
        if (n < 0 || n > MOST) return false;
        points->count += (size_t)n;
    }
    return finish_run(step, points, out);
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
