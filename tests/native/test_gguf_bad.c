/* Bad files, built by hand: for each rule of the reader at least one that breaks it and nothing else. Each must be refused
 * with the status, the byte and the words that are written here; and a good file must open right after it.
 *
 * Cases that repeat the root cause of a published report of another reader carry its number. */
#include "check.h"
#include "gguf_builder.h"
#include "gguf_walk.h"

static builder good;

static void refuse_bytes(const void *bytes, size_t size, const char *id, lmi_status status, uint64_t offset,
                         const char *words) {
    lmi_error error = {0};
    long broken = 0;
    lmi_status found = walk_copy(bytes, size, &error, &broken);
    CHECK(found == status && error.status == status, "%s: status %d, %s", id, (int)found, error.message);
    CHECK(broken == 0, "%s: a file came back with an error", id);
    CHECK(error.offset == (int64_t)offset, "%s: offset %lld, expected %lld", id, (long long)error.offset, (long long)offset);
    CHECK(strstr(error.message, words) != NULL, "%s: message: %s", id, error.message);
    CHECK(error.remedy[0] != '\0' && error.message[0] != '\0' && error.message[strlen(error.message) - 1] != '.', "%s", id);
    CHECK(strpbrk(error.message, "\n\r\x1b") == NULL, "%s: control characters", id);
    CHECK(walk_copy(good.bytes, good.size, &error, &broken) == LMI_OK && broken == 0, "%s: the next file", id);
    CHECK(walk_copy(bytes, size, NULL, &broken) == status, "%s: without an lmi_error", id);
}

static void refuse(builder *b, const char *id, lmi_status status, uint64_t offset, const char *words) {
    refuse_bytes(b->bytes, b->size, id, status, offset, words);
    build_free(b);
}

static void damaged(builder *b, const char *id, uint64_t offset, const char *words) {
    refuse(b, id, LMI_BAD_FORMAT, offset, words);
}

/* ---- header ------------------------------------------------------------------------------------------------------ */

