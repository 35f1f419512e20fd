/* Many tokens, AVX-512: weights are unpacked, sixteen rows at a time, into tiles of bytes that all tokens share.
 *
 *   for 128 rows, for 1024 columns:   8 tiles                      (unpacked once, stays in the L2 cache)
 *       for 8 tokens:                 a panel of activations       (L1)
 *           for each tile:            16 rows x 8 tokens           (registers), added to y
 *
 * In a tile a register holds four columns of sixteen rows; vpdpbusd multiplies it with four activations of a token. The sums of a
 * group of 16 or 32 columns are whole numbers without rounding; d * scale is exact in float32 (11 + 8 bits); the rest is float32. */
#include "kernels/matmul_unpack_avx512.h"

#include "kernels/fill.h"
#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"

#define UNROLL _Pragma("GCC unroll 16")

enum { ROWS = MATMUL_ROW_TILE, COLUMNS = 1024, TILES = 8, TOKENS = 8 };

typedef struct tile {
    uint8_t u[COLUMNS / 4][ROWS][4];
    float scale[COLUMNS / 16][ROWS];       /* of a block of 32, or d * scale of a group */
    float minimum[COLUMNS / 32][ROWS];     /* m of a block of 32 */
    int16_t minima[COLUMNS / 32][ROWS][2]; /* of two groups */
    float dmin[COLUMNS / 256][ROWS];
} tile;

typedef struct panel {
    int8_t x[TOKENS][COLUMNS + 64];        /* tokens apart in the L1 cache's sets */
    int32_t start[TOKENS][COLUMNS / 16];   /* -offset * sum of x, of a block or group */
    float d[TOKENS][COLUMNS / 32];         /* of a block or super-block */
    float d_sum[TOKENS][COLUMNS / 32];     /* d * sum of x of a block of 32 */
    int16_t sums[TOKENS][COLUMNS / 16];    /* of groups */
} panel;

typedef struct workspace {
    tile tiles[TILES];
    panel panel;
    float y[TOKENS][ROWS];
} workspace;

_Static_assert(sizeof(tile) % 64 == 0 && sizeof(panel) % 64 == 0, "parts are aligned to cache lines");
_Static_assert(sizeof(workspace) <= 256 * 1024, "tiles share the L2 cache with the activations");

size_t matmul_tiles_scratch_avx512(int64_t k) {
    (void)k;
    return act_round(sizeof(workspace));
}

/* ---- unpacking ----------------------------------------------------------------------------------------------------- */

/* Rows of 16 dwords to columns. */
INLINE void transpose(__m512i v[16]) {
    __m512i a[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { /* v[i + c]: column c (mod 4) of rows i..i+3, a quarter for each four columns */
        v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        a[c] = _mm512_shuffle_i32x4(v[c], v[c + 4], 0x88);
        a[c + 4] = _mm512_shuffle_i32x4(v[c], v[c + 4], 0xdd);
        a[c + 8] = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0x88);
        a[c + 12] = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0xdd);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        v[c] = _mm512_shuffle_i32x4(a[c], a[c + 8], 0x88);
        v[c + 4] = _mm512_shuffle_i32x4(a[c + 4], a[c + 12], 0x88);
        v[c + 8] = _mm512_shuffle_i32x4(a[c], a[c + 8], 0xdd);
        v[c + 12] = _mm512_shuffle_i32x4(a[c + 4], a[c + 12], 0xdd);
    }
}

INLINE __m128i gather_8(const uint8_t *const *rows, size_t offset) {
    __m128i v = _mm_cvtsi32_si128(load_u16(rows[0] + offset));
    v = _mm_insert_epi16(v, load_u16(rows[1] + offset), 1);
    v = _mm_insert_epi16(v, load_u16(rows[2] + offset), 2);
    v = _mm_insert_epi16(v, load_u16(rows[3] + offset), 3);
    v = _mm_insert_epi16(v, load_u16(rows[4] + offset), 4);
    v = _mm_insert_epi16(v, load_u16(rows[5] + offset), 5);
    v = _mm_insert_epi16(v, load_u16(rows[6] + offset), 6);
    return _mm_insert_epi16(v, load_u16(rows[7] + offset), 7);
}

