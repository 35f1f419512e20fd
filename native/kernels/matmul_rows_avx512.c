/* Few tokens, AVX-512: one pass over each row of weights, as it lies in the file, for up to four tokens.
 *
 * Units of 256 columns, a super-block or eight blocks, go to four registers in whatever order is cheapest to unpack; the
 * activations are put into the same order once a call. vpdpbusd leaves sixteen sums of four products, exact. Blocks of 32 scale
 * these by float; super-blocks first by their integer scales and by float once per unit.
 *
 * One token: two rows at a time, half a piece apart, so that memory is read in two streams (fetch_rows_ahead says why). What counts
 * besides is the number of vector instructions, since arithmetic and memory overlap only in part (tests/bench/LOG.md). */
#include "kernels/matmul_unpack_avx512.h"

#include <stdalign.h>

#include "kernels/fill.h"
#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"

enum { PASS_TOKENS = 4, UNIT = 256 };

/* Of one token, per unit. Sums start at -offset times the sum of the activations that a lane sees. */
typedef struct unit_x {
    __m512i x[4];     /* in the order of the type's registers */
    __m512i start[4]; /* merged: only [0] and [2] */
    __m256 d_sum;     /* blocks with minima: scale times sum of each block */
    __m256i sums;     /* super-blocks with minima: int16 sums of the groups that have a minimum each */
} unit_x;

size_t matmul_rows_scratch_avx512(int64_t k) { return PASS_TOKENS * (size_t)((k + UNIT - 1) / UNIT) * sizeof(unit_x); }

INLINE const void *token_row(const matmul_args *a, int64_t t) { return (const char *)a->x + (size_t)t * a->x_stride; }

/* ---- orders of the columns ----------------------------------------------------------------------------------------- */

typedef void arrangement(const __m512i *x, __m512i *out);

INLINE void as_they_are(const __m512i *x, __m512i *out) {
    for (int j = 0; j < 4; j++) {
        out[j] = x[j];
    }
}

/* The first 16 columns of four blocks, the second 16 of the same. */
INLINE void by_halves_of_32(const __m512i *x, __m512i *out) {
    for (int j = 0; j < 4; j += 2) {
        out[j] = _mm512_shuffle_i32x4(x[j], x[j + 1], 0x88);
        out[j + 1] = _mm512_shuffle_i32x4(x[j], x[j + 1], 0xdd);
    }
}

/* The first 32 columns of two groups of 64, the second 32 of the same. */
INLINE void by_halves_of_64(const __m512i *x, __m512i *out) {
    for (int j = 0; j < 4; j += 2) {
        out[j] = _mm512_shuffle_i32x4(x[j], x[j + 1], 0x44);
        out[j + 1] = _mm512_shuffle_i32x4(x[j], x[j + 1], 0xee);
    }
}

/* Columns 32 s .. 32 s + 31 of either half. */
INLINE void by_halves_of_256(const __m512i *x, __m512i *out) {
    for (int j = 0; j < 2; j++) {
        out[2 * j] = _mm512_shuffle_i32x4(x[j], x[j + 2], 0x44);
        out[2 * j + 1] = _mm512_shuffle_i32x4(x[j], x[j + 2], 0xee);
    }
}

INLINE void arrange(arrangement *order, bool merged, int offset, const int8_t *x, unit_x *out) {
    __m512i in[4], y[4];
    for (int j = 0; j < 4; j++) {
        in[j] = load_512(x + 64 * j);
    }
    order(in, y);
    for (int j = 0; j < 4; j++) {
        _mm512_store_si512(&out->x[j], y[j]);
    }
    const __m512i all = _mm512_set1_epi8((char)offset);
    for (int j = 0; offset != 0 && j < 4; j += merged ? 2 : 1) {
        __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), all, y[j]);
        sums = merged ? _mm512_dpbusd_epi32(sums, all, y[j + 1]) : sums;
        _mm512_store_si512(&out->start[j], _mm512_sub_epi32(_mm512_setzero_si512(), sums));
    }
}

