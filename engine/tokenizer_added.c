/* tokenizer_added.c - added tokens: a trie over bytes, and the search in a text
 *
 * The search takes the leftmost match, of those that begin there the longest, and goes on behind it
 * even when the match was then discarded for not being a word of its own (as the reference does).
 */
#include "engine/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static int32_t add_node(struct added *added, unsigned char byte) {
    if (added->node_count == added->node_cap) {
        if (added->node_cap > INT32_MAX / 4) return -1;
        int32_t cap = added->node_cap ? added->node_cap * 2 : 256;
        struct trie_node *nodes = realloc(added->nodes, (size_t)cap * sizeof *nodes);
        if (!nodes) return -1;
        added->nodes = nodes, added->node_cap = cap;
    }
    added->nodes[added->node_count] = (struct trie_node){0, 0, -1, byte};
    return added->node_count++;
}

static int32_t find_child(const struct added *added, int32_t node, unsigned char byte) {
    if (node == 0) return added->first[byte];
    int32_t at = added->nodes[node].child;
    while (at && added->nodes[at].byte != byte) at = added->nodes[at].sibling;
    return at;
}

static int32_t make_child(struct added *added, int32_t node, unsigned char byte) {
    int32_t at = find_child(added, node, byte);
    if (at) return at;
    at = add_node(added, byte);
    if (at < 0) return at;
    added->nodes[at].sibling = added->nodes[node].child;
    added->nodes[node].child = at;
    if (node == 0) added->first[byte] = at;
    return at;
}

bool added_insert(struct added *added, const char *text, size_t len,
                  const struct added_token *token) {
    if (!len) return true;
    if (!added->node_count && add_node(added, 0) < 0) return false;
    if (added->token_count == added->token_cap) {
        int32_t cap = added->token_cap ? added->token_cap * 2 : 64;
        struct added_token *tokens = realloc(added->tokens, (size_t)cap * sizeof *tokens);
        if (!tokens) return false;
        added->tokens = tokens, added->token_cap = cap;
    }
    int32_t node = 0;
    for (size_t i = 0; i < len; i++)
        if ((node = make_child(added, node, (unsigned char)text[i])) < 0) return false;
    if (added->nodes[node].token >= 0) return true; /* the first of equal texts wins */
    added->nodes[node].token = added->token_count;
    added->tokens[added->token_count++] = *token;
    return true;
}

void added_free(struct added *added) {
    free(added->tokens);
    free(added->nodes);
}

/* The longest token that begins at text; its length in *taken. */
static const struct added_token *longest_at(const struct added *added, const char *text, size_t len,
                                            size_t *taken) {
    const struct added_token *best = NULL;
    int32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        node = find_child(added, node, (unsigned char)text[i]);
        if (!node) break;
        if (added->nodes[node].token < 0) continue;
        best = &added->tokens[added->nodes[node].token];
        *taken = i + 1;
    }
    return best;
}

/* The start of the character that ends before text[at]. */
static size_t char_before(const char *text, size_t at) {
    do at--;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

/* A character of a word (Unicode Technical Standard 18, annex C: \w). */
static bool is_word(uint32_t point) {
    switch (utf8proc_category((int32_t)point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        break;
    }
    return point == 0x200C || point == 0x200D || (point >= 0x24B6 && point <= 0x24E9) ||
           (point >= 0x1F130 && point <= 0x1F149) || (point >= 0x1F150 && point <= 0x1F169) ||
           (point >= 0x1F170 && point <= 0x1F189);
}

static bool stands_alone(const char *text, size_t len, size_t start, size_t end) {
    const char *before = start ? text + char_before(text, start) : NULL, *after = text + end;
    if (before && is_word(utf8_next(&before))) return false;
    return end == len || !is_word(utf8_next(&after));
}

/* White space before start, not further than `from`. */
static size_t widen_left(const char *text, size_t from, size_t start) {
    while (start > from) {
        size_t before = char_before(text, start);
        const char *at = text + before;
        if (before < from || !utf8_is_space(utf8_next(&at))) break;
        start = before;
    }
    return start;
}

static size_t widen_right(const char *text, size_t len, size_t end) {
    while (end < len) {
        const char *at = text + end;
        if (!utf8_is_space(utf8_next(&at))) break;
        end = (size_t)(at - text);
    }
    return end;
}

const struct added_token *added_find(const struct added *added, const char *text, size_t len,
                                     size_t from, size_t *search, size_t *start, size_t *end) {
    if (!added->token_count) return NULL;
    for (size_t at = *search; at < len; at++) {
        size_t taken = 0;
        if (!added->first[(unsigned char)text[at]]) continue;
        const struct added_token *token = longest_at(added, text + at, len - at, &taken);
        if (!token) continue;
        *search = at + taken;
        if (token->single_word && !stands_alone(text, len, at, at + taken)) {
            at = *search - 1;
            continue;
        }
        *start = token->left_strip ? widen_left(text, from, at) : at;
        *end = token->right_strip ? widen_right(text, len, at + taken) : at + taken;
        return token;
    }
    return NULL;
}