INLINE void unpack_tile_32(const type_32 *type, const uint8_t *const rows[ROWS], int64_t c0, int columns, tile *out) {
    const int n_blocks = columns / 32;
    const size_t bytes = (size_t)type->bytes, first = (size_t)(c0 / 32) * bytes;
    for (int b = 0; b < n_blocks; b += 2) {
        size_t at0 = first + (size_t)b * bytes;
        size_t at1 = b + 1 < n_blocks ? at0 + bytes : at0; /* the last block, if odd, fills its neighbour too; nobody looks */
        __m512i v[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            v[r] = type->columns(rows[r] + at0, rows[r] + at1);
        }
        transpose(v);
        UNROLL for (int i = 0; i < 16; i++) {
            _mm512_store_si512(out->u[8 * b + i], v[i]);
        }
    }
    for (int b = 0; b < n_blocks; b++) {
        size_t at = first + (size_t)b * bytes;
        _mm256_store_ps(out->scale[b], type->scale(gather_8(rows, at)));
        _mm256_store_ps(out->scale[b] + 8, type->scale(gather_8(rows + 8, at)));
        if (type->has_min) {
            _mm256_store_ps(out->minimum[b], half_scale(gather_8(rows, at + 2)));
            _mm256_store_ps(out->minimum[b] + 8, half_scale(gather_8(rows + 8, at + 2)));
        }
    }
}

INLINE void unpack_tile_256(const type_256 *type, const uint8_t *const rows[ROWS], int64_t c0, int columns, tile *out) {
    const int groups = 256 / type->group;
    for (int s = 0; s < columns / 256; s++) {
        const size_t at = (size_t)((c0 / 256 + s) * type->bytes);
        __m512i v[ROWS], m[ROWS];
        for (int j = 0; j < 4; j++) {
            UNROLL for (int r = 0; r < ROWS; r++) {
                v[r] = type->columns(rows[r] + at, j);
            }
            transpose(v);
            UNROLL for (int i = 0; i < 16; i++) {
                _mm512_store_si512(out->u[64 * s + 16 * j + i], v[i]);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            header_256 h = type->header(rows[r] + at);
            __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(h.scale)), _mm512_set1_ps(h.d));
            v[r] = _mm512_castps_si512(scale);
            if (type->has_min && type->group == 32) { /* one of each two that are equal */
                m[r] = _mm512_castsi128_si512(_mm256_cvtepi32_epi16(h.minimum));
            } else if (type->has_min) {
                m[r] = _mm512_castsi256_si512(h.minimum);
            }
            out->dmin[s][r] = h.dmin;
        }
        transpose(v);
        UNROLL for (int g = 0; g < 16; g++) {
            if (type->group == 16 || g % 2 == 0) {
                _mm512_store_ps(out->scale[groups * s + g * groups / 16], _mm512_castsi512_ps(v[g]));
            }
        }
        if (type->has_min) {
            transpose(m);
            UNROLL for (int i = 0; i < 8; i++) {
                if (i < groups / 2) {
                    _mm512_store_si512(out->minima[groups / 2 * s + i], m[i]);
                }
            }
        }
    }
}

/* ---- activations --------------------------------------------------------------------------------------------------- */

INLINE void copy_bytes(int8_t *to, const int8_t *from, int n) {
    for (int i = 0; i < n; i += 64) { /* rows of the panel, and packed rows, are padded */
        _mm512_store_si512(to + i, _mm512_load_si512(from + i));
    }
}

/* Tokens beyond the last repeat it; what comes out for them is dropped. */
INLINE const void *row_of_token(const matmul_args *a, int64_t t) {
    return (const char *)a->x + (size_t)(t < a->n_tokens ? t : a->n_tokens - 1) * a->x_stride;
}

INLINE __m512i times_minus_offset(__m512i sums, int offset) { return _mm512_mullo_epi32(sums, _mm512_set1_epi32(-offset)); }

INLINE void fill_panel_32(const type_32 *type, const matmul_args *a, int64_t t0, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        const void *row = row_of_token(a, t0 + t);
        copy_bytes(p->x[t], act_q8(row) + c0, columns);
        const float *d = act_scales(row, a->k) + c0 / 32;
        const int32_t *sum = act_sums_32(row, a->k) + c0 / 32;
        for (int b = 0; b < columns / 32; b += 16) {
            __m512 scale = _mm512_load_ps(d + b);
            __m512i sums = _mm512_load_si512(sum + b);
            _mm512_store_ps(p->d[t] + b, scale);
            if (type->has_min) {
                _mm512_store_ps(p->d_sum[t] + b, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums)));
            }
            if (type->offset != 0) {
                _mm512_store_si512(p->start[t] + b, times_minus_offset(sums, type->offset));
            }
        }
    }
}

