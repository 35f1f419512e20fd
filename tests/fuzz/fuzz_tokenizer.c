/* Text to tokens and back. Whatever the bytes are: any cuts give the same ids, the tokens' bytes are the text, and what the
 * decoder gives out is whole UTF-8, the same as of the bytes in one piece.
 *
 * An input is a GGUF file, whose vocabulary is then used, or: one byte that chooses a vocabulary, one for cuts and special
 * tokens, and text. */
#include <stdio.h>
#include <string.h>

#include "../native/gguf_builder.h"
#include "gguf_mutator.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* ---- vocabularies -------------------------------------------------------------------------------------------------- */

static const char *const NAMES[] = {"default",        "llama-bpe",   "qwen2",  "qwen35", "seed-coder", "minicpm5",
                                    "gpt-2",          "starcoder",   "falcon", "tekken", "gpt-4o",     "deepseek-llm",
                                    "deepseek-coder", "deepseek-v3", "bloom",  "viking"};
enum { N_NAMES = sizeof NAMES / sizeof NAMES[0], N_SPM = 3, MAX_TOKENS = 1024 };

/* What is merged, byte by byte from the left: seams of every rule among them. */
static const char *const WORDS[] = {" the",
                                    "ing",
                                    "  ",
                                    "\n\n",
                                    "\r\n",
                                    "123",
                                    " 12",
                                    "!!",
                                    "!\n",
                                    "'s",
                                    "'ll",
                                    "a1",
                                    "1a",
                                    "a\n",
                                    "\n ",
                                    " \n",
                                    ".a",
                                    "A's",
                                    "aB",
                                    "Ab",
                                    "\xc3\xa9",
                                    "\xe4\xb8\xad\xe6\x96\x87",
                                    "\xcc\x81",
                                    "e\xcc\x81",
                                    "\xe2\x96\x81",
                                    "\xf0\x9f\x98\x80",
                                    " \xe3\x80\x82",
                                    "\t\t",
                                    "aaaa",
                                    " a b",
                                    "/\n",
                                    "<|"};
static const struct {
    const char *text;
    uint32_t kind;
} SPECIALS[] = {{"<|x|>", 3}, {"<|x|>y", 3}, {"<|x", 4}, {"   ", 4}, {"\n\n\n", 4}, {"\xe2\x96\x81\xe2\x96\x81\xe2\x96\x81", 4},
                {"<s", 2}};
enum { N_WORDS = sizeof WORDS / sizeof WORDS[0], N_SPECIALS = sizeof SPECIALS / sizeof SPECIALS[0] };

static size_t put_letter(char *text, uint8_t byte) {
    uint32_t extra = 256;
    for (uint32_t i = 0; i < byte; i++) {
        extra += !((i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174);
    }
    int printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return (size_t)put_utf8(text, printable ? byte : extra);
}

static void build_rich_bpe(builder *b, const char *pre) {
    static char tokens[MAX_TOKENS][64], merges[MAX_TOKENS][80];
    size_t n = 0, n_merges = 0;
    for (int byte = 0; byte < 256; byte++) {
        tokens[n][put_letter(tokens[n], (uint8_t)byte)] = '\0';
        n++;
    }
    for (size_t w = 0; w < N_WORDS; w++) {
        char left[64] = "", right[8], joined[64];
        for (const char *at = WORDS[w]; *at != '\0'; at++) {
            right[put_letter(right, (uint8_t)*at)] = '\0';
            snprintf(joined, sizeof joined, "%.50s%.7s", left, right);
            int known = left[0] == '\0';
            for (size_t i = 256; i < n && !known; i++) {
                known = strcmp(tokens[i], joined) == 0;
            }
            if (!known) {
                snprintf(merges[n_merges++], sizeof merges[0], "%.50s %.7s", left, right);
                strcpy(tokens[n++], joined);
            }
            strcpy(left, joined);
        }
    }
    build_begin(b, 3);
    build_string(b, "tokenizer.ggml.model", "gpt2");
    build_string(b, "tokenizer.ggml.pre", pre);
    build_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n + N_SPECIALS);
    for (size_t i = 0; i < n; i++) {
        put_string(b, tokens[i]);
    }
    for (size_t i = 0; i < N_SPECIALS; i++) {
        put_string(b, SPECIALS[i].text);
    }
    build_array(b, "tokenizer.ggml.token_type", GGUF_I32, n + N_SPECIALS);
    for (size_t i = 0; i < n + N_SPECIALS; i++) {
        put_u32(b, i < n ? 1 : SPECIALS[i - n].kind);
    }
    build_array(b, "tokenizer.ggml.merges", GGUF_STRING, n_merges);
    for (size_t i = 0; i < n_merges; i++) {
        put_string(b, merges[i]);
    }
}

