/* tokenizer_dialect.c - Oniguruma's Ruby dialect rewritten for PCRE2
 *
 * Patterns in tokenizer.json are written for Oniguruma, which the reference library runs. Where the
 * two engines read the same text differently, the pattern is rewritten (observed on tokenizers
 * 0.23.3, Unicode 16):
 *   \s \d \w \b and their negations follow Unicode            -> properties spelt out
 *   \h is a hexadecimal digit, \v is U+000B                   -> spelt out
 *   x{2,3}+ repeats the interval, it is not possessive        -> (?:x{2,3})+
 *   x{2}? makes it optional, it is not lazy; {,n} is {0,n}    -> (?:x{2})?, {0,n}
 *   ^ and $ match at every line; option m lets . match \n     -> (?m:^), option s
 *   [a[b]] unites, [a&&b] intersects, [^a[b]] negates all     -> alternatives and look-ahead
 * The subject must be free of characters younger than PCRE2's tables: see pattern_prepare. */
#include "engine/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 100 };

#define WORD_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside of brackets, Oniguruma also takes Latin-1's superscripts and fractions for \w. */
#define WORD_SET_OUTSIDE WORD_SET "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
#define HEX_SET          "0-9A-Fa-f"

struct reader {
    const char *at, *end;
    const char *name; /* for messages */
    struct str *out;
    struct err *err;
    int depth;
};

static bool refuse(struct reader *in, const char *what) {
    if (in->out->failed) return err_memory(in->err, in->name);
    return err_set(in->err, ERR_UNSUPPORTED, "%s: found %s, expected a pattern we can run",
                   in->name, what);
}

static bool one_of(char c, const char *letters) { return c && strchr(letters, c); }

static bool looking_at(const struct reader *in, const char *text) {
    size_t len = strlen(text);
    return (size_t)(in->end - in->at) >= len && !memcmp(in->at, text, len);
}

static bool accept(struct reader *in, const char *text) {
    if (!looking_at(in, text)) return false;
    in->at += strlen(text);
    return true;
}

/* A character that stands for itself, inside or outside of brackets. */
static void put_literal(struct str *out, uint32_t point) {
    bool plain = point >= 0x80 || (point >= '0' && point <= '9') ||
                 ((point | 32) >= 'a' && (point | 32) <= 'z');
    if (plain)
        utf8_put(out, point);
    else
        str_printf(out, "\\x{%X}", (unsigned)point);
}

/* Escapes that stand for a set of characters: what goes between brackets. `negated` sets are
 * written as [^...], which needs alternatives when they occur inside a larger set. */
struct set_escape {
    char letter;
    const char *set;
    bool negated;
};
static const struct set_escape set_escapes[] = {
    {'s', "\\p{White_Space}", false},
    {'S', "\\P{White_Space}", false},
    {'d', "\\p{Nd}", false},
    {'D', "\\P{Nd}", false},
    {'w', WORD_SET, false},
    {'W', WORD_SET, true},
    {'h', HEX_SET, false},
    {'H', HEX_SET, true},
};

static const struct set_escape *find_set(char letter) {
    for (size_t i = 0; i < sizeof set_escapes / sizeof *set_escapes; i++)
        if (set_escapes[i].letter == letter) return &set_escapes[i];
    return NULL;
}

/* Names of properties that PCRE2 spells otherwise; others are handed on (and refused by PCRE2 when
 * it does not know them). Compared without case, spaces, '-' and '_'. */
static const char *const property_names[][2] = {
    {"letter", "L"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"mark", "M"},
    {"nonspacingmark", "Mn"},
    {"spacingmark", "Mc"},
    {"enclosingmark", "Me"},
    {"number", "N"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"punctuation", "P"},
    {"symbol", "S"},
    {"mathsymbol", "Sm"},
    {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"},
    {"othersymbol", "So"},
    {"separator", "Z"},
    {"spaceseparator", "Zs"},
    {"other", "C"},
    {"control", "Cc"},
    {"format", "Cf"},
    {"digit", "Nd"},
    {"cntrl", "Cc"},
};

/* Posix classes, [[:name:]] and \p{name}, as sets. */
static const char *const posix_sets[][2] = {
    {"alpha", "\\p{Alphabetic}"},
    {"alnum", "\\p{Alphabetic}\\p{Nd}"},
    {"space", "\\p{White_Space}"},
    {"digit", "\\p{Nd}"},
    {"upper", "\\p{Uppercase}"},
    {"lower", "\\p{Lowercase}"},
    {"punct", "\\p{P}$+<=>\\x{5E}`|~"},
    {"xdigit", HEX_SET},
    {"word", WORD_SET},
    {"cntrl", "\\p{Cc}"},
};

static const char *look_up(const char *const (*rows)[2], size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(rows[i][0], name)) return rows[i][1];
    return NULL;
}
#define LOOK_UP(rows, name) look_up(rows, sizeof rows / sizeof *rows, name)

