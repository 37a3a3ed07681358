/* tokenizer_utf8.c - UTF-8 as text comes in, and the byte-level alphabet
 *
 * Malformed bytes are replaced by one U+FFFD per maximal subpart (Unicode 15, section 3.9, table
 * 3-8), which is also what Python's errors="replace" does. */
#include "engine/tokenizer_parts.h"

#include <string.h>

/* Bytes of a character by its first byte, and the range of its second (table 3-7). */
static size_t shape_of(unsigned char lead, unsigned char *low, unsigned char *high) {
    *low = 0x80, *high = 0xBF;
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return 0;
    if (lead < 0xE0) return 2;
    if (lead == 0xE0) *low = 0xA0;
    if (lead == 0xED) *high = 0x9F;
    if (lead < 0xF0) return 3;
    if (lead == 0xF0) *low = 0x90;
    if (lead == 0xF4) *high = 0x8F;
    return 4;
}

size_t utf8_check(const char *text, size_t len, size_t *bad) {
    const unsigned char *at = (const unsigned char *)text;
    unsigned char low, high;
    size_t need = shape_of(at[0], &low, &high);
    *bad = 1;
    for (size_t i = 1; i < need; i++) {
        if (i >= len || at[i] < low || at[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80, high = 0xBF;
    }
    return need;
}

uint32_t utf8_next(const char **text) {
    const unsigned char *at = (const unsigned char *)*text;
    unsigned char low, high;
    size_t need = shape_of(at[0], &low, &high);
    uint32_t point = need < 2 ? at[0] : at[0] & (0xFFu >> (need + 1));
    for (size_t i = 1; i < need; i++) point = point << 6 | (at[i] & 0x3F);
    *text += need ? need : 1;
    return point;
}

void utf8_put(struct str *out, uint32_t point) {
    char byte[4];
    size_t len = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (size_t i = len; i-- > 1; point >>= 6) byte[i] = (char)(0x80 | (point & 0x3F));
    byte[0] = (char)(len == 1 ? point : (0xF00u >> len & 0xF0) | point);
    str_append(out, byte, len);
}

bool utf8_valid(const char *text, size_t len) {
    size_t bad;
    for (size_t i = 0; i < len;) {
        size_t step = (unsigned char)text[i] < 0x80 ? 1 : utf8_check(text + i, len - i, &bad);
        if (!step) return false;
        i += step;
    }
    return true;
}

void utf8_repair(struct str *out, const char *text, size_t len) {
    size_t good = 0; /* start of the run of well-formed text */
    for (size_t i = 0; i < len;) {
        size_t bad = 0, step = utf8_check(text + i, len - i, &bad);
        if (step) {
            i += step;
            continue;
        }
        str_append(out, text + good, i - good);
        utf8_put(out, 0xFFFD);
        good = i += bad;
    }
    str_append(out, text + good, len - good);
}

bool utf8_is_space(uint32_t point) {
    return (point >= 9 && point <= 13) || point == 0x20 || point == 0x85 || point == 0xA0 ||
           point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 ||
           point == 0x2029 || point == 0x202F || point == 0x205F || point == 0x3000;
}

/* Printable Latin-1 stands for itself; the 68 others are numbered from U+0100 in order of their
 * bytes: 0x00-0x20 (33 of them), 0x7F-0xA0 (34), 0xAD. */
uint32_t byte_level_char(unsigned char byte) {
    if (byte <= 0x20) return 0x100u + byte;
    if (byte >= 0x7F && byte <= 0xA0) return 0x121u + (byte - 0x7Fu);
    return byte == 0xAD ? 0x143u : byte;
}

int byte_level_byte(uint32_t point) {
    if (point >= 0x100 && point <= 0x120) return (int)(point - 0x100);
    if (point >= 0x121 && point <= 0x142) return (int)(point - 0x121 + 0x7F);
    if (point == 0x143) return 0xAD;
    return point <= 0xFF && byte_level_char((unsigned char)point) == point ? (int)point : -1;
}
