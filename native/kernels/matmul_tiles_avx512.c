/* Many tokens, AVX-512: what the loops of matmul_tiles.c call.
 *
 * In a tile two registers hold four columns of 32 rows as bytes; vpdpbusd multiplies them with four activations of a token. The
 * sums of a group of 16 or 32 columns are whole numbers without rounding; d * scale is exact in float32 (11 + 8 bits); the rest
 * is float32.
 *
 * Two registers times six tokens, because vpdpbusd takes five cycles and two may start in each, and every activation that is
 * loaded is used twice: of a Sapphire Rapids core's peak eight sums in flight reach 65 %, twelve 78 (tests/bench/ladder). */
#include "kernels/matmul_unpack_avx512.h"

#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"
#include "kernels/matmul_tiles.h"

enum { ROWS = 32, COLUMNS = 1024, TILES = 4, TOKENS = 12, PASS = 6 };

typedef struct tile {
    uint8_t u[COLUMNS / 4][ROWS][4];
    float scale[COLUMNS / 16][ROWS];       /* of a block of 32, or d * scale of a group */
    float minimum[COLUMNS / 32][ROWS];     /* m of a block of 32 */
    int16_t minima[COLUMNS / 32][ROWS][2]; /* of two groups */
    float dmin[COLUMNS / 256][ROWS];
} tile;

typedef struct panel {
    int8_t x[TOKENS][COLUMNS + 64];      /* tokens apart in the L1 cache's sets */
    int32_t start[TOKENS][COLUMNS / 16]; /* -offset * sum of x, of a block or group */
    float d[TOKENS][COLUMNS / 32];       /* of a block or super-block */
    float d_sum[TOKENS][COLUMNS / 32];   /* d * sum of x of a block of 32 */
    int16_t sums[TOKENS][COLUMNS / 16];  /* of groups */
} panel;

_Static_assert(sizeof(tile) % 64 == 0 && sizeof(panel) % 64 == 0, "parts are aligned to cache lines");
_Static_assert(TILES * sizeof(tile) + sizeof(panel) <= 240 * 1024, "tiles share the L2 cache with the activations");

/* ---- unpacking ----------------------------------------------------------------------------------------------------- */

INLINE void unpack_tile_32(const type_32 *type, const uint8_t *const *rows, int64_t c0, int columns, int half, tile *out) {
    const int n_blocks = columns / 32;
    const size_t bytes = (size_t)type->bytes, first = (size_t)(c0 / 32) * bytes;
    for (int b = 0; b < n_blocks; b += 2) {
        size_t at0 = first + (size_t)b * bytes;
        size_t at1 = b + 1 < n_blocks ? at0 + bytes : at0; /* the last block, if odd, fills its neighbour too; nobody looks */
        __m512i v[16];
        UNROLL for (int r = 0; r < 16; r++) { v[r] = type->columns(rows[half + r] + at0, rows[half + r] + at1); }
        transpose_16x16(v);
        UNROLL for (int i = 0; i < 16; i++) { _mm512_store_si512(out->u[8 * b + i][half], v[i]); }
    }
    for (int b = 0; b < n_blocks; b++) {
        size_t at = first + (size_t)b * bytes;
        _mm256_store_ps(out->scale[b] + half, type->scale(words_of_rows(rows + half, at)));
        _mm256_store_ps(out->scale[b] + half + 8, type->scale(words_of_rows(rows + half + 8, at)));
        if (type->has_min) {
            _mm256_store_ps(out->minimum[b] + half, half_scale(words_of_rows(rows + half, at + 2)));
            _mm256_store_ps(out->minimum[b] + half + 8, half_scale(words_of_rows(rows + half + 8, at + 2)));
        }
    }
}

