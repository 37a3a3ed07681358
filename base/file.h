/* file.h - files as bytes: map, read whole, write so that a half-written file is never seen
 *
 * Layer 1. Only regular files are read (a pipe or a directory gets a clear error), unless said. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"

struct file_map {
    const unsigned char *data; /* NULL for an empty file */
    size_t size_bytes;
    bool copied; /* data is a copy of a laid file */
};

/* Maps a regular file read-only. file_unmap releases it. */
bool file_map(const char *path, struct file_map *map, struct err *err);
void file_unmap(struct file_map *map);
/* The whole pages of map->data[offset, offset+bytes) may leave memory; they come back when read. */
void file_drop(const struct file_map *map, size_t offset, size_t bytes);

/* Reads a whole regular file of at most max_bytes. Returns owned, NUL-terminated after *len bytes.
 */
char *file_read(const char *path, size_t max_bytes, size_t *len, struct err *err);
/* Reads a stream to its end (stdin); name is for messages. Returns owned, NUL-terminated. */
char *file_read_stream(FILE *stream, const char *name, size_t max_bytes, size_t *len,
                       struct err *err);

/* Lays a file of this name in memory alone, where file_map, file_read and file_exists find it;
 * bytes == NULL removes all. For fuzz targets, whose time otherwise goes into system calls: at most
 * FILE_LAID_MOST files, one thread; borrows both. */
enum { FILE_LAID_MOST = 4 };
void file_lay(const char *path, const void *bytes, size_t size_bytes);

bool file_exists(const char *path);
bool file_is_folder(const char *path);
/* Both exist and are one file: the same device and inode, whatever their names are. */
bool file_same(const char *a, const char *b);
/* mkdir -p. */
bool file_make_folder(const char *path, struct err *err);
/* "dir/name" into out. */
void file_join(struct str *out, const char *folder, const char *name);
/* Part after the last '/'. Borrowed. */
const char *file_name(const char *path);

/* Opens a temporary file in $TMPDIR, else /var/tmp, which has no name any more (path gets the one
 * that it had, for messages). Returns its descriptor; -1 with err set. */
int file_temporary(struct str *path, struct err *err);

/* A file under construction: written beside its place under a temporary name, appearing under its
 * own name only by file_commit (fsync + rename). file_abandon removes it. */
struct file_output {
    FILE *stream;
    char *path;      /* owned */
    char *temporary; /* owned */
};
bool file_begin(struct file_output *output, const char *path, struct err *err);
bool file_commit(struct file_output *output, struct err *err);
void file_abandon(struct file_output *output);
/* The three steps for bytes in memory. */
bool file_write(const char *path, const void *bytes, size_t len, struct err *err);

#endif