/* A set of characters under construction, between brackets. */
struct set {
    struct str items;  /* between the brackets */
    struct str others; /* alternatives to the brackets: "X|Y" */
};

static void set_free(struct set *set) {
    str_free(&set->items);
    str_free(&set->others);
}

static void set_alternative(struct set *set, const char *before, const char *text,
                            const char *after) {
    str_printf(&set->others, "%s%s%s%s", set->others.len ? "|" : "", before, text, after);
}

/* \p{Name} or \P{Name}, after the letter: appends to set. */
static bool read_property(struct reader *in, bool negated, struct set *set) {
    char name[64], key[64];
    size_t len = 0, key_len = 0;
    if (!accept(in, "{")) return refuse(in, "\\p without a name in braces");
    if (accept(in, "^")) negated = !negated;
    for (; in->at < in->end && *in->at != '}'; in->at++) {
        char c = *in->at;
        bool letter = (c | 32) >= 'a' && (c | 32) <= 'z';
        bool mark = c == '_' || c == '-' || c == ' ' || (c >= '0' && c <= '9');
        if ((!letter && !mark) || len + 1 >= sizeof name)
            return refuse(in, "a damaged property name");
        name[len++] = c;
        if (letter) key[key_len++] = (char)(c | 32);
    }
    if (!accept(in, "}")) return refuse(in, "a property name without end");
    name[len] = key[key_len] = '\0';
    const char *posix = LOOK_UP(posix_sets, key), *short_name = LOOK_UP(property_names, key);
    if (posix && negated)
        set_alternative(set, "[^", posix, "]");
    else if (posix)
        str_puts(&set->items, posix);
    else
        str_printf(&set->items, "\\%c{%s}", negated ? 'P' : 'p', short_name ? short_name : name);
    return true;
}

static bool read_hex(struct reader *in, int least, int most, uint32_t *point) {
    int digits = 0;
    for (*point = 0; digits < most && in->at < in->end; in->at++, digits++) {
        char c = *in->at, lower = (char)(c | 32);
        if (c >= '0' && c <= '9')
            *point = *point * 16 + (uint32_t)(c - '0');
        else if (lower >= 'a' && lower <= 'f')
            *point = *point * 16 + (uint32_t)(lower - 'a' + 10);
        else
            break;
    }
    bool valid = digits >= least && *point <= 0x10FFFF && (*point < 0xD800 || *point > 0xDFFF);
    return valid || refuse(in, "a damaged code point");
}

/* The character that an escape (after the backslash) stands for. */
static bool read_escaped_char(struct reader *in, uint32_t *point) {
    static const char letters[] = "tnrfvae", values[] = "\t\n\r\f\v\a\033";
    char c = *in->at;
    const char *found = c ? strchr(letters, c) : NULL;
    if (found) {
        *point = (uint32_t)values[found - letters];
        in->at++;
        return true;
    }
    if (accept(in, "u")) return read_hex(in, 4, 4, point);
    if (accept(in, "x{"))
        return read_hex(in, 1, 8, point) && (accept(in, "}") || refuse(in, "\\x{"));
    if (accept(in, "x")) {
        if (!read_hex(in, 1, 2, point)) return false;
        return *point < 0x80 || refuse(in, "a byte above \\x7F");
    }
    if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z')) {
        char what[] = "the escape \\?";
        what[sizeof what - 2] = c;
        return refuse(in, what);
    }
    *point = utf8_next(&in->at);
    return true;
}

/* One character of a set, for a range's end. */
static bool read_set_char(struct reader *in, uint32_t *point) {
    if (in->at >= in->end) return refuse(in, "a set without end");
    if (!accept(in, "\\")) {
        *point = utf8_next(&in->at);
        return true;
    }
    if (in->at >= in->end) return refuse(in, "a backslash at the end");
    if (accept(in, "b"))
        *point = '\b';
    else
        return read_escaped_char(in, point);
    return true;
}

/* [:name:] inside a set. */
static bool read_posix(struct reader *in, struct set *set) {
    char name[16];
    size_t len = 0;
    bool negated = accept(in, "^");
    while (in->at < in->end && *in->at >= 'a' && *in->at <= 'z' && len + 1 < sizeof name)
        name[len++] = *in->at++;
    name[len] = '\0';
    const char *found = LOOK_UP(posix_sets, name);
    if (!found || !accept(in, ":]")) return refuse(in, "an unknown [:class:]");
    if (negated)
        set_alternative(set, "[^", found, "]");
    else
        str_puts(&set->items, found);
    return true;
}

