/* The tokenizer on small vocabularies of its own: ids and texts worked out by hand, files that lie, text at any cuts. */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "gguf_builder.h"
#include "tokenizer/merge.h"
#include "tokenizer/tokenizer.h"

#define BLANK_TEXT "\xe2\x96\x81"

/* ---- vocabularies -------------------------------------------------------------------------------------------------- */

typedef struct entry {
    const char *text;
    float score; /* spm */
    uint32_t kind;
} entry;

typedef struct sample {
    builder b;
    gguf *file;
    tokenizer *t;
} sample;

static void sample_close(sample *s) {
    tokenizer_close(s->t);
    gguf_close(s->file);
    build_free(&s->b);
    *s = (sample){0};
}

/* Opens what was built; the error of whatever refused it. */
static lmi_status sample_open(sample *s, lmi_error *error) {
    lmi_status status = gguf_open(s->b.bytes, s->b.size, &s->file, error);
    return status != LMI_OK ? status : tokenizer_open(s->file, &s->t, error);
}

static void put_entries(builder *b, const entry *entries, size_t n, bool scores) {
    build_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) {
        put_string(b, entries[i].text);
    }
    if (scores) {
        build_array(b, "tokenizer.ggml.scores", GGUF_F32, n);
        for (size_t i = 0; i < n; i++) {
            put_f32(b, entries[i].score);
        }
    }
    build_array(b, "tokenizer.ggml.token_type", GGUF_I32, n);
    for (size_t i = 0; i < n; i++) {
        put_u32(b, entries[i].kind);
    }
}

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };

static const entry SPM[] = {{"<unk>", 0, UNKNOWN},
                            {"<s>", 0, CONTROL},
                            {"</s>", 0, CONTROL},
                            {BLANK_TEXT, -9, NORMAL},
                            {"a", -8, NORMAL},
                            {"b", -8, NORMAL},
                            {"ab", -2, NORMAL},
                            {"ba", -1, NORMAL},
                            {BLANK_TEXT "a", -3, NORMAL},
                            {"aa", -4, NORMAL},
                            {BLANK_TEXT BLANK_TEXT, -5, NORMAL},
                            {"<|x|>", 0, CONTROL},
                            {"<tag>", 0, USER},
                            {"<tag>s", 0, USER}};
enum { N_SPM = sizeof SPM / sizeof SPM[0] };

static void build_small_spm(builder *b, bool prefix) {
    build_begin(b, 3);
    build_string(b, "tokenizer.ggml.model", "llama");
    put_entries(b, SPM, N_SPM, true);
    build_bool(b, "tokenizer.ggml.add_space_prefix", prefix);
}

/* Encodes text in steps of `step` bytes (0: at once). Returns the number of tokens, in tokens [capacity]. */
static size_t encode(const tokenizer *t, const char *text, size_t size, size_t step, bool special, int32_t *tokens,
                     size_t capacity) {
    encoder *e;
    size_t n = 0;
    CHECK(encoder_open(t, special, &e, NULL) == LMI_OK);
    for (size_t at = 0; at < size;) {
        size_t part = step == 0 || step > size - at ? size - at : step;
        CHECK(encoder_feed(e, text + at, part, NULL) == LMI_OK);
        at += part;
        n += encoder_take(e, tokens + n, capacity - n);
    }
    CHECK(encoder_finish(e, NULL) == LMI_OK);
    n += encoder_take(e, tokens + n, capacity - n);
    CHECK(encoder_take(e, tokens, 1) == 0);
    encoder_close(e);
    return n;
}

static void check_ids(const tokenizer *t, const char *text, bool special, const char *expected) {
    int32_t tokens[64];
    for (size_t step = 0; step <= strlen(text); step++) {
        char line[256] = "";
        size_t n = encode(t, text, strlen(text), step, special, tokens, 64), used = 0;
        for (size_t i = 0; i < n && used < sizeof line - 16; i++) {
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%d", i > 0 ? " " : "", tokens[i]);
        }
        CHECK(strcmp(line, expected) == 0, "\"%s\" by %zu: %s, expected %s", text, step, line, expected);
    }
}

