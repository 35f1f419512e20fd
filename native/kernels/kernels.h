/* The table of kernels: one column per instruction set, every entry with its contract here and a portable version.
 *
 * No kernel allocates, locks or fails. Pointers to floats are 4-byte aligned at least; weights have any alignment; packed
 * activations, banks and scratch are 64-byte aligned. Nothing is read beyond the arrays named here: a tensor may end with
 * its file. */
#ifndef LMI_KERNELS_KERNELS_H
#define LMI_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/activation.h"
#include "kernels/kv_tile.h"
#include "quant/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[t][r] = sum over c of w[r][c] * x[t][c], for rows row0 <= r < row1 and 0 <= t < n_tokens.
 *
 * Exactness: with packed activations the integer dot of each block is exact, only scaling and summing in float32 round. A row's result
 * depends on n_tokens only through the choice between the row-wise (n_tokens <= MATMUL_ROWWISE_TOKENS) and the tiled kernel, never on row0, row1. */
typedef struct matmul_args {
    const void *w; /* first byte of the tensor */
    size_t row_bytes;
    int64_t k; /* columns: whole blocks of the type */
    int64_t row0, row1;
    const void *x; /* [n_tokens] packed rows of kind kernels.act[type], x_stride bytes apart */
    size_t x_stride;
    int64_t n_tokens;
    float *y; /* y[t * y_stride + r] */
    int64_t y_stride;
    void *scratch; /* matmul_scratch(k) bytes of this worker */
} matmul_args;

typedef void matmul_kernel(const matmul_args *args);

/* Rows that a piece of work is best cut at; up to how many tokens go row by row: more go through tiles. */
enum { MATMUL_ROW_TILE = 16, MATMUL_ROWWISE_TOKENS = 8 };

/* Streams over slots of a bank for query rows that share its kv head, updating a running softmax (Milakov & Gimelshein,
 * arXiv 1805.02867): m the largest logit so far (-inf at first), z the sum of exp(logit - m), o the sum of exp(logit - m) * v.
 *
 * Row r belongs to the token at first_pos + r / rows_per_token. Which token j a slot holds, and whether the row at p sees it:
 *   ring   j = the newest token <= newest with j mod n_slots_used == slot, j >= 0;  seen if 0 <= p - j < window
 *   sinks  j = slot;                                                                seen if p - j >= window
 * (spec of Λ-attention, section 1.2). A slot that is not seen contributes exactly nothing, whatever bytes it holds. What a row
 * gets depends, bit for bit, on its own slots and on how they are cut into calls, not on the rows beside it. Q8_0 banks meet a
 * query rounded to 16 bits per 32 values; weights below 2^-126 of the largest may count as 0.
 *
 * A logit is q k, then, in this order, capped and biased, each only if asked for (zero and NULL ask for nothing):
 *   softcap  logit = softcap tanh(logit / softcap)                                (Gemma 2, arXiv 2408.00118, section 2)
 *   slopes   logit = logit - slope * distance, ring: p - j, sinks: as told        (ALiBi, arXiv 2108.12409)
 * Distances are whole numbers until they are multiplied: rounded once if they exceed 2^24. Slopes want n_slots_used < 2^31. */
typedef struct attend_args {
    const kv_bank *bank;
    const float *q; /* [n_rows][head_dim], rotated for this bank and scaled */
    int64_t n_rows;
    int64_t rows_per_token;
    int64_t first_pos;
    int64_t newest;       /* ring: position of the newest token stored */
    int64_t n_slots_used; /* ring: the modulus (<= bank->n_slots); sinks: tokens stored so far */
    int64_t window;       /* L */
    int64_t distance;     /* sinks: at which they seem to be, for slopes */
    int64_t slot0, slot1; /* slots to look at, any within the bank; multiples of 64 are fastest */
    float softcap;        /* > 0, or 0: no cap */
    const float *slopes;  /* [rows_per_token] of the query rows of a token, or NULL: no bias */
    float *m, *z;         /* [n_rows] */
    float *o;             /* [n_rows][head_dim] */
    void *scratch;        /* attend_scratch(n_rows, head_dim) bytes */
    bool again;       /* the call before had these queries, this scratch and a bank like this one, and looked at something */
    const void *then; /* keys of the bank that the next call will read, to ask memory for them; NULL: not known */
} attend_args;

typedef void attend_kernel(const attend_args *args);

