/* What the host side of the CUDA backend asks of its kernels: one launcher a kernel, its contract here.
 *
 * Plain C: the host side (context.c, run.c) is compiled by the C compiler, kernels (*.cu) by nvcc, or as C++ against the SIMT emulator of
 * tests/native/simt. Pointers in these structs are device memory unless said otherwise; structs themselves are copied at launch.
 * Where the chunk lies in the text is read from the control block, never from a launch parameter, so that a captured graph of one
 * token can be launched again and again. n_tokens is a launch parameter: a graph is captured for n_tokens = 1.
 *
 * Arrays begin at multiples of 16 bytes.
 *
 * Numbers are those of the CPU backend: row-wise kernels (n_tokens <= CUDA_ROWWISE_TOKENS) quantize activations as kernels/activation.h says and
 * their integer dot products are exact; results depend neither on the grid nor on timing: sums are merged in a fixed order. */
#ifndef LMI_CUDA_LAUNCH_H
#define LMI_CUDA_LAUNCH_H

#include "backend/candidates.h"
#include "cuda/device.h"
#include "cuda/planes.h"
#include "kernels/kernels.h"
#include "kernels/kv_tile.h"
#include "lambda/boxes.h"
#include "lambda/rope.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_ROWWISE_TOKENS = 8, CUDA_MAX_OUTPUTS = 3, CUDA_SEGMENT = 256, CUDA_MAX_HEAD_DIM = 256 };

/* Advanced by the last kernel of a chunk. */
typedef struct cuda_control {
    int64_t first; /* index in the text of the chunk's first token */
    int64_t start; /* position = start + first + i */
    int64_t drawn; /* token that cuda_launch_candidates drew last */
} cuda_control;

typedef struct cuda_weight {
    quant_type type;
    int64_t rows, cols; /* of one matrix */
    int64_t n_matrices; /* experts, or 1 */
    const uint8_t *plane[MAX_PLANES];
    const float *bias; /* [n_matrices][rows], or NULL */
} cuda_weight;

typedef enum cuda_norm_kind { CUDA_NORM_NONE, CUDA_NORM_RMS, CUDA_NORM_LAYER } cuda_norm_kind;

typedef struct cuda_norm {
    cuda_norm_kind kind;
    const float *scale, *bias; /* [width]; NULL: 1, 0 */
    float eps;
} cuda_norm;

/* ---- the first kernel of a chunk ---------------------------------------------------------------------------------- */

/* cos and sin of a token's position for one way of turning; see turn_set of backend/cpu.h, which has the same rows. */
typedef struct cuda_turns {
    const rope_table *table; /* device */
    float *turn;             /* [n_tokens][n_rot/2][2] */
    float *turn_sink;        /* the same for queries over sinks: one row where the placement is ceiling, else [n_tokens] */
    float *turn_sink_key;    /* the same for keys that become sinks */
    int64_t window, sinks;   /* of the layers with sinks that turn so; sinks = 0: there are none, the two rows above stay */
    int32_t n_rot;
    bool contiguous;  /* sinks keep their order: the two have a row a token */
    int64_t furthest; /* then: index beyond which queries over sinks do not turn */
} cuda_turns;

/* x[t] = scale * row tokens[t] of the table, where x is not NULL; and the rows of turns. */
typedef struct cuda_begin {
    const cuda_control *control;
    const int32_t *tokens; /* [n_tokens]; may be pinned host memory. -1: the control block's drawn one */
    int32_t n_tokens;
    cuda_weight table;
    float scale;
    float *x; /* [n_tokens][table.cols], or NULL: x came from the CPU */
    cuda_turns turns[2];
    int32_t n_turns;
} cuda_begin;
void cuda_launch_begin(const cuda_begin *args, device_stream *stream);

/* control.first += n_tokens; a kernel of one thread. */
void cuda_launch_advance(cuda_control *control, int32_t n_tokens, device_stream *stream);

/* ---- matrices ----------------------------------------------------------------------------------------------------- */

typedef enum cuda_linear_kind {
    CUDA_STORE, /* y[i] = W[i] x, then clamp and softcap if asked for */
    CUDA_ADD,   /* y += W x, times sigmoid(s[t]) where s is given */
    CUDA_GATED  /* y[0] = f(W[0] x) * (W[1] x), or f(W[0] x) where there is one weight */
} cuda_linear_kind;

