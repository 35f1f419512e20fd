/* The forward pass as a list of fused steps: the only description of it. Backends run steps; they know nothing else.
 *
 * For each token row x [n_embd], with f the activation and norms where the family has them:
 *   EMBED         x = embedding[token] * embedding_scale
 *   per layer     LINEAR        q, k, v = W norm(x)
 *                 ATTEND        a = Λ-attention of the rotated q over the layer's context, into which k, v are stored
 *                 LINEAR_ADD    x += Wo a                    (or, with a norm on the block's output, LINEAR and ADD_NORM)
 *                 GATED         h = f(Wgate norm(x)) * (Wup norm(x)), or f(Wup norm(x))
 *                 LINEAR_ADD    x += Wdown h                 (likewise)
 *   or, parallel  LINEAR, ATTEND and GATED all on the same x, then two LINEAR_ADD
 *   or, experts   LINEAR        r = Wrouter norm(x)
 *                 ROUTE         the experts of the token and their weights, from r
 *                 EXPERTS_GATED e = GATED of each chosen expert
 *                 EXPERTS_ADD   x += sum of weight * Wdown e
 *   LINEAR        logits = Wout norm(x), for the rows that are asked for
 * A shared expert is a GATED and a LINEAR_ADD whose sum is multiplied by a sigmoid. */
#ifndef LMI_MODEL_STEPS_H
#define LMI_MODEL_STEPS_H

#include "model/bind.h"

typedef enum step_kind {
    STEP_EMBED,
    STEP_LINEAR,
    STEP_ATTEND,
    STEP_LINEAR_ADD,
    STEP_GATED,
    STEP_ADD_NORM, /* out += norm(in) */
    STEP_ROUTE,
    STEP_EXPERTS_GATED,
    STEP_EXPERTS_ADD
} step_kind;

typedef enum step_buffer {                /* rows of float32, one per token of the chunk */
                           BUFFER_X,      /* [n_embd] the residual stream */
                           BUFFER_Q,      /* [n_heads * head_dim] */
                           BUFFER_K,      /* [n_kv_heads * head_dim] */
                           BUFFER_V,      /* [n_kv_heads * head_dim] */
                           BUFFER_A,      /* [n_heads * head_dim] */
                           BUFFER_H,      /* [n_ff] or [n_ff_shared] */
                           BUFFER_D,      /* [n_embd] what a block adds, before its norm */
                           BUFFER_R,      /* [n_experts] the router's logits */
                           BUFFER_S,      /* [1] the shared expert's gate */
                           BUFFER_E,      /* [n_experts_used][n_ff_expert] */
                           BUFFER_LOGITS, /* [n_vocab], only for the rows that are asked for */
                           BUFFER_COUNT
} step_buffer;

enum { STEP_MAX_OUTPUTS = 3 };

typedef struct step {
    step_kind kind;
    int32_t layer; /* ATTEND: whose context */
    step_buffer in;
    const norm_weights *norm; /* [width of in], applied before the weights; NULL: none. ADD_NORM: the norm */
    int32_t n_outputs;
    const weight *w[STEP_MAX_OUTPUTS];
    step_buffer out[STEP_MAX_OUTPUTS]; /* GATED: w = gate, up, or up alone; one output */
    const layer_weights *attention;    /* ATTEND: norms of heads, sink logits */
    bool gated_by_s;                   /* LINEAR_ADD: times sigmoid of BUFFER_S */
    float clamp;                       /* LINEAR: outputs are bounded to -clamp .. clamp; 0: not */
    float softcap;                     /* LINEAR: outputs become cap * tanh(output / cap); 0: they stay */
} step;

/* Width of a buffer's rows; 0 for those that the model does not use. */
int64_t step_buffer_width(const model_spec *spec, step_buffer buffer);

/* Taken from `memory`. NULL if there is no memory. */
const step *model_steps(const model_spec *spec, const model_weights *weights, arena *memory, int64_t *n_steps);

#endif
