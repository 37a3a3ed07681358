/* tokenizer_parts.h - what the files of the tokenizer share; private to engine/tokenizer*.c
 *
 *   tokenizer.c             the face: encode, pieces
 *   tokenizer_open.c        a path -> struct tokenizer, by one of the next two
 *   tokenizer_load.c        tokenizer.json: model, added tokens, post-processor
 *   tokenizer_gguf.c        the vocabulary in the metadata of a GGUF file
 *   tokenizer_dialect.c     Oniguruma's patterns rewritten for PCRE2
 *   tokenizer_steps.c       the JSON of normalizers and pre-tokenizers -> lists of steps
 *   tokenizer_normalize.c   text -> normalised text
 *   tokenizer_split.c       text -> pieces (words)
 *   tokenizer_pattern.c     regular expressions, compiled once and run on PCRE2
 *   tokenizer_added.c       added tokens: a trie, and the search in the text
 *   tokenizer_bpe.c         one word -> ids by merges
 *   tokenizer_vocab.c       token text <-> id
 *   tokenizer_utf8.c        UTF-8, and the byte-level alphabet
 *
 * A text flows: repair UTF-8 -> cut at added tokens -> normalise each part -> cut at the added
 * tokens of normalised text -> pre-tokenize into words -> BPE per word -> post-process. n = bytes
 * of the text. Every stage is O(n log n) or better (patterns: as good as the pattern). */
#ifndef ENGINE_TOKENIZER_PARTS_H
#define ENGINE_TOKENIZER_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/tokenizer.h"

/* ---- UTF-8 */

/* Length of the well-formed character at text[0..len), 0 when malformed; *bad is then the number of
 * bytes that one U+FFFD replaces (the maximal subpart: Unicode 15, section 3.9). len >= 1. */
size_t utf8_check(const char *text, size_t len, size_t *bad);
/* The code point at *text, which is well-formed; *text moves behind it. */
uint32_t utf8_next(const char **text);
/* Appends a code point. */
void utf8_put(struct str *out, uint32_t point);
/* True when all of text is well-formed. */
bool utf8_valid(const char *text, size_t len);
/* Appends text with every malformed part replaced by U+FFFD. */
void utf8_repair(struct str *out, const char *text, size_t len);
/* White_Space of the Unicode character database. */
bool utf8_is_space(uint32_t point);

/* The byte-level alphabet of GPT-2: each byte has a printable character. Returns its code point. */
uint32_t byte_level_char(unsigned char byte);
/* The byte of a character of the alphabet, or -1. */
int byte_level_byte(uint32_t point);

/* ---- patterns */

struct pattern;

/* Memory of one encoding thread for matching; starts as {0}. */
struct match_state {
    void *data;  /* pcre2_match_data */
    void *stack; /* pcre2_jit_stack */
    void *context;
    struct str shadow; /* text with newer characters replaced (see pattern_prepare) */
};
void match_state_free(struct match_state *state);

/* Compiles an expression in Oniguruma's Ruby dialect (what the reference's library takes); literal:
 * every character stands for itself. name is for messages. Returns owned. */
struct pattern *pattern_compile(const char *expression, size_t len, bool literal, const char *name,
                                struct err *err);
void pattern_free(struct pattern *pattern);
/* PCRE2's form of the expression; exposed for tests. Appends to out. */
bool pattern_translate(const char *expression, size_t len, struct str *out, const char *name,
                       struct err *err);
/* Finds the first match in text[from..len) (well-formed UTF-8): 1 found, 0 none, -1 with err set.
 */
int pattern_find(const struct pattern *pattern, struct match_state *state, const char *text,
                 size_t len, size_t from, size_t *start, size_t *end, struct err *err);
/* text itself, or a copy in state->shadow of the same length in which characters that are younger
 * than PCRE2's Unicode tables are replaced by older ones of the same category. NULL: no memory. */
const char *pattern_prepare(struct match_state *state, const char *text, size_t len);

/* Walks all matches as the reference does: no empty match right behind another match. */
struct pattern_walk {
    size_t next;     /* where to search from */
    size_t last_end; /* end of the last match; SIZE_MAX before the first */
};
/* 1 found, 0 no more, -1 with err set. */
int pattern_step(const struct pattern *pattern, struct match_state *state, const char *text,
                 size_t len, struct pattern_walk *walk, size_t *start, size_t *end,
                 struct err *err);

