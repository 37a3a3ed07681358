/* tokenizer_pattern.c - patterns run on PCRE2 with its compiler to machine code */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* A nest of repeats keeps a frame per repeat: a megabyte of text may need this much. It is reserved
 * as address space and touched only when used. */
enum { STACK_FIRST = 32 << 10, STACK_MOST = 256 << 20 };
/* Backtracking steps per match before a pattern is given up: a second or so. */
enum { MATCH_LIMIT = 200000000 };

struct pattern {
    pcre2_code *code;
    char *name; /* for messages */
};

struct pattern *pattern_compile(const char *expression, size_t len, bool literal, const char *name,
                                struct err *err) {
    struct str text = {0};
    struct pattern *pattern = calloc(1, sizeof *pattern);
    if (!pattern || !(pattern->name = strdup(name))) {
        err_memory(err, name);
        goto failed;
    }
    if (!utf8_valid(expression, len)) {
        err_set(err, ERR_FORMAT, "%s: found malformed UTF-8, expected a pattern", name);
        goto failed;
    }
    if (literal)
        str_append(&text, expression, len);
    else if (!pattern_translate(expression, len, &text, name, err))
        goto failed;
    int code;
    PCRE2_SIZE at;
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_NEVER_BACKSLASH_C);
    pattern->code = pcre2_compile((PCRE2_SPTR)str_text(&text), text.len, options, &code, &at, NULL);
    if (!pattern->code) {
        char why[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        err_set(err, ERR_UNSUPPORTED, "%s: found \"%.160s\": %s", name, expression, why);
        goto failed;
    }
    pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE); /* without it, matching is interpreted */
    str_free(&text);
    return pattern;
failed:
    str_free(&text);
    pattern_free(pattern);
    return NULL;
}

void pattern_free(struct pattern *pattern) {
    if (!pattern) return;
    pcre2_code_free(pattern->code);
    free(pattern->name);
    free(pattern);
}

void match_state_free(struct match_state *state) {
    pcre2_match_data_free(state->data);
    pcre2_match_context_free(state->context);
    pcre2_jit_stack_free(state->stack);
    str_free(&state->shadow);
}

