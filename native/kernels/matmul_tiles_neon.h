/* Many tokens, NEON: what the loops of matmul_tiles.c call. matmul_tiles_neon.c and matmul_tiles_i8mm_neon.c include this file;
 * which instruction multiplies is all that differs, and every result has the same bits.
 *
 *   sdot    a register holds four columns of four rows, and meets four activations of a token
 *   smmla   a register holds eight columns of two rows, and meets eight activations of two tokens: twice the products
 *
 * Whole numbers up to the end of a block or super-block. From the includer: TILES_NAME(name), the name of a type's kernel. */
#ifndef LMI_KERNELS_MATMUL_TILES_NEON_H
#define LMI_KERNELS_MATMUL_TILES_NEON_H

#include "kernels/matmul_neon.h"
#include "kernels/matmul_tiles.h"
#include "kernels/matmul_unpack_neon.h"

enum { ROWS = 16, COLUMNS = 1024, TILES = 4, TOKENS = 4, X_STRIDE = COLUMNS + 64 };

typedef struct tile {
    int8_t v[COLUMNS * ROWS];           /* see store_columns */
    int32_t scale[COLUMNS / 16][ROWS];  /* of a group */
    int32_t minima[COLUMNS / 16][ROWS]; /* the same */
    float d[COLUMNS / 32][ROWS];        /* of a block or super-block */
    float m[COLUMNS / 32][ROWS];        /* m of a block, dmin of a super-block */
} tile;

typedef struct panel {
    int8_t x[TOKENS * X_STRIDE];        /* see copy_columns; tokens apart in the L1 cache's sets */
    float d[TOKENS][COLUMNS / 32];      /* of a block or super-block */
    float d_sum[TOKENS][COLUMNS / 32];  /* d * sum of x of a block */
    int32_t sums[TOKENS][COLUMNS / 16]; /* of groups */
} panel;

_Static_assert(sizeof(tile) % 64 == 0 && sizeof(panel) % 64 == 0, "parts are aligned to cache lines");
_Static_assert(TILES * sizeof(tile) + sizeof(panel) <= 144 * 1024, "half of a small L2 cache");

/* Loads stay behind this where they are written: all at once, they push sums out of the registers. */
#define IN_ORDER __asm__ volatile("" ::: "memory")

#if defined(__ARM_FEATURE_MATMUL_INT8)

/* ---- smmla ----------------------------------------------------------------------------------------------------------- */

/* Dots of eight rows and four tokens: [pair of tokens][pair of rows], lanes (row, token) = 00 01 10 11. */
typedef struct dots {
    int32x4_t of[2][4];
} dots;

/* 32 columns of four rows, from row r on, to v[column / 8][row][8]. */
INLINE void store_columns(const int8x16x2_t columns[4], int r, int8_t *v) {
    UNROLL for (int half = 0; half < 2; half++) {
        UNROLL for (int i = 0; i < 4; i += 2) {
            int64x2_t a = vreinterpretq_s64_s8(columns[i].val[half]), b = vreinterpretq_s64_s8(columns[i + 1].val[half]);
            int8_t *to = v + 2 * half * ROWS * 8 + (r + i) * 8;
            vst1q_s8(to, vreinterpretq_s8_s64(vtrn1q_s64(a, b)));
            vst1q_s8(to + ROWS * 8, vreinterpretq_s8_s64(vtrn2q_s64(a, b)));
        }
    }
}

/* Activations of token t to x[t / 2][column / 8][t % 2][8]. */
INLINE void copy_columns(const int8_t *from, int columns, int t, int8_t *x) {
    int8_t *to = x + t / 2 * 2 * X_STRIDE + t % 2 * 8;
    for (const int8_t *end = from + columns; from < end; from += 32, to += 64) {
        UNROLL for (int i = 0; i < 4; i++) { vst1_s8(to + 16 * i, vld1_s8(from + 8 * i)); }
    }
}

