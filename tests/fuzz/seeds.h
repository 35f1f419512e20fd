/* The files that mutations start from: small whole models, llamas of several quant types and both vocabularies, families that
 * have what llama has not; and one file that is all metadata. */
#ifndef LMI_FUZZ_SEEDS_H
#define LMI_FUZZ_SEEDS_H

#include "../native/gguf_families.h"

typedef struct seed {
    const char *name;
    builder file;
} seed;

enum { N_LLAMAS = 11, N_SEEDS = N_LLAMAS + 7 };

static inline void build_metadata(builder *b) {
    build_begin(b, 2);
    build_string(b, "general.architecture", "llama");
    build_u32(b, "general.alignment", 64);
    b->alignment = 64;
    for (uint32_t type = 0; type <= 12; type++) {
        char name[32];
        const uint8_t value[24] = {1};
        static const uint8_t sizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};
        snprintf(name, sizeof name, "a.%s", gguf_type_name((gguf_type)type));
        if (type != GGUF_ARRAY) {
            build_key(b, name, type);
            build_put(b, type == GGUF_STRING ? value + 8 : value, sizes[type]);
            snprintf(name, sizeof name, "b.%s", gguf_type_name((gguf_type)type));
            build_array(b, name, type, 1);
            build_put(b, type == GGUF_STRING ? value + 8 : value, sizes[type]);
        }
    }
    build_tensor(b, "x.weight", QUANT_Q4_K, 3, (int64_t[]){256, 2, 2});
    build_tensor(b, "y.weight", QUANT_F32, 1, (int64_t[]){7});
    build_tensor(b, "z.weight", QUANT_MXFP4, 2, (int64_t[]){64, 3});
    build_data(b);
}

static inline void build_seeds(seed seeds[N_SEEDS]) {
    static const struct {
        const char *name;
        quant_type type;
        build_vocab vocab;
    } models[N_LLAMAS] = {
        {"f32-spm", QUANT_F32, BUILD_SPM},   {"f16-bpe", QUANT_F16, BUILD_BPE},       {"bf16-spm", QUANT_BF16, BUILD_SPM},
        {"q8_0-spm", QUANT_Q8_0, BUILD_SPM}, {"q8_0-bpe", QUANT_Q8_0, BUILD_BPE},     {"q4_0-spm", QUANT_Q4_0, BUILD_SPM},
        {"q4_1-bpe", QUANT_Q4_1, BUILD_BPE}, {"q5_0-spm", QUANT_Q5_0, BUILD_SPM},     {"q5_1-bpe", QUANT_Q5_1, BUILD_BPE},
        {"q4_K-spm", QUANT_Q4_K, BUILD_SPM}, {"iq4_nl-bpe", QUANT_IQ4_NL, BUILD_BPE},
    };
    seed *next = seeds;
    for (int i = 0; i < N_LLAMAS; i++) {
        *next = (seed){.name = models[i].name};
        build_llama(&next++->file, models[i].type, models[i].vocab);
    }
    static const char *const others[] = {"gpt-oss", "qwen2moe", "mpt", "phi3", "gemma2", "gemma3", "metadata"};
    for (int i = 0; i < N_SEEDS - N_LLAMAS; i++) {
        next[i] = (seed){.name = others[i]};
    }
    build_gpt_oss(&next++->file);
    build_qwen2moe(&next++->file);
    build_mpt(&next++->file);
    build_phi3(&next++->file);
    build_gemma(&next++->file, "gemma2");
    build_gemma(&next++->file, "gemma3");
    build_metadata(&next->file);
}

static inline void free_seeds(seed seeds[N_SEEDS]) {
    for (int i = 0; i < N_SEEDS; i++) {
        build_free(&seeds[i].file);
    }
}

#endif