INLINE void fill_panel_256(const type_256 *type, const matmul_args *a, int64_t t0, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        const void *row = row_of_token(a, t0 + t);
        copy_bytes(p->x[t], act_q8(row) + c0, columns);
        const float *d = act_scales(row, a->k) + c0 / 256;
        const int16_t *sum = act_sums_16(row, a->k) + c0 / 16;
        for (int s = 0; s < columns / 256; s++) {
            p->d[t][s] = d[s];
        }
        for (int g = 0; g < columns / 16; g += 16) {
            __m256i of_16 = _mm256_load_si256((const __m256i *)(const void *)(sum + g));
            if (type->group == 16) {
                if (type->has_min) {
                    _mm256_store_si256((__m256i *)(void *)(p->sums[t] + g), of_16);
                }
                if (type->offset != 0) {
                    _mm512_store_si512(p->start[t] + g, times_minus_offset(_mm512_cvtepi16_epi32(of_16), type->offset));
                }
            } else {
                __m256i of_32 = _mm256_madd_epi16(of_16, _mm256_set1_epi16(1));
                if (type->has_min) {
                    _mm_store_si128((__m128i *)(void *)(p->sums[t] + g / 2), _mm256_cvtepi32_epi16(of_32));
                }
                if (type->offset != 0) {
                    of_32 = _mm256_mullo_epi32(of_32, _mm256_set1_epi32(-type->offset));
                    _mm256_store_si256((__m256i *)(void *)(p->start[t] + g / 2), of_32);
                }
            }
        }
    }
}

/* ---- sixteen rows times n tokens ------------------------------------------------------------------------------------ */

INLINE __m512i all_lanes(const void *four_bytes) { return _mm512_set1_epi32((int32_t)load_u32(four_bytes)); }

/* dot[t] = the whole-number sums of a group of columns, a multiple of 4 */
INLINE void dot_group(const tile *w, const panel *p, int column, int columns, int group, bool offset, int n, __m512i *dot) {
    UNROLL for (int t = 0; t < n; t++) {
        dot[t] = offset ? _mm512_set1_epi32(p->start[t][group]) : _mm512_setzero_si512();
    }
    UNROLL for (int i = 0; i < columns; i += 4) {
        __m512i u = _mm512_load_si512(w->u[(column + i) / 4]);
        UNROLL for (int t = 0; t < n; t++) {
            dot[t] = _mm512_dpbusd_epi32(dot[t], u, all_lanes(p->x[t] + column + i));
        }
    }
}

INLINE void multiply_32(const type_32 *type, const tile *w, const panel *p, int columns, int n, float (*y)[ROWS]) {
    __m512 sum[TOKENS];
    UNROLL for (int t = 0; t < n; t++) {
        sum[t] = _mm512_setzero_ps();
    }
    for (int b = 0; b < columns / 32; b++) {
        __m512i dot[TOKENS];
        dot_group(w, p, 32 * b, 32, b, type->offset != 0, n, dot);
        __m512 scale = _mm512_load_ps(w->scale[b]);
        UNROLL for (int t = 0; t < n; t++) {
            __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t]), scale);
            sum[t] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(p->d[t][b]), sum[t]);
            if (type->has_min) {
                sum[t] = _mm512_fmadd_ps(_mm512_load_ps(w->minimum[b]), _mm512_set1_ps(p->d_sum[t][b]), sum[t]);
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) {
        _mm512_store_ps(y[t], sum[t]);
    }
}

INLINE void multiply_256(const type_256 *type, const tile *w, const panel *p, int columns, int n, float (*y)[ROWS]) {
    const int groups = 256 / type->group;
    UNROLL for (int t = 0; t < n; t++) {
        _mm512_store_ps(y[t], _mm512_setzero_ps());
    }
    for (int s = 0; s < columns / 256; s++) {
        __m512 sum[TOKENS];
        UNROLL for (int t = 0; t < n; t++) {
            sum[t] = _mm512_setzero_ps();
        }
        for (int g = groups * s; g < groups * (s + 1); g++) {
            __m512i dot[TOKENS];
            dot_group(w, p, type->group * g, type->group, g, type->offset != 0, n, dot);
            __m512 scale = _mm512_load_ps(w->scale[g]);
            UNROLL for (int t = 0; t < n; t++) {
                sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), scale, sum[t]);
            }
        }
        UNROLL for (int t = 0; t < n; t++) {
            if (type->has_min) {
                __m512i minima = _mm512_setzero_si512();
                UNROLL for (int i = groups / 2 * s; i < groups / 2 * (s + 1); i++) {
                    minima = _mm512_dpwssd_epi32(minima, _mm512_load_si512(w->minima[i]), all_lanes(p->sums[t] + 2 * i));
                }
                sum[t] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minima), _mm512_load_ps(w->dmin[s]), sum[t]);
            }
            _mm512_store_ps(y[t], _mm512_fmadd_ps(sum[t], _mm512_set1_ps(p->d[t][s]), _mm512_load_ps(y[t])));
        }
    }
}

/* ---- the loops around ------------------------------------------------------------------------------------------------ */

