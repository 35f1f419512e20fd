/* Inside the host side of the CUDA backend: weights.c (what a model has on the device), context.c (memory of a session), kept.c (what it
 * keeps of the middle), run.c (steps as launches), steer.c (rows after the last norm), entry.c (the door of the library). */
#ifndef LMI_CUDA_INTERNAL_H
#define LMI_CUDA_INTERNAL_H

#include "backend/recall_store.h"
#include "cuda/launch.h"

/* A step's tables on the device. */
typedef struct cuda_step {
    cuda_weight w[STEP_MAX_OUTPUTS];
    cuda_norm norm;
    const float *q_norm, *k_norm, *sink_logits; /* ATTEND */
} cuda_step;

/* What all sessions of a model share: one block of device memory with every weight that the model's steps name, once. */
typedef struct cuda_model {
    device_stream *stream;
    void *memory;
    uint64_t bytes;
    cuda_step *steps;    /* [n_steps] */
    const float *slopes; /* [n_heads] of ALiBi, or NULL */
} cuda_model;

uint64_t cuda_weight_bytes(const backend_model *model);
lmi_status cuda_upload(backend_model *model, const backend_upload *how, lmi_error *error);
void cuda_release(backend_model *model);
double cuda_read_speed(const backend_model *model);

/* Rows of logits that are computed at a time; more are downloaded in turn. */
enum { CUDA_LOGITS_ROWS = 64 };

/* What the host and a graph of one token tell each other. While one of two graphs runs, the host may use what is the other's. */
typedef struct cuda_one {
    int32_t token;    /* to be read; -1: the one that was drawn */
    draw_order order; /* how the graph draws from its candidates */
    int32_t drawn;    /* which was drawn */
    logit_candidates candidates;
} cuda_one;

enum { CUDA_SLOTS = 2 };

/* Pinned host memory of a session: what the host writes for the device and the device for the host. */
typedef struct cuda_mailbox {
    cuda_control control;
    cuda_one one[CUDA_SLOTS];
} cuda_mailbox;

/* What is kept of the middle; kind LMI_RECALL_NONE: nothing. */
typedef struct cuda_kept {
    recall_store store; /* its tables and banks: pinned */
    cuda_recall args;   /* of the first layer that recalls */
    uint16_t *boxes;    /* [n_shelves] trees */
    float *turn;
    int64_t *now, *number;
    int64_t *staged_now; /* pinned; blocks.slot are its last ones */
    bool loaded;         /* a state, whose boxes are not made yet */
} cuda_kept;

struct backend_context {
    const backend_model *model;
    const cuda_model *weights;
    context_shape shape;
    device_stream *stream;
    void *memory, *banks, *pinned;
    uint64_t bank_bytes;

    uint8_t **layers; /* [n_layers] a layer's banks, from model->layer0 on */
    rope_table *ropes[MAX_ROPES];
    const rope_table *rope_of[MAX_ROPES]; /* the host's, to tell them apart */
    cuda_turns turns[MAX_ROPES];
    int32_t n_turns;
    float *buffers[BUFFER_COUNT]; /* [chunk][width]; BUFFER_LOGITS [logits_rows][n_vocab] */
    int64_t logits_rows;
    int32_t *expert; /* [chunk][n_experts_used] */
    float *share;    /* the same */
    float *parts;
    uint32_t *arrived;
    void *work, *choose_work;
    cuda_control *control;
    int32_t *tokens; /* [chunk] */

    cuda_kept kept;

    cuda_mailbox *mailbox;  /* pinned */
    int32_t *staged_tokens; /* [chunk] pinned */
    float *staged;          /* pinned: [staged_values] hidden states, logits, saved states on their way */
    uint64_t staged_values;
    int64_t chosen_row;     /* of the logits, whose candidates are in the mailbox; -1: none */
    cuda_control on_device; /* what the control block holds after what is queued */
    /* One token with its logits, captured when the session was opened, for each slot: its logits are row `slot` of the buffer. */
    device_graph *one[CUDA_SLOTS];     /* the second is NULL where runs_ahead is not set */
    device_graph *steered[CUDA_SLOTS]; /* the same with steered logits; NULL: the session has room for none */
    device_mark *mark[CUDA_SLOTS];     /* the slot's graph is done */
    bool runs_ahead;                   /* the session can */
    int slot;                          /* of the last run's logits; 0 if that was no graph */
    bool ahead;                        /* the other slot's graph is queued, for the token that this one's drew */
    int64_t ahead_steer;               /* version of the factors it was queued with; 0: none */

