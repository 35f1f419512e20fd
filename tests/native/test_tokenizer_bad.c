/* Vocabularies that are wrong in one way each: refused with a message that names it and the byte, nothing leaks; and those
 * that only look wrong. */
#include "check.h"
#include "gguf_builder.h"
#include "tokenizer/vocab.h"

typedef enum part { /* what is put in place of the right thing */
                    NOTHING,
                    NO_MODEL,
                    MODEL_IS_NUMBER,
                    NO_TOKENS,
                    ONE_TOKEN,
                    TOKENS_ARE_NUMBERS,
                    TYPES_SHORT,
                    TYPES_ARE_FLOATS,
                    TYPE_UNKNOWN,
                    TYPE_NEGATIVE,
                    NO_SCORES,
                    SCORES_SHORT,
                    SCORES_ARE_STRINGS,
                    SCORE_NAN,
                    SCORE_INFINITE,
                    NO_MERGES,
                    MERGES_ARE_NUMBERS,
                    EXTRA_TOKEN, /* `text` as one more token of `kind` */
                    LONG_TOKEN,
                    MERGE, /* `text` as one more merge */
                    ID,    /* key `text` with value `number` */
                    FLAG   /* key `text` set, and the id of BOS or EOS is none */
} part;

typedef struct fault {
    const char *name;
    int bpe;
    part part;
    const char *text;
    int64_t number;
    uint32_t kind;
    const char *message; /* part of it; NULL: the file is good */
    int has_offset;
} fault;

static const char *const WORDS[] = {"a", "b", "c", "ab", "abc", "<|end|>"};
static const uint32_t KINDS[] = {1, 1, 1, 1, 1, 3};
enum { N_WORDS = 6, LONG = 65537 };

static void build_ids(builder *b, const char *name, int64_t value) {
    build_key(b, name, value < 0 ? GGUF_I32 : GGUF_U32);
    put_u32(b, (uint32_t)value);
}

static void build_faulty(builder *b, const fault *f) {
    const part p = f->part;
    const uint64_t extra = p == EXTRA_TOKEN || p == LONG_TOKEN, n = p == ONE_TOKEN ? 1 : N_WORDS + extra;
    build_begin(b, 3);
    if (p == MODEL_IS_NUMBER) {
        build_u32(b, "tokenizer.ggml.model", 1);
    } else if (p != NO_MODEL) {
        build_string(b, "tokenizer.ggml.model", f->bpe ? "gpt2" : "llama");
    }
    if (p == TOKENS_ARE_NUMBERS) {
        build_array(b, "tokenizer.ggml.tokens", GGUF_U8, 2);
        put_u16(b, 0);
    } else if (p != NO_TOKENS) {
        build_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n);
        for (uint64_t i = 0; i < n - extra; i++) {
            put_string(b, WORDS[i]);
        }
        if (p == LONG_TOKEN) {
            char *text = malloc(LONG);
            memset(text, 'x', LONG);
            put_text(b, text, (size_t)f->number);
            free(text);
        } else if (extra) {
            put_string(b, f->text);
        }
    }
    uint64_t n_types = p == TYPES_SHORT ? n - 1 : n;
    build_array(b, "tokenizer.ggml.token_type", p == TYPES_ARE_FLOATS ? GGUF_F32 : GGUF_I32, n_types);
    for (uint64_t i = 0; i < n_types; i++) {
        put_u32(b, i >= N_WORDS                   ? f->kind
                   : i == 3 && p == TYPE_UNKNOWN  ? 7
                   : i == 3 && p == TYPE_NEGATIVE ? UINT32_MAX
                                                  : KINDS[i]);
    }
    if (!f->bpe && p == SCORES_ARE_STRINGS) {
        build_array(b, "tokenizer.ggml.scores", GGUF_STRING, n);
        for (uint64_t i = 0; i < n; i++) {
            put_string(b, "1");
        }
    } else if (!f->bpe && p != NO_SCORES) {
        uint64_t n_scores = p == SCORES_SHORT ? n - 1 : n;
        build_array(b, "tokenizer.ggml.scores", GGUF_F32, n_scores);
        for (uint64_t i = 0; i < n_scores; i++) {
            put_f32(b, i == 2 && p == SCORE_NAN ? NAN : i == 2 && p == SCORE_INFINITE ? INFINITY : -(float)i);
        }
    }
    if (f->bpe && p == MERGES_ARE_NUMBERS) {
        build_array(b, "tokenizer.ggml.merges", GGUF_U32, 1);
        put_u32(b, 0);
    } else if (f->bpe && p != NO_MERGES) {
        build_array(b, "tokenizer.ggml.merges", GGUF_STRING, p == MERGE ? 3 : 2);
        put_string(b, "a b");
        put_string(b, "ab c");
        if (p == MERGE) {
            put_string(b, f->text);
        }
    }
    if (p == ID) {
        build_ids(b, f->text, f->number);
    } else if (p == FLAG) {
        build_bool(b, f->text, 1);
        build_ids(b, "tokenizer.ggml.bos_token_id", UINT32_MAX);
        build_ids(b, "tokenizer.ggml.eos_token_id", -1);
    }
}

