/* replay.c - runs a fuzz target over its stored corpus without libFuzzer, as part of `make check`
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

int main(int argc, char **argv) {
    DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
    if (!folder) {
        fprintf(stderr, "usage: %s CORPUS-FOLDER\n", argv[0]);
        return 2;
    }
    int inputs = 0;
    struct str path = {0};
    struct err err = {0};
    for (struct dirent *entry; (entry = readdir(folder));) {
        size_t len;
        file_join(&path, argv[1], entry->d_name);
        if (entry->d_name[0] == '.') continue;
        char *bytes = file_read(str_text(&path), (size_t)1 << 28, &len, &err);
        if (!bytes) return fprintf(stderr, "%s\n", err.text), 1;
        LLVMFuzzerTestOneInput((unsigned char *)bytes, len);
        free(bytes);
        inputs++;
    }
    closedir(folder);
    str_free(&path);
    printf("%s: %d inputs\n", file_name(argv[1]), inputs);
    return 0;
}
