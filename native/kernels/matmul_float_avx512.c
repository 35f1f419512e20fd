/* F32, F16 and BF16 weights, AVX-512: everything in float32.
 *
 * Few tokens: one pass over each row. Many: tiles, converted and transposed so that a register holds one column of sixteen
 * rows, with the loops of matmul_tiles.c. */
#include <immintrin.h>

#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"
#include "kernels/matmul_tiles.h"

enum { ROWS = 32, COLUMNS = 256, TILES = 4, TOKENS = 12, PASS_TOKENS = 4 };

typedef struct type_float {
    int bytes;                                             /* of a value */
    __m512 (*load)(const uint8_t *values, __mmask16 mask); /* sixteen, those outside the mask are 0 and not read */
} type_float;

INLINE __m512 load_f32(const uint8_t *values, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, values); }
static const type_float type_f32 = {4, load_f32};
static const type_float type_f16 = {2, load_f16};
static const type_float type_bf16 = {2, load_bf16};

INLINE const float *row_of_token(const matmul_args *a, int64_t t) {
    return (const float *)(const void *)((const char *)a->x + (size_t)t * a->x_stride);
}

/* ---- row by row ---------------------------------------------------------------------------------------------------- */

/* Row r and, if there are two, row r + apart. */
INLINE void rows_float(const matmul_args *a, const type_float *type, int64_t t0, int n, int64_t r, int64_t apart, int rows) {
    const int64_t whole = a->k / 64 * 64;
    const float *x[PASS_TOKENS];
    const uint8_t *w[MOST_ROWS];
    __m512 sum[MOST_ROWS][PASS_TOKENS][4];
    UNROLL for (int t = 0; t < n; t++) { x[t] = row_of_token(a, t0 + t); }
    UNROLL for (int i = 0; i < rows; i++) {
        w[i] = (const uint8_t *)a->w + (size_t)(r + i * apart) * a->row_bytes;
        UNROLL for (int t = 0; t < n; t++) { sum[i][t][0] = sum[i][t][1] = sum[i][t][2] = sum[i][t][3] = _mm512_setzero_ps(); }
    }
    for (int64_t c = 0; c < whole; c += 64) {
        UNROLL for (int i = 0; i < rows; i++) {
            const uint8_t *values = w[i] + (size_t)(c * type->bytes);
            fetch_rows_ahead(values, 64 * type->bytes, rows);
            UNROLL for (int j = 0; j < 4; j++) {
                __m512 v = type->load(values + 16 * j * type->bytes, 0xffff);
                UNROLL for (int t = 0; t < n; t++) {
                    sum[i][t][j] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x[t] + c + 16 * j), sum[i][t][j]);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        for (int64_t c = whole; c < a->k; c += 16) {
            __mmask16 mask = mask_of(a->k - c);
            __m512 v = type->load(w[i] + (size_t)(c * type->bytes), mask);
            UNROLL for (int t = 0; t < n; t++) {
                sum[i][t][0] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(mask, x[t] + c), sum[i][t][0]);
            }
        }
        UNROLL for (int t = 0; t < n; t++) {
            __m512 total = _mm512_add_ps(_mm512_add_ps(sum[i][t][0], sum[i][t][1]), _mm512_add_ps(sum[i][t][2], sum[i][t][3]));
            a->y[(t0 + t) * a->y_stride + r + i * apart] = _mm512_reduce_add_ps(total);
        }
    }
}

INLINE void pass_float(const matmul_args *a, const type_float *type, int64_t t0,
                       int n){FOR_ROWS_APART(a, n == 1, rows_float, a, type, t0, n)}

INLINE void row_wise(const matmul_args *a, const type_float *type) {
    int64_t t = 0;
    for (; t + 4 <= a->n_tokens; t += 4) {
        pass_float(a, type, t, 4);
    }
    for (; t < a->n_tokens; t++) {
        pass_float(a, type, t, 1);
    }
}

/* ---- tiles of 32 rows: two registers a column ------------------------------------------------------------------------- */

typedef struct tile {
    float w[COLUMNS][ROWS];
} tile;

typedef struct panel {
    float x[TOKENS][COLUMNS + 16]; /* tokens apart in the L1 cache's sets */
} panel;

