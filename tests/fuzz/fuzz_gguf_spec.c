/* fuzz_gguf_spec.c - the bytes are a GGUF model: its metadata become a specification or one error
 * line. The file is in memory only; split names cannot be told by such a path. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/gguf_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void to_spec(const char *path) {
    struct err err = {0};
    struct tensors set = {0};
    struct arena arena;
    struct model_spec spec;
    const struct gguf *head = NULL;
    const char *config = NULL;
    arena_init(&arena, "fuzz");
    bool ok = gguf_checkpoint_open(path, &set, &head, &err) &&
              gguf_spec(head, &set, &arena, &spec, &config, &err);
    if (ok != (err.code == ERR_NONE) || strchr(err.text, '\n')) abort();
    if (ok && (!config || !*config)) abort();
    for (int i = 0; ok && i < spec.steps; i++)
        if (spec.layer[i].attention.rope >= spec.rope_count || spec.layer[i].ffn.experts < 0)
            abort();
    tensors_close(&set);
    arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int file = -1;
    char path[64];
    if (file < 0) file = memfd_create("fuzz", 0);
    if (file < 0 || ftruncate(file, (off_t)size) != 0 ||
        pwrite(file, data, size, 0) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    to_spec(path);
    return 0;
}
