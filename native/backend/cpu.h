/* Inside the CPU backend: shared by cpu.c (memory, linear steps) and cpu_attend.c (the attention step). */
#ifndef LMI_BACKEND_CPU_H
#define LMI_BACKEND_CPU_H

#include "backend/backend.h"

enum {
    ATTEND_SEGMENT = 512, /* slots: decode attention is cut here and merged in order, whoever computes what */
    ATTEND_BLOCK = 64     /* tokens of a prefill attention unit */
};

typedef struct cpu_layer {
    kv_bank *rings; /* [n_kv_heads] */
    kv_bank *sinks; /* [n_kv_heads], or NULL */
} cpu_layer;

/* Each worker's own memory; nothing in it outlives a piece but the packed input of the current step (`epoch`). */
typedef struct cpu_worker {
    float *row;                 /* [widest input]: after the norm */
    uint8_t *packed[ACT_KINDS]; /* one packed row */
    void *matmul_scratch;
    float *q, *q_sink; /* [ATTEND_BLOCK * group][head_dim] */
    float *m, *z;      /* [ATTEND_BLOCK * group] */
    float *o;          /* [ATTEND_BLOCK * group][head_dim] */
    float *key;        /* [head_dim] */
    void *attend_scratch;
    uint64_t epoch;
} cpu_worker;

/* What a segment of decode attention leaves for the merge. */
typedef struct cpu_partial {
    float *m, *z; /* [group] */
    float *o;     /* [group][head_dim] */
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
    float *up;                    /* [chunk][n_ff] */
    float *delta;                 /* [chunk][n_embd] */
    uint8_t *packed[ACT_KINDS];   /* [chunk] packed rows; NULL if the model never wants the kind */
    size_t packed_stride[ACT_KINDS];
    float *turn;           /* [chunk][n_rot/2][2]: cos, sin at each token's position */
    float *turn_sink;      /* the same for queries over sinks: one row, or [chunk] where the placement is contiguous */
    float *turn_sink_key;  /* the same for keys that become sinks */
    int64_t n_segments;    /* of the largest layer: sinks, then ring */
    cpu_partial *partials; /* [n_kv_heads][n_segments] */
    atomic_int *arrived;   /* [n_kv_heads] segments done */

    /* the step in progress, for the jobs */
    const backend_chunk *chunk;
    const step *step;
    int64_t first_row, n_rows; /* rows of the input that the step works on */
    int64_t cut;               /* weight rows of a piece */
    uint64_t epoch;
};

void cpu_attend(backend_context *c);

#endif