static void test_other_formats(void) {
    static const struct {
        const char *begin;
        size_t size;
        const char *words;
    } cases[] = {
#define CASE(bytes, words) {bytes, sizeof(bytes) - 1, words}
        CASE("<!DOCTYPE html><html>", "(starts with \"<!DO\"): looks like a web page saved by a failed download"),
        CASE("<html><head>", "web page"),
        CASE("\xef\xbb\xbf \r\n<?xml version", "web page"),
        CASE("{\"error\":\"Repository not found\"}", "JSON"),
        CASE("version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        CASE("PK\003\004\024\000\000\000\000\000archive/data.pkl", "zip archive"),
        CASE("\200\002}q\000", "pickle"),
        CASE("\200\003}q\000", "pickle"),
        CASE("\200\004\225\000", "pickle"),
        CASE("\200\005\225\000", "pickle"),
        CASE("\100\000\000\000\000\000\000\000{\"a\":{\"dtype\":\"F16\"}}", "safetensors"),
        CASE("\000\000\100\000\000\000\000\000{\"__metadata__\":{}}", "safetensors"),
        CASE("MZ\000\000\000\000\000\000{\"a\":{}}", "safetensors"),
        CASE("\002\000\000\000\000\000\000\000{}", "safetensors"),
        CASE("\000\341\365\005\000\000\000\000{\"", "safetensors"), /* a header of 100,000,000 bytes, the most there may be */
        CASE("\001\341\365\005\000\000\000\000{\"", "not a GGUF file (starts with \"\\x01\\xe1\\xf5\\x05\")"),
        CASE("PK\003\004", "zip archive"),
        CASE("\177ELF\002\001\001", "ELF"),
        CASE("MZ\220\000", "Windows"),
        CASE("\037\213\010\000", "gzip"),
        CASE("\3757zXZ\000", "xz"),
        CASE("\050\265\057\375\004", "Zstandard"),
        CASE("BZh91AY", "bzip2"),
        CASE("7z\274\257\047\034", "7-zip"),
        CASE("%PDF-1.7", "PDF"),
        CASE("\211HDF\r\n\032\n", "HDF5"),
        CASE("\223NUMPY\001\000", "NumPy"),
        CASE("lmgg\001\000\000\000", "before GGUF"),
        CASE("fmgg\001\000\000\000", "before GGUF"),
        CASE("tjgg\003\000\000\000", "before GGUF"),
        CASE("algg\001\000\000\000", "adapter"),
        CASE("\000\000\000\000\000\000\000\000\000\000\000\000", "zero bytes"),
        CASE("gguf\003\000\000\000", "not a GGUF file (starts with \"gguf\")"), /* a reader that compared the wrong case */
        CASE("hello world", "not a GGUF file (starts with \"hell\")"),
        CASE("\033[31m", "not a GGUF file (starts with \"\\x1b[31\")"),
        CASE("<", "not a GGUF file (starts with \"<\")"),
        CASE("x", "not a GGUF file (starts with \"x\")"),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        refuse_bytes(cases[i].begin, cases[i].size, cases[i].words, LMI_BAD_FORMAT, 0, cases[i].words);
    }
    uint8_t tar[512] = "model/config.json";
    memcpy(tar + 257, "ustar", 5);
    refuse_bytes(tar, sizeof tar, "tar", LMI_BAD_FORMAT, 0, "tar archive");
    refuse_bytes("", 0, "empty", LMI_BAD_FORMAT, 0, "empty");
}

static void test_header(void) {
    builder b = {0};
    for (size_t n = 1; n < 24; n++) {
        char words[80];
        snprintf(words, sizeof words, "file is incomplete: the header needs bytes up to 24, file has %d", (int)n);
        refuse_bytes(good.bytes, n, "short header", LMI_BAD_FORMAT, n, words);
    }
    static const struct {
        uint32_t version;
        const char *words, *what_to_do;
    } versions[] = {
        {0, "GGUF version 0; lmi reads 2 and 3", "damaged"},
        {1, "GGUF version 1; lmi reads 2 and 3", "Convert the model again"},
        {4, "GGUF version 4; lmi reads 2 and 3", "newer"},
        {1000, "version 1000;", "newer"},
        {1001, "version 1001;", "damaged"},
        {0x10003, "version 65539;", "damaged"},
        {0x03000000, "big-endian", "little-endian"},
        {0x02000000, "big-endian", "little-endian"},
        {0xffffffff, "version 4294967295;", "damaged"},
    };
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        lmi_error error;
        gguf *file;
        build_begin(&b, versions[i].version);
        CHECK(gguf_open(b.bytes, 8, &file, &error) == LMI_BAD_FORMAT && strstr(error.message, versions[i].words) != NULL,
              "only magic and version: %s", error.message);
        CHECK(strstr(error.remedy, versions[i].what_to_do) != NULL, "%s: %s", error.message, error.remedy);
        damaged(&b, versions[i].words, 4, versions[i].words);
    }
    build_begin(&b, 3);
    memcpy(b.bytes, "FUGG", 4);
    damaged(&b, "bytes of the magic reversed", 4, "big-endian");

    static const uint64_t counts[] = {65537, 1u << 31, (uint64_t)1 << 32, (uint64_t)1 << 61, (uint64_t)1 << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        build_begin(&b, 3);
        patch_u64(&b, AT_N_TENSORS, counts[i]);
        damaged(&b, "CVE-2024-21836", AT_N_TENSORS, "tensors, at most 65,536 can be");
        build_begin(&b, 3);
        patch_u64(&b, AT_N_KEYS, counts[i]);
        damaged(&b, "CVE-2024-23605", AT_N_KEYS, "keys, at most 65,536 can be");
    }
    build_begin(&b, 3);
    patch_u64(&b, AT_N_TENSORS, 65536);
    patch_u64(&b, AT_N_KEYS, 65536);
    damaged(&b, "both counts at their limit", 24, "the table of keys and tensors needs bytes up to 3,080,216, file has 24");
    build_begin(&b, 3);
    build_u32(&b, "a", 1);
    patch_u64(&b, AT_N_KEYS, 3);
    damaged(&b, "more keys than bytes", b.size, "file is incomplete");
    build_begin(&b, 3);
    build_u32(&b, "a", 1);
    patch_u64(&b, AT_N_TENSORS, 1);
    damaged(&b, "more tensors than bytes", b.size, "file is incomplete");
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

/* One key before the bad one, so that offsets and numbers are not those of a first item. */
static size_t begin_keys(builder *b) {
    build_begin(b, 3);
    build_string(b, "general.architecture", "llama");
    raise_count(b, AT_N_KEYS);
    return b->size;
}
static void fill_up(builder *b) {
    for (int i = 0; i < 40; i++) {
        put_u8(b, 'x');
    }
}

static void test_key_names(void) {
    builder b = {0};
    static const uint64_t lengths[] = {65536, (uint64_t)1 << 31, (uint64_t)1 << 62, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t at = begin_keys(&b);
        put_u64(&b, lengths[i]);
        fill_up(&b);
        damaged(&b, "CVE-2024-23496", at, "is not 1 to 65,535 (key 2)");
    }
    size_t at = begin_keys(&b);
    put_u64(&b, 0);
    fill_up(&b);
    damaged(&b, "empty key", at, "key length 0 is not 1 to 65,535");
    begin_keys(&b);
    put_u64(&b, 65535);
    fill_up(&b);
    damaged(&b, "key beyond the end", b.size, "file is incomplete: key 2 needs bytes up to 65,612");

    begin_keys(&b);
    put_string(&b, "twice"), put_u32(&b, GGUF_U8), put_u8(&b, 1);
    build_u32(&b, "between", 1);
    at = b.size + 8;
    build_string(&b, "twice", "other type");
    build_u32(&b, "twice", 1);
    damaged(&b, "duplicate key", at, "the same key again (key \"twice\")");

    begin_keys(&b);
    at = b.size + 8;
    put_string(&b, "general.architecture"), put_u32(&b, GGUF_STRING), put_string(&b, "llama");
    damaged(&b, "duplicate of the first key", at, "the same key again");
}

static void test_value_types(void) {
    builder b = {0};
    static const uint32_t unknown[] = {13, 14, 255, 0x7fffffff, 0x80000000, 0xffffffff};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        begin_keys(&b);
        put_string(&b, "k");
        size_t at = b.size;
        put_u32(&b, unknown[i]);
        fill_up(&b);
        damaged(&b, "CVE-2024-25664", at, "at most 12 can be (key \"k\")");
        begin_keys(&b);
        put_string(&b, "k"), put_u32(&b, GGUF_ARRAY);
        at = b.size;
        put_u32(&b, unknown[i]);
        fill_up(&b);
        damaged(&b, "CVE-2024-25665", at, "element type");
    }
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 4, 8, 8, 8};
    for (uint32_t type = 0; type <= 12; type++) { /* one byte less than the value needs */
        begin_keys(&b);
        put_string(&b, "k"), put_u32(&b, type);
        for (int i = 0; i + 1 < sizes[type]; i++) {
            put_u8(&b, 0);
        }
        damaged(&b, "value beyond the end", b.size, "file is incomplete: ");
    }
    for (int value = 2; value < 256; value += 127) {
        size_t at = begin_keys(&b) + 8 + 1 + 4;
        put_string(&b, "k"), put_u32(&b, GGUF_BOOL), put_u8(&b, (uint8_t)value);
        damaged(&b, "bool", at, "not 0 or 1 (key \"k\")");
    }
    begin_keys(&b);
    put_string(&b, "k"), put_u32(&b, GGUF_ARRAY), put_u32(&b, GGUF_BOOL), put_u64(&b, 3), put_u8(&b, 1), put_u8(&b, 0);
    size_t at = b.size;
    put_u8(&b, 9);
    damaged(&b, "bool in an array", at, "a bool is 9");
}

