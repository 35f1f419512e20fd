/* Streaming attention for columns with vectors. attention_{avx2,avx512,neon}.c define the primitives below and include
 * this file; everything here is written once.
 *
 * Query rows are taken in groups of GROUP, as many as fit the registers. Per block of 64 slots: logits of a group grow side by
 * side from the transposed key tiles (a key vector is loaded once per group), one step of the running softmax, then the values
 * (loaded once per group). Rows of a group may see different slots: what all see runs without questions, the few slots at a seam
 * or on the diagonal are asked row by row. With few rows (decoding) the memory decides, and each loop asks for what the next one
 * reads; with many, the block is first widened to float in scratch.
 *
 * From the includer:
 *   vf, LANES                a vector of floats            TILE_VECTORS  16 / LANES
 *   vf_load, vf_store, vf_all(float), vf_sum, vf_largest, vf_multiply_add(a, b, c) = a * b + c
 *   vf_max(a, b)             b where either is NaN
 *   vf_exp                   exp of each, arguments <= 0 or NaN; 0 below EXP_NORMAL
 *   vf_expm1                 exp - 1 of each, arguments <= 0 or NaN; -1 below -2 TANH_ONE
 *   vf_size, vf_sign(x, y)   |x|; y with the sign of x
 *   vf_only(bits, x)         -inf where a bit is 0
 *   vf_from_f16, vf_from_int8   of LANES values in memory
 *   vi, vi_load, vi_all(int32_t), vf_from_int(vi), vi_minus(a, b)
 *   vi_even, vi_odd          bytes 0, 2 or 1, 3 of each dword as 16-bit pairs
 *   vi_dot_add(sum, a, b)    sum + a.lo * b.lo + a.hi * b.hi per dword
 *                            (or OWN_DOTS and what is made of these three under "bytes times levels")
 *   GROUP, EACH_ROWS(n, DO)  switch (n) with a case for every 1 <= n <= GROUP
 *   INT_ROWS                 rows per pass over Q8_0 keys
 *   ACCUMULATORS             sums that a loop keeps in registers */
#ifndef LMI_KERNELS_ATTENTION_SIMD_H
#define LMI_KERNELS_ATTENTION_SIMD_H

#include <float.h>
#include <string.h>

#include "kernels/attention.h"

#define INLINE static inline __attribute__((always_inline))
/* Before a loop of few, constant steps: arrays indexed by it become registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum {
    PANEL = 8 * GROUP, /* rows whose logits are in scratch at a time */
    DIRECT_ROWS = 16   /* up to here every group reads the bank itself */
};

/* The parts of scratch, each 64-byte aligned. */
typedef struct workspace {
    float *logits;    /* [PANEL][64]: logits, then weights */
    float *q;         /* [group][d][GROUP]; Q8_0: words of levels, [group][d/2][GROUP] */
    float *steps;     /* Q8_0: [group][d/32][GROUP] */
    int32_t *offsets; /* Q8_0: [group][d/32][GROUP], see level_offset */
    float *keys;      /* [4][d][16] a block widened to float */
    float *values;    /* [64][d] */
    float *scales;    /* Q8_0: [64][d/32] of the values */
    slot_view *views; /* [n_tokens] */
} workspace;

enum { PARTS = 8 };

/* Where each part begins; [PARTS] is the size of all. */
static void workspace_offsets(int64_t n_rows, int64_t head_dim, size_t offsets[PARTS + 1]) {
    const size_t rows = (size_t)((n_rows + GROUP - 1) / GROUP * GROUP), d = (size_t)head_dim, blocks = d / QUERY_BLOCK;
    const size_t counts[PARTS] = {PANEL * BLOCK_SLOTS, rows * d,        rows * blocks,        rows * blocks,
                                  BLOCK_SLOTS * d,     BLOCK_SLOTS * d, BLOCK_SLOTS * blocks, (size_t)n_rows};
    offsets[0] = 0;
    for (int i = 0; i < PARTS; i++) {
        offsets[i + 1] = offsets[i] + kv_round(counts[i] * (i == PARTS - 1 ? sizeof(slot_view) : sizeof(float)));
    }
}

static size_t attend_scratch(int64_t n_rows, int64_t head_dim) {
    size_t offsets[PARTS + 1];
    workspace_offsets(n_rows, head_dim, offsets);
    return offsets[PARTS];
}

