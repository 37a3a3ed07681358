/* tokenizer.h - text to token ids, from a tokenizer.json or a GGUF vocabulary
 *
 * Layer 3 (engine). Byte-level BPE and SentencePiece-style BPE with byte fallback; normalisers,
 * pre-tokenizers and post-processors by table; an unknown component is refused by name. */
#ifndef ENGINE_TOKENIZER_H
#define ENGINE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct tokenizer; /* opaque, immutable after opening: may be shared between threads */

/* path: a tokenizer.json, a folder that holds one, or a GGUF file (the first of a split model).
 * Returns owned; NULL with err set. */
struct tokenizer *tokenizer_open(const char *path, struct err *err);
/* The same from the bytes of a tokenizer.json; name is for messages. */
struct tokenizer *tokenizer_parse(const char *json, size_t len, const char *name, struct err *err);

/* A vocabulary as GGUF metadata spells it (tokenizer.ggml.*). All borrowed during the call. */
struct tokenizer_text {
    const char *data;
    size_t len;
};
struct tokenizer_vocabulary {
    const char *model;                   /* "gpt2": merges by rank; "llama": by scores */
    const char *pre;                     /* names the pre-tokenizer of "gpt2"; NULL = absent */
    const struct tokenizer_text *tokens; /* [token_count] */
    const int32_t *types; /* [token_count] 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
                             6 byte; NULL = all normal */
    const float *scores;  /* [token_count]; NULL = absent ("llama" needs them) */
    const struct tokenizer_text *merges; /* [merge_count] "left right" */
    int64_t token_count, merge_count;
    int64_t bos, eos, unk;                  /* -1 = absent */
    int add_bos, add_eos, add_space_prefix; /* 0, 1; -1 = absent */
};
/* Returns owned; NULL with err set (begins with name). Unknown models and pre-tokenizers are
 * refused with the list of known ones. */
struct tokenizer *tokenizer_from_parts(const struct tokenizer_vocabulary *vocabulary,
                                       const char *name, struct err *err);
/* The same from the metadata of a GGUF file. */
struct tokenizer *tokenizer_from_gguf(const char *path, struct err *err);
void tokenizer_free(struct tokenizer *tokenizer);

/* Text (UTF-8, len bytes; invalid bytes are replaced as the reference does) to ids. special: run
 * the post-processor's template (BOS and the like). *ids is returned owned (free). */
bool tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len, bool special,
                      int32_t **ids, int64_t *count, struct err *err);

int tokenizer_vocab(const struct tokenizer *tokenizer);
/* The bytes of a token as text (byte-level pieces decoded to raw bytes), for display and the
 * trace's `piece` column. Borrowed; *len in bytes. NULL for an id that has no token. */
const char *tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, size_t *len);

#endif
