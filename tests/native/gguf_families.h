/* Small models of the families that have what llama has not: experts, a shared expert, sink logits, windows, ALiBi, fused
 * matrices, long factors, norms of heads and caps. Random bytes for weights, one or two layers. */
#ifndef LMI_TESTS_GGUF_FAMILIES_H
#define LMI_TESTS_GGUF_FAMILIES_H

#include "gguf_builder.h"

enum { FAMILY_EMBD = 32, FAMILY_HEADS = 2, FAMILY_HEAD_DIM = 16, FAMILY_FF = 32, FAMILY_EXPERTS = 4 };

typedef struct family_builder {
    builder *file;
    const char *name;
    int layer;
} family_builder;

static inline void family_u32(family_builder *f, const char *suffix, uint32_t value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", f->name, suffix);
    build_u32(f->file, key, value);
}

static inline void family_f32(family_builder *f, const char *suffix, float value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", f->name, suffix);
    build_f32(f->file, key, value);
}

/* A tensor of the current layer: 1 to 3 dimensions, the last ones 0 where there are fewer. */
static inline void family_tensor(family_builder *f, const char *stem, quant_type type, int64_t cols, int64_t rows, int64_t n) {
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s", f->layer, stem);
    build_tensor(f->file, name, type, 1 + (rows > 0) + (n > 0), (int64_t[]){cols, rows, n});
}

static inline void family_floats(family_builder *f, const char *stem, int64_t n) { family_tensor(f, stem, QUANT_F32, n, 0, 0); }

static inline int64_t family_begin(family_builder *f, builder *file, const char *name, uint32_t n_layers, int64_t n_kv_heads) {
    *f = (family_builder){file, name, 0};
    build_begin(file, 3);
    build_string(file, "general.architecture", name);
    family_u32(f, "block_count", n_layers);
    family_u32(f, "context_length", 64);
    family_u32(f, "embedding_length", FAMILY_EMBD);
    family_u32(f, "feed_forward_length", FAMILY_FF);
    family_u32(f, "attention.head_count", FAMILY_HEADS);
    family_u32(f, "attention.head_count_kv", (uint32_t)n_kv_heads);
    return build_bpe(file);
}

static inline void family_ends(family_builder *f, int64_t n_vocab, bool bias) {
    build_tensor(f->file, "token_embd.weight", QUANT_Q8_0, 2, (int64_t[]){FAMILY_EMBD, n_vocab});
    build_tensor(f->file, "output_norm.weight", QUANT_F32, 1, (int64_t[]){FAMILY_EMBD});
    if (bias) {
        build_tensor(f->file, "output_norm.bias", QUANT_F32, 1, (int64_t[]){FAMILY_EMBD});
    }
    build_data(f->file);
}

static inline void family_attention(family_builder *f, int64_t n_kv_heads, bool bias) {
    const int64_t q = FAMILY_HEADS * FAMILY_HEAD_DIM, kv = n_kv_heads * FAMILY_HEAD_DIM;
    family_tensor(f, "attn_q.weight", QUANT_Q4_0, FAMILY_EMBD, q, 0);
    family_tensor(f, "attn_k.weight", QUANT_Q4_0, FAMILY_EMBD, kv, 0);
    family_tensor(f, "attn_v.weight", QUANT_Q8_0, FAMILY_EMBD, kv, 0);
    family_tensor(f, "attn_output.weight", QUANT_Q4_0, q, FAMILY_EMBD, 0);
    if (bias) {
        family_floats(f, "attn_q.bias", q);
        family_floats(f, "attn_k.bias", kv);
        family_floats(f, "attn_v.bias", kv);
    }
}

static inline void family_experts(family_builder *f, quant_type type, bool bias) {
    family_tensor(f, "ffn_gate_inp.weight", QUANT_F32, FAMILY_EMBD, FAMILY_EXPERTS, 0);
    family_tensor(f, "ffn_gate_exps.weight", type, FAMILY_EMBD, FAMILY_FF, FAMILY_EXPERTS);
    family_tensor(f, "ffn_up_exps.weight", type, FAMILY_EMBD, FAMILY_FF, FAMILY_EXPERTS);
    family_tensor(f, "ffn_down_exps.weight", type, FAMILY_FF, FAMILY_EMBD, FAMILY_EXPERTS);
    if (bias) {
        family_floats(f, "ffn_gate_inp.bias", FAMILY_EXPERTS);
        family_tensor(f, "ffn_gate_exps.bias", QUANT_F32, FAMILY_FF, FAMILY_EXPERTS, 0);
        family_tensor(f, "ffn_up_exps.bias", QUANT_F32, FAMILY_FF, FAMILY_EXPERTS, 0);
        family_tensor(f, "ffn_down_exps.bias", QUANT_F32, FAMILY_EMBD, FAMILY_EXPERTS, 0);
    }
}