static workspace workspace_at(void *scratch, int64_t n_rows, int64_t head_dim) {
    size_t at[PARTS + 1];
    workspace_offsets(n_rows, head_dim, at);
    char *base = scratch;
    void *parts[PARTS];
    for (int i = 0; i < PARTS; i++) {
        parts[i] = base + at[i];
    }
    return (workspace){parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7]};
}

/* ---- queries, side by side in a group ------------------------------------------------------------------------------- */

static void pack_float(const attend_args *args, const workspace *w) {
    const int64_t d = args->bank->head_dim;
    for (int64_t r = 0; r < args->n_rows; r++) {
        float *packed = w->q + r / GROUP * d * GROUP + r % GROUP;
        for (int64_t i = 0; i < d; i++) {
            packed[i * GROUP] = args->q[r * d + i];
        }
    }
}

/* Bytes times levels: the dots of four bytes of each dword with four levels, which come as two words. */
#ifndef OWN_DOTS
typedef vi vi_dots;

/* (0, 2) and (1, 3), as vi_even and vi_odd deliver keys */
INLINE void level_words(const int16_t levels[4], uint32_t words[2]) {
    words[0] = (uint16_t)levels[0] | (uint32_t)(uint16_t)levels[2] << 16;
    words[1] = (uint16_t)levels[1] | (uint32_t)(uint16_t)levels[3] << 16;
}

/* What the sum of all dots of a block begins with, since bytes are 128 too large. */
INLINE int32_t level_offset(const int16_t *levels) {
    int32_t sum = 0;
    for (int i = 0; i < QUERY_BLOCK; i++) {
        sum += levels[i];
    }
    return -128 * sum;
}

INLINE vi_dots dots_from(int32_t offset) { return vi_all(offset); }
INLINE vi_dots dots_add(vi_dots sum, vi bytes, const int32_t *words, int64_t stride) {
    sum = vi_dot_add(sum, vi_even(bytes), vi_all(words[0]));
    return vi_dot_add(sum, vi_odd(bytes), vi_all(words[stride]));
}
INLINE vi dots_total(vi_dots sum) { return sum; }
#endif

static void pack_levels(const attend_args *args, const workspace *w) {
    const int64_t d = args->bank->head_dim, blocks = d / QUERY_BLOCK;
    for (int64_t r = 0; r < args->n_rows; r++) {
        int32_t *packed = (int32_t *)w->q + r / GROUP * (d / 2) * GROUP + r % GROUP;
        const int64_t at = r / GROUP * blocks * GROUP + r % GROUP;
        for (int64_t b = 0; b < blocks; b++) {
            int16_t levels[QUERY_BLOCK];
            w->steps[at + b * GROUP] = round_query(args->q + r * d + b * QUERY_BLOCK, levels);
            w->offsets[at + b * GROUP] = level_offset(levels);
            for (int64_t i = 0; i < QUERY_BLOCK / 4; i++) {
                int32_t *to = packed + (b * (QUERY_BLOCK / 2) + 2 * i) * GROUP;
                uint32_t words[2];
                level_words(levels + 4 * i, words);
                to[0] = (int32_t)words[0];
                to[GROUP] = (int32_t)words[1];
            }
        }
    }
}

/* ---- logits ----------------------------------------------------------------------------------------------------------- */

INLINE vf key_vector(lmi_kv_type type, const void *keys, int64_t index) {
    return type == LMI_KV_F32 ? vf_load((const float *)keys + index) : vf_from_f16((const uint16_t *)keys + index);
}

/* Asks for what will be read next, as many bytes per step of a loop as the step reads itself: neither the loop nor the memory
 * waits for the other. NULL: nothing. */
INLINE void fetch(const char *ahead, int64_t i, int64_t step) {
    if (ahead != NULL) {
        UNROLL
        for (int64_t at = 0; at < step; at += 64) {
            __builtin_prefetch(ahead + i * step + at, 0, 2);
        }
    }
}

/* logits[row][16 * tile + slot] of `rows` rows against `tiles` tiles that follow each other. */
INLINE void logits_float(int rows, int tiles, lmi_kv_type type, const float *q, const void *keys, int64_t d, const char *ahead,
                         float *logits) {
    enum { MOST = 4 * TILE_VECTORS };
    const int64_t step = tiles * KV_TILE * (type == LMI_KV_F32 ? 4 : 2);
    const int vectors = tiles * TILE_VECTORS;
    vf sum[GROUP][MOST];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = vf_all(0.0f);
        }
    }
    for (int64_t i = 0; i < d; i++) {
        vf key[MOST];
        UNROLL
        for (int v = 0; v < vectors; v++) {
            const int64_t tile = v / TILE_VECTORS, lane = v % TILE_VECTORS * LANES;
            key[v] = key_vector(type, keys, (tile * d + i) * KV_TILE + lane);
        }
        fetch(ahead, i, step);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const vf x = vf_all(q[i * GROUP + r]);
            UNROLL
            for (int v = 0; v < vectors; v++) {
                sum[r][v] = vf_multiply_add(x, key[v], sum[r][v]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < vectors; v++) {
            vf_store(logits + r * BLOCK_SLOTS + v * LANES, sum[r][v]);
        }
    }
}

