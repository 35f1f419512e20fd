/* Many tokens, AVX2: what the loops of matmul_tiles.c call. matmul_tiles_avx2.c and matmul_tiles_avxvnni.c include this file;
 * which instructions multiply is what differs, and how many tokens are taken side by side.
 *
 * In a tile a register holds four columns of eight rows as bytes, to be multiplied with four activations of a token.
 *
 *   AVX2      vpmaddubsw adds pairs to 16 bits. These are added over as many steps as provably fit (Q4_K: 16 columns), and one
 *             vpmaddwd then applies the integer scale and widens to 32 bits.
 *   AVX-VNNI  vpdpbusd adds all four to 32 bits.
 *
 * Whole numbers up to the end of a block or super-block. From the includer: TILES_NAME(name), the name of a type's kernel. */
#ifndef LMI_KERNELS_MATMUL_TILES_AVX2_H
#define LMI_KERNELS_MATMUL_TILES_AVX2_H

#include "kernels/matmul_unpack_avx2.h"

#include "kernels/matmul_avx2.h"
#include "kernels/matmul_tiles.h"

enum { ROWS = 16, COLUMNS = 1024, TILES = 4 };
#if defined(__AVXVNNI__)
enum { TOKENS = 8 }; /* vpdpbusd takes five cycles and two may start in each: a tenth faster than four */
#else
enum { TOKENS = 4 };
#endif

typedef struct tile {
    uint8_t v[COLUMNS / 4][ROWS][4];       /* u, or of signed types q */
    int16_t scale[COLUMNS / 16][ROWS][2];  /* of a group, twice */
    int16_t minima[COLUMNS / 32][ROWS][2]; /* of two groups: minima, or of types with an offset offset * scale */
    float d[COLUMNS / 32][ROWS];           /* of a block or super-block */
    float m[COLUMNS / 32][ROWS];           /* m of a block, dmin of a super-block */
} tile;

typedef struct panel {
    int8_t x[TOKENS][COLUMNS + 64];      /* tokens apart in the L1 cache's sets */
    int32_t start[TOKENS][COLUMNS / 32]; /* -offset * sum of x, of a block */
    float d[TOKENS][COLUMNS / 32];       /* of a block or super-block */
    float d_sum[TOKENS][COLUMNS / 32];   /* d * sum of x of a block */
    int16_t sums[TOKENS][COLUMNS / 16];  /* of groups */
} panel;

_Static_assert(sizeof(tile) % 64 == 0 && sizeof(panel) % 64 == 0, "parts are aligned to cache lines");
_Static_assert(TILES * sizeof(tile) + sizeof(panel) <= 144 * 1024, "half of a small L2 cache");

/* ---- unpacking ----------------------------------------------------------------------------------------------------- */

INLINE void store_256(void *p, __m256i v) { _mm256_store_si256(p, v); }

/* 16 bits at the same place of eight rows. */
INLINE __m128i gather_rows(const uint8_t *const *rows, size_t offset) {
    return _mm_setr_epi16(word_at(rows[0] + offset), word_at(rows[1] + offset), word_at(rows[2] + offset),
                          word_at(rows[3] + offset), word_at(rows[4] + offset), word_at(rows[5] + offset),
                          word_at(rows[6] + offset), word_at(rows[7] + offset));
}

INLINE void unpack_tile_32(const type_32 *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int half = 0; half < ROWS; half += 8) {
        for (int b = 0; b < columns / 32; b++) {
            const size_t at = (size_t)(c0 / 32 + b) * (size_t)type->bytes;
            __m256i v[8];
            UNROLL for (int r = 0; r < 8; r++) { v[r] = type->columns(rows[half + r] + at); }
            transpose_8x8(v);
            UNROLL for (int i = 0; i < 8; i++) { store_256(out->v[8 * b + i][half], v[i]); }
            _mm256_store_ps(out->d[b] + half, type->scale(gather_rows(rows + half, at)));
            if (type->has_min) {
                _mm256_store_ps(out->m[b] + half, half_scale(gather_rows(rows + half, at + 2)));
            }
        }
    }
}

/* (a, b, c, ...) to dwords (a, a), (b, b), ... of the lower or upper eight. */
INLINE __m256i doubled(__m256i words, bool upper) {
    __m256i v = _mm256_cvtepu16_epi32(upper ? _mm256_extracti128_si256(words, 1) : _mm256_castsi256_si128(words));
    return _mm256_or_si256(v, _mm256_slli_epi32(v, 16));
}

/* One of each two equal words: eight words in the lower half. */
INLINE __m256i halved(__m256i words) {
    __m256i v = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08);
}