/* ---- SentencePiece ------------------------------------------------------------------------------------------------- */

static void test_spm(void) {
    sample s = {0};
    lmi_error error = {0};
    build_small_spm(&s.b, true);
    CHECK(sample_open(&s, &error) == LMI_OK, "%s", error.message);
    check_ids(s.t, "", false, "");
    check_ids(s.t, "a", false, "8");
    check_ids(s.t, "ab", false, "3 6");  /* ab (-2) goes before the blank's a (-3) */
    check_ids(s.t, "aba", false, "8 7"); /* ba (-1) is best of all, then the blank takes the a */
    check_ids(s.t, "bab", false, "3 7 5");
    check_ids(s.t, "aaa", false, "8 9");       /* the blank's a (-3) before aa (-4) */
    check_ids(s.t, " a  a", false, "3 8 3 8"); /* the blank's a (-3) before two blanks (-5) */
    check_ids(s.t, "   b", false, "10 10 5");
    sample_close(&s);
}

/* The same by a reading of the rule that knows no heaps and no cuts: join the best neighbours until there are none. */
static size_t encode_naively(const char *text, int32_t *tokens) {
    char symbols[256][32];
    size_t n = 0;
    for (const char *at = text; *at != '\0';) {
        size_t length = (unsigned char)*at >= 0xe0 ? 3 : 1;
        memcpy(symbols[n], at, length);
        symbols[n++][length] = '\0';
        at += length;
    }
    for (;;) {
        size_t best = 0;
        float best_score = -1e9f;
        for (size_t i = 0; i + 1 < n; i++) {
            char joined[64];
            snprintf(joined, sizeof joined, "%.31s%.31s", symbols[i], symbols[i + 1]);
            for (size_t k = 0; k < N_SPM; k++) {
                if (SPM[k].kind == NORMAL && strcmp(SPM[k].text, joined) == 0 && SPM[k].score > best_score) {
                    best = i;
                    best_score = SPM[k].score;
                }
            }
        }
        if (best_score == -1e9f) {
            break;
        }
        char joined[64];
        snprintf(joined, sizeof joined, "%.31s%.31s", symbols[best], symbols[best + 1]);
        memcpy(symbols[best], joined, sizeof symbols[best]);
        memmove(symbols[best + 1], symbols[best + 2], (n - best - 2) * sizeof symbols[0]);
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        tokens[i] = 0;
        for (int32_t k = 0; k < N_SPM; k++) {
            if (SPM[k].kind == NORMAL && strcmp(SPM[k].text, symbols[i]) == 0) {
                tokens[i] = k;
            }
        }
    }
    return n;
}

static void test_spm_against_rule(void) {
    sample s = {0};
    uint64_t seed = 5;
    build_small_spm(&s.b, false);
    CHECK(sample_open(&s, NULL) == LMI_OK);
    for (int round = 0; round < 3000; round++) {
        char text[160] = "", escaped[512] = "";
        size_t n = 1 + check_random(&seed) % 100;
        for (size_t i = 0; i < n; i++) {
            text[i] = "ab a"[check_random(&seed) & 3];
            strcat(escaped, text[i] == ' ' ? BLANK_TEXT : text[i] == 'a' ? "a" : "b");
        }
        int32_t expected[256], got[256];
        size_t n_expected = encode_naively(escaped, expected);
        size_t n_got = encode(s.t, text, n, check_random(&seed) % 9, false, got, 256);
        CHECK(n_got == n_expected && memcmp(got, expected, n_got * sizeof got[0]) == 0, "\"%s\"", text);
        merger by_heap = {.t = s.t};
        CHECK(merge_text_by_heap(&by_heap, (const uint8_t *)escaped, strlen(escaped), NULL) == LMI_OK);
        CHECK(by_heap.n_tokens == n_expected && memcmp(by_heap.tokens, expected, n_expected * sizeof got[0]) == 0, "\"%s\"",
              text);
        merger_close(&by_heap);
    }
    sample_close(&s);
}