/* The same for one Q8_0 tile: integers are exact inside a block of 32 values, then one rounding per scale. */
INLINE void logits_int8(int rows, const int32_t *levels, const float *steps, const int32_t *offsets, const uint8_t *keys,
                        const uint16_t *scales, int64_t d, const char *ahead, float *logits) {
    vf sum[INT_ROWS][TILE_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            sum[r][v] = vf_all(0.0f);
        }
    }
    for (int64_t b = 0; b < d / QUERY_BLOCK; b++) {
        vi_dots whole[INT_ROWS][TILE_VECTORS];
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int v = 0; v < TILE_VECTORS; v++) {
                whole[r][v] = dots_from(offsets[b * GROUP + r]);
            }
        }
        for (int64_t i = b * (QUERY_BLOCK / 4); i < (b + 1) * (QUERY_BLOCK / 4); i++) {
            fetch(ahead, i, KV_TILE * 4);
            UNROLL
            for (int v = 0; v < TILE_VECTORS; v++) {
                const vi bytes = vi_load(keys + (i * KV_TILE + v * LANES) * 4);
                UNROLL
                for (int r = 0; r < rows; r++) {
                    whole[r][v] = dots_add(whole[r][v], bytes, levels + 2 * i * GROUP + r, GROUP);
                }
            }
        }
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            const vf scale = vf_from_f16(scales + b * KV_TILE + v * LANES);
            UNROLL
            for (int r = 0; r < rows; r++) {
                sum[r][v] =
                    vf_multiply_add(vf_from_int(dots_total(whole[r][v])), scale * vf_all(steps[b * GROUP + r]), sum[r][v]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            vf_store(logits + r * BLOCK_SLOTS + v * LANES, sum[r][v]);
        }
    }
}

/* Tiles from .. to of a block for one group; `keys` and `ahead` belong to the whole block. */
INLINE void group_logits_float(int rows, lmi_kv_type type, const float *q, const char *keys, int64_t d, int from, int to,
                               const char *ahead, float *logits) {
    const int64_t tile_bytes = d * KV_TILE * (type == LMI_KV_F32 ? 4 : 2);
    const int wide = rows * 4 * TILE_VECTORS <= ACCUMULATORS ? 4 : rows * 2 * TILE_VECTORS <= ACCUMULATORS ? 2 : 1;
    int t = from;
    for (; t + wide <= to; t += wide) {
        const char *next = ahead == NULL ? NULL : ahead + t * tile_bytes;
        logits_float(rows, wide, type, q, keys + t * tile_bytes, d, next, logits + t * KV_TILE);
    }
    for (; t < to; t++) {
        const char *next = ahead == NULL ? NULL : ahead + t * tile_bytes;
        logits_float(rows, 1, type, q, keys + t * tile_bytes, d, next, logits + t * KV_TILE);
    }
}

static void group_logits_wide(int rows, const float *q, const void *keys, int64_t d, int from, int to, float *logits) {
#define DO(n) group_logits_float(n, LMI_KV_F32, q, keys, d, from, to, NULL, logits)
    EACH_ROWS(rows, DO)
#undef DO
}

static void group_logits_f32(int rows, const float *q, const void *keys, int64_t d, int from, int to, const char *ahead,
                             float *logits) {
#define DO(n) group_logits_float(n, LMI_KV_F32, q, keys, d, from, to, ahead, logits)
    EACH_ROWS(rows, DO)
#undef DO
}

static void group_logits_f16(int rows, const float *q, const void *keys, int64_t d, int from, int to, const char *ahead,
                             float *logits) {
#define DO(n) group_logits_float(n, LMI_KV_F16, q, keys, d, from, to, ahead, logits)
    EACH_ROWS(rows, DO)
#undef DO
}

