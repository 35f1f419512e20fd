/* Many tokens, AMX (Intel's server CPUs from Sapphire Rapids on): one instruction multiplies 16 rows of up to 64 columns with those of 16
 * tokens, eight times what vpdpbusd does in that time.
 *
 * So what counts is all else: sums that leave the tile registers to be scaled, and the bytes that come in. Super-blocks
 * are unpacked with their scales multiplied in, so that only one or two sums of 256 columns leave; activations are read where they
 * lie, 64 tokens of 256 columns again and again for 128 rows, which stay in the L2 cache.
 *
 *   for 128 rows, for a block of columns:      unpack
 *       for 64 tokens, for 256 columns:       their scales, side by side
 *           for 16 of the rows:               multiply
 *
 * A row's result does not depend on its place, nor a token's. */
#include "kernels/matmul_amx.h"
#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"
#include "kernels/matmul_unpack_avx512.h"

enum { SIDE = 16, PARTS = 8, TOKENS = 64, CHUNK = 256, CHUNKS = 8, COLUMNS = CHUNK * CHUNKS };

typedef struct part {                            /* of 16 rows; of types with super-blocks a chunk is one */
    int8_t u[CHUNKS][2][CHUNK / 4][SIDE][4];     /* four columns of all rows side by side */
    float scale[CHUNKS][CHUNK / 32][SIDE];       /* of a block of 32; [0]: of a super-block */
    float minimum[CHUNKS][CHUNK / 32][SIDE];     /* likewise m, or dmin */
    int16_t minima[CHUNKS][CHUNK / 32][SIDE][2]; /* of two groups */
} part;

typedef struct panel {              /* a chunk of columns of the tokens at hand */
    const int8_t *x[TOKENS / SIDE]; /* of 16 tokens, stride[] apart */
    int64_t stride[TOKENS / SIDE];
    float d[TOKENS][CHUNK / 32];      /* of a block; [0]: of a super-block */
    float d_sum[TOKENS][CHUNK / 32];  /* d * sum of x of a block */
    int16_t sums[TOKENS][CHUNK / 16]; /* of groups */
    int8_t last[SIDE][CHUNK + 64];    /* fewer than 16 tokens: a tile register is loaded whole */
} panel;

typedef struct workspace {
    part parts[PARTS];
    panel x;
    float sums[PARTS][TOKENS][SIDE];
} workspace;

_Static_assert(sizeof(part) % 64 == 0 && sizeof(panel) % 64 == 0, "parts are aligned to cache lines");

typedef struct amx_kernel {
    void (*unpack)(const uint8_t *const *rows, int64_t c0, int columns, part *out);
    void (*fill_panel)(const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p);
    void (*multiply)(const part *w, int chunk, const panel *p, int columns, int n, float (*sums)[SIDE]);
} amx_kernel;

/* ---- unpacking ----------------------------------------------------------------------------------------------------- */

INLINE __m512i with_sign(__m512i u, int offset) { return offset != 0 ? _mm512_sub_epi8(u, _mm512_set1_epi8((char)offset)) : u; }

INLINE void store_columns(__m512i v[16], int8_t (*out)[SIDE][4]) {
    transpose_16x16(v);
    UNROLL for (int i = 0; i < 16; i++) { _mm512_store_si512(out[i], v[i]); }
}