static void test_strings(void) {
    builder b = {0};
    static const uint64_t lengths[] = {(16u << 20) + 1, (uint64_t)1 << 32, (uint64_t)1 << 62, (uint64_t)1 << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        begin_keys(&b);
        put_string(&b, "k"), put_u32(&b, GGUF_STRING);
        size_t at = b.size;
        put_u64(&b, lengths[i]);
        fill_up(&b);
        damaged(&b, "CVE-2024-23496", at, "is not 0 to 16,777,216 (key \"k\")");
        begin_keys(&b);
        put_string(&b, "k"), put_u32(&b, GGUF_ARRAY), put_u32(&b, GGUF_STRING), put_u64(&b, 2), put_string(&b, "fine");
        at = b.size;
        put_u64(&b, lengths[i]);
        fill_up(&b);
        damaged(&b, "CVE-2025-66959", at, "is not 0 to 16,777,216 (key \"k\")");
    }
    begin_keys(&b);
    put_string(&b, "k"), put_u32(&b, GGUF_STRING), put_u64(&b, 16u << 20);
    fill_up(&b);
    damaged(&b, "string beyond the end", b.size, "file is incomplete: key \"k\" needs bytes up to 16,777,");
    begin_keys(&b);
    put_string(&b, "k"), put_u32(&b, GGUF_ARRAY), put_u32(&b, GGUF_STRING), put_u64(&b, 2), put_string(&b, "fine"),
        put_u64(&b, 41);
    fill_up(&b);
    damaged(&b, "string of an array beyond the end", b.size, "file is incomplete: key \"k\"");
}

