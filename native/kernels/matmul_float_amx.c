/* F16 and BF16 weights with many tokens, AMX-BF16: numbers as sums of bfloat16, every part of one times every part of the other.
 *
 * Cut off after its leading 8 bits, again and again, a float32 is the sum of three bfloat16 and a half of two, exactly; products of
 * two are exact in float32, which is what they are added up in. Six of these take a third of the time of as many multiply-adds of
 * float32. (Numbers below 2^-126 count as 0.)
 *
 *   for 128 rows, for a block of columns:   split
 *       for 32 tokens:                      split
 *           for 32 of the rows:             multiply, add to y
 *
 * Tokens that are not there are multiplied, too, whatever the registers are loaded with: their results are dropped. */

#include "kernels/matmul_amx.h"
#include "kernels/matmul_avx512.h"

enum { SIDE = 16, PAIR = 2 * SIDE, PAIRS = 4, STEP = 32, STEPS = 16, COLUMNS = STEP * STEPS, X_PARTS = 3, W_PARTS = 2 };

/* Of 32 columns the i-th and the (16 + i)-th lie side by side, in weights and in activations. */
typedef struct workspace {
    uint16_t w[PAIRS][STEPS][W_PARTS][2][SIDE][SIDE][2]; /* [16 rows twice][two columns][row] */
    uint16_t x[STEPS][X_PARTS][2][SIDE][STEP];           /* [16 tokens twice][token] */
    float edge[PAIR][PAIR];                              /* [token][row]: results of which not all are wanted */
} workspace;

static const tile_config config = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

typedef struct type_half {
    int parts;
    __m512 (*load)(const uint8_t *values, __mmask16 mask); /* sixteen, those outside the mask are 0 and not read */
} type_half;

static const type_half type_f16 = {2, load_f16}, type_bf16 = {1, load_bf16};

/* Columns 0..15 and 16..31 to parts, in pairs. */
INLINE void split(__m512 low, __m512 high, int parts, __m512i *out) {
    const __m512i leading = _mm512_set1_epi32((int)0xffff0000);
    UNROLL for (int p = 0; p < parts; p++) {
        const __m512i a = _mm512_and_si512(_mm512_castps_si512(low), leading);
        const __m512i b = _mm512_and_si512(_mm512_castps_si512(high), leading);
        out[p] = _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(a));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
    }
}

INLINE void split_weights(const matmul_args *a, const type_half *type, int64_t r0, int64_t c0, int columns, int half,
                          uint16_t (*out)[W_PARTS][2][SIDE][SIDE][2]) {
    for (int c = 0; c < columns; c += STEP) {
        __m512i v[W_PARTS][SIDE];
        UNROLL for (int r = 0; r < SIDE; r++) { /* beyond the last row, that row again: its results are dropped */
            const int64_t row = r0 + r < a->row1 ? r0 + r : a->row1 - 1;
            const uint8_t *values = (const uint8_t *)a->w + (size_t)row * a->row_bytes + 2 * (size_t)(c0 + c);
            __m512i parts[W_PARTS];
            split(type->load(values, mask_of(columns - c)), type->load(values + 32, mask_of(columns - c - 16)), type->parts,
                  parts);
            UNROLL for (int p = 0; p < type->parts; p++) { v[p][r] = parts[p]; }
        }
        UNROLL for (int p = 0; p < type->parts; p++) {
            transpose_16x16(v[p]);
            UNROLL for (int i = 0; i < SIDE; i++) { _mm512_store_si512(out[c / STEP][p][half][i], v[p][i]); }
        }
    }
}

static void split_activations(const matmul_args *a, int64_t t0, int n, int64_t c0, int columns, workspace *s) {
    for (int t = 0; t < n; t++) {
        const float *x = (const float *)(const void *)((const char *)a->x + (size_t)(t0 + t) * a->x_stride) + c0;
        for (int c = 0; c < columns; c += STEP) {
            __m512i parts[X_PARTS];
            split(_mm512_maskz_loadu_ps(mask_of(columns - c), x + c),
                  _mm512_maskz_loadu_ps(mask_of(columns - c - 16), x + c + 16), X_PARTS, parts);
            UNROLL for (int p = 0; p < X_PARTS; p++) { _mm512_store_si512(s->x[c / STEP][p][t / SIDE][t % SIDE], parts[p]); }
        }
    }
}

