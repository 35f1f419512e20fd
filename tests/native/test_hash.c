/* CRC32C and SHA-256 against published vectors, and against slow versions or other cuts of the same bytes. */
#include "check.h"

#include "base/hash.h"

/* Bit by bit, from the polynomial. */
static uint32_t slow_crc(uint32_t crc, const uint8_t *bytes, size_t size) {
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
        }
    }
    return ~crc;
}

static void test_crc_vectors(void) {
    uint8_t zeros[32] = {0}, ones[32], up[32], down[32];
    /* RFC 3720, B.4: an iSCSI read command */
    const uint8_t command[48] = {0x01, 0xc0, [16] = 0x14, [22] = 0x04, [27] = 0x14, [31] = 0x18, [32] = 0x28, [40] = 0x02};
    for (int i = 0; i < 32; i++) {
        ones[i] = 0xff;
        up[i] = (uint8_t)i;
        down[i] = (uint8_t)(31 - i);
    }
    CHECK(crc32c(0, zeros, 32) == 0x8a9136aau);
    CHECK(crc32c(0, ones, 32) == 0x62a8ab43u);
    CHECK(crc32c(0, up, 32) == 0x46dd794eu);
    CHECK(crc32c(0, down, 32) == 0x113fdb5cu);
    CHECK(crc32c(0, command, 48) == 0xd9963a56u, "%08x", crc32c(0, command, 48));
    CHECK(crc32c(0, "123456789", 9) == 0xe3069283u);
    CHECK(crc32c(0, "", 0) == 0 && crc32c(0x12345678u, NULL, 0) == 0x12345678u);
}

/* 256 KiB of random bytes use every entry of the eight tables: the chance to miss one is 2048 * exp(-128). */
static void test_crc_tables(void) {
    const size_t size = 1 << 18;
    uint8_t *bytes = malloc(size);
    uint64_t random = 1;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)check_random(&random);
    }
    CHECK(crc32c(0, bytes, size) == slow_crc(0, bytes, size));
    for (size_t n = 0; n < 70; n++) {
        for (size_t at = 0; at < 9; at++) { /* any alignment */
            CHECK(crc32c((uint32_t)n, bytes + at, n) == slow_crc((uint32_t)n, bytes + at, n));
        }
        CHECK(crc32c(crc32c(0, bytes, n), bytes + n, 500 - n) == crc32c(0, bytes, 500), "cut at %zu", n);
    }
    for (size_t bit = 0; bit < 8 * 100; bit++) { /* it is a sum of every bit */
        uint32_t before = crc32c(0, bytes, 100);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(crc32c(0, bytes, 100) != before);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    free(bytes);
}

static void check_digest(const uint8_t digest[32], const char *hex, const char *what) {
    char text[65];
    for (int i = 0; i < 32; i++) {
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    }
    CHECK(strcmp(text, hex) == 0, "%s: %s", what, text);
}

static void check_sha(const char *text, size_t repeats, const char *hex) {
    sha256 hash;
    uint8_t digest[32];
    sha256_begin(&hash);
    for (size_t i = 0; i < repeats; i++) {
        sha256_add(&hash, text, strlen(text));
    }
    sha256_end(&hash, digest);
    check_digest(digest, hex, text);
}

static void test_sha_vectors(void) { /* FIPS 180-4 examples, and NIST's million */
    check_sha("abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check_sha("", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    check_sha(
        "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu", 1,
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    check_sha("aaaaaaaaaa", 100000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* Lengths 0 to 200, all paddings: the digest of the digests was computed with Python's hashlib. */
static void test_sha_lengths(void) {
    uint8_t data[200], digest[32];
    sha256 all, one;
    for (int i = 0; i < 200; i++) {
        data[i] = (uint8_t)(i * 7 + 3);
    }
    sha256_begin(&all);
    for (size_t n = 0; n <= 200; n++) {
        sha256_begin(&one);
        sha256_add(&one, data, n);
        sha256_end(&one, digest);
        sha256_add(&all, digest, sizeof digest);
    }
    sha256_end(&all, digest);
    check_digest(digest, "3275febb4612d86d586eb9f11cd21e648a9fc7d95e0f6b8d362786e28c9c5b79", "lengths");

    uint8_t whole[32];
    sha256_begin(&one);
    sha256_add(&one, data, sizeof data);
    sha256_end(&one, whole);
    for (size_t a = 0; a <= 200; a += 3) {
        for (size_t b = a; b <= 200; b += 7) {
            sha256_begin(&one);
            sha256_add(&one, data, a);
            sha256_add(&one, data + a, b - a);
            sha256_add(&one, data + b, 200 - b);
            sha256_end(&one, digest);
            CHECK(memcmp(digest, whole, 32) == 0, "cut at %zu and %zu", a, b);
        }
    }
}

int main(void) {
    test_crc_vectors();
    test_crc_tables();
    test_sha_vectors();
    test_sha_lengths();
    return check_report();
}