static void test_arrays(void) {
    builder b = {0};
    static const uint64_t counts[] = {16777217,          (uint64_t)1 << 32, (uint64_t)1 << 60, ((uint64_t)1 << 61) + 1,
                                      (uint64_t)1 << 62, (uint64_t)1 << 63, UINT64_MAX};
    for (uint32_t element = 0; element <= 12; element++) {
        for (size_t i = 0; i < sizeof counts / sizeof *counts && element != GGUF_ARRAY; i++) {
            begin_keys(&b);
            put_string(&b, "k"), put_u32(&b, GGUF_ARRAY), put_u32(&b, element);
            size_t at = b.size;
            put_u64(&b, counts[i]);
            fill_up(&b);
            damaged(&b, "CVE-2024-21825", at, "array elements, at most 16,777,216 can be (key \"k\")");
        }
        if (element != GGUF_ARRAY) {
            begin_keys(&b);
            put_string(&b, "k"), put_u32(&b, GGUF_ARRAY), put_u32(&b, element), put_u64(&b, 41);
            fill_up(&b);
            damaged(&b, "array beyond the end", b.size, "file is incomplete: key \"k\"");
        }
    }
    begin_keys(&b); /* one level and many: neither is followed */
    put_string(&b, "k"), put_u32(&b, GGUF_ARRAY);
    size_t at = b.size;
    for (int i = 0; i < 100000; i++) {
        put_u32(&b, GGUF_ARRAY), put_u64(&b, 1);
    }
    damaged(&b, "01data-ai: nested arrays", at, "array of arrays");
}

static void test_metadata_total(void) {
    const size_t string = 16u << 20, size = 300u << 20;
    uint8_t *bytes = calloc(1, size); /* pages that nobody touches cost nothing */
    builder b = {0};
    if (bytes == NULL) {
        return;
    }
    build_begin(&b, 3);
    size_t at = b.size;
    memcpy(bytes, b.bytes, b.size);
    for (int i = 0; i < 17; i++) {
        const char name[] = {'k', (char)('0' + i / 10), (char)('0' + i % 10), '\0'};
        b.size = 0;
        put_string(&b, name), put_u32(&b, GGUF_STRING), put_u64(&b, string);
        memcpy(bytes + at, b.bytes, b.size);
        at += b.size + string;
    }
    patch_u64(&b, 0, 17);
    memcpy(bytes + AT_N_KEYS, b.bytes, 8);
    lmi_error error = {0};
    gguf *file = NULL;
    CHECK(gguf_open(bytes, size, &file, &error) == LMI_BAD_FORMAT && file == NULL, "metadata of 272 MiB");
    CHECK(strstr(error.message, "metadata is larger than 256 MiB (key \"k15\")") != NULL, "%s", error.message);
    free(bytes);
    build_free(&b);
}