/* Pairs that rotary position embedding turns together (RoFormer, arXiv 2104.09864). */
typedef enum rope_pairing {
    ROPE_ADJACENT = 0, /* (2i, 2i+1): GGUF `llama` */
    ROPE_HALVES = 1    /* (i, i + n_rot/2): NeoX */
} rope_pairing;

/* What lies between the two halves of a feed-forward block. */
typedef enum activation {
    ACTIVATION_SILU = 0,       /* x / (1 + exp(-x)) */
    ACTIVATION_GELU_TANH = 1,  /* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv 1606.08415) */
    ACTIVATION_GELU_ERF = 2,   /* x / 2 (1 + erf(x / sqrt 2)) */
    ACTIVATION_SWIGLU_OAI = 3, /* c / (1 + exp(-1.702 c)), c = min(x, 7): see activate */
    ACTIVATIONS = 4
} activation;

/* h = f(gate) * up, or f(gate) where up is NULL; h may be gate or up. ACTIVATION_SWIGLU_OAI (gpt-oss) multiplies by
 * 1 + min(max(up, -7), 7) instead.
 *
 * The error of f(x) is at most 4e-7 |x| anywhere; x >= 0 and, for SiLU, all x: within 8 units of the last place. f(inf) = inf
 * (SWIGLU_OAI: f(7)), f(-inf) = 0 of either sign, f(0) = 0, NaN stays NaN. */
typedef void activate_kernel(const float *gate, const float *up, int64_t n, float *h);

typedef struct kernels {
    lmi_isa isa;
    act_kind act[QUANT_TYPE_END];          /* what matmul[type] wants as x */
    matmul_kernel *matmul[QUANT_TYPE_END]; /* NULL for numbers that are no type */
    size_t (*matmul_scratch)(int64_t k);

    /* x[k] -> a packed row; k is whole blocks of the kind. */
    void (*pack[ACT_KINDS])(const float *x, int64_t k, void *row);

    /* Stores one token's key and value [head_dim] in a slot; Q8_0 rounds to nearest, ties to even, f16 scale of max|x| / 127. */
    void (*kv_store[KV_TYPES])(const kv_bank *bank, int64_t slot, const float *key, const float *value);
    attend_kernel *attend_ring[KV_TYPES];
    attend_kernel *attend_sinks[KV_TYPES];
    size_t (*attend_scratch)(int64_t n_rows, int64_t head_dim);

    /* y = x / rms(x) * w, rms over n with eps inside the root; y may be x. */
    void (*rms_norm)(const float *x, const float *w, int64_t n, float eps, float *y);
    /* y = (x - mean(x)) / sqrt(variance(x) + eps) * w + b, the variance over n, not n - 1; w NULL: 1, b NULL: 0; y may be x. */
    void (*layer_norm)(const float *x, const float *w, const float *b, int64_t n, float eps, float *y);
    /* Turns the first n_rot of head_dim values of n_heads heads by cos_sin[n_rot/2][2], the rest stays; in place. */
    void (*rope)(float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin, rope_pairing pairing);
    activate_kernel *activate[ACTIVATIONS];
    /* x = cap tanh(x / cap), cap > 0 and normal; off by <= 4e-7 of itself + cap 2^-149; inf gives the cap, NaN stays NaN. */
    void (*softcap)(float *x, float cap, int64_t n);
    void (*clamp)(float *x, float limit, int64_t n);  /* to -limit .. limit, limit >= 0; NaN stays NaN */
    void (*add)(float *x, const float *y, int64_t n); /* x += y */
    void (*scale)(float *x, float factor, int64_t n); /* x *= factor */
    /* bounds[32] = sum over i of max(q[i] largest, q[i] smallest) of 32 boxes, tile [d][largest, smallest][32] of bfloat16. Meanwhile
     * memory is asked for what the same q will read of the tile `next`; NULL: of none. */
    void (*box_bounds)(const float *q, const uint16_t *tile, const uint16_t *next, int64_t d, float *bounds);
} kernels;

/* The table for an instruction set, or for the best one that this CPU has (LMI_ISA_AUTO). */
lmi_status kernels_get(lmi_isa isa, const kernels **out, lmi_error *error);

/* What kv_store stored, [head_dim] each, as attention reads it. Portable: for the few slots that are moved. */
void kv_load(const kv_bank *bank, int64_t slot, float *key, float *value);

/* exp as in SiLU, and for merging parts of attention; relative error <= 2e-7, exp_f32(-inf) = 0, NaN stays NaN. */
float exp_f32(float x);

#ifdef __cplusplus
}
#endif
#endif