INLINE void unpack_32(const type_32 *type, const uint8_t *const *rows, int64_t c0, int columns, part *out) {
    const size_t bytes = (size_t)type->bytes, first = (size_t)(c0 / 32) * bytes;
    for (int b = 0; b < columns / 32; b++) {
        const size_t at = first + (size_t)b * bytes, next = b + 1 < columns / 32 ? at + bytes : at;
        if (b % 2 == 0) { /* the last block, if odd, fills its neighbour too; nobody looks */
            __m512i v[16];
            UNROLL for (int r = 0; r < SIDE; r++) {
                v[r] = with_sign(type->columns(rows[r] + at, rows[r] + next), type->offset);
            }
            store_columns(v, out->u[b / 8][0] + b % 8 * 8);
        }
        float *scale = out->scale[b / 8][b % 8], *minimum = out->minimum[b / 8][b % 8];
        _mm256_store_ps(scale, type->scale(words_of_rows(rows, at)));
        _mm256_store_ps(scale + 8, type->scale(words_of_rows(rows + 8, at)));
        if (type->has_min) {
            _mm256_store_ps(minimum, half_scale(words_of_rows(rows, at + 2)));
            _mm256_store_ps(minimum + 8, half_scale(words_of_rows(rows + 8, at + 2)));
        }
    }
}

/* A weight of a super-block is d times a whole number, q * scale, of at most 13 bits with its sign. It is split into two planes
 * of bytes, 64 a + b, or is one byte where it fits. */
enum { PLANE_BITS = 6 };

INLINE bool is_split(const type_256 *type) { return type != &type_q2_K && type != &type_q3_K; }
/* q from -4 to 3 times a scale from -32 to 31: its negative fits in a byte. */
INLINE bool is_negated(const type_256 *type) { return type == &type_q3_K; }

/* 64 columns of a row, bytes with their sign, times the scales of groups of 16; *b only of types that are split. */
INLINE __m512i split_products(bool split, __m512i q, __m512i scale, __m512i *b) {
    const __m512i odd_bytes = _mm512_set1_epi16((short)0xff00);
    const __m512i even = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8), scale);
    const __m512i odd = _mm512_mullo_epi16(_mm512_srai_epi16(q, 8), scale);
    if (!split) {
        return _mm512_ternarylogic_epi32(odd_bytes, _mm512_slli_epi16(odd, 8), even, 0xca); /* odd where the mask is set */
    }
    *b = _mm512_ternarylogic_epi32(odd_bytes, _mm512_slli_epi16(odd, 8), even, 0xca);
    *b = _mm512_and_si512(*b, _mm512_set1_epi8((1 << PLANE_BITS) - 1));
    return _mm512_ternarylogic_epi32(odd_bytes, _mm512_slli_epi16(odd, 8 - PLANE_BITS), _mm512_srai_epi16(even, PLANE_BITS),
                                     0xca);
}

INLINE void unpack_256(const type_256 *type, const uint8_t *const *rows, int64_t c0, int columns, part *out) {
    const long long ones = 0x0001000100010001;
    const __m512i quarter = _mm512_set_epi64(3 * ones, 3 * ones, 2 * ones, 2 * ones, ones, ones, 0, 0);
    for (int s = 0; s < columns / CHUNK; s++) {
        const size_t at = (size_t)((c0 / CHUNK + s) * type->bytes);
        __m512i scales[16], m[16];
        UNROLL for (int r = 0; r < SIDE; r++) {
            header_256 h = type->header(rows[r] + at);
            scales[r] = _mm512_castsi256_si512(is_negated(type) ? _mm256_sub_epi16(_mm256_setzero_si256(), h.scale) : h.scale);
            if (type->has_min && type->group == 32) { /* one of each two that are equal */
                m[r] = _mm512_castsi128_si512(_mm256_cvtepi32_epi16(h.minimum));
            } else if (type->has_min) {
                m[r] = _mm512_castsi256_si512(h.minimum);
            }
            out->scale[s][0][r] = is_negated(type) ? -h.d : h.d;
            out->minimum[s][0][r] = h.dmin;
        }
        for (int j = 0; j < 4; j++) {
            const __m512i group = _mm512_add_epi16(_mm512_set1_epi16((short)(4 * j)), quarter); /* of each pair of columns */
            __m512i a[16], b[16];
            UNROLL for (int r = 0; r < SIDE; r++) {
                const __m512i q = with_sign(type->columns(rows[r] + at, j), type->offset);
                a[r] = split_products(is_split(type), q, _mm512_permutexvar_epi16(group, scales[r]), &b[r]);
            }
            store_columns(a, out->u[s][0] + 16 * j);
            if (is_split(type)) {
                store_columns(b, out->u[s][1] + 16 * j);
            }
        }
        if (type->has_min) {
            transpose_16x16(m);
            UNROLL for (int i = 0; i < 128 / type->group; i++) { _mm512_store_si512(out->minima[s][i], m[i]); }
        }
    }
}