/* The dots of `columns` columns, from column c on. */
INLINE void dot_columns(const tile *w, const panel *p, int half, int c, int columns, dots *dot) {
    UNROLL for (int i = 0; i < 4; i++) { dot->of[0][i] = dot->of[1][i] = vdupq_n_s32(0); }
    UNROLL for (int at = c; at < c + columns; at += 8) {
        const int8_t *v = w->v + at * ROWS + half * 8, *x = p->x + 2 * at;
        IN_ORDER;
        int8x16_t first = vld1q_s8(x), second = vld1q_s8(x + 2 * X_STRIDE);
        UNROLL for (int i = 0; i < 4; i++) {
            int8x16_t rows = vld1q_s8(v + 16 * i);
            dot->of[0][i] = vmmlaq_s32(dot->of[0][i], rows, first);
            dot->of[1][i] = vmmlaq_s32(dot->of[1][i], rows, second);
        }
    }
}

/* total += dot * the scales of eight rows */
INLINE void add_scaled(dots *total, const dots *dot, const int32_t *scale) {
    UNROLL for (int i = 0; i < 4; i += 2) {
        int32x4_t four = vld1q_s32(scale + 2 * i), low = vzip1q_s32(four, four), high = vzip2q_s32(four, four);
        UNROLL for (int t = 0; t < 2; t++) {
            total->of[t][i] = vmlaq_s32(total->of[t][i], dot->of[t][i], low);
            total->of[t][i + 1] = vmlaq_s32(total->of[t][i + 1], dot->of[t][i + 1], high);
        }
    }
}

/* Rows 4 i .. 4 i + 3 of token t. */
INLINE int32x4_t four_rows(const dots *dot, int t, int i) {
    int32x4_t low = dot->of[t / 2][2 * i], high = dot->of[t / 2][2 * i + 1];
    return t % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high);
}

#else

/* ---- sdot ------------------------------------------------------------------------------------------------------------ */

/* Dots of eight rows and four tokens: [token][four rows]. */
typedef struct dots {
    int32x4_t of[TOKENS][2];
} dots;

/* 32 columns of four rows, from row r on, to v[column / 4][row][4]. */
INLINE void store_columns(const int8x16x2_t columns[4], int r, int8_t *v) {
    UNROLL for (int half = 0; half < 2; half++) {
        int32x4_t fours[4];
        UNROLL for (int i = 0; i < 4; i++) { fours[i] = vreinterpretq_s32_s8(columns[i].val[half]); }
        transpose_4x4(fours);
        UNROLL for (int i = 0; i < 4; i++) { vst1q_s8(v + (4 * half + i) * ROWS * 4 + r * 4, vreinterpretq_s8_s32(fours[i])); }
    }
}

/* Activations of token t to x[t][column]. */
INLINE void copy_columns(const int8_t *from, int columns, int t, int8_t *x) { memcpy(x + t * X_STRIDE, from, (size_t)columns); }

/* Four columns: those of lane LANE of x. */
#define ADD_FOUR(LANE)                                                                                                         \
    {                                                                                                                          \
        IN_ORDER;                                                                                                              \
        int8x16_t low = vld1q_s8(v + LANE * ROWS * 4), high = vld1q_s8(v + LANE * ROWS * 4 + 16);                              \
        UNROLL for (int t = 0; t < TOKENS; t++) {                                                                              \
            dot->of[t][0] = vdotq_laneq_s32(dot->of[t][0], low, x[t], LANE);                                                   \
            dot->of[t][1] = vdotq_laneq_s32(dot->of[t][1], high, x[t], LANE);                                                  \
        }                                                                                                                      \
    }

/* The dots of `columns` columns, from column c on. */
INLINE void dot_columns(const tile *w, const panel *p, int half, int c, int columns, dots *dot) {
    UNROLL for (int t = 0; t < TOKENS; t++) { dot->of[t][0] = dot->of[t][1] = vdupq_n_s32(0); }
    UNROLL for (int at = c; at < c + columns; at += 16) {
        const int8_t *v = w->v + at * ROWS + half * 4;
        int8x16_t x[TOKENS];
        UNROLL for (int t = 0; t < TOKENS; t++) { x[t] = vld1q_s8(p->x + t * X_STRIDE + at); }
        ADD_FOUR(0)
        ADD_FOUR(1)
        ADD_FOUR(2)
        ADD_FOUR(3)
    }
}