static void group_logits_q8_0(int rows, const workspace *w, int64_t group, const kv_bank *bank, int64_t block, int from, int to,
                              const char *ahead, float *logits) {
    const int64_t d = bank->head_dim, blocks = d / QUERY_BLOCK;
    const int32_t *levels = (const int32_t *)w->q + group * (d / 2) * GROUP;
    const float *steps = w->steps + group * blocks * GROUP;
    const int32_t *offsets = w->offsets + group * blocks * GROUP;
    for (int t = from; t < to; t++) {
        const int64_t tile = block / KV_TILE + t;
        const uint8_t *keys = (const uint8_t *)bank->keys + tile * d * KV_TILE;
        const uint16_t *scales = bank->key_scales + tile * blocks * KV_TILE;
        const char *next = ahead == NULL ? NULL : ahead + t * d * KV_TILE;
        for (int r = 0; r < rows; r += INT_ROWS) {
            float *out = logits + r * BLOCK_SLOTS + t * KV_TILE;
#define DO(n) logits_int8((n) < INT_ROWS ? (n) : INT_ROWS, levels + r, steps + r, offsets + r, keys, scales, d, next, out)
            EACH_ROWS(rows - r, DO)
#undef DO
        }
    }
}

/* ---- softmax ---------------------------------------------------------------------------------------------------------- */

enum { BLOCK_VECTORS = BLOCK_SLOTS / LANES };
static const uint64_t ALL_SLOTS = ~(uint64_t)0;

/* A vector of a row's logits, -inf where a slot is not seen; `full`: all are seen, a constant where this is inlined. */
INLINE vf logit_vector(const float *logits, bool full, uint64_t seen, int v) {
    const vf x = vf_load(logits + v * LANES);
    return full ? x : vf_only((uint32_t)(seen >> (v * LANES)), x);
}

INLINE float largest_logit(const float *logits, bool full, uint64_t seen) {
    vf largest = vf_all(-INFINITY);
    UNROLL
    for (int v = 0; v < BLOCK_VECTORS; v++) {
        largest = vf_max(logit_vector(logits, full, seen, v), largest);
    }
    return vf_largest(largest);
}

/* Logits become weights; returns their sum. */
INLINE float weigh(float *logits, bool full, uint64_t seen, float base) {
    vf sum = vf_all(0.0f);
    UNROLL
    for (int v = 0; v < BLOCK_VECTORS; v++) {
        const vf weight = vf_exp(logit_vector(logits, full, seen, v) - vf_all(base));
        vf_store(logits + v * LANES, weight);
        sum += weight;
    }
    return vf_sum(sum);
}

/* Logits [n][64] of a block become weights; m and z [n] move on, and what was gathered so far is to fade by `fade` [n]. */
static void fold_block(int64_t n, float *logits, const uint64_t *seen, float *m, float *z, float *fade) {
    for (int64_t r0 = 0; r0 < n; r0 += LANES) {
        const int64_t rows = min_of(LANES, n - r0);
        const size_t bytes = (size_t)rows * sizeof(float);
        float old[LANES] = {0}, top[LANES] = {0}, base[LANES], sum[LANES] = {0}, total[LANES] = {0};
        for (int64_t r = 0; r < rows; r++) {
            const uint64_t bits = seen[r0 + r];
            const float *row = logits + (r0 + r) * BLOCK_SLOTS;
            top[r] = bits == ALL_SLOTS ? largest_logit(row, true, bits)
                     : bits != 0       ? largest_logit(row, false, bits)
                                       : -INFINITY;
        }
        memcpy(old, m + r0, bytes);
        memcpy(total, z + r0, bytes);
        /* -inf - -inf is no number: a row that has seen nothing subtracts the least float instead. */
        const vf tops = vf_max(vf_load(top), vf_load(old)), bases = vf_max(tops, vf_all(-FLT_MAX));
        const vf fades = vf_exp(vf_load(old) - bases);
        vf_store(base, bases);
        for (int64_t r = 0; r < rows; r++) {
            const uint64_t bits = seen[r0 + r];
            float *row = logits + (r0 + r) * BLOCK_SLOTS;
            sum[r] = bits == ALL_SLOTS ? weigh(row, true, bits, base[r]) : bits != 0 ? weigh(row, false, bits, base[r]) : 0.0f;
        }
        vf_store(top, tops);
        vf_store(old, fades);
        vf_store(total, vf_load(total) * fades + vf_load(sum));
        memcpy(m + r0, top, bytes);
        memcpy(fade + r0, old, bytes);
        memcpy(z + r0, total, bytes);
    }
}

/* ---- values ----------------------------------------------------------------------------------------------------------- */