INLINE __m512i dot_64(const unit_x *x, int j, __m512i u, int offset) {
    return _mm512_dpbusd_epi32(offset != 0 ? x->start[j] : _mm512_setzero_si512(), u, x->x[j]);
}

/* Registers j and j + 1, whose lanes belong together. */
INLINE __m512i dot_128(const unit_x *x, int j, const __m512i *u, int offset) {
    return _mm512_dpbusd_epi32(dot_64(x, j, u[j], offset), u[j + 1], x->x[j + 1]);
}

/* ---- eight blocks of 32 -------------------------------------------------------------------------------------------- */

typedef struct unit_32 {
    const type_32 *block;
    bool merged; /* by_halves_of_32; else as_they_are */
    void (*columns)(const uint8_t *b, __m512i *u);
} unit_32;

/* 16 bytes of each of four blocks. */
INLINE __m512i four_runs(const uint8_t *q, size_t step) {
    __m512i v = _mm512_castsi128_si512(load_128(q));
    v = _mm512_inserti32x4(v, load_128(q + step), 1);
    v = _mm512_inserti32x4(v, load_128(q + 2 * step), 2);
    return _mm512_inserti32x4(v, load_128(q + 3 * step), 3);
}

INLINE void nibbles_of_eight(const uint8_t *q, size_t step, __m512i *u) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; j += 2) {
        __m512i v = four_runs(q + (size_t)(2 * j) * step, step);
        u[j] = _mm512_and_si512(v, low);
        u[j + 1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    }
}

/* The lower (upper) halves of the 32 bits belong to the first (second) 16 columns of a block. */
INLINE void add_fifth_bits_of_eight(const uint8_t *h, size_t step, __m512i *u) {
    const uint64_t low = UINT64_C(0x0000ffff0000ffff);
    for (int j = 0; j < 4; j += 2, h += 4 * step) {
        const uint64_t a = load_u32(h) | (uint64_t)load_u32(h + 2 * step) << 32;
        const uint64_t b = load_u32(h + step) | (uint64_t)load_u32(h + 3 * step) << 32;
        const __mmask64 first = (a & low) | (b & low) << 16, second = (a >> 16 & low) | (b & ~low);
        u[j] = _mm512_mask_add_epi8(u[j], first, u[j], _mm512_set1_epi8(16));
        u[j + 1] = _mm512_mask_add_epi8(u[j + 1], second, u[j + 1], _mm512_set1_epi8(16));
    }
}

INLINE void look_up(const int8_t *table, int offset, __m512i *u) {
    const __m512i values = _mm512_broadcast_i32x4(_mm_add_epi8(load_128(table), _mm_set1_epi8((char)offset)));
    for (int j = 0; j < 4; j++) {
        u[j] = _mm512_shuffle_epi8(values, u[j]);
    }
}

INLINE void q4_0_unit(const uint8_t *b, __m512i *u) { nibbles_of_eight(b + 2, sizeof(block_q4_0), u); }
INLINE void q4_1_unit(const uint8_t *b, __m512i *u) { nibbles_of_eight(b + 4, sizeof(block_q4_1), u); }
INLINE void q5_0_unit(const uint8_t *b, __m512i *u) {
    nibbles_of_eight(b + 6, sizeof(block_q5_0), u);
    add_fifth_bits_of_eight(b + 2, sizeof(block_q5_0), u);
}
INLINE void q5_1_unit(const uint8_t *b, __m512i *u) {
    nibbles_of_eight(b + 8, sizeof(block_q5_1), u);
    add_fifth_bits_of_eight(b + 4, sizeof(block_q5_1), u);
}
INLINE void q8_0_unit(const uint8_t *b, __m512i *u) {
    for (int j = 0; j < 4; j++, b += 2 * sizeof(block_q8_0)) {
        u[j] = q8_0_columns(b, b + sizeof(block_q8_0));
    }
}
INLINE void iq4_nl_unit(const uint8_t *b, __m512i *u) {
    nibbles_of_eight(b + 2, sizeof(block_iq4_nl), u);
    look_up(quant_iq4_values, 128, u);
}
INLINE void mxfp4_unit(const uint8_t *b, __m512i *u) {
    nibbles_of_eight(b + 1, sizeof(block_mxfp4), u);
    look_up(quant_mxfp4_values, 12, u);
}