#define ID_OF(name) "tokenizer.ggml." name "_token_id"

static const fault FAULTS[] = {
    {"good SentencePiece", 0, NOTHING, NULL, 0, 0, NULL, 0},
    {"good BPE", 1, NOTHING, NULL, 0, 0, NULL, 0},
    {"no model", 1, NO_MODEL, NULL, 0, 0, "\"tokenizer.ggml.model\" is missing", 0},
    {"model a number", 1, MODEL_IS_NUMBER, NULL, 0, 0, "\"tokenizer.ggml.model\" is of type", 1},
    {"no tokens", 1, NO_TOKENS, NULL, 0, 0, "\"tokenizer.ggml.tokens\" is missing", 0},
    {"one token", 0, ONE_TOKEN, NULL, 0, 0, "has 1 tokens, not 2 to", 1},
    {"tokens numbers", 0, TOKENS_ARE_NUMBERS, NULL, 0, 0, "\"tokenizer.ggml.tokens\" is of type array of u8", 1},
    {"types short", 0, TYPES_SHORT, NULL, 0, 0, "\"tokenizer.ggml.token_type\" has 5 elements, expected 6", 1},
    {"types floats", 1, TYPES_ARE_FLOATS, NULL, 0, 0, "\"tokenizer.ggml.token_type\" is of type array of f32", 1},
    {"type 7", 1, TYPE_UNKNOWN, NULL, 0, 0, "token 3 is of the unknown type 7", 1},
    {"type -1", 0, TYPE_NEGATIVE, NULL, 0, 0, "token 3 is of the unknown type -1", 1},
    {"no scores", 0, NO_SCORES, NULL, 0, 0, "\"tokenizer.ggml.scores\" is missing", 0},
    {"scores short", 0, SCORES_SHORT, NULL, 0, 0, "\"tokenizer.ggml.scores\" has 5 elements, expected 6", 1},
    {"scores strings", 0, SCORES_ARE_STRINGS, NULL, 0, 0, "\"tokenizer.ggml.scores\" is of type array of string", 1},
    {"score NaN", 0, SCORE_NAN, NULL, 0, 0, "the score of token 2 is not a number", 1},
    {"score infinite", 0, SCORE_INFINITE, NULL, 0, 0, "the score of token 2 is not a number", 1},
    {"no merges", 1, NO_MERGES, NULL, 0, 0, "\"tokenizer.ggml.merges\" is missing", 0},
    {"merges numbers", 1, MERGES_ARE_NUMBERS, NULL, 0, 0, "\"tokenizer.ggml.merges\" is of type array of u32", 1},
    /* llama.cpp #25969, #26511, #27226; LM Studio #2289: byte tokens whose digits were read by stoi */
    {"byte token <0x-1>", 0, EXTRA_TOKEN, "<0x-1>", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token <0xG0>", 0, EXTRA_TOKEN, "<0xG0>", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token <0x 1>", 0, EXTRA_TOKEN, "<0x 1>", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token <0x041>", 0, EXTRA_TOKEN, "<0x041>", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token <0x4>", 0, EXTRA_TOKEN, "<0x4>", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token A", 1, EXTRA_TOKEN, "A", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token, empty", 1, EXTRA_TOKEN, "", 0, 6, "token 6 is a byte but not of the form <0xHH>", 1},
    {"byte token <0x41>", 0, EXTRA_TOKEN, "<0x41>", 0, 6, NULL, 0},
    {"byte token <0xaf>", 0, EXTRA_TOKEN, "<0xaf>", 0, 6, NULL, 0},
    {"<0x-1> that is no byte token", 0, EXTRA_TOKEN, "<0x-1>", 0, 1, NULL, 0},
    /* CVE-2025-49847: the length of a token in a narrower type */
    {"token of 65,537 bytes", 0, LONG_TOKEN, NULL, LONG, 1, "token 6 has 65537 bytes, more than 65,536", 1},
    {"token of 65,536 bytes", 1, LONG_TOKEN, NULL, LONG - 1, 1, NULL, 0},
    {"empty token", 0, EXTRA_TOKEN, "", 0, 1, NULL, 0},
    {"empty user-defined token", 0, EXTRA_TOKEN, "", 0, 4, NULL, 0},
    {"token twice", 0, EXTRA_TOKEN, "ab", 0, 1, NULL, 0},
    {"undefined token", 1, EXTRA_TOKEN, "?", 0, 0, NULL, 0},
    {"merge without blank", 1, MERGE, "abc", 0, 0, "merge 2 is not two tokens with a blank between", 1},
    {"merge with two blanks", 1, MERGE, "a b c", 0, 0, "merge 2 is not two tokens with a blank between", 1},
    {"merge begins with a blank", 1, MERGE, " bc", 0, 0, "merge 2 is not two tokens with a blank between", 1},
    {"merge ends with a blank", 1, MERGE, "ab ", 0, 0, "merge 2 is not two tokens with a blank between", 1},
    {"merge of blanks", 1, MERGE, "   ", 0, 0, "merge 2 is not two tokens with a blank between", 1},
    {"empty merge", 1, MERGE, "", 0, 0, "merge 2 is not two tokens with a blank between", 1},
    {"merge of no left token", 1, MERGE, "x c", 0, 0, "merge 2 speaks of a token that is not in the vocabulary", 1},
    {"merge of no right token", 1, MERGE, "a x", 0, 0, "merge 2 speaks of a token that is not in the vocabulary", 1},
    {"merge into no token", 1, MERGE, "b c", 0, 0, "merge 2 speaks of a token that is not in the vocabulary", 1},
    {"merge twice", 1, MERGE, "a b", 0, 0, NULL, 0},
    {"BOS too large", 0, ID, ID_OF("bos"), 6, 0, "\"tokenizer.ggml.bos_token_id\" is 6, but the vocabulary has 6 tokens", 1},
    {"EOS too large", 1, ID, ID_OF("eos"), 2147483648, 0, "is 2147483648, but the vocabulary has 6 tokens", 1},
    {"unknown too large", 0, ID, ID_OF("unknown"), 99, 0, "\"tokenizer.ggml.unknown_token_id\" is 99", 1},
    {"EOT too large", 1, ID, ID_OF("eot"), 99, 0, "\"tokenizer.ggml.eot_token_id\" is 99", 1},
    {"EOM too large", 1, ID, ID_OF("eom"), 99, 0, "\"tokenizer.ggml.eom_token_id\" is 99", 1},
    {"BOS negative", 0, ID, ID_OF("bos"), -2, 0, "\"tokenizer.ggml.bos_token_id\" is -2", 1},
    {"BOS none", 0, ID, ID_OF("bos"), -1, 0, NULL, 0},
    {"EOS none, unsigned", 0, ID, ID_OF("eos"), UINT32_MAX, 0, NULL, 0},
    {"padding too large", 0, ID, ID_OF("padding"), 32000, 0, NULL, 0}, /* not used, and often wrong in real files */
    {"BOS wanted but none", 0, FLAG, "tokenizer.ggml.add_bos_token", 0, 0, "\"tokenizer.ggml.add_bos_token\" is true, but", 0},
    {"EOS wanted but none", 1, FLAG, "tokenizer.ggml.add_eos_token", 0, 0, "\"tokenizer.ggml.add_eos_token\" is true, but", 0},
};