static void test_alignment(void) {
    builder b = {0};
    static const uint32_t values[] = {0, 1, 2, 4, 7, 12, 24, 33, 48, 65535, 131072, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        size_t at = begin_keys(&b) + 8 + 17 + 4;
        put_string(&b, "general.alignment"), put_u32(&b, GGUF_U32), put_u32(&b, values[i]);
        build_tensor(&b, "t", QUANT_F32, 1, (int64_t[]){8});
        build_data(&b);
        damaged(&b, values[i] == 0 ? "CVE-2025-0317" : "oss-security 2026-05-15 V-01", at,
                "is not a power of two from 8 to 65,536");
    }
    for (uint32_t type = 0; type <= 12; type++) {
        if (type != GGUF_U32 && type != GGUF_ARRAY) {
            size_t at = begin_keys(&b) + 8 + 17 + 4;
            put_string(&b, "general.alignment"), put_u32(&b, type);
            if (type == GGUF_STRING) {
                put_string(&b, "32");
            } else {
                const uint8_t one[8] = {1};
                build_put(&b, one, (const size_t[]){1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}[type]);
            }
            damaged(&b, "type of the alignment", at, "the alignment is of type");
        }
    }
    size_t at = begin_keys(&b) + 8 + 17 + 4 + 4 + 8;
    put_string(&b, "general.alignment"), put_u32(&b, GGUF_ARRAY), put_u32(&b, GGUF_U32), put_u64(&b, 0);
    damaged(&b, "an empty array as alignment", at, "the alignment is of type array");
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static size_t begin_tensors(builder *b) {
    build_begin(b, 3);
    build_string(b, "general.architecture", "llama");
    build_tensor(b, "first", QUANT_F32, 1, (int64_t[]){16});
    return b->size;
}
static void end_tensors(builder *b) {
    build_data(b);
    for (int i = 0; i < 4096; i++) {
        put_u8(b, 0);
    }
}

static void test_tensor_names(void) {
    builder b = {0};
    static const uint64_t lengths[] = {0, 65, 1000, (uint64_t)1 << 32, (uint64_t)1 << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t at = begin_tensors(&b);
        build_tensor(&b, "t", QUANT_F32, 1, (int64_t[]){8});
        patch_u64(&b, at, lengths[i]);
        end_tensors(&b);
        damaged(&b, "length of a tensor's name", at, "is not 1 to 64 (tensor 2)");
    }
    size_t at = begin_tensors(&b);
    build_tensor(&b, "t?u", QUANT_F32, 1, (int64_t[]){8});
    b.bytes[at + 9] = '\0';
    end_tensors(&b);
    damaged(&b, "NUL in a name", at, "a NUL in the tensor's name (tensor t\\x00u)");

    at = begin_tensors(&b);
    build_tensor(&b, "second", QUANT_F32, 1, (int64_t[]){8});
    at = b.size + 8;
    build_tensor(&b, "first", QUANT_F16, 1, (int64_t[]){8});
    build_tensor(&b, "second", QUANT_F16, 1, (int64_t[]){8});
    end_tensors(&b);
    damaged(&b, "duplicate tensor", at, "the same tensor again (tensor first)");

    at = begin_tensors(&b) + 8 + 9 + 4;
    build_tensor(&b, "\x1b[2Jname\n", QUANT_F32, 1, (int64_t[]){0});
    end_tensors(&b);
    damaged(&b, "control characters of a name", at, "(tensor \\x1b[2Jname\\x0a)");
}

static void test_shapes(void) {
    builder b = {0};
    static const uint32_t dims[] = {0, 5, 6, 255, 0x7fffffff, 0x80000000, 0xffffffff};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        size_t at = begin_tensors(&b) + 8 + 1;
        build_tensor(&b, "t", QUANT_F32, 1, (int64_t[]){8});
        patch_u32(&b, at, dims[i]);
        end_tensors(&b);
        damaged(&b, "CVE-2024-21802", at, "dimensions, 1 to 4 can be (tensor t)");
    }
    static const uint64_t sizes[] = {0, ((uint64_t)1 << 40) + 1, (uint64_t)1 << 62, (uint64_t)1 << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (uint32_t which = 0; which < 4; which++) {
            uint64_t shape[4] = {8, 1, 1, 1};
            shape[which] = sizes[i];
            size_t at = begin_tensors(&b) + 8 + 1 + 4 + 8 * which;
            build_raw_tensor(&b, "t", 4, shape, QUANT_F32, 64);
            end_tensors(&b);
            damaged(&b, "a dimension", at, "is not 1 to 1,099,511,627,776 (tensor t)");
        }
    }
    static const uint64_t products[][4] = {
        {(uint64_t)1 << 40, (uint64_t)1 << 40, 1, 1},                          /* 2^80: 65,536 times zero when it wraps */
        {(uint64_t)1 << 32, (uint64_t)1 << 32, 1, 1},                          /* 2^64: wraps to 0 */
        {(uint64_t)1 << 32, (uint64_t)1 << 31, 1, 1},                          /* 2^63: negative as int64 */
        {(uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 16, 65537 << 1}, /* wraps to something small */
        {(uint64_t)1 << 40, (uint64_t)1 << 20, 1024, 1024},
    };
    static const int seen_at[] = {1, 1, 1, 3, 2};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        size_t at = begin_tensors(&b) + 8 + 1 + 4 + 8 * (size_t)seen_at[i];
        build_raw_tensor(&b, "t", 4, products[i], QUANT_F32, 64);
        end_tensors(&b);
        damaged(&b, "CVE-2026-33298", at, "product does not fit 63 bits");
    }
    size_t at = begin_tensors(&b) + 8 + 1 + 4 + 16;
    build_raw_tensor(&b, "t", 2, (uint64_t[]){(uint64_t)1 << 40, (uint64_t)1 << 22}, QUANT_F32, 64);
    end_tensors(&b); /* 2^62 values fit, 2^64 bytes do not */
    damaged(&b, "CVE-2026-33298: bytes", at, "size does not fit 64 bits");
}