static const unit_32 unit_q4_0 = {&type_q4_0, true, q4_0_unit};
static const unit_32 unit_q4_1 = {&type_q4_1, true, q4_1_unit};
static const unit_32 unit_q5_0 = {&type_q5_0, true, q5_0_unit};
static const unit_32 unit_q5_1 = {&type_q5_1, true, q5_1_unit};
static const unit_32 unit_q8_0 = {&type_q8_0, false, q8_0_unit};
static const unit_32 unit_iq4_nl = {&type_iq4_nl, true, iq4_nl_unit};
static const unit_32 unit_mxfp4 = {&type_mxfp4, true, mxfp4_unit};

/* The 16-bit words at `at` of eight blocks: two loads and a permutation where four blocks fit a register. */
INLINE __m128i words_of_eight(const uint8_t *b, int bytes, int at) {
    if (bytes % 2 != 0 || 3 * bytes + at + 2 > 64) {
        return eight_words(b + at, (size_t)bytes);
    }
    const int w = bytes / 2, a = at / 2;
    const __m512i index =
        _mm512_castsi128_si512(_mm_setr_epi16((short)a, (short)(a + w), (short)(a + 2 * w), (short)(a + 3 * w), (short)(a + 32),
                                              (short)(a + 32 + w), (short)(a + 32 + 2 * w), (short)(a + 32 + 3 * w)));
    return _mm512_castsi512_si128(_mm512_permutex2var_epi16(load_512(b), index, load_512(b + 4 * bytes)));
}

INLINE void begin_32(const matmul_args *a, const unit_32 *type, int64_t t, unit_x *out) {
    const void *row = token_row(a, t);
    const float *d = act_scales(row, a->k);
    const int32_t *sum = act_sums_32(row, a->k);
    for (int64_t c = 0; c < a->k; c += UNIT, out++) {
        alignas(64) int8_t last[UNIT] = {0};
        const int8_t *x = act_q8(row) + c;
        if (c + UNIT > a->k) {
            memcpy(last, x, (size_t)(a->k - c));
            x = last;
        }
        arrange(type->merged ? by_halves_of_32 : as_they_are, type->merged, type->block->offset, x, out);
        const __m256i sums = _mm256_load_si256((const __m256i *)(const void *)(sum + c / 32));
        out->d_sum = _mm256_mul_ps(_mm256_load_ps(d + c / 32), _mm256_cvtepi32_ps(sums));
    }
}

INLINE void add_unit_32(const unit_32 *type, const uint8_t *b, const unit_x *const *x, const float *const *dx, int64_t i, int n,
                        __m512 *dots, __m256 *minima) {
    const int bytes = type->block->bytes, offset = type->block->offset;
    const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512i u[4];
    type->columns(b, u);
    const __m256 d = type->block->scale(words_of_eight(b, bytes, 0));
    const __m256 m = type->block->has_min ? half_scale(words_of_eight(b, bytes, 2)) : _mm256_setzero_ps();
    for (int t = 0; t < n; t++) {
        const unit_x *y = x[t] + i;
        const __m512 scale = _mm512_castps256_ps512(_mm256_mul_ps(d, _mm256_load_ps(dx[t] + 8 * i)));
        for (int j = 0; j < 4; j += type->merged ? 2 : 1) {
            const __m512i dot = type->merged ? dot_128(y, j, u, offset) : dot_64(y, j, u[j], offset);
            const __m512i lanes = _mm512_add_epi32(type->merged ? quarters : halves, _mm512_set1_epi32(2 * j));
            dots[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale), dots[t]);
        }
        if (type->block->has_min) {
            minima[t] = _mm256_fmadd_ps(m, y->d_sum, minima[t]);
        }
    }
}