/* total += dot * the scales of eight rows */
INLINE void add_scaled(dots *total, const dots *dot, const int32_t *scale) {
    UNROLL for (int i = 0; i < 2; i++) {
        int32x4_t four = vld1q_s32(scale + 4 * i);
        UNROLL for (int t = 0; t < TOKENS; t++) { total->of[t][i] = vmlaq_s32(total->of[t][i], dot->of[t][i], four); }
    }
}

/* Rows 4 i .. 4 i + 3 of token t. */
INLINE int32x4_t four_rows(const dots *dot, int t, int i) { return dot->of[t][i]; }

#endif

/* ---- unpacking ----------------------------------------------------------------------------------------------------- */

/* 16 bits at the same place of four rows. */
INLINE uint16x4_t gather_rows(const uint8_t *const *rows, size_t offset) {
    return (uint16x4_t){load_u16(rows[0] + offset), load_u16(rows[1] + offset), load_u16(rows[2] + offset),
                        load_u16(rows[3] + offset)};
}

INLINE void unpack_tile_32(const type_32 *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int r = 0; r < ROWS; r += 4) {
        for (int b = 0; b < columns / 32; b++) {
            const size_t at = (size_t)(c0 / 32 + b) * (size_t)type->bytes;
            int8x16x2_t v[4];
            UNROLL for (int i = 0; i < 4; i++) { v[i] = type->columns(rows[r + i] + at); }
            store_columns(v, r, out->v + 32 * ROWS * b);
            vst1q_f32(out->d[b] + r, type->scale(gather_rows(rows + r, at)));
            if (type->has_min) {
                vst1q_f32(out->m[b] + r, half_scale(gather_rows(rows + r, at + 2)));
            }
        }
    }
}

INLINE int32x4_t four_minima(int16x8_t v, int half) { return half == 0 ? vmovl_s16(vget_low_s16(v)) : vmovl_high_s16(v); }

INLINE void unpack_headers(const type_256 *type, const uint8_t *const *rows, size_t at, int r, int s, tile *out) {
    const int groups = 256 / type->group;
    header_256 h[4];
    UNROLL for (int i = 0; i < 4; i++) {
        h[i] = type->header(rows[r + i] + at);
        out->d[s][r + i] = h[i].d;
        out->m[s][r + i] = h[i].dmin;
    }
    UNROLL for (int g = 0; g < groups; g += 4) {
        int32x4_t scale[4], minima[4];
        UNROLL for (int i = 0; i < 4; i++) {
            scale[i] = h[i].scale[g / 4];
            minima[i] = four_minima(h[i].minimum[g / 8], g / 4 % 2);
        }
        transpose_4x4(scale);
        transpose_4x4(minima);
        UNROLL for (int i = 0; i < 4; i++) {
            vst1q_s32(out->scale[groups * s + g + i] + r, scale[i]);
            if (type->has_min) {
                vst1q_s32(out->minima[groups * s + g + i] + r, minima[i]);
            }
        }
    }
}

INLINE void unpack_tile_256(const type_256 *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int r = 0; r < ROWS; r += 4) {
        for (int s = 0; s < columns / 256; s++) {
            const size_t at = (size_t)(c0 / 256 + s) * (size_t)type->bytes;
            UNROLL for (int j = 0; j < 8; j++) {
                int8x16x2_t v[4];
                UNROLL for (int i = 0; i < 4; i++) { v[i] = type->columns(rows[r + i] + at, j); }
                store_columns(v, r, out->v + 32 * ROWS * (8 * s + j));
            }
            unpack_headers(type, rows, at, r, s, out);
        }
    }
}

/* ---- activations --------------------------------------------------------------------------------------------------- */