typedef struct tile_steps {
    void (*unpack)(const uint8_t *const rows[ROWS], int64_t c0, int columns, tile *out);
    void (*fill_panel)(const matmul_args *a, int64_t t0, int64_t c0, int columns, int n, panel *p);
    void (*multiply_8)(const tile *w, const panel *p, int columns, float (*y)[ROWS]);
    void (*multiply_4)(const tile *w, const panel *p, int columns, float (*y)[ROWS]);
} tile_steps;

static void unpack_rows(const matmul_args *a, const tile_steps *steps, int64_t r0, int64_t c0, int columns, tile *out) {
    const uint8_t *rows[ROWS];
    for (int64_t r = 0; r < ROWS; r++) { /* beyond the last row, that row again: its results are dropped */
        int64_t row = r0 + r < a->row1 ? r0 + r : a->row1 - 1;
        rows[r] = (const uint8_t *)a->w + (size_t)row * a->row_bytes;
    }
    steps->unpack(rows, c0, columns, out);
}

static void add_result(const matmul_args *a, int64_t r0, int64_t t0, bool first, int n, float (*const sums)[ROWS]) {
    int64_t n_rows = a->row1 - r0 < ROWS ? a->row1 - r0 : ROWS;
    __mmask16 mask = (__mmask16)((1u << n_rows) - 1);
    for (int t = 0; t < n; t++) {
        float *y = a->y + (t0 + t) * a->y_stride + r0;
        __m512 sum = _mm512_load_ps(sums[t]);
        if (!first) {
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y));
        }
        _mm512_mask_storeu_ps(y, mask, sum);
    }
}

static void matmul_tiles(const matmul_args *a, const tile_steps *steps) {
    workspace *ws = a->scratch;
    for (int64_t r0 = a->row0; r0 < a->row1; r0 += TILES * ROWS) {
        int64_t n_rows = a->row1 - r0 < TILES * ROWS ? a->row1 - r0 : TILES * ROWS;
        int n_tiles = (int)((n_rows + ROWS - 1) / ROWS);
        for (int64_t c0 = 0; c0 < a->k; c0 += COLUMNS) {
            int columns = a->k - c0 < COLUMNS ? (int)(a->k - c0) : COLUMNS;
            for (int i = 0; i < n_tiles; i++) {
                unpack_rows(a, steps, r0 + i * ROWS, c0, columns, &ws->tiles[i]);
            }
            for (int64_t t0 = 0; t0 < a->n_tokens; t0 += TOKENS) {
                int n = a->n_tokens - t0 < TOKENS ? (int)(a->n_tokens - t0) : TOKENS;
                bool few = n <= TOKENS / 2;
                steps->fill_panel(a, t0, c0, columns, few ? TOKENS / 2 : TOKENS, &ws->panel);
                for (int i = 0; i < n_tiles; i++) {
                    (few ? steps->multiply_4 : steps->multiply_8)(&ws->tiles[i], &ws->panel, columns, ws->y);
                    add_result(a, r0 + i * ROWS, t0, c0 == 0, n, ws->y);
                }
            }
        }
    }
}

#define TILED(KIND, NAME)                                                                                               \
    static void NAME##_unpack(const uint8_t *const rows[ROWS], int64_t c0, int columns, tile *out) {                    \
        unpack_tile_##KIND(&type_##NAME, rows, c0, columns, out);                                                       \
    }                                                                                                                   \
    static void NAME##_panel(const matmul_args *a, int64_t t0, int64_t c0, int columns, int n, panel *p) {              \
        fill_panel_##KIND(&type_##NAME, a, t0, c0, columns, n, p);                                                      \
    }                                                                                                                   \
    static void NAME##_by_8(const tile *w, const panel *p, int columns, float (*y)[ROWS]) {                             \
        multiply_##KIND(&type_##NAME, w, p, columns, 8, y);                                                             \
    }                                                                                                                   \
    static void NAME##_by_4(const tile *w, const panel *p, int columns, float (*y)[ROWS]) {                             \
        multiply_##KIND(&type_##NAME, w, p, columns, 4, y);                                                             \
    }                                                                                                                   \
    void matmul_tiles_##NAME##_avx512(const matmul_args *a) {                                                           \
        static const tile_steps steps = {NAME##_unpack, NAME##_panel, NAME##_by_8, NAME##_by_4};                             \
        matmul_tiles(a, &steps);                                                                                        \
    }

TILED(32, q4_0)
TILED(32, q4_1)
TILED(32, q5_0)
TILED(32, q5_1)
TILED(32, q8_0)
TILED(32, iq4_nl)
TILED(32, mxfp4)
TILED(256, q2_K)
TILED(256, q3_K)
TILED(256, q4_K)
TILED(256, q5_K)
TILED(256, q6_K)
TILED(256, iq4_xs)
