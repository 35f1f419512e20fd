/* What a device must do: hold a session's context and work space, and run the steps of the model over a chunk of tokens.
 *
 * A backend knows steps, weights and the shape of the context; it knows no architecture and no file format. It may run a part of the
 * model: some layers one after the other, from a hidden state that another backend left, or to one that another goes on from. */
#ifndef LMI_BACKEND_BACKEND_H
#define LMI_BACKEND_BACKEND_H

#include <stdatomic.h>
#include <stdint.h>

#include "backend/candidates.h"
#include "base/arena.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "lambda/middle.h"
#include "model/steps.h"

/* What all sessions of a model share: the whole of it, or a part. A part with the first layer begins with EMBED; one with the last
 * layer ends with the logits. */
typedef struct backend_model {
    const model_spec *spec;
    const step *steps; /* [n_steps] of this part */
    int64_t n_steps;
    int64_t layer0, layer1; /* its layers: layer0 <= i < layer1 */
    const kernels *kernels;
    pool *workers;
    void *weights; /* the backend's own: a device's copy of what the steps name, made by upload; a split's halves; or NULL */
} backend_model;

typedef struct backend_upload {
    int32_t device_index;
    lmi_progress *progress; /* NULL: nobody watches */
    void *context;          /* of progress */
    /* Told of each part of the model's memory that was copied, from when on it is read no more. */
    void (*copied)(void *owner, const void *bytes, uint64_t n);
    void *owner; /* of copied */
} backend_upload;

/* The Λ buffer of one layer: a ring of `capacity` slots that shows each token the last `window` tokens, and a store of the
 * first `sinks` tokens (0 in layers with a native window). All layers with sinks have the same window and rotation. */
typedef struct layer_context {
    int64_t window, sinks, capacity;
    const rope_table *rope; /* how its queries and keys turn; NULL: not at all */
    bool recalls;           /* its tokens see what is kept of the middle; all such layers have the same window and rotation */
} layer_context;

enum { MAX_ROPES = 2 }; /* different ones among the layers of a session */

typedef struct context_shape {
    const layer_context *layers; /* [n_layers] of the whole model; a part holds those of its own */
    lmi_kv_type kv_type;
    lmi_placement placement;
    int64_t chunk;      /* most tokens in one run */
    int64_t n_exact;    /* runs of so many tokens give the very bits that single tokens give */
    int64_t n_logits;   /* most rows of logits that one run is asked for */
    bool importance;    /* keep sums of what weights are multiplied with */
    bool last_hidden;   /* some run will ask for rows after the last norm */
    int64_t steer_rank; /* most directions of the steers of a run; 0: no run has any */
    bool ahead;         /* some run will have `next` */
    middle_shape middle;
    const char *recall_folder; /* of what is kept of the middle; NULL: memory. Not looked at once the context is open */
} context_shape;

/* Where the sinks keep their order, queries over them turn by their own index, and from here on by this one. */
static inline int64_t furthest_sink_query(const context_shape *shape, const layer_context *layer) {
    return shape->placement == LMI_PLACEMENT_TRUE ? INT64_MAX : layer->window + layer->sinks - 1;
}

/* Of one step: squares of its input (after the norm), summed over rows. Experts have sums of their own. */
typedef struct input_sums {
    int64_t n, width;
    double *squares; /* [n][width] */
    int64_t *counts; /* [n] rows that went into them */
} input_sums;

typedef struct backend_bytes {
    uint64_t context, work;               /* of the host: what the CPU holds, and memory that a device exchanges with it */
    uint64_t device_context, device_work; /* of the device */
    uint64_t recall;                      /* of the host: what is kept of the middle, in memory or in a file */
} backend_bytes;

typedef struct backend_context backend_context; /* one session's part, each backend's own */

/* c + sum over i of (c . down_i) up_i for a row c after the last norm: what steers come to, before the output matrix (LM-Steer,
 * arXiv 2305.12798). Factors include every scale. */
typedef struct steer_factors {
    int64_t rank;
    const float *down; /* [rank][n_embd] */
    const float *up;   /* [n_embd][rank] */
    int64_t version;   /* from 1 on; another one whenever a number of these is another */
} steer_factors;

/* A chunk: token i has index first + i in the text (it decides slots and visibility) and position start + first + i (it
 * decides the rotation). Logits [n_logits][n_vocab] are those of the last n_logits tokens, 0 <= n_logits <= n_tokens. */
