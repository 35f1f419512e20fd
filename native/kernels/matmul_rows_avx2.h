/* Few tokens, AVX2: one pass over each row of weights, as it lies in the file, for up to four tokens. matmul_rows_avx2.c and
 * matmul_rows_avxvnni.c include this file; which instructions multiply is all that differs.
 *
 *   AVX2      32 columns at a time: vpmaddubsw leaves sixteen sums of two products in 16 bits, exact for every type (see top in
 *             matmul_unpack_avx2.h). Multiplying these with integer scales, or with 1, widens them to 32 bits.
 *   AVX-VNNI  vpdpbusd leaves eight sums of four products in 32 bits.
 *
 * From the includer: ROWS_ISA, what the names of the kernels end with. */
#ifndef LMI_KERNELS_MATMUL_ROWS_AVX2_H
#define LMI_KERNELS_MATMUL_ROWS_AVX2_H

#include "kernels/matmul_unpack_avx2.h"

#include "kernels/matmul_avx2.h"

enum { PASS_TOKENS = 4 };

/* For types with an offset, of 32 columns each: offset times the sum of each pair of activations (AVX-VNNI: minus offset
 * times the sum of each four), to be taken off (added). */
typedef struct pass {
    const int8_t *x[PASS_TOKENS];
    const __m256i *excess[PASS_TOKENS];
} pass;

static void fill_excess(const int8_t *x, int64_t k, int offset, __m256i *excess) {
    const __m256i all = _mm256_set1_epi8((char)offset);
    for (int64_t c = 0; c < k; c += 32) {
#if defined(__AVXVNNI__)
        const __m256i zero = _mm256_setzero_si256();
        excess[c / 32] = _mm256_sub_epi32(zero, _mm256_dpbusd_avx_epi32(zero, all, load_256(x + c)));
#else
        excess[c / 32] = _mm256_maddubs_epi16(all, load_256(x + c));
#endif
    }
}

INLINE const void *token_row(const matmul_args *a, int64_t t) { return (const char *)a->x + (size_t)t * a->x_stride; }

INLINE pass begin_pass(const matmul_args *a, int64_t t0, int n, int offset) {
    pass p;
    for (int t = 0; t < n; t++) {
        p.x[t] = act_q8(token_row(a, t0 + t));
        p.excess[t] = NULL;
        if (offset != 0) {
            __m256i *excess = (__m256i *)(void *)((char *)a->scratch + (size_t)t * act_round((size_t)a->k));
            fill_excess(p.x[t], a->k, offset, excess);
            p.excess[t] = excess;
        }
    }
    return p;
}

/* Eight sums of four products of 32 columns; u_or_q as the type has it. */
#if defined(__AVXVNNI__)
INLINE __m256i fours_of_32(const pass *p, int t, int64_t block, __m256i u, int offset, bool is_signed) {
    (void)is_signed; /* no type is */
    const __m256i start = offset != 0 ? p->excess[t][block] : _mm256_setzero_si256();
    return _mm256_dpbusd_avx_epi32(start, u, load_256(p->x[t] + 32 * block));
}
#else
INLINE __m256i pairs_of_32(const pass *p, int t, int64_t block, __m256i u_or_q, int offset, bool is_signed) {
    __m256i x = load_256(p->x[t] + 32 * block);
    if (is_signed) {
        return _mm256_maddubs_epi16(_mm256_abs_epi8(u_or_q), _mm256_sign_epi8(x, u_or_q));
    }
    __m256i pairs = _mm256_maddubs_epi16(u_or_q, x);
    return offset != 0 ? _mm256_sub_epi16(pairs, p->excess[t][block]) : pairs;
}

INLINE __m256i fours_of_32(const pass *p, int t, int64_t block, __m256i u_or_q, int offset, bool is_signed) {
    return _mm256_madd_epi16(pairs_of_32(p, t, block, u_or_q, offset, is_signed), _mm256_set1_epi16(1));
}
#endif

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

typedef struct sums_32 {
    __m256 dots[PASS_TOKENS];
    __m256 minima[PASS_TOKENS];
} sums_32;

