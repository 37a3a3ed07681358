/* fuzz_cluster.c - the bytes are a cluster file: what is read can be printed and read again */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sim/cluster.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {0};
    struct cluster cluster, again;
    if (!cluster_parse(&cluster, (const char *)data, size, &err)) {
        if (err.code == ERR_NONE || strchr(err.text, '\n')) abort();
        return 0;
    }
    struct str text = {0};
    cluster_print(&cluster, &text);
    if (!cluster_parse(&again, str_text(&text), text.len, &err)) abort();
    str_free(&text);
    return 0;
}