/* 0: with a blank before the text; 1: without; 2: single blanks (its bytes are not the text's). */
static void build_rich_spm(builder *b, size_t variant) {
    static const char *const PIECES[] = {"\xe2\x96\x81",
                                         "\xe2\x96\x81the",
                                         "\xe2\x96\x81t",
                                         "he",
                                         "th",
                                         "e\xe2\x96\x81",
                                         "\xe2\x96\x81\xe2\x96\x81",
                                         "a",
                                         "aa",
                                         "aaaa",
                                         "t",
                                         "h",
                                         "e",
                                         "\xe4\xb8\xad",
                                         "\xe4\xb8\xad\xe6\x96\x87",
                                         "\n",
                                         "\n\n",
                                         "e\xcc\x81",
                                         "1",
                                         "12"};
    enum { N_PIECES = sizeof PIECES / sizeof PIECES[0], N = 3 + 256 + N_PIECES + N_SPECIALS };
    static const char *const FIRST[] = {"<unk>", "<s>", "</s>"};
    build_begin(b, 3);
    build_string(b, "tokenizer.ggml.model", "llama");
    build_array(b, "tokenizer.ggml.tokens", GGUF_STRING, N);
    for (int i = 0; i < N; i++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)(i - 3) & 255);
        put_string(b, i < 3                ? FIRST[i]
                      : i < 259            ? text
                      : i < 259 + N_PIECES ? PIECES[i - 259]
                                           : SPECIALS[i - 259 - N_PIECES].text);
    }
    build_array(b, "tokenizer.ggml.scores", GGUF_F32, N);
    for (int i = 0; i < N; i++) {
        put_f32(b, -(float)(i * 7 % 13)); /* some equal */
    }
    build_array(b, "tokenizer.ggml.token_type", GGUF_I32, N);
    for (int i = 0; i < N; i++) {
        put_u32(b, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : i < 259 + N_PIECES ? 1 : SPECIALS[i - 259 - N_PIECES].kind);
    }
    build_bool(b, "tokenizer.ggml.add_space_prefix", variant != 1);
    build_bool(b, "tokenizer.ggml.remove_extra_whitespaces", variant == 2);
}

static const tokenizer *vocabulary(size_t i) {
    static struct {
        builder b;
        gguf *file;
        tokenizer *t;
    } all[N_SPM + N_NAMES];
    if (all[i].t == NULL) {
        if (i < N_SPM) {
            build_rich_spm(&all[i].b, i);
        } else {
            build_rich_bpe(&all[i].b, NAMES[i - N_SPM]);
        }
        lmi_error error = {0};
        if (gguf_open(all[i].b.bytes, all[i].b.size, &all[i].file, &error) != LMI_OK ||
            tokenizer_open(all[i].file, &all[i].t, &error) != LMI_OK) {
            fprintf(stderr, "%s\n", error.message);
            __builtin_trap();
        }
    }
    return all[i].t;
}

/* ---- properties ---------------------------------------------------------------------------------------------------- */

static void require(int condition) {
    if (!condition) {
        __builtin_trap();
    }
}

typedef struct ids {
    int32_t *items;
    size_t n, capacity;
} ids;

static void take_all(encoder *e, ids *out) {
    for (;;) {
        if (out->n == out->capacity) {
            out->capacity = 2 * out->capacity + 64;
            out->items = realloc(out->items, out->capacity * sizeof out->items[0]);
            require(out->items != NULL);
        }
        size_t n = encoder_take(e, out->items + out->n, out->capacity - out->n);
        if (n == 0) {
            return;
        }
        out->n += n;
    }
}

static ids encode(const tokenizer *t, const uint8_t *text, size_t size, int special, size_t step) {
    encoder *e;
    ids out = {0};
    require(encoder_open(t, special != 0, &e, NULL) == LMI_OK);
    for (size_t at = 0, part = 0; at < size; at += part) {
        /* Parts of up to `step` bytes, of uneven sizes; 0: all at once. */
        part = step == 0 ? size : 1 + (at * 7 + step) % step;
        part = part < size - at ? part : size - at;
        require(encoder_feed(e, (const char *)text + at, part, NULL) == LMI_OK);
        if (at % 3 == 0) {
            take_all(e, &out);
        }
    }
    require(encoder_finish(e, NULL) == LMI_OK);
    take_all(e, &out);
    encoder_close(e);
    return out;
}