INLINE void unpack_headers(const type_256 *type, const uint8_t *const *rows, size_t at, int half, int s, tile *out) {
    __m256i low[8], high[8], minima[8];
    UNROLL for (int r = 0; r < 8; r++) {
        header_256 h = type->header(rows[half + r] + at);
        minima[r] = type->has_min ? h.minimum : _mm256_mullo_epi16(h.scale, _mm256_set1_epi16((short)type->offset));
        if (type->group == 32) { /* words are in equal pairs already */
            low[r] = h.scale;
            minima[r] = halved(minima[r]);
        } else {
            low[r] = doubled(h.scale, false);
            high[r] = doubled(h.scale, true);
        }
        out->d[s][half + r] = h.d;
        out->m[s][half + r] = h.dmin;
    }
    const int groups = 256 / type->group;
    transpose_8x8(low);
    transpose_8x8(minima);
    if (type->group == 16) {
        transpose_8x8(high);
    }
    UNROLL for (int i = 0; i < 8; i++) {
        store_256(out->scale[groups * s + i][half], low[i]);
        if (type->group == 16) {
            store_256(out->scale[groups * s + 8 + i][half], high[i]);
        }
        if (i < groups / 2) {
            store_256(out->minima[groups / 2 * s + i][half], minima[i]);
        }
    }
}

INLINE void unpack_tile_256(const type_256 *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int half = 0; half < ROWS; half += 8) {
        for (int s = 0; s < columns / 256; s++) {
            const size_t at = (size_t)(c0 / 256 + s) * (size_t)type->bytes;
            UNROLL for (int j = 0; j < 8; j++) {
                __m256i v[8];
                UNROLL for (int r = 0; r < 8; r++) { v[r] = type->columns(rows[half + r] + at, j); }
                transpose_8x8(v);
                UNROLL for (int i = 0; i < 8; i++) { store_256(out->v[64 * s + 8 * j + i][half], v[i]); }
            }
            unpack_headers(type, rows, at, half, s, out);
        }
    }
}

/* ---- activations --------------------------------------------------------------------------------------------------- */

INLINE void copy_bytes(int8_t *to, const int8_t *from, int n) {
    for (int i = 0; i < n; i += 32) {
        store_256(to + i, load_256(from + i));
    }
}

static void fill_panel_32(const type_32 *type, const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        copy_bytes(p->x[t], act_q8(x[t]) + c0, columns);
        const float *d = act_scales(x[t], k) + c0 / 32;
        const int32_t *sum = act_sums_32(x[t], k) + c0 / 32;
        for (int b = 0; b < columns / 32; b += 8) { /* packed rows are padded */
            __m256 scale = _mm256_load_ps(d + b);
            __m256i sums = load_256(sum + b);
            _mm256_store_ps(p->d[t] + b, scale);
            if (type->has_min) {
                _mm256_store_ps(p->d_sum[t] + b, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums)));
            }
            store_256(p->start[t] + b, _mm256_mullo_epi32(sums, _mm256_set1_epi32(-type->offset)));
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
            __m256i of_16 = load_256(sum + g);
            if (type->group == 16) {
                store_256(p->sums[t] + g, of_16);
            } else {
                __m256i of_32 = _mm256_madd_epi16(of_16, _mm256_set1_epi16(1));
                of_32 = _mm256_permute4x64_epi64(_mm256_packs_epi32(of_32, of_32), 0x08);
                _mm_store_si128((__m128i *)(void *)(p->sums[t] + g / 2), _mm256_castsi256_si128(of_32));
            }
        }
    }
}

/* ---- eight rows times TOKENS tokens ---------------------------------------------------------------------------------- */

INLINE __m256i all_lanes(const void *four_bytes) { return _mm256_set1_epi32((int32_t)load_u32(four_bytes)); }