INLINE vf value_vector(lmi_kv_type type, const void *values, int64_t index, const float *scales) {
    if (type == LMI_KV_F32) {
        return vf_load((const float *)values + index);
    }
    if (type == LMI_KV_F16) {
        return vf_from_f16((const uint16_t *)values + index);
    }
    return vf_from_int8((const int8_t *)values + index) * vf_all(scales[index / 32]);
}

/* o = o * fade + the weighted values of the block, for `vectors` vectors of columns; o [rows] lie d apart, the value of slot s is
 * at index s * stride + at. `all` are the slots that every row sees, `any` those that some row sees: slots are added in ascending
 * order either way. */
INLINE void add_values(int rows, int vectors, lmi_kv_type type, const float *weights, const float *fade, const uint64_t *seen,
                       uint64_t all, uint64_t any, const void *values, int64_t stride, int64_t at, const float *scales,
                       int64_t d, const char *ahead, float *o) {
    enum { MOST = 4 };
    const int64_t step = vectors * LANES * (type == LMI_KV_F32 ? 4 : type == LMI_KV_F16 ? 2 : 1);
    vf sum[GROUP][MOST];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = vf_load(o + r * d + v * LANES) * vf_all(fade[r]);
        }
    }
    while (any != 0) {
        const int first = __builtin_ctzll(any);
        const uint64_t shared = all >> first;
        int end = first + 1;
        if (shared & 1) {
            end = ~shared == 0 ? BLOCK_SLOTS : first + __builtin_ctzll(~shared);
            end = end < BLOCK_SLOTS ? end : BLOCK_SLOTS;
            for (int64_t s = first; s < end; s++) {
                vf value[MOST];
                fetch(ahead, s, step);
                UNROLL
                for (int v = 0; v < vectors; v++) {
                    value[v] = value_vector(type, values, s * stride + at + v * LANES, scales);
                }
                UNROLL
                for (int r = 0; r < rows; r++) {
                    const vf weight = vf_all(weights[r * BLOCK_SLOTS + s]);
                    UNROLL
                    for (int v = 0; v < vectors; v++) {
                        sum[r][v] = vf_multiply_add(weight, value[v], sum[r][v]);
                    }
                }
            }
        } else {
            vf value[MOST];
            UNROLL
            for (int v = 0; v < vectors; v++) {
                value[v] = value_vector(type, values, first * stride + at + v * LANES, scales);
            }
            UNROLL
            for (int r = 0; r < rows; r++) {
                if (seen[r] >> first & 1) { /* 0 * NaN would not be nothing */
                    const vf weight = vf_all(weights[r * BLOCK_SLOTS + first]);
                    UNROLL
                    for (int v = 0; v < vectors; v++) {
                        sum[r][v] = vf_multiply_add(weight, value[v], sum[r][v]);
                    }
                }
            }
        }
        any = end < BLOCK_SLOTS ? any >> end << end : 0;
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < vectors; v++) {
            vf_store(o + r * d + v * LANES, sum[r][v]);
        }
    }
}

/* One column, where the rest fills no vector. */
static void add_value(int rows, lmi_kv_type type, const float *weights, const float *fade, const uint64_t *seen,
                      const void *values, int64_t stride, int64_t at, int64_t d, float *o) {
    for (int r = 0; r < rows; r++) {
        float sum = o[r * d] * fade[r];
        for (int64_t s = 0; s < BLOCK_SLOTS; s++) {
            if (seen[r] >> s & 1) {
                const int64_t i = s * stride + at;
                const float value = type == LMI_KV_F32 ? ((const float *)values)[i] : f16_to_f32(((const uint16_t *)values)[i]);
                sum = fmaf(weights[r * BLOCK_SLOTS + s], value, sum);
            }
        }
        o[r * d] = sum;
    }
}

/* Columns begin .. end, from the bank's rows of values or from one panel of widen_values, which then is `values`. */
INLINE void group_values(int rows, lmi_kv_type type, bool panel, const float *weights, const float *fade, const uint64_t *seen,
                         uint64_t all, uint64_t any, const void *values, const float *scales, int64_t d, int64_t begin,
                         int64_t end, const char *ahead, float *o) {
    const int64_t size = type == LMI_KV_F32 ? 4 : type == LMI_KV_F16 ? 2 : 1;
    const int wide = rows * 4 <= ACCUMULATORS && !panel ? 4 : 2;
    const int64_t stride = panel ? end - begin : d, origin = panel ? begin : 0;
    const int64_t slots = 64 - __builtin_clzll(any); /* of which each column asks for its share */
    int64_t i = begin;
    for (; i + wide * LANES <= end; i += wide * LANES) {
        const char *next = ahead == NULL ? NULL : ahead + i * slots * size;
        add_values(rows, wide, type, weights, fade, seen, all, any, values, stride, i - origin, scales, d, next, o + i);
    }
    for (; i + LANES <= end; i += LANES) {
        const char *next = ahead == NULL ? NULL : ahead + i * slots * size;
        add_values(rows, 1, type, weights, fade, seen, all, any, values, stride, i - origin, scales, d, next, o + i);
    }
    for (; i < end; i++) {
        add_value(rows, type, weights, fade, seen, values, stride, i - origin, d, o + i);
    }
}