static void test_types(void) {
    builder b = {0};
    char words[80];
    for (uint32_t type = 0; type < 300; type++) {
        if (quant_find(type) == NULL) {
            size_t at = begin_tensors(&b) + 8 + 19 + 4 + 8;
            build_raw_tensor(&b, "blk.0.ffn_up.weight", 1, (uint64_t[]){256}, type, 64);
            end_tensors(&b);
            if (quant_name(type) != NULL) {
                snprintf(words, sizeof words, "tensor type %s (blk.0.ffn_up.weight) is not supported", quant_name(type));
            } else {
                snprintf(words, sizeof words,
                         type < 256 ? "tensor type %u (blk.0.ffn_up.weight) is not known" : "tensor type %u", type);
            }
            refuse(&b, "wonbrand: type of a tensor", type < 256 ? LMI_UNSUPPORTED : LMI_BAD_FORMAT, at, words);
        }
    }
    static const uint32_t wild[] = {0x7fffffff, 0x80000000, 0xffffffff};
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        size_t at = begin_tensors(&b) + 8 + 1 + 4 + 8;
        build_raw_tensor(&b, "t", 1, (uint64_t[]){256}, wild[i], 64);
        end_tensors(&b);
        damaged(&b, "wild type", at, "tensor type ");
    }
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        const quant_info *info = quant_find(type);
        for (uint64_t cut = 1; info != NULL && cut < info->block_values; cut = 2 * cut + 1) {
            size_t at = begin_tensors(&b) + 8 + 1 + 4 + 16;
            build_raw_tensor(&b, "t", 2, (uint64_t[]){2 * info->block_values - cut, info->block_values}, type, 64);
            end_tensors(&b);
            snprintf(words, sizeof words, "are not whole %s blocks of %u (tensor t)", info->name, (unsigned)info->block_values);
            damaged(&b, "rows and blocks", at, words);
        }
    }
}

