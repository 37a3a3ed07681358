/* file.c - files as bytes: map, read whole, write so that a half-written file is never seen */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
    const char *path;
    const void *bytes;
    size_t size;
} laid[FILE_LAID_MOST];
static int laid_count;

void file_lay(const char *path, const void *bytes, size_t size_bytes) {
    if (!bytes) laid_count = 0;
    if (!bytes || laid_count == FILE_LAID_MOST) return;
    laid[laid_count].path = path;
    laid[laid_count].bytes = bytes;
    laid[laid_count++].size = size_bytes;
}

/* Index of a laid file; -1 when there is none of this name. */
static int find_laid(const char *path) {
    for (int i = 0; i < laid_count; i++)
        if (strcmp(laid[i].path, path) == 0) return i;
    return -1;
}

/* A copy of its own size, so that a sanitizer sees reads behind the end. */
static bool map_laid(int i, struct file_map *map, struct err *err) {
    void *data = laid[i].size ? malloc(laid[i].size) : NULL;
    if (!data && laid[i].size) return err_memory(err, laid[i].path);
    if (data) memcpy(data, laid[i].bytes, laid[i].size);
    *map = (struct file_map){.data = data, .size_bytes = laid[i].size, .copied = true};
    return true;
}

static const char *kind_of(mode_t mode) {
    static const struct {
        mode_t bits;
        const char *name;
    } kinds[] = {{S_IFDIR, "a folder"},
                 {S_IFIFO, "a pipe"},
                 {S_IFSOCK, "a socket"},
                 {S_IFCHR, "a device"},
                 {S_IFBLK, "a device"}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((mode & S_IFMT) == kinds[i].bits) return kinds[i].name;
    return "something else";
}

/* Opens a regular file and tells its size. O_NONBLOCK: opening a pipe must not hang. */
static int open_regular(const char *path, size_t *size, struct err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        err_errno(err, path, "cannot open");
        return -1;
    }
    struct stat info;
    if (fstat(fd, &info) != 0)
        err_errno(err, path, "cannot read its size");
    else if (!S_ISREG(info.st_mode))
        err_set(err, ERR_IO, "%s: found %s, expected a regular file", path, kind_of(info.st_mode));
    else {
        *size = (size_t)info.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

bool file_map(const char *path, struct file_map *map, struct err *err) {
    *map = (struct file_map){0};
    int at = find_laid(path);
    if (at >= 0) return map_laid(at, map, err);
    size_t size;
    int fd = open_regular(path, &size, err);
    if (fd < 0) return false;
    void *data = NULL;
    if (size > 0) data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        err_errno(err, path, "cannot map");
    else
        *map = (struct file_map){.data = data, .size_bytes = size};
    close(fd);
    return data != MAP_FAILED;
}

void file_unmap(struct file_map *map) {
    if (map->copied)
        free((void *)(uintptr_t)map->data);
    else if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size_bytes);
    *map = (struct file_map){0};
}

void file_drop(const struct file_map *map, size_t offset, size_t bytes) {
    if (map->copied) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)map->data + offset;
    uintptr_t begin = (start + page - 1) / page * page, end = (start + bytes) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

char *file_read_stream(FILE *stream, const char *name, size_t max_bytes, size_t *len,
                       struct err *err) {
    struct str text = {0};
    char buffer[65536];
    size_t n;
    str_puts(&text, "");
    while ((n = fread(buffer, 1, sizeof buffer, stream)) > 0 && text.len + n <= max_bytes)
        str_append(&text, buffer, n);
    if (ferror(stream))
        err_errno(err, name, "cannot read");
    else if (n > 0)
        err_set(err, ERR_FORMAT, "%s: found more than %zu bytes, expected at most that", name,
                max_bytes);
    else if (text.failed)
        err_memory(err, name);
    else {
        *len = text.len;
        return text.data;
    }
    str_free(&text);
    return NULL;
}

static char *read_laid(int i, size_t max_bytes, size_t *len, struct err *err) {
    struct str text = {0};
    str_puts(&text, "");
    str_append(&text, laid[i].bytes, laid[i].size);
    *len = text.len;
    if (!text.failed && text.len <= max_bytes) return text.data;
    err_set(err, ERR_FORMAT, "%s: found %zu bytes, expected at most %zu", laid[i].path, *len,
            max_bytes);
    str_free(&text);
    return NULL;
}

char *file_read(const char *path, size_t max_bytes, size_t *len, struct err *err) {
    int at = find_laid(path);
    if (at >= 0) return read_laid(at, max_bytes, len, err);
    size_t size;
    int fd = open_regular(path, &size, err);
    if (fd < 0) return NULL;
    if (size > max_bytes) {
        close(fd);
        err_set(err, ERR_FORMAT, "%s: found %zu bytes, expected at most %zu", path, size,
                max_bytes);
        return NULL;
    }
    FILE *stream = fdopen(fd, "rb");
    if (!stream) {
        close(fd);
        err_errno(err, path, "cannot open");
        return NULL;
    }
    char *text = file_read_stream(stream, path, max_bytes, len, err);
    fclose(stream);
    return text;
}

bool file_exists(const char *path) {
    struct stat info;
    return find_laid(path) >= 0 || stat(path, &info) == 0;
}

bool file_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool file_same(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool file_make_folder(const char *path, struct err *err) {
    struct str part = {0};
    bool ok = true;
    for (const char *at = path; ok && *at;) {
        const char *slash = strchr(at + 1, '/');
        size_t len = slash ? (size_t)(slash - path) : strlen(path);
        str_clear(&part);
        str_append(&part, path, len);
        if (part.failed)
            ok = err_memory(err, path);
        else if (mkdir(part.data, 0777) != 0 && !file_is_folder(part.data))
            ok = err_errno(err, part.data, "cannot make folder");
        at = path + len;
    }
    str_free(&part);
    return ok;
}

void file_join(struct str *out, const char *folder, const char *name) {
    str_clear(out);
    str_puts(out, folder);
    if (out->len > 0 && out->data[out->len - 1] != '/') str_puts(out, "/");
    str_puts(out, name);
}

const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int file_temporary(struct str *path, struct err *err) {
    const char *parent = getenv("TMPDIR");
    file_join(path, parent && *parent ? parent : "/var/tmp", "steelyard-XXXXXX");
    if (path->failed) {
        err_memory(err, "path");
        return -1;
    }
    int fd = mkstemp(path->data);
    if (fd < 0)
        err_errno(err, path->data, "cannot make a temporary file");
    else
        unlink(path->data);
    return fd;
}

bool file_begin(struct file_output *output, const char *path, struct err *err) {
    *output = (struct file_output){0};
    struct str temporary = {0};
    str_printf(&temporary, "%s.part%ld", path, (long)getpid());
    output->path = strdup(path);
    output->temporary = temporary.data;
    if (!output->path || temporary.failed) {
        file_abandon(output);
        return err_memory(err, path);
    }
    output->stream = fopen(output->temporary, "wb");
    if (output->stream) return true;
    err_errno(err, path, "cannot write");
    file_abandon(output);
    return false;
}

bool file_commit(struct file_output *output, struct err *err) {
    bool ok = fflush(output->stream) == 0 && !ferror(output->stream) &&
              fsync(fileno(output->stream)) == 0;
    if (fclose(output->stream) != 0) ok = false;
    output->stream = NULL;
    if (!ok || rename(output->temporary, output->path) != 0) {
        err_errno(err, output->path, "cannot write");
        file_abandon(output);
        return false;
    }
    free(output->path);
    free(output->temporary);
    *output = (struct file_output){0};
    return true;
}

void file_abandon(struct file_output *output) {
    if (output->stream) fclose(output->stream);
    if (output->temporary) unlink(output->temporary);
    free(output->path);
    free(output->temporary);
    *output = (struct file_output){0};
}

bool file_write(const char *path, const void *bytes, size_t len, struct err *err) {
    struct file_output output;
    if (!file_begin(&output, path, err)) return false;
    fwrite(bytes, 1, len, output.stream);
    return file_commit(&output, err);
}
