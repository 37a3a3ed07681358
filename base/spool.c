/* spool.c - bytes that are appended now and read back later, in flat memory */
#include "base/spool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

static bool write_all(struct spool *spool, const unsigned char *bytes, size_t n, struct err *err) {
    for (size_t done = 0; done < n;) {
        ssize_t step = pwrite(spool->file - 1, bytes + done, n - done, spool->size + (off_t)done);
        if (step < 0 && errno == EINTR) continue;
        if (step <= 0) return err_errno(err, "temporary file", "cannot write");
        done += (size_t)step;
    }
    spool->size += (int64_t)n;
    return true;
}

/* What was in memory goes to a file. */
static bool leave_memory(struct spool *spool, struct err *err) {
    struct str path = {0};
    int fd = file_temporary(&path, err);
    str_free(&path);
    if (fd < 0) return false;
    size_t n = (size_t)spool->size;
    spool->file = fd + 1;
    spool->size = 0;
    if (!write_all(spool, spool->memory, n, err)) return false;
    free(spool->memory);
    spool->memory = NULL;
    return true;
}

static bool keep(struct spool *spool, const void *bytes, size_t n, struct err *err) {
    size_t need = (size_t)spool->size + n;
    if (need > spool->cap) {
        size_t cap = need > 2 * spool->cap ? need : 2 * spool->cap;
        unsigned char *memory = realloc(spool->memory, cap);
        if (!memory) return err_memory(err, "choices");
        spool->memory = memory;
        spool->cap = cap;
    }
    if (n) memcpy(spool->memory + spool->size, bytes, n);
    spool->size = (int64_t)need;
    return true;
}

bool spool_add(struct spool *spool, const void *bytes, size_t n, int64_t *at, struct err *err) {
    *at = spool->size;
    if (!spool->file && (size_t)spool->size + n <= SPOOL_MEMORY_BYTES)
        return keep(spool, bytes, n, err);
    return (spool->file || leave_memory(spool, err)) && write_all(spool, bytes, n, err);
}

bool spool_read(const struct spool *spool, int64_t at, void *bytes, size_t n, struct err *err) {
    if (!spool->file && n) memcpy(bytes, spool->memory + at, n);
    for (size_t done = 0; spool->file && done < n;) {
        ssize_t step = pread(spool->file - 1, (char *)bytes + done, n - done, at + (off_t)done);
        if (step < 0 && errno == EINTR) continue;
        if (step == 0) return err_set(err, ERR_IO, "temporary file: found its end too early");
        if (step < 0) return err_errno(err, "temporary file", "cannot read");
        done += (size_t)step;
    }
    return true;
}

void spool_close(struct spool *spool) {
    free(spool->memory);
    if (spool->file) close(spool->file - 1);
    *spool = (struct spool){0};
}
