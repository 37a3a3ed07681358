/* fuzz_tokenizer.c - bytes up to the first NUL are a tokenizer.json, the rest is text to encode */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {0};
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json = nul ? (size_t)(nul - data) : size, text = nul ? json + 1 : 0;
    struct tokenizer *tokenizer = tokenizer_parse((const char *)data, json, "fuzz", &err);
    int32_t *ids = NULL;
    int64_t count = 0;
    if (tokenizer && tokenizer_encode(tokenizer, (const char *)data + text, size - text, true, &ids,
                                      &count, &err)) {
        size_t len;
        for (int64_t i = 0; i < count; i++)
            if (!tokenizer_piece(tokenizer, ids[i], &len)) abort();
    }
    free(ids);
    tokenizer_free(tokenizer);
    return 0;
}
