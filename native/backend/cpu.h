/* Inside the CPU backend: shared by cpu.c (memory, linear steps) and cpu_attend.c (the attention step). */
#ifndef LMI_BACKEND_CPU_H
#define LMI_BACKEND_CPU_H

#include "backend/recall_store.h"
#include "base/spill.h"
#include "lambda/boxes.h"

enum {
    ATTEND_SEGMENT = 512, /* slots: decode attention is cut here and merged in order, whoever computes what */
    ATTEND_BLOCK = 64     /* tokens of a prefill attention unit */
};

/* cos and sin for the tokens of the chunk, once for all layers that turn alike. */
typedef struct turn_set {
    const rope_table *rope;
    const layer_context *with_sinks; /* a layer of the set that has sinks, or NULL */
    float *turn;                     /* [chunk][n_rot/2][2]: at each token's position */
    float *turn_sink;                /* the same for queries over sinks: one row where the placement is ceiling, else [chunk] */
    float *turn_sink_key;            /* the same for keys that become sinks */
    bool recalls;                    /* a layer of the set does */
    float *turn_recall;              /* one row, for queries over what is recalled; NULL: none does */
    float *turn_back;                /* [chunk][n_rot/2][2]: what takes the rotation off keys that leave the window */
} turn_set;

typedef struct cpu_layer {
    kv_bank *rings;        /* [n_kv_heads] */
    kv_bank *sinks;        /* [n_kv_heads], or NULL */
    const turn_set *turns; /* NULL: no rotation */
    int64_t shelf;         /* of its first kv head in what is kept of the middle; -1: it recalls nothing */
} cpu_layer;

/* What is kept of the middle. */
typedef struct cpu_recall {
    recall_store kept;
    spill store;  /* the memory of kept.banks */
    boxes *boxes; /* BLOCKS: [n_shelves], what blocks are found by; of those that are not whole: empty */
} cpu_recall;

/* Which experts the tokens of the chunk go to. A slot is a (token, chosen expert); slots lie in order of experts. */
typedef struct cpu_routes {
    int32_t *expert;            /* [chunk][n_experts_used] */
    float *share;               /* [chunk][n_experts_used] its weight in the sum */
    int32_t *slot;              /* [chunk][n_experts_used] */
    int32_t *first_slot;        /* [n_experts + 1] */
    int32_t *token;             /* [slots] */
    float *slot_share;          /* [slots] */
    float *odds;                /* [chunk][n_experts] */
    uint8_t *packed[ACT_KINDS]; /* [slots] packed rows; NULL if experts never want the kind */
} cpu_routes;

/* The most weight rows of a piece: for up to MATMUL_ROWWISE_TOKENS tokens, and for more. */
enum { CUT_OF_FEW = 512, CUT_OF_MANY = 128 };

/* Each worker's own memory; nothing in it outlives a piece but the packed input of the current step (`epoch`). */
typedef struct cpu_worker {
    float *row;                 /* [widest input]: after the norm */
    uint8_t *packed[ACT_KINDS]; /* one packed row */
    float *part[2]; /* [tokens][rows of the piece]: results, and a gate's other half, close together until they are done */
    void *matmul_scratch;
    float *q, *q_sink; /* [ATTEND_BLOCK * group][head_dim] */
    float *m, *z;      /* [ATTEND_BLOCK * group] */
    float *o;          /* [ATTEND_BLOCK * group][head_dim] */
    float *key;        /* [2][head_dim]: raw, rotated */
    pick *picks;       /* [K or N] best so far */
    pick *beams;       /* BLOCKS: two of what a search keeps at a level */
    void *few;         /* TOPK: a bank of K tokens */
    float *look;       /* [head_dim]: sum of queries */
    float *box;        /* BLOCKS: [2][head_dim]: largest, smallest of the keys of a block */
    void *attend_scratch;
    uint64_t epoch;
} cpu_worker;

/* What a segment of decode attention leaves for the merge: rows of the chunk's tokens, group by group. */
typedef struct cpu_partial {
    float *m, *z; /* [n_exact][group] */
    float *o;     /* [n_exact][group][head_dim] */
} cpu_partial;

struct backend_context {
    const backend_model *model;
    context_shape shape;
    uint8_t *context; /* all banks */
    size_t context_bytes;
    cpu_layer *layers;
    cpu_worker *workers;
    int n_workers;
    int64_t group; /* query heads of a kv head */