/* Row r and, if there are two, row r + apart. */
INLINE void rows_32(const matmul_args *a, const unit_32 *type, const unit_x *const *x, const float *const *dx, int64_t t0,
                    int n, int64_t r, int64_t apart, int rows) {
    const int64_t whole = a->k / UNIT;
    const size_t unit_bytes = (size_t)(8 * type->block->bytes), rest = (size_t)(a->k % UNIT / 32 * type->block->bytes);
    const uint8_t *b[MOST_ROWS];
    __m512 dots[MOST_ROWS][PASS_TOKENS];
    __m256 minima[MOST_ROWS][PASS_TOKENS];
    for (int i = 0; i < rows; i++) {
        b[i] = (const uint8_t *)a->w + (size_t)(r + i * apart) * a->row_bytes;
        for (int t = 0; t < n; t++) {
            dots[i][t] = _mm512_setzero_ps();
            minima[i][t] = _mm256_setzero_ps();
        }
    }
    for (int64_t u = 0; u < whole; u++) {
        for (int i = 0; i < rows; i++, b[i - 1] += unit_bytes) {
            fetch_rows_ahead(b[i], (int)unit_bytes, rows);
            add_unit_32(type, b[i], x, dx, u, n, dots[i], minima[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        if (rest > 0) {
            uint8_t last[8 * sizeof(block_q8_0)] = {0}; /* blocks of zeros behind the last, times activations of zero */
            memcpy(last, b[i], rest);
            add_unit_32(type, last, x, dx, whole, n, dots[i], minima[i]);
        }
        for (int t = 0; t < n; t++) {
            const __m512 sums =
                type->block->has_min ? _mm512_add_ps(dots[i][t], _mm512_zextps256_ps512(minima[i][t])) : dots[i][t];
            a->y[(t0 + t) * a->y_stride + r + i * apart] = _mm512_reduce_add_ps(sums);
        }
    }
}

INLINE void pass_32(const matmul_args *a, const unit_32 *type, int64_t t0, int n) {
    const unit_x *x[PASS_TOKENS];
    const float *dx[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        unit_x *units = (unit_x *)a->scratch + t * ((a->k + UNIT - 1) / UNIT);
        begin_32(a, type, t0 + t, units);
        x[t] = units;
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
    }
    FOR_ROWS_APART(a, n == 1, rows_32, a, type, x, dx, t0, n)
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------- */

/* The scale of every lane's group, as a byte of 16: two registers of dots, packed to 16 bits, have in each quarter four words
 * of the first and four of the second. Unsigned bytes go to the low half of a word; signed ones to the high half, 256 times
 * too large: 4 sums of up to 4 * 32 * 127, times 128 * 256, still fit 32 bits. */
#define LOW(g) g, 0x80
#define HIGH(g) 0x80, g
#define FOUR(HALF, g) HALF(g), HALF(g), HALF(g), HALF(g)
#define WORDS(HALF, a, b, c, d, e, f, g, h)                                                                                    \
    {FOUR(HALF, a), FOUR(HALF, b), FOUR(HALF, c), FOUR(HALF, d), FOUR(HALF, e), FOUR(HALF, f), FOUR(HALF, g), FOUR(HALF, h)}

typedef struct scale_words {
    alignas(64) uint8_t index[2][64];
} scale_words;

static const scale_words words_of_64 = {{WORDS(LOW, 0, 1, 0, 1, 2, 3, 2, 3), WORDS(LOW, 4, 5, 4, 5, 6, 7, 6, 7)}};
static const scale_words words_of_256 = {{WORDS(LOW, 0, 2, 1, 3, 8, 10, 9, 11), WORDS(LOW, 4, 6, 5, 7, 12, 14, 13, 15)}};
static const scale_words signed_of_256 = {{WORDS(HIGH, 0, 2, 1, 3, 8, 10, 9, 11), WORDS(HIGH, 4, 6, 5, 7, 12, 14, 13, 15)}};
static const scale_words signed_in_order = {{WORDS(HIGH, 0, 4, 1, 5, 2, 6, 3, 7), WORDS(HIGH, 8, 12, 9, 13, 10, 14, 11, 15)}};

typedef struct unit_scales {
    __m512i scale;   /* 16 bytes, four times over; IQ4_XS: eight int32 */
    __m256i minimum; /* int16, in the order of unit_x.sums */
    __m128 d;        /* d, dmin */
} unit_scales;

typedef struct unit_256 {
    const type_256 *block;
    arrangement *order;
    const scale_words *words; /* NULL: four products may exceed 16 bits, registers 0, 1 and 2, 3 are merged */
    bool is_signed;           /* words 256 times too large */
    void (*columns)(const uint8_t *b, __m512i *u);
    unit_scales (*scales)(const uint8_t *b);
} unit_256;

INLINE __m128 halves_at(const void *p) { return _mm_cvtph_ps(_mm_cvtsi32_si128((int)load_u32(p))); }
INLINE __m128 half_at(const void *p) { return _mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(p))); }

/* All four pairs of bits of 64 bytes. */
INLINE void crumbs_unit(const uint8_t *qs, __m512i *u) {
    const __m512i v = load_512(qs), three = _mm512_set1_epi8(3);
    u[0] = _mm512_and_si512(v, three);
    u[1] = _mm512_and_si512(_mm512_srli_epi16(v, 2), three);
    u[2] = _mm512_and_si512(_mm512_srli_epi16(v, 4), three);
    u[3] = _mm512_and_si512(_mm512_srli_epi16(v, 6), three);
}

INLINE void q2_K_unit(const uint8_t *b, __m512i *u) { crumbs_unit(b + offsetof(block_q2_K, qs), u); }

INLINE unit_scales q2_K_scales(const uint8_t *b) {
    const __m128i v = load_128(b + offsetof(block_q2_K, scales)), low = _mm_set1_epi8(15);
    unit_scales s = {_mm512_broadcast_i32x4(_mm_and_si128(v, low)),
                     _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(v, 4), low)), halves_at(b + offsetof(block_q2_K, d))};
    return s;
}

