/* Good files: everything that may be in one, and what the getters make of it. */
#include <time.h>

#include "check.h"
#include "gguf_builder.h"
#include "gguf_walk.h"

static gguf *open_good(const builder *b) {
    lmi_error error = {0};
    gguf *file = NULL;
    lmi_status status = gguf_open(b->bytes, b->size, &file, &error);
    CHECK(status == LMI_OK && file != NULL, "%s", error.message);
    if (file == NULL) {
        exit(check_report() + 1);
    }
    uint64_t sum = 0;
    CHECK(gguf_walk(file, &sum) == 0);
    return file;
}

static void accept(builder *b, const char *what) {
    lmi_error error = {0};
    long broken = 0;
    CHECK(walk_copy(b->bytes, b->size, &error, &broken) == LMI_OK, "%s: %s", what, error.message);
    CHECK(broken == 0, "%s: %ld promises broken", what, broken);
    build_free(b);
}

static void test_least_files(void) {
    builder b = {0};
    build_begin(&b, 3);
    accept(&b, "no keys, no tensors");
    build_begin(&b, 2);
    build_string(&b, "general.architecture", "llama");
    accept(&b, "version 2, a vocabulary without padding");
    build_begin(&b, 3);
    build_tensor(&b, "a", QUANT_F32, 1, (int64_t[]){1});
    build_data(&b);
    accept(&b, "one value");
    build_begin(&b, 3);
    build_tensor(&b, "a", QUANT_F32, 1, (int64_t[]){1});
    build_data(&b);
    build_put(&b, "something behind", 16);
    accept(&b, "trailing bytes");
}

static void test_limits_are_inside(void) {
    builder b = {0};
    char name[65536];
    memset(name, 'n', sizeof name);

    name[65535] = '\0';
    build_begin(&b, 3);
    build_u32(&b, name, 1);
    accept(&b, "key of 65,535 bytes");

    name[64] = '\0';
    build_begin(&b, 3);
    build_tensor(&b, name, QUANT_F32, 4, (int64_t[]){2, 3, 4, 5});
    build_data(&b);
    accept(&b, "tensor name of 64 bytes, four dimensions");

    for (uint64_t alignment = 8; alignment <= 65536; alignment *= 2) {
        build_begin(&b, 3);
        b.alignment = alignment;
        build_u32(&b, "general.alignment", (uint32_t)alignment);
        build_tensor(&b, "a", QUANT_F16, 1, (int64_t[]){3});
        build_tensor(&b, "b", QUANT_F16, 1, (int64_t[]){3});
        build_data(&b);
        accept(&b, "an alignment");
    }

    build_begin(&b, 3); /* tensors need not follow each other closely */
    build_raw_tensor(&b, "a", 1, (uint64_t[]){1}, QUANT_F32, 32);
    build_raw_tensor(&b, "b", 1, (uint64_t[]){1}, QUANT_F32, 128);
    build_pad(&b);
    for (int i = 0; i < 132; i++) {
        put_u8(&b, 0);
    }
    accept(&b, "gaps");

    for (uint32_t element = 0; element <= 12; element++) {
        if (element != GGUF_ARRAY) {
            build_begin(&b, 3);
            build_array(&b, "empty", element, 0);
            accept(&b, "an empty array");
        }
    }

    build_begin(&b, 3);
    build_key(&b, "long", GGUF_STRING);
    put_u64(&b, 16u << 20);
    size_t at = b.size;
    for (int i = 0; i < (16 << 20) / 8; i++) {
        put_u64(&b, 0x2020202020202020u);
    }
    CHECK(b.size == at + (16u << 20));
    accept(&b, "a string of 16 MiB");

    build_begin(&b, 3);
    build_array(&b, "longest", GGUF_U8, 16777216);
    for (int i = 0; i < 16777216 / 8; i++) {
        put_u64(&b, 0x0101010101010101u);
    }
    accept(&b, "16,777,216 elements");
}

