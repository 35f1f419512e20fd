/* Names of tensors -> weights, every shape checked against the hyper-parameters. Data stays where it is, in the file. */
#ifndef LMI_MODEL_BIND_H
#define LMI_MODEL_BIND_H

#include "base/arena.h"
#include "model/spec.h"

typedef struct weight {
    const void *data; /* [rows][row_bytes], blocks of the type */
    const quant_info *type;
    int64_t rows, cols;
    size_t row_bytes;
    const float *bias; /* [rows], or NULL */
} weight;

typedef struct layer_weights {
    const float *attention_norm; /* [n_embd] */
    weight q, k, v;              /* [n_heads * head_dim][n_embd], k and v [n_kv_heads * head_dim][n_embd] */
    weight o;                    /* [n_embd][n_heads * head_dim] */
    const float *ffn_norm;       /* [n_embd] */
    weight gate, up;             /* [n_ff][n_embd] */
    weight down;                 /* [n_embd][n_ff] */
} layer_weights;

typedef struct model_weights {
    weight embedding;          /* [n_vocab][n_embd] */
    const float *output_norm;  /* [n_embd] */
    weight output;             /* [n_vocab][n_embd]; the embedding itself where they are tied */
    layer_weights *layers;     /* [n_layers] */
    const float *rope_factors; /* [n_rot / 2], or NULL */
    uint64_t n_bytes;          /* of all tensors */
    uint64_t n_parameters;
} model_weights;

/* Also fills spec->n_vocab and spec->rope.factors. A tensor that the architecture does not know is refused: running without
 * it would give wrong text. */
lmi_status model_bind(const gguf *file, model_spec *spec, arena *memory, model_weights *weights, lmi_error *error);

#endif