INLINE void q3_K_unit(const uint8_t *b, __m512i *u) {
    crumbs_unit(b + offsetof(block_q3_K, qs), u);
    const __m512i bits = twice_256(b + offsetof(block_q3_K, hmask));
    UNROLL for (int j = 0; j < 4; j++) {
        const __mmask64 set = _mm512_test_epi8_mask(bits, halves_8(1 << j, 16 << j));
        u[j] = _mm512_mask_add_epi8(u[j], set, u[j], _mm512_set1_epi8(4));
    }
}

INLINE unit_scales q3_K_scales(const uint8_t *b) {
    unit_scales s = {_mm512_broadcast_i32x4(q3_K_scale_bytes(b + offsetof(block_q3_K, scales))), _mm256_setzero_si256(),
                     half_at(b + offsetof(block_q3_K, d))};
    return s;
}

INLINE void nibbles_unit(const uint8_t *qs, __m512i *u) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; j += 2, qs += 64) {
        __m512i v = load_512(qs);
        __asm__("" : "+v"(v)); /* one load; the compiler would make it two, and loads are scarce */
        u[j] = _mm512_and_si512(v, low);
        u[j + 1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    }
}

INLINE void q4_K_unit(const uint8_t *b, __m512i *u) { nibbles_unit(b + offsetof(block_q4_K, qs), u); }

