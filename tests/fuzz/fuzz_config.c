/* fuzz_config.c - the bytes are a config.json: reading it gives a specification or one error line
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/families.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {0};
    struct arena arena;
    struct model_spec spec;
    struct tensors tensors = {0};
    struct json *root = json_parse((const char *)data, size, &err);
    if (!root) return 0;
    arena_init(&arena, "fuzz");
    bool ok = spec_build(root, "fuzz", &arena, &spec, &err) &&
              spec_quantization(root, "fuzz", &tensors, &err);
    if (ok != (err.code == ERR_NONE) || strchr(err.text, '\n')) abort();
    for (int i = 0; ok && i < spec.steps; i++)
        if (spec.layer[i].attention.rope >= spec.rope_count || spec.layer[i].ffn.experts < 0)
            abort();
    arena_free(&arena);
    json_free(root);
    return 0;
}