    float *steer_down, *steer_up; /* [room][n_embd], [n_embd][room]: see cuda_steer_room */
    int64_t steer_version;        /* of the factors that are there; 0: none */
    float *normed;                /* [cuda_normed_rows][n_embd] after the last norm */
    float *coordinates;           /* [CUDA_ROWWISE_TOKENS][room] of them, along the steers */
};

/* What the choice of kernels depends on. */
typedef struct cuda_pass {
    int32_t n_tokens;
    int64_t first; /* index of the first token; a captured pass is of one token, wherever it is */
    int slot;      /* of a captured pass, else 0 */
} cuda_pass;

/* What is kept of the middle, in kept.c: whether it can be; its sizes; memory by `take` (NULL: counted) and in one piece that cuda_kept_bytes
 * tells; what a layer's attention is given; the slots of a chunk, queued before its steps. Not to be called while a chunk is under way:
 * what it chooses decides what gives way next. */
typedef void *cuda_take(void *taker, uint64_t n, uint64_t size);
lmi_status cuda_kept_check(const context_shape *shape, lmi_error *error);
void cuda_kept_describe(backend_context *c);
void cuda_kept_take(backend_context *c, cuda_take *take, void *taker);
void cuda_kept_take_pinned(backend_context *c, cuda_take *take, void *taker);
uint64_t cuda_kept_bytes(const backend_context *c);
lmi_status cuda_kept_open(backend_context *c, lmi_error *error);
void cuda_kept_close(backend_context *c);
cuda_recall cuda_kept_layer(const backend_context *c, int64_t layer);
lmi_status cuda_kept_begin(backend_context *c, const backend_chunk *chunk, lmi_error *error);

lmi_status cuda_plan(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error);
lmi_status cuda_open(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                     lmi_error *error);
void cuda_close(backend_context *c);
lmi_status cuda_run(backend_context *c, const backend_chunk *chunk, lmi_error *error);
uint64_t cuda_context_bytes(const backend_context *c);
lmi_status cuda_context_get(backend_context *c, uint64_t offset, size_t n, void *bytes, lmi_error *error);
lmi_status cuda_context_put(backend_context *c, uint64_t offset, size_t n, const void *bytes, lmi_error *error);
void cuda_recall_counts(const backend_context *c, int64_t n_read, int64_t *n_kept, int64_t *n_dropped);
uint64_t cuda_recall_bytes(const backend_context *c);
uint64_t cuda_recall_most(const backend_context *c);
void cuda_recall_get(backend_context *c, uint64_t offset, size_t n, void *bytes);
void cuda_recall_put(backend_context *c, uint64_t offset, size_t n, const void *bytes);
lmi_status cuda_recall_check(const backend_context *c, const void *bytes, size_t size, lmi_error *error);
lmi_status cuda_fetch_logits(backend_context *c, int64_t row, float *values, lmi_error *error);
lmi_status cuda_candidates(backend_context *c, int64_t row, logit_candidates *out, lmi_error *error);
lmi_status cuda_capture(backend_context *c, lmi_error *error);
lmi_status cuda_download_rows(backend_context *c, float *to, const float *from, int64_t n_rows, int64_t width,
                              lmi_error *error);

static inline bool cuda_gives_logits(const step *s) { return s->kind == STEP_LINEAR && s->out[0] == BUFFER_LOGITS; }

int64_t cuda_steer_room(const context_shape *shape);  /* directions of steers that there is room for */
int64_t cuda_normed_rows(const context_shape *shape); /* rows after the last norm at a time */
/* Factors go to the device if others are there. Nothing of the last chunk is still queued. */
lmi_status cuda_put_steer(backend_context *c, const steer_factors *f, lmi_error *error);
/* c->normed becomes n_rows steered rows of the chunk, at most cuda_normed_rows, from row0 on. */
void cuda_steer(backend_context *c, int64_t row0, int64_t n_rows);
lmi_status cuda_fetch_hidden(backend_context *c, const backend_chunk *chunk, lmi_error *error);

#endif
