/* fuzz_gguf.c - bytes are a GGUF file: every value and tensor that it gives out is read */
#include <stdint.h>
#include <stdlib.h>

#include "base/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {0};
    struct gguf *file = gguf_read(data, size, "fuzz", &err);
    volatile uint8_t sum = 0;
    for (int i = 0; file && i < gguf_tensor_count(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        for (size_t k = 0; k < tensor->size_bytes; k++) sum ^= ((const uint8_t *)tensor->data)[k];
        if (!gguf_tensor(file, tensor->name)) abort();
    }
    const char *text;
    int64_t number;
    bool ok = file && gguf_get_text(file, "general.architecture", "", &text, &err) &&
              gguf_get_int(file, "general.alignment", 0, 1 << 20, 32, &number, &err);
    sum ^= ok;
    gguf_close(file);
    return 0;
}