static void test_every_type(void) {
    builder b = {0};
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        const quant_info *info = quant_find(type);
        if (info != NULL) {
            build_begin(&b, 3);
            build_tensor(&b, "a", (quant_type)type, 2, (int64_t[]){2 * info->block_values, 3});
            build_data(&b);
            gguf *file = open_good(&b);
            CHECK(file->tensors[0].n_bytes == 6 * info->block_bytes && file->tensors[0].type == info, "%s", info->name);
            CHECK(file->tensors[0].shape[0] == 2 * (int64_t)info->block_values && file->tensors[0].shape[1] == 3);
            gguf_close(file);
            build_free(&b);
        }
    }
}

static void test_models(void) {
    builder b = {0};
    for (int vocab = BUILD_SPM; vocab <= BUILD_BPE; vocab++) {
        build_llama(&b, QUANT_Q8_0, (build_vocab)vocab);
        gguf *file = open_good(&b);
        CHECK(file->version == 3 && file->alignment == 32 && file->data_offset % 32 == 0);
        CHECK(file->n_tensors == 11);
        const gguf_tensor *q = gguf_find_tensor(file, "blk.0.attn_q.weight");
        CHECK(q != NULL && q->shape[0] == 32 && q->shape[1] == 32 && q->n_bytes == 32 * 34 && q->type->type == QUANT_Q8_0);
        CHECK(gguf_find_tensor(file, "blk.1.attn_q.weight") == NULL && gguf_find_key(file, "nothing") == NULL);
        CHECK(gguf_find_key(file, "") == NULL);
        gguf_close(file);
        build_free(&b);
    }
    gguf_close(NULL);
}

/* ---- getters ----------------------------------------------------------------------------------------------------- */

static void build_values(builder *b) {
    build_begin(b, 3);
    build_key(b, "u8", GGUF_U8), put_u8(b, 200);
    build_key(b, "i8", GGUF_I8), put_u8(b, 200);
    build_key(b, "u16", GGUF_U16), put_u16(b, 60000);
    build_key(b, "i16", GGUF_I16), put_u16(b, 60000);
    build_key(b, "u32", GGUF_U32), put_u32(b, 4000000000u);
    build_key(b, "i32", GGUF_I32), put_u32(b, 4000000000u);
    build_key(b, "u64", GGUF_U64), put_u64(b, UINT64_MAX);
    build_key(b, "i64", GGUF_I64), put_u64(b, UINT64_MAX);
    build_key(b, "f32", GGUF_F32), put_f32(b, 1.5f);
    build_key(b, "f64", GGUF_F64), put_f64(b, -1e300);
    build_key(b, "nan", GGUF_F32), put_f32(b, NAN);
    build_key(b, "inf", GGUF_F64), put_f64(b, INFINITY);
    build_key(b, "edge", GGUF_F64), put_f64(b, 0x1p63);
    build_key(b, "most", GGUF_U64), put_u64(b, INT64_MAX);
    build_bool(b, "true", 1);
    build_bool(b, "false", 0);
    build_string(b, "text", "h\xc3\xa9llo");
}

