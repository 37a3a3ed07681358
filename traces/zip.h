/* zip.h - zip archives (npz, torch files), checked, through zlib
 *
 * Private to traces/. */
#ifndef TRACES_ZIP_H
#define TRACES_ZIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/file.h"

struct zip_member {
    const char *name;          /* borrowed */
    const unsigned char *data; /* as stored */
    uint64_t stored_bytes, size_bytes;
    int method; /* 0 stored, 8 deflate */
    uint32_t crc;
};

struct zip {
    struct file_map map;
    struct zip_member *members; /* owned */
    char *names;                /* owned */
    int count;
};

/* Opens an archive (also zip64); refuses encryption and other methods. */
bool zip_open(struct zip *zip, const char *path, struct err *err);
void zip_close(struct zip *zip);
/* By the end of its name ("/data.pkl"); NULL when there is none. */
const struct zip_member *zip_find(const struct zip *zip, const char *ending);
/* The member's bytes, owned, CRC checked; a NUL behind. At most max_bytes. */
unsigned char *zip_read(const struct zip_member *member, size_t max_bytes, struct err *err);

/* A stored member's bytes where they lie in the archive, CRC checked; NULL with err set when they
 * are damaged, NULL without when the member is deflated. */
const unsigned char *zip_view(const struct zip_member *member, struct err *err);

#endif