/* y[i][t][r] = sum over c of W[i][r][c] * norm(x[t])[c] + bias[i][r], for all rows. */
typedef struct cuda_linear {
    cuda_linear_kind kind;
    activation activation;
    int32_t n_weights, n_tokens;
    cuda_weight w[CUDA_MAX_OUTPUTS]; /* of equal cols; types may differ */
    float *y[CUDA_MAX_OUTPUTS];      /* [n_tokens][rows of w[i]]; GATED: y[0] */
    const float *x;                  /* [n_tokens][cols] */
    cuda_norm norm;
    const float *s;       /* [n_tokens], or NULL */
    float clamp, softcap; /* 0: not */
    /* Experts: row t of x goes to the matrices expert[t][0 .. n_used), NULL where there are none. GATED: y[0] is [n_tokens][n_used][rows] and x
     * [n_tokens][cols]. ADD: x is [n_tokens][n_used][cols], y[0][t] += sum over j of share[t][j] * (W x[t][j] + bias), in order of j. */
    const int32_t *expert;
    const float *share;
    int32_t n_used;
    /* Work space of the tiled kernel, see cuda_tiled_bytes; not used by the row-wise one. */
    void *work;
} cuda_linear;
/* n_tokens <= CUDA_ROWWISE_TOKENS: norm, quantizing and dot products in one kernel. gemv.cu */
void cuda_launch_rowwise(const cuda_linear *args, device_stream *stream);
/* Any n_tokens: norm to f16 rows with a power of two of their own, then tensor cores (mma.sync, f32 accumulators). gemm.cu */
void cuda_launch_tiled(const cuda_linear *args, device_stream *stream);
/* widest_input: of any x, and of the rows that experts add to. */
uint64_t cuda_tiled_bytes(int64_t n_tokens, int64_t widest_input, int64_t n_experts, int64_t n_used);

/* y[t] += norm(x[t]); rows of width. */
void cuda_launch_add_norm(const float *x, float *y, cuda_norm norm, int64_t width, int32_t n_tokens, device_stream *stream);

/* y[t] = norm(x[t]), rows of width: the input that the row-wise product with this norm makes for itself. norm.cu */
void cuda_launch_norm(const float *x, float *y, cuda_norm norm, int64_t width, int32_t n_rows, device_stream *stream);

/* From logits r [n_tokens][n_experts] the n_used largest (the first of equals), in descending order, and their weights: softmax over the
 * chosen ones (normed) or over all. As cpu_route in backend/cpu_experts.c. */
void cuda_launch_route(const float *r, int64_t n_experts, int32_t n_used, bool normed, int32_t *expert, float *share,
                       int32_t n_tokens, device_stream *stream);

/* ---- what is recalled --------------------------------------------------------------------------------------------- */

enum { CUDA_RECALL_TOGETHER = 64 }; /* tokens of a chunk that choose together, as ATTEND_BLOCK of backend/cpu.h */

typedef struct cuda_seen {
    int64_t slot, block; /* where a block lies, and which it is */
} cuda_seen;

/* Of one layer, by the policy BLOCKS of lambda/middle.h, whose words these are; block 0: nothing is kept. Banks and `chosen` are
 * the host's memory, mapped. */
typedef struct cuda_recall {
    int64_t block, n, n_open, distance;
    const rope_table *table; /* takes the rotation off keys that leave the window; NULL: they do not turn */
    const float *turn;       /* [n_rot/2][2] for queries over what is kept, or NULL */
    uint8_t *banks;          /* of slot s and kv head h: banks + s * slot_stride + h * bank_bytes */
    uint64_t slot_stride, bank_bytes;
    const int64_t *now;    /* [1 + n_open] how many slots are in use; the slot of block b, which is open, at 1 + b % n_open */
    const int64_t *number; /* [n_slots] of the block that lies there */
    int64_t *chosen;       /* [n_slots] index of the chunk that last chose it */
    boxes tree;            /* of kv head 0 */
    int64_t tree_values;   /* from a kv head's to the next */
    int64_t most_seen;     /* room of a list: cuda_recall_most_seen of the largest chunk */
    cuda_seen *seen;       /* [tokens / CUDA_RECALL_TOGETHER][n_kv_heads][most_seen]: by these tokens */
    int32_t *n_seen;       /* [tokens / CUDA_RECALL_TOGETHER][n_kv_heads] */
    void *search;          /* cuda_recall_search_bytes of n for each n_seen; NULL where that is 0 */
} cuda_recall;

/* Blocks that tokens see together, of runs of up to n_tokens: the chosen ones, and those that are not whole. */
int64_t cuda_recall_most_seen(const cuda_recall *recall, int64_t n_tokens);
int64_t cuda_recall_segments(const cuda_recall *recall, int64_t n_tokens); /* of CUDA_SEGMENT of their tokens */
uint64_t cuda_recall_search_bytes(int64_t n);