_Static_assert(TILES * sizeof(tile) + sizeof(panel) <= 288 * 1024, "tiles share the L2 cache with the activations");

INLINE void unpack_tile(const type_float *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int half = 0; half < ROWS; half += 16) {
        for (int c = 0; c < columns; c += 16) {
            __mmask16 mask = mask_of(columns - c);
            __m512i v[16];
            UNROLL for (int r = 0; r < 16; r++) {
                v[r] = _mm512_castps_si512(type->load(rows[half + r] + (size_t)((c0 + c) * type->bytes), mask));
            }
            transpose_16x16(v);
            UNROLL for (int i = 0; i < 16; i++) { _mm512_store_si512(out->w[c + i] + half, v[i]); }
        }
    }
}

static void fill_panel(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {
    panel *p = out;
    (void)k;
    for (int t = 0; t < n; t++) {
        for (int c = 0; c < columns; c += 16) { /* packed rows are padded */
            _mm512_store_ps(p->x[t] + c, _mm512_load_ps((const float *)x[t] + c0 + c));
        }
    }
}

/* 16 or 32 rows (registers: 1 or 2) and n tokens. */
INLINE void multiply(const tile *w, const panel *p, int columns, int registers, int n, fetch_plan *soon, tile_sums sums) {
    __m512 sum[TOKENS][2];
    UNROLL for (int t = 0; t < n; t++) { sum[t][0] = sum[t][1] = _mm512_setzero_ps(); }
    for (int c = 0; c < columns; c++) {
        if (c % TILE_STEP == 0) {
            fetch_some(soon);
        }
        __m512 low = _mm512_load_ps(w->w[c]), high = registers > 1 ? _mm512_load_ps(w->w[c] + 16) : low;
        UNROLL for (int t = 0; t < n; t++) {
            __m512 x = _mm512_set1_ps(p->x[t][c]);
            sum[t][0] = _mm512_fmadd_ps(low, x, sum[t][0]);
            if (registers > 1) {
                sum[t][1] = _mm512_fmadd_ps(high, x, sum[t][1]);
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) {
        UNROLL for (int i = 0; i < registers; i++) {
            float *y = sums.y + t * sums.stride + 16 * i;
            _mm512_storeu_ps(y, sums.first ? sum[t][i] : _mm512_add_ps(_mm512_loadu_ps(y), sum[t][i]));
        }
    }
}

static void multiply_any(const void *w, const void *p, int columns, int n_rows, int n, fetch_plan *soon, tile_sums sums) {
    if (n_rows > 16) {
        if (n > 8) {
            multiply(w, p, columns, 2, 12, soon, sums);
        } else if (n > 4) {
            multiply(w, p, columns, 2, 8, soon, sums);
        } else {
            multiply(w, p, columns, 2, 4, soon, sums);
        }
    } else {
        if (n > 8) {
            multiply(w, p, columns, 1, 12, soon, sums);
        } else {
            multiply(w, p, columns, 1, 8, soon, sums);
        }
    }
}

size_t matmul_float_scratch_avx512(void) {
    const tile_kernel kernel = {
        .rows = ROWS, .tiles = TILES, .tokens = TOKENS, .tile_bytes = sizeof(tile), .panel_bytes = sizeof(panel)};
    return matmul_tiled_scratch(&kernel);
}

#define FLOAT_TYPE(NAME)                                                                                                       \
    static __attribute__((noinline)) void NAME##_rows(const matmul_args *a) { row_wise(a, &type_##NAME); }                     \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, void *out) {                                \
        unpack_tile(&type_##NAME, rows, c0, columns, out);                                                                     \
    }                                                                                                                          \
    void matmul_##NAME##_avx512(const matmul_args *a) {                                                                        \
        static const tile_kernel kernel = {ROWS,         TILES,         TOKENS,        COLUMNS,    4,                          \
                                           sizeof(tile), sizeof(panel), NAME##_unpack, fill_panel, multiply_any};              \
        if (a->n_tokens <= MATMUL_ROWWISE_TOKENS) {                                                                            \
            NAME##_rows(a);                                                                                                    \
        } else {                                                                                                               \
            matmul_tiled(a, &kernel);                                                                                          \
        }                                                                                                                      \
    }

FLOAT_TYPE(f32)
FLOAT_TYPE(f16)
FLOAT_TYPE(bf16)