INLINE void unpack_tile_256(const type_256 *type, const uint8_t *const *rows, int64_t c0, int columns, int half, tile *out) {
    const int groups = 256 / type->group;
    for (int s = 0; s < columns / 256; s++) {
        const size_t at = (size_t)((c0 / 256 + s) * type->bytes);
        __m512i v[16], m[16];
        for (int j = 0; j < 4; j++) {
            UNROLL for (int r = 0; r < 16; r++) { v[r] = type->columns(rows[half + r] + at, j); }
            transpose_16x16(v);
            UNROLL for (int i = 0; i < 16; i++) { _mm512_store_si512(out->u[64 * s + 16 * j + i][half], v[i]); }
        }
        UNROLL for (int r = 0; r < 16; r++) {
            header_256 h = type->header(rows[half + r] + at);
            __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(h.scale)), _mm512_set1_ps(h.d));
            v[r] = _mm512_castps_si512(scale);
            if (type->has_min && type->group == 32) { /* one of each two that are equal */
                m[r] = _mm512_castsi128_si512(_mm256_cvtepi32_epi16(h.minimum));
            } else if (type->has_min) {
                m[r] = _mm512_castsi256_si512(h.minimum);
            }
            out->dmin[s][half + r] = h.dmin;
        }
        transpose_16x16(v);
        UNROLL for (int g = 0; g < 16; g++) {
            if (type->group == 16 || g % 2 == 0) {
                _mm512_store_ps(out->scale[groups * s + g * groups / 16] + half, _mm512_castsi512_ps(v[g]));
            }
        }
        if (type->has_min) {
            transpose_16x16(m);
            UNROLL for (int i = 0; i < 8; i++) {
                if (i < groups / 2) {
                    _mm512_store_si512(out->minima[groups / 2 * s + i][half], m[i]);
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

INLINE __m512i times_minus_offset(__m512i sums, int offset) { return _mm512_mullo_epi32(sums, _mm512_set1_epi32(-offset)); }

static void fill_panel_32(const type_32 *type, const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        copy_bytes(p->x[t], act_q8(x[t]) + c0, columns);
        const float *d = act_scales(x[t], k) + c0 / 32;
        const int32_t *sum = act_sums_32(x[t], k) + c0 / 32;
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

static void fill_panel_256(const type_256 *type, const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        copy_bytes(p->x[t], act_q8(x[t]) + c0, columns);
        const float *d = act_scales(x[t], k) + c0 / 256;
        const int16_t *sum = act_sums_16(x[t], k) + c0 / 16;
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

/* ---- 16 or 32 rows (1 or 2 registers) times n tokens ------------------------------------------------------------------ */

INLINE float *place_of(const tile_sums *s, int t, int r) { return s->y + t * s->stride + 16 * r; }

INLINE __m512 begin_sum(const tile_sums *s, int t, int r) {
    return s->first ? _mm512_setzero_ps() : _mm512_loadu_ps(place_of(s, t, r));
}

INLINE __m512i all_lanes(const void *four_bytes) { return _mm512_set1_epi32((int32_t)load_u32(four_bytes)); }

/* dot[t][r] = the whole-number sums of a group of columns, a multiple of 4 */
INLINE void dot_group(const tile *w, const panel *p, int group, int columns, bool offset, int registers, int t0, int n,
                      __m512i (*dot)[2]) {
    UNROLL for (int t = 0; t < n; t++) {
        dot[t][0] = dot[t][1] = offset ? _mm512_set1_epi32(p->start[t0 + t][group]) : _mm512_setzero_si512();
    }
    const uint8_t (*fours)[ROWS][4] = w->u + group * (columns / 4);
    const int8_t *x = p->x[t0] + group * columns;
    UNROLL for (int i = 0; i < columns / 4; i++) {
        __m512i low = _mm512_load_si512(fours[i]), high = registers > 1 ? _mm512_load_si512(fours[i][16]) : low;
        UNROLL for (int t = 0; t < n; t++) {
            __m512i a = all_lanes(x + t * (int)sizeof p->x[0] + 4 * i);
            dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], low, a);
            if (registers > 1) {
                dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], high, a);
            }
        }
    }
}

INLINE void multiply_32(bool has_min, const tile *w, const panel *p, int columns, int registers, int t0, int n,
                        fetch_plan *soon, tile_sums sums) {
    __m512 sum[TOKENS][2];
    UNROLL for (int t = 0; t < n; t++) {
        UNROLL for (int r = 0; r < registers; r++) { sum[t][r] = begin_sum(&sums, t0 + t, r); }
    }
    for (int b = 0; b < columns / 32; b++) {
        __m512i dot[TOKENS][2];
        if (t0 == 0) {
            fetch_some(soon);
        }
        dot_group(w, p, b, 32, !has_min, registers, t0, n, dot);
        UNROLL for (int r = 0; r < registers; r++) {
            __m512 scale = _mm512_load_ps(w->scale[b] + 16 * r);
            UNROLL for (int t = 0; t < n; t++) {
                __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t][r]), scale);
                sum[t][r] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(p->d[t0 + t][b]), sum[t][r]);
                if (has_min) {
                    __m512 minimum = _mm512_load_ps(w->minimum[b] + 16 * r);
                    sum[t][r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(p->d_sum[t0 + t][b]), sum[t][r]);
                }
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) {
        UNROLL for (int r = 0; r < registers; r++) { _mm512_storeu_ps(place_of(&sums, t0 + t, r), sum[t][r]); }
    }
}

