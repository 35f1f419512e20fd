/* What a model is: one row of features per architecture, and the hyper-parameters that a file gives it.
 *
 * The forward pass (steps.h) reads features and numbers, never the name of an architecture. A new one is a row of
 * `architectures` in spec.c. */
#ifndef LMI_MODEL_SPEC_H
#define LMI_MODEL_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "lambda/rope.h"

typedef enum norm_kind { NORM_RMS, NORM_LAYER } norm_kind;

/* Where a block (attention, feed-forward) has its norms: on its input, on what it adds to the residual stream, or both. */
typedef enum norm_place { NORM_BEFORE, NORM_AFTER, NORM_BOTH } norm_place;

typedef enum head_norm {
    HEAD_NORM_NONE,
    HEAD_NORM_EACH,
    HEAD_NORM_ALL
} head_norm; /* of q and k: per head, or over all heads */

typedef enum residual_kind {
    RESIDUAL_SEQUENTIAL,
    RESIDUAL_PARALLEL,    /* both blocks read the same x */
    RESIDUAL_SHARED_NORM, /* ... through the same norm */
    RESIDUAL_FROM_FILE    /* sequential or parallel, as key use_parallel_residual says */
} residual_kind;

typedef enum expert_weighting {
    EXPERTS_NONE,     /* the family has none */
    EXPERTS_NORMED,   /* softmax over the chosen ones */
    EXPERTS_UNNORMED, /* softmax over all: the chosen ones add up to less than 1 */
} expert_weighting;

/* One row per architecture. Zero is what most families do. */
typedef struct architecture {
    const char *name;     /* general.architecture; also the prefix of its keys */
    rope_pairing pairing; /* which values of a head turn together */
    bool alibi;           /* biases by distance instead of rotation (arXiv 2108.12409) */
    norm_kind norm;
    norm_place norms;
    head_norm head_norm;
    residual_kind residual;
    activation activation;
    bool ungated;               /* down(act(up x)) instead of down(act(gate x) * up x) */
    bool fused_qkv;             /* one matrix attn_qkv: rows of q, then k, then v */
    bool fused_gate_up;         /* one matrix ffn_up: rows of gate, then up */
    bool scaled_embedding;      /* times sqrt(n_embd) */
    bool attention_sinks;       /* a learned logit per head that takes weight and gives no value */
    bool has_rope_factors;      /* may carry rope_freqs.weight */
    bool has_long_factors;      /* may carry rope_factors_long.weight and rope_factors_short.weight (arXiv 2402.13753) */
    bool has_native_window;     /* key attention.sliding_window, if there, holds for every layer, or as the next row says */
    int32_t window_period;      /* every such layer sees everything, the others a window; 0: all have the window */
    int32_t rope_period;        /* every such layer has no rotation; 0: all have one */
    double window_theta;        /* rotary base of layers with a window; 0: that of the others */
    bool yarn_untruncated;      /* the YaRN ramp begins and ends between pairs */
    expert_weighting experts;   /* where key expert_count is there */
    bool shared_expert;         /* with a gate of its own */
    const char *ffn_norm_name;  /* NULL: "ffn_norm" */
    int32_t plain_scale_layers; /* a model of so many layers scales its logits by 1 / sqrt(n_embd / n_heads); 0: none does */
} architecture;

enum { SPEC_MAX_LAYERS = 1024, SPEC_MAX_VOCAB = 4194304, SPEC_MAX_EXPERTS = 1024 };

enum { LAYER_WINDOWED = 1, LAYER_UNROTATED = 2 };

typedef struct model_spec {
    const architecture *arch;
    int64_t n_layers;
    int64_t n_embd;
    int64_t n_heads;
    int64_t n_kv_heads;
    int64_t head_dim;
    int64_t n_rot;          /* values of a head that turn */
    int64_t n_ff;           /* of a dense layer; 0: all layers have experts alone */
    int64_t n_experts;      /* 0: a dense model */
    int64_t n_experts_used; /* of each token */
    int64_t n_ff_expert;
    int64_t n_ff_shared; /* of the shared expert, 0: none */
    int64_t n_vocab;     /* rows of the embedding */
    int64_t trained_context;
    int64_t native_window; /* of layers that are LAYER_WINDOWED; 0: none is */
    uint8_t layer_flags[SPEC_MAX_LAYERS];
    bool parallel; /* residual */
    bool gated;    /* feed-forward */
    float norm_eps;
    float attention_scale;   /* of q k */
    float attention_softcap; /* logits become cap * tanh(logit / cap); 0: they stay */
    float output_softcap;
    float embedding_scale;
    float clamp_qkv;         /* 0: unbounded */
    float alibi_max_bias;    /* 8: slopes from 2^-8/n to 2^-8 (arXiv 2108.12409) */
    rope_params rope;        /* factors are filled in by bind */
    rope_params rope_window; /* of layers with a window, where the family has another base there */
    rope_params rope_long;   /* for windows longer than rope.original_context, where the file has factors for them */
    bool has_rope_window, has_rope_long;
} model_spec;

/* Every number is in the range of its kind and consistent with the others; shapes of tensors are bind's to check. */
lmi_status model_spec_read(const gguf *file, model_spec *spec, lmi_error *error);

#endif