/* total[t] += scale (NULL: 1) * the sum of a group of columns. */
#if defined(__AVXVNNI__)
INLINE void add_group(const tile *w, const panel *p, int half, int group, int columns, int top, bool is_signed,
                      const int16_t (*scale)[2], __m256i total[TOKENS]) {
    const int steps = columns / 4;
    const uint8_t (*fours)[ROWS][4] = w->v + group * steps;
    const int8_t *x = p->x[0] + group * columns;
    __m256i sum[TOKENS];
    (void)is_signed; /* no type is */
    UNROLL for (int t = 0; t < TOKENS; t++) { sum[t] = scale == NULL ? total[t] : _mm256_setzero_si256(); }
    UNROLL for (int i = 0; i < steps; i++) {
        __m256i v = load_256(fours[i][half]);
        UNROLL for (int t = 0; t < TOKENS; t++) {
            sum[t] = _mm256_dpbusd_avx_epi32(sum[t], v, all_lanes(x + t * (int)sizeof p->x[0] + 4 * i));
        }
    }
    if (scale == NULL) {
        memcpy(total, sum, sizeof sum);
    } else if (columns * top * 127 <= 32767) { /* the sums' low words say it all; the high ones are multiplied with 0 */
        __m256i low = _mm256_and_si256(load_256(scale), _mm256_set1_epi32(0xffff));
        UNROLL for (int t = 0; t < TOKENS; t++) { total[t] = _mm256_dpwssd_avx_epi32(total[t], sum[t], low); }
    } else {
        __m256i wide = _mm256_srai_epi32(load_256(scale), 16);
        UNROLL for (int t = 0; t < TOKENS; t++) { total[t] = _mm256_add_epi32(total[t], _mm256_mullo_epi32(sum[t], wide)); }
    }
}
#else
INLINE void add_group(const tile *w, const panel *p, int half, int group, int columns, int top, bool is_signed,
                      const int16_t (*scale)[2], __m256i total[TOKENS]) {
    const int steps = columns / 4, span = steps_in_16_bits(top);
    const uint8_t (*fours)[ROWS][4] = w->v + group * steps;
    const int8_t *x = p->x[0] + group * columns;
    const __m256i words = scale == NULL ? _mm256_set1_epi16(1) : load_256(scale);
    __m256i sum[TOKENS];
    UNROLL for (int t = 0; t < TOKENS; t++) { sum[t] = _mm256_setzero_si256(); }
    UNROLL for (int i = 0; i < steps; i++) {
        __m256i v = load_256(fours[i][half]);
        __m256i u = is_signed ? _mm256_abs_epi8(v) : v;
        UNROLL for (int t = 0; t < TOKENS; t++) {
            __m256i a = all_lanes(x + t * (int)sizeof p->x[0] + 4 * i);
            __m256i pairs = _mm256_maddubs_epi16(u, is_signed ? _mm256_sign_epi8(a, v) : a);
            sum[t] = i % span == 0 ? pairs : _mm256_add_epi16(sum[t], pairs);
            if (i % span == span - 1 || i == steps - 1) {
                total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(sum[t], words));
            }
        }
    }
}
#endif

INLINE __m256 begin_sum(const tile_sums *s, int t, int half) {
    return s->first ? _mm256_setzero_ps() : _mm256_loadu_ps(s->y + t * s->stride + half);
}

INLINE void multiply_32(int top, bool is_signed, bool has_min, const tile *w, const panel *p, int columns, int half,
                        fetch_plan *soon, tile_sums sums) {
    __m256 sum[TOKENS];
    UNROLL for (int t = 0; t < TOKENS; t++) { sum[t] = begin_sum(&sums, t, half); }
    for (int b = 0; b < columns / 32; b++) {
        __m256i dot[TOKENS];
        if (half == 0) {
            fetch_some(soon);
        }
        UNROLL for (int t = 0; t < TOKENS; t++) {
            dot[t] = !has_min && !is_signed ? _mm256_set1_epi32(p->start[t][b]) : _mm256_setzero_si256();
        }
        add_group(w, p, half, b, 32, top, is_signed, NULL, dot);
        UNROLL for (int t = 0; t < TOKENS; t++) {
            __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_load_ps(w->d[b] + half));
            sum[t] = _mm256_fmadd_ps(scaled, _mm256_set1_ps(p->d[t][b]), sum[t]);
            if (has_min) {
                sum[t] = _mm256_fmadd_ps(_mm256_load_ps(w->m[b] + half), _mm256_set1_ps(p->d_sum[t][b]), sum[t]);
            }
        }
    }
    UNROLL for (int t = 0; t < TOKENS; t++) { _mm256_storeu_ps(sums.y + t * sums.stride + half, sum[t]); }
}

