/* Names of tensors -> weights, every shape checked against the hyper-parameters. Data stays where it is, in the file. */
#ifndef LMI_MODEL_BIND_H
#define LMI_MODEL_BIND_H

#include "base/arena.h"
#include "model/spec.h"

typedef struct weight {
    const void *data; /* [rows][row_bytes], blocks of the type; of experts [n_experts][rows][row_bytes] */
    const quant_info *type;
    int64_t rows, cols;
    size_t row_bytes;
    const float *bias; /* [rows], or [n_experts][rows]; NULL: none */
} weight;

typedef struct norm_weights {
    const float *scale, *bias; /* [width]; scale NULL: no norm, bias NULL: no bias */
} norm_weights;

typedef struct layer_weights {
    norm_weights attention_norm, ffn_norm;           /* on a block's input; scale NULL: none */
    norm_weights attention_post_norm, ffn_post_norm; /* on its output; scale NULL: none */
    const float *q_norm, *k_norm;                    /* [head_dim], or [n_heads * head_dim], [n_kv_heads * head_dim]; or NULL */
    const float *sink_logits;                        /* [n_heads], or NULL */
    weight q, k, v;                                  /* [n_heads * head_dim][n_embd], k and v [n_kv_heads * head_dim][n_embd] */
    weight o;                                        /* [n_embd][n_heads * head_dim] */
    weight gate, up;                                 /* [n_ff][n_embd]; of a shared expert [n_ff_shared][n_embd] */
    weight down;                                     /* [n_embd][n_ff] or [n_embd][n_ff_shared] */
    weight router;                                   /* [n_experts][n_embd] */
    weight gates, ups;                               /* [n_experts][n_ff_expert][n_embd] */
    weight downs;                                    /* [n_experts][n_embd][n_ff_expert] */
    weight shared_gate;                              /* [1][n_embd]: how much of the shared expert */
} layer_weights;

typedef struct model_weights {
    weight embedding;         /* [n_vocab][n_embd] */
    norm_weights output_norm; /* [n_embd] */
    weight output;            /* [n_vocab][n_embd]; the embedding itself where they are tied */
    layer_weights *layers;    /* [n_layers] */
    uint64_t n_bytes;         /* of all tensors */
    uint64_t n_parameters;
    uint64_t n_bytes_active, n_parameters_active; /* of what one token reads: less the experts it does not choose */
} model_weights;

/* Also fills spec->n_vocab and the factors of the rotary tables. A tensor that the architecture does not know is refused: running without
 * it would give wrong text. */
lmi_status model_bind(const gguf *file, model_spec *spec, arena *memory, model_weights *weights, lmi_error *error);

#endif
