/* F32, F16 and BF16 weights, AVX2: everything in float32.
 *
 * Few tokens: one pass over each row. Many: tiles, converted and transposed so that a register holds one column of eight
 * rows, with the loops of matmul_tiles.c. */
#include <immintrin.h>

#include "base/half.h"
#include "kernels/matmul_avx2.h"
#include "kernels/matmul_tiles.h"

enum { ROWS = 16, COLUMNS = 256, TILES = 8, TOKENS = 6, PASS_TOKENS = 4 };

typedef struct type_float {
    int bytes;                             /* of a value */
    __m256 (*load)(const uint8_t *values); /* eight */
    float (*load_one)(const uint8_t *value);
} type_float;

INLINE uint16_t load_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE __m256 load_f32(const uint8_t *values) { return _mm256_loadu_ps((const float *)(const void *)values); }
INLINE __m256 load_f16(const uint8_t *values) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)values));
}
INLINE __m256 load_bf16(const uint8_t *values) {
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)values));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

INLINE float one_f32(const uint8_t *value) {
    float v;
    memcpy(&v, value, sizeof v);
    return v;
}
INLINE float one_f16(const uint8_t *value) { return f16_to_f32(load_u16(value)); }
INLINE float one_bf16(const uint8_t *value) { return bf16_to_f32(load_u16(value)); }

static const type_float type_f32 = {4, load_f32, one_f32};
static const type_float type_f16 = {2, load_f16, one_f16};
static const type_float type_bf16 = {2, load_bf16, one_bf16};

/* The last n < 8 of a row, then zeros: nothing behind them is read. */
INLINE __m256 load_last(const type_float *type, const uint8_t *values, int n) {
    float lanes[8] = {0};
    for (int i = 0; i < n; i++) {
        lanes[i] = type->load_one(values + i * type->bytes);
    }
    return _mm256_loadu_ps(lanes);
}

INLINE __m256 load_up_to_8(const type_float *type, const uint8_t *values, int64_t n) {
    return n >= 8 ? type->load(values) : load_last(type, values, n < 0 ? 0 : (int)n);
}

/* ---- row by row ---------------------------------------------------------------------------------------------------- */