static void test_offsets(void) {
    builder b = {0};
    static const uint64_t crooked[] = {65, 66, 72, 80, 95, 127, UINT64_MAX};
    for (size_t i = 0; i < sizeof crooked / sizeof *crooked; i++) {
        size_t at = begin_tensors(&b) + 8 + 1 + 4 + 8 + 4;
        build_raw_tensor(&b, "t", 1, (uint64_t[]){8}, QUANT_F32, crooked[i]);
        end_tensors(&b);
        damaged(&b, "alignment of an offset", at, "is not a multiple of the alignment 32 (tensor t)");
    }
    static const uint64_t before[] = {0, 32};
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        size_t at = begin_tensors(&b) + 8 + 1 + 4 + 8 + 4;
        build_raw_tensor(&b, "t", 1, (uint64_t[]){8}, QUANT_F32, before[i]);
        end_tensors(&b);
        damaged(&b, "overlap", at, "lies before 64, where the tensor before it ends (tensor t)");
    }
    begin_tensors(&b);
    size_t at = b.size + 8 + 1 + 4 + 8 + 4;
    build_raw_tensor(&b, "t", 1, (uint64_t[]){64}, QUANT_F32, UINT64_MAX - 31);
    end_tensors(&b);
    damaged(&b, "CVE-2025-53630", at, "do not fit 64 bits (tensor t)");

    begin_tensors(&b); /* the sum with the start of the data wraps, the sum before it does not */
    build_raw_tensor(&b, "t", 1, (uint64_t[]){8}, QUANT_F32, UINT64_MAX - 63);
    at = b.size;
    end_tensors(&b);
    damaged(&b, "CVE-2026-27940", at, "size does not fit 64 bits");

    begin_tensors(&b);
    build_raw_tensor(&b, "a", 1, (uint64_t[]){(uint64_t)1 << 40}, QUANT_F32, 64);
    build_raw_tensor(&b, "t", 1, (uint64_t[]){8}, QUANT_F32, 32);
    at = b.size - 8;
    end_tensors(&b);
    damaged(&b, "llama.cpp#26318: order", at, "lies before");

    begin_tensors(&b);
    build_raw_tensor(&b, "t", 1, (uint64_t[]){8}, QUANT_F32, (uint64_t)1 << 62);
    end_tensors(&b);
    refuse(&b, "CVE-2026-7482: offset beyond the end", LMI_BAD_FORMAT, b.size,
           "file is incomplete: tensor t needs bytes up to 4,611,");

    begin_tensors(&b);
    build_raw_tensor(&b, "blk.31.ffn_down.weight", 2, (uint64_t[]){1024, 1024}, QUANT_F32, 64);
    end_tensors(&b);
    refuse(&b, "CVE-2026-7482: size beyond the end", LMI_BAD_FORMAT, b.size,
           "file is incomplete: tensor blk.31.ffn_down.weight needs bytes up to 4,194,560, file has 4,352 (0 %)");

    build_llama(&b, QUANT_Q8_0, BUILD_SPM);
    b.size -= 1;
    refuse(&b, "llama.cpp#6774: one byte short", LMI_BAD_FORMAT, b.size,
           "file is incomplete: tensor output_norm.weight needs bytes up to");
    build_llama(&b, QUANT_F32, BUILD_SPM);
    b.size = b.size * 13 / 20 + 1;
    refuse(&b, "65 of 100", LMI_BAD_FORMAT, b.size, "(65 %)");
}

/* Where a file breaks two rules, the one that comes first in the order of the checks is named. */
static void test_order(void) {
    builder b = {0};
    build_begin(&b, 9);
    patch_u64(&b, AT_N_TENSORS, UINT64_MAX);
    damaged(&b, "version before counts", 4, "version 9");

    build_begin(&b, 3);
    patch_u64(&b, AT_N_TENSORS, UINT64_MAX);
    put_u64(&b, UINT64_MAX);
    damaged(&b, "counts before keys", AT_N_TENSORS, "tensors");

    build_begin(&b, 3);
    build_u32(&b, "a", 1), build_u32(&b, "a", 1), build_u32(&b, "general.alignment", 3);
    build_raw_tensor(&b, "t", 9, (uint64_t[]){1, 1, 1, 1, 1, 1, 1, 1, 1}, 99, 1);
    damaged(&b, "keys before alignment and tensors", 24 + 17 + 8, "same key");

    build_begin(&b, 3);
    build_u32(&b, "general.alignment", 3);
    build_raw_tensor(&b, "t", 9, (uint64_t[]){1, 1, 1, 1, 1, 1, 1, 1, 1}, 99, 1);
    damaged(&b, "alignment before tensors", 24 + 8 + 17 + 4, "alignment");

    build_begin(&b, 3);
    build_raw_tensor(&b, "t", 1, (uint64_t[]){256}, 16, 0);
    refuse(&b, "type before extent", LMI_UNSUPPORTED, 24 + 8 + 1 + 4 + 8, "IQ2_XXS");

    build_begin(&b, 3);
    build_raw_tensor(&b, "t", 1, (uint64_t[]){256}, 0, 0);
    build_raw_tensor(&b, "t", 1, (uint64_t[]){256}, 0, 1024);
    damaged(&b, "names before extent", 24 + 33 + 8, "same tensor");
}

int main(void) {
    build_llama(&good, QUANT_Q4_0, BUILD_SPM);
    test_other_formats();
    test_header();
    test_key_names();
    test_value_types();
    test_strings();
    test_arrays();
    test_metadata_total();
    test_alignment();
    test_tensor_names();
    test_shapes();
    test_types();
    test_offsets();
    test_order();
    build_free(&good);
    return check_report();
}
