/* sha256.h - SHA-256 (FIPS 180-4), for the identity of documents and models
 *
 * Layer 1. Our own 80 lines, because the only other use of a crypto library would be this. */
#ifndef BASE_SHA256_H
#define BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
    uint32_t h[8];
    uint64_t bytes;
    unsigned char block[64];
};

void sha256_init(struct sha256 *sha);
void sha256_add(struct sha256 *sha, const void *bytes, size_t len);
/* 64 hexadecimal digits and a NUL. */
void sha256_hex(struct sha256 *sha, char hex[static 65]);

#endif