/* Row r and, if there are two, row r + apart. */
INLINE void rows_float(const matmul_args *a, const type_float *type, int64_t t0, int n, int64_t r, int64_t apart, int rows) {
    const int64_t whole = a->k / 32 * 32;
    const float *x[PASS_TOKENS];
    const uint8_t *w[MOST_ROWS];
    __m256 sum[MOST_ROWS][PASS_TOKENS][2];
    UNROLL for (int t = 0; t < n; t++) {
        x[t] = (const float *)(const void *)((const char *)a->x + (size_t)(t0 + t) * a->x_stride);
    }
    UNROLL for (int i = 0; i < rows; i++) {
        w[i] = (const uint8_t *)a->w + (size_t)(r + i * apart) * a->row_bytes;
        UNROLL for (int t = 0; t < n; t++) { sum[i][t][0] = sum[i][t][1] = _mm256_setzero_ps(); }
    }
    for (int64_t c = 0; c < whole; c += 32) {
        UNROLL for (int i = 0; i < rows; i++) {
            const uint8_t *values = w[i] + (size_t)(c * type->bytes);
            fetch_rows_ahead(values, 32 * type->bytes, rows);
            UNROLL for (int j = 0; j < 4; j++) {
                __m256 v = type->load(values + 8 * j * type->bytes);
                UNROLL for (int t = 0; t < n; t++) {
                    sum[i][t][j % 2] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x[t] + c + 8 * j), sum[i][t][j % 2]);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        for (int64_t c = whole; c < a->k; c += 8) { /* packed rows are padded with zeros */
            __m256 v = load_up_to_8(type, w[i] + (size_t)(c * type->bytes), a->k - c);
            UNROLL for (int t = 0; t < n; t++) { sum[i][t][0] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x[t] + c), sum[i][t][0]); }
        }
        UNROLL for (int t = 0; t < n; t++) {
            a->y[(t0 + t) * a->y_stride + r + i * apart] = sum_of_lanes(_mm256_add_ps(sum[i][t][0], sum[i][t][1]));
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

/* ---- tiles --------------------------------------------------------------------------------------------------------- */

typedef struct tile {
    float w[COLUMNS][ROWS];
} tile;

typedef struct panel {
    float x[TOKENS][COLUMNS + 16]; /* tokens apart in the L1 cache's sets */
} panel;

_Static_assert(TILES * sizeof(tile) + sizeof(panel) <= 144 * 1024, "half of a small L2 cache");

INLINE void unpack_tile(const type_float *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int half = 0; half < ROWS; half += 8) {
        for (int c = 0; c < columns; c += 8) {
            __m256i v[8];
            for (int r = 0; r < 8; r++) {
                const uint8_t *values = rows[half + r] + (size_t)((c0 + c) * type->bytes);
                v[r] = _mm256_castps_si256(load_up_to_8(type, values, columns - c));
            }
            transpose_8x8(v);
            UNROLL for (int i = 0; i < 8; i++) { _mm256_store_si256((__m256i *)(void *)(out->w[c + i] + half), v[i]); }
        }
    }
}

static void fill_panel(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {
    panel *p = out;
    (void)k;
    for (int t = 0; t < n; t++) {
        for (int c = 0; c < columns; c += 8) {
            _mm256_store_ps(p->x[t] + c, _mm256_load_ps((const float *)x[t] + c0 + c));
        }
    }
}

static void multiply(const void *tile_of_w, const void *panel_of_x, int columns, int n_rows, int n, fetch_plan *soon,
                     tile_sums sums) {
    const tile *w = tile_of_w;
    const panel *p = panel_of_x;
    (void)n_rows;
    (void)n;
    __m256 sum[TOKENS][2];
    UNROLL for (int t = 0; t < TOKENS; t++) { sum[t][0] = sum[t][1] = _mm256_setzero_ps(); }
    for (int c = 0; c < columns; c++) {
        if (c % TILE_STEP == 0) {
            fetch_some(soon);
        }
        __m256 low = _mm256_load_ps(w->w[c]), high = _mm256_load_ps(w->w[c] + 8);
        UNROLL for (int t = 0; t < TOKENS; t++) {
            __m256 x = _mm256_broadcast_ss(&p->x[t][c]);
            sum[t][0] = _mm256_fmadd_ps(low, x, sum[t][0]);
            sum[t][1] = _mm256_fmadd_ps(high, x, sum[t][1]);
        }
    }
    UNROLL for (int t = 0; t < TOKENS; t++) {
        UNROLL for (int i = 0; i < 2; i++) {
            float *y = sums.y + t * sums.stride + 8 * i;
            _mm256_storeu_ps(y, sums.first ? sum[t][i] : _mm256_add_ps(_mm256_loadu_ps(y), sum[t][i]));
        }
    }
}

size_t matmul_float_scratch_avx2(void) {
    const tile_kernel kernel = {
        .rows = ROWS, .tiles = TILES, .tokens = TOKENS, .tile_bytes = sizeof(tile), .panel_bytes = sizeof(panel)};
    return matmul_tiled_scratch(&kernel);
}

#define FLOAT_TYPE(NAME)                                                                                                       \
    static __attribute__((noinline)) void NAME##_rows(const matmul_args *a) { row_wise(a, &type_##NAME); }                     \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, void *out) {                                \
        unpack_tile(&type_##NAME, rows, c0, columns, out);                                                                     \
    }                                                                                                                          \
    void matmul_##NAME##_avx2(const matmul_args *a) {                                                                          \
        static const tile_kernel kernel = {ROWS,         TILES,         TOKENS,        COLUMNS,    4,                          \
                                           sizeof(tile), sizeof(panel), NAME##_unpack, fill_panel, multiply};                  \
        if (a->n_tokens <= MATMUL_ROWWISE_TOKENS) {                                                                            \
            NAME##_rows(a);                                                                                                    \
        } else {                                                                                                               \
            matmul_tiled(a, &kernel);                                                                                          \
        }                                                                                                                      \
    }

FLOAT_TYPE(f32)
FLOAT_TYPE(f16)
FLOAT_TYPE(bf16)
