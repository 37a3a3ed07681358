/* support_gguf.c - writes GGUF files piece by piece */
#include "tests/support_gguf.h"

#include <string.h>

void put(struct str *out, uint64_t number, int bytes) {
    for (int i = 0; i < bytes; i++) {
        char byte = (char)(number >> (8 * i));
        str_append(out, &byte, 1);
    }
}

void put_text(struct str *out, const char *text) {
    put(out, strlen(text), 8);
    str_puts(out, text);
}

void put_header(struct str *out, uint64_t version, uint64_t tensors, uint64_t keys) {
    str_clear(out);
    str_puts(out, "GGUF");
    put(out, version, 4);
    put(out, tensors, 8);
    put(out, keys, 8);
}

void put_key(struct str *out, const char *name, int kind) {
    put_text(out, name);
    put(out, (uint64_t)kind, 4);
}

void put_tensor(struct str *out, const char *name, int rank, const int64_t *shape, uint32_t type,
                uint64_t offset) {
    put_text(out, name);
    put(out, (uint64_t)rank, 4);
    for (int i = 0; i < rank; i++) put(out, (uint64_t)shape[i], 8);
    put(out, type, 4);
    put(out, offset, 8);
}

void put_padding(struct str *out, size_t align) {
    while (out->len % align) put(out, 0, 1);
}