    float *buffers[BUFFER_COUNT]; /* [chunk][width]; BUFFER_LOGITS is the caller's */
    uint8_t *packed[ACT_KINDS];   /* [chunk] packed rows; NULL if the model never wants the kind */
    size_t packed_stride[ACT_KINDS];
    turn_set turns[MAX_ROPES];
    int n_turns;
    float *slopes; /* [n_heads] of ALiBi, or NULL */
    cpu_routes routes;
    float *steer_work;     /* cpu_steer_floats of them, or NULL */
    input_sums *sums;      /* [n_steps], or NULL: importance is not asked for */
    cpu_recall *recall;    /* NULL: nothing is kept of the middle */
    int64_t n_segments;    /* of the largest layer: sinks, then ring, then what is recalled */
    cpu_partial *partials; /* [n_kv_heads][n_segments] */
    atomic_int *arrived;   /* [n_kv_heads] segments done */

    /* the step in progress, for the jobs */
    const backend_chunk *chunk;
    const step *step;
    int64_t first_row, n_rows; /* rows of the input that the step works on */
    int64_t cut;               /* weight rows of a piece */
    uint64_t epoch;
    const float *instead; /* rows that stand for the normed input of the step; NULL: none do */
    int64_t instead_stride;
};

/* Sums of squares of inputs, in cpu_importance.c: how many rows of sums a step has and how wide they are, and one step's share. */
int64_t cpu_sums_of(const backend_model *model, const step *s, int64_t *width);
void cpu_add_importance(backend_context *c);

/* Of the output step, in cpu_steer.c: floats of work space, rows after the norm for chunk->last_hidden, and chunk->steer. */
uint64_t cpu_steer_floats(const context_shape *shape, int64_t n_embd);
void cpu_keep_hidden(backend_context *c);
void cpu_steer(backend_context *c);

/* The steps of cpu_attend.c and cpu_experts.c. */
void cpu_attend(backend_context *c);
void cpu_route(backend_context *c);
void cpu_experts(backend_context *c);

/* Queries of the group for n tokens of the chunk, in cpu_attend.c: q[t * group + r], scaled, all turned alike (NULL: not). */
void cpu_load_queries(const backend_context *c, int64_t token, int64_t n, int64_t kv_head, cpu_worker *worker,
                      const float *turn, float *q);

/* What is kept of the middle, in cpu_recall.c. Memory: `take` counts or takes as in cpu.c. Then the chunk: before its steps; of one
 * kv head of the step's layer: what leaves the window is stored (keys of the chunk are in the ring by then), the tokens
 * token .. token + n - 1 attend (m, z, o as attend_kernel has them, q: room for their queries). After its steps, or where it was stopped: SURPRISE stores. */
typedef void *cpu_take(void *taker, uint64_t n, uint64_t size);
void cpu_recall_take(backend_context *c, cpu_take *take, void *taker);
void cpu_recall_take_worker(const backend_context *c, cpu_worker *worker, cpu_take *take, void *taker);
lmi_status cpu_recall_begin(backend_context *c, lmi_error *error);
bool cpu_recall_sees(const backend_context *c, int64_t layer,
                     int64_t n_read); /* whether anything has left its window by then */
void cpu_recall_store(backend_context *c, int64_t kv_head, cpu_worker *worker);
void cpu_recall_attend(backend_context *c, int64_t token, int64_t n, int64_t kv_head, cpu_worker *worker, float *q, float *m,
                       float *z, float *o);
void cpu_recall_end(backend_context *c, bool finished);

/* The rest of backend.h's recall. */
void cpu_recall_surprise(backend_context *c, int64_t first, const float *surprisal, int64_t n);
void cpu_recall_counts(const backend_context *c, int64_t n_read, int64_t *kept, int64_t *dropped);
uint64_t cpu_recall_bytes(const backend_context *c);
uint64_t cpu_recall_most(const backend_context *c);
void cpu_recall_get(backend_context *c, uint64_t offset, size_t n, void *bytes);
void cpu_recall_put(backend_context *c, uint64_t offset, size_t n, const void *bytes);
lmi_status cpu_recall_check(const backend_context *c, const void *bytes, size_t size, lmi_error *error);

/* For them, in cpu.c: the step's norm, or a copy; the packed kind that a weight wants; a row of the step's input; weight rows of
 * a piece for `n_tokens` rows of activations. */
void cpu_norm(const backend_context *c, const norm_weights *norm, const float *x, int64_t width, float *y);
act_kind cpu_kind_of(const backend_context *c, const weight *w);
const float *cpu_input_row(const backend_context *c, int64_t row);
int64_t cpu_choose_cut(const backend_context *c, int64_t n_weight_rows, size_t row_bytes, int64_t n_tokens);
/* y[t * n_rows + r] = W x + bias for row row0 + r of `w` and n_tokens packed rows. */
void cpu_multiply(const backend_context *c, const weight *w, cpu_worker *worker, const uint8_t *packed, int64_t n_tokens,
                  int64_t row0, int64_t n_rows, float *y);

#endif