typedef struct backend_chunk {
    const int32_t *tokens;
    int64_t n_tokens;
    int64_t first;
    int64_t start;
    const float *hidden_in; /* [n_tokens][n_embd], what the steps start from; NULL: they begin with EMBED */
    float *hidden_out;      /* the same after the last step, or NULL: not wanted */
    float *logits;          /* NULL where the backend keeps them for fetch_logits and candidates */
    int64_t n_logits;
    float *last_hidden; /* [n_last_hidden][n_embd]: rows of the last tokens after the last norm, not steered */
    int64_t n_last_hidden;
    const steer_factors *steer; /* of the logits; NULL: they are the model's own */
    /* [2], with one token and logits NULL, where nothing else is asked for: how the token after it will be drawn, and the one after that. A
     * backend that has runs_ahead may draw the first itself and run it, unasked: if the next chunk is that very token at that very place, it is
     * there already; if it is another one, nothing has happened but that the ring holds a token more than was read. NULL: it does not. */
    const draw_order *next;
    const atomic_int *cancel; /* looked at between steps: non-zero stops with LMI_CANCELLED */
} backend_chunk;

/* Functions below the line are NULL where a backend has no use for them. Contexts of one model live in different threads: whoever calls
 * run, fetch_logits or candidates has the lock of the pool; the others may be called for one context while another runs. */
typedef struct backend {
    const char *name;
    bool runs_ahead; /* it looks at `next` of a chunk */
    /* LMI_DEVICE or LMI_UNSUPPORTED if this backend cannot run these steps or keep a context of this shape. */
    lmi_status (*plan)(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error);
    /* All memory of the host comes from `memory`; nothing is taken later. `model` and `shape->layers` must live as long as the context. */
    lmi_status (*open)(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                       lmi_error *error);
    /* Logits are its last step: if it fails or is cancelled, those of the run before still stand. */
    lmi_status (*run)(backend_context *context, const backend_chunk *chunk, lmi_error *error);
    /* Keys and values of the part's layers, one layer after the other, as the CPU lays them out: what a saved state holds, whoever ran
     * it. Any range of bytes may be asked for; writes come in order. */
    uint64_t (*context_bytes)(const backend_context *context);
    lmi_status (*context_get)(backend_context *context, uint64_t offset, size_t n, void *bytes, lmi_error *error);
    lmi_status (*context_put)(backend_context *context, uint64_t offset, size_t n, const void *bytes, lmi_error *error);
    /* Bytes of the weights that the steps name, each tensor once, where this backend keeps them. */
    uint64_t (*weight_bytes)(const backend_model *model);
    /* ---- */
    void (*close)(backend_context *context); /* gives back what is not in the arena; before the arena goes */
    /* Of step `i` of the part, since the context was opened; NULL if the shape asked for none or the step has no weights. */
    const input_sums *(*importance)(const backend_context *context, int64_t i);
    /* Of a device: what it is and has free now; LMI_DEVICE with cause and remedy if it cannot be used. */
    lmi_status (*probe)(int32_t index, lmi_device_info *info, lmi_error *error);
    /* Copies the weights that the steps name: model->weights, which release gives back. Before any context is opened; the
     * caller has the lock of the pool. */
    lmi_status (*upload)(backend_model *model, const backend_upload *how, lmi_error *error);
    void (*release)(backend_model *model);
    /* Bytes a second at which the device reads what upload copied, doing nothing with it; 0 if it cannot say. */
    double (*read_speed)(const backend_model *model);
    /* Of the last run that had logits NULL: row `row` of n_logits, in full, or what is needed to draw from it. */
    lmi_status (*fetch_logits)(backend_context *context, int64_t row, float *logits, lmi_error *error);
    lmi_status (*candidates)(backend_context *context, int64_t row, logit_candidates *out, lmi_error *error);
    /* What is kept of the middle, for shapes that keep something. Surprisals of the last tokens read, in nats: n of them from the token
     * with that index on. How many tokens are kept, and how many were dropped for room, after n_read tokens. */
    void (*surprise)(backend_context *context, int64_t first, const float *surprisal, int64_t n);
    void (*recall_counts)(const backend_context *context, int64_t n_read, int64_t *kept, int64_t *dropped);
    /* As a saved state holds it: `recall_bytes` of it now, at most `recall_most`. What is put must have passed recall_check. */
    uint64_t (*recall_bytes)(const backend_context *context);
    uint64_t (*recall_most)(const backend_context *context);
    void (*recall_get)(backend_context *context, uint64_t offset, size_t n, void *bytes);
    void (*recall_put)(backend_context *context, uint64_t offset, size_t n, const void *bytes);
    lmi_status (*recall_check)(const backend_context *context, const void *bytes, size_t size, lmi_error *error);
} backend;

/* What one slot of the middle takes, of all the layers that recall, in bytes. */
uint64_t recall_slot_bytes(const model_spec *spec, lmi_kv_type type, int64_t n_layers, int64_t block);

extern const backend backend_cpu;

#endif
