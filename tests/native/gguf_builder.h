/* Writes GGUF files, good and bad, into memory. Nothing is checked: counts, offsets and types can be made to lie.
 *
 *     builder b = {0};
 *     build_begin(&b, 3);                  header; each key and tensor below raises its count
 *     build_u32(&b, "general.alignment", 64);
 *     build_tensor(&b, "a", QUANT_F32, 2, (int64_t[]){8, 4});
 *     build_data(&b);                      padding and the tensors' bytes: sane numbers
 *     ... b.bytes, b.size ...
 *     build_free(&b);
 *
 * build_llama makes a whole model of one layer that runs. */
#ifndef LMI_TESTS_GGUF_BUILDER_H
#define LMI_TESTS_GGUF_BUILDER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "gguf/gguf.h"
#include "quant/blocks.h"

enum { BUILD_MAX_TENSORS = 64 };

typedef struct builder {
    uint8_t *bytes;
    size_t size, capacity;
    uint64_t alignment; /* of tensors; 0: 32 */
    uint64_t next;      /* offset of the next tensor, from the start of the data */
    int n_tensors;
    struct {
        uint32_t type;
        uint64_t offset, n_bytes;
    } tensors[BUILD_MAX_TENSORS];
} builder;

static inline void build_free(builder *b) {
    free(b->bytes);
    *b = (builder){0};
}

/* ---- raw parts --------------------------------------------------------------------------------------------------- */

static inline void build_put(builder *b, const void *bytes, size_t n) {
    if (b->size + n > b->capacity) {
        b->capacity = 2 * (b->size + n) + 256;
        b->bytes = realloc(b->bytes, b->capacity);
        if (b->bytes == NULL) {
            fprintf(stderr, "no memory for a test file\n");
            exit(2);
        }
    }
    if (n > 0) {
        memcpy(b->bytes + b->size, bytes, n);
    }
    b->size += n;
}

static inline void put_u8(builder *b, uint8_t value) { build_put(b, &value, sizeof value); }
static inline void put_u16(builder *b, uint16_t value) { build_put(b, &value, sizeof value); }
static inline void put_u32(builder *b, uint32_t value) { build_put(b, &value, sizeof value); }
static inline void put_u64(builder *b, uint64_t value) { build_put(b, &value, sizeof value); }
static inline void put_f32(builder *b, float value) { build_put(b, &value, sizeof value); }
static inline void put_f64(builder *b, double value) { build_put(b, &value, sizeof value); }

static inline void put_text(builder *b, const void *text, size_t n) {
    put_u64(b, n);
    build_put(b, text, n);
}
static inline void put_string(builder *b, const char *text) { put_text(b, text, strlen(text)); }

static inline void patch_u32(builder *b, size_t at, uint32_t value) { memcpy(b->bytes + at, &value, sizeof value); }
static inline void patch_u64(builder *b, size_t at, uint64_t value) { memcpy(b->bytes + at, &value, sizeof value); }

static inline void raise_count(builder *b, size_t at) {
    uint64_t count;
    memcpy(&count, b->bytes + at, sizeof count);
    patch_u64(b, at, count + 1);
}

enum { AT_VERSION = 4, AT_N_TENSORS = 8, AT_N_KEYS = 16, AFTER_HEADER = 24 };

static inline void build_begin(builder *b, uint32_t version) {
    build_put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, 0);
    put_u64(b, 0);
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