/* ---- activations --------------------------------------------------------------------------------------------------- */

INLINE void fill_panel_32(const type_32 *type, const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {
    for (int t = 0; t < n; t++) {
        const float *d = act_scales(x[t], k) + c0 / 32;
        const int32_t *sums = act_sums_32(x[t], k) + c0 / 32;
        for (int b = 0; b < columns / 32; b++) {
            p->d[t][b] = d[b];
            if (type->has_min) {
                p->d_sum[t][b] = d[b] * (float)sums[b];
            }
        }
    }
}

INLINE void fill_panel_256(const type_256 *type, const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {
    (void)columns;
    for (int t = 0; t < n; t++) {
        p->d[t][0] = act_scales(x[t], k)[c0 / CHUNK];
        if (type->has_min) {
            const __m256i of_16 = _mm256_load_si256((const __m256i *)(const void *)(act_sums_16(x[t], k) + c0 / 16));
            if (type->group == 16) {
                _mm256_store_si256((__m256i *)(void *)p->sums[t], of_16);
            } else {
                const __m256i of_32 = _mm256_madd_epi16(of_16, _mm256_set1_epi16(1));
                _mm_store_si128((__m128i *)(void *)p->sums[t], _mm256_cvtepi32_epi16(of_32));
            }
        }
    }
}

/* ---- the tile registers ------------------------------------------------------------------------------------------------ */

/* tmm0: sums, [16 tokens][16 rows] of int32; tmm1: activations [16 tokens][32 columns]; tmm2: weights [32 columns / 4][16 rows][4]. */
static const tile_config config_32 = {.palette = 1, .row_bytes = {64, 32, 64}, .rows = {SIDE, SIDE, 8}};
/* The same of 64 columns. tmm0, tmm1: sums of both planes; tmm2, tmm3: of 16 more tokens; tmm4, tmm5: activations; tmm6, tmm7: weights. */
static const tile_config config_256 = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, 16, 16}};

#define TILE_DOT(SUMS, X, W) __asm__ volatile("tdpbssd %%" W ", %%" X ", %%" SUMS : :)

/* Added to whole numbers below 2^22 it makes the bits of a float32 that is 1.5 * 2^23 and that number: with this to begin from, sums are
 * scaled by one multiply-add instead of a conversion and a product, with the same result where 1.5 * 2^23 times the scale is a
 * float32 (of all but MXFP4, whose scales go up to 2^126). */
#define SUM_BITS 0x4b400000
#define SUM_FLOAT 12582912.0f
#define FOUR(X) X, X, X, X
static const _Alignas(64) int32_t begin_dots[SIDE] = {FOUR(SUM_BITS), FOUR(SUM_BITS), FOUR(SUM_BITS), FOUR(SUM_BITS)};

/* dots[token][row] of block b of 32 columns, from token t0 on, and SUM_FLOAT */
INLINE void dot_block(const part *w, int chunk, const panel *p, int b, int t0, float (*dots)[SIDE]) {
    TILE_LOAD("tmm0", begin_dots, 0);
    TILE_LOAD("tmm1", p->x[t0 / SIDE] + 32 * b, p->stride[t0 / SIDE]);
    TILE_LOAD("tmm2", w->u[chunk][0][8 * b], sizeof w->u[0][0][0]);
    TILE_DOT("tmm0", "tmm1", "tmm2");
    TILE_STORE("tmm0", dots, sizeof(dots)[0]);
}