static void test_spm_specials(void) {
    sample s = {0};
    build_small_spm(&s.b, true);
    CHECK(sample_open(&s, NULL) == LMI_OK);
    check_ids(s.t, "<s>a", true, "1 8"); /* text after a special token has a blank of its own */
    check_ids(s.t, "a<s>", true, "8 1");
    check_ids(s.t, "<s><|x|></s>", true, "1 11 2");
    check_ids(s.t, "<tag>a", false, "12 8");  /* user-defined ones are always found */
    check_ids(s.t, "<tag>sa", false, "13 8"); /* the longest of those that begin first */
    check_ids(s.t, "a<tag", true, "8 0 4 0"); /* not all of it; unknown neighbours become one <unk> */
    check_ids(s.t, "<|x|>", false, "3 0");    /* a control token in the text of a user is text */
    check_ids(s.t, "<unk>", true, "0");
    CHECK(tokenizer_is_end(s.t, 2) && !tokenizer_is_end(s.t, 1) && !tokenizer_is_end(s.t, -1) && !tokenizer_is_end(s.t, N_SPM));
    lmi_vocab_info info;
    tokenizer_get_info(s.t, &info);
    CHECK(strcmp(info.kind, "spm") == 0 && info.pretokenizer[0] == '\0' && info.n_vocab == N_SPM);
    CHECK(info.bos == 1 && info.eos == 2 && info.unk == 0 && info.add_bos == 1 && info.add_eos == 0);
    sample_close(&s);
}

/* ---- byte-level BPE ------------------------------------------------------------------------------------------------ */

static void test_bpe(void) {
    sample s = {0};
    lmi_error error = {0};
    build_begin(&s.b, 3);
    int n = build_bpe(&s.b); /* 256 bytes in GPT-2's order of code points, then th the Ġt Ġthe in er Ġa he <|endoftext|> */
    CHECK(sample_open(&s, &error) == LMI_OK, "%s", error.message);
    check_ids(s.t, "the", false, "257");
    check_ids(s.t, " the", false, "32 257"); /* t h and th e come first; no merge takes the blank in after that */
    check_ids(s.t, " t he", false, "258 32 263");
    check_ids(s.t, "in  a", false, "260 32 262");
    check_ids(s.t, "<|endoftext|>in", true, "264 260");
    CHECK(n == 265 && tokenizer_is_end(s.t, 264));
    sample_close(&s);
}

/* ---- text out ------------------------------------------------------------------------------------------------------ */