/* Up to eight blocks from block g (a multiple of 8) on. */
INLINE void add_blocks_32(const type_32 *type, const pass *p, const float *const *dx, const int32_t *const *sum,
                          const uint8_t *b, int64_t g, int n_blocks, int n, sums_32 *s) {
    const size_t bytes = (size_t)type->bytes;
    __m256 d = type->scale(gather_u16(b, bytes, n_blocks));
    __m256 scale[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        scale[t] = _mm256_mul_ps(d, _mm256_load_ps(dx[t] + g));
    }
    if (type->has_min) {
        __m256 m = half_scale(gather_u16(b + 2, bytes, n_blocks));
        for (int t = 0; t < n; t++) {
            __m256 x = _mm256_cvtepi32_ps(load_256(sum[t] + g));
            s->minima[t] = _mm256_fmadd_ps(m, _mm256_mul_ps(x, _mm256_load_ps(dx[t] + g)), s->minima[t]);
        }
    }
    for (int i = 0; i < n_blocks; i++) {
        __m256i v = type->columns(b + (size_t)i * bytes);
        for (int t = 0; t < n; t++) {
            __m256 dots = _mm256_cvtepi32_ps(fours_of_32(p, t, g + i, v, type->offset, type->is_signed));
            s->dots[t] = _mm256_fmadd_ps(dots, _mm256_permutevar8x32_ps(scale[t], _mm256_set1_epi32(i)), s->dots[t]);
        }
    }
}

/* Row r and, if there are two, row r + apart. */
INLINE void rows_32(const matmul_args *a, const type_32 *type, const pass *p, const float *const *dx, const int32_t *const *sum,
                    int64_t t0, int n, int64_t r, int64_t apart, int rows) {
    const int64_t n_blocks = a->k / 32, whole = n_blocks / 8 * 8;
    const uint8_t *w[MOST_ROWS];
    sums_32 s[MOST_ROWS];
    for (int i = 0; i < rows; i++) {
        w[i] = (const uint8_t *)a->w + (size_t)(r + i * apart) * a->row_bytes;
        for (int t = 0; t < n; t++) {
            s[i].dots[t] = s[i].minima[t] = _mm256_setzero_ps();
        }
    }
    for (int64_t g = 0; g < whole; g += 8) {
        for (int i = 0; i < rows; i++) {
            const uint8_t *b = w[i] + (size_t)(g * type->bytes);
            fetch_rows_ahead(b, 8 * type->bytes, rows);
            add_blocks_32(type, p, dx, sum, b, g, 8, n, &s[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        if (whole < n_blocks) {
            add_blocks_32(type, p, dx, sum, w[i] + (size_t)(whole * type->bytes), whole, (int)(n_blocks - whole), n, &s[i]);
        }
        for (int t = 0; t < n; t++) {
            float y = sum_of_lanes(s[i].dots[t]);
            a->y[(t0 + t) * a->y_stride + r + i * apart] = type->has_min ? y + sum_of_lanes(s[i].minima[t]) : y;
        }
    }
}

INLINE void pass_32(const matmul_args *a, const type_32 *type, int64_t t0, int n) {
    const pass p = begin_pass(a, t0, n, type->offset);
    const float *dx[PASS_TOKENS];
    const int32_t *sum[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
        sum[t] = act_sums_32(token_row(a, t0 + t), a->k);
    }
    FOR_ROWS_APART(a, n == 1, rows_32, a, type, &p, dx, sum, t0, n)
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------- */

/* Scales 2 j and 2 j + 1 of 16 to the lower and upper half, from even ones below and odd ones above. */
INLINE __m256i split_even_odd(__m256i scale) {
    const __m256i sort = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3,
                                          6, 7, 10, 11, 14, 15);
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(scale, sort), 0xd8);
}

/* sum[t] = the dots of a super-block, each times the scale of its group: whole numbers below 2^24. */
#if defined(__AVXVNNI__)
INLINE void scaled_dots(const type_256 *type, const pass *p, const uint8_t *b, __m256i scale, int64_t s, int n, __m256 *sum) {
    if (4 * type->top * 127 <= 32767) { /* two registers of dots become one of words */
        const __m256i even_odd = split_even_odd(scale);
        __m256i total[PASS_TOKENS];
        for (int t = 0; t < n; t++) {
            total[t] = _mm256_setzero_si256();
        }
        UNROLL for (int j = 0; j < 8; j += 2) {
            const long long word = 0x0101010101010101 * 2 * j + 0x0100010001000100, next = word + 0x0202020202020202;
            const __m256i words = _mm256_shuffle_epi8(even_odd, _mm256_setr_epi64x(word, next, word, next));
            const __m256i u0 = type->columns(b, j), u1 = type->columns(b, j + 1);
            for (int t = 0; t < n; t++) {
                const __m256i dots = _mm256_packs_epi32(fours_of_32(p, t, 8 * s + j, u0, type->offset, type->is_signed),
                                                        fours_of_32(p, t, 8 * s + j + 1, u1, type->offset, type->is_signed));
                total[t] = _mm256_dpwssd_avx_epi32(total[t], dots, words);
            }
        }
        for (int t = 0; t < n; t++) {
            sum[t] = _mm256_cvtepi32_ps(total[t]);
        }
    } else { /* groups of 32, whose words are in equal pairs; float32 has these numbers, and multiplies faster than integers */
        const __m256 scales = _mm256_cvtepi32_ps(_mm256_srai_epi32(scale, 16));
        for (int t = 0; t < n; t++) {
            sum[t] = _mm256_setzero_ps();
        }
        UNROLL for (int j = 0; j < 8; j++) {
            const __m256i u = type->columns(b, j);
            const __m256 of_32 = _mm256_permutevar8x32_ps(scales, _mm256_set1_epi32(j));
            for (int t = 0; t < n; t++) {
                const __m256i dots = fours_of_32(p, t, 8 * s + j, u, type->offset, type->is_signed);
                sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), of_32, sum[t]);
            }
        }
    }
}
#else
INLINE __m256i scales_of_chunk(__m256i even_odd, int j) {
    return _mm256_shuffle_epi8(even_odd, _mm256_set1_epi16((short)(2 * j + 256 * (2 * j + 1))));
}

