/* What a device must do: hold a session's context and work space, and run the steps of the model over a chunk of tokens.
 *
 * A backend knows steps, weights and the shape of the context; it knows no architecture and no file format. */
#ifndef LMI_BACKEND_BACKEND_H
#define LMI_BACKEND_BACKEND_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "model/steps.h"

/* What all sessions of a model share. */
typedef struct backend_model {
    const model_spec *spec;
    const step *steps; /* [n_steps] */
    int64_t n_steps;
    const kernels *kernels;
    pool *workers;
} backend_model;

/* The Λ buffer of one layer: a ring of `capacity` slots that shows each token the last `window` tokens, and a store of the
 * first `sinks` tokens (0 in layers with a native window). All layers with sinks have the same window and rotation. */
typedef struct layer_context {
    int64_t window, sinks, capacity;
    const rope_table *rope; /* how its queries and keys turn; NULL: not at all */
} layer_context;

enum { MAX_ROPES = 2 }; /* different ones among the layers of a session */

typedef struct context_shape {
    const layer_context *layers; /* [n_layers] */
    lmi_kv_type kv_type;
    lmi_placement placement;
    int64_t chunk;   /* most tokens in one run */
    int64_t n_exact; /* runs of so many tokens give the very bits that single tokens give */
    bool importance; /* keep sums of what weights are multiplied with */
} context_shape;

/* Of one step: squares of its input (after the norm), summed over rows. Experts have sums of their own. */
typedef struct input_sums {
    int64_t n, width;
    double *squares; /* [n][width] */
    int64_t *counts; /* [n] rows that went into them */
} input_sums;

typedef struct backend_bytes {
    uint64_t context, work;
} backend_bytes;

typedef struct backend_context backend_context; /* one session's part, each backend's own */

/* A chunk: token i has index first + i in the text (it decides slots and visibility) and position start + first + i (it
 * decides the rotation). Logits [n_logits][n_vocab] are those of the last n_logits tokens, 0 <= n_logits <= n_tokens. */
typedef struct backend_chunk {
    const int32_t *tokens;
    int64_t n_tokens;
    int64_t first;
    int64_t start;
    float *logits;
    int64_t n_logits;
    const atomic_int *cancel; /* looked at between steps: non-zero stops with LMI_CANCELLED */
} backend_chunk;

typedef struct backend {
    const char *name;
    lmi_status (*plan)(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error);
    /* All memory comes from `memory`; nothing is taken later. `shape->layers` must live as long as the context. */
    lmi_status (*open)(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                       lmi_error *error);
    lmi_status (*run)(backend_context *context, const backend_chunk *chunk, lmi_error *error);
    /* The keys and values, as a saved state holds them. */
    void *(*context_memory)(backend_context *context, size_t *size);
    /* Of step `i` of the model, since the context was opened; NULL if the shape asked for none or the step has no weights. */
    const input_sums *(*importance)(const backend_context *context, int64_t i);
} backend;

extern const backend backend_cpu;

#endif
