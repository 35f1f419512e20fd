/* CRC32C (Castagnoli, RFC 3720) and SHA-256 (FIPS 180-4). */
#ifndef LMI_BASE_HASH_H
#define LMI_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(uint32_t crc, const void *bytes, size_t size); /* start with 0; may be continued */

typedef struct sha256 {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64];
} sha256;

void sha256_begin(sha256 *hash);
void sha256_add(sha256 *hash, const void *bytes, size_t size);
void sha256_end(sha256 *hash, uint8_t digest[32]);

#endif