/* One layer. The banks are those of kernels/kv_tile.h, for kv head h at ring + h * head_stride and sinks_bank + h * head_stride: the
 * same bytes as on the CPU, so that saved states move between the two. */
typedef struct cuda_attend {
    const cuda_control *control;
    int32_t n_tokens;
    int32_t n_heads, n_kv_heads, head_dim, n_rot;
    rope_pairing pairing;
    const float *q, *k, *v; /* [n_tokens][heads * head_dim], raw */
    float *a;               /* [n_tokens][n_heads * head_dim] */
    /* norms of heads: 0 none, 1 each head by itself [head_dim], 2 all heads of a token together [heads * head_dim]; RMS */
    int32_t head_norm;
    const float *q_norm, *k_norm; /* either may be NULL */
    float eps;
    float scale, softcap;
    const float *slopes;                           /* [n_heads] of ALiBi, or NULL */
    const float *sink_logits;                      /* [n_heads], or NULL */
    const float *turn, *turn_sink, *turn_sink_key; /* of the layer's turns, or NULL: it does not turn */
    bool contiguous;                               /* turn_sink, turn_sink_key have a row a token */
    lmi_kv_type kv_type;
    int64_t window, sinks, capacity;
    uint8_t *ring, *sinks_bank; /* both in one allocation */
    uint64_t head_stride;
    cuda_recall recall;
    /* parts [n][n_kv_heads][n_segments, and cuda_recall_segments], each m, z [group], o [group][head_dim] as float, and counters [n][n_kv_heads], zero
     * before and after: n = min(n_tokens, CUDA_ROWWISE_TOKENS). The tiled kernel needs them for what it leaves to the other. */
    float *parts;
    uint32_t *arrived;
    void *work; /* tiled: cuda_attend_tiled_bytes */
} cuda_attend;

/* Rotates, stores keys and values (one writer a kv head and token, before any segment that reads them), attends, merges. n_tokens <=
 * CUDA_ROWWISE_TOKENS, and the first token's index is not below `sinks` unless n_tokens is 1. attend.cu */
void cuda_launch_attend_rowwise(const cuda_attend *args, device_stream *stream);
int64_t cuda_attend_segments(int64_t sinks, int64_t capacity); /* n_segments of a layer */
/* Any n_tokens <= chunk: stores first, then tiles of the band, as exact as attend_tiled.cu says. Float32 banks, heads that are no
 * multiple of 8 and heads too wide for the device's shared memory go the row-wise way. attend_tiled.cu */
void cuda_launch_attend_tiled(const cuda_attend *args, device_stream *stream);
uint64_t cuda_attend_tiled_bytes(int64_t n_tokens, int64_t n_heads, int64_t head_dim, bool recalls);

/* Both, in layers that recall, once keys are stored: what leaves the window with these tokens goes from the ring to its blocks, blocks that
 * are whole get boxes, the tokens choose, and attend to what they chose as well. recall.cu, recall_attend.cu
 *
 * Boxes of the first n_used slots of n_shelves trees and banks, from those of `recall` on, by which no search has begun: empty for
 * blocks from n_whole on; others as they are, or `anew` from their keys. */
void cuda_launch_boxes(const cuda_recall *recall, lmi_kv_type type, int32_t head_dim, int64_t n_shelves, int64_t n_used,
                       int64_t n_whole, bool anew, device_stream *stream);

/* ---- choosing tokens ---------------------------------------------------------------------------------------------- */

/* Where a token that is drawn from the candidates goes. All but `control` may be pinned host memory. */
typedef struct cuda_draw {
    const draw_order *order; /* read when the kernel runs; NULL: none is drawn */
    cuda_control *control;   /* drawn */
    int32_t *told;
} cuda_draw;

/* `out` may be pinned host memory. The same numbers give the same bits, always. 1 <= n_vocab <= 2^22; `work`: cuda_candidates_bytes(n_vocab).
 * choose.cu */
void cuda_launch_candidates(const float *logits, int64_t n_vocab, logit_candidates *out, cuda_draw draw, void *work,
                            device_stream *stream);
uint64_t cuda_candidates_bytes(int64_t n_vocab);

/* ---- measuring ---------------------------------------------------------------------------------------------------- */

/* Reads n bytes, 16-byte aligned, and does nothing with them. `work`: cuda_read_bytes. read.cu */
void cuda_launch_read(const void *bytes, uint64_t n, void *work, device_stream *stream);
uint64_t cuda_read_bytes(const device_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