static void test_fault(const fault *f) {
    builder b = {0};
    lmi_error error = {0};
    gguf *file = NULL;
    tokenizer *t = NULL;
    build_faulty(&b, f);
    CHECK(gguf_open(b.bytes, b.size, &file, &error) == LMI_OK, "%s: %s", f->name, error.message);
    if (file == NULL) {
        return;
    }
    lmi_status status = tokenizer_open(file, &t, &error);
    if (f->message == NULL) {
        CHECK(status == LMI_OK && t != NULL, "%s: %s", f->name, error.message);
    } else {
        CHECK(status == LMI_BAD_FORMAT && t == NULL && error.status == status, "%s: status %d", f->name, (int)status);
        CHECK(strstr(error.message, f->message) != NULL, "%s: %s", f->name, error.message);
        CHECK(error.remedy[0] != '\0' && (error.offset >= 0) == (f->has_offset != 0), "%s: offset %lld", f->name,
              (long long)error.offset);
        CHECK(error.offset < (int64_t)b.size, "%s", f->name);
    }
    tokenizer_close(t);
    gguf_close(file);
    build_free(&b);
}

/* A token's text twice: the last one counts, but one that text can become goes before a control token. */
static void test_same_text(void) {
    for (int control_last = 0; control_last < 2; control_last++) {
        const fault twice = {"twice", 0, EXTRA_TOKEN, "ab", 0, control_last ? 3 : 1, NULL, 0};
        builder b = {0};
        gguf *file;
        tokenizer *t;
        encoder *e;
        int32_t tokens[4] = {-1, -1, -1, -1};
        build_faulty(&b, &twice);
        CHECK(gguf_open(b.bytes, b.size, &file, NULL) == LMI_OK && tokenizer_open(file, &t, NULL) == LMI_OK);
        CHECK(encoder_open(t, false, &e, NULL) == LMI_OK);
        CHECK(encoder_feed(e, "ab", 2, NULL) == LMI_OK && encoder_finish(e, NULL) == LMI_OK);
        size_t n = encoder_take(e, tokens, 4);
        CHECK(n > 0 && tokens[n - 1] == (control_last ? 3 : 6), "token %d of %zu", n > 0 ? tokens[n - 1] : -1, n);
        encoder_close(e);
        tokenizer_close(t);
        gguf_close(file);
        build_free(&b);
    }
}