/* Sink logits, a window in the first of two layers, experts with biases, YaRN. */
static inline void build_gpt_oss(builder *b) {
    family_builder f;
    const int64_t n_vocab = family_begin(&f, b, "gpt-oss", 2, 1);
    family_f32(&f, "attention.layer_norm_rms_epsilon", 1e-5f);
    family_u32(&f, "attention.sliding_window", 4);
    family_u32(&f, "expert_count", FAMILY_EXPERTS);
    family_u32(&f, "expert_used_count", 2);
    family_u32(&f, "expert_feed_forward_length", FAMILY_FF);
    build_string(b, "gpt-oss.rope.scaling.type", "yarn");
    family_f32(&f, "rope.scaling.factor", 4.0f);
    family_u32(&f, "rope.scaling.original_context_length", 16);
    for (f.layer = 0; f.layer < 2; f.layer++) {
        family_floats(&f, "attn_norm.weight", FAMILY_EMBD);
        family_floats(&f, "post_attention_norm.weight", FAMILY_EMBD);
        family_attention(&f, 1, true);
        family_floats(&f, "attn_sinks.weight", FAMILY_HEADS);
        family_experts(&f, QUANT_MXFP4, true);
    }
    family_ends(&f, n_vocab, false);
}

/* A shared expert beside the chosen ones. */
static inline void build_qwen2moe(builder *b) {
    family_builder f;
    const int64_t n_vocab = family_begin(&f, b, "qwen2moe", 1, 1);
    family_f32(&f, "attention.layer_norm_rms_epsilon", 1e-5f);
    family_u32(&f, "expert_count", FAMILY_EXPERTS);
    family_u32(&f, "expert_used_count", 2);
    family_u32(&f, "expert_feed_forward_length", FAMILY_FF);
    family_u32(&f, "expert_shared_feed_forward_length", FAMILY_FF);
    family_floats(&f, "attn_norm.weight", FAMILY_EMBD);
    family_floats(&f, "ffn_norm.weight", FAMILY_EMBD);
    family_attention(&f, 1, true);
    family_experts(&f, QUANT_Q4_0, false);
    family_floats(&f, "ffn_gate_inp_shexp.weight", FAMILY_EMBD);
    family_tensor(&f, "ffn_gate_shexp.weight", QUANT_Q8_0, FAMILY_EMBD, FAMILY_FF, 0);
    family_tensor(&f, "ffn_up_shexp.weight", QUANT_Q8_0, FAMILY_EMBD, FAMILY_FF, 0);
    family_tensor(&f, "ffn_down_shexp.weight", QUANT_Q4_1, FAMILY_FF, FAMILY_EMBD, 0);
    family_ends(&f, n_vocab, false);
}

/* ALiBi, a bound on q, k and v, layer norms, one matrix for all three, no gate. */
static inline void build_mpt(builder *b) {
    family_builder f;
    const int64_t n_vocab = family_begin(&f, b, "mpt", 1, FAMILY_HEADS);
    family_f32(&f, "attention.layer_norm_epsilon", 1e-5f);
    family_f32(&f, "attention.max_alibi_bias", 8.0f);
    family_f32(&f, "attention.clamp_kqv", 2.0f);
    family_floats(&f, "attn_norm.weight", FAMILY_EMBD);
    family_floats(&f, "ffn_norm.weight", FAMILY_EMBD);
    family_floats(&f, "ffn_norm.bias", FAMILY_EMBD);
    family_tensor(&f, "attn_qkv.weight", QUANT_Q4_0, FAMILY_EMBD, 3 * FAMILY_HEADS * FAMILY_HEAD_DIM, 0);
    family_tensor(&f, "attn_output.weight", QUANT_Q4_0, FAMILY_HEADS * FAMILY_HEAD_DIM, FAMILY_EMBD, 0);
    family_tensor(&f, "ffn_up.weight", QUANT_Q5_0, FAMILY_EMBD, FAMILY_FF, 0);
    family_tensor(&f, "ffn_down.weight", QUANT_Q5_1, FAMILY_FF, FAMILY_EMBD, 0);
    family_ends(&f, n_vocab, true);
}