static void fill_panel_32(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {
    panel *p = out;
    for (int t = 0; t < n; t++) {
        copy_columns(act_q8(x[t]) + c0, columns, t, p->x);
        const float *d = act_scales(x[t], k) + c0 / 32;
        const int32_t *sum = act_sums_32(x[t], k) + c0 / 32;
        for (int b = 0; b < columns / 32; b += 4) { /* packed rows are padded */
            float32x4_t scale = vld1q_f32(d + b);
            vst1q_f32(p->d[t] + b, scale);
            vst1q_f32(p->d_sum[t] + b, scale * vcvtq_f32_s32(vld1q_s32(sum + b)));
        }
    }
}

static void fill_panel_256(int group, const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        copy_columns(act_q8(x[t]) + c0, columns, t, p->x);
        memcpy(p->d[t], act_scales(x[t], k) + c0 / 256, (size_t)columns / 256 * sizeof(float));
        const int16_t *sum = act_sums_16(x[t], k) + c0 / 16;
        for (int g = 0; g < columns / 16; g += 8) {
            int16x8_t of_16 = vld1q_s16(sum + g);
            if (group == 16) {
                vst1q_s32(p->sums[t] + g, vmovl_s16(vget_low_s16(of_16)));
                vst1q_s32(p->sums[t] + g + 4, vmovl_high_s16(of_16));
            } else {
                vst1q_s32(p->sums[t] + g / 2, vpaddlq_s16(of_16));
            }
        }
    }
}