static void test_decoder(void) {
    sample s = {0};
    build_begin(&s.b, 3);
    build_bpe(&s.b);
    CHECK(sample_open(&s, NULL) == LMI_OK);
    static const struct {
        const char *bytes, *text;
    } CASES[] = {{"\xe2\x82\xac", "\xe2\x82\xac"},
                 {"a\x80z", "a\xef\xbf\xbdz"},
                 {"\xe2\x82", "\xef\xbf\xbd"}, /* one piece of a character: one mark */
                 {"\xe2\x82z", "\xef\xbf\xbdz"},
                 {"\xf0\x9f\x98\xf0\x9f\x98\x80", "\xef\xbf\xbd\xf0\x9f\x98\x80"},
                 {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                 /* no byte of it can begin or go on */
                 {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* a surrogate */
                 {"\xf5", "\xef\xbf\xbd"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        decoder *d;
        char text[64] = "";
        size_t size;
        CHECK(decoder_open(s.t, false, &d, NULL) == LMI_OK);
        for (const char *at = CASES[i].bytes; *at != '\0'; at++) {
            strcat(text, decoder_push(d, (uint8_t)*at, &size)); /* build_bpe: token = byte */
        }
        strcat(text, decoder_push(d, -1, &size));
        CHECK(strcmp(text, CASES[i].text) == 0, "case %zu: %s", i, text);
        CHECK(decoder_push(d, 99999, &size)[0] == '\0' && size == 0);
        CHECK(decoder_push(d, -1, &size)[0] == '\0' && size == 0);
        decoder_close(d);
    }
    char text[8];
    CHECK(tokenizer_token_text(s.t, 259, false, text, sizeof text) == 4 && memcmp(text, " the", 4) == 0);
    CHECK(tokenizer_token_text(s.t, 259, false, text, 2) == 4); /* the full length, whatever fits */
    CHECK(tokenizer_token_text(s.t, 264, false, text, sizeof text) == 0);
    CHECK(tokenizer_token_text(s.t, 264, true, NULL, 0) == 13);
    CHECK(tokenizer_token_text(s.t, -1, true, text, 8) == 0 && tokenizer_token_text(s.t, 265, true, text, 8) == 0);
    sample_close(&s);
}

/* ---- long runs: linear time, a small stack ------------------------------------------------------------------------- */

typedef struct run {
    const tokenizer *t;
    const char *unit;
    size_t n_bytes;
    size_t n_tokens;
    double seconds;
} run;

static void *encode_run(void *argument) {
    run *r = argument;
    char part[4096];
    size_t unit = strlen(r->unit), filled = sizeof part / unit * unit;
    int32_t tokens[1024];
    encoder *e;
    struct timespec begin, end;
    for (size_t i = 0; i < filled; i++) {
        part[i] = r->unit[i % unit];
    }
    if (encoder_open(r->t, false, &e, NULL) != LMI_OK) {
        return NULL;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    for (size_t at = 0; at < r->n_bytes; at += filled) {
        size_t n = r->n_bytes - at < filled ? r->n_bytes - at : filled;
        if (encoder_feed(e, part, n, NULL) != LMI_OK) {
            return NULL;
        }
    }
    if (encoder_finish(e, NULL) != LMI_OK) {
        return NULL;
    }
    for (size_t n; (n = encoder_take(e, tokens, 1024)) > 0;) {
        r->n_tokens += n;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    r->seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    encoder_close(e);
    return r;
}

static void run_on_small_stack(run *r) {
    pthread_t thread;
    pthread_attr_t attributes;
    void *result = NULL;
    pthread_attr_init(&attributes);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    size_t stack = 1 << 20; /* sanitizers need some for themselves */
#else
    size_t stack = 1 << 16;
#endif
    const long least = sysconf(_SC_THREAD_STACK_MIN); /* 128 KiB on aarch64 */
    stack = least > 0 && (size_t)least > stack ? (size_t)least : stack;
    CHECK(pthread_attr_setstacksize(&attributes, stack) == 0);
    CHECK(pthread_create(&thread, &attributes, encode_run, r) == 0 && pthread_join(thread, &result) == 0);
    CHECK(result == r, "a run of \"%s\" failed", r->unit);
    pthread_attr_destroy(&attributes);
}

static void test_runs(void) {
    static const char *const UNITS[] = {"a",  "t",    " ",    "\n", "7", "!", "'", "\xcc\x81", "\xe4\xb8\xad",
                                        "ab", "the ", "\x80", "in"};
    for (int kind = 0; kind < 2; kind++) {
        sample s = {0};
        build_begin(&s.b, 3);
        kind == 0 ? build_spm(&s.b) : build_bpe(&s.b);
        CHECK(sample_open(&s, NULL) == LMI_OK);
        for (size_t i = 0; i < sizeof UNITS / sizeof UNITS[0]; i++) {
            run small = {.t = s.t, .unit = UNITS[i], .n_bytes = 240000},
                large = {.t = s.t, .unit = UNITS[i], .n_bytes = 1920000};
            run_on_small_stack(&small);
            run_on_small_stack(&large);
            /* Eight times the text: n log n gives up to 10 times, and caches take their toll; squares would give 64. */
            CHECK(large.seconds < 24 * small.seconds + 0.1, "\"%s\": %g s and %g s", UNITS[i], small.seconds, large.seconds);
            CHECK(small.n_tokens > 0 && large.n_tokens > 7 * small.n_tokens, "\"%s\": %zu and %zu tokens", UNITS[i],
                  small.n_tokens, large.n_tokens);
        }
        sample_close(&s);
    }
}

int main(void) {
    test_spm();
    test_spm_against_rule();
    test_spm_specials();
    test_bpe();
    test_decoder();
    test_runs();
    return check_report();
}