/* Every value of an F32 tensor, after build_data. */
static inline void family_fill(builder *b, int tensor, float value) {
    const int last = b->n_tensors - 1;
    const uint64_t start = b->size - b->tensors[last].offset - b->tensors[last].n_bytes;
    for (uint64_t done = 0; done < b->tensors[tensor].n_bytes; done += sizeof value) {
        memcpy(b->bytes + start + b->tensors[tensor].offset + done, &value, sizeof value);
    }
}

/* Fused matrices and two sets of factors. */
static inline void build_phi3(builder *b) {
    family_builder f;
    const int64_t n_vocab = family_begin(&f, b, "phi3", 1, 1);
    family_f32(&f, "attention.layer_norm_rms_epsilon", 1e-5f);
    family_u32(&f, "rope.scaling.original_context_length", 4);
    family_f32(&f, "rope.scaling.attn_factor", 1.2f);
    family_floats(&f, "attn_norm.weight", FAMILY_EMBD);
    family_floats(&f, "ffn_norm.weight", FAMILY_EMBD);
    family_tensor(&f, "attn_qkv.weight", QUANT_Q4_0, FAMILY_EMBD, (FAMILY_HEADS + 2) * FAMILY_HEAD_DIM, 0);
    family_tensor(&f, "attn_output.weight", QUANT_Q4_0, FAMILY_HEADS * FAMILY_HEAD_DIM, FAMILY_EMBD, 0);
    family_tensor(&f, "ffn_up.weight", QUANT_Q4_0, FAMILY_EMBD, 2 * FAMILY_FF, 0);
    family_tensor(&f, "ffn_down.weight", QUANT_Q4_0, FAMILY_FF, FAMILY_EMBD, 0);
    const int factors = b->n_tensors;
    build_tensor(b, "rope_factors_long.weight", QUANT_F32, 1, (int64_t[]){FAMILY_HEAD_DIM / 2});
    build_tensor(b, "rope_factors_short.weight", QUANT_F32, 1, (int64_t[]){FAMILY_HEAD_DIM / 2});
    family_ends(&f, n_vocab, false);
    family_fill(b, factors, 4.0f);
    family_fill(b, factors + 1, 1.5f);
}

/* Norms before and after, caps, two windows of two bases, norms of heads. */
static inline void build_gemma(builder *b, const char *name) {
    family_builder f;
    const int64_t n_vocab = family_begin(&f, b, name, 2, 1);
    family_f32(&f, "attention.layer_norm_rms_epsilon", 1e-5f);
    family_u32(&f, "attention.sliding_window", 4);
    family_f32(&f, "attn_logit_softcapping", 5.0f);
    family_f32(&f, "final_logit_softcapping", 3.0f);
    for (f.layer = 0; f.layer < 2; f.layer++) {
        family_floats(&f, "attn_norm.weight", FAMILY_EMBD);
        family_floats(&f, "ffn_norm.weight", FAMILY_EMBD);
        family_floats(&f, "post_attention_norm.weight", FAMILY_EMBD);
        family_floats(&f, "post_ffw_norm.weight", FAMILY_EMBD);
        family_attention(&f, 1, false);
        if (strcmp(name, "gemma3") == 0) {
            family_floats(&f, "attn_q_norm.weight", FAMILY_HEAD_DIM);
            family_floats(&f, "attn_k_norm.weight", FAMILY_HEAD_DIM);
        }
        family_tensor(&f, "ffn_gate.weight", QUANT_Q4_0, FAMILY_EMBD, FAMILY_FF, 0);
        family_tensor(&f, "ffn_up.weight", QUANT_Q4_0, FAMILY_EMBD, FAMILY_FF, 0);
        family_tensor(&f, "ffn_down.weight", QUANT_IQ4_NL, FAMILY_FF, FAMILY_EMBD, 0);
    }
    family_ends(&f, n_vocab, false);
}

#endif