static bool prepare_state(struct match_state *state, const char *name, struct err *err) {
    if (state->context) return true;
    state->data = pcre2_match_data_create(1, NULL);
    state->stack = pcre2_jit_stack_create(STACK_FIRST, STACK_MOST, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    state->context = context;
    if (!state->data || !context) return err_memory(err, name);
    if (state->stack) pcre2_jit_stack_assign(context, NULL, state->stack);
    pcre2_set_match_limit(context, MATCH_LIMIT);
    return true;
}

int pattern_find(const struct pattern *pattern, struct match_state *state, const char *text,
                 size_t len, size_t from, size_t *start, size_t *end, struct err *err) {
    if (!prepare_state(state, pattern->name, err)) return -1;
    int code = pcre2_match(pattern->code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK,
                           state->data, state->context);
    if (code == PCRE2_ERROR_NOMATCH) return 0;
    if (code < 0) {
        char why[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        err_set(err, ERR_DATA, "%s: the pattern cannot be run on this text: %s", pattern->name,
                why);
        return -1;
    }
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(state->data);
    *start = place[0], *end = place[1];
    return 1;
}

static size_t char_len(const char *text) {
    const char *at = text;
    utf8_next(&at);
    return (size_t)(at - text);
}

int pattern_step(const struct pattern *pattern, struct match_state *state, const char *text,
                 size_t len, struct pattern_walk *walk, size_t *start, size_t *end,
                 struct err *err) {
    while (walk->next <= len) {
        int found = pattern_find(pattern, state, text, len, walk->next, start, end, err);
        if (found <= 0) return found;
        if (*start == *end && *end == walk->last_end) {
            walk->next += walk->next < len ? char_len(text + walk->next) : 1;
            continue;
        }
        if (*end < walk->next) break; /* \K may move a match backwards */
        walk->next = walk->last_end = *end;
        return 1;
    }
    return 0;
}

/* ---- characters younger than PCRE2's Unicode tables */

/* Unicode 15, 15.1 and 16 against 14 (DerivedGeneralCategory): ranges, and a character of Unicode
 * 14 with the same general category and the same length in UTF-8 (and the same script, if that is
 * Han). Without it, one random code point in a hundred is cut differently from the reference. With
 * a PCRE2 that knows these characters the replacement changes nothing. */
static const uint32_t newer[][3] = {
    /* clang-format off */
    {0x897, 0x897, 0x1AB0}, {0xCF3, 0xCF3, 0x1B04}, {0xECE, 0xECE, 0x1AB0},
    {0x1B4E, 0x1B4F, 0x2016}, {0x1B7F, 0x1B7F, 0x2016}, {0x1C89, 0x1C89, 0x1E00},
    {0x1C8A, 0x1C8A, 0x1E01}, {0x2427, 0x2429, 0x2300}, {0x2FFC, 0x2FFF, 0x2300},
    {0x31E4, 0x31E5, 0x2300}, {0x31EF, 0x31EF, 0x2300}, {0xA7CB, 0xA7CC, 0x1E00},
    {0xA7CD, 0xA7CD, 0x1E01}, {0xA7DA, 0xA7DA, 0x1E00}, {0xA7DB, 0xA7DB, 0x1E01},
    {0xA7DC, 0xA7DC, 0x1E00}, {0x105C0, 0x105F3, 0x10000}, {0x10D40, 0x10D49, 0x104A0},
    {0x10D4A, 0x10D4D, 0x10000}, {0x10D4E, 0x10D4E, 0x16B40}, {0x10D4F, 0x10D4F, 0x10000},
    {0x10D50, 0x10D65, 0x10400}, {0x10D69, 0x10D6D, 0x11001}, {0x10D6E, 0x10D6E, 0x10EAD},
    {0x10D6F, 0x10D6F, 0x16B40}, {0x10D70, 0x10D85, 0x10428}, {0x10D8E, 0x10D8F, 0x1D6C1},
    {0x10EC2, 0x10EC4, 0x10000}, {0x10EFC, 0x10EFF, 0x11001}, {0x1123F, 0x11240, 0x10000},
    {0x11241, 0x11241, 0x11001}, {0x11380, 0x11389, 0x10000}, {0x1138B, 0x1138B, 0x10000},
    {0x1138E, 0x1138E, 0x10000}, {0x11390, 0x113B5, 0x10000}, {0x113B7, 0x113B7, 0x10000},
    {0x113B8, 0x113BA, 0x11000}, {0x113BB, 0x113C0, 0x11001}, {0x113C2, 0x113C2, 0x11000},
    {0x113C5, 0x113C5, 0x11000}, {0x113C7, 0x113CA, 0x11000}, {0x113CC, 0x113CD, 0x11000},
    {0x113CE, 0x113CE, 0x11001}, {0x113CF, 0x113CF, 0x11000}, {0x113D0, 0x113D0, 0x11001},
    {0x113D1, 0x113D1, 0x10000}, {0x113D2, 0x113D2, 0x11001}, {0x113D3, 0x113D3, 0x10000},
    {0x113D4, 0x113D5, 0x10100}, {0x113D7, 0x113D8, 0x10100}, {0x113E1, 0x113E2, 0x11001},
    {0x116D0, 0x116E3, 0x104A0}, {0x1171E, 0x1171E, 0x11000}, {0x11B00, 0x11B09, 0x10100},
    {0x11BC0, 0x11BE0, 0x10000}, {0x11BE1, 0x11BE1, 0x10100}, {0x11BF0, 0x11BF9, 0x104A0},
    {0x11F00, 0x11F01, 0x11001}, {0x11F02, 0x11F02, 0x10000}, {0x11F03, 0x11F03, 0x11000},
    {0x11F04, 0x11F10, 0x10000}, {0x11F12, 0x11F33, 0x10000}, {0x11F34, 0x11F35, 0x11000},
    {0x11F36, 0x11F3A, 0x11001}, {0x11F3E, 0x11F3F, 0x11000}, {0x11F40, 0x11F40, 0x11001},
    {0x11F41, 0x11F41, 0x11000}, {0x11F42, 0x11F42, 0x11001}, {0x11F43, 0x11F4F, 0x10100},
    {0x11F50, 0x11F59, 0x104A0}, {0x11F5A, 0x11F5A, 0x11001}, {0x1342F, 0x1342F, 0x10000},
    {0x13439, 0x1343F, 0x1D173}, {0x13440, 0x13440, 0x11001}, {0x13441, 0x13446, 0x10000},
    {0x13447, 0x13455, 0x11001}, {0x13460, 0x143FA, 0x10000}, {0x16100, 0x1611D, 0x10000},
    {0x1611E, 0x16129, 0x11001}, {0x1612A, 0x1612C, 0x11000}, {0x1612D, 0x1612F, 0x11001},
    {0x16130, 0x16139, 0x104A0}, {0x16D40, 0x16D42, 0x16B40}, {0x16D43, 0x16D6A, 0x10000},
    {0x16D6B, 0x16D6C, 0x16B40}, {0x16D6D, 0x16D6F, 0x10100}, {0x16D70, 0x16D79, 0x104A0},
    {0x18CFF, 0x18CFF, 0x10000}, {0x1B132, 0x1B132, 0x10000}, {0x1B155, 0x1B155, 0x10000},
    {0x1CC00, 0x1CCEF, 0x1F300}, {0x1CCF0, 0x1CCF9, 0x104A0}, {0x1CD00, 0x1CEB3, 0x1F300},
    {0x1D2C0, 0x1D2D3, 0x10107}, {0x1DF25, 0x1DF2A, 0x10428}, {0x1E030, 0x1E06D, 0x16B40},
    {0x1E08F, 0x1E08F, 0x11001}, {0x1E4D0, 0x1E4EA, 0x10000}, {0x1E4EB, 0x1E4EB, 0x16B40},
    {0x1E4EC, 0x1E4EF, 0x11001}, {0x1E4F0, 0x1E4F9, 0x104A0}, {0x1E5D0, 0x1E5ED, 0x10000},
    {0x1E5EE, 0x1E5EF, 0x11001}, {0x1E5F0, 0x1E5F0, 0x10000}, {0x1E5F1, 0x1E5FA, 0x104A0},
    {0x1E5FF, 0x1E5FF, 0x10100}, {0x1F6DC, 0x1F6DC, 0x1F300}, {0x1F774, 0x1F776, 0x1F300},
    {0x1F77B, 0x1F77F, 0x1F300}, {0x1F7D9, 0x1F7D9, 0x1F300}, {0x1F8B2, 0x1F8BB, 0x1F300},
    {0x1F8C0, 0x1F8C1, 0x1F300}, {0x1FA75, 0x1FA77, 0x1F300}, {0x1FA87, 0x1FA89, 0x1F300},
    {0x1FA8F, 0x1FA8F, 0x1F300}, {0x1FAAD, 0x1FAAF, 0x1F300}, {0x1FABB, 0x1FABF, 0x1F300},
    {0x1FAC6, 0x1FAC6, 0x1F300}, {0x1FACE, 0x1FACF, 0x1F300}, {0x1FADA, 0x1FADC, 0x1F300},
    {0x1FADF, 0x1FADF, 0x1F300}, {0x1FAE8, 0x1FAE9, 0x1F300}, {0x1FAF7, 0x1FAF8, 0x1F300},
    {0x1FBCB, 0x1FBEF, 0x1F300}, {0x2B739, 0x2B739, 0x20000}, {0x2EBF0, 0x2EE5D, 0x20000},
    {0x31350, 0x323AF, 0x20000},
    /* clang-format on */
};

static uint32_t older_twin(uint32_t point) {
    size_t low = 0, high = sizeof newer / sizeof *newer;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > newer[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    bool inside = low < sizeof newer / sizeof *newer && point >= newer[low][0];
    return inside ? newer[low][2] : point;
}

const char *pattern_prepare(struct match_state *state, const char *text, size_t len) {
    const char *end = text + len, *copied = text;
    str_clear(&state->shadow);
    for (const char *at = text; at < end;) {
        if ((unsigned char)*at < 0xE0) { /* none of them is shorter than three bytes */
            at++;
            continue;
        }
        const char *start = at;
        uint32_t point = utf8_next(&at), twin = older_twin(point);
        if (twin == point) continue;
        str_append(&state->shadow, copied, (size_t)(start - copied));
        utf8_put(&state->shadow, twin);
        copied = at;
    }
    if (copied == text) return text;
    str_append(&state->shadow, copied, (size_t)(end - copied));
    return state->shadow.failed ? NULL : state->shadow.data;
}