/* ---- vocabulary */

struct token {
    uint32_t start; /* in vocab.bytes */
    int32_t len;    /* -1: no token has this id */
};

struct vocab {
    struct str bytes;
    struct token *tokens; /* owned, [cap] by id */
    int32_t count;        /* largest id + 1 */
    int32_t cap;
    int32_t entries; /* ids that have a token */
    int32_t *slots;  /* owned, [slot_count] ids; -1 = empty */
    uint32_t slot_count;
};

enum { TOKEN_ID_MAX = (1 << 22) - 1 };

/* Adds a token. A text that is there already keeps its first id in look-ups. False: no memory. */
bool vocab_add(struct vocab *vocab, const char *text, size_t len, int32_t id);
/* The id of a text, or -1. */
int32_t vocab_find(const struct vocab *vocab, const char *text, size_t len);
/* The text of an id; NULL when there is none. Borrowed until the next vocab_add. */
const char *vocab_text(const struct vocab *vocab, int32_t id, size_t *len);
void vocab_free(struct vocab *vocab);

/* ---- BPE */

struct merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX = empty */
    float score;   /* lower merges first: the rank, or the negated score of the joined token */
    int32_t id;    /* of the joined token */
};

struct merges {
    struct merge *slots; /* owned */
    size_t slot_count, count;
};
/* Sets the pair's merge; a pair that is there is replaced. False: no memory. */
bool merges_set(struct merges *merges, int32_t left, int32_t right, float score, int32_t id);
const struct merge *merges_find(const struct merges *merges, int32_t left, int32_t right);

/* Growing list of ids. */
struct id_list {
    int32_t *ids; /* owned */
    size_t count, cap;
};
bool id_push(struct id_list *list, int32_t id);

/* Memory of one encoding thread for the words' symbols and the heap; starts as {0}. */
struct bpe_state {
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbol_cap, heap_cap, heap_count;
    size_t pops;     /* candidates taken from the heap so far: the measure of the work */
    struct str text; /* a character with its prefix or suffix */
};
void bpe_state_free(struct bpe_state *state);
/* Appends the ids of one word. False with err set. */
bool bpe_word(const struct tokenizer *tokenizer, struct bpe_state *state, const char *word,
              size_t len, struct id_list *ids, struct err *err);

/* ---- added tokens */

struct added_token {
    int32_t id;
    bool left_strip, right_strip, single_word, normalized, special;
};

struct trie_node {
    int32_t child, sibling; /* node index; 0 = none */
    int32_t token;          /* index into added.tokens; -1 = none ends here */
    unsigned char byte;
};

/* One set of added tokens that is searched for in one pass. */
struct added {
    struct added_token *tokens; /* owned */
    struct trie_node *nodes;    /* owned; [0] is the root */
    int32_t first[256];         /* children of the root by byte; 0 = none */
    int32_t token_count, token_cap, node_count, node_cap;
};
bool added_insert(struct added *added, const char *text, size_t len,
                  const struct added_token *token);
void added_free(struct added *added);
/* Finds the next added token in text[*from..len): the leftmost, of those the longest. Returns it,
 * with [*start, *end) widened by its strips; text before it starts at *from. *search is where the
 * search goes on (start it equal to *from). NULL when there is none. */
const struct added_token *added_find(const struct added *added, const char *text, size_t len,
                                     size_t from, size_t *search, size_t *start, size_t *end);

/* ---- steps of normalisation and of pre-tokenization */

enum normalize_kind {
    NORMALIZE_FORM,        /* NFC, NFD, NFKC, NFKD */
    NORMALIZE_PREPEND,     /* text before a non-empty text */
    NORMALIZE_REPLACE,     /* pattern by text */
    NORMALIZE_LOWER,       /* lower case, character by character */
    NORMALIZE_STRIP,       /* white space at the ends */
    NORMALIZE_STRIP_MARKS, /* combining marks */
    NORMALIZE_BYTE_LEVEL   /* bytes to the byte-level alphabet */
};