static void group_values_panel(int rows, const float *weights, const float *fade, const uint64_t *seen, uint64_t all,
                               uint64_t any, const float *panel, int64_t d, int64_t begin, int64_t end, float *o) {
#define DO(n) group_values(n, LMI_KV_F32, true, weights, fade, seen, all, any, panel, NULL, d, begin, end, NULL, o)
    EACH_ROWS(rows, DO)
#undef DO
}

static void group_values_f32(int rows, const float *weights, const float *fade, const uint64_t *seen, uint64_t all,
                             uint64_t any, const void *values, int64_t d, const char *ahead, float *o) {
#define DO(n) group_values(n, LMI_KV_F32, false, weights, fade, seen, all, any, values, NULL, d, 0, d, ahead, o)
    EACH_ROWS(rows, DO)
#undef DO
}

static void group_values_f16(int rows, const float *weights, const float *fade, const uint64_t *seen, uint64_t all,
                             uint64_t any, const void *values, int64_t d, const char *ahead, float *o) {
#define DO(n) group_values(n, LMI_KV_F16, false, weights, fade, seen, all, any, values, NULL, d, 0, d, ahead, o)
    EACH_ROWS(rows, DO)
#undef DO
}

static void group_values_q8_0(int rows, const float *weights, const float *fade, const uint64_t *seen, uint64_t all,
                              uint64_t any, const void *values, const float *scales, int64_t d, const char *ahead, float *o) {
#define DO(n) group_values(n, LMI_KV_Q8_0, false, weights, fade, seen, all, any, values, scales, d, 0, d, ahead, o)
    EACH_ROWS(rows, DO)
#undef DO
}

/* ---- blocks ----------------------------------------------------------------------------------------------------------- */

/* With more rows than DIRECT_ROWS, tiles from .. to of a block are widened to float once for all of them. Exact, but for Q8_0
 * values, which are rounded when multiplied by their scale, as they are when read from the bank. */
static void widen_keys(const kv_bank *bank, const workspace *w, int64_t block, int from, int to) {
    const int64_t d = bank->head_dim;
    for (int64_t i = from * KV_TILE * d; i < to * KV_TILE * d; i += LANES) {
        vf_store(w->keys + i, vf_from_f16((const uint16_t *)bank->keys + block * d + i));
    }
}

static float value_at(const kv_bank *bank, const float *scales, int64_t first, int64_t i) {
    return bank->type == LMI_KV_F32   ? ((const float *)bank->values)[first + i]
           : bank->type == LMI_KV_F16 ? f16_to_f32(((const uint16_t *)bank->values)[first + i])
                                      : (float)((const int8_t *)bank->values)[first + i] * scales[i / 32];
}

/* Into panels of two vectors of columns, [d / (2 LANES)][64][2 LANES], the last one as narrow as the rest: what a pass of
 * add_values reads lies together, whatever d is (rows that are a power of two apart would share few sets of the cache). */
INLINE void widen_values(lmi_kv_type type, const kv_bank *bank, const workspace *w, int64_t block, int from, int to) {
    const int64_t d = bank->head_dim, first = block * d;
    const void *values = (const char *)bank->values + (size_t)first * kv_value_bytes(type);
    for (int64_t column = 0; column < d; column += 2 * LANES) {
        const int64_t width = min_of(2 * LANES, d - column);
        float *panel = w->values + column * BLOCK_SLOTS;
        for (int64_t s = from * KV_TILE; s < to * KV_TILE; s++) {
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES) {
                vf_store(panel + s * width + i, value_vector(type, values, s * d + column + i, w->scales));
            }
            for (; i < width; i++) {
                panel[s * width + i] = value_at(bank, w->scales, first, s * d + column + i);
            }
        }
    }
}