INLINE void multiply_256(int group, int top, bool is_signed, bool has_min, const tile *w, const panel *p, int columns, int half,
                         fetch_plan *soon, tile_sums sums) {
    const int groups = 256 / group;
    __m256 sum[TOKENS];
    UNROLL for (int t = 0; t < TOKENS; t++) { sum[t] = begin_sum(&sums, t, half); }
    for (int s = 0; s < columns / 256; s++) {
        __m256i total[TOKENS];
        UNROLL for (int t = 0; t < TOKENS; t++) { total[t] = _mm256_setzero_si256(); }
        for (int g = groups * s; g < groups * (s + 1); g++) {
            if (half == 0 && (group == TILE_STEP || g % 2 == 0)) {
                fetch_some(soon);
            }
            add_group(w, p, half, g, group, top, is_signed, &w->scale[g][half], total);
        }
        __m256 d = _mm256_load_ps(w->d[s] + half), dmin = _mm256_load_ps(w->m[s] + half);
        UNROLL for (int t = 0; t < TOKENS; t++) {
            __m256i minima = _mm256_setzero_si256();
            if (!is_signed) {
                UNROLL for (int i = 0; i < groups / 2; i++) {
                    const int pair = groups / 2 * s + i;
                    __m256i product = _mm256_madd_epi16(load_256(w->minima[pair][half]), all_lanes(p->sums[t] + 2 * pair));
                    minima = _mm256_add_epi32(minima, product);
                }
            }
            __m256 scaled;
            if (has_min) {
                scaled = _mm256_mul_ps(d, _mm256_cvtepi32_ps(total[t]));
                scaled = _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(minima), scaled);
            } else {
                scaled = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_sub_epi32(total[t], minima)));
            }
            sum[t] = _mm256_fmadd_ps(scaled, _mm256_set1_ps(p->d[t][s]), sum[t]);
        }
    }
    UNROLL for (int t = 0; t < TOKENS; t++) { _mm256_storeu_ps(sums.y + t * sums.stride + half, sum[t]); }
}

/* Types differ here by the columns that share a scale, by the largest value, and by having minima or an offset. */

#define FOR_ROWS(NAME, CALL, ...)                                                                                              \
    static void NAME(const void *w, const void *p, int columns, int n_rows, int n, fetch_plan *soon, tile_sums sums) {         \
        (void)n;                                                                                                               \
        for (int half = 0; half < n_rows; half += 8) {                                                                         \
            CALL(__VA_ARGS__, w, p, columns, half, soon, sums);                                                                \
        }                                                                                                                      \
    }

FOR_ROWS(multiply_4_bits, multiply_32, 15, false, false)
FOR_ROWS(multiply_4_bits_min, multiply_32, 15, false, true)
FOR_ROWS(multiply_5_bits, multiply_32, 31, false, false)
FOR_ROWS(multiply_5_bits_min, multiply_32, 31, false, true)
FOR_ROWS(multiply_bytes, multiply_32, 128, IS_SIGNED, false)
FOR_ROWS(multiply_q2_K, multiply_256, 16, 3, false, true)
FOR_ROWS(multiply_q3_K, multiply_256, 16, 7, false, false)
FOR_ROWS(multiply_q4_K, multiply_256, 32, 15, false, true)
FOR_ROWS(multiply_q5_K, multiply_256, 32, 31, false, true)
FOR_ROWS(multiply_q6_K, multiply_256, 16, 63, false, false)
FOR_ROWS(multiply_iq4_xs, multiply_256, 32, 127, IS_SIGNED, false)

/* ---- every type ------------------------------------------------------------------------------------------------------ */

static size_t tiles_scratch(void) {
    const tile_kernel kernel = {
        .rows = ROWS, .tiles = TILES, .tokens = TOKENS, .tile_bytes = sizeof(tile), .panel_bytes = sizeof(panel)};
    return matmul_tiled_scratch(&kernel);
}

#define TILED(KIND, NAME, MULTIPLY)                                                                                            \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, void *out) {                                \
        unpack_tile_##KIND(&type_##NAME, rows, c0, columns, out);                                                              \
    }                                                                                                                          \
    static void NAME##_panel(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {                     \
        fill_panel_##KIND(&type_##NAME, x, k, c0, columns, n, out);                                                            \
    }                                                                                                                          \
    void TILES_NAME(NAME)(const matmul_args *a) {                                                                              \
        static const tile_kernel kernel = {ROWS,         TILES,         TOKENS,        COLUMNS,      1,                        \
                                           sizeof(tile), sizeof(panel), NAME##_unpack, NAME##_panel, MULTIPLY};                \
        matmul_tiled(a, &kernel);                                                                                              \
    }

TILED(32, q4_0, multiply_4_bits)
TILED(32, q4_1, multiply_4_bits_min)
TILED(32, q5_0, multiply_5_bits)
TILED(32, q5_1, multiply_5_bits_min)
TILED(32, q8_0, multiply_bytes)
TILED(32, iq4_nl, multiply_bytes)
TILED(32, mxfp4, multiply_5_bits)
TILED(256, q2_K, multiply_q2_K)
TILED(256, q3_K, multiply_q3_K)
TILED(256, q4_K, multiply_q4_K)
TILED(256, q5_K, multiply_q5_K)
TILED(256, q6_K, multiply_q6_K)
TILED(256, iq4_xs, multiply_iq4_xs)

#endif
