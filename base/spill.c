/* spill.c - a large array that need not stay in memory */
#include "base/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/pages.h"
#include "base/str.h"

static bool map_file(struct spill *spill, const char *path, int fd, struct err *err) {
    int status = posix_fallocate(fd, 0, (off_t)spill->bytes);
    if (status != 0) {
        errno = status;
        return err_errno(err, path, "cannot take space for a temporary file");
    }
    void *data = mmap(NULL, spill->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return err_errno(err, path, "cannot map");
    spill->data = data;
    return true;
}

bool spill_open(struct spill *spill, size_t bytes, bool in_file, struct err *err) {
    struct str path = {0};
    *spill = (struct spill){.bytes = bytes ? bytes : 1, .in_file = in_file};
    if (!in_file) {
        spill->data = pages_alloc(spill->bytes);
        return spill->data || err_memory(err, "array");
    }
    int fd = file_temporary(&path, err);
    bool ok = fd >= 0 && map_file(spill, path.data, fd, err);
    if (fd >= 0) close(fd);
    str_free(&path);
    return ok;
}

void spill_drop(const struct spill *spill, size_t offset, size_t bytes) {
    if (!spill->in_file) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)spill->data + offset;
    uintptr_t begin = (start + page - 1) / page * page, end = (start + bytes) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void spill_close(struct spill *spill) {
    if (spill->data && spill->in_file)
        munmap(spill->data, spill->bytes);
    else
        free(spill->data);
    *spill = (struct spill){0};
}