INLINE void q5_K_unit(const uint8_t *b, __m512i *u) {
    nibbles_unit(b + offsetof(block_q5_K, qs), u);
    /* Bits 0 and 2, 1 and 3, 4 and 6, 5 and 7 to bit 4. By shifts: testing bits takes the port that shuffles need. */
    const __m512i bits = twice_256(b + offsetof(block_q5_K, qh)), fifth = _mm512_set1_epi8(16);
    const __m512i h[4] = {_mm512_sllv_epi16(bits, halves_16(4, 2)), _mm512_sllv_epi16(bits, halves_16(3, 1)),
                          _mm512_srlv_epi16(bits, halves_16(0, 2)), _mm512_srlv_epi16(bits, halves_16(1, 3))};
    UNROLL for (int j = 0; j < 4; j++) { u[j] = _mm512_ternarylogic_epi32(u[j], h[j], fifth, 0xf8); /* u | (h & 16) */ }
}

INLINE unit_scales q4_K_scales(const uint8_t *b) {
    const scales_6 v = scales_of_32(b + offsetof(block_q4_K, scales));
    unit_scales s = {_mm512_set1_epi64((long long)v.scales),
                     _mm256_zextsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)v.minima))), halves_at(b)};
    return s;
}

INLINE void q6_K_unit(const uint8_t *b, __m512i *u) {
    for (int j = 0; j < 4; j++) {
        u[j] = q6_K_columns(b, j);
    }
}

INLINE unit_scales q6_K_scales(const uint8_t *b) {
    unit_scales s = {_mm512_broadcast_i32x4(load_128(b + offsetof(block_q6_K, scales))), _mm256_setzero_si256(),
                     half_at(b + offsetof(block_q6_K, d))};
    return s;
}

INLINE void iq4_xs_unit(const uint8_t *b, __m512i *u) {
    nibbles_unit(b + offsetof(block_iq4_xs, qs), u);
    look_up(quant_iq4_values, 128, u);
}

INLINE unit_scales iq4_xs_scales(const uint8_t *b) {
    unit_scales s = {_mm512_castsi256_si512(iq4_xs_scales_of_32(b)), _mm256_setzero_si256(), half_at(b)};
    return s;
}

static const unit_256 unit_q2_K = {&type_q2_K, by_halves_of_256, &words_of_256, false, q2_K_unit, q2_K_scales};
static const unit_256 unit_q3_K = {&type_q3_K, by_halves_of_256, &signed_of_256, true, q3_K_unit, q3_K_scales};
static const unit_256 unit_q4_K = {&type_q4_K, by_halves_of_64, &words_of_64, false, q4_K_unit, q4_K_scales};
static const unit_256 unit_q5_K = {&type_q5_K, by_halves_of_64, &words_of_64, false, q5_K_unit, q4_K_scales};
static const unit_256 unit_q6_K = {&type_q6_K, as_they_are, &signed_in_order, true, q6_K_unit, q6_K_scales};
static const unit_256 unit_iq4_xs = {&type_iq4_xs, by_halves_of_32, NULL, false, iq4_xs_unit, iq4_xs_scales};

INLINE void begin_256(const matmul_args *a, const unit_256 *type, int64_t t, unit_x *out) {
    const void *row = token_row(a, t);
    const int16_t *sum = act_sums_16(row, a->k);
    for (int64_t c = 0; c < a->k; c += UNIT, out++) {
        arrange(type->order, type->words == NULL, type->block->offset, act_q8(row) + c, out);
        const __m256i of_16 = _mm256_load_si256((const __m256i *)(const void *)(sum + c / 16));
        const __m256i of_32 = _mm256_madd_epi16(of_16, _mm256_set1_epi16(1));
        out->sums = type->block->group == 16 ? of_16 : _mm256_zextsi128_si256(_mm256_cvtepi32_epi16(of_32));
    }
}

INLINE __m512i dots_of_words(const unit_256 *type, const unit_x *x, const __m512i *u, const __m512i *scale) {
    const int offset = type->block->offset;
    const __m512i a = _mm512_packs_epi32(dot_64(x, 0, u[0], offset), dot_64(x, 1, u[1], offset));
    const __m512i b = _mm512_packs_epi32(dot_64(x, 2, u[2], offset), dot_64(x, 3, u[3], offset));
    return _mm512_dpwssd_epi32(_mm512_madd_epi16(a, scale[0]), b, scale[1]); /* |sum of four| <= 4 * 32 * 127: exact */
}