/* A key up to its value, which the caller puts. */
static inline void build_key(builder *b, const char *name, uint32_t type) {
    raise_count(b, AT_N_KEYS);
    put_string(b, name);
    put_u32(b, type);
}
/* An array up to its elements. */
static inline void build_array(builder *b, const char *name, uint32_t element, uint64_t count) {
    build_key(b, name, GGUF_ARRAY);
    put_u32(b, element);
    put_u64(b, count);
}
static inline void build_u32(builder *b, const char *name, uint32_t value) {
    build_key(b, name, GGUF_U32);
    put_u32(b, value);
}
static inline void build_f32(builder *b, const char *name, float value) {
    build_key(b, name, GGUF_F32);
    put_f32(b, value);
}
static inline void build_bool(builder *b, const char *name, uint8_t value) {
    build_key(b, name, GGUF_BOOL);
    put_u8(b, value);
}
static inline void build_string(builder *b, const char *name, const char *value) {
    build_key(b, name, GGUF_STRING);
    put_string(b, value);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* A row of the table with any values at all. */
static inline void build_raw_tensor(builder *b, const char *name, uint32_t n_dims, const uint64_t *shape, uint32_t type,
                                    uint64_t offset) {
    raise_count(b, AT_N_TENSORS);
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        put_u64(b, shape[i]);
    }
    put_u32(b, type);
    put_u64(b, offset);
}

/* The next tensor, right behind the one before it. */
static inline void build_tensor(builder *b, const char *name, quant_type type, uint32_t n_dims, const int64_t *shape) {
    const quant_info *info = quant_find((uint32_t)type);
    const uint64_t alignment = b->alignment != 0 ? b->alignment : 32;
    uint64_t sizes[4] = {0}, n = 1;
    for (uint32_t i = 0; i < n_dims && i < 4; i++) {
        sizes[i] = (uint64_t)shape[i];
        n *= sizes[i];
    }
    uint64_t n_bytes = n / info->block_values * info->block_bytes;
    build_raw_tensor(b, name, n_dims, sizes, (uint32_t)type, b->next);
    if (b->n_tensors < BUILD_MAX_TENSORS) {
        b->tensors[b->n_tensors].type = (uint32_t)type;
        b->tensors[b->n_tensors].offset = b->next;
        b->tensors[b->n_tensors].n_bytes = n_bytes;
        b->n_tensors++;
    }
    b->next = (b->next + n_bytes + alignment - 1) / alignment * alignment;
}

static inline uint64_t build_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* A block of random quants with scales that give values of a few tenths. */
static inline void build_block(uint32_t type, uint8_t *block, uint32_t n_bytes, uint64_t *state) {
    for (uint32_t i = 0; i < n_bytes; i++) {
        block[i] = (uint8_t)build_random(state);
    }
    const uint16_t d = f32_to_f16(0.004f), small = f32_to_f16(0.0002f);
    float value = ((float)(build_random(state) % 2001) - 1000.0f) * 2e-4f;
    uint16_t half = f32_to_f16(value), brain = (uint16_t)(f32_to_bits(value) >> 16);
    switch (type) {
    case QUANT_F32:
        memcpy(block, &value, 4);
        break;
    case QUANT_F16:
        memcpy(block, &half, 2);
        break;
    case QUANT_BF16:
        memcpy(block, &brain, 2);
        break;
    case QUANT_Q4_1:
    case QUANT_Q5_1:
        memcpy(block, &d, 2), memset(block + 2, 0, 2);
        break;
    case QUANT_Q2_K:
        memcpy(block + 80, &d, 2), memcpy(block + 82, &small, 2);
        break;
    case QUANT_Q3_K:
        memcpy(block + 108, &small, 2);
        break;
    case QUANT_Q6_K:
        memcpy(block + 208, &small, 2);
        break;
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        memcpy(block, &small, 2), memcpy(block + 2, &small, 2);
        break;
    case QUANT_IQ4_NL:
    case QUANT_IQ4_XS:
        memcpy(block, &small, 2);
        break;
    case QUANT_MXFP4:
        block[0] = 120;
        break;
    default:
        memcpy(block, &d, 2);
        break;
    }
}

static inline void build_pad(builder *b) {
    const uint64_t alignment = b->alignment != 0 ? b->alignment : 32;
    while (b->size % alignment != 0) {
        put_u8(b, 0);
    }
}