static bool read_set(struct reader *in, struct str *out);

/* One item of a set: a class, a nested set, a character or a range. */
static bool read_set_item(struct reader *in, struct set *set) {
    if (accept(in, "[:")) return read_posix(in, set);
    if (accept(in, "[")) {
        if (set->others.len) str_puts(&set->others, "|");
        return read_set(in, &set->others);
    }
    if (looking_at(in, "\\") && in->end - in->at >= 2) {
        const struct set_escape *escape = find_set(in->at[1]);
        if (escape || in->at[1] == 'p' || in->at[1] == 'P') {
            in->at += 2;
            if (!escape) return read_property(in, in->at[-1] == 'P', set);
            if (escape->negated)
                set_alternative(set, "[^", escape->set, "]");
            else
                str_puts(&set->items, escape->set);
            return true;
        }
    }
    uint32_t first, last;
    if (!read_set_char(in, &first)) return false;
    put_literal(&set->items, first);
    if (!looking_at(in, "-") || in->end - in->at < 2 || in->at[1] == ']') return true;
    in->at++;
    if (looking_at(in, "[") || !read_set_char(in, &last) || last < first)
        return refuse(in, "a damaged range in a set");
    str_puts(&set->items, "-");
    put_literal(&set->items, last);
    return true;
}

/* The set as one atom. */
static void put_set(struct str *out, const struct set *set, bool negated) {
    if (!set->others.len) {
        str_printf(out, "[%s%s]", negated ? "^" : "", str_text(&set->items));
        return;
    }
    str_puts(out, negated ? "(?:(?!" : "(?:");
    if (set->items.len) str_printf(out, "[%s]|", str_text(&set->items));
    str_append(out, set->others.data, set->others.len);
    str_puts(out, negated ? ")(?s:.))" : ")");
}

/* A set, after its opening bracket: appends an atom to out. */
static bool read_set(struct reader *in, struct str *out) {
    struct set set = {0};
    struct str terms = {0}; /* look-aheads of the sides of && that are done */
    bool negated = accept(in, "^"), ok = ++in->depth <= DEEPEST || refuse(in, "too deep sets");
    for (bool first = true; ok && (first || !looking_at(in, "]")); first = false) {
        if (in->at >= in->end)
            ok = refuse(in, "a set without end");
        else if (accept(in, "&&")) {
            str_puts(&terms, "(?=");
            put_set(&terms, &set, false);
            str_puts(&terms, ")");
            str_clear(&set.items);
            str_clear(&set.others);
        } else {
            ok = read_set_item(in, &set);
        }
    }
    if (ok) in->at++;
    if (ok && !set.items.len && !set.others.len) ok = refuse(in, "an empty set");
    if (ok && terms.len) {
        str_printf(out, negated ? "(?:(?!%s" : "(?:%s", terms.data);
        put_set(out, &set, false);
        str_puts(out, negated ? ")(?s:.))" : ")");
    } else if (ok) {
        put_set(out, &set, negated);
    }
    if (set.items.failed || set.others.failed || terms.failed) out->failed = true;
    set_free(&set);
    str_free(&terms);
    in->depth--;
    return ok;
}

/* ---- outside of sets */

/* An atom's place in the output, for quantifiers that must wrap it. */
struct atom {
    size_t start;
    bool there, quantified;
};

static bool read_escape(struct reader *in) {
    if (in->at >= in->end) return refuse(in, "a backslash at the end");
    char c = *in->at;
    const struct set_escape *escape = find_set(c);
    uint32_t point;
    if (c == 'p' || c == 'P') {
        struct set set = {0};
        in->at++;
        bool ok = read_property(in, c == 'P', &set);
        if (ok) put_set(in->out, &set, false);
        set_free(&set);
        return ok;
    }
    if (c == 'b' || c == 'B') {
        str_printf(in->out,
                   "(?%c(?<=[" WORD_SET_OUTSIDE "])(?![" WORD_SET_OUTSIDE
                   "])|(?<![" WORD_SET_OUTSIDE "])(?=[" WORD_SET_OUTSIDE "]))",
                   c == 'b' ? ':' : '!');
    } else if (escape) {
        bool word = c == 'w' || c == 'W';
        str_printf(in->out, "[%s%s]", escape->negated ? "^" : "",
                   word ? WORD_SET_OUTSIDE : escape->set);
    } else if (one_of(c, "AzZGRXK") || (c >= '1' && c <= '9')) {
        str_printf(in->out, "\\%c", c);
    } else {
        if (!read_escaped_char(in, &point)) return false;
        put_literal(in->out, point);
        return true;
    }
    in->at++;
    return true;
}