static void widen_block(const kv_bank *bank, const workspace *w, int64_t block, int from, int to) {
    switch (bank->type) {
    case LMI_KV_F32:
        widen_values(LMI_KV_F32, bank, w, block, from, to);
        break;
    case LMI_KV_F16:
        widen_keys(bank, w, block, from, to);
        widen_values(LMI_KV_F16, bank, w, block, from, to);
        break;
    case LMI_KV_Q8_0:
        widen_values(LMI_KV_Q8_0, bank, w, block, from, to);
        break;
    }
}

static void widen_scales(const kv_bank *bank, const workspace *w, int64_t block, int from, int to) {
    const int64_t blocks = bank->head_dim / 32, begin = from * KV_TILE * blocks, end = to * KV_TILE * blocks;
    for (int64_t i = begin; i < end; i += LANES) {
        vf_store(w->scales + i, vf_from_f16(bank->value_scales + block * blocks + i));
    }
}

/* cap tanh(x / cap), as tanh_f32 of vector.h has it; inverse is -2 / cap. */
INLINE vf capped(vf x, vf cap, vf inverse) {
    const vf e = vf_expm1(vf_size(x) * inverse);
    return cap * vf_sign(x, e / (vf_all(2.0f) + e));
}

/* Caps and biases the logits of rows row0 .. row0 + n, in the vectors of which a row sees something; what it does not see may
 * become anything. Apart from the loop that seldom needs it. */
static __attribute__((noinline)) void shape_panel(const attend_args *args, bool sinks, const int32_t *ages, int64_t row0,
                                                  int64_t n, const uint64_t *seen, float *logits) {
    const uint64_t lanes = ((uint64_t)1 << LANES) - 1;
    const bool caps = args->softcap != 0, biases = args->slopes != NULL;
    const vf cap = vf_all(args->softcap), inverse = vf_all(caps ? -2.0f / args->softcap : 0.0f);
    for (int64_t r = 0; r < n; r++, logits += BLOCK_SLOTS) {
        const int64_t token = (row0 + r) / args->rows_per_token, head = (row0 + r) % args->rows_per_token;
        const vi lag = vi_all((int32_t)(args->newest - (args->first_pos + token)));
        const vf slope = vf_all(biases ? args->slopes[head] : 0.0f), fixed = slope * vf_all((float)args->distance);
        for (int v = 0; v < BLOCK_VECTORS; v++) {
            if ((seen[r] >> (v * LANES) & lanes) == 0) {
                continue;
            }
            vf x = vf_load(logits + v * LANES);
            x = caps ? capped(x, cap, inverse) : x;
            if (biases && sinks) {
                x -= fixed;
            } else if (biases) {
                const vi age = vi_load((const uint8_t *)(const void *)(ages + v * LANES));
                x -= slope * vf_from_int(vi_minus(age, lag));
            }
            vf_store(logits + v * LANES, x);
        }
    }
}