#define DOT(SUMS, X, W) __asm__ volatile("tdpbf16ps %%" W ", %%" X ", %%" SUMS : :)

/* y[token][row], stride bytes apart, of 32 rows and up to 32 tokens. */
INLINE void multiply(int parts, const workspace *s, int pair, int columns, int n, bool first, float *y, int64_t stride) {
    float *later = (float *)(void *)((char *)y + SIDE * stride);
    if (first) {
        TILE_ZERO("tmm0");
        TILE_ZERO("tmm1");
        TILE_ZERO("tmm2");
        TILE_ZERO("tmm3");
    } else {
        TILE_LOAD("tmm0", y, stride);
        TILE_LOAD("tmm1", y + SIDE, stride);
        if (n > SIDE) {
            TILE_LOAD("tmm2", later, stride);
            TILE_LOAD("tmm3", later + SIDE, stride);
        }
    }
    for (int i = 0; i < (columns + STEP - 1) / STEP; i++) {
        UNROLL for (int w = 0; w < parts; w++) {
            TILE_LOAD("tmm6", s->w[pair][i][w][0], 64);
            TILE_LOAD("tmm7", s->w[pair][i][w][1], 64);
            UNROLL for (int x = 0; x < X_PARTS; x++) {
                TILE_LOAD("tmm4", s->x[i][x][0], 64);
                DOT("tmm0", "tmm4", "tmm6");
                DOT("tmm1", "tmm4", "tmm7");
                if (n > SIDE) {
                    TILE_LOAD("tmm5", s->x[i][x][1], 64);
                    DOT("tmm2", "tmm5", "tmm6");
                    DOT("tmm3", "tmm5", "tmm7");
                }
            }
        }
    }
    TILE_STORE("tmm0", y, stride);
    TILE_STORE("tmm1", y + SIDE, stride);
    if (n > SIDE) {
        TILE_STORE("tmm2", later, stride);
        TILE_STORE("tmm3", later + SIDE, stride);
    }
}

/* What sticks out of the matrix, or has fewer tokens than a tile register rows, goes by way of a whole one. */
INLINE void multiply_pair(const matmul_args *a, int parts, workspace *s, int pair, int columns, int64_t t0, int n, int64_t r,
                          bool first) {
    float *y = a->y + t0 * a->y_stride + r;
    const int n_rows = smaller(a->row1 - r, PAIR);
    if (n_rows == PAIR && n % SIDE == 0) {
        multiply(parts, s, pair, columns, n, first, y, a->y_stride * (int64_t)sizeof *y);
        return;
    }
    for (int t = 0; !first && t < n; t++) {
        memcpy(s->edge[t], y + t * a->y_stride, (size_t)n_rows * sizeof *y);
    }
    multiply(parts, s, pair, columns, n, first, s->edge[0], sizeof s->edge[0]);
    for (int t = 0; t < n; t++) {
        memcpy(y + t * a->y_stride, s->edge[t], (size_t)n_rows * sizeof *y);
    }
}

INLINE void multiply_all(const matmul_args *a, const type_half *type) {
    workspace *s = a->scratch;
    tiles_begin(&config);
    for (int64_t r0 = a->row0; r0 < a->row1; r0 += PAIRS * PAIR) {
        const int n_pairs = smaller((a->row1 - r0 + PAIR - 1) / PAIR, PAIRS);
        for (int64_t c0 = 0; c0 < a->k; c0 += COLUMNS) {
            const int columns = smaller(a->k - c0, COLUMNS);
            for (int i = 0; i < 2 * n_pairs; i++) {
                split_weights(a, type, r0 + SIDE * i, c0, columns, i % 2, s->w[i / 2]);
            }
            for (int64_t t0 = 0; t0 < a->n_tokens; t0 += PAIR) {
                const int n = smaller(a->n_tokens - t0, PAIR);
                split_activations(a, t0, n, c0, columns, s);
                for (int i = 0; i < n_pairs; i++) {
                    multiply_pair(a, type->parts, s, i, columns, t0, n, r0 + PAIR * i, c0 == 0);
                }
            }
        }
    }
    tiles_end();
}

void matmul_f16_amx(const matmul_args *a) { multiply_all(a, &type_f16); }
void matmul_bf16_amx(const matmul_args *a) { multiply_all(a, &type_bf16); }
size_t matmul_float_scratch_amx(void) { return act_round(sizeof(workspace)); }