/* "(" and what belongs to it: options are renamed, everything else is the same in both. */
static bool read_group(struct reader *in) {
    static const char *const same[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    in->at++;
    str_puts(in->out, "(");
    if (!looking_at(in, "?")) return true;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (accept(in, same[i])) {
            str_puts(in->out, same[i]);
            return true;
        }
    in->at++;
    str_puts(in->out, "?");
    for (; in->at < in->end && one_of(*in->at, "im-"); in->at++)
        str_append(in->out, *in->at == 'm' ? "s" : in->at, 1);
    if (accept(in, ":"))
        str_puts(in->out, ":");
    else if (!looking_at(in, ")"))
        return refuse(in, "an unknown group (?");
    return true;
}

/* {n}, {n,}, {,m}, {n,m} at the cursor: its bounds as text, or false when it is no interval. */
static bool read_interval(struct reader *in, char *text, size_t size, bool *fixed) {
    const char *at = in->at + 1, *comma = NULL, *first = at;
    while (at < in->end && ((*at >= '0' && *at <= '9') || (*at == ',' && !comma))) {
        if (*at == ',') comma = at;
        at++;
    }
    if (at >= in->end || *at != '}' || at == first || (comma && at - first == 1)) return false;
    int len = (int)(at - first);
    if (len > 16) return false;
    snprintf(text, size, "{%s%.*s}", comma == first ? "0" : "", len, first);
    *fixed = !comma;
    in->at = at + 1;
    return true;
}

static void wrap(struct str *out, size_t start) {
    struct str tail = {0};
    str_append(&tail, out->data + start, out->len - start);
    out->len = start;
    str_printf(out, "(?:%s)", str_text(&tail));
    if (tail.failed) out->failed = true;
    str_free(&tail);
}

/* A quantifier at the cursor, if there is one; *found tells. */
static bool read_quantifier(struct reader *in, struct atom *atom, bool *found) {
    char text[32] = {*in->at, '\0'};
    bool interval = *in->at == '{', fixed = false;
    *found = false;
    if (!one_of(*in->at, "*+?{")) return true;
    if (interval && !read_interval(in, text, sizeof text, &fixed)) return true;
    if (!interval) in->at++;
    *found = true;
    if (!atom->there) return refuse(in, "a quantifier with nothing before it");
    if (atom->quantified) wrap(in->out, atom->start);
    str_puts(in->out, text);
    if (!fixed && accept(in, "?"))
        str_puts(in->out, "?");
    else if (!interval && accept(in, "+"))
        str_puts(in->out, "+");
    atom->quantified = true;
    return true;
}

/* One atom at the cursor that is neither group, alternative nor quantifier. */
static bool read_atom(struct reader *in) {
    if (accept(in, "\\")) return read_escape(in);
    if (accept(in, "[")) return read_set(in, in->out);
    if (accept(in, "^"))
        str_puts(in->out, "(?m:^)");
    else if (accept(in, "$"))
        str_puts(in->out, "(?m:$)");
    else if (accept(in, "."))
        str_puts(in->out, ".");
    else
        put_literal(in->out, utf8_next(&in->at));
    return true;
}

bool pattern_translate(const char *expression, size_t len, struct str *out, const char *name,
                       struct err *err) {
    struct reader in = {expression, expression + len, name, out, err, 0};
    size_t open[DEEPEST]; /* where the groups that are open begin in out */
    int opened = 0;
    struct atom atom = {0, false, false};
    while (in.at < in.end) {
        bool quantifier = false;
        if (!read_quantifier(&in, &atom, &quantifier)) return false;
        if (quantifier) continue;
        atom = (struct atom){out->len, true, false};
        if (*in.at == '(') {
            if (opened == DEEPEST) return refuse(&in, "too deep groups");
            open[opened++] = out->len;
            atom.there = false;
            if (!read_group(&in)) return false;
        } else if (*in.at == ')') {
            if (!opened) return refuse(&in, "an unmatched )");
            atom.start = open[--opened];
            in.at++;
            str_puts(out, ")");
        } else if (*in.at == '|') {
            atom.there = false;
            in.at++;
            str_puts(out, "|");
        } else if (!read_atom(&in)) {
            return false;
        }
    }
    if (opened) return refuse(&in, "a group without end");
    return !out->failed || err_memory(err, name);
}