struct normalize_step {
    enum normalize_kind kind;
    bool compose, compatibility; /* FORM */
    bool left, right;            /* STRIP */
    const char *text;            /* PREPEND, REPLACE; in the arena */
    size_t len;
    struct pattern *pattern; /* REPLACE; owned */
};

enum split_kind {
    SPLIT_PATTERN,   /* cut at matches */
    SPLIT_PREFIX,    /* text before a piece that does not start with it */
    SPLIT_REPLACE,   /* every space by text */
    SPLIT_BYTE_LEVEL /* bytes to the byte-level alphabet */
};
enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
};

struct split_step {
    enum split_kind kind;
    enum split_behavior behavior;
    bool invert;
    bool only_first; /* PREFIX: only the piece that begins the document */
    const char *text;
    size_t len;
    struct pattern *pattern; /* owned */
};

struct steps {
    struct normalize_step *normalize; /* owned */
    struct split_step *split;         /* owned */
    int normalize_count, split_count;
    bool byte_level; /* tokens are spelt in the byte-level alphabet */
};
struct normalize_step *steps_add_normalize(struct steps *steps);
struct split_step *steps_add_split(struct steps *steps);
void steps_free(struct steps *steps);
/* Read the members "normalizer" and "pre_tokenizer" of a tokenizer.json. */
bool steps_read_normalizer(struct steps *steps, struct arena *arena, const struct json *value,
                           const char *path, struct err *err);
bool steps_read_pre_tokenizer(struct steps *steps, struct arena *arena, const struct json *value,
                              const char *path, struct err *err);
/* The usual step lists: GPT-2's pattern and bytes; also used by GGUF vocabularies. */
extern const char pattern_gpt2[];
bool steps_add_pattern(struct steps *steps, const char *expression, enum split_behavior behavior,
                       bool invert, const char *name, struct err *err);

/* Appends the normalised text. *first (the text begins the document) is cleared when something was
 * cut off at its start. */
bool normalize_text(const struct steps *steps, struct match_state *match, const char *text,
                    size_t len, bool *first, struct str *out, struct err *err);

struct piece {
    size_t start, len;
};
/* Pieces of a text under work; starts as {0}. */
struct pieces {
    struct str text;
    struct piece *list; /* owned */
    size_t count, cap;
};
bool pieces_add(struct pieces *pieces, size_t start, size_t len);
void pieces_free(struct pieces *pieces);
/* Cuts text into words, which are left in work[0]. first: the text begins the document. */
bool split_text(const struct steps *steps, struct match_state *match, const char *text, size_t len,
                bool first, struct pieces work[2], struct err *err);

/* ---- the whole */

struct tokenizer {
    struct arena arena;
    struct vocab vocab;
    struct merges merges;
    float *scores; /* owned, [vocab.count]; merges go by the tokens' scores. NULL: by merges */
    struct steps steps;
    struct added raw, normalized; /* added tokens of the raw and of the normalised text */
    struct id_list before, after; /* what the post-processor puts around the ids */
    int32_t unk;                  /* -1: none */
    bool fuse_unk, byte_fallback, ignore_merges;
    int32_t byte_ids[256];   /* ids of <0x00>..<0xFF>; -1 = absent */
    const char *prefix;      /* of every character of a word but the first; "" = none */
    const char *suffix;      /* of the last character of a word */
    struct str piece_bytes;  /* decoded pieces */
    struct token *pieces;    /* owned, [vocab.count] */
    bool spaces_as_low_line; /* pieces spell a space as U+2581 */
};

/* An empty tokenizer; tokenizer_free releases it. */
struct tokenizer *tokenizer_create(struct err *err);
/* Sets byte_ids from the vocabulary. */
void tokenizer_find_bytes(struct tokenizer *tokenizer);
/* Decodes all pieces, after everything else is there. */
bool tokenizer_finish(struct tokenizer *tokenizer, struct err *err);
/* Fills an empty tokenizer from a parsed tokenizer.json. */
bool tokenizer_load(struct tokenizer *tokenizer, const struct json *doc, struct err *err);

/* Reports what key holds against the list of known names. Always false. */
bool tokenizer_unknown(struct err *err, const char *key, const char *found,
                       const char *const *known, int count);

#endif