/* The bytes of every tensor of build_tensor. */
static inline void build_data(builder *b) {
    uint64_t state = 1;
    build_pad(b);
    const size_t start = b->size;
    for (int i = 0; i < b->n_tensors; i++) {
        const quant_info *info = quant_find(b->tensors[i].type);
        while (b->size < start + b->tensors[i].offset) {
            put_u8(b, 0);
        }
        for (uint64_t done = 0; done < b->tensors[i].n_bytes; done += info->block_bytes) {
            uint8_t block[256];
            build_block(b->tensors[i].type, block, info->block_bytes, &state);
            build_put(b, block, info->block_bytes);
        }
    }
}

/* ---- vocabularies ------------------------------------------------------------------------------------------------ */

static inline int put_utf8(char *text, uint32_t c) { /* up to U+07FF: all that is needed here */
    if (c < 0x80) {
        text[0] = (char)c;
        return 1;
    }
    text[0] = (char)(0xc0 | c >> 6);
    text[1] = (char)(0x80 | (c & 63));
    return 2;
}

/* SentencePiece: <unk> <s> </s>, 256 bytes, and pieces that merge. Returns the number of tokens. */
static inline int build_spm(builder *b) {
    static const char *const pieces[] = {
        "\xe2\x96\x81the",
        "\xe2\x96\x81t",
        "he",
        "in",
        "\xe2\x96\x81\x61",
        "er",
        "on",
        "\xe2\x96\x81",
        "t",
        "h",
        "e",
        "i",
        "n",
        "a",
        "r",
        "o",
        "s",
        "d",
        "l",
        "u",
        ".",
        ",",
        "\xc3\xa9",
    };
    enum { N_PIECES = sizeof pieces / sizeof *pieces, N = 3 + 256 + N_PIECES };
    build_string(b, "tokenizer.ggml.model", "llama");
    build_array(b, "tokenizer.ggml.tokens", GGUF_STRING, N);
    put_string(b, "<unk>");
    put_string(b, "<s>");
    put_string(b, "</s>");
    for (int i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)i & 255);
        put_string(b, text);
    }
    for (int i = 0; i < N_PIECES; i++) {
        put_string(b, pieces[i]);
    }
    build_array(b, "tokenizer.ggml.scores", GGUF_F32, N);
    for (int i = 0; i < N; i++) {
        put_f32(b, i < 259 ? 0.0f : (float)(259 - i) - 1.0f);
    }
    build_array(b, "tokenizer.ggml.token_type", GGUF_I32, N);
    for (int i = 0; i < N; i++) {
        put_u32(b, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
    }
    build_u32(b, "tokenizer.ggml.bos_token_id", 1);
    build_u32(b, "tokenizer.ggml.eos_token_id", 2);
    build_u32(b, "tokenizer.ggml.unknown_token_id", 0);
    build_bool(b, "tokenizer.ggml.add_bos_token", 1);
    return N;
}

/* Byte-level BPE: 256 bytes in GPT-2's letters, a few merges, one control token. Returns the number of tokens. */
static inline int build_bpe(builder *b) {
    static const char *const merged[] = {"th", "the", "\xc4\xa0t", "\xc4\xa0the", "in", "er", "\xc4\xa0\x61"};
    static const char *const merges[] = {"t h", "th e", "\xc4\xa0 t", "\xc4\xa0t he", "i n", "e r", "\xc4\xa0 a", "h e"};
    enum { N_MERGED = sizeof merged / sizeof *merged, N_MERGES = sizeof merges / sizeof *merges, N = 256 + N_MERGED + 2 };
    build_string(b, "tokenizer.ggml.model", "gpt2");
    build_string(b, "tokenizer.ggml.pre", "gpt-2");
    build_array(b, "tokenizer.ggml.tokens", GGUF_STRING, N);
    uint32_t extra = 256;
    for (uint32_t i = 0; i < 256; i++) {
        char text[4];
        int printable = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        put_text(b, text, (size_t)put_utf8(text, printable ? i : extra++));
    }
    for (int i = 0; i < N_MERGED; i++) {
        put_string(b, merged[i]);
    }
    put_string(b, "he");
    put_string(b, "<|endoftext|>");
    build_array(b, "tokenizer.ggml.token_type", GGUF_I32, N);
    for (int i = 0; i < N; i++) {
        put_u32(b, i == N - 1 ? 3 : 1);
    }
    build_array(b, "tokenizer.ggml.merges", GGUF_STRING, N_MERGES);
    for (int i = 0; i < N_MERGES; i++) {
        put_string(b, merges[i]);
    }
    build_u32(b, "tokenizer.ggml.bos_token_id", N - 1);
    build_u32(b, "tokenizer.ggml.eos_token_id", N - 1);
    return N;
}