INLINE __m512i dots_of_pairs(const unit_256 *type, const unit_x *x, const __m512i *u, const __m512i *scale) {
    const __m512i a = dot_128(x, 0, u, type->block->offset), b = dot_128(x, 2, u, type->block->offset);
    return _mm512_add_epi32(_mm512_mullo_epi32(a, scale[0]), _mm512_mullo_epi32(b, scale[1]));
}

INLINE void add_unit_256(const unit_256 *type, const uint8_t *b, const unit_x *const *x, const float *const *dx, int64_t i,
                         int n, __m512 *dots, __m256 *minima) {
    const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const unit_scales s = type->scales(b);
    __m512i u[4], scale[2];
    type->columns(b, u);
    for (int p = 0; p < 2; p++) {
        scale[p] = type->words != NULL
                       ? _mm512_shuffle_epi8(s.scale, load_512(type->words->index[p]))
                       : _mm512_permutexvar_epi32(_mm512_add_epi32(quarters, _mm512_set1_epi32(4 * p)), s.scale);
    }
    for (int t = 0; t < n; t++) {
        const unit_x *y = x[t] + i;
        const __m512i total = type->words != NULL ? dots_of_words(type, y, u, scale) : dots_of_pairs(type, y, u, scale);
        const __m128 d = _mm_mul_ps(s.d, _mm_set1_ps(dx[t][i]));
        dots[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_broadcastss_ps(d), dots[t]);
        if (type->block->has_min) {
            const __m256 m = _mm256_cvtepi32_ps(_mm256_madd_epi16(s.minimum, y->sums));
            minima[t] = _mm256_fmadd_ps(m, _mm256_broadcastss_ps(_mm_movehdup_ps(d)), minima[t]);
        }
    }
}

INLINE void rows_256(const matmul_args *a, const unit_256 *type, const unit_x *const *x, const float *const *dx, int64_t t0,
                     int n, int64_t r, int64_t apart, int rows) {
    const int64_t n_units = a->k / UNIT;
    const uint8_t *b[MOST_ROWS];
    __m512 dots[MOST_ROWS][PASS_TOKENS];
    __m256 minima[MOST_ROWS][PASS_TOKENS];
    for (int i = 0; i < rows; i++) {
        b[i] = (const uint8_t *)a->w + (size_t)(r + i * apart) * a->row_bytes;
        for (int t = 0; t < n; t++) {
            dots[i][t] = _mm512_setzero_ps();
            minima[i][t] = _mm256_setzero_ps();
        }
    }
    for (int64_t u = 0; u < n_units; u++) {
        for (int i = 0; i < rows; i++, b[i - 1] += type->block->bytes) {
            fetch_rows_ahead(b[i], type->block->bytes, rows);
            add_unit_256(type, b[i], x, dx, u, n, dots[i], minima[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int t = 0; t < n; t++) {
            const __m512 sums =
                type->block->has_min ? _mm512_sub_ps(dots[i][t], _mm512_zextps256_ps512(minima[i][t])) : dots[i][t];
            a->y[(t0 + t) * a->y_stride + r + i * apart] =
                _mm512_reduce_add_ps(sums) * (type->is_signed ? 1.0f / 256.0f : 1.0f);
        }
    }
}

INLINE void pass_256(const matmul_args *a, const unit_256 *type, int64_t t0, int n) {
    const unit_x *x[PASS_TOKENS];
    const float *dx[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        unit_x *units = (unit_x *)a->scratch + t * (a->k / UNIT);
        begin_256(a, type, t0 + t, units);
        x[t] = units;
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
    }
    FOR_ROWS_APART(a, n == 1, rows_256, a, type, x, dx, t0, n)
}

/* ---- passes of four tokens and of one ---------------------------------------------------------------------------------- */

ROW_WISE_KERNELS(unit, avx512)