/* dots[16 tokens][plane][token][row] of a super-block, of 16 or 32 tokens from t0 on */
INLINE void dot_planes(bool split, const part *w, int chunk, const panel *p, int t0, int n, int32_t (*dots)[2][SIDE][SIDE]) {
    const int g = t0 / SIDE;
    TILE_ZERO("tmm0");
    TILE_ZERO("tmm1");
    TILE_ZERO("tmm2");
    TILE_ZERO("tmm3");
    UNROLL for (int j = 0; j < 4; j++) {
        TILE_LOAD("tmm6", w->u[chunk][0][16 * j], sizeof w->u[0][0][0]);
        if (split) {
            TILE_LOAD("tmm7", w->u[chunk][1][16 * j], sizeof w->u[0][0][0]);
        }
        TILE_LOAD("tmm4", p->x[g] + 64 * j, p->stride[g]);
        TILE_DOT("tmm0", "tmm4", "tmm6");
        if (split) {
            TILE_DOT("tmm1", "tmm4", "tmm7");
        }
        if (n > SIDE) {
            TILE_LOAD("tmm5", p->x[g + 1] + 64 * j, p->stride[g + 1]);
            TILE_DOT("tmm2", "tmm5", "tmm6");
            if (split) {
                TILE_DOT("tmm3", "tmm5", "tmm7");
            }
        }
    }
    TILE_STORE("tmm0", dots[0][0], sizeof(dots[0][0])[0]);
    if (split) {
        TILE_STORE("tmm1", dots[0][1], sizeof(dots[0][1])[0]);
    }
    if (n > SIDE) {
        TILE_STORE("tmm2", dots[1][0], sizeof(dots[1][0])[0]);
        if (split) {
            TILE_STORE("tmm3", dots[1][1], sizeof(dots[1][1])[0]);
        }
    }
}

/* ---- 16 rows times n tokens, 16 at a time: dots of the next are under way while those before are scaled ------------------ */

INLINE void multiply_32(const type_32 *type, const part *w, int chunk, const panel *p, int columns, int n,
                        float (*sums)[SIDE]) {
    const int n_blocks = columns / 32;
    _Alignas(64) float dots[2][SIDE][SIDE];
    dot_block(w, chunk, p, 0, 0, dots[0]);
    for (int t0 = 0, i = 1; t0 < n; t0 += SIDE) {
        __m512 sum[SIDE];
        UNROLL for (int t = 0; t < SIDE; t++) { sum[t] = _mm512_load_ps(sums[t0 + t]); }
        for (int b = 0; b < n_blocks; b++, i++) {
            if (b + 1 < n_blocks) {
                dot_block(w, chunk, p, b + 1, t0, dots[i % 2]);
            } else if (t0 + SIDE < n) {
                dot_block(w, chunk, p, 0, t0 + SIDE, dots[i % 2]);
            }
            const __m512 scale = _mm512_load_ps(w->scale[chunk][b]), minimum = _mm512_load_ps(w->minimum[chunk][b]);
            const __m512 minus_begin = _mm512_mul_ps(scale, _mm512_set1_ps(-SUM_FLOAT));
            UNROLL for (int t = 0; t < SIDE; t++) {
                const __m512 dot = _mm512_load_ps(dots[(i + 1) % 2][t]);
                const __m512 scaled = type == &type_mxfp4 ? _mm512_mul_ps(_mm512_sub_ps(dot, _mm512_set1_ps(SUM_FLOAT)), scale)
                                                          : _mm512_fmadd_ps(dot, scale, minus_begin);
                sum[t] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(p->d[t0 + t][b]), sum[t]);
                if (type->has_min) {
                    sum[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(p->d_sum[t0 + t][b]), sum[t]);
                }
            }
        }
        UNROLL for (int t = 0; t < SIDE; t++) { _mm512_store_ps(sums[t0 + t], sum[t]); }
    }
}