static void test_numbers(void) {
    builder b = {0};
    lmi_error error;
    int64_t whole = 77;
    double real = 7.5;
    build_values(&b);
    gguf *file = open_good(&b);
    static const struct {
        const char *name;
        int64_t value;
    } ints[] = {{"u8", 200},         {"i8", -56},         {"u16", 60000}, {"i16", -5536},
                {"u32", 4000000000}, {"i32", -294967296}, {"i64", -1}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        CHECK(gguf_get_int(file, ints[i].name, GGUF_REQUIRED, INT64_MIN, INT64_MAX, &whole, &error) == LMI_OK);
        CHECK(whole == ints[i].value, "%s is %lld", ints[i].name, (long long)whole);
        CHECK(gguf_real_at(file, gguf_find_key(file, ints[i].name), 0) == (double)ints[i].value);
        CHECK(gguf_get_int(file, ints[i].name, GGUF_REQUIRED, ints[i].value, ints[i].value, &whole, &error) == LMI_OK, " ");
        whole = 77;
        CHECK(gguf_get_int(file, ints[i].name, GGUF_OPTIONAL, ints[i].value + 1, INT64_MAX, &whole, &error) == LMI_BAD_FORMAT);
        CHECK(gguf_get_int(file, ints[i].name, GGUF_OPTIONAL, INT64_MIN, ints[i].value - 1, &whole, &error) == LMI_BAD_FORMAT);
        CHECK(whole == 77 && strstr(error.message, ints[i].name) != NULL && error.remedy[0] != '\0');
        CHECK(error.offset == (int64_t)gguf_find_key(file, ints[i].name)->offset);
        CHECK(gguf_get_real(file, ints[i].name, GGUF_OPTIONAL, -1e30, 1e30, &real, &error) == LMI_BAD_FORMAT);
    }
    CHECK(gguf_get_int(file, "u64", GGUF_OPTIONAL, INT64_MIN, INT64_MAX, &whole, &error) == LMI_BAD_FORMAT && whole == 77);
    CHECK(strstr(error.message, "18446744073709551615") != NULL, "%s", error.message);
    CHECK(gguf_int_at(file, gguf_find_key(file, "u64"), 0) == INT64_MAX);
    CHECK(gguf_real_at(file, gguf_find_key(file, "u64"), 0) == 0x1p64);
    CHECK(gguf_int_at(file, gguf_find_key(file, "f64"), 0) == INT64_MIN &&
          gguf_int_at(file, gguf_find_key(file, "nan"), 0) == 0);
    CHECK(gguf_int_at(file, gguf_find_key(file, "edge"), 0) == INT64_MAX, " ");
    CHECK(gguf_get_int(file, "most", GGUF_REQUIRED, 0, INT64_MAX, &whole, &error) == LMI_OK && whole == INT64_MAX, " ");
    whole = 77;
    CHECK(gguf_get_real(file, "f32", GGUF_REQUIRED, 1.5, 1.5, &real, &error) == LMI_OK && real == 1.5, " ");
    CHECK(gguf_int_at(file, gguf_find_key(file, "inf"), 0) == INT64_MAX &&
          gguf_int_at(file, gguf_find_key(file, "f32"), 0) == 1);

    CHECK(gguf_get_real(file, "f32", GGUF_REQUIRED, 0.0, 2.0, &real, &error) == LMI_OK && real == 1.5);
    CHECK(gguf_get_real(file, "f64", GGUF_REQUIRED, -INFINITY, 2.0, &real, &error) == LMI_OK && real == -1e300);
    CHECK(gguf_get_real(file, "inf", GGUF_REQUIRED, -INFINITY, 1e308, &real, &error) == LMI_BAD_FORMAT && real == -1e300);
    CHECK(gguf_get_real(file, "nan", GGUF_REQUIRED, -INFINITY, INFINITY, &real, &error) == LMI_BAD_FORMAT && real == -1e300);
    CHECK(gguf_get_int(file, "f32", GGUF_REQUIRED, -9, 9, &whole, &error) == LMI_BAD_FORMAT);
    CHECK(strstr(error.message, "\"f32\" is of type f32, expected an integer") != NULL, "%s", error.message);
    CHECK(gguf_get_int(file, "true", GGUF_REQUIRED, -9, 9, &whole, &error) == LMI_BAD_FORMAT);

    CHECK(gguf_get_int(file, "absent", GGUF_OPTIONAL, 0, 1, &whole, &error) == LMI_OK && whole == 77);
    CHECK(gguf_get_real(file, "absent", GGUF_OPTIONAL, 0, 1, &real, NULL) == LMI_OK && real == -1e300);
    CHECK(gguf_get_int(file, "absent", GGUF_REQUIRED, 0, 1, &whole, &error) == LMI_BAD_FORMAT && whole == 77);
    CHECK(strcmp(error.message, "key \"absent\" is missing") == 0 && error.offset == -1);
    CHECK(gguf_get_int(file, "absent", GGUF_REQUIRED, 0, 1, &whole, NULL) == LMI_BAD_FORMAT);
    gguf_close(file);
    build_free(&b);
}

