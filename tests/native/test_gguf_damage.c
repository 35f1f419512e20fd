/* Damage by machine: a model cut at every byte, every bit of its metadata flipped, every word of it replaced by numbers at
 * the edges of types. What is refused must be refused with an error; what is accepted must keep every promise of gguf.h. */
#include "check.h"
#include "gguf_builder.h"
#include "gguf_walk.h"

typedef struct tally {
    long opened, refused;
} tally;

static void try_bytes(const uint8_t *bytes, size_t size, tally *t, const char *what, size_t at) {
    lmi_error error = {0};
    long broken = 0;
    lmi_status status = walk_copy(bytes, size, &error, &broken);
    CHECK(broken == 0, "%s at %zu: %ld promises broken", what, at, broken);
    if (status == LMI_OK) {
        t->opened++;
        return;
    }
    t->refused++;
    CHECK(status == LMI_BAD_FORMAT || status == LMI_UNSUPPORTED, "%s at %zu: status %d", what, at, (int)status);
    CHECK(error.offset >= 0 && (uint64_t)error.offset <= size, "%s at %zu: offset %lld", what, at, (long long)error.offset);
    CHECK(error.message[0] != '\0' && error.remedy[0] != '\0', "%s at %zu", what, at);
}

static uint64_t data_offset_of(const builder *b) {
    gguf *file = NULL;
    lmi_error error;
    CHECK(gguf_open(b->bytes, b->size, &file, &error) == LMI_OK, "%s", error.message);
    uint64_t offset = file != NULL ? file->data_offset : 0;
    gguf_close(file);
    return offset;
}

/* Every prefix of the file is incomplete, and says so: nothing shorter than the whole is ever taken for a model. */
static void test_cuts(const builder *b) {
    for (size_t size = 1; size < b->size; size++) {
        lmi_error error = {0};
        long broken = 0;
        lmi_status status = walk_copy(b->bytes, size, &error, &broken);
        CHECK(status == LMI_BAD_FORMAT && broken == 0, "cut at %zu: status %d", size, (int)status);
        CHECK(error.offset == (int64_t)size, "cut at %zu: offset %lld", size, (long long)error.offset);
        CHECK(strncmp(error.message, "file is incomplete: ", 20) == 0, "cut at %zu: %s", size, error.message);
        CHECK(strcmp(error.remedy, "Download it again.") == 0, "cut at %zu: %s", size, error.remedy);
    }
}

static void test_bit_flips(const builder *b, uint64_t metadata) {
    tally t = {0};
    for (size_t bit = 0; bit < 8 * metadata; bit++) {
        b->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        try_bytes(b->bytes, b->size, &t, "bit flipped", bit);
        b->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK(t.opened > 0 && t.refused > 0, "%ld opened, %ld refused", t.opened, t.refused);
}

static void test_edge_words(const builder *b, uint64_t metadata) {
    static const uint64_t words[] = {
        0,
        1,
        2,
        255,
        256,
        65535,
        65536,
        0x7fffffff,
        0x80000000,
        0xffffffff,
        (uint64_t)1 << 32,
        (uint64_t)1 << 61,
        INT64_MAX,
        (uint64_t)1 << 63,
        UINT64_MAX,
    };
    tally t = {0};
    for (size_t at = 4; at + 8 <= metadata; at++) {
        for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
            for (size_t width = 4; width <= 8; width += 4) {
                uint64_t kept;
                memcpy(&kept, b->bytes + at, 8);
                memcpy(b->bytes + at, &words[i], width);
                try_bytes(b->bytes, b->size, &t, "word replaced", at);
                memcpy(b->bytes + at, &kept, 8);
            }
        }
    }
    CHECK(t.opened > 0 && t.refused > 0, "%ld opened, %ld refused", t.opened, t.refused);
}

/* A model without a vocabulary: small enough for every word at every byte. */
static void build_small(builder *b) {
    build_begin(b, 3);
    build_string(b, "general.architecture", "llama");
    build_u32(b, "general.alignment", 64);
    b->alignment = 64;
    build_bool(b, "a.bool", 1);
    build_array(b, "a.words", GGUF_STRING, 3);
    put_string(b, "one"), put_string(b, ""), put_string(b, "three");
    build_array(b, "a.numbers", GGUF_U16, 2);
    put_u16(b, 1), put_u16(b, 2);
    build_array(b, "a.bools", GGUF_BOOL, 2);
    put_u8(b, 1), put_u8(b, 0);
    build_tensor(b, "x.weight", QUANT_Q8_0, 2, (int64_t[]){32, 3});
    build_tensor(b, "y.weight", QUANT_F32, 1, (int64_t[]){7});
    build_tensor(b, "z.weight", QUANT_Q4_K, 3, (int64_t[]){256, 2, 2});
    build_data(b);
}

int main(void) {
    builder small = {0}, model = {0};
    build_small(&small);
    build_llama(&model, QUANT_Q4_0, BUILD_SPM);
    test_cuts(&small);
    test_bit_flips(&small, data_offset_of(&small));
    test_edge_words(&small, data_offset_of(&small));
    test_cuts(&model);
    test_bit_flips(&model, data_offset_of(&model));
    build_free(&small);
    build_free(&model);
    return check_report();
}
