/* fuzz_tokenizer.c - bytes up to the first NUL are a tokenizer.json, the rest is text to encode */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Every id that stands for text has a piece; a template may add ids that no token has. */
static void encode(const struct tokenizer *tokenizer, const char *text, size_t size) {
    for (int special = 0; special < 2; special++) {
        struct err err = {0};
        int32_t *ids = NULL;
        int64_t count = 0;
        size_t len;
        bool ok = tokenizer_encode(tokenizer, text, size, special, &ids, &count, &err);
        for (int64_t i = 0; ok && i < count; i++)
            if (ids[i] < 0 || (!tokenizer_piece(tokenizer, ids[i], &len) && !special)) abort();
        free(ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {0};
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json = nul ? (size_t)(nul - data) : size, text = nul ? json + 1 : 0;
    struct tokenizer *tokenizer = tokenizer_parse((const char *)data, json, "fuzz", &err);
    if (tokenizer) encode(tokenizer, (const char *)data + text, size - text);
    tokenizer_free(tokenizer);
    return 0;
}