INLINE void multiply_256(int group, bool has_min, const tile *w, const panel *p, int columns, int registers, int t0, int n,
                         fetch_plan *soon, tile_sums sums) {
    const int groups = 256 / group;
    for (int s = 0; s < columns / 256; s++) {
        __m512 sum[TOKENS][2];
        UNROLL for (int t = 0; t < n; t++) { sum[t][0] = sum[t][1] = _mm512_setzero_ps(); }
        for (int g = groups * s; g < groups * (s + 1); g++) {
            __m512i dot[TOKENS][2];
            if (t0 == 0 && (group == TILE_STEP || g % 2 == 0)) {
                fetch_some(soon);
            }
            dot_group(w, p, g, group, !has_min, registers, t0, n, dot);
            UNROLL for (int r = 0; r < registers; r++) {
                __m512 scale = _mm512_load_ps(w->scale[g] + 16 * r);
                UNROLL for (int t = 0; t < n; t++) {
                    sum[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][r]), scale, sum[t][r]);
                }
            }
        }
        __m512i minima[TOKENS][2];
        UNROLL for (int t = 0; t < n; t++) { minima[t][0] = minima[t][1] = _mm512_setzero_si512(); }
        const int pairs = has_min ? groups / 2 : 0;
        UNROLL for (int i = pairs * s; i < pairs * (s + 1); i++) {
            __m512i low = _mm512_load_si512(w->minima[i]), high = _mm512_load_si512(w->minima[i][16]);
            UNROLL for (int t = 0; t < n; t++) {
                __m512i x = all_lanes(p->sums[t0 + t] + 2 * i);
                minima[t][0] = _mm512_dpwssd_epi32(minima[t][0], low, x);
                if (registers > 1) {
                    minima[t][1] = _mm512_dpwssd_epi32(minima[t][1], high, x);
                }
            }
        }
        UNROLL for (int r = 0; r < registers; r++) {
            __m512 dmin = _mm512_load_ps(w->dmin[s] + 16 * r);
            UNROLL for (int t = 0; t < n; t++) {
                if (has_min) {
                    sum[t][r] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minima[t][r]), dmin, sum[t][r]);
                }
                __m512 total = _mm512_fmadd_ps(sum[t][r], _mm512_set1_ps(p->d[t0 + t][s]), begin_sum(&sums, t0 + t, r));
                _mm512_storeu_ps(place_of(&sums, t0 + t, r), total);
            }
        }
        sums.first = false;
    }
}

/* Types differ here only by the columns that share a scale, and by having minima or an offset. */

#define FOR_TOKENS(NAME, CALL, ...)                                                                                            \
    static void NAME(const void *w, const void *p, int columns, int n_rows, int n, fetch_plan *soon, tile_sums sums) {         \
        if (n_rows <= 16) {                                                                                                    \
            CALL(__VA_ARGS__, w, p, columns, 1, 0, TOKENS, soon, sums);                                                        \
            return;                                                                                                            \
        }                                                                                                                      \
        int t = 0;                                                                                                             \
        for (; t + 2 < n; t += PASS) {                                                                                         \
            CALL(__VA_ARGS__, w, p, columns, 2, t, PASS, soon, sums);                                                          \
        }                                                                                                                      \
        for (; t < n; t += 2) {                                                                                                \
            CALL(__VA_ARGS__, w, p, columns, 2, t, 2, soon, sums);                                                             \
        }                                                                                                                      \
    }

FOR_TOKENS(multiply_blocks, multiply_32, false)
FOR_TOKENS(multiply_blocks_min, multiply_32, true)
FOR_TOKENS(multiply_groups_16, multiply_256, 16, false)
FOR_TOKENS(multiply_groups_16_min, multiply_256, 16, true)
FOR_TOKENS(multiply_groups_32, multiply_256, 32, false)
FOR_TOKENS(multiply_groups_32_min, multiply_256, 32, true)

/* ---- every type ------------------------------------------------------------------------------------------------------ */

#define TILED(KIND, NAME, MULTIPLY)                                                                                            \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, void *out) {                                \
        for (int half = 0; half < ROWS; half += 16) {                                                                          \
            unpack_tile_##KIND(&type_##NAME, rows, c0, columns, half, out);                                                    \
        }                                                                                                                      \
    }                                                                                                                          \
    static void NAME##_panel(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {                     \
        fill_panel_##KIND(&type_##NAME, x, k, c0, columns, n, out);                                                            \
    }                                                                                                                          \
    void matmul_tiles_##NAME##_avx512(const matmul_args *a) {                                                                  \
        static const tile_kernel kernel = {ROWS,         TILES,         TOKENS,        COLUMNS,      1,                        \
                                           sizeof(tile), sizeof(panel), NAME##_unpack, NAME##_panel, MULTIPLY};                \
        matmul_tiled(a, &kernel);                                                                                              \
    }

TILED(32, q4_0, multiply_blocks)
TILED(32, q4_1, multiply_blocks_min)
TILED(32, q5_0, multiply_blocks)
TILED(32, q5_1, multiply_blocks_min)
TILED(32, q8_0, multiply_blocks)
TILED(32, iq4_nl, multiply_blocks)
TILED(32, mxfp4, multiply_blocks)
TILED(256, q2_K, multiply_groups_16_min)
TILED(256, q3_K, multiply_groups_16)
TILED(256, q4_K, multiply_groups_32_min)
TILED(256, q5_K, multiply_groups_32_min)
TILED(256, q6_K, multiply_groups_16)
TILED(256, iq4_xs, multiply_groups_32)

size_t matmul_tiles_scratch_avx512(void) {
    const tile_kernel kernel = {
        .rows = ROWS, .tiles = TILES, .tokens = TOKENS, .tile_bytes = sizeof(tile), .panel_bytes = sizeof(panel)};
    return matmul_tiled_scratch(&kernel);
}