INLINE void scaled_dots(const type_256 *type, const pass *p, const uint8_t *b, __m256i scale, int64_t s, int n, __m256 *sum) {
    __m256i even_odd = split_even_odd(scale), total[PASS_TOKENS];
    UNROLL for (int j = 0; j < 8; j++) {
        __m256i v = type->columns(b, j), words = scales_of_chunk(even_odd, j);
        for (int t = 0; t < n; t++) {
            __m256i pairs = pairs_of_32(p, t, 8 * s + j, v, type->offset, type->is_signed);
            __m256i scaled = _mm256_madd_epi16(pairs, words);
            total[t] = j == 0 ? scaled : _mm256_add_epi32(total[t], scaled);
        }
    }
    for (int t = 0; t < n; t++) {
        sum[t] = _mm256_cvtepi32_ps(total[t]);
    }
}
#endif

INLINE void add_block_256(const type_256 *type, const pass *p, const float *const *dx, const int16_t *const *sum,
                          const uint8_t *b, int64_t s, int n, __m256 *dots, __m256 *minima) {
    const header_256 h = type->header(b);
    __m256 whole[PASS_TOKENS];
    scaled_dots(type, p, b, h.scale, s, n, whole);
    for (int t = 0; t < n; t++) {
        dots[t] = _mm256_fmadd_ps(whole[t], _mm256_set1_ps(h.d * dx[t][s]), dots[t]);
        if (type->has_min) {
            __m256i m = _mm256_madd_epi16(h.minimum, load_256(sum[t] + 16 * s));
            minima[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(m), _mm256_set1_ps(h.dmin * dx[t][s]), minima[t]);
        }
    }
}

INLINE void rows_256(const matmul_args *a, const type_256 *type, const pass *p, const float *const *dx,
                     const int16_t *const *sum, int64_t t0, int n, int64_t r, int64_t apart, int rows) {
    const int64_t n_blocks = a->k / 256;
    const uint8_t *b[MOST_ROWS];
    __m256 dots[MOST_ROWS][PASS_TOKENS], minima[MOST_ROWS][PASS_TOKENS];
    for (int i = 0; i < rows; i++) {
        b[i] = (const uint8_t *)a->w + (size_t)(r + i * apart) * a->row_bytes;
        for (int t = 0; t < n; t++) {
            dots[i][t] = minima[i][t] = _mm256_setzero_ps();
        }
    }
    for (int64_t s = 0; s < n_blocks; s++) {
        for (int i = 0; i < rows; i++, b[i - 1] += type->bytes) {
            fetch_rows_ahead(b[i], type->bytes, rows);
            add_block_256(type, p, dx, sum, b[i], s, n, dots[i], minima[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int t = 0; t < n; t++) {
            float y = sum_of_lanes(dots[i][t]);
            a->y[(t0 + t) * a->y_stride + r + i * apart] = type->has_min ? y - sum_of_lanes(minima[i][t]) : y;
        }
    }
}

INLINE void pass_256(const matmul_args *a, const type_256 *type, int64_t t0, int n) {
    const pass p = begin_pass(a, t0, n, type->offset);
    const float *dx[PASS_TOKENS];
    const int16_t *sum[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
        sum[t] = act_sums_16(token_row(a, t0 + t), a->k);
    }
    FOR_ROWS_APART(a, n == 1, rows_256, a, type, &p, dx, sum, t0, n)
}

/* ---- passes of four tokens and of one ---------------------------------------------------------------------------------- */

ROW_WISE_KERNELS(type, ROWS_ISA)

#endif