/* More than 4,194,304 tokens or merges: refused before any of them is read. */
static void test_too_many(void) {
    for (int merges = 0; merges < 2; merges++) {
        enum { N = 4194305 };
        builder b = {0};
        lmi_error error = {0};
        gguf *file;
        tokenizer *t;
        build_begin(&b, 3);
        build_string(&b, "tokenizer.ggml.model", "gpt2");
        build_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, merges ? 2 : N);
        for (int i = 0; i < (merges ? 2 : N); i++) {
            put_u64(&b, 0);
        }
        build_array(&b, "tokenizer.ggml.merges", GGUF_STRING, merges ? N : 0);
        for (int i = 0; i < (merges ? N : 0); i++) {
            put_u64(&b, 0);
        }
        CHECK(gguf_open(b.bytes, b.size, &file, &error) == LMI_OK, "%s", error.message);
        CHECK(tokenizer_open(file, &t, &error) == LMI_BAD_FORMAT && strstr(error.message, "has 4194305 ") != NULL, "%s",
              error.message);
        gguf_close(file);
        build_free(&b);
    }
}

/* Texts of 16 bytes that all have one hash: the second half undoes what the first did. */
static void craft(uint64_t first, uint64_t text[2]) {
    uint64_t state = (16 * 0x9e3779b97f4a7c15u ^ first) * 0x9fb21c651e98df25u;
    text[0] = first;
    text[1] = (state ^ state >> 32) ^ 0x1234567890abcdefu;
}

static void test_crafted_texts(void) {
    enum { N = 2000 };
    builder b = {0};
    lmi_error error = {0};
    gguf *file;
    tokenizer *t;
    uint64_t a[2], c[2];
    craft(1, a);
    craft(2, c);
    CHECK(text_hash(a, 16) == text_hash(c, 16), "the hash has changed: craft for the new one");
    build_begin(&b, 3);
    build_string(&b, "tokenizer.ggml.model", "llama");
    build_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, N);
    for (uint64_t i = 0; i < N; i++) {
        craft(i, a);
        put_text(&b, a, 16);
    }
    CHECK(gguf_open(b.bytes, b.size, &file, &error) == LMI_OK);
    CHECK(tokenizer_open(file, &t, &error) == LMI_BAD_FORMAT && strstr(error.message, "make look-ups slow") != NULL, "%s",
          error.message);
    gguf_close(file);
    build_free(&b);
}

int main(void) {
    test_too_many();
    test_crafted_texts();
    for (size_t i = 0; i < sizeof FAULTS / sizeof FAULTS[0]; i++) {
        test_fault(&FAULTS[i]);
    }
    test_same_text();
    return check_report();
}
