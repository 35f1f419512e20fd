/* The forward pass as a list of fused steps: the only description of it. Backends run steps; they know nothing else.
 *
 * For each token row x [n_embd]:
 *   EMBED       x = embedding[token]
 *   per layer   LINEAR      q, k, v = W (rms_norm(x))
 *               ATTEND      a = Λ-attention of the rotated q over the layer's context, into which k, v are stored
 *               LINEAR_ADD  x += Wo a
 *               GATED       h = silu(Wgate y) * (Wup y), y = rms_norm(x)
 *               LINEAR_ADD  x += Wdown h
 *   LINEAR      logits = Wout (rms_norm(x)), for the rows that are asked for */
#ifndef LMI_MODEL_STEPS_H
#define LMI_MODEL_STEPS_H

#include "model/bind.h"

typedef enum step_kind { STEP_EMBED, STEP_LINEAR, STEP_ATTEND, STEP_LINEAR_ADD, STEP_GATED } step_kind;

typedef enum step_buffer {                /* rows of float32, one per token of the chunk */
                           BUFFER_X,      /* [n_embd] the residual stream */
                           BUFFER_Q,      /* [n_heads * head_dim] */
                           BUFFER_K,      /* [n_kv_heads * head_dim] */
                           BUFFER_V,      /* [n_kv_heads * head_dim] */
                           BUFFER_A,      /* [n_heads * head_dim] */
                           BUFFER_H,      /* [n_ff] */
                           BUFFER_LOGITS, /* [n_vocab], only for the rows that are asked for */
                           BUFFER_COUNT
} step_buffer;

enum { STEP_MAX_OUTPUTS = 3 };

typedef struct step {
    step_kind kind;
    int32_t layer; /* ATTEND: whose context */
    step_buffer in;
    const float *norm; /* [width of in], applied before the weights; NULL: none */
    int32_t n_outputs;
    const weight *w[STEP_MAX_OUTPUTS];
    step_buffer out[STEP_MAX_OUTPUTS]; /* GATED: w = gate, up; one output */
} step;

/* Width of a buffer's rows. */
int64_t step_buffer_width(const model_spec *spec, step_buffer buffer);

/* Taken from `memory`; *n_steps is 2 + 5 * n_layers. NULL if there is no memory. */
const step *model_steps(const model_spec *spec, const model_weights *weights, arena *memory, int64_t *n_steps);

#endif
