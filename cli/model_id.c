/* model_id.c - identity of a checkpoint's files */
#include "cli/model_id.h"

#include <dirent.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/sha256.h"
#include "base/str.h"

enum { WHOLE_BYTES = 8 << 20, HEADER_BYTES = 1 << 20, SAMPLES = 256, SAMPLE_BYTES = 4096 };

static size_t sample_at(size_t size_bytes, size_t i) {
    return i * ((size_bytes - SAMPLE_BYTES) / (SAMPLES - 1));
}

/* Asks for the samples alone, all at once: without advice a system reads megabytes around each, and
 * so the whole file. */
static void expect_samples(const struct file_map *map) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), data = (uintptr_t)map->data;
    posix_madvise((void *)data, map->size_bytes, POSIX_MADV_RANDOM);
    posix_madvise((void *)data, HEADER_BYTES, POSIX_MADV_WILLNEED);
    for (size_t i = 0; i < SAMPLES; i++) {
        uintptr_t at = data + sample_at(map->size_bytes, i), begin = at / page * page;
        posix_madvise((void *)begin, at + SAMPLE_BYTES - begin, POSIX_MADV_WILLNEED);
    }
}

static bool add_file(struct sha256 *sha, const char *path, struct err *err) {
    struct file_map map;
    if (!file_map(path, &map, err)) return false;
    struct str name = {0};
    str_printf(&name, "%s %zu\n", file_name(path), map.size_bytes);
    if (name.failed) {
        str_free(&name);
        file_unmap(&map);
        return err_memory(err, path);
    }
    sha256_add(sha, str_text(&name), name.len);
    str_free(&name);
    if (map.size_bytes <= WHOLE_BYTES) {
        sha256_add(sha, map.data, map.size_bytes);
    } else {
        expect_samples(&map);
        sha256_add(sha, map.data, HEADER_BYTES);
        for (size_t i = 0; i < SAMPLES; i++)
            sha256_add(sha, (const unsigned char *)map.data + sample_at(map.size_bytes, i),
                       SAMPLE_BYTES);
    }
    file_unmap(&map);
    return true;
}

static int is_weight_file(const struct dirent *item) {
    static const char *const endings[] = {".safetensors", ".gguf"};
    const char *name = item->d_name, *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0) return 1;
    return strcmp(name, "config.json") == 0;
}

static bool add_folder(struct sha256 *sha, const char *folder, struct err *err) {
    struct dirent **names = NULL;
    int n = scandir(folder, &names, is_weight_file, alphasort);
    if (n < 0) return err_errno(err, folder, "cannot list");
    bool ok = true;
    for (int i = 0; i < n; i++) {
        struct str path = {0};
        file_join(&path, folder, names[i]->d_name);
        ok = ok && (!path.failed || err_memory(err, folder)) && add_file(sha, str_text(&path), err);
        str_free(&path);
        free(names[i]);
    }
    free(names);
    return ok;
}

/* Parts 2..N of a split GGUF model, given its first (NAME-00001-of-0000N.gguf). */
static bool add_parts(struct sha256 *sha, const char *path, struct err *err) {
    static const char tail[] = "-00001-of-";
    const char *at = strstr(file_name(path), tail);
    struct str part = {0};
    bool ok = true;
    if (!at) return true;
    const char *rest = at + strlen(tail);
    long count = strtol(rest, NULL, 10);
    for (long i = 2; ok && i <= count; i++) {
        str_clear(&part);
        str_append(&part, path, (size_t)(at - path));
        str_printf(&part, "-%05ld-of-%s", i, rest);
        ok = (!part.failed || err_memory(err, path)) && add_file(sha, str_text(&part), err);
    }
    str_free(&part);
    return ok;
}

bool model_id(const char *path, char hex[static 65], struct err *err) {
    struct sha256 sha;
    sha256_init(&sha);
    bool ok = file_is_folder(path) ? add_folder(&sha, path, err)
                                   : add_file(&sha, path, err) && add_parts(&sha, path, err);
    sha256_hex(&sha, hex);
    return ok;
}