static void test_bools_and_strings(void) {
    builder b = {0};
    lmi_error error;
    bool flag = false;
    text_view text = text_of("before");
    build_values(&b);
    gguf *file = open_good(&b);
    CHECK(gguf_get_bool(file, "true", GGUF_REQUIRED, &flag, &error) == LMI_OK && flag);
    CHECK(gguf_get_bool(file, "false", GGUF_REQUIRED, &flag, &error) == LMI_OK && !flag);
    CHECK(gguf_get_bool(file, "u8", GGUF_OPTIONAL, &flag, &error) == LMI_BAD_FORMAT);
    CHECK(gguf_get_bool(file, "absent", GGUF_OPTIONAL, &flag, &error) == LMI_OK && !flag);
    CHECK(gguf_get_bool(file, "absent", GGUF_REQUIRED, &flag, &error) == LMI_BAD_FORMAT);
    CHECK(gguf_get_string(file, "u32", GGUF_OPTIONAL, &text, &error) == LMI_BAD_FORMAT && text_is(text, "before"));
    CHECK(gguf_get_string(file, "absent", GGUF_OPTIONAL, &text, &error) == LMI_OK && text_is(text, "before"));
    CHECK(gguf_get_string(file, "absent", GGUF_REQUIRED, &text, &error) == LMI_BAD_FORMAT);
    CHECK(gguf_get_string(file, "text", GGUF_REQUIRED, &text, &error) == LMI_OK && text_is(text, "h\xc3\xa9llo"));
    gguf_close(file);
    build_free(&b);
}

static void test_arrays(void) {
    builder b = {0};
    lmi_error error;
    const gguf_key *key = NULL;
    build_begin(&b, 3);
    build_array(&b, "words", GGUF_STRING, 3);
    put_string(&b, "one"), put_string(&b, ""), put_string(&b, "three");
    build_array(&b, "halves", GGUF_I16, 3);
    put_u16(&b, 1), put_u16(&b, 0xffff), put_u16(&b, 3);
    build_array(&b, "reals", GGUF_F64, 2);
    put_f64(&b, 0.25), put_f64(&b, -2.0);
    build_key(&b, "single", GGUF_I16), put_u16(&b, 1);
    gguf *file = open_good(&b);
    CHECK(gguf_get_array(file, "words", GGUF_REQUIRED, GGUF_STRING, 3, &key, &error) == LMI_OK && key->count == 3);
    uint64_t cursor = key->offset;
    CHECK(text_is(gguf_next_string(file, &cursor), "one") && text_is(gguf_next_string(file, &cursor), ""));
    CHECK(text_is(gguf_next_string(file, &cursor), "three"));
    CHECK(gguf_get_array(file, "halves", GGUF_REQUIRED, GGUF_I16, -1, &key, &error) == LMI_OK);
    CHECK(gguf_int_at(file, key, 0) == 1 && gguf_int_at(file, key, 1) == -1 && gguf_int_at(file, key, 2) == 3);
    CHECK(gguf_get_array(file, "reals", GGUF_REQUIRED, GGUF_F64, 2, &key, &error) == LMI_OK);
    CHECK(gguf_real_at(file, key, 0) == 0.25 && gguf_real_at(file, key, 1) == -2.0);

    CHECK(gguf_get_array(file, "halves", GGUF_REQUIRED, GGUF_I16, 4, &key, &error) == LMI_BAD_FORMAT && key == NULL);
    CHECK(strstr(error.message, "has 3 elements, expected 4") != NULL, "%s", error.message);
    /* named for the reports of scores and token types read as another type than they are */
    CHECK(gguf_get_array(file, "halves", GGUF_REQUIRED, GGUF_F32, 3, &key, &error) == LMI_BAD_FORMAT && key == NULL);
    CHECK(strstr(error.message, "is of type array of i16, expected array of f32") != NULL, "%s", error.message);
    CHECK(gguf_get_array(file, "absent", GGUF_OPTIONAL, GGUF_F32, 3, &key, &error) == LMI_OK && key == NULL);
    CHECK(gguf_get_array(file, "absent", GGUF_REQUIRED, GGUF_F32, 3, &key, &error) == LMI_BAD_FORMAT && key == NULL);
    /* one value is not an array of one */
    CHECK(gguf_get_array(file, "single", GGUF_OPTIONAL, GGUF_I16, -1, &key, &error) == LMI_BAD_FORMAT && key == NULL, " ");
    CHECK(gguf_get_array(file, "halves", GGUF_OPTIONAL, GGUF_I16, 0, &key, &error) == LMI_BAD_FORMAT && key == NULL, " ");
    int64_t whole = 0;
    text_view text = text_of("");
    CHECK(gguf_get_int(file, "halves", GGUF_OPTIONAL, 0, 9, &whole, &error) == LMI_BAD_FORMAT);
    CHECK(gguf_get_string(file, "words", GGUF_OPTIONAL, &text, &error) == LMI_BAD_FORMAT);
    gguf_close(file);
    build_free(&b);
}