INLINE void multiply_256(const type_256 *type, const part *w, int chunk, const panel *p, int columns, int n,
                         float (*sums)[SIDE]) {
    const bool split = is_split(type);
    (void)columns;
    const __m512 scale = _mm512_load_ps(w->scale[chunk][0]), dmin = _mm512_load_ps(w->minimum[chunk][0]);
    _Alignas(64) int32_t dots[2][2][2][SIDE][SIDE];
    dot_planes(split, w, chunk, p, 0, n, dots[0]);
    for (int t0 = 0; t0 < n; t0 += SIDE) {
        const int i = t0 / (2 * SIDE) % 2, of_pair = t0 / SIDE % 2;
        if (of_pair == 0 && t0 + 2 * SIDE < n) {
            dot_planes(split, w, chunk, p, t0 + 2 * SIDE, n - t0 - 2 * SIDE, dots[1 - i]);
        }
        UNROLL for (int t = 0; t < SIDE; t++) {
            __m512i dot = _mm512_load_si512(dots[i][of_pair][0][t]);
            if (split) {
                dot = _mm512_add_epi32(_mm512_slli_epi32(dot, PLANE_BITS), _mm512_load_si512(dots[i][of_pair][1][t]));
            }
            __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale);
            if (type->has_min) {
                __m512i minima = _mm512_setzero_si512();
                UNROLL for (int g = 0; g < 128 / type->group; g++) {
                    const __m512i x = _mm512_set1_epi32((int32_t)load_u32(p->sums[t0 + t] + 2 * g));
                    minima = _mm512_dpwssd_epi32(minima, _mm512_load_si512(w->minima[chunk][g]), x);
                }
                scaled = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minima), dmin, scaled);
            }
            const __m512 d = _mm512_set1_ps(p->d[t0 + t][0]);
            _mm512_store_ps(sums[t0 + t], _mm512_fmadd_ps(scaled, d, _mm512_load_ps(sums[t0 + t])));
        }
    }
}

/* ---- all rows, columns and tokens -------------------------------------------------------------------------------------- */

/* Columns c0 .. c0 + columns - 1 of n tokens; fewer than 16 are copied, since a tile register is loaded whole. */
static void fill_panel(const matmul_args *a, const amx_kernel *kernel, const void *const *x, int64_t c0, int columns, int n,
                       panel *p) {
    for (int t0 = 0; t0 < n; t0 += SIDE) {
        p->x[t0 / SIDE] = act_q8(x[t0]) + c0;
        p->stride[t0 / SIDE] = (int64_t)a->x_stride;
        if (t0 + SIDE > n) {
            for (int t = t0; t < n; t++) {
                memcpy(p->last[t - t0], act_q8(x[t]) + c0, (size_t)columns);
            }
            p->x[t0 / SIDE] = p->last[0];
            p->stride[t0 / SIDE] = sizeof p->last[0];
        }
    }
    kernel->fill_panel(x, a->k, c0, columns, n, p);
}

/* n tokens from t0 on, n_parts of rows from r0 on, which are unpacked: to y, or added to it. */
static void multiply_panel(const matmul_args *a, const amx_kernel *kernel, int64_t r0, int64_t c0, int columns, int64_t t0,
                           int n, workspace *s) {
    const void *x[TOKENS];
    for (int t = 0; t < n; t++) {
        x[t] = (const char *)a->x + (size_t)(t0 + t) * a->x_stride;
    }
    float *y = a->y + t0 * a->y_stride + r0;
    const int n_parts = smaller((a->row1 - r0 + SIDE - 1) / SIDE, PARTS);
    for (int i = 0; i < n_parts; i++) {
        const __mmask16 rows = c0 == 0 ? 0 : mask_of(a->row1 - r0 - SIDE * i);
        for (int t = 0; t < n; t++) {
            _mm512_store_ps(s->sums[i][t], _mm512_maskz_loadu_ps(rows, y + t * a->y_stride + SIDE * i));
        }
    }
    for (int c = 0; c < columns; c += CHUNK) {
        const int of_chunk = smaller(columns - c, CHUNK);
        fill_panel(a, kernel, x, c0 + c, of_chunk, n, &s->x);
        for (int i = 0; i < n_parts; i++) {
            kernel->multiply(&s->parts[i], c / CHUNK, &s->x, of_chunk, n, s->sums[i]);
        }
    }
    for (int i = 0; i < n_parts; i++) {
        const __mmask16 rows = mask_of(a->row1 - r0 - SIDE * i);
        for (int t = 0; t < n; t++) {
            _mm512_mask_storeu_ps(y + t * a->y_stride + SIDE * i, rows, _mm512_load_ps(s->sums[i][t]));
        }
    }
}