static void fill_panel_256_by_16(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {
    fill_panel_256(16, x, k, c0, columns, n, out);
}

static void fill_panel_256_by_32(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {
    fill_panel_256(32, x, k, c0, columns, n, out);
}

/* ---- eight rows times four tokens ------------------------------------------------------------------------------------ */

INLINE void begin_sums(float32x4_t sum[TOKENS][2], int half, const tile_sums *sums) {
    UNROLL for (int t = 0; t < TOKENS; t++) {
        UNROLL for (int i = 0; i < 2; i++) {
            sum[t][i] = sums->first ? vdupq_n_f32(0) : vld1q_f32(sums->y + t * sums->stride + half + 4 * i);
        }
    }
}

INLINE void store_sums(float32x4_t sum[TOKENS][2], int half, const tile_sums *sums) {
    UNROLL for (int t = 0; t < TOKENS; t++) {
        vst1q_f32(sums->y + t * sums->stride + half, sum[t][0]);
        vst1q_f32(sums->y + t * sums->stride + half + 4, sum[t][1]);
    }
}

INLINE void multiply_32(bool has_min, const tile *w, const panel *p, int columns, int half, fetch_plan *soon, tile_sums sums) {
    float32x4_t sum[TOKENS][2];
    begin_sums(sum, half, &sums);
    for (int b = 0; b < columns / 32; b++) {
        dots dot;
        if (half == 0) {
            fetch_some(soon);
        }
        dot_columns(w, p, half, 32 * b, 32, &dot);
        UNROLL for (int i = 0; i < 2; i++) {
            float32x4_t d = vld1q_f32(w->d[b] + half + 4 * i), m = vld1q_f32(w->m[b] + half + 4 * i);
            UNROLL for (int t = 0; t < TOKENS; t++) {
                sum[t][i] = vfmaq_n_f32(sum[t][i], vcvtq_f32_s32(four_rows(&dot, t, i)) * d, p->d[t][b]);
                if (has_min) {
                    sum[t][i] = vfmaq_n_f32(sum[t][i], m, p->d_sum[t][b]);
                }
            }
        }
    }
    store_sums(sum, half, &sums);
}

INLINE void multiply_256(int group, bool has_min, const tile *w, const panel *p, int columns, int half, fetch_plan *soon,
                         tile_sums sums) {
    const int groups = 256 / group;
    float32x4_t sum[TOKENS][2];
    begin_sums(sum, half, &sums);
    for (int s = 0; s < columns / 256; s++) {
        dots total = {{{vdupq_n_s32(0)}}};
        for (int g = groups * s; g < groups * (s + 1); g++) {
            dots dot;
            if (half == 0 && (group == TILE_STEP || g % 2 == 0)) {
                fetch_some(soon);
            }
            dot_columns(w, p, half, g * group, group, &dot);
            add_scaled(&total, &dot, w->scale[g] + half);
        }
        UNROLL for (int i = 0; i < 2; i++) {
            float32x4_t d = vld1q_f32(w->d[s] + half + 4 * i), dmin = vld1q_f32(w->m[s] + half + 4 * i);
            int32x4_t minima[TOKENS];
            UNROLL for (int t = 0; t < TOKENS; t++) { minima[t] = vdupq_n_s32(0); }
            for (int g = groups * s; has_min && g < groups * (s + 1); g++) {
                int32x4_t v = vld1q_s32(w->minima[g] + half + 4 * i);
                UNROLL for (int t = 0; t < TOKENS; t++) { minima[t] = vmlaq_n_s32(minima[t], v, p->sums[t][g]); }
            }
            UNROLL for (int t = 0; t < TOKENS; t++) {
                float32x4_t scaled = vcvtq_f32_s32(four_rows(&total, t, i)) * d;
                scaled = has_min ? vfmsq_f32(scaled, dmin, vcvtq_f32_s32(minima[t])) : scaled;
                sum[t][i] = vfmaq_n_f32(sum[t][i], scaled, p->d[t][s]);
            }
        }
    }
    store_sums(sum, half, &sums);
}

/* Types differ here by the columns that share a scale and by having minima. */

#define FOR_ROWS(NAME, CALL, ...)                                                                                              \
    static void NAME(const void *w, const void *p, int columns, int n_rows, int n, fetch_plan *soon, tile_sums sums) {         \
        (void)n;                                                                                                               \
        for (int half = 0; half < n_rows; half += 8) {                                                                         \
            CALL(__VA_ARGS__, w, p, columns, half, soon, sums);                                                                \
        }                                                                                                                      \
    }

FOR_ROWS(multiply_blocks, multiply_32, false)
FOR_ROWS(multiply_blocks_min, multiply_32, true)
FOR_ROWS(multiply_by_16, multiply_256, 16, false)
FOR_ROWS(multiply_by_16_min, multiply_256, 16, true)
FOR_ROWS(multiply_by_32, multiply_256, 32, false)
FOR_ROWS(multiply_by_32_min, multiply_256, 32, true)

/* ---- every type ------------------------------------------------------------------------------------------------------ */

#define TILED(KIND, NAME, FILL_PANEL, MULTIPLY)                                                                                \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, void *out) {                                \
        unpack_tile_##KIND(&type_##NAME, rows, c0, columns, out);                                                              \
    }                                                                                                                          \
    void TILES_NAME(NAME)(const matmul_args *a) {                                                                              \
        static const tile_kernel kernel = {ROWS,         TILES,         TOKENS,        COLUMNS,    1,                          \
                                           sizeof(tile), sizeof(panel), NAME##_unpack, FILL_PANEL, MULTIPLY};                  \
        matmul_tiled(a, &kernel);                                                                                              \
    }

TILED(32, q4_0, fill_panel_32, multiply_blocks)
TILED(32, q4_1, fill_panel_32, multiply_blocks_min)
TILED(32, q5_0, fill_panel_32, multiply_blocks)
TILED(32, q5_1, fill_panel_32, multiply_blocks_min)
TILED(32, q8_0, fill_panel_32, multiply_blocks)
TILED(32, iq4_nl, fill_panel_32, multiply_blocks)
TILED(32, mxfp4, fill_panel_32, multiply_blocks)
TILED(256, q2_K, fill_panel_256_by_16, multiply_by_16_min)
TILED(256, q3_K, fill_panel_256_by_16, multiply_by_16)
TILED(256, q4_K, fill_panel_256_by_32, multiply_by_32_min)
TILED(256, q5_K, fill_panel_256_by_32, multiply_by_32_min)
TILED(256, q6_K, fill_panel_256_by_16, multiply_by_16)
TILED(256, iq4_xs, fill_panel_256_by_32, multiply_by_32)

#endif
