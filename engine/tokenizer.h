/* tokenizer.h - text to token ids, from a tokenizer.json
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

/* path: a tokenizer.json, or a folder that holds one. Returns owned; NULL with err set. */
struct tokenizer *tokenizer_open(const char *path, struct err *err);
/* The same from the bytes of a tokenizer.json; name is for messages. */
struct tokenizer *tokenizer_parse(const char *json, size_t len, const char *name, struct err *err);
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