/* The decoder's text of the ids, each part checked to be whole UTF-8; its size in *size. */
static char *decode(const tokenizer *t, const ids *tokens, size_t *size) {
    decoder *d;
    char *text = NULL;
    size_t n = 0, capacity = 0;
    require(decoder_open(t, true, &d, NULL) == LMI_OK);
    for (size_t i = 0; i <= tokens->n; i++) {
        size_t length;
        const char *part = decoder_push(d, i < tokens->n ? tokens->items[i] : -1, &length);
        for (size_t at = 0; at < length;) {
            uint8_t lead = (uint8_t)part[at];
            size_t whole = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
            require(lead < 0x80 || (lead >= 0xC2 && lead <= 0xF4));
            require(at + whole <= length);
            for (size_t k = 1; k < whole; k++) {
                require(((uint8_t)part[at + k] & 0xC0) == 0x80);
            }
            at += whole;
        }
        if (n + length > capacity) {
            capacity = 2 * (n + length) + 64;
            text = realloc(text, capacity);
            require(text != NULL);
        }
        if (length > 0) {
            memcpy(text + n, part, length);
        }
        n += length;
    }
    decoder_close(d);
    *size = n;
    return text;
}

static void check_text(const tokenizer *t, const uint8_t *text, size_t size, int special, size_t step) {
    ids whole = encode(t, text, size, special, 0), parts = encode(t, text, size, special, step),
        single = encode(t, text, size, special, 1);
    require(parts.n == whole.n && single.n == whole.n);
    require(whole.n == 0 || memcmp(parts.items, whole.items, whole.n * sizeof whole.items[0]) == 0);
    require(whole.n == 0 || memcmp(single.items, whole.items, whole.n * sizeof whole.items[0]) == 0);
    lmi_vocab_info info;
    tokenizer_get_info(t, &info);
    for (size_t i = 0; i < whole.n; i++) {
        require(whole.items[i] >= 0 && whole.items[i] < info.n_vocab);
    }
    size_t n_decoded;
    free(decode(t, &whole, &n_decoded));
    free(whole.items);
    free(parts.items);
    free(single.items);
}

/* The bytes of the tokens are the text: for vocabularies with a token for every byte, and text without special tokens. */
static void check_bytes(const tokenizer *t, const uint8_t *text, size_t size, int spm, int prefix) {
    ids tokens = encode(t, text, size, 0, 0);
    size_t at = 0;
    int first = prefix && size > 0;
    for (size_t i = 0; i < tokens.n; i++) {
        char part[256];
        size_t n = tokenizer_token_text(t, tokens.items[i], false, part, sizeof part);
        for (size_t k = 0; k < n; k++) {
            if (first) {
                require(part[k] == ' ');
                first = 0;
            } else if (spm && part[k] == ' ' && size - at >= 3 && memcmp(text + at, "\xe2\x96\x81", 3) == 0) {
                at += 3;
            } else {
                require(at < size && (uint8_t)part[k] == text[at]);
                at++;
            }
        }
    }
    require(at == size);
    free(tokens.items);
}

static int has_special(const uint8_t *text, size_t size) {
    for (size_t i = 0; i < N_SPECIALS; i++) {
        size_t length = strlen(SPECIALS[i].text);
        for (size_t at = 0; at + length <= size; at++) {
            if (memcmp(text + at, SPECIALS[i].text, length) == 0) {
                return 1;
            }
        }
    }
    return 0;
}

static void check_file(const uint8_t *data, size_t size) {
    static const char TEXT[] = "The the 123's  \n\n a<|x|>y\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87\xff "
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa<s>";
    lmi_error error = {0};
    gguf *file = NULL;
    tokenizer *t = NULL;
    if (gguf_open(data, size, &file, &error) == LMI_OK) {
        lmi_status status = tokenizer_open(file, &t, &error);
        if (status == LMI_OK) {
            for (int special = 0; special < 2; special++) {
                check_text(t, (const uint8_t *)TEXT, sizeof TEXT, special, 5);
            }
        } else {
            require(t == NULL && error.status == status && error.message[0] != '\0' && error.offset < (int64_t)size);
        }
        tokenizer_close(t);
        gguf_close(file);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size >= 4 && memcmp(data, "GGUF", 4) == 0) {
        check_file(data, size);
    } else if (size >= 2) {
        size_t which = data[0] % (N_SPM + N_NAMES);
        const tokenizer *t = vocabulary(which);
        check_text(t, data + 2, size - 2, data[1] & 1, 2 + (data[1] >> 1));
        if (which != 2 && !has_special(data + 2, size - 2)) {
            check_bytes(t, data + 2, size - 2, which < N_SPM, which == 0);
        }
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    uint64_t rng = seed;
    int is_file = size >= 4 && memcmp(data, "GGUF", 4) == 0;
    return !is_file || mutator_below(&rng, 4) == 0 ? LLVMFuzzerMutate(data, size, max_size)
                                                   : mutate_gguf(data, size, max_size, NULL, 0, &rng);
}