static void test_names(void) {
    static const char *const expected[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};
    for (int type = 0; type <= 12; type++) {
        CHECK(strcmp(gguf_type_name((gguf_type)type), expected[type]) == 0);
    }
    CHECK(strcmp(gguf_type_name((gguf_type)13), "unknown") == 0);
    char shown[GGUF_SHOWN], longest[100];
    CHECK(strcmp(gguf_shown(text_of("a\x1b[31m\\\n\xff"), shown), "a\\x1b[31m\\x5c\\x0a\\xff") == 0, "%s", shown);
    CHECK(strcmp(gguf_shown(text_of(" ~\x7f\x1f"), shown), " ~\\x7f\\x1f") == 0, "%s", shown);
    memset(longest, 1, sizeof longest);
    CHECK(strlen(gguf_shown((text_view){longest, 100}, shown)) == 64 * 4 + 3);
    CHECK(strlen(gguf_shown((text_view){longest, 64}, shown)) == 64 * 4);
    CHECK(strcmp(gguf_shown((text_view){NULL, 0}, shown), "") == 0);
}

/* As many names as there may be, most of them alike: time must not grow with their square. */
static void test_many_names(void) {
    enum { N = 65536 };
    builder b = {0};
    char name[64];
    build_begin(&b, 3);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "a.long.common.prefix.of.many.keys.%d", i);
        build_bool(&b, name, 1);
    }
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "another.long.common.prefix.%d", i);
        build_raw_tensor(&b, name, 1, (uint64_t[]){1}, QUANT_F32, 32u * (uint64_t)i);
    }
    build_pad(&b);
    size_t data = 32u * (size_t)N;
    uint8_t *zeros = calloc(1, data);
    build_put(&b, zeros, data);
    free(zeros);
    clock_t begin = clock();
    gguf *file = open_good(&b);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    CHECK(seconds < 3.0, "%.2f s for %d names", seconds, 2 * N);
    CHECK(gguf_find_key(file, "a.long.common.prefix.of.many.keys.40000") == &file->keys[40000]);
    CHECK(gguf_find_tensor(file, "another.long.common.prefix.65535") == &file->tensors[65535]);
    CHECK(gguf_find_tensor(file, "another.long.common.prefix.65536") == NULL);
    gguf_close(file);
    build_free(&b);
}

/* The largest vocabulary seen (262,144 tokens, 514,906 merges): a reader that took care of each element by itself became
 * very slow (llama.cpp#19856). */
static void test_large_vocabulary(void) {
    builder b = {0};
    char text[64];
    build_begin(&b, 3);
    build_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 262144);
    for (int i = 0; i < 262144; i++) {
        snprintf(text, sizeof text, "token%d", i);
        put_string(&b, text);
    }
    build_array(&b, "tokenizer.ggml.scores", GGUF_F32, 262144);
    for (int i = 0; i < 262144; i++) {
        put_f32(&b, (float)-i);
    }
    build_array(&b, "tokenizer.ggml.merges", GGUF_STRING, 514906);
    for (int i = 0; i < 514906; i++) {
        snprintf(text, sizeof text, "left%d right%d", i, i);
        put_string(&b, text);
    }
    lmi_error error = {0};
    gguf *file = NULL;
    double best = 1e9;
    for (int round = 0; round < 5; round++) {
        clock_t begin = clock();
        CHECK(gguf_open(b.bytes, b.size, &file, &error) == LMI_OK, "%s", error.message);
        double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
        best = seconds < best ? seconds : best;
        gguf_close(file);
    }
    CHECK(best < 0.3, "%.3f s for %zu bytes of metadata", best, b.size);
    build_free(&b);
}

int main(void) {
    test_least_files();
    test_limits_are_inside();
    test_every_type();
    test_models();
    test_numbers();
    test_bools_and_strings();
    test_arrays();
    test_names();
    test_many_names();
    test_large_vocabulary();
    return check_report();
}