/* ---- a model ----------------------------------------------------------------------------------------------------- */

typedef enum build_vocab { BUILD_SPM, BUILD_BPE } build_vocab;

static inline void build_layer_tensor(builder *b, int layer, const char *what, quant_type type, uint32_t n_dims,
                                      const int64_t *shape) {
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, what);
    build_tensor(b, name, type, n_dims, shape);
}

/* A llama whose matrices are of `type`; norms are F32. Rows hold a whole block: 32 or 256 values. */
static inline void build_llama_of(builder *b, quant_type type, build_vocab vocab, int n_layers) {
    const int64_t embd = quant_find((uint32_t)type)->block_values > 32 ? 256 : 32, heads = embd / 16, kv = 16, ff = embd;
    build_begin(b, 3);
    build_string(b, "general.architecture", "llama");
    build_string(b, "general.name", "a test");
    build_u32(b, "general.alignment", 32);
    build_u32(b, "llama.block_count", (uint32_t)n_layers);
    build_u32(b, "llama.context_length", 64);
    build_u32(b, "llama.embedding_length", (uint32_t)embd);
    build_u32(b, "llama.feed_forward_length", (uint32_t)ff);
    build_u32(b, "llama.attention.head_count", (uint32_t)heads);
    build_u32(b, "llama.attention.head_count_kv", 1);
    build_u32(b, "llama.rope.dimension_count", 16);
    build_f32(b, "llama.rope.freq_base", 10000.0f);
    build_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    int64_t n_vocab = vocab == BUILD_SPM ? build_spm(b) : build_bpe(b);
    build_u32(b, "llama.vocab_size", (uint32_t)n_vocab);
    build_tensor(b, "token_embd.weight", type, 2, (int64_t[]){embd, n_vocab});
    for (int i = 0; i < n_layers; i++) {
        build_layer_tensor(b, i, "attn_norm", QUANT_F32, 1, (int64_t[]){embd});
        build_layer_tensor(b, i, "attn_q", type, 2, (int64_t[]){embd, embd});
        build_layer_tensor(b, i, "attn_k", type, 2, (int64_t[]){embd, kv});
        build_layer_tensor(b, i, "attn_v", type, 2, (int64_t[]){embd, kv});
        build_layer_tensor(b, i, "attn_output", type, 2, (int64_t[]){embd, embd});
        build_layer_tensor(b, i, "ffn_norm", QUANT_F32, 1, (int64_t[]){embd});
        build_layer_tensor(b, i, "ffn_gate", type, 2, (int64_t[]){embd, ff});
        build_layer_tensor(b, i, "ffn_up", type, 2, (int64_t[]){embd, ff});
        build_layer_tensor(b, i, "ffn_down", type, 2, (int64_t[]){ff, embd});
    }
    build_tensor(b, "output_norm.weight", QUANT_F32, 1, (int64_t[]){embd});
    build_data(b);
}

/* Of one layer. */
static inline void build_llama(builder *b, quant_type type, build_vocab vocab) { build_llama_of(b, type, vocab, 1); }

#endif