/* Rows row0 .. row0 + n of the call, n <= PANEL, against one block; the call goes on with `next`, or ends with it. */
static void attend_panel(const attend_args *args, bool sinks, const workspace *w, const int32_t *ages, int64_t block,
                         int64_t next, int64_t row0, int64_t n, bool widened) {
    const kv_bank *bank = args->bank;
    const int64_t d = bank->head_dim, n_groups = (n + GROUP - 1) / GROUP;
    uint64_t seen[PANEL], all[PANEL / GROUP], any[PANEL / GROUP];
    float fade[PANEL];
    for (int64_t r = 0; r < n; r++) {
        seen[r] = seen_in_block(&w->views[(row0 + r) / args->rows_per_token], block);
        all[r / GROUP] = r % GROUP == 0 ? seen[r] : all[r / GROUP] & seen[r];
        any[r / GROUP] = r % GROUP == 0 ? seen[r] : any[r / GROUP] | seen[r];
    }
    const size_t offset = (size_t)(block * d) * kv_value_bytes(bank->type);
    const char *keys = (const char *)bank->keys + offset, *values = (const char *)bank->values + offset;
    const char *next_keys = next > block ? keys + (size_t)((next - block) * d) * kv_value_bytes(bank->type) : args->then;
    for (int64_t g = 0; g < n_groups; g++) {
        if (any[g] == 0) {
            continue;
        }
        const int rows = (int)min_of(GROUP, n - g * GROUP);
        const int from = __builtin_ctzll(any[g]) / KV_TILE, to = (63 - __builtin_clzll(any[g])) / KV_TILE + 1;
        const float *q = w->q + (row0 / GROUP + g) * d * GROUP;
        float *logits = w->logits + g * GROUP * BLOCK_SLOTS;
        if (bank->type == LMI_KV_Q8_0) {
            group_logits_q8_0(rows, w, row0 / GROUP + g, bank, block, from, to, widened ? NULL : values, logits);
        } else if (widened) {
            group_logits_wide(rows, q, bank->type == LMI_KV_F32 ? (const void *)keys : w->keys, d, from, to, logits);
        } else if (bank->type == LMI_KV_F32) {
            group_logits_f32(rows, q, keys, d, from, to, values, logits);
        } else {
            group_logits_f16(rows, q, keys, d, from, to, values, logits);
        }
    }
    if (shapes_logits(args)) {
        shape_panel(args, sinks, ages, row0, n, seen, w->logits);
    }
    fold_block(n, w->logits, seen, args->m + row0, args->z + row0, fade);
    for (int64_t column = 0; column < d; column += widened ? 2 * LANES : d) {
        for (int64_t g = 0; g < n_groups; g++) {
            if (any[g] == 0) {
                continue;
            }
            const int64_t r = g * GROUP;
            const int rows = (int)min_of(GROUP, n - r);
            const float *weights = w->logits + r * BLOCK_SLOTS;
            float *o = args->o + (row0 + r) * d;
            if (widened) {
                const int64_t end = min_of(column + 2 * LANES, d);
                group_values_panel(rows, weights, fade + r, seen + r, all[g], any[g], w->values + column * BLOCK_SLOTS, d,
                                   column, end, o);
            } else if (bank->type == LMI_KV_F32) {
                group_values_f32(rows, weights, fade + r, seen + r, all[g], any[g], values, d, next_keys, o);
            } else if (bank->type == LMI_KV_F16) {
                group_values_f16(rows, weights, fade + r, seen + r, all[g], any[g], values, d, next_keys, o);
            } else {
                group_values_q8_0(rows, weights, fade + r, seen + r, all[g], any[g], values, w->scales, d, next_keys, o);
            }
        }
    }
}

static void attend(const attend_args *args, bool sinks) {
    const kv_bank *bank = args->bank;
    if (args->n_rows <= 0 || args->slot0 >= args->slot1) {
        return;
    }
    const workspace w = workspace_at(args->scratch, args->n_rows, bank->head_dim);
    const int64_t n_tokens = (args->n_rows - 1) / args->rows_per_token + 1;
    for (int64_t t = 0; t < n_tokens; t++) {
        w.views[t] = view_of(args, sinks, args->first_pos + t, args->first_pos + t);
    }
    const slot_view hull = view_of(args, sinks, args->first_pos, args->first_pos + n_tokens - 1);
    bool packed = args->again;
    const bool widened = args->n_rows > DIRECT_ROWS;
    for (int64_t block = args->slot0 / BLOCK_SLOTS * BLOCK_SLOTS; block < args->slot1; block += BLOCK_SLOTS) {
        const uint64_t bits = seen_in_block(&hull, block);
        if (bits == 0) {
            continue;
        }
        if (!packed) { /* not before it is needed: many calls see nothing */
            (bank->type == LMI_KV_Q8_0 ? pack_levels : pack_float)(args, &w);
            packed = true;
        }
        const int from = __builtin_ctzll(bits) / KV_TILE, to = (63 - __builtin_clzll(bits)) / KV_TILE + 1;
        const int64_t next = block + 2 * BLOCK_SLOTS <= args->slot1 ? block + BLOCK_SLOTS : block; /* whole ones only */
        if (bank->type == LMI_KV_Q8_0) {
            widen_scales(bank, &w, block, from, to);
        }
        if (widened) {
            widen_block(bank, &w, block, from, to);
        }
        int32_t ages[BLOCK_SLOTS] = {0};
        if (args->slopes != NULL && !sinks) {
            ages_in_block(args, block, ages);
        }
        for (int64_t row = 0; row < args->n_rows; row += PANEL) {
            attend_panel(args, sinks, &w, ages, block, next, row, min_of(PANEL, args->n_rows - row), widened);
        }
    }
}

static void attend_ring(const attend_args *args) { attend(args, false); }
static void attend_sinks(const attend_args *args) { attend(args, true); }

static void fill(kernels *table) {
    for (int type = 0; type < KV_TYPES; type++) {
        table->attend_ring[type] = attend_ring;
        table->attend_sinks[type] = attend_sinks;
    }
    table->attend_scratch = attend_scratch;
}

#endif