static void multiply_all(const matmul_args *a, const amx_kernel *kernel, const tile_config *config) {
    workspace *s = a->scratch;
    memset(&s->x, 0, sizeof s->x); /* tokens that are not there are multiplied, too */
    tiles_begin(config);
    for (int64_t r0 = a->row0; r0 < a->row1; r0 += PARTS * SIDE) {
        for (int64_t c0 = 0; c0 < a->k; c0 += COLUMNS) {
            const int columns = smaller(a->k - c0, COLUMNS);
            for (int i = 0; i < PARTS && r0 + SIDE * i < a->row1; i++) {
                const uint8_t *rows[SIDE];
                for (int r = 0; r < SIDE; r++) { /* beyond the last row, that row again: its results are dropped */
                    const int64_t row = r0 + SIDE * i + r < a->row1 ? r0 + SIDE * i + r : a->row1 - 1;
                    rows[r] = (const uint8_t *)a->w + (size_t)row * a->row_bytes;
                }
                kernel->unpack(rows, c0, columns, &s->parts[i]);
            }
            for (int64_t t0 = 0; t0 < a->n_tokens; t0 += TOKENS) {
                multiply_panel(a, kernel, r0, c0, columns, t0, smaller(a->n_tokens - t0, TOKENS), s);
            }
        }
    }
    tiles_end();
}

size_t matmul_tiles_scratch_amx(void) { return act_round(sizeof(workspace)); }

/* ---- every type ------------------------------------------------------------------------------------------------------ */

#define WITH_AMX(KIND, NAME)                                                                                                   \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, part *out) {                                \
        unpack_##KIND(&type_##NAME, rows, c0, columns, out);                                                                   \
    }                                                                                                                          \
    static void NAME##_panel(const void *const *x, int64_t k, int64_t c0, int columns, int n, panel *p) {                      \
        fill_panel_##KIND(&type_##NAME, x, k, c0, columns, n, p);                                                              \
    }                                                                                                                          \
    static void NAME##_multiply(const part *w, int chunk, const panel *p, int columns, int n, float (*sums)[SIDE]) {           \
        multiply_##KIND(&type_##NAME, w, chunk, p, columns, n, sums);                                                          \
    }                                                                                                                          \
    void matmul_tiles_##NAME##_amx(const matmul_args *a) {                                                                     \
        static const amx_kernel kernel = {NAME##_unpack, NAME##_panel, NAME##_multiply};                                       \
        multiply_all(a, &kernel, &config_##KIND);                                                                              \
    }

WITH_AMX(32, q4_0)
WITH_AMX(32, q4_1)
WITH_AMX(32, q5_0)
WITH_AMX(32, q5_1)
WITH_AMX(32, q8_0)
WITH_AMX(32, iq4_nl)
WITH_AMX(32, mxfp4)
WITH_AMX(256, q2_K)
WITH_AMX(256, q3_K)
WITH_AMX(256, q4_K)
WITH_AMX(256, q5_K)
WITH_AMX(256, q6_K)
WITH_AMX(256, iq4_xs)
